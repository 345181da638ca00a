// String table: one pool, one open-addressing table (see string_table.h). At most half of the slots are ever taken.
#include "string_table.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

void strings_init(StringTable* table, int size) {
    table->size = size;
    table->at = (size_t*)host_alloc((size_t)size * sizeof(size_t));
    table->bytes = (int*)host_alloc((size_t)size * sizeof(int));
    for (int id = 0; id < size; id++) table->bytes[id] = -1;
    uint32_t slots = 16;
    while (slots < 2u * (uint32_t)size) slots *= 2;
    table->slot_mask = slots - 1;
    table->slots = (int*)host_alloc(slots * sizeof(int));
    for (uint32_t i = 0; i < slots; i++) table->slots[i] = -1;
    table->pool_capacity = 16;   // the pool is there from the start: an empty string has an address too
    table->pool = (char*)host_alloc(table->pool_capacity);
}

void strings_free(StringTable* table) {
    free(table->pool);
    free(table->at);
    free(table->bytes);
    free(table->slots);
}

void strings_set(StringTable* table, int id, const char* s, size_t bytes) {
    check(id >= 0 && id < table->size && table->bytes[id] < 0, "strings_set: id %d of %d", id, table->size);
    check(bytes <= INT32_MAX, "strings_set: %zu bytes", bytes);
    if (table->pool_bytes + bytes > table->pool_capacity) {
        table->pool_capacity = 2 * (table->pool_bytes + bytes);
        table->pool = (char*)host_grow(table->pool, table->pool_capacity);
    }
    table->at[id] = table->pool_bytes;
    table->bytes[id] = (int)bytes;
    if (bytes) memcpy(table->pool + table->pool_bytes, s, bytes);
    table->pool_bytes += bytes;
}

// The slot that holds the string, or the free one where it would go.
static uint32_t slot_of(const StringTable* table, const char* s, size_t bytes) {
    uint32_t slot = (uint32_t)XXH3_64bits(s, bytes) & table->slot_mask;
    for (;; slot = (slot + 1) & table->slot_mask) {
        int id = table->slots[slot];
        if (id < 0) return slot;
        if ((size_t)table->bytes[id] == bytes && !memcmp(table->pool + table->at[id], s, bytes)) return slot;
    }
}

int strings_index(StringTable* table, int id) {
    size_t bytes;
    const char* s = strings_get(table, id, &bytes);
    uint32_t slot = slot_of(table, s, bytes);
    if (table->slots[slot] < 0) table->slots[slot] = id;
    return table->slots[slot];
}

int strings_find(const StringTable* table, const char* s, size_t bytes) {
    return table->slots[slot_of(table, s, bytes)];
}
