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
#define BINS 11

struct seed {
    uint64_t element_size, size, length;
    uint8_t *chunk;
};

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

static uint64_t bin(int path, const struct native_binning *binning, const uint8_t *const *chunks, const size_t *lengths,
                    size_t count, uint64_t so_far, int32_t *all_errors)
{
    int64_t *sums = room(count * BINS * sizeof *sums), *excluded = room(count * sizeof *excluded);
    int32_t *which = room(count * ROOM * sizeof *which), *errors = room(count * sizeof *errors);
    native_bin(path, binning, chunks, lengths, count, &(struct native_results){sums, excluded, which, ROOM, errors});
    for (size_t i = 0; i < count; i++) {
        all_errors[i] = errors[i];
        if (errors[i]) continue;
        so_far = digest(so_far, sums + i * BINS, BINS * sizeof *sums);
        so_far = digest(so_far, excluded + i, sizeof *excluded);
        so_far = digest(so_far, which + i * ROOM, sizeof *which * (size_t)(excluded[i] < ROOM ? excluded[i] : ROOM));
    }
    free(sums), free(excluded), free(which), free(errors);
    return so_far;
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

static struct outcome take(int path, const struct seed *seed, const uint8_t *chunk, size_t length)
{
    struct outcome outcome = {.digest = 14695981039346656037u};
    uint8_t *frame = room(seed->size);
    outcome.error = native_decode(path, chunk, length, seed->element_size, frame, seed->size);
    if (!outcome.error) outcome.digest = digest(outcome.digest, frame, seed->size);
    free(frame);
    if (seed->element_size > 4) return outcome;

    const size_t pixels = seed->size / seed->element_size, count = pixels % 2 ? 1 : FRAMES;
    const uint8_t *const chunks[FRAMES] = {seed->chunk, chunk, seed->chunk, seed->chunk, chunk};
    const size_t lengths[FRAMES] = {seed->length, length, seed->length, seed->length, length};
    uint32_t *bin_of = room((pixels + NATIVE_PADDING) * sizeof *bin_of);
    uint8_t *valid = calloc(1, (pixels + 7) / 8 + NATIVE_PADDING);
    if (!valid) abort();
    for (size_t i = 0; i < pixels + NATIVE_PADDING; i++) bin_of[i] = i < pixels ? (uint32_t)(i * 7 % (BINS + 1)) : BINS;
    for (size_t i = 0; i < pixels; i++) valid[i / 8] |= (uint8_t)((bin_of[i] < BINS) << i % 8);
    struct native_binning binning = {
        .bin_of = bin_of, .valid = valid, .pixels = pixels, .bins = BINS, .element_size = seed->element_size,
        .low = -3, .high = 120, .is_signed = (int32_t)(seed->length % 2)};
    outcome.digest = bin(path, &binning, chunks, lengths, count, outcome.digest, outcome.errors);
    binning.low = 0;
    binning.high = seed->element_size == 4 ? 1 << 20 : 120;
    outcome.digest = project(path, &binning, chunks, lengths, count, outcome.digest);
    free(bin_of), free(valid);
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
        const struct outcome first = take(NATIVE_PORTABLE, seed, chunk, length);
        for (int path = NATIVE_PORTABLE + 1; path < NATIVE_PATHS; path++) {
            if (!native_has(path)) continue;
            const struct outcome other = take(path, seed, chunk, length);
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
