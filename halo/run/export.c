// Writing models; see export.h.
#include "export.h"

#include "../../data/files.h"
#include "../../data/gguf_write.h"
#include "../../data/hf_config.h"
#include "run_state.h"

static void read_shard_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read((Shard*)self, spec, layer, row0, rows, dst);
}

// A base model that was trained with one of our chat forms is a chat model now: its template and the end of its turns go with it.
static void become_chat_model(const Session* s, ModelFiles* files) {
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

void write_model(Session* s, const char* dir) {
    size_t shard_bytes = (size_t)(s->o.shard_gb * 1e9);
    HfOutput out = {leads(s) ? dir : NULL, NULL, NULL, s->ops->act, shard_bytes ? shard_bytes : kDefaultShardBytes};
    if (s->tokenizer && s->chat.built_in && !s->chat.plain) become_chat_model(s, s->files);
    hf_model_write_files(&out, s->files, &s->config, read_shard_rows, s->shard);
    if (leads(s)) printf("wrote %s\n", dir);
}

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
    load_weights(&s, o.resume);
    Progress done;
    if (o.resume) resume(&s, &done);
    if (o.out) write_model(&s, o.out);
    if (o.gguf) write_gguf(&s);
    session_close(&s);
    return 0;
}
