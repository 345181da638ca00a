// Products of equal formats through cuBLASLt: BF16, F32, and FP8 or FP6 (as E4M3 codes) with scales read from the device.
//
// cuBLASLt's matrices are column-major. Row-major C (M, N) is its D (N, M), so its A is side b and its B is side a; a row-major (rows, K)
// is its (K, rows) and enters transposed as A, plain as B, and the other way round for a `transposed` side. FP8 takes only (rows, K).
//
// A plan is made once per shape: an algorithm and its descriptors. For a large product the first few safe algorithms of cuBLASLt's heuristic
// are timed, and the fastest is kept among those that sum each element in one sequence, so that the choice does not change a bit. A small
// product, which may be faster split along K, takes the heuristic's first safe algorithm, which is the same in every run. A trial writes to the
// product's own output, or to memory of its own for that time; there are none while a graph is captured.
//
// Products of a training step run at the GPU's power limit, where timing a few runs says little: candidates are timed in slices of several
// milliseconds under load. Since the clock drifts meanwhile, candidates take turns, in one order and then in reverse. That takes about 0.3 s a
// shape, once on a machine: the winner is kept in the user's cache directory (trial_cache.h) under GPU, driver and library, and counts in later
// runs where the heuristic still offers it and cuBLASLt still takes it for the product. Processes of one machine try in turn.
#ifndef HALO_CUDA_GEMM_CUBLASLT_CUH
#define HALO_CUDA_GEMM_CUBLASLT_CUH

#include <algorithm>
#include <cublasLt.h>

#include "../../trial_cache.h"
#include "algorithm.cuh"
#include "tile.cuh"

enum {
    kLtWorthTrying = 512,             // for M, N and K at least this
    kLtPlans = 1024,                  // a power of two
    kLtOffers = 24, kLtCandidates = 8,   // of the heuristic; of these, the first that are safe (algorithm.cuh)
    kLtRounds = 4                     // in each every candidate is timed once; the first round drops hopeless ones
};
static const float kLtWarmMs = 30, kLtSliceMs = 10;
static const double kLtPatience = 10;   // seconds that a process waits for another one's trial
enum { kLtTrialRules = 2 };                // changes with what is tried and how, so that older trials do not count
static const float kLtHopeless = 1.08f;   // a candidate slower than this times the fastest of the first round is dropped

static void lt_ok(cublasStatus_t status, const char* what) {
    check(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(status));
}

// All that the choice of an algorithm may depend on.
struct LtKey {
    int M, N, K, lda, ldb, ldc;
    int a_fmt, b_fmt, c_fmt, a_transposed, b_transposed, row_scales, a_align, b_align, c_align;
};
struct LtPlan {
    LtKey key;
    bool made, works;                 // works: cuBLASLt has an algorithm
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, c;   // of this program's a, b and c (cuBLASLt's B, A and D)
    cublasLtMatmulAlgo_t algo;
};

static struct {
    cublasLtHandle_t handle;
    TrialCache* trials;               // LtKey -> cublasLtMatmulAlgo_t
    LtPlan plans[kLtPlans];
} lt;

// GPU, driver and library, which trials hold for.
static TrialCache* lt_open_trials() {
    char driver[160] = "", identity[400];
    int device = 0;
    cudaDeviceProp gpu;
    cuda_ok(cudaGetDevice(&device), "the current device");
    cuda_ok(cudaGetDeviceProperties(&gpu, device), "its properties");
    FILE* file = fopen("/proc/driver/nvidia/version", "r");
    if (file && !fgets(driver, sizeof driver, file)) driver[0] = 0;
    if (file) fclose(file);
    driver[strcspn(driver, "\n")] = 0;
    snprintf(identity, sizeof identity, "%s, sm_%d, %d multiprocessors, %zu bytes; cuBLASLt %zu; rules %d; %s", gpu.name, gpu_device().capability,
             gpu.multiProcessorCount, gpu.totalGlobalMem, cublasLtGetVersion(), (int)kLtTrialRules, driver);
    return trial_cache_open(identity, sizeof(LtKey), sizeof(cublasLtMatmulAlgo_t));
}

static void lt_start() {
    if (lt.handle) return;
    lt_ok(cublasLtCreate(&lt.handle), "start");
    lt.trials = lt_open_trials();
}

static cudaDataType_t lt_type(Fmt fmt) {
    switch (fmt) {
        case F32: return CUDA_R_32F;
        case BF16: return CUDA_R_16BF;
        case FP8_E5M2: return CUDA_R_8F_E5M2;
        case FP8_E4M3: case FP6_E3M2: case FP6_E2M3: return CUDA_R_8F_E4M3;
        default: die("gemm: cuBLASLt is not asked for %s", fmt_name(fmt));
    }
}
static bool lt_is_fp8(Fmt fmt) { return fmt == FP8_E5M2 || fmt_is_fp8_coded(fmt); }

// Can cuBLASLt read this side of FP8 codes? Its scale must be aligned, which is not documented: else the product is NOT_SUPPORTED.
static bool lt_reads(const GemmSide& s) { return s.aligned && (uintptr_t)s.scale % (kScalePlace * sizeof(float)) == 0; }

// Is it worth asking cuBLASLt for this product?
static bool lt_takes(const Gemm& g) {
    if (g.a.block_scale || g.b.block_scale) return false;
    if (lt_is_fp8(g.a.fmt) && lt_is_fp8(g.b.fmt))
        return gpu_device().capability >= 89 && lt_reads(g.a) && lt_reads(g.b) && g.c_aligned && g.K % 16 == 0 && g.N % 16 == 0 &&
               g.M <= kLtVectorRows && g.N <= kLtVectorRows;
    if (g.a.scale || g.b.scale) return false;
    if (g.a.fmt == BF16 && g.b.fmt == BF16) return true;
    return g.a.fmt == F32 && g.b.fmt == F32 && g.c_fmt == F32;
}

// ---- plans
static uint32_t lt_align(const void* p) {
    uint32_t align = 256;
    while ((uintptr_t)p % align) align /= 2;
    return align;
}

static LtKey lt_key(const Gemm& g) {
    LtKey k;
    memset(&k, 0, sizeof k);
    k.M = g.M, k.N = g.N, k.K = g.K;
    k.lda = g.a.ld, k.ldb = g.b.ld, k.ldc = g.ldc;
    k.a_fmt = (int)lt_type(g.a.fmt), k.b_fmt = (int)lt_type(g.b.fmt), k.c_fmt = (int)g.c_fmt;
    k.a_transposed = g.a.transposed, k.b_transposed = g.b.transposed;
    k.row_scales = g.a.scale_step || g.b.scale_step;
    k.a_align = (int)lt_align(g.a.data), k.b_align = (int)lt_align(g.b.data), k.c_align = (int)lt_align(g.c);
    return k;
}

static cublasLtMatrixLayout_t lt_layout(Fmt fmt, int rows, int cols, int ld) {   // row-major (rows, cols)
    cublasLtMatrixLayout_t layout;
    lt_ok(cublasLtMatrixLayoutCreate(&layout, lt_type(fmt), (uint64_t)cols, (uint64_t)rows, ld), "layout");
    return layout;
}
static cublasLtMatrixLayout_t lt_side_layout(const GemmSide& s, int K) {
    return s.transposed ? lt_layout(s.fmt, K, s.rows, s.ld) : lt_layout(s.fmt, s.rows, K, s.ld);
}
template <typename T>
static void lt_set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t what, T value) {
    lt_ok(cublasLtMatmulDescSetAttribute(product, what, &value, sizeof value), "attribute of a product");
}
template <typename T>
static void lt_prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t what, T value) {
    lt_ok(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof value), "preference");
}

static void lt_describe(LtPlan* plan, const Gemm& g) {
    lt_ok(cublasLtMatmulDescCreate(&plan->product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product");
    lt_set(plan->product, CUBLASLT_MATMUL_DESC_TRANSA, g.b.transposed ? CUBLAS_OP_N : CUBLAS_OP_T);
    lt_set(plan->product, CUBLASLT_MATMUL_DESC_TRANSB, g.a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (lt_is_fp8(g.a.fmt)) lt_set(plan->product, CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)1);
    if (plan->key.row_scales) {
        lt_set(plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
        lt_set(plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
    }
    plan->a = lt_side_layout(g.a, g.K);
    plan->b = lt_side_layout(g.b, g.K);
    plan->c = lt_layout(g.c_fmt, g.M, g.N, g.ldc);
}

__global__ void fill_scale_kernel(float* vector, const float* scale, int rows) {   // (rows)
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < rows) vector[i] = scale ? *scale : 1.0f;
}
// A side's scales as a vector with one for each row; a single scale is repeated into `vector`.
static const float* lt_row_scales(const GemmSide& s, float* vector) {
    if (s.scale_step) return s.scale;
    LAUNCH(fill_scale_kernel, tiles_over(s.rows, 256), 256, 0, vector, s.scale, s.rows);
    return vector;
}
static void lt_set_scales(const LtPlan* plan, const Gemm& g) {
    const float *a = g.a.scale, *b = g.b.scale;
    if (plan->key.row_scales) {
        a = lt_row_scales(g.a, cuda_held().scales[0]);
        b = lt_row_scales(g.b, cuda_held().scales[1]);
    }
    lt_set(plan->product, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, b);
    lt_set(plan->product, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, a);
}

static cublasStatus_t lt_run(const LtPlan* plan, const Gemm& g, void* out, const cublasLtMatmulAlgo_t* algo) {
    float alpha = g.a.factor * g.b.factor;
    return cublasLtMatmul(lt.handle, plan->product, &alpha, g.b.data, plan->b, g.a.data, plan->a, &g.beta, g.c, plan->c, out, plan->c, algo,
                          cuda_held().workspace, kWorkspaceBytes, cuda_stream());
}

// Ends the program if an algorithm failed while it was timed, and says which one: after a failure a GPU takes no more work.
static void lt_timed(cudaError_t status, const Gemm& g, const cublasLtMatmulAlgo_t* algo) {
    if (status == cudaSuccess) return;
    die("CUDA: timed product: %s: (%d, %d) of %s%s and %s%s along %d, beta %g, by %s", cudaGetErrorString(status), g.M, g.N,
        g.a.transposed ? "transposed " : "", fmt_name(g.a.fmt), g.b.transposed ? "transposed " : "", fmt_name(g.b.fmt), g.K, (double)g.beta,
        algorithm_name(algo).text);
}

// Milliseconds of one run, averaged over `runs` in a row; infinite if the algorithm does not run.
static float lt_time(const LtPlan* plan, const Gemm& g, void* out, const cublasLtMatmulAlgo_t* algo, int runs) {
    cudaEvent_t start, stop;
    float ms = INFINITY;
    cuda_ok(cudaEventCreate(&start), "event");
    cuda_ok(cudaEventCreate(&stop), "event");
    cuda_ok(cudaEventRecord(start, cuda_stream()), "event");
    if (lt_run(plan, g, out, algo) == CUBLAS_STATUS_SUCCESS) {
        for (int run = 1; run < runs; run++) lt_ok(lt_run(plan, g, out, algo), "timed product");
        lt_timed(cudaEventRecord(stop, cuda_stream()), g, algo);
        lt_timed(cudaEventSynchronize(stop), g, algo);
        cuda_ok(cudaEventElapsedTime(&ms, start, stop), "event");
    }
    cuda_ok(cudaEventDestroy(start), "event");
    cuda_ok(cudaEventDestroy(stop), "event");
    return ms / (float)runs;
}

// The number of the fastest candidate, timed on product g with its output in `out`.
static int lt_race(const LtPlan* plan, const Gemm& g, void* out, const cublasLtMatmulHeuristicResult_t* found, int count) {
    for (int i = 0; i < count; i++) (void)lt_time(plan, g, out, &found[i].algo, 1);   // loads the kernels
    float once = lt_time(plan, g, out, &found[0].algo, 1);
    int slice = 1 + (int)(kLtSliceMs / once);
    (void)lt_time(plan, g, out, &found[0].algo, 1 + (int)(kLtWarmMs / once));
    float ms[kLtCandidates] = {};   // summed over all rounds; infinite: dropped
    for (int round = 0; round < kLtRounds; round++) {
        for (int turn = 0; turn < count; turn++) {
            int i = round % 2 ? count - 1 - turn : turn;
            if (ms[i] < INFINITY) ms[i] += lt_time(plan, g, out, &found[i].algo, slice);
        }
        for (int i = 0; round == 0 && i < count; i++)
            if (ms[i] > kLtHopeless * *std::min_element(ms, ms + count)) ms[i] = INFINITY;
    }
    return (int)(std::min_element(ms, ms + count) - ms);
}
// The fastest candidate for g. With beta 0 trials write to c, which the product itself will overwrite. Else trials must not change c: they
// write to memory that is given back at once. Without room for that, they compute only as many of c's rows as rotate's strip holds, and write
// them there. -1 if these are too few to tell.
static int lt_fastest(const LtPlan* plan, const Gemm& g, const cublasLtMatmulHeuristicResult_t* found, int count) {
    cuda_ok(cudaStreamSynchronize(cuda_stream()), "the work before a product's trial");   // a failure of its own does not pass for the trial's
    if (g.beta == 0) return lt_race(plan, g, g.c, found, count);
    void* aside = NULL;
    if (cudaMalloc(&aside, (size_t)g.M * g.ldc * fmt_bytes(g.c_fmt)) == cudaSuccess) {
        int fastest = lt_race(plan, g, aside, found, count);
        cuda_ok(cudaFree(aside), "cudaFree");
        return fastest;
    }
    (void)cudaGetLastError();   // the failure is dealt with
    Gemm first = g;
    LtPlan trial = *plan;
    first.M = first.a.rows = min_int(g.M, (int)(kRotateStripBytes / (g.ldc * fmt_bytes(g.c_fmt))));
    if (first.M < kLtWorthTrying) return -1;
    trial.a = lt_side_layout(first.a, first.K);
    trial.c = lt_layout(first.c_fmt, first.M, first.N, first.ldc);
    int fastest = lt_race(&trial, first, cuda_held().strip, found, count);
    lt_ok(cublasLtMatrixLayoutDestroy(trial.a), "layout");
    lt_ok(cublasLtMatrixLayoutDestroy(trial.c), "layout");
    return fastest;
}

// The candidate that won in an earlier run; -1: none, or cuBLASLt no longer offers it, or does not take it for this product.
static int lt_known(const LtPlan* plan, const cublasLtMatmulHeuristicResult_t* found, int count) {
    cublasLtMatmulAlgo_t algo;
    cublasLtMatmulHeuristicResult_t result;
    memset(&result, 0, sizeof result);
    if (!trial_cache_find(lt.trials, &plan->key, &algo)) return -1;
    for (int i = 0; i < count; i++) {
        if (memcmp(&found[i].algo, &algo, sizeof algo)) continue;
        cublasStatus_t status = cublasLtMatmulAlgoCheck(lt.handle, plan->product, plan->b, plan->a, plan->c, plan->c, &found[i].algo, &result);
        bool fits = status == CUBLAS_STATUS_SUCCESS && result.state == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= (size_t)kWorkspaceBytes;
        return fits ? i : -1;
    }
    return -1;
}

// Which of the candidates a large product takes: the winner of an earlier run's trials, or of trials now, which are noted.
static int lt_choose(const LtPlan* plan, const Gemm& g, const cublasLtMatmulHeuristicResult_t* found, int count) {
    int known = lt_known(plan, found, count);
    if (known >= 0) return known;
    cudaStreamCaptureStatus capture;
    cuda_ok(cudaStreamIsCapturing(cuda_stream(), &capture), "state of the stream");
    if (capture != cudaStreamCaptureStatusNone) return 0;
    trial_cache_begin(lt.trials, kLtPatience);
    int fastest = lt_known(plan, found, count);   // by now another process may have found it
    if (fastest < 0) {
        fastest = lt_fastest(plan, g, found, count);
        if (fastest >= 0) trial_cache_add(lt.trials, &plan->key, &found[fastest].algo);
    }
    trial_cache_end(lt.trials);
    return max_int(fastest, 0);
}

static void lt_make(LtPlan* plan, const Gemm& g) {
    lt_describe(plan, g);
    if (lt_is_fp8(g.a.fmt)) lt_set_scales(plan, g);
    bool large = (size_t)tiles_over(g.M, 128) * tiles_over(g.N, 128) >= (size_t)gpu_device().multiprocessors;
    uint32_t reductions = large ? CUBLASLT_REDUCTION_SCHEME_NONE : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

    cublasLtMatmulPreference_t preference;
    lt_ok(cublasLtMatmulPreferenceCreate(&preference), "preference");
    lt_prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (size_t)kWorkspaceBytes);
    lt_prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions);
    lt_prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)plan->key.b_align);
    lt_prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)plan->key.a_align);
    lt_prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)plan->key.c_align);
    lt_prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)plan->key.c_align);
    cublasLtMatmulHeuristicResult_t found[kLtOffers];
    int offers = 0, count = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(lt.handle, plan->product, plan->b, plan->a, plan->c, plan->c, preference,
                                                           kLtOffers, found, &offers);
    lt_ok(cublasLtMatmulPreferenceDestroy(preference), "preference");
    for (int i = 0; i < offers && count < kLtCandidates; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && algorithm_is_safe(&found[i].algo)) found[count++] = found[i];
    plan->made = true;
    plan->works = status == CUBLAS_STATUS_SUCCESS && count > 0;
    if (!plan->works) return;
    bool choose = large && min_int(g.M, min_int(g.N, g.K)) >= kLtWorthTrying && count > 1;
    plan->algo = found[choose ? lt_choose(plan, g, found, count) : 0].algo;
}

static LtPlan* lt_plan(const Gemm& g) {
    LtKey key = lt_key(g);
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < sizeof key; i++) hash = (hash ^ ((const unsigned char*)&key)[i]) * 16777619u;
    for (int probe = 0; probe < kLtPlans; probe++) {
        LtPlan* plan = &lt.plans[(hash + probe) % kLtPlans];
        if (plan->made && memcmp(&plan->key, &key, sizeof key)) continue;
        if (!plan->made) {
            plan->key = key;
            lt_make(plan, g);
        }
        return plan;
    }
    die("gemm: more than %d different products", (int)kLtPlans);
}

// False where cuBLASLt does not take the product.
static bool gemm_cublaslt(const Gemm& g) {
    if (!lt_takes(g)) return false;
    lt_start();
    const LtPlan* plan = lt_plan(g);
    if (!plan->works) return false;
    if (lt_is_fp8(g.a.fmt)) lt_set_scales(plan, g);
    lt_ok(lt_run(plan, g, g.c, &plan->algo), "product");
    return true;
}

#endif
