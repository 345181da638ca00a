// Rows of a dataset laid out as the arrays that the model reads: see batch.h.
#include "batch.h"

#include "../halo/rng.h"

// The arrays in the order of their place in `storage`.
typedef struct {
    int *tokens, *targets, *pos, *start, *end, *order, *scratch;   // (B, T) each
} Arrays;
enum { kArrayCount = sizeof(Arrays) / sizeof(int*) };

static Arrays arrays_of(const RowBatch* b) {
    size_t n = (size_t)b->B * b->T;
    int* p = b->storage;
    Arrays a = {p, p + n, p + 2 * n, p + 3 * n, p + 4 * n, p + 5 * n, p + 6 * n};
    return a;
}

RowBatch batch_new(int B, int T) {
    check(B > 0 && T > 0, "batch_new: %d rows of %d", B, T);
    RowBatch b;
    memset(&b, 0, sizeof b);
    b.B = B;
    b.T = T;
    b.storage = (int*)host_alloc((size_t)kArrayCount * B * T * sizeof(int));
    Arrays a = arrays_of(&b);
    Batch view = {a.tokens, a.targets, a.pos, a.start, a.end, a.order, B};
    b.arrays = view;
    return b;
}

void batch_free(RowBatch* b) {
    free(b->storage);
    memset(b, 0, sizeof *b);
}

// Sorts the positions by token id, equal ids by position: counting sort by one byte of the id at a time, lowest first, each
// pass keeping the order of the pass before.
static void sort_by_token(const int* tokens, int n, int* order, int* scratch) {
    int largest = 0;
    for (int i = 0; i < n; i++) {
        largest = max_int(largest, tokens[i]);
        order[i] = i;
    }
    for (int shift = 0; shift < 31 && largest >> shift; shift += 8) {
        int place[257] = {0};
        for (int i = 0; i < n; i++) place[(tokens[i] >> shift & 255) + 1]++;
        for (int byte = 0; byte < 256; byte++) place[byte + 1] += place[byte];
        for (int i = 0; i < n; i++) scratch[place[tokens[order[i]] >> shift & 255]++] = order[i];
        memcpy(order, scratch, (size_t)n * sizeof(int));
    }
}

void batch_fill(RowBatch* b, const Dataset* d, MicroBatch m) {
    check(m.room >= 1 && m.room <= b->B && m.rows <= m.room, "batch_fill: %d rows on %d of %d", m.rows, m.room, b->B);
    Arrays a = arrays_of(b);
    b->scored = b->used = 0;
    b->arrays.B = m.room;
    for (int row = 0; row < m.room; row++) {
        const int* examples;
        int count = row < m.rows ? dataset_row(d, m.first + row, &examples) : 0;
        int base = row * b->T, at = 0;
        for (int k = 0; k < count; k++) {
            const Example* e = dataset_example(d, examples[k]);
            int positions = e->count - 1;
            check(at + positions <= b->T, "batch_fill: row %d holds more than %d positions", m.first + row, b->T);
            for (int i = 0; i < positions; i++) {
                int cell = base + at + i;
                a.tokens[cell] = e->tokens[i];
                a.targets[cell] = e->scored[i + 1] ? e->tokens[i + 1] : -100;
                a.pos[cell] = i;
                a.start[cell] = at;
                a.end[cell] = at + positions;
            }
            at += positions;
            b->scored += e->scored_count;
        }
        b->used += at;
        for (; at < b->T; at++) {
            int cell = base + at;
            a.tokens[cell] = a.pos[cell] = 0;
            a.targets[cell] = -100;
            a.start[cell] = at;
            a.end[cell] = at + 1;
        }
    }
    sort_by_token(a.tokens, m.room * b->T, a.order, a.scratch);
}

void batch_fill_rows(RowBatch* b, const Dataset* d, int first) {
    MicroBatch all = {first, b->B, b->B};
    batch_fill(b, d, all);
}

void batch_random(RowBatch* b, int V, uint64_t seed) {
    Arrays a = arrays_of(b);
    int n = b->B * b->T;
    b->arrays.B = b->B;
    for (int i = 0; i < n; i++) {
        a.tokens[i] = (int)(random_words(seed, (uint64_t)i, 0).word[0] % (uint32_t)V);
        a.pos[i] = i % b->T;
        a.start[i] = 0;
        a.end[i] = b->T;
    }
    for (int i = 0; i < n; i++) a.targets[i] = a.pos[i] + 1 < b->T ? a.tokens[i + 1] : -100;
    b->scored = b->B * (b->T - 1);
    b->used = n;
    sort_by_token(a.tokens, n, a.order, a.scratch);
}
