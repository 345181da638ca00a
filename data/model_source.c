// Where a model comes from; see model_source.h.
#include "model_source.h"

#include "files.h"
#include "gguf_model.h"
#include "hf_read.h"

struct ModelSource {
    char* path;
    HfModel* hf;       // NULL for a GGUF file
    GgufModel* gguf;   // NULL for a directory
};

ModelSource* model_source_open(const char* path, Config* config) {
    ModelSource* s = (ModelSource*)host_alloc(sizeof *s);
    s->path = host_strdup(path);
    if (dir_exists(path) || !(has_ending(path, ".gguf") || path_exists(path))) s->hf = hf_model_open(path, config);
    else s->gguf = gguf_model_open(path, config);
    return s;
}

void model_source_close(ModelSource* s) {
    if (!s) return;
    if (s->hf) hf_model_close(s->hf);
    gguf_model_close(s->gguf);
    free(s->path);
    free(s);
}

void model_source_rows(const ModelSource* s, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst) {
    if (s->hf) hf_model_rows(s->hf, spec, layer, first_row, rows, fmt, dst);
    else gguf_model_rows(s->gguf, spec, layer, first_row, rows, fmt, dst);
}

Fmt model_source_fmt(const ModelSource* s) { return s->hf ? hf_model_fmt(s->hf) : gguf_model_fmt(s->gguf); }

// Adds a file, and frees `text`.
static void take(ModelFiles* files, const char* name, char* text) {
    model_files_set(files, name, text, strlen(text));
    free(text);
}

ModelFiles* model_source_files(const ModelSource* s) {
    if (s->hf) return model_files_copy(hf_model_files(s->hf));
    ModelFiles* files = model_files_new();
    take(files, "config.json", gguf_config_json(s->gguf, gguf_model_fmt(s->gguf)));
    take(files, "generation_config.json", gguf_generation_config_json(s->gguf));
    take(files, "tokenizer.json", gguf_tokenizer_json(s->gguf));
    take(files, "tokenizer_config.json", gguf_tokenizer_config_json(s->gguf));
    take(files, "special_tokens_map.json", gguf_special_tokens_map_json(s->gguf));
    return files;
}
