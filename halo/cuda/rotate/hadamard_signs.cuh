// The signs of Hadamard matrices on the GPU, uploaded once.
#ifndef HALO_CUDA_HADAMARD_SIGNS_CUH
#define HALO_CUDA_HADAMARD_SIGNS_CUH

#include "../../hadamard.h"
#include "../ptx.cuh"

// The dense matrices across: G = K0 2^m with G <= kAcrossMost (m = 0 always), as A fragments of mma: (tiles, tiles, 32 lanes) uint4.
// The same signs alone, packed: kSignTiles neighbouring tiles of a row to a word.
enum { kAcrossMost = 128, kAcrossDoublings = 8, kFragment = 16, kSignTiles = 4 };

// The signs within 256 elements, of which a lane holds an octet: 16 x 16 products for four of the 8 bits each, as A fragments.
enum { kWithinBits = 8 };

struct RotateSigns {
    const uint4* within[kWithinBits + 1];                           // [end_bit]: (2, 32 lanes); bits below end_bit are transformed
    const uint4* across[kHadamardBaseCount][kAcrossDoublings][2];   // [base][m][transposed]; NULL: not built
    const uint32_t* packed[kHadamardBaseCount][kAcrossDoublings][2];   // of `across`: (tiles, ceil(tiles / kSignTiles), 32 lanes)
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

// A fragments of a matrix of `tiles` by `tiles` 16 x 16 tiles; sign(i, j) is +1, -1 or 0.
template <typename Sign>
static inline void sign_fragments(uint4* out, int tiles, const Sign& sign) {
    for (int tile = 0; tile < tiles * tiles; tile++) {
        for (int lane = 0; lane < kWarp; lane++) {
            uint32_t a[4];
            for (int r = 0; r < 4; r++) {
                a[r] = 0;
                for (int half = 0; half < 2; half++) {
                    int i = tile / tiles * kFragment + lane / 4 + r % 2 * 8;
                    int j = tile % tiles * kFragment + lane % 4 * 2 + half + r / 2 * 8;
                    int of = sign(i, j);
                    a[r] |= (of == 0 ? 0u : of < 0 ? 0xbf80u : 0x3f80u) << 16 * half;   // +-1 in bf16
                }
            }
            out[tile * kWarp + lane] = make_uint4(a[0], a[1], a[2], a[3]);
        }
    }
}
static inline void across_fragments(uint4* out, const int8_t* base, int K0, int m, bool transposed) {
    int order = K0 << m;
    sign_fragments(out, ceil_div(order, kFragment), [&](int i, int j) {
        return i >= order || j >= order ? 0 : across_is_negative(base, K0, m, transposed, i, j) ? -1 : 1;
    });
}
// Of a row's tile t, the signs of a lane's register r, bits 15 and 31, are in word t / kSignTiles, 4 (t % kSignTiles) + r bits lower.
static inline void packed_signs(uint32_t* out, const uint4* fragments, int tiles) {
    int words = ceil_div(tiles, kSignTiles);
    for (int row = 0; row < tiles; row++) {
        for (int t = 0; t < words * kSignTiles; t++) {
            for (int lane = 0; lane < kWarp; lane++) {
                uint32_t* word = out + (row * words + t / kSignTiles) * kWarp + lane;
                if (t % kSignTiles == 0) *word = 0;
                if (t >= tiles) continue;
                const uint4 a = fragments[(row * tiles + t) * kWarp + lane];
                const uint32_t of[4] = {a.x, a.y, a.z, a.w};
                for (int r = 0; r < 4; r++) *word |= (of[r] & 0x80008000u) >> (t % kSignTiles * 4 + r);
            }
        }
    }
}
// Transforms those of an index's four bits that are in `bits`: a bit that is not transformed has the identity as its 2 x 2 factor.
static inline void within_fragment(uint4* out, unsigned bits) {
    sign_fragments(out, 1, [&](int i, int j) {
        return ((unsigned)(i ^ j) & ~bits & 15u) ? 0 : __builtin_popcount((unsigned)(i & j) & bits) & 1 ? -1 : 1;
    });
}
// Index bits in the first product: k = (0; 3, 4; 1), the pair, the lane % 4, the half; in the second k = (5; 6, 7; 2) (hadamard_within).
static inline void within_fragments(uint4* out, int end_bit) {
    unsigned bits = (1u << end_bit) - 1;
    auto at = [bits](int from, int to) { return (bits >> from & 1u) << to; };
    within_fragment(out, at(0, 0) | at(3, 1) | at(4, 2) | at(1, 3));
    within_fragment(out + kWarp, at(5, 0) | at(6, 1) | at(7, 2) | at(2, 3));
}

// The tables, built and uploaded by the first call, which the backend makes when it starts.
static const RotateSigns* rotate_signs() {
    static RotateSigns signs;
    static bool built;
    if (built) return &signs;
    char *host = NULL, *device = NULL;
    for (int place = 0; place < 2; place++) {   // measure, then place
        size_t used = 0;
        for (int end_bit = 0; end_bit <= kWithinBits; end_bit++) {
            if (place) within_fragments((uint4*)(host + used), end_bit);
            signs.within[end_bit] = (const uint4*)(device + used);
            used += 2 * kWarp * sizeof(uint4);
        }
        for (int b = 0; b < kHadamardBaseCount; b++) {
            int K0 = kHadamardBases[b];
            const int8_t* base = hadamard_base(K0);
            for (int transposed = 0; transposed < 2; transposed++) {
                for (int m = 0; m < kAcrossDoublings && (m == 0 || K0 << m <= kAcrossMost); m++) {
                    int tiles = ceil_div(K0 << m, kFragment);
                    uint4* fragments = (uint4*)(host + used);
                    if (place) across_fragments(fragments, base, K0, m, transposed);
                    signs.across[b][m][transposed] = (const uint4*)(device + used);
                    used += (size_t)tiles * tiles * kWarp * sizeof(uint4);
                    if (place) packed_signs((uint32_t*)(host + used), fragments, tiles);
                    signs.packed[b][m][transposed] = (const uint32_t*)(device + used);
                    used += (size_t)tiles * ceil_div(tiles, kSignTiles) * kWarp * sizeof(uint32_t);
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
            check(used <= kSignsBytes, "rotate (cuda): %zu bytes of signs", used);
            device = cuda_held().signs;
        } else {
            cuda_ok(cudaMemcpyAsync(device, host, used, cudaMemcpyHostToDevice, cuda_stream()), "upload of Hadamard matrices");
            cuda_ok(cudaStreamSynchronize(cuda_stream()), "upload of Hadamard matrices");
            free(host);
        }
    }
    built = true;
    return &signs;
}

#endif
