// The command doctor: its kernels' check finds what computes wrong, its table fits a terminal, its JSON is JSON, its exit code tells of a problem.
#include "program.h"

#include <jansson.h>

#include "../halo/run/doctor.h"
#include "backends.h"

static const char* this_test;   // beside which the program on emulated GPUs lies

// ---- the check of kernels, on every backend, and on ones that are a little wrong

static const Ops* inner;
static void wrong_gemm(Mat c, Side a, Side b, float beta) {
    a.m = mat_rows(a.m, 0, a.m.rows - 1);
    inner->gemm(mat_rows(c, 0, c.rows - 1), a, b, beta);
}
static void wrong_quantize(QMat q, Mat x, Rotation rotation, const float* absmax, Fmt fmt, float clip) {
    inner->quantize(q, x, rotation, absmax, fmt, clip * 0.99f);
}
static void wrong_rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax) {
    (void)axis, (void)transpose, (void)block;
    if (y.data) inner->copy(y.data, x.data, mat_bytes(x));
    if (absmax) inner->absmax(absmax, x);
}

static Doctor examined(const Ops* ops) {
    Doctor d = {false, true, {0, 0, 0}};
    doctor_kernels(&d, ops);
    return d;
}

static void kernels_case(void) {
    const Ops* list[kMaxBackends];
    int backends = test_backends(list);
    for (int b = 0; b < backends; b++) {
        Doctor well = examined(list[b]);
        ok(well.count[DOCTOR_OK] >= 6 && !well.count[DOCTOR_PROBLEM], "%s: %d checks pass", list[b]->name, well.count[DOCTOR_OK]);
        Ops table = *list[b];
        inner = list[b];
        table.gemm = wrong_gemm;
        Doctor row = examined(&table);
        ok(row.count[DOCTOR_PROBLEM] == 6, "%s: a product without its last row is a problem in %d of 6 formats", list[b]->name, row.count[DOCTOR_PROBLEM]);
        table = *list[b];
        table.quantize = wrong_quantize;
        Doctor codes = examined(&table);
        ok(codes.count[DOCTOR_PROBLEM] == 5, "%s: scales that are off by a hundredth are a problem in %d of 5 formats", list[b]->name, codes.count[DOCTOR_PROBLEM]);
        table = *list[b];
        table.rotate = wrong_rotate;
        Doctor turned = examined(&table);
        ok(turned.count[DOCTOR_PROBLEM] == 1, "%s: a maximum of what was not rotated is %d problem", list[b]->name, turned.count[DOCTOR_PROBLEM]);
    }
}

#ifndef HALO_SIMT   // there the emulated backend is linked into this test alone: the program is another one

// ---- the program

static bool lines_fit(const char* text, size_t columns) {
    for (const char* line = text; *line; line += strcspn(line, "\n"), line += *line == '\n')
        if (strcspn(line, "\n") > columns) return false;
    return true;
}

// Lines of JSON with the four keys; how many have `result`; -1: a line is none.
static int results_in(const char* text, const char* result) {
    int count = 0;
    for (const char* line = text; *line; line += strcspn(line, "\n") + 1) {
        json_t* j = json_loadb(line, strcspn(line, "\n"), 0, NULL);
        const char* told = json_string_value(json_object_get(j, "result"));
        bool whole = told && json_object_get(j, "check") && json_object_get(j, "detail") && json_object_get(j, "remedy");
        count += whole && !strcmp(told, result);
        if (!whole) return -1;
        json_decref(j);
    }
    return count;
}

static void program_case(void) {
    Run table = run("doctor --backend cpu");
    ok(table.code == 0 && strstr(table.out, "kernel INT8") && strstr(table.out, " 0 problems") && lines_fit(table.out, 80), "a table of 80 columns, no problem");
    ok(!lines_fit(table.out, 40), "it does not fit 40");
    Run json = run("doctor --backend cpu --json");
    ok(json.code == 0 && results_in(json.out, "ok") > 10 && results_in(json.out, "problem") == 0, "a line of JSON a check");
    ok(results_in(table.out, "ok") == -1, "the table is no JSON");
    Run full = run("doctor --backend cpu --out /proc/nothing --json");
    ok(full.code == 1 && results_in(full.out, "problem") == 1, "a place without room is a problem, exit code %d", full.code);
    free_run(table);
    free_run(json);
    free_run(full);
    run_refused("doctor --seq 5", "--seq|doctor", "a flag of training");
}

static void ranks_case(void) {
    if (!has_mpi()) {
        skip("mpirun is not here");
        return;
    }
    launcher = "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 ";
    Run two = run("doctor --backend cpu --json");
    ok(two.code == 0 && results_in(two.out, "problem") == 0 && strstr(two.out, "2 ranks here over mpi"), "two ranks, one table");
    launcher = "mpirun --allow-run-as-root --oversubscribe --bind-to core -np 2 ";
    Run bound = run("doctor --backend cpu --json");
    if (sysconf(_SC_NPROCESSORS_ONLN) < 4) skip("cores are too few to see ranks being bound");
    else ok(strstr(bound.out, "ranks are bound") != NULL, "ranks that are bound are told");
    launcher = "";
    free_run(two);
    free_run(bound);
}

// On emulated GPUs, one and two ranks of them.
static void emulated_case(void) {
    char* emulated = text_of("%.*s/simt_train_llama3", (int)(strrchr(this_test, '/') - this_test), this_test);
    const char* real = binary;
    if (access(emulated, X_OK)) {
        skip("%s is not built", emulated);
        return;
    }
    binary = emulated;
    setenv("SIMT_GPUS", "2", 1);
    Run one = run("doctor"), two = {0, NULL, NULL};
    ok(one.code == 0 && strstr(one.out, "GPU 1            ok       emulated GPU, sm_80") && strstr(one.out, "2 by NVLink") && lines_fit(one.out, 80),
       "two emulated GPUs and their link");
    ok(strstr(one.out, "kernel INT8      ok       own kernel") && strstr(one.out, "recipes, FP8     warning"), "their kernels, and FP8 without units for it");
    launcher = "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 ";
    if (has_mpi()) two = run("doctor");
    launcher = "";
    if (two.out) ok(two.code == 0 && strstr(two.out, "2 ranks here over nccl"), "two ranks on them");
    else skip("mpirun is not here");
    unsetenv("SIMT_GPUS");
    binary = real;
    free_run(one);
    free_run(two);
    free(emulated);
}

#endif

static const Case cases[] = {
    {"kernels", kernels_case},
#ifndef HALO_SIMT
    {"program", program_case},
    {"ranks", ranks_case},
    {"emulated", emulated_case},
#endif
};
int main(int argc, char** argv) {
    this_test = argv[0];
    return program_main("test_doctor", cases, COUNT(cases), argc, argv);
}
