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
// The leftmost, then longest token in text[from..bytes), with the white space that it takes; false if there is none.
// Special tokens count only with `parse_special`.
C_API bool added_tokens_next(const AddedTokens* list, const char* text, size_t bytes, size_t from, bool parse_special,
                             AddedMatch* match);

#endif
