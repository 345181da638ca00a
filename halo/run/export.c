// Writing models; see export.h.
#include "export.h"

#include "../../data/files.h"
#include "../../data/gguf_write.h"
#include "../../data/hf_config.h"
#include "../../data/hf_layout.h"
#include "../attempt.h"
#include "../progress.h"
#include "locate.h"
#include "out_dir.h"
#include "run_state.h"

void become_chat_model(Session* s) {
    if (!s->tokenizer || !s->chat.built_in || s->chat.plain) return;
    ModelFiles* files = s->files;
    model_files_set_chat_template(files, s->chat.source, strlen(s->chat.source));
    if (s->chat.turn_end < 0) return;
    int ids[kMaxEos + 1], count = hf_config_eos(files, s->source_path ? s->source_path : "--preset", ids);
    bool known = false;
    for (int i = 0; i < count; i++) known = known || ids[i] == s->chat.turn_end;
    if (!known) ids[count++] = s->chat.turn_end;
    Text token = {NULL, 0, 0};
    tokenizer_decode(s->tokenizer, &s->chat.turn_end, 1, false, &token);
    model_files_set_eos(files, ids, count, token.data);
    text_free(&token);
}

// ---- merging: W + scale B A (LoRA), or W (.) (1 + scale B A) (HUT), from the base model's own weights, in FP32 and rounded once
typedef struct {
    Session* s;
    Fmt fmt;                     // of the written weights
    int a_spec[kMaxParamSpecs];  // of each parameter: the index of its A in adapter_specs, B is the next; -1: not adapted
    int spec, layer;             // of the parameter whose factors a and b are
    float *a, *b;                // (rank, K), (N, rank)
} AdapterMerge;

static void read_factor(Session* s, const ParamSpec* specs, int spec, int layer, int row0, int rows, float* x) {
    shard_read_adapter(s->shard, spec, layer, row0, rows, x);
    uint16_t* half = (uint16_t*)x;
    for (size_t i = (size_t)rows * specs[spec].cols; s->ops->act == BF16 && i-- > 0;) x[i] = f32_from_bf16(half[i]);   // in place: from the end
}

static float* whole_factor(Session* s, int spec, int layer) {
    ParamSpec specs[kMaxParamSpecs];
    adapter_specs(&s->config, specs);
    float* x = (float*)host_alloc(sizeof(float) * (size_t)specs[spec].rows * specs[spec].cols);
    read_factor(s, specs, spec, layer, 0, specs[spec].rows, x);
    return x;
}

static void merged_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    AdapterMerge* m = (AdapterMerge*)self;
    ParamSpec specs[kMaxParamSpecs];
    param_specs(&m->s->config, specs);
    int K = specs[spec].cols, rank = m->s->config.adapter.rank, a_spec = m->a_spec[spec];
    if (a_spec < 0) {
        model_source_rows(m->s->source, spec, layer, row0, rows, m->fmt, dst);
        return;
    }
    if (m->spec != spec || m->layer != layer) {
        free(m->a);
        free(m->b);
        m->a = whole_factor(m->s, a_spec, layer);
        m->b = whole_factor(m->s, a_spec + 1, layer);
        m->spec = spec;
        m->layer = layer;
    }
    float scale = adapter_scale(&m->s->config.adapter);
    bool hut = m->s->config.adapter.kind == ADAPTER_HUT;
    float* change = (float*)host_alloc(sizeof(float) * (size_t)rows * K);   // scale B A
    float* w = (float*)host_alloc(sizeof(float) * (size_t)rows * K);
    model_source_rows(m->s->source, spec, layer, row0, rows, F32, w);
#pragma omp parallel for
    for (int i = 0; i < rows; i++)
        for (int r = 0; r < rank; r++) {
            float b = scale * m->b[(size_t)(row0 + i) * rank + r];
            for (int k = 0; k < K; k++) change[(size_t)i * K + k] += b * m->a[(size_t)r * K + k];
        }
    for (size_t i = 0; i < (size_t)rows * K; i++) {
        w[i] += hut ? w[i] * change[i] : change[i];
        if (m->fmt == F32) ((float*)dst)[i] = w[i];
        else ((uint16_t*)dst)[i] = bf16_from_f32(w[i]);
    }
    free(change);
    free(w);
}

// Finds the adapter's A of each parameter: the names of both contain the same module.
static void find_pairs(const Config* c, int a_spec[kMaxParamSpecs]) {
    ParamSpec specs[kMaxParamSpecs], factors[kMaxParamSpecs];
    int count = param_specs(c, specs), factor_count = adapter_specs(c, factors);
    for (int i = 0; i < count; i++) {
        size_t n = strlen(specs[i].name) - strlen("weight");   // "model.layers.%d.self_attn.q_proj."
        a_spec[i] = -1;
        for (int k = 0; k < factor_count; k += 2)
            if (!strncmp(factors[k].name + strlen("base_model.model."), specs[i].name, n)) a_spec[i] = k;
    }
}

// ---- writing, as an attempt of rank 0. All ranks deliver rows together (zero 3 gathers them), so that after a failure rank 0 still has to
// take part in the deliveries that are left.
typedef struct {
    Session* s;
    const char* dir;         // NULL: this rank only delivers
    const ModelFiles* files;
    HfRows rows;             // of the model, of the adapter, or of both merged
    void* context;
    bool adapter;            // a PEFT directory is written
    Fmt fmt;
    long delivered;          // calls of deliver_rows
    long skip;               // calls to leave out, because the failed attempt has made them
} ModelWrite;

static void read_model_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read((Shard*)self, spec, layer, row0, rows, dst);
}
static void read_adapter_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read_adapter((Shard*)self, spec, layer, row0, rows, dst);
}

// HUT's factors for HiRA, which has no scale: A, and scale B, in FP32.
static void read_hira_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    Session* s = (Session*)self;
    ParamSpec specs[kMaxParamSpecs];
    adapter_specs(&s->config, specs);
    float *x = (float*)dst, scale = spec % 2 ? adapter_scale(&s->config.adapter) : 1;
    read_factor(s, specs, spec, layer, row0, rows, x);
    for (size_t i = 0; i < (size_t)rows * specs[spec].cols; i++) x[i] *= scale;
}

static void deliver_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    ModelWrite* w = (ModelWrite*)self;
    w->delivered++;
    progress_phase("writing the model", layer);
    progress_work("writing the model", layer + 1, w->s->config.L);
    if (w->delivered > w->skip) w->rows(w->context, spec, layer, row0, rows, dst);
}

static void write_now(void* self) {
    ModelWrite* w = (ModelWrite*)self;
    const Options* o = &w->s->o;
    size_t shard_bytes = (size_t)(o->shard_gb * 1e9);
    if (w->adapter) {
        const char* base = o->model ? o->model : o->from_scratch ? o->from_scratch : o->preset;
        PeftOutput out = {w->dir, name_as_given(base), w->files, w->fmt};
        peft_write(&out, &w->s->config, deliver_rows, w);
    } else {
        HfOutput out = {w->dir, w->files, w->fmt, shard_bytes ? shard_bytes : kDefaultShardBytes};
        hf_model_write(&out, &w->s->config, deliver_rows, w);
    }
}

static bool write_as(ModelWrite* w, const char* what, const char* dir, char* fault) {
    double failed = 0;
    if (w->dir) failed = !attempt(write_now, w, fault);
    else write_now(w);
    if (failed > 0) {
        w->skip = w->delivered;
        w->delivered = 0;
        w->dir = NULL;
        write_now(w);
    }
    progress_work(NULL, 0, 0);
    w->s->comm->host_sum(&failed, 1);
    if (failed == 0 && leads(w->s)) printf("wrote %s%s\n", what, dir);
    return failed == 0;
}

static bool write_weights(Session* s, const char* dir, const ModelFiles* files, char* fault) {
    bool hut = s->config.adapter.kind == ADAPTER_HUT;
    ModelWrite w = {s, leads(s) ? dir : NULL, files, read_model_rows, s->shard, false, s->ops->act, 0, 0};
    if (!adapts(s)) return write_as(&w, "", dir, fault);
    if (!s->o.merge && !hut) {
        w.rows = read_adapter_rows;
        w.adapter = true;
        return write_as(&w, "the adapter ", dir, fault);
    }
    if (!s->source) user_error("--merge: adds the adapter to a model's own weights; name them with --model DIR");
    AdapterMerge m = {s, model_source_fmt(s->source), {0}, -1, -1, NULL, NULL};
    find_pairs(&s->config, m.a_spec);
    w.rows = merged_rows;
    w.context = &m;
    w.fmt = m.fmt;
    bool written = write_as(&w, "the model with the adapter in it: ", dir, fault);
    free(m.a);
    free(m.b);
    return written;
}

// Is there to be a HiRA adapter beside the model? Not where the model takes the place of the base that the adapter would be of.
static bool leaves_hira(const Session* s) {
    char leaves = s->config.adapter.kind == ADAPTER_HUT && !same_folder(s->o.out, s->source_path);
    s->comm->host_broadcast(&leaves, sizeof leaves);
    return leaves;
}

// An earlier run's adapter must not stay beside another model.
static void remove_adapter(const char* dir) {
    static const char* const names[] = {HF_ADAPTER_NAME, HF_ADAPTER_CONFIG_NAME};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char* path = path_join(dir, names[i]);
        file_remove(path);
        free(path);
    }
}

bool write_model(Session* s, const char* dir, const ModelFiles* files, char* fault) {
    bool hira = leaves_hira(s), written = true;
    char* folder = path_join(dir, "hira");
    if (hira) {   // first: a run is finished once its model is there
        ModelWrite w = {s, leads(s) ? folder : NULL, files, read_hira_rows, s, true, F32, 0, 0};
        written = write_as(&w, "what was trained, in PEFT's HiRA form: ", folder, fault);
    }
    written = written && write_weights(s, dir, files, fault);
    if (written && !hira && leads(s)) remove_adapter(folder);
    free(folder);
    return written;
}

size_t written_bytes(const Session* s) {
    bool hut = s->config.adapter.kind == ADAPTER_HUT, alone = adapts(s) && !s->o.merge && !hut;
    ParamSpec specs[kMaxParamSpecs];
    int count = adapter_specs(&s->config, specs);
    size_t values = alone ? 0 : param_count(&s->config), factors = 0;
    for (int i = 0; i < count; i++) factors += (size_t)specs[i].rows * specs[i].cols * (size_t)s->config.L;
    return (values + (alone ? factors : 0)) * fmt_bytes(s->ops->act) + (hut ? factors * sizeof(float) : 0);
}

// Rows as floats, which GGUF files are written from, widened from the format that layers read.
static void read_rows_as_floats(void* self, int spec, int layer, int row0, int rows, void* dst) {
    const Session* s = (const Session*)self;
    shard_read(s->shard, spec, layer, row0, rows, dst);
    if (s->ops->act == F32) return;
    ParamSpec specs[kMaxParamSpecs];
    param_specs(&s->config, specs);
    size_t count = (size_t)rows * (size_t)specs[spec].cols;
    uint16_t* narrow = (uint16_t*)host_alloc(count * sizeof(uint16_t));
    memcpy(narrow, dst, count * sizeof(uint16_t));
    for (size_t i = 0; i < count; i++) ((float*)dst)[i] = f32_from_bf16(narrow[i]);
    free(narrow);
}

static void write_gguf(Session* s) {
    static const GgmlType types[] = {GGML_BF16, GGML_F16, GGML_Q8_0};   // in the order of GgufChoice
    const ModelFile* tokenizer = model_files_get(s->files, "tokenizer.json");
    if (adapts(s)) user_error("export --gguf: merge the adapter into a model first (export --merge --out DIR), and export that");
    if (!tokenizer) user_error("export --gguf: there is no tokenizer.json, which llama.cpp needs; name its folder with --tokenizer DIR");
    char* where = path_join(s->tokenizer_path, "tokenizer.json");
    char* chat_template = chat_template_text(s->files, s->tokenizer_path);
    GgufOutput out = {s->o.gguf, types[s->o.gguf_type], s->source_path ? s->source_path : s->o.preset, tokenizer->text, chat_template, where};
    gguf_write(&out, &s->config, read_rows_as_floats, s);
    printf("wrote %s\n", s->o.gguf);
    free(chat_template);
    free(where);
}

int command_export(Options o) {
    if (o.gguf && path_exists(o.gguf) && !o.overwrite)
        user_error("--gguf %s: is there already; choose another name, or replace the file with --overwrite", o.gguf);
    Session s = session_open(o, EXPORT);
    claim_out(&s);
    load_weights(&s, o.resume);
    if (o.resume) {
        Progress done;
        RunSettings* settings = (RunSettings*)host_alloc(sizeof *settings);
        run_settings(&s, settings);
        if (!resume(&s, settings, &done)) user_error("export --resume: no complete checkpoint in %s/checkpoints", o.out);
        free(settings);
    }
    char fault[kFaultBytes] = "";
    if (o.out && !write_model(&s, o.out, s.files, fault)) {
        if (leads(&s)) user_error("%s", fault);
        s.comm->barrier();   // waits for rank 0 to end the job
    }
    if (o.gguf) write_gguf(&s);
    session_close(&s);
    return 0;
}
