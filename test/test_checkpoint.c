// data/checkpoint: what goes in comes out; anything damaged, unfinished or foreign is refused; nothing is lost on the way.
#include "scratch.h"

#include "../data/checkpoint.h"
#include "../data/files.h"

#include <limits.h>
#include <signal.h>
#include <sys/resource.h>

// ---- a state to save: three blobs on the host and one that is not (here: stored inverted), two numbers, two settings

enum { kParamBytes = (16 << 20) + 5, kDeviceBytes = 1000 };   // the first is more than one piece of the writer

typedef struct {
    unsigned char *param, *device;
    unsigned char small[3];
    int64_t step, random;
    Blob blobs[4];
    CheckpointNumber numbers[2];
    CheckpointSetting settings[2];
    CheckpointState state;
    size_t die_at_offset;   // _exit when the device blob is read there or beyond; 0: never
} Run;

static void device_read(void* context, size_t offset, size_t bytes, void* dst) {
    Run* run = (Run*)context;
    if (run->die_at_offset && offset + bytes > run->die_at_offset) _exit(77);
    for (size_t i = 0; i < bytes; i++) ((unsigned char*)dst)[i] = (unsigned char)~run->device[offset + i];
}
static void device_write(void* context, size_t offset, size_t bytes, const void* src) {
    Run* run = (Run*)context;
    for (size_t i = 0; i < bytes; i++) run->device[offset + i] = (unsigned char)~((const unsigned char*)src)[i];
}

// large: with a blob of several pieces; else of 40 bytes, for tests that save often.
static Run* make_run(int rank, int ranks, bool large, int fill) {
    Run* r = (Run*)host_alloc(sizeof *r);
    size_t param_bytes = large ? kParamBytes : 40;
    r->param = (unsigned char*)host_alloc(param_bytes);
    r->device = (unsigned char*)host_alloc(kDeviceBytes);
    for (size_t i = 0; fill && i < param_bytes; i++) r->param[i] = (unsigned char)(i * 31 + (i >> 8) + (size_t)(fill + rank));
    for (size_t i = 0; fill && i < kDeviceBytes; i++) r->device[i] = (unsigned char)(i * 7 + (size_t)(fill + rank));
    for (int i = 0; fill && i < 3; i++) r->small[i] = (unsigned char)(fill + i);
    r->step = fill ? INT64_MIN + fill : 0;
    r->random = fill ? INT64_MAX - fill : 0;
    Blob device = {"m", kDeviceBytes, device_read, device_write, r};
    r->blobs[0] = host_blob("param", r->param, param_bytes);
    r->blobs[1] = host_blob("nothing", NULL, 0);
    r->blobs[2] = device;
    r->blobs[3] = host_blob("small", r->small, 3);
    CheckpointNumber step = {"step", &r->step}, random = {"random", &r->random};
    r->numbers[0] = step;
    r->numbers[1] = random;
    CheckpointSetting lr = {"--lr", "3e-5", NULL}, data = {"--data", "a \"b\"\n.jsonl", NULL};
    r->settings[0] = lr;
    r->settings[1] = data;
    CheckpointState state = {rank, ranks, r->blobs, 4, r->numbers, 2, r->settings, 2};
    r->state = state;
    return r;
}

static void free_run(Run* r) {
    free(r->param);
    free(r->device);
    free(r);
}

static bool same_run(const Run* a, const Run* b) {
    return a->blobs[0].bytes == b->blobs[0].bytes && !memcmp(a->param, b->param, a->blobs[0].bytes) &&
           !memcmp(a->device, b->device, kDeviceBytes) && !memcmp(a->small, b->small, 3) && a->step == b->step &&
           a->random == b->random;
}

static void save_small(const char* dir, int step, int keep, int fill) {
    Run* run = make_run(0, 1, false, fill);
    checkpoint_write(dir, step, &run->state);
    checkpoint_commit(dir, step, 1, keep, -1);
    free_run(run);
}

// Whether the newest checkpoint is of `step` and holds what save_small(fill) wrote.
static bool latest_is(const char* dir, int step, int fill) {
    char name[64];
    snprintf(name, sizeof name, "step-%08d", step);
    char *latest = checkpoint_latest(dir), *want_path = path_join(dir, name);
    Run *want = make_run(0, 1, false, fill), *got = make_run(0, 1, false, 0);
    bool right = latest && !strcmp(latest, want_path);
    if (right) checkpoint_load(latest, &got->state);
    right = right && same_run(want, got);
    free_run(want);
    free_run(got);
    free(latest);
    free(want_path);
    return right;
}

static bool is_there(const char* dir, const char* name) {
    char* path = path_join(dir, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

// ---- round trips

static void round_trip_case(void) {
    char* dir = scratch_path("round_trip/");
    for (int rank = 0; rank < 2; rank++) {
        ok(checkpoint_latest(dir) == NULL, "round trip: none before all ranks have written");
        Run* run = make_run(rank, 2, rank == 0, 5);
        checkpoint_write(dir, 40, &run->state);
        free_run(run);
    }
    ok(checkpoint_latest(dir) == NULL, "round trip: none before the commit");
    checkpoint_commit(dir, 40, 2, 1, -1);
    char* latest = checkpoint_latest(dir);
    for (int rank = 0; rank < 2; rank++) {
        Run *want = make_run(rank, 2, rank == 0, 5), *got = make_run(rank, 2, rank == 0, 0);
        ok(!same_run(want, got), "round trip: the states differ before loading");
        checkpoint_load(latest, &got->state);
        ok(same_run(want, got), "round trip: rank %d is back bit for bit", rank);
        free_run(want);
        free_run(got);
    }
    free(latest);
    free(dir);
}

static void keep_case(void) {
    char* dir = scratch_path("keep");
    empty_dir(dir);
    ok(checkpoint_latest(dir) == NULL && checkpoint_latest("no/such/directory") == NULL, "keep: nothing there yet");
    static const char* const foreign[] = {"notes.txt", "step-1", "step-00000099x", "step-00000098.tmp.old",
                                          "rank-00000-of-00001.bin"};
    for (int i = 0; i < COUNT(foreign); i++) {
        char* path = path_join(dir, foreign[i]);
        put_file(path, "", 0);
        free(path);
    }
    char* half = path_join(dir, "step-00000097");   // complete by its name, but its files are not there
    dir_make(half);
    for (int step = 10; step <= 50; step += 10) save_small(dir, step, 2, step);
    ok(latest_is(dir, 50, 50) && is_there(dir, "step-00000040") && !is_there(dir, "step-00000030"), "keep: the newest two");
    save_small(dir, 50, 2, 51);
    ok(latest_is(dir, 50, 51) && !is_there(dir, "step-00000050.old"), "keep: the same step again replaces");
    save_small(dir, 45, 2, 45);
    ok(latest_is(dir, 45, 45) && is_there(dir, "step-00000040") && !is_there(dir, "step-00000050"),
       "keep: a run that went back drops what came later");
    save_small(dir, 55, 1, 55);
    Run* run = make_run(0, 1, false, 56);
    for (int step = 60; step <= 80; step += 10) {
        checkpoint_write(dir, step, &run->state);
        checkpoint_commit(dir, step, 1, 1, 55);
    }
    free_run(run);
    ok(is_there(dir, "step-00000055") && !is_there(dir, "step-00000070") && is_there(dir, "step-00000080"), "keep: the best beside the newest");
    int left = 0;
    for (int i = 0; i < COUNT(foreign); i++) left += is_there(dir, foreign[i]);
    ok(left == COUNT(foreign), "keep: %d of %d other files are left alone", left, COUNT(foreign));
    free(half);
    free(dir);
}

// ---- writing that fails

static void crash_while_writing(void* dir) {
    Run* run = make_run(0, 1, false, 9);
    run->die_at_offset = 500;
    checkpoint_write((const char*)dir, 20, &run->state);
}
static void write_limited(void* dir) {
    struct rlimit limit = {512, 512};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    save_small((const char*)dir, 20, 1, 9);
}
static void commit_too_early(void* dir) {
    Run* run = make_run(0, 2, false, 9);
    checkpoint_write((const char*)dir, 30, &run->state);
    checkpoint_commit((const char*)dir, 30, 2, 1, -1);
}

static void failing_case(void) {
    char* dir = scratch_path("failing");
    empty_dir(dir);
    save_small(dir, 10, 1, 10);
    ok(quiet_exit_code(crash_while_writing, dir) == 77 && is_there(dir, "step-00000020.tmp") && latest_is(dir, 10, 10),
       "failing: after a crash the previous checkpoint is the newest");
    expect_exit(write_limited, dir, kExitUser, "cannot be written at byte 512 of 1043: File too large", "failing: a size limit");
    ok(latest_is(dir, 10, 10), "failing: and still is");
    expect_exit(commit_too_early, dir, kExitBug, "has not the files of all 2 ranks", "failing: a rank has not written");
    save_small(dir, 20, 1, 20);
    ok(latest_is(dir, 20, 20) && !is_there(dir, "step-00000010") && !is_there(dir, "step-00000020.tmp") &&
       !is_there(dir, "step-00000030.tmp"), "failing: the next one cleans up");
    free(dir);
}

// ---- damage

static char *damaged_dir, *damaged_path;   // a checkpoint of step 10

static void load_damaged(void* unused) {
    (void)unused;
    Run* run = make_run(0, 1, false, 0);
    checkpoint_load(damaged_path, &run->state);
}

// Flips one bit in every `stride`th byte of a file, and cuts it off there; each has to be refused.
static void damage_file(const char* name, size_t stride) {
    char* path = path_join(damaged_path, name);
    size_t bytes, tried = 0, caught = 0;
    char* text = file_read(path, &bytes);
    for (size_t at = 0; at < bytes; at += stride) {
        text[at] = (char)(text[at] ^ 1 << at % 8);
        put_file(path, text, bytes);
        caught += quiet_exit_code(load_damaged, NULL) == kExitUser;
        text[at] = (char)(text[at] ^ 1 << at % 8);
        put_file(path, text, at);
        caught += quiet_exit_code(load_damaged, NULL) == kExitUser;
        tried += 2;
    }
    put_file(path, text, bytes);
    ok(tried > 50 && caught == tried && quiet_exit_code(load_damaged, NULL) == 0,
       "damage: %s: %zu of %zu damaged forms are refused, the sound one loads", name, caught, tried);
    free(text);
    free(path);
}

static void append_a_byte(const char* name) {
    char* path = path_join(damaged_path, name);
    size_t bytes;
    char* text = file_read(path, &bytes);   // ends with a NUL of its own
    put_file(path, text, bytes + 1);
    expect_exit(load_damaged, NULL, kExitUser, name, "damage: a byte too many");
    put_file(path, text, bytes);
    free(text);
    free(path);
}

static void damage_case(void) {
    damaged_dir = scratch_path("damage");
    damaged_path = path_join(damaged_dir, "step-00000010");
    empty_dir(damaged_dir);
    save_small(damaged_dir, 10, 1, 10);
    damage_file("rank-00000-of-00001.json", 7);
    damage_file("rank-00000-of-00001.bin", 13);
    append_a_byte("rank-00000-of-00001.json");
    append_a_byte("rank-00000-of-00001.bin");
    char* path = path_join(damaged_path, "rank-00000-of-00001.json");
    put_file(path, "{\"step\": 10}", 12);
    expect_exit(load_damaged, NULL, kExitUser, "not the manifest", "damage: a JSON file from elsewhere");
    file_remove(path);
    expect_exit(load_damaged, NULL, kExitUser, "cannot be read", "damage: no manifest");
    ok(checkpoint_latest(damaged_dir) == NULL, "damage: without its manifest it is no checkpoint");
    free(path);
    free(damaged_path);
    free(damaged_dir);
}

// ---- another run than the one that saved

typedef enum {
    OTHER_RANKS, OTHER_SETTING, NEW_SETTING, FEWER_SETTINGS, OTHER_NUMBER, OTHER_BYTES, OTHER_NAME, FEWER_BLOBS
} Change;

static const char* foreign_dir;

static void load_foreign(void* change) {
    Run* r = make_run(0, 1, false, 0);
    switch (*(Change*)change) {
        case OTHER_RANKS: r->state.ranks = 4; break;
        case OTHER_SETTING: r->settings[0].value = "1e-3"; break;
        case NEW_SETTING: r->settings[1].name = "--level"; break;
        case FEWER_SETTINGS: r->state.setting_count = 1; break;
        case OTHER_NUMBER: r->numbers[1].name = "epoch"; break;
        case OTHER_BYTES: r->blobs[3].bytes = 2; break;
        case OTHER_NAME: r->blobs[3].name = "v"; break;
        case FEWER_BLOBS: r->state.blob_count = 3; break;
    }
    char* latest = checkpoint_latest(foreign_dir);
    checkpoint_load(latest, &r->state);
}
static void load_nowhere(void* path) {
    Run* run = make_run(0, 1, false, 0);
    checkpoint_load((const char*)path, &run->state);
}

static void foreign_case(void) {
    static const char* const words[] = {
        "was saved by 1 ranks, this run has 4", "was saved with --lr = 3e-5, this run has 1e-3", "\"--level\" is missing",
        "holds 2 settings, this run has 1", "the number \"epoch\" is missing", "holds \"small\" with 3 bytes where this run",
        "where this run has \"v\"", "holds 4 blobs, this run has 3",
    };
    char* dir = scratch_path("foreign");
    foreign_dir = dir;
    empty_dir(dir);
    save_small(dir, 10, 1, 10);
    for (int i = 0; i < COUNT(words); i++) {
        Change change = (Change)i;
        expect_exit(load_foreign, &change, kExitUser, words[i], "foreign");
    }
    expect_exit(load_nowhere, (void*)"no/such/path", kExitUser, "not a checkpoint of this program", "foreign: no such path");
    expect_exit(load_nowhere, scratch_dir, kExitUser, "not a checkpoint of this program", "foreign: some other directory");
    free(dir);
}

// ---- the newest whole one

// The newest step in `dir` whose bytes are those that were written, -1: none; *damaged grows by those that are passed over.
static int newest_whole(const char* dir, int* damaged) {
    int *steps, count = checkpoint_steps(dir, &steps), found = -1;
    for (int i = 0; i < count && found < 0; i++) {
        char *path = checkpoint_path(dir, steps[i]), *fault = checkpoint_verify(path);
        if (fault) ++*damaged;
        else found = steps[i];
        free(fault);
        free(path);
    }
    free(steps);
    return found;
}

static void whole_case(void) {
    char* dir = scratch_path("whole");
    empty_dir(dir);
    save_small(dir, 10, 2, 10);
    save_small(dir, 20, 2, 10);
    char* plain = path_join(dir, "step-00000030");
    put_file(plain, "x", 1);
    int damaged = 0;
    ok(newest_whole(dir, &damaged) == 20 && !damaged, "whole: the newest one, a plain file of such a name is none");
    char* bin = path_join(dir, "step-00000020/rank-00000-of-00001.bin");
    size_t bytes;
    char* text = file_read(bin, &bytes);
    text[bytes / 2] ^= 1;
    put_file(bin, text, bytes);
    ok(newest_whole(dir, &damaged) == 10 && damaged == 1, "whole: the one before a damaged one");
    save_small(dir, 40, 2, 10);
    ok(path_exists(plain), "whole: and saving goes on beside the plain file");
    free(text);
    free(bin);
    free(plain);
    free(dir);
}

static const Case cases[] = {
    {"checkpoint.round_trip", round_trip_case}, {"checkpoint.keep", keep_case},     {"checkpoint.failing", failing_case},
    {"checkpoint.damage", damage_case},         {"checkpoint.foreign", foreign_case},
    {"checkpoint.whole", whole_case},
};

int main(int argc, char** argv) { return scratch_main("test_checkpoint", cases, COUNT(cases), argc, argv); }
