// The pre-tokenizer: cuts text into the pieces that byte-pair merging never crosses (words with their space, numbers,
// punctuation). Every pre-tokenizer of a tokenizer.json becomes a chain of regular expressions; each cuts the pieces of the
// one before it.
#ifndef DATA_PRETOKENIZER_H
#define DATA_PRETOKENIZER_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "../../halo/base.h"

typedef enum { KEEP_ALL, KEEP_MATCHES, KEEP_GAPS } Keep;   // which parts of a text become pieces: all, the matches, the gaps between

enum { kMaxSplits = 8 };
typedef struct {
    struct {
        pcre2_code* regex;
        Keep keep;
    } splits[kMaxSplits];
    int count;
} PreTokenizer;

// Appends a split. `pattern` is a regular expression in the syntax of Hugging Face's tokenizers, where \s is Unicode's
// White_Space, or with `literal` the characters to look for. Returns NULL, or what is wrong with the pattern.
C_API const char* pretokenizer_add(PreTokenizer* pre, const char* pattern, size_t bytes, bool literal, Keep keep);
C_API void pretokenizer_free(PreTokenizer* pre);

// Working memory of one thread.
typedef struct {
    pcre2_match_data* match;
    pcre2_match_context* context;
    pcre2_jit_stack* stack;
} SplitScratch;
C_API void split_scratch_init(SplitScratch* scratch);
C_API void split_scratch_free(SplitScratch* scratch);

typedef void (*PieceFn)(void* receiver, const char* piece, size_t bytes);
// Calls fn for each piece of the text, from left to right. Invalid UTF-8 is never lost: each run of bytes that is no UTF-8
// is a piece of its own. A regular expression that runs out of its limits on this text is a user_error.
C_API void pretokenize(const PreTokenizer* pre, SplitScratch* scratch, const char* text, size_t bytes, PieceFn fn,
                       void* receiver);

#endif
