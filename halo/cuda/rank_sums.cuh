// What the ranks have sent, added up in rank order: the arithmetic of comm.h's sums.
//
// Bytes per value: `ranks` reads and one write, one more read with `add`. One pass at the copy bandwidth.
#ifndef HALO_CUDA_RANK_SUMS_CUH
#define HALO_CUDA_RANK_SUMS_CUH

#include "device.cuh"

enum { kRankSumThreads = 256 };

// The values of one rank lie in `own`, those of the others in order at every `lane` values of `others`.
template <typename T>
struct RankValues {
    const T *own, *others;
    size_t lane;
    int rank, ranks;
};

template <int kWidth, typename T>
__global__ void __launch_bounds__(kRankSumThreads) add_ranks_kernel(T* out, RankValues<T> in, size_t groups, bool add) {
    size_t n = (size_t)blockIdx.x * kRankSumThreads + threadIdx.x;
    if (n >= groups) return;
    Values<kWidth> sum = {};
    if (add) sum = load_values<kWidth>(out + n * kWidth);
#pragma unroll 4
    for (int r = 0; r < in.ranks; r++) {
        const T* from = r == in.rank ? in.own : in.others + (size_t)(r - (r > in.rank)) * in.lane;
        Values<kWidth> x = load_values<kWidth>(from + n * kWidth);
#pragma unroll
        for (int i = 0; i < kWidth; i++) sum.v[i] += x.v[i];
    }
    store_values(out + n * kWidth, sum);
}

// out (count) <- [out +] the values of rank 0 + those of rank 1 + ...; out may be in.own.
template <typename T>
static void add_ranks(cudaStream_t stream, T* out, RankValues<T> in, size_t count, bool add) {
    bool octets = is_octets(out, in.lane, count) && is_octets(in.own, in.lane, count) && is_octets(in.others, in.lane, count);
    size_t groups = octets ? count / 8 : count, blocks = (groups + kRankSumThreads - 1) / kRankSumThreads;
    check(count > 0 && blocks < (size_t)1 << 31, "sum over ranks: %zu values", count);
    if (octets) LAUNCH_ON(stream, (add_ranks_kernel<8, T>), (unsigned)blocks, kRankSumThreads, 0, out, in, groups, add);
    else LAUNCH_ON(stream, (add_ranks_kernel<1, T>), (unsigned)blocks, kRankSumThreads, 0, out, in, groups, add);
}

#endif
