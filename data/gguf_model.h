// A Llama model in a GGUF file, seen as the Hugging Face directory that it was converted from: the configuration, the rows of
// each parameter, and the texts of config.json, tokenizer.json and their companions.
//
// llama.cpp stores the rows of q_proj and k_proj so that the two halves of a rotated pair are neighbours; they are read in
// Hugging Face's order (head by head, first the rows of all first halves). Llama 3's RoPE scaling is a tensor in GGUF
// (rope_freqs.weight: the divisor of each frequency) and four numbers in Config, which are computed from the tensor and
// checked against every factor. A file that cannot be represented as such a model (biases, experts, another scaling, an
// unknown key of "llama.") is a user_error that names the obstacle.
#ifndef DATA_GGUF_MODEL_H
#define DATA_GGUF_MODEL_H

#include "../halo/llama3.h"
#include "gguf.h"

typedef struct GgufModel GgufModel;

C_API GgufModel* gguf_model_open(const char* path, Config* config);
C_API void gguf_model_close(GgufModel* m);

// BF16 if BF16 holds every stored value exactly, else F32. Quantized weights are products of floats, so F32.
C_API Fmt gguf_model_fmt(const GgufModel* m);

// As hf_model_rows: rows [first_row, first_row + rows) of parameter `spec` of `layer` in F32 or BF16 (rounded to nearest even).
C_API void gguf_model_rows(const GgufModel* m, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst);

C_API const Gguf* gguf_model_file(const GgufModel* m);
C_API const Config* gguf_model_config(const GgufModel* m);

// ---- the texts of a Hugging Face directory (gguf_texts.c); the caller frees them. `dtype` is what the weights will be stored in.
C_API char* gguf_config_json(const GgufModel* m, Fmt dtype);
C_API char* gguf_generation_config_json(const GgufModel* m);
C_API char* gguf_tokenizer_json(const GgufModel* m);
C_API char* gguf_tokenizer_config_json(const GgufModel* m);      // with the chat template, if the file has one
C_API char* gguf_special_tokens_map_json(const GgufModel* m);

// ---- shared by reading and writing GGUF

// The GGUF name of a parameter: "blk.3.attn_q.weight".
C_API void gguf_param_name(const ParamSpec* spec, int layer, char* name, size_t bytes);
// Rows of each head if the parameter's rows are stored in llama.cpp's order, else 0.
C_API int gguf_permuted_head(const Config* config, const ParamSpec* spec);
// The factor by which llama.cpp divides frequency i of HD/2, for Llama 3's scaling.
C_API float gguf_rope_factor(const Config* config, int i);
// The merges of a SentencePiece vocabulary of `count` pieces in the order in which Hugging Face's converter puts them: every
// way to cut a piece with `mergeable` set into two such pieces, best score first. Pairs of ids; returns how many pairs.
typedef struct {
    int left, right;
} GgufMerge;
C_API int gguf_merges_of_scores(char** pieces, const float* scores, const bool* mergeable, int count, GgufMerge** merges);

// Pre-tokenizers that both sides have a name for. `form` is the JSON text of Hugging Face's pre_tokenizer.
typedef struct {
    const char* name;        // tokenizer.ggml.pre
    const char* form;
    bool ignore_merges;      // a word that is a token needs no merges
    bool adds_bos;           // llama.cpp's default of add_bos_token
} GgufPretokenizer;
C_API const GgufPretokenizer* gguf_pretokenizers(int* count);

#endif
