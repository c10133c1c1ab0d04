/* What the AVX2 and the AVX-512 path share. */
#ifndef MPI_KERNELS_X86_H
#define MPI_KERNELS_X86_H

#include <immintrin.h>

/* Entry [offset][i] is i % offset. */
static const uint8_t repeated[16][32] = {
#define EVERY(n)                                                                                                        \
    {0 % n,  1 % n,  2 % n,  3 % n,  4 % n,  5 % n,  6 % n,  7 % n,  8 % n,  9 % n,  10 % n,                            \
     11 % n, 12 % n, 13 % n, 14 % n, 15 % n, 16 % n, 17 % n, 18 % n, 19 % n, 20 % n, 21 % n,                            \
     22 % n, 23 % n, 24 % n, 25 % n, 26 % n, 27 % n, 28 % n, 29 % n, 30 % n, 31 % n}
    {0},      EVERY(1), EVERY(2),  EVERY(3),  EVERY(4),  EVERY(5),  EVERY(6),  EVERY(7),
    EVERY(8), EVERY(9), EVERY(10), EVERY(11), EVERY(12), EVERY(13), EVERY(14), EVERY(15),
};

static inline void copy_match(uint8_t *out, size_t offset, size_t length)
{
    if (offset >= 16) {
        for (size_t done = 0; done < length; done += 16) copy16(out + done, out + done - offset);
        return;
    }
    const __m256i source = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(out - offset)));
    const __m256i pattern = _mm256_shuffle_epi8(source, _mm256_loadu_si256((const __m256i *)repeated[offset]));
    const size_t step = 32 - 32 % offset;
    for (size_t done = 0; done < length; done += step) _mm256_storeu_si256((__m256i *)(out + done), pattern);
}

/* The 16 bytes of one pixel for each of 16 pixels, from 16 lanes: a 16 × 16 transposition of bytes. */
static inline void side_by_side(const uint8_t *lanes, __m128i pixels[16])
{
    __m128i other[16];
    for (int i = 0; i < 16; i++) pixels[i] = _mm_loadu_si128((const __m128i *)(lanes + i * LANE_STRIDE));
    for (int round = 0; round < 4; round++) { /* four perfect shuffles of 256 bytes are the transposition */
        for (int i = 0; i < 8; i++) {
            other[2 * i] = _mm_unpacklo_epi8(pixels[i], pixels[i + 8]);
            other[2 * i + 1] = _mm_unpackhi_epi8(pixels[i], pixels[i + 8]);
        }
        memcpy(pixels, other, sizeof other);
    }
}

#endif
