// What doctor says of GPUs, and of the kernels of a backend; see doctor.h.
#include <math.h>

#include "../rng.h"
#include "backend.h"
#include "doctor.h"

// ---- the machine

static void check_driver(Doctor* d, const CudaFacts* f) {
    if (!f->driver) {
        doctor_report(d, "driver", DOCTOR_WARNING, "no NVIDIA driver is here: the CPU backend runs, slowly",
                      "install the driver if there is a GPU (nvidia-smi)");
        return;
    }
    bool old = f->driver / 1000 < f->runtime / 1000;
    doctor_note(d, "driver", old ? DOCTOR_PROBLEM : DOCTOR_OK, "a newer driver, or the program built with an older CUDA",
                "takes CUDA up to %d.%d", f->driver / 1000, f->driver % 1000 / 10);
    doctor_note(d, "CUDA", DOCTOR_OK, "", "built with %d.%d", f->runtime / 1000, f->runtime % 1000 / 10);
    if (*f->error) doctor_report(d, "GPUs", DOCTOR_PROBLEM, f->error, "nvidia-smi says more; a container needs --gpus all");
    else if (!f->count) doctor_report(d, "GPUs", DOCTOR_WARNING, "none: the CPU backend runs, slowly", "CUDA_VISIBLE_DEVICES may hide them");
}

static void check_gpus(Doctor* d, const CudaFacts* f) {
    int usable = 0;
    for (int i = 0; i < f->count; i++) {
        const GpuFacts* g = &f->gpus[i];
        char name[16];
        snprintf(name, sizeof name, "GPU %d", i);
        usable += g->usable;
        doctor_note(d, name, g->usable ? DOCTOR_OK : DOCTOR_WARNING, "sm_80 or newer is needed: it is left aside",
                    "%s, sm_%d, %.1f GiB", g->name, g->capability, gib(g->total_bytes));
    }
    if (f->count && !usable) doctor_report(d, "GPUs", DOCTOR_PROBLEM, "none of them can be used", "an Ampere GPU or newer, or --backend cpu");
}

static void check_links(Doctor* d, const CudaFacts* f) {
    int pairs[3] = {0, 0, 0}, from = 0, to = 0;
    for (int i = 0; i < f->count; i++)
        for (int j = 0; j < f->count; j++) {
            if (i == j) continue;
            pairs[f->gpus[i].peer[j]]++;
            if (!f->gpus[i].peer[j]) from = i, to = j;
        }
    if (f->count < 2) return;
    bool slow = pairs[PEER_NONE] > 0;
    char which[64] = "";
    if (slow) snprintf(which, sizeof which, ", %d with no way but the host (%d to %d)", pairs[PEER_NONE], from, to);
    doctor_note(d, "links", slow ? DOCTOR_WARNING : DOCTOR_OK, "ranks wait for each other: --qfsdp sends half, --accum sends less often",
                "of %d pairs %d by NVLink, %d by PCIe%s", f->count * (f->count - 1), pairs[PEER_NVLINK], pairs[PEER_PCIE], which);
}

// ---- NCCL: versions that are known for what they break
static const struct {
    int from, before;   // 10000 * major + 100 * minor + patch
    const char* what;
} kBadNccl[] = {
    {0, 22602, "ending a job whose rank died may hang in ncclCommAbort"},
    {22902, 22903, "may hang, a regression that 2.29.3 mended"},
#ifdef __aarch64__
    {0, 22903, "may hang on ARM when its proxy loses a queue's places"},
#endif
};

static void check_nccl(Doctor* d, int gpus) {
    int version = comm_libraries().nccl;
    if (!version) {
        if (gpus > 1)
            doctor_report(d, "NCCL", DOCTOR_PROBLEM, "built without it: one GPU is all that a run can use",
                          "install libnccl-dev and OpenMPI, and run make again");
        return;
    }
    const char* bad = NULL;
    for (size_t i = 0; i < sizeof kBadNccl / sizeof kBadNccl[0]; i++)
        if (version >= kBadNccl[i].from && version < kBadNccl[i].before) bad = kBadNccl[i].what;
    doctor_note(d, "NCCL", bad ? DOCTOR_WARNING : DOCTOR_OK, "2.29.3 or newer", "%d.%d.%d%s%s", version / 10000, version / 100 % 100,
                version % 100, bad ? ": " : "", bad ? bad : "");
}

void doctor_gpus(Doctor* d) {
    CudaFacts f;
    bool built = backend_cuda_facts(&f);
    if (!built) {
        doctor_report(d, "CUDA", DOCTOR_WARNING, "built without it: the CPU backend runs, slowly",
                      "install nvcc (CUDA 12.8 or newer) and run make again");
        return;
    }
    check_driver(d, &f);
    check_gpus(d, &f);
    check_links(d, &f);
    if (f.cublaslt) doctor_note(d, "cuBLASLt", DOCTOR_OK, "", "%d.%d.%d", f.cublaslt / 10000, f.cublaslt / 100 % 100, f.cublaslt % 100);
    check_nccl(d, f.count);
}

// ---- kernels: a product of each format, as training makes it

enum { kM = 64, kN = 96, kK = 128 };   // small: an emulated GPU takes part
static const double kMostError = 1e-2;   // of a product's values, relative; BF16's rounding is 2e-3 of it

typedef struct {
    float c[kM * kN];
    uint8_t codes[kM * kK];
} TriedProduct;

static void fill(float* x, size_t count, uint64_t seed) {
    for (size_t i = 0; i < count; i++) {
        Philox p = random_words(seed, i, 0);
        float u = uniform_from_word(p.word[0]) + uniform_from_word(p.word[1]) - 1;
        x[i] = f32_from_bf16(bf16_from_f32(i % 97 ? u : 8 * u));   // some are outliers
    }
}

static Mat on_backend(const Ops* ops, const float* x, int rows, int cols) {
    size_t count = (size_t)rows * (size_t)cols;
    Mat m = mat(ops->alloc(count * fmt_bytes(ops->act)), rows, cols, ops->act);
    uint16_t* half = (uint16_t*)host_alloc(count * sizeof(uint16_t));
    for (size_t i = 0; i < count; i++) half[i] = bf16_from_f32(x[i]);
    ops->upload(m.data, ops->act == F32 ? (const void*)x : half, mat_bytes(m));
    free(half);
    return m;
}

// Codes of x with their scales, rotated along the features if the recipe rotates.
static QMat coded(const Ops* ops, Mat x, Opnd how) {
    size_t scales = round_up((size_t)scale_count(x.rows, x.cols, how.gran), kScalePlace);
    float* numbers = (float*)ops->alloc((scales + 1) * sizeof(float));   // the scales, and the maximum
    float* maximum = numbers + scales;
    QMat q = {mat(ops->alloc((size_t)x.rows * (size_t)x.cols), x.rows, x.cols, how.fmt), {NULL, 0, 0, 0, F32}, numbers, how.gran};
    Rotation turn = {how.rotate ? ROTATE_COLS : ROTATE_NONE, 0};
    if (how.rotate) ops->rotate(mat(NULL, x.rows, x.cols, ops->act), x, ROTATE_COLS, false, 0, maximum);
    else ops->absmax(maximum, x);
    ops->quantize(q, x, turn, maximum, how.fmt, how.clip);
    return q;
}

static void run_product(const Ops* ops, Opnd how, TriedProduct* p) {
    float *x = (float*)host_alloc(sizeof(float) * kM * kK), *w = (float*)host_alloc(sizeof(float) * kN * kK);
    fill(x, (size_t)kM * kK, 1);
    fill(w, (size_t)kN * kK, 2);
    Mat X = on_backend(ops, x, kM, kK), W = on_backend(ops, w, kN, kK), C = mat(ops->alloc(sizeof(float) * kM * kN), kM, kN, F32);
    QMat a, b;
    bool plain = how.gran == NO_SCALE;
    if (!plain) {
        a = coded(ops, X, how);
        b = coded(ops, W, how);
        ops->download(p->codes, a.codes.data, sizeof p->codes);
    }
    ops->gemm(C, plain ? plain_side(X, false) : side_codes(a), plain ? plain_side(W, false) : side_codes(b), 0);
    ops->download(p->c, C.data, sizeof p->c);
    if (!plain) {
        void* const used[] = {a.codes.data, a.scale, b.codes.data, b.scale};
        for (int i = 0; i < 4; i++) ops->release(used[i]);
    }
    void* const used[] = {X.data, W.data, C.data};
    for (int i = 0; i < 3; i++) ops->release(used[i]);
    free(x);
    free(w);
}

// How far two products are apart, relative to the second; infinite if a value is not finite.
static double distance(const TriedProduct* got, const TriedProduct* want) {
    double off = 0, all = 0;
    for (int i = 0; i < kM * kN; i++) {
        double by = (double)got->c[i] - want->c[i];
        off += by * by;
        all += (double)want->c[i] * want->c[i];
    }
    double far = sqrt(off / all);
    return isfinite(far) ? far : INFINITY;
}

static void check_format(Doctor* d, const Ops* ops, const char* name, Opnd how) {
    TriedProduct *got = (TriedProduct*)host_alloc(sizeof(TriedProduct)), *want = (TriedProduct*)host_alloc(sizeof(TriedProduct));
    run_product(ops, how, got);
    run_product(&cpu_f32_ops, how, want);
    int differ = 0;
    for (int i = 0; i < kM * kK; i++) differ += got->codes[i] != want->codes[i];
    double far = distance(got, want);
    // Rotated codes may differ at ties, and between two halves of a rotation a GPU holds FP16.
    bool right = far <= kMostError && (how.rotate ? differ < kM * kK / 60 : differ == 0);
    char codes[48] = "";
    if (how.gran != NO_SCALE) snprintf(codes, sizeof codes, ", %d of %d codes differ", differ, kM * kK);
    char check[32];
    snprintf(check, sizeof check, "kernel %s", name);
    doctor_note(d, check, right ? DOCTOR_OK : DOCTOR_PROBLEM, "this GPU or build computes wrong: train nothing with it; report the line",
                "%s: %.1e from the CPU's%s", backend_last_product(ops), far, codes);
    free(got);
    free(want);
}

// Which kernel the products of each recipe run on; FP8 on GPUs without units for it is decoded first. FP6's codes are FP8's.
static void check_recipe_kernels(Doctor* d, const Ops* ops) {
    enum { kKinds = 4 };
    static const struct {
        const char* name;
        Opnd how;
    } kinds[kKinds] = {{"recipes, BF16", {BF16, NO_SCALE, false, 1}}, {"recipes, FP8", {FP8_E4M3, PER_TENSOR, false, 1}},
                       {"recipes, INT8", {INT8, PER_TENSOR, false, 1}}, {"recipes, blocks", {INT8, PER_BLOCK32, false, 1}}};
    bool gpu = !strcmp(ops->name, "cuda");
    TriedProduct* p = (TriedProduct*)host_alloc(sizeof(TriedProduct));
    int count;
    const Recipe* table = recipe_table(&count);
    for (int k = 0; k < kKinds; k++) {
        char list[256] = "";
        run_product(ops, kinds[k].how, p);
        for (int r = 0; r < count; r++) {
            Opnd f = table[r].fx;
            int kind = f.gran == PER_BLOCK32 ? 3 : f.fmt == INT8 ? 2 : f.fmt == BF16 ? 0 : 1;
            size_t used = strlen(list);
            if (kind == k) snprintf(list + used, sizeof list - used, " %s", table[r].name);
        }
        bool slow = gpu && k == 1 && strcmp(backend_last_product(ops), "cuBLASLt") != 0;
        doctor_note(d, kinds[k].name, slow ? DOCTOR_WARNING : DOCTOR_OK, "before sm_89 there are no FP8 units: int8 recipes are the fast ones",
                    "%s:%s", backend_last_product(ops), list);
    }
    free(p);
}

void doctor_kernels(Doctor* d, const Ops* ops) {
    static const struct {
        const char* name;
        Opnd how;
    } kFormats[] = {
        {"BF16", {BF16, NO_SCALE, false, 1}},
        {"FP8", {FP8_E4M3, PER_TENSOR, false, 1}},
        {"FP6", {FP6_E3M2, PER_TENSOR, false, 1}},
        {"INT8", {INT8, PER_TENSOR, false, 1}},
        {"rotated", {INT8, PER_TENSOR, true, 1}},
        {"blocks", {INT8, PER_BLOCK32, false, 1}},
    };
    for (size_t i = 0; i < sizeof kFormats / sizeof kFormats[0]; i++) check_format(d, ops, kFormats[i].name, kFormats[i].how);
    check_recipe_kernels(d, ops);
}
