// Adapters in PEFT's format: see peft.h.
#include "peft.h"

#include <limits.h>
#include <math.h>

#include "hf_layout.h"
#include "json.h"

struct Peft {
    SafeTensors* file;
    ParamSpec specs[kMaxParamSpecs];
    int spec_count, layers;
    char* base;   // what the configuration calls the base model, or NULL
    const Tensor** tensors;   // (spec_count, layers)
};

// ---- the configuration

// Does the value of a key ask for nothing: null, false or empty? Keys that would make the adapter more than LoRA on whole kinds of
// matrices must be absent or have such a value. (A 0 asks for something: layers_to_transform 0 is the first layer.)
static bool says_nothing(const json_t* value) {
    if (!value || json_is_null(value) || json_is_false(value)) return true;
    return (json_is_array(value) || json_is_object(value)) && json_array_size(value) + json_object_size(value) == 0;
}

static void refuse_more_than_lora(const json_t* config, const char* path) {
    static const char* const keys[] = {"use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern",
                                       "layers_to_transform", "layers_pattern", "layer_replication", "lora_bias", "exclude_modules",
                                       "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_qalora", "use_bdlora",
                                       "kasa_config", "monteclora_config", "arrow_config", "megatron_config"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (!says_nothing(json_object_get(config, keys[i])))
            user_error("%s: \"%s\" is set: only plain LoRA of the same matrices in every layer is supported", path, keys[i]);
    const char* kind = member_string(config, "peft_type", path);
    if (strcmp(kind, "LORA")) user_error("%s: peft_type is \"%s\", only LORA is supported", path, printable(kind));
    const char* bias = has_member(config, "bias") ? member_string(config, "bias", path) : "none";
    if (strcmp(bias, "none")) user_error("%s: bias is \"%s\": only adapters without biases are supported", path, printable(bias));
    const json_t* start = json_object_get(config, "init_lora_weights");
    const char* name = json_string_value(start);
    if (name && strcmp(name, "gaussian") && strcmp(name, "eva") && strcmp(name, "orthogonal"))
        user_error("%s: init_lora_weights \"%s\" may have changed the base model's weights; save the adapter converted to plain LoRA "
                   "(path_initial_model_for_weight_conversion)", path, printable(name));
}

// The target bit of a module's name: "q_proj", or a path without layers that ends in ".q_proj".
static unsigned target_bit(const char* module, const char* path) {
    const char* dot = strrchr(module, '.');
    const char* last = dot ? dot + 1 : module;
    bool in_one_layer = strpbrk(module, "0123456789") != NULL;
    for (int t = 0; t < kTargets && !in_one_layer; t++) {
        size_t n = strlen(kTargetNames[t]);
        if (!strncmp(last, kTargetNames[t], n) && !strcmp(last + n, "_proj")) return 1u << t;
    }
    user_error("%s: target_modules names \"%s\"; supported are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj in all layers",
               path, printable(module));
}

static unsigned read_targets(const json_t* config, const char* path) {
    const json_t* modules = json_object_get(config, "target_modules");
    const char* word = json_string_value(modules);
    if (word && !strcmp(word, "all-linear")) return kAllTargets;
    if (!json_array_size(modules)) user_error("%s: target_modules has to be a list of names", path);
    unsigned targets = 0;
    for (size_t i = 0; i < json_array_size(modules); i++) {
        const char* module = json_string_value(json_array_get(modules, i));
        if (!module) user_error("%s: target_modules has to be a list of names", path);
        targets |= target_bit(module, path);
    }
    return targets;
}

// Returns base_model_name_or_path, NULL where it is not said.
static char* read_config(const char* path, Adapter* a) {
    json_t* config = json_parse_file(path);
    refuse_more_than_lora(config, path);
    a->kind = ADAPTER_LORA;
    a->rank = member_int(config, "r", 1, 1 << 16, path);
    double alpha = member_positive(config, "lora_alpha", path);
    a->alpha = (float)alpha;
    a->rslora = has_member(config, "use_rslora") && member_bool(config, "use_rslora", path);
    if (!isnormal(adapter_scale(a)))
        user_error("%s: lora_alpha %g with r %d is a scale beyond what a float holds", path, alpha, a->rank);
    a->targets = read_targets(config, path);
    const char* base = json_string_value(json_object_get(config, "base_model_name_or_path"));
    char* name = base && *base ? host_strdup(base) : NULL;
    json_decref(config);
    return name;
}

// ---- the tensors

static void set_matrix_shape(Tensor* tensor, const ParamSpec* spec) {
    tensor->rank = 2;
    tensor->shape[0] = (size_t)spec->rows;
    tensor->shape[1] = (size_t)spec->cols;
}

static void check_factor(const Tensor* tensor, const char* name, const ParamSpec* spec, const char* path) {
    if (!tensor) user_error("%s: tensor \"%s\" is missing", path, name);
    Tensor want;
    set_matrix_shape(&want, spec);
    if (tensor->rank != 2 || tensor->shape[0] != want.shape[0] || tensor->shape[1] != want.shape[1])
        user_error("%s: tensor \"%s\" has the shape %s; the model and %s ask for %s", path, name, shape_text(tensor), HF_ADAPTER_CONFIG_NAME,
                   shape_text(&want));
    if (tensor->dtype != ST_F32 && tensor->dtype != ST_F16 && tensor->dtype != ST_BF16)
        user_error("%s: tensor \"%s\" is stored as %s; F32, F16 and BF16 are supported", path, name, dtype_name(tensor->dtype));
}

static void find_factors(Peft* p, const char* path) {
    p->tensors = (const Tensor**)host_alloc((size_t)p->spec_count * (size_t)p->layers * sizeof *p->tensors);
    for (int s = 0; s < p->spec_count; s++)
        for (int layer = 0; layer < p->layers; layer++) {
            char name[kParamNameBytes];
            param_name(&p->specs[s], layer, name, sizeof name);
            const Tensor* tensor = safetensors_find(p->file, name);
            check_factor(tensor, name, &p->specs[s], path);
            p->tensors[(size_t)s * p->layers + layer] = tensor;
        }
    for (int i = 0; i < safetensors_count(p->file); i++) {
        const Tensor* tensor = safetensors_at(p->file, i);
        bool known = false;
        for (int k = 0; k < p->spec_count * p->layers && !known; k++) known = p->tensors[k] == tensor;
        if (!known)
            user_error("%s: unexpected tensor \"%s\": %s and the model do not speak of it", path, printable(tensor->name), HF_ADAPTER_CONFIG_NAME);
    }
}

Peft* peft_open(const char* dir, Config* config) {
    hf_model_recover(dir);
    char *config_path = path_join(dir, HF_ADAPTER_CONFIG_NAME), *path = path_join(dir, HF_ADAPTER_NAME);
    if (!path_exists(config_path)) user_error("%s: is not there; an adapter's directory holds it", config_path);
    Peft* p = (Peft*)host_alloc(sizeof *p);
    p->base = read_config(config_path, &config->adapter);
    p->layers = config->L;
    p->spec_count = adapter_specs(config, p->specs);
    p->file = safetensors_open(path);
    find_factors(p, path);
    free(config_path);
    free(path);
    return p;
}

const char* peft_base(const Peft* p) { return p->base; }

void peft_close(Peft* p) {
    safetensors_close(p->file);
    free((void*)p->tensors);
    free(p->base);
    free(p);
}

void peft_rows(const Peft* p, int spec, int layer, int first_row, int rows, float* dst) {
    check(spec >= 0 && spec < p->spec_count && layer >= 0 && layer < p->layers, "peft_rows: parameter %d, layer %d", spec, layer);
    size_t cols = (size_t)p->specs[spec].cols;
    tensor_read(p->tensors[(size_t)spec * p->layers + layer], (size_t)first_row * cols, (size_t)rows * cols, F32, dst);
}

// ---- writing

enum { kFloatDigits = 9 };   // tell any float from its neighbours
// The number with the fewest digits that reads back as x: 0.1 of 0.1f, which as a double prints as 0.10000000149.
static double shortest_decimal(float x) {
    char text[32];
    for (int digits = 6; digits <= kFloatDigits; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) break;
    }
    return strtod(text, NULL);
}

static json_t* target_modules(const Adapter* a) {
    json_t* modules = json_array();
    for (int t = 0; t < kTargets; t++)
        if (a->targets >> t & 1) json_array_append_new(modules, json_sprintf("%s_proj", kTargetNames[t]));
    return modules;
}

static json_t* hira_json(const Adapter* a, const char* base) {
    return json_pack("{s:s, s:s, s:s, s:n, s:b, s:i, s:o, s:f, s:b, s:b, s:n, s:{}, s:n}", "peft_type", "HIRA", "task_type", "CAUSAL_LM",
                     "base_model_name_or_path", base, "revision", "inference_mode", 1, "r", a->rank, "target_modules", target_modules(a),
                     "hira_dropout", 0.0, "fan_in_fan_out", 0, "init_weights", 1, "modules_to_save", "rank_pattern", "layers_to_transform");
}

static json_t* lora_json(const Adapter* a, const char* base) {
    bool whole = a->alpha == floorf(a->alpha) && a->alpha < (float)(1 << 24);
    json_t* alpha = whole ? json_integer((json_int_t)a->alpha) : json_real(shortest_decimal(a->alpha));
    return json_pack("{s:s, s:s, s:s, s:n, s:b, s:i, s:o, s:f, s:o, s:s, s:b, s:b, s:b, s:n, s:b, s:{}, s:{}, s:n}", "peft_type", "LORA",
                     "task_type", "CAUSAL_LM", "base_model_name_or_path", base, "revision", "inference_mode", 1, "r", a->rank, "lora_alpha",
                     alpha, "lora_dropout", shortest_decimal(a->dropout), "target_modules", target_modules(a), "bias", "none",
                     "fan_in_fan_out", 0, "use_rslora", a->rslora, "use_dora", 0, "modules_to_save", "init_lora_weights", 1, "rank_pattern", "alpha_pattern",
                     "layers_to_transform");
}

static const char kOfBase[] = "config.json";   // the base's file that is not written beside its adapter

// The names of all files of the adapter's folder, a line each.
static char* listed_files(const PeftOutput* o) {
    size_t room = sizeof HF_ADAPTER_CONFIG_NAME "\n" HF_ADAPTER_NAME "\n";
    for (int i = 0; i < model_files_count(o->files); i++) room += strlen(model_files_at(o->files, i)->name) + 1;
    char *text = (char*)host_alloc(room), *end = text;
    for (int i = 0; i < model_files_count(o->files); i++)
        if (strcmp(model_files_at(o->files, i)->name, kOfBase)) end += sprintf(end, "%s\n", model_files_at(o->files, i)->name);
    sprintf(end, "%s\n%s\n", HF_ADAPTER_CONFIG_NAME, HF_ADAPTER_NAME);
    return text;
}

static void write_config(const PeftOutput* o, const Adapter* adapter, const char* dir) {
    char* base = realpath(o->base, NULL);   // the absolute path of a folder; NULL for a name on the hub, which stays as it is
    json_t* json = (adapter->kind == ADAPTER_HUT ? hira_json : lora_json)(adapter, base ? base : o->base);
    char* text = json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(kFloatDigits));
    check(text, "peft_write: no text");
    file_write(dir, HF_ADAPTER_CONFIG_NAME, text, strlen(text));
    free(text);
    json_decref(json);
    free(base);
}

// A factor's name; HiRA's factors are parameters of the module itself: "...q_proj.hira_A" for "...q_proj.lora_A.weight".
static void factor_name(const Config* c, const ParamSpec* spec, int layer, char name[kParamNameBytes]) {
    param_name(spec, layer, name, kParamNameBytes);
    if (c->adapter.kind != ADAPTER_HUT) return;
    char* at = strstr(name, ".lora_");
    memcpy(at, ".hira_", 6);
    at[7] = 0;
}

// Writes all factors in the order of specs and layers to `path`; NULL: only calls `rows`.
static void write_factors(const char* path, const Config* config, Fmt fmt, HfRows rows, void* context) {
    ParamSpec specs[kMaxParamSpecs];
    int count = adapter_specs(config, specs), L = config->L;
    Tensor* tensors = (Tensor*)host_alloc(sizeof(Tensor) * (size_t)count * (size_t)L);
    char(*names)[kParamNameBytes] = (char(*)[kParamNameBytes])host_alloc((size_t)count * (size_t)L * kParamNameBytes);
    for (int i = 0; i < count * L; i++) {
        factor_name(config, &specs[i / L], i % L, names[i]);
        tensors[i].name = names[i];
        tensors[i].dtype = dtype_of(fmt);
        set_matrix_shape(&tensors[i], &specs[i / L]);
    }
    OutFile out;
    if (path) out = safetensors_create(path, tensors, count * L);
    for (int i = 0; i < count * L; i++) {
        const ParamSpec* spec = &specs[i / L];
        size_t values = (size_t)spec->rows * spec->cols;
        void* buffer = host_alloc(values * fmt_bytes(fmt));
        rows(context, i / L, i % L, 0, spec->rows, buffer);
        if (path && first_not_finite(buffer, values, fmt) < values)
            user_error("the adapter is not written: tensor \"%s\" is not finite; go back to an older checkpoint", names[i]);
        if (path) out_write(&out, buffer, values * fmt_bytes(fmt));
        free(buffer);
    }
    if (path) out_close(&out);
    free(tensors);
    free(names);
}

void peft_write(const PeftOutput* o, const Config* config, HfRows rows, void* context) {
    if (!o->dir) {
        write_factors(NULL, config, o->fmt, rows, context);
        return;
    }
    char *partial = hf_folder_begin(o->dir), *path = path_join(partial, HF_ADAPTER_NAME), *list = listed_files(o);
    hf_files_write(o->files, partial, kOfBase);
    write_config(o, &config->adapter, partial);
    write_factors(path, config, o->fmt, rows, context);
    hf_folder_end(o->dir, partial, list);
    free(list);
    free(path);
}
