// Codes as they travel between ranks: transposed after their arrival, FP6 in six bits.
//
// Bytes per code: transpose 2 (read 1, write 1), pack and unpack 1.75. At 3 TB/s, the 218 million weights of a layer of
// Llama-3-8B: transpose 145 us, pack or unpack 127 us.
#ifndef HALO_CUDA_WIRE_CUH
#define HALO_CUDA_WIRE_CUH

#include "device.cuh"

enum {
    kWireThreads = 256,
    kTransposeTile = 128,
    kTransposeChunk = 16,    // bytes that a thread loads or stores at once
    kTransposePitch = 132,   // bytes from one row of the tile to the next: reading down a column changes the bank
    kFp6Group = 16           // codes a thread packs: 12 bytes
};

// Up to 16 neighbouring bytes of a row of n bytes, from byte `at` on; whole chunks in one access if rows are `aligned`.
__device__ inline void load_chunk(uint8_t* chunk, const uint8_t* row, int at, int n, bool aligned) {
    if (aligned && at + kTransposeChunk <= n) {
        uint4 u = *reinterpret_cast<const uint4*>(row + at);
        memcpy(chunk, &u, sizeof u);
    } else {
        for (int i = 0; i < kTransposeChunk; i++) chunk[i] = at + i < n ? row[at + i] : 0;
    }
}
__device__ inline void store_chunk(uint8_t* row, const uint8_t* chunk, int at, int n, bool aligned) {
    if (aligned && at + kTransposeChunk <= n) {
        uint4 u;
        memcpy(&u, chunk, sizeof u);
        *reinterpret_cast<uint4*>(row + at) = u;
    } else {
        for (int i = 0; i < kTransposeChunk; i++)
            if (at + i < n) row[at + i] = chunk[i];
    }
}

// A tile of x comes in by rows and goes out by columns. On the way out 2 neighbouring chunks of 16 columns belong to a warp:
// 32 bytes of each row of y are written whole, and the 16 columns lie in different banks or share a word.
__device__ __forceinline__ void transpose_tile(Rows<uint8_t> y, Rows<const uint8_t> x, int rows, int cols, bool aligned, int row, int col) {
    __shared__ __align__(16) uint8_t tile[kTransposeTile * kTransposePitch];
    constexpr int kChunks = kTransposeTile / kTransposeChunk, kTileChunks = kTransposeTile * kChunks;
    uint8_t chunk[kTransposeChunk];
#pragma unroll
    for (int n = threadIdx.x; n < kTileChunks; n += kWireThreads) {
        int r = n / kChunks, c = n % kChunks * kTransposeChunk;
        if (row + r >= rows) continue;
        load_chunk(chunk, x[row + r], col + c, cols, aligned);
#pragma unroll
        for (int i = 0; i < kTransposeChunk; i += 4) memcpy(tile + r * kTransposePitch + c + i, chunk + i, 4);
    }
    __syncthreads();
#pragma unroll
    for (int n = threadIdx.x; n < kTileChunks; n += kWireThreads) {
        int pair = n / 2 / kTransposeTile, c = n / 2 % kTransposeTile, r = (pair * 2 + n % 2) * kTransposeChunk;
        if (col + c >= cols || row + r >= rows) continue;
#pragma unroll
        for (int i = 0; i < kTransposeChunk; i++) chunk[i] = tile[(r + i) * kTransposePitch + c];
        store_chunk(y[col + c], chunk, row + r, rows, aligned);
    }
}
__global__ void __launch_bounds__(kWireThreads) transpose_codes_kernel(Rows<uint8_t> y, Rows<const uint8_t> x, int rows, int cols,
                                                                       bool aligned) {
    transpose_tile(y, x, rows, cols, aligned, blockIdx.y * kTransposeTile, blockIdx.x * kTransposeTile);
}

// Four six-bit codes a, b, c, d are the 24 bits dddddd cccccc bbbbbb aaaaaa, lowest byte first; four such groups fill three
// words. A code's six bits come from a table that each block computes once.
__global__ void __launch_bounds__(kWireThreads) pack_fp6_kernel(uint8_t* packed, const uint8_t* codes, size_t count, Fmt fp6, bool aligned) {
    __shared__ uint8_t six_bits[256];
    six_bits[threadIdx.x] = fp6_pack_code((uint8_t)threadIdx.x, fp6);
    __syncthreads();
    size_t at = ((size_t)blockIdx.x * kWireThreads + threadIdx.x) * kFp6Group;
    if (at >= count) return;
    uint8_t* to = packed + at / 4 * 3;
    if (aligned && at + kFp6Group <= count) {
        uint4 u = *reinterpret_cast<const uint4*>(codes + at);
        uint32_t in[4] = {u.x, u.y, u.z, u.w}, group[4];
#pragma unroll
        for (int g = 0; g < 4; g++)
            group[g] = six_bits[in[g] & 0xff] | (uint32_t)six_bits[in[g] >> 8 & 0xff] << 6 |
                       (uint32_t)six_bits[in[g] >> 16 & 0xff] << 12 | (uint32_t)six_bits[in[g] >> 24] << 18;
        uint32_t* words = reinterpret_cast<uint32_t*>(to);
        words[0] = group[0] | group[1] << 24;
        words[1] = group[1] >> 8 | group[2] << 16;
        words[2] = group[2] >> 16 | group[3] << 8;
        return;
    }
    for (size_t end = at + kFp6Group < count ? at + kFp6Group : count; at < end; at += 4, to += 3) {
        uint32_t group = 0;
        for (int k = 0; k < 4; k++) group |= (uint32_t)six_bits[codes[at + k]] << 6 * k;
        for (int k = 0; k < 3; k++) to[k] = (uint8_t)(group >> 8 * k);
    }
}

__global__ void __launch_bounds__(kWireThreads) unpack_fp6_kernel(uint8_t* codes, const uint8_t* packed, size_t count, Fmt fp6, bool aligned) {
    __shared__ uint8_t code_of[64];
    if (threadIdx.x < 64) code_of[threadIdx.x] = fp6_unpack_code((uint8_t)threadIdx.x, fp6);
    __syncthreads();
    size_t at = ((size_t)blockIdx.x * kWireThreads + threadIdx.x) * kFp6Group;
    if (at >= count) return;
    const uint8_t* from = packed + at / 4 * 3;
    if (aligned && at + kFp6Group <= count) {
        const uint32_t* words = reinterpret_cast<const uint32_t*>(from);
        uint32_t w0 = words[0], w1 = words[1], w2 = words[2], out[4];
        uint32_t group[4] = {w0, w0 >> 24 | w1 << 8, w1 >> 16 | w2 << 16, w2 >> 8};
#pragma unroll
        for (int g = 0; g < 4; g++)
            out[g] = code_of[group[g] & 63] | (uint32_t)code_of[group[g] >> 6 & 63] << 8 |
                     (uint32_t)code_of[group[g] >> 12 & 63] << 16 | (uint32_t)code_of[group[g] >> 18 & 63] << 24;
        *reinterpret_cast<uint4*>(codes + at) = make_uint4(out[0], out[1], out[2], out[3]);
        return;
    }
    for (size_t end = at + kFp6Group < count ? at + kFp6Group : count; at < end; at += 4, from += 3) {
        uint32_t group = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16;
        for (int k = 0; k < 4; k++) codes[at + k] = code_of[group >> 6 * k & 63];
    }
}

static void transpose_codes(Mat y, Mat x) {
    check(y.rows == x.cols && y.cols == x.rows && y.fmt == x.fmt && fmt_bytes(x.fmt) == 1,
          "transpose_codes (cuda): (%d, %d) in %s to (%d, %d) in %s", x.rows, x.cols, fmt_name(x.fmt), y.rows, y.cols, fmt_name(y.fmt));
    bool aligned = is_sixteens(x) && is_sixteens(y);
    LAUNCH(transpose_codes_kernel, dim3(ceil_div(x.cols, kTransposeTile), ceil_div(x.rows, kTransposeTile)), kWireThreads, 0,
           rows_of<uint8_t>(y), rows_of<const uint8_t>(x), x.rows, x.cols, aligned);
}

static inline void check_fp6(Mat codes, const char* op) {
    check((codes.fmt == FP6_E3M2 || codes.fmt == FP6_E2M3) && codes.ld % 4 == 0, "%s (cuda): (%d, %d) in %s with rows of %d", op,
          codes.rows, codes.cols, fmt_name(codes.fmt), codes.ld);
}
static inline unsigned fp6_blocks(size_t count) { return (unsigned)((count + kWireThreads * kFp6Group - 1) / (kWireThreads * kFp6Group)); }

static void pack_fp6(uint8_t* packed, Mat codes) {
    check_fp6(codes, "pack_fp6");
    size_t count = (size_t)codes.rows * codes.ld;
    bool aligned = (uintptr_t)codes.data % 16 == 0 && (uintptr_t)packed % 4 == 0;
    LAUNCH(pack_fp6_kernel, fp6_blocks(count), kWireThreads, 0, packed, (const uint8_t*)codes.data, count, codes.fmt, aligned);
}
static void unpack_fp6(Mat codes, const uint8_t* packed) {
    check_fp6(codes, "unpack_fp6");
    size_t count = (size_t)codes.rows * codes.ld;
    bool aligned = (uintptr_t)codes.data % 16 == 0 && (uintptr_t)packed % 4 == 0;
    LAUNCH(unpack_fp6_kernel, fp6_blocks(count), kWireThreads, 0, (uint8_t*)codes.data, packed, count, codes.fmt, aligned);
}

#endif
