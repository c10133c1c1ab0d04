/* A chunk to the frame it holds. Included by each path. */
#ifndef MPI_KERNELS_DECODE_H
#define MPI_KERNELS_DECODE_H

#include <stdlib.h>

#include "lz4_block.h"

/* Bytes of a plane that are taken at a time; with them 8 times as many elements, whose bytes stay in the L1 cache. */
#define PLANE_BYTES 256
#define GROUP (8 * PLANE_BYTES)
/* `untranspose` writes up to so many elements too many. */
#define SURPLUS 512
#define LARGEST_ELEMENT 16

/* Provided by the path: from 8 bit planes that lie `stride` bytes apart, `count` bytes of each, to the byte of each of
 * their 8 × count elements. It may read 63 bytes behind the last plane and write SURPLUS bytes too many. Bits that aren't
 * set in `valid` (one per element; NULL: all are) become 0. */
static inline void untranspose(const uint8_t *planes, size_t stride, size_t count, const uint8_t *valid, uint8_t *out);

/* Provided by the path: from one array per byte of the elements to the elements; bytes from `top` on are zero. */
static inline void interleave(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out);

static inline void interleave_any(uint8_t *const *bytes, size_t top, size_t element_size, size_t count, uint8_t *out)
{
    for (size_t k = 0; k < element_size; k++)
        for (size_t e = 0; e < count; e++) out[e * element_size + k] = k < top ? bytes[k][e] : 0;
}

/* How many of the elements' bytes can be other than zero, as far as the buffer knows. */
static inline size_t bytes_in_use(const struct block_buffer *buffer, size_t stride, size_t element_size)
{
    return smaller(element_size, (buffer->used + 8 * stride - 1) / (8 * stride));
}

static inline void decode_block(const struct block_buffer *buffer, size_t element_size, uint8_t *out)
{
    _Alignas(64) uint8_t room[LARGEST_ELEMENT][GROUP + SURPLUS];
    uint8_t *bytes[LARGEST_ELEMENT];
    const size_t stride = buffer->size / element_size / 8, top = bytes_in_use(buffer, stride, element_size);
    for (size_t k = 0; k < LARGEST_ELEMENT; k++) bytes[k] = room[k];
    for (size_t first = 0; first < stride; first += PLANE_BYTES) {
        const size_t count = smaller(PLANE_BYTES, stride - first);
        for (size_t k = 0; k < top; k++) untranspose(buffer->bytes + 8 * k * stride + first, stride, count, NULL, bytes[k]);
        interleave(bytes, top, element_size, 8 * count, out + 8 * first * element_size);
    }
}

static int decode_blocks(struct reader *reader, size_t element_size, struct block_buffer *buffer, uint8_t *out, size_t size)
{
    const size_t planar = size / (8 * element_size) * (8 * element_size);
    for (size_t done = 0; done < planar;) {
        const uint8_t *block;
        size_t length, bytes = smaller(reader->block_bytes, planar - done);
        int error = next_block(reader, &block, &length);
        if (!error) error = lz4_block(block, length, reader->end, buffer, bytes);
        if (error) return error;
        decode_block(buffer, element_size, out + done);
        done += bytes;
    }
    if ((size_t)(reader->end - reader->at) < size - planar) return NATIVE_CUT_SHORT;
    memcpy(out + planar, reader->at, size - planar);
    return NATIVE_DONE;
}

static int decode_chunk(const uint8_t *chunk, size_t length, size_t element_size, uint8_t *out, size_t size)
{
    struct reader reader;
    if (element_size == 0 || element_size > LARGEST_ELEMENT) return NATIVE_ELEMENT_SIZE;
    int error = begin_chunk(&reader, chunk, length, element_size, size);
    if (error) return error;
    struct block_buffer buffer = {malloc(smaller(reader.block_bytes, size) + SLACK), 0, 0};
    if (!buffer.bytes) return NATIVE_NO_MEMORY;
    error = decode_blocks(&reader, element_size, &buffer, out, size);
    free(buffer.bytes);
    return error;
}

#endif
