// x H of bf16 rows on tensor cores (rotate/hadamard_warp.cuh).
//
// Bytes an element: 2 read, and 2 (bf16), 1 (codes) or none (the maximum) written, each once: the floor of the operation.
//
// Orders 2^k up to 4096: rotate_warp_kernel, all of a row in one warp, without shared memory or barriers: 14 instructions an element for codes,
// 11 for the maximum, which is half of what a multiprocessor can issue while memory brings and takes the bytes.
// Others: rotate_features_kernel. A block takes one item of rows after the other. An item lies in 2 bytes of shared memory an element, as
// bf16 and then, in place, as FP16; where there is room the next one is on its way from memory meanwhile. Three to six blocks a
// multiprocessor wait for their barriers at different times. About 14 instructions an element for the maximum, which is what bounds it.
#ifndef HALO_CUDA_ROTATE_FEATURES_CUH
#define HALO_CUDA_ROTATE_FEATURES_CUH

#include "hadamard_warp.cuh"
#include "exact.cuh"

// ================================================================ within a warp
enum { kRotateWarpThreads = 128 };

// A warp takes a row of 256 kBlocks elements, or (kBlocks 1) the rows of order 2^log2_n in 256, which share an exponent.
template <int kBlocks, typename Sink>
__global__ void __launch_bounds__(kRotateWarpThreads, kBlocks == 16 ? 4 : 8) rotate_warp_kernel(Sink sink, Rows<const bf16> x,
                                                                                                    int rows, int log2_n) {
    enum { kSumBits = 8 };
    int lane = threadIdx.x % kWarp;
    unsigned number = blockIdx.x * (kRotateWarpThreads / kWarp) + threadIdx.x / kWarp;
    int row = kBlocks > 1 ? number : (number * kWarp + lane) >> (log2_n - 3);
    int col = kBlocks > 1 ? lane * 8 : ((number * kWarp + lane) & ((1u << (log2_n - 3)) - 1)) * 8;
    Packed<8> octets[kBlocks] = {};
    uint32_t largest = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
        if (row < rows) octets[b] = load_packed<8>(x[row] + col + b * 256);
    sink.begin();
#pragma unroll
    for (int b = 0; b < kBlocks; b++) largest = larger_pair_bf16(largest, largest_pair(octets[b]));

    int exponent = max(__reduce_max_sync(0xffffffffu, pair_exponent(largest)), (int)kLeastExponent);
    WithinSigns signs = within_signs(log2_n).times(half_power_of(exponent, kSumBits));
    sink.unit(half_unit_of(exponent, kSumBits) * (1 / kSignAsHalf));
    if constexpr (kBlocks == 1) {
        float v[8];
        hadamard_within(v, octets[0], signs);
#pragma unroll
        for (int p = 0; p < 4; p++) octets[0].pair[p] = sink.pack(v[2 * p], v[2 * p + 1]);
    } else {
#pragma unroll
        for (int b = 0; b < kBlocks; b++) {
            float v[8];
            hadamard_within(v, octets[b], signs);
#pragma unroll
            for (int p = 0; p < 4; p++) octets[b].pair[p] = pack_f16(v[2 * p], v[2 * p + 1]);
        }
#pragma unroll
        for (int p = 0; p < 4; p++) {   // a pair of each 256 at a time: FP32 for all would be too many registers
            float v[kBlocks][2];
#pragma unroll
            for (int b = 0; b < kBlocks; b++) unpack_f16(octets[b].pair[p], v[b][0], v[b][1]);
            add_blocks(v, kBlocks);
#pragma unroll
            for (int b = 0; b < kBlocks; b++) octets[b].pair[p] = sink.pack(v[b][0], v[b][1]);
        }
    }
    size_t place = sink.at(row, col);
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
        if (row < rows) sink.store(place + b * 256, octets[b]);
    sink.finish();
}

template <int kBlocks>
static bool launch_rotate_warp(const RotateJob& job) {
    size_t elements = (size_t)job.x.rows * (size_t)job.n, per_block = (size_t)kRotateWarpThreads * 8 * kBlocks;
    check(elements < 1ull << 34, "rotate (cuda): (%d, %d) is too large to count", job.x.rows, job.n);
    return with_pair_sink(job, [&](auto sink) {
        LAUNCH((rotate_warp_kernel<kBlocks, decltype(sink)>), (unsigned)((elements + per_block - 1) / per_block), kRotateWarpThreads, 0, sink,
               rows_of<const bf16>(job.x), job.x.rows, floor_log2(job.n));
        return true;
    });
}

// ================================================================ through shared memory
enum { kRotateThreads = 128, kRotateMostThreads = 256, kRotateElements = 8192 };

// How rows of order n are cut: runs of 2^log2_run elements, whose lowest within_end bits are transformed within 256s and the other bits by
// additions between `together` 256s; then a dense matrix of signs transforms across runs.
struct RowRuns {
    int n, log2_run, within_end, together, order;
    const uint4* fragments;
    float scale;   // 1 / sqrt(n)
};

// The matrix cut into items of `vectors` rows. In shared memory an item is octets of bf16 and then of FP16; after each run eight values are
// skipped, so that reading four positions in each of four runs two apart is free of bank conflicts.
struct FeatureItem {
    RowRuns runs;
    Divisor blocks_across;   // 256s in a row, if they are whole
    int vectors, rows, items;
    bool shared_exponent;    // have all rows of an item one exponent? For rows that are not whole 256s
    bool dense;              // the rows of x follow each other without gaps
    bool ahead;              // is there room for the next item?
    int threads;             // of a block
    __host__ __device__ int place(int e) const { return e + (e >> runs.log2_run) * 8; }
    __device__ int vector_of(int block) const { return vectors == 1 || shared_exponent ? 0 : (int)blocks_across.quotient(block); }
    __host__ __device__ int places() const { return place(vectors * runs.n); }
    size_t bytes() const { return (size_t)places() * (ahead ? 2 : 1) * sizeof(bf16) + 2 * (size_t)vectors * sizeof(int); }
};

// One row that a producer writes to shared memory itself: features_within, with exponents[0] raised before, and features_across do the rest.
static inline FeatureItem one_row(const RowRuns& runs) {
    FeatureItem item = {runs, {}, 1, 1, 1, false, true, false, 0};
    return item;
}

// Starts the copy of item i to shared memory; rows outside of the matrix are zero.
__device__ inline void features_fetch(bf16* buffer, const Rows<const bf16>& x, const FeatureItem& item, int i) {
    int n = item.runs.n, rows = item.dense ? 1 : item.vectors, octets = item.dense ? item.vectors * n / 8 : n / 8;
    int inside = min(item.vectors, item.rows - i * item.vectors) * (n / 8);   // octets
    const bf16* from = x[i * item.vectors];
    for (int r = 0; r < rows; r++, from += x.ld) {
        bf16* to = buffer + item.place(r * n);
        if (inside >= (r + 1) * octets) {
            int first = threadIdx.x, step = blockDim.x;
            cp_async_many(to + item.place(first * 8), from + first * 8, item.place(step * 8) * (int)sizeof(bf16), step * 8 * sizeof(bf16),
                          (octets - first + step - 1) / step);
        } else {
            for (int octet = threadIdx.x; octet < octets; octet += blockDim.x)
                cp_async16(to + item.place(octet * 8), from + octet * 8, r * octets + octet < inside);
        }
    }
    cp_async_commit();
}

// Raises *exponent to that of the largest magnitude among the threads' pairs of bf16.
__device__ inline void raise_row_exponent(int* exponent, uint32_t largest) {
    int of_warp = __reduce_max_sync(0xffffffffu, pair_exponent(largest));
    if (threadIdx.x % kWarp == 0) atomicMax(exponent, of_warp);
}

// Raises exponents[v] to the exponent of the largest magnitude of the item's row v.
__device__ inline void features_exponents(int* exponents, const bf16* buffer, const FeatureItem& item) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, blocks = item.vectors * item.runs.n / 256, vector = 0;
    const bf16* at = buffer + item.place(warp * 256 + lane * 8);
    int step = item.place(warps * 256);
    uint32_t largest = 0;   // of row `vector`
    for (int block = warp; block < blocks; block += warps, at += step) {
        if (item.vector_of(block) != vector) {
            raise_row_exponent(exponents + vector, largest);
            vector = item.vector_of(block);
            largest = 0;
        }
        largest = larger_pair_bf16(largest, largest_pair(load_packed<8>(at)));
    }
    raise_row_exponent(exponents + vector, largest);
}

// Transforms an item within runs, kGroup 256s at a time, in place: bf16 becomes FP16. Either runs are kGroup 256s, or no longer than one.
template <int kGroup>
__device__ inline void features_within(bf16* buffer, const int* exponents, const FeatureItem& item, const WithinSigns& signs) {
    int lane = threadIdx.x % kWarp, first = threadIdx.x / kWarp * kGroup, warps = blockDim.x / kWarp, blocks = item.vectors * item.runs.n / 256;
    bf16* at = buffer + item.place(first * 256 + lane * 8);
    int block_step = item.runs.together > 1 ? 256 : item.place(256), step = item.place(warps * kGroup * 256), vector = -1;
    WithinSigns scaled = signs;   // times the power of row `vector`
    for (; first < blocks; first += warps * kGroup, at += step) {
        float v[kGroup][8];
#pragma unroll
        for (int b = 0; b < kGroup; b++) {
            int inside = first + b < blocks ? b : 0;   // beyond the last 256 another one serves: the result is not stored
            if (item.vector_of(first + inside) != vector) {
                vector = item.vector_of(first + inside);
                scaled = signs.times(half_power_of(exponents[vector], item.runs.log2_run));
            }
            hadamard_within(v[b], load_packed<8>(at + inside * block_step), scaled);
        }
        add_blocks(v, item.runs.together);
#pragma unroll
        for (int b = 0; b < kGroup; b++) {
            Packed<8> halves = {{pack_f16(v[b][0], v[b][1]), pack_f16(v[b][2], v[b][3]), pack_f16(v[b][4], v[b][5]), pack_f16(v[b][6], v[b][7])}};
            if (first + b < blocks) store_packed(at + b * block_step, halves);
        }
    }
}

// Transforms an item across its runs and gives it to the sink.
template <int kTiles, typename Sink>
__device__ inline void features_across(Sink& sink, const bf16* buffer, const int* exponents, const FeatureItem& item, int first_row) {
    int lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp, log2_run = item.runs.log2_run, run = 1 << log2_run;
    int order = item.runs.order, groups = item.vectors * run / kWarp;   // of 32 positions of the runs
    for (int group = threadIdx.x / kWarp, tile = 0;; group += warps) {
        for (; group >= groups; group -= groups) tile += kTiles;    // go on with the next tiles of the matrix across
        if (tile * kFragment >= order) break;
        int in = group * kWarp + lane / 4 * 4, out = group * kWarp + lane % 4 * 8;
        const bf16* from = buffer + item.place((in >> log2_run) * item.runs.n) + (in & (run - 1));
        int vector = out >> log2_run, row = first_row + vector, inside = row < item.rows ? order : 0;
        size_t place = sink.at(row, out & (run - 1));
        auto put = [&](int g, const Values<8>& v) {
            if (g < inside) sink.put(place + g * run, v);
        };
        sink.unit(half_unit_of(exponents[item.shared_exponent ? 0 : vector], log2_run) * (1 / (kSignAsHalf * kSignAsHalf)));
        hadamard_across<kTiles>(item.runs.fragments, order, tile, from, run + 8, put);
    }
}

template <int kTiles, int kGroup, typename Sink>
__global__ void __launch_bounds__(kRotateMostThreads, kTiles > 2 ? 2 : 3) rotate_features_kernel(Sink sink, Rows<const bf16> x, FeatureItem item) {
    SHARED(bf16, shared);
    int places = item.places(), flip = 0;
    int* all_exponents = (int*)(shared + places * (item.ahead ? 2 : 1));
    if ((int)threadIdx.x < 2 * item.vectors) all_exponents[threadIdx.x] = kLeastExponent;
    features_fetch(shared, x, item, blockIdx.x);
    sink.begin();
    WithinSigns signs = within_signs(item.runs.within_end);
    for (int i = blockIdx.x; i < item.items; i += gridDim.x, flip ^= 1) {
        bf16* buffer = shared + (item.ahead ? flip * places : 0);
        int *exponents = all_exponents + flip * item.vectors, *next_exponents = all_exponents + (flip ^ 1) * item.vectors;
        int next = i + gridDim.x;
        cp_async_wait<0>();
        __syncthreads();   // this item has arrived, and the other buffer has been read
        if (item.ahead && next < item.items) features_fetch(shared + (flip ^ 1) * places, x, item, next);
        features_exponents(exponents, buffer, item);
        __syncthreads();
        if ((int)threadIdx.x < item.vectors) next_exponents[threadIdx.x] = kLeastExponent;
        features_within<kGroup>(buffer, exponents, item, signs);
        __syncthreads();
        features_across<kTiles>(sink, buffer, exponents, item, i * item.vectors);
        if (!item.ahead && next < item.items) {
            __syncthreads();
            features_fetch(shared, x, item, next);
        }
    }
    sink.finish();
}

// ---- launchers
// Cuts rows of order n, with up to `added` bits by additions between 256s; false if rows of this order cannot be cut so.
static bool row_runs(int n, int added, bool transpose, RowRuns* runs) {
    int K0 = hadamard_base_order(n), run = K0 ? n / K0 : 0;
    if (run < 16 || (K0 == 1 && run < 16 * 16)) return false;
    int outer = max_int(0, floor_log2(run) - 8), doublings = K0 == 1 ? max_int(4, outer - added) : max_int(0, outer - added), order = K0 << doublings;
    if (doublings >= kAcrossDoublings || (doublings && order > kAcrossMost)) return false;
    run >>= doublings;
    RowRuns r = {n, floor_log2(run), min_int(8, floor_log2(run)), max_int(1, run / 256), order,
                 rotate_signs()->across[hadamard_base_index(K0)][doublings][!transpose], (float)(1 / sqrt((double)n))};
    *runs = r;
    return true;
}

template <int kTiles, int kGroup>
static bool launch_rotate_features(const RotateJob& job, const FeatureItem& item) {
    return with_sink(job, [&](auto sink) {
        int blocks = resident_blocks(rotate_features_kernel<kTiles, kGroup, decltype(sink)>, item.threads, item.bytes());
        LAUNCH((rotate_features_kernel<kTiles, kGroup, decltype(sink)>), min_int(item.items, blocks), item.threads, item.bytes(), sink,
               rows_of<const bf16>(job.x), item);
        return true;
    });
}
template <int kTiles>
static bool launch_rotate_features(const RotateJob& job, const FeatureItem& item) {
    return item.runs.together == 2 ? launch_rotate_features<kTiles, 2>(job, item) : launch_rotate_features<kTiles, 4>(job, item);
}

// False, with nothing done, if the shape is not one for these kernels.
static bool rotate_features(const RotateJob& job) {
    int n = job.n, vectors = 1;
    if (job.axis != ROTATE_COLS || job.x.fmt != BF16 || !is_octets(job.x) || n < 8) return false;
    if (hadamard_base_order(n) == 1 && n <= 4096)
        return n <= 256 ? launch_rotate_warp<1>(job) : n == 512 ? launch_rotate_warp<2>(job) : n == 1024 ? launch_rotate_warp<4>(job)
               : n == 2048 ? launch_rotate_warp<8>(job) : launch_rotate_warp<16>(job);
    FeatureItem item = {};
    if (!row_runs(n, 2, job.transpose, &item.runs)) return false;
    // Chooses `vectors`: whole 256s and whole groups of 32 positions, enough for every warp.
    auto elements = [&] { return (size_t)vectors * (size_t)n; };
    while (elements() < kRotateElements || elements() % 256 || elements() / (size_t)item.runs.order % kWarp) vectors *= 2;
    item.shared_exponent = n % 256 != 0;
    item.blocks_across = divisor(max_int(1, n / 256));
    item.vectors = vectors;
    item.rows = job.x.rows;
    item.items = ceil_div(job.x.rows, vectors);
    item.dense = job.x.ld == n;
    // Six small blocks a multiprocessor wait at their barriers less than three large ones; the next item is loaded ahead where as many fit.
    size_t bytes = item.bytes(), small = shared_limit() / 6, large = shared_limit() / 3;
    item.threads = bytes <= small ? kRotateThreads : kRotateMostThreads;
    item.ahead = true;
    item.ahead = item.bytes() <= (bytes <= small ? small : large);
    if (bytes > shared_limit() || 2 * vectors > item.threads) return false;
    if (item.runs.order <= kFragment) return launch_rotate_features<1>(job, item);
    if (item.runs.order <= 2 * kFragment) return launch_rotate_features<2>(job, item);
    return launch_rotate_features<4>(job, item);
}

#endif
