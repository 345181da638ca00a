// Lengths packed into rows: see packing.h.
#include "packing.h"

int pack_first_fit(const int* positions, int count, int seq, int open, int* row_of) {
    int* room = (int*)host_alloc((size_t)open * sizeof(int));   // the room left in row r, at r % open
    int rows = 0;
    for (int i = 0; i < count; i++) {
        int row = max_int(rows - open, 0);
        while (row < rows && room[row % open] < positions[i]) row++;
        if (row == rows) room[rows++ % open] = seq;
        room[row % open] -= positions[i];
        row_of[i] = row;
    }
    free(room);
    return rows;
}

// ---- first fit decreasing

typedef struct {
    int positions, index;
} Item;

static int longer_first(const void* a, const void* b) {
    const Item *x = (const Item*)a, *y = (const Item*)b;
    if (x->positions != y->positions) return x->positions > y->positions ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

// Finds the first row with room for `positions`, and takes them from it. `room` is a tree: node k holds the larger value of its children 2k
// and 2k + 1; row r is leaf `leaves` + r.
static int take_first_row(int* room, int leaves, int positions) {
    int node = 1;
    while (node < leaves) node = 2 * node + (room[2 * node] < positions);
    room[node] -= positions;
    for (int above = node / 2; above >= 1; above /= 2) room[above] = max_int(room[2 * above], room[2 * above + 1]);
    return node - leaves;
}

int pack_decreasing(const int* positions, int count, int seq, int* row_of) {
    int leaves = 1, rows = 0;
    while (leaves < count) leaves *= 2;
    Item* items = (Item*)host_alloc((size_t)max_int(count, 1) * sizeof(Item));
    int* room = (int*)host_alloc(2 * (size_t)leaves * sizeof(int));
    for (int i = 0; i < 2 * leaves; i++) room[i] = seq;
    for (int i = 0; i < count; i++) {
        check(positions[i] <= seq, "pack_decreasing: %d positions in a row of %d", positions[i], seq);
        items[i].positions = positions[i];
        items[i].index = i;
    }
    qsort(items, (size_t)count, sizeof(Item), longer_first);
    for (int i = 0; i < count; i++) {
        int row = take_first_row(room, leaves, items[i].positions);
        row_of[items[i].index] = row;
        rows = max_int(rows, row + 1);
    }
    free(items);
    free(room);
    return rows;
}

// ---- row counts

// The row counts that occur: if more than kMostSizes do, an even selection of them, with the largest.
enum { kMostSizes = 256 };
static int sizes_that_occur(const int64_t* counts, int most, int sizes[kMostSizes + 1]) {
    int occurring = 0, seen = 0, n = 0, largest = 1;
    for (int r = 1; r <= most; r++) {
        if (!counts[r]) continue;
        occurring++;
        largest = r;
    }
    int step = max_int(ceil_div(occurring, kMostSizes), 1);
    for (int r = 1; r < largest; r++)
        if (counts[r] && seen++ % step == 0) sizes[n++] = r;
    sizes[n++] = largest;
    return n;
}

RowCounts choose_row_counts(const int64_t* counts, int most) {
    int sizes[kMostSizes + 1], n = sizes_that_occur(counts, most, sizes);
    int64_t held[kMostSizes + 1], total = 0;   // held[i]: micro-batches of at most sizes[i] rows
    for (int r = 1, i = 0; r <= most; r++) {
        total += counts[r];
        if (i < n && r == sizes[i]) held[i++] = total;
    }
    int64_t least = INT64_MAX;
    RowCounts best = {most, most};
    for (int i = 0; i < n; i++)
        for (int k = i; k < n; k++) {
            int64_t rows = held[i] * sizes[i] + (held[k] - held[i]) * sizes[k] + (total - held[k]) * most;
            if (rows >= least) continue;
            least = rows;
            best.first = sizes[i];
            best.second = sizes[k];
        }
    // One count is enough for these micro-batches: the second is for a step that happens to need more rows.
    if (best.first == best.second) best.second = min_int(most, best.first + max_int(best.first / 4, 1));
    return best;
}
