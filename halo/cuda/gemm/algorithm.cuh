// What cuBLASLt's algorithm is, in words: a GPU keeps no record of what failed.
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

#endif
