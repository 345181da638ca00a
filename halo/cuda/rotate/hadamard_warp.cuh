// Building blocks of a Hadamard transform of bf16 on tensor cores, for rotate and for producers that find a rotated maximum. Tensor cores
// do the additions, as products with signs; values between two products are FP32.
//
//   within   256 elements are one 16-byte access of a warp: lane l holds e = 8 l ... 8 l + 7. Two products with 16 x 16 signs transform
//            any of the 8 bits of e; the first leaves in each lane the operand of the second, and the second what that lane stores, so
//            nothing is shuffled. A bit that is not transformed has the identity as its 2 x 2 factor. 6 mma for 256 elements.
//   blocks   up to 16 neighbouring 256s of a warp: additions in registers.
//   across   a dense matrix of signs of order G = K0 2^m over runs in shared memory: ceil(G/16)^2 k16-products of 16 x 8.
// Values that enter a second product are split into two bf16, 16 significant bits: the result errs by 2^-16 before it is rounded.
// Instructions an element: within 3 to split and 0.75 mma; blocks one a bit; across 0.5 to store and load, 3 to split, G/32 mma.
#ifndef HALO_CUDA_HADAMARD_WARP_CUH
#define HALO_CUDA_HADAMARD_WARP_CUH

#include "hadamard_signs.cuh"

// ================================================================ within a warp

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

// Two FP32 values, each split into the sum of two bf16.
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
    float half[2][4];
    mma_bf16_first(half[0], signs.first, x.pair[0], x.pair[1]);
    mma_bf16_first(half[1], signs.first, x.pair[2], x.pair[3]);
#pragma unroll
    for (int bit1 = 0; bit1 < 2; bit1++) {
        SplitPair b0 = split(half[0][2 * bit1], half[0][2 * bit1 + 1]), b1 = split(half[1][2 * bit1], half[1][2 * bit1 + 1]);
        float sum[4];
        mma_bf16_first(sum, signs.second, b0.low, b1.low);
        mma_bf16(sum, signs.second, b0.high, b1.high);
        v[2 * bit1] = sum[0];
        v[2 * bit1 + 1] = sum[1];
        v[4 + 2 * bit1] = sum[2];
        v[4 + 2 * bit1 + 1] = sum[3];
    }
}

// Butterflies between values of blocks whose numbers differ in one bit, for all bits from kFirst to below `together` (1, 2, 4 ... kBlocks).
// a - b is (a + b) - 2 b: in place, without a register for either sum.
template <int kFirst = 1, int kBlocks, int kEach>
__device__ inline void add_blocks(float (&v)[kBlocks][kEach], int together) {
#pragma unroll
    for (int step = kFirst; step < kBlocks; step *= 2) {
        if (step >= together) return;
#pragma unroll
        for (int b = 0; b < kBlocks; b++) {
            if (b & step) continue;
#pragma unroll
            for (int i = 0; i < kEach; i++) {
                v[b][i] += v[b + step][i];
                v[b + step][i] = __fmaf_rn(-2.0f, v[b + step][i], v[b][i]);
            }
        }
    }
}

// Transforms within 256s, and over each `together` neighbouring 256s of a warp.
template <int kBlocks>
__device__ inline void hadamard_blocks(float (&v)[kBlocks][8], const Packed<8> (&x)[kBlocks], const WithinSigns& signs, int together) {
#pragma unroll
    for (int b = 0; b < kBlocks; b++) hadamard_within(v[b], x[b], signs);
    add_blocks(v, together);
}

// ================================================================ across runs in shared memory

// Where the FP32 values of an item lie in shared memory: runs of 2^log2_run elements (at least 16), element e in run e >> log2_run. Octets
// are stored (or pairs of rows of 16); four neighbours are loaded, by 8 lanes 32 neighbouring elements, by 4 times 8 lanes those of runs two
// apart. Four skipped places a run and a swizzle keep all accesses free of bank conflicts.
struct Exchange {
    float* data;
    int log2_run;
    enum { kSkipped = 4 };
    __host__ __device__ static size_t bytes(int elements, int log2_run) {
        return ((size_t)elements + (size_t)(elements >> log2_run) * kSkipped) * sizeof(float);
    }
    __device__ int stride() const { return (1 << log2_run) + kSkipped; }   // from run to run
    __device__ bool swapped(int e) const { return e >> 5 & (log2_run >= 6); }   // shorter runs have no bit 5, and need no swizzle
    __device__ int place(int e) const { return (e ^ (swapped(e) ? 12 : 0)) + (e >> log2_run) * kSkipped; }
    // lane: e / 8 % 32
    __device__ void store_octet(int e, int lane, const float (&v)[8]) const {
        bool swap = swapped(lane * 8);
        float* at = data + (e ^ (swap ? 12 : 0)) + (e >> log2_run) * kSkipped;
        *(float4*)at = make_float4(v[0], v[1], v[2], v[3]);
        *(float4*)(at + (swap ? -4 : 4)) = make_float4(v[4], v[5], v[6], v[7]);
    }
};

// Four neighbouring positions in two neighbouring runs.
struct TwoRuns {
    float4 even, odd;
};

// The sums across of 32 positions, [tile][position in four][mma]: column n of product t is position 4 n + t, so that this lane's columns
// 2 (lane % 4) and the next are an octet.
template <int kTiles, typename Put>
__device__ inline void put_octets(const float (&sum)[kTiles][4][4], int first_tile, const Put& put) {
    int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int r = 0; r < kTiles; r++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Values<8> out;
#pragma unroll
            for (int t = 0; t < 4; t++) {
                out.v[t] = sum[r][t][2 * half];
                out.v[4 + t] = sum[r][t][2 * half + 1];
            }
            put((first_tile + r) * kFragment + lane / 4 + half * 8, out);
        }
    }
}

// 32 positions of the runs, through 16-row tiles [first_tile, first_tile + kTiles) of the matrix across. load(run), for an even run, gives
// this lane's positions 4 (lane / 4) ... + 3 of the group in that run and the next; put(run, v) takes its positions 8 (lane % 4) ... + 7,
// and has to leave out runs from `order` on.
template <int kTiles, typename Load, typename Put>
__device__ inline void hadamard_across(const uint4* fragments, int order, int first_tile, const Load& load, const Put& put) {
    int lane = threadIdx.x % kWarp, tiles = (order + kFragment - 1) / kFragment;
    float sum[kTiles][4][4];   // [tile][position in four][mma]
    auto add = [&](int step, bool first) {
        uint4 a[kTiles];
#pragma unroll
        for (int r = 0; r < kTiles; r++)   // beyond the last tile its signs serve again: the result is not put
            a[r] = __ldg(fragments + (min(first_tile + r, tiles - 1) * tiles + step) * kWarp + lane);
        float v[2][2][4];   // [half of 16 runs][of two neighbours][position]
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int run = step * kFragment + half * 8 + lane % 4 * 2;
            TwoRuns two = load(run < order ? run : lane % 4 * 2);   // beyond the last run the signs are zero, so that any finite values do
            v[half][0][0] = two.even.x; v[half][0][1] = two.even.y; v[half][0][2] = two.even.z; v[half][0][3] = two.even.w;
            v[half][1][0] = two.odd.x; v[half][1][1] = two.odd.y; v[half][1][2] = two.odd.z; v[half][1][3] = two.odd.w;
        }
#pragma unroll
        for (int t = 0; t < 4; t++) {
            SplitPair b0 = split(v[0][0][t], v[0][1][t]), b1 = split(v[1][0][t], v[1][1][t]);
#pragma unroll
            for (int r = 0; r < kTiles; r++) {
                uint32_t sign[4] = {a[r].x, a[r].y, a[r].z, a[r].w};
                if (first) mma_bf16_first(sum[r][t], sign, b0.low, b1.low);
                else mma_bf16(sum[r][t], sign, b0.low, b1.low);
                mma_bf16(sum[r][t], sign, b0.high, b1.high);
            }
        }
    };
    add(0, true);
    for (int step = 1; step < tiles; step++) add(step, false);
    put_octets<kTiles>(sum, first_tile, put);
}

#endif
