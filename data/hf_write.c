// Writing a Hugging Face model directory: see hf_write.h.
#include "hf_write.h"

#include "digest.h"
#include "files.h"
#include "hf_config.h"
#include "hf_layout.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

enum { kCallbackBytes = 32 << 20 };   // how many bytes one call of the row callback delivers at most (but at least one row)
static const char kPartialName[] = ".model-being-written";

// One tensor of the output.
typedef struct {
    int spec, layer, shard;
    char name[kParamNameBytes];
} Entry;

typedef struct {
    ParamSpec specs[kMaxParamSpecs];
    Entry* entries;
    Tensor* tensors;   // (count), one for each entry: name, dtype and shape for the headers
    int count, shards;
    size_t bytes;
} Plan;

// Lists all tensors in storage order; each goes into the current shard if that has room, else into a new one.
static Plan plan_shards(const HfOutput* output, const Config* config) {
    Plan plan;
    memset(&plan, 0, sizeof plan);
    int specs = param_specs(config, plan.specs);
    size_t most = (size_t)specs * config->L, shard_used = 0;
    plan.entries = (Entry*)host_alloc(most * sizeof(Entry));
    plan.tensors = (Tensor*)host_alloc(most * sizeof(Tensor));
    for (int s = 0; s < specs; s++) {
        const ParamSpec* spec = &plan.specs[s];
        for (int layer = 0; layer < spec_layers(spec, config->L); layer++) {
            Entry* entry = &plan.entries[plan.count];
            Tensor* tensor = &plan.tensors[plan.count];
            entry->spec = s;
            entry->layer = layer;
            param_name(spec, layer, entry->name, sizeof entry->name);
            tensor->name = entry->name;
            tensor->dtype = dtype_of(output->fmt);
            set_shape(tensor, spec);
            tensor->bytes = (size_t)spec->rows * spec->cols * fmt_bytes(output->fmt);
            if (plan.count == 0 || shard_used + tensor->bytes > output->shard_bytes) {
                plan.shards++;
                shard_used = 0;
            }
            shard_used += tensor->bytes;
            entry->shard = plan.shards - 1;
            plan.bytes += tensor->bytes;
            plan.count++;
        }
    }
    return plan;
}

static void numbered_name(int number, int shards, char name[kParamNameBytes]) {
    snprintf(name, kParamNameBytes, "model-%05d-of-%05d.safetensors", number, shards);
}

static void shard_name(int shard, int shards, char name[kParamNameBytes]) {
    if (shards == 1) strcpy(name, HF_SINGLE_NAME);
    else numbered_name(shard + 1, shards, name);
}

// Is it the name of a file of weights, as this program and transformers write them?
static bool is_weights_name(const char* name) {
    if (!strcmp(name, HF_SINGLE_NAME) || !strcmp(name, HF_INDEX_NAME)) return true;
    int number, shards;
    char again[kParamNameBytes];
    if (sscanf(name, "model-%5d-of-%5d", &number, &shards) != 2) return false;
    numbered_name(number, shards, again);
    return !strcmp(name, again);
}

static void write_json(const char* dir, const char* name, const json_t* json) {
    char* text = json_dumps(json, JSON_INDENT(2));
    check(text, "%s: no text", name);
    file_write(dir, name, text, strlen(text));
    free(text);
}

static void write_index(const char* dir, const Plan* plan) {
    json_t* map = json_object();
    for (int i = 0; i < plan->count; i++) {
        char name[kParamNameBytes];
        shard_name(plan->entries[i].shard, plan->shards, name);
        json_object_set_new(map, plan->entries[i].name, json_string(name));
    }
    json_t* index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)plan->bytes, "weight_map", map);
    write_json(dir, HF_INDEX_NAME, index);
    json_decref(index);
}

// The caller's files, changed to fit the output's weights: config.json gets their dtype, and is made if it is absent.
static ModelFiles* output_files(const ModelFiles* given, const Config* config, Fmt fmt) {
    ModelFiles* files = given ? model_files_copy(given) : model_files_new();
    const ModelFile* own = model_files_get(files, "config.json");
    if (own) {
        Config source;
        hf_config_parse(own->text, own->bytes, "config.json", &source);
        check(source.V == config->V && source.C == config->C && source.L == config->L && source.NH == config->NH &&
              source.NKV == config->NKV && source.HD == config->HD && source.F == config->F && source.tied == config->tied,
              "hf_model_write: the model has not the sizes of its config.json");
        model_files_set_dtype(files, fmt);
    } else {
        char* text = hf_config_text(config, fmt);
        model_files_set(files, "config.json", text, strlen(text));
        free(text);
    }
    return files;
}

// Makes the folder of a file whose name has one.
static void make_folder_of(const char* dir, const char* name) {
    const char* slash = strchr(name, '/');
    if (!slash) return;
    char* path = path_join(dir, name);
    path[strlen(path) - strlen(slash)] = 0;
    dir_make(path);
    free(path);
}

void hf_files_write(const ModelFiles* files, const char* dir, const char* except) {
    for (int i = 0; i < model_files_count(files); i++) {
        const ModelFile* file = model_files_at(files, i);
        if (except && !strcmp(file->name, except)) continue;
        make_folder_of(dir, file->name);
        file_write(dir, file->name, file->text, file->bytes);
    }
}

static void refuse_infinite(const char* name, int row, const void* values, size_t count, int cols, Fmt fmt) {
    size_t bad = first_not_finite(values, count, fmt);
    if (bad < count)
        user_error("the model is not written: tensor \"%s\" is not finite at row %zu, column %zu; go back to an older checkpoint",
                   name, (size_t)row + bad / (size_t)cols, bad % (size_t)cols);
}

static void close_weights(OutFile* out, json_t* checksums) {
    char hex[kHexBytes];
    out_digest(out, hex);
    json_object_set_new(checksums, strrchr(out->path, '/') + 1, json_string(hex));
    out_close(out);
}

// Writes all shards to `dir`; with dir NULL makes the same calls of `rows` and writes nothing.
static void write_weights(const Plan* plan, Fmt fmt, const char* dir, HfRows rows, void* context) {
    void* buffer = NULL;
    size_t buffer_bytes = 0;
    OutFile out;
    json_t* checksums = json_object();
    for (int i = 0; i < plan->count; i++) {
        const Entry* entry = &plan->entries[i];
        if (dir && (i == 0 || entry->shard != entry[-1].shard)) {
            int last = i;
            while (last < plan->count && plan->entries[last].shard == entry->shard) last++;
            char name[kParamNameBytes];
            shard_name(entry->shard, plan->shards, name);
            char* path = path_join(dir, name);
            if (i) close_weights(&out, checksums);
            out = safetensors_create(path, &plan->tensors[i], last - i);
            free(path);
        }
        const ParamSpec* spec = &plan->specs[entry->spec];
        size_t row_bytes = (size_t)spec->cols * fmt_bytes(fmt);
        int step = row_bytes < kCallbackBytes ? (int)(kCallbackBytes / row_bytes) : 1;
        for (int row = 0; row < spec->rows; row += step) {
            int n = min_int(step, spec->rows - row);
            if (n * row_bytes > buffer_bytes) {
                buffer_bytes = n * row_bytes;
                buffer = host_grow(buffer, buffer_bytes);
            }
            rows(context, entry->spec, entry->layer, row, n, buffer);
            if (dir) refuse_infinite(entry->name, row, buffer, (size_t)n * spec->cols, spec->cols, fmt);
            if (dir) out_write(&out, buffer, n * row_bytes);
        }
    }
    if (dir) {
        close_weights(&out, checksums);
        write_json(dir, HF_CHECKSUMS_NAME, checksums);
    }
    json_decref(checksums);
    free(buffer);
}

// ---- putting a written model, or adapter, in its place
//
// A model is written to DIR/.model-being-written. When every byte is on disk, one rename makes it DIR/.model-complete: from
// then on the new model counts, and after a crash at any point hf_model_recover goes on moving its files up. The list of its
// files, written before the rename, says which names in DIR belong to the new model.

static const char kCompleteName[] = ".model-complete";
static const char kListName[] = ".files";

// Removes a directory that this program made, with its files and its folders of files.
static void remove_tree(const char* path) {
    char** names;
    int count = dir_names(path, &names);
    for (int i = 0; i < count; i++) {
        char* inner = path_join(path, names[i]);
        struct stat info;
        if (!lstat(inner, &info) && S_ISDIR(info.st_mode)) remove_tree(inner);
        else file_remove(inner);
        free(inner);
    }
    dir_names_free(names, count);
    if (rmdir(path) && errno != ENOENT) user_error("%s: cannot be removed: %s", path, strerror(errno));
}

static void remove_named(const char* dir, const char* name) {
    char* path = path_join(dir, name);
    file_remove(path);
    free(path);
}

static bool is_listed(const char* list, const char* name) {
    size_t n = strlen(name);
    for (const char *at = list, *end; (end = strchr(at, '\n')) != NULL; at = end + 1)
        if ((size_t)(end - at) == n && !strncmp(at, name, n)) return true;
    return false;
}

// Is it a file of another model's weights or adapter, which loaders would prefer to the new weights or mix with them, or a note or checksums
// that this program wrote for such weights?
static bool is_other_weights(const char* name) {
    static const char* const names[] = {HF_ADAPTER_CONFIG_NAME, HF_ADAPTER_NAME, "adapter_model.bin",
                                        "pytorch_model.bin", "pytorch_model.bin.index.json",
                                        "training.json", "train_llama3.toml", HF_CHECKSUMS_NAME};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (!strcmp(name, names[i])) return true;
    int number, shards;
    char again[kParamNameBytes];
    if (sscanf(name, "pytorch_model-%5d-of-%5d", &number, &shards) != 2) return false;
    snprintf(again, sizeof again, "pytorch_model-%05d-of-%05d.bin", number, shards);
    return !strcmp(name, again);
}

static void remove_stale(const char* dir, const char* list) {
    char** names;
    int count = dir_names(dir, &names);
    for (int i = 0; i < count; i++)
        if ((is_weights_name(names[i]) || is_other_weights(names[i])) && !is_listed(list, names[i])) remove_named(dir, names[i]);
    dir_names_free(names, count);
    if (!is_listed(list, "tokenizer.json")) return;   // the new model has no tokenizer: the directory's tokenizer stays
    ModelFiles* old = model_files_from_dir(dir);
    for (int i = 0; i < model_files_count(old); i++)
        if (!is_listed(list, model_files_at(old, i)->name)) remove_named(dir, model_files_at(old, i)->name);
    model_files_free(old);
}

static void move_up(const char* from_dir, const char* to_dir, const char* name) {
    if (name[0] == '/' || strstr(name, "..")) user_error("%s: its list names \"%s\"; remove this directory", from_dir, printable(name));
    char *from = path_join(from_dir, name), *to = path_join(to_dir, name);
    if (path_exists(from)) {
        make_folder_of(to_dir, name);
        file_rename(from, to);
    }
    free(from);
    free(to);
}

// Makes room for the files of the list: afterwards loaders find no weights in `dir`.
static void remove_earlier(const char* dir, const char* list, const char* last) {
    if (!strcmp(last, HF_ADAPTER_NAME)) {   // the folder's other files may be those of the adapter's own base
        remove_named(dir, last);
        dir_sync(dir);
        return;
    }
    remove_named(dir, HF_SINGLE_NAME);
    remove_named(dir, HF_INDEX_NAME);
    dir_sync(dir);
    remove_stale(dir, list);
}

// Moves the files of a complete model up to `dir`; last the one without which loaders find no model, so that `dir` never looks like a model
// before it is whole. The same for an adapter.
static void finish(const char* complete, const char* dir) {
    char* list_path = path_join(complete, kListName);
    char* list = path_exists(list_path) ? file_read(list_path, NULL) : host_strdup("");   // no list: all files have been moved already
    free(list_path);
    const char* last = is_listed(list, HF_INDEX_NAME) ? HF_INDEX_NAME : is_listed(list, HF_SINGLE_NAME) ? HF_SINGLE_NAME : HF_ADAPTER_NAME;
    char* last_path = path_join(complete, last);
    if (*list && path_exists(last_path)) {
        remove_earlier(dir, list, last);
        char* names = host_strdup(list);
        for (char *name = names, *end; (end = strchr(name, '\n')) != NULL; name = end + 1) {
            *end = 0;
            if (strcmp(name, last)) move_up(complete, dir, name);
        }
        free(names);
        dir_sync(dir);
        move_up(complete, dir, last);
        dir_sync(dir);
    }
    remove_tree(complete);
    free(last_path);
    free(list);
}

bool hf_model_recover(const char* dir) {
    char* complete = path_join(dir, kCompleteName);
    int fd = open(complete, O_RDONLY | O_DIRECTORY);
    bool there = fd >= 0;
    if (there) {
        flock(fd, LOCK_EX);   // ranks of one host start together: one moves the files, the others then find nothing to move
        there = path_exists(complete);
        if (there) finish(complete, dir);
        close(fd);
    }
    free(complete);
    return there;
}

char* hf_folder_begin(const char* dir) {
    dir_make(dir);
    hf_model_recover(dir);
    char* partial = path_join(dir, kPartialName);
    remove_tree(partial);
    dir_make(partial);
    return partial;
}

void hf_folder_end(const char* dir, char* partial, const char* list) {
    char* complete = path_join(dir, kCompleteName);
    file_write(partial, kListName, list, strlen(list));
    dir_sync(partial);
    file_rename(partial, complete);
    dir_sync(dir);
    hf_model_recover(dir);
    free(complete);
    free(partial);
}

// The names of all files of a model, a line each.
static char* listed_files(const Plan* plan, const ModelFiles* files) {
    size_t room = 1 + ((size_t)plan->shards + 2) * kParamNameBytes;
    for (int i = 0; i < model_files_count(files); i++) room += strlen(model_files_at(files, i)->name) + 1;
    char* text = (char*)host_alloc(room);
    char* end = text;
    for (int i = 0; i < model_files_count(files); i++) end += sprintf(end, "%s\n", model_files_at(files, i)->name);
    for (int shard = 0; shard < plan->shards; shard++) {
        char name[kParamNameBytes];
        shard_name(shard, plan->shards, name);
        end += sprintf(end, "%s\n", name);
    }
    end += sprintf(end, "%s\n", HF_CHECKSUMS_NAME);
    if (plan->shards > 1) sprintf(end, "%s\n", HF_INDEX_NAME);
    return text;
}

static void write_to_dir(const HfOutput* output, const Plan* plan, const ModelFiles* files, HfRows rows, void* context) {
    char *partial = hf_folder_begin(output->dir), *list = listed_files(plan, files);
    disk_require(partial, plan->bytes);
    hf_files_write(files, partial, NULL);
    write_weights(plan, output->fmt, partial, rows, context);
    if (plan->shards > 1) write_index(partial, plan);
    hf_folder_end(output->dir, partial, list);
    free(list);
}

void hf_model_write(const HfOutput* output, const Config* config, HfRows rows, void* context) {
    check(output->shard_bytes > 0, "hf_model_write: shards of 0 bytes");
    Plan plan = plan_shards(output, config);
    if (output->dir) {
        ModelFiles* files = output_files(output->files, config, output->fmt);
        write_to_dir(output, &plan, files, rows, context);
        model_files_free(files);
    } else {
        write_weights(&plan, output->fmt, NULL, rows, context);
    }
    free(plan.entries);
    free(plan.tensors);
}
