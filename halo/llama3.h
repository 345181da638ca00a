// The Llama-3 model: ONE forward and ONE backward, for training, evaluating and generating, on every backend.
#ifndef HALO_LLAMA3_H
#define HALO_LLAMA3_H

#include "quant_stats.h"
#include "shard.h"

// cos and sin of the rotary embedding, (positions, HD) on the backend: HD/2 cosines, then HD/2 sines.
C_API float* rope_table(const Config* config, const Ops* ops, int positions);

// ---- the model
typedef enum { RECOMPUTE_NONE, RECOMPUTE_NORM_ACT, RECOMPUTE_BLOCK } Recompute;

typedef struct {
    int B, T;                 // sequences and tokens per sequence of one micro-step, at most
    bool train;               // false: no gradients, activations of one block only
    Recompute recompute;
    size_t logits_bytes;      // largest piece of logits held at once
    int token_block;          // --token-block; 0: the full token transform
    const Recipe* head;       // of lm_head's products: a row that rotates nothing
    bool observe;             // lay out memory for model_observe
    int slots, positions;     // generation: a KV cache of that many sequences of that many tokens; 0: none
    int remade;               // so many layers, the first ones, have no prepared weights of their own: they are made again for each pass
} ModelOptions;

// One micro-batch, on the host; every array is (B, T). A model has one layout of its memory for each B, which it changes at no cost.
typedef struct {
    const int* tokens;
    const int* targets;       // the token to predict at each position, -100: not scored
    const int* pos;           // position within its document, for RoPE
    const int *start, *end;   // ops.h, Attn
    const int* order;         // ops.h, embed_backward
    int B;                    // sequences: from 1 to the model's
} Batch;

typedef struct Model Model;

// Weights come from `shard`, which gathers its codes for the same recipe.
C_API Model* model_new(const Config* config, const Ops* ops, const Recipe* recipe, Shard* shard, ModelOptions options);
C_API void model_free(Model* m);
// Bytes on the backend for activations and scratch (prepared weights included, unless the shard gathers codes); the same
// layout code as model_new.
typedef struct {
    size_t activations;   // what the forward pass leaves for the backward pass
    size_t codes;         // prepared weights; of the remade layers, those of one
    size_t cache;         // keys and values of generation
    size_t scratch;       // everything else
} ModelBytes;
C_API ModelBytes model_bytes(const Config* config, const Ops* ops, const Recipe* recipe, bool gathers_codes, ModelOptions options);
static inline size_t model_bytes_together(ModelBytes b) { return b.activations + b.codes + b.cache + b.scratch; }
// Forward and backward of one micro-batch. Gradients are scaled by `scale` (1 / trained tokens of the whole global batch) and
// added to the units'. loss (B, T) on the backend receives the cross entropy of every position, 0 where none is scored.
C_API void model_train_step(Model* m, const Batch* batch, float scale, float* loss);
// Has the next micro-step, which must be the first of its optimizer step, observe its linears (quant_stats.h).
C_API void model_observe(Model* m);
C_API const QuantStats* model_quant_stats(const Model* m);
// Forward only.
C_API void model_loss(Model* m, const Batch* batch, float* loss);
// The logits of every position as floats, (B, T, V) on the host: for tests.
C_API void model_logits(Model* m, const Batch* batch, float* logits);
// ---- generation: new tokens of several sequences, each after what the cache holds of its sequence
typedef struct {
    int rows;           // at most B * T
    const int* tokens;  // (rows) on the host, as all of these
    const int* slot;    // which sequence of the cache: from 0 to slots - 1
    const int* pos;     // the token's position in it: rising within a sequence, from where the cache ends
} NewTokens;
// Appends the tokens to the cache and writes the logits after the rows wanted[0 .. wanted_count), floats (wanted_count, V) on the host.
// On the CPU a sequence gets the bits that it gets alone. A model with a cache does not round its logits to BF16, where several logits
// would often tie for the largest.
C_API void model_extend(Model* m, const NewTokens* batch, const int* wanted, int wanted_count, float* logits);
// Like model_extend, but gives only the token with the largest logit after each wanted row (ops.h, argmax): best (wanted_count) on the host.
C_API void model_extend_best(Model* m, const NewTokens* batch, const int* wanted, int wanted_count, int* best);

#endif
