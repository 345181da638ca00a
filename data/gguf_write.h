// Writing a Llama model as the GGUF file that llama.cpp loads: weights in one stored type, norms in F32, q and k rows in
// llama.cpp's order, Llama 3's RoPE scaling as rope_freqs.weight, and a byte-level tokenizer with its chat template.
//
// Refused, since llama.cpp has no name for it or the file would mean another tokenizer: a pre-tokenizer that is not one of
// gguf_pretokenizers, and a SentencePiece (byte-fallback) vocabulary.
#ifndef DATA_GGUF_WRITE_H
#define DATA_GGUF_WRITE_H

#include "gguf_model.h"
#include "hf_read.h"
#include "hf_write.h"

typedef struct {
    const char* path;               // replaced
    GgmlType type;                  // of the matrices: GGML_BF16, GGML_F16 or GGML_Q8_0
    const char* name;               // general.name
    const char* tokenizer_json;     // the text
    const char* chat_template;      // NULL: none
    const char* where;              // names the tokenizer's file in messages
} GgufOutput;

// `rows` delivers rows of a parameter in F32.
C_API void gguf_write(const GgufOutput* output, const Config* config, HfRows rows, void* context);

// `count` floats, a multiple of the block's, as stored bytes: rounded to nearest even (BF16, F16), or for Q8_0 by the largest
// magnitude of each 32, halves away from zero, as llama.cpp rounds.
C_API void ggml_quantize(GgmlType type, const float* src, size_t count, unsigned char* dst);

#endif
