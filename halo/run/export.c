// Writing models; see export.h.
#include "export.h"

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
    if (!write_model(&s, o.out, s.files, fault)) {
        if (leads(&s)) user_error("%s", fault);
        s.comm->barrier();   // until rank 0 has ended the job
    }
    session_close(&s);
    return 0;
}
