// Hugging Face tokenizer.json: byte-pair encoding in its two families, byte-level (Llama 3, GPT-2, SmolLM) and
// byte-fallback (Llama 2, TinyLlama). Encode, decode, special tokens; nothing is ever trained here.
#ifndef DATA_TOKENIZER_H
#define DATA_TOKENIZER_H

#include "../../halo/base.h"

typedef struct Tokenizer Tokenizer;

// A growing list of token ids; starts as {0}.
typedef struct {
    int* ids;
    int count, capacity;
} TokenList;
C_API void token_list_push(TokenList* list, int id);
C_API void token_list_free(TokenList* list);

// Reads DIR/tokenizer.json. A construct that this program does not know is a user_error that names it.
C_API Tokenizer* tokenizer_load(const char* dir);
// The same from the text of a tokenizer.json; `where` begins the messages.
C_API Tokenizer* tokenizer_parse(const char* text, size_t bytes, const char* where);
C_API void tokenizer_free(Tokenizer* t);

// Number of ids, added tokens included: the largest id + 1.
C_API int tokenizer_size(const Tokenizer* t);
// Id of a token by its content ("<|eot_id|>"), or -1.
C_API int tokenizer_id(const Tokenizer* t, const char* content);
C_API bool tokenizer_is_special(const Tokenizer* t, int id);

enum {
    kEncodePlain = 0,
    kEncodeTemplate = 1,   // add what the post-processor adds around one text (usually BOS)
    kEncodeSpecial = 2,    // recognise special tokens in the text; without it "<|eot_id|>" in user text is just text
    kEncodeContinue = 4,   // the text goes on from an earlier piece: nothing (the Llama-2 family's space) is put before it
};
// Appends the ids of `bytes` bytes of UTF-8 text (invalid bytes are encoded as they are where the model can). As in Hugging
// Face, a character that has no token leaves the unknown token, or nothing if the model has none. Safe to call from several
// threads with one Tokenizer; each keeps a cache of about 4 MiB for the next calls.
C_API void tokenizer_encode(const Tokenizer* t, const char* text, size_t bytes, int flags, TokenList* out);

// Appends the text of ids to a NUL-terminated, growing string (starts as {0}). Special tokens are left out if skip_special,
// ids without a token always. Bytes that are no UTF-8 come out as they are (Hugging Face would put U+FFFD).
typedef struct {
    char* data;
    size_t bytes, capacity;
} Text;
C_API void text_append(Text* text, const char* bytes, size_t count);
C_API void text_free(Text* text);
C_API void tokenizer_decode(const Tokenizer* t, const int* ids, int count, bool skip_special, Text* out);

// Streaming decode: each call appends only what is complete UTF-8 so far; a character cut between two tokens waits for the
// rest. Starts as {0}; the concatenation of all pieces (after finish) equals tokenizer_decode of all ids.
typedef struct {
    char pending[8];
    int pending_bytes;
    bool started;          // the decoder's "strip the first space" applies once
} DecodeStream;
C_API void tokenizer_decode_next(const Tokenizer* t, DecodeStream* stream, int id, bool skip_special, Text* out);
C_API void tokenizer_decode_finish(DecodeStream* stream, Text* out);

#endif
