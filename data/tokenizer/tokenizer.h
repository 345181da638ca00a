// Hugging Face tokenizer.json: byte-pair encoding in its two families, byte-level (Llama 3, GPT-2, SmolLM) and
// byte-fallback (Llama 2, TinyLlama). Encode, decode, special tokens; nothing is ever trained here.
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include "../text.h"
#include "token_list.h"

typedef struct Tokenizer Tokenizer;

// Reads DIR/tokenizer.json. A construct that this program does not know is a user_error that names it.
C_API Tokenizer* tokenizer_load(const char* dir);
// As tokenizer_load, from the text of a tokenizer.json; `where` begins the messages.
C_API Tokenizer* tokenizer_parse(const char* text, size_t bytes, const char* where);
C_API void tokenizer_free(Tokenizer* t);

// Number of ids, added tokens included: the largest id + 1.
C_API int tokenizer_size(const Tokenizer* t);
// Id of a token by its content ("<|eot_id|>"), or -1.
C_API int tokenizer_id(const Tokenizer* t, const char* content);
C_API bool tokenizer_is_special(const Tokenizer* t, int id);

enum {
    kEncodePlain = 0,
    kEncodeTemplate = 1,   // add the tokens that the post-processor puts around a single text (usually BOS)
    kEncodeSpecial = 2,    // recognise special tokens in the text; without it "<|eot_id|>" in user text is just text
    kEncodeContinue = 4,   // the text continues an earlier one: no prefix (the Llama-2 family's space) is put before it
};
// Appends the ids of `bytes` bytes of UTF-8 text (invalid bytes are encoded as they are where the model can). As in Hugging
// Face, a character that has no token leaves the unknown token, or nothing if the model has none. Safe to call from several
// threads with one Tokenizer; each keeps a cache of about 4 MiB for the next calls.
C_API void tokenizer_encode(const Tokenizer* t, const char* text, size_t bytes, int flags, TokenList* out);

// A text whose bytes are not all of one origin, such as a conversation that a chat template wrote.
typedef struct {
    const char* text;
    size_t bytes;
    const unsigned char* data;   // (bytes) 1: the user's byte; a special token that holds one is plain text. NULL: no byte is the user's
    const size_t* cuts;          // (cut_count) rising offsets that no token crosses: the text before a cut is encoded as if it ended
    int cut_count;               // there, the text after it as a continuation
} MarkedText;
// Appends the ids of a marked text as Hugging Face encodes it without adding special tokens: all of it is one text, in which marks of
// word starts are put once (or behind every added token, as the tokenizer's scheme says), wherever it is cut.
// cut_tokens[i] (NULL: not wanted) becomes the number of ids in `out` before cuts[i]. Returns how many spellings of special tokens were
// left as plain text because they held bytes of the user's.
C_API int tokenizer_encode_marked(const Tokenizer* t, const MarkedText* text, int* cut_tokens, TokenList* out);
// The first special token in text[from..bytes) that holds no byte of the user's (`data` as in MarkedText): its id, and where it lies with
// the white space that it takes; -1 if there is none.
C_API int tokenizer_next_special(const Tokenizer* t, const char* text, const unsigned char* data, size_t bytes, size_t from, size_t* begin,
                                 size_t* end);
// The last id (BOS) that the post-processor puts before a text; -1 if it puts none.
C_API int tokenizer_bos(const Tokenizer* t);
// A token's content ("<|eot_id|>"), NUL-terminated, for the caller to free; NULL if there is no such token.
C_API char* tokenizer_content(const Tokenizer* t, int id);

// Appends the text of `count` ids. Special tokens are left out if skip_special, ids without a token always. Bytes that are no
// UTF-8 come out as they are (Hugging Face would put U+FFFD).
C_API void tokenizer_decode(const Tokenizer* t, const int* ids, int count, bool skip_special, Text* out);

// Streaming decode: each call appends only complete UTF-8 characters; one that is cut between two tokens waits for its rest.
// Starts as {0}; all appended text together (after finish) equals tokenizer_decode of all ids.
typedef struct {
    char pending[8];
    int pending_bytes;
    bool started;          // the decoder's "strip the first space" applies once
} DecodeStream;
C_API void tokenizer_decode_next(const Tokenizer* t, DecodeStream* stream, int id, bool skip_special, Text* out);
C_API void tokenizer_decode_finish(DecodeStream* stream, Text* out);

#endif
