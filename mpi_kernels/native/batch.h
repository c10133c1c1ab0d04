/* Any number of chunks, a batch of NATIVE_LANES at a time: memory, and what goes where. Included by each path. */
#ifndef MPI_KERNELS_BATCH_H
#define MPI_KERNELS_BATCH_H

#include "sums.h"

/* One piece of memory, cut into parts that begin at cache lines. */
struct parts {
    uint8_t *base;
    size_t used;
};

static inline void *part(struct parts *parts, size_t bytes)
{
    void *start = parts->base ? parts->base + parts->used : NULL;
    parts->used += (bytes + 63) / 64 * 64;
    return start;
}

static void lay_out(struct batch *batch, struct block_buffer *buffers, size_t block_bytes, struct parts *parts)
{
    const size_t sums = (batch->binning->bins + 1) * sets_of(batch->binning) * NATIVE_LANES;
    const size_t block_pixels = batch->lane[0].reader.block_bytes / batch->binning->element_size;
    /* Where a window is a block, it is used up before the next lane's is decoded: one buffer, always in the L1 cache. */
    const size_t count = window_pixels(block_pixels) == block_pixels ? 1 : batch->lanes;
    batch->sums32 = part(parts, sums * sizeof *batch->sums32);
    batch->sums64 = part(parts, sums * sizeof *batch->sums64);
    batch->beside = part(parts, (NATIVE_SEGMENT + 1) * NATIVE_LANES * 2 + SLACK);
    uint8_t *low = part(parts, NATIVE_LANES * LANE_STRIDE), *high = part(parts, NATIVE_LANES * LANE_STRIDE);
    for (size_t i = 0; i < 2; i++) batch->upper[i] = part(parts, LANE_STRIDE);
    for (size_t i = 0; i < count; i++) buffers[i] = (struct block_buffer){part(parts, block_bytes + SLACK), 0, 0};
    if (!parts->base) return;
    memset(batch->sums32, 0, sums * sizeof *batch->sums32);
    memset(batch->sums64, 0, sums * sizeof *batch->sums64);
    for (size_t i = 0; i < batch->lanes; i++) {
        batch->lane[i].low = low + i * LANE_STRIDE;
        batch->lane[i].high = high + i * LANE_STRIDE;
        batch->lane[i].buffer = &buffers[count == 1 ? 0 : i];
    }
    if (adds_one_by_one(batch)) return;
    memset(low + batch->lanes * LANE_STRIDE, 0, (NATIVE_LANES - batch->lanes) * LANE_STRIDE); /* added all the same */
    memset(high + batch->lanes * LANE_STRIDE, 0, (NATIVE_LANES - batch->lanes) * LANE_STRIDE);
}

static void hand_over(const struct batch *batch, const struct native_results *results)
{
    const size_t bins = batch->binning->bins, sets = sets_of(batch->binning);
    for (size_t i = 0; i < batch->lanes; i++) {
        const struct lane *lane = &batch->lane[i];
        results->errors[lane->frame] = lane->error;
        results->excluded[lane->frame] = lane->excluded;
        int64_t *sums = results->sums + lane->frame * bins * sets;
        for (size_t bin = 0; bin < bins; bin++)
            for (size_t set = 0; set < sets; set++)
                sums[set * bins + bin] = (int64_t)batch->sums64[(bin * sets + set) * NATIVE_LANES + i];
    }
}

static void sum_batch(struct batch *batch, const struct native_results *results)
{
    const struct native_binning *binning = batch->binning;
    const size_t block_bytes = batch->lane[0].reader.block_bytes;
    struct block_buffer buffers[NATIVE_LANES];
    struct parts parts = {NULL, 0};
    const size_t decoded = smaller(block_bytes, binning->pixels / 8 * 8 * binning->element_size);
    lay_out(batch, buffers, decoded, &parts); /* first only to see how much it is */
    parts = (struct parts){aligned_alloc(64, parts.used), 0};
    if (!parts.base) {
        for (size_t i = 0; i < batch->lanes; i++) results->errors[batch->lane[i].frame] = NATIVE_NO_MEMORY;
        return;
    }
    lay_out(batch, buffers, decoded, &parts);
    sum_windows(batch, window_pixels(block_bytes / binning->element_size));
    hand_over(batch, results);
    free(parts.base);
}

/* Frames whose blocks have another size than those before them begin a batch of their own. */
static void sum_chunks(const struct native_binning *binning, const uint8_t *const *chunks, const size_t *lengths,
                       size_t frames, const struct native_results *results)
{
    struct batch batch = {.binning = binning, .room = results->room};
    for (size_t frame = 0; frame < frames; frame++) {
        struct reader reader;
        const size_t size = binning->pixels * binning->element_size;
        results->excluded[frame] = 0;
        results->errors[frame] = begin_chunk(&reader, chunks[frame], lengths[frame], binning->element_size, size);
        if (results->errors[frame]) continue;
        if (batch.lanes == NATIVE_LANES || (batch.lanes && batch.lane[0].reader.block_bytes != reader.block_bytes)) {
            sum_batch(&batch, results);
            batch = (struct batch){.binning = binning, .room = results->room};
        }
        batch.lane[batch.lanes++] =
            (struct lane){.reader = reader, .frame = frame, .pixels = results->pixels + frame * results->room};
    }
    if (batch.lanes) sum_batch(&batch, results);
}

#endif
