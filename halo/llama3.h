// The Llama-3 model: its configuration, the ONE list of its parameters, and forward and backward over them, written once for
// every backend.
#ifndef HALO_LLAMA3_H
#define HALO_LLAMA3_H

#include "linear.h"
#include "quant_stats.h"

typedef enum { ROPE_DEFAULT, ROPE_LLAMA3 } RopeType;

typedef struct {
    int V, C, L, NH, NKV, HD, F;
    int max_T;            // max_position_embeddings
    float norm_eps;
    double rope_theta;
    RopeType rope_type;   // llama3: the four numbers below (Hugging Face rope_scaling / rope_parameters)
    double rope_factor, rope_low_freq, rope_high_freq;
    int rope_original_T;
    bool tied;            // lm_head is the embedding
    int bos, eos;         // -1 if config.json names none
    float init_std;       // initializer_range: of random weights
} Config;

// Tensors that are stored as one matrix, the rows of each above those of the next: what reads the same input is stacked.
typedef enum {
    S_EMBED, S_ATTN_NORM, S_QKV, S_O, S_MLP_NORM, S_GATE_UP, S_DOWN, S_FINAL_NORM, S_HEAD, kStacks
} Stack;

typedef struct {
    const char* name;     // Hugging Face name; a per-layer name has one %d
    int rows, cols;       // (1, C) for norms
    bool per_layer;       // one in each of the L layers
    bool linear;          // a linear's weight: prepared by the recipe
    bool decay;           // weight decay applies
    Stack stack;
} ParamSpec;

enum { kMaxParamSpecs = 12 };

// The list, in storage order: embedding, the layer's tensors, final norm, head (left out when tied). Returns the count.
C_API int param_specs(const Config* config, ParamSpec specs[kMaxParamSpecs]);
// The name of one tensor, its layer filled in.
C_API void param_name(const ParamSpec* spec, int layer, char* name, size_t bytes);
// Rows and columns of a stack; {0, 0} for the head of a tied model.
typedef struct {
    int rows, cols;
} StackSize;
C_API StackSize stack_size(const Config* config, Stack stack);
// Parameters in all, and of those the ones inside products (a tied embedding counts there once).
C_API size_t param_count(const Config* config);
// Model FLOPs of one trained token in a sequence of T: 6 per matrix weight + 6 L T NH HD for causal attention (two products
// of T/2 keys on average, forward once and backward twice).
C_API double train_flops_per_token(const Config* config, int T);

// Sizes that contradict each other are a user_error that names the key of config.json.
C_API void config_check(const Config* config, const char* where);
// "llama3.2-1b", "llama3.2-3b", "llama3-8b", ...; false if there is no such preset.
C_API bool config_preset(Config* config, const char* name);
C_API const char* config_preset_names(void);

// ---- weights, as the model reads them. A unit is what is gathered together: the embedding (0), each layer (1 to L), and
// final norm with head (L + 1).
typedef struct {
    Mat w[kStacks];   // only the unit's own stacks are set; norms are (1, C)
    Mat g[kStacks];   // gradients, same shapes
    bool fresh;       // the gradients hold nothing yet: overwrite them, else add
    bool quantized;   // HQ-FSDP: the linears' weights are the operands q instead of w
    WeightOperand q[kStacks];
} Unit;

// What a unit is acquired for. The order of units is known by it: 0, 1, ... L + 1 forward, the same down to 0 backward. Backward
// may write gradients.
typedef enum { FORWARD, BACKWARD } Pass;

// Where units come from (shard.h). A unit is the model's until it acquires the next one; after the backward pass through a unit its
// gradients are complete for this micro-step and `reduce` is called.
// `changed` follows every update of the weights: time to quantize what will be gathered as codes.
typedef struct {
    void* self;
    bool quantized;   // layers come as operands (Unit.quantized)
    void (*changed)(void* self, const Linear* linear);
    const Unit* (*acquire)(void* self, int unit, Pass pass);
    void (*reduce)(void* self, int unit);
} UnitSource;

// cos and sin of the rotary embedding, (positions, HD) on the backend: HD/2 cosines, then HD/2 sines.
C_API float* rope_table(const Config* config, const Ops* ops, int positions);

// ---- the model
typedef enum { RECOMPUTE_NONE, RECOMPUTE_NORM_ACT, RECOMPUTE_BLOCK } Recompute;

typedef struct {
    int B, T;                 // sequences and tokens per sequence of one micro-step
    bool train;               // false: no gradients, activations of one block only
    Recompute recompute;
    size_t logits_bytes;      // largest piece of logits held at once
    int token_block;          // --token-block; 0: the full token transform
    const Recipe* head;       // of lm_head's products: a row that rotates nothing
    bool observe;             // lay out memory for model_observe
} ModelOptions;

// One micro-batch, on the host; every array is (B, T).
typedef struct {
    const int* tokens;
    const int* targets;       // the token to predict at each position, -100: not scored
    const int* pos;           // position within its document, for RoPE
    const int *start, *end;   // ops.h, Attn
    const int* order;         // ops.h, embed_backward
} Batch;

typedef struct Model Model;

C_API Model* model_new(const Config* config, const Ops* ops, const Recipe* recipe, UnitSource units, ModelOptions options);
C_API void model_free(Model* m);
// Bytes on the backend for activations and scratch (prepared weights included, unless the units come quantized); the same
// layout code as model_new.
typedef struct {
    size_t activations;   // what the forward pass leaves for the backward pass
    size_t codes;         // prepared weights
    size_t scratch;       // everything else
} ModelBytes;
C_API ModelBytes model_bytes(const Config* config, const Ops* ops, const Recipe* recipe, bool quantized_units, ModelOptions options);
static inline size_t model_bytes_together(ModelBytes b) { return b.activations + b.codes + b.scratch; }
// The stacked matrices of a linear.
C_API LinearShape stack_shape(const Config* config, Stack stack);

// The weights have changed: prepare them anew for the coming micro-steps.
C_API void model_weights_changed(Model* m);
// Forward and backward of one micro-batch. Gradients are scaled by `scale` (1 / trained tokens of the whole global batch) and
// added to the units'. loss (B, T) on the backend receives the cross entropy of every position, 0 where none is scored.
C_API void model_train_step(Model* m, const Batch* batch, float scale, float* loss);
// The next micro-step's linears are observed. It has to be the first of its optimizer step.
C_API void model_observe(Model* m);
C_API const QuantStats* model_quant_stats(const Model* m);
// Forward only.
C_API void model_loss(Model* m, const Batch* batch, float* loss);
// The logits of every position as floats, (B, T, V) on the host: for tests.
C_API void model_logits(Model* m, const Batch* batch, float* logits);
// After the last micro-step: undoes the rotation of a unit's weight gradients. Works on any of their rows.
C_API void model_finish_gradients(const Model* m, Mat g, Stack stack);

// ---- generation (decoder.c): one sequence with a key/value cache of `positions` tokens; every product in the plain format
// of the backend.
typedef struct Decoder Decoder;
C_API Decoder* decoder_new(const Config* config, const Ops* ops, UnitSource units, int positions);
C_API void decoder_free(Decoder* d);
C_API void decoder_reset(Decoder* d);
C_API int decoder_room(const Decoder* d);   // tokens that still fit
// Appends `count` tokens and returns the logits (V) after the last one; valid until the next call.
C_API const float* decoder_feed(Decoder* d, const int* tokens, int count);

#endif
