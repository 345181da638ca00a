// Adds up in rank order the values that the ranks have sent: the arithmetic of comm.h's sums.
//
// Bytes per value: `ranks` reads and one write, one more read with `add`. One pass at the copy bandwidth.
#ifndef HALO_CUDA_RANK_SUMS_CUH
#define HALO_CUDA_RANK_SUMS_CUH

#include "stochastic.cuh"

enum { kRankSumThreads = 256 };

// The ranks' values: this rank's in `own`, the other ranks' in `others`, in rank order and `lane` values apart.
template <typename T>
struct RankValues {
    const T *own, *others;
    size_t lane;
    int rank, ranks;
    unsigned* bad;   // raised to `ranks` - r where a sum is not finite and rank r's value is the first that is not
    __device__ const T* of(int r) const { return r == rank ? own : others + (size_t)(r - (r > rank)) * lane; }
};

template <int kWidth>
__device__ inline bool all_finite(Values<kWidth> x) {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kWidth; i++) finite = finite & ((f32_bits(x.v[i]) & 0x7f800000u) != 0x7f800000u);
    return finite;
}

template <int kWidth, bool kStochastic, typename T>
__global__ void __launch_bounds__(kRankSumThreads) add_ranks_kernel(T* out, RankValues<T> in, size_t groups, bool add, Noise noise) {
    size_t n = (size_t)blockIdx.x * kRankSumThreads + threadIdx.x;
    if (n >= groups) return;
    Values<kWidth> sum = {};
    if (add) sum = load_values<kWidth>(out + n * kWidth);
#pragma unroll 4
    for (int r = 0; r < in.ranks; r++) {
        Values<kWidth> x = load_values<kWidth>(in.of(r) + n * kWidth);
#pragma unroll
        for (int i = 0; i < kWidth; i++) sum.v[i] += x.v[i];
    }
    if (!all_finite(sum)) {
        int r = 0;
        while (r < in.ranks && all_finite(load_values<kWidth>(in.of(r) + n * kWidth))) r++;
        if (r < in.ranks) atomicMax(in.bad, (unsigned)(in.ranks - r));
    }
    if (kStochastic) store_stochastic(out + n * kWidth, sum, noise, n * kWidth, kGradNoise);
    else store_values(out + n * kWidth, sum);
}

template <int kWidth, typename T>
static void launch_add_ranks(cudaStream_t stream, T* out, RankValues<T> in, size_t groups, bool add, const Noise* noise) {
    size_t blocks = (groups + kRankSumThreads - 1) / kRankSumThreads;
    check(groups > 0 && blocks < (size_t)1 << 31, "sum over ranks: %zu values", groups * kWidth);
    if (noise) LAUNCH_ON(stream, (add_ranks_kernel<kWidth, true, T>), (unsigned)blocks, kRankSumThreads, 0, out, in, groups, add, *noise);
    else LAUNCH_ON(stream, (add_ranks_kernel<kWidth, false, T>), (unsigned)blocks, kRankSumThreads, 0, out, in, groups, add, Noise{});
}

// out (count) <- [out +] the values of rank 0 + those of rank 1 + ..., rounded stochastically unless noise is NULL; out may be in.own.
template <typename T>
static void add_ranks(cudaStream_t stream, T* out, RankValues<T> in, size_t count, bool add, const Noise* noise) {
    bool octets = is_octets(out, in.lane, count) && is_octets(in.own, in.lane, count) && is_octets(in.others, in.lane, count) &&
                  (!noise || noise->offset % kNoiseOctet == 0);
    if (octets) launch_add_ranks<8>(stream, out, in, count / 8, add, noise);
    else launch_add_ranks<1>(stream, out, in, count, add, noise);
}

#endif
