// The small text files of a model, in memory: config.json, generation_config.json, the tokenizer's files, chat templates.
//
// A run reads these files once at its start and writes them beside its output from memory, so that a file that is deleted or
// changed during the run can neither lose the result nor give it another configuration. Names are relative to the model's
// directory and hold at most one '/': "additional_chat_templates/rag.jinja".
#ifndef DATA_MODEL_FILES_H
#define DATA_MODEL_FILES_H

#include "../halo/numfmt.h"

typedef struct ModelFiles ModelFiles;

typedef struct {
    char* name;
    char* text;      // followed by a NUL that `bytes` does not count
    size_t bytes;
} ModelFile;

C_API ModelFiles* model_files_new(void);
C_API ModelFiles* model_files_copy(const ModelFiles* files);
C_API void model_files_free(ModelFiles* files);

// Reads those of these files that DIR holds.
C_API ModelFiles* model_files_from_dir(const char* dir);
// Reads the configurations (config.json, generation_config.json) of one directory, and the tokenizer's files and chat templates
// of another; NULL: no files of that kind.
C_API ModelFiles* model_files_from_dirs(const char* config_dir, const char* tokenizer_dir);

C_API int model_files_count(const ModelFiles* files);
C_API const ModelFile* model_files_at(const ModelFiles* files, int index);
C_API const ModelFile* model_files_get(const ModelFiles* files, const char* name);   // NULL if there is none
// Copies the bytes; replaces a file of this name.
C_API void model_files_set(ModelFiles* files, const char* name, const char* text, size_t bytes);
C_API void model_files_remove(ModelFiles* files, const char* name);                    // fine if there is none

// ---- what a run changes. All other bytes of the files stay as they are; a file that is absent stays absent.

// Sets the type of the stored weights, F32 or BF16, in config.json, under "dtype" or "torch_dtype", whichever is there
// (torch_dtype is added if neither is). quantization_config is removed, since the written weights are plain.
C_API void model_files_set_dtype(ModelFiles* files, Fmt dtype);
// Sets the ids that end a text, in config.json and generation_config.json: a number if there is one id, a list if there are
// more. `token` (NULL: not to be changed): the text of the first, in tokenizer_config.json and special_tokens_map.json.
C_API void model_files_set_eos(ModelFiles* files, const int* ids, int count, const char* token);
// Sets chat_template.jinja, and removes an older template from tokenizer_config.json, since loaders differ in which of the two they take.
C_API void model_files_set_chat_template(ModelFiles* files, const char* text, size_t bytes);

#endif
