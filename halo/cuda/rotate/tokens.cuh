// H x of columns of bf16 on tensor cores: the token axis.
//
// Bytes an element: 2 read, and 2 (bf16), 1 (codes) or none (the maximum) written, each once: the floor of the operation.
//
// An item is a strip of 32 columns, 64 bytes of each row: strips of 16 take 1.2 times as long, and more where results are written, since
// memory moves 64 bytes at a time. 8192 tokens of a strip are 512 KB, so a cluster of up to eight blocks shares an item (sm_90 and later):
// each block loads and transforms 1024 tokens within runs, and after a barrier sums some of the positions across the runs of all blocks,
// which it reads in those blocks' shared memory. With S blocks (S - 1) / S of all values cross between multiprocessors, in FP16: 1.75
// bytes an element at S = 8. Smaller items need no cluster.
//
//   within   a block's tokens arrive as 16-byte pieces of rows; ldmatrix turns 16 tokens of 8 columns into an operand that is multiplied
//            by signs, exactly: up to 64 tokens by products. Additions between 64s do up to 2 more bits: runs of up to 256 tokens. A
//            warp transforms 256 tokens of 8 columns, and rounds the sums once to FP16, in place of what has arrived.
//   across   products of signs and FP16, over runs of 256 tokens: order 32 for 8192.
//
// FP16's range: 256 tokens of 32 columns (a chunk) have one exponent, that of their largest magnitude, and are multiplied by the power
// of two that keeps all possible sums below 2^15: this power is part of the signs within. The signs across carry each chunk's exponent
// relative to the largest, which goes to the sink as its unit. So the one rounding errs by 2^-12 of each value, whatever the magnitudes. A
// column with a NaN or an infinity gives what FP32 would give, but the finite columns of its chunk may lose their values.
//
// 64 KB a block, so that three blocks fit a multiprocessor and the others work while one waits for its next item. (Two buffers a block, and
// half as many tokens or blocks, are no faster.) Of orders beyond 32 two blocks fit, for lack of registers. The time above the floor goes to
// barriers and memory latency: instructions are issued in a quarter of the cycles.
#ifndef HALO_CUDA_ROTATE_TOKENS_CUH
#define HALO_CUDA_ROTATE_TOKENS_CUH

#include "hadamard_warp.cuh"
#include "exact.cuh"

enum {
    kTokenColumns = 32,       // of an item
    kTokenOctets = kTokenColumns / 8,
    kTokenChunk = 256,        // tokens that a warp transforms at once, of 8 columns
    kTokenThreads = 256, kTokenWarps = kTokenThreads / kWarp,
    kTokenFetch = 128,        // tokens that a warp fetches at once
    kTokenLocal = 1024,       // tokens of a block, with which three blocks fit a multiprocessor
    kTokenLocalMost = 2048,   // tokens of a block, with which one does
    kTokenSignTiles = 4,      // signs across of up to 64 x 64 are copied to shared memory
    kTokenLeastExponent = 14, // of a chunk: smaller ones would ask for factors that bf16 does not have
    kMostClusterBlocks = 8
};

// An item: `vectors` vectors of n tokens, one after the other in a column. A vector has `order` runs of 2^run_bits tokens; each of the
// cluster's blocks holds `runs` neighbouring runs, an even number.
struct TokenItem {
    int n, vectors, local;      // local: tokens of a block
    int run_bits, order, runs;
    const uint4* fragments;
    int blocks, items;
    Divisor items_across;
    int x_rows, y_rows, cols;
};

// A block's shared memory: an item in bf16 and then FP16, and beside it what the sum across needs to know of the runs. After each run eight
// values are skipped, and every two rows of eight have their octets in another of four orders: so reading an octet of eight rows, or four
// columns of a row in each of four runs two apart, is free of bank conflicts.
#if HALO_CLUSTERS
typedef ClusterAddress RunAddress;   // of a run's first position
#else
typedef uint32_t RunAddress;
#endif
struct TokenLayout {
    int chunks, padded;       // chunks of a block; runs, up to whole fragments
    int signs, signs_end, within, exponents, of_octet, scales, bytes;   // byte offsets of the parts; their sum
    explicit TokenLayout(const TokenItem& item) {
        chunks = (item.local + kTokenChunk - 1) / kTokenChunk;
        int rows = chunks * kTokenChunk;
        padded = (item.order + kFragment - 1) / kFragment * kFragment;
        int tiles = padded / kFragment;
        signs = (rows * kTokenColumns + (rows >> item.run_bits) * 8) * (int)sizeof(bf16);
        // A copy of the signs across, if it is small enough: waiting for a cluster empties the L1 cache.
        signs_end = signs + (tiles <= kTokenSignTiles ? tiles * tiles * kWarp * (int)sizeof(uint4) : 0);
        within = signs_end + (item.blocks > 1 ? (padded / 2 + max_int(padded, kWarp)) * (int)sizeof(RunAddress) : 0);   // the signs
        exponents = within + kWarp * (int)sizeof(uint32_t);                                         // of the chunks
        of_octet = exponents + (int)round_up((size_t)chunks, 4) * (int)sizeof(int);   // of 8 columns of the chunks
        scales = of_octet + kTokenOctets * chunks * (int)sizeof(int);                 // each warp's, of the runs, in FP16
        bytes = scales + kTokenWarps * padded * (int)sizeof(uint16_t);
    }
};

// 2^-down in FP16, as bits; zero if FP16 has no such value.
__device__ inline uint32_t half_power(int down) {
    return down < 15 ? (uint32_t)(15 - down) << 10 : down < 25 ? 1u << (24 - down) : 0;
}

// Four neighbouring positions in two neighbouring runs, in FP16.
struct TwoHalfRuns {
    uint2 even, odd;
};

// 32 positions of the runs, through 16-row tiles [first_tile, first_tile + kTiles) of the matrix across: hadamard_across for FP16 values.
// scales: of the runs, two to a word, zero from `order` on, where load() may give any value of these positions. kTiles 1 and 2 are all tiles.
template <int kTiles, typename Load, typename Put>
__device__ inline void hadamard_across_halves(const uint4* fragments, const uint32_t* scales, int order, int first_tile, int first_step,
                                              const Load& load, const Put& put) {
    int lane = threadIdx.x % kWarp, tiles = kTiles <= 2 ? kTiles : (order + kFragment - 1) / kFragment;
    float sum[kTiles][4][4];   // [tile][position in four][mma]
    auto load_step = [&](TwoHalfRuns (&two)[2], int step) {   // [half of 16 runs]
        two[0] = load(step * kFragment + lane % 4 * 2);
        two[1] = load(step * kFragment + 8 + lane % 4 * 2);
    };
    auto add = [&](const TwoHalfRuns (&two)[2], int step, bool first) {
        uint32_t scale[2] = {scales[step * 8 + lane % 4], scales[step * 8 + 4 + lane % 4]};
        uint32_t sign[kTiles][4];
#pragma unroll
        for (int r = 0; r < kTiles; r++) {   // beyond the last tile its signs serve again: the result is not put
            uint4 a = fragments[(min(first_tile + r, tiles - 1) * tiles + step) * kWarp + lane];
            sign[r][0] = (a.x & 0x80008000u) | scale[0];
            sign[r][1] = (a.y & 0x80008000u) | scale[0];
            sign[r][2] = (a.z & 0x80008000u) | scale[1];
            sign[r][3] = (a.w & 0x80008000u) | scale[1];
        }
#pragma unroll
        for (int t = 0; t < 4; t++) {
            unsigned which = t % 2 ? 0x7632 : 0x5410;
            uint32_t b0 = t < 2 ? __byte_perm(two[0].even.x, two[0].odd.x, which) : __byte_perm(two[0].even.y, two[0].odd.y, which);
            uint32_t b1 = t < 2 ? __byte_perm(two[1].even.x, two[1].odd.x, which) : __byte_perm(two[1].even.y, two[1].odd.y, which);
#pragma unroll
            for (int r = 0; r < kTiles; r++) {
                if (first) mma_f16_first(sum[r][t], sign[r], b0, b1);
                else mma_f16(sum[r][t], sign[r], b0, b1);
            }
        }
    };
    TwoHalfRuns two[2];
    load_step(two, first_step);
    if constexpr (kTiles == 2) {   // the second step's values are loaded during the first step
        TwoHalfRuns last[2];
        load_step(last, 1 - first_step);
        add(two, first_step, true);
        add(last, 1 - first_step, false);
    } else {
        add(two, first_step, true);
        for (int n = 1, step = first_step; n < tiles; n++) {
            step = step + 1 == tiles ? 0 : step + 1;
            load_step(two, step);
            add(two, step, false);
        }
    }
    put_octets<kTiles>(sum, first_tile, put);
}

struct Corner {   // of an item
    int row, col;
};

// Where octet `octet` of a token's 32 columns lies in shared memory.
__device__ inline int token_place(int token, int octet, int run_bits) {
    return token * kTokenColumns + (token >> run_bits) * 8 + (octet ^ (token >> 1 & 3)) * 8;
}

// Transforms 256 tokens of 8 columns, in place, by a warp; three more warps take the chunk's other columns. Returns the chunk's exponent.
// kRunBits: 8, or any number of them (0). all_signs: of 16 tokens, each lane's; the sign bits of pair r from
// bits 15 - r and 31 - r on. They are read from memory because some pairs are equal, and the compiler would copy equal ones again and again.
template <int kRunBits>
__device__ inline int tokens_within(bf16* buffer, int* of_octet, int chunk, int octet, int any_bits, const uint32_t* all_signs) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, run_bits = kRunBits ? kRunBits : any_bits;
    auto skipped = [&](int tokens) { return (tokens >> run_bits) * 8; };
    uint32_t in[8][4];   // of 32 tokens each
    const bf16* from = buffer + token_place(chunk * kTokenChunk + lane, octet, run_bits);
#pragma unroll
    for (int i = 0; i < 8; i++) ldmatrix<true>(in[i], from + i * 32 * kTokenColumns + skipped(i * 32));
    uint32_t pair = in[0][0];
#pragma unroll
    for (int i = 1; i < 32; i++) pair = larger_pair_bf16(pair, in[i / 4][i % 4]);
    int exponent = __reduce_max_sync(0xffffffffu, (int)max(pair >> 7 & 0xffu, pair >> 23 & 0xffu));
    if (lane == 0) of_octet[chunk * kTokenOctets + octet] = exponent;
    named_barrier_sync(1 + warp / kTokenOctets, kTokenOctets * kWarp);
    uint4 all = *(const uint4*)(of_octet + chunk * kTokenOctets);
    exponent = (int)max(max(max(all.x, all.y), max(all.z, all.w)), (uint32_t)kTokenLeastExponent);

    uint32_t plus[4], minus[4], signs = all_signs[lane], power = (uint32_t)(268 - run_bits - exponent);   // sums are below 2^(run_bits + exponent - 126)
#pragma unroll
    for (int r = 0; r < 4; r++) {
        plus[r] = (signs << r & 0x80008000u) | power << 7 | power << 23;
        minus[r] = plus[r] ^ 0x80008000u;
    }
    bf16* to = buffer + token_place(chunk * kTokenChunk + lane / 16 * 64 + lane % 16, octet, run_bits);
#pragma unroll
    for (int out = 0; out < 4; out++) {   // output of 16 tokens out of each 64
        float v[4][4];
#pragma unroll
        for (int quad = 0; quad < 4; quad++) {
            auto block = [&](int k) { return &in[quad * 2 + k / 2][k % 2 * 2]; };   // operand of 16 tokens
            auto add = [&](int k, const uint32_t (&a)[4]) { mma_bf16(v[quad], a, block(k)[0], block(k)[1]); };
            if (run_bits > 5) {
                // Each sum begins with another block: the compiler would keep common beginnings in registers, of which there are too few.
                mma_bf16_first(v[quad], (out ^ out >> 1) & 1 ? minus : plus, block(out)[0], block(out)[1]);
                add(out ^ 1, out & 2 ? minus : plus);
                add(out ^ 2, out & 1 ? minus : plus);
                add(out ^ 3, plus);
            } else if (run_bits == 5) {
                mma_bf16_first(v[quad], plus, block(out & 2)[0], block(out & 2)[1]);
                add(out | 1, out & 1 ? minus : plus);
            } else {
                mma_bf16_first(v[quad], plus, block(out)[0], block(out)[1]);
            }
        }
        if (run_bits > 6) add_blocks(v, 1 << (run_bits - 6));
#pragma unroll
        for (int two = 0; two < 2; two++) {   // pairs of 64s
            uint32_t halves[4];
#pragma unroll
            for (int r = 0; r < 4; r++) halves[r] = pack_f16(v[two * 2 + r / 2][r % 2 * 2], v[two * 2 + r / 2][r % 2 * 2 + 1]);
            stmatrix(to + (out * 16 + two * 128) * kTokenColumns + skipped(out * 16) + skipped(two * 128), halves);
        }
    }
    return exponent;
}

// Load: starts the copy of a block's tokens of an item into shared memory; tokens outside of the matrix are zero. rank: the block's number
// among those that share the item; rows: whole chunks.
__device__ inline void tokens_fetch(bf16* buffer, const Rows<const bf16>& x, const TokenItem& item, Corner corner, int rank, int rows,
                                    int run_bits) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int octet = lane % kTokenOctets, col = corner.col + octet * 8, row = corner.row + rank * item.local;
    int inside = col < item.cols ? min(item.local, item.x_rows - row) : 0;
    for (int first = warp * kTokenFetch; first < rows; first += kTokenWarps * kTokenFetch) {
        int token = first + lane / kTokenOctets;
        const bf16* from = x[row + token] + col;
        if (first + kTokenFetch <= inside && run_bits >= 7) {   // 128 tokens of one run
            cp_async_many(buffer + token_place(token, octet, run_bits), from, 8 * kTokenColumns * (int)sizeof(bf16), 8 * x.ld * sizeof(bf16),
                          kTokenFetch / 8);
        } else {
            for (int t = token; t < first + kTokenFetch; t += 8, from += 8 * x.ld)
                cp_async16(buffer + token_place(t, octet, run_bits), from, t < inside);
        }
    }
    cp_async_commit();
}

// This lane's signs of 16 tokens, as tokens_within takes them.
__device__ inline uint32_t signs_within() {
    uint32_t fragment[4], packed = 0;
    partial_hadamard(fragment, 15);
    for (int r = 0; r < 4; r++) packed |= (fragment[r] & 0x80008000u) >> r;
    return packed;
}

// Transform: all chunks of a block within their runs, in place, and the exponent of each.
template <int kRunBits>
__device__ inline void item_within(bf16* buffer, int* of_octet, int* exponents, int chunks, int run_bits, const uint32_t* signs) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    for (int unit = warp; unit - warp < kTokenOctets * chunks; unit += kTokenWarps) {
        int chunk = unit / kTokenOctets, octet = unit % kTokenOctets;
        if (chunk >= chunks) {   // four warps without a chunk: racecheck wants the barriers of all warps to be as many
            named_barrier_sync(1 + warp / kTokenOctets, kTokenOctets * kWarp);
            continue;
        }
        int exponent = tokens_within<kRunBits>(buffer, of_octet, chunk, octet, run_bits, signs);
        if (octet == 0 && lane == 0) exponents[chunk] = exponent;
    }
}

// kRunBits: 8, or any number of them (0).
template <int kTiles, bool kCluster, int kRunBits, typename Sink>
__global__ void __launch_bounds__(kTokenThreads, kTiles > 2 ? 2 : 3) rotate_tokens_kernel(Sink sink, Rows<const bf16> x, TokenItem item,
                                                                                           TokenLayout layout) {
#if !HALO_CLUSTERS
    if (kCluster) __trap();
#endif
    SHARED(char, shared);
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, rank = 0;
    int run_bits = kRunBits ? kRunBits : item.run_bits, tokens = 1 << run_bits, run_stride = tokens * kTokenColumns + 8, rows = layout.chunks * kTokenChunk;
    bf16* buffer = (bf16*)shared;
    int* exponents = (int*)(shared + layout.exponents);
    int* of_octet = (int*)(shared + layout.of_octet);
    uint32_t* signs = (uint32_t*)(shared + layout.within);
    uint16_t* scales = (uint16_t*)(shared + layout.scales) + warp * layout.padded;
    auto sync = [&] {   // of all blocks that share an item
#if HALO_CLUSTERS
        if (kCluster) cluster_sync_shared();
#endif
        if (!kCluster) __syncthreads();
    };
    uint4* copied = (uint4*)(shared + layout.signs);
    int copies = (layout.signs_end - layout.signs) / (int)sizeof(uint4);
    for (int f = threadIdx.x; f < copies; f += kTokenThreads) copied[f] = item.fragments[f];
    const uint4* fragments = kTiles <= 2 || copies ? copied : item.fragments;
#if HALO_CLUSTERS
    RunAddress* pairs = (RunAddress*)(shared + layout.signs_end);   // where each two runs begin
    RunAddress* run_exponents = pairs + layout.padded / 2;          // and the exponent of each run's chunk
    if (kCluster) {
        rank = cluster_rank();
        for (int g = threadIdx.x; g < max(layout.padded, (int)kWarp); g += kTokenThreads) {
            int block = g < item.order ? g / item.runs : 0, inside = g < item.order ? g - block * item.runs : 0;
            if (g % 2 == 0 && g < layout.padded) pairs[g / 2] = cluster_address(buffer + inside * run_stride, block);
            run_exponents[g] = cluster_address(exponents + (inside << run_bits) / kTokenChunk, block);
        }
    }
    int first_step = rank % (layout.padded / kFragment);   // of the sum across: blocks begin at different steps, and so read different blocks
#endif

    auto locate = [&](int i) {
        int down = (int)item.items_across.quotient(i);
        return Corner{down * item.vectors * item.n, (i - down * (int)item.items_across.d) * kTokenColumns};
    };
    auto fetch = [&](Corner corner) { tokens_fetch(buffer, x, item, corner, rank, rows, run_bits); };

    if (warp == 0) signs[lane] = signs_within();

    int first = blockIdx.x / item.blocks, step = gridDim.x / item.blocks;
    Corner corner = locate(first);
    fetch(corner);
    sink.begin();
    for (int i = first; i < item.items; i += step) {
        cp_async_wait<0>();
        __syncthreads();   // the item has arrived
        item_within<kRunBits>(buffer, of_octet, exponents, layout.chunks, run_bits, signs);
        sync();   // from here on nothing of the item's x is read: y may be x

        // The runs' scales, and the unit of their sums.
        auto rescale = [&](int vector) {
            auto exponent_of = [&](int g) {
#if HALO_CLUSTERS
                if (kCluster) return cluster_load_int(run_exponents[g]);
#endif
                return exponents[(vector * item.n + (min(g, item.order - 1) << run_bits)) / kTokenChunk];
            };
            int last = exponent_of(lane), largest = lane < item.order ? last : 0;   // of this lane's runs, one after the other
#pragma unroll 1
            for (int g = kWarp + lane; kTiles > 2 && g < item.order; g += kWarp) largest = max(largest, exponent_of(g));
            largest = __reduce_max_sync(0xffffffffu, largest);
#pragma unroll 1
            for (int g = lane; g < layout.padded; g += kWarp) {
                if (kTiles > 2) last = exponent_of(g);
                scales[g] = (uint16_t)(g < item.order ? half_power(largest - last) : 0);
            }
            __syncwarp();
            sink.unit(f32_from_bits((uint32_t)(largest + run_bits - 14) << 23));   // 2^(largest + run_bits - 141)
        };
        int scaled = -1;   // the vector
        if (kCluster) rescale(scaled = 0);
        for (int tile = 0; tile * kFragment < item.order; tile += kTiles) {
            // 32 positions of the runs: the columns of a token of each.
            for (int group = warp * item.blocks + rank; group < item.vectors * tokens; group += kTokenWarps * item.blocks) {
                int vector = kCluster ? 0 : group >> run_bits, token = group & (tokens - 1);
                if (vector != scaled) rescale(scaled = vector);
                int in = token_place(token, lane / 8, 30) + lane / 4 % 2 * 4;
                int row = corner.row + vector * item.n + token, col = corner.col + lane % 4 * 8;
                int inside = col < item.cols ? min(item.order, (item.y_rows - row + tokens - 1) >> run_bits) : 0;   // runs
                size_t to = sink.at(row, col);
                auto put = [&](int g, const Values<8>& values) {
                    if (g < inside) sink.put(to + g * (tokens * sink.ld()), values);
                };
                if (kCluster) {
#if HALO_CLUSTERS
                    int from = in * (int)sizeof(bf16);
                    auto load = [&](int g) {
                        ClusterAddress even = pairs[g / 2] + from;
                        return TwoHalfRuns{cluster_load(even), cluster_load(even + run_stride * (int)sizeof(bf16))};
                    };
                    hadamard_across_halves<kTiles>(fragments, (const uint32_t*)scales, item.order, tile, first_step, load, put);
#endif
                } else {
                    const bf16* from = buffer + vector * item.order * run_stride + in;
                    auto load = [&](int g) {
                        const bf16* even = from + min(g, item.order - 2) * run_stride;
                        return TwoHalfRuns{*(const uint2*)even, *(const uint2*)(even + run_stride)};
                    };
                    hadamard_across_halves<kTiles>(fragments, (const uint32_t*)scales, item.order, tile, 0, load, put);
                }
            }
        }
        sync();   // all blocks have read this block's values
        corner = locate(i + step);
        if (i + step < item.items) fetch(corner);
    }
    sink.finish();
}

// ---- launchers
// False if no such cluster fits the device.
template <int kTiles, bool kCluster, int kRunBits>
static bool launch_rotate_tokens_of(const RotateJob& job, const TokenItem& item) {
    TokenLayout layout(item);
    size_t bytes = (size_t)layout.bytes;
    if (bytes > shared_limit()) return false;
    return with_sink(job, [&](auto sink) {
        int clusters = resident_clusters(rotate_tokens_kernel<kTiles, kCluster, kRunBits, decltype(sink)>, item.blocks, kTokenThreads, bytes);
        if (clusters == 0) return false;
        int blocks = min_int(item.items, clusters) * item.blocks;
        if constexpr (kCluster)
            LAUNCH_CLUSTERS((rotate_tokens_kernel<kTiles, kCluster, kRunBits, decltype(sink)>), item.blocks, blocks, kTokenThreads, bytes, sink,
                            rows_of<const bf16>(job.x), item, layout);
        else
            LAUNCH((rotate_tokens_kernel<kTiles, kCluster, kRunBits, decltype(sink)>), blocks, kTokenThreads, bytes, sink, rows_of<const bf16>(job.x), item,
                   layout);
        return true;
    });
}

template <int kTiles>
static bool launch_rotate_tokens(const RotateJob& job, const TokenItem& item) {
    if (item.blocks == 1) return launch_rotate_tokens_of<kTiles, false, 0>(job, item);
    if (item.run_bits != 8) return launch_rotate_tokens_of<kTiles, true, 0>(job, item);
    return launch_rotate_tokens_of<kTiles, true, 8>(job, item);
}

// False, with nothing done, if the shape is not one for this kernel, or does not fit.
static bool rotate_tokens(const RotateJob& job) {
    int n = job.n, K0 = hadamard_base_order(n), run = n / K0, doublings = 0, rows = max_int(job.x.rows, job.y.rows);
    if (job.axis != ROTATE_ROWS || job.step != 1 || job.x.fmt != BF16 || !is_octets(job.x)) return false;
    // Across: the base order, or 16 for powers of two (256 tokens are 16 runs of 16, which fill a product), and all bits beyond 8 within.
    if (K0 == 1) doublings = 4;
    while (run >> doublings > kTokenChunk) doublings++;
    if (doublings >= kAcrossDoublings || run >> doublings < 16 || (doublings && K0 << doublings > kAcrossMost)) return false;
    run >>= doublings;

    TokenItem item = {};
    item.n = n;
    item.order = K0 << doublings;
    item.run_bits = floor_log2(run);
    item.fragments = rotate_signs()->across[hadamard_base_index(K0)][doublings][job.transpose];
    item.x_rows = job.x.rows;
    item.y_rows = job.y.rows;
    item.cols = job.x.cols;
    // The fewest blocks with at most kTokenLocal tokens each, or else with at most kTokenLocalMost.
    int most_blocks = gpu_device().clusters ? kMostClusterBlocks : 1;
    for (int share = kTokenLocal; share <= kTokenLocalMost; share *= 2) {
        for (item.blocks = 1; item.blocks <= most_blocks; item.blocks++) {
            if (item.order % (2 * item.blocks) || n / item.blocks > share) continue;   // two neighbouring runs are in one block
            item.vectors = 1;
            while (item.blocks == 1 && item.vectors * n * 2 <= share && item.vectors * n < rows) item.vectors *= 2;
            item.runs = item.order / item.blocks;
            item.local = item.vectors * n / item.blocks;
            item.items_across = divisor(ceil_div(job.x.cols, kTokenColumns));
            item.items = (int)item.items_across.d * ceil_div(rows, item.vectors * n);
            bool launched = item.order <= kFragment       ? launch_rotate_tokens<1>(job, item)
                            : item.order <= 2 * kFragment ? launch_rotate_tokens<2>(job, item)
                                                          : launch_rotate_tokens<4>(job, item);
            if (launched) return true;
        }
    }
    return false;
}

#endif
