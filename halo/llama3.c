// Llama-3, forward and backward.
//
// A block, with the residual stream `res` and what each line leaves for the backward pass:
//
//   h1 = rmsnorm(res1)            res1 = res2 + down of the block below (fused)
//   qkv = h1 Wqkv^T, rope         att = attention(qkv)
//   h2 = rmsnorm(res2)            res2 = res1 + att Wo^T (fused)
//   gate_up = h2 Wgu^T            act = silu(gate) * up
//   down = act Wd^T               (added by the block above)
//
// Activations fall into three groups by the cost of making them again: a block's input (`input` in place_block), the outputs of
// attention and of products (`mid`), and the outputs of norms and SwiGLU (`cheap`). --recompute keeps the first, the first two, or
// all of them for every layer; a group that isn't kept has one layer's memory and is made again in the backward pass.
// The logits exist for some rows at a time, forward and backward together, since the loss's scale is known
// beforehand. The head is a linear too, under a recipe of its own: the final norm's output is quantized in the same steps with one scale for
// all its rows, the gradient of the logits with a scale for the rows of each step.
//
// Under an adapter (adapter.h) no weight has a gradient, and the backward pass ends in the first block. LoRA: no product takes G, and the
// plain input and u of each adapted linear are kept for the adapter. HUT: G gives the gradient of the effective weight.
#include "llama3.h"

#include "adapter.h"
#include "progress.h"
#include "rng.h"

typedef struct {
    Mat res1, res2, h1, qkv, att, h2, gate_up, act;
    float *rstd1, *rstd2, *lse;
    InputOperand x[kLinearCount];    // h1, att, h2, act as products read them
    GradOperand dy[kLinearCount];    // the gradients of qkv, att Wo^T, gate_up, down as products read them
    Mat u[kLinearCount];             // (BT, adapted matrices * rank): LoRA's u (adapter.h)
} Block;

typedef struct {
    WeightOperand w[kLinearCount];
    bool measured;   // the maxima are those of the weights' version ...
    bool prepared;   // ... and so are the codes
} BlockWeights;

// What differs from one micro-step to the next besides the batch's arrays, on the backend, where a recorded micro-step reads it.
typedef struct {
    NoiseShift drop;         // of dropout's masks: the optimizer step, and the rows of the global batch before these
    float scale;             // of the gradients
} StepNumbers;
enum { kStepNumberInts = 64 };   // the room they have before the batch's arrays, in ints: what follows is aligned as before

// Work that is the same each time, on the same memory: carried out a few times, then recorded once and replayed (`repeat`).
typedef struct {
    int runs;       // carried out so far
    void* record;   // ops.h; NULL: none yet
} Repeated;

// What micro-steps repeat that have as many rows, are the first of their optimizer step or later ones, and find weights prepared or not.
typedef struct {
    int BT;
    bool first, prepared;
    Repeated work;
} RepeatedMicroStep;
enum { kMicroSteps = 12 };   // kept; a run's micro-steps have two or three numbers of rows

// What steps of generation that read the cache repeat.
typedef struct {
    int rows, wanted;   // of the batch
    Repeated work;      // with these, on weights that did not change
} RepeatedStep;

// Times that work is carried out before it is recorded: once, since products choose their algorithms then; and steps of generation a few
// times more, since their batches soon have other sizes.
enum { kMicroStepsBeforeRecording = 1, kStepsBeforeRecording = 3 };

struct Model {
    Config c;
    const Ops* ops;
    Shard* shard;
    ModelOptions opt;
    bool gathers_codes;      // the shard hands out the linears' codes; else they are prepared here
    bool frozen;             // an adapter is trained, not the weights
    bool hut;                // the adapter is HUT: linears take effective weights, under the whole recipe
    Recipe frozen_recipe, frozen_head;   // the recipes with no G (linear_frozen): of blocks under LoRA, and of a frozen head
    Lora lora;
    LoraShape lora_shape[kLinearCount];
    LoraShape hut_shape[kLinearCount];
    Mat effective[kLinearCount];   // (N, K): HUT's effective weights of the layer at work; after its products, scratch of hut_backward
    void* wide;              // (N, K) in F32, of the largest linear: products of HUT's factors, gradients of effective weights
    bool drops;              // dropout is on: a training step of LoRA with dropout is under way
    bool remaking;           // LoRA's backward pass is making activations again
    Linear linear;
    LinearShape shape[kLinearCount];
    Linear head;             // for as many rows as there are logits of
    LinearShape head_shape;
    int BT;                  // rows of the batch at work
    int most_rows;           // rows that there is memory for
    int most_logit_rows;     // rows of logits held at once

    Block* blocks;           // L
    BlockWeights* weights;   // L
    unsigned version;        // of the weights that were prepared
    Mat branch;              // (BT, C) the output of o or down, which the next norm adds to the stream
    Mat res, h;              // (BT, C) after the last block: the stream, and its norm
    float* rstd;
    Mat logits;              // (rows held at once, V)
    void *head_input, *head_maxima;   // memory in which linear_place_input lays out the operand of the rows at work
    float* head_grad_maxima;
    WeightOperand head_weight;
    bool head_prepared;
    // backward
    Mat dres, dh, datt, dqkv, dact;   // (BT, C), (BT, C), (BT, NH HD), (BT, (NH + 2 NKV) HD), (BT, F)
    void* scratch;                    // of attention's and rmsnorm's backward

    QuantStats stats;
    bool observing;                   // in this micro-step

    bool records;                     // micro-steps are recorded and repeated
    RepeatedMicroStep micro_steps[kMicroSteps];
    int micro_step_count;
    float* losses;                    // (BT) of the micro-step at work: where a recorded one leaves them

    float *batch_maxima, *weight_maxima;   // all maxima of operands that change with every batch, and with every update
    size_t batch_maxima_bytes, weight_maxima_bytes;
    float* cos_sin;          // (T or positions, HD)
    int* inputs;             // StepNumbers and the batch's arrays on the backend
    int* host_inputs;
    const int *tokens, *targets, *pos, *start, *end, *order;
    // generation
    Mat* cache;              // L of (slots * positions, 2 NKV HD)
    Mat wanted;              // (BT, C) copies of the rows of h whose logits are wanted
    int wanted_count;        // of them in this batch
    int* best;               // (BT) the likeliest token after each of them
    const int *slot, *wanted_rows;
    bool extending;          // this batch goes to the cache
    RepeatedStep repeated;
    bool fresh;              // this batch holds sequences from their beginning on: no row needs what the cache held before
    void* memory;
    size_t memory_bytes;
};

enum { kBatchArrays = 6 };   // arrays of Batch; also those of NewTokens, with wanted_rows, start and end

// The head's weight and gradient live in the last unit, or in the first if they are the embedding's.
static int head_unit(const Config* c) { return c->tied ? 0 : c->L + 1; }
static Stack head_stack(const Config* c) { return c->tied ? S_EMBED : S_HEAD; }

// ---- layout

static Mat take_mat(Arena* arena, int rows, int cols, Fmt fmt) {
    return mat(arena_take(arena, (size_t)rows * cols * fmt_bytes(fmt)), rows, cols, fmt);
}
static float* take_floats(Arena* arena, size_t n) { return (float*)arena_take(arena, n * sizeof(float)); }

// Where a norm or SwiGLU writes the input of a linear: memory of its own if the linear's or its adapter's backward pass reads the plain
// input, else scratch that the next producer may overwrite.
static Mat take_produced(const Model* m, Arena* arena, void* scratch, int linear, int cols) {
    bool kept = m->frozen && !m->hut ? m->lora_shape[linear].parts > 0 : linear_keeps_plain_input(m->linear.recipe);
    if (kept) return take_mat(arena, m->BT, cols, m->ops->act);
    return mat(scratch, m->BT, cols, m->ops->act);
}

static void place_block(Model* m, Block* b, Arena* input, Arena* mid, Arena* cheap, Arena* maxima, void* produced) {
    const Config* c = &m->c;
    const Linear* ln = &m->linear;
    Fmt act = m->ops->act;
    int BT = m->BT;
    b->res1 = take_mat(input, BT, c->C, act);
    for (int i = 0; i < kLinearCount; i++)
        if (m->lora_shape[i].parts) b->u[i] = take_mat(input, BT, lora_width(m->lora_shape[i]), act);

    b->rstd1 = take_floats(mid, BT);
    b->qkv = take_mat(mid, BT, linear_N(m->shape[LINEAR_QKV]), act);
    b->att = take_mat(mid, BT, c->NH * c->HD, act);
    b->lse = take_floats(mid, (size_t)BT * c->NH);
    linear_place_input(ln, &b->x[LINEAR_O], mid, maxima, m->shape[LINEAR_O], b->att);
    b->res2 = take_mat(mid, BT, c->C, act);
    b->rstd2 = take_floats(mid, BT);
    b->gate_up = take_mat(mid, BT, 2 * c->F, act);

    b->h1 = take_produced(m, cheap, produced, LINEAR_QKV, c->C);
    linear_place_input(ln, &b->x[LINEAR_QKV], cheap, maxima, m->shape[LINEAR_QKV], b->h1);
    b->h2 = take_produced(m, cheap, produced, LINEAR_GATE_UP, c->C);
    linear_place_input(ln, &b->x[LINEAR_GATE_UP], cheap, maxima, m->shape[LINEAR_GATE_UP], b->h2);
    b->act = take_produced(m, cheap, produced, LINEAR_DOWN, c->F);
    linear_place_input(ln, &b->x[LINEAR_DOWN], cheap, maxima, m->shape[LINEAR_DOWN], b->act);

    if (!m->opt.train) return;
    linear_place_grad(&b->dy[LINEAR_QKV], maxima, m->dqkv);
    linear_place_grad(&b->dy[LINEAR_O], maxima, m->dres);
    linear_place_grad(&b->dy[LINEAR_GATE_UP], maxima, b->gate_up);   // SwiGLU's backward works in place
    linear_place_grad(&b->dy[LINEAR_DOWN], maxima, m->dres);
}

// Lays out the three groups of activations (top of this file): memory for every block, or the same memory for all blocks.
static void place_blocks(Model* m, Arena* arena, Arena* maxima) {
    const Config* c = &m->c;
    bool keep_input = m->opt.train;
    bool keep_mid = keep_input && m->opt.recompute != RECOMPUTE_BLOCK;
    bool keep_cheap = keep_mid && m->opt.recompute == RECOMPUTE_NONE;
    void* produced = arena_take(arena, (size_t)m->BT * max_int(c->C, c->F) * fmt_bytes(m->ops->act));
    Block measure;
    Arena none = {NULL, 0}, group[3] = {none, none, none}, unused = none;
    place_block(m, &measure, &group[0], &group[1], &group[2], &unused, NULL);
    bool keep[3] = {keep_input, keep_mid, keep_cheap};
    Arena at[3];
    for (int l = 0; l < c->L; l++) {
        for (int g = 0; g < 3; g++) {
            if (l > 0 && !keep[g]) {
                at[g].used = 0;   // the same memory again
                continue;
            }
            at[g].base = (char*)arena_take(arena, group[g].used);
            at[g].used = 0;
        }
        place_block(m, &m->blocks[l], &at[0], &at[1], &at[2], maxima, produced);
    }
}

static bool is_remade(const Model* m, int layer) { return layer < m->opt.remade; }

static void place_weights(Model* m, Arena* arena, Arena* maxima) {
    linear_place_weight(&m->head, &m->head_weight, arena, maxima, m->head_shape);
    if (m->gathers_codes) return;   // the layers' prepared weights come with the unit
    size_t shared = arena->used;
    for (int l = 0; l < m->c.L; l++) {
        if (is_remade(m, l)) arena->used = shared;   // the same memory again
        for (int i = 0; i < kLinearCount; i++)
            linear_place_weight(&m->linear, &m->weights[l].w[i], arena, maxima, m->shape[i]);
    }
}

static void place_cache(Model* m, Arena* arena) {
    int spare = m->ops->round_rows ? 1 : 0;   // a sequence for the rows that pad a batch (extend_trunk)
    for (int l = 0; m->opt.slots && l < m->c.L; l++)
        m->cache[l] = take_mat(arena, (m->opt.slots + spare) * m->opt.positions, 2 * m->c.NKV * m->c.HD, m->ops->act);
}

static Fmt logits_fmt(const Model* m) { return m->opt.slots ? F32 : m->ops->act; }

// The rows of logits that fit in logits_bytes: a multiple of a product's tile if at least one tile fits.
static int logit_rows(const Model* m) {
    enum { kTileRows = 128 };
    size_t fit = m->opt.logits_bytes / ((size_t)m->c.V * fmt_bytes(logits_fmt(m)));
    int rows = fit < 1 ? 1 : fit > (size_t)m->most_rows ? m->most_rows : (int)fit;
    return rows < m->most_rows && rows >= kTileRows ? rows / kTileRows * kTileRows : rows;
}

static void place_head_input(Model* m, Arena* arena, Arena* maxima) {
    Arena measure = {NULL, 0}, measure_maxima = {NULL, 0};
    InputOperand unused;
    linear_place_input(&m->head, &unused, &measure, &measure_maxima, m->head_shape, m->h);
    m->head_input = arena_take(arena, measure.used);
    m->head_maxima = arena_take(maxima, measure_maxima.used);
    GradOperand grad;
    linear_place_grad(&grad, maxima, m->logits);
    m->head_grad_maxima = grad.absmax;
}

static void place_backward(Model* m, Arena* arena) {
    const Config* c = &m->c;
    const Ops* ops = m->ops;
    Fmt act = ops->act;
    Attn shape = {m->BT / m->opt.T, m->opt.T, c->NH, c->NKV, c->HD, NULL, NULL};
    size_t attention = ops->attention_scratch(shape), rmsnorm = m->frozen ? 0 : ops->rmsnorm_scratch(m->BT, c->C);
    m->dres = take_mat(arena, m->BT, c->C, act);
    m->dh = take_mat(arena, m->BT, c->C, act);
    m->datt = take_mat(arena, m->BT, c->NH * c->HD, act);
    m->dqkv = take_mat(arena, m->BT, linear_N(m->shape[LINEAR_QKV]), act);
    m->dact = take_mat(arena, m->BT, c->F, act);
    m->scratch = arena_take(arena, attention > rmsnorm ? attention : rmsnorm);
}

// Placed first of all memory of a batch, so that the statistics stay where they are when a batch of another size follows.
static void place_stats(Model* m, Arena* arena, const Recipe* recipe) {
    Arena measure = {NULL, 0};
    linear_place(&m->linear, &measure, m->ops, recipe, m->shape, kLinearCount, m->BT, m->opt.token_block);   // for rotated_rows
    quant_stats_place(&m->stats, arena, m->ops, m->shape, m->c.L, m->linear.rotated_rows);
}

// Lays out what does not depend on the batch's number of rows: prepared weights and the cache.
static void place_lasting(Model* m, Arena* arena, ModelBytes* bytes) {
    Arena measure = {NULL, 0}, nothing = {NULL, 0};
    place_weights(m, &nothing, &measure);
    Arena maxima = {(char*)arena_take(arena, measure.used), 0};
    m->weight_maxima = (float*)maxima.base;
    m->weight_maxima_bytes = measure.used;
    place_weights(m, arena, &maxima);
    bytes->codes = arena->used;
    place_cache(m, arena);
    bytes->cache = arena->used - bytes->codes;
}

static void place_effective(Model* m, Arena* arena) {
    size_t widest = 0;
    for (int i = 0; i < kLinearCount; i++) {
        if (!m->hut_shape[i].parts) continue;
        int N = linear_N(m->shape[i]), K = m->shape[i].K;
        m->effective[i] = take_mat(arena, N, K, m->ops->act);
        if (widest < (size_t)N * K) widest = (size_t)N * K;
    }
    m->wide = widest ? take_floats(arena, widest) : NULL;
}

// Lays out the memory of a batch of m->BT rows. No part grows when rows get fewer, so that every batch fits where the largest does.
static void place_batch(Model* m, Arena* arena, const Recipe* recipe, ModelBytes* bytes) {
    const Config* c = &m->c;
    Fmt act = m->ops->act;
    size_t start = arena->used;
    int rows = min_int(m->most_logit_rows, m->BT);
    if (m->opt.train && m->opt.observe) place_stats(m, arena, recipe);
    linear_place(&m->linear, arena, m->ops, recipe, m->shape, kLinearCount, m->BT, m->opt.token_block);
    linear_place(&m->head, arena, m->ops, m->head.recipe, &m->head_shape, 1, rows, 0);
    lora_place(&m->lora, arena, m->ops, c, m->BT, m->opt.train);
    place_effective(m, arena);
    m->branch = take_mat(arena, m->BT, c->C, act);
    m->logits = take_mat(arena, rows, c->V, logits_fmt(m));
    m->inputs = (int*)arena_take(arena, sizeof(int) * (kStepNumberInts + (size_t)kBatchArrays * m->BT));
    if (m->opt.train) m->losses = take_floats(arena, m->BT);
    if (m->opt.slots) {
        m->wanted = take_mat(arena, m->BT, c->C, act);
        m->best = (int*)arena_take(arena, sizeof(int) * m->BT);
    }
    if (m->opt.train) place_backward(m, arena);

    // All maxima lie together, so that one call zeroes them: first measured, then placed as one array.
    Arena measure = {NULL, 0}, nothing = {NULL, 0};
    place_head_input(m, &nothing, &measure);
    place_blocks(m, &nothing, &measure);
    Arena maxima = {(char*)arena_take(arena, measure.used), 0};
    m->batch_maxima = (float*)maxima.base;
    m->batch_maxima_bytes = measure.used;
    size_t activations = arena->used;
    m->res = take_mat(arena, m->BT, c->C, act);
    m->h = take_mat(arena, m->BT, c->C, act);
    m->rstd = take_floats(arena, m->BT);
    place_head_input(m, arena, &maxima);
    place_blocks(m, arena, &maxima);
    bytes->activations = arena->used - activations;
    bytes->scratch = activations - start;
}

// Lays out the whole model; returns the bytes of its parts.
static ModelBytes place_model(Model* m, Arena* arena, const Recipe* recipe) {
    ModelBytes bytes = {0, 0, 0, 0};
    if (m->frozen) m->frozen_head = linear_frozen(m->opt.head);
    if (m->frozen && !m->hut) {
        m->frozen_recipe = linear_frozen(recipe);
        recipe = &m->frozen_recipe;
    }
    m->linear = linear_of(m->ops, recipe);
    m->head = linear_of(m->ops, m->frozen ? &m->frozen_head : m->opt.head);
    place_lasting(m, arena, &bytes);
    place_batch(m, arena, recipe, &bytes);
    return bytes;
}

// Lays the model out anew, in the same memory, for a batch of `rows` rows.
static void set_rows(Model* m, int rows) {
    if (m->BT == rows) return;
    check(rows >= 1 && rows <= m->most_rows, "a batch of %d rows, memory for %d", rows, m->most_rows);
    m->BT = rows;
    Arena arena = {(char*)m->memory, 0};
    place_model(m, &arena, m->linear.recipe);
    check(arena.used <= m->memory_bytes, "a batch of %d rows takes %zu bytes, %d rows took %zu", rows, arena.used, m->most_rows, m->memory_bytes);
}

static void model_shape(Model* m, const Config* config, const Ops* ops, bool gathers_codes, ModelOptions options) {
    memset(m, 0, sizeof *m);
    m->c = *config;
    m->ops = ops;
    m->opt = options;
    m->gathers_codes = gathers_codes;
    m->BT = m->most_rows = options.B * options.T;
    m->most_logit_rows = logit_rows(m);
    m->frozen = config->adapter.kind != ADAPTER_NONE;
    m->hut = config->adapter.kind == ADAPTER_HUT;
    for (int i = 0; i < kLinearCount; i++) {
        m->shape[i] = stack_shape(config, kLinears[i].stack);
        *(m->hut ? &m->hut_shape[i] : &m->lora_shape[i]) = lora_shape(config, i);
    }
    m->head_shape = stack_shape(config, head_stack(config));
    m->blocks = (Block*)host_alloc(sizeof(Block) * (size_t)config->L);
    m->weights = (BlockWeights*)host_alloc(sizeof(BlockWeights) * (size_t)config->L);
    m->cache = (Mat*)host_alloc(sizeof(Mat) * (size_t)config->L);
}
static void forget_shape(Model* m) {
    free(m->blocks);
    free(m->weights);
    free(m->cache);
}

ModelBytes model_bytes(const Config* config, const Ops* ops, const Recipe* recipe, bool gathers_codes, ModelOptions options) {
    Model m;
    model_shape(&m, config, ops, gathers_codes, options);
    Arena measure = {NULL, 0};
    ModelBytes bytes = place_model(&m, &measure, recipe);
    forget_shape(&m);
    return bytes;
}

Model* model_new(const Config* config, const Ops* ops, const Recipe* recipe, Shard* shard, ModelOptions options) {
    Model* m = (Model*)host_alloc(sizeof(Model));
    bool gathers_codes = shard_gives_codes(shard);
    model_shape(m, config, ops, gathers_codes, options);
    m->shard = shard;
    m->memory_bytes = model_bytes_together(model_bytes(config, ops, recipe, gathers_codes, options));
    m->memory = ops->alloc(m->memory_bytes);
    Arena arena = {(char*)m->memory, 0};
    place_model(m, &arena, recipe);
    m->host_inputs = (int*)host_alloc(sizeof(int) * (kStepNumberInts + kBatchArrays * (size_t)m->BT));
    m->cos_sin = rope_table(config, ops, max_int(options.T, options.positions));
    return m;
}

// ---- repeated work: hundreds of launches become one

static void repeat(Model* m, Repeated* r, int runs_before_recording, void (*work)(Model* m)) {
    if (r->runs < runs_before_recording) {
        r->runs++;
        work(m);
        return;
    }
    if (!r->record) {
        m->ops->record_begin();
        work(m);
        r->record = m->ops->record_end();
    }
    m->ops->replay(r->record);
}

static void forget(Model* m, Repeated* r) {
    if (r->record) m->ops->record_free(r->record);
    memset(r, 0, sizeof *r);
}

void model_free(Model* m) {
    forget(m, &m->repeated.work);
    for (int i = 0; i < m->micro_step_count; i++) forget(m, &m->micro_steps[i].work);
    m->ops->release(m->memory);
    m->ops->release(m->cos_sin);
    free(m->host_inputs);
    forget_shape(m);
    free(m);
}

float* rope_table(const Config* c, const Ops* ops, int positions) {
    int half = c->HD / 2;
    size_t count = (size_t)positions * c->HD;
    float* table = (float*)host_alloc(count * sizeof(float));
    for (int i = 0; i < half; i++) {
        double frequency = pow(c->rope_theta, -2.0 * i / c->HD);
        if (c->rope_type == ROPE_LLAMA3) {
            // Llama 3.1's scaling: long wavelengths are stretched by the factor, short ones kept, in between interpolated.
            double turns = c->rope_original_T * frequency / (2 * 3.14159265358979323846);
            double keep = (turns - c->rope_low_freq) / (c->rope_high_freq - c->rope_low_freq);
            keep = keep < 0 ? 0 : keep > 1 ? 1 : keep;
            frequency = (1 - keep) * frequency / c->rope_factor + keep * frequency;
        }
        for (int t = 0; t < positions; t++) {
            table[(size_t)t * c->HD + i] = (float)cos(t * frequency);
            table[(size_t)t * c->HD + half + i] = (float)sin(t * frequency);
        }
    }
    float* on_backend = (float*)ops->alloc(count * sizeof(float));
    ops->upload(on_backend, table, count * sizeof(float));
    free(table);
    return on_backend;
}

// ---- the parts of a block, forward

static Attn attention_shape(const Model* m) {
    int B = m->extending ? 1 : m->BT / m->opt.T;   // new tokens are one sequence of packed documents
    Attn a = {B, m->BT / B, m->c.NH, m->c.NKV, m->c.HD, m->start, m->end};
    return a;
}

// The plain input of a linear, as its producer wrote it.
static Mat linear_input(const Block* b, int linear) {
    switch (linear) {
        case LINEAR_QKV: return b->h1;
        case LINEAR_O: return b->att;
        case LINEAR_GATE_UP: return b->h2;
        case LINEAR_DOWN: return b->act;
        default: die("linear_input: linear %d", linear);
    }
}

// Names the dropout mask of an adapter's input by step, layer and linear, and by where a value lies in the step's global batch, so that
// the mask is the same in each pass and with any number of ranks. Bit 62 separates these streams from other uses of the seed (rng.h). The
// step and the place in the batch are among the StepNumbers.
static Noise drop_noise(const Model* m, int layer, int linear) {
    Noise noise = {m->c.adapter.seed, kDropStreams | (uint64_t)layer << 3 | (uint64_t)linear, 0, &((const StepNumbers*)m->inputs)->drop};
    return noise;
}

// The stacked weight that the products of a linear read.
static Mat linear_weight(const Model* m, const Unit* u, int linear) {
    return m->hut_shape[linear].parts ? m->effective[linear] : u->w[kLinears[linear].stack];
}

// What the adapter of a linear makes of its input, added to y if y_beta is 1, else written there.
static void block_lora_forward(Model* m, Block* b, const Unit* u, int linear, Mat y, float y_beta) {
    const BlockLinear* l = &kLinears[linear];
    Noise drop = drop_noise(m, (int)(b - m->blocks), linear);
    lora_forward(&m->lora, m->lora_shape[linear], y, y_beta, b->u[linear], linear_input(b, linear), u->w[l->a], u->w[l->b],
                 m->drops ? &drop : NULL);
}

// y = x W^T of one of the block's linears, and what its adapter adds: first, unless it leaves out some columns of y.
static void block_linear_forward(Model* m, Block* b, const Unit* u, int linear, Mat y) {
    LoraShape lora = m->lora_shape[linear];
    bool lora_first = lora.parts && lora_columns(lora) == y.cols;
    if (lora_first) block_lora_forward(m, b, u, linear, y, 0);
    linear_forward(&m->linear, y, lora_first ? 1.0f : 0.0f, &b->x[linear], linear_weight(m, u, linear),
                   &m->weights[b - m->blocks].w[linear], m->shape[linear]);
    if (lora.parts && !lora_first) block_lora_forward(m, b, u, linear, y, 1);
}

// Will the operand that is prepared from a linear's input be read? While LoRA's backward pass makes activations again, only linears
// whose output is made again (RECOMPUTE_BLOCK: all but down) read theirs; the adapter reads plain inputs.
static bool operand_is_read(const Model* m, int linear) {
    return !m->remaking || (m->opt.recompute == RECOMPUTE_BLOCK && linear != LINEAR_DOWN);
}

// h = rmsnorm(res = x + delta), prepared for the linear that reads it.
static void norm_forward(Model* m, Block* b, const Unit* u, int linear, Mat h, float* rstd, Mat res, Mat x, Mat delta) {
    bool read = operand_is_read(m, linear);
    Prep prep = read ? linear_input_prep(&m->linear, &b->x[linear]) : kPrepNone;
    m->ops->rmsnorm_forward(h, rstd, res, x, delta, u->w[kLinears[linear].norm], m->c.norm_eps, prep);
    if (read) linear_prepare_input(&m->linear, &b->x[linear], h, prep);
}

static void swiglu_forward(Model* m, Block* b) {
    bool read = operand_is_read(m, LINEAR_DOWN);
    Prep prep = read ? linear_input_prep(&m->linear, &b->x[LINEAR_DOWN]) : kPrepNone;
    m->ops->swiglu_forward(b->act, b->gate_up, prep);
    if (read) linear_prepare_input(&m->linear, &b->x[LINEAR_DOWN], b->act, prep);
}

// Attends over the batch's own tokens or, when generating, over what the cache holds of each row's sequence.
static void attention_forward(Model* m, Block* b) {
    const Config* c = &m->c;
    const Ops* ops = m->ops;
    Mat cache = m->cache[b - m->blocks];
    bool cached = m->extending && !m->fresh;
    Prep prep = linear_input_prep(&m->linear, &b->x[LINEAR_O]);
    if (prep.rotate || cached) prep = kPrepNone;   // attention_forward finds only an un-rotated maximum, attention_cached none
    if (cached) ops->attention_cached(b->att, cache, b->qkv, m->slot, m->pos, m->opt.positions, c->NH, c->NKV, c->HD);
    else ops->attention_forward(b->att, b->lse, b->qkv, attention_shape(m), prep.absmax);
    if (m->fresh) ops->attention_append(cache, b->qkv, m->slot, m->pos, m->opt.positions, c->NH, c->NKV, c->HD);
    linear_prepare_input(&m->linear, &b->x[LINEAR_O], b->att, prep);
}

static const StepNumbers kNoNumbers = {{0, 0}, 0};
static const Mat kNothing = {NULL, 0, 0, 0, F32};

// A block from h1 to act; leaves qkv, att, res2, h2 and gate_up too.
static void block_middle(Model* m, Block* b, const Unit* u) {
    const Config* c = &m->c;
    block_linear_forward(m, b, u, LINEAR_QKV, b->qkv);
    m->ops->rope(b->qkv, m->cos_sin, m->pos, c->NH, c->NKV, c->HD, false, NULL);
    attention_forward(m, b);
    block_linear_forward(m, b, u, LINEAR_O, m->branch);
    norm_forward(m, b, u, LINEAR_GATE_UP, b->h2, b->rstd2, b->res2, b->res1, m->branch);
    block_linear_forward(m, b, u, LINEAR_GATE_UP, b->gate_up);
    swiglu_forward(m, b);
}

// `below`: the block before b; NULL for the first, whose input the embedding has written to res1.
static void block_forward(Model* m, Block* b, const Block* below, const Unit* u) {
    Mat x = below ? below->res2 : b->res1, delta = below ? m->branch : kNothing;
    norm_forward(m, b, u, LINEAR_QKV, b->h1, b->rstd1, b->res1, x, delta);
    block_middle(m, b, u);
    block_linear_forward(m, b, u, LINEAR_DOWN, m->branch);
}

// Makes again, by the calls of the forward pass, the activations that --recompute did not keep.
static void block_again(Model* m, Block* b, const Unit* u) {
    if (m->opt.recompute == RECOMPUTE_NONE) return;
    m->remaking = m->frozen && !m->hut;
    norm_forward(m, b, u, LINEAR_QKV, b->h1, b->rstd1, b->res1, b->res1, kNothing);
    if (m->opt.recompute == RECOMPUTE_BLOCK) {
        block_middle(m, b, u);
    } else {
        norm_forward(m, b, u, LINEAR_GATE_UP, b->h2, b->rstd2, b->res2, b->res2, kNothing);
        swiglu_forward(m, b);
    }
    m->remaking = false;
}

// ---- backward of a block: dres holds the gradient of the block's output before, and of its input after

// A linear's unquantized input. A norm's or SwiGLU's output is made again, since only its codes may have been kept, in the memory that
// its producer wrote to, which nothing else uses in the backward pass.
static Mat plain_input(Model* m, Block* b, const Unit* u, int linear) {
    Mat x = linear_input(b, linear), w = kLinears[linear].norm == kStacks ? kNothing : u->w[kLinears[linear].norm];
    float eps = m->c.norm_eps;
    if (linear == LINEAR_QKV) m->ops->rmsnorm_forward(x, b->rstd1, b->res1, b->res1, kNothing, w, eps, kPrepNone);
    if (linear == LINEAR_GATE_UP) m->ops->rmsnorm_forward(x, b->rstd2, b->res2, b->res2, kNothing, w, eps, kPrepNone);
    if (linear == LINEAR_DOWN) m->ops->swiglu_forward(x, b->gate_up, kPrepNone);
    return x;
}

// What the adapter of a linear adds to dx (data NULL: not wanted), or writes there if dx_beta is 0; and its gradients.
static void block_lora_backward(Model* m, Block* b, const Unit* u, int linear, Mat dx, float dx_beta) {
    const BlockLinear* l = &kLinears[linear];
    Noise drop = drop_noise(m, (int)(b - m->blocks), linear);
    lora_backward(&m->lora, m->lora_shape[linear], dx, dx_beta, u->g[l->a], u->g[l->b], u->fresh ? 0.0f : 1.0f, b->dy[linear].dy, b->u[linear],
                  linear_input(b, linear), u->w[l->a], u->w[l->b], m->drops ? &drop : NULL);
}

// The gradients of HUT's factors of a linear, from dw, the gradient of its effective weight as G left it.
static void block_hut_backward(Model* m, const Unit* u, int linear, Mat dw) {
    const BlockLinear* l = &kLinears[linear];
    linear_finish_grad(&m->linear, dw);
    hut_backward(m->ops, adapter_scale(&m->c.adapter), m->hut_shape[linear], u->g[l->a], u->g[l->b], u->fresh ? 0.0f : 1.0f, dw, u->w[l->stack],
                 u->w[l->a], u->w[l->b], m->effective[linear].data);
}

// dx = dy W (data NULL: not wanted) and dW of one of the block's linears, or its adapter's gradients.
static void block_linear_backward(Model* m, Block* b, const Unit* u, int linear, Mat dx) {
    Stack stack = kLinears[linear].stack;
    int layer = (int)(b - m->blocks);
    bool hut = m->hut_shape[linear].parts > 0;
    Mat dw = hut ? mat(m->wide, linear_N(m->shape[linear]), m->shape[linear].K, F32) : u->g[stack];
    bool lora = m->lora_shape[linear].parts > 0, lora_first = lora && linear_adds_to_dx(m->linear.recipe);
    if (lora_first) block_lora_backward(m, b, u, linear, dx, 0);
    if (dx.data)
        linear_backward(&m->linear, dx, lora_first ? 1.0f : 0.0f, dw, hut || u->fresh ? 0.0f : 1.0f, &b->dy[linear], &b->x[linear],
                        linear_weight(m, u, linear), &m->weights[layer].w[linear], m->shape[linear]);
    if (hut) block_hut_backward(m, u, linear, dw);
    if (lora && !lora_first) block_lora_backward(m, b, u, linear, dx, 1);
    if (!m->observing) return;
    check(u->fresh, "model_observe: not the first micro-step");
    linear_observe(&m->linear, &m->stats, layer, linear, plain_input(m, b, u, linear), u->w[stack], b->dy[linear].dy, u->g[stack]);
}

static float* grad_maxima(const Model* m, const Block* b, int linear) { return linear_grad_maxima(&m->linear, &b->dy[linear]); }

// The gradient of a norm's weight, to be added to: zeroed if it is fresh, nothing if the norm is frozen.
static Mat norm_grad(const Model* m, const Unit* u, Stack stack) {
    if (m->frozen) return kNothing;
    if (u->fresh) m->ops->zero(u->g[stack].data, mat_bytes(u->g[stack]));
    return u->g[stack];
}

// `below`: the block before b, whose output is b's input; NULL for the first.
static void block_backward(Model* m, Block* b, const Block* below, const Unit* u) {
    const Config* c = &m->c;
    const Ops* ops = m->ops;
    Mat g_attn = norm_grad(m, u, S_ATTN_NORM), g_mlp = norm_grad(m, u, S_MLP_NORM);
    bool lowest = m->frozen && !below;   // an embedding that is frozen wants no gradient
    block_linear_backward(m, b, u, LINEAR_DOWN, m->dact);
    ops->swiglu_backward(b->gate_up, m->dact, b->gate_up, grad_maxima(m, b, LINEAR_GATE_UP));   // in place: the last reader of gate_up
    block_linear_backward(m, b, u, LINEAR_GATE_UP, m->dh);
    ops->rmsnorm_backward(m->dres, g_mlp, m->dh, b->res2, u->w[S_MLP_NORM], b->rstd2, m->scratch, grad_maxima(m, b, LINEAR_O));

    block_linear_backward(m, b, u, LINEAR_O, m->datt);
    ops->attention_backward(m->dqkv, m->datt, b->att, b->qkv, b->lse, attention_shape(m), m->scratch);
    ops->rope(m->dqkv, m->cos_sin, m->pos, c->NH, c->NKV, c->HD, true, grad_maxima(m, b, LINEAR_QKV));
    block_linear_backward(m, b, u, LINEAR_QKV, lowest && !m->hut ? kNothing : m->dh);
    if (lowest) return;
    ops->rmsnorm_backward(m->dres, g_attn, m->dh, b->res1, u->w[S_ATTN_NORM], b->rstd1, m->scratch,
                          below ? grad_maxima(m, below, LINEAR_DOWN) : NULL);
}

// ---- whole model

// A layer's prepared weights, where they lie.
static void prepare_block_weights(Model* m, const Unit* u, int l, Pass pass) {
    BlockWeights* w = &m->weights[l];
    Mat weights[kLinearCount];
    for (int i = 0; i < kLinearCount; i++) weights[i] = linear_weight(m, u, i);
    if (w->measured) linear_remake_weights(&m->linear, w->w, weights, m->shape, kLinearCount, pass == BACKWARD);
    else linear_prepare_weights(&m->linear, w->w, weights, m->shape, kLinearCount);
}

static const Unit* acquire_block(Model* m, int l, Pass pass) {
    const Unit* u = shard_acquire(m->shard, 1 + l, pass);
    BlockWeights* w = &m->weights[l];
    if (u->quantized) memcpy(w->w, u->q, sizeof w->w);
    if (is_remade(m, l)) w->prepared = false;   // another layer's codes may lie there
    for (int i = 0; i < kLinearCount; i++) {
        const BlockLinear* line = &kLinears[i];
        if (m->hut_shape[i].parts && (!w->prepared || linear_reads_weight(m->linear.recipe)))
            hut_effective(m->ops, adapter_scale(&m->c.adapter), m->hut_shape[i], m->effective[i], u->w[line->stack], u->w[line->a], u->w[line->b],
                          m->wide);
    }
    if (!u->quantized && !w->prepared) prepare_block_weights(m, u, l, pass);
    w->measured = w->prepared = true;
    return u;
}

// The embedding, with which every forward pass begins. If the weights' version has changed, what was prepared of them is stale.
static const Unit* acquire_first(Model* m) {
    const Unit* u = shard_acquire(m->shard, 0, FORWARD);
    if (u->version == m->version) return u;
    m->version = u->version;
    m->ops->zero(m->weight_maxima, m->weight_maxima_bytes);
    m->head_prepared = false;
    for (int l = 0; l < m->c.L; l++) m->weights[l].measured = m->weights[l].prepared = false;
    return u;
}

// Copies the numbers, and the host's arrays of `count` ints each, to m->inputs, one after the other, in one upload.
static void upload_inputs(Model* m, StepNumbers numbers, const int* const from[], const int** const to[], int arrays, int count) {
    memcpy(m->host_inputs, &numbers, sizeof numbers);
    for (int i = 0; i < arrays; i++) {
        size_t at = kStepNumberInts + (size_t)i * count;
        memcpy(m->host_inputs + at, from[i], sizeof(int) * (size_t)count);
        *to[i] = m->inputs + at;
    }
    m->ops->upload(m->inputs, m->host_inputs, sizeof(int) * (kStepNumberInts + (size_t)arrays * (size_t)count));
}

static void upload_batch(Model* m, const Batch* batch, StepNumbers numbers) {
    const int* const from[kBatchArrays] = {batch->tokens, batch->targets, batch->pos, batch->start, batch->end, batch->order};
    const int** const to[kBatchArrays] = {&m->tokens, &m->targets, &m->pos, &m->start, &m->end, &m->order};
    progress_phase("embedding", -1);
    m->extending = m->fresh = false;
    set_rows(m, batch->B * m->opt.T);
    upload_inputs(m, numbers, from, to, kBatchArrays, m->BT);
}

// Rows [row, row + h.rows) of the final norm and of the logits, and the linear between them.
typedef struct {
    Linear linear;
    InputOperand in;
    GradOperand dy;   // of the logits
    Prep prep;        // what the final norm finds for `in`
    Mat h, logits;
} HeadRows;

static HeadRows head_rows(const Model* m, Mat h, int row) {
    HeadRows p;
    int rows = min_int(m->logits.rows, h.rows - row);
    Arena kept = {(char*)m->head_input, 0}, maxima = {(char*)m->head_maxima, 0};
    p.linear = linear_on(&m->head, rows);
    p.h = mat_rows(h, row, rows);
    p.logits = mat_rows(m->logits, 0, rows);
    linear_place_input(&p.linear, &p.in, &kept, &maxima, m->head_shape, p.h);
    p.prep = linear_input_prep(&p.linear, &p.in);
    p.dy.dy = p.logits;
    p.dy.absmax = m->head_grad_maxima;
    return p;
}

// Embedding, all blocks and final norm of the uploaded batch; leaves m->h.
static void trunk_forward(Model* m) {
    int L = m->c.L;
    m->ops->zero(m->batch_maxima, m->batch_maxima_bytes);
    const Unit* embedding = acquire_first(m);
    m->ops->embed_forward(m->blocks[0].res1, embedding->w[S_EMBED], m->tokens);
    for (int l = 0; l < L; l++) {
        progress_phase("forward", l);
        const Unit* u = acquire_block(m, l, FORWARD);
        block_forward(m, &m->blocks[l], l ? &m->blocks[l - 1] : NULL, u);
    }
    const Unit* tail = shard_acquire(m->shard, L + 1, FORWARD);
    m->ops->rmsnorm_forward(m->h, m->rstd, m->res, m->blocks[L - 1].res2, m->branch, tail->w[S_FINAL_NORM], m->c.norm_eps,
                            head_rows(m, m->h, 0).prep);
}

static const Unit* acquire_head(Model* m, Pass pass) {
    const Unit* u = shard_acquire(m->shard, head_unit(&m->c), pass);
    if (!m->head_prepared) linear_prepare_weights(&m->head, &m->head_weight, &u->w[head_stack(&m->c)], &m->head_shape, 1);
    m->head_prepared = true;
    return u;
}

static void head_forward(Model* m, const Unit* head, HeadRows* p) {
    linear_prepare_input(&p->linear, &p->in, p->h, p->prep);
    linear_forward(&p->linear, p->logits, 0, &p->in, head->w[head_stack(&m->c)], &m->head_weight, m->head_shape);
}

void model_loss(Model* m, const Batch* batch, float* loss) {
    upload_batch(m, batch, kNoNumbers);
    trunk_forward(m);
    const Unit* head = acquire_head(m, FORWARD);
    for (int row = 0; row < m->BT; row += m->logits.rows) {
        HeadRows p = head_rows(m, m->h, row);
        head_forward(m, head, &p);
        m->ops->cross_entropy(loss + row, p.logits, m->targets + row, NULL);
    }
}

// The logits of the first `rows` rows of h (outputs of the final norm), as floats on the host.
static void logits_to_host(Model* m, Mat h, int rows, float* out) {
    const Unit* head = acquire_head(m, FORWARD);
    size_t V = (size_t)m->c.V;
    void* raw = host_alloc(mat_bytes(m->logits));
    for (int row = 0; row < rows; row += m->logits.rows) {
        HeadRows p = head_rows(m, h, row);
        head_forward(m, head, &p);
        Mat wanted = mat_rows(p.logits, 0, min_int(p.logits.rows, rows - row));
        size_t count = wanted.rows * V;
        m->ops->download(raw, wanted.data, mat_bytes(wanted));
        if (wanted.fmt == F32) memcpy(out + row * V, raw, count * sizeof(float));
        else
            for (size_t i = 0; i < count; i++) out[row * V + i] = f32_from_bf16(((uint16_t*)raw)[i]);
    }
    free(raw);
}

void model_logits(Model* m, const Batch* batch, float* out) {
    upload_batch(m, batch, kNoNumbers);
    trunk_forward(m);
    logits_to_host(m, m->h, m->BT, out);
}

// Does each sequence among n rows begin in these rows (at position 0), with its rows side by side? If so, start and end (n) are set: the
// rows are then one sequence of packed documents.
static bool begins_sequences(int n, const int* slot, const int* pos, int* start, int* end) {
    for (int i = 0; i < n; i++) {
        bool goes_on = i && slot[i] == slot[i - 1] && pos[i] == pos[i - 1] + 1;
        if (!goes_on && pos[i]) return false;
        start[i] = i - pos[i];
    }
    for (int i = n - 1; i >= 0; i--) end[i] = i + 1 < n && pos[i + 1] ? end[i + 1] : i + 1;
    return true;
}

static int rounded_rows(const Model* m, int rows, int most) {
    return m->ops->round_rows ? max_int(rows, min_int(m->ops->round_rows(rows), most)) : rows;
}

// The trunk over new tokens, and the wanted rows of the final norm.
static void extend_once(Model* m) {
    trunk_forward(m);
    // Gathers rows of h as it does rows of an embedding.
    if (m->wanted_count) m->ops->embed_forward(mat_rows(m->wanted, 0, m->wanted_count), m->h, m->wanted_rows);
}

// The same. A step that reads the cache is the work of the one before it, on the same memory, as long as batches have as many rows.
static void extend_repeatedly(Model* m) {
    RepeatedStep* r = &m->repeated;
    if (!m->ops->record_begin || m->fresh || !shard_is_alone(m->shard)) {
        extend_once(m);
        return;
    }
    if (r->rows != m->BT || r->wanted != m->wanted_count || shard_acquire(m->shard, 0, FORWARD)->version != m->version) {
        forget(m, &r->work);
        r->rows = m->BT;
        r->wanted = m->wanted_count;
    }
    repeat(m, &r->work, kStepsBeforeRecording, extend_once);
}

// Appends the tokens, and returns the wanted rows of the final norm's output. Both counts are rounded up: the batch is padded with
// token 0 at position 0 of the spare sequence, the wanted rows with copies of the first.
static Mat extend_trunk(Model* m, const NewTokens* batch, const int* wanted, int wanted_count) {
    check(m->opt.slots && wanted_count <= batch->rows, "model_extend: %d of %d rows, %d sequences", wanted_count, batch->rows, m->opt.slots);
    int n = rounded_rows(m, batch->rows, m->most_rows), wanted_n = wanted_count ? rounded_rows(m, wanted_count, n) : 0;
    int* host = (int*)host_alloc(sizeof(int) * kBatchArrays * (size_t)n);   // (kBatchArrays, n)
    int *tokens = host, *slot = host + n, *pos = host + 2 * n, *wanted_rows = host + 3 * n, *start = host + 4 * n, *end = host + 5 * n;
    for (int i = 0; i < n; i++) {
        bool given = i < batch->rows;
        tokens[i] = given ? batch->tokens[i] : 0;
        slot[i] = given ? batch->slot[i] : m->opt.slots;
        pos[i] = given ? batch->pos[i] : 0;
        wanted_rows[i] = wanted_count ? wanted[i < wanted_count ? i : 0] : 0;
    }
    const int* const from[] = {tokens, slot, pos, wanted_rows, start, end};
    const int** const to[] = {&m->tokens, &m->slot, &m->pos, &m->wanted_rows, &m->start, &m->end};
    progress_phase("generating", -1);
    m->extending = true;
    m->fresh = m->ops->attention_append && begins_sequences(n, slot, pos, start, end);
    set_rows(m, n);
    upload_inputs(m, kNoNumbers, from, to, m->fresh ? 6 : 4, n);
    free(host);
    m->wanted_count = wanted_n;
    extend_repeatedly(m);
    shard_acquire(m->shard, head_unit(&m->c), FORWARD);   // wanted or not: ranks that generate together gather the same in each step
    return mat_rows(m->wanted, 0, wanted_n);
}

void model_extend(Model* m, const NewTokens* batch, const int* wanted, int wanted_count, float* logits) {
    Mat rows = extend_trunk(m, batch, wanted, wanted_count);
    if (wanted_count) logits_to_host(m, rows, wanted_count, logits);
}

void model_extend_best(Model* m, const NewTokens* batch, const int* wanted, int wanted_count, int* best) {
    Mat rows = extend_trunk(m, batch, wanted, wanted_count);
    if (!wanted_count) return;
    const Unit* head = acquire_head(m, FORWARD);
    for (int row = 0; row < wanted_count; row += m->logits.rows) {
        HeadRows p = head_rows(m, rows, row);
        head_forward(m, head, &p);
        m->ops->argmax(m->best + row, p.logits);
    }
    m->ops->download(best, m->best, sizeof(int) * (size_t)wanted_count);
}

// The loss, and the gradients of the head's weight and of h (into dh), some rows of logits at a time.
static void head_forward_backward(Model* m) {
    const Unit* head = acquire_head(m, BACKWARD);
    Stack stack = head_stack(&m->c);
    for (int row = 0; row < m->BT; row += m->logits.rows) {
        HeadRows p = head_rows(m, m->h, row);
        head_forward(m, head, &p);
        m->ops->cross_entropy(m->losses + row, p.logits, m->targets + row, &((const StepNumbers*)m->inputs)->scale);
        linear_measure_grad(&p.linear, &p.dy, m->head_shape);
        linear_backward(&p.linear, mat_rows(m->dh, row, p.h.rows), 0, head->g[stack], head->fresh && row == 0 ? 0.0f : 1.0f, &p.dy, &p.in,
                        head->w[stack], &m->head_weight, m->head_shape);
    }
}

static void embedding_backward(Model* m) {
    const Unit* embedding = shard_acquire(m->shard, 0, BACKWARD);
    Mat g = embedding->g[S_EMBED];
    if (embedding->fresh && !m->c.tied) m->ops->zero(g.data, mat_bytes(g));
    m->ops->embed_backward(g, m->dres, m->tokens, m->order);
    shard_reduce(m->shard, 0);
}

// Forward and backward of the uploaded batch. What it calls depends on nothing but the model's layout and what stands in a
// RepeatedMicroStep, so that it can be recorded.
static void micro_step(Model* m) {
    const Ops* ops = m->ops;
    int L = m->c.L;
    trunk_forward(m);
    progress_phase("loss", -1);
    head_forward_backward(m);

    const Unit* tail = shard_acquire(m->shard, L + 1, BACKWARD);
    Mat g_norm = norm_grad(m, tail, S_FINAL_NORM);
    ops->zero(m->dres.data, mat_bytes(m->dres));
    ops->rmsnorm_backward(m->dres, g_norm, m->dh, m->res, tail->w[S_FINAL_NORM], m->rstd, m->scratch,
                          grad_maxima(m, &m->blocks[L - 1], LINEAR_DOWN));
    shard_reduce(m->shard, L + 1);

    for (int l = L - 1; l >= 0; l--) {
        progress_phase("backward", l);
        const Unit* u = acquire_block(m, l, BACKWARD);
        block_again(m, &m->blocks[l], u);
        block_backward(m, &m->blocks[l], l ? &m->blocks[l - 1] : NULL, u);
        shard_reduce(m->shard, 1 + l);
    }

    if (!m->frozen) embedding_backward(m);
}

// The micro-steps like the one at hand; NULL: it isn't to be recorded.
static RepeatedMicroStep* repeated_micro_step(Model* m, const Unit* first_unit) {
    if (!m->records || m->observing) return NULL;
    bool first = first_unit->micro_batch == 0, prepared = first_unit->version == m->version && m->head_prepared;
    for (int i = 0; i < m->micro_step_count; i++) {
        RepeatedMicroStep* r = &m->micro_steps[i];
        if (r->BT == m->BT && r->first == first && r->prepared == prepared) return r;
    }
    if (m->micro_step_count == kMicroSteps) return NULL;
    RepeatedMicroStep fresh = {m->BT, first, prepared, {0, NULL}};
    m->micro_steps[m->micro_step_count] = fresh;
    return &m->micro_steps[m->micro_step_count++];
}

// A micro-step leaves all weights prepared; a repeated one has not said so.
static void note_prepared(Model* m, unsigned version) {
    m->version = version;
    m->head_prepared = true;
    for (int l = 0; l < m->c.L; l++) m->weights[l].measured = m->weights[l].prepared = true;
}

void model_train_step(Model* m, const Batch* batch, float scale, float* loss) {
    check(m->opt.train, "model_train_step: the model was made for inference");
    Unit at = *shard_acquire(m->shard, 0, FORWARD);
    StepNumbers numbers = {{(uint64_t)at.step << 16, (uint64_t)at.micro_batch * (uint64_t)m->most_rows}, scale};
    upload_batch(m, batch, numbers);
    m->drops = m->lora.dropout > 0;
    RepeatedMicroStep* repeated = repeated_micro_step(m, &at);
    if (repeated) repeat(m, &repeated->work, kMicroStepsBeforeRecording, micro_step);
    else micro_step(m);
    note_prepared(m, at.version);
    m->ops->copy(loss, m->losses, sizeof(float) * (size_t)m->BT);
    m->observing = m->drops = false;
}

void model_record(Model* m, bool on) { m->records = on && m->ops->record_begin && shard_is_alone(m->shard); }

void model_observe(Model* m) {
    check(m->opt.observe, "model_observe: the model was made without memory for it");
    quant_stats_begin(&m->stats);
    m->observing = true;
}
const QuantStats* model_quant_stats(const Model* m) { return &m->stats; }
