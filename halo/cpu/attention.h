// Exact causal attention as small products, block of queries by block of queries (scale = 1/sqrt(HD)):
//   S = scale Q K^T      P = softmax(S) over [start, i]      Y = P V
//   dV = P^T dY      dP = dY V^T      dS = P (dP - D), D = rowsum(dY Y)      dQ = scale dS K      dK = scale dS^T Q
// The backward pass recomputes P from the stored log-sum-exp. Everything between qkv and y stays in FP32.
#ifndef HALO_CPU_ATTENTION_H
#define HALO_CPU_ATTENTION_H

#include "gemm.h"
#include "rotate.h"

enum { kQueryBlock = 64 };

typedef struct {
    Mat q, k, v;   // one head: (queries, HD), (keys, HD), (keys, HD)
} Head;

// Head h of one sequence's rows of qkv.
static Head head_of(Mat qkv, int h, int NH, int NKV, int HD) {
    int kv = h / (NH / NKV);
    Head head = {mat_cols(qkv, h * HD, HD), mat_cols(qkv, (NH + kv) * HD, HD), mat_cols(qkv, (NH + NKV + kv) * HD, HD)};
    return head;
}

// The queries [first, first + rows) and the keys that any of them sees, [from, to). Query i's position among the keys is
// past + i. `start` (ops.h, Attn) is indexed by position.
typedef struct {
    int first, rows, from, to, past;
    const int* start;   // NULL: 0 for all
} QueryBlock;

static QueryBlock query_block(int first, int queries, int past, const int* start) {
    QueryBlock b = {first, min_int(kQueryBlock, queries - first), past + first, 0, past, start};
    b.to = past + first + b.rows;
    for (int i = 0; i < b.rows; i++) {
        int position = past + first + i, its_start = start ? start[position] : 0;
        check(its_start >= 0 && its_start <= position, "attention: token %d starts at %d", position, its_start);
        b.from = min_int(b.from, its_start);
    }
    return b;
}

// scores (rows, to - from) = Q K^T, not scaled yet
static Mat block_scores(float* memory, Head head, QueryBlock b) {
    Mat scores = mat(memory, b.rows, b.to - b.from, F32);
    cpu_gemm(scores, plain_side(mat_rows(head.q, b.first, b.rows), false),
             plain_side(mat_rows(head.k, b.from, b.to - b.from), false), 0);
    return scores;
}

// The range of columns of a block's row i that its query sees.
static void seen_keys(QueryBlock b, int i, int* first, int* count) {
    int position = b.past + b.first + i;
    *first = (b.start ? b.start[position] : 0) - b.from;
    *count = position + 1 - b.from - *first;
}

// row <- e^(scale * row - shift) over the seen keys and 0 elsewhere
static void exponentials(float* row, int cols, int first, int count, float scale, float shift) {
    for (int j = 0; j < first; j++) row[j] = 0;
    for (int j = first; j < first + count; j++) row[j] = exp_f32(scale * row[j] - shift);
    for (int j = first + count; j < cols; j++) row[j] = 0;
}

static void attention_block_forward(Mat y, float* lse, Head head, QueryBlock b) {
    static __thread WorkBuffer work;
    float scale = (float)(1.0 / sqrt((double)head.q.cols));
    Mat p = block_scores(work_floats(&work, (size_t)b.rows * (b.to - b.from)), head, b);
    for (int i = 0; i < b.rows; i++) {
        float* row = (float*)row_data(p, i);
        int first, count;
        seen_keys(b, i, &first, &count);
        float largest = scale * largest_value(row + first, count);
        exponentials(row, p.cols, first, count, scale, largest);
        double total = sum(row + first, count);
        if (lse) lse[b.first + i] = (float)(largest + log(total));
        float inverse = (float)(1.0 / total);
        for (int j = first; j < first + count; j++) row[j] *= inverse;
    }
    cpu_gemm(mat_rows(y, b.first, b.rows), plain_side(p, false),
             plain_side(mat_rows(head.v, b.from, b.to - b.from), true), 0);
}

static void attention_forward(Mat y, float* lse, Mat qkv, Attn shape, float* total) {
    int B = shape.B, T = shape.T, NH = shape.NH, NKV = shape.NKV, HD = shape.HD, blocks = ceil_div(T, kQueryBlock);
    check_shape(qkv, B * T, (NH + 2 * NKV) * HD, "attention_forward");
    check_shape(y, B * T, NH * HD, "attention_forward");
    check(NH % NKV == 0, "attention_forward: %d query heads, %d key heads", NH, NKV);
#pragma omp parallel for schedule(dynamic) collapse(3)
    for (int b = 0; b < B; b++) {
        for (int h = 0; h < NH; h++) {
            for (int n = 0; n < blocks; n++) {
                Head head = head_of(mat_rows(qkv, b * T, T), h, NH, NKV, HD);
                attention_block_forward(mat_cols(mat_rows(y, b * T, T), h * HD, HD), lse + ((size_t)b * NH + h) * T, head,
                                        query_block(n * kQueryBlock, T, 0, shape.start + (size_t)b * T));
            }
        }
    }
    if (total) absmax(total, y);
}

// dk and dv are FP32 sums over the query heads of one key head.
static void attention_block_backward(Mat dq, Mat dk, Mat dv, Mat dy, Mat y, const float* lse, Head head, QueryBlock b) {
    static __thread WorkBuffer work;
    int HD = head.q.cols, keys = b.to - b.from;
    float scale = (float)(1.0 / sqrt((double)HD));
    size_t scores = (size_t)b.rows * keys;
    float *memory = work_floats(&work, scores * 2 + (size_t)HD * 2), *buffer = memory + scores * 2;
    Mat p = block_scores(memory, head, b), ds = mat(memory + scores, b.rows, keys, F32);
    Mat q = mat_rows(head.q, b.first, b.rows), k = mat_rows(head.k, b.from, keys), v = mat_rows(head.v, b.from, keys);
    dy = mat_rows(dy, b.first, b.rows);
    y = mat_rows(y, b.first, b.rows);
    cpu_gemm(ds, plain_side(dy, false), plain_side(v, false), 0);   // dP
    for (int i = 0; i < b.rows; i++) {
        float *p_row = (float*)row_data(p, i), *ds_row = (float*)row_data(ds, i);
        int first, count;
        seen_keys(b, i, &first, &count);
        exponentials(p_row, keys, first, count, scale, lse[b.first + i]);
        float D = (float)dot(row_read(dy, i, buffer), row_read(y, i, buffer + HD), HD);
        for (int j = 0; j < keys; j++) ds_row[j] = scale * p_row[j] * (ds_row[j] - D);
    }
    cpu_gemm(mat_rows(dv, b.from, keys), plain_side(p, true), plain_side(dy, true), 1);
    cpu_gemm(mat_rows(dk, b.from, keys), plain_side(ds, true), plain_side(q, true), 1);
    cpu_gemm(mat_rows(dq, b.first, b.rows), plain_side(ds, false), plain_side(k, true), 0);
}

// No scratch from the caller: each thread keeps work memory of its own.
static size_t attention_scratch(Attn shape) {
    (void)shape;
    return 0;
}

static void attention_backward(Mat dqkv, Mat dy, Mat y, Mat qkv, const float* lse, Attn shape, void* scratch) {
    (void)scratch;
    int B = shape.B, T = shape.T, NH = shape.NH, NKV = shape.NKV, HD = shape.HD, group = NH / NKV;
    check_shape(qkv, B * T, (NH + 2 * NKV) * HD, "attention_backward");
    check_shape(dqkv, B * T, qkv.cols, "attention_backward");
    check_shape(y, B * T, NH * HD, "attention_backward");
    check_shape(dy, B * T, NH * HD, "attention_backward");
    static __thread WorkBuffer work;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int b = 0; b < B; b++) {
        for (int kv = 0; kv < NKV; kv++) {
            float* sums = work_floats(&work, (size_t)T * HD * 2);
            memset(sums, 0, (size_t)T * HD * 2 * sizeof(float));
            Mat dk = mat(sums, T, HD, F32), dv = mat(sums + (size_t)T * HD, T, HD, F32);
            Mat sequence = mat_rows(qkv, b * T, T), dsequence = mat_rows(dqkv, b * T, T);
            for (int h = kv * group; h < (kv + 1) * group; h++) {
                Mat columns_of_y = mat_cols(mat_rows(y, b * T, T), h * HD, HD);
                Mat columns_of_dy = mat_cols(mat_rows(dy, b * T, T), h * HD, HD);
                for (int first = 0; first < T; first += kQueryBlock)
                    attention_block_backward(mat_cols(dsequence, h * HD, HD), dk, dv, columns_of_dy, columns_of_y,
                                             lse + ((size_t)b * NH + h) * T, head_of(sequence, h, NH, NKV, HD),
                                             query_block(first, T, 0, shape.start + (size_t)b * T));
            }
            Head grad = head_of(dsequence, kv * group, NH, NKV, HD);
            for (int t = 0; t < T; t++) {
                row_write(grad.k, t, (const float*)row_data(dk, t));
                row_write(grad.v, t, (const float*)row_data(dv, t));
            }
        }
    }
}

// How many rows from `first` on, at most kQueryBlock, belong to one sequence at neighbouring positions: they are one QueryBlock. A row has
// the same bits in any block: keys after the row's own position have weight zero, and cpu_gemm's order over K is fixed.
static int cached_run(const int* slot, const int* pos, int first, int rows) {
    int n = 1;
    while (n < kQueryBlock && first + n < rows && slot[first + n] == slot[first] && pos[first + n] == pos[first] + n) n++;
    return n;
}

static void attention_cached(Mat y, Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD) {
    int rows = qkv.rows, kv_cols = NKV * HD, slots = cache.rows / positions;
    check_shape(qkv, rows, (NH + 2 * NKV) * HD, "attention_cached");
    check_shape(cache, slots * positions, 2 * kv_cols, "attention_cached");
    check_shape(y, rows, NH * HD, "attention_cached");
    check(NH % NKV == 0 && cache.fmt == qkv.fmt, "attention_cached: %d query heads, %d key heads, a cache in %s", NH, NKV, fmt_name(cache.fmt));
    Mat new_kv = mat_cols(qkv, NH * HD, 2 * kv_cols);
    size_t row_bytes = (size_t)2 * kv_cols * fmt_bytes(qkv.fmt);
    int *first_row = (int*)host_alloc((size_t)rows * sizeof(int)), blocks = 0;
    for (int i = 0; i < rows; i++) {
        check(slot[i] >= 0 && slot[i] < slots && pos[i] >= 0 && pos[i] < positions, "attention_cached: row %d is position %d of slot %d in a cache "
              "of %d slots of %d positions", i, pos[i], slot[i], slots, positions);
        memcpy(row_data(cache, slot[i] * positions + pos[i]), row_data(new_kv, i), row_bytes);
    }
    for (int i = 0; i < rows; i += cached_run(slot, pos, i, rows)) first_row[blocks++] = i;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (int n = 0; n < blocks; n++) {
        for (int h = 0; h < NH; h++) {
            int i = first_row[n], run = cached_run(slot, pos, i, rows), column = h / (NH / NKV) * HD;
            Mat kv = mat_rows(cache, slot[i] * positions, pos[i] + run);
            Head head = {mat_cols(mat_rows(qkv, i, run), h * HD, HD), mat_cols(kv, column, HD), mat_cols(kv, kv_cols + column, HD)};
            attention_block_forward(mat_cols(mat_rows(y, i, run), h * HD, HD), NULL, head, query_block(0, run, pos[i], NULL));
        }
    }
    free(first_row);
}

#endif
