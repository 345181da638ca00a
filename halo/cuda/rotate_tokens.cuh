// H x of columns of bf16 on tensor cores (hadamard_warp.cuh): the token axis.
//
// Bytes an element: 2 read, and 2 (bf16), 1 (codes) or none (the maximum) written, each once: the floor of the operation.
//
// An item is a strip of 16 columns, 32 bytes of each row: the least that memory moves. 8192 tokens of it are 512 KB of FP32, so a
// cluster of up to eight blocks shares an item (sm_90 and later): each loads and transforms 1024 tokens of its own, and after a
// barrier sums a share of the positions across the runs of all blocks, from where they lie. Of a cluster of S blocks each value crosses
// between multiprocessors (S - 1) / S times: 3.5 bytes an element at S = 8, which at 2.6 TB/s is 0.75e12 elements a second, three
// quarters of the rate of codes (3 bytes) at 3 TB/s and half of that of a maximum. Smaller items need no cluster.
//
//   within   a block's tokens arrive as 16-byte halves of rows; ldmatrix turns 16 tokens of 8 columns into an operand that is multiplied
//            by signs, exactly: 64 tokens by the 64 x 64 of the lowest 6 bits. Additions between 64s do up to 2 more: runs of up to 256
//            tokens. Runs of 16 and 32 have products of 16 and additions.
//   across   as for features, over runs of 256 tokens: order 32 for 8192.
// Two blocks of 96 KB a multiprocessor, each with its next item on its way from memory while it sums this one: 4 bytes an element of
// shared memory for FP32, 2 for what is on its way. Instructions an element: 0.75 to load, 5 within and to
// store, 10 across, and the sink.
#ifndef HALO_CUDA_ROTATE_TOKENS_CUH
#define HALO_CUDA_ROTATE_TOKENS_CUH

#include "hadamard_warp.cuh"
#include "rotate_exact.cuh"

enum {
    kTokenColumns = 16,       // of an item
    kTokenChunk = 256,        // tokens that a warp transforms at once, of 8 columns
    kTokenThreads = 256, kTokenMostThreads = 512,
    kTokenLocal = 1024,       // tokens of a block, so that two blocks fit a multiprocessor,
    kTokenLocalMost = 2048,   //   or one
    kMostClusterBlocks = 8
};

// `vectors` runs of n tokens, one after the other in a column. Run g of `order` is 2^log2_run elements (tokens times columns) long;
// each of the cluster's blocks holds `runs` neighbouring ones.
struct TokenItem {
    int n, vectors, local;      // local: tokens of a block
    int log2_run, order, runs;
    const uint4* fragments;
    int blocks, items, items_across;
    int x_rows, y_rows, cols;
};

__host__ __device__ inline int token_rows(int local) { return (local + kTokenChunk - 1) / kTokenChunk * kTokenChunk; }

#if HALO_CLUSTERS
typedef ClusterAddress RunAddress;   // of a run's first position
#else
typedef uint32_t RunAddress;
#endif

template <int kTiles, bool kCluster, typename Sink>
__global__ void __launch_bounds__(kTokenMostThreads) rotate_tokens_kernel(Sink sink, Rows<const bf16> x, TokenItem item) {
#if !HALO_CLUSTERS
    if (kCluster) __trap();
#endif
    SHARED(float, shared);
    Exchange exchange = {shared, item.log2_run};
    int rows = token_rows(item.local), lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    bf16* arriving = (bf16*)((char*)shared + Exchange::bytes(rows * kTokenColumns, item.log2_run));   // (rows, 2 halves of 8 columns)
    RunAddress* runs = (RunAddress*)(arriving + rows * kTokenColumns);
    int rank = 0, run = 1 << item.log2_run, run_bits = item.log2_run - 4, tokens = 1 << run_bits;
#if HALO_CLUSTERS
    if (kCluster) {
        rank = cluster_rank();
        for (int g = threadIdx.x; g < item.order; g += blockDim.x)
            runs[g] = cluster_address(shared + g % item.runs * exchange.stride(), g / item.runs);
    }
    int first_step = rank % ((item.order + kFragment - 1) / kFragment);   // of the sum across
#endif

    // The halves of four rows lie swapped, so that eight rows of a half are free of bank conflicts.
    auto half_of = [&](int token, int half) { return arriving + (token * 2 + (half ^ (token >> 2 & 1))) * 8; };
    auto first_row = [&](int i) { return i / item.items_across * item.vectors * item.n; };
    auto first_col = [&](int i) { return i % item.items_across * kTokenColumns; };
    auto fetch = [&](int i) {
        int token = threadIdx.x / 2, half = threadIdx.x % 2, step = blockDim.x / 2, col = first_col(i) + half * 8;
        int row = first_row(i) + rank * item.local, inside = col < item.cols ? min(item.local, item.x_rows - row) : 0;
        const bf16* from = x[row + token] + col;
        bf16* to = half_of(token, half);   // `step` is a multiple of 8
        if (inside >= rows) {
            cp_async_many(to, from, step * kTokenColumns * 2, step * x.ld * 2, rows / step);
        } else {
            for (; token < rows; token += step, from += step * x.ld, to += step * kTokenColumns) cp_async16(to, from, token < inside);
        }
        cp_async_commit();
    };

    int first = blockIdx.x / item.blocks, step = gridDim.x / item.blocks;
    fetch(first);
    sink.begin();
    uint32_t plus[4], minus[4];   // the signs of 16 tokens, and their opposites
    partial_hadamard(plus, 15);
    for (int i = 0; i < 4; i++) minus[i] = plus[i] ^ 0x80008000u;
    for (int i = first; i < item.items; i += step) {
        cp_async_wait<0>();
        __syncthreads();   // the item is here, and the last one has left this block's exchange
#if HALO_CLUSTERS
        if (kCluster && i != first) cluster_wait();   //   and no other block reads it
#endif
        for (int unit = warp; unit < rows / kTokenChunk * 2; unit += warps) {
            int chunk = unit / 2 * kTokenChunk, half = unit % 2;
            const bf16* from = half_of(chunk + lane, half);
            float v[16][4];
#pragma unroll
            for (int quad = 0; quad < 16; quad += 4) {   // 64 tokens
                uint32_t operand[2][4];
                ldmatrix<true>(operand[0], from + quad * 16 * kTokenColumns);
                ldmatrix<true>(operand[1], from + (quad + 2) * 16 * kTokenColumns);
#pragma unroll
                for (int out = 0; out < 4; out++) {
                    if (run_bits < 6) {
                        mma_bf16_first(v[quad + out], plus, operand[out / 2][out % 2 * 2], operand[out / 2][out % 2 * 2 + 1]);
                        continue;
                    }
                    mma_bf16_first(v[quad + out], plus, operand[0][0], operand[0][1]);
                    mma_bf16(v[quad + out], out & 1 ? minus : plus, operand[0][2], operand[0][3]);
                    mma_bf16(v[quad + out], out & 2 ? minus : plus, operand[1][0], operand[1][1]);
                    mma_bf16(v[quad + out], (out ^ out >> 1) & 1 ? minus : plus, operand[1][2], operand[1][3]);
                }
            }
            if (run_bits < 6) add_blocks(v, 1 << (run_bits - 4));
            else add_blocks<4>(v, 1 << (run_bits - 4));
            // 16 tokens belong to one run, and 8 leave the swizzle as it is.
            int e = (chunk + lane / 4) * kTokenColumns + half * 8 + lane % 4 * 2;
            float* to = shared + exchange.place(e);
#pragma unroll
            for (int b = 0; b < 16; b++) {
                float* at = to + b * 16 * kTokenColumns + (b >> (run_bits - 4)) * Exchange::kSkipped;
                *(float2*)at = make_float2(v[b][0], v[b][1]);
                *(float2*)(at + 8 * kTokenColumns) = make_float2(v[b][2], v[b][3]);
            }
        }
#if HALO_CLUSTERS
        if (kCluster) cluster_sync();
#endif
        if (!kCluster) __syncthreads();
        // From here on nothing of the item's x is read: y may be x.
        if (i + step < item.items) fetch(i + step);

        int first_token = first_row(i), first_column = first_col(i), groups = item.vectors * run / kWarp;   // of 32 positions: two tokens
        for (int group = warp * item.blocks + rank, tile = 0;; group += warps * item.blocks) {
            for (; group >= groups; group -= groups) tile += kTiles;   // the next rows of the matrix across
            if (tile * kFragment >= item.order) break;
            int in = group * kWarp + lane / 4 * 4, out = group * kWarp + lane % 4 * 8;
            int row = first_token + (out >> item.log2_run) * item.n + (out & (run - 1)) / kTokenColumns;
            int col = first_column + out % kTokenColumns;
            int inside = col < item.cols ? min(item.order, (item.y_rows - row + tokens - 1) >> run_bits) : 0;   // runs
            size_t place = sink.at(row, col);
            auto put = [&](int g, const Values<8>& values) {
                if (g < inside) sink.put(place + g * (tokens * sink.ld()), values);
            };
            if (kCluster) {
#if HALO_CLUSTERS
                int from = exchange.place(in) * (int)sizeof(float);   // one vector: a position of run 0
                auto load = [&](int g) { return TwoRuns{cluster_load(runs[g] + from), cluster_load(runs[g + 1] + from)}; };
                hadamard_across<kTiles>(item.fragments, item.order, tile, first_step, load, put);
#endif
            } else {
                const float* from = shared + exchange.place((in >> item.log2_run) * (item.order * run) + (in & (run - 1)));
                auto load = [&](int g) {
                    const float* at = from + g * exchange.stride();
                    return TwoRuns{*(const float4*)at, *(const float4*)(at + exchange.stride())};
                };
                hadamard_across<kTiles>(item.fragments, item.order, tile, 0, load, put);
            }
        }
#if HALO_CLUSTERS
        if (kCluster) {   // of what a sink stores nothing is still being read; else the release sees to it
            if (Sink::kStores) cluster_arrive_relaxed();
            else cluster_arrive();
        }
#endif
    }
#if HALO_CLUSTERS
    if (kCluster) cluster_wait();   // others may still read this block's exchange
#endif
    sink.finish();
}

// ---- launchers
// False if no such cluster fits the device.
template <int kTiles, bool kCluster>
static bool launch_rotate_tokens(const RotateJob& job, const TokenItem& item) {
    int arriving = token_rows(item.local) * kTokenColumns;
    size_t bytes = Exchange::bytes(arriving, item.log2_run) + (size_t)arriving * sizeof(bf16);
    if (kCluster) bytes += (size_t)item.order * sizeof(RunAddress);
    if (bytes > shared_limit()) return false;
    int threads = bytes * 2 > shared_limit() ? kTokenMostThreads : kTokenThreads;
    return with_sink(job, [&](auto sink) {
        int clusters = resident_clusters(rotate_tokens_kernel<kTiles, kCluster, decltype(sink)>, item.blocks, threads, bytes);
        if (clusters == 0) return false;
        int blocks = min_int(item.items, clusters) * item.blocks;
        if constexpr (kCluster)
            LAUNCH_CLUSTERS((rotate_tokens_kernel<kTiles, kCluster, decltype(sink)>), item.blocks, blocks, threads, bytes, sink,
                            rows_of<const bf16>(job.x), item);
        else
            LAUNCH((rotate_tokens_kernel<kTiles, kCluster, decltype(sink)>), blocks, threads, bytes, sink, rows_of<const bf16>(job.x), item);
        return true;
    });
}

// False if the shape is not for tensor cores, or does not fit.
static bool rotate_tokens(const RotateJob& job) {
    int n = job.n, K0 = hadamard_base_order(n), run = n / K0, doublings = 0, rows = max_int(job.x.rows, job.y.rows);
    if (job.axis != ROTATE_ROWS || job.step != 1 || job.x.fmt != BF16 || !is_octets(job.x)) return false;
    // Across: the base order, or 16 (so that 16 tokens fill a product: 256 are one run of 16), and what exceeds 8 bits within.
    if (K0 == 1) doublings = 4;
    while (run >> doublings > kTokenChunk) doublings++;
    if (doublings >= kAcrossDoublings || run >> doublings < 16 || (doublings && K0 << doublings > kAcrossMost)) return false;
    run >>= doublings;

    TokenItem item = {};
    item.n = n;
    item.order = K0 << doublings;
    item.log2_run = floor_log2(run * kTokenColumns);
    item.fragments = rotate_signs()->across[hadamard_base_index(K0)][doublings][job.transpose];
    item.x_rows = job.x.rows;
    item.y_rows = job.y.rows;
    item.cols = job.x.cols;
    // The fewest blocks that leave each its share: of 1024 tokens, or else of 2048.
    int most_blocks = gpu_device().clusters ? kMostClusterBlocks : 1;
    for (int share = kTokenLocal; share <= kTokenLocalMost; share *= 2) {
        for (item.blocks = 1; item.blocks <= most_blocks; item.blocks++) {
            if (item.order % item.blocks || n / item.blocks > share) continue;
            item.vectors = 1;
            while (item.blocks == 1 && item.vectors * n * 2 <= share && item.vectors * n < rows) item.vectors *= 2;
            item.runs = item.order / item.blocks;
            item.local = item.vectors * n / item.blocks;
            item.items_across = ceil_div(job.x.cols, kTokenColumns);
            item.items = item.items_across * ceil_div(rows, item.vectors * n);
            bool few = item.order <= 2 * kFragment, fits;
            if (item.blocks > 1) fits = few ? launch_rotate_tokens<2, true>(job, item) : launch_rotate_tokens<4, true>(job, item);
            else fits = few ? launch_rotate_tokens<2, false>(job, item) : launch_rotate_tokens<4, false>(job, item);
            if (fits) return true;
        }
    }
    return false;
}

#endif
