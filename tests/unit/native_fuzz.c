/* Hostile chunks against every path, each chunk and each result in memory of exactly its size, for AddressSanitizer.
 *
 *     native_fuzz SEEDS COUNT RANDOM-SEED
 *
 * SEEDS holds valid chunks, each as three native integers of 64 bits (bytes of an element, bytes of the frame, bytes of
 * the chunk) and the chunk. All paths must come to the same end with the same bytes and sums; the last line counts. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"

#define SEEDS 256
#define FRAMES 5
#define ROOM 3

struct seed {
    uint64_t element_size, size, length;
    uint8_t *chunk;
};

/* What pixels count into: not weighted, weighted, weighted with squares. */
enum kind { WHOLE, WEIGHTED, SQUARED, KINDS };

struct outcome {
    int32_t error, errors[FRAMES];
    uint64_t digest;
};

static uint64_t state;

static uint64_t any(uint64_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % below;
}

static void *room(size_t bytes)
{
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) abort();
    return memory;
}

static uint64_t digest(uint64_t digest, const void *memory, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) digest = (digest ^ ((const uint8_t *)memory)[i]) * 1099511628211u;
    return digest;
}

/* A changed byte is often one of those that lead: lengths and tokens stand at the beginning. */
static uint8_t *mutated(const struct seed *seed, size_t *length)
{
    const uint8_t telling[] = {0, 1, 4, 15, 16, 127, 128, 240, 254, 255};
    *length = any(3) ? seed->length : any(seed->length + 1);
    uint8_t *chunk = room(*length);
    memcpy(chunk, seed->chunk, *length);
    if (*length == 0) return chunk;
    if (any(20) == 0) { /* noise behind a good header */
        for (size_t i = 12; i < *length; i++) chunk[i] = (uint8_t)any(256);
        return chunk;
    }
    for (uint64_t changes = any(6); changes > 0; changes--) {
        const size_t at = any(2) ? any(*length) : 8 + any(*length < 40 ? *length : 40);
        if (at >= *length) continue;
        switch (any(4)) {
        case 0: chunk[at] = (uint8_t)any(256); break;
        case 1: chunk[at] ^= (uint8_t)(1 << any(8)); break;
        case 2: chunk[at] = telling[any(sizeof telling)]; break;
        default: { /* a piece moves */
            const size_t from = any(*length);
            const size_t longest = *length - (at > from ? at : from);
            memmove(chunk + at, chunk + from, any(longest + 1));
        }
        }
    }
    return chunk;
}

/* Each pair of a pixel and a bin is a group of its own. */
static void assign(struct native_binning *binning, enum kind kind)
{
    const size_t pixels = binning->pixels, bins = binning->bins, pairs = kind == WHOLE ? pixels + NATIVE_PADDING : 2 * pixels;
    const size_t sets = kind == SQUARED ? 2 : 1, segments = (pixels / 8 * 8 + NATIVE_SEGMENT - 1) / NATIVE_SEGMENT;
    uint32_t *bin_of = room(pairs * sizeof *bin_of), *most = room(segments * sizeof *most);
    uint16_t *weights = room(pairs * sizeof *weights), *squares = room(pairs * sizeof *squares);
    uint8_t *valid = calloc(1, (pixels + 7) / 8 + NATIVE_PADDING);
    int64_t *starts = room((pixels + 1) * sizeof *starts), *first = room((segments + 1) * sizeof *first), groups = 0;
    struct native_group *group = room(2 * pixels * sizeof *group);
    int16_t *factors = room(2 * pixels * sets * NATIVE_GROUP * sizeof *factors), *next = factors;
    if (!valid) abort();
    for (size_t i = 0; i < pairs; i++) {
        bin_of[i] = i < pixels || kind != WHOLE ? (uint32_t)(i * 7 % (bins + (kind == WHOLE))) : (uint32_t)bins;
        weights[i] = (uint16_t)(i * 7919 % 32768), squares[i] = (uint16_t)(i * 104729 % 32768);
    }
    for (size_t i = 0; i < segments; i++) most[i] = 2 * NATIVE_SEGMENT * (kind == WHOLE ? 1 : INT16_MAX);
    for (size_t i = 0, pair = 0; i < pixels; i++) {
        const size_t end = kind == WHOLE ? pair + 1 : pair + i % 3;
        starts[i] = (int64_t)pair;
        starts[i + 1] = (int64_t)end;
        if (i % NATIVE_SEGMENT == 0 && i / NATIVE_SEGMENT < segments) first[i / NATIVE_SEGMENT] = groups;
        valid[i / 8] |= (uint8_t)((kind == WHOLE ? bin_of[i] < bins : end > pair) << i % 8);
        for (; pair < end; pair++) {
            if (bin_of[pair] == bins || i >= pixels / 8 * 8) continue;
            const size_t within = i % NATIVE_SEGMENT;
            group[groups] = (struct native_group){bin_of[pair], {NATIVE_SEGMENT, NATIVE_SEGMENT, NATIVE_SEGMENT, NATIVE_SEGMENT}};
            group[groups].place[pair % NATIVE_GROUP] = (uint16_t)(within / 64 * 64 + within % 16 * 4 + within / 16 % 4);
            groups++;
            for (size_t set = 0; set < sets; set++)
                for (size_t k = 0; k < NATIVE_GROUP; k++)
                    *next++ = (int16_t)(k != pair % NATIVE_GROUP ? 0 : set == 0 ? weights[pair] : squares[pair]);
        }
    }
    first[segments] = groups;
    binning->starts = kind == WHOLE ? NULL : starts, binning->bin_of = bin_of;
    binning->weights = weights, binning->squares = kind == SQUARED ? squares : NULL, binning->valid = valid;
    binning->groups = realloc(group, (size_t)groups * sizeof *group + !groups), binning->factors = factors;
    binning->first_group = first, binning->most = most;
    if (kind == WHOLE) free(starts);
    if (kind != SQUARED) free(squares);
}

static void release(const struct native_binning *binning)
{
    const void *const all[] = {binning->starts, binning->bin_of, binning->weights, binning->squares, binning->valid,
                               binning->groups, binning->factors, binning->first_group, binning->most};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free((void *)(uintptr_t)all[i]);
}

/* Sums that aren't zero beforehand: if a chunk is broken, they must be the same afterwards. */
static uint64_t project(int path, const struct native_binning *binning, const uint8_t *const *chunks,
                        const size_t *lengths, size_t count, uint64_t so_far)
{
    const size_t pixels = binning->pixels, wide = pixels * sizeof(uint64_t), narrow = pixels * sizeof(uint32_t);
    uint64_t *total = room(wide), *low = room(wide), *high = room(wide);
    uint32_t *outside = room(narrow), *before = room(narrow), *largest = room(narrow), *highest = room(count * sizeof *highest);
    int64_t *counts = room(count * sizeof *counts), *excluded = room(count * sizeof *excluded);
    int32_t *errors = room(count * sizeof *errors), broken = 0;
    for (size_t i = 0; i < pixels; i++) total[i] = low[i] = high[i] = outside[i] = before[i] = (uint32_t)i;
    native_project(path, binning, chunks, lengths, count,
                   &(struct native_projection){total, low, high, outside, before, largest},
                   &(struct native_totals){counts, excluded, highest, errors});
    for (size_t i = 0; i < count; i++) broken |= errors[i];
    for (size_t i = 0; broken && i < pixels; i++)
        if (total[i] != i || low[i] != i || high[i] != i || outside[i] != i || before[i] != i) abort();
    so_far = digest(so_far, errors, count * sizeof *errors);
    so_far = digest(digest(digest(digest(so_far, total, wide), low, wide), high, wide), outside, narrow);
    if (!broken) {
        so_far = digest(digest(so_far, largest, narrow), highest, count * sizeof *highest);
        so_far = digest(digest(so_far, counts, count * sizeof *counts), excluded, count * sizeof *excluded);
    }
    free(total), free(low), free(high), free(outside), free(before), free(largest), free(highest);
    free(counts), free(excluded), free(errors);
    return so_far;
}

static void take_sums(int path, enum kind kind, const struct seed *seed, const uint8_t *chunk, size_t length,
                      struct outcome *outcome)
{
    const size_t pixels = seed->size / seed->element_size, bins = 11, count = pixels % 2 ? 1 : FRAMES;
    const size_t values = bins * (kind == SQUARED ? 2 : 1);
    struct native_binning binning = {.pixels = pixels, .bins = bins, .element_size = seed->element_size,
                                     .low = -3, .high = 120, .is_signed = (int32_t)(seed->length % 2)};
    assign(&binning, kind);
    const uint8_t *const chunks[FRAMES] = {seed->chunk, chunk, seed->chunk, seed->chunk, chunk};
    const size_t lengths[FRAMES] = {seed->length, length, seed->length, seed->length, length};
    int64_t *sums = room(count * values * sizeof *sums), *excluded = room(count * sizeof *excluded);
    int32_t *which = room(count * ROOM * sizeof *which), *errors = room(count * sizeof *errors);
    native_sum(path, &binning, chunks, lengths, count,
               &(struct native_results){sums, excluded, which, ROOM, errors});
    for (size_t i = 0; i < count; i++) {
        outcome->errors[i] = errors[i];
        if (errors[i]) continue;
        outcome->digest = digest(outcome->digest, sums + i * values, values * sizeof *sums);
        outcome->digest = digest(outcome->digest, excluded + i, sizeof *excluded);
        outcome->digest = digest(outcome->digest, which + i * ROOM,
                                 sizeof *which * (size_t)(excluded[i] < ROOM ? excluded[i] : ROOM));
    }
    binning.low = 0;
    binning.high = seed->element_size == 4 ? 1 << 20 : 120;
    if (kind == WHOLE) outcome->digest = project(path, &binning, chunks, lengths, count, outcome->digest);
    release(&binning);
    free(sums), free(excluded), free(which), free(errors);
}

static struct outcome take(int path, enum kind kind, const struct seed *seed, const uint8_t *chunk, size_t length)
{
    struct outcome outcome = {.digest = 14695981039346656037u};
    uint8_t *frame = room(seed->size);
    outcome.error = native_decode(path, chunk, length, seed->element_size, frame, seed->size);
    if (!outcome.error) outcome.digest = digest(outcome.digest, frame, seed->size);
    free(frame);
    if (seed->element_size > 4) return outcome;
    take_sums(path, kind, seed, chunk, length, &outcome);
    return outcome;
}

static int same(const struct outcome *a, const struct outcome *b)
{
    return a->error == b->error && a->digest == b->digest && memcmp(a->errors, b->errors, sizeof a->errors) == 0;
}

int main(int count, char **arguments)
{
    static struct seed seeds[SEEDS];
    size_t known = 0;
    if (count != 4) return 2;
    FILE *file = fopen(arguments[1], "rb");
    if (!file) return 2;
    while (known < SEEDS && fread(&seeds[known], sizeof(uint64_t), 3, file) == 3) {
        struct seed *seed = &seeds[known++];
        seed->chunk = room(seed->length);
        if (fread(seed->chunk, 1, seed->length, file) != seed->length) return 2;
    }
    fclose(file);
    state = strtoull(arguments[3], NULL, 10) * 2654435761u + 1;

    const long rounds = strtol(arguments[2], NULL, 10);
    long refused = 0, accepted = 0;
    for (long round = 0; round < rounds; round++) {
        const struct seed *seed = &seeds[any(known)];
        size_t length;
        uint8_t *chunk = mutated(seed, &length);
        const enum kind kind = (enum kind)any(KINDS);
        const struct outcome first = take(NATIVE_PORTABLE, kind, seed, chunk, length);
        for (int path = NATIVE_PORTABLE + 1; path < NATIVE_PATHS; path++) {
            if (!native_has(path)) continue;
            const struct outcome other = take(path, kind, seed, chunk, length);
            if (!same(&first, &other)) {
                printf("path %d: round %ld: error %d, not %d, or other results\n", path, round, other.error, first.error);
                return 1;
            }
        }
        *(first.error ? &refused : &accepted) += 1;
        free(chunk);
    }
    for (size_t i = 0; i < known; i++) free(seeds[i].chunk);
    printf("%ld refused, %ld accepted\n", refused, accepted);
    return 0;
}
