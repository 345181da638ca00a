// Lengths packed into rows of a fixed size, and the row counts that a run of micro-batches is laid out on. Plain arithmetic on the lengths
// of items (here: examples), without the items themselves.
#ifndef DATA_PACKING_H
#define DATA_PACKING_H

#include "../halo/base.h"

// row_of[i] = the row of item i, whose length is positions[i], 0 to seq; returns the number of rows.
// First fit: items in the order given, each into the first of the newest `open` rows that has room.
C_API int pack_first_fit(const int* positions, int count, int seq, int open, int* row_of);
// First fit decreasing: the longest items first, equal ones in the order given, each into the first of all rows that has room. Takes at most
// 11/9 of the fewest rows possible plus 6/9 of a row (Dosa 2007).
C_API int pack_decreasing(const int* positions, int count, int seq, int* row_of);

// Two row counts, first <= second <= most, for micro-batches of which counts[r] have r rows (r from 1 to most): each is laid out on the
// smallest of first, second and `most` that holds it, and the sum over all micro-batches is the least possible. Micro-batches without rows
// don't count: a rank that has one only waits for ranks that have rows.
typedef struct {
    int first, second;
} RowCounts;
C_API RowCounts choose_row_counts(const int64_t* counts, int most);

#endif
