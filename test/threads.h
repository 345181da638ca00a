// Same bits on any number of threads: the test binary runs itself again with `--fingerprint` and another OMP_NUM_THREADS, and
// compares what it prints. (A new process, because OpenMP does not outlive a fork.)
#ifndef TEST_THREADS_H
#define TEST_THREADS_H

#include "test.h"

// FNV-1a
static uint64_t fingerprint_add(uint64_t hash, const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const unsigned char*)data)[i]) * 1099511628211ull;
    return hash;
}
static const uint64_t kFingerprintStart = 14695981039346656037ull;

// What `program --fingerprint` prints with that many threads; empty if it fails.
static void fingerprint_with(const char* program, const char* threads, char* out, size_t size) {
    int channel[2];
    check(pipe(channel) == 0, "no pipe");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(channel[1], 1);
        execlp("env", "env", threads, program, "--fingerprint", (char*)NULL);
        _exit(99);
    }
    close(channel[1]);
    size_t n = 0;
    ssize_t got;
    while (n < size - 1 && (got = read(channel[0], out + n, size - 1 - n)) > 0) n += (size_t)got;
    out[n] = 0;
    close(channel[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status) || WEXITSTATUS(status)) out[0] = 0;
}

static void same_bits_on_any_threads(const char* program, const char* name) {
    char one[64], two[64], three[64];
    fingerprint_with(program, "OMP_NUM_THREADS=1", one, sizeof one);
    fingerprint_with(program, "OMP_NUM_THREADS=2", two, sizeof two);
    fingerprint_with(program, "OMP_NUM_THREADS=3", three, sizeof three);
    ok(one[0] && !strcmp(one, two) && !strcmp(one, three), "%s: the same bits with 1, 2 and 3 threads", name);
}

#endif
