// Reading a model directory as Hugging Face lays it out: config.json, the weights in model.safetensors or in shards that
// model.safetensors.index.json lists, and the tokenizer's files.
//
// Reading is strict: each parameter of param_specs exactly once, in its shape, as F32, F16 or BF16, and nothing else, or it
// is a user_error that names file and tensor. The weights stay in the mapped files; the caller takes the rows it needs.
#ifndef DATA_HF_READ_H
#define DATA_HF_READ_H

#include "../halo/llama3.h"
#include "model_files.h"

typedef struct HfModel HfModel;

// Fills *config from DIR/config.json and opens the weights.
C_API HfModel* hf_model_open(const char* dir, Config* config);
C_API void hf_model_close(HfModel* model);
// DIR's small files as they were when it was opened; the model's own.
C_API const ModelFiles* hf_model_files(const HfModel* model);

// BF16 if every tensor is stored as BF16, else F32: the smaller format that holds the stored values exactly.
C_API Fmt hf_model_fmt(const HfModel* model);

// Rows [first_row, first_row + rows) of parameter `spec` (an index into param_specs) of `layer` (0 unless it is per layer),
// (rows, cols) in F32 or BF16, into host memory.
C_API void hf_model_rows(const HfModel* model, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst);

#endif
