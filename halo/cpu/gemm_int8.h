// INT8 codes multiplied by integer instructions: packing into panels, and the kernel that sums in 32 bits.
//
//   word     kCodesAWord neighbouring codes along K in 32 bits: four bytes where the CPU multiplies bytes (VNNI), else two
//            codes widened to 16 bits (pmaddwd; pmaddubsw would saturate)
//   panel    words of kMr rows of A (kNr of B), interleaved: panel[word * rows + i]; missing rows and codes are zero
//   start    what a column's sums begin with. VNNI takes A without a sign, so A's bytes are code + 128, and a column of C
//            begins at -128 times the sum of its row of B.
//
// Sums are exact: 32-bit arithmetic is modulo 2^32, and the result is below 2^31 in magnitude for K up to kInt8LongestK.
#ifndef HALO_CPU_GEMM_INT8_H
#define HALO_CPU_GEMM_INT8_H

#include "rows.h"
#include "vec.h"

enum { kInt8LongestK = (1 << 17) - 1 };

typedef int32_t IntVec __attribute__((vector_size(kLanes * sizeof(int32_t)), may_alias));

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
enum { kCodesAWord = 4 };
static inline IntVec multiply_words(IntVec sum, IntVec a, IntVec b) {
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
enum { kCodesAWord = 4 };
static inline IntVec multiply_words(IntVec sum, IntVec a, IntVec b) {
    return (IntVec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)a, (__m256i)b);
}
#elif defined(__AVX512BW__)
enum { kCodesAWord = 2 };
static inline IntVec multiply_words(IntVec sum, IntVec a, IntVec b) {
    return sum + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
enum { kCodesAWord = 2 };
static inline IntVec multiply_words(IntVec sum, IntVec a, IntVec b) {
    return sum + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#else
enum { kCodesAWord = 2 };
static inline IntVec multiply_words(IntVec sum, IntVec a, IntVec b) {   // the halves of each word, sign extended
    IntVec a_low = (IntVec)((a << 16) >> 16), b_low = (IntVec)((b << 16) >> 16);
    return sum + a_low * b_low + (a >> 16) * (b >> 16);
}
#endif

static inline int int8_words(int K) { return ceil_div(K, kCodesAWord); }

// n <= kCodesAWord codes as a word
static inline uint32_t int8_word(const int8_t* codes, int n) {
    uint32_t word = 0;
    if (kCodesAWord == 4) {
        for (int j = 0; j < n; j++) word |= (uint32_t)(uint8_t)codes[j] << 8 * j;
    } else {
        for (int j = 0; j < n; j++) word |= (uint32_t)(uint16_t)codes[j] << 16 * j;
    }
    return word;
}

// panel (int8_words(K), width) <- `rows` <= width rows of codes, row i at codes + i * ld. of_a: the side that VNNI takes unsigned.
static inline void int8_pack_panel(uint32_t* panel, const int8_t* codes, size_t ld, int rows, int width, int K, bool of_a) {
    int whole = K / kCodesAWord;
    uint32_t flip = of_a && kCodesAWord == 4 ? 0x80808080u : 0;   // code + 128 in each byte
    for (int i = 0; i < width; i++) {
        const int8_t* from = codes + (size_t)i * ld;
        uint32_t* to = panel + i;
        if (i >= rows) {
            for (int w = 0; w < int8_words(K); w++) to[(size_t)w * width] = 0;
            continue;
        }
        for (int w = 0; w < whole; w++) to[(size_t)w * width] = int8_word(from + w * kCodesAWord, kCodesAWord) ^ flip;
        if (whole < int8_words(K)) to[(size_t)whole * width] = int8_word(from + whole * kCodesAWord, K - whole * kCodesAWord) ^ flip;
    }
}

// The start of a column of C, from its row of B (top of this file).
static inline int32_t int8_start(const int8_t* codes, int K) {
    int32_t sum = 0;
    if (kCodesAWord == 2) return 0;
    for (int k = 0; k < K; k++) sum += codes[k];
    return -128 * sum;
}

#endif
