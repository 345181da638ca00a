// Building blocks of a Hadamard transform of bf16 on tensor cores, for rotate and for producers that find a rotated maximum. Tensor cores
// do the additions, as products with signs: exact products, FP32 sums, and FP16 between two products.
//
//   within   256 elements are one 16-byte access of a warp: lane l holds e = 8 l ... 8 l + 7. Two products with 16 x 16 signs transform
//            any of the 8 bits of e; the first leaves in each lane the operand of the second, and the second what that lane stores, so
//            nothing is shuffled. A bit that is not transformed has the identity as its 2 x 2 factor. 4 mma for 256 elements.
//   blocks   up to 16 neighbouring 256s of a warp: additions in registers.
//   across   a dense matrix of signs of order G = K0 2^m over runs in shared memory: ceil(G/16)^2 k16-products of 16 x 8.
// FP16's range: a row's values are multiplied by the power of two that keeps all its sums below 2^15, which a sink undoes. So each of at most
// two roundings to FP16 errs by 2^-12 of a value, whatever the row's magnitude; what is 2^29 times smaller than the row's largest is lost. A
// row with a NaN or an infinity has nothing else.
// Instructions an element: within 1 to round and 0.5 mma; blocks one a bit; across 1 to load and pair, G/64 mma.
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

    // For values times a power of two that bf16 has.
    __device__ WithinSigns times(float power) const {
        WithinSigns s = *this;
        for (int r = 0; r < 4; r++) s.first[r] = times_power_bf16(first[r], power);
        return s;
    }
};
// Those of the bits below end_bit.
__device__ inline WithinSigns within_signs(int end_bit) {
    unsigned bits = (1u << min(end_bit, 8)) - 1;
    auto at = [bits](int from, int to) { return (bits >> from & 1u) << to; };
    WithinSigns s;
    partial_hadamard(s.first, at(0, 0) | at(3, 1) | at(4, 2) | at(1, 3));
    partial_hadamard(s.second, at(5, 0) | at(6, 1) | at(7, 2) | at(2, 3));
    return s;
}

// The exponent (of bf16, biased) of the larger magnitude of a pair.
__device__ inline int pair_exponent(uint32_t pair) { return (int)max(pair >> 7 & 0xffu, pair >> 23 & 0xffu); }
// The larger magnitudes of an octet's even and odd values.
__device__ inline uint32_t largest_pair(const Packed<8>& x) {
    return larger_pair_bf16(larger_pair_bf16(x.pair[0], x.pair[1]), larger_pair_bf16(x.pair[2], x.pair[3]));
}

// The bits of a bf16 sign, read as FP16, are +-1.875: so the tables of signs serve both formats, and a sink divides by this.
constexpr float kSignAsHalf = 1.875f;
enum { kLeastExponent = 14 };   // smaller ones would ask for powers that bf16 does not have

// For values whose largest magnitude has this exponent, and sums of up to 2^bits of them: the power that keeps sums below 2^15 (with a sign
// as half: below 61440), and its inverse.
__device__ inline float half_power_of(int exponent, int bits) { return f32_from_bits((uint32_t)(268 - bits - exponent) << 23); }
__device__ inline float half_unit_of(int exponent, int bits) { return f32_from_bits((uint32_t)(exponent + bits - 14) << 23); }

// The sums over the bits within 256 elements of which lane l holds 8 l ... 8 l + 7, on the way in and out, times kSignAsHalf and times the
// power of two that signs.first hold. Index bits in the first product: k = (0; 3, 4; 1), the pair, the lane % 4, the half; a column is
// (5, 6, 7), and 2 tells the two products apart. So its result has (5) in a pair, (6, 7) in lane % 4 and (0, 3, 4; 1) in rows: an operand
// that is summed over k = (5; 6, 7; 2).
__device__ inline void hadamard_within(float (&v)[8], Packed<8> x, const WithinSigns& signs) {
    float half[2][4];
    mma_bf16_first(half[0], signs.first, x.pair[0], x.pair[1]);
    mma_bf16_first(half[1], signs.first, x.pair[2], x.pair[3]);
#pragma unroll
    for (int bit1 = 0; bit1 < 2; bit1++) {
        float sum[4];
        mma_f16_first(sum, signs.second, pack_f16(half[0][2 * bit1], half[0][2 * bit1 + 1]), pack_f16(half[1][2 * bit1], half[1][2 * bit1 + 1]));
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

// ================================================================ across runs in shared memory

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

// 32 positions of the runs, through 16-row tiles [first_tile, first_tile + kTiles) of the matrix across, times kSignAsHalf. runs: FP16 in
// shared memory, this lane's positions 4 (lane / 4) ... + 3 of the group in run 0, those of the next run `stride` values on; put(run, v) takes
// positions 8 (lane % 4) ... + 7, and has to leave out runs from `order` on. kTiles 1 and 2 are all tiles.
template <int kTiles, typename Put>
__device__ inline void hadamard_across(const uint4* fragments, int order, int first_tile, const bf16* runs, int stride, const Put& put) {
    int lane = threadIdx.x % kWarp, tiles = kTiles <= 2 ? kTiles : (order + kFragment - 1) / kFragment, run = lane % 4 * 2;
    const bf16 *first_runs = runs + run * stride, *at = first_runs;
    float sum[kTiles][4][4];   // [tile][position in four][mma]
    auto add = [&](int step, bool first) {
        uint2 even[2], odd[2];   // this lane's two runs of eight, in both halves of 16
        uint4 a[kTiles];
#pragma unroll
        for (int half = 0; half < 2; half++, run += 8, at += 8 * stride) {
            const bf16* from = run < order ? at : first_runs;   // beyond the last run the signs are zero, so that any finite values do
            even[half] = *(const uint2*)from;
            odd[half] = *(const uint2*)(from + stride);
        }
#pragma unroll
        for (int r = 0; r < kTiles; r++)   // beyond the last tile its signs serve again: the result is not put
            a[r] = __ldg(fragments + (min(first_tile + r, tiles - 1) * tiles + step) * kWarp + lane);
#pragma unroll
        for (int t = 0; t < 4; t++) {
            unsigned which = t % 2 ? 0x7632 : 0x5410;
            uint32_t b0 = t < 2 ? __byte_perm(even[0].x, odd[0].x, which) : __byte_perm(even[0].y, odd[0].y, which);
            uint32_t b1 = t < 2 ? __byte_perm(even[1].x, odd[1].x, which) : __byte_perm(even[1].y, odd[1].y, which);
#pragma unroll
            for (int r = 0; r < kTiles; r++) {
                uint32_t sign[4] = {a[r].x, a[r].y, a[r].z, a[r].w};
                if (first) mma_f16_first(sum[r][t], sign, b0, b1);
                else mma_f16(sum[r][t], sign, b0, b1);
            }
        }
    };
    add(0, true);
    for (int step = 1; step < tiles; step++) add(step, false);
    put_octets<kTiles>(sum, first_tile, put);
}

#endif
