// x H of bf16 rows on tensor cores (rotate/hadamard_warp.cuh).
//
// Bytes an element: 2 read, and 2 (bf16), 1 (codes) or none (the maximum) written, each once: the floor of the operation.
//
// Orders 2^k up to 4096: rotate_warp_kernel, all of a row in one warp, without shared memory.
// Others: rotate_features_kernel. A block takes one item of rows after the other; the next item is on its way from memory into shared
// memory while this one is summed across runs and written, so that memory never waits for a barrier: 4 bytes an element of shared
// memory for FP32 and 2 for the next item, two blocks a multiprocessor for rows of 14336. Instructions an element, beside those of
// rotate/hadamard_warp.cuh: about 2 to load, 1 for a maximum, 2 for bf16, 3 for INT8. In all 12 to 17: 6.7, 4.4 and 3.3 elements a clock and
// multiprocessor would be 3 TB/s for the maximum, codes and bf16, out of 128 instructions a clock.
#ifndef HALO_CUDA_ROTATE_FEATURES_CUH
#define HALO_CUDA_ROTATE_FEATURES_CUH

#include "hadamard_warp.cuh"
#include "exact.cuh"

// ================================================================ within a warp
enum { kRotateWarpThreads = 128 };

// What a warp takes: kBlocks 256s of the matrix, counted row after row; whole rows of order 2^k <= 256 kBlocks.
struct WarpItem {
    Divisor octets_across;   // n / 8
    int rows, log2_n, together;
};

template <int kBlocks, typename Sink>
__global__ void __launch_bounds__(kRotateWarpThreads) rotate_warp_kernel(Sink sink, Rows<const bf16> x, WarpItem item) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t first = ((blockIdx.x * (kRotateWarpThreads / kWarp) + warp) * kBlocks) * kWarp + lane;   // octet
    auto locate = [&](int b, int* row, int* col) {
        uint32_t octet = first + b * kWarp;
        *row = (int)item.octets_across.quotient(octet);
        *col = (int)(octet - *row * item.octets_across.d) * 8;
        return *row < item.rows;
    };
    int row, col;
    Packed<8> octets[kBlocks];
#pragma unroll
    for (int b = 0; b < kBlocks; b++) {
        octets[b] = Packed<8>{{0, 0, 0, 0}};
        if (locate(b, &row, &col)) octets[b] = load_packed<8>(x[row] + col);
    }
    sink.begin();
    float v[kBlocks][8];
    hadamard_blocks(v, octets, within_signs(0, item.log2_n), item.together);
#pragma unroll
    for (int b = 0; b < kBlocks; b++) {
        Values<8> out;
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] = v[b][i];
        if (locate(b, &row, &col)) sink.put(sink.at(row, col), out);
    }
    sink.finish();
}

template <int kBlocks>
static bool launch_rotate_warp(const RotateJob& job) {
    WarpItem item = {divisor(job.n / 8), job.x.rows, floor_log2(job.n), max_int(1, job.n / 256)};
    size_t octets = (size_t)job.x.rows * (size_t)(job.n / 8), per_block = (size_t)kRotateWarpThreads * kBlocks;
    check(octets < 1u << 30, "rotate (cuda): (%d, %d) is too large to count", job.x.rows, job.n);
    return with_sink(job, [&](auto sink) {
        LAUNCH((rotate_warp_kernel<kBlocks, decltype(sink)>), (unsigned)((octets + per_block - 1) / per_block), kRotateWarpThreads, 0, sink,
               rows_of<const bf16>(job.x), item);
        return true;
    });
}

// ================================================================ through shared memory
enum { kRotateThreads = 256, kRotateMostThreads = 512, kRotateGroup = 4, kRotateElements = 8192 };

// How rows of order n are cut: runs of 2^log2_run elements, whose lowest within_end bits are transformed within 256s and the other bits by
// additions between `together` 256s; then a dense matrix of signs transforms across runs.
struct RowRuns {
    int n, log2_run, within_end, together, order;
    const uint4* fragments;
    float scale;   // 1 / sqrt(n)
};

// Transforms whole rows within runs, four 256s at a time, and stores them to the exchange. octets(first, x) gives this lane's octet of each
// of the four 256s from `first` on.
template <typename Octets>
__device__ inline void rows_within(const Exchange& exchange, const RowRuns& runs, const WithinSigns& signs, int blocks, const Octets& octets) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    for (int group = warp; group * kRotateGroup < blocks; group += warps) {
        Packed<8> x[kRotateGroup];
        float v[kRotateGroup][8];
        octets(group * kRotateGroup, x);
        hadamard_blocks(v, x, signs, runs.together);
#pragma unroll
        for (int b = 0; b < kRotateGroup; b++) {
            int block = group * kRotateGroup + b;
            if (block < blocks) exchange.store_octet(block * 256 + lane * 8, lane, v[b]);
        }
    }
}

// Transforms the `vectors` rows in the exchange across their runs and gives them to the sink: rows from `first_row` on, of `rows` in all.
template <int kTiles, typename Sink>
__device__ inline void rows_across(Sink& sink, const Exchange& exchange, const RowRuns& runs, int vectors, int first_row, int rows) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    int run = 1 << runs.log2_run, groups = vectors * run / kWarp;   // groups of 32 positions of the runs
    for (int group = warp, tile = 0;; group += warps) {
        for (; group >= groups; group -= groups) tile += kTiles;    // go on with the next tiles of the matrix across
        if (tile * kFragment >= runs.order) break;
        int in = group * kWarp + lane / 4 * 4, out = group * kWarp + lane % 4 * 8;
        const float* from = exchange.data + exchange.place((in >> runs.log2_run) * runs.n + (in & (run - 1)));
        int row = first_row + (out >> runs.log2_run), inside = row < rows ? runs.order : 0;
        size_t place = sink.at(row, out & (run - 1));
        auto load = [&](int g) {
            const float* at = from + g * exchange.stride();
            return TwoRuns{*(const float4*)at, *(const float4*)(at + exchange.stride())};
        };
        auto put = [&](int g, const Values<8>& v) {
            if (g < inside) sink.put(place + g * run, v);
        };
        hadamard_across<kTiles>(runs.fragments, runs.order, tile, load, put);
    }
}

// The matrix cut into items of `vectors` rows.
struct FeatureItem {
    RowRuns runs;
    Divisor octets_across;   // n / 8
    int vectors, rows, items;
    bool dense;              // the rows of x follow each other without gaps
    bool ahead;              // is there room for the next item?
};

template <int kTiles, typename Sink>
__global__ void __launch_bounds__(kRotateMostThreads) rotate_features_kernel(Sink sink, Rows<const bf16> x, FeatureItem item) {
    SHARED(float, shared);
    Exchange exchange = {shared, item.runs.log2_run};
    int n = item.runs.n, elements = item.vectors * n, blocks = elements / 256, lane = threadIdx.x % kWarp;
    bf16* arriving = (bf16*)((char*)shared + Exchange::bytes(elements, item.runs.log2_run));

    auto fetch = [&](int i) {
        int rows = item.dense ? 1 : item.vectors, octets = item.dense ? elements / 8 : n / 8;
        int inside = min(item.vectors, item.rows - i * item.vectors) * (n / 8);   // octets
        const bf16* from = x[i * item.vectors];
        for (int r = 0; r < rows; r++, from += x.ld) {
            bf16* to = arriving + r * octets * 8;
            if (inside >= (r + 1) * octets) {
                int first = threadIdx.x, step = blockDim.x;
                cp_async_many(to + first * 8, from + first * 8, step * 16, step * 16, (octets - first + step - 1) / step);
            } else {
                for (int octet = threadIdx.x; octet < octets; octet += blockDim.x)
                    cp_async16(to + octet * 8, from + octet * 8, r * octets + octet < inside);
            }
        }
        cp_async_commit();
    };

    if (item.ahead) fetch(blockIdx.x);
    sink.begin();
    WithinSigns signs = within_signs(0, item.runs.within_end);
    for (int i = blockIdx.x; i < item.items; i += gridDim.x) {
        cp_async_wait<0>();
        __syncthreads();   // this item has arrived, and the last one has been read from the exchange
        rows_within(exchange, item.runs, signs, blocks, [&](int first, Packed<8> (&octets)[kRotateGroup]) {
#pragma unroll
            for (int b = 0; b < kRotateGroup; b++) {   // beyond the last block its values serve again: the result is not stored
                int octet = min(first + b, blocks - 1) * kWarp + lane;
                if (item.ahead) {
                    octets[b] = load_packed<8>(arriving + octet * 8);
                } else {
                    int vector = (int)item.octets_across.quotient(octet), row = i * item.vectors + vector;
                    octets[b] = Packed<8>{{0, 0, 0, 0}};
                    if (row < item.rows) octets[b] = load_packed<8>(x[row] + (octet - vector * (int)item.octets_across.d) * 8);
                }
            }
        });
        __syncthreads();   // from here on nothing of the item's x is read: y may be x
        if (item.ahead && i + (int)gridDim.x < item.items) fetch(i + gridDim.x);
        rows_across<kTiles>(sink, exchange, item.runs, item.vectors, i * item.vectors, item.rows);
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

template <int kTiles>
static bool launch_rotate_features(const RotateJob& job, FeatureItem item, size_t bytes) {
    int groups = ceil_div(job.n * item.vectors, 256 * kRotateGroup);
    int threads = min_int(bytes * 2 > shared_limit() ? kRotateMostThreads : kRotateThreads, groups * kWarp);
    return with_sink(job, [&](auto sink) {
        int blocks = resident_clusters(rotate_features_kernel<kTiles, decltype(sink)>, 1, threads, bytes);
        LAUNCH((rotate_features_kernel<kTiles, decltype(sink)>), min_int(item.items, blocks), threads, bytes, sink, rows_of<const bf16>(job.x),
               item);
        return true;
    });
}

// False, with nothing done, if the shape is not one for these kernels.
static bool rotate_features(const RotateJob& job) {
    int n = job.n, vectors = 1;
    if (job.axis != ROTATE_COLS || job.x.fmt != BF16 || !is_octets(job.x) || n < 8) return false;
    if (hadamard_base_order(n) == 1 && n <= 4096) return n <= 2048 ? launch_rotate_warp<8>(job) : launch_rotate_warp<16>(job);
    FeatureItem item = {};
    if (!row_runs(n, 2, job.transpose, &item.runs)) return false;
    // Chooses `vectors`: whole 256s and whole groups of 32 positions, enough for every warp. The next item is loaded ahead if there is room.
    auto elements = [&] { return (size_t)vectors * (size_t)n; };
    while (elements() < kRotateElements || elements() % 256 || elements() / (size_t)item.runs.order % kWarp) vectors *= 2;
    size_t bytes = Exchange::bytes(vectors * n, item.runs.log2_run);
    item.octets_across = divisor(n / 8);
    item.vectors = vectors;
    item.rows = job.x.rows;
    item.items = ceil_div(job.x.rows, vectors);
    item.dense = job.x.ld == n;
    item.ahead = bytes + elements() * sizeof(bf16) <= shared_limit();
    if (item.ahead) bytes += elements() * sizeof(bf16);
    if (bytes > shared_limit()) return false;
    if (item.runs.order <= kFragment) return launch_rotate_features<1>(job, item, bytes);
    if (item.runs.order <= 2 * kFragment) return launch_rotate_features<2>(job, item, bytes);
    return launch_rotate_features<4>(job, item, bytes);
}

#endif
