/* The LZ4 blocks of a chunk of HDF5's filter 32008, each decompressed into the same small scratch: what no decoder of
 * whole frames can be faster than, unless its LZ4 is. Returns the number of bytes, or a negative number for a damaged chunk. */
#include <stddef.h>
#include <stdint.h>

int LZ4_decompress_safe(const char *source, char *target, int source_bytes, int target_bytes); /* liblz4 */

static uint64_t big_endian(const uint8_t *at, size_t bytes)
{
    uint64_t value = 0;
    for (size_t k = 0; k < bytes; k++) value = value << 8 | at[k];
    return value;
}

int64_t lz4_blocks(const uint8_t *chunk, size_t length, size_t element_size, char *scratch, size_t room)
{
    if (length < 12) return -1;
    const uint8_t *at = chunk + 12, *end = chunk + length;
    const size_t size = big_endian(chunk, 8), block = big_endian(chunk + 8, 4), eight = 8 * element_size;
    const size_t planar = size / eight * eight; /* the last elements, fewer than eight, are stored as they are */
    if (block == 0 || block > room) return -2;
    for (size_t done = 0; done < planar;) {
        const size_t wanted = planar - done < block ? planar - done : block;
        if (end - at < 4) return -3;
        const size_t stored = big_endian(at, 4);
        at += 4;
        if ((size_t)(end - at) < stored) return -4;
        if (LZ4_decompress_safe((const char *)at, scratch, (int)stored, (int)wanted) != (int)wanted) return -5;
        at += stored;
        done += wanted;
    }
    return (int64_t)planar;
}
