// Sharding; see shard.h. Flat arrays hold the pieces one after the other, each at its own aligned offset:
//   local: this rank's shares (share * cols values each)      full: whole matrices (ranks * share * cols values each)
// With zero 0, and with one rank, the two are the same memory.
#include "shard.h"

#include "hqfsdp.h"
#include "progress.h"

enum { kMaxPiecesPerUnit = 6, kPieceAlign = 128 };   // values

// Where a unit's weights are whole, or its gradients of a micro-step.
typedef struct {
    char* data;
    int unit;            // what lies there or is on its way; -1: none
    Transfer transfer;   // that brings weights; 0: the backend has waited for it. What takes gradients away is reduced[unit]
} Place;

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
    int* first_piece;         // (L + 3): of each unit; the last: count
    size_t local_values, full_values;
    bool owns_all;            // local is full: one rank, or zero 0

    char* weights;            // full, in act (zero 3: local)
    char* grads;              // full, in grad_fmt (zero 2 and 3: local)
    float* master;            // local
    char *m, *v;              // local, in state_fmt
    // Whole weights. Zero 3: the embedding, the tail, and `ring` layers (after them); zero 1 and 2: every unit, within `weights`
    Place* places;
    int ring;
    // Where gradients are made alone: those of the micro-step, whole: the embedding, the tail, and grad_ring layers
    Place* grad_places;
    int grad_ring;
    Transfer* reduced;        // (L + 2) that sums the gradients of a unit; 0: the backend has waited for it
    HqFsdp* codes;            // NULL: linears are gathered as weights
    // Zero 3: the matrix of a layer that shard_read is being asked for, where it is whole, and memory for it if that is no other's.
    const Piece* read_piece;
    char *read_place, *read_buffer;
    Unit unit;                // what acquire hands out
    int step, micro_step;     // from 1; from 0
    FinishGradient finish;    // what is left to do on all gradients, once they are summed; NULL: nothing
    void* finish_self;
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
    s->first_piece = (int*)host_alloc(sizeof(int) * (size_t)(s->c.L + 3));
    uint64_t noise = 0;
    bool codes = !s->owns_all && s->opt.zero == 3 && fmt_bytes(s->opt.wire) == 1;
    for (int unit = 0; unit < s->c.L + 2; unit++) {
        size_t gathered = 0;
        s->first_piece[unit] = s->count;
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
    s->first_piece[s->c.L + 2] = s->count;
}

static bool gathers(const Shard* s) { return !s->owns_all && s->opt.zero == 3; }
static bool reduces_each_micro_step(const Shard* s) { return s->opt.zero >= 2; }
// Are a micro-step's gradients made alone, and then added to those before? Without stages 2 and 3 the first ones are made in place.
static bool makes_alone(const Shard* s) { return reduces_each_micro_step(s) || (s->opt.grad_fmt == BF16 && s->opt.micro_steps > 1); }
static bool makes_in_place(const Shard* s) { return !makes_alone(s) || (!reduces_each_micro_step(s) && s->micro_step == 0); }

// ---- places: 0 is the embedding's, 1 the tail's; then come the layers'

static int tail_of(const Shard* s) { return s->c.L + 1; }
static int place_index(const Shard* s, int unit, int ring) { return unit == 0 ? 0 : unit == tail_of(s) ? 1 : 2 + (unit - 1) % ring; }
static Place* place_of(const Shard* s, int unit) { return &s->places[place_index(s, unit, s->ring)]; }
static Place* grad_place_of(const Shard* s, int unit) { return &s->grad_places[place_index(s, unit, s->grad_ring)]; }
static int slot_of(const Shard* s, int unit) { return (unit - 1) % s->ring; }
// Whole from its update to the next: it shares its place with no other.
static bool stays_whole(const Shard* s, int unit) { return !gathers(s) || unit == 0 || unit == tail_of(s); }
// A unit that has the place; all layers are of one size.
static int unit_at(const Shard* s, int place) { return place == 0 ? 0 : place == 1 ? tail_of(s) : place - 1; }

static size_t act_bytes(const Shard* s) { return fmt_bytes(s->ops->act); }
static size_t grad_bytes(const Shard* s) { return fmt_bytes(s->opt.grad_fmt); }
static size_t unit_start(const Shard* s, int unit) { return s->pieces[s->first_piece[unit]].full; }

// The values of a unit in its place: its gradients' (all of it), and its weights' (what doesn't travel as codes).
static size_t unit_values(const Shard* s, int unit, bool weights) {
    size_t values = 0;
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        size_t next = i + 1 < s->count ? s->pieces[i + 1].full : s->full_values;
        if (!(weights && s->pieces[i].gathered == kAsCodes)) values += next - s->pieces[i].full;
    }
    return values;
}

static ShardBytes count_bytes(const Shard* s) {
    size_t act = fmt_bytes(s->ops->act), grad = fmt_bytes(s->opt.grad_fmt), state = fmt_bytes(s->opt.state_fmt);
    ShardBytes b = {0, 0, 0, 0};
    b.weights = (gathers(s) ? s->local_values : s->full_values) * act;
    for (int place = 0; gathers(s) && place < 2 + s->ring; place++) b.gathered += unit_values(s, unit_at(s, place), true) * act;
    if (gathers(s)) b.gathered += hqfsdp_bytes(&s->c, s->comm, s->pieces, s->count, s->opt.wire, s->ring);
    if (!s->opt.train) return b;
    for (int place = 0; makes_alone(s) && place < 2 + s->grad_ring; place++)
        b.gathered += unit_values(s, unit_at(s, place), false) * grad;
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
    s->ring = gathers(s) ? min_int(1 + options.prefetch, config->L) : config->L;
    s->grad_ring = s->owns_all ? 1 : min_int(min_int(1 + options.prefetch, 2), config->L);
}
static void free_layout(Shard* s) {
    free(s->pieces);
    free(s->first_piece);
}

ShardBytes shard_bytes(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    Shard s;
    init(&s, config, ops, comm, options);
    ShardBytes b = count_bytes(&s);
    free_layout(&s);
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
    s->places = (Place*)host_alloc(sizeof(Place) * (size_t)(2 + s->ring));
    s->grad_places = (Place*)host_alloc(sizeof(Place) * (size_t)(2 + s->grad_ring));
    s->reduced = (Transfer*)host_alloc(sizeof(Transfer) * (size_t)(config->L + 2));
    for (int place = 0; place < 2 + s->ring; place++) {
        int unit = unit_at(s, place);
        s->places[place].unit = -1;
        s->places[place].data = gathers(s) ? (char*)ops->alloc(unit_values(s, unit, true) * act_bytes(s))
                                           : s->weights + unit_start(s, unit) * act_bytes(s);
    }
    for (int place = 0; place < 2 + s->grad_ring; place++) {
        s->grad_places[place].unit = -1;
        if (options.train && makes_alone(s))
            s->grad_places[place].data = (char*)ops->alloc(unit_values(s, unit_at(s, place), false) * grad_bytes(s));
    }
    if (gathers(s) && fmt_bytes(options.wire) == 1)
        s->codes = hqfsdp_new(&s->c, ops, comm, s->pieces, s->count, options.wire, s->ring);
    return s;
}

void shard_free(Shard* s) {
    void* const buffers[] = {s->weights, s->grads, s->master, s->m, s->v, s->read_buffer};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        if (buffers[i]) s->ops->release(buffers[i]);
    for (int place = 0; gathers(s) && place < 2 + s->ring; place++) s->ops->release(s->places[place].data);
    for (int place = 0; place < 2 + s->grad_ring; place++)
        if (s->grad_places[place].data) s->ops->release(s->grad_places[place].data);
    if (s->codes) hqfsdp_free(s->codes);
    free(s->places);
    free(s->grad_places);
    free(s->reduced);
    free_layout(s);
    free(s);
}

// ---- addresses

static char* whole_weights(const Shard* s, const Piece* p) {
    size_t offset = gathers(s) ? p->gathered : p->full - unit_start(s, p->unit);
    return place_of(s, p->unit)->data + offset * act_bytes(s);
}
// The whole matrix's sum over this rank's micro-steps; there is one with stages 0 and 1.
static char* summed_grads(const Shard* s, const Piece* p) { return s->grads + p->full * grad_bytes(s); }
static char* whole_grads(const Shard* s, const Piece* p) {
    if (makes_in_place(s)) return summed_grads(s, p);
    return grad_place_of(s, p->unit)->data + (p->full - unit_start(s, p->unit)) * grad_bytes(s);
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

static void wait_for(const Shard* s, Transfer* transfer) {
    if (*transfer) s->comm->wait(*transfer);
    *transfer = 0;
}

// The gradients in this place have been read: new ones may go there.
static void wait_for_gradients(const Shard* s, const Place* place) {
    if (place->unit >= 0) wait_for(s, &s->reduced[place->unit]);
}

// The gathering of a unit, unless it is there or on its way.
static void start_gather(Shard* s, int unit) {
    Place* place = place_of(s, unit);
    if (s->owns_all || place->unit == unit) return;
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        if (p->gathered == kAsCodes) hqfsdp_gather(s->codes, i, slot_of(s, unit));
        else s->comm->all_gather(whole_weights(s, p), own_weights(s, p), (size_t)p->share * p->cols * act_bytes(s));
    }
    place->unit = unit;
    place->transfer = s->comm->start();
}

static void wait_for_places(Shard* s) {
    for (int i = 0; i < 2 + s->ring; i++) wait_for(s, &s->places[i].transfer);
}

// The weights are about to change, or have changed: nothing is whole any more. Who reads what is changed has done so: a transfer that
// nobody has waited for is waited for here.
static void forget_gathered(Shard* s) {
    wait_for_places(s);
    for (int i = 0; i < 2 + s->ring; i++) s->places[i].unit = -1;
    s->read_piece = NULL;
}

static const Unit* acquire(void* self, int unit, Pass pass) {
    Shard* s = (Shard*)self;
    start_gather(s, unit);
    // What comes next has its place already: the layer that was there is behind the model.
    for (int ahead = 1; ahead < s->ring; ahead++) {
        int next = unit + (pass == FORWARD ? ahead : -ahead);
        if (next >= 1 && next <= s->c.L) start_gather(s, next);
    }
    if (unit == s->c.L && pass == FORWARD && s->ring > 1) start_gather(s, tail_of(s));
    wait_for(s, &place_of(s, unit)->transfer);
    if (pass == BACKWARD) wait_for_gradients(s, grad_place_of(s, unit));
    memset(&s->unit, 0, sizeof s->unit);
    s->unit.fresh = s->micro_step == 0 || makes_alone(s);
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        bool norm = p->cols == 1;
        int rows = norm ? 1 : p->rows, cols = norm ? p->rows : p->cols;
        if (s->opt.train) s->unit.g[p->stack] = mat(whole_grads(s, p), rows, cols, s->opt.grad_fmt);
        if (p->gathered == kAsCodes) {
            s->unit.q[p->stack] = hqfsdp_operand(s->codes, i, slot_of(s, unit), pass);
            s->unit.quantized = true;
        } else {
            s->unit.w[p->stack] = mat(whole_weights(s, p), rows, cols, s->ops->act);
        }
    }
    return &s->unit;
}

// Of a piece's gradients, as this micro-step adds to them. The ranks of stages 0 and 1 each have a sum of their own.
static Noise grad_noise(const Shard* s, const Piece* p) {
    uint64_t rank = reduces_each_micro_step(s) ? 0 : (uint64_t)s->comm->rank;
    Noise noise = {s->opt.seed, (uint64_t)s->step << 32 | (uint64_t)s->micro_step << 12 | rank, p->noise_offset};
    return noise;
}

// The gradients of a unit over all ranks, as far as the stage keeps them.
static void start_reduce(Shard* s, int unit, bool add) {
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        size_t values = (size_t)p->share * p->cols;
        Noise noise = grad_noise(s, p);
        char* whole = reduces_each_micro_step(s) ? whole_grads(s, p) : summed_grads(s, p);
        if (s->owns_all) s->comm->all_reduce(whole, values, s->opt.grad_fmt);
        else s->comm->reduce_scatter(own_grads(s, p), whole, values, s->opt.grad_fmt, add, &noise);
    }
    s->reduced[unit] = s->comm->start();
}

static void reduce(void* self, int unit) {
    Shard* s = (Shard*)self;
    bool add = s->micro_step > 0;
    if (makes_in_place(s)) return;
    if (reduces_each_micro_step(s) && !s->owns_all) {
        start_reduce(s, unit, add);
        grad_place_of(s, unit)->unit = unit;
        return;
    }
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        char* sum = reduces_each_micro_step(s) ? own_grads(s, p) : summed_grads(s, p);
        Mat own = mat(sum, p->rows, p->cols, s->opt.grad_fmt), fresh = mat(whole_grads(s, p), p->rows, p->cols, s->opt.grad_fmt);
        Noise noise = grad_noise(s, p);
        if (add) s->ops->add(own, fresh, &noise);
        else s->ops->copy(own.data, fresh.data, mat_bytes(fresh));
    }
}

UnitSource shard_units(Shard* s) {
    UnitSource u = {s, s->codes != NULL, changed, acquire, reduce};
    return u;
}

// ---- an optimizer step

void shard_begin_step(Shard* s, int step) {
    s->step = step;
    s->micro_step = 0;
}
void shard_end_micro_step(Shard* s) { s->micro_step++; }

void shard_reduce_gradients(Shard* s, FinishGradient finish, void* self) {
    progress_phase("reducing gradients", -1);
    s->finish = finish;
    s->finish_self = self;
    bool once = s->comm->ranks > 1 && !reduces_each_micro_step(s);
    for (int unit = tail_of(s); once && unit >= 0; unit--) start_reduce(s, unit, false);   // as the backward pass completes them
}

static void finish_unit(Shard* s, int unit) {
    if (!s->finish) return;
    wait_for(s, &s->reduced[unit]);
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        if (p->own > 0) s->finish(s->finish_self, mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt), p->stack);
    }
}

void shard_finish_gradients(Shard* s) {
    for (int unit = tail_of(s); unit >= 0; unit--) finish_unit(s, unit);
    s->finish = NULL;
}

void shard_sum_squares(Shard* s, float* total) {
    shard_finish_gradients(s);
    s->ops->zero(total, sizeof(float));
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        if (p->own > 0) s->ops->sum_squares(total, mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt));
    }
    if (s->owns_all) return;
    s->comm->all_reduce(total, 1, F32);
    s->comm->wait(s->comm->start());
}

double shard_sum_over_rows(const Shard* s, double own) {
    if (!s->owns_all) s->comm->host_sum(&own, 1);
    return own;
}

// The k-th unit to update. Where every unit's weights travel afterwards: the next forward pass's order. Else the order in which the
// gradients' sums arrive. The embedding's are the last, and its weights the first to be needed: it comes halfway.
static int unit_to_update(const Shard* s, int k) {
    if (!s->owns_all && !gathers(s)) return k;
    int half = (s->c.L + 2) / 2;
    return k < half ? tail_of(s) - k : k == half ? 0 : tail_of(s) - k + 1;
}

static void update_piece(Shard* s, const Piece* p, AdamW a) {
    a.param = own_weights(s, p);
    a.master = s->master ? s->master + p->local : NULL;
    a.grad = own_grads(s, p);
    a.m = s->m + p->local * fmt_bytes(s->opt.state_fmt);
    a.v = s->v + p->local * fmt_bytes(s->opt.state_fmt);
    a.n = (size_t)p->own * p->cols;
    a.grad_fmt = s->opt.grad_fmt;
    a.state_fmt = s->opt.state_fmt;
    if (!p->decay) a.weight_decay = 0;
    a.noise.offset = p->noise_offset;
    if (a.n) s->ops->adamw(&a);
}

void shard_update(Shard* s, AdamW hyper) {
    progress_phase("update", -1);
    if (hyper.square_sums) s->ops->zero(hyper.square_sums, kSquareSums * sizeof(float));
    forget_gathered(s);
    for (int k = 0; k < s->c.L + 2; k++) {
        int unit = unit_to_update(s, k);
        finish_unit(s, unit);
        for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) update_piece(s, &s->pieces[i], hyper);
        if (stays_whole(s, unit)) start_gather(s, unit);   // on its way while the next units are updated
    }
    s->finish = NULL;
}

void shard_state_restored(Shard* s) { forget_gathered(s); }

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

int shard_state(Shard* s, StateArray arrays[kMaxStateArrays]) {
    for (int unit = 0; !gathers(s) && unit <= tail_of(s); unit++) {   // the weights that it is about are whole
        start_gather(s, unit);
        wait_for(s, &place_of(s, unit)->transfer);
    }
    return state_arrays(s, arrays);
}

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
    free_layout(&other);
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
    free_layout(&from);
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
            progress_phase("loading weights", p->unit == tail_of(s) ? -1 : p->unit - 1);
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

// The whole matrix of a piece, wherever it is. With zero 3 a layer's place may hold codes: its matrices are gathered one by one, to
// where gradients are made in training, so that a model that can be trained can be written too. A matrix is read in many calls; it
// is gathered at the first.
static const char* readable(Shard* s, const Piece* p) {
    if (stays_whole(s, p->unit)) {
        start_gather(s, p->unit);
        wait_for(s, &place_of(s, p->unit)->transfer);
        return whole_weights(s, p);
    }
    if (s->read_piece == p) return s->read_place;
    Place* grads = grad_place_of(s, p->unit);
    size_t bytes = (size_t)p->share * p->cols * act_bytes(s), whole = bytes * (size_t)s->comm->ranks;
    if (s->read_buffer) s->ops->release(s->read_buffer);
    bool fits = grads->data && whole <= unit_values(s, p->unit, false) * grad_bytes(s);
    s->read_buffer = fits ? NULL : (char*)s->ops->alloc(whole);
    s->read_place = fits ? grads->data : s->read_buffer;
    s->read_piece = p;
    wait_for_gradients(s, grads);
    wait_for_places(s);   // more transfers are to follow than are remembered (comm/nccl.cu)
    s->comm->all_gather(s->read_place, own_weights(s, p), bytes);
    s->comm->wait(s->comm->start());
    return s->read_place;
}

void shard_read(Shard* s, int spec, int layer, int row0, int rows, void* dst) {
    int first_row;
    const Piece* p = find_piece(s, spec, layer, &first_row);
    size_t row_bytes = (size_t)s->specs[spec].cols * act_bytes(s);
    s->ops->download(dst, readable(s, p) + (size_t)(first_row + row0) * row_bytes, (size_t)rows * row_bytes);
}
