// The test harness: a table of cases, one line per check, numeric comparators that first prove they can fail.
//
//   static const Case cases[] = {{"rmsnorm.forward", rmsnorm_forward_case}, ...};
//   int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
//
// `test_x --list` prints the names; `test_x NAME...` runs the cases whose name contains one of the words. Each binary ends
// with `N passed, N failed, N skipped` (checks, not cases) and exits non-zero if any failed.
#ifndef TEST_H
#define TEST_H

#include "../halo/base.h"

#include <math.h>
#include <signal.h>
#include <sys/wait.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

typedef struct {
    const char* name;
    void (*run)(void);
} Case;

static int test_passed, test_failed, test_skipped;

__attribute__((unused, format(printf, 2, 3)))
static bool ok(bool condition, const char* format, ...) {
    va_list args;
    va_start(args, format);
    fputs(condition ? "ok " : "FAIL ", stdout);
    vprintf(format, args);
    putchar('\n');
    fflush(stdout);
    va_end(args);
    if (condition) test_passed++; else test_failed++;
    return condition;
}

__attribute__((unused, format(printf, 1, 2)))
static void skip(const char* format, ...) {
    va_list args;
    va_start(args, format);
    fputs("skip ", stdout);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    test_skipped++;
}

// ||got - want|| / ||want|| in double; infinite when anything is not finite, so that NaN never passes.
__attribute__((unused))
static double rel_err(const float* got, const float* want, size_t n) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(got[i]) || !isfinite(want[i])) return INFINITY;
        double d = (double)got[i] - want[i];
        diff += d * d;
        norm += (double)want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

// Deterministic test noise: xorshift, sum of uniforms (roughly normal, variance 1).
static uint64_t test_seed = 88172645463325252ull;
__attribute__((unused))
static double test_uniform(void) {
    test_seed ^= test_seed << 13;
    test_seed ^= test_seed >> 7;
    test_seed ^= test_seed << 17;
    return (double)(test_seed >> 11) / 9007199254740992.0;
}
__attribute__((unused))
static float test_normal(void) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += test_uniform();
    return (float)sum;
}
__attribute__((unused))
static float* test_normals(size_t n, float scale) {
    float* x = (float*)host_alloc(n * sizeof(float));
    for (size_t i = 0; i < n; i++) x[i] = scale * test_normal();
    return x;
}

// Passes when the relative norm of the difference is within tol. Before it does, it plants two wrong results that a
// comparator has to reject: the wanted values rotated by one place, and one sixteenth of them with the sign flipped.
__attribute__((unused, format(printf, 5, 6)))
static bool close_to(const float* got, const float* want, size_t n, double tol, const char* format, ...) {
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    double norm = 0;
    for (size_t i = 0; i < n; i++) norm += fabs(want[i]);
    if (norm > 0 && n > 1) {
        float* wrong = (float*)host_alloc(n * sizeof(float));
        bool constant = true;
        for (size_t i = 0; i < n; i++) {
            wrong[i] = want[(i + 1) % n];
            if (wrong[i] != want[i]) constant = false;
        }
        double shifted = constant ? INFINITY : rel_err(wrong, want, n);
        memcpy(wrong, want, n * sizeof(float));
        size_t largest = 0;
        for (size_t i = 0; i < n; i++)
            if (fabsf(want[i]) > fabsf(want[largest])) largest = i;
        for (size_t i = largest % 16; i < n; i += 16) wrong[i] = -wrong[i];
        double flipped = rel_err(wrong, want, n);
        free(wrong);
        if (shifted <= tol || flipped <= tol)
            return ok(false, "%s: the tolerance %.1e accepts a planted wrong result (%.1e, %.1e)", name, tol, shifted, flipped);
    }
    double err = rel_err(got, want, n);
    return ok(err <= tol, "%s err %.2e (%.0f%% of tol)", name, err, 100 * err / tol);
}

// Runs fn(arg) in a child process and passes when it exits with `code` after printing `words` to stderr, in one line.
__attribute__((unused))
static bool expect_exit(void (*fn)(void*), void* arg, int code, const char* words, const char* name) {
    int channel[2];
    fflush(stdout);
    if (pipe(channel)) return ok(false, "%s: no pipe", name);
    pid_t child = fork();
    if (child == 0) {
        dup2(channel[1], 2);
        close(channel[0]);
        close(channel[1]);
        if (!freopen("/dev/null", "w", stdout)) _exit(99);
        fn(arg);
        _exit(0);
    }
    close(channel[1]);
    char said[4096];
    size_t n = 0;
    ssize_t got;
    while (n < sizeof said - 1 && (got = read(channel[0], said + n, sizeof said - 1 - n)) > 0) n += (size_t)got;
    said[n] = 0;
    close(channel[0]);
    int status = 0;
    waitpid(child, &status, 0);
    bool exited = WIFEXITED(status) && WEXITSTATUS(status) == code;
    char* newline = strchr(said, '\n');
    bool one_line = newline && newline[1] == 0;
    if (newline && one_line) *newline = 0;
    return ok(exited && one_line && strstr(said, words), "%s: exit %d, \"%s\"%s", name,
              WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status), said,
              exited && one_line && strstr(said, words) ? "" : " (other exit code or words expected)");
}

// The reference pack: a folder below $REFPACK (default ../shared), or NULL (and a skip line) where it is absent.
__attribute__((unused))
static const char* refpack(const char* below) {
    static char path[4][1024];
    static int next;
    const char* root = getenv("REFPACK");
    char* p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", root && *root ? root : "../shared", below);
    if (access(p, R_OK) == 0) return p;
    skip("%s: not in the reference pack", below);
    return NULL;
}

// How often `words` stand in a text.
__attribute__((unused))
static int count_of(const char* text, const char* words) {
    int count = 0;
    for (const char* p = text; (p = strstr(p, words)) != NULL; p += strlen(words)) count++;
    return count;
}

// No line is longer, but those that hold `words` (NULL: there are none such).
__attribute__((unused))
static bool fits_80_columns(const char* text, const char* words) {
    for (const char *line = text, *end; *line; line = end + (*end == '\n')) {
        end = line + strcspn(line, "\n");
        const char* found = words ? strstr(line, words) : NULL;
        if (end - line > 80 && (!found || found > end)) return false;
    }
    return true;
}

// Where make put the binaries that this one belongs to.
__attribute__((unused))
static const char* build_dir(void) {
    const char* build = getenv("BUILD");
    return build && *build ? build : "build/release";
}

static int test_main(const Case* cases, int count, int argc, char** argv) {
    // What started this test may ignore signals (nohup, a shell's background job), which the programs under test would take over, as they should.
    signal(SIGHUP, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    if (argc > 1 && !strcmp(argv[1], "--list")) {
        for (int i = 0; i < count; i++) puts(cases[i].name);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        bool wanted = argc == 1;
        for (int a = 1; a < argc; a++) wanted = wanted || strstr(cases[i].name, argv[a]);
        if (wanted) cases[i].run();
    }
    printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    return test_failed || test_passed + test_skipped == 0;
}

#endif
