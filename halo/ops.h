// THE SEAM between the model and a backend: a run-time table of layers, products and quantizers. cpu_f32_ops, cpu_bf16_ops
// and cuda_ops fill it; a test holds two of them in one process and compares them.
//
// Letters: B sequences of T tokens (BT = B*T rows), C model width, V vocabulary, NH query heads and NKV key/value heads of HD
// each, F the MLP's width; M, N, K in products. All work of a backend runs in call order; nothing but `download` and `sync`
// waits for it.
//
// Words: a stack is the matrices of a layer that lie below each other as one (q, k and v; gate and up). A unit is what is gathered and
// updated at a time: the embedding, a layer, or the tail (final norm and head). A piece is one stack of one unit, and a share the rows of a
// piece that one rank owns (shard.h). A place is memory that one thing at a time uses: a gathered unit, an octet in shared memory.
// Kernels cut a matrix into items, strips, bands, chunks and units of their own: cuda/rotate/rotate.cuh says which.
#ifndef HALO_OPS_H
#define HALO_OPS_H

#include "wide_sum.h"

typedef enum { PER_TENSOR, PER_ROW, PER_BLOCK32, NO_SCALE } Gran;

// A row-major matrix; element (i, j) is data[i * ld + j]. `ld` lets a matrix be a range of another's columns.
typedef struct {
    void* data;
    int rows, cols, ld;
    Fmt fmt;
} Mat;

static inline Mat mat(void* data, int rows, int cols, Fmt fmt) {
    Mat m = {data, rows, cols, cols, fmt};
    return m;
}
static inline size_t mat_bytes(Mat m) { return (size_t)m.rows * m.ld * fmt_bytes(m.fmt); }
static inline Mat mat_rows(Mat m, int first, int rows) {
    if (m.data) m.data = (char*)m.data + (size_t)first * m.ld * fmt_bytes(m.fmt);
    m.rows = rows;
    return m;
}
static inline Mat mat_cols(Mat m, int first, int cols) {
    if (m.data) m.data = (char*)m.data + (size_t)first * fmt_bytes(m.fmt);
    m.cols = cols;
    return m;
}

// How ONE operand of ONE product is prepared. `rotate` is along the features for X and W (from the right) and along the
// tokens for dY (from the left); see linear.h.
typedef struct {
    Fmt fmt;
    Gran gran;
    bool rotate;
    float clip;   // s = clip * absmax / max(fmt)
} Opnd;

// The number of scales of a (rows, cols) operand.
static inline int scale_count(int rows, int cols, Gran gran) {
    switch (gran) {
        case PER_TENSOR: return 1;
        case PER_ROW: return rows;
        case PER_BLOCK32: return ceil_div(rows, 32) * ceil_div(cols, 32);
        case NO_SCALE: return 0;
    }
    die("scale_count: granularity %d", (int)gran);
}

// How a matrix turns on its way to codes: not at all, x H (features), or H x (tokens). block: 0, H spans the axis; else H of that
// many tokens along the diagonal.
typedef enum { ROTATE_NONE, ROTATE_COLS, ROTATE_ROWS } RotateAxis;
typedef struct {
    RotateAxis axis;
    int block;   // only for ROTATE_ROWS
} Rotation;
static const Rotation kRotateNone = {ROTATE_NONE, 0};

// Scales of FP8 codes start at multiples of 16 bytes, this many floats apart: a GPU's fast products read no others (cuBLASLt).
enum { kScalePlace = 4 };

// An operand in the form a product reads: element (i, j) has the value code(i, j) * scale.
typedef struct {
    Mat codes;      // (rows, cols)
    Mat codes_t;    // (cols, rows): the same codes for a product that contracts the rows; data NULL if there is none
    float* scale;   // scale_count(rows, cols, gran): one | rows | (ceil(rows/32), ceil(cols/32)); not read for NO_SCALE
    Gran gran;
} QMat;

// The rows of the operand; and some of the rows or columns of one that has at most one scale.
static inline int qmat_row_count(QMat q) { return q.codes.data ? q.codes.rows : q.codes_t.cols; }
static inline QMat qmat_rows(QMat q, int first, int rows) {
    q.codes = mat_rows(q.codes, first, rows);
    q.codes_t = mat_cols(q.codes_t, first, rows);
    return q;
}
static inline QMat qmat_cols(QMat q, int first, int cols) {
    q.codes = mat_cols(q.codes, first, cols);
    q.codes_t = mat_rows(q.codes_t, first, cols);
    return q;
}

// A matrix, the largest magnitude of its values or of their rotation along the features, and its codes with one scale.
typedef struct {
    Mat x;
    float* absmax;
    QMat q;
} Coded;
enum { kCodedAtOnce = 8 };

// What every backend asks of the arguments of quantize.
static inline void check_qmat(QMat q, Mat x, Rotation rotation, Fmt fmt) {
    int rows = rotation.axis == ROTATE_ROWS ? qmat_row_count(q) : x.rows;
    check(!q.codes.data || (q.codes.rows == rows && q.codes.cols == x.cols && q.codes.fmt == fmt),
          "quantize: (%d, %d) to (%d, %d) in %s", rows, x.cols, q.codes.rows, q.codes.cols, fmt_name(fmt));
    check(!q.codes_t.data || (q.codes_t.rows == x.cols && q.codes_t.cols == rows && q.codes_t.fmt == fmt),
          "quantize: the transpose of (%d, %d) to (%d, %d) in %s", rows, x.cols, q.codes_t.rows, q.codes_t.cols, fmt_name(fmt));
    check(q.gran == NO_SCALE || (fmt_bytes(fmt) == 1 && q.scale), "quantize: scales for %s", fmt_name(fmt));
    check(rotation.axis == ROTATE_NONE || q.gran == PER_TENSOR, "quantize: a rotated matrix takes one scale");
}

// Each matrix by itself: how a backend without a faster way fills absmax_each and quantize_each.
static inline void absmax_each_by(void (*absmax)(float* absmax, Mat x),
                                  void (*rotate)(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax), const Coded* m,
                                  int count, bool rotated) {
    for (int i = 0; i < count; i++) {
        Mat x = m[i].x;
        if (rotated) rotate(mat(NULL, x.rows, x.cols, x.fmt), x, ROTATE_COLS, false, 0, m[i].absmax);   // only its maximum is wanted
        else absmax(m[i].absmax, x);
    }
}
static inline void quantize_each_by(void (*quantize)(QMat q, Mat x, Rotation rotation, const float* absmax, Fmt fmt, float clip),
                                    const Coded* m, int count, bool rotated, Fmt fmt, float clip) {
    Rotation rotation = {rotated ? ROTATE_COLS : ROTATE_NONE, 0};
    for (int i = 0; i < count; i++) quantize(m[i].q, m[i].x, rotation, m[i].absmax, fmt, clip);
}

// The longest K of a product of INT8 codes, whose sums are 32-bit integers: K * 128 * 128 < 2^31.
enum { kInt8Longest = 131071 };

// What quantize is asked for beside quantize_tokens: codes of the same matrix as it is, whose maximum is known.
typedef struct {
    QMat q;
    const float* absmax;
    Fmt fmt;
    float clip;
} PlainCodes;

// One side of a product: m is (rows, K), or (K, rows) when `transposed`, which only F32 and BF16 allow.
typedef struct {
    Mat m;
    const float* scale;
    Gran gran;               // PER_ROW: one scale a row of the product
    bool transposed;
    bool scale_transposed;   // PER_BLOCK32: the grid of scales is that of m's transpose (m is a codes_t)
    float factor;            // NO_SCALE: of every value, known to the host; else 1
} Side;

static inline Side multiplied_side(Mat m, bool transposed, float factor) {
    Side s = {m, NULL, NO_SCALE, transposed, false, factor};
    return s;
}
static inline Side plain_side(Mat m, bool transposed) { return multiplied_side(m, transposed, 1); }

// Matrices side by side in a wider one: matrix i is its columns [column[i], column[i] + N[i]).
typedef struct {
    int count;
    const int *column, *N;
} SideBySide;

static inline void gemm_narrow_by(void (*gemm)(Mat c, Side a, Side b, float beta), Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q,
                                  SideBySide parts) {
    int W = p.cols;
    for (int i = 0, row = 0; i < parts.count; row += parts.N[i++]) {
        Mat part = mat_cols(x, parts.column[i], parts.N[i]);
        gemm(mat_rows(xtq, row, parts.N[i]), plain_side(part, true), plain_side(mat_cols(q, i * W, W), true), beta);
        gemm(mat_cols(xp, i * W, W), plain_side(part, false), multiplied_side(mat_rows(p, row, parts.N[i]), true, factor), 0);
    }
}
// The operand itself, and its transpose, as a side of a product.
static inline Side side_codes(QMat q) {
    Side s = {q.codes, q.scale, q.gran, false, false, 1};
    return s;
}
static inline Side side_codes_t(QMat q) {
    Side s = {q.codes_t, q.scale, q.gran, false, true, 1};
    return s;
}

// What quantization does to the values of an operand, as numbers of values.
typedef struct {
    uint64_t nonzero;     // all others below are among these
    uint64_t clipped;     // more than half a step beyond the largest code
    uint64_t underflow;   // their code is 0
} CodeCounts;

// The maximum that the consumer of a producer's output y needs, so that a backend can find it while writing y: `absmax` is NULL or
// one float, zeroed by the caller, that is raised to the largest |y|, or with `rotate` to the largest |y H| (features), of y as it was
// stored. y itself is never rotated. The result is defined by the separate ops one after the other: the producer, then rotate or absmax.
typedef struct {
    bool rotate;
    float* absmax;
} Prep;
static const Prep kPrepNone = {false, NULL};

// Which tokens see which: token i of a sequence attends to j in [start[i], i], and is attended to by [i, end[i]).
// One plain sequence has start = 0 and end = T; packed documents and padding only change the two arrays.
typedef struct {
    int B, T, NH, NKV, HD;
    const int* start;   // (B, T), positions within the row; on the backend
    const int* end;     // (B, T)
} Attn;

// The random stream of stochastic rounding or dropout for a matrix, row-major: value i has noise_of_value(seed, offset + i, use, stream)
// (rng.h). shift: NULL, or on the backend: what `add` and `dropout` add to the stream, and to the offset as rows of the matrix. A call that
// is recorded once and repeated (record_begin) finds its new noise there; other ops take no shift.
typedef struct {
    uint64_t stream, rows;
} NoiseShift;
typedef struct {
    uint64_t seed, stream, offset;
    const NoiseShift* shift;
} Noise;
static const Noise kNoNoise = {0, 0, 0, NULL};
NUMFMT Noise noise_shifted(Noise noise, int cols) {
    if (noise.shift) {
        noise.stream += noise.shift->stream;
        noise.offset += noise.shift->rows * (uint64_t)cols;
    }
    return noise;
}

// One AdamW update of `n` neighbouring values (Loshchilov & Hutter 2019, decoupled weight decay), in FP32:
//   g = grad * grad_scale;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = w - lr * ((m / (1-b1^t)) / (sqrt(v / (1-b2^t)) + eps) + wd * w)
typedef struct {
    void* param;              // (n) in `act`: what the layers read
    float* master;            // (n), or NULL: then `param` itself is the weight, rounded stochastically if it is BF16
    const void* grad;         // (n) in grad_fmt
    void *m, *v;              // (n) in state_fmt
    size_t n;
    Fmt grad_fmt, state_fmt;
    const float* grad_scale;  // one float on the backend: gradient clipping; 0: the gradient is not finite, change nothing; NULL: 1
    float lr, beta1, beta2, eps, weight_decay;
    int step;                 // t, from 1
    Noise noise;              // of param, m and v where they are rounded stochastically
    float* square_sums;       // NULL, or kSquareSums floats whose sum grows by the sum of squares of grad, in a fixed order; takes no grad_scale
} AdamW;
enum { kSquareSums = 16384, kRowSums = 256, kUpdatesAtOnce = 32 };

// What every backend asks of the arguments of adamw.
static inline void check_adamw_args(const AdamW* a, int count) {
    check(count >= 1 && count <= kUpdatesAtOnce, "adamw: %d updates", count);
    check((a->grad_fmt == F32 || a->grad_fmt == BF16) && (a->state_fmt == F32 || a->state_fmt == BF16) && a->step >= 1,
          "adamw: gradient in %s, state in %s, step %d", fmt_name(a->grad_fmt), fmt_name(a->state_fmt), a->step);
    check(!a->square_sums || !a->grad_scale, "adamw: the sum of squares of a gradient that is scaled");
    for (int i = 1; i < count; i++)
        check(!a[i].master == !a->master && a[i].grad_fmt == a->grad_fmt && a[i].state_fmt == a->state_fmt && a[i].step == a->step &&
              a[i].square_sums == a->square_sums, "adamw: update %d of %d differs from the first in more than its values", i, count);
}

typedef struct Ops {
    const char* name;
    Fmt act;                  // format of activations and of the weights that layers read: F32 or BF16

    // ---- memory: zeroed, 256-byte aligned
    void* (*alloc)(size_t bytes);
    void (*release)(void* p);
    void (*upload)(void* dst, const void* host_src, size_t bytes);
    void (*download)(void* host_dst, const void* src, size_t bytes);   // waits
    void (*copy)(void* dst, const void* src, size_t bytes);
    void (*zero)(void* dst, size_t bytes);
    void (*sync)(void);
    size_t (*free_bytes)(void);       // what `alloc` could still give, once the backend has taken its workspace
    size_t (*total_bytes)(void);      // of the device, or the host
    size_t (*workspace_bytes)(void);  // what the backend allocates for itself when it starts and holds to the end; its ops allocate nothing
    // ---- time. A mark is reached when all work before it is done; the milliseconds between two marks wait for the later one.
    // `forget_marks` lets all marks be used anew.
    int (*mark)(void);
    float (*marked_ms)(int from, int to);
    void (*forget_marks)(void);

    // ---- work that is done often on the same memory. The ops between record_begin and record_end are not carried out but kept; `replay` does
    // them, at the cost of one. They are ops on the backend's memory alone (none that allocates, waits, or reads or writes the host's), and
    // have been called with these shapes before. NULL: not worth it on this backend.
    void (*record_begin)(void);
    void* (*record_end)(void);
    void (*replay)(void* record);
    void (*record_free)(void* record);   // waits until it is done

    // ---- the number of rows, at least `rows`, to which a batch should be padded where batches differ in size. A GPU's products are planned,
    // and large ones timed, once per shape, so that few different shapes are better. Never falls as `rows` grows. NULL: any number is as good.
    int (*round_rows)(int rows);

    // ---- embedding. `order` (BT) holds the token positions sorted by token id, equal ids by position: it makes the sum's
    // order, and so its rounding, independent of how the work is cut. dw += .
    void (*embed_forward)(Mat y, Mat w, const int* tokens);                            // (BT,C) <- (V,C)
    void (*embed_backward)(Mat dw, Mat dy, const int* tokens, const int* order);       // (V,C) <- (BT,C)

    // ---- residual add + RMSNorm (Zhang & Sennrich 2019): res = x + delta (delta.data may be NULL: res is x, nothing is
    // written); y = w * res * rstd, rstd = (mean(res^2) + eps)^-1/2
    void (*rmsnorm_forward)(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, Prep prep);   // (BT,C), rstd (BT)
    // dres += d loss / d res through y;  dw (1,C) += , data NULL: not wanted. scratch: rmsnorm_scratch bytes, for dw. absmax: NULL,
    // or raised to the largest |dres|
    void (*rmsnorm_backward)(Mat dres, Mat dw, Mat dy, Mat res, Mat w, const float* rstd, void* scratch, float* absmax);
    size_t (*rmsnorm_scratch)(int BT, int C);

    // ---- rotary embedding, rotate-half layout, in place on the q and k columns of qkv (BT, (NH + 2 NKV) HD).
    // cos_sin (positions, HD): HD/2 cosines, then HD/2 sines. The backward pass is the inverse rotation. absmax: NULL, or three floats
    // raised to the largest magnitudes of the q, k and v columns
    void (*rope)(Mat qkv, const float* cos_sin, const int* pos, int NH, int NKV, int HD, bool inverse, float* absmax);

    // ---- attention: y (BT, NH HD), lse (B, NH, T): log-sum-exp of the scaled scores
    // *absmax (unless NULL) is raised to the largest |y|
    void (*attention_forward)(Mat y, float* lse, Mat qkv, Attn shape, float* absmax);
    void (*attention_backward)(Mat dqkv, Mat dy, Mat y, Mat qkv, const float* lse, Attn shape, void* scratch);
    size_t (*attention_scratch)(Attn shape);
    // Generation: new rows of several sequences. Row i of qkv (rows, (NH + 2 NKV) HD), rope done, belongs to sequence slot[i] (of the
    // cache's) and stands at position pos[i] there; its k and v go to row slot[i] * positions + pos[i] of cache (slots * positions,
    // 2 NKV HD), and it attends to positions 0..pos[i] of its slot. All rows' k and v are written before any row attends. slot and pos:
    // (rows) ints on the backend. Rows of one sequence come with rising positions. y (rows, NH HD): a row's bits do not depend on
    // which other rows come with it.
    void (*attention_cached)(Mat y, Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD);
    // The first half of attention_cached alone: k and v of the rows to the cache, for rows that attend only to each other and therefore go
    // through attention_forward. NULL: this backend's attention_cached is as fast.
    void (*attention_append)(Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD);

    // ---- SwiGLU (Shazeer 2020): y = silu(gate) * up, both halves side by side in gate_up (BT, 2F); y (BT, F)
    void (*swiglu_forward)(Mat y, Mat gate_up, Prep prep);
    // dgate_up may be gate_up. absmax: NULL, or two floats raised to the largest |dgate| and |dup|
    void (*swiglu_backward)(Mat dgate_up, Mat dy, Mat gate_up, float* absmax);

    // ---- cross entropy of rows of logits (rows, V) against labels (rows; -100: not counted): loss (rows) = -log p, and
    // logits <- *scale * d loss / d logits in place; scale is on the backend, NULL: no gradient is wanted
    void (*cross_entropy)(float* loss, Mat logits, const int* labels, const float* scale);
    // best (rows) = the column of the largest logit of each row of logits (rows, V) in F32: the lowest of equals; NaN is never the largest
    void (*argmax)(int* best, Mat logits);

    // ---- the one product: c (M,N) = a (M,K) b (N,K)^T + beta * c, c in F32 or BF16; beta 0 does not read c.
    // Rounding: the sum over K is rounded to FP32 once (INT8 codes are summed exactly), then (sum * a's scale) * b's scale
    // (+ beta * c) follow in FP32, then the rounding to c's format; a side without a scale has its factor there. With PER_BLOCK32 each
    // 32-long partial sum is first multiplied by the two block scales.
    void (*gemm)(Mat c, Side a, Side b, float beta);
    // Two narrow products of each of x's parts, matrices side by side in x (M,), by one pass over them where the backend can:
    // xp_i (M,W) = factor * x_i p_i and xtq_i (N_i,W) = x_i^T q_i + beta * xtq_i. xp_i and q_i are columns [i W, (i + 1) W) of xp and q (M, count W);
    // p_i and xtq_i lie one above the other in p and xtq. All but xtq in `act`. By definition `gemm` twice for each part (gemm_narrow_by), but
    // for the order of the sums.
    void (*gemm_narrow)(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts);

    // ---- preparing operands. rotate: y = x H | H x (or with H^T), FP32 inside; y may be x, and for ROTATE_ROWS y or x may have more
    // rows than the other: missing rows count as zero, surplus ones are dropped. block: 0 = the whole axis, else that many tokens.
    // *absmax (unless NULL) is raised to the largest magnitude written; with y.data NULL nothing is written, and the FP32 values count.
    void (*rotate)(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax);
    void (*absmax)(float* absmax, Mat x);                          // raises *absmax
    // codes and/or transposed codes (a NULL data is not wanted) and scales of x. PER_TENSOR reads *absmax; the others find their own
    // maxima. NO_SCALE casts. A rotated x takes PER_TENSOR; its FP32 values after the rotation are what is quantized; for ROTATE_ROWS q
    // and x may differ in rows as above. Un-rotated codes are the same on every backend to the bit; rotated ones may differ where a value
    // lies within 2^-14 of the maximum of a tie.
    void (*quantize)(QMat q, Mat x, Rotation rotation, const float* absmax, Fmt fmt, float clip);
    // The two steps that give 1 to kCodedAtOnce matrices their codes, one scale each, at the cost of few calls: absmax_each raises each
    // *absmax to the largest |x|, or |x H| along the features if `rotated`; quantize_each reads it. By definition absmax, or rotate, and
    // quantize matrix by matrix.
    void (*absmax_each)(const Coded* matrices, int count, bool rotated);
    void (*quantize_each)(const Coded* matrices, int count, bool rotated, Fmt fmt, float clip);
    // Codes of H x along the tokens when its maximum is not yet known: raises *absmax to the largest |H x|, as rotate with y.data NULL does,
    // and then is quantize. plain: NULL, or codes of x itself, the bits that quantize gives, from the same pass over x where the backend can.
    // scratch: quantize_tokens_scratch bytes; `rows` are those of x or q, whichever has more.
    void (*quantize_tokens)(QMat q, Mat x, int block, float* absmax, Fmt fmt, float clip, const PlainCodes* plain, void* scratch);
    // y = H^T x along the tokens, as rotate, with scratch of the same size.
    void (*unrotate_tokens)(Mat y, Mat x, int block, void* scratch);
    size_t (*quantize_tokens_scratch)(int rows, int cols, int block);   // for either

    // Adds to *counts what quantizing x as `how` says does to its values. x is rotated already if `how` rotates. absmax as in quantize.
    void (*count_codes)(CodeCounts* counts, Mat x, const float* absmax, Opnd how);

    // ---- sums and the optimizer
    void (*add)(Mat y, Mat x, const Noise* noise);                  // y += x; a BF16 y is rounded stochastically unless noise is NULL
    void (*convert)(Mat y, Mat x);                                  // between F32 and BF16
    void (*sum_squares)(float* total, Mat x);                       // *total += sum of squares, in a fixed order
    // *total += each row's sum of squares. A row's sum is an FP32 whose bits are the row's alone, on every backend: value c of the row is added
    // to sum c % kRowSums of kRowSums, which halve: within each octet (4, 2, 1), then the octets (16, 8, ... 1).
    void (*sum_row_squares)(WideSum* total, Mat x);
    // min(1, max_norm / norm); 1 if max_norm is 0; 0 if the norm is not finite
    void (*clip_scale)(float* scale, const WideSum* sum_of_squares, float max_norm);
    // `count` updates, 1 to kUpdatesAtOnce, at the cost of one: they differ in their arrays, n, weight_decay and noise.offset alone.
    void (*adamw)(const AdamW* updates, int count);

    // ---- codes on the wire (HQ-FSDP)
    void (*transpose_codes)(Mat y, Mat x);             // y (cols, rows) = x^T, one byte a code
    void (*pack_fp6)(uint8_t* packed, Mat codes);      // every four FP6 codes of (rows, ld) in three bytes; ld is a multiple of 4
    void (*unpack_fp6)(Mat codes, const uint8_t* packed);

    // ---- adapters. y = x with each value dropped to 0 with probability p, the others divided by 1 - p; y may be x, rows are
    // without gaps. Value i, row-major, is dropped if its noise (noise_of_value of kDropNoise, index noise->offset + i) is below
    // dropout_threshold(p) (rng.h).
    void (*dropout)(Mat y, Mat x, float p, const Noise* noise);
    // y = w (.) (offset + factor * x), value by value; x in F32, y and w in `act`; all (rows, cols) without gaps
    void (*hadamard)(Mat y, Mat x, Mat w, float factor, float offset);
} Ops;

C_API const Ops cpu_f32_ops, cpu_bf16_ops;
#ifdef HALO_CUDA
C_API const Ops cuda_ops;
C_API int cuda_device_count(void);   // GPUs that cuda_ops can use; 0 without a driver
#endif

#endif
