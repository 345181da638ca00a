// The health of quantization in a running training (--quant-stats): what a recipe does to the operands of every linear in one
// micro-step, and how far the weight gradient that it gives is from the one that BF16 gives from the same X and dY.
//
//   clipped, underflow   CodeCounts of ops.h, as shares of the values that are not 0
//   absmax               of the plain operand, and of the rotated one: what the rotation does to the scale
//   cosine               of dW = dY^T X under the recipe with its shadow, the same product of the unquantized dY and X (both as the
//                        layers hold them, summed in FP32), over one micro-step
//
// A linear is observed in the backward pass, right after its products, when dY and dW are there and the caller has made the
// unquantized X once more. Nothing is changed; everything stays on the backend until the report. All memory comes from the model's arena.
#ifndef HALO_QUANT_STATS_H
#define HALO_QUANT_STATS_H

#include "config.h"

typedef struct {
    CodeCounts counts;             // of the operand as it is quantized
    float absmax, rotated_absmax;  // rotated_absmax is 0 if the recipe doesn't rotate the operand
} OperandStats;

// One linear, on the backend. An operand has two entries. Entry 0: X and W as F reads them, dY as E does. Entry 1: X as G reads it, W as
// E, dY as G, if the recipe prepares this form in another way.
typedef struct {
    OperandStats x[2], w[kMaxParts][2], dy[kMaxParts][2];
    float squares[kMaxParts][3];   // sums of squares of dW, of its shadow, and of the sum of both
} LinearStats;

typedef struct QuantStats {
    const Ops* ops;
    LinearShape shape[kLinearCount];
    int layers;
    bool second_x, second_w, second_dy;   // their second entries are used
    bool has_weights;      // W is here: with HQ-FSDP only its codes are
    LinearStats* linears;  // (layers, kLinearCount) on the backend
    float* shadow;         // the largest matrix, in FP32
    void* rotated;         // the largest operand, in ops->act
} QuantStats;

// rows: of X and of a rotated dY.
C_API void quant_stats_place(QuantStats* q, Arena* arena, const Ops* ops, const LinearShape shape[kLinearCount], int layers, int rows);
C_API void quant_stats_begin(const QuantStats* q);   // all counts are 0

// ---- called by linear_observe, which knows the recipe
C_API LinearStats* quant_stats_linear(const QuantStats* q, int layer, int linear);
// One operand x as `how` prepares it, with `rows` rows once `rotation` has turned it.
C_API void quant_stats_operand(const QuantStats* q, OperandStats* s, Mat x, Opnd how, Rotation rotation, int rows);
// One matrix's dw (N,K), rotated along K or not, and the plain dy (M,N) and x (M,K) that it comes from.
C_API void quant_stats_gradient(const QuantStats* q, float squares[3], Mat dw, bool rotated, Mat dy, Mat x);

// The cosine of the angle between one matrix's dW and its shadow; NaN if one of them is all zero.
C_API double quant_stats_cosine(const float squares[3]);
// All operands of X, W and dY together, and all matrices' cosines.
typedef struct {
    double cosine_mean, cosine_least;   // NaN: no dW to compare
    int least_layer;                    // whose cosine is the least
    const char* least_matrix;
    double clipped[3], underflow[3];    // percent of the values of X, W, dY that are not 0
    double shrunk[3];                   // absmax over the rotated absmax, the geometric mean; 0: nothing is rotated
} QuantHealth;

// Prints a summary of what was observed in `step`, and returns it; to `log`, unless NULL, all of it as one line of JSON:
//   {"step": 1, "dw_cosine": {"mean": , "least": }, "clipped_percent": {"x": , "w": , "dy": }, "underflow_percent": {"x": , "w": , "dy": },
//    "quant_stats": [{"layer": 0, "linear": "qkv", "x": OPERAND, "matrices":
//     [{"name": "q_proj", "w": OPERAND, "dy": OPERAND, "dw_cosine": 0.9999}, ...]}, ...]}
// with OPERAND {"clipped_percent": , "underflow_percent": , "absmax": , "absmax_rotated": }, and x_g, w_e, dy_g where G, E and G read
// another form of X, W and dY than F, F and E. A number that isn't finite is null, and so is an operand that isn't there.
C_API QuantHealth quant_stats_report(const QuantStats* q, int step, FILE* log);

#endif
