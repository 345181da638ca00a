// Hugging Face's config.json: see hf_config.h.
#include "hf_config.h"

#include "files.h"
#include "json.h"

#include <limits.h>

// ---- reading

// A token id, or a list of them; appends those that are not in the list yet.
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

// rope_scaling and rope_parameters name the type in the same way; only the latter holds rope_theta as well.
static void read_rope(const json_t* config, Config* c, const char* where) {
    const double default_theta = 10000.0;
    c->rope_theta = has_member(config, "rope_theta") ? member_positive(config, "rope_theta", where) : default_theta;
    bool old_key = has_member(config, "rope_scaling"), new_key = has_member(config, "rope_parameters");
    if (old_key && new_key) user_error("%s: has both \"rope_scaling\" and \"rope_parameters\"; keep one", where);
    if (!old_key && !new_key) return;

    const json_t* rope = member_object(config, old_key ? "rope_scaling" : "rope_parameters", where);
    if (has_member(rope, "rope_theta")) c->rope_theta = member_positive(rope, "rope_theta", where);
    const char* key = has_member(rope, "rope_type") ? "rope_type" : "type";
    const char* type = has_member(rope, key) || old_key ? member_string(rope, key, where) : "default";
    if (!strcmp(type, "default")) return;
    if (strcmp(type, "llama3"))
        user_error("%s: the RoPE type \"%s\" is not supported, only \"default\" and \"llama3\" are", where, printable(type));
    c->rope_type = ROPE_LLAMA3;
    c->rope_factor = member_positive(rope, "factor", where);
    c->rope_low_freq = member_positive(rope, "low_freq_factor", where);
    c->rope_high_freq = member_positive(rope, "high_freq_factor", where);
    c->rope_original_T = member_int(rope, "original_max_position_embeddings", 1, INT_MAX, where);
}

void hf_config_read(const char* dir, Config* c) {
    char* path = path_join(dir, "config.json");
    json_t* json = json_parse_file(path);
    if (!json_is_object(json)) user_error("%s: has to be an object", path);
    memset(c, 0, sizeof *c);

    refuse_other(json, "model_type", "llama", path);
    if (has_member(json, "hidden_act")) refuse_other(json, "hidden_act", "silu", path);
    refuse_true(json, "attention_bias", path);
    refuse_true(json, "mlp_bias", path);
    if (has_member(json, "partial_rotary_factor") && member_positive(json, "partial_rotary_factor", path) != 1.0)
        user_error("%s: \"partial_rotary_factor\" has to be 1", path);
    // Not needed to read the tensors, but hf_config_copy will replace them.
    if (has_member(json, "torch_dtype")) member_string(json, "torch_dtype", path);
    if (has_member(json, "dtype")) member_string(json, "dtype", path);

    c->V = member_int(json, "vocab_size", 1, INT_MAX, path);
    c->C = member_int(json, "hidden_size", 1, INT_MAX, path);
    c->L = member_int(json, "num_hidden_layers", 1, INT_MAX, path);
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
    c->norm_eps = (float)member_positive(json, "rms_norm_eps", path);
    c->tied = has_member(json, "tie_word_embeddings") && member_bool(json, "tie_word_embeddings", path);
    c->bos = first_token_id(json, "bos_token_id", path);
    c->eos = first_token_id(json, "eos_token_id", path);
    c->init_std = has_member(json, "initializer_range") ? (float)member_positive(json, "initializer_range", path) : 0.02f;
    read_rope(json, c, path);
    config_check(c, path);
    json_decref(json);
    free(path);
}

int hf_config_eos(const char* dir, int ids[kMaxEos]) {
    const char* files[] = {"config.json", "generation_config.json"};
    int count = 0;
    for (int i = 0; i < 2; i++) {
        char* path = path_join(dir, files[i]);
        if (i == 0 || path_exists(path)) {
            json_t* json = json_parse_file(path);
            count = read_token_ids(json, "eos_token_id", ids, count, path);
            json_decref(json);
        }
        free(path);
    }
    return count;
}

// ---- writing

static const char* torch_name(Fmt dtype) {
    check(dtype == F32 || dtype == BF16, "config.json: no dtype for %s", fmt_name(dtype));
    return dtype == F32 ? "float32" : "bfloat16";
}

// The fewest digits that read back as the same number, with a point or an exponent, so that it stays a floating-point value:
// 500000.0, 1e-05.
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

// The end of the JSON value that starts at `at`, in text that has been parsed before: strings are skipped whole, and a value
// ends where a comma or a closing bracket follows at its own depth.
static const char* value_end(const char* at) {
    int depth = 0;
    for (;; at++) {
        if (*at == '"') {
            for (at++; *at != '"'; at++) at += *at == '\\';
        } else if (*at == '{' || *at == '[') {
            depth++;
        } else if ((*at == '}' || *at == ']') && depth-- == 0) {
            break;
        } else if (*at == ',' && depth == 0) {
            break;
        }
    }
    while (strchr(" \t\r\n", at[-1])) at--;
    return at;
}

static const char* skip_space(const char* at) { return at + strspn(at, " \t\r\n"); }

// Whether the text at `at` is the quoted key.
static bool is_key(const char* at, const char* key) {
    size_t n = strlen(key);
    return at[0] == '"' && !strncmp(at + 1, key, n) && at[n + 1] == '"';
}

char* hf_config_copy(const char* dir, Fmt dtype) {
    char* path = path_join(dir, "config.json");
    size_t bytes;
    char* source = file_read(path, &bytes);
    json_t* want = json_parse(source, bytes, path);
    if (!json_is_object(want)) user_error("%s: has to be an object", path);
    const char* name = torch_name(dtype);

    // Each dtype's value gives way to the new name; everything in between is copied.
    char* text = (char*)host_alloc(bytes + 64);
    char* out = text;
    const char* copied = source;
    bool found = false;
    const char* at = skip_space(source) + 1;   // after the opening brace
    while (*(at = skip_space(at)) == '"') {
        bool is_dtype = is_key(at, "torch_dtype") || is_key(at, "dtype");
        const char* key_end = at + 1;
        while (*key_end != '"') key_end += *key_end == '\\' ? 2 : 1;
        const char* value = skip_space(skip_space(key_end + 1) + 1);
        at = value_end(value);
        if (is_dtype) {
            out += sprintf(out, "%.*s\"%s\"", (int)(value - copied), copied, name);
            copied = at;
            found = true;
        }
        at = skip_space(at);
        if (*at == ',') at++;
    }
    if (!found) {
        const char* body = strchr(source, '{') + 1;
        out += sprintf(out, "%.*s\n  \"torch_dtype\": \"%s\"%s", (int)(body - copied), copied, name,
                       json_object_size(want) ? "," : "");
        copied = body;
    }
    strcpy(out, copied);

    // The proof: the copy means what the source means with the dtype set.
    if (json_object_get(want, "dtype")) json_object_set_new(want, "dtype", json_string(name));
    if (json_object_get(want, "torch_dtype") || !found) json_object_set_new(want, "torch_dtype", json_string(name));
    json_t* got = json_parse(text, strlen(text), path);
    check(json_equal(got, want), "%s: replacing the dtype changed something else", path);
    json_decref(got);
    json_decref(want);
    free(source);
    free(path);
    return text;
}
