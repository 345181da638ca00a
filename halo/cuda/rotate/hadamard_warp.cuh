// Building blocks of a Hadamard transform of bf16 on tensor cores, for rotate and for producers that find a rotated maximum. Tensor cores
// do the additions, as products with signs: exact products, FP32 sums, and FP16 between two products.
//
//   within   256 elements are one 16-byte access of a warp: lane l holds e = 8 l ... 8 l + 7. Two products with 16 x 16 signs transform
//            any of the 8 bits of e; the first leaves in each lane the operand of the second, and the second what that lane stores, so
//            nothing is shuffled. A bit that is not transformed has the identity as its 2 x 2 factor. 4 mma for 256 elements.
//   blocks   up to 16 neighbouring 256s of a warp: additions in registers.
//   across   a dense matrix of signs of order G = K0 2^m over runs: ceil(G/16)^2 k16-products of 16 x 8. A lane loads four positions of each
//            of its runs, and the sums leave in octets of a run.
// FP16's range: a row's values are multiplied by the power of two that keeps all sums that are rounded below 2^15, which a sink undoes. So each of at most
// two roundings to FP16 errs by 2^-12 of a value, whatever the row's magnitude; what is 2^29 times smaller than the row's largest is lost. A
// row with a NaN or an infinity has nothing else.
// Instructions an element: within 0.5 to round and 0.5 mma; blocks one a bit; across 0.7 to load and pair, 0.5 to round, ceil(G/16)/4 mma.
#ifndef HALO_CUDA_HADAMARD_WARP_CUH
#define HALO_CUDA_HADAMARD_WARP_CUH

#include "hadamard_signs.cuh"

// ================================================================ within a warp

// This lane's A fragments of the two products that transform within 256 elements. They are read from memory because some registers of them
// are equal, and the compiler, if it knew, would copy equal ones before each product.
struct WithinSigns {
    uint32_t first[4], second[4];

    __device__ explicit WithinSigns(const uint4* fragments) {
        uint4 a = __ldg(fragments + threadIdx.x % kWarp), b = __ldg(fragments + kWarp + threadIdx.x % kWarp);
        first[0] = a.x; first[1] = a.y; first[2] = a.z; first[3] = a.w;
        second[0] = b.x; second[1] = b.y; second[2] = b.z; second[3] = b.w;
    }
    // For values times a power of two that bf16 has.
    __device__ WithinSigns times(float power) const {
        WithinSigns s = *this;
        for (int r = 0; r < 4; r++) s.first[r] = times_power_bf16(first[r], power);
        return s;
    }
};

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

// The sums over the bits within 256 elements of which lane l holds 8 l ... 8 l + 7, on the way in and out. Of bf16 they come times kSignAsHalf
// and times the power of two that signs.first hold; of FP16 (kHalf) times kSignAsHalf twice. Index bits in the first product: k = (0; 3, 4;
// 1), the pair, the lane % 4, the half; a column is (5, 6, 7), and 2 tells the two products apart. So its result has (5) in a pair, (6, 7)
// in lane % 4 and (0, 3, 4; 1) in rows: an operand that is summed over k = (5; 6, 7; 2).
template <bool kHalf = false>
__device__ inline void hadamard_within(float (&v)[8], Packed<8> x, const WithinSigns& signs) {
    float half[2][4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (kHalf) mma_f16_first(half[i], signs.first, x.pair[2 * i], x.pair[2 * i + 1]);
        else mma_bf16_first(half[i], signs.first, x.pair[2 * i], x.pair[2 * i + 1]);
    }
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

// ================================================================ across runs in registers

// A lane's bf16 values of 32 positions of the runs, [16 runs][half of them][position in four][run in two]: positions 4 (lane / 4) ... + 3 of the
// runs 2 (lane % 4) and the next of every eight. load_runs reads pairs of positions, pair_runs makes pairs of runs of them: B operands of mma.
template <int kSteps>
struct RunValues {
    uint32_t pair[kSteps][2][4];
};

// even, odd: this lane's four positions in runs 2 (lane % 4) and the next; `eight` values lie between a run and the eighth after it. Values
// of runs from `order` on are zero.
template <int kSteps>
__device__ inline void load_runs(RunValues<kSteps>& x, const bf16* even, const bf16* odd, unsigned eight, int order) {
    int run = threadIdx.x % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2 * kSteps; i++, even += eight, odd += eight) {
        uint2 a = make_uint2(0, 0), b = a;
        if (run + i * 8 < order) {
            a = *(const uint2*)even;
            b = *(const uint2*)odd;
        }
        uint32_t* pair = x.pair[i / 2][i % 2];
        pair[0] = a.x;
        pair[1] = b.x;
        pair[2] = a.y;
        pair[3] = b.y;
    }
}
template <int kSteps>
__device__ inline uint32_t largest_pair(const RunValues<kSteps>& x) {
    uint32_t largest = x.pair[0][0][0];
#pragma unroll
    for (int i = 1; i < 8 * kSteps; i++) largest = larger_pair_bf16(largest, x.pair[i / 8][i / 4 % 2][i % 4]);
    return largest;
}
template <int kSteps>
__device__ inline void pair_runs(RunValues<kSteps>& x) {
#pragma unroll
    for (int i = 0; i < 4 * kSteps; i++) {
        uint32_t *two = &x.pair[i / 4][i / 2 % 2][i % 2 * 2], even = two[0], odd = two[1];
        two[0] = __byte_perm(even, odd, 0x5410);
        two[1] = __byte_perm(even, odd, 0x7632);
    }
}

// The signs of one row of 16 x 16 tiles of the matrix across, times a power of two that bf16 has (`power`, twice in a word).
template <int kSteps>
struct AcrossSigns {
    uint32_t of[kSteps][4];
    __device__ AcrossSigns(const uint4* fragments, int tiles, int tile, uint32_t power) {
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
            if (kSteps > 2 && step >= tiles) break;
            uint4 a = __ldg(fragments + (tile * tiles + step) * kWarp + threadIdx.x % kWarp);
            const uint32_t sign[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
            for (int r = 0; r < 4; r++) of[step][r] = (sign[r] & 0x80008000u) | power;   // zeros of the padding meet zeros, or are not stored
        }
    }
};

// The sums across of 32 positions in FP16: out[h] is run lane / 4 + 8 h of the tile's 16, positions 8 (lane % 4) ... + 7. Column n of product t is
// position 4 n + t, so that this lane's columns 2 (lane % 4) and the next are an octet.
template <int kSteps>
__device__ inline void sum_across(Packed<8> (&out)[2], const RunValues<kSteps>& x, const AcrossSigns<kSteps>& signs, int tiles) {
#pragma unroll
    for (int two = 0; two < 2; two++) {   // positions 2 two and 2 two + 1 of four
        float sum[2][4];
#pragma unroll
        for (int step = 0; step < kSteps; step++) {
            if (kSteps > 2 && step >= tiles) break;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t b0 = x.pair[step][0][two * 2 + i], b1 = x.pair[step][1][two * 2 + i];
                if (step == 0) mma_bf16_first(sum[i], signs.of[step], b0, b1);
                else mma_bf16(sum[i], signs.of[step], b0, b1);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) out[i / 2].pair[i % 2 * 2 + two] = pack_f16(sum[0][i], sum[1][i]);
    }
}

#endif
