// Checkpoints of a run; see run_state.h.
#include "run_state.h"

#include <errno.h>

#include "../../data/checkpoint.h"
#include "../../data/files.h"
#include "../progress.h"

// One state array, on this rank's backend or in the file that rank `from_rank` of `from_ranks` has saved.
typedef struct {
    Session* s;
    StateArray array;
    int index, from_rank, from_ranks;
} StateBlob;

static void state_read(void* self, size_t offset, size_t bytes, void* dst) {
    StateBlob* b = (StateBlob*)self;
    progress_phase("saving", -1);
    b->s->ops->download(dst, (char*)b->array.data + offset, bytes);
}

static void state_write(void* self, size_t offset, size_t bytes, const void* src) {
    StateBlob* b = (StateBlob*)self;
    progress_phase("resuming", -1);
    shard_take(b->s->shard, b->index, b->from_rank, b->from_ranks, offset, bytes, src);
}

static char* checkpoint_dir(const Session* s) { return path_join(s->o.out, "checkpoints"); }

// What a run's state consists of, as rank `rank` of `ranks` saves it. Random numbers have no state of their own: seed, step and
// position name them.
typedef struct {
    CheckpointState state;
    Blob blobs[kMaxStateArrays];
    StateBlob places[kMaxStateArrays];
    CheckpointNumber numbers[3];
    RunFlag flags[kMaxRunFlags];
    CheckpointSetting settings[kMaxRunFlags + 1];
    char global_rows[16];
} RunState;

static void describe_state(Session* s, Progress* progress, int rank, int ranks, RunState* r) {
    StateArray arrays[kMaxStateArrays];
    int count = ranks == s->comm->ranks ? shard_state(s->shard, arrays) : shard_state_of(s->shard, ranks, arrays);
    for (int i = 0; i < count; i++) {
        StateBlob place = {s, arrays[i], i, rank, ranks};
        Blob blob = {arrays[i].name, arrays[i].bytes, state_read, state_write, &r->places[i]};
        r->places[i] = place;
        r->blobs[i] = blob;
    }
    const CheckpointNumber numbers[] = {
        {"step", &progress->step}, {"epoch", &progress->epoch}, {"step_in_epoch", &progress->step_in_epoch}};
    memcpy(r->numbers, numbers, sizeof numbers);
    int setting_count = options_flags(&s->o, r->flags, false);
    for (int i = 0; i < setting_count; i++) {
        bool backend = !strcmp(r->flags[i].name, "backend");   // the backend that auto chose: another backend gives different bits
        CheckpointSetting setting = {r->flags[i].name, backend ? s->ops->name : r->flags[i].value};
        r->settings[i] = setting;
    }
    snprintf(r->global_rows, sizeof r->global_rows, "%d", s->o.batch * s->o.accum * s->comm->ranks);
    CheckpointSetting global = {"rows of a global batch (--batch x --accum x ranks)", r->global_rows};
    r->settings[setting_count++] = global;
    CheckpointState state = {rank, ranks, r->blobs, count, r->numbers, 3, r->settings, setting_count};
    r->state = state;
}

void save_checkpoint(Session* s, Progress* progress) {
    RunState run;
    describe_state(s, progress, s->comm->rank, s->comm->ranks, &run);
    char* dir = checkpoint_dir(s);
    checkpoint_write(dir, (int)progress->step, &run.state);
    s->comm->barrier();
    if (leads(s)) checkpoint_commit(dir, (int)progress->step, s->comm->ranks, max_int(s->o.keep, 1));
    s->comm->barrier();
    if (leads(s)) printf("saved step %d in %s\n", (int)progress->step, dir);
    free(dir);
}

// As many ranks as saved it read their own parts; other numbers take the rows that they own from all parts.
static void load_checkpoint(Session* s, Progress* progress, const char* path) {
    int ranks = checkpoint_ranks(path);
    bool same = ranks == s->comm->ranks;
    RunState run;
    for (int rank = 0; rank < ranks; rank++) {
        if (same && rank != s->comm->rank) continue;
        describe_state(s, progress, rank, ranks, &run);
        checkpoint_load(path, &run.state);
    }
    shard_weights_replaced(s->shard);
}

void resume(Session* s, Progress* progress) {
    char* dir = checkpoint_dir(s);
    char* path = checkpoint_latest(dir);
    if (!path) user_error("--resume: no complete checkpoint in %s", dir);
    load_checkpoint(s, progress, path);
    if (leads(s)) printf("resumed from %s\n", path);
    free(path);
    free(dir);
}

// Before any work: --out can be written, and a fresh run does not go over the checkpoint of another, which its own first
// one would remove.
void claim_out(const Session* s) {
    const Options* o = &s->o;
    if (!leads(s)) return;
    if (!o->out) {
        printf("no --out DIR: the trained model will not be saved\n");
        return;
    }
    dir_make(o->out);
    if (access(o->out, W_OK)) user_error("--out %s: cannot be written: %s", o->out, strerror(errno));
    char* dir = checkpoint_dir(s);
    char* path = checkpoint_latest(dir);
    if (path && !o->resume)
        user_error("--out %s: holds the checkpoint %s; go on with it (--resume), choose another --out, or remove %s", o->out,
                   path, dir);
    free(path);
    free(dir);
}
