// Added tokens ("<|eot_id|>"): their contents are looked for in the text itself, before the text is cut in any other way.
#ifndef DATA_ADDED_TOKENS_H
#define DATA_ADDED_TOKENS_H

#include "../../halo/base.h"

typedef struct {
    char* content;
    int bytes;             // at least 1
    int id;
    bool special;
    bool lstrip, rstrip;   // the token also takes the white space on its left, on its right
} AddedToken;

// Sorted for the search by first byte; tokens with the same first byte by falling length.
typedef struct {
    AddedToken* tokens;
    int count;
    int first[257];        // tokens[first[b] .. first[b + 1]) begin with the byte b
} AddedTokens;

// Takes a copy of the content. Add all tokens, then call added_tokens_sort, then search.
C_API void added_tokens_add(AddedTokens* list, const char* content, size_t bytes, AddedToken properties);
C_API void added_tokens_sort(AddedTokens* list);
C_API void added_tokens_free(AddedTokens* list);

typedef struct {
    size_t begin, end;
    int id;
} AddedMatch;
// The text to be searched, text[0..bytes), and who wrote each of its bytes.
typedef struct {
    const char* text;
    size_t bytes;
    const unsigned char* data;   // (bytes) 1: the user's byte; a special token that holds one is not recognised. NULL: see `plain`
    bool plain;                  // with data NULL: recognise no special tokens, else all
    int kept;                    // counts special tokens that were left as text because of such bytes
} AddedSearch;
// The leftmost, then longest token in text[from..bytes), with the white space that it takes; false if there is none.
C_API bool added_tokens_next(const AddedTokens* list, AddedSearch* search, size_t from, AddedMatch* match);

#endif
