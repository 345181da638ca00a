// LoRA (Hu et al. 2021, arXiv 2106.09685) beside a frozen linear: y = HALO(x; W) + s B (A drop(x)).
//
// The adapted matrices of a stacked linear work together: their A's lie one above the other, (parts rank, K), so that one product takes x
// through all of them; each B, (N, rank), has its own columns of the result. With u = s drop(x) A^T kept from the forward pass and
// v = s dY B made in the backward pass:
//
//   y += u B^T      dB += dY^T u      dA += v^T drop(x)      dx += drop(v A), by the mask of the forward pass
//
// The products are plain ones of activations in the backend's format; s is folded into u and v, which are narrow.
#ifndef HALO_ADAPTER_H
#define HALO_ADAPTER_H

#include "config.h"

// The adapted matrices of one linear; parts 0: none.
typedef struct {
    int K, rank, parts;
    int column[kMaxParts], N[kMaxParts];   // of y
} LoraShape;
C_API LoraShape lora_shape(const Config* config, int linear);
static inline int lora_width(LoraShape s) { return s.parts * s.rank; }   // of u and v

// What the adapters of all linears share.
typedef struct {
    const Ops* ops;
    float scale, dropout;
    void* v;          // (M, widest u)
    void* dropped;    // (M, widest K): drop(x), and then what dx grows by
} Lora;
// Lays out scratch for M tokens; `train`: of a backward pass too.
C_API void lora_place(Lora* lora, Arena* arena, const Ops* ops, const Config* config, int M, bool train);

// u (M, parts rank) from x (M, K) and A, then y += u B^T. `drop` names dropout's mask; NULL: nothing is dropped.
C_API void lora_forward(const Lora* lora, LoraShape shape, Mat y, Mat u, Mat x, Mat a, Mat b, const Noise* drop);
// dx (M, K; data NULL: not wanted) += ...; da and db = ... + beta * before.
C_API void lora_backward(const Lora* lora, LoraShape shape, Mat dx, Mat da, Mat db, float beta, Mat dy, Mat u, Mat x, Mat a, Mat b,
                         const Noise* drop);

#endif
