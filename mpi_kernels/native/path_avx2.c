/* For x86-64 processors with AVX2 (since 2013). */
#include "paths.h"

#ifdef NATIVE_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2")
#endif

#include "batch.h"
#include "x86.h"

/* Transposes 8 × 8 bits in each of four places, as `transposed` of the portable path does in one. */
static inline __m256i transposed(__m256i x)
{
    __m256i t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi64(x, 7)), _mm256_set1_epi64x(0x00aa00aa00aa00aa));
    x = _mm256_xor_si256(x, _mm256_xor_si256(t, _mm256_slli_epi64(t, 7)));
    t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi64(x, 14)), _mm256_set1_epi64x(0x0000cccc0000cccc));
    x = _mm256_xor_si256(x, _mm256_xor_si256(t, _mm256_slli_epi64(t, 14)));
    t = _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi64(x, 28)), _mm256_set1_epi64x(0x00000000f0f0f0f0));
    return _mm256_xor_si256(x, _mm256_xor_si256(t, _mm256_slli_epi64(t, 28)));
}

/* 32 bytes of each plane: 256 elements. */
static inline void untranspose256(const uint8_t *planes, size_t stride, __m256i mask, uint8_t *out)
{
    __m256i p[8], q[8];
    for (int i = 0; i < 8; i++) p[i] = _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(planes + i * stride)));
    for (int i = 0; i < 4; i++) {
        q[i] = _mm256_unpacklo_epi8(p[2 * i], p[2 * i + 1]);
        q[i + 4] = _mm256_unpackhi_epi8(p[2 * i], p[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { /* q: pairs of planes, p: four planes, each in the order of the elements */
        p[2 * i] = _mm256_unpacklo_epi16(q[2 * i], q[2 * i + 1]);
        p[2 * i + 1] = _mm256_unpackhi_epi16(q[2 * i], q[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) { /* p[4 i + j]: half i; j: planes 0-3 (0, 1) or 4-7 (2, 3) */
        for (int j = 0; j < 2; j++) {
            q[4 * i + 2 * j] = transposed(_mm256_unpacklo_epi32(p[4 * i + j], p[4 * i + j + 2]));
            q[4 * i + 2 * j + 1] = transposed(_mm256_unpackhi_epi32(p[4 * i + j], p[4 * i + j + 2]));
        }
    }
    for (int i = 0; i < 4; i++) {
        const __m256i first = _mm256_permute2x128_si256(q[2 * i], q[2 * i + 1], 0x20);
        const __m256i second = _mm256_permute2x128_si256(q[2 * i], q[2 * i + 1], 0x31);
        _mm256_storeu_si256((__m256i *)(out + 32 * i), first);
        _mm256_storeu_si256((__m256i *)(out + 128 + 32 * i), second);
    }
}

static inline void untranspose(const uint8_t *planes, size_t stride, size_t count, const uint8_t *valid, uint8_t *out)
{
    for (size_t i = 0; i < count; i += 32) {
        const __m256i mask = valid ? _mm256_loadu_si256((const __m256i *)(valid + i)) : _mm256_set1_epi8(-1);
        untranspose256(planes + i, stride, mask, out + 8 * i);
    }
}

static inline __m256i wide32(const uint8_t *bytes)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

static inline void interleave4(uint8_t *const *bytes, size_t top, size_t count, uint8_t *out)
{
    for (size_t e = 0; e < count; e += 8) {
        __m256i value = wide32(bytes[0] + e);
        for (size_t k = 1; k < top; k++)
            value = _mm256_or_si256(value, _mm256_slli_epi32(wide32(bytes[k] + e), (int)(8 * k)));
        _mm256_storeu_si256((__m256i *)(out + 4 * e), value);
    }
}

static inline void interleave2(uint8_t *const *bytes, size_t top, size_t count, uint8_t *out)
{
    for (size_t e = 0; e < count; e += 8) {
        const __m128i low = _mm_loadl_epi64((const __m128i *)(bytes[0] + e));
        const __m128i high = top > 1 ? _mm_loadl_epi64((const __m128i *)(bytes[1] + e)) : _mm_setzero_si128();
        _mm_storeu_si128((__m128i *)(out + 2 * e), _mm_unpacklo_epi8(low, high));
    }
}

static inline void interleave(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    if (top == 0)
        memset(out, 0, count * element_size);
    else if (element_size == 4)
        interleave4(bytes, top, count, out);
    else if (element_size == 2)
        interleave2(bytes, top, count, out);
    else
        interleave_any(bytes, top, element_size, count, out);
}

static inline void add8(uint32_t *sums, __m128i values)
{
    __m256i *to = (__m256i *)sums;
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), _mm256_cvtepu16_epi32(values)));
}

static inline void add_lanes(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    __m128i l[16], h[16];
    for (int i = 0; i < 16; i++) h[i] = _mm_setzero_si128();
    for (size_t e = 0; e < count; e += 16) {
        side_by_side(low + e, l);
        if (high) side_by_side(high + e, h);
        for (int i = 0; i < 16; i++) {
            uint32_t *mine = sums + (size_t)bin_of[e + i] * NATIVE_LANES;
            add8(mine, _mm_unpacklo_epi8(l[i], h[i]));
            add8(mine + 8, _mm_unpackhi_epi8(l[i], h[i]));
        }
    }
}

const struct path native_avx2 = {decode_chunk, bin_chunks};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
