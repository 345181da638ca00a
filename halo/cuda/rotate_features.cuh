// x H of bf16 rows on tensor cores (hadamard_warp.cuh).
//
// Bytes an element: 2 read, and 2 (bf16), 1 (codes) or none (the maximum) written, each once: the floor of the operation.
//
// Orders 2^k up to 4096: rotate_warp_kernel, all of a row in one warp, nothing shared.
// Others: rotate_features_kernel. A block takes rows one item after the other and has the next one on its way from memory into shared
// memory while it sums this one across runs and writes it, so that memory never waits for a barrier: 4 bytes an element of shared
// memory for FP32 and 2 for what is on its way, two blocks a multiprocessor for rows of 14336. Instructions an element, beside those of
// hadamard_warp.cuh: about 2 to load, 1 for a maximum, 2 for bf16, 3 for INT8. In all 12 to 17: 6.7, 4.4 and 3.3 elements a clock and
// multiprocessor would be 3 TB/s for the maximum, codes and bf16, out of 128 instructions a clock.
#ifndef HALO_CUDA_ROTATE_FEATURES_CUH
#define HALO_CUDA_ROTATE_FEATURES_CUH

#include "hadamard_warp.cuh"
#include "rotate_exact.cuh"

// ================================================================ within a warp
enum { kRotateWarpThreads = 128 };

// Groups of kBlocks 256s of the matrix's octets, row after row: whole rows of order 2^k <= 256 kBlocks.
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
        if (locate(b, &row, &col)) sink.put(row, col, out);
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

// `vectors` rows of order n: element e = vector n + position. A run is 2^log2_run of them, the matrix across is of the given order.
struct FeatureItem {
    Divisor octets_across;   // n / 8
    int n, vectors, rows, items;
    int log2_run, within_end, together, order;   // bits [0, within_end) are transformed within 256s
    const uint4* fragments;
    bool ahead;              // is there room for the next item?
};

template <int kTiles, typename Sink>
__global__ void __launch_bounds__(kRotateMostThreads) rotate_features_kernel(Sink sink, Rows<const bf16> x, FeatureItem item) {
    SHARED(float, shared);
    Exchange exchange = {shared, item.log2_run};
    int elements = item.vectors * item.n, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    bf16* arriving = (bf16*)(shared + elements);

    auto source = [&](int i, int octet, bool* inside) {
        int vector = (int)item.octets_across.quotient(octet), row = i * item.vectors + vector;
        *inside = octet * 8 < elements && row < item.rows;
        return *inside ? x[row] + (octet - vector * (int)item.octets_across.d) * 8 : x.data;
    };
    auto fetch = [&](int i) {
        for (int octet = threadIdx.x; octet * 8 < elements; octet += blockDim.x) {
            bool inside;
            const bf16* from = source(i, octet, &inside);
            cp_async16(arriving + octet * 8, from, inside);
        }
        cp_async_commit();
    };

    if (item.ahead) fetch(blockIdx.x);
    sink.begin();
    WithinSigns signs = within_signs(0, item.within_end);
    for (int i = blockIdx.x; i < item.items; i += gridDim.x) {
        cp_async_wait<0>();
        __syncthreads();   // the item is here, and the last one has left the exchange
        for (int group = warp; group * kRotateGroup * 256 < elements; group += warps) {
            Packed<8> octets[kRotateGroup];
            float v[kRotateGroup][8];
#pragma unroll
            for (int b = 0; b < kRotateGroup; b++) {
                int octet = (group * kRotateGroup + b) * kWarp + lane;
                bool inside = octet * 8 < elements;
                const bf16* from = item.ahead ? arriving + octet * 8 : source(i, octet, &inside);
                octets[b] = Packed<8>{{0, 0, 0, 0}};
                if (inside) octets[b] = load_packed<8>(from);
            }
            hadamard_blocks(v, octets, signs, item.together);
#pragma unroll
            for (int b = 0; b < kRotateGroup; b++) {
                int e = ((group * kRotateGroup + b) * kWarp + lane) * 8;
                if (e < elements) exchange.store_octet(e, v[b]);
            }
        }
        __syncthreads();   // from here on nothing of the item's x is read: y may be x
        if (item.ahead && i + (int)gridDim.x < item.items) fetch(i + gridDim.x);

        int run = 1 << item.log2_run, chunks = (item.order + kFragment * kTiles - 1) / (kFragment * kTiles);
        int units = elements / item.order / kWarp * chunks;   // 32 positions of the runs, and some rows of the matrix across
        for (int unit = warp; unit < units; unit += warps) {
            int first = unit / chunks * kWarp, in = first + lane / 4 * 4, out = first + lane % 4 * 8;
            int vector = in >> item.log2_run, row = i * item.vectors + (out >> item.log2_run), col = out & (run - 1);
            int from = vector * item.n + (in & (run - 1)) + lane % 4 * 2 * run, even = exchange.place(from), odd = exchange.place(from + run);
            auto load = [&](int g) { return exchange.load((g & 1 ? odd : even) + (g & ~7) * run); };
            auto put = [&](int g, const Values<8>& v) {
                if (row < item.rows) sink.put(row, col + g * run, v);
            };
            hadamard_across<kTiles>(item.fragments, item.order, unit % chunks * kTiles, 0, load, put);
        }
    }
    sink.finish();
}

// ---- launchers
template <int kTiles>
static bool launch_rotate_features(const RotateJob& job, FeatureItem item, size_t bytes) {
    int groups = ceil_div(item.n * item.vectors, 256 * kRotateGroup);
    int threads = min_int(bytes * 2 > shared_limit() ? kRotateMostThreads : kRotateThreads, groups * kWarp);
    return with_sink(job, [&](auto sink) {
        int blocks = resident_clusters(rotate_features_kernel<kTiles, decltype(sink)>, 1, threads, bytes);
        LAUNCH((rotate_features_kernel<kTiles, decltype(sink)>), min_int(item.items, blocks), threads, bytes, sink, rows_of<const bf16>(job.x),
               item);
        return true;
    });
}

// False if the shape is not for tensor cores.
static bool rotate_features(const RotateJob& job) {
    int n = job.n, K0 = hadamard_base_order(n), run = n / K0;
    if (job.axis != ROTATE_COLS || job.x.fmt != BF16 || !is_octets(job.x) || run < (K0 == 1 ? 8 : 16)) return false;
    if (K0 == 1 && n <= 4096) return n <= 2048 ? launch_rotate_warp<8>(job) : launch_rotate_warp<16>(job);

    // Of the run's bits, 8 are done within 256 elements, two by additions between 256s, and the others across.
    int outer = max_int(0, floor_log2(run) - 8), doublings = K0 == 1 ? max_int(4, outer - 2) : max_int(0, outer - 2);
    int order = K0 << doublings, vectors = 1;
    if (doublings >= kAcrossDoublings || (doublings && order > kAcrossMost)) return false;
    run >>= doublings;
    // Whole groups of 32 positions, and enough for every warp; the next item beside this one if that leaves room for a second block, or
    // if there is none anyway.
    auto elements = [&] { return (size_t)vectors * (size_t)n; };
    while (elements() < kRotateElements || elements() % 256 || elements() / (size_t)order % kWarp) vectors *= 2;
    FeatureItem item = {divisor(n / 8), n, vectors, job.x.rows, ceil_div(job.x.rows, vectors), floor_log2(run), min_int(8, floor_log2(run)),
                        max_int(1, run / 256), order, rotate_signs()->across[hadamard_base_index(K0)][doublings][!job.transpose], true};
    size_t bytes = elements() * (sizeof(float) + sizeof(bf16));
    if (bytes > shared_limit()) {
        item.ahead = false;
        bytes = elements() * sizeof(float);
    }
    if (bytes > shared_limit()) return false;
    return order <= 2 * kFragment ? launch_rotate_features<2>(job, item, bytes) : launch_rotate_features<4>(job, item, bytes);
}

#endif
