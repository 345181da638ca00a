// Writing models; see export.h.
#include "export.h"

#include "../../data/hf_config.h"
#include "../../data/hf_write.h"
#include "../../data/model_files.h"
#include "run_state.h"

static void read_shard_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read((Shard*)self, spec, layer, row0, rows, dst);
}

// A base model that was trained with one of our chat forms is a chat model now: its template and the end of its turns go with it.
static void become_chat_model(const Session* s, ModelFiles* files) {
    model_files_set_chat_template(files, s->chat.source, strlen(s->chat.source));
    if (s->chat.turn_end < 0) return;
    int ids[kMaxEos + 1], count = s->source_dir ? hf_config_eos(s->source_dir, ids) : 0;
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
    HfOutput out = {leads(s) ? dir : NULL, s->o.layers ? NULL : s->source_dir, s->tokenizer_dir, s->ops->act,
                    shard_bytes ? shard_bytes : kDefaultShardBytes};
    ModelFiles* files = model_files_from_dirs(out.config_dir, out.tokenizer_dir);
    if (s->tokenizer && s->chat.built_in && !s->chat.plain) become_chat_model(s, files);
    hf_model_write_files(&out, files, &s->config, read_shard_rows, s->shard);
    model_files_free(files);
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
