// Added tokens: contents that are looked for in the text itself, before anything else cuts it ("<|eot_id|>").
#ifndef DATA_ADDED_TOKENS_H
#define DATA_ADDED_TOKENS_H

#include "../../halo/base.h"

typedef struct {
    char* content;
    int bytes;             // at least 1
    int id;
    bool special;
    bool lstrip, rstrip;   // the token takes the white space on that side with it
} AddedToken;

// Sorted for the search by first byte, and within one by falling length.
typedef struct {
    AddedToken* tokens;
    int count;
    int first[257];        // tokens[first[b] .. first[b + 1]) begin with the byte b
} AddedTokens;

// Takes a copy of the content. All tokens are added before added_tokens_sort, and that comes before the first search.
C_API void added_tokens_add(AddedTokens* list, const char* content, size_t bytes, AddedToken properties);
C_API void added_tokens_sort(AddedTokens* list);
C_API void added_tokens_free(AddedTokens* list);

typedef struct {
    size_t begin, end;
    int id;
} AddedMatch;
// What is searched: text[0..bytes), and who wrote its bytes.
typedef struct {
    const char* text;
    size_t bytes;
    const unsigned char* data;   // (bytes) 1: special tokens are not recognised over this byte. NULL: nowhere if `plain`, else everywhere
    bool plain;
    int kept;                    // special tokens found over such bytes and left as text; the search counts them
} AddedSearch;
// The leftmost, then longest token in text[from..bytes), with the white space that it takes; false if there is none.
C_API bool added_tokens_next(const AddedTokens* list, AddedSearch* search, size_t from, AddedMatch* match);

#endif
