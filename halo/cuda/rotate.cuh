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
// rotate_exact_kernel, for F32, for a few shapes (runs below 16, rows that are no octets) and for token axes that no shared memory
// holds: the FP32 operations of hadamard.h in their order, so the bits are the CPU's. Such token axes take two passes, over strips
// of columns that stay in the L2 as FP32: 4 bytes an element of DRAM, 12 of L2.
#ifndef HALO_CUDA_ROTATE_CUH
#define HALO_CUDA_ROTATE_CUH

#include "../hadamard.h"
#include "ptx.cuh"

// ================================================================ signs, uploaded once

// The dense matrices across: G = K0 2^m with G <= kAcrossMost (m = 0 always), as A fragments of mma: (tiles, tiles, 32 lanes) uint4.
enum { kAcrossMost = 128, kAcrossDoublings = 8, kFragment = 16 };

struct RotateSigns {
    const uint4* across[kHadamardBaseCount][kAcrossDoublings][2];   // [base][m][transposed]; NULL: not built
    const float* base[kHadamardBaseCount][2];                       // (K0, K0): [j][i] is the weight of input j in output i
};

static inline int hadamard_base_index(int K0) {
    for (int b = 0; b < kHadamardBaseCount; b++)
        if (kHadamardBases[b] == K0) return b;
    die("rotate (cuda): %d is no base order", K0);
}

// Element (i, j) of H_K0 times Sylvester's matrix of order 2^m.
static inline bool across_is_negative(const int8_t* base, int K0, int m, bool transposed, int i, int j) {
    int row = i >> m, col = j >> m, low = (1 << m) - 1;
    bool odd = __builtin_popcount((unsigned)(i & j & low)) & 1;
    return (base[transposed ? col * K0 + row : row * K0 + col] < 0) != odd;
}

static inline void across_fragments(uint4* out, const int8_t* base, int K0, int m, bool transposed) {
    int order = K0 << m, tiles = ceil_div(order, kFragment);
    for (int tile = 0; tile < tiles * tiles; tile++) {
        for (int lane = 0; lane < kWarp; lane++) {
            uint32_t a[4];
            for (int r = 0; r < 4; r++) {
                a[r] = 0;
                for (int half = 0; half < 2; half++) {
                    int i = tile / tiles * kFragment + lane / 4 + r % 2 * 8;
                    int j = tile % tiles * kFragment + lane % 4 * 2 + half + r / 2 * 8;
                    if (i >= order || j >= order) continue;
                    uint32_t one = across_is_negative(base, K0, m, transposed, i, j) ? 0xbf80u : 0x3f80u;   // +-1 in bf16
                    a[r] |= one << 16 * half;
                }
            }
            out[tile * kWarp + lane] = make_uint4(a[0], a[1], a[2], a[3]);
        }
    }
}

// The tables, built and uploaded by the first call, which the backend makes when it starts.
static const RotateSigns* rotate_signs() {
    static RotateSigns signs;
    static bool built;
    if (built) return &signs;
    char *host = NULL, *device = NULL;
    for (int place = 0; place < 2; place++) {   // measure, then place
        size_t used = 0;
        for (int b = 0; b < kHadamardBaseCount; b++) {
            int K0 = kHadamardBases[b];
            const int8_t* base = hadamard_base(K0);
            for (int transposed = 0; transposed < 2; transposed++) {
                for (int m = 0; m < kAcrossDoublings && (m == 0 || K0 << m <= kAcrossMost); m++) {
                    int tiles = ceil_div(K0 << m, kFragment);
                    if (place) across_fragments((uint4*)(host + used), base, K0, m, transposed);
                    signs.across[b][m][transposed] = (const uint4*)(device + used);
                    used += (size_t)tiles * tiles * kWarp * sizeof(uint4);
                }
                if (place)
                    for (int i = 0; i < K0; i++)
                        for (int j = 0; j < K0; j++)
                            ((float*)(host + used))[j * K0 + i] = base[transposed ? j * K0 + i : i * K0 + j];
                signs.base[b][transposed] = (const float*)(device + used);
                used += round_up((size_t)K0 * K0 * sizeof(float), sizeof(uint4));
            }
        }
        if (!place) {
            host = (char*)host_alloc(used);
            cuda_ok(cudaMalloc((void**)&device, used), "memory for the signs of Hadamard matrices");
        } else {
            cuda_ok(cudaMemcpyAsync(device, host, used, cudaMemcpyHostToDevice, cuda_stream()), "upload of Hadamard matrices");
            cuda_ok(cudaStreamSynchronize(cuda_stream()), "upload of Hadamard matrices");
            free(host);
        }
    }
    built = true;
    return &signs;
}

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

// ================================================================ any format and shape: the operations of hadamard.h in their order

// One word in 32 is skipped: neighbours, and values 32 apart, lie in different banks.
__device__ inline int padded(int e) { return e + e / 32; }

// kRadix values `stride` apart: butterflies of stride 1, 2, ... kRadix/2 times that, for each of the item's groups of them.
template <int kRadix>
__device__ inline void exact_butterflies(float* shared, int elements, int log2_stride) {
    int stride = 1 << log2_stride;
    for (int unit = threadIdx.x; unit < elements / kRadix; unit += blockDim.x) {
        int first = (unit >> log2_stride) * (stride * kRadix) + (unit & (stride - 1));
        float v[kRadix];
#pragma unroll
        for (int i = 0; i < kRadix; i++) v[i] = shared[padded(first + i * stride)];
#pragma unroll
        for (int step = 1; step < kRadix; step *= 2) {
#pragma unroll
            for (int i = 0; i < kRadix; i++) {
                if (i & step) continue;
                float a = v[i], b = v[i + step];
                v[i] = a + b;
                v[i + step] = a - b;
            }
        }
#pragma unroll
        for (int i = 0; i < kRadix; i++) shared[padded(first + i * stride)] = v[i];
    }
}

enum { kExactThreads = 256, kExactSums = 4 };   // 4 divides every K0 > 1

template <typename Y, typename X>
__global__ void __launch_bounds__(kExactThreads) rotate_exact_kernel(Rows<Y> y, Rows<const X> x, RotateItem item) {
    SHARED(float, shared);
    uint32_t largest = 0;
    for (int e = threadIdx.x; e < item.elements; e += blockDim.x) {
        int row, col;
        item.locate(e, item.columns, 1, &row, &col);
        bool inside = row < item.x_rows && col < item.cols;
        shared[padded(e)] = inside ? load_values<1>(x[row] + col).v[0] : 0.0f;
    }
    __syncthreads();
    for (int bit = item.first_bit; bit < item.log2_run; bit += 5) {
        switch (item.log2_run - bit) {
            case 1: exact_butterflies<2>(shared, item.elements, bit); break;
            case 2: exact_butterflies<4>(shared, item.elements, bit); break;
            case 3: exact_butterflies<8>(shared, item.elements, bit); break;
            case 4: exact_butterflies<16>(shared, item.elements, bit); break;
            default: exact_butterflies<32>(shared, item.elements, bit);
        }
        __syncthreads();
    }
    auto put = [&](int e, float value) {
        int row, col;
        item.locate(e, item.columns, 1, &row, &col);
        if (row >= item.y_rows || col >= item.cols) return;
        Values<1> v = {{value * item.scale}};
        if constexpr (sizeof(Y) == 4) largest = max(largest, f32_bits(v.v[0]) & 0x7fffffffu);
        else largest = max(largest, largest_bits(pack(v)));
        store_values(y[row] + col, v);
    };
    if (item.order == 1) {
        for (int e = threadIdx.x; e < item.elements; e += blockDim.x) put(e, shared[padded(e)]);
    } else {   // +-1 times a value is exact: a fused multiply-add is the addition of hadamard.h
        int K0 = item.order, run = 1 << item.log2_run, positions = item.elements / K0;
        for (int unit = threadIdx.x; unit < positions * (K0 / kExactSums); unit += blockDim.x) {
            int position = unit % positions, first = unit / positions * kExactSums;
            int e = (position >> item.log2_run) * K0 * run + (position & (run - 1));
            float sum[kExactSums] = {0, 0, 0, 0};
            for (int j = 0; j < K0; j++) {
                float v = shared[padded(e + j * run)];
                float4 sign = __ldg((const float4*)(item.signs + j * K0 + first));
                sum[0] = __fmaf_rn(sign.x, v, sum[0]);
                sum[1] = __fmaf_rn(sign.y, v, sum[1]);
                sum[2] = __fmaf_rn(sign.z, v, sum[2]);
                sum[3] = __fmaf_rn(sign.w, v, sum[3]);
            }
#pragma unroll
            for (int i = 0; i < kExactSums; i++) put(e + (first + i) * run, sum[i]);
        }
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

static inline size_t shared_limit() { return gpu_device().shared_bytes - 1024; }   // without static shared memory
static inline int floor_log2(int n) { return 31 - __builtin_clz((unsigned)n); }

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

// One transform: vectors of order n of a matrix, `step` rows between their elements if they are columns.
struct Rotation {
    Mat y, x;
    RotateAxis axis;
    bool transpose;
    int n, step;
    float scale;
    float* absmax;
};

// The item of `vectors` vectors with W columns each, and the number of items.
static RotateItem rotate_item(Rotation r, int vectors, int W, int unit, int* items) {
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
static void launch_rotate_mma(Rotation r, RotateItem item, int items, int threads, size_t shared_bytes) {
    static bool allowed;
    if (kTiles && !allowed) {
        allow_shared(rotate_mma_kernel<kBlocks, kTiles, Exchange>, shared_limit());
        allowed = true;
    }
    LAUNCH((rotate_mma_kernel<kBlocks, kTiles, Exchange>), items, threads, shared_bytes, rows_of<bf16>(r.y), rows_of<const bf16>(r.x),
           item);
}
static void launch_rotate_alone(int blocks, Rotation r, RotateItem item, int items) {
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
static bool rotate_mma(Rotation r) {
    bool from_right = r.axis == ROTATE_COLS;
    int K0 = hadamard_base_order(r.n), run = r.n / K0, W = 1;
    if (r.x.fmt != BF16 || r.y.fmt != BF16 || !is_octets(r.x) || !is_octets(r.y)) return false;
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

// In the order of hadamard.h; false if a vector is too long for shared memory.
static size_t exact_bytes(size_t elements) { return (elements + elements / 32 + 1) * sizeof(float); }

template <typename Y, typename X>
static void launch_rotate_exact(Rotation r, RotateItem item, int items) {
    static bool allowed;
    if (!allowed) {
        allow_shared(rotate_exact_kernel<Y, X>, shared_limit());
        allowed = true;
    }
    LAUNCH((rotate_exact_kernel<Y, X>), items, kExactThreads, exact_bytes((size_t)item.elements), rows_of<Y>(r.y),
           rows_of<const X>(r.x), item);
}
static bool rotate_exact(Rotation r) {
    int W = 1, vectors = 1, items;
    if (exact_bytes((size_t)r.n) > shared_limit()) return false;
    while (r.axis == ROTATE_ROWS && W < 32 && W < r.x.cols && (size_t)r.n * W * 2 <= kRotateElements) W *= 2;
    while (r.step == 1 && vectors < max_int(r.x.rows, r.y.rows) && (size_t)vectors * r.n * W * 2 <= kRotateElements / 2) vectors *= 2;
    RotateItem item = rotate_item(r, vectors, W, 1, &items);
    if (r.y.fmt == BF16 && r.x.fmt == BF16) launch_rotate_exact<bf16, bf16>(r, item, items);
    else if (r.y.fmt == BF16) launch_rotate_exact<bf16, float>(r, item, items);
    else if (r.x.fmt == BF16) launch_rotate_exact<float, bf16>(r, item, items);
    else launch_rotate_exact<float, float>(r, item, items);
    return true;
}

// Columns longer than shared memory: first within runs of `low` rows, then over the rows that are `low` apart, a strip at a time. What
// lies between is FP32 and stays in the L2 cache.
enum { kRotateStripBytes = 32 << 20, kRotateLow = 256 };

static void rotate_long_columns(Rotation r) {
    static float* strip;   // reserved by the first such shape, for all
    if (!strip) cuda_ok(cudaMalloc((void**)&strip, kRotateStripBytes), "workspace of rotate");
    int low = min_int(kRotateLow, r.n / hadamard_base_order(r.n));
    size_t fit = kRotateStripBytes / sizeof(float) / (size_t)r.n;
    int width = fit >= 64 ? (int)(fit / 64 * 64) : (int)fit;
    check(width > 0, "rotate (cuda): %d tokens exceed the workspace", r.n);
    for (int first = 0; first < r.x.cols; first += width) {
        int cols = min_int(width, r.x.cols - first);
        Mat between = mat(strip, r.n, cols, F32);
        Rotation within = {between, mat_cols(r.x, first, cols), ROTATE_ROWS, r.transpose, low, 1, 1.0f, NULL};
        Rotation over = {mat_cols(r.y, first, cols), between, ROTATE_ROWS, r.transpose, r.n / low, low, r.scale, r.absmax};
        check(rotate_exact(within) && rotate_exact(over), "rotate (cuda): %d tokens exceed shared memory in two passes", r.n);
    }
}

static void rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax) {
    bool from_right = axis == ROTATE_COLS;
    int rows = max_int(y.rows, x.rows), n = from_right ? x.cols : block ? block : rows;
    check_mat(x, x.rows, x.cols, "rotate");
    check_mat(y, from_right ? x.rows : y.rows, x.cols, "rotate");
    if (rows == 0 || x.cols == 0) return;
    check(block >= 0 && (from_right ? block == 0 : rows % n == 0), "rotate (cuda): (%d, %d) in blocks of %d", rows, x.cols, block);
    check(hadamard_supported(n), "rotate (cuda): no Hadamard transform of order %d", n);
    Rotation r = {y, x, axis, transpose, n, 1, (float)(1 / sqrt((double)n)), absmax};
    if (rotate_mma(r) || rotate_exact(r)) return;
    if (from_right || block)
        die("rotate (cuda): (%d, %d) in %s and %s, order %d: needs %zu bytes of shared memory, sm_%d has %zu", rows, x.cols,
            fmt_name(x.fmt), fmt_name(y.fmt), n, exact_bytes((size_t)n), gpu_device().capability, shared_limit());
    rotate_long_columns(r);
}

#endif
