// A model's text files in memory: see model_files.h.
#include "model_files.h"

#include "files.h"
#include "json.h"
#include "json_edit.h"

static const char* const kConfigFiles[] = {"config.json", "generation_config.json"};
static const char* const kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                              "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
                                              "chat_template.json", "tokenizer.model"};
static const char kTemplateFolder[] = "additional_chat_templates";

struct ModelFiles {
    ModelFile* files;
    int count;
};

ModelFiles* model_files_new(void) { return (ModelFiles*)host_alloc(sizeof(ModelFiles)); }

static void free_file(ModelFile* file) {
    free(file->name);
    free(file->text);
}

void model_files_free(ModelFiles* m) {
    if (!m) return;
    for (int i = 0; i < m->count; i++) free_file(&m->files[i]);
    free(m->files);
    free(m);
}

int model_files_count(const ModelFiles* m) { return m->count; }

const ModelFile* model_files_at(const ModelFiles* m, int index) {
    check(index >= 0 && index < m->count, "model_files_at: %d of %d", index, m->count);
    return &m->files[index];
}

static int find_name(const ModelFiles* m, const char* name) {
    for (int i = 0; i < m->count; i++)
        if (!strcmp(m->files[i].name, name)) return i;
    return -1;
}

const ModelFile* model_files_get(const ModelFiles* m, const char* name) {
    int index = find_name(m, name);
    return index < 0 ? NULL : &m->files[index];
}

void model_files_set(ModelFiles* m, const char* name, const char* text, size_t bytes) {
    char* copy = (char*)host_alloc(bytes + 1);
    if (bytes) memcpy(copy, text, bytes);
    int index = find_name(m, name);
    if (index < 0) {
        index = m->count++;
        m->files = (ModelFile*)host_grow(m->files, (size_t)m->count * sizeof *m->files);
        m->files[index].name = host_strdup(name);
    } else {
        free(m->files[index].text);
    }
    m->files[index].text = copy;
    m->files[index].bytes = bytes;
}

ModelFiles* model_files_copy(const ModelFiles* from) {
    ModelFiles* m = model_files_new();
    for (int i = 0; i < from->count; i++) model_files_set(m, from->files[i].name, from->files[i].text, from->files[i].bytes);
    return m;
}

void model_files_remove(ModelFiles* m, const char* name) {
    int index = find_name(m, name);
    if (index < 0) return;
    free_file(&m->files[index]);
    m->files[index] = m->files[--m->count];
}

// ---- from a directory

static void read_if_there(ModelFiles* m, const char* dir, const char* name) {
    char* path = path_join(dir, name);
    if (path_exists(path)) {
        size_t bytes;
        char* text = file_read(path, &bytes);
        model_files_set(m, name, text, bytes);
        free(text);
    }
    free(path);
}

static void read_template_folder(ModelFiles* m, const char* dir) {
    char* folder = path_join(dir, kTemplateFolder);
    char** names = NULL;
    int count = dir_exists(folder) ? dir_names(folder, &names) : 0;
    for (int i = 0; i < count; i++) {
        if (!has_ending(names[i], ".jinja")) continue;
        char* name = path_join(kTemplateFolder, names[i]);
        read_if_there(m, dir, name);
        free(name);
    }
    dir_names_free(names, count);
    free(folder);
}

ModelFiles* model_files_from_dirs(const char* config_dir, const char* tokenizer_dir) {
    ModelFiles* m = model_files_new();
    for (size_t i = 0; config_dir && i < sizeof kConfigFiles / sizeof kConfigFiles[0]; i++)
        read_if_there(m, config_dir, kConfigFiles[i]);
    for (size_t i = 0; tokenizer_dir && i < sizeof kTokenizerFiles / sizeof kTokenizerFiles[0]; i++)
        read_if_there(m, tokenizer_dir, kTokenizerFiles[i]);
    if (tokenizer_dir) read_template_folder(m, tokenizer_dir);
    return m;
}

ModelFiles* model_files_from_dir(const char* dir) { return model_files_from_dirs(dir, dir); }

// ---- changes

// Puts an edit's result (which this function frees) in the file's place.
static void take_text(ModelFiles* m, const char* name, char* text) {
    model_files_set(m, name, text, strlen(text));
    free(text);
}

static bool has_key(const ModelFiles* m, const char* name, const char* key) {
    const ModelFile* file = model_files_get(m, name);
    return file && json_text_has(file->text, file->bytes, key, name);
}

static void set_key(ModelFiles* m, const char* name, const char* key, const char* value) {
    const ModelFile* file = model_files_get(m, name);
    if (file) take_text(m, name, json_text_set(file->text, file->bytes, key, value, name));
}

static void remove_key(ModelFiles* m, const char* name, const char* key) {
    const ModelFile* file = model_files_get(m, name);
    if (file) take_text(m, name, json_text_remove(file->text, file->bytes, key, name));
}

void model_files_set_dtype(ModelFiles* m, Fmt dtype) {
    check(dtype == F32 || dtype == BF16, "config.json: no dtype for %s", fmt_name(dtype));
    const char* value = dtype == F32 ? "\"float32\"" : "\"bfloat16\"";
    bool current = has_key(m, "config.json", "dtype");
    if (current) set_key(m, "config.json", "dtype", value);
    if (!current || has_key(m, "config.json", "torch_dtype")) set_key(m, "config.json", "torch_dtype", value);
    if (has_key(m, "config.json", "quantization_config")) remove_key(m, "config.json", "quantization_config");
}

void model_files_set_eos(ModelFiles* m, const int* ids, int count, const char* token) {
    check(count > 0, "model_files_set_eos: no ids");
    json_t* list = json_array();
    for (int i = 0; i < count; i++) json_array_append_new(list, json_integer(ids[i]));
    char* value = json_dumps(count == 1 ? json_array_get(list, 0) : list, JSON_ENCODE_ANY);
    set_key(m, "config.json", "eos_token_id", value);
    set_key(m, "generation_config.json", "eos_token_id", value);
    free(value);
    json_decref(list);
    if (!token) return;
    json_t* text = json_string(token);
    check(text, "model_files_set_eos: the token is not UTF-8");
    value = json_dumps(text, JSON_ENCODE_ANY);
    set_key(m, "tokenizer_config.json", "eos_token", value);
    set_key(m, "special_tokens_map.json", "eos_token", value);
    free(value);
    json_decref(text);
}

void model_files_set_chat_template(ModelFiles* m, const char* text, size_t bytes) {
    model_files_set(m, "chat_template.jinja", text, bytes);
    if (has_key(m, "tokenizer_config.json", "chat_template")) remove_key(m, "tokenizer_config.json", "chat_template");
    model_files_remove(m, "chat_template.json");
}
