/* What the AVX2 and the AVX-512 path share. */
#ifndef MPI_KERNELS_X86_H
#define MPI_KERNELS_X86_H

#include <immintrin.h>

/* Entry [offset][i] is i % offset; the last one is for all offsets from 16 on, and copies 16 bytes twice. */
static const uint8_t repeated[17][32] = {
#define EVERY(n)                                                                                                        \
    {0 % n,  1 % n,  2 % n,  3 % n,  4 % n,  5 % n,  6 % n,  7 % n,  8 % n,  9 % n,  10 % n,                            \
     11 % n, 12 % n, 13 % n, 14 % n, 15 % n, 16 % n, 17 % n, 18 % n, 19 % n, 20 % n, 21 % n,                            \
     22 % n, 23 % n, 24 % n, 25 % n, 26 % n, 27 % n, 28 % n, 29 % n, 30 % n, 31 % n}
    {0},      EVERY(1), EVERY(2),  EVERY(3),  EVERY(4),  EVERY(5),  EVERY(6),  EVERY(7),  EVERY(8),
    EVERY(9), EVERY(10), EVERY(11), EVERY(12), EVERY(13), EVERY(14), EVERY(15), EVERY(16),
};

static inline __m128i load128(const uint8_t *bytes)
{
    return _mm_loadu_si128((const __m128i *)bytes);
}

static inline void store128(uint8_t *bytes, __m128i value)
{
    _mm_storeu_si128((__m128i *)bytes, value);
}

/* Without a branch on the offset: whether it is below 16 can't be foreseen. More than 16 bytes are rare. */
static inline void copy_short_match(uint8_t *out, size_t offset, size_t length)
{
    const uint8_t *const pattern = repeated[offset < 16 ? offset : 16];
    const __m128i source = load128(out - offset);
    store128(out, _mm_shuffle_epi8(source, load128(pattern)));
    if (length <= 16) return;
    if (offset < 16)
        store128(out + 16, _mm_shuffle_epi8(source, load128(pattern + 16)));
    else
        copy16(out + 16, out + 16 - offset);
}

static inline void copy_match(uint8_t *out, size_t offset, size_t length)
{
    if (offset >= 16) {
        for (size_t done = 0; done < length; done += OVERSHOOT)
            for (size_t i = 0; i < OVERSHOOT; i += 16) copy16(out + done + i, out + done + i - offset);
        return;
    }
    const __m256i source = _mm256_broadcastsi128_si256(load128(out - offset));
    const __m256i pattern = _mm256_shuffle_epi8(source, _mm256_loadu_si256((const __m256i *)repeated[offset]));
    const size_t step = 32 - 32 % offset;
    for (size_t done = 0; done < length; done += 2 * step) {
        _mm256_storeu_si256((__m256i *)(out + done), pattern);
        _mm256_storeu_si256((__m256i *)(out + done + step), pattern);
    }
}

static inline void add_weighted_values(const struct native_group *groups, const int16_t *factors, size_t sets, size_t count,
                                       const int16_t *values, uint64_t *sums)
{
    for (size_t i = 0; i < count; i++, factors += sets * NATIVE_GROUP) {
        fetch_ahead(groups + i), fetch_ahead(factors);
        uint64_t *mine = sums + groups[i].bin * sets * 2;
        __m128i four = _mm_cvtsi32_si128(values[groups[i].place[0]]);
        four = _mm_insert_epi16(four, values[groups[i].place[1]], 1);
        four = _mm_insert_epi16(four, values[groups[i].place[2]], 2);
        four = _mm_insert_epi16(four, values[groups[i].place[3]], 3);
        if (sets == 2) {
            const __m128i products = _mm_madd_epi16(_mm_unpacklo_epi64(four, four), load128((const uint8_t *)factors));
            __m256i *to = (__m256i *)mine;
            _mm256_store_si256(to, _mm256_add_epi64(_mm256_load_si256(to), _mm256_cvtepu32_epi64(products)));
        } else {
            const __m128i products = _mm_madd_epi16(four, _mm_loadl_epi64((const __m128i *)factors));
            __m128i *to = (__m128i *)mine;
            _mm_store_si128(to, _mm_add_epi64(_mm_load_si128(to), _mm_cvtepu32_epi64(products)));
        }
    }
}

#endif
