/* Windows of up to NATIVE_LANES frames to their sums per bin. Included by each path.
 *
 * The values of a pixel, one per frame, are put beside each other. Then, segment by segment, the pixels of each bin are
 * added in groups, which the binning lists: one vector of sums is read and written for NATIVE_GROUP pixels of all frames.
 */
#ifndef MPI_KERNELS_SUMS_H
#define MPI_KERNELS_SUMS_H

#include "tile.h"

/* Fewer lanes are added one by one. */
#define FEW_LANES 4
/* Not weighted, each bin then has so many sums in a row, [lanes][bins + 1][ADDENDS] of 32 bits, so that pixels side by
 * side, often of the same bin, needn't wait for each other. */
#define ADDENDS 2

/* Provided by the path: puts the bytes (with `high`: pairs of bytes) of `count` pixels, a multiple of 64, beside each
 * other, where `struct native_group` says. */
static inline void put_beside(const uint8_t *low, const uint8_t *high, size_t count, uint8_t *beside);

/* Provided by the path: adds groups of values of `width` bytes to the sums of their bins; `narrow`: a group's sum fits 16
 * bits. */
static inline void add_groups(const struct native_group *groups, size_t count, const uint8_t *beside, size_t width,
                              int narrow, uint32_t *sums);

/* Provided by the path: likewise weighted, [sets][NATIVE_GROUP] factors each. Either `sums32` or `sums64` is NULL. */
static inline void add_weighted(const struct native_group *groups, const int16_t *factors, size_t sets, size_t count,
                                const uint8_t *beside, size_t width, uint32_t *sums32, uint64_t *sums64);

/* Provided by the path: one frame's values, weighted. Each bin has [sets][2] sums, which are to be added up. */
static inline void add_weighted_values(const struct native_group *groups, const int16_t *factors, size_t sets, size_t count,
                                       const int16_t *values, uint64_t *sums);

/* Groups are read once per batch, from afar, and the processor sees too late that they follow each other. */
static inline void fetch_ahead(const void *now)
{
    __builtin_prefetch((const uint8_t *)now + 1024);
}

static inline int adds_one_by_one(const struct batch *batch)
{
    return batch->lanes < FEW_LANES;
}

/* Weighted, the sums of lanes that are added one by one, [lanes][bins + 1][sets][2], have 64 bits from the beginning. */
static inline uint64_t *sums_of_lane(const struct batch *batch, size_t lane)
{
    return (uint64_t *)(void *)batch->sums32 + lane * (batch->binning->bins + 1) * sets_of(batch->binning) * 2;
}

/* Moves the sums to where they have 64 bits, and all lanes stand beside each other. */
static void flush(struct batch *batch)
{
    const size_t bins = batch->binning->bins + 1, sums = bins * sets_of(batch->binning);
    const uint32_t *from = batch->sums32;
    if (!adds_one_by_one(batch)) {
        for (size_t i = 0; i < sums * NATIVE_LANES; i++) batch->sums64[i] += from[i];
    } else if (batch->binning->starts) {
        for (size_t lane = 0; lane < batch->lanes; lane++)
            for (size_t i = 0; i < sums * 2; i++)
                batch->sums64[i / 2 * NATIVE_LANES + lane] += sums_of_lane(batch, lane)[i];
    } else {
        for (size_t lane = 0; lane < batch->lanes; lane++)
            for (size_t i = 0; i < bins * ADDENDS; i++) batch->sums64[i / ADDENDS * NATIVE_LANES + lane] += *from++;
    }
    memset(batch->sums32, 0, sums * NATIVE_LANES * sizeof *batch->sums32);
    batch->budget = 0;
}

/* Makes sure that sums may grow by this much. */
static inline void spend(struct batch *batch, uint64_t growth)
{
    if (batch->budget + growth > UINT32_MAX) flush(batch);
    batch->budget += growth;
}

/* Values of one byte, or with `high` of two; `count` is a multiple of 8. */
static inline void add_values(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    for (size_t e = 0; e < count; e += 8) {
        fetch_ahead(bin_of + e);
        for (size_t i = 0; i < 8; i++) {
            const uint32_t value = high ? low[e + i] | (uint32_t)high[e + i] << 8 : low[e + i];
            sums[(size_t)bin_of[e + i] * ADDENDS + i % ADDENDS] += value;
        }
    }
}

static void add_one_lane(const struct lane *lane, size_t count, const uint32_t *bin_of, uint32_t *sums)
{
    if (lane->level == 2)
        add_values(lane->low, lane->high, count, bin_of, sums);
    else
        add_values(lane->low, NULL, count, bin_of, sums);
}

static inline uint64_t four_values(const uint8_t *bytes)
{
    return bytes[0] | (uint64_t)bytes[16] << 16 | (uint64_t)bytes[32] << 32 | (uint64_t)bytes[48] << 48;
}

/* Where `struct native_group` says: four values that are 16 pixels apart are next to each other. */
static void put_by_place(const struct lane *lane, size_t at, size_t count, int16_t *values)
{
    const uint8_t *low = lane->low + at, *high = lane->high + at;
    for (size_t first = 0; first < count; first += 64) {
        uint64_t fours[16];
        for (size_t i = 0; i < 16; i++) fours[i] = four_values(low + first + i);
        if (lane->level == 2)
            for (size_t i = 0; i < 16; i++) fours[i] |= four_values(high + first + i) << 8;
        memcpy(values + first, fours, sizeof fours);
    }
}

static void add_weighted_lane(struct batch *batch, size_t lane, size_t first, size_t count)
{
    const struct native_binning *binning = batch->binning;
    int16_t *values = (int16_t *)(void *)batch->beside;
    values[NATIVE_SEGMENT] = 0;
    for (size_t at = 0; at < count; at += NATIVE_SEGMENT) {
        const int64_t *bounds = binning->first_group + (first + at) / NATIVE_SEGMENT;
        const struct native_group *groups = binning->groups + bounds[0];
        const size_t sets = sets_of(binning), number = (size_t)(bounds[1] - bounds[0]);
        const int16_t *factors = binning->factors + (size_t)bounds[0] * sets * NATIVE_GROUP;
        put_by_place(&batch->lane[lane], at, smaller(NATIVE_SEGMENT, count - at), values);
        if (sets == 2)
            add_weighted_values(groups, factors, 2, number, values, sums_of_lane(batch, lane));
        else
            add_weighted_values(groups, factors, 1, number, values, sums_of_lane(batch, lane));
    }
}

static void add_lanes_one_by_one(struct batch *batch, size_t first, size_t count, uint64_t largest)
{
    const size_t each = (batch->binning->bins + 1) * ADDENDS;
    spend(batch, batch->binning->starts ? 0 : largest * count);
    for (size_t i = 0; i < batch->lanes; i++) {
        if (batch->lane[i].level == 0) continue;
        if (batch->binning->starts)
            add_weighted_lane(batch, i, first, count);
        else
            add_one_lane(&batch->lane[i], count, batch->binning->bin_of + first, batch->sums32 + i * each);
    }
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
    else if (width == 1 && sums32)
        add_weighted(groups, factors, 1, count, beside, 1, sums32, NULL);
    else if (width == 1)
        add_weighted(groups, factors, 1, count, beside, 1, NULL, sums64);
    else if (sums32)
        add_weighted(groups, factors, 1, count, beside, 2, sums32, NULL);
    else
        add_weighted(groups, factors, 1, count, beside, 2, NULL, sums64);
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
            add_groups(groups, count, batch->beside, 1, 1, batch->sums32);
        else if (largest * NATIVE_GROUP <= UINT16_MAX)
            add_groups(groups, count, batch->beside, 2, 1, batch->sums32);
        else
            add_groups(groups, count, batch->beside, 2, 0, batch->sums32);
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
        add_lanes_one_by_one(batch, first, count, largest);
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
