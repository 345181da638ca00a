// What the program's own product kernels share: the description of a product, the order of its tiles, how several blocks share a
// tile, and how a tile's sums are stored to C.
//
// Every tensor-core instruction used here leaves its sums in one layout: lane l holds, of row l / 4 (and l / 4 + 8), columns
// 2 (l % 4) and 2 (l % 4) + 1 of each 8-wide block. Four blocks, 32 columns, are stored at a time: in BF16 the four lanes of
// a row swap words, so that each stores 16 bytes and a row gets 64 neighbouring bytes; in F32 a pair is 8 bytes and a row's four
// pairs fill a 32-byte sector without swapping.
#ifndef HALO_CUDA_GEMM_TILE_CUH
#define HALO_CUDA_GEMM_TILE_CUH

#include "../ptx.cuh"

struct GemmSide {
    const void* data;           // (rows, K), or (K, rows) when transposed
    int rows, ld;
    Fmt fmt;
    bool transposed;
    bool aligned;               // every row of data starts at a multiple of 16 bytes
    float factor;               // of every value, where scale is NULL
    const float* scale;         // row i has scale[i * scale_step]
    int scale_step;             // 1 PER_ROW, 0 PER_TENSOR
    const float* block_scale;   // PER_BLOCK32, else NULL
    int block_row_step, block_k_step;
};

struct Gemm {
    GemmSide a, b;
    void* c;                    // (M, N)
    int M, N, K, ldc;
    Fmt c_fmt;
    bool c_aligned;             // every row of c starts at a multiple of 16 bytes
    float beta;
    int splits;                 // stretches of K that are summed apart (see split_sum); 1: none
    int4* partials;             // their sums
    unsigned* arrived;          // (kSplitCounters) zeros between two products
};

__host__ __device__ inline int tiles_over(int n, int tile) { return (n - 1) / tile + 1; }

// ---- the order of tiles: down a group of rows, then on to the next column, so that the tiles at work at one time share
// operands in the L2
enum { kTileGroup = 8 };
struct TileAt {
    int m, n;
};
__device__ inline TileAt tile_at(int index, int tiles_m, int tiles_n) {
    int first = index / (kTileGroup * tiles_n) * kTileGroup, within = index - first * tiles_n;
    int height = min((int)kTileGroup, tiles_m - first);
    return {first + within % height, within / height};
}

// ---- K in stretches. With fewer tiles than multiprocessors several blocks share a tile of INT8 sums: each sums a stretch of K and stores
// its sums, and the last to arrive adds up those of all and goes on to C. Integer sums do not depend on the order. No block waits for
// another, which might not run yet.

// The steps of a stretch are those from split_step(split) to split_step(split + 1).
__device__ inline int split_step(const Gemm& g, int steps, int split) { return steps * split / g.splits; }

// `threads` threads, of which this is number `thread`, hold part `part` of C in `sum`, over stretch `split` of K. True for the last of the
// part's g.splits groups of threads to arrive: sum is then over all of K. `barrier` is the group's own, and so is *ticket, in shared memory.
template <int kCount>
__device__ inline bool split_sum(int (&sum)[kCount], const Gemm& g, int part, int split, int thread, int threads, int barrier, unsigned* ticket) {
    const int kFours = kCount / 4;
    if (g.splits == 1) return true;
    int4* sums = g.partials + (size_t)part * g.splits * kFours * threads + thread;
    int4* mine = sums + (size_t)split * kFours * threads;
#pragma unroll
    for (int i = 0; i < kFours; i++) __stcg(mine + i * threads, make_int4(sum[4 * i], sum[4 * i + 1], sum[4 * i + 2], sum[4 * i + 3]));
    named_barrier_sync(barrier, threads);
    if (thread == 0) *ticket = add_acquire_release(&g.arrived[part], 1);
    named_barrier_sync(barrier, threads);
    if ((int)*ticket + 1 < g.splits) return false;
#pragma unroll 1
    for (int other = 0; other < g.splits; other++) {
        if (other == split) continue;
        const int4* theirs = sums + (size_t)other * kFours * threads;
#pragma unroll
        for (int i = 0; i < kFours; i++) {
            int4 x = __ldcg(theirs + i * threads);
            sum[4 * i] += x.x;
            sum[4 * i + 1] += x.y;
            sum[4 * i + 2] += x.z;
            sum[4 * i + 3] += x.w;
        }
    }
    if (thread == 0) g.arrived[part] = 0;
    return true;
}

// Tests and benchmarks may ask how products are cut; 0: a launcher chooses (facts.h).
static struct {
    int width, splits;   // columns of a tile; stretches of K
} gemm_asked = {0, 0};
enum { kMostSplits = 16 };

// Is there room for the sums of `splits` stretches of `tiles` tiles, each of some parts?
static inline bool split_fits(int tiles, int parts, int splits, size_t tile_bytes) {
    return splits == 1 || (tiles * parts <= kSplitCounters && (size_t)tiles * splits * tile_bytes <= (size_t)kWorkspaceBytes);
}
static inline void split_into(Gemm* g, int splits) {
    g->splits = splits;
    g->partials = (int4*)cuda_held().workspace;
    g->arrived = cuda_held().arrived;
}

// ---- scales
__device__ inline float side_scale(const GemmSide& s, int row) {
    return s.scale ? __ldg(s.scale + (size_t)min(row, s.rows - 1) * s.scale_step) : s.factor;
}
// The scales of this lane's columns among the 32 from `col` on; `all` is side_scale(b, 0). kInside: all columns exist.
template <bool kInside>
__device__ inline void column_scales(float (&scale)[4][2], const GemmSide& b, int col, float all) {
    int first = col + 2 * (threadIdx.x % 4);
    if (b.scale_step) {
        for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 2; e++) {
                int n = first + 8 * j + e;
                scale[j][e] = __ldg(b.scale + (kInside ? n : min(n, b.rows - 1)));
            }
        }
    } else {
        for (int j = 0; j < 4; j++) scale[j][0] = scale[j][1] = all;
    }
}
// Rounds in the order that ops.h states for gemm; __fmul_rn and __fadd_rn are never contracted.
__device__ inline float dequantized(float sum, float a_scale, float b_scale) { return __fmul_rn(__fmul_rn(sum, a_scale), b_scale); }

// ---- C
// Lane i of four holds w[0..3]; afterwards w[j] is what lane j held in w[i].
__device__ inline void quad_transpose(uint32_t (&w)[4]) {
    int lane = threadIdx.x % 4;
    for (int step = 1; step < 4; step *= 2) {
        bool upper = lane & step;
        for (int i = 0; i < 4; i++) {
            if (i & step) continue;
            uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? w[i] : w[i + step], step);
            (upper ? w[i] : w[i + step]) = got;
        }
    }
}

// Can a warp store `columns` columns from `col` on as whole words: are all inside, and do rows start at multiples of 16 bytes?
__device__ inline bool c_in_words(const Gemm& g, int col, int columns) { return g.c_aligned && col + columns <= g.N; }

// A lane's part of 32 columns of a row of C, as loaded from memory. kWords: see c_in_words.
template <Fmt kC>
struct CWords {
    uint32_t w[kC == F32 ? 8 : 4];
};

template <Fmt kC, bool kWords>
__device__ inline CWords<kC> c_load(const Gemm& g, int row, int col) {
    CWords<kC> c = {};
    if (row >= g.M) return c;
    int lane = threadIdx.x % 4;
    size_t at = (size_t)row * g.ldc + col;
    if constexpr (kWords && kC == F32) {
        for (int j = 0; j < 4; j++) {
            uint2 pair = *reinterpret_cast<const uint2*>((const float*)g.c + at + 8 * j + 2 * lane);
            c.w[2 * j] = pair.x;
            c.w[2 * j + 1] = pair.y;
        }
    } else if constexpr (kWords) {
        uint4 words = *reinterpret_cast<const uint4*>((const bf16*)g.c + at + 8 * lane);
        c.w[0] = words.x, c.w[1] = words.y, c.w[2] = words.z, c.w[3] = words.w;
    } else {
        for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 2; e++) {
                int n = 8 * j + 2 * lane + e;
                if (col + n >= g.N) continue;
                if constexpr (kC == F32) c.w[2 * j + e] = f32_bits(((const float*)g.c)[at + n]);
                else c.w[j] |= (uint32_t)((const bf16*)g.c)[at + n] << (16 * e);
            }
        }
    }
    return c;
}

// out += beta * c. The whole warp calls it: lanes swap words.
template <Fmt kC, bool kWords>
__device__ inline void c_add(float (&out)[4][2], const Gemm& g, CWords<kC> c) {
    if constexpr (kWords && kC == BF16) quad_transpose(c.w);
    for (int j = 0; j < 4; j++) {
        for (int e = 0; e < 2; e++) {
            float before;
            if constexpr (kC == F32) before = f32_from_bits(c.w[2 * j + e]);
            else before = f32_from_bits(e ? c.w[j] & 0xffff0000u : c.w[j] << 16);
            out[j][e] = __fadd_rn(out[j][e], __fmul_rn(g.beta, before));
        }
    }
}

// Stores 4 blocks of 8 columns of a row of C. The whole warp calls it: lanes swap words.
template <Fmt kC, bool kWords>
__device__ inline void c_store(const Gemm& g, int row, int col, const float (&out)[4][2]) {
    int lane = threadIdx.x % 4;
    size_t at = (size_t)row * g.ldc + col;
    if constexpr (kWords && kC == F32) {
        if (row >= g.M) return;
        for (int j = 0; j < 4; j++)
            *reinterpret_cast<float2*>((float*)g.c + at + 8 * j + 2 * lane) = make_float2(out[j][0], out[j][1]);
    } else if constexpr (kWords) {
        uint32_t w[4];
        for (int j = 0; j < 4; j++) w[j] = pack_bf16(out[j][0], out[j][1]);
        quad_transpose(w);
        if (row < g.M) *reinterpret_cast<uint4*>((bf16*)g.c + at + 8 * lane) = make_uint4(w[0], w[1], w[2], w[3]);
    } else {
        if (row >= g.M) return;
        for (int j = 0; j < 4; j++) {
            for (int e = 0; e < 2; e++) {
                int n = 8 * j + 2 * lane + e;
                if (col + n >= g.N) continue;
                if constexpr (kC == F32) ((float*)g.c)[at + n] = out[j][e];
                else ((bf16*)g.c)[at + n] = bf16_from_f32(out[j][e]);
            }
        }
    }
}

#endif
