// The profile; see profile.h.
#include "profile.h"

static const Ops* inner;
static const Comm* inner_comm;

// ---- notes
typedef struct {
    char name[32];
    double bytes, flops;
    int calls;
    bool codes;   // multiplies 8-bit codes
    double ms, floor_ms;
} Family;
typedef struct {
    int family, from, to;   // marks
    double bytes, flops, ms;
} Note;

enum { kMaxFamilies = 48 };
static Family families[kMaxFamilies];
static int family_count;
static Note* notes;
static int note_count, note_room;
static bool noting;

static int family_named(const char* name, bool codes) {
    for (int i = 0; i < family_count; i++)
        if (!strcmp(families[i].name, name)) return i;
    check(family_count < kMaxFamilies, "profile: more than %d families", kMaxFamilies);
    Family* f = &families[family_count];
    memset(f, 0, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    f->codes = codes;
    return family_count++;
}

static int begin(void) { return noting ? inner->mark() : -1; }
static void end_as(const char* name, bool codes, int from, double bytes, double flops) {
    if (!noting) return;
    if (note_count == note_room) {
        note_room = max_int(4096, 2 * note_room);
        notes = (Note*)host_grow(notes, sizeof(Note) * (size_t)note_room);
    }
    Note n = {family_named(name, codes), from, inner->mark(), bytes, flops, 0};
    notes[note_count++] = n;
}
static void end(const char* name, int from, double bytes) { end_as(name, false, from, bytes, 0); }

void profile_begin(void) {
    inner->forget_marks();
    note_count = family_count = 0;
    noting = true;
}

// Reads all times at once, since marks that are made later may reuse the places of these.
void profile_end(void) {
    noting = false;
    for (int i = 0; i < note_count; i++) notes[i].ms = inner->marked_ms(notes[i].from, notes[i].to);
}

// ---- what a call moves, in bytes. A matrix counts with its values, not with gaps between its rows.
static double size_of(Mat m) { return m.data ? (double)m.rows * m.cols * (double)fmt_bytes(m.fmt) : 0; }

static void copy(void* dst, const void* src, size_t bytes) {
    int from = begin();
    inner->copy(dst, src, bytes);
    end("copy", from, 2.0 * (double)bytes);
}
static void zero(void* dst, size_t bytes) {
    int from = begin();
    inner->zero(dst, bytes);
    end("zero", from, (double)bytes);
}
static void embed_forward(Mat y, Mat w, const int* tokens) {
    int from = begin();
    inner->embed_forward(y, w, tokens);
    end("embed forward", from, 2 * size_of(y));
}
static void embed_backward(Mat dw, Mat dy, const int* tokens, const int* order) {
    int from = begin();
    inner->embed_backward(dw, dy, tokens, order);
    end("embed backward", from, size_of(dy) + 2.0 * dy.rows * dy.cols * (double)fmt_bytes(dw.fmt));   // at most: a row a token
}
static void rmsnorm_forward(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, Prep prep) {
    int from = begin();
    inner->rmsnorm_forward(y, rstd, res, x, delta, w, eps, prep);
    end(prep.rotate ? "rmsnorm forward, rotated" : "rmsnorm forward", from, size_of(x) + size_of(y) + (delta.data ? 2 * size_of(x) : 0));
}
static void rmsnorm_backward(Mat dres, Mat dw, Mat dy, Mat res, Mat w, const float* rstd, void* scratch, float* absmax) {
    int from = begin();
    inner->rmsnorm_backward(dres, dw, dy, res, w, rstd, scratch, absmax);
    end("rmsnorm backward", from, 2 * size_of(dres) + size_of(dy) + size_of(res));
}
static void rope(Mat qkv, const float* cos_sin, const int* pos, int NH, int NKV, int HD, bool inverse, float* absmax) {
    int from = begin();
    inner->rope(qkv, cos_sin, pos, NH, NKV, HD, inverse, absmax);
    end("rope", from, (2.0 * (NH + NKV) + (absmax ? NKV : 0)) * qkv.rows * HD * (double)fmt_bytes(qkv.fmt));
}
// FLOPs of one of attention's products over causal sequences; documents and padding lower the true number.
static double attention_flops(Attn s) { return (double)s.B * s.NH * s.T * s.T * s.HD; }
static void attention_forward(Mat y, float* lse, Mat qkv, Attn shape, float* absmax) {
    int from = begin();
    inner->attention_forward(y, lse, qkv, shape, absmax);
    end_as("attention forward", false, from, size_of(qkv) + size_of(y), 2 * attention_flops(shape));
}
static void attention_backward(Mat dqkv, Mat dy, Mat y, Mat qkv, const float* lse, Attn shape, void* scratch) {
    int from = begin();
    inner->attention_backward(dqkv, dy, y, qkv, lse, shape, scratch);
    end_as("attention backward", false, from, size_of(qkv) + size_of(dqkv) + size_of(y) + size_of(dy), 5 * attention_flops(shape));
}
// An upper bound, all of the cache: only the backend knows how much of the cache is read.
static void attention_cached(Mat y, Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD) {
    int from = begin();
    inner->attention_cached(y, cache, qkv, slot, pos, positions, NH, NKV, HD);
    end("attention cached", from, size_of(qkv) + size_of(y) + size_of(cache));
}
static void attention_append(Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD) {
    int from = begin();
    inner->attention_append(cache, qkv, slot, pos, positions, NH, NKV, HD);
    end("attention append", from, 2 * size_of(mat_cols(qkv, 0, 2 * NKV * HD)));
}
static void swiglu_forward(Mat y, Mat gate_up, Prep prep) {
    int from = begin();
    inner->swiglu_forward(y, gate_up, prep);
    end(prep.rotate ? "swiglu forward, rotated" : "swiglu forward", from, size_of(y) + size_of(gate_up));
}
static void swiglu_backward(Mat dgate_up, Mat dy, Mat gate_up, float* absmax) {
    int from = begin();
    inner->swiglu_backward(dgate_up, dy, gate_up, absmax);
    end("swiglu backward", from, size_of(dgate_up) + size_of(dy) + size_of(gate_up));
}
static void cross_entropy(float* loss, Mat logits, const int* labels, const float* scale) {
    int from = begin();
    inner->cross_entropy(loss, logits, labels, scale);
    end("cross entropy", from, (scale ? 2 : 1) * size_of(logits));
}
static void argmax(int* best, Mat logits) {
    int from = begin();
    inner->argmax(best, logits);
    end("argmax", from, size_of(logits));
}
static void gemm(Mat c, Side a, Side b, float beta) {
    int from = begin();
    inner->gemm(c, a, b, beta);
    char name[32];
    bool codes = fmt_bytes(a.m.fmt) == 1 && fmt_bytes(b.m.fmt) == 1;
    snprintf(name, sizeof name, "gemm %s%s", fmt_name(a.m.fmt), a.gran == PER_BLOCK32 ? " blocks" : beta != 0 ? " +=" : "");
    double K = a.transposed ? a.m.rows : a.m.cols;
    end_as(name, codes, from, size_of(a.m) + size_of(b.m) + (beta != 0 ? 2 : 1) * size_of(c), 2 * K * c.rows * c.cols);
}
static void gemm_narrow(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts) {
    int from = begin();
    inner->gemm_narrow(xp, factor, xtq, beta, x, p, q, parts);
    double values = (double)x.rows * p.rows;   // of the parts
    double bytes = values * fmt_bytes(x.fmt) + size_of(p) + size_of(q) + size_of(xp) + (beta != 0 ? 2 : 1) * size_of(xtq);
    end_as("gemm narrow", false, from, bytes, 4 * values * p.cols);
}
static void rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax) {
    int from = begin();
    inner->rotate(y, x, axis, transpose, block, absmax);
    static const char* const names[2][2] = {{"absmax, rotated features", "absmax, rotated tokens"}, {"rotate features", "rotate tokens"}};
    end(names[y.data != NULL][axis == ROTATE_ROWS], from, size_of(x) + size_of(y));
}
static void absmax(float* max, Mat x) {
    int from = begin();
    inner->absmax(max, x);
    end("absmax", from, size_of(x));
}
static void quantize(QMat q, Mat x, Rotation rotation, const float* max, Fmt fmt, float clip) {
    int from = begin();
    inner->quantize(q, x, rotation, max, fmt, clip);
    static const char* const names[] = {"quantize", "quantize, rotated features", "quantize, rotated tokens"};
    end(names[rotation.axis], from, size_of(x) + size_of(q.codes) + size_of(q.codes_t));
}
static void absmax_each(const Coded* m, int count, bool rotated) {
    int from = begin();
    inner->absmax_each(m, count, rotated);
    double bytes = 0;
    for (int i = 0; i < count; i++) bytes += size_of(m[i].x);
    end(rotated ? "absmax, rotated features" : "absmax", from, bytes);
}
static void quantize_each(const Coded* m, int count, bool rotated, Fmt fmt, float clip) {
    int from = begin();
    inner->quantize_each(m, count, rotated, fmt, clip);
    double bytes = 0;
    for (int i = 0; i < count; i++) bytes += size_of(m[i].x) + size_of(m[i].q.codes) + size_of(m[i].q.codes_t);
    end(rotated ? "quantize, rotated features" : "quantize", from, bytes);
}
static void quantize_tokens(QMat q, Mat x, int block, float* max, Fmt fmt, float clip, const PlainCodes* plain, void* scratch) {
    int from = begin();
    inner->quantize_tokens(q, x, block, max, fmt, clip, plain, scratch);
    double beside = plain ? size_of(plain->q.codes) + size_of(plain->q.codes_t) : 0;
    end("max, codes, rotated tokens", from, 2 * size_of(x) + size_of(q.codes) + size_of(q.codes_t) + beside);
}
static void unrotate_tokens(Mat y, Mat x, int block, void* scratch) {
    int from = begin();
    inner->unrotate_tokens(y, x, block, scratch);
    end("rotate tokens", from, size_of(x) + size_of(y));
}
static void add(Mat y, Mat x, const Noise* noise) {
    int from = begin();
    inner->add(y, x, noise);
    end("add", from, 2 * size_of(y) + size_of(x));
}
static void convert(Mat y, Mat x) {
    int from = begin();
    inner->convert(y, x);
    end("convert", from, size_of(y) + size_of(x));
}
static void sum_squares(float* total, Mat x) {
    int from = begin();
    inner->sum_squares(total, x);
    end("sum of squares", from, size_of(x));
}
static void sum_row_squares(WideSum* total, Mat x) {
    int from = begin();
    inner->sum_row_squares(total, x);
    end("sum of squares", from, size_of(x));
}
static void clip_scale(float* scale, const WideSum* sum_of_squares, float max_norm) {
    int from = begin();
    inner->clip_scale(scale, sum_of_squares, max_norm);
    end("clip scale", from, 2.0 * sizeof(float));
}
static void count_codes(CodeCounts* counts, Mat x, const float* absmax, Opnd how) {
    int from = begin();
    inner->count_codes(counts, x, absmax, how);
    end("count codes", from, size_of(x));
}
static void adamw(const AdamW* a, int count) {
    int from = begin();
    inner->adamw(a, count);
    double values = 0, value = 2.0 * (double)fmt_bytes(inner->act) + (double)fmt_bytes(a->grad_fmt) + 4.0 * (double)fmt_bytes(a->state_fmt);
    if (a->master) value += 2 * sizeof(float) - (double)fmt_bytes(inner->act);   // the layers' copy is only written
    for (int i = 0; i < count; i++) values += (double)a[i].n;
    end("adamw", from, value * values);
}
static void transpose_codes(Mat y, Mat x) {
    int from = begin();
    inner->transpose_codes(y, x);
    end("transpose codes", from, size_of(y) + size_of(x));
}
static void pack_fp6(uint8_t* packed, Mat codes) {
    int from = begin();
    inner->pack_fp6(packed, codes);
    end("pack fp6", from, 1.75 * size_of(codes));
}
static void unpack_fp6(Mat codes, const uint8_t* packed) {
    int from = begin();
    inner->unpack_fp6(codes, packed);
    end("unpack fp6", from, 1.75 * size_of(codes));
}
static void dropout(Mat y, Mat x, float p, const Noise* noise) {
    int from = begin();
    inner->dropout(y, x, p, noise);
    end("dropout", from, size_of(x) + size_of(y));
}
static void hadamard(Mat y, Mat x, Mat w, float factor, float offset) {
    int from = begin();
    inner->hadamard(y, x, w, factor, offset);
    end("hadamard", from, size_of(x) + size_of(y) + size_of(w));
}

const Ops* profile_ops(const Ops* ops) {
    static Ops table;
    inner = ops;
    table = *ops;
    table.copy = copy;
    table.zero = zero;
    table.embed_forward = embed_forward;
    table.embed_backward = embed_backward;
    table.rmsnorm_forward = rmsnorm_forward;
    table.rmsnorm_backward = rmsnorm_backward;
    table.rope = rope;
    table.attention_forward = attention_forward;
    table.attention_backward = attention_backward;
    table.attention_cached = attention_cached;
    if (ops->attention_append) table.attention_append = attention_append;
    table.swiglu_forward = swiglu_forward;
    table.swiglu_backward = swiglu_backward;
    table.cross_entropy = cross_entropy;
    table.argmax = argmax;
    table.gemm = gemm;
    table.gemm_narrow = gemm_narrow;
    table.rotate = rotate;
    table.absmax = absmax;
    table.quantize = quantize;
    table.absmax_each = absmax_each;
    table.quantize_each = quantize_each;
    table.quantize_tokens = quantize_tokens;
    table.unrotate_tokens = unrotate_tokens;
    table.add = add;
    table.convert = convert;
    table.sum_squares = sum_squares;
    table.sum_row_squares = sum_row_squares;
    table.clip_scale = clip_scale;
    table.count_codes = count_codes;
    table.adamw = adamw;
    table.transpose_codes = transpose_codes;
    table.pack_fp6 = pack_fp6;
    table.unpack_fp6 = unpack_fp6;
    table.dropout = dropout;
    table.hadamard = hadamard;
    return &table;
}

static const char kWaiting[] = "waiting for ranks";
static void wait_for_transfer(Transfer transfer) {
    int from = begin();
    inner_comm->wait(transfer);
    end(kWaiting, from, 0);
}

const Comm* profile_comm(const Comm* comm, const Ops* ops) {
    static Comm table;
    inner = ops;
    inner_comm = comm;
    table = *comm;
    table.wait = wait_for_transfer;
    return &table;
}

double profile_waited_ms(void) {
    double ms = 0;
    for (int i = 0; i < note_count; i++)
        if (!strcmp(families[notes[i].family].name, kWaiting)) ms += notes[i].ms;
    return ms;
}

void profile_calls(VisitCall visit, void* self) {
    for (int i = 0; i < note_count; i++) visit(self, families[notes[i].family].name, notes[i].bytes, notes[i].flops);
}

// ---- the table
static int by_time(const void* a, const void* b) {
    double x = ((const Family*)a)->ms, y = ((const Family*)b)->ms;
    return (x < y) - (x > y);
}

void profile_print(Ceilings ceilings, int steps, double step_ms) {
    for (int i = 0; i < note_count; i++) {
        const Note* n = &notes[i];
        Family* f = &families[n->family];
        double tflops = f->codes && ceilings.coded_tflops > 0 ? ceilings.coded_tflops : ceilings.plain_tflops;
        double move_ms = n->bytes / ceilings.copy_gbs * 1e-6, multiply_ms = n->flops / tflops * 1e-9;
        f->ms += n->ms;
        f->floor_ms += move_ms > multiply_ms ? move_ms : multiply_ms;
        f->bytes += n->bytes;
        f->flops += n->flops;
        f->calls++;
    }
    qsort(families, (size_t)family_count, sizeof(Family), by_time);
    printf("profile of a step   (floors: copy %.0f GB/s, plain products %.1f TFLOP/s, products of codes %.1f)\n", ceilings.copy_gbs,
           ceilings.plain_tflops, ceilings.coded_tflops);
    printf("  %-26s %7s %10s %7s %9s %9s %9s\n", "family", "calls", "ms", "share", "GB/s", "TFLOP/s", "of floor");
    double busy = 0, floor_ms = 0;
    for (int i = 0; i < family_count; i++) {
        const Family* f = &families[i];
        double ms = f->ms / steps;
        busy += ms;
        floor_ms += f->floor_ms / steps;
        printf("  %-26s %7d %10.3f %6.1f%% %9.0f %9.1f %8.0f%%\n", f->name, f->calls / steps, ms, 100 * ms / step_ms,
               f->bytes / f->ms * 1e-6, f->flops / f->ms * 1e-9, 100 * f->floor_ms / f->ms);
    }
    printf("  %-26s %7s %10.3f %6.1f%% %9s %9s %8.0f%%\n", "all", "", busy, 100 * busy / step_ms, "", "", 100 * floor_ms / busy);
    printf("  idle %.3f ms, %.1f%% of a step of %.3f ms\n", step_ms - busy, 100 * (step_ms - busy) / step_ms, step_ms);
}
