// Search for added tokens. Few bytes of a text begin an added token, so that looking at the first byte alone rules out nearly every position.
#include "added_tokens.h"

#include "../utf8.h"

void added_tokens_add(AddedTokens* list, const char* content, size_t bytes, AddedToken properties) {
    list->tokens = (AddedToken*)host_grow(list->tokens, (size_t)(list->count + 1) * sizeof(AddedToken));
    properties.content = (char*)host_alloc(bytes);
    memcpy(properties.content, content, bytes);
    properties.bytes = (int)bytes;
    list->tokens[list->count++] = properties;
}

static int compare_tokens(const void* pa, const void* pb) {
    const AddedToken* a = (const AddedToken*)pa;
    const AddedToken* b = (const AddedToken*)pb;
    int first_a = (unsigned char)a->content[0], first_b = (unsigned char)b->content[0];
    return first_a != first_b ? first_a - first_b : b->bytes - a->bytes;
}

void added_tokens_sort(AddedTokens* list) {
    if (list->count) qsort(list->tokens, (size_t)list->count, sizeof(AddedToken), compare_tokens);
    int at = 0;
    for (int byte = 0; byte < 256; byte++) {
        list->first[byte] = at;
        while (at < list->count && (unsigned char)list->tokens[at].content[0] == byte) at++;
    }
    list->first[256] = at;
}

void added_tokens_free(AddedTokens* list) {
    for (int i = 0; i < list->count; i++) free(list->tokens[i].content);
    free(list->tokens);
}

// The end of the white space that begins at text[at].
static size_t skip_spaces(const char* text, size_t bytes, size_t at) {
    for (;;) {
        int length = utf8_char_bytes(text + at, bytes - at);
        if (length <= 0 || !utf8_is_space(utf8_code_point(text + at, length))) return at;
        at += (size_t)length;
    }
}

// The beginning of the white space that ends at text[at], not before `from`.
static size_t skip_spaces_back(const char* text, size_t from, size_t at) {
    while (at > from) {
        size_t begin = at - 1;
        while (begin > from && at - begin < 4 && ((unsigned char)text[begin] & 0xc0) == 0x80) begin--;
        if (utf8_char_bytes(text + begin, at - begin) != (int)(at - begin)) break;
        if (!utf8_is_space(utf8_code_point(text + begin, (int)(at - begin)))) break;
        at = begin;
    }
    return at;
}

static bool holds_data(const AddedSearch* search, size_t at, int bytes) {
    if (!search->data) return search->plain;
    return memchr(search->data + at, 1, (size_t)bytes) != NULL;
}

bool added_tokens_next(const AddedTokens* list, AddedSearch* search, size_t from, AddedMatch* match) {
    if (list->count == 0) return false;
    const char* text = search->text;
    size_t bytes = search->bytes, kept_end = 0;
    for (size_t at = from; at < bytes; at++) {
        int byte = (unsigned char)text[at];
        for (int i = list->first[byte]; i < list->first[byte + 1]; i++) {
            const AddedToken* token = &list->tokens[i];
            if ((size_t)token->bytes > bytes - at || memcmp(text + at, token->content, (size_t)token->bytes)) continue;
            size_t end = at + (size_t)token->bytes;
            if (token->special && holds_data(search, at, token->bytes)) {
                search->kept += at >= kept_end;
                kept_end = end;
                continue;
            }
            match->begin = token->lstrip ? skip_spaces_back(text, from, at) : at;
            match->end = token->rstrip ? skip_spaces(text, bytes, end) : end;
            match->id = token->id;
            return true;
        }
    }
    return false;
}
