// Low-precision gathering; see hqfsdp.h.
#include "hqfsdp.h"

// Where one stack of whichever layer was gathered last lies.
typedef struct {
    uint8_t *codes, *packed, *codes_t;   // (share * ranks, ld), the same packed, and each matrix's (K, N) one after the other
} Place;

struct HqFsdp {
    const Config* config;
    const Ops* ops;
    const Comm* comm;
    const Piece* pieces;
    int count;
    Fmt fmt;
    const Linear* linear;    // that made the codes
    uint8_t** codes;         // (count): this rank's share of each piece, (share, ld); what goes over the wire
    float *maxima, *scales;  // (count, kMaxParts)
    Place place[kStacks];
    void* memory;
};

bool hqfsdp_takes(const Piece* p) {
    return p->stack == S_QKV || p->stack == S_O || p->stack == S_GATE_UP || p->stack == S_DOWN;
}

static bool packs(Fmt fmt) { return fmt == FP6_E3M2 || fmt == FP6_E2M3; }
static size_t code_bytes(int rows, int cols) { return (size_t)rows * linear_code_ld(cols); }
static size_t wire_bytes(Fmt fmt, size_t codes) { return packs(fmt) ? codes / 4 * 3 : codes; }

static void place_all(HqFsdp* h, Arena* arena) {
    const Comm* comm = h->comm;
    h->maxima = (float*)arena_take(arena, sizeof(float) * (size_t)h->count * kMaxParts);
    h->scales = (float*)arena_take(arena, sizeof(float) * (size_t)h->count * kMaxParts);
    memset(h->place, 0, sizeof h->place);
    bool placed[kStacks] = {false};
    for (int i = 0; i < h->count; i++) {
        const Piece* p = &h->pieces[i];
        if (!hqfsdp_takes(p)) continue;
        size_t share = code_bytes(p->share, p->cols);
        uint8_t* own = (uint8_t*)arena_take(arena, wire_bytes(h->fmt, share));
        if (h->codes) h->codes[i] = own;
        if (placed[p->stack]) continue;
        placed[p->stack] = true;
        Place* place = &h->place[p->stack];
        LinearShape shape = stack_shape(h->config, p->stack);
        size_t transposed = 0;
        for (int part = 0; part < shape.parts; part++) transposed += round_up(code_bytes(shape.K, shape.N[part]), kArenaAlign);
        place->codes = (uint8_t*)arena_take(arena, share * (size_t)comm->ranks);
        if (packs(h->fmt)) place->packed = (uint8_t*)arena_take(arena, wire_bytes(h->fmt, share) * (size_t)comm->ranks);
        place->codes_t = (uint8_t*)arena_take(arena, transposed);
    }
}

static HqFsdp description(const Config* config, const Ops* ops, const Comm* comm, const Piece* pieces, int count, Fmt fmt) {
    HqFsdp h;
    memset(&h, 0, sizeof h);
    h.config = config;
    h.ops = ops;
    h.comm = comm;
    h.pieces = pieces;
    h.count = count;
    h.fmt = fmt;
    return h;
}

size_t hqfsdp_bytes(const Config* config, const Comm* comm, const Piece* pieces, int count, Fmt fmt) {
    if (fmt_bytes(fmt) != 1) return 0;
    HqFsdp h = description(config, NULL, comm, pieces, count, fmt);
    Arena measure = {NULL, 0};
    place_all(&h, &measure);
    return measure.used;
}

HqFsdp* hqfsdp_new(const Config* config, const Ops* ops, const Comm* comm, const Piece* pieces, int count, Fmt fmt) {
    HqFsdp* h = (HqFsdp*)host_alloc(sizeof(HqFsdp));
    *h = description(config, ops, comm, pieces, count, fmt);
    h->codes = (uint8_t**)host_alloc(sizeof(uint8_t*) * (size_t)count);
    h->memory = ops->alloc(hqfsdp_bytes(config, comm, pieces, count, fmt));
    Arena arena = {(char*)h->memory, 0};
    place_all(h, &arena);
    return h;
}

void hqfsdp_free(HqFsdp* h) {
    h->ops->release(h->memory);
    free(h->codes);
    free(h);
}

// This rank's rows of one matrix of the stack: `rows` of own_rows from `first` on; none if it owns none of that matrix.
typedef struct {
    int first, rows;
} OwnPart;

static OwnPart own_part(const Piece* p, LinearShape shape, int part) {
    int start = 0;
    for (int i = 0; i < part; i++) start += shape.N[i];
    int from = max_int(start, p->row0), to = min_int(start + shape.N[part], p->row0 + p->own);
    OwnPart own = {from - p->row0, max_int(to - from, 0)};
    return own;
}

void hqfsdp_absmax(HqFsdp* h, const Linear* linear, int piece, Mat own_rows) {
    const Piece* p = &h->pieces[piece];
    LinearShape shape = stack_shape(h->config, p->stack);
    h->linear = linear;
    for (int part = 0; part < shape.parts; part++) {
        float* absmax = h->maxima + (size_t)piece * kMaxParts + part;
        OwnPart own = own_part(p, shape, part);
        h->ops->zero(absmax, sizeof(float));
        if (own.rows) linear_rows_absmax(linear, absmax, mat_rows(own_rows, own.first, own.rows));
    }
}

void hqfsdp_share_absmax(HqFsdp* h) { h->comm->all_reduce_max(h->maxima, h->count * kMaxParts); }

void hqfsdp_quantize(HqFsdp* h, const Linear* linear, int piece, Mat own_rows) {
    const Piece* p = &h->pieces[piece];
    LinearShape shape = stack_shape(h->config, p->stack);
    size_t row_bytes = (size_t)linear_code_ld(p->cols);
    // Packed codes are quantized in the gathering place, which holds nothing now, and packed from there.
    uint8_t* codes = packs(h->fmt) ? h->place[p->stack].codes : h->codes[piece];
    for (int part = 0; part < shape.parts; part++) {
        OwnPart own = own_part(p, shape, part);
        size_t at = (size_t)piece * kMaxParts + part;
        // Every rank needs every scale, also of a matrix it owns no row of.
        linear_rows_codes(linear, codes + (size_t)own.first * row_bytes * (own.rows > 0), h->scales + at,
                          mat_rows(own_rows, own.rows ? own.first : 0, own.rows), h->maxima + at);
    }
    Mat share = {codes, p->share, p->cols, linear_code_ld(p->cols), h->fmt};
    if (packs(h->fmt)) h->ops->pack_fp6(h->codes[piece], share);
}

WeightOperand hqfsdp_gather(HqFsdp* h, int piece, bool gather) {
    const Piece* p = &h->pieces[piece];
    const Place* place = &h->place[p->stack];
    LinearShape shape = stack_shape(h->config, p->stack);
    size_t share = code_bytes(p->share, p->cols);
    if (gather) {
        h->comm->all_gather(packs(h->fmt) ? place->packed : place->codes, h->codes[piece], wire_bytes(h->fmt, share));
        Mat whole = {place->codes, p->share * h->comm->ranks, p->cols, linear_code_ld(p->cols), h->fmt};
        if (packs(h->fmt)) h->ops->unpack_fp6(whole, place->packed);
    }
    WeightOperand operand;
    memset(&operand, 0, sizeof operand);
    uint8_t *codes = place->codes, *codes_t = place->codes_t;
    for (int part = 0; part < shape.parts; part++) {
        int N = shape.N[part], K = shape.K;
        QMat q = linear_code_operand(h->linear, codes, codes_t, h->scales + (size_t)piece * kMaxParts + part, N, K);
        if (gather) h->ops->transpose_codes(q.codes_t, q.codes);
        operand.f[part] = operand.e[part] = q;
        codes += code_bytes(N, K);
        codes_t += round_up(code_bytes(K, N), kArenaAlign);
    }
    return operand;
}
