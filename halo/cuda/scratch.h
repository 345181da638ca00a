// The memory that the CUDA backend takes beside the matrices that its ops are given, in bytes: plain C, so that a machine without a GPU can
// count this memory too. One part the backend allocates when it starts and keeps (ops.cu); the other, scratch of a call, the caller gives.
#ifndef HALO_CUDA_SCRATCH_H
#define HALO_CUDA_SCRATCH_H

#include "../ops.h"

// ---- what the backend holds from its start to the end of the program
enum {
    kWorkspaceBytes = 32 << 20,      // for an op that calls no other op meanwhile (device.cuh, CudaHeld)
    kRotateStripBytes = 32 << 20,    // values between the two passes of rotations (rotate/tokens.cuh, rotate/exact.cuh)
    kSignsBytes = 2 << 20,           // at least the signs of all Hadamard matrices (rotate/hadamard_signs.cuh)
    kSumBlocksMax = 2048,            // partial sums of sum_squares, floats (sums.cuh)
    kWideTallyBytes = 256,           // digits that blocks of sum_row_squares add to (sums.cuh)
    kSplitCounters = 256,            // parts of a product's C that several blocks share (gemm/tile.cuh)
    kLtVectorRows = 256 << 10        // the longest vector of scales that is filled in for cuBLASLt, floats: one for each side of a product
};
static inline size_t cuda_held_bytes(void) {
    return (size_t)kWorkspaceBytes + kRotateStripBytes + kSignsBytes + sizeof(float) * kSumBlocksMax + kWideTallyBytes +
           sizeof(unsigned) * kSplitCounters + 2 * sizeof(float) * kLtVectorRows;
}

// ---- scratch that the caller gives an op for one call
enum { kNormRows = 16 };   // rows of dY that a block of rmsnorm_backward sums into one row of dw
static inline size_t cuda_rmsnorm_scratch(int BT, int C) {   // (ceil(BT / kNormRows), C) floats
    return (size_t)ceil_div(BT, kNormRows) * (size_t)C * sizeof(float);
}

// The scratch of attention_backward; T_padded is T rounded up to kRowsPad.
enum { kRowsPad = 128 };
typedef struct {
    void* rows;           // (B NH, T_padded) pairs of floats
    float* dq_sums;       // (B NH, T_padded, HD rounded up to 32)
    unsigned* counters;   // (counter_count): a turn for every 32 rows of dQ, and the ticket that numbers blocks as they start
    int T_padded, counter_count;
    size_t bytes;
} AttnScratch;
// With scratch NULL only T_padded, counter_count and bytes are set.
static inline AttnScratch cuda_attention_layout(Attn s, void* scratch) {
    AttnScratch at;
    Arena arena = {(char*)scratch, 0};
    size_t heads = (size_t)s.B * s.NH;
    at.T_padded = ceil_div(s.T, kRowsPad) * kRowsPad;
    at.counter_count = (int)heads * (at.T_padded / 32) + 1;
    at.rows = arena_take(&arena, heads * at.T_padded * 2 * sizeof(float));
    at.dq_sums = (float*)arena_take(&arena, heads * at.T_padded * round_up(s.HD, 32) * sizeof(float));
    at.counters = (unsigned*)arena_take(&arena, at.counter_count * sizeof(unsigned));
    at.bytes = arena.used;
    return at;
}
static inline size_t cuda_attention_scratch(Attn s) { return cuda_attention_layout(s, NULL).bytes; }

// The FP16 values between the two passes of a rotation of tokens (rotate/tokens.cuh): chunks, and the exponent of each.
enum { kTokenChunk = 256, kTokenColumns = 32 };   // tokens and columns of a chunk
static inline size_t cuda_token_halves_bytes(int rows, int cols) {
    size_t chunks = (size_t)ceil_div(rows, kTokenChunk) * (size_t)ceil_div(cols, kTokenColumns);
    return chunks * (kTokenChunk * kTokenColumns * sizeof(uint16_t) + sizeof(int));
}
static inline size_t cuda_quantize_tokens_scratch(int rows, int cols, int block) {
    int n = block ? block : rows;
    bool one_pass = n <= kTokenChunk && (n & (n - 1)) == 0;
    return one_pass ? 0 : cuda_token_halves_bytes(rows, cols);
}

// ---- batches of generation: fine steps while rows are few, since a product's time then grows with its tiles of rows; coarse steps above, where
// each new shape is timed
static inline int cuda_round_rows(int rows) {
    int step = rows <= 128 ? 16 : rows <= 512 ? 64 : rows <= 1024 ? 256 : 1024;
    return ceil_div(max_int(rows, 1), step) * step;
}

#endif
