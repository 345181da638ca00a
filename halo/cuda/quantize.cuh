// Quantization: codes = round(x / s), the same codes transposed, and the scales (numfmt.h).
//
// Bytes an element of bf16: 2 read, 1 written for each of codes and codes_t: 3 or 4, which is the floor of a pass that makes both.
// PER_ROW needs the whole row before its first code: one more reading for the maxima (2), most of it from the L2 cache where
// x fits there.
//
// quantize_tile_kernel takes tiles of 128 x 128: a thread owns 8 x 8, eight 16-byte loads in flight. A warp is 4 x 8 of
// these, so a 32 x 32 block of PER_BLOCK32 is 16 of its lanes, and its maximum five shuffles. Codes leave from registers. The 8 x 8
// are transposed in registers too, exchanged through 16 KB of shared memory, and leave as 16 bytes of 8 neighbouring lanes.
// quantize_any_kernel takes matrices without aligned octets, and casts to bf16 or FP32, in tiles of 32 x 32, a value at a time.
//
// x * inverse is rounded once in FP32, then to the format (codes.cuh). Codes of a rotated x leave the rotation itself, without being
// stored in between; their transposes are a second pass over them: 3 bytes an element, and 2 for codes_t, 1 of them from the L2. Where x is rotated
// along the tokens too, that kernel makes the transposed codes of x itself (rotate/tokens.cuh): 1 byte.
#ifndef HALO_CUDA_QUANTIZE_CUH
#define HALO_CUDA_QUANTIZE_CUH

#include "rotate/rotate.cuh"
#include "wire.cuh"

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

// Eight values as loaded from memory: bf16 values stay packed until they are used.
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

// Where eight codes of a column of the tile lie in shared memory: 16 units of 8 bytes a column, permuted so that the lanes of 8 columns use
// different banks.
__device__ inline int tile_unit(int col, int row_octet) { return col * (kTile / kOctet) + (row_octet ^ (col / kOctet % 8) << 1); }

// The largest magnitude of the 32 x 32 values that 16 lanes of a warp hold, in each of these lanes.
template <typename T>
__device__ __forceinline__ float largest_of_block32(const Octet<T> (&v)[kOctet]) {
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < kOctet; i++) bits = max(bits, v[i].largest());
    for (int step = 1; step < kWarp; step *= 2)
        if (step != 4) bits = max(bits, __shfl_xor_sync(0xffffffffu, bits, step));   // 4: the other of two blocks across
    return f32_from_bits(bits);
}

// Exchange and store: every thread's 8 x 8 codes (octets) through `shared` to the rows of codes_t, 16 codes an access.
__device__ __forceinline__ void store_transposed(Rows<uint8_t> codes_t, uint4* shared, uint2 (&octets)[kOctet], int row_octet, int col_octet,
                                                 int tile_row, int tile_col, int rows, int cols) {
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

template <typename T, Gran kGran>
struct TileBlocks {
    enum { kResident = sizeof(T) == 2 && kGran != PER_BLOCK32 ? 3 : 2 };   // on a multiprocessor
};

// The tile of this number. scale: one | rows | (blocks down, blocks across). For PER_ROW `scale` holds the rows' maxima until
// scale_rows_kernel replaces them.
template <typename T, Fmt kFmt, Gran kGran>
__device__ __forceinline__ void quantize_tile(unsigned tile, Rows<uint8_t> codes, Rows<uint8_t> codes_t, float* scale, Rows<const T> x,
                                              const float* absmax, int rows, int cols, float clip) {
    __shared__ uint4 shared[kTile * kTile / 16];
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    int row_octet = warp / 2 * 4 + lane / 8, col_octet = warp % 2 * 8 + lane % 8;
    int tiles_across = (cols + kTile - 1) / kTile;
    int tile_row = (int)(tile / tiles_across) * kTile, tile_col = (int)(tile % tiles_across) * kTile;
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
        if (tile == 0 && threadIdx.x == 0) *scale = quant_scale(*absmax, kFmt, clip);
    }
    if (kGran == PER_BLOCK32) {
        float largest = largest_of_block32(v);
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
#pragma unroll
        for (int j = 0; j < 8 && kGran != NO_SCALE; j++) row_values.v[j] = __fmul_rn(row_values.v[j], inverse);
        octets[i] = code_octet<kFmt>(row_values);
        if (codes.data && inside && row + i < rows) *(uint2*)(codes[row + i] + col) = octets[i];
    }
    if (!codes_t.data) return;

    store_transposed(codes_t, shared, octets, row_octet, col_octet, tile_row, tile_col, rows, cols);
}

template <typename T, Fmt kFmt, Gran kGran>
__global__ void __launch_bounds__(kTileThreads, TileBlocks<T, kGran>::kResident)
quantize_tile_kernel(Rows<uint8_t> codes, Rows<uint8_t> codes_t, float* scale, Rows<const T> x, const float* absmax, int rows, int cols,
                     float clip) {
    quantize_tile<T, kFmt, kGran>(blockIdx.x, codes, codes_t, scale, x, absmax, rows, cols, clip);
}

// ================================================================ several matrices of bf16 octets in a launch
// A weight of a small model is a few dozen tiles, less than a launch costs.

struct CodedMatrix {
    Rows<const bf16> x;
    Rows<uint8_t> codes, codes_t;
    float *absmax, *scale;
    int rows, cols;
    unsigned first_block, blocks;
};
struct CodedMatrices {
    CodedMatrix matrix[kCodedAtOnce];   // in the order of their blocks
    int count;
    // The matrix that this block works on.
    __device__ const CodedMatrix& of_block() const {
        int i = 0;
        while (i + 1 < count && blockIdx.x >= matrix[i + 1].first_block) i++;
        return matrix[i];
    }
    __host__ unsigned blocks() const { return matrix[count - 1].first_block + matrix[count - 1].blocks; }
    __host__ void add(const Coded& m, unsigned blocks) {
        matrix[count] = {rows_of<const bf16>(m.x), rows_of<uint8_t>(m.q.codes), rows_of<uint8_t>(m.q.codes_t), m.absmax, m.q.scale,
                         m.x.rows, m.x.cols, count ? this->blocks() : 0, blocks};
        count++;
    }
};

__global__ void __launch_bounds__(kAbsmaxThreads) absmax_each_kernel(const __grid_constant__ CodedMatrices matrices) {
    const CodedMatrix& m = matrices.of_block();
    raise_absmax_of<8>(m.absmax, m.x, m.rows, m.cols / 8, blockIdx.x - m.first_block, m.blocks);
}

// codes_t from codes, of rows that start at multiples of 16 bytes.
__global__ void __launch_bounds__(kWireThreads) transpose_each_kernel(const __grid_constant__ CodedMatrices matrices) {
    const CodedMatrix& m = matrices.of_block();
    int tile = (int)(blockIdx.x - m.first_block), across = (m.cols + kTransposeTile - 1) / kTransposeTile;
    Rows<const uint8_t> codes = {m.codes.data, m.codes.ld};
    transpose_tile(m.codes_t, codes, m.rows, m.cols, true, tile / across * kTransposeTile, tile % across * kTransposeTile);
}

template <Fmt kFmt>
__global__ void __launch_bounds__(kTileThreads, TileBlocks<bf16, PER_TENSOR>::kResident)
quantize_each_kernel(const __grid_constant__ CodedMatrices matrices, float clip) {
    const CodedMatrix& m = matrices.of_block();
    quantize_tile<bf16, kFmt, PER_TENSOR>(blockIdx.x - m.first_block, m.codes, m.codes_t, m.scale, m.x, m.absmax, m.rows, m.cols, clip);
}

// ================================================================ anything

// First a warp for each row of the tile, eight rows at a time; then the transposed codes, with a lane for each row.
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

// A block of threads counts values that have one scale: 32 x 32 of them for PER_BLOCK32, else a row.
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

static int tile_count(Mat x) { return max_int(1, ceil_div(x.rows, kTile)) * ceil_div(x.cols, kTile); }
// Are x, the codes and the transposed codes such that quantize_tile takes them?
static bool is_tiles(QMat q, Mat x, Fmt fmt) {
    bool octets = is_octets(x) && fmt_bytes(fmt) == 1;
    if (q.codes.data) octets = octets && q.codes.ld % 8 == 0 && (uintptr_t)q.codes.data % 8 == 0;
    if (q.codes_t.data) octets = octets && is_sixteens(q.codes_t);
    return octets;
}
template <typename T, Fmt kFmt, Gran kGran>
static void launch_quantize_tile(Quantization a) {
    int tiles = tile_count(a.x);
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
    if (a.q.gran == PER_ROW) {
        if (is_octets(a.x)) LAUNCH((row_maxima_kernel<8, T>), a.x.rows, kRowThreads, 0, a.q.scale, rows_of<const T>(a.x), a.x.cols);
        else LAUNCH((row_maxima_kernel<1, T>), a.x.rows, kRowThreads, 0, a.q.scale, rows_of<const T>(a.x), a.x.cols);
    }
    if (!is_tiles(a.q, a.x, a.fmt)) {
        int tiles = max_int(1, ceil_div(a.x.rows, kQuantBlock)) * ceil_div(a.x.cols, kQuantBlock);
        LAUNCH((quantize_any_kernel<T>), tiles, kTileThreads, 0, a.q, rows_of<const T>(a.x), a.absmax, a.x.rows, a.x.cols, a.fmt, a.clip);
    } else {
        with_code_fmt(a.fmt, [&](auto fmt) { launch_quantize_gran<T, decltype(fmt)::value>(a); });
    }
    if (a.q.gran == PER_ROW)
        LAUNCH(scale_rows_kernel, ceil_div(a.x.rows, kRowThreads), kRowThreads, 0, a.q.scale, a.x.rows, a.fmt, a.clip);
}

// Codes of x H or H x: the rotation writes codes, and a second pass transposes them, a band of whole vectors at a time, small enough for
// the L2 cache. If only transposed codes are wanted, the band's codes lie in the workspace (the rotation uses `strip`, not the workspace).
static void quantize_rotated(Quantization a, Rotation rotation) {
    int rows = qmat_row_count(a.q), cols = a.x.cols;
    bool by_rows = rotation.axis == ROTATE_COLS;
    int count = by_rows ? rows : cols, vector = (int)round_up((size_t)(by_rows ? cols : rows), kTransposeChunk), band = count;
    if (a.q.codes_t.data) band = kWorkspaceBytes / vector / kTransposeTile * kTransposeTile;
    check(band > 0, "quantize (cuda): a band of (%d, %d) exceeds the workspace", rows, cols);
    for (int first = 0; first < count; first += band) {
        int some = min_int(band, count - first);
        QMat q = by_rows ? qmat_rows(a.q, first, some) : qmat_cols(a.q, first, some);
        Mat x = by_rows ? mat_rows(a.x, first, some) : mat_cols(a.x, first, some);
        if (!q.codes.data)
            q.codes = Mat{cuda_held().workspace, by_rows ? some : rows, x.cols, (int)round_up((size_t)x.cols, kTransposeChunk), a.fmt};
        RotateJob job = rotate_job(q.codes, x, rotation.axis, false, rotation.block);
        job.quantizer = Quantizer{a.absmax, a.q.scale, a.clip};
        run_rotate_job(job);
        if (q.codes_t.data) transpose_codes(q.codes_t, q.codes);
    }
}

static void quantize(QMat q, Mat x, Rotation rotation, const float* absmax, Fmt fmt, float clip) {
    check_mat(x, x.rows, x.cols, "quantize");
    check_qmat(q, x, rotation, fmt);
    check(q.gran != PER_TENSOR || absmax, "quantize (cuda): per tensor, but no maximum is given");
    if (x.cols == 0 || (x.rows == 0 && q.gran != PER_TENSOR)) return;   // even without rows PER_TENSOR has a scale to write
    Quantization a = {q, x, absmax, fmt, clip};
    if (rotation.axis != ROTATE_NONE && qmat_row_count(q) > 0) quantize_rotated(a, rotation);
    else if (x.fmt == BF16) launch_quantize<bf16>(a);
    else launch_quantize<float>(a);
}

// ---- several matrices, rotated: a launch takes those that lie one above the other in memory, as the matrices of a stack do

// How many of the first of `count` matrices a job takes, and the job: for their maxima, or (`encode`) for their codes without transposes.
static int stack_job(RotateJob* job, const Coded* m, int count, bool encode) {
    Mat x = m->x, y = encode ? m->q.codes : mat(NULL, x.rows, x.cols, x.fmt);
    int stacked = 1;
    for (; stacked < count && stacked < kStackMost; stacked++) {
        const Coded* next = m + stacked;
        Mat above = mat_rows(x, x.rows, 0);   // where the next matrix lies if it is the next of the stack
        bool alike = next->x.data == above.data && next->x.cols == x.cols && next->x.ld == x.ld && next->x.fmt == x.fmt;
        if (!alike || (encode && (next->q.codes.ld != y.ld || (uintptr_t)next->q.codes.data % 8))) break;
        x.rows += next->x.rows;
    }
    y.rows = x.rows;
    *job = rotate_job(y, x, ROTATE_COLS, false, 0);
    job->stack = m;
    job->stacked = stacked;
    return stacked;
}
static void absmax_each_rotated(const Coded* m, int count) {
    for (int i = 0, taken; i < count; i += taken) {
        RotateJob job;
        taken = stack_job(&job, m + i, count - i, false);
        job.absmax = m[i].absmax;
        if (taken > 1 && rotate_features(job)) continue;
        taken = 1;
        absmax_each_by(absmax, rotate, m + i, 1, true);
    }
}
// The codes; then all transposed codes by one launch, while the codes are in the L2 cache. False, with nothing done, if they are too many
// for that, or not as transpose_each_kernel takes them.
static bool quantize_each_rotated(const Coded* m, int count, Fmt fmt, float clip) {
    CodedMatrices transposes = {};
    const Rotation features = {ROTATE_COLS, 0};
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        const QMat& q = m[i].q;
        check_qmat(q, m[i].x, features, fmt);
        bytes += mat_bytes(q.codes);
        if (!q.codes.data || m[i].x.rows == 0 || m[i].x.cols == 0 || bytes > kWorkspaceBytes) return false;
        if (!q.codes_t.data) continue;
        if (!is_sixteens(q.codes) || !is_sixteens(q.codes_t)) return false;
        transposes.add(m[i], (unsigned)(ceil_div(m[i].x.rows, kTransposeTile) * ceil_div(m[i].x.cols, kTransposeTile)));
    }
    for (int i = 0, taken; i < count; i += taken) {
        RotateJob job;
        taken = stack_job(&job, m + i, count - i, true);
        job.quantizer = Quantizer{m[i].absmax, m[i].q.scale, clip};
        if (taken > 1 && rotate_features(job)) continue;
        Coded one = m[i];
        taken = 1;
        one.q.codes_t.data = NULL;
        quantize_each_by(quantize, &one, 1, true, fmt, clip);
    }
    if (transposes.count) LAUNCH(transpose_each_kernel, transposes.blocks(), kWireThreads, 0, transposes);
    return true;
}

static void absmax_each(const Coded* m, int count, bool rotated) {
    CodedMatrices launch = {};
    check(count <= kCodedAtOnce, "absmax_each (cuda): %d matrices", count);
    if (rotated) return absmax_each_rotated(m, count);
    for (int i = 0; i < count; i++) {
        Mat x = m[i].x;
        if (x.fmt != BF16 || !is_octets(x) || x.rows == 0 || x.cols == 0) break;
        launch.add(m[i], absmax_blocks(x, x.cols / 8));
    }
    if (launch.count < count) return absmax_each_by(absmax, rotate, m, count, false);
    LAUNCH(absmax_each_kernel, launch.blocks(), kAbsmaxThreads, 0, launch);
}

static void quantize_each(const Coded* m, int count, bool rotated, Fmt fmt, float clip) {
    CodedMatrices launch = {};
    check(count <= kCodedAtOnce, "quantize_each (cuda): %d matrices", count);
    if (rotated) {
        if (!quantize_each_rotated(m, count, fmt, clip)) quantize_each_by(quantize, m, count, true, fmt, clip);
        return;
    }
    for (int i = 0; i < count; i++) {
        check_qmat(m[i].q, m[i].x, kRotateNone, fmt);
        if (m[i].x.fmt != BF16 || !is_tiles(m[i].q, m[i].x, fmt) || m[i].x.cols == 0) break;
        launch.add(m[i], tile_count(m[i].x));
    }
    if (launch.count < count) return quantize_each_by(quantize, m, count, false, fmt, clip);
    with_code_fmt(fmt, [&](auto of) { LAUNCH((quantize_each_kernel<decltype(of)::value>), launch.blocks(), kTileThreads, 0, launch, clip); });
}

// Where only codes are wanted and the kernels of rotate/tokens.cuh take x, the maximum and the codes share a pass, which may make the plain
// codes too.
static void quantize_tokens(QMat q, Mat x, int block, float* absmax, Fmt fmt, float clip, const PlainCodes* plain, void* scratch) {
    Rotation rotation = {ROTATE_ROWS, block};
    check_mat(x, x.rows, x.cols, "quantize_tokens");
    check_qmat(q, x, rotation, fmt);
    if (plain) check_qmat(plain->q, x, kRotateNone, plain->fmt);
    Mat nowhere = mat(NULL, qmat_row_count(q), x.cols, x.fmt);
    bool rotated = false, beside = false;   // what is done
    if (q.codes.data && !q.codes_t.data && q.codes.rows > 0 && x.cols > 0) {
        RotateJob measure = rotate_job(nowhere, x, ROTATE_ROWS, false, block), encode = rotate_job(q.codes, x, ROTATE_ROWS, false, block);
        measure.absmax = absmax;
        encode.quantizer = Quantizer{absmax, q.scale, clip};
        beside = plain && makes_plain_codes(measure, *plain);
        rotated = rotate_tokens_twice(measure, encode, beside ? plain : NULL, scratch);
    }
    if (!rotated) {
        rotate(nowhere, x, ROTATE_ROWS, false, block, absmax);
        quantize(q, x, rotation, absmax, fmt, clip);
    }
    if (plain && !(rotated && beside)) quantize(plain->q, x, kRotateNone, plain->absmax, plain->fmt, plain->clip);
}

#endif
