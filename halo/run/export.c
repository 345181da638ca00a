// Writing models; see export.h.
#include "export.h"

#include "run_state.h"

static void read_shard_rows(void* self, int spec, int layer, int row0, int rows, void* dst) {
    shard_read((Shard*)self, spec, layer, row0, rows, dst);
}

void write_model(Session* s, const char* dir) {
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
