// Writing GGUF: see gguf_write.h.
#include "gguf_write.h"

#include "files.h"
#include "json.h"
#include "text.h"

#include <math.h>

enum { kAlignment = 32, kFileNameBytes = 96, kPieceRows = 1024 };

// ---- stored types

static uint16_t f16_from_f32(float x) {
    uint32_t sign = f32_bits(x) >> 16 & 0x8000u, magnitude = f32_bits(x) & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);   // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {                                      // subnormal: a multiple of 2^-24
        return (uint16_t)(sign | (uint32_t)rintf(f32_from_bits(magnitude) * 0x1p24f));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}

static void quantize_q8_0(const float* src, unsigned char* dst) {
    float largest = 0;
    for (int i = 0; i < 32; i++) largest = fmaxf(largest, fabsf(src[i]));
    float scale = largest / 127, inverse = scale ? 1 / scale : 0;
    uint16_t half = f16_from_f32(scale);
    memcpy(dst, &half, 2);
    for (int i = 0; i < 32; i++) dst[2 + i] = (unsigned char)(int8_t)roundf(src[i] * inverse);
}

void ggml_quantize(GgmlType type, const float* src, size_t count, unsigned char* dst) {
    size_t values = (size_t)ggml_block_values(type), bytes = (size_t)ggml_block_bytes(type);
    for (size_t i = 0; i < count; i += values, dst += bytes) {
        uint16_t half = type == GGML_F16 ? f16_from_f32(src[i]) : bf16_from_f32(src[i]);
        if (type == GGML_Q8_0) quantize_q8_0(src + i, dst);
        else if (type == GGML_F32) memcpy(dst, src + i, 4);
        else memcpy(dst, &half, 2);
    }
}

// ---- the header

typedef struct {
    Text text;
    uint64_t pairs;
} Header;

static void put(Header* h, const void* data, size_t n) { text_append(&h->text, data, n); }
static void put_u32(Header* h, uint32_t x) { put(h, &x, sizeof x); }
static void put_u64(Header* h, uint64_t x) { put(h, &x, sizeof x); }
static void put_text(Header* h, const char* s) {
    put_u64(h, strlen(s));
    put(h, s, strlen(s));
}
static void put_key(Header* h, const char* key, GgufKind kind) {
    put_text(h, key);
    put_u32(h, (uint32_t)kind);
    h->pairs++;
}
static void pair_u32(Header* h, const char* key, int x) {
    put_key(h, key, GGUF_U32);
    put_u32(h, (uint32_t)x);
}
static void pair_f32(Header* h, const char* key, double x) {
    put_key(h, key, GGUF_F32);
    put_u32(h, f32_bits((float)x));
}
static void pair_text(Header* h, const char* key, const char* x) {
    put_key(h, key, GGUF_STRING);
    put_text(h, x);
}
static void put_array(Header* h, const char* key, GgufKind kind, size_t count) {
    put_key(h, key, GGUF_ARRAY);
    put_u32(h, (uint32_t)kind);
    put_u64(h, count);
}

static void put_sizes(Header* h, const GgufOutput* o, const Config* c) {
    pair_text(h, "general.architecture", "llama");
    pair_text(h, "general.type", "model");
    pair_text(h, "general.name", o->name);
    pair_u32(h, "general.file_type", o->type == GGML_F16 ? 1 : o->type == GGML_Q8_0 ? 7 : 32);
    pair_u32(h, "general.quantization_version", 2);
    pair_u32(h, "llama.vocab_size", c->V);
    pair_u32(h, "llama.context_length", c->max_T);
    pair_u32(h, "llama.embedding_length", c->C);
    pair_u32(h, "llama.block_count", c->L);
    pair_u32(h, "llama.feed_forward_length", c->F);
    pair_u32(h, "llama.rope.dimension_count", c->HD);
    pair_u32(h, "llama.attention.key_length", c->HD);
    pair_u32(h, "llama.attention.value_length", c->HD);
    pair_u32(h, "llama.attention.head_count", c->NH);
    pair_u32(h, "llama.attention.head_count_kv", c->NKV);
    pair_f32(h, "llama.attention.layer_norm_rms_epsilon", c->norm_eps);
    pair_f32(h, "llama.rope.freq_base", c->rope_theta);
    if (c->rope_type == ROPE_LLAMA3) pair_u32(h, "llama.rope.scaling.original_context_length", c->rope_original_T);
}

// ---- the tokenizer

// The form without members that change only offsets, so that forms with the same ids compare as equal.
static json_t* plain_form(json_t* form) {
    json_t* copy = json_deep_copy(form);
    json_t* steps = json_object_get(copy, "pretokenizers");
    for (size_t i = 0; i < json_array_size(steps); i++) json_object_del(json_array_get(steps, i), "trim_offsets");
    json_object_del(copy, "trim_offsets");
    return copy;
}

static const GgufPretokenizer* name_pretokenizer(const GgufOutput* o, const json_t* root) {
    int count;
    const GgufPretokenizer* table = gguf_pretokenizers(&count);
    json_t* have = plain_form(json_object_get(root, "pre_tokenizer"));
    bool ignore = json_is_true(json_object_get(json_object_get(root, "model"), "ignore_merges"));
    for (int i = 0; i < count; i++) {
        json_t* form = json_parse(table[i].form, strlen(table[i].form), "pre-tokenizer");
        json_t* want = plain_form(form);
        bool equal = json_equal(have, want) && ignore == table[i].ignore_merges;
        json_decref(form);
        json_decref(want);
        if (!equal) continue;
        json_decref(have);
        return &table[i];
    }
    user_error("%s: llama.cpp has no name for this tokenizer's pre_tokenizer; gpt-2's, smollm's and llama-bpe's can be exported",
               o->where);
}

static void put_tokens(Header* h, const GgufOutput* o, const Config* c, json_t* root) {
    const char** tokens = (const char**)host_alloc((size_t)c->V * sizeof(char*));
    int* types = (int*)host_alloc((size_t)c->V * sizeof(int));
    const char* text;
    json_t *id, *entry;
    size_t i;
    json_object_foreach(json_object_get(json_object_get(root, "model"), "vocab"), text, id) {
        if (json_integer_value(id) < 0 || json_integer_value(id) >= c->V)
            user_error("%s: \"%s\" has an id beyond the model's %d rows", o->where, printable(text), c->V);
        tokens[json_integer_value(id)] = text;
        types[json_integer_value(id)] = 1;
    }
    json_array_foreach(json_object_get(root, "added_tokens"), i, entry) {
        int at = member_int(entry, "id", 0, c->V - 1, o->where);
        tokens[at] = member_string(entry, "content", o->where);
        types[at] = json_is_true(json_object_get(entry, "special")) ? 3 : 4;   // control, user-defined
    }
    put_array(h, "tokenizer.ggml.tokens", GGUF_STRING, (size_t)c->V);
    for (int t = 0; t < c->V; t++) {
        char unused[32];
        snprintf(unused, sizeof unused, "[PAD%d]", t);
        put_text(h, tokens[t] ? tokens[t] : unused);
    }
    put_array(h, "tokenizer.ggml.token_type", GGUF_I32, (size_t)c->V);
    for (int t = 0; t < c->V; t++) put_u32(h, tokens[t] ? (uint32_t)types[t] : 5);   // 5: unused
    free((void*)tokens);
    free(types);
}

static void put_merges(Header* h, const json_t* root) {
    json_t *merges = json_object_get(json_object_get(root, "model"), "merges"), *merge;
    size_t i;
    put_array(h, "tokenizer.ggml.merges", GGUF_STRING, json_array_size(merges));
    json_array_foreach(merges, i, merge) {
        const char* right = json_string_value(json_array_get(merge, 1));
        const char* left = json_is_array(merge) ? json_string_value(json_array_get(merge, 0)) : json_string_value(merge);
        check(left && (right || json_is_string(merge)), "merge %zu is no pair", i);
        put_u64(h, strlen(left) + (right ? 1 + strlen(right) : 0));
        put(h, left, strlen(left));
        if (right) put(h, " ", 1), put(h, right, strlen(right));
    }
}

// Does the post-processor put a special token before a text?
static bool template_starts_with(const json_t* processor) {
    const json_t* steps = json_object_get(processor, "processors");
    for (size_t i = 0; i < json_array_size(steps); i++)
        if (template_starts_with(json_array_get(steps, i))) return true;
    return json_object_get(json_array_get(json_object_get(processor, "single"), 0), "SpecialToken") != NULL;
}

static void put_tokenizer(Header* h, const GgufOutput* o, const Config* c) {
    json_t* root = json_parse(o->tokenizer_json, strlen(o->tokenizer_json), o->where);
    pair_text(h, "tokenizer.ggml.model", "gpt2");
    pair_text(h, "tokenizer.ggml.pre", name_pretokenizer(o, root)->name);
    put_tokens(h, o, c, root);
    put_merges(h, root);
    if (c->bos >= 0) pair_u32(h, "tokenizer.ggml.bos_token_id", c->bos);
    if (c->eos >= 0) pair_u32(h, "tokenizer.ggml.eos_token_id", c->eos);
    put_key(h, "tokenizer.ggml.add_bos_token", GGUF_BOOL);
    put(h, template_starts_with(json_object_get(root, "post_processor")) ? "\1" : "\0", 1);
    if (o->chat_template) pair_text(h, "tokenizer.chat_template", o->chat_template);
    json_decref(root);
}

// ---- tensors

static void write_rows(OutFile* out, const Config* c, const ParamSpec* spec, GgmlType type, HfRows rows, void* context, int s,
                       int layer) {
    int head = gguf_permuted_head(c, spec), step = head ? head : min_int(spec->rows, kPieceRows);
    size_t cols = (size_t)spec->cols, row_bytes = cols / (size_t)ggml_block_values(type) * (size_t)ggml_block_bytes(type);
    float* values = (float*)host_alloc((size_t)step * cols * sizeof(float));
    unsigned char* stored = (unsigned char*)host_alloc(row_bytes);
    for (int first = 0; first < spec->rows; first += step) {
        int n = min_int(step, spec->rows - first);
        rows(context, s, layer, first, n, values);
        for (int r = 0; r < n; r++) {
            int from = head ? r % 2 * (head / 2) + r / 2 : r;
            ggml_quantize(type, values + (size_t)from * cols, cols, stored);
            out_write(out, stored, row_bytes);
        }
    }
    free(stored);
    free(values);
}

static size_t put_info(Header* h, const char* name, int cols, int rows, GgmlType type, size_t offset) {
    if (cols % ggml_block_values(type))
        user_error("%s has rows of %d values, %s needs a multiple of %d; export bf16 or f16", name, cols, ggml_type_name(type),
                   ggml_block_values(type));
    put_text(h, name);
    put_u32(h, rows > 1 ? 2 : 1);
    put_u64(h, (uint64_t)cols);
    if (rows > 1) put_u64(h, (uint64_t)rows);
    put_u32(h, (uint32_t)type);
    put_u64(h, offset);
    return round_up(offset + (size_t)rows * (size_t)(cols / ggml_block_values(type) * ggml_block_bytes(type)), kAlignment);
}

static void pad(OutFile* out) {
    static const char zeros[kAlignment];
    out_write(out, zeros, round_up(out->written_bytes, kAlignment) - out->written_bytes);
}

static void write_tensors(OutFile* out, const GgufOutput* o, const Config* c, HfRows rows, void* context) {
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(c, specs);
    for (int s = 0; s < count; s++)
        for (int layer = 0; layer < (specs[s].per_layer ? c->L : 1); layer++) {
            write_rows(out, c, &specs[s], specs[s].rows == 1 ? GGML_F32 : o->type, rows, context, s, layer);
            pad(out);
        }
    for (int i = 0; c->rope_type == ROPE_LLAMA3 && i < c->HD / 2; i++) {
        float factor = gguf_rope_factor(c, i);
        out_write(out, &factor, sizeof factor);
    }
    pad(out);
}

void gguf_write(const GgufOutput* o, const Config* c, HfRows rows, void* context) {
    Header pairs = {{NULL, 0, 0}, 0}, infos = {{NULL, 0, 0}, 0}, start = {{NULL, 0, 0}, 0};
    put_sizes(&pairs, o, c);
    put_tokenizer(&pairs, o, c);
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(c, specs), tensors = 0;
    size_t bytes = 0;
    for (int s = 0; s < count; s++)
        for (int layer = 0; layer < (specs[s].per_layer ? c->L : 1); layer++, tensors++) {
            char name[kFileNameBytes];
            gguf_param_name(&specs[s], layer, name, sizeof name);
            bytes = put_info(&infos, name, specs[s].cols, specs[s].rows, specs[s].rows == 1 ? GGML_F32 : o->type, bytes);
        }
    if (c->rope_type == ROPE_LLAMA3) bytes = put_info(&infos, "rope_freqs.weight", c->HD / 2, 1, GGML_F32, bytes), tensors++;
    put(&start, "GGUF", 4);
    put_u32(&start, 3);
    put_u64(&start, (uint64_t)tensors);
    put_u64(&start, pairs.pairs);
    size_t header = round_up(start.text.bytes + pairs.text.bytes + infos.text.bytes, kAlignment);
    OutFile out = out_open(o->path, header + bytes);
    out_write(&out, start.text.data, start.text.bytes);
    out_write(&out, pairs.text.data, pairs.text.bytes);
    out_write(&out, infos.text.data, infos.text.bytes);
    pad(&out);
    write_tensors(&out, o, c, rows, context);
    out_close(&out);
    text_free(&start.text);
    text_free(&pairs.text);
    text_free(&infos.text);
}
