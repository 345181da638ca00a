// Byte-pair merging with a priority queue over a linked list: text without any spaces is one long piece, and searching all of
// the piece for the lowest rank before each merge would take quadratic time.
#include "bpe.h"

// ---- The table of merges

void merges_init(MergeTable* table, size_t capacity) {
    size_t slots = 16;
    while (slots < 2 * capacity) slots *= 2;
    table->mask = slots - 1;
    table->slots = (Merge*)host_alloc(slots * sizeof(Merge));
    for (size_t i = 0; i < slots; i++) table->slots[i].rank = -1;
}

void merges_free(MergeTable* table) { free(table->slots); }

// The slot that holds the pair, or the free one where it would go.
static Merge* merge_slot(const MergeTable* table, int left, int right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    uint64_t slot = (pair * 0x9e3779b97f4a7c15ull >> 32) & table->mask;   // Fibonacci hashing: the upper half is well mixed
    while (table->slots[slot].rank >= 0 && table->slots[slot].pair != pair) slot = (slot + 1) & table->mask;
    return &table->slots[slot];
}

void merges_add(MergeTable* table, int left, int right, int rank, int merged) {
    Merge* slot = merge_slot(table, left, right);
    slot->pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    slot->rank = rank;
    slot->merged = merged;
}

// ---- The queue

static void heap_push(Merger* merger, uint64_t key) {
    if (merger->heap_count == merger->heap_capacity) {
        merger->heap_capacity = max_int(64, 2 * merger->heap_capacity);
        merger->heap = (uint64_t*)host_grow(merger->heap, (size_t)merger->heap_capacity * sizeof(uint64_t));
    }
    uint64_t* heap = merger->heap;
    int at = merger->heap_count++;
    for (; at > 0 && heap[(at - 1) / 2] > key; at = (at - 1) / 2) heap[at] = heap[(at - 1) / 2];
    heap[at] = key;
}

static uint64_t heap_pop(Merger* merger) {
    uint64_t* heap = merger->heap;
    uint64_t top = heap[0], last = heap[--merger->heap_count];
    int count = merger->heap_count, at = 0;
    for (int child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= last) break;
        heap[at] = heap[child];
    }
    heap[at] = last;
    return top;
}

// ---- Merging

void merger_push(Merger* merger, int id) {
    if (merger->count == merger->capacity) {
        check(merger->capacity < INT32_MAX / 2, "more than 2^30 symbols in one piece of text");
        merger->capacity = max_int(64, 2 * merger->capacity);
        merger->symbols = (Symbol*)host_grow(merger->symbols, (size_t)merger->capacity * sizeof(Symbol));
    }
    merger->symbols[merger->count++].id = id;
}

// Looks up the merge of the symbol at `left` with its right neighbour and queues it.
static void queue_pair(Merger* merger, const MergeTable* table, int left) {
    Symbol* symbol = &merger->symbols[left];
    symbol->rank = -1;
    if (symbol->next < 0) return;
    const Merge* merge = merge_slot(table, symbol->id, merger->symbols[symbol->next].id);
    if (merge->rank < 0) return;
    symbol->rank = merge->rank;
    symbol->merged = merge->merged;
    heap_push(merger, (uint64_t)merge->rank << 32 | (uint32_t)left);
}

void merger_run(Merger* merger, const MergeTable* table, TokenList* out) {
    Symbol* symbols = merger->symbols;
    int count = merger->count;
    for (int i = 0; i < count; i++) {
        symbols[i].prev = i - 1;
        symbols[i].next = i + 1 < count ? i + 1 : -1;
    }
    for (int i = 0; i < count; i++) queue_pair(merger, table, i);
    while (merger->heap_count > 0) {
        uint64_t key = heap_pop(merger);
        int at = (int)(key & 0xffffffffu), rank = (int)(key >> 32);
        Symbol* left = &symbols[at];
        if (left->id < 0 || left->rank != rank) continue;   // another merge has taken one of this pair's symbols since it was queued
        Symbol* right = &symbols[left->next];
        left->id = left->merged;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].prev = at;
        queue_pair(merger, table, at);
        if (left->prev >= 0) queue_pair(merger, table, left->prev);
    }
    for (int i = 0; i < count; i++)
        if (symbols[i].id >= 0) token_list_push(out, symbols[i].id);
    merger->count = 0;
}

void merger_free(Merger* merger) {
    free(merger->symbols);
    free(merger->heap);
}
