/* For any processor: C11 without vectors of its own. */
#include "paths.h"

#include "batch.h"

static inline void copy_match(uint8_t *out, size_t offset, size_t length)
{
    if (offset >= 16) {
        for (size_t done = 0; done < length; done += 16) copy16(out + done, out + done - offset);
        return;
    }
    uint8_t pattern[16];
    for (size_t i = 0; i < 16; i++) pattern[i] = i < offset ? *(out + i - offset) : pattern[i - offset];
    const size_t step = 16 - 16 % offset;
    for (size_t done = 0; done < length; done += step) copy16(out + done, pattern);
}

/* Transposes 8 × 8 bits: bit j of byte i becomes bit i of byte j (H. S. Warren, Hacker's Delight, section 7-3). */
static inline uint64_t transposed(uint64_t x)
{
    uint64_t t = (x ^ x >> 7) & 0x00aa00aa00aa00aa;
    x ^= t ^ t << 7;
    t = (x ^ x >> 14) & 0x0000cccc0000cccc;
    x ^= t ^ t << 14;
    t = (x ^ x >> 28) & 0x00000000f0f0f0f0;
    return x ^ t ^ t << 28;
}

static inline void untranspose(const uint8_t *planes, size_t stride, size_t count, const uint8_t *valid, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t bits = 0;
        const uint8_t mask = valid ? valid[i] : 0xff;
        for (size_t plane = 0; plane < 8; plane++) bits |= (uint64_t)(planes[plane * stride + i] & mask) << 8 * plane;
        bits = transposed(bits);
        for (size_t e = 0; e < 8; e++) out[8 * i + e] = (uint8_t)(bits >> 8 * e);
    }
}

static inline void interleave(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    interleave_any(bytes, top, element_size, count, out);
}

static inline void add_lanes(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    for (size_t e = 0; e < count; e++) {
        uint32_t *mine = sums + (size_t)bin_of[e] * NATIVE_LANES;
        for (size_t i = 0; i < NATIVE_LANES; i++) mine[i] += low[i * LANE_STRIDE + e];
        if (high)
            for (size_t i = 0; i < NATIVE_LANES; i++) mine[i] += (uint32_t)high[i * LANE_STRIDE + e] << 8;
    }
}

const struct path native_portable = {decode_chunk, bin_chunks};
