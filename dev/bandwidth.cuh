// What benches share: noise on the GPU, medians of event times, what a plain copy reaches, and how alike two results are.
#ifndef DEV_BANDWIDTH_CUH
#define DEV_BANDWIDTH_CUH

#include "../halo/cuda/device.cuh"
#include "../halo/quant_stats.h"

#include <algorithm>
#include <vector>

enum { kBenchWarmups = 3, kBenchRuns = 15 };

// Median time of run(), in us.
template <typename Run>
static double median_us(Run run) {
    cudaEvent_t start, stop;
    cuda_ok(cudaEventCreate(&start), "an event");
    cuda_ok(cudaEventCreate(&stop), "an event");
    std::vector<float> times;
    for (int i = 0; i < kBenchWarmups + kBenchRuns; i++) {
        float ms;
        cuda_ok(cudaEventRecord(start, cuda_stream()), "an event");
        run();
        cuda_ok(cudaEventRecord(stop, cuda_stream()), "an event");
        cuda_ok(cudaEventSynchronize(stop), "what is timed");
        cuda_ok(cudaEventElapsedTime(&ms, start, stop), "a time");
        if (i >= kBenchWarmups) times.push_back(ms);
    }
    cuda_ok(cudaEventDestroy(start), "an event");
    cuda_ok(cudaEventDestroy(stop), "an event");
    std::nth_element(times.begin(), times.begin() + kBenchRuns / 2, times.end());
    return 1e3 * times[kBenchRuns / 2];
}

enum { kCopyThreads = 512, kCopyLoads = 4 };
__global__ void __launch_bounds__(kCopyThreads) copy_kernel(uint4* y, const uint4* x, size_t n) {
    size_t first = (size_t)blockIdx.x * kCopyThreads * kCopyLoads + threadIdx.x;
    uint4 v[kCopyLoads];
#pragma unroll
    for (int i = 0; i < kCopyLoads; i++)
        if (first + (size_t)i * kCopyThreads < n) v[i] = x[first + (size_t)i * kCopyThreads];
#pragma unroll
    for (int i = 0; i < kCopyLoads; i++)
        if (first + (size_t)i * kCopyThreads < n) y[first + (size_t)i * kCopyThreads] = v[i];
}

// Bytes read and written per second, in GB/s, by a copy that moves so many: 1 GiB, or as many as a layer does. What starting and ending
// a kernel costs, a small copy pays too.
static double copy_gbs(double moved = 1 << 30) {
    size_t n = std::max((size_t)1, (size_t)(moved / 2 / sizeof(uint4))), bytes = n * sizeof(uint4);
    void *x = cuda_ops.alloc(bytes), *y = cuda_ops.alloc(bytes);
    unsigned grid = (unsigned)((n + kCopyThreads * kCopyLoads - 1) / (kCopyThreads * kCopyLoads));
    double us = median_us([&] { LAUNCH(copy_kernel, grid, kCopyThreads, 0, (uint4*)y, (const uint4*)x, n); });
    cuda_ops.release(x);
    cuda_ops.release(y);
    return 2.0 * bytes / us * 1e-3;
}

__device__ inline uint32_t hash_of(uint32_t i) {
    uint32_t h = i * 2654435761u;
    h = (h ^ h >> 15) * 2246822519u;
    h = (h ^ h >> 13) * 3266489917u;
    return h ^ h >> 16;
}
// Noise between -1 and 1, one value in 4096 `outlier` times that.
template <typename T>
__global__ void noise_kernel(T* x, size_t n, float outlier) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t h = hash_of((uint32_t)i);
    Values<1> v = {{((float)(h >> 8) / 8388608.0f - 1.0f) * ((h & 4095u) == 0 ? outlier : 1.0f)}};
    store_values<1>(x + i, v);
}
static Mat noise(int rows, int cols, Fmt fmt, float outlier = 100) {
    Mat m = mat(NULL, rows, cols, fmt);
    m.data = cuda_ops.alloc(mat_bytes(m));
    size_t n = (size_t)rows * cols;
    unsigned grid = (unsigned)((n + 255) / 256);
    if (fmt == BF16) LAUNCH(noise_kernel<bf16>, grid, 256, 0, (bf16*)m.data, n, outlier);
    else LAUNCH(noise_kernel<float>, grid, 256, 0, (float*)m.data, n, outlier);
    return m;
}
// Normal values, as activations, weights and gradients are (Box and Muller 1958).
static __global__ void normals_kernel(bf16* x, size_t n, float deviation, uint32_t seed) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t a = hash_of(hash_of((uint32_t)i) ^ seed), b = hash_of(a + 0x9e3779b9u);
    float radius = sqrtf(-2.0f * logf(((float)(a >> 8) + 0.5f) / 16777216.0f)), angle = 6.2831853f * (float)(b >> 8) / 16777216.0f;
    x[i] = bf16_from_f32(deviation * radius * cosf(angle));
}
static Mat normals(int rows, int cols, float deviation, uint32_t seed) {
    Mat m = mat(NULL, rows, cols, BF16);
    m.data = cuda_ops.alloc(mat_bytes(m));
    size_t n = (size_t)rows * cols;
    LAUNCH(normals_kernel, (unsigned)((n + 255) / 256), 256, 0, (bf16*)m.data, n, deviation, seed);
    return m;
}
static Mat zeros(int rows, int cols, Fmt fmt) {
    Mat m = mat(NULL, rows, cols, fmt);
    m.data = cuda_ops.alloc(mat_bytes(m));
    return m;
}
// The cosine of two BF16 matrices; NaN if anything in them is.
static double cosine_of(Mat a, Mat b) {
    Mat both = zeros(a.rows, a.cols, F32);
    float squares[3], *on_gpu = (float*)cuda_ops.alloc(sizeof squares);
    cuda_ops.sum_squares(on_gpu, a);
    cuda_ops.sum_squares(on_gpu + 1, b);
    cuda_ops.convert(both, a);
    cuda_ops.add(both, b, NULL);
    cuda_ops.sum_squares(on_gpu + 2, both);
    cuda_ops.download(squares, on_gpu, sizeof squares);
    cuda_ops.release(on_gpu);
    cuda_ops.release(both.data);
    return quant_stats_cosine(squares);
}
// The last rows and columns of m, without gaps, in the host's memory: of a large matrix only what is looked at travels.
static Mat host_corner(Mat m, int rows, int cols) {
    Mat from = mat_cols(mat_rows(m, m.rows - rows, rows), m.cols - cols, cols), host = mat(NULL, rows, cols, m.fmt);
    size_t bytes = fmt_bytes(m.fmt);
    host.data = host_alloc(mat_bytes(host));
    cuda_ok(cudaMemcpy2DAsync(host.data, cols * bytes, from.data, (size_t)m.ld * bytes, cols * bytes, (size_t)rows, cudaMemcpyDeviceToHost,
                              cuda_stream()), "a corner");
    cuda_ops.sync();
    return host;
}
static float host_float(const float* x) {
    float value;
    cuda_ops.download(&value, x, sizeof value);
    return value;
}
// A copy of m in the host's memory.
static Mat on_host(Mat m) {
    Mat host = m;
    host.data = host_alloc(mat_bytes(m));
    cuda_ops.download(host.data, m.data, mat_bytes(m));
    return host;
}

#endif
