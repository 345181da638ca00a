// Trials kept from run to run: they come back, and nothing that is damaged, foreign or of another machine does.
#include "../halo/trial_cache.h"
#include "scratch.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    int M, N, K;
} Shape;
typedef struct {
    uint64_t words[8];
} Algo;

static const char kMachine[] = "GPU one, library 1, driver 1";

static Shape shape_of(int i) {
    Shape s = {128 + i, 256, 512};
    return s;
}
static Algo algo_of(int i) {
    Algo a;
    for (int k = 0; k < 8; k++) a.words[k] = 1000003ull * (uint64_t)i + (uint64_t)k;
    return a;
}

static TrialCache* open_cache(const char* machine) { return trial_cache_open(machine, sizeof(Shape), sizeof(Algo)); }

static void add(TrialCache* c, int i) {
    Shape s = shape_of(i);
    Algo a = algo_of(i);
    trial_cache_add(c, &s, &a);
}

// How many of the first n trials a cache opened now knows, -1 if one of them is wrong.
static int known(const char* machine, int n) {
    TrialCache* c = open_cache(machine);
    int count = 0;
    for (int i = 0; i < n && count >= 0; i++) {
        Shape s = shape_of(i);
        Algo got, want = algo_of(i);
        if (!trial_cache_find(c, &s, &got)) continue;
        count = memcmp(&got, &want, sizeof got) ? -1 : count + 1;
    }
    trial_cache_free(c);
    return count;
}

// An empty cache directory; the file of kMachine in it, which has `trials` trials. The caller frees the name.
static char* fresh_file(int trials) {
    char* dir = scratch_path("cache");
    empty_dir(dir);
    setenv("XDG_CACHE_HOME", dir, 1);
    TrialCache* c = open_cache(kMachine);
    for (int i = 0; i < trials; i++) add(c, i);
    char* path = host_strdup(trial_cache_path(c));
    check(!strncmp(path, dir, strlen(dir)), "the file %s is not in %s", path, dir);
    trial_cache_free(c);
    free(dir);
    return path;
}

static char* bytes_of(const char* path, size_t* bytes) {
    FILE* file = fopen(path, "rb");
    check(file, "%s: not there", path);
    char* all = (char*)host_alloc(1 << 16);
    *bytes = fread(all, 1, 1 << 16, file);
    fclose(file);
    return all;
}

// ---- cases

static void kept_case(void) {
    free(fresh_file(5));
    ok(known(kMachine, 6) == 5, "five trials come back, and no sixth: %d", known(kMachine, 6));
    ok(known("GPU two, library 1, driver 1", 6) == 0, "none of them for another machine");
    TrialCache *a = open_cache(kMachine), *b = open_cache(kMachine);
    add(a, 5);
    add(b, 6);
    ok(known(kMachine, 7) == 7, "two processes that add trials keep each other's: %d of 7", known(kMachine, 7));
    Shape s = shape_of(2);
    Algo other = algo_of(99), got;
    trial_cache_add(a, &s, &other);
    bool replaced = trial_cache_find(a, &s, &got) && !memcmp(&got, &other, sizeof got);
    ok(replaced && known(kMachine, 7) == -1, "a trial that is made again replaces the old one");
    trial_cache_free(a);
    trial_cache_free(b);
}

// Every byte of the file flipped once: the other trials come back, or none, and never a wrong one.
static void damaged_case(void) {
    char* path = fresh_file(3);
    size_t bytes;
    char* whole = bytes_of(path, &bytes);
    int wrong = 0, fewest = 3, unseen = 0;
    for (size_t at = 0; at < bytes; at++) {
        whole[at] ^= 0x20;
        put_file(path, whole, bytes);
        whole[at] ^= 0x20;
        int count = known(kMachine, 3);
        wrong += count < 0;
        unseen += count == 3;
        fewest = min_int(fewest, count);
    }
    ok(wrong == 0 && unseen == 0 && fewest == 0, "each of %zu bytes flipped: %d wrong trials, %d unseen flips", bytes, wrong, unseen);
    int longest = 0;
    for (size_t length = 0; length < bytes; length++) {
        put_file(path, whole, length);
        int count = known(kMachine, 3);
        wrong += count < 0;
        longest = max_int(longest, count);
    }
    ok(wrong == 0 && longest == 2, "cut at each byte: whole trials alone, at most %d", longest);
    TrialCache* c = open_cache(kMachine);
    add(c, 7);
    trial_cache_free(c);
    ok(known(kMachine, 8) == 3, "the next trial makes a damaged file whole: %d", known(kMachine, 8));
    free(whole);
    free(path);
}

static void foreign_case(void) {
    char* path = fresh_file(3);
    size_t bytes;
    char* whole = bytes_of(path, &bytes);
    free(fresh_file(0));
    TrialCache* other = open_cache("GPU two, library 1, driver 1");
    put_file(trial_cache_path(other), whole, bytes);   // renamed by hand
    ok(known("GPU two, library 1, driver 1", 3) == 0, "another machine's file under this one's name holds nothing");
    trial_cache_free(other);
    put_file(path, "text\n", 5);
    ok(known(kMachine, 3) == 0, "a file that is none of ours holds nothing");
    unlink(path);
    check(mkdir(path, 0700) == 0, "%s: mkdir", path);
    TrialCache* c = open_cache(kMachine);
    add(c, 0);
    Shape s = shape_of(0);
    Algo got;
    ok(known(kMachine, 3) == 0 && trial_cache_find(c, &s, &got), "a folder in its place: trials last as long as the run");
    trial_cache_free(c);
    free(whole);
    free(path);
}

static void nowhere_case(void) {
    setenv("XDG_CACHE_HOME", "/dev/null/cache", 1);
    TrialCache* c = open_cache(kMachine);
    add(c, 0);
    ok(!*trial_cache_path(c) && known(kMachine, 1) == 0, "without a directory nothing is kept, and nothing ends");
    trial_cache_free(c);
    unsetenv("XDG_CACHE_HOME");
    char* home = scratch_path("home");
    empty_dir(home);
    setenv("HOME", home, 1);
    c = open_cache(kMachine);
    add(c, 0);
    char* want = scratch_path("home/.cache/train_llama3/");
    ok(!strncmp(trial_cache_path(c), want, strlen(want)) && known(kMachine, 1) == 1, "without XDG_CACHE_HOME: %s", trial_cache_path(c));
    trial_cache_free(c);
    free(want);
    free(home);
}

// A process that begins its trials, holds them for `ms` (less than 0: until it is killed) and then adds trial i. It is at work when this returns.
static pid_t other_process(int ms, int i) {
    int ready[2];
    check(pipe(ready) == 0, "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        TrialCache* c = open_cache(kMachine);
        trial_cache_begin(c, 10);
        if (write(ready[1], "", 1) != 1) _exit(1);
        if (ms < 0) pause();
        usleep((useconds_t)ms * 1000);
        add(c, i);
        trial_cache_end(c);
        _exit(0);
    }
    char byte;
    check(read(ready[0], &byte, 1) == 1, "the other process did not begin");
    close(ready[0]);
    close(ready[1]);
    return child;
}
static double seconds_to_begin(TrialCache* c, double patience) {
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    trial_cache_begin(c, patience);
    clock_gettime(CLOCK_MONOTONIC, &to);
    trial_cache_end(c);
    return (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
}
static void turns_case(void) {
    free(fresh_file(0));
    TrialCache* c = open_cache(kMachine);
    Shape s = shape_of(3);
    Algo got, want = algo_of(3);
    ok(seconds_to_begin(c, 10) < 5, "nobody else tries: no wait");
    pid_t other = other_process(400, 3);
    double waited = seconds_to_begin(c, 10);
    bool found = trial_cache_find(c, &s, &got) && !memcmp(&got, &want, sizeof got);
    ok(waited > 0.05 && found, "its turn comes after the other's, with what that found: %.2f s", waited);
    waitpid(other, NULL, 0);
    other = other_process(-1, 0);
    waited = seconds_to_begin(c, 0.2);
    ok(waited > 0.1 && waited < 5, "patience ends: %.2f s", waited);
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    ok(seconds_to_begin(c, 10) < 5, "a killed process holds nobody up");
    trial_cache_free(c);
}

static const Case kCases[] = {{"kept", kept_case}, {"damaged", damaged_case}, {"foreign", foreign_case}, {"nowhere", nowhere_case},
                              {"turns", turns_case}};

int main(int argc, char** argv) { return scratch_main("test_trial_cache", kCases, COUNT(kCases), argc, argv); }
