/* The library's doors: the path that was asked for, if this processor has it. */
#include "paths.h"

#define OFFERED __attribute__((visibility("default")))

OFFERED int32_t native_interface(void)
{
    return NATIVE_INTERFACE;
}

OFFERED int32_t native_has(int32_t path)
{
#ifdef NATIVE_X86
    __builtin_cpu_init();
    if (path == NATIVE_AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("gfni") && native_has(NATIVE_AVX2);
    if (path == NATIVE_AVX2) return __builtin_cpu_supports("avx2") != 0;
#endif
    return path == NATIVE_PORTABLE;
}

static const struct path *path_of(int32_t path)
{
#ifdef NATIVE_X86
    if (path == NATIVE_AVX512) return &native_avx512;
    if (path == NATIVE_AVX2) return &native_avx2;
#else
    (void)path;
#endif
    return &native_portable;
}

OFFERED int32_t native_decode(int32_t path, const uint8_t *chunk, size_t length, size_t element_size, uint8_t *out,
                              size_t size)
{
    return path_of(path)->decode(chunk, length, element_size, out, size);
}

OFFERED void native_bin(int32_t path, const struct native_binning *binning, const uint8_t *const *chunks,
                        const size_t *lengths, size_t frames, const struct native_results *results)
{
    path_of(path)->bin(binning, chunks, lengths, frames, results);
}

OFFERED void native_project(int32_t path, const struct native_binning *binning, const uint8_t *const *chunks,
                            const size_t *lengths, size_t frames, const struct native_projection *sums,
                            const struct native_totals *totals)
{
    path_of(path)->project(binning, chunks, lengths, frames, sums, totals);
}
