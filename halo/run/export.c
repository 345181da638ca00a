// Writing models; see export.h.
#include "export.h"

#include "../../data/files.h"
#include "../../data/gguf_write.h"
#include "../../data/hf_config.h"
#include "../attempt.h"
#include "../progress.h"
#include "out_dir.h"
#include "run_state.h"

// Rank 0's write as an attempt. The ranks deliver rows together: where rank 0 fails between two deliveries, it goes on delivering.
typedef struct {
    Session* s;
    HfOutput out;
    const ModelFiles* files;
    long delivered;   // calls of deliver_rows
    long skip;        // of which this many have been made already
} ModelWrite;

static void deliver_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    ModelWrite* w = (ModelWrite*)self;
    w->delivered++;
    progress_phase("writing the model", layer);
    if (w->delivered > w->skip) shard_read(w->s->shard, spec, layer, row0, rows, dst);
}

static void write_now(void* self) {
    ModelWrite* w = (ModelWrite*)self;
    hf_model_write_files(&w->out, w->files, &w->s->config, deliver_rows, w);
}

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

bool write_model(Session* s, const char* dir, const ModelFiles* files, char* fault) {
    size_t shard_bytes = (size_t)(s->o.shard_gb * 1e9);
    HfOutput out = {leads(s) ? dir : NULL, NULL, NULL, s->ops->act, shard_bytes ? shard_bytes : kDefaultShardBytes};
    ModelWrite w = {s, out, files, 0, 0};
    double failed = 0;
    if (leads(s)) failed = !attempt(write_now, &w, fault);
    else write_now(&w);
    if (failed > 0) {
        w.skip = w.delivered;
        w.delivered = 0;
        w.out.dir = NULL;
        write_now(&w);
    }
    s->comm->host_sum(&failed, 1);
    if (failed == 0 && leads(s)) printf("wrote %s\n", dir);
    return failed == 0;
}

size_t written_bytes(const Session* s) { return param_count(&s->config) * fmt_bytes(s->ops->act); }
// GGUF is written from F32: rows of the format that layers read are widened.
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
        s.comm->barrier();   // until rank 0 has ended the job
    }
    if (o.gguf) write_gguf(&s);
    session_close(&s);
    return 0;
}
