// Speed of the products on a model's shapes: F (Y = X W^T), E (dX = dY W) and G (dW = dY^T X), every operand K-major as
// `gemm` gets it. Each of ours is checked first, INT8 to the last bit, against sums made on the host.
//
// One line per shape and kind: M x N x K | kind | us (median) | T(FL)OPS | x of cuBLASLt's BF16, and for ours of cuBLASLt's
// INT8 -> INT32 too, which leaves dequantization to be done. C is in BF16, dW of the smaller models in F32, as training has it.
//
//   bench_gemm [cuts] [8b | 1b | 135m] [tokens ...]
//   bench_gemm narrow [tokens ...]
//
// Default: the shapes of Llama-3-8B at 4096, 8192 and 16384 tokens. 1b and 135m: those of Llama-3.2-1B at 16384 tokens and of SmolLM2-135M at
// 8192, matrix by matrix as INT8 recipes multiply them, beside cuBLASLt's BF16 alone. `cuts`: ours in every width of tiles and in 1 to 8
// stretches of K besides, whose fastest should be what the launcher chooses.
//
// `narrow`: gemm_narrow on dY of Llama-3-8B's linears, of the ranks that its kernel takes, 16 and 32, checked against the two products that
// define it. One line per shape: dY | matrices side by side and their rank | us | GB/s, every input read and every output written once | x of a
// copy's rate | x of the two products.
#include "../halo/cuda/facts.h"
#include "../halo/ops.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>

enum { kRuns = 15, kColdBytes = 256 << 20 };   // buffers are taken in turn until they exceed any L2

cudaStream_t cuda_stream();   // our backend's

static void cuda_ok(cudaError_t status, const char* what) {
    check(status == cudaSuccess, "CUDA: %s: %s", what, cudaGetErrorString(status));
}
static void lt_ok(cublasStatus_t status, const char* what) {
    check(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(status));
}

// ---- operands: `count` copies, so that no run finds its own in the L2
typedef struct {
    char* data;
    size_t bytes;
    int count;
} Buffers;

__global__ static void fill_kernel(uint32_t* words, size_t count, uint32_t seed, Fmt fmt) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u ^ seed;   // a hash of the place
        x = (x ^ x >> 16) * 0x85ebca6bu;
        x = (x ^ x >> 13) * 0xc2b2ae35u;
        x ^= x >> 16;
        uint32_t word = 0;
        if (fmt == BF16) {
            for (int h = 0; h < 2; h++)
                word |= (uint32_t)bf16_from_f32((float)(int16_t)(x >> 16 * h) / 16384.0f) << 16 * h;
        } else {
            for (int b = 0; b < 4; b++) {
                float value = (float)(int8_t)(x >> 8 * b) / 128.0f * fmt_max(fmt);
                word |= (uint32_t)code_from_f32(value, fmt) << 8 * b;
            }
        }
        words[i] = word;
    }
}

static Buffers buffers(size_t bytes) {
    Buffers b = {NULL, round_up(bytes, 1024), 0};
    b.count = 1 + (int)(kColdBytes / b.bytes);
    cuda_ok(cudaMalloc((void**)&b.data, b.bytes * b.count), "memory for operands");
    return b;
}
static Buffers random_buffers(size_t bytes, Fmt fmt, uint32_t seed) {
    Buffers b = buffers(bytes);
    fill_kernel<<<2048, 256>>>((uint32_t*)b.data, b.bytes * b.count / 4, seed, fmt);
    cuda_ok(cudaDeviceSynchronize(), "random operands");
    return b;
}
static void* buffer(Buffers b, int run) { return b.data + (size_t)(run % b.count) * b.bytes; }

// ---- what is timed
typedef struct {
    int M, N, K;
    Fmt fmt, c_fmt;   // cuBLASLt writes products of INT8 as INT32
    bool fast;        // FP8: fast accumulation
    Buffers a, b, c;
    float* scale;     // a's, and kScalePlace behind it b's, on the device
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t la, lb, lc;
    cublasLtMatmulAlgo_t algo;
    void* workspace;
} Job;

enum { kWorkspaceBytes = 32 << 20 };
static cublasLtHandle_t handle;

static void run_ours(const Job* j, int run) {
    Mat a = mat(buffer(j->a, run), j->M, j->K, j->fmt), b = mat(buffer(j->b, run), j->N, j->K, j->fmt);
    Side sa = plain_side(a, false), sb = plain_side(b, false);
    sa.gran = sb.gran = PER_TENSOR;
    sa.scale = j->scale;
    sb.scale = j->scale + kScalePlace;
    cuda_ops.gemm(mat(buffer(j->c, run), j->M, j->N, j->c_fmt), sa, sb, 0);
}
static cublasStatus_t try_lt(const Job* j, int run) {
    int32_t one = 1, zero = 0;
    float one_f = 1, zero_f = 0;
    bool int8 = j->fmt == INT8;
    void* c = buffer(j->c, run);
    return cublasLtMatmul(handle, j->product, int8 ? (void*)&one : &one_f, buffer(j->b, run), j->lb, buffer(j->a, run), j->la,
                          int8 ? (void*)&zero : &zero_f, c, j->lc, c, j->lc, &j->algo, j->workspace, kWorkspaceBytes, cuda_stream());
}
static void run_lt(const Job* j, int run) { lt_ok(try_lt(j, run), "product"); }

// Median microseconds of a call, several in a row, recorded as the program records its steps: the host's launching does not count.
template <typename J>
static double median_us(void (*run)(const J*, int), const J* j) {
    enum { kInner = 8 };
    double us[kRuns];
    run(j, 0);   // what a kernel needs to be launched at all
    cuda_ops.record_begin();
    for (int i = 0; i < kInner; i++) run(j, i);
    void* record = cuda_ops.record_end();
    for (int r = -2; r < kRuns; r++) {
        cuda_ops.replay(record);   // puts the GPU to work before the clock starts
        int from = cuda_ops.mark();
        cuda_ops.replay(record);
        float ms = cuda_ops.marked_ms(from, cuda_ops.mark());
        if (r >= 0) us[r] = ms * 1e3 / kInner;
        cuda_ops.forget_marks();
    }
    cuda_ops.record_free(record);
    std::sort(us, us + kRuns);
    return us[kRuns / 2];
}

// ---- cuBLASLt: row-major C (M, N) is its (N, M), so it gets our b first
static cublasLtMatrixLayout_t layout(cudaDataType_t type, int rows, int cols) {
    cublasLtMatrixLayout_t l;
    lt_ok(cublasLtMatrixLayoutCreate(&l, type, (uint64_t)cols, (uint64_t)rows, cols), "layout");
    return l;
}
template <typename T>
static void set(Job* j, cublasLtMatmulDescAttributes_t what, T value) {
    lt_ok(cublasLtMatmulDescSetAttribute(j->product, what, &value, sizeof value), "attribute");
}

// Describes the product and keeps the fastest of the heuristic's algorithms. False if there is none.
static bool lt_prepare(Job* j) {
    bool int8 = j->fmt == INT8;
    cudaDataType_t type = int8 ? CUDA_R_8I : j->fmt == BF16 ? CUDA_R_16BF : CUDA_R_8F_E4M3;
    lt_ok(cublasLtMatmulDescCreate(&j->product, int8 ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F, int8 ? CUDA_R_32I : CUDA_R_32F), "product");
    set(j, CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T);
    if (j->fmt == FP8_E4M3) {
        set(j, CUBLASLT_MATMUL_DESC_FAST_ACCUM, (int8_t)j->fast);
        set(j, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, (const float*)j->scale);
        set(j, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, (const float*)j->scale + kScalePlace);
    }
    j->la = layout(type, j->M, j->K);
    j->lb = layout(type, j->N, j->K);
    j->lc = layout(int8 ? CUDA_R_32I : j->c_fmt == F32 ? CUDA_R_32F : CUDA_R_16BF, j->M, j->N);
    cublasLtMatmulPreference_t preference;
    size_t bytes = kWorkspaceBytes;
    lt_ok(cublasLtMatmulPreferenceCreate(&preference), "preference");
    lt_ok(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes), "preference");
    cublasLtMatmulHeuristicResult_t found[8];
    int count = 0;
    cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, j->product, j->lb, j->la, j->lc, j->lc, preference, 8, found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0) return false;
    double best = INFINITY;
    int choice = -1;
    for (int i = 0; i < count; i++) {
        j->algo = found[i].algo;
        if (try_lt(j, 0) != CUBLAS_STATUS_SUCCESS) continue;   // the heuristic also names some that don't run
        double us = median_us(run_lt, j);
        if (us < best) best = us, choice = i;
    }
    if (choice < 0) return false;
    j->algo = found[choice].algo;
    return true;
}
static void lt_finish(Job* j) {
    cublasLtMatmulDescDestroy(j->product);
    cublasLtMatrixLayoutDestroy(j->la);
    cublasLtMatrixLayoutDestroy(j->lb);
    cublasLtMatrixLayoutDestroy(j->lc);
}

// ---- ours against the host, on elements spread over C: INT8 has to agree to the last bit
static bool ours_agree(const Job* j) {
    enum { kSamples = 300 };
    run_ours(j, 0);
    cuda_ok(cudaDeviceSynchronize(), "product");
    int8_t *a = (int8_t*)host_alloc(j->K), *b = (int8_t*)host_alloc(j->K);
    float scale[kScalePlace + 1];
    int wrong = 0;
    cuda_ok(cudaMemcpy(scale, j->scale, sizeof scale, cudaMemcpyDeviceToHost), "scales");
    for (int s = 0; s < kSamples; s++) {
        size_t row = s == 0 ? j->M - 1 : (size_t)s * 7919 % j->M, col = s == 0 ? j->N - 1 : (size_t)s * 104729 % j->N;
        uint32_t got = 0;
        size_t c_bytes = fmt_bytes(j->c_fmt);
        cuda_ok(cudaMemcpy(a, (char*)buffer(j->a, 0) + row * j->K, j->K, cudaMemcpyDeviceToHost), "a row");
        cuda_ok(cudaMemcpy(b, (char*)buffer(j->b, 0) + col * j->K, j->K, cudaMemcpyDeviceToHost), "a row");
        cuda_ok(cudaMemcpy(&got, (char*)buffer(j->c, 0) + (row * j->N + col) * c_bytes, c_bytes, cudaMemcpyDeviceToHost), "an element");
        int sum = 0;
        for (int k = 0; k < j->K; k++) sum += a[k] * b[k];
        float want = ((float)sum * scale[0]) * scale[kScalePlace];
        wrong += got != (j->c_fmt == F32 ? f32_bits(want) : bf16_from_f32(want));
    }
    free(a);
    free(b);
    return wrong == 0;
}

// ---- a shape
static void print_line(const Job* j, const char* kind, double us, double bf16_us, double int32_us) {
    printf("%6d x %5d x %5d | %-22s | %8.1f us | %7.1f T%s | %.2fx of cuBLASLt BF16", j->M, j->N, j->K, kind, us,
           2.0 * j->M * j->N * j->K / us * 1e-6, j->fmt == INT8 ? "OPS  " : "FLOPS", bf16_us / us);
    if (int32_us > 0) printf(" | %.2fx of cuBLASLt INT8 -> INT32", int32_us / us);
    printf("\n");
    fflush(stdout);
}

static Job job(int M, int N, int K, Fmt fmt, Fmt c_fmt) {
    static float* scale = NULL;
    static void* workspace = NULL;
    if (!scale) {
        const float values[kScalePlace + 1] = {0.0123f, 0, 0, 0, 0.00321f};
        cuda_ok(cudaMalloc((void**)&scale, sizeof values), "scales");
        cuda_ok(cudaMemcpy(scale, values, sizeof values, cudaMemcpyHostToDevice), "scales");
        cuda_ok(cudaMalloc(&workspace, kWorkspaceBytes), "workspace");
    }
    Job j;
    memset(&j, 0, sizeof j);
    j.M = M, j.N = N, j.K = K, j.fmt = fmt, j.c_fmt = c_fmt;
    j.scale = scale;
    j.workspace = workspace;
    j.a = random_buffers((size_t)M * K * fmt_bytes(fmt), fmt, 1);
    j.b = random_buffers((size_t)N * K * fmt_bytes(fmt), fmt, 2);
    j.c = buffers((size_t)M * N * (fmt == INT8 ? sizeof(int32_t) : fmt_bytes(c_fmt)));
    return j;
}
static void free_job(Job* j) {
    cudaFree(j->a.data);
    cudaFree(j->b.data);
    cudaFree(j->c.data);
}

// Ours cut in every way. False if a cut changes a bit.
static bool bench_cuts(const Job* j, double bf16_us) {
    const int widths[] = {128, 192, 256};
    bool right = true;
    for (int width : widths) {
        for (int splits = 1; splits <= 8; splits++) {
            char kind[64];
            cuda_cut_products(width, splits);
            bool agree = ours_agree(j);
            snprintf(kind, sizeof kind, "%d wide, K in %d%s", width, splits, agree ? "" : " WRONG");
            print_line(j, kind, median_us(run_ours, j), bf16_us, 0);
            right = right && agree;
            if (width == 256) break;   // tiles this wide are never shared
        }
    }
    cuda_cut_products(0, 0);
    return right;
}

static bool bench(int M, int N, int K, Fmt c_fmt, bool bf16_alone, bool cuts) {
    double bf16_us = INFINITY, int32_us = 0;
    static const struct { Fmt fmt; bool fast; const char* kind; } rivals[] = {
        {BF16, false, "cuBLASLt BF16"},           {FP8_E4M3, true, "cuBLASLt FP8 fast"},
        {FP8_E4M3, false, "cuBLASLt FP8"},        {INT8, false, "cuBLASLt INT8 -> INT32"},
    };
    for (const auto& rival : rivals) {
        if (bf16_alone && rival.fmt != BF16) continue;
        Job j = job(M, N, K, rival.fmt, c_fmt);
        j.fast = rival.fast;
        if (lt_prepare(&j)) {
            double us = median_us(run_lt, &j);
            if (rival.fmt == BF16) bf16_us = us;
            if (rival.fmt == INT8) int32_us = us;
            print_line(&j, rival.kind, us, bf16_us, 0);
        } else {
            printf("%6d x %5d x %5d | %-22s | not supported\n", M, N, K, rival.kind);
        }
        lt_finish(&j);
        free_job(&j);
    }
    Job ours = job(M, N, K, INT8, c_fmt);
    bool right = ours_agree(&ours);
    char kind[64];
    snprintf(kind, sizeof kind, "ours INT8 %s %s", right ? "->" : "WRONG", c_fmt == F32 ? "F32" : "BF16");
    print_line(&ours, kind, median_us(run_ours, &ours), bf16_us, int32_us);
    if (cuts) right = bench_cuts(&ours, bf16_us) && right;
    free_job(&ours);
    return right;
}

// ---- two narrow products of one matrix: v (M, W) = 2 x p and db (N, W) = x^T q
typedef struct {
    int M, N, W;   // N: of all parts
    SideBySide parts;
    Buffers x, p, q, v, db;
} NarrowJob;

static void narrow_by(const NarrowJob* j, int run, void (*narrow)(Mat, float, Mat, float, Mat, Mat, Mat, SideBySide)) {
    int u = j->parts.count * j->W;
    narrow(mat(buffer(j->v, run), j->M, u, BF16), 2, mat(buffer(j->db, run), j->N, j->W, F32), 0, mat(buffer(j->x, run), j->M, j->N, BF16),
           mat(buffer(j->p, run), j->N, j->W, BF16), mat(buffer(j->q, run), j->M, u, BF16), j->parts);
}
static void two_products(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts) {
    gemm_narrow_by(cuda_ops.gemm, xp, factor, xtq, beta, x, p, q, parts);
}
static void run_narrow(const NarrowJob* j, int run) { narrow_by(j, run, cuda_ops.gemm_narrow); }
static void run_two_products(const NarrowJob* j, int run) { narrow_by(j, run, two_products); }
static void run_copy(const NarrowJob* j, int run) {
    size_t half = j->x.bytes / 2;
    cuda_ops.copy((char*)buffer(j->x, run) + half, buffer(j->x, run), half);
}

// What a run of `narrow` leaves of v and db, in the host's memory and in FP32.
static float* narrow_result(const NarrowJob* j, void (*narrow)(const NarrowJob*, int)) {
    size_t v = (size_t)j->M * j->parts.count * j->W, db = (size_t)j->N * j->W;
    float* result = (float*)host_alloc((v + db) * sizeof(float));
    uint16_t* bf16s = (uint16_t*)host_alloc(v * sizeof(uint16_t));
    cuda_ok(cudaMemset(buffer(j->v, 0), 0xff, v * sizeof(uint16_t)), "results that are none");
    cuda_ok(cudaMemset(buffer(j->db, 0), 0xff, db * sizeof(float)), "results that are none");
    narrow(j, 0);
    cuda_ok(cudaDeviceSynchronize(), "narrow products");
    cuda_ok(cudaMemcpy(bf16s, buffer(j->v, 0), v * sizeof(uint16_t), cudaMemcpyDeviceToHost), "v");
    cuda_ok(cudaMemcpy(result + v, buffer(j->db, 0), db * sizeof(float), cudaMemcpyDeviceToHost), "db");
    for (size_t i = 0; i < v; i++) result[i] = f32_from_bf16(bf16s[i]);
    free(bf16s);
    return result;
}

// Whether two runs agree in every bit, and with the two products up to the rounding of results and the order of FP32 sums.
static bool narrow_agrees(const NarrowJob* j) {
    size_t counts[2] = {(size_t)j->M * j->parts.count * j->W, (size_t)j->N * j->W}, first = 0;
    const double tolerances[2] = {4e-3, 1e-4};   // of the norm
    float *got = narrow_result(j, run_narrow), *again = narrow_result(j, run_narrow), *want = narrow_result(j, run_two_products);
    bool right = !memcmp(got, again, (counts[0] + counts[1]) * sizeof(float));
    for (int part = 0; part < 2; first += counts[part++]) {
        double diff = 0, norm = 0;
        for (size_t i = first; i < first + counts[part]; i++) {
            double d = (double)got[i] - want[i];
            diff += d * d;
            norm += (double)want[i] * want[i];
        }
        right = right && norm > 0 && sqrt(diff / norm) <= tolerances[part];   // false for NaN
    }
    free(got);
    free(again);
    free(want);
    return right;
}

static bool bench_narrow(int M, SideBySide parts, int W, double copy) {
    int N = 0;
    for (int i = 0; i < parts.count; i++) N += parts.N[i];
    size_t x = (size_t)M * N * 2, p = (size_t)N * W * 2, q = (size_t)M * parts.count * W * 2;
    NarrowJob j = {M, N, W, parts, random_buffers(x, BF16, 1), random_buffers(p, BF16, 2), random_buffers(q, BF16, 3), buffers(q), buffers(2 * p)};
    bool right = narrow_agrees(&j);
    double us = median_us(run_narrow, &j), two_us = median_us(run_two_products, &j), gbs = (double)(x + p + 2 * q + 2 * p) / us * 1e-3;
    printf("dY %6d x %5d | %d of rank %2d | %7.1f us | %5.0f GB/s | %.2f of copy | %.2fx of two products%s\n", M, N, parts.count, W, us, gbs, gbs / copy, two_us / us,
           right ? "" : " | WRONG");
    fflush(stdout);
    for (Buffers b : {j.x, j.p, j.q, j.v, j.db}) cudaFree(b.data);
    return right;
}

static bool bench_narrow_8b(int T) {
    static const int columns[][3] = {{0}, {0, 4096, 5120}, {0, 14336}}, one[] = {4096}, qkv[] = {4096, 1024, 1024}, gate_up[] = {14336, 14336};
    static const SideBySide linears[] = {{1, columns[0], one}, {3, columns[1], qkv}, {2, columns[2], gate_up}};
    NarrowJob large = {0, 0, 0, {}, buffers(1 << 29), {}, {}, {}, {}};
    double copy = (double)(1 << 29) / median_us(run_copy, &large) * 1e-3;
    cudaFree(large.x.data);
    printf("copy %.0f GB/s\n", copy);
    bool right = true;
    for (int W : {16, 32})
        for (SideBySide parts : linears) right = bench_narrow(T, parts, W, copy) && right;
    return right;
}

// ---- the models
static bool bench_8b(int T, bool cuts) {
    bool right = true;
    const int shapes[][3] = {
        {T, 4096, 4096}, {T, 1024, 4096}, {T, 14336, 4096}, {T, 28672, 4096}, {T, 4096, 14336}, {T, 4096, 1024},   // F and E
        {4096, 4096, T}, {1024, 4096, T}, {14336, 4096, T}, {28672, 4096, T}, {4096, 14336, T},                    // G
    };
    for (const auto& s : shapes) right = bench(s[0], s[1], s[2], BF16, false, cuts) && right;
    return right;
}
// C: the width; KV: of keys and values; H: of the MLP.
static bool bench_small(int T, int C, int KV, int H, bool cuts) {
    bool right = true;
    const int f_and_e[][2] = {{C, C}, {KV, C}, {H, C}, {C, H}, {C, KV}}, g[][2] = {{C, C}, {KV, C}, {H, C}, {C, H}};
    for (const auto& s : f_and_e) right = bench(T, s[0], s[1], BF16, true, cuts) && right;
    for (const auto& s : g) right = bench(s[0], s[1], T, F32, true, cuts) && right;
    return right;
}

int main(int argc, char** argv) {
    enum { kMostCounts = 16 };
    const char* model = "8b";
    int tokens[kMostCounts] = {0}, count = 0;
    bool cuts = false, narrow = false, right = true;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "cuts")) cuts = true;
        else if (!strcmp(argv[i], "narrow")) narrow = true;
        else if (!strcmp(argv[i], "8b") || !strcmp(argv[i], "1b") || !strcmp(argv[i], "135m")) model = argv[i];
        else {
            check(count < kMostCounts && atoi(argv[i]) > 0, "bench_gemm: \"%s\" is neither cuts, narrow, 8b, 1b, 135m nor a number of tokens", argv[i]);
            tokens[count++] = atoi(argv[i]);
        }
    }
    if (narrow && count == 0) tokens[count++] = 4096;
    bool is_8b = !strcmp(model, "8b"), is_1b = !strcmp(model, "1b");
    if (count == 0) {
        if (is_8b) tokens[count++] = 4096;
        if (!is_1b) tokens[count++] = 8192;
        if (is_8b || is_1b) tokens[count++] = 16384;
    }
    lt_ok(cublasLtCreate(&handle), "start");
    for (int t = 0; t < count; t++) {
        bool agree = narrow ? bench_narrow_8b(tokens[t]) : is_8b ? bench_8b(tokens[t], cuts) : is_1b ? bench_small(tokens[t], 2048, 512, 8192, cuts) : bench_small(tokens[t], 576, 192, 1536, cuts);
        right = right && agree;
    }
    return right ? 0 : 1;
}
