// Fully sharded data parallelism by hand (ZeRO, Rajbhandari et al. 2020): who owns which rows of which matrix, and the
// gathering and reducing that follow from it.
//
// A `Piece` is one stack of one unit (llama3.h). Its rows are cut into equal shares, one a rank, the last ones padded; a row is
// never cut, so that a rank can rotate and quantize what it owns. Norms count as C rows of one value.
//
//   zero | weights | gradients              | optimizer state
//   0    | whole   | whole, reduced once    | whole
//   1    | whole   | whole, reduced once    | own rows
//   2    | whole   | own rows, reduced after each micro-step | own rows
//   3    | own rows, gathered unit by unit  | as 2           | own rows
//
// One rank owns all rows; nothing is gathered or sent.
//
// Zero 3 has a place for the whole embedding, one for the whole tail, and a ring of `prefetch` + 1 for layers: while the model works
// on a unit, the gathering of the next `prefetch` runs. Layer l always has place (l mod prefetch + 1), so that the last layers of the
// forward pass are still there when the backward pass begins. Gradients have two such places, so that one is reduced while
// the other is made (prefetch 0: one). Zero 1 and 2 gather a unit's weights once, from its update to its next use. None of it
// changes a bit.
//
// With zero 2 and 3 each micro-step's gradients are made alone and then added, in the order of the global batch: micro-step by
// micro-step, and rank by rank within one. F32 gradients are so the same bits whatever the number of ranks, for one rank too.
// BF16 gradients of several micro-steps are added like that with every stage, since the sums are rounded stochastically.
// Else the products add to what is there, which saves a pass.
// Under an adapter (config.h) the model's weights are frozen: they have no gradients and no optimizer state, and a recipe that quantizes
// weights per tensor leaves only the linears' codes of them, which zero 3 cuts and gathers. What is trained is the adapter, which every
// rank holds whole (zero 3 counts as 2 for it): steps, sums, updates, training state are the adapter's, and units hold its stacks too.
//
// With codes on the wire (hqfsdp.h), zero 3 gathers a layer's linears as codes. The shard knows the recipe of the linears that it gathers
// for: it quantizes the rows of this rank whenever they change, and undoes the rotation of finished gradients itself.
#ifndef HALO_SHARD_H
#define HALO_SHARD_H

#include "comm/comm.h"
#include "config.h"

typedef struct {
    int zero, zero_alone;   // the stage, 0 to 3: of several ranks, and of one rank alone
    bool master;       // keep FP32 master weights beside BF16 ones; false: BF16 weights with stochastic rounding
    Fmt grad_fmt;      // F32 or BF16
    Fmt state_fmt;     // of m and v: F32 or BF16
    bool train;        // false: weights only
    int prefetch;      // layers that zero 3 gathers ahead of their use
    int micro_steps;   // of an optimizer step
    uint64_t seed;     // of gradients that are rounded stochastically
    const Recipe* recipe;   // of the blocks' linears
    bool codes;        // zero 3 gathers the linears' codes instead of their weights (HQ-FSDP)
} ShardOptions;

typedef struct {
    int unit;
    Stack stack;
    int rows, cols;         // of the whole matrix; a norm's are (C, 1)
    int share;              // rows a rank, the last ranks' padded
    int row0, own;          // this rank's rows
    size_t local;           // where its share starts in this rank's flat arrays, in values
    size_t full;            // where the matrix starts in the whole model's, in values
    size_t gathered;        // where it starts in its unit's gathering place, in values; kAsCodes: it travels as codes
    uint64_t noise_offset;  // of row0's first value: names its random stream whatever the number of ranks
    bool decay, norm;
} Piece;

static const size_t kAsCodes = (size_t)-1;
static inline bool travels_as_codes(const Piece* p) { return p->gathered == kAsCodes; }

// ---- units: what is gathered together. The embedding (0), each layer (1 to L), and final norm with head (L + 1).
typedef struct {
    Mat w[kStacks];    // weights as the layers read them; only the unit's own stacks are set; norms are (1, C)
    Mat g[kStacks];    // gradients, same shapes
    bool fresh;        // the gradients hold nothing yet: overwrite them, else add
    int step, micro_batch;   // the optimizer step, and this rank's micro-batch in the order of its global batch
    unsigned version;  // of the weights: another number than before: what was prepared of them is stale
    bool quantized;    // HQ-FSDP: the linears' weights are the operands q instead of w
    WeightOperand q[kLinearCount];
} Unit;

// What a unit is acquired for. The order of units is known by it: 0, 1, ... L + 1 forward, the same down to 0 backward. Backward
// may write gradients.
typedef enum { FORWARD, BACKWARD } Pass;

typedef struct Shard Shard;

C_API Shard* shard_new(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options);
C_API void shard_free(Shard* s);

// Bytes on this rank's backend: the memory plan's rows.
typedef struct {
    size_t weights, gradients, optimizer, gathered;
} ShardBytes;
C_API ShardBytes shard_bytes(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options);

// Does a shard of these ranks and options gather codes? One rank gathers nothing.
C_API bool shard_gathers_codes(const Comm* comm, ShardOptions options);
// Are its units' linears codes, gathered or held (of a frozen model)?
C_API bool shard_gives_codes(const Config* config, const Comm* comm, ShardOptions options);

C_API bool shard_hands_out_codes(const Shard* s);

// The weights of a unit, whole, and where its gradients go: the caller's until it acquires the next one.
C_API const Unit* shard_acquire(Shard* s, int unit, Pass pass);
// After the backward pass through a unit: its gradients are complete for this micro-step.
C_API void shard_reduce(Shard* s, int unit);

// Fills every weight. `read` delivers rows [row0, row0 + rows) of parameter `spec` (an index into param_specs) as floats.
typedef void (*ReadRows)(void* self, int spec, int layer, int row0, int rows, float* dst);
C_API void shard_load(Shard* s, ReadRows read, void* self);
// The same for the adapter; `spec` is then an index into adapter_specs. The start of LoRA as a ReadRows (self: RandomWeights, of which
// `deviation` is not read): A kaiming-uniform with a = sqrt 5, which is uniform(-1, 1) / sqrt(K), and B zero.
C_API void shard_load_adapter(Shard* s, ReadRows read, void* self);
C_API void lora_start_read(void* self, int spec, int layer, int row0, int rows, float* dst);
// Hugging Face's initialisation, as a ReadRows: normal(0, deviation), norms 1. Every value is named by (seed, tensor, row, column).
typedef struct {
    const Config* config;
    uint64_t seed;
    float deviation;   // Hugging Face's initializer_range
} RandomWeights;
C_API void random_weights_read(void* self, int spec, int layer, int row0, int rows, float* dst);
// Copies rows of a parameter to the host as the layers read them (ops->act). With zero 3 all ranks call it together.
C_API void shard_read(Shard* s, int spec, int layer, int row0, int rows, void* dst);
C_API void shard_read_adapter(Shard* s, int spec, int layer, int row0, int rows, void* dst);   // of adapter_specs

// ---- an optimizer step
C_API void shard_begin_step(Shard* s, int step);   // gradients are fresh; step: from 1, names their noise
C_API void shard_end_micro_step(Shard* s);         // from now on they accumulate
// Starts what completes the gradients of this rank's rows: the sums over ranks that are still to be taken. Then the linears' are rotated
// back (linear_finish_grad), unit by unit in shard_update, or all at once in shard_finish_gradients.
C_API void shard_reduce_gradients(Shard* s);
C_API void shard_finish_gradients(Shard* s);
// *total on the backend <- sum of squares of all gradients, over all ranks: the same bits however rows are dealt out to ranks.
C_API void shard_sum_squares(Shard* s, WideSum* total);
// One AdamW step over this rank's rows; the caller sets what is not storage (lr ... seed, grad_scale, square_sums: of this rank's rows,
// from 0). weight_decay applies to the pieces that decay. Then the new weights go to the ranks that hold them whole, and what travels
// as codes is quantized.
C_API void shard_update(Shard* s, AdamW hyper);
// Where the gradients of this rank's rows, finished, are the first not to be finite, in the order in which the backward pass makes them.
typedef struct {
    int tensors_before;   // stacks of matrices in that order; -1: all are finite
    int row;              // of the stack
} BadGradient;
C_API BadGradient shard_bad_gradient(Shard* s);
enum { kTensorNameBytes = 160 };
C_API void shard_bad_gradient_name(const Shard* s, BadGradient bad, char name[kTensorNameBytes]);   // of any rank's
// A sum over all rows, of each rank's sum over its own; all ranks call it together, and wait.
C_API double shard_sum_over_rows(const Shard* s, double own);

// ---- training state, for checkpoints: this rank's flat arrays. Names: "weights", "master", "m", "v".
typedef struct {
    const char* name;
    void* data;        // on the backend
    size_t bytes;
} StateArray;
enum { kMaxStateArrays = 4 };
C_API int shard_state(Shard* s, StateArray arrays[kMaxStateArrays]);
// The same arrays as another number of ranks keeps them: their sizes there, and taking over what rank `from_rank` of
// `from_ranks` has saved: `bytes` bytes of array `index` from `offset` on, of which this rank keeps the rows that it owns.
C_API int shard_state_of(const Shard* s, int ranks, StateArray arrays[kMaxStateArrays]);   // data is NULL
C_API void shard_take(Shard* s, int index, int from_rank, int from_ranks, size_t offset, size_t bytes, const void* src);
// After weights were written in place (all state has been taken, a model has been loaded): gathered copies and codes are made anew.
C_API void shard_weights_replaced(Shard* s);

#endif
