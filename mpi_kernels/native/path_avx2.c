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

static inline void store256(uint8_t *bytes, __m256i value)
{
    _mm256_storeu_si256((__m256i *)bytes, value);
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

static inline void put_beside(const uint8_t *low, const uint8_t *high, size_t count, uint8_t *beside)
{
    __m256i l[16], h[16];
    for (size_t e = 0; e < count; e += 32) {
        uint8_t *out = beside + (e / 64 * 64 + e / 16 % 4) * NATIVE_LANES * (high ? 2 : 1);
        side_by_side(low + e, l);
        if (high) side_by_side(high + e, h);
        for (int i = 0; i < 16; i++) {
            if (high) {
                const __m256i a = _mm256_unpacklo_epi8(l[i], h[i]), b = _mm256_unpackhi_epi8(l[i], h[i]);
                store256(out, _mm256_permute2x128_si256(a, b, 0x20));
                store256(out + 32, _mm256_permute2x128_si256(a, b, 0x31));
                out += 128;
            } else {
                store256(out, l[i]);
                out += 64;
            }
        }
    }
}

static inline void add8(uint32_t *sums, __m256i values)
{
    __m256i *to = (__m256i *)sums;
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), values));
}

static inline __m256i load256(const uint8_t *bytes)
{
    return _mm256_loadu_si256((const __m256i *)bytes);
}

static inline __m256i values16(const uint8_t *beside, size_t place, size_t width)
{
    return width == 1 ? _mm256_cvtepu8_epi16(load128(beside + place * 16)) : load256(beside + place * 32);
}

static inline void add_groups(const struct native_group *groups, size_t count, const uint8_t *beside, size_t width,
                              int narrow, uint32_t *sums)
{
    for (size_t i = 0; i < count; i++) {
        fetch_ahead(groups + i);
        uint32_t *mine = sums + (size_t)groups[i].bin * NATIVE_LANES;
        __m256i first = _mm256_setzero_si256(), second = first, part = first;
        for (size_t k = 0; k < NATIVE_GROUP; k++) {
            const __m256i values = values16(beside, groups[i].place[k], width);
            if (narrow) {
                part = _mm256_add_epi16(part, values);
                continue;
            }
            first = _mm256_add_epi32(first, _mm256_cvtepu16_epi32(_mm256_castsi256_si128(values)));
            second = _mm256_add_epi32(second, _mm256_cvtepu16_epi32(_mm256_extracti128_si256(values, 1)));
        }
        if (narrow) {
            first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(part));
            second = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(part, 1));
        }
        add8(mine, first);
        add8(mine + 8, second);
    }
}

/* The values of two pixels in lanes 0 to 7, and in lanes 8 to 15, as pairs of 16 bits. */
static inline void two_pixels(const uint16_t *place, const uint8_t *beside, size_t width, __m256i pairs[2])
{
    if (width == 1) {
        const __m128i a = load128(beside + place[0] * (size_t)16), b = load128(beside + place[1] * (size_t)16);
        pairs[0] = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(a, b));
        pairs[1] = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(a, b));
        return;
    }
    for (size_t half = 0; half < 2; half++) {
        const __m128i a = load128(beside + place[0] * (size_t)32 + 16 * half);
        const __m128i b = load128(beside + place[1] * (size_t)32 + 16 * half);
        pairs[half] = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
    }
}

static inline __m256i two_factors(const int16_t *factors)
{
    int32_t both;
    memcpy(&both, factors, sizeof both);
    return _mm256_set1_epi32(both);
}

static inline void add4(uint64_t *sums, __m128i values)
{
    __m256i *to = (__m256i *)sums;
    _mm256_store_si256(to, _mm256_add_epi64(_mm256_load_si256(to), _mm256_cvtepu32_epi64(values)));
}

static inline void add_weighted(const struct native_group *groups, const int16_t *factors, size_t sets, size_t count,
                                const uint8_t *beside, size_t width, uint32_t *sums32, uint64_t *sums64)
{
    for (size_t i = 0; i < count;) { /* where sums have 32 bits, all groups of a bin: `most` says that they fit */
        const uint32_t bin = groups[i].bin;
        __m256i sum[4], a[2], b[2];
        for (size_t part = 0; part < 2 * sets; part++) sum[part] = _mm256_setzero_si256();
        do {
            fetch_ahead(groups + i), fetch_ahead(factors);
            two_pixels(groups[i].place, beside, width, a);
            two_pixels(groups[i].place + 2, beside, width, b);
            for (size_t part = 0; part < 2 * sets; part++) {
                const int16_t *mine = factors + part / 2 * NATIVE_GROUP;
                const __m256i first = _mm256_madd_epi16(a[part % 2], two_factors(mine));
                const __m256i second = _mm256_madd_epi16(b[part % 2], two_factors(mine + 2));
                sum[part] = _mm256_add_epi32(sum[part], _mm256_add_epi32(first, second));
            }
            factors += sets * NATIVE_GROUP;
        } while (++i < count && sums32 && groups[i].bin == bin);
        for (size_t part = 0; part < 2 * sets; part++) {
            const size_t at = (bin * sets * 2 + part) * (NATIVE_LANES / 2);
            if (sums32) {
                add8(sums32 + at, sum[part]);
                continue;
            }
            add4(sums64 + at, _mm256_castsi256_si128(sum[part]));
            add4(sums64 + at + 4, _mm256_extracti128_si256(sum[part], 1));
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

const struct path native_avx2 = {decode_chunk, sum_chunks, project_chunks};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
