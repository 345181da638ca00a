// Quantization: codes = round(x / s), the same codes transposed, and the scales (DESIGN section 2).
//
// Bytes an element of bf16: 2 read, 1 written for each of codes and codes_t: 3 or 4, which is the floor of a pass that makes both.
// PER_ROW needs the whole row before its first code: one more reading for the maxima (2), most of it from the L2 cache where
// x fits there.
//
// quantize_tile_kernel takes tiles of 128 x 128: a thread owns 8 x 8, eight 16-byte loads in flight. A warp is 4 x 8 of
// these, so a 32 x 32 block of PER_BLOCK32 is 16 of its lanes, and its maximum five shuffles. Codes leave from registers. The 8 x 8
// are transposed in registers too, exchanged through 16 KB of shared memory, and leave as 16 bytes of 8 neighbouring lanes.
// quantize_any_kernel takes what has no octets (or is cast to bf16 or FP32) in tiles of 32 x 32, a value at a time.
//
// Codes are those of numfmt.h to the bit (with conversion instructions a NaN loses its sign): x * inverse is rounded once in FP32, then
// to the format.
#ifndef HALO_CUDA_QUANTIZE_CUH
#define HALO_CUDA_QUANTIZE_CUH

#include "device.cuh"

// ================================================================ rounding, without branches

#if !defined(HALO_SIMT) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define HALO_CVT_FP8 1
#else
#define HALO_CVT_FP8 0
#endif

// The nearest value of the format's grid (ties to even, saturating), and NaN as it is: small_float_round with the format known. Cutting
// off first is the same, since the largest magnitude is on the grid.
template <Fmt kFmt>
__device__ inline float round_to_grid(float x) {
    constexpr int kMantissa = kFmt == FP8_E4M3 || kFmt == FP6_E2M3 ? 3 : 2;
    constexpr int kBias = kFmt == FP8_E4M3 ? 7 : kFmt == FP8_E5M2 ? 15 : kFmt == FP6_E3M2 ? 3 : 1;
    float magnitude = fminf(fabsf(x), fmt_max(kFmt));
    uint32_t exponent = max(f32_bits(magnitude) & 0x7f800000u, (uint32_t)(128 - kBias) << 23);
    float magic = f32_from_bits(exponent + ((uint32_t)(23 - kMantissa) << 23));
    float rounded = __fsub_rn(__fadd_rn(magnitude, magic), magic);
    return x == x ? f32_from_bits(f32_bits(rounded) | (f32_bits(x) & 0x80000000u)) : x;
}

// The code of a value that E4M3 or E5M2 represents: times 2^(bias - 127) its exponent field is the code's, subnormals included.
template <bool kE5m2>
__device__ inline uint32_t code_of_grid(float x) {
    constexpr int kBias = kE5m2 ? 15 : 7, kMantissa = kE5m2 ? 2 : 3;
    uint32_t magnitude = f32_bits(fabsf(x) * f32_from_bits((uint32_t)kBias << 23)) >> (23 - kMantissa);
    return (x == x ? magnitude : 0x7fu) | (f32_bits(x) >> 24 & 0x80u);
}

// Two codes, the first in the lower byte.
template <Fmt kFmt>
__device__ inline uint32_t code_pair(float a, float b) {
    if constexpr (kFmt == INT8) {
        auto code = [](float x) {   // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
            uint32_t bits = f32_bits(__fadd_rn(fminf(fmaxf(x, -127.0f), 127.0f), 12582912.0f));
            return x == x ? bits & 0xffu : 0u;
        };
        return code(a) | code(b) << 8;
    } else {
#if HALO_CVT_FP8
        if (kFmt == FP6_E3M2 || kFmt == FP6_E2M3) {
            a = round_to_grid<kFmt>(a);
            b = round_to_grid<kFmt>(b);
        }
        uint16_t pair;
        if (kFmt == FP8_E5M2) asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(b), "f"(a));
        else asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(b), "f"(a));
        return pair;
#else
        constexpr bool kE5m2 = kFmt == FP8_E5M2;
        return code_of_grid<kE5m2>(round_to_grid<kFmt>(a)) | code_of_grid<kE5m2>(round_to_grid<kFmt>(b)) << 8;
#endif
    }
}

// ================================================================ tiles of octets
enum { kTile = 128, kTileThreads = 256, kOctet = 8, kQuantBlock = 32 };

// In registers: v[i] has byte j of row i in byte j; after it, byte i of column j. Four columns of four rows, twice.
__device__ inline void transpose_octets(uint2 (&v)[8]) {
    auto four = [](uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d) {
        uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
        uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
        a = __byte_perm(ab_low, cd_low, 0x5410);
        b = __byte_perm(ab_low, cd_low, 0x7632);
        c = __byte_perm(ab_high, cd_high, 0x5410);
        d = __byte_perm(ab_high, cd_high, 0x7632);
    };
    four(v[0].x, v[1].x, v[2].x, v[3].x);
    four(v[0].y, v[1].y, v[2].y, v[3].y);
    four(v[4].x, v[5].x, v[6].x, v[7].x);
    four(v[4].y, v[5].y, v[6].y, v[7].y);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        uint32_t swapped = v[i].y;
        v[i].y = v[i + 4].x;
        v[i + 4].x = swapped;
    }
}

// Eight values as they were loaded: bf16 stay packed until they are used.
template <typename T> struct Octet;
template <> struct Octet<bf16> {
    Packed<8> x;
    __device__ void load(const bf16* p) { x = load_packed<8>(p); }
    __device__ Values<8> values() const { return unpack(x); }
    __device__ uint32_t largest() const { return largest_bits(x); }
};
template <> struct Octet<float> {
    Values<8> x;
    __device__ void load(const float* p) { x = load_values<8>(p); }
    __device__ Values<8> values() const { return x; }
    __device__ uint32_t largest() const {
        uint32_t bits = 0;
#pragma unroll
        for (int j = 0; j < 8; j++) bits = max(bits, f32_bits(x.v[j]) & 0x7fffffffu);
        return bits;
    }
};

// Where eight codes of a column of the tile lie: 16 units of 8 bytes a column, moved so that 8 columns' lanes use different banks.
__device__ inline int tile_unit(int col, int row_octet) { return col * (kTile / kOctet) + (row_octet ^ (col / kOctet % 8) << 1); }

// The 16 bytes of a row of codes_t from a on, as far as they are inside.
__device__ inline void store_codes(uint8_t* to, uint4 codes, int inside) {
    if (inside >= 16) {
        *(uint4*)to = codes;
        return;
    }
    uint32_t word[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (i < inside) to[i] = (uint8_t)(word[i / 4] >> 8 * (i % 4));
}

// scale: one | rows | (blocks down, blocks across). For PER_ROW it holds the maxima, and scale_rows_kernel follows.
template <typename T, Fmt kFmt, Gran kGran>
__global__ void __launch_bounds__(kTileThreads, sizeof(T) == 2 && kGran != PER_BLOCK32 ? 3 : 2)
quantize_tile_kernel(Rows<uint8_t> codes, Rows<uint8_t> codes_t, float* scale, Rows<const T> x, const float* absmax, int rows, int cols,
                     float clip) {
    __shared__ uint4 shared[kTile * kTile / 16];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int row_octet = warp / 2 * 4 + lane / 8, col_octet = warp % 2 * 8 + lane % 8;
    int tiles_across = (cols + kTile - 1) / kTile;
    int tile_row = (int)(blockIdx.x / tiles_across) * kTile, tile_col = (int)(blockIdx.x % tiles_across) * kTile;
    int row = tile_row + row_octet * kOctet, col = tile_col + col_octet * kOctet;
    bool inside = col < cols;   // cols is a multiple of 8

    Octet<T> v[kOctet];
#pragma unroll
    for (int i = 0; i < kOctet; i++) {
        v[i] = Octet<T>{};
        if (inside && row + i < rows) v[i].load(x[row + i] + col);
    }

    float inverse = 1;
    if (kGran == PER_TENSOR) {
        inverse = quant_inverse(*absmax, kFmt, clip);
        if (blockIdx.x == 0 && threadIdx.x == 0) *scale = quant_scale(*absmax, kFmt, clip);
    }
    if (kGran == PER_BLOCK32) {
        uint32_t bits = 0;
#pragma unroll
        for (int i = 0; i < kOctet; i++) bits = max(bits, v[i].largest());
        for (int step = 1; step < kWarp; step *= 2)
            if (step != 4) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, step));   // 4: the other of two blocks across
        float largest = f32_from_bits(bits);
        inverse = quant_inverse(largest, kFmt, clip);
        if (lane % 4 == 0 && lane / 8 == 0 && inside && row < rows) {
            int blocks_across = (cols + kQuantBlock - 1) / kQuantBlock;
            scale[(size_t)(row / kQuantBlock) * blocks_across + col / kQuantBlock] = quant_scale(largest, kFmt, clip);
        }
    }

    uint2 octets[kOctet];
#pragma unroll
    for (int i = 0; i < kOctet; i++) {
        if (kGran == PER_ROW) inverse = row + i < rows ? quant_inverse(scale[row + i], kFmt, clip) : 1.0f;
        Values<8> row_values = v[i].values();
        uint32_t pair[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float a = row_values.v[2 * j], b = row_values.v[2 * j + 1];
            pair[j] = kGran == NO_SCALE ? code_pair<kFmt>(a, b) : code_pair<kFmt>(__fmul_rn(a, inverse), __fmul_rn(b, inverse));
        }
        octets[i] = make_uint2(pair[0] | pair[1] << 16, pair[2] | pair[3] << 16);
        if (codes.data && inside && row + i < rows) *(uint2*)(codes[row + i] + col) = octets[i];
    }
    if (!codes_t.data) return;

    transpose_octets(octets);
#pragma unroll
    for (int j = 0; j < kOctet; j++) reinterpret_cast<uint2*>(shared)[tile_unit(col_octet * kOctet + j, row_octet)] = octets[j];
    __syncthreads();
    for (int unit = threadIdx.x; unit < kTile * (kTile / 16); unit += kTileThreads) {
        int column = unit / 8, part = unit % 8;   // 16 rows each
        if (tile_col + column >= cols) break;
        uint4 codes16 = shared[tile_unit(column, 2 * part) / 2];   // the next unit is its neighbour
        store_codes(codes_t[tile_col + column] + tile_row + part * 16, codes16, rows - tile_row - part * 16);
    }
}

// ================================================================ anything

// One value of any format of codes.
__device__ inline void store_code(void* to, size_t at, float x, Fmt fmt) {
    if (fmt == F32) ((float*)to)[at] = x;
    else if (fmt == BF16) ((bf16*)to)[at] = bf16_from_f32(x);
    else ((uint8_t*)to)[at] = code_from_f32(x, fmt);
}

// A warp a row of the tile, eight rows at a time; then the transposed codes, rows across the lanes.
template <typename T>
__global__ void __launch_bounds__(kTileThreads)
quantize_any_kernel(QMat q, Rows<const T> x, const float* absmax, int rows, int cols, Fmt fmt, float clip) {
    enum { kWarps = kTileThreads / kWarp, kEach = kQuantBlock / kWarps };
    __shared__ float shared[kQuantBlock][kQuantBlock + 1];
    __shared__ uint32_t maxima[kWarps];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tiles_across = (cols + kQuantBlock - 1) / kQuantBlock;
    int tile_row = (int)(blockIdx.x / tiles_across) * kQuantBlock, tile_col = (int)(blockIdx.x % tiles_across) * kQuantBlock;
    int col = tile_col + lane;
    float v[kEach];
    uint32_t bits = 0;
    for (int i = 0; i < kEach; i++) {
        int row = tile_row + warp + i * kWarps;
        v[i] = row < rows && col < cols ? load_values<1>(x[row] + col).v[0] : 0.0f;
        bits = max(bits, f32_bits(v[i]) & 0x7fffffffu);
    }
    float inverse = 1;
    if (q.gran == PER_TENSOR) {
        inverse = quant_inverse(*absmax, fmt, clip);
        if (blockIdx.x == 0 && threadIdx.x == 0) *q.scale = quant_scale(*absmax, fmt, clip);
    }
    if (q.gran == PER_BLOCK32) {
        bits = __reduce_max_sync(0xffffffffu, bits);
        if (lane == 0) maxima[warp] = bits;
        __syncthreads();
        for (int w = 0; w < kWarps; w++) bits = max(bits, maxima[w]);
        inverse = quant_inverse(f32_from_bits(bits), fmt, clip);
        if (threadIdx.x == 0) q.scale[blockIdx.x] = quant_scale(f32_from_bits(bits), fmt, clip);
    }
    for (int i = 0; i < kEach; i++) {
        int row = tile_row + warp + i * kWarps;
        if (q.gran == PER_ROW) inverse = row < rows ? quant_inverse(q.scale[row], fmt, clip) : 1.0f;
        float scaled = q.gran == NO_SCALE ? v[i] : __fmul_rn(v[i], inverse);
        shared[warp + i * kWarps][lane] = scaled;
        if (q.codes.data && row < rows && col < cols) store_code(q.codes.data, (size_t)row * q.codes.ld + col, scaled, fmt);
    }
    if (!q.codes_t.data) return;
    __syncthreads();
    for (int i = 0; i < kEach; i++) {
        int row = tile_row + lane, column = warp + i * kWarps;
        if (row < rows && tile_col + column < cols)
            store_code(q.codes_t.data, (size_t)(tile_col + column) * q.codes_t.ld + row, shared[lane][column], fmt);
    }
}

// ================================================================ PER_ROW: maxima before the codes, scales after them

enum { kRowThreads = 256 };

template <int kWidth, typename T>
__global__ void __launch_bounds__(kRowThreads) row_maxima_kernel(float* maxima, Rows<const T> x, int cols) {
    __shared__ uint32_t of_warp[kRowThreads / kWarp];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    uint32_t bits = 0;
#pragma unroll 4
    for (int col = (int)threadIdx.x * kWidth; col < cols; col += kRowThreads * kWidth) {
        Values<kWidth> v = load_values<kWidth>(x[blockIdx.x] + col);
#pragma unroll
        for (int j = 0; j < kWidth; j++) bits = max(bits, f32_bits(v.v[j]) & 0x7fffffffu);
    }
    bits = __reduce_max_sync(0xffffffffu, bits);
    if (lane == 0) of_warp[warp] = bits;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 0; w < kRowThreads / kWarp; w++) bits = max(bits, of_warp[w]);
    maxima[blockIdx.x] = f32_from_bits(bits);
}

// scale (rows) holds maxima and becomes the scales.
__global__ void __launch_bounds__(kRowThreads) scale_rows_kernel(float* scale, int rows, Fmt fmt, float clip) {
    int row = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (row < rows) scale[row] = quant_scale(scale[row], fmt, clip);
}

// ================================================================ what quantization loses

// A block of threads takes the values of one scale: a row (for PER_TENSOR and NO_SCALE any share would do), or 32 x 32.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kRowThreads)
count_codes_kernel(CodeCounts* counts, Rows<const T> x, int rows, int cols, const float* absmax, Opnd how, CodeRange range) {
    __shared__ uint32_t of_warp[3][kRowThreads / kWarp];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    bool squares = how.gran == PER_BLOCK32;
    int across = squares ? (cols + kQuantBlock - 1) / kQuantBlock : 1, down = (int)blockIdx.x / across;
    int row = squares ? down * kQuantBlock : down, row_end = min(row + (squares ? kQuantBlock : 1), rows);
    int col = squares ? (int)blockIdx.x % across * kQuantBlock : 0, col_end = squares ? min(col + kQuantBlock, cols) : cols;
    int groups = (col_end - col) / kWidth, all = (row_end - row) * groups;
    auto group = [&](int n) { return load_values<kWidth>(x[row + n / groups] + col + n % groups * kWidth); };

    float inverse = how.gran == PER_TENSOR ? quant_inverse(*absmax, how.fmt, how.clip) : 1.0f;
    if (squares || how.gran == PER_ROW) {
        uint32_t bits = 0;
        for (int n = threadIdx.x; n < all; n += kRowThreads) {
            Values<kWidth> v = group(n);
#pragma unroll
            for (int i = 0; i < kWidth; i++) bits = max(bits, f32_bits(v.v[i]) & 0x7fffffffu);
        }
        bits = __reduce_max_sync(0xffffffffu, bits);
        if (lane == 0) of_warp[0][warp] = bits;
        __syncthreads();
        for (int w = 0; w < kRowThreads / kWarp; w++) bits = max(bits, of_warp[0][w]);
        __syncthreads();
        inverse = quant_inverse(f32_from_bits(bits), how.fmt, how.clip);
    }
    uint32_t nonzero = 0, clipped = 0, underflow = 0;
    for (int n = threadIdx.x; n < all; n += kRowThreads) {
        Values<kWidth> v = group(n);
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
            float scaled = fabsf(__fmul_rn(v.v[i], inverse));
            nonzero += v.v[i] != 0;
            clipped += scaled > range.clipped;
            underflow += v.v[i] != 0 && scaled <= range.zero;
        }
    }
    uint32_t mine[3] = {nonzero, clipped, underflow};
#pragma unroll
    for (int k = 0; k < 3; k++) {
        uint32_t sum = __reduce_add_sync(0xffffffffu, mine[k]);
        if (lane == 0) of_warp[k][warp] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= 3) return;
    unsigned long long sum = 0;
    for (int w = 0; w < kRowThreads / kWarp; w++) sum += of_warp[threadIdx.x][w];
    uint64_t* total = threadIdx.x == 0 ? &counts->nonzero : threadIdx.x == 1 ? &counts->clipped : &counts->underflow;
    if (sum) atomicAdd(reinterpret_cast<unsigned long long*>(total), sum);
}

// ================================================================ launchers

template <typename T>
static void launch_count_codes(CodeCounts* counts, Mat x, const float* absmax, Opnd how) {
    int blocks = how.gran == PER_BLOCK32 ? ceil_div(x.rows, kQuantBlock) * ceil_div(x.cols, kQuantBlock) : x.rows;
    CodeRange range = code_range(how.fmt);
    if (is_octets(x)) LAUNCH((count_codes_kernel<8, T>), blocks, kRowThreads, 0, counts, rows_of<const T>(x), x.rows, x.cols, absmax, how, range);
    else LAUNCH((count_codes_kernel<1, T>), blocks, kRowThreads, 0, counts, rows_of<const T>(x), x.rows, x.cols, absmax, how, range);
}
static void count_codes(CodeCounts* counts, Mat x, const float* absmax, Opnd how) {
    check_mat(x, x.rows, x.cols, "count_codes");
    check(fmt_bytes(how.fmt) == 1 && (how.gran != PER_TENSOR || absmax), "count_codes (cuda): %s, granularity %d", fmt_name(how.fmt),
          (int)how.gran);
    if (x.rows == 0 || x.cols == 0) return;
    if (x.fmt == BF16) launch_count_codes<bf16>(counts, x, absmax, how);
    else launch_count_codes<float>(counts, x, absmax, how);
}

struct Quantization {
    QMat q;
    Mat x;
    const float* absmax;
    Fmt fmt;
    float clip;
};

template <typename T, Fmt kFmt, Gran kGran>
static void launch_quantize_tile(Quantization a) {
    int tiles = max_int(1, ceil_div(a.x.rows, kTile)) * ceil_div(a.x.cols, kTile);
    LAUNCH((quantize_tile_kernel<T, kFmt, kGran>), tiles, kTileThreads, 0, rows_of<uint8_t>(a.q.codes), rows_of<uint8_t>(a.q.codes_t),
           a.q.scale, rows_of<const T>(a.x), a.absmax, a.x.rows, a.x.cols, a.clip);
}
template <typename T, Fmt kFmt>
static void launch_quantize_gran(Quantization a) {
    switch (a.q.gran) {
        case PER_TENSOR: return launch_quantize_tile<T, kFmt, PER_TENSOR>(a);
        case PER_ROW: return launch_quantize_tile<T, kFmt, PER_ROW>(a);
        case PER_BLOCK32: return launch_quantize_tile<T, kFmt, PER_BLOCK32>(a);
        case NO_SCALE: return launch_quantize_tile<T, kFmt, NO_SCALE>(a);
    }
    die("quantize (cuda): (%d, %d) to %s, granularity %d", a.x.rows, a.x.cols, fmt_name(a.fmt), (int)a.q.gran);
}
template <typename T>
static void launch_quantize(Quantization a) {
    bool octets = is_octets(a.x) && fmt_bytes(a.fmt) == 1;
    if (a.q.codes.data) octets = octets && a.q.codes.ld % 8 == 0 && (uintptr_t)a.q.codes.data % 8 == 0;
    if (a.q.codes_t.data) octets = octets && a.q.codes_t.ld % 16 == 0 && (uintptr_t)a.q.codes_t.data % 16 == 0;
    if (a.q.gran == PER_ROW) {
        if (is_octets(a.x)) LAUNCH((row_maxima_kernel<8, T>), a.x.rows, kRowThreads, 0, a.q.scale, rows_of<const T>(a.x), a.x.cols);
        else LAUNCH((row_maxima_kernel<1, T>), a.x.rows, kRowThreads, 0, a.q.scale, rows_of<const T>(a.x), a.x.cols);
    }
    if (!octets) {
        int tiles = max_int(1, ceil_div(a.x.rows, kQuantBlock)) * ceil_div(a.x.cols, kQuantBlock);
        LAUNCH((quantize_any_kernel<T>), tiles, kTileThreads, 0, a.q, rows_of<const T>(a.x), a.absmax, a.x.rows, a.x.cols, a.fmt, a.clip);
    } else {
        switch (a.fmt) {
            case INT8: launch_quantize_gran<T, INT8>(a); break;
            case FP8_E4M3: launch_quantize_gran<T, FP8_E4M3>(a); break;
            case FP8_E5M2: launch_quantize_gran<T, FP8_E5M2>(a); break;
            case FP6_E3M2: launch_quantize_gran<T, FP6_E3M2>(a); break;
            case FP6_E2M3: launch_quantize_gran<T, FP6_E2M3>(a); break;
            default: die("quantize (cuda): (%d, %d) to %s", a.x.rows, a.x.cols, fmt_name(a.fmt));
        }
    }
    if (a.q.gran == PER_ROW)
        LAUNCH(scale_rows_kernel, ceil_div(a.x.rows, kRowThreads), kRowThreads, 0, a.q.scale, a.x.rows, a.fmt, a.clip);
}

static void quantize(QMat q, Mat x, const float* absmax, Fmt fmt, float clip) {
    check_mat(x, x.rows, x.cols, "quantize");
    check(!q.codes.data || (q.codes.rows == x.rows && q.codes.cols == x.cols && q.codes.fmt == fmt),
          "quantize (cuda): (%d, %d) to (%d, %d) in %s", x.rows, x.cols, q.codes.rows, q.codes.cols, fmt_name(fmt));
    check(!q.codes_t.data || (q.codes_t.rows == x.cols && q.codes_t.cols == x.rows && q.codes_t.fmt == fmt),
          "quantize (cuda): the transpose of (%d, %d) to (%d, %d) in %s", x.rows, x.cols, q.codes_t.rows, q.codes_t.cols, fmt_name(fmt));
    check(q.gran == NO_SCALE || (fmt_bytes(fmt) == 1 && q.scale), "quantize (cuda): scales for %s", fmt_name(fmt));
    check(q.gran != PER_TENSOR || absmax, "quantize (cuda): per tensor, but no maximum is given");
    if (x.cols == 0 || (x.rows == 0 && q.gran != PER_TENSOR)) return;   // no rows still have a scale, if their matrix has one
    Quantization a = {q, x, absmax, fmt, clip};
    if (x.fmt == BF16) launch_quantize<bf16>(a);
    else launch_quantize<float>(a);
}

#endif
