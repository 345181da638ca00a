// The parts of a loaded tokenizer, shared by load.c, which reads it, and tokenizer.c, which runs it.
//
// The two families differ in their units. Byte-level: a unit is a byte, and tokenizer.json spells it with a printable
// stand-in ("Ġ" for a space). Byte-fallback: a unit is a character, and one without a token is spelled in byte tokens
// ("<0xE2>"). From the units on, everything is the same.
#ifndef DATA_TOKENIZER_INTERNAL_H
#define DATA_TOKENIZER_INTERNAL_H

#include <pthread.h>

#include "added_tokens.h"
#include "bpe.h"
#include "pretokenizer.h"
#include "string_table.h"
#include "tokenizer.h"

// "Replace every `from`"; with an empty `from`: "prepend `to` to text that is not empty".
typedef struct {
    char* from;
    char* to;
} Rewrite;
enum { kMaxRewrites = 8 };
typedef struct {
    Rewrite steps[kMaxRewrites];
    int count;
} Rewrites;

// The steps from tokens to text. All but strip_first are taken once, when `texts` is filled.
typedef struct {
    Rewrites replace;
    bool byte_level, byte_fallback, fuse;
    char* strip_first;   // the character that the text as a whole loses at its beginning, or NULL
} Decoder;

typedef enum { PREFIX_NONE, PREFIX_FIRST, PREFIX_ALWAYS } PrefixScheme;   // FIRST: only where the text itself begins

// One thread's working memory, the cache of pieces included.
typedef struct Worker Worker;

struct Tokenizer {
    // The vocabulary.
    StringTable contents;      // as tokenizer.json spells the tokens; all are findable
    StringTable texts;         // the text of each token; byte-level tokens can be found in it by the bytes that they stand for
    unsigned char* special;    // (size)
    AddedTokens raw_added;         // looked for in the text as it is
    AddedTokens normalized_added;  // looked for in the normalized text

    // From text to pieces.
    Rewrites normalizer;
    Rewrites spaces;           // the pre-tokenizer's own rewriting (Metaspace)
    PrefixScheme prefix_scheme;
    char* prefix;              // put in front of text that does not begin with this prefix
    PreTokenizer pre;

    // From pieces to ids.
    bool byte_level;
    bool ignore_merges;        // a piece that is a token as a whole becomes that token, whatever the merges give
    bool fuse_unknown;         // neighbouring unknown characters become one unknown token
    int unknown;               // -1: unknown characters leave no token
    int unit[256];             // byte-level: the token of each byte; else of each ASCII character; -1 if there is none
    int fallback[256];         // byte tokens, -1 if there is none
    bool cut_at_words;         // no merge joins a token with a following "▁": text may be cut before "▁", and is, for speed
    MergeTable merges;
    TokenList template_before, template_after;

    Decoder decoder;

    // Threads.
    pthread_mutex_t lock;      // of the list
    Worker* idle_workers;
};

// U+2581, the space of SentencePiece vocabularies.
#define WORD_MARK "\xe2\x96\x81"
// Appends to `out` the text that results from all steps.
// Without `prepend`, the steps that prepend are left out. With `marks` (bytes), one for each byte of the text, *out_marks receives the
// marks of the result: a replacement has the mark of the text that it replaces, a prepended text that of the first byte.
C_API void rewrite(const Rewrites* rewrites, bool prepend, const char* text, const unsigned char* marks, size_t bytes, Text* out,
                   Text* out_marks);
C_API void rewrites_free(Rewrites* rewrites);

#endif
