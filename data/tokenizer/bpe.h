// Byte-pair merging (Sennrich et al., 2016): of all neighbouring pairs that have a merge, the one of the lowest rank is
// joined first, the leftmost of equal ones, until no pair has a merge.
#ifndef DATA_BPE_H
#define DATA_BPE_H

#include "token_list.h"

typedef struct {
    uint64_t pair;   // left id << 32 | right id
    int rank;        // -1 where the slot is free
    int merged;      // the id of the joined token
} Merge;

// All merges of a model: open addressing, at most half full.
typedef struct {
    Merge* slots;    // (mask + 1)
    uint64_t mask;
} MergeTable;

C_API void merges_init(MergeTable* table, size_t capacity);
C_API void merges_free(MergeTable* table);
// A pair that is added twice keeps its last rank, as in Hugging Face.
C_API void merges_add(MergeTable* table, int left, int right, int rank, int merged);

// A token during the merging: a node of a doubly linked list that is stored in text order.
typedef struct {
    int id;          // -1 once it has been joined to its left neighbour
    int prev, next;  // -1 at the ends
    int rank;        // of the merge with `next`, -1 if there is none
    int merged;      // the id that this merge gives
} Symbol;

// Working memory of one thread; starts as {0}.
typedef struct {
    Symbol* symbols;
    int count, capacity;
    uint64_t* heap;   // min-heap of rank << 32 | position of the left symbol
    int heap_count, heap_capacity;
} Merger;

// Appends a token to the symbols to be merged.
C_API void merger_push(Merger* merger, int id);
// Merges the pushed symbols, appends what is left to `out` and empties the merger. O(n log n) for n symbols.
C_API void merger_run(Merger* merger, const MergeTable* table, TokenList* out);
C_API void merger_free(Merger* merger);

#endif
