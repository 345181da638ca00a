// Sharding, weights and state in and out: loading a model, reading its matrices, the arrays of checkpoints; see shard.h.
#include "shard_internal.h"

#include "progress.h"

static int state_arrays(const Shard* s, StateArray arrays[kMaxStateArrays]) {
    size_t state = s->local_values * fmt_bytes(s->opt.state_fmt);
    StateArray all[kMaxStateArrays] = {{"weights", s->weights, shard_count_bytes(s).weights},
                                       {"m", s->m, state},
                                       {"v", s->v, state},
                                       {"master", s->master, s->local_values * sizeof(float)}};
    int count = keeps_master(s) ? 4 : 3;
    memcpy(arrays, all, sizeof(StateArray) * (size_t)count);
    return count;
}

int shard_state(Shard* s, StateArray arrays[kMaxStateArrays]) {
    s = trained_part(s);
    for (int unit = 0; !gathers(s) && unit <= tail_of(s); unit++) {   // "weights" is the whole model: every unit must have arrived
        shard_start_gather(s, unit);
        shard_wait_for(s, &place_of(s, unit)->transfer);
    }
    return state_arrays(s, arrays);
}

// The layout that rank `rank` of `ranks` has; the caller frees its pieces.
static Shard layout_of(const Shard* s, int rank, int ranks, Comm* comm) {
    Shard other;
    memset(comm, 0, sizeof *comm);
    comm->rank = rank;
    comm->ranks = ranks;
    shard_describe(&other, s->part, &s->c, s->ops, comm, s->opt);
    return other;
}

int shard_state_of(const Shard* s, int ranks, StateArray arrays[kMaxStateArrays]) {
    if (s->adapter) s = s->adapter;
    Comm comm;
    Shard other = layout_of(s, 0, ranks, &comm);
    int count = state_arrays(&other, arrays);
    shard_forget(&other);
    return count;
}

// Where this rank's rows of a piece start in state array `index`, in bytes; *value_bytes: bytes of a value there.
static size_t own_offset(const Shard* s, const Piece* p, int index, size_t* value_bytes) {
    *value_bytes = index == 0 ? act_bytes(s) : index == 3 ? sizeof(float) : fmt_bytes(s->opt.state_fmt);
    bool whole = index == 0 && !gathers(s);
    return (whole ? p->full + share_offset(s, p) : p->local) * *value_bytes;
}

void shard_take(Shard* s, int index, int from_rank, int from_ranks, size_t offset, size_t bytes, const void* src) {
    s = trained_part(s);
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
    shard_forget(&from);
}

// ---- which gradient is not finite

static bool rows_are_finite(const Shard* s, const Piece* p, int first, int rows, WideSum* squares) {
    WideSum sum;
    s->ops->zero(squares, sizeof *squares);
    s->ops->sum_row_squares(squares, mat_rows(mat(own_grads(s, p), p->own, p->cols, s->opt.grad_fmt), first, rows));
    s->ops->download(&sum, squares, sizeof sum);
    return isfinite(wide_value(sum));
}

BadGradient shard_bad_gradient(Shard* s) {
    s = trained_part(s);
    WideSum* squares = (WideSum*)s->ops->alloc(sizeof *squares);
    BadGradient bad = {-1, 0};
    for (int i = s->count - 1; i >= 0 && bad.tensors_before < 0; i--) {   // the order of the backward pass
        const Piece* p = &s->pieces[i];
        if (p->own == 0 || rows_are_finite(s, p, 0, p->own, squares)) continue;
        int first = 0, rows = p->own;
        while (rows > 1) {
            int half = rows / 2;
            if (rows_are_finite(s, p, first, half, squares)) first += half, rows -= half;
            else rows = half;
        }
        bad.tensors_before = s->count - 1 - i;
        bad.row = p->row0 + first;
    }
    s->ops->release(squares);
    return bad;
}

void shard_bad_gradient_name(const Shard* s, BadGradient bad, char name[kTensorNameBytes]) {
    if (s->adapter) s = s->adapter;
    const Piece* p = &s->pieces[s->count - 1 - bad.tensors_before];
    int end = 0;
    for (int i = 0; i < s->spec_count; i++) {
        if (s->specs[i].stack != p->stack) continue;
        end += p->norm ? p->rows : s->specs[i].rows;
        if (bad.row >= end) continue;
        param_name(&s->specs[i], p->unit - 1, name, kTensorNameBytes);
        return;
    }
    die("shard: row %d of a stack of %d", bad.row, end);
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

// Rows [row0, row0 + rows) of a piece as floats, from all the tensors that these rows belong to.
static void read_piece_rows(const Shard* s, const Piece* p, int row0, int rows, float* dst, ReadRows read, void* self) {
    int at = 0;
    for (int i = 0; i < s->spec_count; i++) {
        const ParamSpec* spec = &s->specs[i];
        if (spec->stack != p->stack) continue;
        int layer = spec->per_layer ? p->unit - 1 : 0;
        int spec_rows = p->norm ? p->rows : spec->rows;
        int from = max_int(row0, at), to = min_int(row0 + rows, at + spec_rows);
        if (from < to && p->norm) {
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

// How many rows of a piece are loaded at a time.
static int rows_at_once(const Piece* p) { return p->norm ? p->rows : kRowsAtOnce; }

static void load_piece(Shard* s, const Piece* p, ReadRows read, void* self) {
    int at_once = rows_at_once(p);
    float* buffer = (float*)host_alloc(sizeof(float) * (size_t)at_once * p->cols);
    uint16_t* half = (uint16_t*)host_alloc(sizeof(uint16_t) * (size_t)at_once * p->cols);
    bool narrows = s->ops->act == BF16;
    for (int done = 0; done < p->own; done += at_once) {
        int rows = min_int(at_once, p->own - done);
        size_t values = (size_t)rows * p->cols, offset = (size_t)done * p->cols;
        progress_phase("loading weights", p->unit == tail_of(s) ? -1 : p->unit - 1);
        progress_work("loading weights", p - s->pieces, s->count);
        read_piece_rows(s, p, p->row0 + done, rows, buffer, read, self);
        if (s->master) s->ops->upload(s->master + p->local + offset, buffer, values * sizeof(float));
        if (narrows) narrow(half, buffer, values);
        s->ops->upload(own_weights(s, p) + offset * act_bytes(s), narrows ? (void*)half : buffer, values * act_bytes(s));
    }
    free(buffer);
    free(half);
}

// One pass over this rank's rows of a frozen linear, for their maxima or, once every rank knows the maxima, for their codes. `block`
// holds kRowsAtOnce rows on the backend.
static void pass_rows(Shard* s, int piece, bool quantize, void* block, ReadRows read, void* self) {
    const Piece* p = &s->pieces[piece];
    float* buffer = (float*)host_alloc(sizeof(float) * (size_t)kRowsAtOnce * p->cols);
    uint16_t* half = (uint16_t*)host_alloc(sizeof(uint16_t) * (size_t)kRowsAtOnce * p->cols);
    bool narrows = s->ops->act == BF16;
    int done = 0;
    do {   // at least once: a rank without rows needs the scales too
        int rows = min_int(kRowsAtOnce, p->own - done);
        Mat x = mat(block, rows, p->cols, s->ops->act);
        progress_phase(quantize ? "quantizing weights" : "measuring weights", p->unit - 1);
        progress_work("loading weights", piece + quantize * s->count, 2 * s->count);
        if (rows) read_piece_rows(s, p, p->row0 + done, rows, buffer, read, self);
        if (narrows) narrow(half, buffer, (size_t)rows * p->cols);
        s->ops->upload(block, narrows ? (void*)half : buffer, mat_bytes(x));
        if (quantize) hqfsdp_quantize(s->codes, piece, done, x);
        else hqfsdp_absmax(s->codes, piece, done, x);
        done += rows;
    } while (done < p->own);
    free(buffer);
    free(half);
}

// The linears of a frozen model become codes as they are read, a block of rows at a time.
static void load_codes(Shard* s, ReadRows read, void* self) {
    int widest = max_int(s->c.C, max_int(s->c.F, s->c.NH * s->c.HD));
    void* block = s->ops->alloc((size_t)kRowsAtOnce * widest * act_bytes(s));
    hqfsdp_forget_maxima(s->codes);
    for (int quantize = 0; quantize < 2; quantize++) {
        for (int i = 0; i < s->count; i++)
            if (travels_as_codes(&s->pieces[i])) pass_rows(s, i, quantize, block, read, self);
        if (!quantize) hqfsdp_share_absmax(s->codes);
    }
    s->ops->release(block);
}

void shard_load(Shard* s, ReadRows read, void* self) {
    for (int i = 0; i < s->count; i++)
        if (!holds_codes(s) || !travels_as_codes(&s->pieces[i])) load_piece(s, &s->pieces[i], read, self);
    if (holds_codes(s)) load_codes(s, read, self);
    progress_work(NULL, 0, 0);
    shard_replace_weights(s);
}

void shard_load_adapter(Shard* s, ReadRows read, void* self) {
    check(s->adapter, "shard_load_adapter: the model has none");
    shard_load(s->adapter, read, self);
}

// The whole matrix of a piece on the backend. With zero 3 a layer's place may be too small, since it may hold no linears (codes): its
// matrices are gathered one by one, into the memory for gradients where there is any, so that a model that can be trained can be saved
// without more memory. A matrix is read in many calls and gathered by the first.
static const char* readable(Shard* s, const Piece* p) {
    if (stays_whole(s, p->unit)) {
        shard_start_gather(s, p->unit);
        shard_wait_for(s, &place_of(s, p->unit)->transfer);
        return whole_weights(s, p);
    }
    if (s->read_piece == p) return s->read_place;
    GatherPlace* grads = grad_place_of(s, p->unit);
    size_t bytes = (size_t)p->share * p->cols * act_bytes(s), whole = bytes * (size_t)s->comm->ranks;
    if (s->read_buffer) s->ops->release(s->read_buffer);
    bool fits = grads->data && whole <= unit_values(s, p->unit, false) * grad_bytes(s);
    s->read_buffer = fits ? NULL : (char*)s->ops->alloc(whole);
    s->read_place = fits ? grads->data : s->read_buffer;
    s->read_piece = p;
    shard_wait_for_gradients(s, grads);
    shard_wait_for_places(s);   // comm remembers only the latest transfers (comm/nccl.cu), and many follow
    s->comm->all_gather(s->read_place, own_weights(s, p), bytes);
    s->comm->wait(s->comm->start());
    return s->read_place;
}

void shard_read(Shard* s, int spec, int layer, int row0, int rows, void* dst) {
    int first_row;
    const Piece* p = find_piece(s, spec, layer, &first_row);
    check(!holds_codes(s) || !travels_as_codes(p), "shard_read: %s of a frozen model is there as codes alone", s->specs[spec].name);
    size_t row_bytes = (size_t)s->specs[spec].cols * act_bytes(s);
    s->ops->download(dst, readable(s, p) + (size_t)(first_row + row0) * row_bytes, (size_t)rows * row_bytes);
}

void shard_read_adapter(Shard* s, int spec, int layer, int row0, int rows, void* dst) {
    check(s->adapter, "shard_read_adapter: the model has none");
    shard_read(s->adapter, spec, layer, row0, rows, dst);
}
