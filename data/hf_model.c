// A Hugging Face model directory: see hf_model.h.
#include "hf_model.h"

#include "files.h"
#include "hf_config.h"
#include "json.h"
#include "safetensors.h"

#include <errno.h>

enum { kNameBytes = 128 };
static const char kSingleName[] = "model.safetensors";
static const char kIndexName[] = "model.safetensors.index.json";

struct HfModel {
    char* dir;
    ParamSpec specs[kMaxParamSpecs];
    int spec_count;
    int layers;
    SafeTensors** shards;
    int shard_count;
    const Tensor** tensors;   // (spec_count, layers); a spec that is not per layer uses the first
};

static int spec_layers(const ParamSpec* spec, int layers) { return spec->per_layer ? layers : 1; }

// ---- shards

// Shard names come from the index, which may come from anywhere: a plain file name, nothing that leaves the directory.
static void check_shard_name(const char* name, const char* index_path) {
    const char* suffix = strstr(name, ".safetensors");
    if (!suffix || strcmp(suffix, ".safetensors") || suffix == name || strchr(name, '/') || strchr(name, '\\'))
        user_error("%s: \"%s\" is not the name of a .safetensors file in this directory", index_path, printable(name));
}

static int find_shard(const HfModel* m, const char* path) {
    for (int i = 0; i < m->shard_count; i++)
        if (!strcmp(safetensors_path(m->shards[i]), path)) return i;
    return -1;
}

static int open_shard(HfModel* m, const char* path) {
    m->shards = (SafeTensors**)host_grow(m->shards, (size_t)(m->shard_count + 1) * sizeof *m->shards);
    m->shards[m->shard_count] = safetensors_open(path);
    return m->shard_count++;
}

// Opens every shard of the index and holds the two against each other: each entry in its shard, each tensor in the index.
static void open_index(HfModel* m, const char* index_path) {
    json_t* index = json_parse_file(index_path);
    const json_t* map = member_object(index, "weight_map", index_path);
    const char* name;
    const json_t* shard_name;
    json_object_foreach((json_t*)map, name, shard_name) {
        if (!json_is_string(shard_name))
            user_error("%s: weight_map \"%s\" has to be a file name", index_path, printable(name));
        check_shard_name(json_string_value(shard_name), index_path);
        char* path = path_join(m->dir, json_string_value(shard_name));
        int shard = find_shard(m, path);
        if (shard < 0) {
            if (!path_exists(path)) user_error("%s: the shard is missing, %s lists it; download it again", path, kIndexName);
            shard = open_shard(m, path);
        }
        if (!safetensors_find(m->shards[shard], name))
            user_error("%s: tensor \"%s\" is not in it, but %s says so", path, printable(name), kIndexName);
        free(path);
    }
    for (int s = 0; s < m->shard_count; s++) {
        const char* path = safetensors_path(m->shards[s]);
        for (int i = 0; i < safetensors_count(m->shards[s]); i++) {
            const char* held = safetensors_at(m->shards[s], i)->name;
            const char* listed = json_string_value(json_object_get(map, held));
            if (!listed || strcmp(strrchr(path, '/') + 1, listed))
                user_error("%s: holds tensor \"%s\", which %s does not place there", path, printable(held), kIndexName);
        }
    }
    json_decref(index);
}

// ---- parameters

static const Tensor* find_tensor(const HfModel* m, const char* name) {
    const Tensor* found = NULL;
    for (int s = 0; s < m->shard_count && !found; s++) found = safetensors_find(m->shards[s], name);
    return found;
}

// The shape a parameter is stored in: norms as vectors, everything else as matrices.
static void set_shape(Tensor* tensor, const ParamSpec* spec) {
    tensor->rank = 0;
    if (spec->rows > 1) tensor->shape[tensor->rank++] = (size_t)spec->rows;
    tensor->shape[tensor->rank++] = (size_t)spec->cols;
}

static void check_tensor(const HfModel* m, const Tensor* tensor, const ParamSpec* spec) {
    Tensor want;
    set_shape(&want, spec);
    if (tensor->rank != want.rank || memcmp(tensor->shape, want.shape, sizeof want.shape[0] * (size_t)want.rank))
        user_error("%s: tensor \"%s\" has the shape %s, config.json asks for %s", m->dir, tensor->name, shape_text(tensor),
                   shape_text(&want));
    if (tensor->dtype != ST_F32 && tensor->dtype != ST_F16 && tensor->dtype != ST_BF16)
        user_error("%s: tensor \"%s\" is stored as %s; only F32, F16 and BF16 weights are supported", m->dir, tensor->name,
                   dtype_name(tensor->dtype));
}

static void find_parameters(HfModel* m) {
    m->tensors = (const Tensor**)host_alloc((size_t)m->spec_count * m->layers * sizeof *m->tensors);
    for (int s = 0; s < m->spec_count; s++) {
        for (int layer = 0; layer < spec_layers(&m->specs[s], m->layers); layer++) {
            char name[kNameBytes];
            param_name(&m->specs[s], layer, name, sizeof name);
            const Tensor* tensor = find_tensor(m, name);
            if (!tensor) user_error("%s: tensor \"%s\" is missing", m->dir, name);
            check_tensor(m, tensor, &m->specs[s]);
            m->tensors[(size_t)s * m->layers + layer] = tensor;
        }
    }
}

static bool is_parameter(const HfModel* m, const Tensor* tensor) {
    for (size_t i = 0; i < (size_t)m->spec_count * m->layers; i++)
        if (m->tensors[i] == tensor) return true;
    return false;
}

static bool ends_with(const char* text, const char* suffix) {
    size_t n = strlen(text), k = strlen(suffix);
    return n >= k && !strcmp(text + n - k, suffix);
}

// Whatever is not a parameter. Harmless: the RoPE frequencies that old files hold, which follow from config.json, and the
// head of a tied model as long as it is the embedding bit for bit.
static void check_extras(const HfModel* m, const Config* config) {
    for (int s = 0; s < m->shard_count; s++) {
        for (int i = 0; i < safetensors_count(m->shards[s]); i++) {
            const Tensor* tensor = safetensors_at(m->shards[s], i);
            if (is_parameter(m, tensor) || ends_with(tensor->name, ".rotary_emb.inv_freq")) continue;
            const char* path = safetensors_path(m->shards[s]);
            if (config->tied && !strcmp(tensor->name, "lm_head.weight")) {
                const Tensor* embedding = find_tensor(m, "model.embed_tokens.weight");
                if (tensor->dtype == embedding->dtype && tensor->bytes == embedding->bytes &&
                    !memcmp(tensor->data, embedding->data, tensor->bytes)) continue;
                user_error("%s: lm_head.weight differs from the embedding, but config.json ties them; set "
                           "\"tie_word_embeddings\" to false if the head is its own", path);
            }
            user_error("%s: unexpected tensor \"%s\": not part of the Llama model that config.json describes", path,
                       printable(tensor->name));
        }
    }
}

HfModel* hf_model_open(const char* dir, Config* config) {
    hf_config_read(dir, config);
    HfModel* m = (HfModel*)host_alloc(sizeof *m);
    m->dir = host_strdup(dir);
    m->spec_count = param_specs(config, m->specs);
    m->layers = config->L;
    char *single = path_join(dir, kSingleName), *index = path_join(dir, kIndexName);
    if (path_exists(single)) open_shard(m, single);   // where both are there, as in transformers
    else if (path_exists(index)) open_index(m, index);
    else user_error("%s: neither %s nor %s is there", dir, kSingleName, kIndexName);
    free(single);
    free(index);
    find_parameters(m);
    check_extras(m, config);
    return m;
}

void hf_model_close(HfModel* m) {
    if (!m) return;
    for (int s = 0; s < m->shard_count; s++) safetensors_close(m->shards[s]);
    free(m->shards);
    free((void*)m->tensors);
    free(m->dir);
    free(m);
}

Fmt hf_model_fmt(const HfModel* m) {
    for (size_t i = 0; i < (size_t)m->spec_count * m->layers; i++)
        if (m->tensors[i] && m->tensors[i]->dtype != ST_BF16) return F32;
    return BF16;
}

void hf_model_rows(const HfModel* m, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst) {
    check(spec >= 0 && spec < m->spec_count, "hf_model_rows: parameter %d of %d", spec, m->spec_count);
    const ParamSpec* p = &m->specs[spec];
    check(layer >= 0 && layer < spec_layers(p, m->layers), "hf_model_rows: layer %d of %s", layer, p->name);
    check(first_row >= 0 && rows >= 0 && rows <= p->rows - first_row, "hf_model_rows: rows %d + %d of %s (%d)", first_row, rows,
          p->name, p->rows);
    tensor_read(m->tensors[(size_t)spec * m->layers + layer], (size_t)first_row * p->cols, (size_t)rows * p->cols, fmt, dst);
}

// ---- writing

enum { kPieceBytes = 32 << 20 };   // what one call of the row callback delivers, at most (one row at least)
static const char kPartialName[] = ".model-being-written";
static const char* const kTokenizerFiles[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                              "chat_template.jinja", "tokenizer.model"};
enum { kTokenizerFileCount = sizeof kTokenizerFiles / sizeof kTokenizerFiles[0] };

// One tensor of the output.
typedef struct {
    int spec, layer, shard;
    char name[kNameBytes];
} Entry;

typedef struct {
    ParamSpec specs[kMaxParamSpecs];
    Entry* entries;
    Tensor* tensors;   // beside entries: what the headers need
    int count, shards;
    size_t bytes;
} Plan;

// All tensors in storage order, each in the shard that still has room.
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

static void numbered_name(int number, int shards, char name[kNameBytes]) {
    snprintf(name, kNameBytes, "model-%05d-of-%05d.safetensors", number, shards);
}

static void shard_name(int shard, int shards, char name[kNameBytes]) {
    if (shards == 1) strcpy(name, kSingleName);
    else numbered_name(shard + 1, shards, name);
}

// The weights of a model written earlier, by this program or by transformers.
static bool is_weights_name(const char* name) {
    if (!strcmp(name, kSingleName) || !strcmp(name, kIndexName)) return true;
    int number, shards;
    char again[kNameBytes];
    if (sscanf(name, "model-%5d-of-%5d", &number, &shards) != 2) return false;
    numbered_name(number, shards, again);
    return !strcmp(name, again);
}

static void write_text(const char* dir, const char* name, const char* text, size_t bytes) {
    char* path = path_join(dir, name);
    OutFile out = out_open(path, bytes);
    out_write(&out, text, bytes);
    out_close(&out);
    free(path);
}

static void copy_if_there(const char* from_dir, const char* to_dir, const char* name) {
    char* from = path_join(from_dir, name);
    if (path_exists(from)) {
        size_t bytes;
        char* text = file_read(from, &bytes);
        write_text(to_dir, name, text, bytes);
        free(text);
    }
    free(from);
}

static void write_index(const char* dir, const Plan* plan) {
    json_t* map = json_object();
    for (int i = 0; i < plan->count; i++) {
        char name[kNameBytes];
        shard_name(plan->entries[i].shard, plan->shards, name);
        json_object_set_new(map, plan->entries[i].name, json_string(name));
    }
    json_t* index = json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)plan->bytes, "weight_map", map);
    char* text = json_dumps(index, JSON_INDENT(2));
    check(text, "write_index: no text");
    write_text(dir, kIndexName, text, strlen(text));
    free(text);
    json_decref(index);
}

static void write_config(const HfOutput* output, const Config* config, const char* dir) {
    char* text;
    if (output->config_dir) {
        Config source;
        hf_config_read(output->config_dir, &source);
        check(source.V == config->V && source.C == config->C && source.L == config->L && source.NH == config->NH &&
              source.NKV == config->NKV && source.HD == config->HD && source.F == config->F && source.tied == config->tied,
              "hf_model_write: the model has not the sizes of %s/config.json", output->config_dir);
        text = hf_config_copy(output->config_dir, output->fmt);
        copy_if_there(output->config_dir, dir, "generation_config.json");
    } else {
        text = hf_config_text(config, output->fmt);
    }
    write_text(dir, "config.json", text, strlen(text));
    free(text);
    if (output->tokenizer_dir)
        for (int i = 0; i < kTokenizerFileCount; i++) copy_if_there(output->tokenizer_dir, dir, kTokenizerFiles[i]);
}

// dir NULL: the same calls of `rows`, nothing written.
static void write_weights(const Plan* plan, Fmt fmt, const char* dir, HfRows rows, void* context) {
    void* buffer = NULL;
    size_t buffer_bytes = 0;
    OutFile out;
    for (int i = 0; i < plan->count; i++) {
        const Entry* entry = &plan->entries[i];
        if (dir && (i == 0 || entry->shard != entry[-1].shard)) {
            int last = i;
            while (last < plan->count && plan->entries[last].shard == entry->shard) last++;
            char name[kNameBytes];
            shard_name(entry->shard, plan->shards, name);
            char* path = path_join(dir, name);
            if (i) out_close(&out);
            out = safetensors_create(path, &plan->tensors[i], last - i);
            free(path);
        }
        const ParamSpec* spec = &plan->specs[entry->spec];
        size_t row_bytes = (size_t)spec->cols * fmt_bytes(fmt);
        int step = row_bytes < kPieceBytes ? (int)(kPieceBytes / row_bytes) : 1;
        for (int row = 0; row < spec->rows; row += step) {
            int n = min_int(step, spec->rows - row);
            if (n * row_bytes > buffer_bytes) {
                buffer_bytes = n * row_bytes;
                buffer = host_grow(buffer, buffer_bytes);
            }
            rows(context, entry->spec, entry->layer, row, n, buffer);
            if (dir) out_write(&out, buffer, n * row_bytes);
        }
    }
    if (dir) out_close(&out);
    free(buffer);
}

// Empties the directory of a writing that was cut short; everything in it is ours.
static void remove_partial(const char* partial) {
    char** names;
    int count = dir_names(partial, &names);
    for (int i = 0; i < count; i++) {
        char* path = path_join(partial, names[i]);
        file_remove(path);
        free(path);
    }
    dir_names_free(names, count);
    if (rmdir(partial) && errno != ENOENT) user_error("%s: cannot be removed: %s", partial, strerror(errno));
}

static void move(const char* from_dir, const char* to_dir, const char* name) {
    char *from = path_join(from_dir, name), *to = path_join(to_dir, name);
    file_rename(from, to);
    free(from);
    free(to);
}

// Puts the written files in their place. Between the removal of the old weights and the last rename there is no model.
static void publish(const char* partial, const char* dir, const char* last_name) {
    char** names;
    int count = dir_names(dir, &names);
    for (int i = 0; i < count; i++) {
        if (!is_weights_name(names[i])) continue;
        char* path = path_join(dir, names[i]);
        file_remove(path);
        free(path);
    }
    dir_names_free(names, count);
    dir_sync(dir);

    count = dir_names(partial, &names);
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], last_name)) move(partial, dir, names[i]);
    dir_names_free(names, count);
    dir_sync(dir);
    move(partial, dir, last_name);
    dir_sync(dir);
    remove_partial(partial);
}

void hf_model_write(const HfOutput* output, const Config* config, HfRows rows, void* context) {
    check(output->shard_bytes > 0, "hf_model_write: shards of 0 bytes");
    Plan plan = plan_shards(output, config);
    if (output->dir) {
        dir_make(output->dir);
        char* partial = path_join(output->dir, kPartialName);
        remove_partial(partial);
        dir_make(partial);
        disk_require(partial, plan.bytes);
        write_config(output, config, partial);
        write_weights(&plan, output->fmt, partial, rows, context);
        if (plan.shards > 1) write_index(partial, &plan);
        publish(partial, output->dir, plan.shards > 1 ? kIndexName : kSingleName);
        free(partial);
    } else {
        write_weights(&plan, output->fmt, NULL, rows, context);
    }
    free(plan.entries);
    free(plan.tensors);
}
