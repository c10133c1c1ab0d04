/* Chunks as HDF5's filter 32008 (bitshuffle with LZ4) stores them: decoding, and with it binning or projecting in one go.
 *
 * A chunk is: 8 bytes, its decoded size; 4 bytes, the size of a block (both big-endian); then for each block 4 bytes of
 * length (big-endian) and that many bytes of LZ4. A decoded block holds bit planes: bit b of byte k of all its elements
 * in plane 8 k + b, element e in bit e % 8 of byte e / 8. The last block may be shorter; up to 7 elements that fill no
 * byte of a plane follow as they are. (bitshuffle's README and bshuf_h5filter.c)
 *
 * Nothing in a chunk is believed: what doesn't fit ends with an error. No function keeps anything between calls.
 */
#ifndef MPI_KERNELS_NATIVE_H
#define MPI_KERNELS_NATIVE_H

#include <stddef.h>
#include <stdint.h>

/* Changes with everything below that the Python side relies on. */
#define NATIVE_INTERFACE 2

/* Frames that are binned side by side. */
#define NATIVE_LANES 16

/* Bytes that must be readable after the bit mask of valid pixels, and entries after the table of bins. */
#define NATIVE_PADDING 64

#if defined(__x86_64__) && !defined(NATIVE_ONLY_PORTABLE)
#define NATIVE_X86 1
#endif

enum native_path { NATIVE_PORTABLE, NATIVE_AVX2, NATIVE_AVX512, NATIVE_PATHS };

enum native_error {
    NATIVE_DONE,
    NATIVE_NO_HEADER,
    NATIVE_OTHER_SIZE,
    NATIVE_BLOCK_SIZE,
    NATIVE_CUT_SHORT,
    NATIVE_BAD_LZ4,
    NATIVE_NO_MEMORY,
    NATIVE_ELEMENT_SIZE,
};

/* Which pixel counts into which bin. Values outside low ≤ value ≤ high don't count. */
struct native_binning {
    const uint32_t *bin_of; /* per pixel, then NATIVE_PADDING entries; all ≤ bins, where `bins` is no bin */
    const uint8_t *valid;   /* bit mask of the pixels that have a bin, least significant bit first, then padding */
    size_t pixels;
    size_t bins;
    size_t element_size; /* 1, 2 or 4 */
    int64_t low, high;   /* both within the element's type */
    int32_t is_signed;
};

/* What comes out, per frame. Pixels outside the limits are counted, and stored as far as there is room. */
struct native_results {
    int64_t *sums;     /* [frames][bins] */
    int64_t *excluded; /* [frames]: how many pixels with a bin were outside the limits */
    int32_t *pixels;   /* [frames][room]: which ones */
    size_t room;
    int32_t *errors; /* [frames]: an error; the frame's other results mean nothing then */
};

/* Sums over frames, each [pixels]; of a value's square the low and the high 32 bits are summed apart. */
struct native_projection {
    uint64_t *total, *squares_low, *squares_high;
    uint32_t *excluded;             /* in how many frames a valid pixel was outside the limits */
    const uint32_t *largest_before; /* of the frames before; may be `largest` only if no chunk is broken */
    uint32_t *largest;              /* with these frames */
};

/* What comes out, per frame: sums of its valid pixels within the limits, how many were outside, the largest inside. */
struct native_totals {
    int64_t *totals, *excluded;
    uint32_t *largest;
    int32_t *errors; /* if any isn't NATIVE_DONE, the frame's other results mean nothing, and no frame was added */
};

int32_t native_interface(void);
int32_t native_has(int32_t path);

/* Decodes a chunk of elements of any size from 1 to 16 into exactly `size` bytes. */
int32_t native_decode(int32_t path, const uint8_t *chunk, size_t length, size_t element_size, uint8_t *out, size_t size);

/* Bins any number of frames, each one stored in one chunk. */
void native_bin(int32_t path, const struct native_binning *binning, const uint8_t *const *chunks, const size_t *lengths,
                size_t frames, const struct native_results *results);

/* Adds any number of frames, each one stored in one chunk, to sums pixel by pixel: all of them, or none. Of `binning` the
 * bins aren't used, and `low` must not be negative. After an error `largest` means nothing. */
void native_project(int32_t path, const struct native_binning *binning, const uint8_t *const *chunks,
                    const size_t *lengths, size_t frames, const struct native_projection *sums,
                    const struct native_totals *totals);

#endif
