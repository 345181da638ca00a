// Byte strings by id, and ids by byte string: a tokenizer's vocabulary in both directions.
//
// Layout: all strings lie one after the other in one pool; an open-addressing table of ids finds them again. A string can be
// stored without being findable, for example if an equal string has another id.
#ifndef DATA_STRING_TABLE_H
#define DATA_STRING_TABLE_H

#include "../../halo/base.h"

typedef struct {
    char* pool;
    size_t pool_bytes, pool_capacity;
    size_t* at;        // (size) the string's first byte in the pool
    int* bytes;        // (size) its length, -1 where the id has no string
    int size;
    int* slots;        // (slot_mask + 1) ids, -1 where free
    uint32_t slot_mask;
} StringTable;

// Makes a zeroed table one for ids 0 .. size-1.
C_API void strings_init(StringTable* table, int size);
C_API void strings_free(StringTable* table);
// Gives `id` its string, once.
C_API void strings_set(StringTable* table, int id, const char* s, size_t bytes);
// Makes the string of `id` findable. Returns the id that the string is found as: another one if an equal string was findable before.
C_API int strings_index(StringTable* table, int id);
// The id of a findable string, or -1.
C_API int strings_find(const StringTable* table, const char* s, size_t bytes);

static inline bool strings_has(const StringTable* table, int id) {
    return id >= 0 && id < table->size && table->bytes[id] >= 0;
}
static inline const char* strings_get(const StringTable* table, int id, size_t* bytes) {
    *bytes = (size_t)table->bytes[id];
    return table->pool + table->at[id];
}

#endif
