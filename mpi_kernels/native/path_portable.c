/* For any little-endian processor: C11 with the vectors of 16 bytes that GCC and clang have on all of them. */
#include "paths.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "values are put together from bytes, the least significant one first"
#endif

#include "project.h"

typedef uint8_t bytes16 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));
typedef uint64_t words2 __attribute__((vector_size(16)));

#ifdef __clang__
#define SHUFFLED(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, ...) __builtin_shuffle(a, b, (bytes16){__VA_ARGS__})
#endif

/* The first and the second halves of two vectors, zipped by units of 1, 2 or 4 bytes. */
#define LOW1(a, b) SHUFFLED(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH1(a, b) SHUFFLED(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LOW2(a, b) SHUFFLED(a, b, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23)
#define HIGH2(a, b) SHUFFLED(a, b, 8, 9, 24, 25, 10, 11, 26, 27, 12, 13, 28, 29, 14, 15, 30, 31)
#define LOW4(a, b) SHUFFLED(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23)
#define HIGH4(a, b) SHUFFLED(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31)

static inline bytes16 load(const uint8_t *bytes)
{
    bytes16 value;
    memcpy(&value, bytes, 16);
    return value;
}

/* How often the low `offset` bytes are in 8 bytes, as a factor; and by how much the pattern may be moved on. */
static const uint64_t factor[8] = {
    0, 0x0101010101010101, 0x0001000100010001, 0x0001000001000001, 0x0000000100000001, 1 | 1ull << 40, 1 | 1ull << 48, 1 | 1ull << 56,
};
static const uint8_t step[8] = {0, 8, 8, 6, 8, 5, 6, 7};

static inline void copy_match(uint8_t *out, size_t offset, size_t length)
{
    if (offset >= 16) {
        for (size_t done = 0; done < length; done += 16) copy16(out + done, out + done - offset);
    } else if (offset >= 8) {
        for (size_t done = 0; done < length; done += 8) memcpy(out + done, out + done - offset, 8);
    } else {
        const uint64_t pattern = (load64(out - offset) & (((uint64_t)1 << 8 * offset) - 1)) * factor[offset];
        for (size_t done = 0; done < length; done += step[offset]) memcpy(out + done, &pattern, 8);
    }
}

static inline void copy_short_match(uint8_t *out, size_t offset, size_t length)
{
    copy_match(out, offset, length);
}

/* Swaps the bits of `a` that `mask` has after a shift by `by` with those of `b` that it has. */
static inline void swap_bits(bytes16 *a, bytes16 *b, int by, uint8_t mask)
{
    const bytes16 t = ((bytes16)((words2)*a >> by) ^ *b) & mask;
    *b ^= t;
    *a ^= (bytes16)((words2)t << by);
}

/* Transposes 8 × 8 bits: bit j of each byte of p[i] becomes bit i of that byte of p[j] (H. S. Warren, Hacker's Delight,
 * section 7-3). */
static inline void transpose(bytes16 p[8])
{
    for (int i = 0; i < 4; i++) swap_bits(p + i, p + i + 4, 4, 0x0f);
    for (int i = 0; i < 8; i++)
        if (!(i & 2)) swap_bits(p + i, p + i + 2, 2, 0x33);
    for (int i = 0; i < 8; i += 2) swap_bits(p + i, p + i + 1, 1, 0x55);
}

static inline void store(uint8_t *out, bytes16 value)
{
    memcpy(out, &value, 16);
}

/* 16 bytes of each plane: 128 elements. */
static inline void untranspose128(const uint8_t *planes, size_t stride, bytes16 mask, uint8_t *out)
{
    bytes16 p[8], q[8];
    for (int i = 0; i < 8; i++) p[i] = load(planes + i * stride) & mask;
    transpose(p);
    for (int i = 0; i < 4; i++) { /* now p[j] has every eighth element, from j on: they are zipped */
        q[i] = LOW1(p[2 * i], p[2 * i + 1]);
        q[i + 4] = HIGH1(p[2 * i], p[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        p[2 * i] = LOW2(q[2 * i], q[2 * i + 1]);
        p[2 * i + 1] = HIGH2(q[2 * i], q[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            store(out + 64 * i + 32 * j, LOW4(p[4 * i + j], p[4 * i + j + 2]));
            store(out + 64 * i + 32 * j + 16, HIGH4(p[4 * i + j], p[4 * i + j + 2]));
        }
    }
}

static inline void untranspose(const uint8_t *planes, size_t stride, size_t count, const uint8_t *valid, uint8_t *out)
{
    const bytes16 all = {255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    for (size_t i = 0; i < count; i += 16)
        untranspose128(planes + i, stride, valid ? load(valid + i) : all, out + 8 * i);
}

/* Elements of 2 or 4 bytes. */
static inline void interleave_few(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    for (size_t e = 0; e < count; e += 16) {
        bytes16 in[4] = {{0}}, elements[4];
        for (size_t k = 0; k < top; k++) in[k] = load(bytes[k] + e);
        const bytes16 a = LOW1(in[0], in[1]), b = HIGH1(in[0], in[1]);
        if (element_size == 2) {
            elements[0] = a, elements[1] = b;
        } else {
            const bytes16 c = LOW1(in[2], in[3]), d = HIGH1(in[2], in[3]);
            elements[0] = LOW2(a, c), elements[1] = HIGH2(a, c), elements[2] = LOW2(b, d), elements[3] = HIGH2(b, d);
        }
        if (count - e >= 16)
            memcpy(out + e * element_size, elements, 16 * element_size);
        else
            memcpy(out + e * element_size, elements, 8 * element_size);
    }
}

static inline void interleave(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    if (element_size == 2) /* constants, so that each is compiled for its own size */
        interleave_few(bytes, top, 2, count, out);
    else if (element_size == 4)
        interleave_few(bytes, top, 4, count, out);
    else
        interleave_any(bytes, top, element_size, count, out);
}

/* The 16 bytes of one pixel side by side, for each of 16 pixels: a transposition of 16 × 16 bytes by four perfect shuffles
 * of the lanes. */
static inline void side_by_side(const uint8_t *lanes, bytes16 row[16])
{
    bytes16 other[16];
    for (int i = 0; i < 16; i++) row[i] = load(lanes + i * LANE_STRIDE);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            other[2 * i] = LOW1(row[i], row[i + 8]);
            other[2 * i + 1] = HIGH1(row[i], row[i + 8]);
        }
        memcpy(row, other, sizeof other);
    }
}

static inline void add_lanes(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    const bytes16 zero = {0};
    bytes16 l[16], h[16] = {{0}};
    for (size_t e = 0; e < count; e += 16) {
        side_by_side(low + e, l);
        if (high) side_by_side(high + e, h);
        for (int i = 0; i < 16; i++) {
            const bytes16 a = LOW1(l[i], h[i]), b = HIGH1(l[i], h[i]);
            words4 *mine = (words4 *)(sums + (size_t)bin_of[e + i] * NATIVE_LANES);
            mine[0] += (words4)LOW2(a, zero);
            mine[1] += (words4)HIGH2(a, zero);
            mine[2] += (words4)LOW2(b, zero);
            mine[3] += (words4)HIGH2(b, zero);
        }
    }
}

/* In the four 16-bit fields of words: 128 words at a time, because 128 × 2 × 255 is below 2^16. */
static inline uint64_t sum_of_bytes(const uint8_t *bytes, size_t count)
{
    const uint64_t fields = 0x00ff00ff00ff00ff;
    uint64_t sum = 0;
    for (size_t from = 0; from < count; from += 1024) {
        const size_t stop = smaller(count, from + 1024);
        uint64_t words = 0;
        for (size_t e = from; e < stop; e += 8) words += (load64(bytes + e) & fields) + (load64(bytes + e) >> 8 & fields);
        sum += (words & 0xffff) + (words >> 16 & 0xffff) + (words >> 32 & 0xffff) + (words >> 48);
    }
    return sum;
}

const struct path native_portable = {decode_chunk, bin_chunks, project_chunks};
