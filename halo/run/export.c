// Writing models; see export.h.
#include "export.h"

#include "run_state.h"

static void read_shard_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read((Shard*)self, spec, layer, row0, rows, dst);
}

static void read_adapter_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read_adapter((Shard*)self, spec, layer, row0, rows, dst);
}

static void write_adapter(Session* s, const char* dir) {
    const Options* o = &s->o;
    const char* base = o->model ? o->model : o->from_scratch ? o->from_scratch : o->preset;
    ModelFiles* files = model_files_from_dirs(s->source_dir, s->tokenizer_dir);
    PeftOutput out = {leads(s) ? dir : NULL, base, files, s->ops->act};
    peft_write(&out, &s->config, read_adapter_rows, s->shard);
    model_files_free(files);
    if (leads(s)) printf("wrote the adapter %s\n", dir);
}

// ---- merging: W + scale B A, or W (.) (1 + scale B A) of HUT, of the base's own weights, in FP32 and rounded once
typedef struct {
    Session* s;
    Fmt fmt;                     // of what is written
    int a_spec[kMaxParamSpecs];  // by parameter: its A among adapter_specs, B is the next; -1: not adapted
    int spec, layer;             // whose factors these are
    float *a, *b;                // (rank, K), (N, rank)
} Merger;

static float* adapter_floats(Session* s, int spec, int layer) {
    ParamSpec specs[kMaxParamSpecs];
    adapter_specs(&s->config, specs);
    size_t n = (size_t)specs[spec].rows * specs[spec].cols;
    float* x = (float*)host_alloc(sizeof(float) * n);
    shard_read_adapter(s->shard, spec, layer, 0, specs[spec].rows, x);
    uint16_t* half = (uint16_t*)x;
    for (size_t i = n; s->ops->act == BF16 && i-- > 0;) x[i] = f32_from_bf16(half[i]);   // from the end: each is read before it is overwritten
    return x;
}

static void merged_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    Merger* m = (Merger*)self;
    ParamSpec specs[kMaxParamSpecs];
    param_specs(&m->s->config, specs);
    int K = specs[spec].cols, rank = m->s->config.adapter.rank, a_spec = m->a_spec[spec];
    if (a_spec < 0) {
        hf_model_rows(m->s->source, spec, layer, row0, rows, m->fmt, dst);
        return;
    }
    if (m->spec != spec || m->layer != layer) {
        free(m->a);
        free(m->b);
        m->a = adapter_floats(m->s, a_spec, layer);
        m->b = adapter_floats(m->s, a_spec + 1, layer);
        m->spec = spec;
        m->layer = layer;
    }
    float scale = adapter_scale(&m->s->config.adapter);
    bool hut = m->s->config.adapter.kind == ADAPTER_HUT;
    float* change = (float*)host_alloc(sizeof(float) * (size_t)rows * K);   // scale B A
    float* w = (float*)host_alloc(sizeof(float) * (size_t)rows * K);
    hf_model_rows(m->s->source, spec, layer, row0, rows, F32, w);
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

// The adapter's A of each parameter, by the module that both names hold.
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

static void write_merged(Session* s, const char* dir) {
    if (!s->source) user_error("--merge: adds the adapter to a model's own weights; name them with --model DIR");
    Merger m = {s, hf_model_fmt(s->source), {0}, -1, -1, NULL, NULL};
    find_pairs(&s->config, m.a_spec);
    size_t shard_bytes = (size_t)(s->o.shard_gb * 1e9);
    HfOutput out = {leads(s) ? dir : NULL, s->o.layers ? NULL : s->source_dir, s->tokenizer_dir, m.fmt,
                    shard_bytes ? shard_bytes : kDefaultShardBytes};
    hf_model_write(&out, &s->config, merged_rows, &m);
    free(m.a);
    free(m.b);
    if (leads(s)) printf("wrote %s: the model with the adapter in it\n", dir);
}

void write_model(Session* s, const char* dir) {
    if (adapts(s) && (s->o.merge || s->config.adapter.kind == ADAPTER_HUT)) {   // PEFT has no form of HUT
        write_merged(s, dir);
        return;
    }
    if (adapts(s)) {
        write_adapter(s, dir);
        return;
    }
    size_t shard_bytes = (size_t)(s->o.shard_gb * 1e9);
    HfOutput out = {leads(s) ? dir : NULL, s->o.layers ? NULL : s->source_dir, s->tokenizer_dir, s->ops->act,
                    shard_bytes ? shard_bytes : kDefaultShardBytes};
    hf_model_write(&out, &s->config, read_shard_rows, s->shard);
    if (leads(s)) printf("wrote %s\n", dir);
}

int command_export(Options o) {
    Session s = session_open(o, EXPORT);
    load_weights(&s, o.resume);
    Progress done;
    if (o.resume) resume(&s, &done);
    write_model(&s, o.out);
    session_close(&s);
    return 0;
}
