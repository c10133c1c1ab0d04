/* Chunks of up to NATIVE_LANES frames to the sums of their pixels per bin. Included by each path.
 *
 * The frames are taken side by side, tile by tile: each one's block is decoded and its low two bytes are put beside each
 * other; then the 16 values of a pixel are added to the 16 sums of its bin at once. What that can't take, values above 16
 * bits and those outside the limits, is rare and is taken out beforehand, pixel by pixel. Sums are of whole numbers, so
 * they don't depend on any of this.
 */
#ifndef MPI_KERNELS_BIN_H
#define MPI_KERNELS_BIN_H

#include "decode.h"

#define TILE 8192
/* Not a multiple of 4096, lest all lanes meet in the same few places of the L1 cache. */
#define LANE_STRIDE (TILE + SURPLUS + 64)
/* Fewer lanes are added one by one. Each bin then has ADDENDS sums in a row, so that pixels side by side, often of the
 * same bin, needn't wait for each other. */
#define FEW_LANES 4
#define ADDENDS 4

struct lane {
    struct reader reader;
    struct block_buffer *buffer;
    size_t frame;
    uint8_t *low, *high; /* of the tile's pixels; `level` says how many of the two are in use */
    int32_t *pixels;     /* those outside the limits */
    int64_t excluded;
    uint32_t largest; /* no value of the tile is larger */
    int level;
    int error;
};

struct batch {
    const struct native_binning *binning;
    size_t room;  /* per lane, for pixels outside the limits */
    size_t lanes; /* in use */
    struct lane lane[NATIVE_LANES];
    int64_t *sums64;   /* [bins + 1][NATIVE_LANES] */
    uint32_t *sums32;  /* likewise; with few lanes [lanes][bins + 1][ADDENDS] */
    uint8_t *upper[2]; /* bytes 2 and 3 of a tile */
    uint64_t budget;   /* no sum in sums32 is larger */
};

/* Provided by the path: adds the values of `count` pixels, a multiple of 64, of all lanes to the sums of their bins. */
static inline void add_lanes(const uint8_t *low, const uint8_t *high, size_t count, const uint32_t *bin_of, uint32_t *sums);

/* Whether any valid element has a bit in these 8 planes. */
static inline int any_set(const uint8_t *planes, size_t stride, size_t count, const uint8_t *valid)
{
    uint64_t any = 0;
    size_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t bits = 0;
        for (size_t plane = 0; plane < 8; plane++) bits |= load64(planes + plane * stride + i);
        any |= bits & load64(valid + i);
    }
    for (; i < count; i++)
        for (size_t plane = 0; plane < 8; plane++) any |= planes[plane * stride + i] & valid[i];
    return any != 0;
}

/* All bits that any of the bytes has: none of them is larger. */
static inline uint32_t bits_in_use(const uint8_t *bytes, size_t count)
{
    uint8_t bits = 0;
    for (size_t e = 0; e < count; e++) bits |= bytes[e];
    return bits;
}

static inline uint32_t largest8(const uint8_t *low, size_t count)
{
    uint8_t largest = 0;
    for (size_t e = 0; e < count; e++) largest = low[e] > largest ? low[e] : largest;
    return largest;
}

static inline uint32_t largest16(const uint8_t *low, const uint8_t *high, size_t count)
{
    uint16_t largest = 0;
    for (size_t e = 0; e < count; e++) {
        uint16_t value = (uint16_t)(low[e] | high[e] << 8);
        largest = value > largest ? value : largest;
    }
    return largest;
}

static inline int64_t with_sign(uint32_t value, size_t element_size, int is_signed)
{
    if (!is_signed) return value;
    const uint32_t sign = (uint32_t)1 << (8 * element_size - 1);
    return (int64_t)(value ^ sign) - sign;
}

static inline int64_t value_of(const uint8_t *bytes, size_t element_size, int is_signed)
{
    uint32_t value = 0;
    for (size_t k = 0; k < element_size; k++) value |= (uint32_t)bytes[k] << 8 * k;
    return with_sign(value, element_size, is_signed);
}

/* One pixel; returns what is left for `add_lanes`. */
static inline uint32_t take_value(struct batch *batch, size_t lane, size_t pixel, int64_t value)
{
    const struct native_binning *binning = batch->binning;
    struct lane *mine = &batch->lane[lane];
    if (value < binning->low || value > binning->high) {
        if ((size_t)mine->excluded < batch->room) mine->pixels[mine->excluded] = (int32_t)pixel;
        mine->excluded++;
        return 0;
    }
    if (value >= 0 && value <= UINT16_MAX) return (uint32_t)value;
    batch->sums64[(size_t)binning->bin_of[pixel] * NATIVE_LANES + lane] += value;
    return 0;
}

static inline int is_valid(const struct native_binning *binning, size_t pixel)
{
    return binning->valid[pixel / 8] >> pixel % 8 & 1;
}

/* Pixel by pixel: leaves only what `add_lanes` may add. */
static void sift(struct batch *batch, size_t lane, size_t first, size_t count)
{
    const struct native_binning *binning = batch->binning;
    struct lane *mine = &batch->lane[lane];
    const uint8_t *bytes[4] = {mine->low, mine->high, batch->upper[0], batch->upper[1]};
    const size_t top = (size_t)mine->level;
    uint32_t any = 0;
    for (size_t e = 0; e < count; e++) {
        uint8_t element[4] = {0, 0, 0, 0};
        for (size_t k = 0; k < top; k++) element[k] = bytes[k][e];
        uint32_t left = 0;
        if (is_valid(binning, first + e))
            left = take_value(batch, lane, first + e, value_of(element, binning->element_size, binning->is_signed));
        mine->low[e] = (uint8_t)left;
        mine->high[e] = (uint8_t)(left >> 8);
        any |= left;
    }
    mine->largest = UINT16_MAX;
    mine->level = any == 0 ? 0 : any > UINT8_MAX ? 2 : 1;
}

/* Reads a tile of one lane: `count` pixels from `first` on, at byte `offset` of each plane. Returns whether it holds
 * values that must be sifted out; `level` then says how many bytes of each value are in use. */
static int read_tile(const struct native_binning *binning, struct lane *lane, uint8_t *const upper[2], size_t first,
                     size_t offset, size_t count)
{
    const size_t element_size = binning->element_size;
    const size_t stride = lane->buffer->size / element_size / 8;
    const uint8_t *planes = lane->buffer->bytes + offset, *valid = binning->valid + first / 8;
    size_t top = bytes_in_use(lane->buffer, stride, element_size);
    while (top > 0 && !any_set(planes + 8 * (top - 1) * stride, stride, count / 8, valid)) top--;
    uint8_t *bytes[4] = {lane->low, lane->high, upper[0], upper[1]};
    for (size_t k = 0; k < top; k++) untranspose(planes + 8 * k * stride, stride, count / 8, valid, bytes[k]);
    lane->level = (int)top;
    lane->largest = top == 0 ? 0 : top == 1 ? UINT8_MAX : UINT16_MAX;
    if (top == 2) lane->largest = bits_in_use(lane->high, count) << 8 | UINT8_MAX; /* quicker than the largest value */
    if (top == 2 && lane->largest > binning->high) lane->largest = largest16(lane->low, lane->high, count);
    if (top == 1 && (binning->high < UINT8_MAX || element_size == 1)) lane->largest = largest8(lane->low, count);
    const uint32_t never_negative = (uint32_t)1 << (8 * element_size - 1);
    return top > 2 || binning->low > 0 || lane->largest > binning->high ||
           (binning->is_signed && lane->largest >= never_negative);
}

/* Moves the sums to where they have 64 bits. */
static void flush(struct batch *batch)
{
    const size_t bins = batch->binning->bins + 1;
    uint32_t *from = batch->sums32;
    if (batch->lanes < FEW_LANES)
        for (size_t lane = 0; lane < batch->lanes; lane++)
            for (size_t i = 0; i < bins * ADDENDS; i++) batch->sums64[i / ADDENDS * NATIVE_LANES + lane] += *from++;
    else
        for (size_t i = 0; i < bins * NATIVE_LANES; i++) batch->sums64[i] += from[i];
    memset(batch->sums32, 0, bins * NATIVE_LANES * sizeof *batch->sums32);
    batch->budget = 0;
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

static void add_tile(struct batch *batch, size_t first, size_t count)
{
    const uint32_t *bin_of = batch->binning->bin_of + first;
    uint64_t largest = 0;
    int level = 0;
    for (size_t i = 0; i < batch->lanes; i++) {
        if (batch->lane[i].level == 0) continue;
        if (batch->lane[i].level > level) level = batch->lane[i].level;
        if (batch->lane[i].largest > largest) largest = batch->lane[i].largest;
    }
    if (level == 0) return;
    if (batch->budget + largest * count > UINT32_MAX) flush(batch);
    batch->budget += largest * count;
    if (batch->lanes < FEW_LANES) {
        const size_t each = (batch->binning->bins + 1) * ADDENDS;
        for (size_t i = 0; i < batch->lanes; i++)
            if (batch->lane[i].level) add_one_lane(&batch->lane[i], count, bin_of, batch->sums32 + i * each);
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
    add_lanes(batch->lane[0].low, level == 2 ? batch->lane[0].high : NULL, padded, bin_of, batch->sums32);
}

static void load_block(struct lane *lane, size_t bytes)
{
    const uint8_t *block;
    size_t length;
    if (!lane->error) lane->error = next_block(&lane->reader, &block, &length);
    if (!lane->error) lane->error = lz4_block(block, length, lane->reader.end, lane->buffer, bytes);
    if (lane->error) lane->level = 0;
}

/* The elements that fill no byte of a plane. */
static void take_rest(struct batch *batch, size_t lane, size_t first)
{
    const struct native_binning *binning = batch->binning;
    struct lane *mine = &batch->lane[lane];
    const size_t size = binning->element_size;
    if (!mine->error && (size_t)(mine->reader.end - mine->reader.at) < (binning->pixels - first) * size)
        mine->error = NATIVE_CUT_SHORT;
    if (mine->error) return;
    for (size_t pixel = first; pixel < binning->pixels; pixel++, mine->reader.at += size) {
        if (!is_valid(binning, pixel)) continue;
        const uint32_t left = take_value(batch, lane, pixel, value_of(mine->reader.at, size, binning->is_signed));
        batch->sums64[(size_t)binning->bin_of[pixel] * NATIVE_LANES + lane] += left;
    }
}

/* Lanes whose chunks have the same size of blocks. */
static void bin_blocks(struct batch *batch, size_t block_pixels)
{
    const struct native_binning *binning = batch->binning;
    const size_t planar = binning->pixels / 8 * 8;
    for (size_t first = 0; first < planar; first += block_pixels) {
        const size_t pixels = smaller(block_pixels, planar - first);
        for (size_t tile = 0; tile < pixels; tile += TILE) {
            const size_t count = smaller(TILE, pixels - tile);
            for (size_t i = 0; i < batch->lanes; i++) {
                if (tile == 0) load_block(&batch->lane[i], pixels * binning->element_size);
                if (!batch->lane[i].error && read_tile(binning, &batch->lane[i], batch->upper, first + tile, tile / 8, count))
                    sift(batch, i, first + tile, count);
            }
            add_tile(batch, first + tile, count);
        }
    }
    for (size_t i = 0; i < batch->lanes; i++) take_rest(batch, i, planar);
    flush(batch);
}

#endif
