// A model directory as Hugging Face lays it out: config.json, the weights in model.safetensors or in shards that
// model.safetensors.index.json lists, and the tokenizer's files.
//
// Reading is strict: each parameter of param_specs exactly once, in its shape, as F32, F16 or BF16, and nothing else, or it
// is a user_error that names file and tensor. The weights stay in the mapped files; the caller takes the rows it needs.
#ifndef DATA_HF_MODEL_H
#define DATA_HF_MODEL_H

#include "../halo/llama3.h"

typedef struct HfModel HfModel;

// Fills *config from DIR/config.json and opens the weights.
C_API HfModel* hf_model_open(const char* dir, Config* config);
C_API void hf_model_close(HfModel* model);

// BF16 if every tensor is stored as BF16, else F32: the smaller format that holds the stored values exactly.
C_API Fmt hf_model_fmt(const HfModel* model);

// Rows [first_row, first_row + rows) of parameter `spec` (an index into param_specs) of `layer` (0 unless it is per layer),
// (rows, cols) in F32 or BF16, into host memory.
C_API void hf_model_rows(const HfModel* model, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst);

// ---- writing
typedef struct {
    const char* dir;             // made if absent; NULL: call `rows` as rank 0 does, write nothing
    const char* config_dir;      // config.json and generation_config.json are copied from here; NULL: config.json is made
    const char* tokenizer_dir;   // the tokenizer's files are copied from here; NULL: none
    Fmt fmt;                     // of the stored weights: F32 or BF16
    size_t shard_bytes;          // more than this is split into shards of at most this (a larger tensor has one for itself)
} HfOutput;

static const size_t kDefaultShardBytes = 5000000000u;   // as transformers

// Delivers rows [first_row, first_row + rows) of a parameter in the output's format. The calls come in the same order and
// sizes wherever config, fmt and shard_bytes are the same, so that ranks can gather behind them: rank 0 with a dir, the
// others with dir NULL.
typedef void (*HfRows)(void* context, int spec, int layer, int first_row, int rows, void* dst);

// Writes the model in pieces of some megabytes. Everything is first written to a directory inside `dir` and then renamed,
// the file that makes a model of it last: a crash never leaves something that looks like a model and is none. The weights
// of a model that was there are replaced; no other file is touched.
C_API void hf_model_write(const HfOutput* output, const Config* config, HfRows rows, void* context);

#endif
