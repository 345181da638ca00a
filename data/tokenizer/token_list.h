// A growing list of token ids.
#ifndef DATA_TOKEN_LIST_H
#define DATA_TOKEN_LIST_H

#include "../../halo/base.h"

// Starts as {0}.
typedef struct {
    int* ids;
    int count, capacity;
} TokenList;

static inline void token_list_push(TokenList* list, int id) {
    if (list->count == list->capacity) {
        check(list->capacity < INT32_MAX / 2, "more than 2^30 tokens in one list");
        list->capacity = max_int(64, 2 * list->capacity);
        list->ids = (int*)host_grow(list->ids, (size_t)list->capacity * sizeof(int));
    }
    list->ids[list->count++] = id;
}

static inline void token_list_free(TokenList* list) {
    free(list->ids);
    memset(list, 0, sizeof *list);
}

#endif
