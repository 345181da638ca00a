// Hugging Face's config.json: see hf_config.h.
#include "hf_config.h"

#include "files.h"
#include "json.h"
#include "model_files.h"

#include <limits.h>

enum { kMaxLayers = 1 << 16 };   // far above any model, so that a wrong number cannot ask for all memory

// ---- reading

// Reads a token id, or a list of ids, and appends those that `ids` does not hold yet; returns the new count.
static int read_token_ids(const json_t* config, const char* key, int* ids, int count, const char* where) {
    if (!has_member(config, key)) return count;
    const json_t* value = json_object_get(config, key);
    size_t given = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < given; i++) {
        const json_t* id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT_MAX)
            user_error("%s: \"%s\" has to be a token id or a list of them", where, key);
        bool known = false;
        for (int k = 0; k < count; k++) known = known || ids[k] == (int)json_integer_value(id);
        if (known) continue;
        if (count == kMaxEos) user_error("%s: \"%s\" lists more than %d ids", where, key, (int)kMaxEos);
        ids[count++] = (int)json_integer_value(id);
    }
    return count;
}

static int first_token_id(const json_t* config, const char* key, const char* where) {
    int ids[kMaxEos];
    return read_token_ids(config, key, ids, 0, where) ? ids[0] : -1;
}

static void refuse_true(const json_t* config, const char* key, const char* where) {
    if (has_member(config, key) && member_bool(config, key, where))
        user_error("%s: \"%s\" is true; Llama-3 has no such bias, only false is supported", where, key);
}

static void refuse_other(const json_t* config, const char* key, const char* supported, const char* where) {
    const char* value = member_string(config, key, where);
    if (strcmp(value, supported))
        user_error("%s: \"%s\" is \"%s\", only \"%s\" is supported", where, key, printable(value), supported);
}

// Reads rope_scaling or rope_parameters, which differ only in that rope_parameters may hold rope_theta too.
static void read_rope_object(const json_t* config, const char* rope_key, Config* c, const char* where) {
    const json_t* rope = member_object(config, rope_key, where);
    if (has_member(rope, "rope_theta")) c->rope_theta = member_positive(rope, "rope_theta", where);
    const char* key = has_member(rope, "rope_type") ? "rope_type" : "type";
    bool old = !strcmp(rope_key, "rope_scaling");
    const char* type = has_member(rope, key) || old ? member_string(rope, key, where) : "default";
    if (!strcmp(type, "default")) return;
    if (strcmp(type, "llama3"))
        user_error("%s: the RoPE type \"%s\" is not supported, only \"default\" and \"llama3\" are", where, printable(type));
    c->rope_type = ROPE_LLAMA3;
    c->rope_factor = member_positive(rope, "factor", where);
    c->rope_low_freq = member_positive(rope, "low_freq_factor", where);
    c->rope_high_freq = member_positive(rope, "high_freq_factor", where);
    c->rope_original_T = member_int(rope, "original_max_position_embeddings", 1, INT_MAX, where);
}

static bool same_rope(const Config* a, const Config* b) {
    return a->rope_theta == b->rope_theta && a->rope_type == b->rope_type && a->rope_factor == b->rope_factor &&
           a->rope_low_freq == b->rope_low_freq && a->rope_high_freq == b->rope_high_freq &&
           a->rope_original_T == b->rope_original_T;
}

static void read_rope(const json_t* config, Config* c, const char* where) {
    const double default_theta = 10000.0;
    bool theta = has_member(config, "rope_theta");
    c->rope_theta = theta ? member_positive(config, "rope_theta", where) : default_theta;
    bool old_key = has_member(config, "rope_scaling"), new_key = has_member(config, "rope_parameters");
    Config old = *c;
    if (old_key) read_rope_object(config, "rope_scaling", &old, where);
    if (!new_key) {
        *c = old;
        return;
    }
    read_rope_object(config, "rope_parameters", c, where);
    if (!theta) old.rope_theta = c->rope_theta;   // without a rope_theta of its own the old spelling cannot contradict the new one's
    if (old_key && !same_rope(&old, c))
        user_error("%s: \"rope_scaling\" and \"rope_parameters\" disagree; keep the one that is right", where);
}

static void refuse_present(const json_t* config, const char* key, const char* why, const char* where) {
    if (has_member(config, key)) user_error("%s: has \"%s\": %s", where, key, why);
}

// Llama, or Mistral without a sliding window, which computes the same.
static void check_architecture(const json_t* json, const char* where) {
    if (strcmp(member_string(json, "model_type", where), "mistral")) refuse_other(json, "model_type", "llama", where);
    else refuse_present(json, "sliding_window", "attention in a sliding window is not supported", where);
    if (!has_member(json, "architectures")) return;
    const json_t* list = json_object_get(json, "architectures");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char* name = json_string_value(json_array_get(list, i));
        if (!name || (strcmp(name, "LlamaForCausalLM") && strcmp(name, "MistralForCausalLM")))
            user_error("%s: \"architectures\" names %s, only LlamaForCausalLM and MistralForCausalLM are supported", where,
                       name ? printable(name) : "something that is no string");
    }
    if (!json_is_array(list)) user_error("%s: \"architectures\" has to be a list of names", where);
}

// Refuses settings that ask for another function than this program's model computes.
static void check_function(const json_t* json, const char* where) {
    check_architecture(json, where);
    if (has_member(json, "hidden_act")) refuse_other(json, "hidden_act", "silu", where);
    refuse_true(json, "attention_bias", where);
    refuse_true(json, "mlp_bias", where);
    refuse_present(json, "quantization_config", "quantized weights are not supported; take the model's plain BF16 weights", where);
    if (has_member(json, "attention_dropout")) {
        const json_t* dropout = json_object_get(json, "attention_dropout");
        if (!json_is_number(dropout) || json_number_value(dropout) != 0)
            user_error("%s: \"attention_dropout\" has to be 0; attention is trained without dropout here", where);
    }
    if (has_member(json, "partial_rotary_factor") && member_positive(json, "partial_rotary_factor", where) != 1.0)
        user_error("%s: \"partial_rotary_factor\" has to be 1", where);
    // Reading the tensors does not need the dtype, but hf_config_copy replaces it, so it must be a string.
    if (has_member(json, "torch_dtype")) member_string(json, "torch_dtype", where);
    if (has_member(json, "dtype")) member_string(json, "dtype", where);
}

static void read_sizes(const json_t* json, Config* c, const char* path) {
    c->V = member_int(json, "vocab_size", 1, INT_MAX, path);
    c->C = member_int(json, "hidden_size", 1, INT_MAX, path);
    c->L = member_int(json, "num_hidden_layers", 1, kMaxLayers, path);
    c->NH = member_int(json, "num_attention_heads", 1, INT_MAX, path);
    c->F = member_int(json, "intermediate_size", 1, INT_MAX, path);
    c->max_T = member_int(json, "max_position_embeddings", 1, INT_MAX, path);
    c->NKV = has_member(json, "num_key_value_heads") ? member_int(json, "num_key_value_heads", 1, INT_MAX, path) : c->NH;
    if (has_member(json, "head_dim")) {
        c->HD = member_int(json, "head_dim", 1, INT_MAX, path);
    } else {
        if (c->C % c->NH)
            user_error("%s: \"head_dim\" is missing and \"hidden_size\" %d is not a multiple of \"num_attention_heads\" %d",
                       path, c->C, c->NH);
        c->HD = c->C / c->NH;
    }
}

static void check_token_ids(const json_t* json, const char* key, int vocabulary, const char* where) {
    int ids[kMaxEos];
    int count = read_token_ids(json, key, ids, 0, where);
    for (int i = 0; i < count; i++)
        if (ids[i] >= vocabulary)
            user_error("%s: \"%s\" names token %d, but \"vocab_size\" is %d", where, key, ids[i], vocabulary);
}

void hf_config_parse(const char* text, size_t bytes, const char* where, Config* c) {
    json_t* json = json_parse(text, bytes, where);
    if (!json_is_object(json)) user_error("%s: has to be an object", where);
    memset(c, 0, sizeof *c);
    check_function(json, where);
    read_sizes(json, c, where);
    c->norm_eps = (float)member_positive(json, "rms_norm_eps", where);
    c->tied = has_member(json, "tie_word_embeddings") && member_bool(json, "tie_word_embeddings", where);
    check_token_ids(json, "bos_token_id", c->V, where);
    check_token_ids(json, "eos_token_id", c->V, where);
    c->bos = first_token_id(json, "bos_token_id", where);
    c->eos = first_token_id(json, "eos_token_id", where);
    c->init_std = has_member(json, "initializer_range") ? (float)member_positive(json, "initializer_range", where) : 0.02f;
    read_rope(json, c, where);
    config_check(c, where);
    json_decref(json);
}

void hf_config_read(const char* dir, Config* config) {
    char* path = path_join(dir, "config.json");
    size_t bytes;
    char* text = file_read(path, &bytes);
    hf_config_parse(text, bytes, path, config);
    free(text);
    free(path);
}

void hf_config_of_files(const ModelFiles* files, const char* dir, Config* config) {
    const ModelFile* file = model_files_get(files, "config.json");
    if (!file) {
        hf_config_read(dir, config);   // says what is missing
        return;
    }
    char* path = path_join(dir, file->name);
    hf_config_parse(file->text, file->bytes, path, config);
    free(path);
}

int hf_config_eos(const ModelFiles* files, const char* where, int ids[kMaxEos]) {
    const char* names[] = {"config.json", "generation_config.json"};
    int count = 0;
    for (int i = 0; i < 2; i++) {
        const ModelFile* file = model_files_get(files, names[i]);
        if (!file) continue;
        char* path = path_join(where, names[i]);
        json_t* json = json_parse(file->text, file->bytes, path);
        count = read_token_ids(json, "eos_token_id", ids, count, path);
        json_decref(json);
        free(path);
    }
    return count;
}

// ---- writing

static const char* torch_name(Fmt dtype) {
    check(dtype == F32 || dtype == BF16, "config.json: no dtype for %s", fmt_name(dtype));
    return dtype == F32 ? "float32" : "bfloat16";
}

// The fewest digits that read back as the same number, with a point or an exponent, so that JSON readers take it for a floating-point
// number: 500000.0, 1e-05.
static void shortest(double x, bool single, char text[32]) {
    bool whole = x == floor(x) && fabs(x) < 1e15;
    if (whole) snprintf(text, 32, "%.1f", x);
    for (int digits = 1; !whole && digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, x);
        if (single ? (float)strtod(text, NULL) == (float)x : strtod(text, NULL) == x) break;
    }
    if (!strpbrk(text, ".e")) strcat(text, ".0");
}

char* hf_config_text(const Config* c, Fmt dtype) {
    char eps[32], theta[32], init[32], factor[32], low[32], high[32], bos[16] = "null", eos[16] = "null", scaling[256] = "null";
    shortest(c->norm_eps, true, eps);
    shortest(c->rope_theta, false, theta);
    shortest(c->init_std, true, init);
    if (c->bos >= 0) snprintf(bos, sizeof bos, "%d", c->bos);
    if (c->eos >= 0) snprintf(eos, sizeof eos, "%d", c->eos);
    if (c->rope_type == ROPE_LLAMA3) {
        shortest(c->rope_factor, false, factor);
        shortest(c->rope_low_freq, false, low);
        shortest(c->rope_high_freq, false, high);
        snprintf(scaling, sizeof scaling,
                 "{\n    \"factor\": %s,\n    \"high_freq_factor\": %s,\n    \"low_freq_factor\": %s,\n"
                 "    \"original_max_position_embeddings\": %d,\n    \"rope_type\": \"llama3\"\n  }",
                 factor, high, low, c->rope_original_T);
    }
    const size_t text_bytes = 2048;
    char* text = (char*)host_alloc(text_bytes);
    int used = snprintf(text, text_bytes,
                        "{\n"
                        "  \"architectures\": [\n    \"LlamaForCausalLM\"\n  ],\n"
                        "  \"attention_bias\": false,\n"
                        "  \"bos_token_id\": %s,\n"
                        "  \"eos_token_id\": %s,\n"
                        "  \"head_dim\": %d,\n"
                        "  \"hidden_act\": \"silu\",\n"
                        "  \"hidden_size\": %d,\n"
                        "  \"initializer_range\": %s,\n"
                        "  \"intermediate_size\": %d,\n"
                        "  \"max_position_embeddings\": %d,\n"
                        "  \"mlp_bias\": false,\n"
                        "  \"model_type\": \"llama\",\n"
                        "  \"num_attention_heads\": %d,\n"
                        "  \"num_hidden_layers\": %d,\n"
                        "  \"num_key_value_heads\": %d,\n"
                        "  \"rms_norm_eps\": %s,\n"
                        "  \"rope_scaling\": %s,\n"
                        "  \"rope_theta\": %s,\n"
                        "  \"tie_word_embeddings\": %s,\n"
                        "  \"torch_dtype\": \"%s\",\n"
                        "  \"vocab_size\": %d\n"
                        "}\n",
                        bos, eos, c->HD, c->C, init, c->F, c->max_T, c->NH, c->L, c->NKV, eps, scaling, theta,
                        c->tied ? "true" : "false", torch_name(dtype), c->V);
    check(used > 0 && (size_t)used < text_bytes, "hf_config_text: %d bytes", used);
    return text;
}

char* hf_config_copy(const char* dir, Fmt dtype) {
    char* path = path_join(dir, "config.json");
    size_t bytes;
    char* source = file_read(path, &bytes);
    ModelFiles* files = model_files_new();
    model_files_set(files, "config.json", source, bytes);
    model_files_set_dtype(files, dtype);
    char* text = host_strdup(model_files_get(files, "config.json")->text);
    model_files_free(files);
    free(source);
    free(path);
    return text;
}
