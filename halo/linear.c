// Linear layers under a recipe; see linear.h for the algebra.
#include "linear.h"

#include "hadamard.h"
#include "quant_stats.h"

static bool is_plain(Opnd o) { return o.gran == NO_SCALE && o.fmt == BF16; }

static bool same_opnd(Opnd a, Opnd b) {
    return a.fmt == b.fmt && a.gran == b.gran && a.rotate == b.rotate && a.clip == b.clip;
}

// Does the second product read another, quantized form of an operand?
static bool has_second_form(Opnd first, Opnd second) { return !is_plain(second) && !same_opnd(first, second); }

// Rows of codes start at multiples of 16 bytes: tensor-core loads need it.
static int code_ld(int cols) { return (int)round_up((size_t)cols, 16); }

static Mat code_mat(void* data, int rows, int cols, Fmt fmt) {
    Mat m = {data, rows, cols, code_ld(cols), fmt};
    return m;
}

// The stack as a product sees it: a product without scales takes the stacked matrices as one matrix.
static LinearShape product_shape(LinearShape shape, Opnd a, Opnd b) {
    if (is_plain(a) && is_plain(b)) {
        shape.N[0] = linear_N(shape);
        shape.parts = 1;
    }
    return shape;
}

// ---- layout

bool linear_keeps_plain_input(const Recipe* r) { return is_plain(r->gx) || !same_opnd(r->fx, r->gx); }

// The rows of dY when it is quantized: a rotation along the tokens pads them to a supported order, or to whole blocks.
static int rotated_rows(const Recipe* r, int tokens, int block) {
    if (!r->ee.rotate) return tokens;
    return block ? (int)round_up((size_t)tokens, (size_t)block) : hadamard_round_up(tokens);
}

Linear linear_of(const Ops* ops, const Recipe* recipe) {
    Linear ln;
    memset(&ln, 0, sizeof ln);
    ln.ops = ops;
    ln.recipe = recipe;
    return ln;
}

void linear_place(Linear* ln, Arena* arena, const Ops* ops, const Recipe* recipe, const LinearShape* shapes, int count,
                  int tokens, int token_block) {
    int widest_K = 0, widest_part = 0;
    for (int i = 0; i < count; i++) {
        widest_K = max_int(widest_K, shapes[i].K);
        for (int p = 0; p < shapes[i].parts; p++) widest_part = max_int(widest_part, shapes[i].N[p]);
    }
    *ln = linear_of(ops, recipe);
    ln->tokens = tokens;
    ln->token_block = token_block;
    ln->rotated_rows = rotated_rows(recipe, tokens, token_block);
    size_t rows = (size_t)ln->rotated_rows, act_bytes = fmt_bytes(ops->act);
    ln->product = recipe->ee.rotate ? arena_take(arena, rows * widest_K * act_bytes) : NULL;
    ln->x_codes = is_plain(recipe->fx) ? NULL : arena_take(arena, (size_t)tokens * code_ld(widest_K));
    ln->x_scale = (float*)arena_take(arena, sizeof(float) * scale_count(tokens, widest_K, recipe->fx.gran));
    size_t turned = recipe->ee.rotate ? ops->quantize_tokens_scratch(ln->rotated_rows, max_int(widest_part, widest_K), token_block) : 0;
    ln->turned = turned ? arena_take(arena, turned) : NULL;
    ln->dy_codes = is_plain(recipe->ee) ? NULL : arena_take(arena, rows * code_ld(widest_part));
    ln->dy_codes_t = is_plain(recipe->ge) ? NULL : arena_take(arena, (size_t)widest_part * code_ld(tokens));
    ln->e_scale = (float*)arena_take(arena, sizeof(float) * scale_count(ln->rotated_rows, widest_part, recipe->ee.gran));
    ln->g_scale = (float*)arena_take(arena, sizeof(float) * scale_count(tokens, widest_part, recipe->ge.gran));
}

Linear linear_on(const Linear* ln, int tokens) {
    check(tokens <= ln->tokens, "linear_on: %d of %d tokens", tokens, ln->tokens);
    Linear piece = *ln;
    piece.tokens = tokens;
    piece.rotated_rows = rotated_rows(ln->recipe, tokens, ln->token_block);
    return piece;
}

void linear_place_input(const Linear* ln, InputOperand* in, Arena* kept, Arena* maxima, LinearShape shape, Mat x) {
    const Recipe* r = ln->recipe;
    int M = ln->tokens, K = shape.K;
    memset(in, 0, sizeof *in);
    in->f.gran = r->fx.gran;
    in->g.gran = r->gx.gran;
    in->absmax = (float*)arena_take(maxima, 2 * sizeof(float));
    if (is_plain(r->gx)) {
        in->g.codes = x;
    } else {
        in->g.codes_t = code_mat(arena_take(kept, (size_t)K * code_ld(M)), K, M, r->gx.fmt);
        in->g.scale = (float*)arena_take(kept, sizeof(float) * scale_count(M, K, r->gx.gran));
    }
    if (is_plain(r->fx)) {
        in->f.codes = x;
    } else {
        in->f.codes = code_mat(ln->x_codes, M, K, r->fx.fmt);
        in->f.scale = ln->x_scale;
        if (same_opnd(r->fx, r->gx)) {   // one call of quantize writes codes and transposed codes
            in->f.scale = in->g.scale;
            in->f.codes_t = in->g.codes_t;
        }
    }
}

void linear_place_grad(GradOperand* g, Arena* maxima, Mat dy) {
    g->dy = dy;
    g->absmax = (float*)arena_take(maxima, 2 * kMaxParts * sizeof(float));
}

bool linear_reads_weight(const Recipe* r) { return is_plain(r->fw) || is_plain(r->ew); }
bool linear_prepares_weight(const Recipe* r) { return !is_plain(r->fw) || !is_plain(r->ew); }

Recipe linear_frozen(const Recipe* r) {
    const Opnd as_it_is = {BF16, NO_SCALE, false, 1};
    Recipe frozen = *r;
    frozen.ge = frozen.gx = as_it_is;
    return frozen;
}

void linear_place_weight(const Linear* ln, WeightOperand* w, Arena* arena, Arena* maxima, LinearShape shape) {
    const Recipe* r = ln->recipe;
    memset(w, 0, sizeof *w);
    w->absmax = (float*)arena_take(maxima, 2 * kMaxParts * sizeof(float));
    for (int p = 0; p < shape.parts; p++) {
        int N = shape.N[p], K = shape.K;
        QMat *f = &w->f[p], *e = &w->e[p];
        f->gran = r->fw.gran;
        e->gran = r->ew.gran;
        if (!is_plain(r->fw)) {
            f->codes = code_mat(arena_take(arena, (size_t)N * code_ld(K)), N, K, r->fw.fmt);
            f->scale = (float*)arena_take(arena, sizeof(float) * scale_count(N, K, r->fw.gran));
        }
        if (!is_plain(r->ew)) {
            e->codes_t = code_mat(arena_take(arena, (size_t)K * code_ld(N)), K, N, r->ew.fmt);
            e->scale = same_opnd(r->fw, r->ew) ? f->scale
                                               : (float*)arena_take(arena, sizeof(float) * scale_count(N, K, r->ew.gran));
            if (same_opnd(r->fw, r->ew)) f->codes_t = e->codes_t;
        }
    }
}

// ---- preparing operands

static Rotation rotation_of(const Linear* ln, Opnd how, RotateAxis axis) {
    Rotation r = {how.rotate ? axis : ROTATE_NONE, how.rotate && axis == ROTATE_ROWS ? ln->token_block : 0};
    return r;
}

// Raises *absmax to the largest magnitude of x as it will be quantized, rotated along the features or not.
static void raise_maximum(const Linear* ln, float* absmax, Mat x, Rotation r) {
    if (r.axis == ROTATE_NONE) ln->ops->absmax(absmax, x);
    else ln->ops->rotate(mat(NULL, x.rows, x.cols, ln->ops->act), x, r.axis, false, r.block, absmax);   // only its maximum is wanted
}

// Makes X's codes for one product; takes the maximum before, unless `done` says that the producer has.
static void prepare_input(const Linear* ln, QMat q, Mat x, Opnd how, float* absmax, Prep done) {
    Rotation r = rotation_of(ln, how, ROTATE_COLS);
    if (how.gran == PER_TENSOR && !done.absmax) raise_maximum(ln, absmax, x, r);
    ln->ops->quantize(q, x, r, absmax, how.fmt, how.clip);
}

Prep linear_input_prep(const Linear* ln, const InputOperand* in) {
    const Recipe* r = ln->recipe;
    if (is_plain(r->fx) || has_second_form(r->fx, r->gx)) return kPrepNone;
    Prep prep = {r->fx.rotate, r->fx.gran == PER_TENSOR ? in->absmax : NULL};
    return prep;
}

void linear_prepare_input(const Linear* ln, InputOperand* in, Mat x, Prep done) {
    const Recipe* r = ln->recipe;
    if (!is_plain(r->fx)) prepare_input(ln, in->f, x, r->fx, in->absmax, done);
    if (has_second_form(r->fx, r->gx)) prepare_input(ln, in->g, x, r->gx, in->absmax + 1, kPrepNone);
}

// Makes codes of several weights for one product; takes their maxima before if they are not known (`measure`). Only with one scale a matrix
// may they be rotated (recipe.c).
static void prepare_each(const Linear* ln, const Coded* m, int count, Opnd how, bool measure) {
    if (how.gran == PER_TENSOR) {
        if (measure) ln->ops->absmax_each(m, count, how.rotate);
        ln->ops->quantize_each(m, count, how.rotate, how.fmt, how.clip);
        return;
    }
    for (int i = 0; i < count; i++) ln->ops->quantize(m[i].q, m[i].x, kRotateNone, m[i].absmax, how.fmt, how.clip);
}

// The weights in one form: as F reads them, or (`second`) as E alone does.
static void prepare_form(const Linear* ln, const WeightOperand* wq, const Mat* w, const LinearShape* shapes, int count, bool second,
                         bool measure, bool for_e) {
    Opnd how = second ? ln->recipe->ew : ln->recipe->fw;
    Coded m[kCodedAtOnce];
    int n = 0;
    for (int i = 0; i < count; i++) {
        for (int p = 0, row = 0; p < shapes[i].parts; row += shapes[i].N[p++]) {
            Coded one = {mat_rows(w[i], row, shapes[i].N[p]), wq[i].absmax + (second ? kMaxParts : 0) + p, second ? wq[i].e[p] : wq[i].f[p]};
            if (!for_e) memset(&one.q.codes_t, 0, sizeof one.q.codes_t);
            m[n++] = one;
            if (n < kCodedAtOnce) continue;
            prepare_each(ln, m, n, how, measure);
            n = 0;
        }
    }
    if (n) prepare_each(ln, m, n, how, measure);
}

static void prepare_weights(const Linear* ln, const WeightOperand* wq, const Mat* w, const LinearShape* shapes, int count, bool measure,
                            bool for_e) {
    const Recipe* r = ln->recipe;
    if (!is_plain(r->fw)) prepare_form(ln, wq, w, shapes, count, false, measure, for_e);
    if (for_e && has_second_form(r->fw, r->ew)) prepare_form(ln, wq, w, shapes, count, true, measure, for_e);
}
void linear_prepare_weights(const Linear* ln, const WeightOperand* wq, const Mat* w, const LinearShape* shapes, int count) {
    prepare_weights(ln, wq, w, shapes, count, true, true);
}
void linear_remake_weights(const Linear* ln, const WeightOperand* wq, const Mat* w, const LinearShape* shapes, int count, bool for_e) {
    prepare_weights(ln, wq, w, shapes, count, false, for_e);
}

// ---- codes of a shard's rows

bool linear_gathers_codes(const Recipe* r) { return !is_plain(r->fw) && r->fw.gran == PER_TENSOR && same_opnd(r->fw, r->ew); }
Fmt linear_code_fmt(const Linear* ln) { return ln->recipe->fw.fmt; }
int linear_code_ld(int K) { return code_ld(K); }

void linear_rows_absmax(const Linear* ln, float* absmax, Mat rows) {
    raise_maximum(ln, absmax, rows, rotation_of(ln, ln->recipe->fw, ROTATE_COLS));
}

void linear_rows_codes(const Linear* ln, void* codes, float* scale, Mat rows, const float* absmax) {
    Opnd how = ln->recipe->fw;
    QMat q = {code_mat(codes, rows.rows, rows.cols, how.fmt), {NULL, 0, 0, 0, F32}, scale, PER_TENSOR};
    ln->ops->quantize(q, rows, rotation_of(ln, how, ROTATE_COLS), absmax, how.fmt, how.clip);
}

QMat linear_code_operand(const Linear* ln, void* codes, void* codes_t, float* scale, int N, int K) {
    Fmt fmt = ln->recipe->fw.fmt;
    QMat q = {code_mat(codes, N, K, fmt), code_mat(codes_t, K, N, fmt), scale, PER_TENSOR};
    return q;
}

// ---- the three products

void linear_forward(const Linear* ln, Mat y, float beta, const InputOperand* in, Mat w, const WeightOperand* wq, LinearShape shape) {
    const Recipe* r = ln->recipe;
    shape = product_shape(shape, r->fx, r->fw);
    for (int p = 0, row = 0; p < shape.parts; row += shape.N[p++]) {
        Side W = is_plain(r->fw) ? plain_side(mat_rows(w, row, shape.N[p]), false) : side_codes(wq->f[p]);
        ln->ops->gemm(mat_cols(y, row, shape.N[p]), side_codes(in->f), W, beta);
    }
}

// dY of one stacked matrix, as E and as G read it.
typedef struct {
    Side e, g;
} GradSides;

float* linear_grad_maxima(const Linear* ln, const GradOperand* g) {
    const Recipe* r = ln->recipe;
    bool e_reads = r->ee.gran == PER_TENSOR && !r->ee.rotate, g_reads = r->ge.gran == PER_TENSOR;
    return e_reads || g_reads ? g->absmax : NULL;
}

void linear_measure_grad(const Linear* ln, GradOperand* g, LinearShape shape) {
    const Recipe* r = ln->recipe;
    if (r->ee.gran != PER_TENSOR && r->ge.gran != PER_TENSOR) return;
    float* maxima = linear_grad_maxima(ln, g);
    ln->ops->zero(g->absmax, 2 * kMaxParts * sizeof(float));
    for (int p = 0, col = 0; maxima && p < shape.parts; col += shape.N[p++]) ln->ops->absmax(maxima + p, mat_cols(g->dy, col, shape.N[p]));
}

// The columns [col, col + N) of dY, which belong to matrix p of the stack.
static GradSides prepare_grad(const Linear* ln, const GradOperand* grad, int p, int col, int N) {
    const Recipe* r = ln->recipe;
    Mat dy = mat_cols(grad->dy, col, N);
    GradSides s = {plain_side(dy, false), plain_side(dy, true)};
    QMat e = {code_mat(ln->dy_codes, ln->rotated_rows, N, r->ee.fmt), {NULL, 0, 0, 0, F32}, ln->e_scale, r->ee.gran};
    QMat g = {{NULL, 0, 0, 0, F32}, code_mat(ln->dy_codes_t, N, ln->tokens, r->ge.fmt), ln->g_scale, r->ge.gran};
    bool shared = same_opnd(r->ee, r->ge) && !is_plain(r->ee);
    if (shared) {
        e.codes_t = g.codes_t;
        g.scale = e.scale;
    }
    float *maximum = grad->absmax + p, *rotated_maximum = grad->absmax + kMaxParts + p;
    if (r->ee.rotate) {   // G's codes, which never rotate, come from the same pass over dY
        PlainCodes plain = {g, maximum, r->ge.fmt, r->ge.clip};
        ln->ops->quantize_tokens(e, dy, ln->token_block, rotated_maximum, r->ee.fmt, r->ee.clip, is_plain(r->ge) ? NULL : &plain, ln->turned);
    } else {
        if (!is_plain(r->ee)) ln->ops->quantize(e, dy, kRotateNone, maximum, r->ee.fmt, r->ee.clip);
        if (has_second_form(r->ee, r->ge)) ln->ops->quantize(g, dy, kRotateNone, maximum, r->ge.fmt, r->ge.clip);
    }
    if (!is_plain(r->ee)) s.e = side_codes(e);
    if (!is_plain(r->ge)) s.g = side_codes_t(g);
    return s;
}

bool linear_adds_to_dx(const Recipe* r) { return !r->ee.rotate && !r->ew.rotate; }

void linear_backward(const Linear* ln, Mat dx, float dx_beta, Mat dw, float beta, const GradOperand* g, const InputOperand* in, Mat w,
                     const WeightOperand* wq, LinearShape shape) {
    const Recipe* r = ln->recipe;
    const Ops* ops = ln->ops;
    Mat dy = g->dy;
    check(dx_beta == 0 || linear_adds_to_dx(r), "linear_backward: %s rotates dX, which holds something", r->name);
    // A product without scales takes the stack as one matrix...
    bool e_whole = is_plain(r->ee) && is_plain(r->ew), g_whole = is_plain(r->ge) && is_plain(r->gx);
    Side X = is_plain(r->gx) ? plain_side(in->g.codes, true) : side_codes_t(in->g);
    if (e_whole) ops->gemm(dx, plain_side(dy, false), plain_side(w, true), dx_beta);
    if (g_whole && dw.data) ops->gemm(dw, plain_side(dy, true), X, beta);
    if (e_whole && g_whole) return;
    // ... the others go matrix by matrix; dX sums over them.
    Mat product = r->ee.rotate ? mat(ln->product, ln->rotated_rows, dx.cols, ops->act) : dx;
    for (int p = 0, row = 0; p < shape.parts; row += shape.N[p++]) {
        int N = shape.N[p];
        GradSides dY = prepare_grad(ln, g, p, row, N);
        Side W = is_plain(r->ew) ? plain_side(mat_rows(w, row, N), true) : side_codes_t(wq->e[p]);
        if (!e_whole) ops->gemm(product, dY.e, W, p ? 1 : dx_beta);
        if (!g_whole && dw.data) ops->gemm(mat_rows(dw, row, N), dY.g, X, beta);
    }
    if (r->ee.rotate) ops->unrotate_tokens(dx, product, ln->token_block, ln->turned);
    if (r->ew.rotate) ops->rotate(dx, dx, ROTATE_COLS, true, 0, NULL);
}

// ---- what the recipe does to the operands

static void observe(const Linear* ln, const QuantStats* stats, OperandStats s[2], Mat x, Opnd first, Opnd second, RotateAxis axis) {
    int rows = axis == ROTATE_ROWS ? ln->rotated_rows : x.rows;
    quant_stats_operand(stats, &s[0], x, first, rotation_of(ln, first, axis), rows);
    if (has_second_form(first, second)) quant_stats_operand(stats, &s[1], x, second, rotation_of(ln, second, axis), rows);
}

void linear_observe(const Linear* ln, QuantStats* stats, int layer, int linear, Mat x, Mat w, Mat dy, Mat dw) {
    const Recipe* r = ln->recipe;
    LinearShape shape = stats->shape[linear];
    LinearStats* s = quant_stats_linear(stats, layer, linear);
    stats->has_weights = w.data != NULL;
    stats->second_x = has_second_form(r->fx, r->gx);
    stats->second_w = has_second_form(r->fw, r->ew);
    stats->second_dy = has_second_form(r->ee, r->ge);
    observe(ln, stats, s->x, x, r->fx, r->gx, ROTATE_COLS);
    for (int p = 0, row = 0; p < shape.parts; row += shape.N[p++]) {
        int N = shape.N[p];
        Mat dy_part = mat_cols(dy, row, N);
        if (w.data) observe(ln, stats, s->w[p], mat_rows(w, row, N), r->fw, r->ew, ROTATE_COLS);
        observe(ln, stats, s->dy[p], dy_part, r->ee, r->ge, ROTATE_ROWS);
        quant_stats_gradient(stats, s->squares[p], mat_rows(dw, row, N), r->gx.rotate, dy_part, x);
    }
}

void linear_finish_grad(const Linear* ln, Mat dw) {
    if (ln->recipe->gx.rotate) ln->ops->rotate(dw, dw, ROTATE_COLS, true, 0, NULL);
}
