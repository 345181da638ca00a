// What cuBLASLt's algorithm is: in words, since a GPU keeps no record of what failed, and whether it is safe.
#ifndef HALO_CUDA_GEMM_ALGORITHM_CUH
#define HALO_CUDA_GEMM_ALGORITHM_CUH

#include <cublasLt.h>
#include <cstdint>
#include <cstdio>

template <typename T>
static int algorithm_number(const cublasLtMatmulAlgo_t* algo, cublasLtMatmulAlgoConfigAttributes_t what) {
    T value = 0;
    size_t written;
    (void)cublasLtMatmulAlgoConfigGetAttribute(algo, what, &value, sizeof value, &written);
    return (int)value;
}

struct AlgorithmName {
    char text[160];
};
static AlgorithmName algorithm_name(const cublasLtMatmulAlgo_t* algo) {
    AlgorithmName name;
    snprintf(name.text, sizeof name.text, "cuBLASLt %zu's algorithm %d, tile %d, stages %d, inner shape %d, cluster %d, option %d",
             cublasLtGetVersion(), algorithm_number<int>(algo, CUBLASLT_ALGO_CONFIG_ID),
             algorithm_number<uint32_t>(algo, CUBLASLT_ALGO_CONFIG_TILE_ID), algorithm_number<uint32_t>(algo, CUBLASLT_ALGO_CONFIG_STAGES_ID),
             algorithm_number<uint16_t>(algo, CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID),
             algorithm_number<uint16_t>(algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID),
             algorithm_number<uint32_t>(algo, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION));
    return name;
}

// Does it run in clusters of at most four blocks? With clusters of eight (2 x 4), cuBLASLt 13.1's kernels end in an illegal instruction now and
// then on an H200 that several processes share while they allocate and give back memory: the GPU's core dump shows a wgmma of theirs
// (dev/stress_products.cu). It happens to whoever shares the GPU with a second program, so no product takes them.
static bool algorithm_is_safe(const cublasLtMatmulAlgo_t* algo) {
    switch (algorithm_number<uint16_t>(algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID)) {
        case CUBLASLT_CLUSTER_SHAPE_AUTO: case CUBLASLT_CLUSTER_SHAPE_1x1x1: case CUBLASLT_CLUSTER_SHAPE_2x1x1: case CUBLASLT_CLUSTER_SHAPE_4x1x1:
        case CUBLASLT_CLUSTER_SHAPE_1x2x1: case CUBLASLT_CLUSTER_SHAPE_2x2x1: case CUBLASLT_CLUSTER_SHAPE_1x4x1: case CUBLASLT_CLUSTER_SHAPE_3x1x1:
        case CUBLASLT_CLUSTER_SHAPE_1x3x1: return true;
        default: return false;
    }
}

#endif
