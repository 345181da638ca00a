// Llama-3's sizes: the parameter list, presets, and the checks on a configuration.
#include "config.h"

int param_specs(const Config* c, ParamSpec specs[kMaxParamSpecs]) {
    int q = c->NH * c->HD, kv = c->NKV * c->HD;
    const ParamSpec all[] = {
        // name                                              rows   cols  layer  decay  stack
        {"model.embed_tokens.weight",                        c->V,  c->C, false, true,  S_EMBED},
        {"model.layers.%d.input_layernorm.weight",           1,     c->C, true, false, S_ATTN_NORM},
        {"model.layers.%d.self_attn.q_proj.weight",          q,     c->C, true,  true,  S_QKV},
        {"model.layers.%d.self_attn.k_proj.weight",          kv,    c->C, true,  true,  S_QKV},
        {"model.layers.%d.self_attn.v_proj.weight",          kv,    c->C, true,  true,  S_QKV},
        {"model.layers.%d.self_attn.o_proj.weight",          c->C,  q,    true,  true,  S_O},
        {"model.layers.%d.post_attention_layernorm.weight",  1,     c->C, true, false, S_MLP_NORM},
        {"model.layers.%d.mlp.gate_proj.weight",             c->F,  c->C, true,  true,  S_GATE_UP},
        {"model.layers.%d.mlp.up_proj.weight",               c->F,  c->C, true,  true,  S_GATE_UP},
        {"model.layers.%d.mlp.down_proj.weight",             c->C,  c->F, true,  true,  S_DOWN},
        {"model.norm.weight",                                1,     c->C, false, false, S_FINAL_NORM},
        {"lm_head.weight",                                   c->V,  c->C, false, true,  S_HEAD},
    };
    int count = (int)(sizeof all / sizeof all[0]) - (c->tied ? 1 : 0);
    memcpy(specs, all, sizeof(ParamSpec) * (size_t)count);
    return count;
}

// PEFT's names of A and B, indexed by adapter_target.
#define LORA_NAMES(module) \
    {"base_model.model.model.layers.%d." module "_proj.lora_A.weight", "base_model.model.model.layers.%d." module "_proj.lora_B.weight"}
static const char* const kLoraNames[kTargets][2] = {
    LORA_NAMES("self_attn.q"), LORA_NAMES("self_attn.k"), LORA_NAMES("self_attn.v"), LORA_NAMES("self_attn.o"),
    LORA_NAMES("mlp.gate"), LORA_NAMES("mlp.up"), LORA_NAMES("mlp.down"),
};

const char* const kTargetNames[kTargets] = {"q", "k", "v", "o", "gate", "up", "down"};

int adapter_target(int linear, int part) {
    static const int first[kLinearCount] = {0, 3, 4, 6};
    return first[linear] + part;
}

float adapter_scale(const Adapter* a) {
    return a->rslora ? (float)(a->alpha / sqrt((double)a->rank)) : a->alpha / (float)a->rank;
}

int adapter_specs(const Config* c, ParamSpec specs[kMaxParamSpecs]) {
    int count = 0;
    for (int i = 0; i < kLinearCount; i++) {
        LinearShape shape = stack_shape(c, kLinears[i].stack);
        for (int p = 0; p < shape.parts; p++) {
            if (!adapter_adapts(&c->adapter, i, p)) continue;
            const char* const* names = kLoraNames[adapter_target(i, p)];
            const ParamSpec a = {names[0], c->adapter.rank, shape.K, true, true, kLinears[i].a};
            const ParamSpec b = {names[1], shape.N[p], c->adapter.rank, true, true, kLinears[i].b};
            specs[count++] = a;
            specs[count++] = b;
        }
    }
    return count;
}

void param_name(const ParamSpec* spec, int layer, char* name, size_t bytes) {
    const char* number = strstr(spec->name, "%d");
    if (!number) snprintf(name, bytes, "%s", spec->name);
    else snprintf(name, bytes, "%.*s%d%s", (int)(number - spec->name), spec->name, layer, number + 2);
}

StackSize stack_size(const Config* config, Stack stack) {
    ParamSpec specs[kMaxParamSpecs];
    int count = stack < S_QKV_A ? param_specs(config, specs) : adapter_specs(config, specs);
    StackSize size = {0, 0};
    for (int i = 0; i < count; i++) {
        if (specs[i].stack != stack) continue;
        size.rows += specs[i].rows;
        size.cols = specs[i].cols;
    }
    return size;
}

bool stack_is_norm(Stack stack) { return stack == S_ATTN_NORM || stack == S_MLP_NORM || stack == S_FINAL_NORM; }

const BlockLinear kLinears[kLinearCount] = {
    // stack     name       matrices                        reads the output of        adapter
    {S_QKV,     "qkv",     {"q_proj", "k_proj", "v_proj"}, S_ATTN_NORM,               S_QKV_A,     S_QKV_B},
    {S_O,       "o",       {"o_proj", NULL, NULL},         kStacks /* attention */,   S_O_A,       S_O_B},
    {S_GATE_UP, "gate_up", {"gate_proj", "up_proj", NULL}, S_MLP_NORM,                S_GATE_UP_A, S_GATE_UP_B},
    {S_DOWN,    "down",    {"down_proj", NULL, NULL},      kStacks /* SwiGLU */,      S_DOWN_A,    S_DOWN_B},
};

int linear_of_stack(Stack stack) {
    for (int i = 0; i < kLinearCount; i++)
        if (kLinears[i].stack == stack) return i;
    return -1;
}

LinearShape stack_shape(const Config* config, Stack stack) {
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(config, specs);
    LinearShape shape = {0, 0, {0, 0, 0}};
    for (int i = 0; i < count; i++) {
        if (specs[i].stack != stack) continue;
        shape.K = specs[i].cols;
        shape.N[shape.parts++] = specs[i].rows;
    }
    return shape;
}

size_t param_count(const Config* config) {
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(config, specs);
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += (size_t)specs[i].rows * specs[i].cols * (specs[i].per_layer ? (size_t)config->L : 1);
    return total;
}

double train_flops_per_token(const Config* c, int T) {
    // Every weight is in a product, except an untied embedding's, whose rows are only looked up.
    double weights = (double)param_count(c) - (c->tied ? 0.0 : (double)c->V * c->C);
    ParamSpec specs[kMaxParamSpecs];
    int count = adapter_specs(c, specs);
    double factors = 0, adapted = 0;
    for (int i = 0; i < count; i += 2) {   // A (rank, K), then B (N, rank)
        const ParamSpec *A = &specs[i], *B = &specs[i + 1];
        factors += ((double)A->rows * A->cols + (double)B->rows * B->cols) * c->L;
        adapted += (double)B->rows * A->cols * c->L;
    }
    double attention = 6.0 * c->L * (double)T * c->NH * c->HD;
    switch (c->adapter.kind) {
        case ADAPTER_NONE: return 6 * weights + attention;
        case ADAPTER_LORA: return 4 * weights + 6 * factors + attention;
        case ADAPTER_HUT: return 4 * weights + 2 * adapted + attention;
    }
    die("train_flops_per_token: adapter %d", (int)c->adapter.kind);
}

void config_check(const Config* c, const char* where) {
    const struct {
        const char* key;
        int value;
    } positive[] = {{"vocab_size", c->V}, {"hidden_size", c->C}, {"num_hidden_layers", c->L}, {"num_attention_heads", c->NH},
                    {"num_key_value_heads", c->NKV}, {"head_dim", c->HD}, {"intermediate_size", c->F},
                    {"max_position_embeddings", c->max_T}};
    for (size_t i = 0; i < sizeof positive / sizeof positive[0]; i++)
        if (positive[i].value < 1 || positive[i].value > 1 << 24)
            user_error("%s: %s is %d; a size from 1 to %d is expected", where, positive[i].key, positive[i].value, 1 << 24);
    if (c->NH % c->NKV)
        user_error("%s: num_attention_heads %d is no multiple of num_key_value_heads %d", where, c->NH, c->NKV);
    if (c->HD % 2) user_error("%s: head_dim %d is odd; rotary embeddings need pairs", where, c->HD);
    if ((double)c->NH * c->HD > 1 << 24) user_error("%s: num_attention_heads * head_dim is too large", where);
    if (!(c->norm_eps > 0 && c->norm_eps < 1)) user_error("%s: rms_norm_eps %g is not between 0 and 1", where, c->norm_eps);
    if (!(c->rope_theta > 0)) user_error("%s: rope_theta %g is not positive", where, c->rope_theta);
    if (c->rope_type == ROPE_LLAMA3) {
        if (!(c->rope_factor >= 1)) user_error("%s: rope factor %g is below 1", where, c->rope_factor);
        if (!(c->rope_high_freq > c->rope_low_freq && c->rope_low_freq > 0))
            user_error("%s: rope low_freq_factor %g and high_freq_factor %g must be positive and rising", where,
                       c->rope_low_freq, c->rope_high_freq);
        if (c->rope_original_T < 1)
            user_error("%s: rope original_max_position_embeddings is %d", where, c->rope_original_T);
    }
}

// Published sizes of Llama 3, and of SmolLM2, a smaller model with the same layers.
typedef struct {
    const char* name;
    int V, C, L, NH, NKV, HD, F, max_T;
    bool tied;
    double rope_theta, rope_factor;   // factor 0: no scaling
    int bos, eos;
} Preset;

static const Preset kPresets[] = {
    {"smollm2-135m", 49152, 576, 30, 9, 3, 64, 1536, 8192, true, 100000, 0, 1, 2},
    {"llama3.2-1b", 128256, 2048, 16, 32, 8, 64, 8192, 131072, true, 500000, 32, 128000, 128001},
    {"llama3.2-3b", 128256, 3072, 28, 24, 8, 128, 8192, 131072, true, 500000, 32, 128000, 128001},
    {"llama3-8b", 128256, 4096, 32, 32, 8, 128, 14336, 8192, false, 500000, 0, 128000, 128001},
    {"llama3.1-8b", 128256, 4096, 32, 32, 8, 128, 14336, 131072, false, 500000, 8, 128000, 128001},
    {"llama3-70b", 128256, 8192, 80, 64, 8, 128, 28672, 8192, false, 500000, 0, 128000, 128001},
    {"llama3.1-70b", 128256, 8192, 80, 64, 8, 128, 28672, 131072, false, 500000, 8, 128000, 128001},
};
enum { kPresetCount = sizeof kPresets / sizeof kPresets[0] };

bool config_preset(Config* config, const char* name) {
    for (int i = 0; i < kPresetCount; i++) {
        const Preset* p = &kPresets[i];
        if (strcmp(p->name, name)) continue;
        memset(config, 0, sizeof *config);
        config->V = p->V;
        config->C = p->C;
        config->L = p->L;
        config->NH = p->NH;
        config->NKV = p->NKV;
        config->HD = p->HD;
        config->F = p->F;
        config->max_T = p->max_T;
        config->norm_eps = 1e-5f;
        config->init_std = 0.02f;
        config->rope_theta = p->rope_theta;
        config->tied = p->tied;
        config->bos = p->bos;
        config->eos = p->eos;
        if (p->rope_factor > 0) {
            config->rope_type = ROPE_LLAMA3;
            config->rope_factor = p->rope_factor;
            config->rope_low_freq = 1;
            config->rope_high_freq = 4;
            config->rope_original_T = 8192;
        }
        return true;
    }
    return false;
}

const char* config_preset_names(void) {
    static char names[256];
    if (!names[0])
        for (int i = 0; i < kPresetCount; i++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", kPresets[i].name);
    return names;
}
