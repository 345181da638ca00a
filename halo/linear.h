// A linear layer under a recipe: the only code that reads a Recipe.
//
//   F: Y = X W^T     E: dX = dY W     G: dW = dY^T X       X (M,K), W (N,K), dY and Y (M,N); M = tokens
//
// One `LinearShape` stacks the Hugging Face matrices that read the same input (q, k, v | gate, up) one above the other.
// Each keeps its own scales, for W and for dY; when a product's operands carry no scale the stack is one matrix.
//
// Rotations (HALO, arXiv 2501.02625): X and W along K, dY along the tokens. Rotations of a contracted axis cancel; others are undone:
//   E with a rotated W leaves dX H, with a rotated dY leaves H_M dX;  G with a rotated X leaves dW H, which is linear, so
//   gradients accumulate rotated and linear_finish_grad undoes it once per optimizer step.
#ifndef HALO_LINEAR_H
#define HALO_LINEAR_H

#include "recipe.h"

enum { kMaxParts = 3 };

typedef struct {
    int K, parts;
    int N[kMaxParts];   // rows of each stacked matrix
} LinearShape;

static inline int linear_N(LinearShape s) {
    int n = 0;
    for (int p = 0; p < s.parts; p++) n += s.N[p];
    return n;
}

// X as F reads it and as G reads it. Where both are the same codes, F's live in scratch and only the transposed codes stay
// until backward; a plain operand (BF16 product) is the activation itself.
typedef struct {
    QMat f, g;
    float* absmax;   // 2: of f and of g; zeroed by the caller before the producer runs
} InputOperand;

// W as F reads it and as E reads it, one per stacked matrix.
typedef struct {
    QMat f[kMaxParts], e[kMaxParts];
    float* absmax;   // 2 * kMaxParts
} WeightOperand;

// dY of the stacked matrices, (M, sum of N): the memory that the op before writes, and the maxima that prepare its codes.
typedef struct {
    Mat dy;
    float* absmax;   // kMaxParts of each matrix's columns of dY as they are, then kMaxParts rotated; zeroed by the caller before dY is made
} GradOperand;

typedef struct {
    const Ops* ops;
    const Recipe* recipe;
    int tokens;        // M
    int token_block;   // order of a block-diagonal H_M; 0: one full transform
    int rotated_rows;  // M padded to a supported order
    // Scratch shared by all layers, sized for the largest of them:
    void* x_codes;     // (M, K) codes of X for F
    float* x_scale;
    void* product;     // (rotated_rows, K) dX before H_M is undone, in ops->act
    void* dy_codes;    // (rotated_rows, N) for E
    void* dy_codes_t;  // (N, M) for G
    void* turned;      // of dY and of dX on their way to and from H_M (Ops.quantize_tokens_scratch); NULL without
    float *e_scale, *g_scale;
} Linear;

// A linear without scratch: enough to prepare weights and to finish gradients.
C_API Linear linear_of(const Ops* ops, const Recipe* recipe);
// A linear with scratch for the largest of `count` shapes. Call twice, as with every arena: measure, then place.
C_API void linear_place(Linear* ln, Arena* arena, const Ops* ops, const Recipe* recipe, const LinearShape* shapes, int count,
                        int tokens, int token_block);
// The same linear, in the same scratch, for fewer tokens: some rows of a batch. Call linear_place_input anew for them.
C_API Linear linear_on(const Linear* ln, int tokens);

// Must the producer's plain output X (M,K) outlive the forward pass, because G reads it unquantized or prepares other codes of it?
C_API bool linear_keeps_plain_input(const Recipe* r);
// The recipe for a weight that is not trained, which has no product G: G's operands are plain, so that none are prepared.
C_API Recipe linear_frozen(const Recipe* r);
// Does F or E read W unquantized?
C_API bool linear_reads_weight(const Recipe* r);
// Lays out what stays of X until backward. `x` is where the producer writes.
C_API void linear_place_input(const Linear* ln, InputOperand* in, Arena* kept, Arena* maxima, LinearShape shape, Mat x);
// Lays out the maxima of dY; `dy` is the memory that dY is written to.
C_API void linear_place_grad(GradOperand* g, Arena* maxima, Mat dy);
// Lays out the prepared forms of W (N,K); nothing for a plain recipe.
C_API void linear_place_weight(const Linear* ln, WeightOperand* w, Arena* arena, Arena* maxima, LinearShape shape);

// ---- HQ-FSDP (arXiv 2501.02625): a rank rotates and quantizes the rows that it owns, and the codes are what is gathered.
// Can W travel as codes: quantized per tensor, and the same for F and E?
C_API bool linear_gathers_codes(const Recipe* r);
C_API Fmt linear_code_fmt(const Linear* ln);   // of those codes
C_API int linear_code_ld(int K);   // bytes from one row of codes to the next
// Raises *absmax to the largest magnitude in some rows of one matrix, rotated as the recipe says.
C_API void linear_rows_absmax(const Linear* ln, float* absmax, Mat rows);
// Codes (rows, K) and scale of some rows of one matrix, given the maximum of all of it.
C_API void linear_rows_codes(const Linear* ln, void* codes, float* scale, Mat rows, const float* absmax);
// One whole matrix's operand: its codes (N, K) and their transpose (K, N).
C_API QMat linear_code_operand(const Linear* ln, void* codes, void* codes_t, float* scale, int N, int K);

// The maximum that the producer of X should find while it writes X (ops.h, Prep). kPrepNone if F and G prepare X in different ways.
C_API Prep linear_input_prep(const Linear* ln, const InputOperand* in);
// Turns the producer's output x (M,K) into operands; `done` is what the producer did.
C_API void linear_prepare_input(const Linear* ln, InputOperand* in, Mat x, Prep done);
// Prepares `count` stacked weights w (N,K), say of a layer; once per optimizer step. The maxima must be zero.
C_API void linear_prepare_weights(const Linear* ln, const WeightOperand* wq, const Mat* w, const LinearShape* shapes, int count);
// The same operands of weights that were prepared before and have not changed, in memory that has held others since: their maxima are known.
// What E alone reads is left out unless `for_e`.
C_API void linear_remake_weights(const Linear* ln, const WeightOperand* wq, const Mat* w, const LinearShape* shapes, int count, bool for_e);
// Is anything prepared of W?
C_API bool linear_prepares_weight(const Recipe* r);

// y (M,N) = X W^T + beta * y. For a plain recipe w is read itself.
C_API void linear_forward(const Linear* ln, Mat y, float beta, const InputOperand* in, Mat w, const WeightOperand* wq, LinearShape shape);
// The array in which the op that writes dY raises max|dY| of each stacked matrix (kMaxParts floats); NULL if no product needs them.
C_API float* linear_grad_maxima(const Linear* ln, const GradOperand* g);
// Finds these maxima in a pass over dY, after zeroing them: for an op that does not raise them itself.
C_API void linear_measure_grad(const Linear* ln, GradOperand* g, LinearShape shape);
// Can E's products add to what dX holds? Not where a rotation of the whole of dX follows them.
C_API bool linear_adds_to_dx(const Recipe* r);
// dx (M,K) = dY W + dx_beta * dx (dx_beta 0 unless linear_adds_to_dx);  dw (N,K) = dY^T X + beta * dw, rotated if the recipe rotates X in G;
// of a frozen weight (linear_frozen) dw.data is NULL.
C_API void linear_backward(const Linear* ln, Mat dx, float dx_beta, Mat dw, float beta, const GradOperand* g, const InputOperand* in, Mat w,
                           const WeightOperand* wq, LinearShape shape);
// Called right after linear_backward with beta 0: adds to `stats` what the recipe did to the unquantized x (M,K), w (N,K; data NULL: not on
// this rank) and dy (M,N), and to dw (quant_stats.h). `linear` is an index into kLinears (config.h).
struct QuantStats;
C_API void linear_observe(const Linear* ln, struct QuantStats* stats, int layer, int linear, Mat x, Mat w, Mat dy, Mat dw);
// dw <- dw H^T where G left it rotated. Rows are independent: a shard's rows can be finished alone.
C_API void linear_finish_grad(const Linear* ln, Mat dw);

#endif
