/* Chunks of up to NATIVE_LANES frames side by side, window by window: the low two bytes of their pixels, and all that is
 * rare already counted. Included by each path.
 *
 * What can't be added many at once, large or negative values and those outside the limits, is taken out pixel by pixel.
 * Sums are of whole numbers, so they don't depend on which way a value takes.
 */
#ifndef MPI_KERNELS_TILE_H
#define MPI_KERNELS_TILE_H

#include "decode.h"

/* The most pixels of a window. */
#define TILE 8192
/* Not a multiple of 4096, lest all lanes meet in the same few places of the L1 cache. */
#define LANE_STRIDE (TILE + SURPLUS + 64)

/* Bytes of a chunk that are fetched ahead, at most. */
#define MOST_AHEAD 16384

struct lane {
    struct reader reader;
    struct block_buffer *buffer;
    size_t length; /* of the last block's LZ4 bytes */
    size_t frame;
    uint8_t *low, *high; /* of the window's pixels; `level` says how many of the two are in use */
    int32_t *pixels;     /* those outside the limits */
    int64_t excluded;
    uint32_t largest; /* no value of the window is larger */
    int level;
    int error;
};

struct batch {
    const struct native_binning *binning;
    size_t room;  /* per lane, for pixels outside the limits */
    size_t lanes; /* in use */
    struct lane lane[NATIVE_LANES];
    uint64_t *sums64;  /* [bins + 1][sets][NATIVE_LANES], where sets is 2 with squares and else 1; negative ones wrapped */
    uint32_t *sums32;  /* likewise; see sums.h for few lanes */
    uint8_t *upper[2]; /* bytes 2 and 3 of a window */
    uint8_t *beside;   /* [NATIVE_SEGMENT + 1][NATIVE_LANES] values of one or two bytes, the last ones zero */
    uint64_t budget;   /* no sum in sums32 is larger */
};

static inline size_t sets_of(const struct native_binning *binning)
{
    return binning->squares ? 2 : 1;
}

/* What is larger is taken pixel by pixel. Weighted values are multiplied as signed numbers of 16 bits. */
static inline uint32_t largest_added(const struct native_binning *binning)
{
    return binning->starts ? INT16_MAX : UINT16_MAX;
}

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

/* One pixel's value to the sums of its bin or bins. */
static inline void count_value(struct batch *batch, size_t lane, size_t pixel, int64_t value)
{
    const struct native_binning *binning = batch->binning;
    const size_t sets = sets_of(binning);
    uint64_t *sums = batch->sums64 + lane;
    if (!binning->starts) {
        sums[binning->bin_of[pixel] * NATIVE_LANES] += (uint64_t)value;
        return;
    }
    for (int64_t pair = binning->starts[pixel]; pair < binning->starts[pixel + 1]; pair++) {
        uint64_t *mine = sums + binning->bin_of[pair] * sets * NATIVE_LANES;
        mine[0] += (uint64_t)value * binning->weights[pair];
        if (sets == 2) mine[NATIVE_LANES] += (uint64_t)value * binning->squares[pair];
    }
}

/* One pixel; returns what is left to be added. */
static inline uint32_t take_value(struct batch *batch, size_t lane, size_t pixel, int64_t value)
{
    const struct native_binning *binning = batch->binning;
    struct lane *mine = &batch->lane[lane];
    if (value < binning->low || value > binning->high) {
        if ((size_t)mine->excluded < batch->room) mine->pixels[mine->excluded] = (int32_t)pixel;
        mine->excluded++;
        return 0;
    }
    if (value >= 0 && value <= largest_added(binning)) return (uint32_t)value;
    count_value(batch, lane, pixel, value);
    return 0;
}

static inline int is_valid(const struct native_binning *binning, size_t pixel)
{
    return binning->valid[pixel / 8] >> pixel % 8 & 1;
}

/* A piece of a window: `count` pixels from `first` on, which lie at `place` in the window. */
struct piece {
    size_t first, place, count;
};

/* Pixel by pixel: leaves only what may be added many at once. */
static void sift(struct batch *batch, size_t lane, struct piece piece)
{
    const struct native_binning *binning = batch->binning;
    struct lane *mine = &batch->lane[lane];
    uint8_t *low = mine->low + piece.place, *high = mine->high + piece.place;
    const uint8_t *bytes[4] = {low, high, batch->upper[0], batch->upper[1]};
    const size_t top = (size_t)mine->level;
    uint32_t any = 0;
    for (size_t e = 0; e < piece.count; e++) {
        uint8_t element[4] = {0, 0, 0, 0};
        for (size_t k = 0; k < top; k++) element[k] = bytes[k][e];
        uint32_t left = 0;
        if (is_valid(binning, piece.first + e))
            left = take_value(batch, lane, piece.first + e, value_of(element, binning->element_size, binning->is_signed));
        low[e] = (uint8_t)left;
        high[e] = (uint8_t)(left >> 8);
        any |= left;
    }
    mine->largest = any; /* all its bits: none of the values is larger */
    mine->level = any == 0 ? 0 : any > UINT8_MAX ? 2 : 1;
}

/* Reads a piece of one lane, whose pixels begin at byte `offset` of each plane. Returns whether it holds values that must
 * be sifted out; `level` then says how many bytes of each value are in use. */
static int read_piece(const struct native_binning *binning, struct lane *lane, uint8_t *const upper[2], struct piece piece,
                      size_t offset)
{
    const size_t element_size = binning->element_size, count = piece.count;
    const size_t stride = lane->buffer->size / element_size / 8;
    const uint8_t *planes = lane->buffer->bytes + offset, *valid = binning->valid + piece.first / 8;
    size_t top = bytes_in_use(lane->buffer, stride, element_size);
    while (top > 0 && !any_set(planes + 8 * (top - 1) * stride, stride, count / 8, valid)) top--;
    uint8_t *bytes[4] = {lane->low + piece.place, lane->high + piece.place, upper[0], upper[1]};
    for (size_t k = 0; k < top; k++) untranspose(planes + 8 * k * stride, stride, count / 8, valid, bytes[k]);
    uint32_t largest = top == 0 ? 0 : top == 1 ? UINT8_MAX : UINT16_MAX;
    if (top == 2) largest = bits_in_use(bytes[1], count) << 8 | UINT8_MAX; /* quicker than the largest value */
    if (top == 2 && largest > binning->high) largest = largest16(bytes[0], bytes[1], count);
    if (top == 1 && (binning->high < UINT8_MAX || element_size == 1)) largest = largest8(bytes[0], count);
    lane->level = (int)top;
    lane->largest = largest;
    const uint32_t never_negative = (uint32_t)1 << (8 * element_size - 1);
    return top > 2 || binning->low > 0 || largest > binning->high || largest > largest_added(binning) ||
           (binning->is_signed && largest >= never_negative);
}

static void load_block(struct lane *lane, size_t bytes)
{
    const uint8_t *block;
    if (!lane->error) lane->error = next_block(&lane->reader, &block, &lane->length);
    if (!lane->error) lane->error = lz4_block(block, lane->length, lane->reader.end, lane->buffer, bytes);
    if (lane->error) lane->level = 0;
}

/* A lane's next block is probably about as long as its last one. The processor, which foresees a single chunk well, can't
 * foresee a whole batch of them. */
static void fetch_next_block(const struct lane *lane)
{
    for (size_t k = 0; k < smaller(lane->length, MOST_AHEAD); k += 64) __builtin_prefetch(lane->reader.at + k, 0, 2);
}

/* Where a window's pieces use different numbers of bytes, the others are zero. The piece uses `lane->level` of them, the
 * window before it `level`; returns how many the window uses with it. */
static int joined_level(const struct lane *lane, struct piece piece, int level)
{
    uint8_t *const bytes[2] = {lane->low, lane->high};
    for (int k = level; k < lane->level; k++) memset(bytes[k], 0, piece.place);
    for (int k = lane->level; k < level; k++) memset(bytes[k] + piece.place, 0, piece.count);
    return lane->level > level ? lane->level : level;
}

/* Makes a window of one lane ready to be added: `count` pixels from `first` on. */
static void load_window(struct batch *batch, size_t lane, size_t first, size_t count)
{
    const struct native_binning *binning = batch->binning;
    const size_t planar = binning->pixels / 8 * 8;
    struct lane *mine = &batch->lane[lane];
    const size_t block = mine->reader.block_bytes / binning->element_size;
    int level = 0;
    uint32_t largest = 0;
    for (struct piece piece = {first, 0, 0}; piece.place < count; piece.first += piece.count, piece.place += piece.count) {
        const size_t offset = piece.first % block;
        if (offset == 0) {
            fetch_next_block(&batch->lane[(lane + 1) % batch->lanes]);
            load_block(mine, smaller(block, planar - piece.first) * binning->element_size);
        }
        if (mine->error) return;
        piece.count = smaller(count - piece.place, block - offset);
        if (read_piece(binning, mine, batch->upper, piece, offset / 8)) sift(batch, lane, piece);
        level = joined_level(mine, piece, level);
        if (mine->largest > largest) largest = mine->largest;
    }
    mine->level = level;
    mine->largest = largest;
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
        count_value(batch, lane, pixel, left);
    }
}

#endif
