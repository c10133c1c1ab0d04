/* One LZ4 block (LZ4 block format description) into a buffer that is used again and again. Included by each path.
 *
 * The planes of high bits are mostly zero, and a block ends with them. So the buffer remembers from where on it holds
 * nothing but zeros: a run of zeros needn't be written there again, and the reader needn't look at those planes.
 */
#ifndef MPI_KERNELS_LZ4_BLOCK_H
#define MPI_KERNELS_LZ4_BLOCK_H

#include "chunk.h"

/* Copies write whole vectors, up to OVERSHOOT bytes more than asked for, and reach SLACK bytes behind the block. */
#define OVERSHOOT 64
#define SLACK 128
#define ZERO_RUN 64

struct block_buffer {
    uint8_t *bytes; /* room for a block and SLACK */
    size_t size;    /* of the block in it; 0: none, or a broken one */
    size_t used;    /* from here to `size` all bytes are zero */
};

#define SHORT_MATCH 18

/* Provided by the path: writes `length` bytes to `out` that repeat the `offset` ones before it; of a
 * short match there are at most SHORT_MATCH. */
static inline void copy_match(uint8_t *out, size_t offset, size_t length);
static inline void copy_short_match(uint8_t *out, size_t offset, size_t length);

static inline void copy16(uint8_t *out, const uint8_t *in)
{
    memcpy(out, in, 16);
}

static inline void copy_literals(uint8_t *out, const uint8_t *in, size_t length, const uint8_t *limit)
{
    if ((size_t)(limit - in) < length + OVERSHOOT) {
        memcpy(out, in, length);
        return;
    }
    for (size_t done = 0; done < length; done += OVERSHOOT)
        for (size_t i = 0; i < OVERSHOOT; i += 16) copy16(out + done + i, in + done + i);
}

static inline int all_zero(const uint8_t *bytes, size_t count)
{
    uint8_t any = 0;
    for (size_t i = 0; i < count; i++) any |= bytes[i];
    return any == 0;
}

/* Adds the bytes that continue a length of 15. It can't overflow: a block's length has 32 bits. */
static inline int extend(const uint8_t **in, const uint8_t *end, size_t *length)
{
    uint8_t more;
    do {
        if (*in >= end) return NATIVE_BAD_LZ4;
        more = *(*in)++;
        *length += more;
    } while (more == 255);
    return NATIVE_DONE;
}

/* Copies a token's literals, behind which `in` then is. A few more bytes may be read and written than there are. */
static inline int take_literals(const uint8_t **in, const uint8_t *end, const uint8_t *limit, uint8_t *out,
                                const uint8_t *stop, size_t *literals)
{
    if (*literals < 15 && limit - *in >= 16) {
        copy16(out, *in);
    } else {
        if (*literals == 15 && extend(in, end, literals)) return NATIVE_BAD_LZ4;
        if (*literals > (size_t)(end - *in) || *literals > (size_t)(stop - out)) return NATIVE_BAD_LZ4;
        copy_literals(out, *in, *literals, limit);
    }
    *in += *literals;
    return NATIVE_DONE;
}

/* A match of zeros that is worth not being written. */
static inline int is_zero_run(const uint8_t *start, const uint8_t *out, size_t offset, size_t length)
{
    return length >= ZERO_RUN && offset <= ZERO_RUN && out - start >= 8 && load64(out - 8) == 0 &&
           all_zero(out - offset, offset);
}

/* Decodes `length` bytes at `in` to exactly `size` bytes. Up to `limit` input may be read, though it means nothing. */
static int lz4_block(const uint8_t *in, size_t length, const uint8_t *limit, struct block_buffer *buffer, size_t size)
{
    const uint8_t *const end = in + length;
    uint8_t *const start = buffer->bytes, *const stop = start + size;
    uint8_t *out = start;
    uint8_t *written = start; /* behind the last byte that may be other than zero */
    const uint8_t *const stale = start + (buffer->size == size ? buffer->used : size + SLACK);
    buffer->size = 0;
    for (;;) {
        if (in >= end) return NATIVE_BAD_LZ4;
        const unsigned token = *in++;
        size_t literals = token >> 4;
        if (take_literals(&in, end, limit, out, stop, &literals)) return NATIVE_BAD_LZ4;
        out += literals;
        if (in >= end) {
            if (in > end || out != stop) return NATIVE_BAD_LZ4;
            if (!all_zero(out - literals, literals)) written = out;
            break;
        }
        written = out;
        if (end - in < 2) return NATIVE_BAD_LZ4;
        const size_t offset = in[0] | (size_t)in[1] << 8;
        in += 2;
        if (offset == 0 || offset > (size_t)(out - start)) return NATIVE_BAD_LZ4;
        size_t match = (token & 15) + 4;
        if (match <= SHORT_MATCH) {
            copy_short_match(out, offset, match);
            out += match;
            if (out > stop) return NATIVE_BAD_LZ4;
            written = out;
            continue;
        }
        if (extend(&in, end, &match) || out > stop || match > (size_t)(stop - out)) return NATIVE_BAD_LZ4;
        if (is_zero_run(start, out, offset, match)) { /* behind `written` only what copies wrote too much can be else */
            const uint8_t *zeros = written + OVERSHOOT > stale ? written + OVERSHOOT : stale;
            if (zeros > out) memset(out, 0, smaller(match, (size_t)(zeros - out)));
            out += match;
        } else {
            copy_match(out, offset, match);
            out += match;
            written = out;
        }
    }
    buffer->size = size;
    buffer->used = (size_t)(written - start);
    return NATIVE_DONE;
}

#endif
