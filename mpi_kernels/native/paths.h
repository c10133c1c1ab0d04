/* What each path offers to `dispatch.c`. */
#ifndef MPI_KERNELS_PATHS_H
#define MPI_KERNELS_PATHS_H

#include "native.h"

struct path {
    int (*decode)(const uint8_t *chunk, size_t length, size_t element_size, uint8_t *out, size_t size);
    void (*bin)(const struct native_binning *binning, const uint8_t *const *chunks, const size_t *lengths, size_t frames,
                const struct native_results *results);
    void (*project)(const struct native_binning *binning, const uint8_t *const *chunks, const size_t *lengths,
                    size_t frames, const struct native_projection *sums, const struct native_totals *totals);
};

extern const struct path native_portable;
#ifdef NATIVE_X86
extern const struct path native_avx2, native_avx512;
#endif

#endif
