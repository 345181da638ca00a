// Fully sharded data parallelism by hand (ZeRO, Rajbhandari et al. 2020): who owns which rows of which matrix, and the
// gathering and reducing that follow from it.
//
// A `Piece` is one stack of one unit (ops.h, Words). Its rows are cut into equal shares, one a rank, the last ones padded; a row is
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
// forward pass are still there when the backward pass begins. Gradients of layers have a ring of two, so that one layer's are reduced
// while the next layer's are made (prefetch 0: one). Zero 1 and 2 gather a unit's weights once, from its update to its next use. None
// of this changes a bit of the result.
//
// With zero 2 and 3 each micro-step's gradients are made in a buffer of their own and then added, in the order of the global batch:
// micro-step by micro-step, and rank by rank within one. So F32 gradients are the same bits whatever the number of ranks, for one rank
// too. BF16 gradients of several micro-steps are added in this way with every stage, since the sums are rounded stochastically.
// Else the products add to the gradients of the micro-steps before, which saves a pass.
//
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
    int zero, zero_alone;   // the stage, 0 to 3: with several ranks, and with one rank
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
    int row0, own;          // this rank's rows: [row0, row0 + own)
    size_t local;           // where this rank's share starts in the rank's flat arrays, in values
    size_t full;            // where the matrix starts in the whole model's, in values
    size_t gathered;        // where the matrix starts in its unit's place, in values; kAsCodes: it travels as codes
    uint64_t noise_offset;  // of row0's first value: names its random stream whatever the number of ranks
    bool decay, norm;
} Piece;

static const size_t kAsCodes = (size_t)-1;
static inline bool travels_as_codes(const Piece* p) { return p->gathered == kAsCodes; }

// ---- units, whose pieces are gathered together: the embedding (0), each layer (1 to L), and final norm with head (L + 1).
typedef struct {
    Mat w[kStacks];    // weights as the layers read them; only the unit's own stacks are set; norms are (1, C)
    Mat g[kStacks];    // gradients, same shapes
    bool fresh;        // g holds no gradients yet: overwrite it, else add
    int step, micro_batch;   // the optimizer step, and this rank's micro-batch in the order of its global batch
    unsigned version;  // of the weights; when it changes, what was prepared from the weights is stale
    bool quantized;    // HQ-FSDP: the linears' weights are the operands q instead of w
    WeightOperand q[kLinearCount];
} Unit;

// What a unit is acquired for; it tells the order in which units follow: 0, 1, ... L + 1 forward, L + 1 down to 0 backward. Only
// BACKWARD may write gradients.
typedef enum { FORWARD, BACKWARD } Pass;

typedef struct Shard Shard;

// Allocates what shard_bytes counts, zeroed. With an adapter in `config` it makes the adapter's shard too.
C_API Shard* shard_new(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options);
C_API void shard_free(Shard* s);

// Bytes on this rank's backend: the memory plan's rows.
typedef struct {
    size_t weights, gradients, optimizer, gathered;
} ShardBytes;
C_API ShardBytes shard_bytes(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options);

// Does shard_acquire give a layer's linears as codes: gathered ones, or those held of a frozen model? Asked of a shard, and of what a
// shard of this configuration and these options would do. One rank gathers nothing.
C_API bool shard_gives_codes(const Shard* s);
C_API bool shard_would_give_codes(const Config* config, const Comm* comm, ShardOptions options);
// Is this the only rank, so that no unit comes from others?
C_API bool shard_is_alone(const Shard* s);

// The weights of a unit, whole, and where its gradients go. Valid until the caller acquires the next unit.
C_API const Unit* shard_acquire(Shard* s, int unit, Pass pass);
// After the backward pass through a unit: its gradients are complete for this micro-step.
C_API void shard_reduce(Shard* s, int unit);

// Fills every weight. `read` delivers rows [row0, row0 + rows) of parameter `spec` (an index into param_specs) as floats (rows, cols).
typedef void (*ReadRows)(void* self, int spec, int layer, int row0, int rows, float* dst);
C_API void shard_load(Shard* s, ReadRows read, void* self);
// Fills every weight of the adapter; `spec` is then an index into adapter_specs.
C_API void shard_load_adapter(Shard* s, ReadRows read, void* self);
// An adapter's start as a ReadRows (self: RandomWeights, of which `deviation` is not read): A kaiming-uniform with a = sqrt 5, which is
// uniform(-1, 1) / sqrt(K), and B zero.
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
C_API void shard_end_micro_step(Shard* s);         // from now on gradients accumulate
// Starts the sums over ranks that the gradients of this rank's rows still lack. Afterwards the linears' gradients must be rotated back
// (linear_finish_grad): shard_update does so unit by unit, shard_finish_gradients for all units at once.
C_API void shard_reduce_gradients(Shard* s);
C_API void shard_finish_gradients(Shard* s);
// *total on the backend <- sum of squares of all gradients, over all ranks: the same bits however rows are dealt out to ranks.
C_API void shard_sum_squares(Shard* s, WideSum* total);
// One AdamW step over this rank's rows. The caller sets the fields of `hyper` that name no storage (lr ... seed), grad_scale and
// square_sums, which this call zeroes and fills for this rank's rows. weight_decay applies to the pieces that decay. Then the new weights
// go to the ranks that hold them whole, and the pieces that travel as codes are quantized.
C_API void shard_update(Shard* s, AdamW hyper);
// Where the gradients of this rank's rows, finished, are the first not to be finite, in the order in which the backward pass makes them.
typedef struct {
    int tensors_before;   // stacks of matrices in that order; -1: all are finite
    int row;              // of the stack
} BadGradient;
C_API BadGradient shard_bad_gradient(Shard* s);
enum { kTensorNameBytes = 160 };
C_API void shard_bad_gradient_name(const Shard* s, BadGradient bad, char name[kTensorNameBytes]);   // of any rank's
// The sum over all rows, from each rank's sum `own` over the rows it owns; all ranks call it together, and wait.
C_API double shard_sum_over_rows(const Shard* s, double own);

// ---- training state, for checkpoints: this rank's flat arrays. Names: "weights", "master", "m", "v".
typedef struct {
    const char* name;
    void* data;        // on the backend
    size_t bytes;
} StateArray;
enum { kMaxStateArrays = 4 };
// Returns how many arrays there are: without an FP32 master copy three.
C_API int shard_state(Shard* s, StateArray arrays[kMaxStateArrays]);
// The same arrays as another number of ranks keeps them. shard_state_of gives their sizes there. shard_take takes over what rank
// `from_rank` of `from_ranks` has saved: `bytes` bytes of array `index` from `offset` on, of which this rank keeps the rows that it owns.
C_API int shard_state_of(const Shard* s, int ranks, StateArray arrays[kMaxStateArrays]);   // data is NULL
C_API void shard_take(Shard* s, int index, int from_rank, int from_ranks, size_t offset, size_t bytes, const void* src);
// To be called after the trained weights were written in place, as by shard_take: gathered copies and codes are made anew.
C_API void shard_weights_replaced(Shard* s);

#endif
