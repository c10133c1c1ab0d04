/* Windows of up to NATIVE_LANES frames to their sums per bin. Included by each path.
 *
 * The values of a pixel, one per frame, are put beside each other. Then, segment by segment, the pixels of each bin are
 * added in groups, which the binning lists: one vector of sums is read and written for NATIVE_GROUP pixels of all frames.
 */
#ifndef MPI_KERNELS_SUMS_H
#define MPI_KERNELS_SUMS_H

#include "tile.h"

/* Fewer lanes are added one by one, unless weighted. Each bin then has ADDENDS sums in a row, [lanes][bins + 1][ADDENDS],
 * so that pixels side by side, often of the same bin, needn't wait for each other. */
#define FEW_LANES 4
#define ADDENDS 4

/* Provided by the path: puts the bytes (with `high`: pairs of bytes) of `count` pixels, a multiple of 64, beside each
 * other, where `struct native_group` says. */
static inline void put_beside(const uint8_t *low, const uint8_t *high, size_t count, uint8_t *beside);

/* Provided by the path: adds groups of values of `width` bytes to the sums of their bins. */
static inline void add_groups(const struct native_group *groups, size_t count, const uint8_t *beside, size_t width,
                              uint32_t *sums);

/* Provided by the path: likewise weighted, [sets][NATIVE_GROUP] factors each. Either `sums32` or `sums64` is NULL. */
static inline void add_weighted(const struct native_group *groups, const int16_t *factors, size_t sets, size_t count,
                                const uint8_t *beside, size_t width, uint32_t *sums32, uint64_t *sums64);

static inline int adds_one_by_one(const struct batch *batch)
{
    return batch->lanes < FEW_LANES && !batch->binning->starts;
}

/* Moves the sums to where they have 64 bits. */
static void flush(struct batch *batch)
{
    const size_t bins = batch->binning->bins + 1, count = bins * sets_of(batch->binning) * NATIVE_LANES;
    uint32_t *from = batch->sums32;
    if (adds_one_by_one(batch))
        for (size_t lane = 0; lane < batch->lanes; lane++)
            for (size_t i = 0; i < bins * ADDENDS; i++) batch->sums64[i / ADDENDS * NATIVE_LANES + lane] += *from++;
    else
        for (size_t i = 0; i < count; i++) batch->sums64[i] += from[i];
    memset(batch->sums32, 0, count * sizeof *batch->sums32);
    batch->budget = 0;
}

/* Makes sure that sums may grow by this much. */
static inline void spend(struct batch *batch, uint64_t growth)
{
    if (batch->budget + growth > UINT32_MAX) flush(batch);
    batch->budget += growth;
}

static void add_one_lane(const struct lane *lane, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    const uint8_t *const low = lane->low, *const high = lane->high;
    const int level = lane->level;
    for (size_t e = 0; e < count; e += ADDENDS) {
        for (size_t i = 0; i < ADDENDS; i++) {
            const uint32_t value = level == 2 ? low[e + i] | (uint32_t)high[e + i] << 8 : low[e + i];
            sums[(size_t)bin_of[e + i] * ADDENDS + i] += value;
        }
    }
}

static void add_few_lanes(struct batch *batch, size_t first, size_t count, uint64_t largest)
{
    const size_t each = (batch->binning->bins + 1) * ADDENDS;
    spend(batch, largest * count);
    for (size_t i = 0; i < batch->lanes; i++)
        if (batch->lane[i].level)
            add_one_lane(&batch->lane[i], count, batch->binning->bin_of + first, batch->sums32 + i * each);
}

/* Constants, so that each is compiled for its own case. */
static void add_weighted_case(const struct native_group *groups, const int16_t *factors, size_t sets, size_t count,
                              const uint8_t *beside, size_t width, uint32_t *sums32, uint64_t *sums64)
{
    if (sets == 2 && width == 1 && sums32)
        add_weighted(groups, factors, 2, count, beside, 1, sums32, NULL);
    else if (sets == 2 && width == 1)
        add_weighted(groups, factors, 2, count, beside, 1, NULL, sums64);
    else if (sets == 2 && sums32)
        add_weighted(groups, factors, 2, count, beside, 2, sums32, NULL);
    else if (sets == 2)
        add_weighted(groups, factors, 2, count, beside, 2, NULL, sums64);
    else if (sums32)
        add_weighted(groups, factors, 1, count, beside, width, sums32, NULL);
    else
        add_weighted(groups, factors, 1, count, beside, width, NULL, sums64);
}

static void add_segment(struct batch *batch, size_t segment, size_t width, uint64_t largest)
{
    const struct native_binning *binning = batch->binning;
    const int64_t from = binning->first_group[segment];
    const size_t count = (size_t)(binning->first_group[segment + 1] - from), sets = sets_of(binning);
    const struct native_group *groups = binning->groups + from;
    const uint64_t growth = largest * binning->most[segment];
    if (!binning->starts) {
        spend(batch, growth);
        if (width == 1)
            add_groups(groups, count, batch->beside, 1, batch->sums32);
        else
            add_groups(groups, count, batch->beside, 2, batch->sums32);
        return;
    }
    const int16_t *factors = binning->factors + (size_t)from * sets * NATIVE_GROUP;
    if (growth > UINT32_MAX / 4) { /* moving the sums every other time would take longer */
        add_weighted_case(groups, factors, sets, count, batch->beside, width, NULL, batch->sums64);
        return;
    }
    spend(batch, growth);
    add_weighted_case(groups, factors, sets, count, batch->beside, width, batch->sums32, NULL);
}

static void add_window(struct batch *batch, size_t first, size_t count)
{
    uint64_t largest = 0;
    int level = 0;
    for (size_t i = 0; i < batch->lanes; i++) {
        if (batch->lane[i].level == 0) continue;
        if (batch->lane[i].level > level) level = batch->lane[i].level;
        if (batch->lane[i].largest > largest) largest = batch->lane[i].largest;
    }
    if (level == 0) return;
    if (adds_one_by_one(batch)) {
        add_few_lanes(batch, first, count, largest);
        return;
    }
    const size_t padded = (count + 63) / 64 * 64;
    for (size_t i = 0; i < batch->lanes; i++) { /* of what isn't in use, and behind the end, nothing is to be added */
        struct lane *lane = &batch->lane[i];
        size_t from = lane->level >= 1 ? count : 0;
        memset(lane->low + from, 0, padded - from);
        from = lane->level >= 2 ? count : 0;
        if (level == 2) memset(lane->high + from, 0, padded - from);
    }
    const uint8_t *low = batch->lane[0].low, *high = batch->lane[0].high;
    for (size_t at = 0; at < padded; at += NATIVE_SEGMENT) {
        const size_t width = (size_t)level, pixels = smaller(NATIVE_SEGMENT, padded - at);
        if (level == 1)
            put_beside(low + at, NULL, pixels, batch->beside);
        else
            put_beside(low + at, high + at, pixels, batch->beside);
        memset(batch->beside + NATIVE_SEGMENT * NATIVE_LANES * width, 0, NATIVE_LANES * width);
        add_segment(batch, (first + at) / NATIVE_SEGMENT, width, largest);
    }
}

/* A window is one block, or one segment where blocks don't consist of segments. Lanes have the same size of blocks. */
static inline size_t window_pixels(size_t block_pixels)
{
    return block_pixels % NATIVE_SEGMENT == 0 && block_pixels <= TILE ? block_pixels : NATIVE_SEGMENT;
}

static void sum_windows(struct batch *batch, size_t window)
{
    const size_t planar = batch->binning->pixels / 8 * 8;
    for (size_t first = 0; first < planar; first += window) {
        const size_t count = smaller(window, planar - first);
        for (size_t i = 0; i < batch->lanes; i++) load_window(batch, i, first, count);
        add_window(batch, first, count);
    }
    for (size_t i = 0; i < batch->lanes; i++) take_rest(batch, i, planar);
    flush(batch);
}

#endif
