// Checkpoints of a run; see run_state.h.
#include "run_state.h"

#include <pthread.h>

#include "../../data/files.h"
#include "../../data/safetensors.h"
#include "../host_memory.h"
#include "../progress.h"
#include "clock.h"

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

// ---- saving: a copy of the state, which a thread writes while training goes on. All ranks have the same save under way. Once every rank
// has written its part, rank 0 makes the whole the newest, on a thread too: renaming and deleting may take a disk a while.

struct Saving {
    RunState run;
    Progress progress;   // at the time of the copy; `run` points to it
    char* dir;
    bool on_thread;
    pthread_t thread;
    volatile bool done;     // this rank's share of the stage: that its part is written; then, that rank 0 has made the whole the newest
    bool committing;        // the second stage
    int keep, best;         // of checkpoint_commit
    double start, waited;   // seconds: when it began, and how long training has stood still for it
};

static void* write_part(void* self) {
    struct Saving* w = (struct Saving*)self;
    checkpoint_write(w->dir, (int)w->progress.step, &w->run.state);
    __atomic_store_n(&w->done, true, __ATOMIC_RELEASE);
    return NULL;
}

static void* commit(void* self) {
    struct Saving* w = (struct Saving*)self;
    checkpoint_commit(w->dir, (int)w->progress.step, w->run.state.ranks, w->keep, w->best);
    __atomic_store_n(&w->done, true, __ATOMIC_RELEASE);
    return NULL;
}

// Is there free memory for the copy, and a quarter more for other uses? All ranks of this host ask at the same time and will take as much.
static bool copy_fits(const Session* s, size_t bytes) {
    return (double)host_memory("").left > 1.25 * (double)bytes * s->comm->host_ranks;
}

// Memory for the copy. It stays for the next save, and a thread lets the system hand out its pages while the first steps are made: pages
// that are there already take a copy in a fraction of the time.
static struct {
    StateArray arrays[kMaxStateArrays];   // `data` on the host
    int count;
    bool asked, touching;
    pthread_t thread;
} copies;

static void* touch_copies(void* unused) {
    (void)unused;
    for (int i = 0; i < copies.count; i++) memset(copies.arrays[i].data, 0, copies.arrays[i].bytes);
    return NULL;
}

void save_prepare(Session* s) {
    if (copies.asked) return;
    copies.asked = true;
    if (!copy_fits(s, state_bytes(s))) {
        if (leads(s)) printf("too little memory for a copy of the state: training waits while a checkpoint is written\n");
        return;
    }
    copies.count = shard_state(s->shard, copies.arrays);
    for (int i = 0; i < copies.count; i++) copies.arrays[i].data = host_alloc(copies.arrays[i].bytes);
    copies.touching = pthread_create(&copies.thread, NULL, touch_copies, NULL) == 0;
}

static bool copy_state(Session* s, struct Saving* w) {
    save_prepare(s);
    if (copies.touching) pthread_join(copies.thread, NULL);
    copies.touching = false;
    if (!copies.count) return false;
    for (int i = 0; i < w->run.state.blob_count; i++) {
        StateBlob* b = &w->run.places[i];
        progress_phase("saving", -1);
        b->copy = (char*)copies.arrays[i].data;
        s->ops->download(b->copy, b->array.data, b->array.bytes);
    }
    return true;
}

Saving* save_start(Session* s, const RunSettings* settings, const Progress* progress) {
    Saving* w = (Saving*)host_alloc(sizeof *w);
    w->start = seconds_now();
    w->progress = *progress;
    w->dir = checkpoint_dir(s);
    describe_state(s, settings, &w->progress, s->comm->rank, s->comm->ranks, &w->run);
    w->on_thread = copy_state(s, w) && pthread_create(&w->thread, NULL, write_part, w) == 0;
    if (!w->on_thread) write_part(w);
    w->keep = max_int(s->o.keep, 1);
    w->best = s->o.keep_best && progress->best_step ? (int)progress->best_step : -1;
    w->waited = seconds_now() - w->start;
    return w;
}

static void wait_for_disk(struct Saving* w) {
    for (unsigned long seen = 0; !__atomic_load_n(&w->done, __ATOMIC_ACQUIRE); usleep(1000)) {
        unsigned long pieces = 0;
        for (int i = 0; i < w->run.state.blob_count; i++) pieces += __atomic_load_n(&w->run.places[i].pieces, __ATOMIC_RELAXED);
        if (pieces != seen) progress_phase("waiting for the disk", -1);   // only written parts are progress: a hanging disk is not
        seen = pieces;
    }
}

// Ends the stage at work if all ranks are done with it, or with `wait` when they are; false: they are not.
static bool end_stage(Session* s, struct Saving* w, bool wait) {
    double left = !__atomic_load_n(&w->done, __ATOMIC_ACQUIRE);
    if (!wait) s->comm->host_sum(&left, 1);
    if (!wait && left > 0) return false;
    if (wait) wait_for_disk(w);
    if (w->on_thread) pthread_join(w->thread, NULL);
    if (wait) s->comm->barrier();
    return true;
}

Saving* save_finish(Session* s, Saving* w, bool wait) {
    if (!w) return NULL;
    double begin = seconds_now();
    if (!w->committing) {
        if (!end_stage(s, w, wait)) return w;
        w->committing = true;
        w->done = !leads(s);
        w->on_thread = leads(s) && pthread_create(&w->thread, NULL, commit, w) == 0;
        if (leads(s) && !w->on_thread) commit(w);
    }
    if (!end_stage(s, w, wait)) return w;
    double end = seconds_now();
    w->waited += end - begin;
    if (leads(s))
        printf("saved step %d in %s: training waited %.1f ms, written in %.2f s\n", (int)w->progress.step, w->dir, 1e3 * w->waited, end - w->start);
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
