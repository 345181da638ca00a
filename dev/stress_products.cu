// Runs every algorithm that cuBLASLt offers for the BF16 products of SmolLM2-135M's linears, forward and backward, at 8 to 20 rows of 512
// tokens, as the trials of halo/cuda/gemm/cublaslt.cuh do: some hundred runs of one algorithm after the other. For finding an algorithm that
// fails when processes share a GPU, which compute-sanitizer does not see: start several of these at once. Needs cuBLASLt alone:
//
//   nvcc -std=c++17 -O2 -arch=sm_90a dev/stress_products.cu -lcublasLt -o /tmp/stress
//   for i in 1 2 3 4 5 6; do /tmp/stress BETA place|apart|fresh safe|unsafe|all SECONDS & done; wait
//
// place: the product is written to c, which it adds BETA times to; apart: to other memory; fresh: to other memory, allocated for each product
// and given back. safe: the algorithms that training takes (algorithm_is_safe); unsafe: the others. Prints one line: how many algorithms ran, or
// the product and the algorithm that failed (exit code 1).
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <ctime>

#include "../halo/cuda/gemm/algorithm.cuh"

enum { kFewestRows = 8, kMostRows = 20, kRowTokens = 512, kWidest = 3072, kMost = 24, kRuns = 300, kWorkspaceBytes = 32 << 20 };

// y (M, N) = x (M, K) w^T + beta y; w is (N, K), or (K, N) if turned: W of dX = dY W.
typedef struct {
    int N, K;
    bool turned;
} Product;
static const Product kProducts[] = {{960, 576, false}, {576, 576, false}, {3072, 576, false}, {576, 1536, false},
                                    {576, 960, true},  {576, 576, true},  {576, 3072, true},  {1536, 576, true}};

static char at_work[300] = "start";   // for whoever reads of a failure
static void cuda_ok(cudaError_t status) {
    if (status == cudaSuccess) return;
    printf("FAILED: %s: %s\n", cudaGetErrorString(status), at_work);
    exit(1);
}
static void lt_ok(cublasStatus_t status) {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    printf("FAILED: %s: %s\n", cublasLtGetStatusString(status), at_work);
    exit(1);
}

__global__ void fill_kernel(__nv_bfloat16* x, size_t count, unsigned seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x) {
        unsigned h = (unsigned)i * 2654435761u ^ seed;
        h = (h ^ h >> 16) * 0x85ebca6bu;
        x[i] = __float2bfloat16((float)(int)(h ^ h >> 13) / 2147483648.0f);
    }
}
static __nv_bfloat16* random_values(size_t count, unsigned seed) {
    __nv_bfloat16* x;
    cuda_ok(cudaMalloc(&x, count * sizeof *x));
    fill_kernel<<<1024, 256>>>(x, count, seed);
    cuda_ok(cudaDeviceSynchronize());
    return x;
}

static cublasLtHandle_t handle;
static cudaStream_t stream;
static __nv_bfloat16 *x, *w, *y, *other;
static void* workspace;

static cublasLtMatrixLayout_t layout(int rows, int cols) {   // row-major
    cublasLtMatrixLayout_t l;
    lt_ok(cublasLtMatrixLayoutCreate(&l, CUDA_R_16BF, cols, rows, cols));
    return l;
}

// Runs those algorithms of one product that are asked for; returns how many.
static int run_product(int M, Product p, float beta, const char* where, const char* which) {
    cublasLtMatmulDesc_t product;
    cublasOperation_t w_op = p.turned ? CUBLAS_OP_N : CUBLAS_OP_T;
    lt_ok(cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    lt_ok(cublasLtMatmulDescSetAttribute(product, CUBLASLT_MATMUL_DESC_TRANSA, &w_op, sizeof w_op));
    cublasLtMatrixLayout_t lx = layout(M, p.K), lw = p.turned ? layout(p.K, p.N) : layout(p.N, p.K), ly = layout(M, p.N);
    cublasLtMatmulPreference_t preference;
    size_t bytes = kWorkspaceBytes;
    uint32_t none = CUBLASLT_REDUCTION_SCHEME_NONE;
    lt_ok(cublasLtMatmulPreferenceCreate(&preference));
    lt_ok(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    lt_ok(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof none));
    cublasLtMatmulHeuristicResult_t found[kMost];
    int count = 0, ran = 0;
    lt_ok(cublasLtMatmulAlgoGetHeuristic(handle, product, lw, lx, ly, ly, preference, kMost, found, &count));
    __nv_bfloat16* to = !strcmp(where, "place") ? y : other;
    if (!strcmp(where, "fresh")) cuda_ok(cudaMalloc(&to, (size_t)M * p.N * sizeof *to));
    for (int i = 0; i < count; i++) {
        const cublasLtMatmulAlgo_t* algo = &found[i].algo;
        const float one = 1;
        if (strcmp(which, "all") && algorithm_is_safe(algo) != !strcmp(which, "safe")) continue;
        ran++;
        snprintf(at_work, sizeof at_work, "(%d, %d) along %d%s, beta %g, %s; number %d of the heuristic, workspace %zu: %s", M, p.N, p.K,
                 p.turned ? ", turned" : "", beta, where, i, found[i].workspaceSize, algorithm_name(algo).text);
        for (int run = 0; run < kRuns; run++)
            lt_ok(cublasLtMatmul(handle, product, &one, w, lw, x, lx, &beta, y, ly, to, ly, algo, workspace, kWorkspaceBytes, stream));
        cuda_ok(cudaStreamSynchronize(stream));
    }
    if (!strcmp(where, "fresh")) cuda_ok(cudaFree(to));
    lt_ok(cublasLtMatmulPreferenceDestroy(preference));
    for (cublasLtMatrixLayout_t l : {lx, lw, ly}) lt_ok(cublasLtMatrixLayoutDestroy(l));
    lt_ok(cublasLtMatmulDescDestroy(product));
    return ran;
}

int main(int argc, char** argv) {
    if (argc != 5) {
        fprintf(stderr, "stress_products BETA place|apart|fresh safe|unsafe|all SECONDS\n");
        return 2;
    }
    float beta = (float)atof(argv[1]);
    size_t most = (size_t)kMostRows * kRowTokens * kWidest;
    time_t end = time(NULL) + atoi(argv[4]);
    cuda_ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    cuda_ok(cudaMalloc(&workspace, kWorkspaceBytes));
    x = random_values(most, 1), w = random_values((size_t)kWidest * kWidest, 2), y = random_values(most, 3), other = random_values(most, 4);
    lt_ok(cublasLtCreate(&handle));
    long ran = 0;
    do {
        for (int rows = kFewestRows; rows <= kMostRows; rows++)
            for (Product p : kProducts) ran += run_product(rows * kRowTokens, p, beta, argv[2], argv[3]);
    } while (time(NULL) < end);
    printf("%ld algorithms ran with beta %g, %s, %s; none failed\n", ran, beta, argv[2], argv[3]);
    return 0;
}
