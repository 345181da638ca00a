// What tests of files share: a directory of their own that is gone afterwards, and children that fail quietly.
#ifndef TEST_SCRATCH_H
#define TEST_SCRATCH_H

#include "test.h"

static char scratch_dir[256];

static void shell(const char* command, const char* path) {
    char line[1024];
    snprintf(line, sizeof line, "%s '%s'", command, path);
    check(system(line) == 0, "%s failed", line);
}

// A path inside the directory; the caller frees it.
__attribute__((unused))
static char* scratch_path(const char* name) {
    char* path = (char*)host_alloc(sizeof scratch_dir + strlen(name) + 2);
    sprintf(path, "%s/%s", scratch_dir, name);
    return path;
}

__attribute__((unused))
static void empty_dir(const char* path) {
    shell("rm -rf", path);
    shell("mkdir -p", path);
}

// Without the syncs of an OutFile, which would take seconds in tests that write hundreds of files.
__attribute__((unused))
static void put_file(const char* path, const void* bytes, size_t count) {
    FILE* file = fopen(path, "wb");
    check(file && fwrite(bytes, 1, count, file) == count && !fclose(file), "%s: not written", path);
}

// The exit code of fn(arg) in a child process whose messages go nowhere; -1 if a signal ended it.
__attribute__((unused))
static int quiet_exit_code(void (*fn)(void*), void* arg) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(99);
        fn(arg);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

// test_main around the directory.
static int scratch_main(const char* name, const Case* cases, int count, int argc, char** argv) {
    const char* root = getenv("TMPDIR");
    snprintf(scratch_dir, sizeof scratch_dir, "%s/%s.%d", root && *root ? root : "/tmp", name, (int)getpid());
    shell("mkdir", scratch_dir);
    int failed = test_main(cases, count, argc, argv);
    shell("rm -r", scratch_dir);
    return failed;
}

#endif
