// Lengths packed into rows of a fixed size, and the row counts that a run of micro-batches is laid out on. Plain arithmetic on lengths: what
// the items are is the caller's business.
#ifndef DATA_PACKING_H
#define DATA_PACKING_H

#include "../halo/base.h"

// row_of[i] = the row of item i, whose length is positions[i], 0 to seq; returns the number of rows.
// In the order given; each item goes into the first of the newest `open` rows that has room.
C_API int pack_first_fit(const int* positions, int count, int seq, int open, int* row_of);
// The longest first, equal ones in the order given; each goes into the first row of all that has room. It takes at most 11/9 of the fewest
// rows possible, and 6/9 of a row (Dosa 2007).
C_API int pack_decreasing(const int* positions, int count, int seq, int* row_of);

// Two row counts, first <= second <= most, for micro-batches of which counts[r] have r rows (r from 1 to most): each is laid out on the
// smallest of first, second and `most` that holds it, and the two make the sum of these as small as it gets. Those without rows don't
// count: who has one only waits for others that have rows.
typedef struct {
    int first, second;
} RowCounts;
C_API RowCounts choose_row_counts(const int64_t* counts, int most);

#endif
