/* Chunks of any number of frames to their sums pixel by pixel. Included by each path.
 *
 * Block by block: that of each frame is decoded and added to sums of few bits, which stay in the L1 cache; the sums of the
 * whole batch are then added once to those in memory. What few bits can't take, values above 16 bits and those outside the
 * limits, is rare and goes to memory pixel by pixel. Sums are of whole numbers, so they don't depend on any of this.
 */
#ifndef MPI_KERNELS_PROJECT_H
#define MPI_KERNELS_PROJECT_H

#include "batch.h"

/* Elements between arrays whose lengths are powers of two, lest they meet in the same few places of the L1 cache. */
#define STAGGER 96
/* Bytes of the next frame's block that are asked for beforehand: about a block of a sparse frame. */
#define FETCHED 1536
/* Frames whose blocks are added in one go: what is between stays in registers. */
#define TOGETHER 4

/* A frame; `lane.largest` is that of its block, `largest` that of the frame. */
struct projected {
    struct lane lane;
    int64_t total;
    uint32_t largest;
};

/* The low two bytes; `level` says how many of them are in use. */
struct values {
    uint8_t *low, *high;
    int level;
};

struct projecting {
    const struct native_binning *binning;
    const struct native_projection *sums;
    const uint32_t *largest_before;
    uint64_t flip; /* all bits set: what had been added is taken away again */
    struct block_buffer buffer;
    struct values waiting[TOGETHER], next; /* of a block's pixels, as everything below */
    size_t number_waiting;
    uint64_t squares_waiting; /* no sum of their squares is larger */
    uint8_t *upper[2];
    uint8_t *largest8;
    uint16_t *total16, *squares16, *largest16;
    uint32_t *total32, *squares32;
    uint64_t budget16, budget32; /* no sum in them is larger; that of the squares bounds that of the values */
};

/* Provided by the path: the sum of `count` bytes, a multiple of 64. */
static inline uint64_t sum_of_bytes(const uint8_t *bytes, size_t count);

static inline uint64_t signed_by(uint64_t flip, uint64_t value)
{
    return (value ^ flip) - flip;
}

/* One pixel of one frame: takes what sums of few bits can't, and returns what is left for them. */
static uint32_t take_pixel(const struct projecting *job, struct projected *frame, size_t pixel, int64_t value)
{
    const struct native_projection *sums = job->sums;
    if (value < job->binning->low || value > job->binning->high) {
        frame->lane.excluded++;
        sums->excluded[pixel] += (uint32_t)signed_by(job->flip, 1);
        return 0;
    }
    if (value <= UINT16_MAX) return (uint32_t)value;
    const uint64_t square = (uint64_t)value * (uint64_t)value;
    sums->total[pixel] += signed_by(job->flip, (uint64_t)value);
    sums->squares_low[pixel] += signed_by(job->flip, square & UINT32_MAX);
    sums->squares_high[pixel] += signed_by(job->flip, square >> 32);
    if (value > sums->largest[pixel]) sums->largest[pixel] = (uint32_t)value;
    if (value > frame->largest) frame->largest = (uint32_t)value;
    frame->total += value;
    return 0;
}

/* Pixel by pixel: leaves in the block only what may be added to sums of few bits. */
static void sift_block(const struct projecting *job, struct projected *frame, size_t first, size_t count)
{
    const struct native_binning *binning = job->binning;
    struct lane *lane = &frame->lane;
    const uint8_t *bytes[4] = {lane->low, lane->high, job->upper[0], job->upper[1]};
    const size_t top = (size_t)lane->level;
    uint32_t largest = 0;
    for (size_t e = 0; e < count; e++) {
        uint32_t value = 0, left = 0;
        for (size_t k = 0; k < top; k++) value |= (uint32_t)bytes[k][e] << 8 * k;
        if (is_valid(binning, first + e))
            left = take_pixel(job, frame, first + e, with_sign(value, binning->element_size, binning->is_signed));
        lane->low[e] = (uint8_t)left;
        lane->high[e] = (uint8_t)(left >> 8);
        largest = left > largest ? left : largest;
    }
    lane->largest = largest;
    lane->level = largest == 0 ? 0 : largest > UINT8_MAX ? 2 : 1;
}

/* Moves the sums of 16 bits to where they have 32. */
static void widen(struct projecting *job, size_t count)
{
    uint16_t *restrict total16 = job->total16, *restrict squares16 = job->squares16;
    uint32_t *restrict total32 = job->total32, *restrict squares32 = job->squares32;
    if (job->budget16 == 0) return;
    for (size_t e = 0; e < count; e++) total32[e] += total16[e];
    for (size_t e = 0; e < count; e++) squares32[e] += squares16[e];
    memset(total16, 0, count * sizeof *total16);
    memset(squares16, 0, count * sizeof *squares16);
    job->budget16 = 0;
}

static void add_bytes(const uint8_t *restrict a, const uint8_t *restrict b, const uint8_t *restrict c,
                      const uint8_t *restrict d, size_t count, uint16_t *restrict total, uint16_t *restrict squares,
                      uint8_t *restrict largest)
{
    for (size_t e = 0; e < count; e++) {
        const uint16_t p = a[e], q = b[e], r = c[e], s = d[e];
        total[e] = (uint16_t)(total[e] + p + q + r + s);
        squares[e] = (uint16_t)(squares[e] + p * p + q * q + r * r + s * s);
        const uint8_t first = a[e] > b[e] ? a[e] : b[e], second = c[e] > d[e] ? c[e] : d[e];
        const uint8_t larger = first > second ? first : second;
        largest[e] = larger > largest[e] ? larger : largest[e];
    }
}

static void add_words(const struct values *restrict a, const struct values *restrict b, const struct values *restrict c,
                      const struct values *restrict d, size_t count, uint32_t *restrict total,
                      uint32_t *restrict squares, uint16_t *restrict largest)
{
    const uint8_t *restrict a0 = a->low, *restrict a1 = a->high, *restrict b0 = b->low, *restrict b1 = b->high;
    const uint8_t *restrict c0 = c->low, *restrict c1 = c->high, *restrict d0 = d->low, *restrict d1 = d->high;
    for (size_t e = 0; e < count; e++) {
        const uint16_t low = (uint16_t)(a0[e] + b0[e] + c0[e] + d0[e]), high = (uint16_t)(a1[e] + b1[e] + c1[e] + d1[e]);
        const uint16_t p = (uint16_t)(a0[e] | a1[e] << 8), q = (uint16_t)(b0[e] | b1[e] << 8);
        const uint16_t r = (uint16_t)(c0[e] | c1[e] << 8), s = (uint16_t)(d0[e] | d1[e] << 8);
        total[e] += low + ((uint32_t)high << 8);
        squares[e] += (uint32_t)p * p + (uint32_t)q * q + (uint32_t)r * r + (uint32_t)s * s;
        const uint16_t first = p > q ? p : q, second = r > s ? r : s;
        const uint16_t larger = first > second ? first : second;
        largest[e] = larger > largest[e] ? larger : largest[e];
    }
}

/* Adds the blocks that wait for it. */
static void add_waiting(struct projecting *job, size_t count)
{
    struct values *of = job->waiting;
    const int small = job->squares_waiting <= UINT16_MAX;
    if (job->squares_waiting == 0) return;
    for (size_t i = 0; i < TOGETHER; i++) {
        if (i >= job->number_waiting) memset(of[i].low, 0, count), of[i].level = 1;
        if (!small && of[i].level < 2) memset(of[i].high, 0, count);
    }
    if (small) {
        if (job->budget16 + job->squares_waiting > UINT16_MAX) widen(job, count);
        job->budget16 += job->squares_waiting;
        add_bytes(of[0].low, of[1].low, of[2].low, of[3].low, count, job->total16, job->squares16, job->largest8);
    } else {
        add_words(of, of + 1, of + 2, of + 3, count, job->total32, job->squares32, job->largest16);
    }
    job->squares_waiting = job->number_waiting = 0;
}

/* Moves the sums to memory. */
static void store_block(struct projecting *job, size_t first, size_t count)
{
    uint64_t *restrict total = job->sums->total + first, *restrict squares = job->sums->squares_low + first;
    uint32_t *restrict largest = job->sums->largest + first;
    uint32_t *restrict total32 = job->total32, *restrict squares32 = job->squares32;
    uint8_t *restrict largest8 = job->largest8;
    uint16_t *restrict largest16 = job->largest16;
    const uint64_t flip = job->flip;
    if (job->budget32 == 0) return;
    add_waiting(job, count);
    widen(job, count);
    for (size_t e = 0; e < count; e++) total[e] += signed_by(flip, total32[e]);
    for (size_t e = 0; e < count; e++) squares[e] += signed_by(flip, squares32[e]);
    for (size_t e = 0; e < count; e++) {
        const uint32_t value = largest16[e] > largest8[e] ? largest16[e] : largest8[e];
        largest[e] = value > largest[e] ? value : largest[e];
    }
    memset(total32, 0, count * sizeof *total32);
    memset(squares32, 0, count * sizeof *squares32);
    memset(largest8, 0, count * sizeof *largest8);
    memset(largest16, 0, count * sizeof *largest16);
    job->budget32 = 0;
}

/* Adds a block of a frame to the sums of its pixels, or lets it wait for others. */
static void add_block(struct projecting *job, const struct lane *lane, size_t first, size_t count)
{
    const uint64_t square = (uint64_t)lane->largest * lane->largest;
    if (job->budget32 + square > UINT32_MAX) store_block(job, first, count);
    job->budget32 += square;
    struct values *free = job->waiting + job->number_waiting;
    job->next = *free;
    *free = (struct values){lane->low, lane->high, lane->level};
    job->number_waiting++;
    job->squares_waiting += square;
    if (job->number_waiting == TOGETHER) add_waiting(job, count);
}

/* Adds to the sums of the frame. */
static void add_totals(struct projected *frame, size_t count)
{
    const struct lane *lane = &frame->lane;
    const size_t padded = (count + 63) / 64 * 64;
    memset(lane->low + count, 0, padded - count);
    frame->largest = lane->largest > frame->largest ? lane->largest : frame->largest;
    frame->total += (int64_t)sum_of_bytes(lane->low, padded);
    if (lane->level < 2) return;
    memset(lane->high + count, 0, padded - count);
    frame->total += (int64_t)sum_of_bytes(lane->high, padded) << 8;
}

static void take_block(struct projecting *job, struct projected *frame, size_t first, size_t count)
{
    struct lane *lane = &frame->lane;
    lane->low = job->next.low;
    lane->high = job->next.high;
    load_block(lane, count * job->binning->element_size);
    if (lane->error) return;
    if (read_tile(job->binning, lane, job->upper, first, 0, count))
        sift_block(job, frame, first, count);
    else if (lane->level > 0)
        lane->largest = lane->level == 2 ? largest16(lane->low, lane->high, count) : largest8(lane->low, count);
    if (lane->largest == 0) return;
    add_totals(frame, count);
    add_block(job, lane, first, count);
}

/* Asks for what the next frame's block begins with: the processor can't foresee that it is read after this one's. */
static inline void fetch_block(const struct reader *reader)
{
    const size_t bytes = smaller(FETCHED, (size_t)(reader->end - reader->at));
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(reader->at + at);
}

/* The elements that fill no byte of a plane. */
static void project_rest(struct projecting *job, struct projected *frame, size_t first)
{
    const struct native_binning *binning = job->binning;
    const struct native_projection *sums = job->sums;
    struct reader *reader = &frame->lane.reader;
    const size_t size = binning->element_size;
    if (frame->lane.error) return;
    if ((size_t)(reader->end - reader->at) < (binning->pixels - first) * size) {
        frame->lane.error = NATIVE_CUT_SHORT;
        return;
    }
    for (size_t pixel = first; pixel < binning->pixels; pixel++, reader->at += size) {
        if (!is_valid(binning, pixel)) continue;
        const uint32_t left = take_pixel(job, frame, pixel, value_of(reader->at, size, binning->is_signed));
        sums->total[pixel] += signed_by(job->flip, left);
        sums->squares_low[pixel] += signed_by(job->flip, (uint64_t)left * left);
        if (left > sums->largest[pixel]) sums->largest[pixel] = left;
        if (left > frame->largest) frame->largest = left;
        frame->total += left;
    }
}

/* Frames whose chunks have the same size of blocks. */
static void project_group(struct projecting *job, struct projected *frames, size_t count)
{
    const size_t planar = job->binning->pixels / 8 * 8;
    const size_t block_pixels = frames[0].lane.reader.block_bytes / job->binning->element_size;
    uint32_t *largest = job->sums->largest;
    job->buffer.size = 0;
    for (size_t first = 0; first < planar; first += block_pixels) {
        const size_t pixels = smaller(block_pixels, planar - first);
        if (job->largest_before != largest)
            memcpy(largest + first, job->largest_before + first, pixels * sizeof *largest);
        for (size_t i = 0; i < count; i++) {
            if (i + 1 < count) fetch_block(&frames[i + 1].lane.reader);
            take_block(job, frames + i, first, pixels);
        }
        store_block(job, first, pixels);
    }
    if (job->largest_before != largest)
        memcpy(largest + planar, job->largest_before + planar, (job->binning->pixels - planar) * sizeof *largest);
    for (size_t i = 0; i < count; i++) project_rest(job, frames + i, planar);
    job->largest_before = largest;
}

static void lay_out_projecting(struct projecting *job, size_t block_pixels, struct parts *parts)
{
    const size_t planes = block_pixels + SURPLUS, sums = block_pixels + STAGGER;
    job->buffer = (struct block_buffer){part(parts, block_pixels * job->binning->element_size + SLACK), 0, 0};
    job->next = (struct values){part(parts, planes), part(parts, planes), 0};
    for (size_t i = 0; i < TOGETHER; i++) job->waiting[i] = (struct values){part(parts, planes), part(parts, planes), 0};
    for (size_t i = 0; i < 2; i++) job->upper[i] = part(parts, planes);
    job->largest8 = part(parts, sums * sizeof *job->largest8);
    job->total16 = part(parts, sums * sizeof *job->total16);
    job->squares16 = part(parts, sums * sizeof *job->squares16);
    job->largest16 = part(parts, sums * sizeof *job->largest16);
    job->total32 = part(parts, sums * sizeof *job->total32);
    job->squares32 = part(parts, sums * sizeof *job->squares32);
    if (parts->base) memset(job->largest8, 0, (size_t)(parts->base + parts->used - job->largest8));
}

/* Begins with every chunk; returns whether one is broken. */
static int begin_frames(struct projecting *job, struct projected *frames, const uint8_t *const *chunks,
                        const size_t *lengths, size_t count)
{
    const size_t element_size = job->binning->element_size, size = job->binning->pixels * element_size;
    int broken = 0;
    for (size_t i = 0; i < count; i++) {
        struct projected *frame = frames + i;
        *frame = (struct projected){.lane = {.buffer = &job->buffer}};
        frame->lane.error = begin_chunk(&frame->lane.reader, chunks[i], lengths[i], element_size, size);
        broken |= frame->lane.error;
    }
    return broken;
}

static int project_frames(struct projecting *job, struct projected *frames, size_t count)
{
    int broken = 0;
    for (size_t from = 0, to; from < count; from = to) {
        const size_t block_bytes = frames[from].lane.reader.block_bytes;
        for (to = from + 1; to < count && frames[to].lane.reader.block_bytes == block_bytes; to++) continue;
        project_group(job, frames + from, to - from);
    }
    for (size_t i = 0; i < count; i++) broken |= frames[i].lane.error;
    return broken;
}

static void hand_over_totals(const struct projected *frames, size_t count, const struct native_totals *totals)
{
    for (size_t i = 0; i < count; i++) {
        totals->totals[i] = frames[i].total;
        totals->excluded[i] = frames[i].lane.excluded;
        totals->largest[i] = frames[i].largest;
        totals->errors[i] = frames[i].lane.error;
    }
}

/* All frames or none: what is wrong with a chunk shows only after its first blocks have been added. */
static void project_or_undo(struct projecting *job, struct projected *frames, const uint8_t *const *chunks,
                            const size_t *lengths, size_t count)
{
    if (!project_frames(job, frames, count)) return;
    job->flip = UINT64_MAX;
    job->largest_before = job->sums->largest_before;
    begin_frames(job, frames, chunks, lengths, count);
    project_frames(job, frames, count);
}

/* Returns memory for blocks of any of these frames; NULL: there is none. */
static void *reserve(struct projecting *job, const struct projected *frames, size_t count)
{
    const size_t element_size = job->binning->element_size, planar = job->binning->pixels / 8 * 8;
    size_t block_pixels = 0;
    for (size_t i = 0; i < count; i++) {
        const size_t pixels = smaller(frames[i].lane.reader.block_bytes / element_size, planar);
        block_pixels = pixels > block_pixels ? pixels : block_pixels;
    }
    struct parts parts = {NULL, 0};
    lay_out_projecting(job, block_pixels, &parts); /* first only to see how much it is */
    parts = (struct parts){aligned_alloc(64, parts.used), 0};
    if (!parts.base) return NULL;
    lay_out_projecting(job, block_pixels, &parts);
    return parts.base;
}

static void project_chunks(const struct native_binning *binning, const uint8_t *const *chunks, const size_t *lengths,
                           size_t count, const struct native_projection *sums, const struct native_totals *totals)
{
    struct projecting job = {.binning = binning, .sums = sums, .largest_before = sums->largest_before};
    struct projected *frames = malloc(count * sizeof *frames + 1);
    for (size_t i = 0; i < count; i++) totals->errors[i] = NATIVE_NO_MEMORY;
    if (!frames) return;
    const int broken = begin_frames(&job, frames, chunks, lengths, count);
    void *memory = broken ? NULL : reserve(&job, frames, count);
    if (memory) {
        begin_frames(&job, frames, chunks, lengths, count); /* they know now where that memory is */
        project_or_undo(&job, frames, chunks, lengths, count);
    }
    if (broken || memory) hand_over_totals(frames, count, totals);
    free(memory);
    free(frames);
}

#endif
