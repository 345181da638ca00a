// Sharding; see shard.h. Flat arrays hold the pieces one after the other, each at its own aligned offset:
//   local: this rank's shares (share * cols values each)      full: whole matrices (ranks * share * cols values each)
// With zero 0, and with one rank, the two are the same memory.
#include "shard.h"

#include "hqfsdp.h"
#include "progress.h"

enum { kMaxPiecesPerUnit = 6, kPieceAlign = 128 };   // values

struct Shard {
    Config c;
    const Ops* ops;
    const Comm* comm;
    ShardOptions opt;
    int asked_zero;           // before kZeroAuto was decided
    ParamSpec specs[kMaxParamSpecs];
    int spec_count;
    Piece* pieces;
    int count;
    size_t local_values, full_values;
    bool owns_all;            // local is full: one rank, or zero 0

    char* weights;            // full, in act (zero 3: local)
    char* grads;              // full, in grad_fmt (zero 2 and 3: local)
    float* master;            // local
    char *m, *v;              // local, in state_fmt
    // zero 2 and 3: where a unit is whole while the model works on it. One place each for the embedding, the tail and one layer.
    char *gathered[3], *gathered_grads[3];
    int holds[3];             // the unit whose weights lie there; -1: none
    HqFsdp* codes;            // NULL: linears are gathered as weights
    char* read_buffer;        // zero 3: the whole matrix that shard_read is being asked for
    const Piece* read_piece;
    Unit unit;                // what acquire hands out
    bool first_micro_step;
};

// ---- layout

static int unit_of(const Config* c, Stack stack, int layer) {
    if (stack == S_EMBED) return 0;
    return stack == S_FINAL_NORM || stack == S_HEAD ? c->L + 1 : 1 + layer;
}

static bool sharded(const ShardOptions* o, const Comm* comm) { return comm->ranks > 1 && o->zero > 0; }

static void lay_out(Shard* s) {
    const Comm* comm = s->comm;
    s->spec_count = param_specs(&s->c, s->specs);
    s->owns_all = !sharded(&s->opt, comm);
    s->pieces = (Piece*)host_alloc(sizeof(Piece) * (size_t)kMaxPiecesPerUnit * (size_t)(s->c.L + 2));
    uint64_t noise = 0;
    bool codes = !s->owns_all && s->opt.zero == 3 && fmt_bytes(s->opt.wire) == 1;
    for (int unit = 0; unit < s->c.L + 2; unit++) {
        size_t gathered = 0;
        for (int k = 0; k < kStacks; k++) {
            Stack stack = (Stack)k;
            StackSize size = stack_size(&s->c, stack);
            int layer = min_int(max_int(unit - 1, 0), s->c.L - 1);
            if (size.rows == 0 || unit_of(&s->c, stack, layer) != unit) continue;
            bool norm = size.rows == 1;
            Piece* p = &s->pieces[s->count++];
            p->unit = unit;
            p->stack = stack;
            p->rows = norm ? size.cols : size.rows;
            p->cols = norm ? 1 : size.cols;
            p->share = s->owns_all ? p->rows : ceil_div(p->rows, comm->ranks);
            p->row0 = s->owns_all ? 0 : min_int(comm->rank * p->share, p->rows);
            p->own = min_int(p->share, p->rows - p->row0);
            p->decay = !norm;
            p->local = s->local_values;
            p->full = s->full_values;
            p->noise_offset = noise + (uint64_t)p->row0 * p->cols;
            noise += (uint64_t)p->rows * p->cols;
            size_t share = round_up((size_t)p->share * p->cols, kPieceAlign);
            s->local_values += share;
            size_t whole = s->owns_all ? share : round_up((size_t)p->share * p->cols * comm->ranks, kPieceAlign);
            s->full_values += whole;
            p->gathered = codes && hqfsdp_takes(p) ? kAsCodes : gathered;
            if (p->gathered != kAsCodes) gathered += whole;
        }
    }
}

// The values of a unit's gathering place: its gradients' (all of it), and its weights' (what doesn't travel as codes).
static size_t unit_values(const Shard* s, int unit, bool weights) {
    size_t values = 0;
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        size_t next = i + 1 < s->count ? s->pieces[i + 1].full : s->full_values;
        if (p->unit == unit && !(weights && p->gathered == kAsCodes)) values += next - p->full;
    }
    return values;
}

static bool gathers(const Shard* s) { return !s->owns_all && s->opt.zero == 3; }
static bool reduces_each_micro_step(const Shard* s) { return s->opt.zero >= 2; }

// The gathering place of a unit: embedding, any layer, tail.
static int place_of(const Shard* s, int unit) { return unit == 0 ? 0 : unit == s->c.L + 1 ? 2 : 1; }
static int unit_at(const Shard* s, int place) { return place == 0 ? 0 : place == 1 ? 1 : s->c.L + 1; }

static ShardBytes count_bytes(const Shard* s) {
    size_t act = fmt_bytes(s->ops->act), grad = fmt_bytes(s->opt.grad_fmt), state = fmt_bytes(s->opt.state_fmt);
    ShardBytes b = {0, 0, 0, 0};
    b.weights = (gathers(s) ? s->local_values : s->full_values) * act;
    for (int place = 0; place < 3; place++) {
        if (gathers(s)) b.gathered += unit_values(s, unit_at(s, place), true) * act;
        if (s->opt.train && reduces_each_micro_step(s)) b.gathered += unit_values(s, unit_at(s, place), false) * grad;
    }
    if (gathers(s)) b.gathered += hqfsdp_bytes(&s->c, s->comm, s->pieces, s->count, s->opt.wire);
    if (!s->opt.train) return b;
    b.gradients = (reduces_each_micro_step(s) ? s->local_values : s->full_values) * grad;
    b.optimizer = s->local_values * (2 * state + (s->opt.master && s->ops->act == BF16 ? sizeof(float) : 0));
    return b;
}

static void init(Shard* s, const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    memset(s, 0, sizeof *s);
    s->c = *config;
    s->ops = ops;
    s->comm = comm;
    s->opt = options;
    if (options.zero == kZeroAuto) s->opt.zero = comm->ranks > 1 ? 3 : 0;
    s->asked_zero = options.zero;
    lay_out(s);
}

ShardBytes shard_bytes(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    Shard s;
    init(&s, config, ops, comm, options);
    ShardBytes b = count_bytes(&s);
    free(s.pieces);
    return b;
}

Shard* shard_new(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    Shard* s = (Shard*)host_alloc(sizeof(Shard));
    init(s, config, ops, comm, options);
    ShardBytes bytes = count_bytes(s);
    s->weights = (char*)ops->alloc(bytes.weights);
    if (options.train) {
        size_t state = s->local_values * fmt_bytes(options.state_fmt);
        s->grads = (char*)ops->alloc(bytes.gradients);
        s->m = (char*)ops->alloc(state);
        s->v = (char*)ops->alloc(state);
        if (options.master && ops->act == BF16) s->master = (float*)ops->alloc(s->local_values * sizeof(float));
    }
    for (int place = 0; place < 3; place++) {
        int unit = unit_at(s, place);
        s->holds[place] = -1;
        if (gathers(s)) s->gathered[place] = (char*)ops->alloc(unit_values(s, unit, true) * fmt_bytes(ops->act));
        if (options.train && reduces_each_micro_step(s))
            s->gathered_grads[place] = (char*)ops->alloc(unit_values(s, unit, false) * fmt_bytes(options.grad_fmt));
    }
    if (gathers(s) && fmt_bytes(options.wire) == 1) s->codes = hqfsdp_new(&s->c, ops, comm, s->pieces, s->count, options.wire);
    return s;
}

void shard_free(Shard* s) {
    void* const buffers[] = {s->weights, s->grads, s->master, s->m, s->v, s->gathered[0], s->gathered[1], s->gathered[2],
                             s->gathered_grads[0], s->gathered_grads[1], s->gathered_grads[2], s->read_buffer};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        if (buffers[i]) s->ops->release(buffers[i]);
    if (s->codes) hqfsdp_free(s->codes);
    free(s->pieces);
    free(s);
}

const Piece* shard_pieces(const Shard* s, int* count) {
    *count = s->count;
    return s->pieces;
}

// ---- addresses

static size_t act_bytes(const Shard* s) { return fmt_bytes(s->ops->act); }
static size_t grad_bytes(const Shard* s) { return fmt_bytes(s->opt.grad_fmt); }

static size_t unit_start(const Shard* s, int unit) {
    for (int i = 0; i < s->count; i++)
        if (s->pieces[i].unit == unit) return s->pieces[i].full;
    die("shard: no unit %d", unit);
}

static char* whole_weights(const Shard* s, const Piece* p) {
    if (!gathers(s)) return s->weights + p->full * act_bytes(s);
    return s->gathered[place_of(s, p->unit)] + p->gathered * act_bytes(s);
}
static char* whole_grads(const Shard* s, const Piece* p) {
    if (!reduces_each_micro_step(s)) return s->grads + p->full * grad_bytes(s);
    return s->gathered_grads[place_of(s, p->unit)] + (p->full - unit_start(s, p->unit)) * grad_bytes(s);
}
// This rank's share, where a whole matrix holds it and where the flat arrays do.
static size_t share_offset(const Shard* s, const Piece* p) {
    return s->owns_all ? 0 : (size_t)s->comm->rank * p->share * p->cols;
}
static char* own_weights(const Shard* s, const Piece* p) {
    if (gathers(s)) return s->weights + p->local * act_bytes(s);
    return s->weights + (p->full + share_offset(s, p)) * act_bytes(s);
}
static char* own_grads(const Shard* s, const Piece* p) {
    if (reduces_each_micro_step(s)) return s->grads + p->local * grad_bytes(s);
    return s->grads + (p->full + share_offset(s, p)) * grad_bytes(s);
}

static Mat mat_of_own_rows(const Shard* s, const Piece* p) { return mat(own_weights(s, p), p->own, p->cols, s->ops->act); }

// ---- units

static void changed(void* self, const Linear* linear) {
    Shard* s = (Shard*)self;
    if (!s->codes) return;
    progress_phase("quantizing weights", -1);
    for (int i = 0; i < s->count; i++)
        if (s->pieces[i].gathered == kAsCodes) hqfsdp_absmax(s->codes, linear, i, mat_of_own_rows(s, &s->pieces[i]));
    hqfsdp_share_absmax(s->codes);
    for (int i = 0; i < s->count; i++)
        if (s->pieces[i].gathered == kAsCodes) hqfsdp_quantize(s->codes, linear, i, mat_of_own_rows(s, &s->pieces[i]));
}

static const Unit* acquire(void* self, int unit) {
    Shard* s = (Shard*)self;
    int place = place_of(s, unit);
    bool gather = gathers(s) && s->holds[place] != unit;
    memset(&s->unit, 0, sizeof s->unit);
    s->unit.fresh = s->first_micro_step || reduces_each_micro_step(s);
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        if (p->unit != unit) continue;
        bool norm = p->cols == 1;
        int rows = norm ? 1 : p->rows, cols = norm ? p->rows : p->cols;
        if (s->opt.train) s->unit.g[p->stack] = mat(whole_grads(s, p), rows, cols, s->opt.grad_fmt);
        if (p->gathered == kAsCodes) {
            s->unit.q[p->stack] = hqfsdp_gather(s->codes, i, gather);
            s->unit.quantized = true;
            continue;
        }
        if (gather) s->comm->all_gather(whole_weights(s, p), own_weights(s, p), (size_t)p->share * p->cols * act_bytes(s));
        s->unit.w[p->stack] = mat(whole_weights(s, p), rows, cols, s->ops->act);
    }
    s->holds[place] = unit;
    return &s->unit;
}

static void release(void* self, int unit) { (void)self, (void)unit; }

static void reduce(void* self, int unit) {
    Shard* s = (Shard*)self;
    if (!reduces_each_micro_step(s)) return;
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        if (p->unit != unit) continue;
        size_t values = (size_t)p->share * p->cols;
        bool add = !s->first_micro_step;
        if (!s->owns_all) {
            s->comm->reduce_scatter(own_grads(s, p), whole_grads(s, p), values, s->opt.grad_fmt, add);
            continue;
        }
        Mat own = mat(own_grads(s, p), p->rows, p->cols, s->opt.grad_fmt);
        Mat fresh = mat(whole_grads(s, p), p->rows, p->cols, s->opt.grad_fmt);
        if (add) s->ops->add(own, fresh, NULL);
        else s->ops->copy(own.data, fresh.data, mat_bytes(fresh));
    }
}

UnitSource shard_units(Shard* s) {
    UnitSource u = {s, s->codes != NULL, changed, acquire, release, reduce};
    return u;
}

// ---- an optimizer step

void shard_begin_step(Shard* s) { s->first_micro_step = true; }
void shard_end_micro_step(Shard* s) { s->first_micro_step = false; }

void shard_finish_gradients(Shard* s, FinishGradient finish, void* self) {
    progress_phase("reducing gradients", -1);
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        char* whole = s->comm->ranks > 1 && s->opt.zero < 2 ? whole_grads(s, p) : NULL;
        if (whole) {
            size_t values = (size_t)p->share * p->cols;
            if (s->owns_all) s->comm->all_reduce(whole, values, s->opt.grad_fmt);
            else s->comm->reduce_scatter(own_grads(s, p), whole, values, s->opt.grad_fmt, false);
        }
        if (p->own > 0) finish(self, mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt), p->stack);
    }
}

void shard_sum_squares(Shard* s, float* total) {
    s->ops->zero(total, sizeof(float));
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        if (p->own > 0) s->ops->sum_squares(total, mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt));
    }
    if (!s->owns_all) s->comm->all_reduce_sum(total, 1);
}

void shard_update(Shard* s, AdamW hyper) {
    progress_phase("update", -1);
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        AdamW a = hyper;
        a.param = own_weights(s, p);
        a.master = s->master ? s->master + p->local : NULL;
        a.grad = own_grads(s, p);
        a.m = s->m + p->local * fmt_bytes(s->opt.state_fmt);
        a.v = s->v + p->local * fmt_bytes(s->opt.state_fmt);
        a.n = (size_t)p->own * p->cols;
        a.grad_fmt = s->opt.grad_fmt;
        a.state_fmt = s->opt.state_fmt;
        a.weight_decay = p->decay ? hyper.weight_decay : 0;
        a.noise.offset = p->noise_offset;
        if (a.n) s->ops->adamw(&a);
    }
    shard_state_restored(s);
}

void shard_state_restored(Shard* s) {
    for (int place = 0; place < 3; place++) s->holds[place] = -1;
    s->read_piece = NULL;
    if (s->owns_all || gathers(s)) return;
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        s->comm->all_gather(whole_weights(s, p), own_weights(s, p), (size_t)p->share * p->cols * act_bytes(s));
    }
}

static int state_arrays(const Shard* s, StateArray arrays[kMaxStateArrays]) {
    size_t state = s->local_values * fmt_bytes(s->opt.state_fmt);
    StateArray all[kMaxStateArrays] = {{"weights", s->weights, count_bytes(s).weights},
                                       {"m", s->m, state},
                                       {"v", s->v, state},
                                       {"master", s->master, s->local_values * sizeof(float)}};
    int count = s->opt.master && s->ops->act == BF16 ? 4 : 3;
    memcpy(arrays, all, sizeof(StateArray) * (size_t)count);
    return count;
}

int shard_state(Shard* s, StateArray arrays[kMaxStateArrays]) { return state_arrays(s, arrays); }

// The layout that rank `rank` of `ranks` has; the caller frees its pieces.
static Shard layout_of(const Shard* s, int rank, int ranks, Comm* comm) {
    Shard other;
    ShardOptions options = s->opt;
    options.zero = s->asked_zero;
    memset(comm, 0, sizeof *comm);
    comm->rank = rank;
    comm->ranks = ranks;
    init(&other, &s->c, s->ops, comm, options);
    return other;
}

int shard_state_of(const Shard* s, int ranks, StateArray arrays[kMaxStateArrays]) {
    Comm comm;
    Shard other = layout_of(s, 0, ranks, &comm);
    int count = state_arrays(&other, arrays);
    free(other.pieces);
    return count;
}

// Where a piece's own rows start in one of the state arrays, in bytes, and what a value takes there.
static size_t own_offset(const Shard* s, const Piece* p, int index, size_t* value_bytes) {
    *value_bytes = index == 0 ? act_bytes(s) : index == 3 ? sizeof(float) : fmt_bytes(s->opt.state_fmt);
    bool whole = index == 0 && !gathers(s);
    return (whole ? p->full + share_offset(s, p) : p->local) * *value_bytes;
}

void shard_take(Shard* s, int index, int from_rank, int from_ranks, size_t offset, size_t bytes, const void* src) {
    Comm comm;
    Shard from = layout_of(s, from_rank, from_ranks, &comm);
    StateArray arrays[kMaxStateArrays];
    state_arrays(s, arrays);
    for (int i = 0; i < s->count; i++) {
        const Piece *p = &s->pieces[i], *q = &from.pieces[i];
        int first = max_int(p->row0, q->row0), end = min_int(p->row0 + p->own, q->row0 + q->own);
        if (first >= end) continue;
        // The rows that both own are neighbours in both arrays.
        size_t value_bytes, row_bytes;
        size_t to_start = own_offset(s, p, index, &value_bytes), from_start = own_offset(&from, q, index, &value_bytes);
        row_bytes = (size_t)p->cols * value_bytes;
        size_t begin = from_start + (size_t)(first - q->row0) * row_bytes, stop = begin + (size_t)(end - first) * row_bytes;
        size_t target = to_start + (size_t)(first - p->row0) * row_bytes - begin;   // wraps; added to an offset it is right
        if (begin < offset) begin = offset;
        if (stop > offset + bytes) stop = offset + bytes;
        if (begin < stop)
            s->ops->upload((char*)arrays[index].data + (target + begin), (const char*)src + (begin - offset), stop - begin);
    }
    free(from.pieces);
}

// ---- weights in and out

// The piece that holds a parameter, and the row at which the parameter starts in it.
static const Piece* find_piece(const Shard* s, int spec, int layer, int* first_row) {
    Stack stack = s->specs[spec].stack;
    *first_row = 0;
    for (int i = 0; i < spec; i++)
        if (s->specs[i].stack == stack) *first_row += s->specs[i].rows;
    for (int i = 0; i < s->count; i++)
        if (s->pieces[i].unit == unit_of(&s->c, stack, layer) && s->pieces[i].stack == stack) return &s->pieces[i];
    die("shard: no piece for %s", s->specs[spec].name);
}

enum { kRowsAtOnce = 1024 };

// Rows [row0, row0 + rows) of a piece, whatever tensors they belong to, as floats.
static void read_piece_rows(const Shard* s, const Piece* p, int row0, int rows, float* dst, ReadRows read, void* self) {
    int at = 0;
    for (int i = 0; i < s->spec_count; i++) {
        const ParamSpec* spec = &s->specs[i];
        if (spec->stack != p->stack) continue;
        bool norm = p->cols == 1;
        int layer = spec->per_layer ? p->unit - 1 : 0;
        int spec_rows = norm ? p->rows : spec->rows;
        int from = max_int(row0, at), to = min_int(row0 + rows, at + spec_rows);
        if (from < to && norm) {
            float* whole = (float*)host_alloc(sizeof(float) * (size_t)p->rows);
            read(self, i, layer, 0, 1, whole);
            memcpy(dst, whole + row0, sizeof(float) * (size_t)rows);
            free(whole);
        } else if (from < to) {
            read(self, i, layer, from - at, to - from, dst + (size_t)(from - row0) * p->cols);
        }
        at += spec_rows;
    }
}

static void narrow(uint16_t* half, const float* x, size_t n) {
#pragma omp parallel for
    for (size_t i = 0; i < n; i++) half[i] = bf16_from_f32(x[i]);
}

void shard_load(Shard* s, ReadRows read, void* self) {
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        int at_once = p->cols == 1 ? p->rows : kRowsAtOnce;
        float* buffer = (float*)host_alloc(sizeof(float) * (size_t)at_once * p->cols);
        uint16_t* half = (uint16_t*)host_alloc(sizeof(uint16_t) * (size_t)at_once * p->cols);
        bool narrows = s->ops->act == BF16;
        for (int done = 0; done < p->own; done += at_once) {
            int rows = min_int(at_once, p->own - done);
            size_t values = (size_t)rows * p->cols, offset = (size_t)done * p->cols;
            read_piece_rows(s, p, p->row0 + done, rows, buffer, read, self);
            if (s->master) s->ops->upload(s->master + p->local + offset, buffer, values * sizeof(float));
            if (narrows) narrow(half, buffer, values);
            s->ops->upload(own_weights(s, p) + offset * act_bytes(s), narrows ? (void*)half : buffer, values * act_bytes(s));
        }
        free(buffer);
        free(half);
    }
    shard_state_restored(s);
}

// The whole matrix of a piece, wherever it is: with zero 3 gathered into a buffer of its own, since a unit's place may hold
// codes. A matrix is read in many calls; it is gathered at the first.
static const char* readable(Shard* s, const Piece* p) {
    if (!gathers(s)) return whole_weights(s, p);
    size_t bytes = (size_t)p->share * p->cols * act_bytes(s);
    if (s->read_piece != p) {
        if (s->read_buffer) s->ops->release(s->read_buffer);
        s->read_buffer = (char*)s->ops->alloc(bytes * (size_t)s->comm->ranks);
        s->comm->all_gather(s->read_buffer, own_weights(s, p), bytes);
        s->read_piece = p;
    }
    return s->read_buffer;
}

void shard_read(Shard* s, int spec, int layer, int row0, int rows, void* dst) {
    int first_row;
    const Piece* p = find_piece(s, spec, layer, &first_row);
    size_t row_bytes = (size_t)s->specs[spec].cols * act_bytes(s);
    s->ops->download(dst, readable(s, p) + (size_t)(first_row + row0) * row_bytes, (size_t)rows * row_bytes);
}
