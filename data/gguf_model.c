// A Llama model in a GGUF file, sizes and weights: see gguf_model.h.
#include "gguf_model.h"

#include "json.h"

#include <limits.h>
#include <math.h>

enum { kNameBytes = 96 };
static const char kRopeTensor[] = "rope_freqs.weight";
static const double kRopeTolerance = 1e-4;   // of a factor: converters compute the frequencies in single precision

struct GgufModel {
    Gguf* file;
    Config config;
    ParamSpec specs[kMaxParamSpecs];
    int spec_count;
    const GgufTensor** tensors;   // (spec_count, L); a spec that is not per layer uses the first
};

const Gguf* gguf_model_file(const GgufModel* m) { return m->file; }
const Config* gguf_model_config(const GgufModel* m) { return &m->config; }

// ---- names

static const struct {
    const char *hf, *gguf;
} kNames[] = {
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.layers.%d.input_layernorm.weight", "blk.%d.attn_norm.weight"},
    {"model.layers.%d.self_attn.q_proj.weight", "blk.%d.attn_q.weight"},
    {"model.layers.%d.self_attn.k_proj.weight", "blk.%d.attn_k.weight"},
    {"model.layers.%d.self_attn.v_proj.weight", "blk.%d.attn_v.weight"},
    {"model.layers.%d.self_attn.o_proj.weight", "blk.%d.attn_output.weight"},
    {"model.layers.%d.post_attention_layernorm.weight", "blk.%d.ffn_norm.weight"},
    {"model.layers.%d.mlp.gate_proj.weight", "blk.%d.ffn_gate.weight"},
    {"model.layers.%d.mlp.up_proj.weight", "blk.%d.ffn_up.weight"},
    {"model.layers.%d.mlp.down_proj.weight", "blk.%d.ffn_down.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
};

void gguf_param_name(const ParamSpec* spec, int layer, char* name, size_t bytes) {
    for (size_t i = 0; i < sizeof kNames / sizeof kNames[0]; i++) {
        if (strcmp(kNames[i].hf, spec->name)) continue;
        ParamSpec renamed = *spec;
        renamed.name = kNames[i].gguf;
        param_name(&renamed, layer, name, bytes);
        return;
    }
    die("gguf_param_name: no GGUF name for %s", spec->name);
}

int gguf_permuted_head(const Config* config, const ParamSpec* spec) {
    bool rotated = strstr(spec->name, ".q_proj.") || strstr(spec->name, ".k_proj.");
    return rotated ? config->HD : 0;
}

// ---- RoPE scaling

// The formula of rope_table (llama3.c) as a divisor of the unscaled frequency.
float gguf_rope_factor(const Config* c, int i) {
    double frequency = pow(c->rope_theta, -2.0 * i / c->HD);
    double turns = c->rope_original_T * frequency / (2 * 3.14159265358979323846);
    double keep = (turns - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
    keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
    return (float)(1 / ((1 - keep) / c->rope_factor + keep));
}

static bool rope_matches(const Config* c, const float* factors) {
    for (int i = 0; i < c->HD / 2; i++)
        if (!(fabs(gguf_rope_factor(c, i) - factors[i]) <= kRopeTolerance * factors[i])) return false;
    return true;
}

static bool try_rope(Config* c, double factor, double low, double high, double original, const float* factors) {
    if (!(original >= 1 && original < INT_MAX && low > 0 && high > low && factor >= 1)) return false;
    Config tried = *c;
    tried.rope_type = ROPE_LLAMA3;
    tried.rope_factor = factor;
    tried.rope_low_freq = low;
    tried.rope_high_freq = high;
    tried.rope_original_T = (int)original;
    if (!rope_matches(&tried, factors)) return false;
    *c = tried;
    return true;
}

// Between the two bounds the share kept of a frequency f, (original f / 2 pi - low) / (high - low), is linear in f: two factors
// strictly in between give high / low and original / low, and more than these ratios no factor depends on. low is taken as 1,
// as in every published model; numbers within 1e-3 of a whole one are taken for it.
static bool solve_rope(Config* c, double factor, const float* factors) {
    double frequency[2] = {0, 0}, kept[2] = {0, 0};
    int found = 0;
    for (int i = 0; i < c->HD / 2; i++) {
        double share = (1.0 / factors[i] - 1 / factor) / (1 - 1 / factor);
        if (!(share > 1e-3 && share < 1 - 1e-3)) continue;
        int at = found ? 1 : 0;   // the first and the last: the widest span
        frequency[at] = pow(c->rope_theta, -2.0 * i / c->HD);
        kept[at] = share;
        found++;
    }
    if (found < 2) return false;
    double slope = (kept[0] - kept[1]) / (frequency[0] - frequency[1]), start = slope * frequency[0] - kept[0];
    double high = 1 + 1 / start, original = slope * 2 * 3.14159265358979323846 * (high - 1);
    if (!(start > 0) || !isfinite(high) || !isfinite(original)) return false;
    if (fabs(high - round(high)) < 1e-3 * high) high = round(high);
    return try_rope(c, factor, 1, high, round(slope * 2 * 3.14159265358979323846 * (high - 1)), factors) ||
           try_rope(c, factor, 1, high, exp2(round(log2(original))), factors);
}

// If too few frequencies lie in between to solve for the numbers, any numbers that reproduce every factor give the same model:
// tried are the published bounds, with the file's own original length or Llama 3.1's first, then with powers of two.
static bool find_rope(const Gguf* file, Config* c, const float* factors) {
    double largest = 1;
    for (int i = 0; i < c->HD / 2; i++) largest = factors[i] > largest ? factors[i] : largest;
    const double tried[] = {largest, 8, 32, 16, 4, 2, 64};
    int own = gguf_int_or(file, "llama.rope.scaling.original_context_length", 1, INT_MAX, 8192);
    for (size_t f = 0; f < sizeof tried / sizeof tried[0]; f++) {
        double factor = fabs(tried[f] - round(tried[f])) < 1e-4 * tried[f] ? round(tried[f]) : tried[f];
        if (try_rope(c, factor, 1, 4, own, factors) || try_rope(c, factor, 1, 4, 8192, factors)) return true;
        if (solve_rope(c, factor, factors)) return true;
        for (int original = 1; original <= 1 << 20; original *= 2)
            if (try_rope(c, factor, 1, 4, original, factors)) return true;
    }
    return false;
}

static void read_rope(const Gguf* file, Config* c) {
    const char* path = gguf_path(file);
    const char* type = gguf_string_or(file, "llama.rope.scaling.type", "none");
    if (strcmp(type, "none"))
        user_error("%s: RoPE scaling of the type \"%s\" is not supported, only Llama 3's (%s) is", path, printable(type),
                   kRopeTensor);
    double plain = gguf_number_or(file, "llama.rope.scaling.factor", 1);
    if (plain != 1 && plain != 0) user_error("%s: \"llama.rope.scaling.factor\" %g without a type", path, plain);
    const GgufTensor* tensor = gguf_tensor(file, kRopeTensor);
    if (!tensor) return;
    if (tensor->rows != 1 || tensor->cols != (size_t)c->HD / 2)
        user_error("%s: %s has %zu rows of %zu, one of %d is expected", path, kRopeTensor, tensor->rows, tensor->cols, c->HD / 2);
    float* factors = (float*)host_alloc(tensor->cols * sizeof(float));
    gguf_rows(file, tensor, 0, 1, factors);
    bool scaled = false;
    for (int i = 0; i < c->HD / 2; i++) {
        if (!(factors[i] >= 1 && factors[i] < 1e6f))
            user_error("%s: %s holds %g as factor %d; 1 or more is expected", path, kRopeTensor, factors[i], i);
        scaled = scaled || factors[i] != 1;
    }
    if (scaled && !find_rope(file, c, factors))
        user_error("%s: %s is not Llama 3's RoPE scaling (factor, low_freq_factor, high_freq_factor, original length); this "
                   "model cannot be trained without changing it", path, kRopeTensor);
    free(factors);
}

// ---- the configuration

// Keys of "llama." that this program reads, or that do not change the function. Any other key is refused, since it might change it.
static const char* const kKnownKeys[] = {
    "vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length", "rope.dimension_count",
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "attention.layer_norm_rms_epsilon", "expert_count", "expert_used_count", "tensor_data_layout"};

static void refuse_unknown_keys(const Gguf* file) {
    for (int i = 0; i < gguf_value_count(file); i++) {
        const GgufValue* value = gguf_value_at(file, i);
        if (strncmp(value->key, "llama.", 6)) continue;
        bool known = false;
        for (size_t k = 0; k < sizeof kKnownKeys / sizeof kKnownKeys[0]; k++)
            known = known || !strcmp(value->key + 6, kKnownKeys[k]);
        if (!known)
            user_error("%s: byte %zu: the key \"%s\" is not known here and may change what the model computes",
                       gguf_path(file), value->at, printable(value->key));
    }
    if (gguf_int_or(file, "llama.expert_count", 0, INT_MAX, 0))
        user_error("%s: a mixture of experts; only dense Llama models are supported", gguf_path(file));
}

static void read_sizes(const Gguf* file, Config* c) {
    const char* path = gguf_path(file);
    c->C = gguf_int(file, "llama.embedding_length", 1, 1 << 24);
    c->L = gguf_int(file, "llama.block_count", 1, 1 << 16);
    c->F = gguf_int(file, "llama.feed_forward_length", 1, 1 << 24);
    c->NH = gguf_int(file, "llama.attention.head_count", 1, 1 << 16);
    c->NKV = gguf_int_or(file, "llama.attention.head_count_kv", 1, 1 << 16, c->NH);
    c->max_T = gguf_int(file, "llama.context_length", 1, 1 << 24);
    if (!gguf_find(file, "llama.attention.key_length") && c->C % c->NH)
        user_error("%s: \"llama.embedding_length\" %d is no multiple of \"llama.attention.head_count\" %d", path, c->C, c->NH);
    c->HD = gguf_int_or(file, "llama.attention.key_length", 1, 1 << 16, c->C / c->NH);
    const char* same[] = {"llama.attention.value_length", "llama.rope.dimension_count"};
    for (int i = 0; i < 2; i++)
        if (gguf_int_or(file, same[i], 1, 1 << 16, c->HD) != c->HD)
            user_error("%s: \"%s\" differs from the width of a head, %d", path, same[i], c->HD);
    c->norm_eps = (float)gguf_number(file, "llama.attention.layer_norm_rms_epsilon");
    c->rope_theta = gguf_number_or(file, "llama.rope.freq_base", 10000);
    const GgufTensor* embedding = gguf_tensor(file, "token_embd.weight");
    if (!embedding) user_error("%s: tensor \"token_embd.weight\" is missing", path);
    if (embedding->rows > 1 << 24) user_error("%s: a vocabulary of %zu tokens is too large", path, embedding->rows);
    c->V = (int)embedding->rows;
    c->tied = !gguf_tensor(file, "output.weight");
    const GgufValue* tokens = gguf_array(file, "tokenizer.ggml.tokens", GGUF_STRING);
    int said = gguf_int_or(file, "llama.vocab_size", 1, INT_MAX, c->V);
    if (said != c->V || (tokens && tokens->count != (size_t)c->V))
        user_error("%s: the embedding has %d rows, \"llama.vocab_size\" is %d, \"tokenizer.ggml.tokens\" lists %zu", path, c->V,
                   said, tokens ? tokens->count : 0);
    bool pieces = !strcmp(gguf_string_or(file, "tokenizer.ggml.model", ""), "llama");   // SentencePiece: BOS and EOS are usually 1 and 2
    c->bos = gguf_int_or(file, "tokenizer.ggml.bos_token_id", 0, c->V - 1, pieces && c->V > 2 ? 1 : -1);
    c->eos = gguf_int_or(file, "tokenizer.ggml.eos_token_id", 0, c->V - 1, pieces && c->V > 2 ? 2 : -1);
    c->init_std = 0.02f;
}

// ---- tensors

static const GgufTensor** tensor_slot(const GgufModel* m, int spec, int layer) {
    return &m->tensors[(size_t)spec * (size_t)m->config.L + (size_t)layer];
}

static int spec_layers(const GgufModel* m, int spec) { return m->specs[spec].per_layer ? m->config.L : 1; }

static void find_tensors(GgufModel* m) {
    const char* path = gguf_path(m->file);
    int known = gguf_tensor(m->file, kRopeTensor) != NULL;
    for (int s = 0; s < m->spec_count; s++) {
        const ParamSpec* spec = &m->specs[s];
        for (int layer = 0; layer < spec_layers(m, s); layer++, known++) {
            char name[kNameBytes];
            gguf_param_name(spec, layer, name, sizeof name);
            const GgufTensor* t = gguf_tensor(m->file, name);
            if (!t) user_error("%s: tensor \"%s\" is missing", path, name);
            if (t->rows != (size_t)spec->rows || t->cols != (size_t)spec->cols)
                user_error("%s: tensor \"%s\" has %zu rows of %zu, the metadata asks for %d of %d", path, name, t->rows, t->cols,
                           spec->rows, spec->cols);
            *tensor_slot(m, s, layer) = t;
        }
    }
    for (int i = 0; known != gguf_tensor_count(m->file) && i < gguf_tensor_count(m->file); i++) {
        const GgufTensor* t = gguf_tensor_at(m->file, i);
        bool used = !strcmp(t->name, kRopeTensor);
        for (size_t k = 0; k < (size_t)m->spec_count * (size_t)m->config.L; k++) used = used || m->tensors[k] == t;
        if (!used)
            user_error("%s: unexpected tensor \"%s\": not part of the Llama model that the metadata describes", path,
                       printable(t->name));
    }
}

GgufModel* gguf_model_open(const char* path, Config* config) {
    GgufModel* m = (GgufModel*)host_alloc(sizeof *m);
    m->file = gguf_open(path);
    const char* architecture = gguf_string_or(m->file, "general.architecture", "");
    if (strcmp(architecture, "llama"))
        user_error("%s: the architecture is \"%s\", only \"llama\" is supported", path, printable(architecture));
    refuse_unknown_keys(m->file);
    read_sizes(m->file, &m->config);
    config_check(&m->config, path);   // before read_rope, which relies on an even HD
    read_rope(m->file, &m->config);
    config_check(&m->config, path);
    if (m->config.L > gguf_tensor_count(m->file))
        user_error("%s: \"llama.block_count\" is %d, the file has %d tensors", path, m->config.L, gguf_tensor_count(m->file));
    m->spec_count = param_specs(&m->config, m->specs);
    m->tensors = (const GgufTensor**)host_alloc((size_t)m->spec_count * (size_t)m->config.L * sizeof *m->tensors);
    find_tensors(m);
    *config = m->config;
    return m;
}

void gguf_model_close(GgufModel* m) {
    if (!m) return;
    gguf_close(m->file);
    free((void*)m->tensors);
    free(m);
}

// Does an F32 tensor hold only values that BF16 has? Converters store norms in F32 whatever their format was.
static bool is_bf16_inside(const GgufModel* m, const GgufTensor* t) {
    if (t->type != GGML_F32 || t->rows != 1) return false;
    float* values = (float*)host_alloc(t->cols * sizeof(float));
    gguf_rows(m->file, t, 0, 1, values);
    bool exact = true;
    for (size_t i = 0; i < t->cols; i++) exact = exact && f32_bits(f32_from_bf16(bf16_from_f32(values[i]))) == f32_bits(values[i]);
    free(values);
    return exact;
}

Fmt gguf_model_fmt(const GgufModel* m) {
    for (int s = 0; s < m->spec_count; s++) {
        for (int layer = 0; layer < spec_layers(m, s); layer++) {
            const GgufTensor* t = *tensor_slot(m, s, layer);
            if (t->type != GGML_BF16 && !is_bf16_inside(m, t)) return F32;
        }
    }
    return BF16;
}

// Rows in Hugging Face's order: row j of half b of a head is llama.cpp's row 2 j + b of that head.
static void permuted_rows(const GgufModel* m, const GgufTensor* t, int head, int first_row, int rows, float* dst) {
    size_t cols = t->cols;
    float* whole = (float*)host_alloc((size_t)head * cols * sizeof(float));
    int loaded = -1;
    for (int r = 0; r < rows; r++) {
        int at = first_row + r, within = at % head, half = head / 2;
        if (at / head != loaded) {
            loaded = at / head;
            gguf_rows(m->file, t, (size_t)loaded * (size_t)head, (size_t)head, whole);
        }
        int from = 2 * (within % half) + within / half;
        memcpy(dst + (size_t)r * cols, whole + (size_t)from * cols, cols * sizeof(float));
    }
    free(whole);
}

void gguf_model_rows(const GgufModel* m, int spec, int layer, int first_row, int rows, Fmt fmt, void* dst) {
    check(spec >= 0 && spec < m->spec_count && layer >= 0 && layer < spec_layers(m, spec), "gguf_model_rows: parameter %d of %d",
          spec, layer);
    check(fmt == F32 || fmt == BF16, "gguf_model_rows: to %s", fmt_name(fmt));
    const GgufTensor* t = *tensor_slot(m, spec, layer);
    int head = gguf_permuted_head(&m->config, &m->specs[spec]);
    size_t count = (size_t)rows * t->cols;
    float* values = fmt == F32 ? (float*)dst : (float*)host_alloc(count * sizeof(float));
    if (head) permuted_rows(m, t, head, first_row, rows, values);
    else gguf_rows(m->file, t, (size_t)first_row, (size_t)rows, values);
    if (fmt == F32) return;
    for (size_t i = 0; i < count; i++) ((uint16_t*)dst)[i] = bf16_from_f32(values[i]);
    free(values);
}
