/* For x86-64 processors with AVX-512 and GFNI (Intel since 2019, AMD since 2022). */
#include "paths.h"

#ifdef NATIVE_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,gfni,avx2,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,gfni,avx2,bmi2")
#endif

#include "project.h"
#include "x86.h"

/* Transposes 8 × 8 bits in each of eight places, where byte 7 - j holds plane j. The instruction multiplies a matrix, here
 * the bits, with vectors, here the bytes that have one bit set. */
static inline __m512i transposed(__m512i x)
{
    return _mm512_gf2p8affine_epi64_epi8(_mm512_set1_epi64((int64_t)0x8040201008040201), x, 0);
}

/* 64 bytes of each plane: 512 elements. */
static inline void untranspose512(const uint8_t *planes, size_t stride, __m512i mask, uint8_t *out)
{
    __m512i p[8], q[8];
    for (int i = 0; i < 8; i++) p[i] = _mm512_and_si512(mask, _mm512_loadu_si512(planes + (7 - i) * stride));
    for (int i = 0; i < 4; i++) {
        q[i] = _mm512_unpacklo_epi8(p[2 * i], p[2 * i + 1]);
        q[i + 4] = _mm512_unpackhi_epi8(p[2 * i], p[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { /* q: pairs of planes, p: four planes, each in the order of the elements */
        p[2 * i] = _mm512_unpacklo_epi16(q[2 * i], q[2 * i + 1]);
        p[2 * i + 1] = _mm512_unpackhi_epi16(q[2 * i], q[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) { /* p[4 i + j]: half i; j: planes 7-4 (0, 1) or 3-0 (2, 3) */
        for (int j = 0; j < 2; j++) {
            q[4 * i + 2 * j] = transposed(_mm512_unpacklo_epi32(p[4 * i + j], p[4 * i + j + 2]));
            q[4 * i + 2 * j + 1] = transposed(_mm512_unpackhi_epi32(p[4 * i + j], p[4 * i + j + 2]));
        }
    }
    for (int i = 0; i < 2; i++) { /* q[m]: quarter L has elements 128 L + 16 m on */
        const __m512i *x = q + 4 * i;
        const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
        const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), d = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
        _mm512_storeu_si512(out + 64 * i, _mm512_shuffle_i32x4(a, c, 0x88));
        _mm512_storeu_si512(out + 64 * i + 128, _mm512_shuffle_i32x4(a, c, 0xdd));
        _mm512_storeu_si512(out + 64 * i + 256, _mm512_shuffle_i32x4(b, d, 0x88));
        _mm512_storeu_si512(out + 64 * i + 384, _mm512_shuffle_i32x4(b, d, 0xdd));
    }
}

static inline void untranspose(const uint8_t *planes, size_t stride, size_t count, const uint8_t *valid, uint8_t *out)
{
    for (size_t i = 0; i < count; i += 64) {
        const __m512i mask = valid ? _mm512_loadu_si512(valid + i) : _mm512_set1_epi8(-1);
        untranspose512(planes + i, stride, mask, out + 8 * i);
    }
}

static inline __m512i wide32(const uint8_t *bytes, __mmask16 these)
{
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(these, bytes));
}

static inline void interleave4(uint8_t *const *bytes, size_t top, size_t count, uint8_t *out)
{
    for (size_t e = 0; e < count; e += 16) {
        const __mmask16 these = count - e >= 16 ? 0xffff : 0xff;
        __m512i value = wide32(bytes[0] + e, these);
        for (size_t k = 1; k < top; k++)
            value = _mm512_or_si512(value, _mm512_slli_epi32(wide32(bytes[k] + e, these), (unsigned)(8 * k)));
        _mm512_mask_storeu_epi32(out + 4 * e, these, value);
    }
}

static inline __m512i wide16(const uint8_t *bytes, __mmask32 these)
{
    return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(these, bytes));
}

static inline void interleave2(uint8_t *const *bytes, size_t top, size_t count, uint8_t *out)
{
    for (size_t e = 0; e < count; e += 32) {
        const __mmask32 these = count - e >= 32 ? 0xffffffff : ((__mmask32)1 << (count - e)) - 1;
        __m512i value = wide16(bytes[0] + e, these);
        if (top > 1) value = _mm512_or_si512(value, _mm512_slli_epi16(wide16(bytes[1] + e, these), 8));
        _mm512_mask_storeu_epi16(out + 2 * e, these, value);
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

/* The 16 bytes of one pixel side by side, for each of 64 pixels: four transpositions of 16 × 16 bytes, each of them four
 * perfect shuffles of the lanes. Quarter q of row k gets pixel 16 q + k. */
static inline void side_by_side(const uint8_t *lanes, uint8_t out[16 * 64])
{
    __m512i row[16], other[16];
    for (int i = 0; i < 16; i++) row[i] = _mm512_loadu_si512(lanes + i * LANE_STRIDE);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            other[2 * i] = _mm512_unpacklo_epi8(row[i], row[i + 8]);
            other[2 * i + 1] = _mm512_unpackhi_epi8(row[i], row[i + 8]);
        }
        memcpy(row, other, sizeof other);
    }
    for (int i = 0; i < 16; i++) _mm512_store_si512(out + 64 * i, row[i]);
}

static inline void add_lanes(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    _Alignas(64) uint8_t l[16 * 64], h[16 * 64];
    for (size_t e = 0; e < count; e += 64) {
        side_by_side(low + e, l);
        if (high) side_by_side(high + e, h);
        for (size_t i = 0; i < 64; i++) {
            uint32_t *mine = sums + (size_t)bin_of[e + i] * NATIVE_LANES;
            const size_t at = i % 16 * 64 + i / 16 * 16;
            __m512i values = _mm512_cvtepu8_epi32(load128(l + at));
            if (high) values = _mm512_or_si512(values, _mm512_slli_epi32(_mm512_cvtepu8_epi32(load128(h + at)), 8));
            _mm512_store_si512(mine, _mm512_add_epi32(_mm512_load_si512(mine), values));
        }
    }
}

static inline uint64_t sum_of_bytes(const uint8_t *bytes, size_t count)
{
    __m512i sums = _mm512_setzero_si512();
    for (size_t e = 0; e < count; e += 64)
        sums = _mm512_add_epi64(sums, _mm512_sad_epu8(_mm512_loadu_si512(bytes + e), _mm512_setzero_si512()));
    return (uint64_t)_mm512_reduce_add_epi64(sums);
}

const struct path native_avx512 = {decode_chunk, bin_chunks, project_chunks};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
