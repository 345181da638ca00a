// The backends that this machine can run: cpu_f32 (what others are held against), cpu_bf16 (whose error says how far a BF16 backend
// may be off), and cuda where the tests are built with it and there is a GPU, or its emulation.
#ifndef TEST_BACKENDS_H
#define TEST_BACKENDS_H

#include "../halo/ops.h"
#include "test.h"

enum { kMaxBackends = 3 };

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
    if (!told) skip("cuda: no GPU on this machine");
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
