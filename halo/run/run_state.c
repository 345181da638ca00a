// Checkpoints of a run; see run_state.h.
#include "run_state.h"

#include <pthread.h>

#include "../../data/files.h"
#include "../../data/safetensors.h"
#include "../progress.h"

// One state array, on this rank's backend or in the file that rank `from_rank` of `from_ranks` has saved.
typedef struct {
    Session* s;
    StateArray array;
    int index, from_rank, from_ranks;
    char* copy;   // in the host's memory, for a checkpoint that is written while training goes on; or NULL
    unsigned long pieces;   // how many parts of the copy have been written
} StateBlob;

// The format of the values in the named array; false: no array has this name.
static bool format_of(const Session* s, const char* name, Fmt* fmt) {
    const struct {
        const char* name;
        Fmt fmt;
    } arrays[] = {{"weights", s->ops->act}, {"m", s->o.state_dtype}, {"v", s->o.state_dtype}, {"master", F32}};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        *fmt = arrays[i].fmt;
        if (!strcmp(arrays[i].name, name)) return true;
    }
    return false;
}

static void refuse_infinite(const StateBlob* b, size_t offset, size_t bytes, const void* values) {
    Fmt fmt;
    if (!format_of(b->s, b->array.name, &fmt)) return;
    size_t count = bytes / fmt_bytes(fmt), bad = first_not_finite(values, count, fmt);
    if (bad < count)
        user_error("the checkpoint is not written: value %zu of \"%s\" on rank %d is not finite; go back to an older one, with a lower --lr",
                   offset / fmt_bytes(fmt) + bad, b->array.name, b->s->comm->rank);
}

static void state_read(void* self, size_t offset, size_t bytes, void* dst) {
    StateBlob* b = (StateBlob*)self;
    if (b->copy) {
        memcpy(dst, b->copy + offset, bytes);
        __atomic_fetch_add(&b->pieces, 1, __ATOMIC_RELAXED);
    } else {
        progress_phase("saving", -1);
        b->s->ops->download(dst, (char*)b->array.data + offset, bytes);
    }
    refuse_infinite(b, offset, bytes, dst);
}

static void state_write(void* self, size_t offset, size_t bytes, const void* src) {
    StateBlob* b = (StateBlob*)self;
    progress_phase("resuming", -1);
    shard_take(b->s->shard, b->index, b->from_rank, b->from_ranks, offset, bytes, src);
}

static char* checkpoint_dir(const Session* s) { return path_join(s->o.out, "checkpoints"); }

// ---- what defines a run

// Is it a flag that names files? Their places may change, their contents not: the identity holds hashes of the contents.
static bool is_place(const char* flag) {
    static const char* const kPlaces[] = {"model", "from-scratch", "tokenizer", "data"};
    for (size_t i = 0; i < sizeof kPlaces / sizeof kPlaces[0]; i++)
        if (!strcmp(flag, kPlaces[i])) return true;
    return false;
}

void run_settings(const Session* s, RunSettings* r) {
    identity_take(s, &r->identity);
    snprintf(r->global_rows, sizeof r->global_rows, "%d", s->o.batch * s->o.accum * s->comm->ranks);
    r->count = 0;
    int flags = options_flags(&s->o, r->flags, false);
    for (int i = 0; i < flags; i++) {
        bool backend = !strcmp(r->flags[i].name, "backend");   // not "auto" but the chosen backend, since another one gives different bits
        CheckpointSetting setting = {r->flags[i].name, backend ? s->ops->name : r->flags[i].value, NULL};
        if (!is_place(setting.name)) r->list[r->count++] = setting;
    }
    const char* other_weights = s->config.adapter.kind == ADAPTER_NONE
                                    ? "resume with the --model that the run began with"
                                    : "the adapter fits only the base model that it was begun on: name that one with --model";
    const CheckpointSetting contents[] = {
        {"rows of a global batch (--batch x --accum x ranks)", r->global_rows, NULL}, {"content of --data (XXH3)", r->identity.data, NULL},
        {WEIGHTS_SETTING, r->identity.weights, other_weights}, {"config.json (XXH3)", r->identity.config, NULL},
        {"tokenizer and chat template (XXH3)", r->identity.tokenizer, NULL}};
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) r->list[r->count++] = contents[i];
}

// ---- checkpoints

// A run's state, as rank `rank` of `ranks` saves it.
typedef struct {
    CheckpointState state;
    Blob blobs[kMaxStateArrays];
    StateBlob places[kMaxStateArrays];
    CheckpointNumber numbers[5];
} RunState;

static void describe_state(Session* s, const RunSettings* settings, Progress* progress, int rank, int ranks, RunState* r) {
    StateArray arrays[kMaxStateArrays];
    int count = ranks == s->comm->ranks ? shard_state(s->shard, arrays) : shard_state_of(s->shard, ranks, arrays);
    for (int i = 0; i < count; i++) {
        StateBlob place = {s, arrays[i], i, rank, ranks, NULL, 0};
        Blob blob = {arrays[i].name, arrays[i].bytes, state_read, state_write, &r->places[i]};
        r->places[i] = place;
        r->blobs[i] = blob;
    }
    const CheckpointNumber numbers[] = {{"step", &progress->step}, {"epoch", &progress->epoch}, {"step_in_epoch", &progress->step_in_epoch},
                                        {"best_step", &progress->best_step}, {"best_loss_bits", &progress->best_loss_bits}};
    memcpy(r->numbers, numbers, sizeof numbers);
    CheckpointState state = {rank, ranks, r->blobs, count, r->numbers, 5, settings->list, settings->count};
    r->state = state;
}

size_t state_bytes(Session* s) {
    StateArray arrays[kMaxStateArrays];
    int count = shard_state(s->shard, arrays);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += arrays[i].bytes;
    return bytes;
}

// ---- saving: a copy of the state, which a thread writes while training goes on. All ranks have the same save under way; a save is
// committed once every rank has written its part.

struct Saving {
    RunState run;
    Progress progress;   // at the time of the copy; `run` points to it
    char* dir;
    bool on_thread;
    pthread_t thread;
    volatile bool written;
};

static void* write_part(void* self) {
    struct Saving* w = (struct Saving*)self;
    checkpoint_write(w->dir, (int)w->progress.step, &w->run.state);
    __atomic_store_n(&w->written, true, __ATOMIC_RELEASE);
    return NULL;
}

// Is there free memory for the copy, and a quarter more for other uses? All ranks of a host ask at the same time and will take as much.
static bool copy_fits(const Session* s, size_t bytes) {
    char line[128];
    long long available_kb = 0;
    FILE* f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %lld kB", &available_kb) == 1) break;
    if (f) fclose(f);
    return (double)available_kb * 1024 > 1.25 * (double)bytes * s->comm->ranks;
}

// The copies' memory is kept for the next save: copying to memory that has been used before takes a fraction of the time.
static bool copy_state(Session* s, struct Saving* w) {
    static char* copies[kMaxStateArrays];
    size_t bytes = 0;
    for (int i = 0; i < w->run.state.blob_count; i++) bytes += w->run.places[i].array.bytes;
    static bool said;
    if (!copies[0] && !copy_fits(s, bytes)) {
        if (leads(s) && !said) printf("too little memory for a copy of the state: training waits while a checkpoint is written\n");
        said = true;
        return false;
    }
    for (int i = 0; i < w->run.state.blob_count; i++) {
        StateBlob* b = &w->run.places[i];
        progress_phase("saving", -1);
        if (!copies[i]) copies[i] = (char*)host_alloc(b->array.bytes);
        b->copy = copies[i];
        s->ops->download(b->copy, b->array.data, b->array.bytes);
    }
    return true;
}

Saving* save_start(Session* s, const RunSettings* settings, const Progress* progress) {
    Saving* w = (Saving*)host_alloc(sizeof *w);
    w->progress = *progress;
    w->dir = checkpoint_dir(s);
    describe_state(s, settings, &w->progress, s->comm->rank, s->comm->ranks, &w->run);
    w->on_thread = copy_state(s, w) && pthread_create(&w->thread, NULL, write_part, w) == 0;
    if (!w->on_thread) write_part(w);
    return w;
}

Saving* save_finish(Session* s, Saving* w, bool wait) {
    if (!w) return NULL;
    double left = !__atomic_load_n(&w->written, __ATOMIC_ACQUIRE);
    if (!wait) s->comm->host_sum(&left, 1);
    if (!wait && left > 0) return w;
    for (unsigned long seen = 0; w->on_thread && !__atomic_load_n(&w->written, __ATOMIC_ACQUIRE); usleep(1000)) {
        unsigned long pieces = 0;
        for (int i = 0; i < w->run.state.blob_count; i++) pieces += __atomic_load_n(&w->run.places[i].pieces, __ATOMIC_RELAXED);
        if (pieces != seen) progress_phase("waiting for the disk", -1);   // only written parts are progress: a hanging disk is not
        seen = pieces;
    }
    if (w->on_thread) pthread_join(w->thread, NULL);
    s->comm->barrier();
    int step = (int)w->progress.step, best = s->o.keep_best && w->progress.best_step ? (int)w->progress.best_step : -1;
    if (leads(s)) checkpoint_commit(w->dir, step, s->comm->ranks, max_int(s->o.keep, 1), best);
    s->comm->barrier();
    if (leads(s)) printf("saved step %d in %s\n", step, w->dir);
    free(w->dir);
    free(w);
    return NULL;
}

// ---- going on

// With as many ranks as saved the checkpoint each rank reads its own part; else each takes the rows that it owns from all parts.
static void load_checkpoint(Session* s, const RunSettings* settings, Progress* progress, const char* path) {
    int ranks = checkpoint_ranks(path);
    bool same = ranks == s->comm->ranks;
    RunState run;
    for (int rank = 0; rank < ranks; rank++) {
        if (same && rank != s->comm->rank) continue;
        describe_state(s, settings, progress, rank, ranks, &run);
        checkpoint_load(path, &run.state);
    }
    shard_weights_replaced(s->shard);
}

static void tick(void) { progress_phase("looking for a whole checkpoint", -1); }

// Are all parts of the checkpoint whole? Ranks divide the reading; the rank that finds a damaged part prints what is wrong.
static bool all_parts_whole(const Session* s, const char* path) {
    char* fault = checkpoint_verify_parts(path, s->comm->rank, s->comm->ranks, tick);
    if (fault) fprintf(stderr, "train_llama3: %s: damaged; this checkpoint is passed over, and the run goes on from an older one\n", fault);
    double damaged = fault != NULL;
    s->comm->host_sum(&damaged, 1);
    free(fault);
    return damaged == 0;
}

// The path of the newest whole checkpoint in `dir`, the same on all ranks (the caller frees it); NULL: `dir` has no checkpoints.
static char* newest_whole(const Session* s, const char* dir) {
    int *steps = NULL, count = leads(s) ? checkpoint_steps(dir, &steps) : 0;
    s->comm->host_broadcast(&count, sizeof count);
    char* found = NULL;
    for (int i = 0; i < count && !found; i++) {
        int step = leads(s) ? steps[i] : 0;
        s->comm->host_broadcast(&step, sizeof step);
        found = checkpoint_path(dir, step);
        if (!all_parts_whole(s, found)) free(found), found = NULL;
    }
    free(steps);
    if (count && !found)
        user_error("--resume: none of the %d checkpoints in %s is whole; remove them to start from the beginning", count, dir);
    return found;
}

bool resume(Session* s, const RunSettings* settings, Progress* progress) {
    char* dir = checkpoint_dir(s);
    char* path = s->o.resume_from ? host_strdup(s->o.resume_from) : newest_whole(s, dir);
    if (path) {
        load_checkpoint(s, settings, progress, path);
        if (leads(s)) printf("resumed from %s\n", path);
    } else if (leads(s)) {
        printf("no checkpoint in %s yet: starting from the beginning\n", dir);
    }
    bool found = path != NULL;
    free(path);
    free(dir);
    return found;
}
