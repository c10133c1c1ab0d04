/* Reading a chunk from front to back. Included by each path. */
#ifndef MPI_KERNELS_CHUNK_H
#define MPI_KERNELS_CHUNK_H

#include <string.h>

#include "native.h"

#define HEADER_BYTES 12

struct reader {
    const uint8_t *at, *end;
    size_t block_bytes;
};

static inline uint64_t big_endian(const uint8_t *bytes, int count)
{
    uint64_t value = 0;
    for (int i = 0; i < count; i++) value = value << 8 | bytes[i];
    return value;
}

/* What a writer takes when it isn't told: 8 KiB, but at least 128 elements (bshuf_default_block_size). */
static inline size_t default_block_bytes(size_t element_size)
{
    size_t elements = 8192 / element_size / 8 * 8;
    return (elements < 128 ? 128 : elements) * element_size;
}

/* Begins with a chunk that must hold exactly `size` bytes. */
static inline int begin_chunk(struct reader *reader, const uint8_t *chunk, size_t length, size_t element_size, size_t size)
{
    if (length < HEADER_BYTES) return NATIVE_NO_HEADER;
    if (big_endian(chunk, 8) != size || size % element_size) return NATIVE_OTHER_SIZE;
    size_t block = big_endian(chunk + 8, 4) / element_size * element_size;
    if (block == 0) block = default_block_bytes(element_size);
    if (block % (8 * element_size)) return NATIVE_BLOCK_SIZE;
    *reader = (struct reader){chunk + HEADER_BYTES, chunk + length, block};
    return NATIVE_DONE;
}

/* Takes the next block's LZ4 bytes. */
static inline int next_block(struct reader *reader, const uint8_t **block, size_t *length)
{
    if (reader->end - reader->at < 4) return NATIVE_CUT_SHORT;
    *length = big_endian(reader->at, 4);
    *block = reader->at + 4;
    if (*length > (size_t)(reader->end - *block)) return NATIVE_CUT_SHORT;
    reader->at = *block + *length;
    return NATIVE_DONE;
}

static inline uint64_t load64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, 8);
    return value;
}

static inline size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

#endif
