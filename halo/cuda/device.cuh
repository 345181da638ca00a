// What every kernel file stands on: launching, shared memory, 16-byte accesses, warp and block reductions.
//
// The same kernels run in two ways. nvcc compiles them for GPUs. With HALO_SIMT a C++ compiler builds them behind an emulator
// that the Makefile includes first (test/simt.h): it executes each block's threads as fibers on the CPU, so that a machine
// without a GPU (CI is one) still runs every kernel against the reference layers. Therefore a kernel is started by LAUNCH, takes its
// dynamic shared memory by SHARED, and reaches PTX only through ptx.cuh, where each instruction has its definition in plain C++ beside it.
#ifndef HALO_CUDA_DEVICE_CUH
#define HALO_CUDA_DEVICE_CUH

#include "../ops.h"
#include "scratch.h"

#include <map>

#ifndef HALO_SIMT
#include <cuda_runtime.h>
#define LAUNCH_ON(stream, kernel, grid, block, shared_bytes, ...)                          \
    do {                                                                                   \
        kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__);                \
        cuda_ok(cudaGetLastError(), "launch of " #kernel);                                 \
    } while (0)
// The description of a launch in clusters that the CUDA runtime takes.
struct ClusterLaunch {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute shape;
    ClusterLaunch(int cluster, int grid, int threads, size_t shared_bytes, cudaStream_t stream) {
        config = cudaLaunchConfig_t{};
        shape = cudaLaunchAttribute{};
        shape.id = cudaLaunchAttributeClusterDimension;
        shape.val.clusterDim.x = (unsigned)cluster;
        shape.val.clusterDim.y = shape.val.clusterDim.z = 1;
        config.gridDim = dim3((unsigned)grid);
        config.blockDim = dim3((unsigned)threads);
        config.dynamicSmemBytes = shared_bytes;
        config.stream = stream;
        config.attrs = &shape;
        config.numAttrs = 1;
    }
};
// A grid of clusters, each of `cluster` blocks that run together and reach each other's shared memory.
#define LAUNCH_CLUSTERS(kernel, cluster, grid, block, shared_bytes, ...)                                                       \
    do {                                                                                                                       \
        ClusterLaunch launch((cluster), (grid), (block), (shared_bytes), cuda_stream());                                       \
        cuda_ok(cudaLaunchKernelEx(&launch.config, kernel, __VA_ARGS__), "launch of " #kernel);                                \
    } while (0)
#define SHARED(type, name)                        \
    extern __shared__ __align__(1024) char shared_memory[]; \
    type* name = (type*)shared_memory
#endif

// The stream that all of the backend's work runs on (ops.cu).
cudaStream_t cuda_stream();
// The driver's index of the n-th GPU that the backend can use (ops.cu): n < cuda_device_count().
int cuda_usable_device(int n);

// The device memory that the backend holds for itself, allocated when it starts (ops.cu): no op allocates. Ops share this memory, since
// all run on one stream and none reads here what another op has left.
typedef struct {
    void* workspace;       // kWorkspaceBytes, for an op that calls no other op while it uses this
    float* strip;          // kRotateStripBytes, rotate's own workspace: an op may call rotate while it uses `workspace`
    char* signs;           // kSignsBytes, written once (rotate/hadamard_signs.cuh)
    float* partial_sums;   // (kSumBlocksMax)
    struct WideTally* wide_tally;   // zeros between two calls of sum_row_squares
    unsigned* arrived;     // (kSplitCounters), zeros between two products
    float* scales[2];      // (kLtVectorRows) each: of the two sides of a product by cuBLASLt
} CudaHeld;
const CudaHeld& cuda_held();
#define LAUNCH(kernel, grid, block, shared_bytes, ...) LAUNCH_ON(cuda_stream(), kernel, grid, block, shared_bytes, __VA_ARGS__)

static inline void cuda_ok(cudaError_t status, const char* what) {
    check(status == cudaSuccess, "CUDA: %s: %s", what, cudaGetErrorString(status));
}

enum { kWarp = 32 };

// ---- the device that launchers run on
struct GpuDevice {
    int capability, multiprocessors;   // 90 is sm_90
    size_t shared_bytes;               // the most that a block may ask for, static shared memory included
    size_t l2_bytes;                   // of the L2 cache
};
static inline const GpuDevice& gpu_device() {
    static GpuDevice d = {0, 0, 0, 0};
    if (!d.capability) {
        int device = 0, major = 0, minor = 0, shared = 0, l2 = 0;
        cuda_ok(cudaGetDevice(&device), "the current device");
        cuda_ok(cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
        cuda_ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
        cuda_ok(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
        cuda_ok(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
        cuda_ok(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, device), "L2 cache");
        d.shared_bytes = (size_t)shared;
        d.l2_bytes = (size_t)l2;
        d.capability = 10 * major + minor;
        const char* older = getenv("HALO_CAPABILITY");   // an older GPU's kernels on this one, for tests: 80, 89
#ifdef HALO_SIMT
        if (older) d.capability = atoi(older);           // the emulator runs Hopper's kernels too
#else
        if (older && atoi(older) < d.capability) d.capability = atoi(older);
#endif
    }
    return d;
}
// Lets a kernel ask for `bytes` of dynamic shared memory. Calls the runtime only when `bytes` exceeds what was allowed before.
template <typename Kernel>
static inline void allow_shared(Kernel kernel, size_t bytes) {
    static std::map<Kernel, size_t> allowed;
    size_t& most = allowed[kernel];
    if (bytes <= most) return;
    most = bytes;
    cuda_ok(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "shared memory of a kernel");
}

static inline size_t shared_limit() { return gpu_device().shared_bytes - 1024; }   // of dynamic shared memory, beside a little static

// ---- bf16 values travel as uint16_t (numfmt.h is the only definition of the rounding); eight of them are one access.
typedef uint16_t bf16;
struct alignas(16) Bf16x8 {
    bf16 v[8];
};
__device__ inline Bf16x8 load8(const bf16* p) { return *reinterpret_cast<const Bf16x8*>(p); }
__device__ inline void store8(bf16* p, Bf16x8 x) { *reinterpret_cast<Bf16x8*>(p) = x; }

// ---- rows of values, read as FP32 and rounded once when they are stored. kWidth 8 is one 16-byte access of bf16 (two of
// FP32); kWidth 1 serves rows that do not consist of aligned octets.
template <typename T>
struct Rows {
    T* data;
    size_t ld;
    __device__ T* operator[](size_t row) const { return data + row * ld; }
};
template <typename T>
static inline Rows<T> rows_of(Mat m) {
    Rows<T> rows = {(T*)m.data, (size_t)m.ld};
    return rows;
}

template <int kWidth>
struct Values {
    float v[kWidth];
};

// Two values rounded to bf16, the first in the lower half. The GPU's instruction rounds as bf16_from_f32 does, except that a NaN may
// become another NaN.
__device__ inline uint32_t bf16_pair(float low, float high) {
#ifdef HALO_SIMT
    return (uint32_t)bf16_from_f32(high) << 16 | bf16_from_f32(low);
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

// Values as they lie in memory, for a kernel that keeps many of them in registers: bf16 in pairs, FP32 as it is.
template <int kWidth>
struct Packed {
    uint32_t pair[kWidth / 2];
};
template <>
struct Packed<1> {
    bf16 value;
};
template <int kWidth, typename T>
struct InMemory {
    typedef Packed<kWidth> Type;
};
template <int kWidth>
struct InMemory<kWidth, float> {
    typedef Values<kWidth> Type;
};
template <int kWidth>
__device__ inline Packed<kWidth> load_packed(const bf16* p) {
    Packed<kWidth> x;
    if constexpr (kWidth == 1) {
        x.value = *p;
    } else {
        static_assert(kWidth == 8, "one value or an octet");
        uint4 u = *reinterpret_cast<const uint4*>(p);
        x.pair[0] = u.x; x.pair[1] = u.y; x.pair[2] = u.z; x.pair[3] = u.w;
    }
    return x;
}
template <int kWidth>
__device__ inline void store_packed(bf16* p, Packed<kWidth> x) {
    if constexpr (kWidth == 1) *p = x.value;
    else *reinterpret_cast<uint4*>(p) = make_uint4(x.pair[0], x.pair[1], x.pair[2], x.pair[3]);
}
template <int kWidth>
__device__ inline Values<kWidth> unpack(Packed<kWidth> x) {
    Values<kWidth> y;
    if constexpr (kWidth == 1) {
        y.v[0] = f32_from_bf16(x.value);
    } else {
#pragma unroll
        for (int i = 0; i < kWidth / 2; i++) {
            y.v[2 * i] = f32_from_bits(x.pair[i] << 16);
            y.v[2 * i + 1] = f32_from_bits(x.pair[i] & 0xffff0000u);
        }
    }
    return y;
}
template <int kWidth>
__device__ inline Packed<kWidth> pack(Values<kWidth> x) {
    Packed<kWidth> y;
    if constexpr (kWidth == 1) {
        y.value = (bf16)bf16_pair(x.v[0], 0.0f);
    } else {
#pragma unroll
        for (int i = 0; i < kWidth / 2; i++) y.pair[i] = bf16_pair(x.v[2 * i], x.v[2 * i + 1]);
    }
    return y;
}
// The largest magnitude, as its bits: an order in which NaN wins (numfmt.h).
template <int kWidth>
__device__ inline uint32_t largest_bits(Packed<kWidth> x) {
    uint32_t largest = 0;
    if constexpr (kWidth == 1) {
        largest = (x.value & 0x7fffu) << 16;
    } else {
#pragma unroll
        for (int i = 0; i < kWidth / 2; i++) largest = max(largest, max(x.pair[i] << 16 & 0x7fffffffu, x.pair[i] & 0x7fff0000u));
    }
    return largest;
}

// Are all values +0?
template <int kWidth>
__device__ inline bool all_zero(Packed<kWidth> x) {
    uint32_t bits = 0;
    if constexpr (kWidth == 1) {
        bits = x.value;
    } else {
#pragma unroll
        for (int i = 0; i < kWidth / 2; i++) bits |= x.pair[i];
    }
    return bits == 0;
}
template <int kWidth>
__device__ inline bool all_zero(Values<kWidth> x) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kWidth; i++) bits |= f32_bits(x.v[i]);
    return bits == 0;
}

template <int kWidth>
__device__ inline Values<kWidth> load_values(const bf16* p) {
    return unpack(load_packed<kWidth>(p));
}
template <int kWidth>
__device__ inline void store_values(bf16* p, Values<kWidth> x) {
    store_packed(p, pack(x));
}
template <int kWidth>
__device__ inline Values<kWidth> load_values(const float* p) {
    Values<kWidth> x;
    if constexpr (kWidth == 1) {
        x.v[0] = *p;
    } else {
        float4 a = reinterpret_cast<const float4*>(p)[0], b = reinterpret_cast<const float4*>(p)[1];
        x.v[0] = a.x; x.v[1] = a.y; x.v[2] = a.z; x.v[3] = a.w;
        x.v[4] = b.x; x.v[5] = b.y; x.v[6] = b.z; x.v[7] = b.w;
    }
    return x;
}
template <int kWidth>
__device__ inline Values<kWidth> load_packed(const float* p) {
    return load_values<kWidth>(p);
}
template <int kWidth>
__device__ inline Values<kWidth> unpack(Values<kWidth> x) {
    return x;
}
template <int kWidth>
__device__ inline void store_values(float* p, Values<kWidth> x) {
    if constexpr (kWidth == 1) {
        *p = x.v[0];
    } else {
        reinterpret_cast<float4*>(p)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
        reinterpret_cast<float4*>(p)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
    }
}

// Can `cols` values from each row's start on be read as aligned octets?
static inline bool is_octets(const void* data, size_t ld, size_t cols) {
    return cols % 8 == 0 && ld % 8 == 0 && (uintptr_t)data % 16 == 0;
}
static inline bool is_octets(Mat m) { return is_octets(m.data, (size_t)m.ld, (size_t)m.cols); }
// Does each row of codes start at a multiple of 16 bytes?
static inline bool is_sixteens(Mat codes) { return codes.ld % 16 == 0 && (uintptr_t)codes.data % 16 == 0; }

static inline void check_mat(Mat m, int rows, int cols, const char* op) {
    check((m.fmt == F32 || m.fmt == BF16) && m.rows == rows && m.cols == cols && m.ld >= cols,
          "%s (cuda): a matrix is (%d, %d) in %s with rows of %d, not (%d, %d) in f32 or bf16", op, m.rows, m.cols, fmt_name(m.fmt),
          m.ld, rows, cols);
}
static inline void check_bf16(Mat m, int rows, int cols, const char* op) {
    check_mat(m, rows, cols, op);
    check(m.fmt == BF16, "%s (cuda): a (%d, %d) matrix in %s, not bf16", op, rows, cols, fmt_name(m.fmt));
}

// Threads that cover `items` with up to `most` of them, in whole warps.
static inline int threads_for(int items, int most) { return min_int(most, ceil_div(max_int(items, 1), kWarp) * kWarp); }

// ---- reductions with a fixed order
template <typename Combine>
__device__ inline float warp_reduce(float x, Combine combine) {
    for (int step = kWarp / 2; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}
__device__ inline float warp_sum(float x) {
    return warp_reduce(x, [](float a, float b) { return a + b; });
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

// Raises *absmax to the block's largest magnitude (bits), by one atomic a block, or none if *absmax is as large already. All threads
// must call this; a block is one-dimensional and consists of whole warps.
__device__ inline void raise_block_absmax(float* absmax, uint32_t bits) {
    __shared__ uint32_t of_warp[kWarp];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    bits = __reduce_max_sync(0xffffffffu, bits);
    __syncthreads();   // a previous call's readers are done
    if (lane == 0) of_warp[warp] = bits;
    __syncthreads();
    if (warp != 0) return;
    bits = __reduce_max_sync(0xffffffffu, lane < warps ? of_warp[lane] : 0u);
    if (lane == 0 && bits > __ldcg(reinterpret_cast<unsigned int*>(absmax))) atomicMax(reinterpret_cast<unsigned int*>(absmax), bits);
}

#endif
