// Reading a Hugging Face model directory: see hf_read.h.
#include "hf_read.h"

#include "files.h"
#include "hf_config.h"
#include "hf_layout.h"
#include "hf_write.h"
#include "json.h"


struct HfModel {
    char* dir;
    ModelFiles* files;
    ParamSpec specs[kMaxParamSpecs];
    int spec_count;
    int layers;
    SafeTensors** shards;
    int shard_count;
    const Tensor** tensors;   // (spec_count, layers); a spec that is not per layer uses the first
};

// ---- shards

// Shard names come from the index file, which is not to be trusted: each must be a plain file name that does not leave the directory.
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

// Opens every shard that the index names, and checks that each entry is in its shard and each tensor in the index.
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
            if (!path_exists(path)) user_error("%s: the shard is missing, %s lists it; download it again", path, HF_INDEX_NAME);
            shard = open_shard(m, path);
        }
        if (!safetensors_find(m->shards[shard], name))
            user_error("%s: tensor \"%s\" is not in it, but %s says so", path, printable(name), HF_INDEX_NAME);
        free(path);
    }
    for (int s = 0; s < m->shard_count; s++) {
        const char* path = safetensors_path(m->shards[s]);
        for (int i = 0; i < safetensors_count(m->shards[s]); i++) {
            const char* held = safetensors_at(m->shards[s], i)->name;
            const char* listed = json_string_value(json_object_get(map, held));
            if (!listed || strcmp(strrchr(path, '/') + 1, listed))
                user_error("%s: holds tensor \"%s\", which %s does not place there", path, printable(held), HF_INDEX_NAME);
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
            char name[kParamNameBytes];
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

// Refuses tensors that are no parameters, except two harmless kinds: the RoPE frequencies in old files, which follow from
// config.json, and the head of a tied model if it equals the embedding bit for bit.
static void check_extras(const HfModel* m, const Config* config) {
    for (int s = 0; s < m->shard_count; s++) {
        for (int i = 0; i < safetensors_count(m->shards[s]); i++) {
            const Tensor* tensor = safetensors_at(m->shards[s], i);
            if (is_parameter(m, tensor) || has_ending(tensor->name, ".rotary_emb.inv_freq")) continue;
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

// A folder without config.json is a user_error that says what it is instead.
static void refuse_other_folders(const char* dir) {
    if (dir_holds(dir, "config.json") || !dir_exists(dir)) return;
    if (dir_holds(dir, "adapter_config.json"))
        user_error("%s: an adapter, not a model: name it with --adapter-dir, and the model that it was trained on with --model", dir);
    if (dir_holds(dir, "checkpoints"))
        user_error("%s: the checkpoints of a run that has not finished, and no model yet: go on with the run's own command and --resume, or "
                   "write the newest checkpoint's model with that command as export ... --resume", dir);
    user_error("%s/config.json: not there; a model's folder has config.json, *.safetensors and tokenizer.json", dir);
}

HfModel* hf_model_open(const char* dir, Config* config) {
    hf_model_recover(dir);
    refuse_other_folders(dir);
    HfModel* m = (HfModel*)host_alloc(sizeof *m);
    m->files = model_files_from_dir(dir);
    hf_config_of_files(m->files, dir, config);
    m->dir = host_strdup(dir);
    m->spec_count = param_specs(config, m->specs);
    m->layers = config->L;
    char *single = path_join(dir, HF_SINGLE_NAME), *index = path_join(dir, HF_INDEX_NAME);
    if (path_exists(single)) open_shard(m, single);   // preferred to an index if both exist, as in transformers
    else if (path_exists(index)) open_index(m, index);
    else user_error("%s: neither %s nor %s is there; finish the download (hf download resumes one), or save a model that has only "
                    "pytorch_model.bin anew with transformers' save_pretrained", dir, HF_SINGLE_NAME, HF_INDEX_NAME);
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
    model_files_free(m->files);
    free(m->dir);
    free(m);
}
const ModelFiles* hf_model_files(const HfModel* m) { return m->files; }

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
