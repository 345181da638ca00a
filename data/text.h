// A growing, NUL-terminated string of any bytes.
#ifndef DATA_TEXT_H
#define DATA_TEXT_H

#include "../halo/base.h"

// Starts as {0}; `bytes` does not count the NUL.
typedef struct {
    char* data;
    size_t bytes, capacity;
} Text;

static inline void text_append(Text* text, const void* bytes, size_t count) {
    if (text->bytes + count + 1 > text->capacity) {
        text->capacity = 2 * (text->bytes + count) + 16;
        text->data = (char*)host_grow(text->data, text->capacity);
    }
    if (count) memcpy(text->data + text->bytes, bytes, count);
    text->bytes += count;
    text->data[text->bytes] = 0;
}

static inline void text_free(Text* text) {
    free(text->data);
    memset(text, 0, sizeof *text);
}

#endif
