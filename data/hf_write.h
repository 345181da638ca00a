// Writing a model directory as Hugging Face lays it out (hf_read.h names its files).
#ifndef DATA_HF_WRITE_H
#define DATA_HF_WRITE_H

#include "../halo/llama3.h"
#include "model_files.h"

typedef struct {
    const char* dir;             // made if absent; NULL: call `rows` as rank 0 does, write nothing
    const ModelFiles* files;     // written beside the weights; if they lack config.json, or there are none (NULL), one is made
    Fmt fmt;                     // of the stored weights: F32 or BF16
    size_t shard_bytes;          // larger weights are split into shards of at most this (a larger tensor gets a shard for itself)
} HfOutput;

static const size_t kDefaultShardBytes = 5000000000u;   // transformers' default

// Delivers rows [first_row, first_row + rows) of a parameter in the output's format. The calls come in the same order and
// sizes wherever config, fmt and shard_bytes are the same, so that ranks can gather behind them: rank 0 with a dir, the
// others with dir NULL.
typedef void (*HfRows)(void* context, int spec, int layer, int first_row, int rows, void* dst);

// Writes the model, some megabytes at a time, whole or not at all: everything is written to a directory inside `dir`, which
// one rename declares complete; then the files are moved up to `dir`, last the one without which loaders find no model. Until
// the rename a model that was there before is untouched; after a crash behind the rename, hf_model_recover finishes the move.
// Files of the earlier model that this one does not have (shards, pytorch_model*.bin, adapters, chat templates, tokenizer
// files) are removed; no other file is touched. A NaN or infinite weight is a user_error that names tensor, row and column.
C_API void hf_model_write(const HfOutput* output, const Config* config, HfRows rows, void* context);

// The same for other files that belong together, an adapter's (peft.c): they are written to a folder inside `dir`, which hf_folder_begin makes,
// empty, and whose path it returns; hf_folder_end declares it complete, moves the files of `list` (their names, a line each) up, the adapter's
// weights last, and frees the path.
C_API char* hf_folder_begin(const char* dir);
C_API void hf_folder_end(const char* dir, char* partial, const char* list);
// Writes files, and folders that their names ask for, to `dir`; but not the one called `except` (NULL: all).
C_API void hf_files_write(const ModelFiles* files, const char* dir, const char* except);

// Finishes a model or an adapter that a crash left complete in `dir` but not in its place; true if there was one. To be called at the start
// for every directory that is read from or written to; processes that do so at the same time wait for one another.
C_API bool hf_model_recover(const char* dir);

#endif
