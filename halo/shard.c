// Sharding, layout and traffic: who owns which rows, and the gathering and reducing that follow from it; see shard.h.
#include "shard_internal.h"

#include "progress.h"

// ---- layout

// Which rows of which matrix are this rank's, and where they lie in the flat arrays.
static void describe_piece(const Shard* s, Piece* p, int unit, Stack stack) {
    StackSize size = stack_size(&s->c, stack);
    p->unit = unit;
    p->stack = stack;
    p->norm = stack_is_norm(stack);
    p->rows = p->norm ? size.cols : size.rows;
    p->cols = p->norm ? 1 : size.cols;
    p->share = s->owns_all ? p->rows : ceil_div(p->rows, s->comm->ranks);
    p->row0 = s->owns_all ? 0 : min_int(s->comm->rank * p->share, p->rows);
    p->own = min_int(p->share, p->rows - p->row0);
    p->decay = !p->norm;
    p->local = s->local_values;
    p->full = s->full_values;
}

// The values that a piece takes in the flat arrays, padding included: of this rank's share, and of the whole matrix.
static size_t share_values(const Piece* p) { return round_up((size_t)p->share * p->cols, kPieceAlign); }
static size_t whole_values(const Shard* s, const Piece* p) {
    return s->owns_all ? share_values(p) : round_up((size_t)p->share * p->cols * s->comm->ranks, kPieceAlign);
}

static bool is_of(ShardPart part, Stack stack) { return (stack >= S_QKV_A) == (part == SHARD_ADAPTER); }

static bool gathers_codes(const Comm* comm, ShardOptions options) { return options.codes && comm->ranks > 1 && options.zero == 3; }
static bool gives_codes(const Shard* s) { return holds_codes(s) || gathers_codes(s->comm, s->opt); }

static void lay_out(Shard* s) {
    s->spec_count = s->part == SHARD_ADAPTER ? adapter_specs(&s->c, s->specs) : param_specs(&s->c, s->specs);
    s->pieces = (Piece*)host_alloc(sizeof(Piece) * (size_t)kMaxPiecesPerUnit * (size_t)(s->c.L + 2));
    s->first_piece = (int*)host_alloc(sizeof(int) * (size_t)(s->c.L + 3));
    uint64_t noise = 0;
    bool held = holds_codes(s), codes = gives_codes(s);
    for (int unit = 0; unit < s->c.L + 2; unit++) {
        size_t gathered = 0;
        s->first_piece[unit] = s->count;
        for (int k = 0; k < kStacks; k++) {
            Stack stack = (Stack)k;
            int layer = min_int(max_int(unit - 1, 0), s->c.L - 1);
            if (!is_of(s->part, stack) || stack_size(&s->c, stack).rows == 0 || unit_of(&s->c, stack, layer) != unit) continue;
            Piece* p = &s->pieces[s->count++];
            describe_piece(s, p, unit, stack);
            p->noise_offset = noise + (uint64_t)p->row0 * p->cols;
            noise += (uint64_t)p->rows * p->cols;
            p->gathered = codes && linear_of_stack(stack) >= 0 ? kAsCodes : gathered;
            if (!travels_as_codes(p)) gathered += whole_values(s, p);
            if (held && travels_as_codes(p)) continue;   // HqFsdp alone holds this piece: it takes no room in the flat arrays
            s->local_values += share_values(p);
            s->full_values += whole_values(s, p);
        }
    }
    s->first_piece[s->c.L + 2] = s->count;
}

static int stage_of(const Comm* comm, const ShardOptions* o) { return comm->ranks > 1 ? o->zero : o->zero_alone; }

bool shard_would_give_codes(const Config* config, const Comm* comm, ShardOptions options) {
    if (config->adapter.kind == ADAPTER_NONE) return gathers_codes(comm, options);
    return config->adapter.kind == ADAPTER_LORA && linear_gathers_codes(options.recipe);
}

static int code_ranks(const Shard* s) { return s->owns_all ? 1 : s->comm->ranks; }

// Bytes of `weights`: those kept in the format that layers read. A frozen model's codes are not among them.
static size_t flat_weight_bytes(const Shard* s) { return (gathers(s) ? s->local_values : s->full_values) * act_bytes(s); }

ShardBytes shard_count_bytes(const Shard* s) {
    size_t act = fmt_bytes(s->ops->act), grad = fmt_bytes(s->opt.grad_fmt), state = fmt_bytes(s->opt.state_fmt);
    ShardBytes b = {0, 0, 0, 0};
    b.weights = flat_weight_bytes(s);
    for (int place = 0; gathers(s) && place < 2 + s->ring; place++) b.gathered += unit_values(s, unit_at(s, place), true) * act;
    if (gives_codes(s))
        b.gathered += hqfsdp_bytes(&s->c, &s->linear, code_ranks(s), s->pieces, s->count, s->ring);
    if (holds_codes(s)) {   // this rank's codes are its weights
        size_t own = hqfsdp_own_bytes(&s->linear, s->pieces, s->count);
        b.weights += own;
        b.gathered -= own;
    }
    if (!s->opt.train) return b;
    for (int place = 0; makes_alone(s) && place < 2 + s->grad_ring; place++)
        b.gathered += unit_values(s, unit_at(s, place), false) * grad;
    b.gradients = (reduces_each_micro_step(s) ? s->local_values : s->full_values) * grad;
    b.optimizer = s->local_values * (2 * state + (keeps_master(s) ? sizeof(float) : 0));
    return b;
}

// Sets stage and options of a part. A frozen model has weights alone, whole or cut. Its adapter is small: every rank holds it whole, and
// updates its own share.
static void share_out(Shard* s) {
    s->zero = stage_of(s->comm, &s->opt);
    if (s->c.adapter.kind == ADAPTER_NONE) return;
    s->opt.codes = false;
    if (s->part == SHARD_ADAPTER) {
        s->zero = min_int(s->zero, 2);
    } else {
        s->zero = s->zero == 3 ? 3 : 0;
        s->opt.train = false;
    }
}

void shard_describe(Shard* s, ShardPart part, const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    memset(s, 0, sizeof *s);
    s->part = part;
    s->c = *config;
    s->ops = ops;
    s->comm = comm;
    s->opt = options;
    share_out(s);
    s->linear = linear_of(ops, options.recipe);
    s->owns_all = comm->ranks == 1 || s->zero == 0;
    lay_out(s);
    s->ring = gathers(s) ? min_int(1 + options.prefetch, config->L) : config->L;
    s->grad_ring = s->owns_all ? 1 : min_int(min_int(1 + options.prefetch, 2), config->L);
}
void shard_forget(Shard* s) {
    free(s->pieces);
    free(s->first_piece);
}

static ShardBytes part_bytes(ShardPart part, const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    Shard s;
    shard_describe(&s, part, config, ops, comm, options);
    ShardBytes b = shard_count_bytes(&s);
    shard_forget(&s);
    return b;
}

ShardBytes shard_bytes(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    ShardBytes b = part_bytes(SHARD_MODEL, config, ops, comm, options);
    if (config->adapter.kind == ADAPTER_NONE) return b;
    ShardBytes a = part_bytes(SHARD_ADAPTER, config, ops, comm, options);
    b.weights += a.weights;
    b.gradients += a.gradients;
    b.optimizer += a.optimizer;
    b.gathered += a.gathered;
    return b;
}

// Makes the places, for whole weights and for a micro-step's gradients; no unit is in any.
static void make_places(Shard* s) {
    s->places = (GatherPlace*)host_alloc(sizeof(GatherPlace) * (size_t)(2 + s->ring));
    s->grad_places = (GatherPlace*)host_alloc(sizeof(GatherPlace) * (size_t)(2 + s->grad_ring));
    s->reduced = (Transfer*)host_alloc(sizeof(Transfer) * (size_t)(s->c.L + 2));
    for (int place = 0; place < 2 + s->ring; place++) {
        int unit = unit_at(s, place);
        s->places[place].unit = -1;
        s->places[place].data = gathers(s) ? (char*)comm_alloc(s->comm, s->ops, unit_values(s, unit, true) * act_bytes(s))
                                           : s->weights + unit_start(s, unit) * act_bytes(s);
    }
    for (int place = 0; place < 2 + s->grad_ring; place++) {
        s->grad_places[place].unit = -1;
        if (s->opt.train && makes_alone(s))
            s->grad_places[place].data = (char*)s->ops->alloc(unit_values(s, unit_at(s, place), false) * grad_bytes(s));
    }
}

static Shard* part_new(ShardPart part, const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    Shard* s = (Shard*)host_alloc(sizeof(Shard));
    shard_describe(s, part, config, ops, comm, options);
    options = s->opt;
    ShardBytes bytes = shard_count_bytes(s);
    s->weights = (char*)(gathers_weights_in_place(s) ? comm_alloc(comm, ops, flat_weight_bytes(s)) : ops->alloc(flat_weight_bytes(s)));
    if (options.train) {
        s->add_shift = (NoiseShift*)ops->alloc(sizeof(NoiseShift));
        size_t state = s->local_values * fmt_bytes(options.state_fmt);
        s->grads = (char*)ops->alloc(bytes.gradients);
        s->m = (char*)ops->alloc(state);
        s->v = (char*)ops->alloc(state);
        if (keeps_master(s)) s->master = (float*)ops->alloc(s->local_values * sizeof(float));
    }
    make_places(s);
    if (gives_codes(s))
        s->codes = hqfsdp_new(&s->c, &s->linear, comm, code_ranks(s), s->pieces, s->count, s->ring);
    return s;
}

Shard* shard_new(const Config* config, const Ops* ops, const Comm* comm, ShardOptions options) {
    Shard* s = part_new(SHARD_MODEL, config, ops, comm, options);
    if (is_frozen(s)) s->adapter = part_new(SHARD_ADAPTER, config, ops, comm, options);
    return s;
}

void shard_free(Shard* s) {
    if (s->adapter) shard_free(s->adapter);
    comm_release(s->comm, s->ops, s->weights);
    void* const buffers[] = {s->grads, s->master, s->m, s->v, s->read_buffer, s->add_shift};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        if (buffers[i]) s->ops->release(buffers[i]);
    for (int place = 0; gathers(s) && place < 2 + s->ring; place++) comm_release(s->comm, s->ops, s->places[place].data);
    for (int place = 0; place < 2 + s->grad_ring; place++)
        if (s->grad_places[place].data) s->ops->release(s->grad_places[place].data);
    if (s->codes) hqfsdp_free(s->codes);
    free(s->places);
    free(s->grad_places);
    free(s->reduced);
    shard_forget(s);
    free(s);
}

// ---- units

// Quantizes this rank's rows of the linears, with the scales of the whole matrices, from its weights.
static void quantize_own_rows(Shard* s) {
    if (!s->codes || holds_codes(s)) return;
    progress_phase("quantizing weights", -1);
    hqfsdp_forget_maxima(s->codes);
    for (int i = 0; i < s->count; i++)
        if (travels_as_codes(&s->pieces[i])) hqfsdp_absmax(s->codes, i, 0, mat_of_own_rows(s, &s->pieces[i]));
    hqfsdp_share_absmax(s->codes);
    for (int i = 0; i < s->count; i++)
        if (travels_as_codes(&s->pieces[i])) hqfsdp_quantize(s->codes, i, 0, mat_of_own_rows(s, &s->pieces[i]));
}

void shard_wait_for(const Shard* s, Transfer* transfer) {
    if (*transfer) s->comm->wait(*transfer);
    *transfer = 0;
}

void shard_wait_for_gradients(const Shard* s, const GatherPlace* place) {
    if (place->unit >= 0) shard_wait_for(s, &s->reduced[place->unit]);
}

void shard_start_gather(Shard* s, int unit) {
    GatherPlace* place = place_of(s, unit);
    if (s->owns_all || place->unit == unit || is_empty(s, unit)) return;
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        if (travels_as_codes(p)) hqfsdp_gather(s->codes, i, slot_of(s, unit));
        else s->comm->all_gather(whole_weights(s, p), own_weights(s, p), (size_t)p->share * p->cols * act_bytes(s));
    }
    place->unit = unit;
    place->transfer = s->comm->start();
}

void shard_wait_for_places(Shard* s) {
    for (int i = 0; i < 2 + s->ring; i++) shard_wait_for(s, &s->places[i].transfer);
}

void shard_forget_gathered(Shard* s) {
    shard_wait_for_places(s);
    for (int i = 0; i < 2 + s->ring; i++) s->places[i].unit = -1;
    s->read_piece = NULL;
}

bool shard_gives_codes(const Shard* s) { return s->codes != NULL; }
bool shard_is_alone(const Shard* s) { return s->comm->ranks == 1; }

// Adds the adapter's stacks of a unit, and its gradients, to the frozen unit, which has none of its own.
static void join_adapter(Unit* u, const Unit* adapter, AdapterKind kind) {
    if (kind == ADAPTER_HUT) u->version += adapter->version;   // HUT's prepared weights depend on both; both numbers only grow
    u->fresh = adapter->fresh;
    u->step = adapter->step;
    u->micro_batch = adapter->micro_batch;
    for (int k = S_QKV_A; k < kStacks; k++) {
        u->w[k] = adapter->w[k];
        u->g[k] = adapter->g[k];
    }
}

const Unit* shard_acquire(Shard* s, int unit, Pass pass) {
    shard_start_gather(s, unit);
    // The next layers can be gathered already: the model has finished with the layers that had their places.
    for (int ahead = 1; ahead < s->ring; ahead++) {
        int next = unit + (pass == FORWARD ? ahead : -ahead);
        if (next >= 1 && next <= s->c.L) shard_start_gather(s, next);
    }
    if (unit == s->c.L && pass == FORWARD && s->ring > 1) shard_start_gather(s, tail_of(s));
    shard_wait_for(s, &place_of(s, unit)->transfer);
    if (pass == BACKWARD) shard_wait_for_gradients(s, grad_place_of(s, unit));
    memset(&s->unit, 0, sizeof s->unit);
    s->unit.version = s->version;
    s->unit.fresh = s->micro_step == 0 || makes_alone(s);
    s->unit.step = s->step;
    s->unit.micro_batch = s->micro_step * s->comm->ranks + s->comm->rank;
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        int rows = p->norm ? 1 : p->rows, cols = p->norm ? p->rows : p->cols;
        if (s->opt.train) s->unit.g[p->stack] = mat(whole_grads(s, p), rows, cols, s->opt.grad_fmt);
        if (travels_as_codes(p)) {
            s->unit.q[linear_of_stack(p->stack)] = hqfsdp_operand(s->codes, i, slot_of(s, unit), pass);
            s->unit.quantized = true;
        } else {
            s->unit.w[p->stack] = mat(whole_weights(s, p), rows, cols, s->ops->act);
        }
    }
    if (s->adapter) join_adapter(&s->unit, shard_acquire(s->adapter, unit, pass), s->c.adapter.kind);
    return &s->unit;
}

// What names the micro-step in the streams of noise with which its gradients are added.
static uint64_t grad_stream(const Shard* s) { return (uint64_t)s->step << 32 | (uint64_t)s->micro_step << 12; }

// The noise with which this micro-step's gradients of a piece are added. In stages 0 and 1 each rank rounds a sum of its own.
static Noise grad_noise(const Shard* s, const Piece* p) {
    uint64_t rank = reduces_each_micro_step(s) ? 0 : (uint64_t)s->comm->rank;
    Noise noise = {s->opt.seed, grad_stream(s) | rank, p->noise_offset, NULL};
    return noise;
}
// The same noise for a call that is recorded: the backend knows the stream of the micro-step at work.
static Noise recorded_grad_noise(const Shard* s, const Piece* p) {
    Noise noise = grad_noise(s, p);
    noise.stream -= grad_stream(s);
    noise.shift = s->add_shift;
    return noise;
}
static void set_micro_step(Shard* s, int micro_step) {
    s->micro_step = micro_step;
    if (!makes_alone(s)) return;   // gradients are not added with noise
    NoiseShift shift = {grad_stream(s), 0};
    s->ops->upload(s->add_shift, &shift, sizeof shift);
}

// Starts the sum of a unit's gradients over all ranks: of the whole unit in stage 0, else of this rank's rows.
static void start_reduce(Shard* s, int unit, bool add) {
    if (is_empty(s, unit)) return;
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

void shard_reduce(Shard* s, int unit) {
    s = trained_part(s);
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
        Noise noise = recorded_grad_noise(s, p);
        if (add) s->ops->add(own, fresh, &noise);
        else s->ops->copy(own.data, fresh.data, mat_bytes(fresh));
    }
}

// ---- an optimizer step

void shard_begin_step(Shard* s, int step) {
    s = trained_part(s);
    s->step = step;
    set_micro_step(s, 0);
}
void shard_end_micro_step(Shard* s) { set_micro_step(trained_part(s), trained_part(s)->micro_step + 1); }

void shard_reduce_gradients(Shard* s) {
    s = trained_part(s);
    progress_phase("reducing gradients", -1);
    s->unfinished = true;
    bool once = s->comm->ranks > 1 && !reduces_each_micro_step(s);
    for (int unit = tail_of(s); once && unit >= 0; unit--) start_reduce(s, unit, false);   // in the order of the backward pass
}

static void finish_unit(Shard* s, int unit) {
    if (!s->unfinished) return;
    shard_wait_for(s, &s->reduced[unit]);
    for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
        const Piece* p = &s->pieces[i];
        if (p->own > 0 && linear_of_stack(p->stack) >= 0)
            linear_finish_grad(&s->linear, mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt));
    }
}

void shard_finish_gradients(Shard* s) {
    s = trained_part(s);
    for (int unit = tail_of(s); unit >= 0; unit--) finish_unit(s, unit);
    s->unfinished = false;
}

void shard_sum_squares(Shard* s, WideSum* total) {
    s = trained_part(s);
    shard_finish_gradients(s);
    s->ops->zero(total, sizeof *total);
    for (int i = 0; i < s->count; i++) {
        const Piece* p = &s->pieces[i];
        if (p->own > 0) s->ops->sum_row_squares(total, mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt));
    }
    if (s->owns_all) return;
    s->comm->all_reduce(total->digit, kWideDigits, F32);
    s->comm->wait(s->comm->start());
}

double shard_sum_over_rows(const Shard* s, double own) {
    if (s->adapter) s = s->adapter;
    if (!s->owns_all) s->comm->host_sum(&own, 1);
    return own;
}

// The k-th unit to update. Stages 1 and 2 gather every unit's weights afterwards: in the order in which the next forward pass needs them.
// Else in the order in which the gradients' sums arrive, but for the embedding: its sums are the last to arrive and its weights the first
// to be needed, so it comes halfway.
static int unit_to_update(const Shard* s, int k) {
    if (!s->owns_all && !gathers(s)) return k;
    int half = (s->c.L + 2) / 2;
    return k < half ? tail_of(s) - k : k == half ? 0 : tail_of(s) - k + 1;
}

static AdamW piece_update(const Shard* s, const Piece* p, AdamW a) {
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
    return a;
}

// Updates that wait to be done together.
typedef struct {
    AdamW update[kUpdatesAtOnce];
    int count;
} Updates;

static void do_updates(const Shard* s, Updates* u) {
    if (u->count) s->ops->adamw(u->update, u->count);
    u->count = 0;
}

void shard_update(Shard* s, AdamW hyper) {
    s = trained_part(s);
    progress_phase("update", -1);
    if (hyper.square_sums) s->ops->zero(hyper.square_sums, kSquareSums * sizeof(float));
    shard_forget_gathered(s);
    Updates waiting;
    waiting.count = 0;
    for (int k = 0; k < s->c.L + 2; k++) {
        int unit = unit_to_update(s, k);
        finish_unit(s, unit);
        for (int i = s->first_piece[unit]; i < s->first_piece[unit + 1]; i++) {
            if (waiting.count == kUpdatesAtOnce) do_updates(s, &waiting);
            if (s->pieces[i].own > 0) waiting.update[waiting.count++] = piece_update(s, &s->pieces[i], hyper);
        }
        if (s->comm->ranks > 1) do_updates(s, &waiting);         // one rank waits for no gradients and sends no weights
        if (stays_whole(s, unit)) shard_start_gather(s, unit);   // on its way while the next units are updated
    }
    do_updates(s, &waiting);
    s->unfinished = false;
    s->version++;
    quantize_own_rows(s);
}

void shard_replace_weights(Shard* s) {
    shard_forget_gathered(s);
    s->version++;
    quantize_own_rows(s);
}

void shard_weights_replaced(Shard* s) { shard_replace_weights(trained_part(s)); }

