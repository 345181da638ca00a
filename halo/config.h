// Llama-3's sizes: the configuration, the ONE list of parameters, the ONE list of a block's linears, and the presets.
#ifndef HALO_CONFIG_H
#define HALO_CONFIG_H

#include "linear.h"

typedef enum { ROPE_DEFAULT, ROPE_LLAMA3 } RopeType;

// What is trained. ADAPTER_NONE: the model's weights. Else the weights W are frozen, and for each chosen matrix A (rank, K) and
// B (N, rank) are trained: LoRA (Hu et al. 2021, arXiv 2106.09685): y = W x + scale * B (A dropout(x)); HUT (arXiv 2409.13501):
// y = (W (.) (1 + scale * B A)) x (adapter.h).
typedef enum { ADAPTER_NONE, ADAPTER_LORA, ADAPTER_HUT } AdapterKind;

typedef struct {
    AdapterKind kind;
    int rank;
    float alpha;          // scale = alpha / rank; with rslora alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732)
    bool rslora;
    float dropout;        // of A's input, in training
    uint64_t seed;        // of dropout's masks
    unsigned targets;     // one bit for each adapted matrix, number adapter_target
} Adapter;

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
    Adapter adapter;      // none, unless the run has one: no part of config.json
} Config;

// Stacks: tensors that read the same input, stored as one matrix, the rows of each above those of the next. The A's of a linear's
// adapted matrices are a stack of their own, and so are the B's, in the order of the linear's matrices.
typedef enum {
    S_EMBED, S_ATTN_NORM, S_QKV, S_O, S_MLP_NORM, S_GATE_UP, S_DOWN, S_FINAL_NORM, S_HEAD,
    S_QKV_A, S_QKV_B, S_O_A, S_O_B, S_GATE_UP_A, S_GATE_UP_B, S_DOWN_A, S_DOWN_B, kStacks
} Stack;

typedef struct {
    const char* name;     // Hugging Face name; a per-layer name has one %d
    int rows, cols;       // (1, C) for norms
    bool per_layer;       // one in each of the L layers
    bool decay;           // weight decay applies
    Stack stack;
} ParamSpec;

enum { kMaxParamSpecs = 14 };

// The list, in storage order: embedding, the layer's tensors, final norm, head (left out when tied). Returns the count.
C_API int param_specs(const Config* config, ParamSpec specs[kMaxParamSpecs]);
// The adapter's own list, in PEFT's names: A and B of each adapted matrix; none without an adapter. Under an adapter these are what is
// trained, and the parameters of param_specs are frozen.
C_API int adapter_specs(const Config* config, ParamSpec specs[kMaxParamSpecs]);
// The name of one tensor, its layer filled in.
C_API void param_name(const ParamSpec* spec, int layer, char* name, size_t bytes);
// Rows and columns of a stack; {0, 0} for the head of a tied model.
typedef struct {
    int rows, cols;
} StackSize;
C_API StackSize stack_size(const Config* config, Stack stack);
// A norm's weight: one row, all ones at the start, never decayed, cut among ranks value by value.
C_API bool stack_is_norm(Stack stack);
// Parameters in all, without an adapter's; a tied embedding counts once.
C_API size_t param_count(const Config* config);
// Model FLOPs of one trained token in a sequence of T: 6 per weight of the products that has a gradient, 4 per other weight, + 6 L T NH HD for
// causal attention (two products of T/2 keys on average, forward once and backward twice). LoRA's factors have gradients, and HUT's effective
// weights; what HUT's own factors take is no matter of tokens.
C_API double train_flops_per_token(const Config* config, int T);

// Sizes that contradict each other are a user_error that names the key of config.json.
C_API void config_check(const Config* config, const char* where);
// "llama3.2-1b", "llama3.2-3b", "llama3-8b", ...; false if there is no such preset.
C_API bool config_preset(Config* config, const char* name);
C_API const char* config_preset_names(void);

// ---- the linears of a block, in the order of the forward pass. Code loops over this table, or indexes it by name.
typedef enum { LINEAR_QKV, LINEAR_O, LINEAR_GATE_UP, LINEAR_DOWN, kLinearCount } LinearIndex;

typedef struct {
    Stack stack;                         // of its weight
    const char* name;
    const char* matrices[kMaxParts];     // Hugging Face's names of the stacked matrices
    Stack norm;                          // the norm whose output it reads; kStacks: it reads attention's or SwiGLU's output
    Stack a, b;                          // of its adapter
} BlockLinear;
C_API const BlockLinear kLinears[kLinearCount];

// The linear whose weight this stack is, or -1: embedding, norms and head are none of a block's linears.
C_API int linear_of_stack(Stack stack);
// ---- adapted matrices: q, k, v, o, gate, up and down are numbered in this order
enum { kTargets = 7 };
static const unsigned kAllTargets = (1u << kTargets) - 1;
C_API const char* const kTargetNames[kTargets];   // "q", ...; Hugging Face's module has "_proj" behind it
C_API int adapter_target(int linear, int part);   // the number of a linear's stacked matrix
static inline bool adapter_adapts(const Adapter* a, int linear, int part) {
    return a->kind != ADAPTER_NONE && (a->targets >> adapter_target(linear, part) & 1);
}
// alpha / rank, or with rslora alpha / sqrt(rank).
C_API float adapter_scale(const Adapter* a);

// The stacked matrices of a product's weight.
C_API LinearShape stack_shape(const Config* config, Stack stack);

#endif
