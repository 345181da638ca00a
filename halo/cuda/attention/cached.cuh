// Attention in generation: new rows of several sequences against the keys and values in their slots of a cache, on mma.sync.
//
// Bound: every key and value of every sequence is read once, 4 HD bytes a position and K/V head. So a block takes one K/V head and all
// query heads of its group (they share each fragment of K and V), and as many neighbouring rows of one sequence as fill the 16 rows of
// an mma: one row of each of 4 heads while decoding, 4 rows of 4 heads in a prompt.
//
//   tile      the rows x heads of one block, at most 16; its row m is row m / heads of the batch's rows, head m % heads of the group
//   chunk     kCachedChunk keys of a sequence, from a multiple of kCachedChunk on. Its softmax is taken on its own, and chunks are folded
//             in their order: a result depends on the row's own position and keys, never on its neighbours or on how a grid is cut
//   piece     16 keys of a chunk, one warp's step; the warps take pieces in turn. Each warp has two stages of K and V of its own in shared
//             memory, so that the next piece is on its way while one is used. Warps meet at a chunk's end
//   split     where a grid would have few blocks, each chunk gets a block of its own, which leaves its result in memory, and a second kernel
//             folds. Else a block folds as it goes. The arithmetic is the same, to the bit
#ifndef HALO_CUDA_ATTENTION_CACHED_CUH
#define HALO_CUDA_ATTENTION_CACHED_CUH

#include "tiles.cuh"

enum { kCachedWarps = 4, kCachedThreads = kWarp * kCachedWarps, kCachedChunk = 256, kPieceKeys = 16, kTileRows = 16 };
enum { kPiecesPerWarp = kCachedChunk / kPieceKeys / kCachedWarps };
static_assert(kPiecesPerWarp % 2 == 0, "a chunk's last piece is in the second stage");

struct AttnCached {
    const bf16 *q, *cache;   // q (rows, NH HD), rows of ld_q; cache (slots * positions, 2 NKV HD), rows of ld_cache
    bf16* y;
    float* parts;            // split: (rows, NH, chunks, HD + 2): sums of e^(s - largest) v, then largest * log2(e), and total; else NULL
    const int *slot, *pos;   // (rows)
    int rows, positions, chunks, NH, NKV, HD, ld_q, ld_cache, ld_y;
    float scale_log2;
    bool vectors;
};

// The rows and heads that a block takes, and how many keys they see.
struct CachedTile {
    int row, rows, head, heads;   // the first of the batch's rows, and how many; the first of the query heads, and how many
    int keys, common;             // positions that its last row sees, and that all of its rows see
};
// How many rows of one sequence share a tile, and how many tiles the heads of a group take.
__host__ __device__ inline int cached_tile_rows(int group) { return group < kTileRows ? kTileRows / group : 1; }
__host__ __device__ inline int cached_head_tiles(int group) { return (group + kTileRows - 1) / kTileRows; }

// The tile that starts at row blockIdx.x; it has no rows if this row is in the tile of an earlier row. Tiles start at multiples of
// cached_tile_rows, and where a row's sequence is not that of the row before.
__device__ inline CachedTile cached_tile(const AttnCached& a) {
    int group = a.NH / a.NKV, most = cached_tile_rows(group), tiles = cached_head_tiles(group);
    int kv = blockIdx.y / tiles, head = blockIdx.y % tiles * kTileRows, row = blockIdx.x, slot = a.slot[row];
    CachedTile t = {row, 0, kv * group + head, min(group - head, (int)kTileRows), 0, a.positions};
    if (row % most != 0 && a.slot[row - 1] == slot) return t;
    do {
        int keys = a.pos[row + t.rows] + 1;
        t.keys = max(t.keys, keys);
        t.common = min(t.common, keys);
        t.rows++;
    } while ((row + t.rows) % most != 0 && row + t.rows < a.rows && a.slot[row + t.rows] == slot);
    return t;
}

// ---- load
// The tile's queries as the left sides of HD / 16 products; rows beyond the tile are zero.
template <int kHD>
__device__ __forceinline__ void cached_queries(uint32_t (&q)[kHD / 16][4], const AttnCached& a, const CachedTile& t) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        int m = lane / 4 + j % 2 * 8;
        bool valid = m < t.rows * t.heads;
        const bf16* row = a.q + (size_t)(t.row + (valid ? m / t.heads : 0)) * a.ld_q + (t.head + m % t.heads) * a.HD;
#pragma unroll
        for (int d = 0; d < kHD / 16; d++) {
            int column = 16 * d + j / 2 * 8 + lane % 4 * 2;
            if (!valid || column >= a.HD) q[d][j] = 0;
            else if (a.vectors) q[d][j] = *reinterpret_cast<const uint32_t*>(row + column);
            else q[d][j] = row[column] | (column + 1 < a.HD ? (uint32_t)row[column + 1] << 16 : 0u);
        }
    }
}

// One warp's stage <- K, then V, of the kPieceKeys keys from `key` on, zero beyond `keys` and HD. kv: the sequence's first key, this head.
template <int kHD>
__device__ __forceinline__ void cached_load(bf16* stage, const AttnCached& a, const bf16* kv, int key, int keys) {
    constexpr int kUnits = kHD / kUnit;
    int lane = threadIdx.x % kWarp;
    for (int half = 0; half < 2; half++) {
        const bf16* from = kv + half * a.NKV * a.HD;
        bf16* tile = stage + half * tile_values<kPieceKeys, kHD>();
        if (a.vectors) {
#pragma unroll
            for (int i = lane; i < kPieceKeys * kUnits; i += kWarp) {
                int row = i / kUnits, unit = i % kUnits;
                bool valid = key + row < keys && unit * kUnit < a.HD;
                cp_async16(tile + unit_at<kPieceKeys>(row, unit), valid ? from + (size_t)(key + row) * a.ld_cache + unit * kUnit : from, valid);
            }
        } else {
#pragma unroll 1
            for (int i = lane; i < kPieceKeys * kHD; i += kWarp) {
                int row = i / kHD, column = i % kHD;
                bool valid = key + row < keys && column < a.HD;
                tile[unit_at<kPieceKeys>(row, column / kUnit) + column % kUnit] = valid ? from[(size_t)(key + row) * a.ld_cache + column] : (bf16)0;
            }
        }
    }
}

// ---- one piece: S = Q K^T, softmax, y += P V
template <int kHD>
__device__ __forceinline__ void cached_piece(float (&y)[kHD / 2], SoftmaxRows& softmax, const uint32_t (&q)[kHD / 16][4], const bf16* stage,
                                             int key, int common, const int (&seen)[2], float scale_log2) {
    const bf16 *k_tile = stage, *v_tile = stage + tile_values<kPieceKeys, kHD>();
    float s[kPieceKeys / 2] = {}, rescale[2];
#pragma unroll
    for (int d = 0; d < kHD / 16; d++) {
        uint32_t keys[4];
        fragment_down<kPieceKeys, false>(keys, k_tile, 0, 2 * d);
        mma_bf16(s, q[d], keys[0], keys[1]);
        mma_bf16(s + 4, q[d], keys[2], keys[3]);
    }
    if (key + kPieceKeys > common) {
#pragma unroll
        for (int i = 0; i < kPieceKeys / 2; i++)
            if (key + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 >= (unsigned)seen[i / 2 % 2]) s[i] = -INFINITY;
    }
    softmax_step(s, softmax, rescale, scale_log2);
#pragma unroll
    for (int i = 0; i < kHD / 2; i++) y[i] *= rescale[i / 2 % 2];
    uint32_t p[4];
    accumulators_to_fragment(p, s, 0);
#pragma unroll
    for (int j = 0; j < kHD / 16; j++) {
        uint32_t values[4];
        fragment_across<kPieceKeys, true>(values, v_tile, 0, 2 * j);
        mma_bf16(y + 8 * j, p, values[0], values[1]);
        mma_bf16(y + 8 * j + 4, p, values[2], values[3]);
    }
}

// ---- exchange: a chunk's end
// A row's softmax so far: its exponentials are 2^(score - largest), with scores times log2(e), and `total` is their sum.
struct CachedRow {
    float largest, total;
};
// Folds a chunk into the chunks before it: the sums have to become before * (old sums) + now * (the chunk's sums).
struct CachedFold {
    float before, now;
};
__device__ inline CachedFold cached_fold(CachedRow& all, CachedRow chunk) {
    float largest = fmaxf(all.largest, chunk.largest);
    CachedFold f = {exp2_approx(all.largest - largest), exp2_approx(chunk.largest - largest)};
    all.largest = largest;
    all.total = __fmaf_rn(all.total, f.before, __fmul_rn(chunk.total, f.now));
    return f;
}
__device__ inline float cached_fold_sum(float before, float chunk, CachedFold f) { return __fmaf_rn(before, f.before, __fmul_rn(chunk, f.now)); }

// What the warps exchange about the tile's rows.
struct CachedShared {
    CachedRow warps[kCachedWarps][kTileRows], chunk[kTileRows];
    float weight[kCachedWarps][kTileRows], total[kTileRows];
    CachedFold fold[kTileRows];
};

// Stores this warp's sums and softmax of a chunk to shared memory, then resets them for the next chunk.
template <int kHD>
__device__ __forceinline__ void cached_hand_in(float* sums, CachedShared& shared, float (&y)[kHD / 2], SoftmaxRows& softmax, int used,
                                               float scale_log2) {
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    __syncwarp();   // all lanes have read the stage that `sums` overwrites
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int m = lane / 4 + 8 * half;
        float total = softmax.total[half];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (lane % 4 == 0) shared.warps[warp][m] = CachedRow{__fmul_rn(softmax.largest[half], scale_log2), total};
        if (m >= used) continue;
#pragma unroll
        for (int n = 0; n < kHD / 8; n++)
            *reinterpret_cast<float2*>(sums + m * kHD + 8 * n + lane % 4 * 2) = make_float2(y[4 * n + 2 * half], y[4 * n + 2 * half + 1]);
    }
    softmax = softmax_begin();
#pragma unroll
    for (int i = 0; i < kHD / 2; i++) y[i] = 0;
}

// Thread m merges row m's softmax over the warps, and folds the chunk into `all`.
__device__ __forceinline__ void cached_merge_rows(CachedShared& shared, int m, CachedRow& all, bool first) {
    CachedRow chunk = {-INFINITY, 0};
    for (int w = 0; w < kCachedWarps; w++) chunk.largest = fmaxf(chunk.largest, shared.warps[w][m].largest);
    for (int w = 0; w < kCachedWarps; w++) {
        float weight = chunk.largest == -INFINITY ? 0.0f : exp2_approx(shared.warps[w][m].largest - chunk.largest);
        shared.weight[w][m] = weight;
        chunk.total = __fmaf_rn(weight, shared.warps[w][m].total, chunk.total);
    }
    shared.chunk[m] = chunk;
    if (first) all = chunk;
    else shared.fold[m] = cached_fold(all, chunk);
    shared.total[m] = all.total;
}

// ---- store: a chunk's result, or after the last chunk the quotient y
__device__ inline float* cached_part(const AttnCached& a, int row, int head, int chunk) {
    return a.parts + (((size_t)row * a.NH + head) * a.chunks + chunk) * (a.HD + 2);
}

// Adds up the chunk's sums over the warps, which lie `warp_step` values apart, and stores them to a.parts (split) or folds them into `sums`,
// from which the last chunk makes y.
template <int kHD, int kElements>
__device__ __forceinline__ void cached_store(float (&sums)[kElements], const AttnCached& a, const CachedTile& tile, int used,
                                             const CachedShared& shared, const bf16* of_warps, int warp_step, int chunk, bool first, bool last) {
#pragma unroll
    for (int i = 0; i < kElements; i++) {
        int at = threadIdx.x + i * kCachedThreads, m = at / kHD, column = at % kHD;
        if (m >= used || column >= a.HD) continue;
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kCachedWarps; w++) sum = __fmaf_rn(shared.weight[w][m], ((const float*)(of_warps + w * warp_step))[at], sum);
        int row = tile.row + m / tile.heads, head = tile.head + m % tile.heads;
        if (a.parts) {
            float* part = cached_part(a, row, head, chunk);
            part[column] = sum;
            if (column == 0) part[a.HD] = shared.chunk[m].largest, part[a.HD + 1] = shared.chunk[m].total;
            continue;
        }
        sums[i] = first ? sum : cached_fold_sum(sums[i], sum, shared.fold[m]);
        if (last) a.y[(size_t)row * a.ld_y + head * a.HD + column] = bf16_from_f32(sums[i] / shared.total[m]);
    }
}

// Blocks of a multiprocessor: as many as their stages leave room for.
constexpr int cached_resident(int HD) { return HD <= 64 ? 4 : 3; }

template <int kHD>
__global__ void __launch_bounds__(kCachedThreads, cached_resident(kHD)) attention_cached_kernel(AttnCached a) {
    constexpr int kStage = 2 * tile_values<kPieceKeys, kHD>(), kElements = kTileRows * kHD / kCachedThreads;
    static_assert(kStage * sizeof(bf16) >= kTileRows * kHD * sizeof(float), "a warp's sums lie in its second stage");
    SHARED(bf16, stages);   // kCachedWarps x 2 stages
    __shared__ CachedShared shared;
    CachedTile tile = cached_tile(a);
    int chunks = (tile.keys + kCachedChunk - 1) / kCachedChunk, first_chunk = blockIdx.z, step = gridDim.z;
    if (tile.rows == 0 || first_chunk >= chunks) return;

    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, used = tile.rows * tile.heads;
    int pieces = (chunks - first_chunk + step - 1) / step * kPiecesPerWarp;
    int seen[2];   // keys of each of this lane's two rows
    for (int half = 0; half < 2; half++) {
        int m = lane / 4 + 8 * half;
        seen[half] = m < used ? a.pos[tile.row + m / tile.heads] + 1 : 0;
    }
    const bf16* kv = a.cache + (size_t)a.slot[tile.row] * a.positions * a.ld_cache + tile.head / (a.NH / a.NKV) * a.HD;
    bf16* stage = stages + warp * 2 * kStage;
    auto key_of = [=](int piece) {
        return (first_chunk + piece / kPiecesPerWarp * step) * kCachedChunk + (piece % kPiecesPerWarp * kCachedWarps + warp) * kPieceKeys;
    };

    cached_load<kHD>(stage, a, kv, key_of(0), tile.keys);
    cp_async_commit();
    uint32_t q[kHD / 16][4];
    cached_queries<kHD>(q, a, tile);
    float y[kHD / 2] = {}, sums[kElements] = {};
    SoftmaxRows softmax = softmax_begin();
    CachedRow all = {-INFINITY, 0};   // thread m: of row m
    for (int piece = 0; piece < pieces; piece++) {
        bool ends_chunk = piece % kPiecesPerWarp == kPiecesPerWarp - 1;
        __syncwarp();   // all lanes have read the last piece, whose stage is filled next
        if (piece + 1 < pieces) cached_load<kHD>(stage + (piece + 1) % 2 * kStage, a, kv, key_of(piece + 1), tile.keys);
        cp_async_commit();
        cp_async_wait<1>();
        __syncwarp();   // this piece has arrived for all lanes
        if (key_of(piece) < tile.keys)
            cached_piece<kHD>(y, softmax, q, stage + piece % 2 * kStage, key_of(piece), tile.common, seen, a.scale_log2);
        if (!ends_chunk) continue;

        cached_hand_in<kHD>((float*)(stage + kStage), shared, y, softmax, used, a.scale_log2);
        __syncthreads();
        int chunk = first_chunk + piece / kPiecesPerWarp * step;
        bool first = piece < kPiecesPerWarp, last = piece == pieces - 1;
        if (threadIdx.x < kTileRows) cached_merge_rows(shared, threadIdx.x, all, first);
        __syncthreads();
        cached_store<kHD>(sums, a, tile, used, shared, stages + kStage, 2 * kStage, chunk, first, last);
        __syncthreads();   // all warps have read what the exchange left in shared memory
    }
}

// After split chunks: folds those of one row and head.
__global__ void __launch_bounds__(kCachedThreads) attention_fold_kernel(AttnCached a) {
    int row = blockIdx.x, head = blockIdx.y, column = threadIdx.x, chunks = a.pos[row] / kCachedChunk + 1;
    if (column >= a.HD) return;
    const float* part = cached_part(a, row, head, 0);
    CachedRow all = {part[a.HD], part[a.HD + 1]};
    float sum = part[column];
#pragma unroll 8
    for (int c = 1; c < chunks; c++) {
        part += a.HD + 2;
        CachedRow chunk = {part[a.HD], part[a.HD + 1]};
        sum = cached_fold_sum(sum, part[column], cached_fold(all, chunk));
    }
    a.y[(size_t)row * a.ld_y + head * a.HD + column] = bf16_from_f32(sum / all.total);
}

// Copies the new rows' k and v to their rows of the cache, one block a row. kv (rows, 2 NKV HD), rows of ld_kv.
__global__ void attention_append_kernel(bf16* cache, int ld_cache, const bf16* kv, int ld_kv, const int* slot, const int* pos, int positions,
                                        int cols, bool vectors) {
    bf16* to = cache + ((size_t)slot[blockIdx.x] * positions + pos[blockIdx.x]) * ld_cache;
    const bf16* from = kv + (size_t)blockIdx.x * ld_kv;
    if (vectors) {
        for (int i = threadIdx.x * kUnit; i < cols; i += blockDim.x * kUnit) store8(to + i, load8(from + i));
    } else {
        for (int i = threadIdx.x; i < cols; i += blockDim.x) to[i] = from[i];
    }
}

#endif
