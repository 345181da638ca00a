// The small text files of a model, in memory: config.json, generation_config.json, the tokenizer's files, chat templates.
//
// A run reads them once at its start and writes its output's from here: a file that is deleted or changed while the run goes
// on can neither lose the result nor slip another configuration under it. Names are relative to the model's directory and
// hold at most one '/': "additional_chat_templates/rag.jinja".
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

// What of these files DIR holds; those that are absent are left out.
C_API ModelFiles* model_files_from_dir(const char* dir);
// The configurations (config.json, generation_config.json) of one directory beside the tokenizer's files and the chat
// templates of another; NULL: none of that kind.
C_API ModelFiles* model_files_from_dirs(const char* config_dir, const char* tokenizer_dir);

C_API int model_files_count(const ModelFiles* files);
C_API const ModelFile* model_files_at(const ModelFiles* files, int index);
C_API const ModelFile* model_files_get(const ModelFiles* files, const char* name);   // NULL if there is none
// Copies the bytes; replaces a file of this name.
C_API void model_files_set(ModelFiles* files, const char* name, const char* text, size_t bytes);
C_API void model_files_remove(ModelFiles* files, const char* name);                    // fine if there is none

// ---- what a run changes. All other bytes of the files stay as they are; a file that is absent stays absent.

// The type of the stored weights, F32 or BF16, in config.json, under whichever of "dtype" and "torch_dtype" stands there
// (torch_dtype is added where neither does). quantization_config is taken out: the weights written are plain.
C_API void model_files_set_dtype(ModelFiles* files, Fmt dtype);
// The ids that end a text, in config.json and generation_config.json: a number if there is one id, a list if there are more.
// `token` is the text of the first (NULL: not to be changed), in tokenizer_config.json and special_tokens_map.json.
C_API void model_files_set_eos(ModelFiles* files, const int* ids, int count, const char* token);
// chat_template.jinja; an older template inside tokenizer_config.json goes, since loaders differ in which one they prefer.
C_API void model_files_set_chat_template(ModelFiles* files, const char* text, size_t bytes);

#endif
