// Adapters of a frozen linear: LoRA and HUT.
//
// LoRA (Hu et al. 2021, arXiv 2106.09685): y = HALO(x; W) + s B (A drop(x)).
//
// The adapted matrices of a stacked linear work together: their A's lie one above the other, (parts rank, K), so that one product takes x
// through all of them; each B, (N, rank), has its own columns of the result. With u = s drop(x) A^T kept from the forward pass and
// v = s dY B made in the backward pass:
//
//   y += u B^T      dB += dY^T u      dA += v^T drop(x)      dx += drop(v A), by the mask of the forward pass
//
// The products are plain ones of activations in the backend's format; s is a factor of those that make u and v. The two that read dY, dB's
// and v's, are asked for together. Where the frozen product can add to what is there, the adapter's part of y or dx is written first: one
// pass over it less than adding it afterwards.
//
// HUT (arXiv 2409.13501): y = W' x with W' = W (.) (1 + s B A), the weight updated through an element-wise (Hadamard) product with a product
// of two low-rank matrices. The form is the paper's; assumed here, since its abstract leaves them open: s is LoRA's alpha / rank, A starts
// kaiming-uniform and B at zero as LoRA's, and any linear of a block can be adapted. W' is made anew in each step, from W in 16 bits, and is
// what all three products take; with dW' = dY^T x:
//
//   dP = s dW' (.) W      dB += dP A^T      dA += B^T dP
#ifndef HALO_ADAPTER_H
#define HALO_ADAPTER_H

#include "config.h"

// The adapted matrices of one linear; parts 0: none is adapted. Matrix p writes columns [column[p], column[p] + N[p]) of y.
typedef struct {
    int K, rank, parts;
    int column[kMaxParts], N[kMaxParts];
} LoraShape;
// Of LoRA or HUT; linear: an index into kLinears.
C_API LoraShape lora_shape(const Config* config, int linear);
static inline int lora_width(LoraShape s) { return s.parts * s.rank; }   // of u and v
static inline int lora_columns(LoraShape s) {   // of y that are adapted
    int n = 0;
    for (int p = 0; p < s.parts; p++) n += s.N[p];
    return n;
}

// What the adapters of all linears share.
typedef struct {
    const Ops* ops;
    float scale, dropout;
    void* v;          // (M, widest u)
    void* dropped;    // (M, widest K): drop(x); and then, if dx is not empty, what it grows by
} Lora;
// Lays out scratch for M tokens; `train`: also what a backward pass needs.
C_API void lora_place(Lora* lora, Arena* arena, const Ops* ops, const Config* config, int M, bool train);

// u (M, parts rank) from x (M, K) and A, then the adapted columns of y = u B^T + y_beta * y. `drop` names dropout's mask; NULL: nothing is
// dropped. With y_beta 0 the frozen product comes second and adds to y in FP32, in a pass over y that it makes anyway.
C_API void lora_forward(const Lora* lora, LoraShape shape, Mat y, float y_beta, Mat u, Mat x, Mat a, Mat b, const Noise* drop);
// dx (M, K; data NULL: not wanted) = drop(v A) + dx_beta * dx; da and db = ... + beta * before.
C_API void lora_backward(const Lora* lora, LoraShape shape, Mat dx, float dx_beta, Mat da, Mat db, float beta, Mat dy, Mat u, Mat x, Mat a,
                         Mat b, const Noise* drop);

// ---- HUT. The stacks of a linear: w (N, K), its factors a and b; `wide`: F32 for the largest (N, K), `narrow`: the same in ops->act.
// effective (N, K) <- the linear's stacked matrices: W' of each adapted one, W of the others.
C_API void hut_effective(const Ops* ops, float scale, LoraShape shape, Mat effective, Mat w, Mat a, Mat b, void* wide);
// da and db = ... + beta * before, from dw (N, K) in F32, the gradient of W'.
C_API void hut_backward(const Ops* ops, float scale, LoraShape shape, Mat da, Mat db, float beta, Mat dw, Mat w, Mat a, Mat b, void* narrow);

#endif
