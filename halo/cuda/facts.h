// What the CUDA backend can say of the machine, for people: no CUDA header is needed to read it.
#ifndef HALO_CUDA_FACTS_H
#define HALO_CUDA_FACTS_H

#include "../base.h"

enum { kMostGpus = 16 };
typedef enum { PEER_NONE, PEER_PCIE, PEER_NVLINK } PeerLink;   // NVLink, as far as atomics between the GPUs tell

typedef struct {
    char name[64];
    int capability;            // 90 is sm_90
    bool usable;               // new enough
    size_t total_bytes;
    PeerLink peer[kMostGpus];  // how it reaches the others
} GpuFacts;

typedef struct {
    int driver, runtime, cublaslt;   // CUDA versions as 1000 * major + 10 * minor; cuBLASLt's as its library counts. 0: none
    char error[128];                 // why there are no GPUs; "" if there are
    int count;
    GpuFacts gpus[kMostGpus];
} CudaFacts;

#ifdef HALO_CUDA
C_API void cuda_facts(CudaFacts* facts);       // starts nothing on a GPU
C_API const char* cuda_last_product(void);     // which kernel the last product of cuda_ops ran on
// For tests and benchmarks: our own INT8 products are cut into tiles of `width` columns (128, 192 or 256, on Hopper) and `splits` stretches
// of K (at most 16, and the steps of K), as far as the workspace holds their sums. 0: as they are by themselves.
C_API void cuda_cut_products(int width, int splits);
#endif

#endif
