/* For x86-64 processors with AVX2 (since 2013). */
#include "paths.h"

#ifdef NATIVE_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi2")
#endif

#include "project.h"
#include "x86.h"

/* Swaps the bits of `a` that `mask` has after a shift by `by` with those of `b` that it has. */
static inline void swap_bits(__m256i *a, __m256i *b, int by, char mask)
{
    const __m256i t = _mm256_and_si256(_mm256_xor_si256(_mm256_srli_epi16(*a, by), *b), _mm256_set1_epi8(mask));
    *b = _mm256_xor_si256(*b, t);
    *a = _mm256_xor_si256(*a, _mm256_slli_epi16(t, by));
}

/* Transposes 8 × 8 bits: bit j of each byte of p[i] becomes bit i of that byte of p[j] (H. S. Warren, Hacker's Delight,
 * section 7-3). */
static inline void transpose(__m256i p[8])
{
    for (int i = 0; i < 4; i++) swap_bits(p + i, p + i + 4, 4, 0x0f);
    for (int i = 0; i < 8; i++)
        if (!(i & 2)) swap_bits(p + i, p + i + 2, 2, 0x33);
    for (int i = 0; i < 8; i += 2) swap_bits(p + i, p + i + 1, 1, 0x55);
}

/* 32 bytes of each plane: 256 elements. */
static inline void untranspose256(const uint8_t *planes, size_t stride, __m256i mask, uint8_t *out)
{
    __m256i p[8], q[8];
    for (int i = 0; i < 8; i++) p[i] = _mm256_and_si256(mask, _mm256_loadu_si256((const __m256i *)(planes + i * stride)));
    transpose(p);
    for (int i = 0; i < 4; i++) { /* now p[j] has every eighth element, from j on: they are zipped */
        q[i] = _mm256_unpacklo_epi8(p[2 * i], p[2 * i + 1]);
        q[i + 4] = _mm256_unpackhi_epi8(p[2 * i], p[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        p[2 * i] = _mm256_unpacklo_epi16(q[2 * i], q[2 * i + 1]);
        p[2 * i + 1] = _mm256_unpackhi_epi16(q[2 * i], q[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 2; j++) {
            q[4 * i + 2 * j] = _mm256_unpacklo_epi32(p[4 * i + j], p[4 * i + j + 2]);
            q[4 * i + 2 * j + 1] = _mm256_unpackhi_epi32(p[4 * i + j], p[4 * i + j + 2]);
        }
    }
    for (int i = 0; i < 4; i++) { /* half h of q[m] has elements 128 h + 16 m on */
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

/* 32 bytes, their 8-byte pieces in the order 0, 2, 1, 3: unpacking, which works in halves, then keeps the order. */
static inline __m256i load_mixed(uint8_t *const *bytes, size_t k, size_t top, size_t e)
{
    if (k >= top) return _mm256_setzero_si256();
    return _mm256_permute4x64_epi64(_mm256_loadu_si256((const __m256i *)(bytes[k] + e)), 0xd8);
}

/* 32 elements of 2 or 4 bytes. */
static inline void interleave32(uint8_t *const *bytes, size_t top, size_t element_size, size_t e, __m256i out[4])
{
    const __m256i first = load_mixed(bytes, 0, top, e), second = load_mixed(bytes, 1, top, e);
    const __m256i a = _mm256_unpacklo_epi8(first, second), b = _mm256_unpackhi_epi8(first, second);
    if (element_size == 2) {
        out[0] = a, out[1] = b;
        return;
    }
    const __m256i third = load_mixed(bytes, 2, top, e), fourth = load_mixed(bytes, 3, top, e);
    const __m256i c = _mm256_unpacklo_epi8(third, fourth), d = _mm256_unpackhi_epi8(third, fourth);
    const __m256i p = _mm256_unpacklo_epi16(a, c), q = _mm256_unpackhi_epi16(a, c);
    const __m256i r = _mm256_unpacklo_epi16(b, d), s = _mm256_unpackhi_epi16(b, d);
    out[0] = _mm256_permute2x128_si256(p, q, 0x20), out[1] = _mm256_permute2x128_si256(p, q, 0x31);
    out[2] = _mm256_permute2x128_si256(r, s, 0x20), out[3] = _mm256_permute2x128_si256(r, s, 0x31);
}

static inline void interleave_few(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    for (size_t e = 0; e < count; e += 32) {
        __m256i elements[4];
        interleave32(bytes, top, element_size, e, elements);
        if (count - e >= 32)
            memcpy(out + e * element_size, elements, 32 * element_size);
        else
            memcpy(out + e * element_size, elements, (count - e) * element_size);
    }
}

static inline void interleave(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    if (top == 0)
        memset(out, 0, count * element_size);
    else if (element_size == 4 && top == 1) /* constants, so that each is compiled for its own case */
        interleave_few(bytes, 1, 4, count, out);
    else if (element_size == 4)
        interleave_few(bytes, top, 4, count, out);
    else if (element_size == 2)
        interleave_few(bytes, top, 2, count, out);
    else
        interleave_any(bytes, top, element_size, count, out);
}

static inline __m256i wide32(const uint8_t *bytes)
{
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

/* The 16 bytes of one pixel side by side, for each of 32 pixels: two transpositions of 16 × 16 bytes, each of them four
 * perfect shuffles of the lanes. Half h of row k has pixel 16 h + k. */
static inline void side_by_side(const uint8_t *lanes, __m256i row[16])
{
    __m256i other[16];
    for (int i = 0; i < 16; i++) row[i] = _mm256_loadu_si256((const __m256i *)(lanes + i * LANE_STRIDE));
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            other[2 * i] = _mm256_unpacklo_epi8(row[i], row[i + 8]);
            other[2 * i + 1] = _mm256_unpackhi_epi8(row[i], row[i + 8]);
        }
        memcpy(row, other, sizeof other);
    }
}

static inline void add8(uint32_t *sums, __m256i values)
{
    __m256i *to = (__m256i *)sums;
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), values));
}

static inline void add_lanes(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    _Alignas(32) __m256i l[16], h[16];
    for (size_t e = 0; e < count; e += 32) {
        side_by_side(low + e, l);
        if (high) side_by_side(high + e, h);
        for (size_t i = 0; i < 32; i++) {
            uint32_t *mine = sums + (size_t)bin_of[e + i] * NATIVE_LANES;
            const size_t at = i % 16 * 32 + i / 16 * 16;
            const uint8_t *l8 = (const uint8_t *)l + at, *h8 = (const uint8_t *)h + at;
            if (high) {
                add8(mine, _mm256_cvtepu16_epi32(_mm_unpacklo_epi8(load128(l8), load128(h8))));
                add8(mine + 8, _mm256_cvtepu16_epi32(_mm_unpackhi_epi8(load128(l8), load128(h8))));
            } else {
                add8(mine, wide32(l8));
                add8(mine + 8, wide32(l8 + 8));
            }
        }
    }
}

static inline uint64_t sum_of_bytes(const uint8_t *bytes, size_t count)
{
    __m256i sums = _mm256_setzero_si256();
    for (size_t e = 0; e < count; e += 32) {
        const __m256i these = _mm256_loadu_si256((const __m256i *)(bytes + e));
        sums = _mm256_add_epi64(sums, _mm256_sad_epu8(these, _mm256_setzero_si256()));
    }
    uint64_t sum[4];
    memcpy(sum, &sums, sizeof sum);
    return sum[0] + sum[1] + sum[2] + sum[3];
}

const struct path native_avx2 = {decode_chunk, bin_chunks, project_chunks};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
