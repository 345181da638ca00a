// data/hf_config and data/hf_model: the reference pack's models, a sharded model of our own, and directories that lie.
#include "scratch.h"

#include "../data/files.h"
#include "../data/hf_config.h"
#include "../data/hf_read.h"
#include "../data/hf_write.h"
#include "../data/safetensors.h"

#include <signal.h>
#include <sys/resource.h>

static void write_file(const char* dir, const char* name, const char* text) {
    dir_make(dir);
    char* path = path_join(dir, name);
    put_file(path, text, strlen(text));
    free(path);
}

static bool has_file(const char* dir, const char* name) {
    char* path = path_join(dir, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

static char* read_file(const char* dir, const char* name) {
    char* path = path_join(dir, name);
    char* text = file_read(path, NULL);
    free(path);
    return text;
}

static bool same_file(const char* a_dir, const char* b_dir, const char* name) {
    if (!has_file(a_dir, name)) return !has_file(b_dir, name);
    char *a = read_file(a_dir, name), *b = read_file(b_dir, name);
    bool same = !strcmp(a, b);
    free(a);
    free(b);
    return same;
}

// ---- a small model of our own: every value is a function of its place

static Config small_config(bool tied) {
    Config c;
    memset(&c, 0, sizeof c);
    c.V = 40, c.C = 16, c.L = 3, c.NH = 4, c.NKV = 2, c.HD = 8, c.F = 24, c.max_T = 64;
    c.norm_eps = 1e-5f, c.init_std = 0.02f, c.rope_theta = 10000, c.tied = tied, c.bos = 1, c.eos = 2;
    return c;
}

static float value_at(int spec, int layer, size_t element) {
    int whole = (int)((element * 37 + (size_t)spec * 101 + (size_t)layer * 13) % 255) - 127;
    return (float)whole / 64.0f;   // exact in F16 and BF16
}

typedef struct {
    ParamSpec specs[kMaxParamSpecs];
    Fmt fmt;
    int calls;
    uint64_t trace;      // of the calls, in order
    int die_at_call;     // _exit there, as a crash; 0: never
} Source;

static Source make_source(const Config* config, Fmt fmt) {
    Source source;
    memset(&source, 0, sizeof source);
    param_specs(config, source.specs);
    source.fmt = fmt;
    return source;
}

static void source_rows(void* context, int spec, int layer, int first_row, int rows, void* dst) {
    Source* s = (Source*)context;
    if (++s->calls == s->die_at_call) _exit(77);
    s->trace = s->trace * 1000003 + (uint64_t)(spec * 7919 + layer * 104729 + first_row * 31 + rows);
    size_t first = (size_t)first_row * s->specs[spec].cols, count = (size_t)rows * s->specs[spec].cols;
    for (size_t i = 0; i < count; i++) {
        float value = value_at(spec, layer, first + i);
        if (s->fmt == F32) ((float*)dst)[i] = value;
        else ((uint16_t*)dst)[i] = bf16_from_f32(value);
    }
}

static HfOutput output_to(const char* dir, Fmt fmt, size_t shard_bytes) {
    HfOutput output = {dir, NULL, fmt, shard_bytes};
    return output;
}

static void write_small(const char* dir, bool tied, Fmt fmt, size_t shard_bytes) {
    Config config = small_config(tied);
    Source source = make_source(&config, fmt);
    HfOutput output = output_to(dir, fmt, shard_bytes);
    hf_model_write(&output, &config, source_rows, &source);
}

// Values of the opened model that are not those of value_at, read a few rows at a time.
static size_t count_wrong(const HfModel* model, const Config* config) {
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(config, specs);
    size_t wrong = 0;
    float rows_f32[5 * 64];
    uint16_t rows_bf16[5 * 64];
    for (int s = 0; s < count; s++)
        for (int layer = 0; layer < (specs[s].per_layer ? config->L : 1); layer++)
            for (int row = 0; row < specs[s].rows; row += 5) {
                int n = min_int(5, specs[s].rows - row);
                hf_model_rows(model, s, layer, row, n, F32, rows_f32);
                hf_model_rows(model, s, layer, row, n, BF16, rows_bf16);
                for (int i = 0; i < n * specs[s].cols; i++) {
                    float want = value_at(s, layer, (size_t)row * specs[s].cols + (size_t)i);
                    wrong += rows_f32[i] != want || f32_from_bf16(rows_bf16[i]) != want;
                }
            }
    return wrong;
}

static void expect_small(const char* dir, const char* name) {
    Config config;
    HfModel* model = hf_model_open(dir, &config);
    size_t wrong = count_wrong(model, &config);
    ok(wrong == 0, "%s: %zu values differ", name, wrong);
    hf_model_close(model);
}

// ---- the reference pack: load, write, load again

static void copy_rows(void* context, int spec, int layer, int first_row, int rows, void* dst) {
    hf_model_rows((const HfModel*)context, spec, layer, first_row, rows, F32, dst);
}
static void round_rows(void* context, int spec, int layer, int first_row, int rows, void* dst) {
    hf_model_rows((const HfModel*)context, spec, layer, first_row, rows, BF16, dst);
}

static size_t count_differences(const HfModel* a, const HfModel* b, const Config* config, Fmt fmt) {
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(config, specs);
    size_t wrong = 0;
    for (int s = 0; s < count; s++)
        for (int layer = 0; layer < (specs[s].per_layer ? config->L : 1); layer++) {
            size_t bytes = (size_t)specs[s].rows * specs[s].cols * fmt_bytes(fmt);
            void *x = host_alloc(bytes), *y = host_alloc(bytes);
            hf_model_rows(a, s, layer, 0, specs[s].rows, fmt, x);
            hf_model_rows(b, s, layer, 0, specs[s].rows, fmt, y);
            wrong += memcmp(x, y, bytes) != 0;
            free(x);
            free(y);
        }
    return wrong;
}

static void rewrite_model(const char* dir) {
    Config config, again;
    HfModel* model = hf_model_open(dir, &config);
    char* copy_dir = scratch_path("copy");
    for (int round = 0; round < 2; round++) {
        Fmt fmt = round ? BF16 : F32;
        empty_dir(copy_dir);
        ModelFiles* files = model_files_from_dir(dir);
        HfOutput output = {copy_dir, files, fmt, round ? 100000 : kDefaultShardBytes};
        hf_model_write(&output, &config, round ? round_rows : copy_rows, model);
        model_files_free(files);
        HfModel* copy = hf_model_open(copy_dir, &again);
        size_t wrong = count_differences(model, copy, &config, fmt);
        ok(wrong == 0 && hf_model_fmt(copy) == fmt, "%s: written as %s, %zu tensors differ", dir, fmt_name(fmt), wrong);
        ok(!memcmp(&config, &again, sizeof config), "%s: the same configuration", dir);
        ok((round || same_file(dir, copy_dir, "config.json")) && same_file(dir, copy_dir, "tokenizer.json") &&
           same_file(dir, copy_dir, "tokenizer_config.json") && same_file(dir, copy_dir, "generation_config.json"),
           "%s: the other files are copied", dir);
        hf_model_close(copy);
    }
    hf_model_close(model);
    free(copy_dir);
}

static void pack_case(void) {
    const char* fixtures = refpack("fixtures");
    if (fixtures) {
        char** names;
        int count = dir_names(fixtures, &names);
        for (int i = 0; i < count; i++) {
            char* dir = path_join(fixtures, names[i]);
            if (has_file(dir, "config.json")) rewrite_model(dir);
            free(dir);
        }
        dir_names_free(names, count);
    }
    const char* stories = refpack("data/models/stories260K/hf");
    if (stories) rewrite_model(stories);
}

// ---- shards and stored formats

static void sharded_case(void) {
    char* dir = scratch_path("sharded/");
    const size_t limit = 3000;
    write_small(dir, false, BF16, limit);
    ok(has_file(dir, "model.safetensors.index.json") && !has_file(dir, "model.safetensors") &&
       !has_file(dir, ".model-being-written"), "sharded: an index, no single file, nothing left over");
    char** names;
    int count = dir_names(dir, &names), shards = 0, large = 0;
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], "model-", 6)) continue;
        char* path = path_join(dir, names[i]);
        SafeTensors* file = safetensors_open(path);
        size_t bytes = 0;
        for (int t = 0; t < safetensors_count(file); t++) bytes += safetensors_at(file, t)->bytes;
        large += bytes > limit;
        shards++;
        safetensors_close(file);
        free(path);
    }
    dir_names_free(names, count);
    ok(shards > 4 && large == 0, "sharded: %d shards, %d above the limit", shards, large);
    expect_small(dir, "sharded: BF16");

    // A single file takes the place of the shards; what is not part of a model stays.
    write_file(dir, "notes.txt", "mine");
    write_file(dir, "model-card.safetensors", "not a shard by its name");
    write_small(dir, true, F32, kDefaultShardBytes);
    count = dir_names(dir, &names);
    dir_names_free(names, count);
    ok(count == 5 && has_file(dir, "notes.txt") && has_file(dir, "model-card.safetensors"),
       "sharded: replaced by one file, %d files left", count);
    expect_small(dir, "sharded: then F32 in one file, tied");

    Config config = small_config(true);
    char* path = path_join(dir, "model.safetensors");
    SafeTensors* file = safetensors_open(path);
    ok(!safetensors_find(file, "lm_head.weight") && safetensors_find(file, "model.norm.weight")->rank == 1,
       "sharded: no lm_head when tied, norms are vectors");
    safetensors_close(file);
    free(path);

    // What the other ranks do behind dir NULL.
    Source here = make_source(&config, BF16), there = make_source(&config, BF16);
    HfOutput output = output_to(dir, BF16, limit);
    hf_model_write(&output, &config, source_rows, &here);
    output.dir = NULL;
    hf_model_write(&output, &config, source_rows, &there);
    ok(here.calls > 20 && here.calls == there.calls && here.trace == there.trace,
       "sharded: without a directory the same %d calls", there.calls);
    free(dir);
}

// The small tied model as two shards of mixed dtypes, with extras that are harmless.
typedef struct {
    const char* index;        // replaces the index; NULL: the right one
    const char* drop;         // a tensor left out
    const char* add;          // a tensor of the shape [1] added to the second shard
    const char* misshape;     // a tensor stored as [1]
    const char* retype;       // a tensor stored as I32
    int head;                 // lm_head: 0 none, 1 the embedding, 2 one value differs
} Bend;

// The F16 code of one of value_at's multiples of 1/64: |value| < 2, so 2^e <= |value| leaves a mantissa of at most 7 bits.
static uint16_t f16_of(float value) {
    if (value == 0) return 0;
    int exponent;
    float mantissa = frexpf(fabsf(value), &exponent) * 2 - 1;   // |value| = (1 + mantissa) 2^(exponent - 1)
    return (uint16_t)((value < 0) << 15 | (exponent - 1 + 15) << 10 | (int)(mantissa * 1024));
}

static void write_shard(const char* dir, const char* file_name, int part, const Bend* bend, char* index) {
    Config config = small_config(true);
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(&config, specs), tensors = 0;
    static char names[64][128];
    Tensor list[64];
    uint16_t* data = (uint16_t*)host_alloc(1 << 20);
    size_t bytes = 0;
    memset(list, 0, sizeof list);
    for (int s = 0; s < count + 2; s++) {
        bool head = s == count, extra = s == count + 1;
        if (head && !bend->head) continue;
        if (extra && !bend->add) continue;
        const ParamSpec* spec = &specs[head ? 0 : extra ? 1 : s];
        for (int layer = 0; layer < (spec->per_layer && !extra ? config.L : 1); layer++) {
            if (part != (head || extra || s % 2)) continue;
            char* name = names[tensors];
            if (head || extra) snprintf(name, 128, "%s", head ? "lm_head.weight" : bend->add);
            else param_name(spec, layer, name, 128);
            if (bend->drop && !strcmp(name, bend->drop)) continue;
            Tensor* t = &list[tensors++];
            t->name = name;
            t->dtype = bend->retype && !strcmp(name, bend->retype) ? ST_I32 : part && !head ? ST_F16 : ST_BF16;
            bool small = extra || (bend->misshape && !strcmp(name, bend->misshape));
            if (!small && spec->rows > 1) t->shape[t->rank++] = (size_t)spec->rows;
            t->shape[t->rank++] = small ? 1 : (size_t)spec->cols;
            size_t elements = t->shape[0] * (t->rank > 1 ? t->shape[1] : 1);
            for (size_t i = 0; i < elements; i++) {
                float value = value_at(head ? 0 : s, layer, i) + (head && bend->head == 2 && i == 3 ? 1.0f : 0.0f);
                data[bytes / 2 + i] = t->dtype == ST_F16 ? f16_of(value) : bf16_from_f32(value);
            }
            bytes += elements * dtype_bytes(t->dtype);
            sprintf(index + strlen(index), "%s\"%s\": \"%s\"", strchr(index, ':') ? ", " : "", name, file_name);
        }
    }
    char* path = path_join(dir, file_name);
    OutFile out = safetensors_create(path, list, tensors);
    out_write(&out, data, bytes);
    out_close(&out);
    free(path);
    free(data);
}

static char* bent_model(const Bend* bend) {
    char* dir = scratch_path("bent");
    empty_dir(dir);
    Config config = small_config(true);
    char* text = hf_config_text(&config, BF16);
    write_file(dir, "config.json", text);
    free(text);
    char index[8192] = "{";
    write_shard(dir, "one.safetensors", 0, bend, index);
    write_shard(dir, "two.safetensors", 1, bend, index);
    char whole[8300];
    snprintf(whole, sizeof whole, "{\"weight_map\": %s}}", index);
    write_file(dir, "model.safetensors.index.json", bend->index ? bend->index : whole);
    return dir;
}

static void open_dir(void* dir) {
    Config config;
    hf_model_close(hf_model_open((const char*)dir, &config));
}

static void bent_case(void) {
    static const Bend good[] = {
        {NULL, NULL, NULL, NULL, NULL, 0},
        {NULL, NULL, "model.layers.0.self_attn.rotary_emb.inv_freq", NULL, NULL, 1},
    };
    for (int i = 0; i < COUNT(good); i++) {
        char* dir = bent_model(&good[i]);
        expect_small(dir, i ? "directory: with rotary_emb.inv_freq and the embedding as lm_head" : "directory: F16 and BF16");
        if (i == 0) {
            Config config;
            HfModel* model = hf_model_open(dir, &config);
            ok(hf_model_fmt(model) == F32, "directory: F16 values need F32");
            hf_model_close(model);
        }
        free(dir);
    }

    static const char norm[] = "model.norm.weight", gate[] = "model.layers.1.mlp.gate_proj.weight";
    static const struct {
        const char* name;
        Bend bend;
        const char* words;
    } bad[] = {
        {"a tensor missing", {NULL, gate, NULL, NULL, NULL, 0}, "tensor \"model.layers.1.mlp.gate_proj.weight\" is missing"},
        {"an extra tensor", {NULL, NULL, "model.layers.9.bias", NULL, NULL, 0}, "unexpected tensor \"model.layers.9.bias\""},
        {"a wrong shape", {NULL, NULL, NULL, norm, NULL, 0}, "has the shape [1], config.json asks for [16]"},
        {"a wrong rank", {NULL, NULL, NULL, gate, NULL, 0}, "has the shape [1], config.json asks for [24, 16]"},
        {"integer weights", {NULL, NULL, NULL, NULL, norm, 0}, "stored as I32"},
        {"a head of its own, but tied", {NULL, NULL, NULL, NULL, NULL, 2}, "lm_head.weight differs from the embedding"},
        {"an index without a map", {"{}", NULL, NULL, NULL, NULL, 0}, "\"weight_map\" is missing"},
        {"an index that is a list", {"[]", NULL, NULL, NULL, NULL, 0}, "\"weight_map\" is missing"},
        {"a map to a number", {"{\"weight_map\":{\"x\":1}}", NULL, NULL, NULL, NULL, 0}, "has to be a file name"},
        {"a shard that is not there", {"{\"weight_map\":{\"x\":\"three.safetensors\"}}", NULL, NULL, NULL, NULL, 0},
         "the shard is missing"},
        {"a shard above the directory", {"{\"weight_map\":{\"x\":\"../one.safetensors\"}}", NULL, NULL, NULL, NULL, 0},
         "not the name of a .safetensors file"},
        {"an absolute shard", {"{\"weight_map\":{\"x\":\"/etc/one.safetensors\"}}", NULL, NULL, NULL, NULL, 0},
         "not the name of a .safetensors file"},
        {"a shard of another kind", {"{\"weight_map\":{\"x\":\"config.json\"}}", NULL, NULL, NULL, NULL, 0},
         "not the name of a .safetensors file"},
        {"a tensor listed but absent", {"{\"weight_map\":{\"x\":\"one.safetensors\"}}", NULL, NULL, NULL, NULL, 0},
         "tensor \"x\" is not in it"},
        {"a tensor present but unlisted", {"{\"weight_map\":{\"model.embed_tokens.weight\":\"one.safetensors\"}}", NULL, NULL,
         NULL, NULL, 0}, "does not place there"},
        {"a duplicate entry", {"{\"weight_map\":{\"x\":\"a.safetensors\",\"x\":\"a.safetensors\"}}", NULL, NULL, NULL, NULL, 0},
         "duplicate"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        char* dir = bent_model(&bad[i].bend);
        expect_exit(open_dir, dir, kExitUser, bad[i].words, bad[i].name);
        free(dir);
    }
    char* dir = bent_model(&good[0]);
    char* index = path_join(dir, "model.safetensors.index.json");
    file_remove(index);
    expect_exit(open_dir, dir, kExitUser, "neither model.safetensors nor", "no weights");
    expect_exit(open_dir, (void*)"no/such/model", kExitUser, "no/such/model/config.json: cannot be read", "no directory");
    free(index);
    free(dir);
}

// ---- writing that fails

static void write_limited(void* dir) {
    struct rlimit limit = {4096, 4096};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    write_small((const char*)dir, false, F32, kDefaultShardBytes);
}

static void crash_while_writing(void* dir) {
    Config config = small_config(true);
    Source source = make_source(&config, BF16);
    source.die_at_call = 9;
    HfOutput output = output_to((const char*)dir, BF16, 3000);
    hf_model_write(&output, &config, source_rows, &source);
}

static void failing_case(void) {
    char *fresh = scratch_path("fresh"), *used = scratch_path("used");
    expect_exit(write_limited, fresh, kExitUser, "cannot be written at byte 4096 of", "failing: a file size limit");
    ok(quiet_exit_code(crash_while_writing, fresh) == 77 && !has_file(fresh, "config.json") &&
       !has_file(fresh, "model.safetensors.index.json"), "failing: a crash leaves no model");
    write_small(fresh, true, BF16, 3000);
    expect_small(fresh, "failing: written over what the crash has left");
    write_small(used, true, F32, kDefaultShardBytes);
    ok(quiet_exit_code(crash_while_writing, used) == 77, "failing: a crash over a model that was there");
    expect_small(used, "failing: which is still whole");
    write_file(scratch_dir, "a_file", "");
    char* file = scratch_path("a_file");
    expect_exit(write_limited, file, kExitUser, "not a directory", "failing: the place is a file");
    free(file);
    free(fresh);
    free(used);
}

// A crash after the new model is complete, with `moved` of its files in their place.
static void crash_after_moves(const char* dir, int moved) {
    static const char* const names[] = {"config.json", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors",
                                        "model-00003-of-00003.safetensors", "model.safetensors.index.json"};
    char* fresh = scratch_path("fresh_for_crash");
    empty_dir(fresh);
    write_small(fresh, false, BF16, 7000);
    char *complete = path_join(dir, ".model-complete"), list[512] = "";
    for (int i = 0; i < COUNT(names); i++) {
        check(has_file(fresh, names[i]), "crash_after_moves: %s is missing", names[i]);
        dir_make(complete);
        char *from = path_join(fresh, names[i]), *to = path_join(i < moved ? dir : complete, names[i]);
        file_rename(from, to);
        strcat(strcat(list, names[i]), "\n");
        free(from);
        free(to);
    }
    write_file(complete, ".files", list);
    free(complete);
    free(fresh);
}

static void recover_case(void) {
    char* dir = scratch_path("recover");
    for (int moved = 0; moved <= 5; moved++) {
        empty_dir(dir);
        if (moved == 0) write_small(dir, true, F32, kDefaultShardBytes);
        crash_after_moves(dir, moved);
        ok(hf_model_recover(dir) && !has_file(dir, "model.safetensors") && !has_file(dir, ".model-complete"),
           "recover: after %d moves", moved);
        expect_small(dir, "recover: the new model");
    }
    ok(!hf_model_recover(dir), "recover: nothing left to do");
    free(dir);
}

static void stale_case(void) {
    char *dir = scratch_path("stale"), *source = scratch_path("stale_source");
    static const char* const stale[] = {"chat_template.jinja", "adapter_config.json", "pytorch_model.bin",
                                        "pytorch_model-00001-of-00002.bin", "additional_chat_templates/old.jinja"};
    dir_make(dir);
    char* folder = path_join(dir, "additional_chat_templates");
    dir_make(folder);
    for (int i = 0; i < COUNT(stale); i++) write_file(dir, stale[i], "x");
    write_file(dir, "notes.txt", "mine");
    write_file(source, "tokenizer.json", "{}");
    char* extra = path_join(source, "additional_chat_templates");
    write_file(extra, "rag.jinja", "rag");
    Config config = small_config(true);
    Source values = make_source(&config, BF16);
    ModelFiles* files = model_files_from_dirs(NULL, source);
    HfOutput output = {dir, files, BF16, kDefaultShardBytes};
    hf_model_write(&output, &config, source_rows, &values);
    model_files_free(files);
    for (int i = 0; i < COUNT(stale); i++) ok(!has_file(dir, stale[i]), "stale: %s is gone", stale[i]);
    ok(has_file(dir, "notes.txt") && has_file(dir, "tokenizer.json") && has_file(dir, "additional_chat_templates/rag.jinja"),
       "stale: everything else is there");
    free(extra);
    free(folder);
    free(source);
    free(dir);
}

static void nan_rows(void* context, int spec, int layer, int first_row, int rows, void* dst) {
    source_rows(context, spec, layer, first_row, rows, dst);
    if (spec == 0) ((uint16_t*)dst)[17] = 0x7fc0;
}

static void write_nan(void* dir) {
    Config config = small_config(true);
    Source source = make_source(&config, BF16);
    HfOutput output = output_to((const char*)dir, BF16, kDefaultShardBytes);
    hf_model_write(&output, &config, nan_rows, &source);
}

static void finite_case(void) {
    char* dir = scratch_path("finite");
    expect_exit(write_nan, dir, kExitUser, "\"model.embed_tokens.weight\" is not finite at row 1, column 1", "finite: a NaN");
    ok(!has_file(dir, "model.safetensors"), "finite: nothing is written");
    free(dir);
}

static void model_files_case(void) {
    ModelFiles* files = model_files_new();
    const char* config = "{\"a\": 1.50, \"eos_token_id\": [1,2] , \"b\": {}}";
    const char* tokenizer = "{\"eos_token\": {\"content\": \"</s>\"}, \"chat_template\": \"x\"}";
    model_files_set(files, "config.json", config, strlen(config));
    model_files_set(files, "tokenizer_config.json", tokenizer, strlen(tokenizer));
    int ids[] = {7, 8};
    model_files_set_eos(files, ids, 1, "<|\"end|>");
    ok(!strcmp(model_files_get(files, "config.json")->text, "{\"a\": 1.50, \"eos_token_id\": 7 , \"b\": {}}"), "files: one id");
    model_files_set_eos(files, ids, 2, NULL);
    ok(!strcmp(model_files_get(files, "config.json")->text, "{\"a\": 1.50, \"eos_token_id\": [7, 8] , \"b\": {}}"), "files: two ids");
    model_files_set_chat_template(files, "new", 3);
    ok(!strcmp(model_files_get(files, "tokenizer_config.json")->text, "{\"eos_token\": \"<|\\\"end|>\"}") &&
       !strcmp(model_files_get(files, "chat_template.jinja")->text, "new"), "files: a new template");
    ok(!model_files_get(files, "generation_config.json"), "files: what is absent stays absent");
    model_files_free(files);
}

// ---- config.json

#define SIZES_OF(type) "\"model_type\":\"" type "\",\"vocab_size\":40,\"hidden_size\":16,\"num_hidden_layers\":3,\"num_attention_heads\":4," \
                       "\"intermediate_size\":24,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-6"
#define SIZES SIZES_OF("llama")

static Config read_config(const char* text) {
    char* dir = scratch_path("config");
    write_file(dir, "config.json", text);
    Config config;
    hf_config_read(dir, &config);
    free(dir);
    return config;
}
static void read_config_text(void* text) { read_config((const char*)text); }

static void config_case(void) {
    Config c = read_config("{" SIZES "}");
    ok(c.V == 40 && c.C == 16 && c.L == 3 && c.NH == 4 && c.NKV == 4 && c.HD == 4 && c.F == 24 && c.max_T == 64 &&
       c.norm_eps == 1e-6f && c.rope_theta == 10000 && c.rope_type == ROPE_DEFAULT && !c.tied && c.bos == -1 && c.eos == -1,
       "config: defaults");
    c = read_config("{" SIZES ",\"head_dim\":null,\"num_key_value_heads\":2,\"tie_word_embeddings\":true,\"rope_theta\":500000,"
                    "\"eos_token_id\":[7,8],\"bos_token_id\":5,\"rope_scaling\":null,\"torch_dtype\":\"bfloat16\"}");
    ok(c.HD == 4 && c.NKV == 2 && c.tied && c.rope_theta == 500000 && c.bos == 5 && c.eos == 7, "config: the older keys");
    const char* llama3[] = {
        "{" SIZES ",\"rope_theta\":5e5,\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1.0,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32}}",
        "{" SIZES ",\"rope_theta\":5e5,\"rope_scaling\":{\"rope_type\":\"llama3\",\"type\":\"linear\",\"factor\":8.0,"
        "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32}}",
        "{" SIZES ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"rope_theta\":5e5,"
        "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":32},\"dtype\":\"float16\"}",
    };
    for (int i = 0; i < COUNT(llama3); i++) {
        c = read_config(llama3[i]);
        ok(c.rope_type == ROPE_LLAMA3 && c.rope_theta == 500000 && c.rope_factor == 8 && c.rope_low_freq == 1 &&
           c.rope_high_freq == 4 && c.rope_original_T == 32, "config: llama3 RoPE, spelling %d", i + 1);
    }

    c = read_config("{" SIZES_OF("mistral") ",\"architectures\":[\"MistralForCausalLM\"],\"sliding_window\":null,\"head_dim\":8}");
    ok(c.HD == 8 && c.C == 16, "config: Mistral without a sliding window is Llama's architecture");

    static const struct {
        const char *text, *words;
    } bad[] = {
        {"[]", "has to be an object"},
        {"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"},
        {"{\"vocab_size\":1}", "\"model_type\" is missing"},
        {"{\"model_type\":\"qwen2\"}", "\"model_type\" is \"qwen2\", only \"llama\""},
        {"{\"model_type\":\"mistral\",\"sliding_window\":4096}", "\"sliding_window\""},
        {"{" SIZES ",\"architectures\":[\"Qwen2ForCausalLM\"]}", "names Qwen2ForCausalLM"},
        {"{" SIZES ",\"quantization_config\":{}}", "\"quantization_config\""},
        {"{" SIZES ",\"attention_dropout\":0.1}", "\"attention_dropout\" has to be 0"},
        {"{" SIZES ",\"eos_token_id\":[1,40]}", "\"eos_token_id\" names token 40"},
        {"{\"model_type\":\"llama\",\"vocab_size\":40}", "\"hidden_size\" is missing"},
        {"{" SIZES ",\"head_dim\":0}", "\"head_dim\" is 0"},
        {"{" SIZES ",\"head_dim\":-8}", "\"head_dim\" is -8"},
        {"{" SIZES ",\"head_dim\":2147483648}", "\"head_dim\" is 2147483648"},
        {"{" SIZES ",\"head_dim\":\"8\"}", "\"head_dim\" has to be a whole number"},
        {"{" SIZES ",\"head_dim\":8.0}", "\"head_dim\" has to be a whole number"},
        {"{" SIZES ",\"num_key_value_heads\":3}", "num_key_value_heads"},
        {"{" SIZES ",\"hidden_act\":\"gelu\"}", "\"hidden_act\" is \"gelu\""},
        {"{" SIZES ",\"attention_bias\":true}", "\"attention_bias\" is true"},
        {"{" SIZES ",\"mlp_bias\":true}", "\"mlp_bias\" is true"},
        {"{" SIZES ",\"mlp_bias\":1}", "\"mlp_bias\" has to be true or false"},
        {"{" SIZES ",\"tie_word_embeddings\":\"no\"}", "\"tie_word_embeddings\" has to be true or false"},
        {"{" SIZES ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
        {"{" SIZES ",\"torch_dtype\":32}", "\"torch_dtype\" has to be a string"},
        {"{" SIZES ",\"eos_token_id\":[1,\"2\"]}", "\"eos_token_id\" has to be a token id"},
        {"{" SIZES ",\"bos_token_id\":-1}", "\"bos_token_id\" has to be a token id"},
        {"{" SIZES ",\"rope_theta\":0}", "\"rope_theta\" has to be a number above 0"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"yarn\"}}", "the RoPE type \"yarn\" is not supported"},
        {"{" SIZES ",\"rope_scaling\":{\"factor\":2.0}}", "\"type\" is missing"},
        {"{" SIZES ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2.0}}", "\"low_freq_factor\" is missing"},
        {"{" SIZES ",\"rope_scaling\":[]}", "\"rope_scaling\" has to be an object"},
        {"{" SIZES ",\"rope_theta\":1e4,\"rope_scaling\":{\"type\":\"default\"},\"rope_parameters\":{\"rope_theta\":5e5}}", "disagree"},
        {"{" SIZES ",\"hidden_size\":16}", "duplicate object key"},
        {"{" SIZES "", "not valid JSON at line 1"},
    };
    for (int i = 0; i < COUNT(bad); i++)
        expect_exit(read_config_text, (void*)bad[i].text, kExitUser, bad[i].words, "config");
}

static void eos_case(void) {
    ModelFiles* files = model_files_new();
    int ids[kMaxEos];
    ok(hf_config_eos(files, "eos", ids) == 0, "eos: no files, none");
    const char *config = "{\"eos_token_id\":[3,4]}", *generation = "{\"eos_token_id\":[4,9,3]}";
    model_files_set(files, "config.json", config, strlen(config));
    int count = hf_config_eos(files, "eos", ids);
    ok(count == 2 && ids[0] == 3 && ids[1] == 4, "eos: config.json alone");
    model_files_set(files, "generation_config.json", generation, strlen(generation));
    count = hf_config_eos(files, "eos", ids);
    ok(count == 3 && ids[0] == 3 && ids[1] == 4 && ids[2] == 9, "eos: and generation_config.json");
    model_files_free(files);
}

static void dtype_case(void) {
    static const struct {
        const char *before, *after;
    } texts[] = {
        {"{\"dtype\":\"float32\"}", "{\"dtype\":\"bfloat16\"}"},
        {" {\n  \"a\": [1, {\"dtype\": \"x\"}],\n  \"torch_dtype\" : \"float16\" ,\n \"b\": 1.50e+3\n}\n\n",
         " {\n  \"a\": [1, {\"dtype\": \"x\"}],\n  \"torch_dtype\" : \"bfloat16\" ,\n \"b\": 1.50e+3\n}\n\n"},
        {"{\"b\": \"\\\"dtype\\\": {[,\\\\\", \"torch_dtype\": null}",
         "{\"b\": \"\\\"dtype\\\": {[,\\\\\", \"torch_dtype\": \"bfloat16\"}"},
        {"{\"dtype\": \"float32\", \"x\\\"\": {}, \"torch_dtype\":\"\"}",
         "{\"dtype\": \"bfloat16\", \"x\\\"\": {}, \"torch_dtype\":\"bfloat16\"}"},
        {"{ \"a\": 1}", "{\n  \"torch_dtype\": \"bfloat16\", \"a\": 1}"},
        {"{}", "{\n  \"torch_dtype\": \"bfloat16\"}"},
        {"{\"torch\\u005fdtype\": \"float32\", \"quantization_config\": null, \"a\": 1}",
         "{\"torch\\u005fdtype\": \"bfloat16\", \"a\": 1}"},
    };
    char* dir = scratch_path("dtype");
    for (int i = 0; i < COUNT(texts); i++) {
        write_file(dir, "config.json", texts[i].before);
        char* got = hf_config_copy(dir, BF16);
        ok(!strcmp(got, texts[i].after), "dtype: text %d of %d", i + 1, COUNT(texts));
        free(got);
    }
    free(dir);
}

static void preset_case(void) {
    char* dir = scratch_path("preset");
    Config config = small_config(true);
    config.rope_type = ROPE_LLAMA3;
    config.rope_factor = 32, config.rope_low_freq = 1, config.rope_high_freq = 4.1, config.rope_original_T = 8192;
    config.rope_theta = 500000, config.norm_eps = 1e-5f, config.init_std = 0.05f, config.eos = -1;
    char* text = hf_config_text(&config, BF16);
    ok(strstr(text, "\"rms_norm_eps\": 1e-05,") && strstr(text, "\"rope_theta\": 500000.0,") &&
       strstr(text, "\"high_freq_factor\": 4.1,") && strstr(text, "\"eos_token_id\": null"), "preset: numbers as people write them");
    write_file(dir, "config.json", text);
    Config again;
    hf_config_read(dir, &again);
    ok(!memcmp(&config, &again, sizeof config), "preset: what was made reads back as the same configuration");
    free(text);
    free(dir);
}

static const Case cases[] = {
    {"hf_config.read", config_case},  {"hf_config.eos", eos_case},     {"hf_config.dtype", dtype_case},
    {"hf_config.preset", preset_case}, {"hf_model.pack", pack_case},    {"hf_model.sharded", sharded_case},
    {"hf_model.directory", bent_case}, {"hf_model.failing", failing_case},
    {"hf_model.recover", recover_case}, {"hf_model.stale", stale_case},  {"hf_model.finite", finite_case},
    {"model_files.changes", model_files_case},
};

int main(int argc, char** argv) { return scratch_main("test_hf_model", cases, COUNT(cases), argc, argv); }
