// The backends that this machine can run: cpu_f32 (what others are held against), cpu_bf16 (whose error says how far a BF16 backend
// may be off), and cuda where the tests are built with it and there is a GPU, or its emulation.
#ifndef TEST_BACKENDS_H
#define TEST_BACKENDS_H

#include <glob.h>

#include "../halo/ops.h"
#include "test.h"

enum { kMaxBackends = 3 };

// What needs GPUs and has too few is skipped. Where there is one that none of it can use, by its driver or its age, that is a failure.
__attribute__((unused))
static void too_few_gpus(const char* what, int usable) {
    glob_t devices;
    bool found = glob("/dev/nvidia[0-9]*", 0, NULL, &devices) == 0;
    globfree(&devices);
    if (usable > 0 || !found || getenv("CUDA_VISIBLE_DEVICES")) skip("%s: %d GPUs on this machine", what, usable);
    else ok(false, "%s: this machine has a GPU (/dev/nvidia*), and it cannot be used (see nvidia-smi)", what);
}

// Can ranks be started here?
__attribute__((unused))
static bool has_mpi(void) {
#ifdef HALO_MPI
    return system("command -v mpirun >/dev/null 2>&1") == 0;
#else
    return false;
#endif
}

// How many of them are in `list`. A build with CUDA on a machine without a GPU counts as one skipped check.
__attribute__((unused))
static int test_backends(const Ops* list[kMaxBackends]) {
    list[0] = &cpu_f32_ops;
    list[1] = &cpu_bf16_ops;
#ifdef HALO_CUDA
    static bool told;
    if (cuda_device_count() > 0) {
        list[2] = &cuda_ops;
        return 3;
    }
    if (!told) too_few_gpus("cuda", 0);
    told = true;
#endif
    return 2;
}

// The close rule: a BF16 backend may err twice as much as cpu_bf16 did in the same check.
enum { kMaxCloseChecks = 1024 };
typedef struct {
    double bf16_error[kMaxCloseChecks];
    int check;
} CloseRule;

// `got` against `want`: within f32_tol on cpu_f32; within bf16_tol on cpu_bf16, which is noted; elsewhere within twice what was noted
// there for the check of this number. Call it in the same order for every backend, with rule->check = 0 before each.
__attribute__((unused))
static bool close_by_rule(CloseRule* rule, const Ops* ops, const float* got, const float* want, size_t n, double f32_tol, double bf16_tol,
                          const char* name) {
    check(rule->check < kMaxCloseChecks, "more than %d checks by one rule", kMaxCloseChecks);
    double* noted = &rule->bf16_error[rule->check++];
    if (ops == &cpu_bf16_ops) *noted = rel_err(got, want, n);
    double tol = ops == &cpu_f32_ops ? f32_tol : ops == &cpu_bf16_ops ? bf16_tol : 2 * *noted + 1e-5;
    return close_to(got, want, n, tol, "%s %s", name, ops->name);
}

#endif
