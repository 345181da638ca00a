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
// Activations fall into three groups by what it costs to make them again: a block's input (res1), what attention and the
// products leave (kMid), and what a norm or an element-wise pass over those gives (kCheap). --recompute keeps the first, the
// first two, or all of them for every layer; a group that isn't kept has one layer's memory and is made again in backward.
// The head's logits exist one piece at a time, forward and backward together, since the loss's scale is known beforehand. The
// head is a linear too, under a recipe of its own: each piece of the final norm is quantized with the scale of all of it, each
// piece of the logits' gradient with its own.
#include "llama3.h"

#include "progress.h"

typedef struct {
    Mat res1, res2, h1, qkv, att, h2, gate_up, act;
    float *rstd1, *rstd2, *lse;
    InputOperand x_qkv, x_o, x_gate_up, x_down;   // h1, att, h2, act as products read them
} Block;

typedef struct {
    WeightOperand qkv, o, gate_up, down;
    bool prepared;
} BlockWeights;

struct Model {
    Config c;
    const Ops* ops;
    UnitSource units;
    ModelOptions opt;
    Linear linear;
    LinearShape qkv, o, gate_up, down;
    Linear head;             // on the rows of a piece
    LinearShape head_shape;
    int BT;

    Block* blocks;           // L
    BlockWeights* weights;   // L
    Mat branch;              // (BT, C) what the block's next norm will add to the stream
    Mat res, h;              // (BT, C) after the last block: the stream, and its norm
    float* rstd;
    Mat logits;              // (rows of a piece, V)
    void *head_input, *head_maxima;   // where linear_place_input lays out a piece of h
    WeightOperand head_weight;
    bool head_prepared;
    // backward
    Mat dres, dh, datt, dqkv, dact;   // (BT, C), (BT, C), (BT, NH HD), (BT, (NH + 2 NKV) HD), (BT, F)
    void* scratch;                    // of attention's and rmsnorm's backward

    QuantStats stats;
    bool observing;                   // in this micro-step

    float *input_maxima, *weight_maxima;
    size_t input_maxima_bytes, weight_maxima_bytes;
    float* cos_sin;          // (T, HD)
    int* inputs;             // the batch's six arrays on the backend
    int* host_inputs;
    const int *tokens, *targets, *pos, *start, *end, *order;
    void* memory;
};

enum { kBatchArrays = 6 };

// The head's weight and gradient live in the last unit, or in the first if they are the embedding's.
static int head_unit(const Config* c) { return c->tied ? 0 : c->L + 1; }
static Stack head_stack(const Config* c) { return c->tied ? S_EMBED : S_HEAD; }

// ---- layout

static Mat take_mat(Arena* arena, int rows, int cols, Fmt fmt) {
    return mat(arena_take(arena, (size_t)rows * cols * fmt_bytes(fmt)), rows, cols, fmt);
}
static float* take_floats(Arena* arena, size_t n) { return (float*)arena_take(arena, n * sizeof(float)); }

// Where a norm or SwiGLU writes: memory of its own if a product's backward reads it as it is, else scratch that the next
// producer may overwrite.
static Mat take_produced(const Model* m, Arena* arena, void* scratch, int cols) {
    if (linear_keeps_plain_input(m->linear.recipe)) return take_mat(arena, m->BT, cols, m->ops->act);
    return mat(scratch, m->BT, cols, m->ops->act);
}

static void place_block(Model* m, Block* b, Arena* input, Arena* mid, Arena* cheap, Arena* maxima, void* produced) {
    const Config* c = &m->c;
    const Linear* ln = &m->linear;
    Fmt act = m->ops->act;
    int BT = m->BT;
    b->res1 = take_mat(input, BT, c->C, act);

    b->rstd1 = take_floats(mid, BT);
    b->qkv = take_mat(mid, BT, linear_N(m->qkv), act);
    b->att = take_mat(mid, BT, c->NH * c->HD, act);
    b->lse = take_floats(mid, (size_t)BT * c->NH);
    linear_place_input(ln, &b->x_o, mid, maxima, m->o, b->att);
    b->res2 = take_mat(mid, BT, c->C, act);
    b->rstd2 = take_floats(mid, BT);
    b->gate_up = take_mat(mid, BT, 2 * c->F, act);

    b->h1 = take_produced(m, cheap, produced, c->C);
    linear_place_input(ln, &b->x_qkv, cheap, maxima, m->qkv, b->h1);
    b->h2 = take_produced(m, cheap, produced, c->C);
    linear_place_input(ln, &b->x_gate_up, cheap, maxima, m->gate_up, b->h2);
    b->act = take_produced(m, cheap, produced, c->F);
    linear_place_input(ln, &b->x_down, cheap, maxima, m->down, b->act);
}

// Every block's share of a group of activations: memory of its own, or the same for all.
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

static void place_weights(Model* m, Arena* arena, Arena* maxima) {
    linear_place_weight(&m->head, &m->head_weight, arena, maxima, m->head_shape);
    m->head_prepared = false;
    if (m->units.quantized) return;   // the layers' come with the unit
    for (int l = 0; l < m->c.L; l++) {
        BlockWeights* w = &m->weights[l];
        linear_place_weight(&m->linear, &w->qkv, arena, maxima, m->qkv);
        linear_place_weight(&m->linear, &w->o, arena, maxima, m->o);
        linear_place_weight(&m->linear, &w->gate_up, arena, maxima, m->gate_up);
        linear_place_weight(&m->linear, &w->down, arena, maxima, m->down);
        w->prepared = false;
    }
}

// The rows of a piece of logits: whole tiles of products if it has room for one.
static int piece_rows(const Model* m) {
    enum { kTileRows = 128 };
    size_t fit = m->opt.logits_bytes / ((size_t)m->c.V * fmt_bytes(m->ops->act));
    int rows = fit < 1 ? 1 : fit > (size_t)m->BT ? m->BT : (int)fit;
    return rows < m->BT && rows >= kTileRows ? rows / kTileRows * kTileRows : rows;
}

static void place_head_input(Model* m, Arena* arena, Arena* maxima) {
    Arena measure = {NULL, 0}, measure_maxima = {NULL, 0};
    InputOperand unused;
    linear_place_input(&m->head, &unused, &measure, &measure_maxima, m->head_shape, m->h);
    m->head_input = arena_take(arena, measure.used);
    m->head_maxima = arena_take(maxima, measure_maxima.used);
}

static void place_backward(Model* m, Arena* arena, const LinearShape shapes[kLinears]) {
    const Config* c = &m->c;
    const Ops* ops = m->ops;
    Fmt act = ops->act;
    Attn shape = {m->opt.B, m->opt.T, c->NH, c->NKV, c->HD, NULL, NULL};
    size_t attention = ops->attention_scratch(shape), rmsnorm = ops->rmsnorm_scratch(m->BT, c->C);
    m->dres = take_mat(arena, m->BT, c->C, act);
    m->dh = take_mat(arena, m->BT, c->C, act);
    m->datt = take_mat(arena, m->BT, c->NH * c->HD, act);
    m->dqkv = take_mat(arena, m->BT, linear_N(m->qkv), act);
    m->dact = take_mat(arena, m->BT, c->F, act);
    m->scratch = arena_take(arena, attention > rmsnorm ? attention : rmsnorm);
    if (m->opt.observe) quant_stats_place(&m->stats, arena, ops, shapes, c->L, m->linear.rotated_rows);
}

// Returns what the pieces take.
static ModelBytes place_model(Model* m, Arena* arena, const Recipe* recipe) {
    const Config* c = &m->c;
    const Ops* ops = m->ops;
    Fmt act = ops->act;
    const LinearShape shapes[kLinears] = {m->qkv, m->o, m->gate_up, m->down};
    linear_place(&m->linear, arena, ops, recipe, shapes, kLinears, m->BT, m->opt.token_block);
    int rows = piece_rows(m);
    linear_place(&m->head, arena, ops, m->opt.head, &m->head_shape, 1, rows, 0);

    // The maxima lie together, so that one call zeroes them: measured here, placed as one piece.
    Arena measure_inputs = {NULL, 0}, measure_weights = {NULL, 0}, nothing = {NULL, 0};
    place_head_input(m, &nothing, &measure_inputs);
    place_blocks(m, &nothing, &measure_inputs);
    place_weights(m, &nothing, &measure_weights);
    Arena inputs = {(char*)arena_take(arena, measure_inputs.used), 0};
    Arena weights = {(char*)arena_take(arena, measure_weights.used), 0};
    m->input_maxima = (float*)inputs.base;
    m->weight_maxima = (float*)weights.base;
    m->input_maxima_bytes = measure_inputs.used;
    m->weight_maxima_bytes = measure_weights.used;
    size_t start = arena->used;
    place_head_input(m, arena, &inputs);
    place_blocks(m, arena, &inputs);
    m->res = take_mat(arena, m->BT, c->C, act);
    m->h = take_mat(arena, m->BT, c->C, act);
    m->rstd = take_floats(arena, m->BT);
    ModelBytes bytes = {arena->used - start, 0, 0};
    place_weights(m, arena, &weights);
    bytes.codes = arena->used - start - bytes.activations;

    m->branch = take_mat(arena, m->BT, c->C, act);
    m->logits = take_mat(arena, rows, c->V, act);
    m->inputs = (int*)arena_take(arena, sizeof(int) * kBatchArrays * m->BT);
    if (m->opt.train) place_backward(m, arena, shapes);
    bytes.scratch = arena->used - bytes.activations - bytes.codes;
    return bytes;
}

static void model_shape(Model* m, const Config* config, const Ops* ops, bool quantized_units, ModelOptions options) {
    memset(m, 0, sizeof *m);
    m->c = *config;
    m->ops = ops;
    m->opt = options;
    m->BT = options.B * options.T;
    m->units.quantized = quantized_units;
    m->qkv = stack_shape(config, S_QKV);
    m->o = stack_shape(config, S_O);
    m->gate_up = stack_shape(config, S_GATE_UP);
    m->down = stack_shape(config, S_DOWN);
    m->head_shape = stack_shape(config, head_stack(config));
    m->blocks = (Block*)host_alloc(sizeof(Block) * (size_t)config->L);
    m->weights = (BlockWeights*)host_alloc(sizeof(BlockWeights) * (size_t)config->L);
}

ModelBytes model_bytes(const Config* config, const Ops* ops, const Recipe* recipe, bool quantized_units, ModelOptions options) {
    Model m;
    model_shape(&m, config, ops, quantized_units, options);
    Arena measure = {NULL, 0};
    ModelBytes bytes = place_model(&m, &measure, recipe);
    free(m.blocks);
    free(m.weights);
    return bytes;
}

Model* model_new(const Config* config, const Ops* ops, const Recipe* recipe, UnitSource units, ModelOptions options) {
    Model* m = (Model*)host_alloc(sizeof(Model));
    model_shape(m, config, ops, units.quantized, options);
    m->units = units;
    m->memory = ops->alloc(model_bytes_together(model_bytes(config, ops, recipe, units.quantized, options)));
    Arena arena = {(char*)m->memory, 0};
    place_model(m, &arena, recipe);
    m->host_inputs = (int*)host_alloc(sizeof(int) * kBatchArrays * (size_t)m->BT);
    m->cos_sin = rope_table(config, ops, options.T);
    return m;
}

void model_free(Model* m) {
    m->ops->release(m->memory);
    m->ops->release(m->cos_sin);
    free(m->host_inputs);
    free(m->blocks);
    free(m->weights);
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

// ---- the pieces of a block, forward

static Attn attention_shape(const Model* m) {
    Attn a = {m->opt.B, m->opt.T, m->c.NH, m->c.NKV, m->c.HD, m->start, m->end};
    return a;
}

// h = rmsnorm(res = x + delta), prepared for the product that reads it.
static void norm_forward(Model* m, Mat h, float* rstd, Mat res, Mat x, Mat delta, Mat w, InputOperand* operand) {
    Prep prep = linear_input_prep(&m->linear, operand);
    m->ops->rmsnorm_forward(h, rstd, res, x, delta, w, m->c.norm_eps, prep);
    linear_prepare_input(&m->linear, operand, h, prep);
}

static void swiglu_forward(Model* m, Block* b) {
    Prep prep = linear_input_prep(&m->linear, &b->x_down);
    m->ops->swiglu_forward(b->act, b->gate_up, prep);
    linear_prepare_input(&m->linear, &b->x_down, b->act, prep);
}

static void attention_forward(Model* m, Block* b) {
    Prep prep = linear_input_prep(&m->linear, &b->x_o);
    if (prep.rotate) prep = kPrepNone;   // attention finds only the maximum of what it writes
    m->ops->attention_forward(b->att, b->lse, b->qkv, attention_shape(m), prep.absmax);
    linear_prepare_input(&m->linear, &b->x_o, b->att, prep);
}

static const Mat kNothing = {NULL, 0, 0, 0, F32};

// From h1 on to gate_up and act; leaves res2.
static void block_middle(Model* m, Block* b, const Unit* u, BlockWeights* w) {
    const Config* c = &m->c;
    linear_forward(&m->linear, b->qkv, &b->x_qkv, u->w[S_QKV], &w->qkv, m->qkv);
    m->ops->rope(b->qkv, m->cos_sin, m->pos, c->NH, c->NKV, c->HD, false, NULL);
    attention_forward(m, b);
    linear_forward(&m->linear, m->branch, &b->x_o, u->w[S_O], &w->o, m->o);
    norm_forward(m, b->h2, b->rstd2, b->res2, b->res1, m->branch, u->w[S_MLP_NORM], &b->x_gate_up);
    linear_forward(&m->linear, b->gate_up, &b->x_gate_up, u->w[S_GATE_UP], &w->gate_up, m->gate_up);
    swiglu_forward(m, b);
}

// `below` is the block under it, NULL for the first, whose input the embedding has written to res1.
static void block_forward(Model* m, Block* b, const Block* below, const Unit* u, BlockWeights* w) {
    Mat x = below ? below->res2 : b->res1, delta = below ? m->branch : kNothing;
    norm_forward(m, b->h1, b->rstd1, b->res1, x, delta, u->w[S_ATTN_NORM], &b->x_qkv);
    block_middle(m, b, u, w);
    linear_forward(&m->linear, m->branch, &b->x_down, u->w[S_DOWN], &w->down, m->down);
}

// What --recompute did not keep, made again by the same calls.
static void block_again(Model* m, Block* b, const Unit* u, BlockWeights* w) {
    if (m->opt.recompute == RECOMPUTE_NONE) return;
    norm_forward(m, b->h1, b->rstd1, b->res1, b->res1, kNothing, u->w[S_ATTN_NORM], &b->x_qkv);
    if (m->opt.recompute == RECOMPUTE_BLOCK) {
        block_middle(m, b, u, w);
    } else {
        norm_forward(m, b->h2, b->rstd2, b->res2, b->res2, kNothing, u->w[S_MLP_NORM], &b->x_gate_up);
        swiglu_forward(m, b);
    }
}

// ---- backward of a block: dres holds the gradient of its output, and then of its input.

// A linear's unquantized input, made again where only its codes were kept: in the memory that its producer wrote to, which nothing
// else uses in the backward pass.
static Mat plain_input(Model* m, Block* b, const Unit* u, Stack stack) {
    float eps = m->c.norm_eps;
    switch (stack) {
        case S_QKV: m->ops->rmsnorm_forward(b->h1, b->rstd1, b->res1, b->res1, kNothing, u->w[S_ATTN_NORM], eps, kPrepNone); return b->h1;
        case S_O: return b->att;
        case S_GATE_UP: m->ops->rmsnorm_forward(b->h2, b->rstd2, b->res2, b->res2, kNothing, u->w[S_MLP_NORM], eps, kPrepNone); return b->h2;
        case S_DOWN: m->ops->swiglu_forward(b->act, b->gate_up, kPrepNone); return b->act;
        default: die("plain_input: stack %d", (int)stack);
    }
}
static int linear_number(Stack stack) { return stack == S_QKV ? 0 : stack == S_O ? 1 : stack == S_GATE_UP ? 2 : 3; }

static void product_backward(Model* m, Block* b, const Unit* u, Stack stack, Mat dx, Mat dy, const InputOperand* in,
                             const WeightOperand* w, LinearShape shape) {
    linear_backward(&m->linear, dx, u->g[stack], u->fresh ? 0.0f : 1.0f, dy, in, u->w[stack], w, shape);
    if (!m->observing) return;
    check(u->fresh, "model_observe: not the first micro-step");
    linear_observe(&m->linear, &m->stats, (int)(b - m->blocks), linear_number(stack), plain_input(m, b, u, stack), u->w[stack], dy,
                   u->g[stack]);
}

static void block_backward(Model* m, Block* b, const Unit* u, BlockWeights* w) {
    const Config* c = &m->c;
    const Ops* ops = m->ops;
    const Linear* ln = &m->linear;
    if (u->fresh) {
        ops->zero(u->g[S_ATTN_NORM].data, mat_bytes(u->g[S_ATTN_NORM]));
        ops->zero(u->g[S_MLP_NORM].data, mat_bytes(u->g[S_MLP_NORM]));
    }
    product_backward(m, b, u, S_DOWN, m->dact, m->dres, &b->x_down, &w->down, m->down);
    ops->swiglu_backward(b->gate_up, m->dact, b->gate_up, linear_grad_maxima(ln));   // in place: the last reader of gate_up
    product_backward(m, b, u, S_GATE_UP, m->dh, b->gate_up, &b->x_gate_up, &w->gate_up, m->gate_up);
    ops->rmsnorm_backward(m->dres, u->g[S_MLP_NORM], m->dh, b->res2, u->w[S_MLP_NORM], b->rstd2, m->scratch, linear_grad_maxima(ln));

    product_backward(m, b, u, S_O, m->datt, m->dres, &b->x_o, &w->o, m->o);
    ops->attention_backward(m->dqkv, m->datt, b->att, b->qkv, b->lse, attention_shape(m), m->scratch);
    ops->rope(m->dqkv, m->cos_sin, m->pos, c->NH, c->NKV, c->HD, true, linear_grad_maxima(ln));
    product_backward(m, b, u, S_QKV, m->dh, m->dqkv, &b->x_qkv, &w->qkv, m->qkv);
    ops->rmsnorm_backward(m->dres, u->g[S_ATTN_NORM], m->dh, b->res1, u->w[S_ATTN_NORM], b->rstd1, m->scratch, linear_grad_maxima(ln));
}

// ---- whole model

static const Unit* acquire(Model* m, int unit, Pass pass) { return m->units.acquire(m->units.self, unit, pass); }

static const Unit* acquire_block(Model* m, int l, Pass pass) {
    const Unit* u = acquire(m, 1 + l, pass);
    BlockWeights* w = &m->weights[l];
    if (u->quantized) {
        w->qkv = u->q[S_QKV];
        w->o = u->q[S_O];
        w->gate_up = u->q[S_GATE_UP];
        w->down = u->q[S_DOWN];
    } else if (!w->prepared) {
        linear_prepare_weight(&m->linear, &w->qkv, u->w[S_QKV], m->qkv);
        linear_prepare_weight(&m->linear, &w->o, u->w[S_O], m->o);
        linear_prepare_weight(&m->linear, &w->gate_up, u->w[S_GATE_UP], m->gate_up);
        linear_prepare_weight(&m->linear, &w->down, u->w[S_DOWN], m->down);
        w->prepared = true;
    }
    return u;
}

void model_weights_changed(Model* m) {
    m->ops->zero(m->weight_maxima, m->weight_maxima_bytes);
    m->head_prepared = false;
    for (int l = 0; l < m->c.L; l++) m->weights[l].prepared = false;
    m->units.changed(m->units.self, &m->linear);
}

static void upload_batch(Model* m, const Batch* batch) {
    const int* from[kBatchArrays] = {batch->tokens, batch->targets, batch->pos, batch->start, batch->end, batch->order};
    const int** to[kBatchArrays] = {&m->tokens, &m->targets, &m->pos, &m->start, &m->end, &m->order};
    for (int i = 0; i < kBatchArrays; i++) {
        memcpy(m->host_inputs + (size_t)i * m->BT, from[i], sizeof(int) * (size_t)m->BT);
        *to[i] = m->inputs + (size_t)i * m->BT;
    }
    m->ops->upload(m->inputs, m->host_inputs, sizeof(int) * kBatchArrays * (size_t)m->BT);
}

// Rows [row, row + h.rows) of the final norm and of the logits, and the linear between them.
typedef struct {
    Linear linear;
    InputOperand in;
    Prep prep;   // what the final norm does for it
    Mat h, logits;
} HeadPiece;

static HeadPiece head_piece(const Model* m, int row) {
    HeadPiece p;
    int rows = min_int(m->logits.rows, m->BT - row);
    Arena kept = {(char*)m->head_input, 0}, maxima = {(char*)m->head_maxima, 0};
    p.linear = linear_on(&m->head, rows);
    p.h = mat_rows(m->h, row, rows);
    p.logits = mat_rows(m->logits, 0, rows);
    linear_place_input(&p.linear, &p.in, &kept, &maxima, m->head_shape, p.h);
    p.prep = linear_input_prep(&p.linear, &p.in);
    return p;
}

// Embedding, all blocks, final norm: leaves m->h.
static void trunk_forward(Model* m, const Batch* batch) {
    int L = m->c.L;
    progress_phase("embedding", -1);
    upload_batch(m, batch);
    m->ops->zero(m->input_maxima, m->input_maxima_bytes);
    const Unit* embedding = acquire(m, 0, FORWARD);
    m->ops->embed_forward(m->blocks[0].res1, embedding->w[S_EMBED], m->tokens);
    for (int l = 0; l < L; l++) {
        progress_phase("forward", l);
        const Unit* u = acquire_block(m, l, FORWARD);
        block_forward(m, &m->blocks[l], l ? &m->blocks[l - 1] : NULL, u, &m->weights[l]);
    }
    const Unit* tail = acquire(m, L + 1, FORWARD);
    m->ops->rmsnorm_forward(m->h, m->rstd, m->res, m->blocks[L - 1].res2, m->branch, tail->w[S_FINAL_NORM], m->c.norm_eps,
                            head_piece(m, 0).prep);
}

static const Unit* acquire_head(Model* m, Pass pass) {
    const Unit* u = acquire(m, head_unit(&m->c), pass);
    if (!m->head_prepared) linear_prepare_weight(&m->head, &m->head_weight, u->w[head_stack(&m->c)], m->head_shape);
    m->head_prepared = true;
    return u;
}

static void head_forward(Model* m, const Unit* head, HeadPiece* p) {
    linear_prepare_input(&p->linear, &p->in, p->h, p->prep);
    linear_forward(&p->linear, p->logits, &p->in, head->w[head_stack(&m->c)], &m->head_weight, m->head_shape);
}

void model_loss(Model* m, const Batch* batch, float* loss) {
    trunk_forward(m, batch);
    const Unit* head = acquire_head(m, FORWARD);
    for (int row = 0; row < m->BT; row += m->logits.rows) {
        HeadPiece p = head_piece(m, row);
        head_forward(m, head, &p);
        m->ops->cross_entropy(loss + row, p.logits, m->targets + row, 0, false);
    }
}

void model_logits(Model* m, const Batch* batch, float* out) {
    trunk_forward(m, batch);
    const Unit* head = acquire_head(m, FORWARD);
    size_t V = (size_t)m->c.V;
    void* raw = host_alloc(mat_bytes(m->logits));
    for (int row = 0; row < m->BT; row += m->logits.rows) {
        HeadPiece p = head_piece(m, row);
        head_forward(m, head, &p);
        size_t count = p.logits.rows * V;
        m->ops->download(raw, p.logits.data, mat_bytes(p.logits));
        if (p.logits.fmt == F32) memcpy(out + row * V, raw, count * sizeof(float));
        else
            for (size_t i = 0; i < count; i++) out[row * V + i] = f32_from_bf16(((uint16_t*)raw)[i]);
    }
    free(raw);
}

// Loss, and the gradients of the head's weight and of h (into dh), one piece of logits after the other.
static void head_forward_backward(Model* m, float scale, float* loss) {
    const Unit* head = acquire_head(m, BACKWARD);
    Stack stack = head_stack(&m->c);
    for (int row = 0; row < m->BT; row += m->logits.rows) {
        HeadPiece p = head_piece(m, row);
        head_forward(m, head, &p);
        m->ops->cross_entropy(loss + row, p.logits, m->targets + row, scale, true);
        linear_measure_grad(&p.linear, p.logits, m->head_shape);
        linear_backward(&p.linear, mat_rows(m->dh, row, p.h.rows), head->g[stack], head->fresh && row == 0 ? 0.0f : 1.0f, p.logits, &p.in,
                        head->w[stack], &m->head_weight, m->head_shape);
    }
}

void model_train_step(Model* m, const Batch* batch, float scale, float* loss) {
    check(m->opt.train, "model_train_step: the model was made for inference");
    const Ops* ops = m->ops;
    int L = m->c.L;
    trunk_forward(m, batch);
    progress_phase("loss", -1);
    head_forward_backward(m, scale, loss);

    const Unit* tail = acquire(m, L + 1, BACKWARD);
    if (tail->fresh) ops->zero(tail->g[S_FINAL_NORM].data, mat_bytes(tail->g[S_FINAL_NORM]));
    ops->zero(m->dres.data, mat_bytes(m->dres));
    ops->rmsnorm_backward(m->dres, tail->g[S_FINAL_NORM], m->dh, m->res, tail->w[S_FINAL_NORM], m->rstd, m->scratch,
                          linear_grad_maxima(&m->linear));
    m->units.reduce(m->units.self, L + 1);

    for (int l = L - 1; l >= 0; l--) {
        progress_phase("backward", l);
        const Unit* u = acquire_block(m, l, BACKWARD);
        block_again(m, &m->blocks[l], u, &m->weights[l]);
        block_backward(m, &m->blocks[l], u, &m->weights[l]);
        m->units.reduce(m->units.self, 1 + l);
    }

    const Unit* embedding = acquire(m, 0, BACKWARD);
    Mat g = embedding->g[S_EMBED];
    if (embedding->fresh && !m->c.tied) ops->zero(g.data, mat_bytes(g));
    ops->embed_backward(g, m->dres, m->tokens, m->order);
    m->units.reduce(m->units.self, 0);
    m->observing = false;
}

void model_observe(Model* m) {
    check(m->opt.observe, "model_observe: the model was made without memory for it");
    quant_stats_begin(&m->stats);
    m->observing = true;
}
const QuantStats* model_quant_stats(const Model* m) { return &m->stats; }

void model_finish_gradients(const Model* m, Mat g, Stack stack) {
    if (stack == S_QKV || stack == S_O || stack == S_GATE_UP || stack == S_DOWN) linear_finish_grad(&m->linear, g);
}
