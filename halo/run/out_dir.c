// The folders a run writes to; see out_dir.h.
#include "out_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "../../data/files.h"
#include "../../data/hf_layout.h"
#include "../../data/json.h"
#include "run_state.h"

static const char kNoteName[] = "training.json";   // beside a trained model: the settings that it was trained with

// ---- claims

// Locks the folder that is open at `fd`; fd stays open, and so the lock held, to the end of the process.
static void lock(int fd, const char* flag, const char* path) {
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) return;
    if (errno == EWOULDBLOCK)
        user_error("--%s %s: another run writes there now; wait for its end or choose another --%s", flag, path, flag);
    fprintf(stderr, "train_llama3: --%s %s cannot be locked (%s): see to it that no other run writes there\n", flag, path, strerror(errno));
}

// The name of a file of weights in `dir`, written by this program or another; NULL: none, so `dir` holds no model.
static const char* model_in(const char* dir) {
    static const char* const kWeights[] = {"model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                                           "pytorch_model.bin.index.json", HF_ADAPTER_NAME, "adapter_model.bin"};
    for (size_t i = 0; i < sizeof kWeights / sizeof kWeights[0]; i++)
        if (dir_holds(dir, kWeights[i])) return kWeights[i];
    return NULL;
}

char* log_lines_path(const char* log, bool* folder) {
    *folder = !has_ending(log, ".jsonl") || dir_exists(log);
    return *folder ? path_join(log, "log.jsonl") : host_strdup(log);
}

// A file that is no log is never replaced: --log may have been meant for --data.
static void refuse_other_file(int fd, const char* path) {
    static const char kOpening[] = "{\"step\": ";
    char start[sizeof kOpening];
    ssize_t n = pread(fd, start, sizeof kOpening - 1, 0);
    if (n > 0 && memcmp(start, kOpening, (size_t)n)) user_error("--log: %s is not a log of this program; choose another place for it", path);
}

// `fd`: the log's file, open at `path`. --resume and --overwrite take the lines of another run.
static void refuse_other_log(const Options* o, int fd, const char* path) {
    if (lseek(fd, 0, SEEK_END) <= 0) return;
    refuse_other_file(fd, path);
    if (!o->resume && !o->overwrite)
        user_error("--log %s: holds the lines of another run; go on with it (--resume), replace them (--overwrite), or choose another --log",
                   o->log);
}

static void claim_log(const Session* s) {
    const Options* o = &s->o;
    if (!o->log) return;
    bool folder;
    char* path = log_lines_path(o->log, &folder);
    if (folder) dir_make(o->log);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) user_error("%s: cannot be written: %s", path, strerror(errno));
    lock(fd, "log", path);
    refuse_other_log(o, fd, path);
    free(path);
}

static void refuse_other_model(const Options* o) {
    char *dir = path_join(o->out, "checkpoints"), *newest = checkpoint_latest(dir);
    if (newest && !o->resume)
        user_error("--out %s: holds the checkpoint %s; go on with it (--resume), choose another --out, or remove %s", o->out, newest, dir);
    const char* model = model_in(o->out);
    bool ours = o->resume && (newest || dir_holds(o->out, kNoteName));
    if (model && !ours && !o->overwrite)
        user_error("--out %s: holds a model (%s) already; choose another --out, or replace it with --overwrite", o->out, model);
    free(newest);
    free(dir);
}

static void claim_model_dir(const Session* s) {
    const Options* o = &s->o;
    dir_make(o->out);
    if (access(o->out, W_OK)) user_error("--out %s: cannot be written: %s", o->out, strerror(errno));
    int fd = open(o->out, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) user_error("--out %s: cannot be opened: %s", o->out, strerror(errno));
    lock(fd, "out", o->out);
    if (hf_model_recover(o->out)) printf("%s: what an earlier run had written whole was moved to its place\n", o->out);
    refuse_other_model(o);
}

void refuse_taken_places(const Session* s) {
    const Options* o = &s->o;
    if (!leads(s)) return;
    if (o->out && dir_exists(o->out)) refuse_other_model(o);
    bool folder;
    char* path = o->log ? log_lines_path(o->log, &folder) : NULL;
    int fd = path ? open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC) : -1;   // a pipe without a writer is not waited for
    if (fd >= 0) {
        refuse_other_log(o, fd, path);
        close(fd);
    }
    free(path);
}

void claim_out(const Session* s) {
    const Options* o = &s->o;
    if (!leads(s)) return;
    if (o->out) claim_model_dir(s);
    else if (!o->gguf) printf("no --out DIR: the trained model will not be saved\n");
    claim_log(s);
}

// ---- finished runs

void note_finished_run(ModelFiles* files, const CheckpointSetting* settings, int count) {
    json_t* note = json_object();
    for (int i = 0; i < count; i++) json_object_set_new(note, settings[i].name, json_string(settings[i].value));
    char* text = json_dumps(note, JSON_INDENT(2));
    check(text, "training.json: no text");
    model_files_set(files, kNoteName, text, strlen(text));
    free(text);
    json_decref(note);
}

bool same_folder(const char* a, const char* b) {
    struct stat x, y;
    return a && b && !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static bool finished_here(const Session* s, const CheckpointSetting* settings, int count) {
    const char* dir = s->o.out;
    bool replaced = same_folder(dir, s->source_path);   // the trained model has replaced the one that the run started from
    bool adapter = s->config.adapter.kind == ADAPTER_LORA;
    bool whole = adapter ? dir_holds(dir, HF_ADAPTER_NAME)
                         : dir_holds(dir, "model.safetensors") || dir_holds(dir, "model.safetensors.index.json");
    if (!whole || !dir_holds(dir, kNoteName)) return false;
    char* path = path_join(dir, kNoteName);
    json_t* note = json_parse_file(path);
    for (int i = 0; i < count; i++) {
        if (replaced && !strcmp(settings[i].name, WEIGHTS_SETTING)) continue;
        const char* then = json_string_value(json_object_get(note, settings[i].name));
        if (!then || strcmp(then, settings[i].value))
            user_error("%s: the model there was trained with %s = %s, this run has %s; %s", path, settings[i].name,
                       then ? printable(then) : "(nothing)", printable(settings[i].value),
                       settings[i].remedy ? settings[i].remedy : "resume with the same value");
    }
    json_decref(note);
    free(path);
    return true;
}

bool run_is_finished(const Session* s, const CheckpointSetting* settings, int count) {
    char finished = leads(s) && finished_here(s, settings, count);
    s->comm->host_broadcast(&finished, sizeof finished);
    return finished;
}

// ---- space

void require_space(const Session* s, size_t state_bytes, size_t model_bytes) {
    const Options* o = &s->o;
    double all = (double)state_bytes;
    s->comm->host_sum(&all, 1);
    if (leads(s)) {
        char* dir = path_join(o->out, "checkpoints");
        int *steps, there = checkpoint_steps(dir, &steps), kept = o->save_every ? max_int(o->keep, 1) : 0;
        size_t one = (size_t)all, more = (size_t)max_int(kept - there, 0) * one + (one > model_bytes ? one : model_bytes);
        free(steps);
        free(dir);
        disk_require(o->out, more);
    }
    s->comm->barrier();
}
