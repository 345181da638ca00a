// Where a model comes from: a Hugging Face directory or a GGUF file, behind one reader of its weights and one set of texts.
#ifndef DATA_MODEL_SOURCE_H
#define DATA_MODEL_SOURCE_H

#include "../halo/llama3.h"
#include "model_files.h"

typedef struct ModelSource ModelSource;

// A directory is read as Hugging Face's, any other path as a GGUF file. Fills *config; anything wrong with the model is a user_error.
C_API ModelSource* model_source_open(const char* path, Config* config);
C_API void model_source_close(ModelSource* source);   // NULL is fine

// Rows [first_row, first_row + rows) of parameter `spec` (an index into param_specs) of `layer` in F32 or BF16, into host memory.
C_API void model_source_rows(const ModelSource* source, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst);

// The format in which the weights are stored, or F32 or BF16, in which they are read, if they are stored in another one.
C_API Fmt model_source_fmt(const ModelSource* source);

// config.json, the tokenizer's files and their companions as they were when the source was opened, as a Hugging Face directory holds them;
// the caller frees the list.
C_API ModelFiles* model_source_files(const ModelSource* source);

#endif
