// Quantization: codes = round(x / s), the same codes transposed, and the scales (numfmt.h).
#ifndef HALO_CPU_QUANTIZE_H
#define HALO_CPU_QUANTIZE_H

#include "../transpose.h"
#include "rotate.h"

enum { kQuantBlock = 32 };

// Called with a constant format (encode), so that the compiler makes one loop per format with the rounding inlined.
static inline void encode_as(uint8_t* codes, const float* x, const float* inverse, int n, Fmt fmt) {
    for (int first = 0; first < n; first += kQuantBlock) {   // one factor a block: the inner loop vectorises
        float factor = inverse[first / kQuantBlock];
        int end = min_int(first + kQuantBlock, n);
        for (int j = first; j < end; j++) codes[j] = code_from_f32(x[j] * factor, fmt);
    }
}
// inverse holds quant_inverse for each 32 columns.
static void encode(void* codes, const float* x, const float* inverse, int n, Fmt fmt) {
    switch (fmt) {
        case F32: case BF16: values_write(codes, x, (size_t)n, fmt); return;
        case INT8: encode_as((uint8_t*)codes, x, inverse, n, INT8); return;
        case FP8_E4M3: encode_as((uint8_t*)codes, x, inverse, n, FP8_E4M3); return;
        case FP8_E5M2: encode_as((uint8_t*)codes, x, inverse, n, FP8_E5M2); return;
        case FP6_E3M2: encode_as((uint8_t*)codes, x, inverse, n, FP6_E3M2); return;
        case FP6_E2M3: encode_as((uint8_t*)codes, x, inverse, n, FP6_E2M3); return;
        default: die("quantize: format %d", (int)fmt);
    }
}

typedef uint8_t CodeRow __attribute__((vector_size(kSquare)));
DEFINE_TRANSPOSE_SQUARE(transpose_codes_square, CodeRow)

// The band's columns of codes_t from its rows of codes.
static inline void transpose_band(Mat codes_t, const char* codes, int first, int rows, size_t code_bytes) {
    int cols = codes_t.rows, done = 0;
    for (; code_bytes == 1 && rows == kQuantBlock && done + kSquare <= cols; done += kSquare) {
        for (int half = 0; half < kQuantBlock; half += kSquare) {
            CodeRow square[kSquare];
            for (int i = 0; i < kSquare; i++) memcpy(&square[i], codes + (size_t)(half + i) * cols + done, kSquare);
            transpose_codes_square(square);
            for (int j = 0; j < kSquare; j++) memcpy((char*)row_data(codes_t, done + j) + first + half, &square[j], kSquare);
        }
    }
    for (int j = done; j < cols; j++) {
        char* to = (char*)row_data(codes_t, j) + (size_t)first * code_bytes;
        for (int i = 0; i < rows; i++) memcpy(to + i * code_bytes, codes + ((size_t)i * cols + j) * code_bytes, code_bytes);
    }
}

// A band is 32 rows, the height of a block of PER_BLOCK32; the band begins at row `first`.
static void quantize_band(QMat q, Mat x, int first, float tensor_inverse, Fmt fmt, float clip, WorkBuffer* work) {
    int rows = min_int(kQuantBlock, x.rows - first), cols = x.cols, blocks = ceil_div(cols, kQuantBlock);
    size_t code_bytes = fmt_bytes(fmt);
    size_t n = (size_t)kQuantBlock * cols;
    float *values = work_floats(work, n * 2 + (size_t)blocks), *inverse = values + n;   // and n codes behind
    char* codes = (char*)(inverse + blocks);
    for (int i = 0; i < rows; i++) values_read(values + (size_t)i * cols, row_data(x, first + i), (size_t)cols, x.fmt);

    for (int b = 0; b < blocks; b++) inverse[b] = tensor_inverse;
    if (q.gran == PER_BLOCK32) {
        float* scale = q.scale + (size_t)(first / kQuantBlock) * blocks;
        for (int b = 0; b < blocks; b++) {
            float largest = 0;
            for (int i = 0; i < rows; i++)
                largest = largest_magnitude(values + (size_t)i * cols + b * kQuantBlock,
                                            min_int(kQuantBlock, cols - b * kQuantBlock), largest);
            scale[b] = quant_scale(largest, fmt, clip);
            inverse[b] = quant_inverse(largest, fmt, clip);
        }
    }
    for (int i = 0; i < rows; i++) {
        const float* row = values + (size_t)i * cols;
        if (q.gran == PER_ROW) {
            float largest = largest_magnitude(row, cols, 0);
            q.scale[first + i] = quant_scale(largest, fmt, clip);
            for (int b = 0; b < blocks; b++) inverse[b] = quant_inverse(largest, fmt, clip);
        }
        char* to = codes + (size_t)i * cols * code_bytes;
        encode(to, row, inverse, cols, fmt);
        if (q.codes.data) memcpy(row_data(q.codes, first + i), to, (size_t)cols * code_bytes);
    }
    if (!q.codes_t.data) return;
    if (code_bytes == 1) transpose_band(q.codes_t, codes, first, rows, 1);
    else transpose_band(q.codes_t, codes, first, rows, code_bytes);
}

// Codes of x H, in bands of 32 rows.
static void feature_codes(QMat q, Mat x, float tensor_inverse, Fmt fmt, float clip) {
    static __thread WorkBuffer work, turned;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.rows; first += kQuantBlock) {
        int rows = min_int(kQuantBlock, x.rows - first);
        Mat band = mat(work_floats(&turned, (size_t)rows * x.cols), rows, x.cols, F32);
        rotated_band((float*)band.data, x, first, rows, false);
        quantize_band(qmat_rows(q, first, rows), band, 0, tensor_inverse, fmt, clip, &work);
    }
}

// Codes of H x, in strips of 64 columns.
static void token_codes(QMat q, Mat x, int block, float tensor_inverse, Fmt fmt, float clip) {
    int rows = qmat_row_count(q), n = max_int(rows, x.rows);
    static __thread WorkBuffer work, turned;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.cols; first += kRotateTogether) {
        int cols = min_int(kRotateTogether, x.cols - first);
        Mat strip = mat(work_floats(&turned, (size_t)n * cols), rows, cols, F32);
        rotated_strip((float*)strip.data, x, n, first, cols, false, block);
        QMat part = qmat_cols(q, first, cols);
        for (int row = 0; row < rows; row += kQuantBlock) quantize_band(part, strip, row, tensor_inverse, fmt, clip, &work);
    }
}

static void quantize(QMat q, Mat x, Rotation rotation, const float* absmax, Fmt fmt, float clip) {
    check_float(x, "quantize");
    check_qmat(q, x, rotation, fmt);
    float tensor_inverse = 1;
    if (q.gran == PER_TENSOR) {
        check(absmax, "quantize: per tensor, but no maximum is given");
        *q.scale = quant_scale(*absmax, fmt, clip);
        tensor_inverse = quant_inverse(*absmax, fmt, clip);
    }
    if (rotation.axis != ROTATE_NONE)
        check_rotation(rotation.axis, rotation.axis == ROTATE_COLS ? x.cols : max_int(qmat_row_count(q), x.rows), rotation.block);
    switch (rotation.axis) {
        case ROTATE_COLS: feature_codes(q, x, tensor_inverse, fmt, clip); return;
        case ROTATE_ROWS: token_codes(q, x, rotation.block, tensor_inverse, fmt, clip); return;
        case ROTATE_NONE: break;
    }
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.rows; first += kQuantBlock) quantize_band(q, x, first, tensor_inverse, fmt, clip, &work);
}

static void absmax_each(const Coded* matrices, int count, bool rotated) { absmax_each_by(absmax, rotate, matrices, count, rotated); }
static void quantize_each(const Coded* matrices, int count, bool rotated, Fmt fmt, float clip) {
    quantize_each_by(quantize, matrices, count, rotated, fmt, clip);
}

static void quantize_tokens(QMat q, Mat x, int block, float* absmax, Fmt fmt, float clip, const PlainCodes* plain, void* scratch) {
    Rotation rotation = {ROTATE_ROWS, block};
    (void)scratch;
    check_qmat(q, x, rotation, fmt);
    rotate(mat(NULL, qmat_row_count(q), x.cols, x.fmt), x, ROTATE_ROWS, false, block, absmax);
    quantize(q, x, rotation, absmax, fmt, clip);
    if (plain) quantize(plain->q, x, kRotateNone, plain->absmax, plain->fmt, plain->clip);
}
static void unrotate_tokens(Mat y, Mat x, int block, void* scratch) {
    (void)scratch;
    rotate(y, x, ROTATE_ROWS, true, block, NULL);
}
static size_t quantize_tokens_scratch(int rows, int cols, int block) {
    (void)rows, (void)cols, (void)block;
    return 0;
}

// Counts a block of values that have one scale.
static void count_block(CodeCounts* counts, const float* values, int rows, int cols, int ld, float inverse, CodeRange range) {
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            float value = values[(size_t)i * ld + j], scaled = fabsf(value * inverse);
            counts->nonzero += value != 0;
            counts->clipped += scaled > range.clipped;
            counts->underflow += value != 0 && scaled <= range.zero;
        }
    }
}

static void count_codes(CodeCounts* counts, Mat x, const float* absmax, Opnd how) {
    check_float(x, "count_codes");
    check(fmt_bytes(how.fmt) == 1 && (how.gran != PER_TENSOR || absmax), "count_codes: %s, granularity %d", fmt_name(how.fmt), (int)how.gran);
    bool own_maxima = how.gran == PER_ROW || how.gran == PER_BLOCK32;
    int block_rows = how.gran == PER_BLOCK32 ? kQuantBlock : 1, block_cols = how.gran == PER_BLOCK32 ? kQuantBlock : x.cols;
    float inverse = how.gran == PER_TENSOR ? quant_inverse(*absmax, how.fmt, how.clip) : 1;
    CodeRange range = code_range(how.fmt);
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(static)
    for (int first = 0; first < x.rows; first += block_rows) {
        int rows = min_int(block_rows, x.rows - first);
        float* values = work_floats(&work, (size_t)rows * x.cols);
        for (int i = 0; i < rows; i++) values_read(values + (size_t)i * x.cols, row_data(x, first + i), (size_t)x.cols, x.fmt);
        CodeCounts mine = {0, 0, 0};
        for (int col = 0; col < x.cols; col += block_cols) {
            int cols = min_int(block_cols, x.cols - col);
            float largest = 0, factor = inverse;
            for (int i = 0; own_maxima && i < rows; i++) largest = largest_magnitude(values + (size_t)i * x.cols + col, cols, largest);
            if (own_maxima) factor = quant_inverse(largest, how.fmt, how.clip);
            count_block(&mine, values + col, rows, cols, x.cols, factor, range);
        }
#pragma omp critical(count_codes)
        counts->nonzero += mine.nonzero, counts->clipped += mine.clipped, counts->underflow += mine.underflow;
    }
}

#endif
