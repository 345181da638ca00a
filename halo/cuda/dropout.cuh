// Dropout, and products value by value, as adapters need them; see ops.h.
//
// Bytes per value: dropout 4, hadamard 8, each one pass. Dropout takes a Philox an octet of values.
#ifndef HALO_CUDA_DROPOUT_CUH
#define HALO_CUDA_DROPOUT_CUH

#include "stochastic.cuh"

enum { kDropoutThreads = 256 };

// noise.offset is a multiple of kNoiseOctet where kWidth is.
template <int kWidth>
__global__ void __launch_bounds__(kDropoutThreads) dropout_kernel(bf16* y, const bf16* x, size_t groups, float scale, uint32_t threshold,
                                                                  Noise noise, int cols) {
    size_t n = (size_t)blockIdx.x * kDropoutThreads + threadIdx.x;
    if (n >= groups) return;
    Values<kWidth> v = load_values<kWidth>(x + n * kWidth);
    noise = noise_shifted(noise, cols);
    uint64_t index = noise.offset + n * kWidth;
    Philox words = noise_words(noise.seed, index / kNoiseOctet, kDropNoise, noise.stream);
#pragma unroll
    for (int i = 0; i < kWidth; i++) {
        v.v[i] *= scale;
        if (noise_half(words, (int)((index + i) % kNoiseOctet)) < threshold) v.v[i] = 0;
    }
    store_values(y + n * kWidth, v);
}

template <int kWidth>
static void launch_dropout(Mat y, Mat x, float scale, uint32_t threshold, Noise noise) {
    size_t groups = (size_t)x.rows * x.cols / kWidth, blocks = (groups + kDropoutThreads - 1) / kDropoutThreads;
    check(groups > 0 && blocks < (size_t)1 << 31, "dropout: (%d, %d)", x.rows, x.cols);
    LAUNCH(dropout_kernel<kWidth>, (unsigned)blocks, kDropoutThreads, 0, (bf16*)y.data, (const bf16*)x.data, groups, scale, threshold, noise,
           x.cols);
}

static void dropout(Mat y, Mat x, float p, const Noise* noise) {
    check(x.fmt == BF16 && y.fmt == BF16 && y.rows == x.rows && y.cols == x.cols && x.ld == x.cols && y.ld == y.cols,
          "dropout: (%d, %d) in %s to (%d, %d) in %s", x.rows, x.cols, fmt_name(x.fmt), y.rows, y.cols, fmt_name(y.fmt));
    check(p >= 0 && p < 1, "dropout: p %g", p);
    uint32_t threshold = dropout_threshold(p);
    float scale = dropout_factor(p);
    size_t count = (size_t)x.rows * x.cols;
    if (is_octets(y.data, count, count) && is_octets(x.data, count, count) && noise_in_octets(*noise, x.cols))
        launch_dropout<kNoiseOctet>(y, x, scale, threshold, *noise);
    else launch_dropout<1>(y, x, scale, threshold, *noise);
}

template <int kWidth>
__global__ void __launch_bounds__(kDropoutThreads) hadamard_kernel(bf16* y, const float* x, const bf16* w, size_t groups, float factor,
                                                                   float offset) {
    size_t n = (size_t)blockIdx.x * kDropoutThreads + threadIdx.x;
    if (n >= groups) return;
    Values<kWidth> v = load_values<kWidth>(x + n * kWidth), by = load_values<kWidth>(w + n * kWidth);
#pragma unroll
    for (int i = 0; i < kWidth; i++) v.v[i] = __fmul_rn(by.v[i], __fadd_rn(offset, __fmul_rn(factor, v.v[i])));
    store_values(y + n * kWidth, v);
}

template <int kWidth>
static void launch_hadamard(Mat y, Mat x, Mat w, float factor, float offset) {
    size_t groups = (size_t)x.rows * x.cols / kWidth, blocks = (groups + kDropoutThreads - 1) / kDropoutThreads;
    check(groups > 0 && blocks < (size_t)1 << 31, "hadamard: (%d, %d)", x.rows, x.cols);
    LAUNCH(hadamard_kernel<kWidth>, (unsigned)blocks, kDropoutThreads, 0, (bf16*)y.data, (const float*)x.data, (const bf16*)w.data, groups, factor,
           offset);
}

static void hadamard(Mat y, Mat x, Mat w, float factor, float offset) {
    check(x.fmt == F32 && y.fmt == BF16 && w.fmt == BF16 && x.ld == x.cols && y.ld == y.cols && w.ld == w.cols && y.rows == x.rows &&
          w.rows == x.rows && y.cols == x.cols && w.cols == x.cols, "hadamard: (%d, %d) in %s", x.rows, x.cols, fmt_name(x.fmt));
    size_t count = (size_t)x.rows * x.cols;
    if (is_octets(y.data, count, count) && is_octets(x.data, count, count) && is_octets(w.data, count, count))
        launch_hadamard<8>(y, x, w, factor, offset);
    else launch_hadamard<1>(y, x, w, factor, offset);
}

#endif
