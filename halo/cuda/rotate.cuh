// Hadamard rotations of a matrix from the right (features) or from the left (tokens), and its largest magnitude.
//
// Bytes: bf16 in, bf16 out, 4 an element, each once; the floor is a copy of the matrix. absmax reads 2.
//
// One flat index serves both axes. A block of threads takes an item: `vectors` vectors of order n = K0 2^k, W columns side by side
// (W = 1 from the right, where a vector is a row), and element e = ((vector n + i) W + w). So the bits of e are, from below: w, the
// bits of the run 2^k, then K0 and the vector; a Hadamard matrix of some of e's bits is a butterfly over them, whatever the axis.
//
// rotate_mma_kernel, for bf16: tensor cores add, FP32 in between.
//   within   256 elements are one 16-byte access of a warp: lane l holds e = 8 l ... 8 l + 7. Two products with 16 x 16 signs transform
//            any of their 8 bits; the first leaves each lane with just what the second wants, the second with what is stored, so
//            nothing is shuffled. A masked bit has the identity for its 2 x 2 factor. 4 in all: 6 mma for 256 elements.
//   blocks   up to 16 neighbouring 256s of a warp: additions in registers. Orders 2^k up to 4096 are done here.
//   across   what is left is a dense matrix of signs of order G = K0 2^m, through shared memory: ceil(G/16)^2 k16-products of 16 x 8.
// Values that enter a second product are split into two bf16, 16 significant bits: the result errs by 2^-16 before it is rounded.
// Shared memory holds FP32, or, for large items, its upper 24 bits.
// Instructions an element at n = 14336: 3 + 3 to split, 0.75 + 1.5 mma, 1 + 1 shared, 3 others: under half of what the time of a copy
// would issue. Shared memory moves 8 bytes an element of the 28 that it could in that time (128 bytes a clock, 4.3 TB/s).
//
// What is no bf16 matrix of octets, runs below 16, token axes that no shared memory holds, codes and bare maxima: rotate_exact.cuh.
#ifndef HALO_CUDA_ROTATE_CUH
#define HALO_CUDA_ROTATE_CUH

#include "rotate_exact.cuh"

// ================================================================ items

// How an item lies in the matrices, and what is done to it.
struct RotateItem {
    int columns;                     // of a matrix row in an item: n or W
    uint32_t across_inverse;         // of d, the octets (or values) in `columns`: unit / d = unit * across_inverse >> across_shift,
    int across_shift;                //   exact below 2^30 with ceil(2^shift / d) and shift = 31 + floor(log2 d)
    int items_across;                // items side by side in the matrix
    int item_step, row_step;         // rows from item to item, and from element to element
    int x_rows, y_rows, cols;
    int elements;                    // of an item
    int first_bit, log2_run;         // bits [first_bit, log2_run) of e are the butterflies', a run is 2^log2_run elements
    int together;                    // 256s that a warp adds up in registers
    int order;                       // of the matrix across runs
    const uint4* fragments;          // its signs for tensor cores,
    const float* signs;              // and as numbers, (order, order)
    float scale;
    float* absmax;                   // raised unless NULL

    // The row and column of the `unit`th octet (or value) of an item.
    __device__ void locate(uint32_t unit, uint32_t units_across, int width, int* row, int* col) const {
        uint32_t down = (uint32_t)((uint64_t)unit * across_inverse >> across_shift);
        int item = blockIdx.x, across = item % items_across, item_row = item / items_across;
        *row = item_row * item_step + (int)down * row_step;
        *col = across * columns + (int)(unit - down * units_across) * width;
    }
};

// ================================================================ within a warp: building blocks for rotate and for fused producers

// Signs of the 16 x 16 product that transforms those bits of its index that are in `bits`, as this lane's A fragment.
__device__ inline void partial_hadamard(uint32_t (&a)[4], unsigned bits) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int r = 0; r < 4; r++) {
        a[r] = 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned i = lane / 4 + r % 2 * 8, k = lane % 4 * 2 + half + r / 2 * 8;
            uint32_t one = __popc(i & k & bits) & 1 ? 0xbf80u : 0x3f80u;
            a[r] |= ((i ^ k) & ~bits & 15u ? 0u : one) << 16 * half;
        }
    }
}

// Which of the 8 bits within 256 elements are transformed, as the fragments of the two products.
struct WithinSigns {
    uint32_t first[4], second[4];
};
__device__ inline WithinSigns within_signs(int first_bit, int end_bit) {
    unsigned bits = ((1u << min(end_bit, 8)) - 1) & ~((1u << min(first_bit, 8)) - 1);
    auto at = [bits](int from, int to) { return (bits >> from & 1u) << to; };
    WithinSigns s;
    partial_hadamard(s.first, at(0, 0) | at(3, 1) | at(4, 2) | at(1, 3));
    partial_hadamard(s.second, at(5, 0) | at(6, 1) | at(7, 2) | at(2, 3));
    return s;
}

// Two FP32 values as the sum of two bf16 each.
struct SplitPair {
    uint32_t high, low;
};
__device__ inline SplitPair split(float a, float b) {
    SplitPair s;
    s.high = bf16_pair(a, b);
    s.low = bf16_pair(a - f32_from_bits(s.high << 16), b - f32_from_bits(s.high & 0xffff0000u));
    return s;
}

// The sums, unscaled, over the bits within 256 elements of which lane l holds 8 l ... 8 l + 7, on the way in and out. Index bits in
// the first product: k = (0; 3, 4; 1), the pair, the lane % 4, the half; a column is (5, 6, 7), and 2 tells the two products apart.
// So its result has (5) in a pair, (6, 7) in lane % 4 and (0, 3, 4; 1) in rows: an operand that is summed over k = (5; 6, 7; 2).
__device__ inline void hadamard_within(float (&v)[8], Packed<8> x, const WithinSigns& signs) {
    float half[2][4] = {{0, 0, 0, 0}, {0, 0, 0, 0}};
    mma_bf16(half[0], signs.first, x.pair[0], x.pair[1]);
    mma_bf16(half[1], signs.first, x.pair[2], x.pair[3]);
#pragma unroll
    for (int bit1 = 0; bit1 < 2; bit1++) {
        SplitPair b0 = split(half[0][2 * bit1], half[0][2 * bit1 + 1]), b1 = split(half[1][2 * bit1], half[1][2 * bit1 + 1]);
        float sum[4] = {0, 0, 0, 0};
        mma_bf16(sum, signs.second, b0.low, b1.low);
        mma_bf16(sum, signs.second, b0.high, b1.high);
        v[2 * bit1] = sum[0];
        v[2 * bit1 + 1] = sum[1];
        v[4 + 2 * bit1] = sum[2];
        v[4 + 2 * bit1 + 1] = sum[3];
    }
}

// ... and over each `together` (1, 2, 4 ... kBlocks) neighbouring 256s of one warp.
template <int kBlocks>
__device__ inline void hadamard_blocks(float (&v)[kBlocks][8], const Packed<8> (&x)[kBlocks], const WithinSigns& signs, int together) {
#pragma unroll
    for (int b = 0; b < kBlocks; b++) hadamard_within(v[b], x[b], signs);
#pragma unroll
    for (int step = 1; step < kBlocks; step *= 2) {
        if (step >= together) return;
#pragma unroll
        for (int b = 0; b < kBlocks; b++) {
            if (b & step) continue;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float low = v[b][i], high = v[b + step][i];
                v[b][i] = low + high;
                v[b + step][i] = low - high;
            }
        }
    }
}

// ================================================================ through shared memory: from warps to the matrix across

// Octets go in (consecutive ones by consecutive lanes), single values come out: 8 lanes the same pair of four neighbouring octets, times
// 4 lanes two runs apart. The swizzles keep both free of bank conflicts: they add bits of the octet and of the run to bank bits that
// these lanes share. A cursor is the place of an element in the first pair of its octet: multiples of eight runs (runs are 16 or more, and
// orders multiples of 4) and the pair itself leave its swizzle alone.
struct Exchange32 {
    enum { kResident = 3 };   // items whose shared memory a multiprocessor holds
    float* data;
    int log2_run;
    __device__ Exchange32(char* shared, int, int log2_run_) : data((float*)shared), log2_run(log2_run_) {}
    __device__ int place(int e) const { return e ^ ((e >> 5 ^ e >> (log2_run + 1)) & 3) << 1; }
    __device__ void store(int e, const float (&v)[8]) {
#pragma unroll
        for (int i = 0; i < 8; i += 2) *(float2*)(data + place(e + i)) = make_float2(v[i], v[i + 1]);
    }
    typedef int Cursor;
    __device__ Cursor cursor(int e) const { return place(e); }
    __device__ float load(Cursor c, int eight_runs, int pair) const { return data[(c + eight_runs) ^ pair << 1]; }
};

// The upper 24 bits of each value: 16 in one plane, 8 in another. Cut, not rounded, so that NaN stays NaN.
struct Exchange24 {
    enum { kResident = 2 };
    uint16_t* high;
    uint8_t* low;
    int log2_run;   // at least 6
    __device__ Exchange24(char* shared, int elements, int log2_run_)
        : high((uint16_t*)shared), low((uint8_t*)shared + 2 * (size_t)elements), log2_run(log2_run_) {}
    __device__ int place_high(int e) const {
        int run = e >> (log2_run + 1);
        return e ^ ((e >> 6 ^ run) & 1) << 2 ^ (run >> 1 & 1) << 5;
    }
    __device__ int place_low(int e) const { return e ^ (e >> (log2_run + 1) & 3) << 5; }
    __device__ void store(int e, const float (&v)[8]) {
        uint32_t u[8];
#pragma unroll
        for (int i = 0; i < 8; i++) u[i] = f32_bits(v[i]);
#pragma unroll
        for (int i = 0; i < 8; i += 4)
            *(uint2*)(high + place_high(e + i)) = make_uint2(__byte_perm(u[i], u[i + 1], 0x7632), __byte_perm(u[i + 2], u[i + 3], 0x7632));
        uint32_t pair[4];
#pragma unroll
        for (int i = 0; i < 4; i++) pair[i] = __byte_perm(u[2 * i], u[2 * i + 1], 0x0051);
        *(uint2*)(low + place_low(e)) = make_uint2(__byte_perm(pair[0], pair[1], 0x5410), __byte_perm(pair[2], pair[3], 0x5410));
    }
    struct Cursor {
        int high, low;
    };
    __device__ Cursor cursor(int e) const { return Cursor{place_high(e), place_low(e)}; }
    __device__ float load(Cursor c, int eight_runs, int pair) const {
        uint32_t upper = high[(c.high + eight_runs) ^ pair << 1], lower = low[(c.low + eight_runs) ^ pair << 1];
        return f32_from_bits(upper << 16 | lower << 8);
    }
};
struct NoExchange {
    enum { kResident = 2 };
    __device__ NoExchange(char*, int, int) {}
};

// 32 positions of the runs (four octets, from octet `first` on) through the matrix across, kTiles 16-row tiles of it at a time;
// put(e, v) takes each finished octet. Position bits of a column: (0; 3, 4), and (1, 2) tell four products apart: so a lane ends
// with octets.
template <int kTiles, typename Exchange, typename Put>
__device__ inline void hadamard_across(const Exchange& exchange, const RotateItem& item, int first, Put put) {
    int lane = threadIdx.x % kWarp, run = 1 << item.log2_run, tiles = (item.order + kFragment - 1) / kFragment;
    auto element = [&](int octet) {   // of run 0 of its vector
        int position = octet * 8;
        return (position >> item.log2_run) * item.order * run + (position & (run - 1));
    };
    int from = element(first + lane / 8) + (lane / 4 & 1) + lane % 4 * 2 * run, to = element(first + lane % 4);
    auto even = exchange.cursor(from), odd = exchange.cursor(from + run);
    for (int row = 0; row < tiles; row += kTiles) {
        float sum[kTiles][4][4] = {};
        for (int step = 0; step < tiles; step++) {
            uint4 a[kTiles];
#pragma unroll
            for (int r = 0; r < kTiles; r++)
                if (row + r < tiles) a[r] = __ldg(item.fragments + ((size_t)(row + r) * tiles + step) * kWarp + lane);
#pragma unroll
            for (int t = 0; t < 4; t++) {
                SplitPair b[2];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // Behind the last run the signs are zero; any value of this vector does.
                    int runs = step * kFragment + half * 8;
                    int ahead = runs + lane % 4 * 2 < item.order ? runs * run : 0;
                    b[half] = split(exchange.load(even, ahead, t), exchange.load(odd, ahead, t));
                }
#pragma unroll
                for (int r = 0; r < kTiles; r++) {
                    if (row + r >= tiles) break;
                    uint32_t sign[4] = {a[r].x, a[r].y, a[r].z, a[r].w};
                    mma_bf16(sum[r][t], sign, b[0].low, b[1].low);
                    mma_bf16(sum[r][t], sign, b[0].high, b[1].high);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < kTiles; r++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int i = (row + r) * kFragment + lane / 4 + half * 8;
                if (i >= item.order) continue;
                Values<8> v;
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    v.v[2 * t] = sum[r][t][2 * half];
                    v.v[2 * t + 1] = sum[r][t][2 * half + 1];
                }
                put(to + i * run, v);
            }
        }
    }
}

// ================================================================ bf16: tensor cores
// One item a block of threads. A warp takes groups of kBlocks 256s: without an exchange (kTiles 0) one, else as many as there are.
enum { kRotateThreads = 256, kRotateAloneThreads = 128, kRotateMostThreads = 512, kRotateGroup = 4 };

// Few tiles across: two or three blocks of 256 threads a multiprocessor hide each other's barriers. Many: room for their sums.
__host__ __device__ constexpr int rotate_most_threads(int tiles) {
    return tiles == 0 ? kRotateAloneThreads : tiles <= 2 ? kRotateThreads : kRotateMostThreads;
}

template <int kBlocks, int kTiles, typename Exchange>
__global__ void __launch_bounds__(rotate_most_threads(kTiles), kTiles <= 2 ? Exchange::kResident : 1)
rotate_mma_kernel(Rows<bf16> y, Rows<const bf16> x, RotateItem item) {
    SHARED(char, shared);
    Exchange exchange(shared, item.elements, item.log2_run);
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
    uint32_t largest = 0;

    auto load = [&](int group, Packed<8> (&octets)[kBlocks]) {
#pragma unroll
        for (int b = 0; b < kBlocks; b++) {
            int row, col, octet = (group * kBlocks + b) * kWarp + lane;
            item.locate(octet, item.columns / 8, 8, &row, &col);
            octets[b] = Packed<8>{{0, 0, 0, 0}};
            if (octet * 8 < item.elements && row < item.x_rows && col < item.cols) octets[b] = load_packed<8>(x[row] + col);
        }
    };
    auto put = [&](int e, Values<8> v) {
        int row, col;
        item.locate(e / 8, item.columns / 8, 8, &row, &col);
        if (row >= item.y_rows || col >= item.cols) return;
#pragma unroll
        for (int i = 0; i < 8; i++) v.v[i] *= item.scale;
        Packed<8> rounded = pack(v);
        largest = max(largest, largest_bits(rounded));
        store_packed(y[row] + col, rounded);
    };

    Packed<8> octets[kBlocks];
    load(warp, octets);
    WithinSigns signs = within_signs(item.first_bit, item.log2_run);
    if constexpr (kTiles == 0) {
        float v[kBlocks][8];
        hadamard_blocks(v, octets, signs, kBlocks);
#pragma unroll
        for (int b = 0; b < kBlocks; b++) {
            Values<8> out;
#pragma unroll
            for (int i = 0; i < 8; i++) out.v[i] = v[b][i];
            put(((warp * kBlocks + b) * kWarp + lane) * 8, out);
        }
    } else {
        int groups = (item.elements + 256 * kBlocks - 1) / (256 * kBlocks);
        for (int group = warp; group < groups; group += warps) {
            Packed<8> next[kBlocks];   // on their way while this group is transformed
            if (group + warps < groups) load(group + warps, next);
            float v[kBlocks][8];
            hadamard_blocks(v, octets, signs, item.together);
#pragma unroll
            for (int b = 0; b < kBlocks; b++) {
                int e = ((group * kBlocks + b) * kWarp + lane) * 8;
                if (e < item.elements) exchange.store(e, v[b]);
                octets[b] = next[b];
            }
        }
        __syncthreads();   // from here on nothing of x is read: y may be x
        int positions = item.elements / item.order;
        for (int first = warp * 4; first < positions / 8; first += warps * 4) hadamard_across<kTiles>(exchange, item, first, put);
    }
    if (item.absmax) raise_block_absmax(item.absmax, largest);
}

// ================================================================ the largest magnitude
enum { kAbsmaxThreads = 512, kAbsmaxLoads = 4 };

template <int kWidth, typename T>
__global__ void __launch_bounds__(kAbsmaxThreads) absmax_kernel(float* absmax, Rows<const T> x, int rows, unsigned units_across) {
    uint32_t largest = 0;
    unsigned units = (unsigned)rows * units_across, threads = gridDim.x * blockDim.x;
    for (unsigned unit = blockIdx.x * blockDim.x + threadIdx.x; unit < units; unit += threads * kAbsmaxLoads) {
        Values<kWidth> v[kAbsmaxLoads] = {};
#pragma unroll
        for (int i = 0; i < kAbsmaxLoads; i++) {
            unsigned at = unit + i * threads;
            if (at < units) v[i] = load_values<kWidth>(x[at / units_across] + at % units_across * kWidth);
        }
#pragma unroll
        for (int i = 0; i < kAbsmaxLoads; i++)
#pragma unroll
            for (int j = 0; j < kWidth; j++) largest = max(largest, f32_bits(v[i].v[j]) & 0x7fffffffu);
    }
    raise_block_absmax(absmax, largest);
}

// ================================================================ launchers

template <typename T>
static void launch_absmax(float* absmax, Mat x) {
    bool octets = is_octets(x);
    int across = octets ? x.cols / 8 : x.cols;
    check((size_t)x.rows * across < 1u << 31, "absmax (cuda): (%d, %d) is too large to count in 32 bits", x.rows, x.cols);
    size_t per_block = (size_t)kAbsmaxThreads * kAbsmaxLoads, blocks = ((size_t)x.rows * across + per_block - 1) / per_block;
    size_t most = (size_t)gpu_device().multiprocessors * 4;
    unsigned grid = (unsigned)(blocks < most ? blocks : most);
    if (octets) LAUNCH((absmax_kernel<8, T>), grid, kAbsmaxThreads, 0, absmax, rows_of<const T>(x), x.rows, across);
    else LAUNCH((absmax_kernel<1, T>), grid, kAbsmaxThreads, 0, absmax, rows_of<const T>(x), x.rows, across);
}
static void absmax(float* absmax, Mat x) {
    check_mat(x, x.rows, x.cols, "absmax");
    if (x.rows == 0 || x.cols == 0) return;
    if (x.fmt == BF16) launch_absmax<bf16>(absmax, x);
    else launch_absmax<float>(absmax, x);
}

// The item of `vectors` vectors with W columns each, and the number of items.
static RotateItem rotate_item(const RotateJob& r, int vectors, int W, int unit, int* items) {
    RotateItem item = {};
    int K0 = hadamard_base_order(r.n), rows = max_int(r.x.rows, r.y.rows);
    bool from_right = r.axis == ROTATE_COLS;
    item.columns = from_right ? r.n : W;
    int divisor = item.columns / unit;
    item.across_shift = 31 + floor_log2(divisor);
    item.across_inverse = (uint32_t)(((1ull << item.across_shift) + (unsigned)divisor - 1) / (unsigned)divisor);
    item.items_across = from_right ? 1 : ceil_div(r.x.cols, W);
    item.row_step = r.step;
    item.item_step = from_right ? vectors : r.step == 1 ? vectors * r.n : 1;
    item.x_rows = r.x.rows;
    item.y_rows = r.y.rows;
    item.cols = r.x.cols;
    item.elements = vectors * r.n * W;
    item.first_bit = floor_log2(W);
    item.log2_run = item.first_bit + floor_log2(r.n / K0);
    item.order = K0;
    // y = x H is y^T = H^T x^T
    item.signs = rotate_signs()->base[hadamard_base_index(K0)][from_right != r.transpose];
    item.scale = r.scale;
    item.absmax = r.absmax;
    *items = item.items_across * (r.step > 1 ? r.step : ceil_div(rows, item.item_step));
    return item;
}

template <int kBlocks, int kTiles, typename Exchange>
static void launch_rotate_mma(const RotateJob& r, RotateItem item, int items, int threads, size_t shared_bytes) {
    static bool allowed;
    if (kTiles && !allowed) {
        allow_shared(rotate_mma_kernel<kBlocks, kTiles, Exchange>, shared_limit());
        allowed = true;
    }
    LAUNCH((rotate_mma_kernel<kBlocks, kTiles, Exchange>), items, threads, shared_bytes, rows_of<bf16>(r.y), rows_of<const bf16>(r.x),
           item);
}
static void launch_rotate_alone(int blocks, const RotateJob& r, RotateItem item, int items) {
    switch (blocks) {
        case 1: return launch_rotate_mma<1, 0, NoExchange>(r, item, items, kRotateAloneThreads, 0);
        case 2: return launch_rotate_mma<2, 0, NoExchange>(r, item, items, kRotateAloneThreads, 0);
        case 4: return launch_rotate_mma<4, 0, NoExchange>(r, item, items, kRotateAloneThreads, 0);
        case 8: return launch_rotate_mma<8, 0, NoExchange>(r, item, items, kRotateAloneThreads, 0);
        case 16: return launch_rotate_mma<16, 0, NoExchange>(r, item, items, kRotateAloneThreads, 0);
        default: die("rotate (cuda): order %d, %d blocks a warp", r.n, blocks);
    }
}

// Items as large as the exchange likes them: 64 KB of FP32 where columns are gathered from many rows and wide strips pay.
enum { kRotateElements = 8192, kRotateTokenElements = 32768, kRotateWidest = 64, kRotateFp32Bytes = 76 << 10 };

// By tensor cores; false if the shape is not for them.
static bool rotate_mma(const RotateJob& r) {
    bool from_right = r.axis == ROTATE_COLS;
    int K0 = hadamard_base_order(r.n), run = r.n / K0, W = 1;
    if (r.x.fmt != BF16 || r.y.fmt != BF16 || !r.y.data || !is_octets(r.x) || !is_octets(r.y)) return false;
    if (from_right && run < (K0 == 1 ? 8 : 16)) return false;
    if (!from_right)
        for (W = K0 == 1 || run > 1 ? 8 : 16; W < kRotateWidest && W < r.x.cols && (size_t)r.n * W * 2 <= kRotateTokenElements; W *= 2) {}
    if ((size_t)r.n * W * 3 > shared_limit()) return false;

    // Of the run's bits, 8 are done within 256 elements; the others go to the blocks of a warp and, beyond those, across.
    int outer = max_int(0, floor_log2(run * W) - 8), doublings = 0;
    bool alone = K0 == 1 && outer <= 4;
    if (!alone && outer > 2) doublings = K0 == 1 && outer == 5 ? 4 : outer - 2;
    int blocks = 1 << (outer - doublings), order = K0 << doublings;
    if (order > kAcrossMost && doublings) return false;

    // Whole 256s, and whole groups of 32 positions; alone, one group of blocks for each warp.
    int vectors = 1, items;
    size_t at_least = alone ? (size_t)kRotateAloneThreads / kWarp * 256 * blocks : kRotateElements / 2;
    auto elements = [&] { return (size_t)vectors * r.n * W; };
    while (elements() < at_least || elements() % 256 || elements() / order % 32) vectors *= 2;
    RotateItem item = rotate_item(r, vectors, W, 8, &items);
    if (alone) {
        launch_rotate_alone(blocks, r, item, items);
        return true;
    }
    item.log2_run -= doublings;
    item.order = order;
    item.together = blocks;
    item.fragments = rotate_signs()->across[hadamard_base_index(K0)][doublings][from_right != r.transpose];
    size_t bytes = (size_t)item.elements * 4;
    bool wide = bytes <= kRotateFp32Bytes || item.log2_run < 6;
    if (!wide) bytes = (size_t)item.elements * 3;
    if (bytes > shared_limit()) return false;
    bool few = order <= 2 * kFragment;   // tiles of the matrix across
    int groups = ceil_div(item.elements, 256 * kRotateGroup);
    int most = few || bytes * 2 <= shared_limit() ? kRotateThreads : kRotateMostThreads;
    int threads = min_int(most, groups * kWarp);
    if (few && wide) launch_rotate_mma<kRotateGroup, 2, Exchange32>(r, item, items, threads, bytes);
    else if (few) launch_rotate_mma<kRotateGroup, 2, Exchange24>(r, item, items, threads, bytes);
    else if (wide) launch_rotate_mma<kRotateGroup, 4, Exchange32>(r, item, items, threads, bytes);
    else launch_rotate_mma<kRotateGroup, 4, Exchange24>(r, item, items, threads, bytes);
    return true;
}

// y gives the rows and the format of what is written, y.data may be NULL.
static RotateJob rotate_job(Mat y, Mat x, RotateAxis axis, bool transpose, int block) {
    bool from_right = axis == ROTATE_COLS;
    int rows = max_int(y.rows, x.rows), n = from_right ? x.cols : block ? block : rows;
    check_mat(x, x.rows, x.cols, "rotate");
    check(axis != ROTATE_NONE && y.rows == (from_right ? x.rows : y.rows) && y.cols == x.cols, "rotate (cuda): (%d, %d) to (%d, %d)", x.rows,
          x.cols, y.rows, y.cols);
    check(block >= 0 && (from_right ? block == 0 : rows % max_int(n, 1) == 0), "rotate (cuda): (%d, %d) in blocks of %d", rows, x.cols, block);
    check(rows == 0 || hadamard_supported(n), "rotate (cuda): no Hadamard transform of order %d", n);
    RotateJob job = {y, x, axis, transpose, n, 1, (float)(1 / sqrt((double)n)), NULL, {NULL, NULL, 1}};
    return job;
}

static void run_rotate_job(const RotateJob& job) {
    if (max_int(job.x.rows, job.y.rows) == 0 || job.x.cols == 0) return;
    if (rotate_mma(job) || rotate_exact(job)) return;
    if (job.axis == ROTATE_COLS) rotate_long_rows(job);
    else rotate_long_columns(job);
}

static void rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax) {
    check(y.data || absmax, "rotate (cuda): nothing to do");
    if (y.data) check_mat(y, y.rows, y.cols, "rotate");
    RotateJob job = rotate_job(y, x, axis, transpose, block);
    job.absmax = absmax;
    run_rotate_job(job);
}

#endif
