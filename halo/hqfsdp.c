// Low-precision gathering; see hqfsdp.h.
#include "hqfsdp.h"

// The codes of one linear's stack, for the layers that are gathered.
typedef struct {
    uint8_t** arrived;   // (ring): codes as they came over the wire, (share * ranks, ld), FP6 packed
    uint8_t* unpacked;   // (share * ranks, ld); NULL if codes arrive as they are
    uint8_t* codes_t;    // each matrix's (K, N) one after the other
} CodePlace;

struct HqFsdp {
    const Config* config;
    const Linear* linear;    // makes the codes
    const Ops* ops;
    const Comm* comm;
    const Piece* pieces;
    int ranks, count, ring;
    Fmt fmt;
    uint8_t** codes;         // (count): this rank's share of each piece, (share, ld); what goes over the wire
    float* maxima;           // (count, kMaxParts)
    float* scales;           // (count, kMaxParts, kScalePlace): the first of each counts
    CodePlace place[kLinearCount];
    void* memory;
};

static bool packs(Fmt fmt) { return fmt == FP6_E3M2 || fmt == FP6_E2M3; }
static size_t code_bytes(int rows, int cols) { return (size_t)rows * linear_code_ld(cols); }
static size_t wire_bytes(Fmt fmt, size_t codes) { return packs(fmt) ? codes / 4 * 3 : codes; }

static void place_all(HqFsdp* h, Arena* arena) {
    h->maxima = (float*)arena_take(arena, sizeof(float) * (size_t)h->count * kMaxParts);
    h->scales = (float*)arena_take(arena, sizeof(float) * (size_t)h->count * kMaxParts * kScalePlace);
    bool placed[kLinearCount] = {false};
    for (int i = 0; i < h->count; i++) {
        const Piece* p = &h->pieces[i];
        if (!travels_as_codes(p)) continue;
        size_t share = code_bytes(p->share, p->cols);
        h->codes[i] = (uint8_t*)arena_take(arena, wire_bytes(h->fmt, share));
        int linear = linear_of_stack(p->stack);
        if (placed[linear]) continue;
        placed[linear] = true;
        CodePlace* place = &h->place[linear];
        LinearShape shape = stack_shape(h->config, p->stack);
        size_t transposed = 0;
        for (int part = 0; part < shape.parts; part++) transposed += round_up(code_bytes(shape.K, shape.N[part]), kArenaAlign);
        for (int slot = 0; h->ranks > 1 && slot < h->ring; slot++)
            place->arrived[slot] = (uint8_t*)arena_take(arena, wire_bytes(h->fmt, share) * (size_t)h->ranks);
        if (packs(h->fmt)) place->unpacked = (uint8_t*)arena_take(arena, share * (size_t)h->ranks);
        place->codes_t = (uint8_t*)arena_take(arena, transposed);
    }
}

static HqFsdp* describe(const Config* config, const Linear* linear, const Comm* comm, int ranks, const Piece* pieces, int count, int ring) {
    HqFsdp* h = (HqFsdp*)host_alloc(sizeof(HqFsdp));
    h->config = config;
    h->linear = linear;
    h->ops = linear->ops;
    h->comm = comm;
    h->ranks = ranks;
    h->pieces = pieces;
    h->count = count;
    h->ring = ring;
    h->fmt = linear_code_fmt(linear);
    h->codes = (uint8_t**)host_alloc(sizeof(uint8_t*) * (size_t)count);
    for (int k = 0; k < kLinearCount; k++) h->place[k].arrived = (uint8_t**)host_alloc(sizeof(uint8_t*) * (size_t)ring);
    return h;
}
static void forget(HqFsdp* h) {
    for (int k = 0; k < kLinearCount; k++) free(h->place[k].arrived);
    free(h->codes);
    free(h);
}

size_t hqfsdp_bytes(const Config* config, const Linear* linear, int ranks, const Piece* pieces, int count, int ring) {
    HqFsdp* h = describe(config, linear, NULL, ranks, pieces, count, ring);
    Arena measure = {NULL, 0};
    place_all(h, &measure);
    forget(h);
    return measure.used;
}

size_t hqfsdp_own_bytes(const Linear* linear, const Piece* pieces, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        if (travels_as_codes(&pieces[i])) bytes += wire_bytes(linear_code_fmt(linear), code_bytes(pieces[i].share, pieces[i].cols));
    return bytes;
}

HqFsdp* hqfsdp_new(const Config* config, const Linear* linear, const Comm* comm, int ranks, const Piece* pieces, int count, int ring) {
    HqFsdp* h = describe(config, linear, comm, ranks, pieces, count, ring);
    size_t bytes = hqfsdp_bytes(config, linear, ranks, pieces, count, ring);
    h->memory = ranks > 1 ? comm_alloc(comm, h->ops, bytes) : h->ops->alloc(bytes);
    Arena arena = {(char*)h->memory, 0};
    place_all(h, &arena);
    return h;
}

void hqfsdp_free(HqFsdp* h) {
    comm_release(h->comm, h->ops, h->memory);
    forget(h);
}

static float* maximum_of(const HqFsdp* h, int piece, int part) { return h->maxima + (size_t)piece * kMaxParts + part; }
static float* scale_of(const HqFsdp* h, int piece, int part) { return h->scales + ((size_t)piece * kMaxParts + part) * kScalePlace; }

// Among some rows of a stack, those that belong to one of its matrices: `rows` rows from `first` on; rows 0: none.
typedef struct {
    int first, rows;
} OwnPart;

static OwnPart own_part(int row0, int row_count, LinearShape shape, int part) {
    int start = 0;
    for (int i = 0; i < part; i++) start += shape.N[i];
    int from = max_int(start, row0), to = min_int(start + shape.N[part], row0 + row_count);
    OwnPart own = {from - row0, max_int(to - from, 0)};
    return own;
}

void hqfsdp_forget_maxima(HqFsdp* h) { h->ops->zero(h->maxima, sizeof(float) * (size_t)h->count * kMaxParts); }

void hqfsdp_absmax(HqFsdp* h, int piece, int first, Mat rows) {
    const Piece* p = &h->pieces[piece];
    LinearShape shape = stack_shape(h->config, p->stack);
    for (int part = 0; part < shape.parts; part++) {
        OwnPart own = own_part(p->row0 + first, rows.rows, shape, part);
        if (own.rows) linear_rows_absmax(h->linear, maximum_of(h, piece, part), mat_rows(rows, own.first, own.rows));
    }
}

void hqfsdp_share_absmax(HqFsdp* h) {
    if (h->ranks == 1) return;
    h->comm->all_reduce_max(h->maxima, h->count * kMaxParts);
    h->comm->wait(h->comm->start());
}

void hqfsdp_quantize(HqFsdp* h, int piece, int first, Mat rows) {
    const Piece* p = &h->pieces[piece];
    LinearShape shape = stack_shape(h->config, p->stack);
    size_t row_bytes = (size_t)linear_code_ld(p->cols);
    // FP6: the byte codes are written to the buffer that gathered codes are unpacked to later, and packed from there.
    uint8_t* codes = packs(h->fmt) ? h->place[linear_of_stack(p->stack)].unpacked : h->codes[piece];
    for (int part = 0; part < shape.parts; part++) {
        OwnPart own = own_part(p->row0 + first, rows.rows, shape, part);
        // Called also without rows: every rank needs every matrix's scale.
        linear_rows_codes(h->linear, codes + (size_t)(first + own.first) * row_bytes * (own.rows > 0), scale_of(h, piece, part),
                          mat_rows(rows, own.rows ? own.first : 0, own.rows), maximum_of(h, piece, part));
    }
    Mat share = {codes, p->share, p->cols, linear_code_ld(p->cols), h->fmt};
    if (packs(h->fmt) && first + rows.rows == p->own) h->ops->pack_fp6(h->codes[piece], share);
}

void hqfsdp_gather(HqFsdp* h, int piece, int slot) {
    const Piece* p = &h->pieces[piece];
    h->comm->all_gather(h->place[linear_of_stack(p->stack)].arrived[slot], h->codes[piece], wire_bytes(h->fmt, code_bytes(p->share, p->cols)));
}

WeightOperand hqfsdp_operand(HqFsdp* h, int piece, int slot, Pass pass) {
    const Piece* p = &h->pieces[piece];
    const CodePlace* place = &h->place[linear_of_stack(p->stack)];
    LinearShape shape = stack_shape(h->config, p->stack);
    uint8_t *codes = h->ranks > 1 ? place->arrived[slot] : h->codes[piece], *codes_t = pass == BACKWARD ? place->codes_t : NULL;
    if (packs(h->fmt)) {
        Mat whole = {place->unpacked, p->share * h->ranks, p->cols, linear_code_ld(p->cols), h->fmt};
        h->ops->unpack_fp6(whole, codes);
        codes = place->unpacked;
    }
    WeightOperand operand;
    memset(&operand, 0, sizeof operand);
    for (int part = 0; part < shape.parts; part++) {
        int N = shape.N[part], K = shape.K;
        QMat q = linear_code_operand(h->linear, codes, codes_t, scale_of(h, piece, part), N, K);
        if (codes_t) {
            h->ops->transpose_codes(q.codes_t, q.codes);
            codes_t += round_up(code_bytes(K, N), kArenaAlign);
        }
        operand.f[part] = operand.e[part] = q;
        codes += code_bytes(N, K);
    }
    return operand;
}
