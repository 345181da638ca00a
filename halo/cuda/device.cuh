// What every kernel file stands on: launching, shared memory, 16-byte accesses, warp and block reductions.
//
// The same kernels run in two ways. nvcc compiles them for GPUs. With HALO_SIMT a C++ compiler builds them against
// test/simt.h, which executes each block's threads as fibers on the CPU, so that a machine without a GPU (CI is one) still
// runs every kernel against the reference layers. For that a kernel is started by LAUNCH, takes its dynamic shared memory by
// SHARED, and reaches PTX only through ptx.cuh, where each instruction has its definition in plain C++ beside it.
#ifndef HALO_CUDA_DEVICE_CUH
#define HALO_CUDA_DEVICE_CUH

#include "../ops.h"

#ifdef HALO_SIMT
#include "../../test/simt.h"
#else
#include <cuda_runtime.h>
#define LAUNCH(kernel, grid, block, shared_bytes, ...)                                     \
    do {                                                                                   \
        kernel<<<(grid), (block), (shared_bytes), cuda_stream()>>>(__VA_ARGS__);           \
        cuda_ok(cudaGetLastError(), "launch of " #kernel);                                 \
    } while (0)
#define SHARED(type, name)                        \
    extern __shared__ __align__(1024) char shared_memory[]; \
    type* name = (type*)shared_memory
#endif

// The stream that all of the backend's work runs on (ops.cu).
cudaStream_t cuda_stream();

static inline void cuda_ok(cudaError_t status, const char* what) {
    check(status == cudaSuccess, "CUDA: %s: %s", what, cudaGetErrorString(status));
}

enum { kWarp = 32 };

// ---- bf16 values travel as uint16_t (numfmt.h is the only definition of the rounding); eight of them are one access.
typedef uint16_t bf16;
struct alignas(16) Bf16x8 {
    bf16 v[8];
};
__device__ inline Bf16x8 load8(const bf16* p) { return *reinterpret_cast<const Bf16x8*>(p); }
__device__ inline void store8(bf16* p, Bf16x8 x) { *reinterpret_cast<Bf16x8*>(p) = x; }

// ---- reductions with a fixed order
template <typename Combine>
__device__ inline float warp_reduce(float x, Combine combine) {
    for (int step = kWarp / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
__device__ inline float warp_sum(float x) {
    return warp_reduce(x, [](float a, float b) { return a + b; });
}
__device__ inline float warp_max(float x) {
    return warp_reduce(x, [](float a, float b) { return fmaxf(a, b); });
}

// The sum over a block of up to 1024 threads, in every thread. Contains barriers: all threads must call it.
__device__ inline float block_sum(float x) {
    __shared__ float partial[kWarp];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = (blockDim.x + kWarp - 1) / kWarp;
    x = warp_sum(x);
    __syncthreads();   // a previous call's readers are done
    if (lane == 0) partial[warp] = x;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

// Raises *absmax to |x|, as integers, so that NaN wins (numfmt.h) and the order does not matter.
__device__ inline void raise_absmax(float* absmax, float x) {
    atomicMax(reinterpret_cast<unsigned int*>(absmax), f32_bits(x) & 0x7fffffffu);
}

#endif
