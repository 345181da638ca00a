// GGUF files written here, byte by byte: every stored type against a reference of its own, a whole model with its permuted rows,
// RoPE scaling and tokenizer, and hostile files.
#include "../data/files.h"
#include "../data/gguf_model.h"
#include "../data/gguf_write.h"
#include "../data/json.h"
#include "../data/safetensors.h"
#include "../data/tokenizer/tokenizer.h"
#include "scratch.h"

// ---- a file under construction

typedef struct {
    unsigned char bytes[1 << 17];
    size_t count;
} Bytes;

static void put(Bytes* b, const void* data, size_t n) {
    check(b->count + n <= sizeof b->bytes, "the test's file is too large");
    memcpy(b->bytes + b->count, data, n);
    b->count += n;
}
static void put_u32(Bytes* b, uint32_t x) { put(b, &x, 4); }
static void put_u64(Bytes* b, uint64_t x) { put(b, &x, 8); }
static void put_text(Bytes* b, const char* s) { put_u64(b, strlen(s)); put(b, s, strlen(s)); }
static void pair_u32(Bytes* b, const char* key, uint32_t x) { put_text(b, key); put_u32(b, GGUF_U32); put_u32(b, x); }
static void pair_f32(Bytes* b, const char* key, float x) { put_text(b, key); put_u32(b, GGUF_F32); put(b, &x, 4); }
static void pair_text(Bytes* b, const char* key, const char* x) { put_text(b, key); put_u32(b, GGUF_STRING); put_text(b, x); }
static void pair_texts(Bytes* b, const char* key, const char* const* texts, int count) {
    put_text(b, key);
    put_u32(b, GGUF_ARRAY);
    put_u32(b, GGUF_STRING);
    put_u64(b, (uint64_t)count);
    for (int i = 0; i < count; i++) put_text(b, texts[i]);
}
static void start(Bytes* b, uint64_t tensors, uint64_t pairs) {
    b->count = 0;
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, tensors);
    put_u64(b, pairs);
}
static void tensor_info(Bytes* b, const char* name, uint64_t cols, uint64_t rows, uint32_t type, uint64_t offset) {
    put_text(b, name);
    put_u32(b, rows > 1 ? 2 : 1);
    put_u64(b, cols);
    if (rows > 1) put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}
static void pad(Bytes* b) { while (b->count % 32) put(b, "", 1); }

// ---- stored types. The reference takes each code from a stream of bits of the whole block, by the formats' description.

static int bits(const unsigned char* p, int bit, int n) {
    int x = 0;
    for (int i = 0; i < n; i++) x |= (p[(bit + i) / 8] >> (bit + i) % 8 & 1) << i;
    return x;
}
static float half(const unsigned char* p) { return f32_from_f16((uint16_t)(p[0] + 256 * p[1])); }

static float reference(GgmlType type, const unsigned char* p, int i) {
    int low = i % 32 < 16 ? 0 : 4, nibble = i % 16 * 8 + low;
    switch (type) {
        case GGML_F32: { float x; memcpy(&x, p, 4); return x; }
        case GGML_F16: return half(p);
        case GGML_BF16: { uint32_t u = (uint32_t)(p[0] + 256 * p[1]) << 16; float x; memcpy(&x, &u, 4); return x; }
        case GGML_Q8_0: return half(p) * (float)(signed char)p[2 + i];
        case GGML_Q4_0: return half(p) * (float)(bits(p + 2, nibble, 4) - 8);
        case GGML_Q4_1: return half(p) * (float)bits(p + 4, nibble, 4) + half(p + 2);
        case GGML_Q5_0: return half(p) * (float)(bits(p + 6, nibble, 4) + 16 * bits(p + 2, i, 1) - 16);
        case GGML_Q5_1: return half(p) * (float)(bits(p + 8, nibble, 4) + 16 * bits(p + 4, i, 1)) + half(p + 2);
        case GGML_Q6_K: {
            int part = i / 128, r = i % 128, code = bits(p, part * 512 + r % 64 * 8 + (r < 64 ? 0 : 4), 4);
            code += 16 * bits(p + 128, part * 256 + r % 32 * 8 + r / 32 * 2, 2);
            return half(p + 208) * (float)(signed char)p[192 + i / 16] * (float)(code - 32);
        }
        default: break;
    }
    const unsigned char *s = p + 4, *codes = p + (type == GGML_Q5_K ? 48 : 16);   // Q4_K, Q5_K
    int g = i / 32, r = i % 32, j = g % 4;
    int scale = g < 4 ? bits(s, 8 * j, 6) : bits(s, 64 + 8 * j, 4) + 16 * bits(s, 8 * j + 6, 2);
    int least = g < 4 ? bits(s, 32 + 8 * j, 6) : bits(s, 68 + 8 * j, 4) + 16 * bits(s, 32 + 8 * j + 6, 2);
    int code = bits(codes, (g / 2 * 32 + r) * 8 + g % 2 * 4, 4);
    if (type == GGML_Q5_K) code += 16 * bits(p + 16, 8 * r + g, 1);
    return half(p) * (float)scale * (float)code - half(p + 2) * (float)least;
}

static void random_block(GgmlType type, unsigned char* p, int bytes) {
    for (int i = 0; i < bytes; i++) p[i] = (unsigned char)(256 * test_uniform());
    int halves[] = {0, type == GGML_Q6_K ? 208 : bytes > 20 ? 2 : 0};
    for (int k = 0; k < 2; k++) p[halves[k] + 1] = (unsigned char)(0x2c | (p[halves[k] + 1] & 0x83));   // finite scales
    if (type == GGML_Q4_1) p[3] = 0x2e;
    if (type == GGML_F32) p[3] = 0x3f;
    if (type == GGML_BF16) p[1] = 0x3f;
}

static void types_case(void) {
    for (int t = 0; t < kGgmlTypes; t++) {
        if (!ggml_type_name(t)) continue;
        GgmlType type = (GgmlType)t;
        static Bytes file;
        int values = ggml_block_values(type), bytes = ggml_block_bytes(type), cols = 2 * values, rows = 3;
        start(&file, 1, 0);
        tensor_info(&file, "x", (uint64_t)cols, (uint64_t)rows, (uint32_t)t, 0);
        pad(&file);
        size_t data = file.count;
        for (int i = 0; i < 2 * rows; i++) {
            unsigned char block[256];
            random_block(type, block, bytes);
            put(&file, block, (size_t)bytes);
        }
        char* path = scratch_path("type.gguf");
        put_file(path, file.bytes, file.count);
        Gguf* g = gguf_open(path);
        float got[3 * 512], want[3 * 512];
        gguf_rows(g, gguf_tensor(g, "x"), 0, 1, got);
        gguf_rows(g, gguf_tensor(g, "x"), 1, 2, got + cols);
        for (int i = 0; i < rows * cols; i++) want[i] = reference(type, file.bytes + data + i / values * bytes, i % values);
        size_t size = (size_t)(rows * cols) * sizeof(float);
        bool same = !memcmp(got, want, size);
        file.bytes[data + (size_t)bytes - 1] ^= 0x40;   // planted: the comparison has to notice one bit
        want[values - 1] = reference(type, file.bytes + data, values - 1);
        ok(same && (memcmp(got, want, size) || type == GGML_Q6_K), "%s: the reference's bits", ggml_type_name(t));
        gguf_close(g);
        free(path);
    }
}

// ---- a model: 1 layer, 2 heads of 8, untied, Llama 3's scaling

enum { kC = 16, kHD = 8, kF = 32, kV = 8, kPairs = 13 };
static const char* const kTokens[kV] = {"a", "b", "ab", "\xc4\xa0", "<s>", "</s>", "1", "\xc4\xa0" "ab"};
static const char* const kMerges[] = {"a b", "\xc4\xa0 ab"};

typedef struct {
    const char* name;
    int cols, rows;
} PlainTensor;
#define BLOCK_TENSORS \
    {"blk.0.attn_norm.weight", kC, 1}, {"blk.0.attn_q.weight", kC, kC}, {"blk.0.attn_k.weight", kC, kC}, {"blk.0.attn_v.weight", kC, kC}, \
    {"blk.0.attn_output.weight", kC, kC}, {"blk.0.ffn_norm.weight", kC, 1}, {"blk.0.ffn_gate.weight", kC, kF}, \
    {"blk.0.ffn_up.weight", kC, kF}, {"blk.0.ffn_down.weight", kF, kC}, {"output_norm.weight", kC, 1}

// The file's opening and its first nine pairs.
static void start_model(Bytes* b, int tensors, int pairs, float freq_base, const char* tokenizer) {
    start(b, tensors, pairs);
    pair_text(b, "general.architecture", "llama");
    pair_u32(b, "llama.embedding_length", kC);
    pair_u32(b, "llama.block_count", 1);
    pair_u32(b, "llama.feed_forward_length", kF);
    pair_u32(b, "llama.attention.head_count", 2);
    pair_u32(b, "llama.context_length", 64);
    pair_f32(b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    pair_f32(b, "llama.rope.freq_base", freq_base);
    pair_text(b, "tokenizer.ggml.model", tokenizer);
}

// The headers of F32 tensors, which follow one another. Returns the bytes of their values.
static uint64_t describe_tensors(Bytes* b, const PlainTensor* tensors, int count) {
    uint64_t offset = 0;
    for (int i = 0; i < count; i++) {
        tensor_info(b, tensors[i].name, (uint64_t)tensors[i].cols, (uint64_t)tensors[i].rows, GGML_F32, offset);
        offset += round_up((size_t)tensors[i].cols * (size_t)tensors[i].rows * 4, 32);
    }
    pad(b);
    return offset;
}

static void model_bytes_into(Bytes* b) {
    static const PlainTensor tensors[] = {{"token_embd.weight", kC, kV}, BLOCK_TENSORS, {"output.weight", kC, kV}, {"rope_freqs.weight", kHD / 2, 1}};
    start_model(b, COUNT(tensors), kPairs, 500000, "gpt2");
    pair_text(b, "tokenizer.ggml.pre", "smollm");
    pair_texts(b, "tokenizer.ggml.tokens", kTokens, kV);
    pair_texts(b, "tokenizer.ggml.merges", kMerges, COUNT(kMerges));
    pair_u32(b, "tokenizer.ggml.eos_token_id", 5);
    describe_tensors(b, tensors, COUNT(tensors));
    // Llama 3.1's factors for these frequencies, 500000^(-i/4): far above, far above, in between, far below the bounds.
    double turns = 8192 * pow(500000, -0.5) / (2 * 3.14159265358979323846), keep = (turns - 1) / 3;
    float factors[kHD / 2] = {1, 1, (float)(1 / ((1 - keep) / 8 + keep)), 8};
    for (int i = 0; i < COUNT(tensors); i++) {
        for (int k = 0; k < tensors[i].cols * tensors[i].rows; k++) {
            float value = i == COUNT(tensors) - 1 ? factors[k] : (float)(1000 * i + k / tensors[i].cols);   // its row's number
            put(b, &value, 4);
        }
        pad(b);
    }
}

static void model_case(void) {
    static Bytes file;
    model_bytes_into(&file);
    char* path = scratch_path("model.gguf");
    put_file(path, file.bytes, file.count);
    Config c;
    GgufModel* m = gguf_model_open(path, &c);
    ok(c.V == kV && c.C == kC && c.L == 1 && c.NH == 2 && c.NKV == 2 && c.HD == kHD && c.F == kF && !c.tied && c.eos == 5,
       "the configuration");
    ok(c.rope_type == ROPE_LLAMA3 && c.rope_factor == 8 && c.rope_low_freq == 1 && c.rope_high_freq == 4 &&
       c.rope_original_T == 8192, "rope_freqs are factor %g, %g, %g, %d", c.rope_factor, c.rope_low_freq, c.rope_high_freq,
       c.rope_original_T);
    float rows[kC * kC];
    gguf_model_rows(m, 2, 0, 0, kC, F32, rows);
    bool right = true;
    for (int r = 0; r < kC; r++) right = right && rows[r * kC] == 2000 + r / 8 * 8 + (r % 4 * 2 + r % 8 / 4);
    ok(right, "q's rows come back in order");
    gguf_model_rows(m, 3, 0, 5, 6, F32, rows);
    ok(rows[0] == 3003 && rows[3 * kC] == 3008, "so do a part of k's");
    gguf_model_rows(m, 4, 0, 3, 1, F32, rows);
    ok(rows[0] == 4003, "v's stay");
    char* text = gguf_tokenizer_json(m);
    char* json = scratch_path("tokenizer.json");
    put_file(json, text, strlen(text));
    Tokenizer* t = tokenizer_load(scratch_dir);
    TokenList ids = {NULL, 0, 0};
    tokenizer_encode(t, "ab ab11", 7, 0, &ids);
    ok(ids.count == 4 && ids.ids[0] == 2 && ids.ids[1] == 7 && ids.ids[2] == 6 && ids.ids[3] == 6, "the tokenizer encodes");
    token_list_free(&ids);
    tokenizer_free(t);
    free(text);
    gguf_model_close(m);
    free(json);
    free(path);
}

// ---- tokenizers as the reference pack has them

static int different_ids(const Tokenizer* a, const Tokenizer* b, const char* const* texts, int count) {
    int different = 0;
    for (int i = 0; i < count; i++) {
        TokenList x = {NULL, 0, 0}, y = {NULL, 0, 0};
        tokenizer_encode(a, texts[i], strlen(texts[i]), kEncodeTemplate, &x);
        tokenizer_encode(b, texts[i], strlen(texts[i]), kEncodeTemplate, &y);
        different += x.count != y.count || (x.count && memcmp(x.ids, y.ids, (size_t)x.count * sizeof(int)));
        token_list_free(&x);
        token_list_free(&y);
    }
    return different;
}

static const char* const kTexts[] = {
    "", " ", "Once upon a time, there was a little girl.", "  two spaces,\n\ntwo lines\t", "na\xc3\xafve caf\xc3\xa9 \xe2\x82\xac 5",
    "\xf0\x9f\x98\x80\xf0\x9f\x9a\x80 emoji", "12345 + 678 = 13023", "I'll we've DON'T he's", "\xd0\x9f\xd1\x80\xd0\xb8\xd0\xb2\xd0\xb5\xd1\x82, \xd0\xbc\xd0\xb8\xd1\x80",
    "\xe4\xbd\xa0\xe5\xa5\xbd\xe4\xb8\x96\xe7\x95\x8c", "x=1;//y\r\nz  ", "<s>", "a<0x0A>b", " leading", "trailing   "};

// A SentencePiece vocabulary (stories260K's 512 pieces with their scores) in a GGUF file, against the tokenizer.json that Hugging Face's
// converter made of the same model.
static void pieces_into(Bytes* b, const char* path) {
    enum { kPieces = 512 };
    static char texts[kPieces][64];
    static const char* tokens[kPieces];
    float scores[kPieces];
    int types[kPieces];
    size_t bytes, at = 4;   // the length of the longest piece comes first
    char* bin = file_read(path, &bytes);
    for (int i = 0; i < kPieces; i++) {
        int length;
        memcpy(&scores[i], bin + at, 4);
        memcpy(&length, bin + at + 4, 4);
        at += 8;
        int n = 0;
        for (int k = 0; k < length; k++) {   // the file has spaces where the vocabulary has U+2581
            if (bin[at + k] == ' ') n += sprintf(texts[i] + n, "\xe2\x96\x81");
            else texts[i][n++] = bin[at + k];
        }
        texts[i][n] = 0;
        at += (size_t)length;
        types[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
        static const char* const special[] = {"<unk>", "<s>", "</s>"};
        tokens[i] = i < 3 ? special[i] : texts[i];
        if (i >= 3 && i < 259) sprintf(texts[i], "<0x%02X>", i - 3);
    }
    free(bin);
    static const PlainTensor tensors[] = {{"token_embd.weight", kC, kPieces}, BLOCK_TENSORS};
    start_model(b, COUNT(tensors), 14, 10000, "llama");
    pair_texts(b, "tokenizer.ggml.tokens", tokens, kPieces);
    pair_u32(b, "tokenizer.ggml.bos_token_id", 1);
    pair_u32(b, "tokenizer.ggml.eos_token_id", 2);
    put_text(b, "tokenizer.ggml.scores");
    put_u32(b, GGUF_ARRAY);
    put_u32(b, GGUF_F32);
    put_u64(b, kPieces);
    put(b, scores, sizeof scores);
    put_text(b, "tokenizer.ggml.token_type");
    put_u32(b, GGUF_ARRAY);
    put_u32(b, GGUF_I32);
    put_u64(b, kPieces);
    put(b, types, sizeof types);
    uint64_t value_bytes = describe_tensors(b, tensors, COUNT(tensors));
    for (uint64_t i = 0; i < value_bytes / 4; i++) put_u32(b, 0);
}

static void pieces_case(void) {
    const char* bin = refpack("data/models/stories260K/tok512.bin");
    if (!bin) return;
    static Bytes file;
    char *path = scratch_path("pieces.gguf"), *bin_path = host_strdup(bin);
    pieces_into(&file, bin_path);
    put_file(path, file.bytes, file.count);
    Config c;
    GgufModel* m = gguf_model_open(path, &c);
    char* text = gguf_tokenizer_json(m);
    Tokenizer *ours = tokenizer_parse(text, strlen(text), "GGUF"), *theirs = tokenizer_load(refpack("data/models/stories260K/hf"));
    int different = different_ids(ours, theirs, kTexts, COUNT(kTexts));
    ok(different == 0, "a SentencePiece vocabulary: %d of %d texts encoded otherwise than by the converted tokenizer.json", different,
       (int)COUNT(kTexts));
    tokenizer_free(ours);
    tokenizer_free(theirs);
    gguf_model_close(m);
    free(text);
    free(bin_path);
    free(path);
}

// llama-bpe's form in the place of the one that dolma2's tokenizer.json has: test_tokenizer holds that one against llama.cpp's vectors.
static void pretokenizers_case(void) {
    const char* dir = refpack("data/tokenizers/dolma2");
    if (!dir) return;
    char* path = path_join(dir, "tokenizer.json");
    json_t* root = json_parse_file(path);
    Tokenizer* theirs = tokenizer_load(dir);
    int count, found = 0;
    const GgufPretokenizer* table = gguf_pretokenizers(&count);
    for (int i = 0; i < count; i++) {
        bool same_form = !strcmp(table[i].name, "llama-bpe");
        json_object_set_new(root, "pre_tokenizer", json_parse(table[i].form, strlen(table[i].form), table[i].name));
        char* text = json_dumps(root, JSON_COMPACT);
        Tokenizer* ours = tokenizer_parse(text, strlen(text), table[i].name);
        int different = different_ids(ours, theirs, kTexts, COUNT(kTexts));
        ok(same_form == (different == 0), "%s: %d of %d texts encoded otherwise than by llama-bpe", table[i].name, different,
           (int)COUNT(kTexts));
        found += same_form;
        tokenizer_free(ours);
        free(text);
    }
    ok(found == 1, "llama-bpe is in the table");
    tokenizer_free(theirs);
    json_decref(root);
    free(path);
}

// ---- the demo's model, written and read back

static void model_rows(void* context, int spec, int layer, int first, int rows, void* dst) {
    hf_model_rows((const HfModel*)context, spec, layer, first, rows, F32, dst);
}

static void written_case(void) {
    Config c, back;
    HfModel* source = hf_model_open("data/demo/model", &c);
    char *text = file_read("data/demo/model/tokenizer.json", NULL), *path = scratch_path("written.gguf");
    const GgmlType types[] = {GGML_BF16, GGML_Q8_0};
    for (int t = 0; t < 2; t++) {
        GgufOutput output = {path, types[t], "demo", text, "{{ messages }}", "tokenizer.json"};
        gguf_write(&output, &c, model_rows, source);
        GgufModel* m = gguf_model_open(path, &back);
        ParamSpec specs[kMaxParamSpecs];
        int count = param_specs(&c, specs);
        double worst = 0;
        for (int s = 0; s < count; s++) {
            size_t n = (size_t)specs[s].rows * (size_t)specs[s].cols;
            float *want = (float*)host_alloc(n * sizeof(float)), *got = (float*)host_alloc(n * sizeof(float));
            hf_model_rows(source, s, 0, 0, specs[s].rows, F32, want);
            gguf_model_rows(m, s, 0, 0, specs[s].rows, F32, got);
            worst = fmax(worst, rel_err(got, want, n));
            free(want);
            free(got);
        }
        ok(t ? worst > 0 && worst < 0.01 : worst == 0, "%s: written and read back, error %.1e", ggml_type_name(types[t]), worst);
        ok(back.V == c.V && back.NKV == c.NKV && back.eos == c.eos && back.tied == c.tied && back.rope_theta == c.rope_theta,
           "the configuration as well");
        char* tokenizer = gguf_tokenizer_json(m);
        ok(strstr(tokenizer, "TemplateProcessing") != NULL, "and the BOS token before each text");
        free(tokenizer);
        gguf_model_close(m);
    }
    hf_model_close(source);
    free(text);
    free(path);
}

static void open_model(void* path) {
    Config c;
    GgufModel* m = gguf_model_open((const char*)path, &c);
    free(gguf_tokenizer_json(m));
    gguf_model_close(m);
}

static void hostile_case(void) {
    static Bytes file, broken;
    model_bytes_into(&file);
    char* path = scratch_path("hostile.gguf");
    int bad = 0, tried = 0;
    for (size_t n = 0; n < file.count - 32; n += n < 1700 ? 7 : 997, tried++) {
        put_file(path, file.bytes, n);
        bad += quiet_exit_code(open_model, path) != kExitUser;
    }
    ok(bad == 0, "cut off at %d places: always refused", tried);
    int worse = 0;
    for (size_t at = 0; at < 1700; at += 5) {   // 64-bit counts, types and offsets gone wild
        broken = file;
        memset(broken.bytes + at, 0xff, 8);
        put_file(path, broken.bytes, broken.count);
        int code = quiet_exit_code(open_model, path);
        worse += code != kExitUser && code != 0;
    }
    ok(worse == 0, "wild values: refused or harmless");
    put_file(path, "GGUX0000", 8);
    expect_exit(open_model, path, kExitUser, "byte 0", "another file");
    model_bytes_into(&file);
    put_u32(&file, 0);
    put_file(path, file.bytes, file.count);
    expect_exit(open_model, path, kExitUser, "the tensors end here", "bytes behind the end");
    free(path);
}

static const Case cases[] = {{"types", types_case}, {"model", model_case}, {"pieces", pieces_case}, {"pretokenizers", pretokenizers_case},
                             {"written", written_case}, {"hostile", hostile_case}};
int main(int argc, char** argv) { return scratch_main("test_gguf", cases, COUNT(cases), argc, argv); }
