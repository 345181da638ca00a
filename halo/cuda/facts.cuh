// Versions, GPUs and their links, as the runtime tells them; see facts.h.
#ifndef HALO_CUDA_FACTS_CUH
#define HALO_CUDA_FACTS_CUH

#include "device.cuh"
#include "facts.h"

#ifndef HALO_SIMT
#include <cublasLt.h>
#endif

static PeerLink peer_link(int from, int to) {
    int reaches = 0, atomics = 0;
    if (from == to || cudaDeviceCanAccessPeer(&reaches, from, to) != cudaSuccess || !reaches) return PEER_NONE;
    (void)cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, from, to);
    return atomics ? PEER_NVLINK : PEER_PCIE;
}

void cuda_facts(CudaFacts* f) {
    memset(f, 0, sizeof *f);
    (void)cudaDriverGetVersion(&f->driver);
    (void)cudaRuntimeGetVersion(&f->runtime);
#ifndef HALO_SIMT
    f->cublaslt = (int)cublasLtGetVersion();
#endif
    cudaError_t status = cudaGetDeviceCount(&f->count);
    if (status != cudaSuccess) {
        snprintf(f->error, sizeof f->error, "%s", cudaGetErrorString(status));
        f->count = 0;
        (void)cudaGetLastError();   // it is told here
    }
    f->count = min_int(f->count, kMostGpus);
    for (int i = 0; i < f->count; i++) {
        GpuFacts* g = &f->gpus[i];
        cudaDeviceProp properties;
        cuda_ok(cudaGetDeviceProperties(&properties, i), "properties of a GPU");
        snprintf(g->name, sizeof g->name, "%.63s", properties.name);
        g->capability = 10 * properties.major + properties.minor;
        g->usable = properties.major >= 8;
        g->total_bytes = properties.totalGlobalMem;
        for (int j = 0; j < f->count; j++) g->peer[j] = peer_link(i, j);
    }
}

#endif
