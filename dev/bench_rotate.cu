// Speed of rotations, of the maximum of a rotated matrix alone and with the codes that need it, and of producers that find it on their way
// out. Each shape is checked first: the last rows or columns against the CPU layers, maxima against the matrix that rotate or the producer
// wrote, codes and their maximum against those of two calls. One line per shape: what | us (median) | GB/s | x of the copy bandwidth
// measured in the same run. Bytes are those of reading the input once and writing the output once; for a maximum with codes the input
// counts twice: 5 bytes a value, 6 with codes of the input itself.
#include "bandwidth.cuh"

#include <math.h>

typedef struct {
    RotateAxis axis;
    int rows, cols, block;
    Fmt fmt;
    bool transpose;
} Shape;

// Llama-3's widths; other base orders; the token axis of 8 x 1024 tokens, of 16 x 1024, and around them; FP32 gradients on their way back.
static const Shape kShapes[] = {
    {ROTATE_COLS, 65536, 2048, 0, BF16, false},   {ROTATE_COLS, 32768, 3072, 0, BF16, false},  {ROTATE_COLS, 32768, 4096, 0, BF16, false},
    {ROTATE_COLS, 16384, 8192, 0, BF16, false},   {ROTATE_COLS, 8192, 14336, 0, BF16, false},  {ROTATE_COLS, 8192, 16384, 0, BF16, false},
    {ROTATE_COLS, 4096, 28672, 0, BF16, false},   {ROTATE_COLS, 262144, 576, 0, BF16, false},  {ROTATE_COLS, 65536, 1536, 0, BF16, false},
    {ROTATE_COLS, 524288, 172, 0, BF16, false},   {ROTATE_COLS, 8192, 11008, 0, BF16, false},  {ROTATE_COLS, 8192, 14336, 0, BF16, true},
    {ROTATE_ROWS, 8192, 4096, 0, BF16, false},    {ROTATE_ROWS, 8192, 14336, 0, BF16, false},  {ROTATE_ROWS, 8192, 28672, 0, BF16, false},
    {ROTATE_ROWS, 4096, 14336, 0, BF16, false},   {ROTATE_ROWS, 2048, 28672, 0, BF16, false},  {ROTATE_ROWS, 6144, 14336, 0, BF16, false},
    {ROTATE_ROWS, 16384, 2048, 0, BF16, false},   {ROTATE_ROWS, 16384, 4096, 0, BF16, false},  {ROTATE_ROWS, 16384, 8192, 0, BF16, false},
    {ROTATE_ROWS, 12288, 8192, 0, BF16, false},   {ROTATE_ROWS, 32768, 4096, 0, BF16, false},  {ROTATE_ROWS, 8192, 14336, 256, BF16, false},
    {ROTATE_COLS, 4096, 14336, 0, F32, true},     {ROTATE_COLS, 14336, 4096, 0, F32, true},
};

enum { kCorner = 24 };

static float value_at(Mat m, int i, int j) {
    size_t at = (size_t)i * m.ld + j;
    return m.fmt == F32 ? ((float*)m.data)[at] : f32_from_bf16(((uint16_t*)m.data)[at]);
}

static bool agrees(Shape s, Mat y, Mat x) {
    bool from_right = s.axis == ROTATE_COLS;
    int rows = from_right ? kCorner : s.rows, cols = from_right ? s.cols : kCorner;
    Mat got = host_corner(y, rows, cols), input = host_corner(x, rows, cols), plain = mat(host_alloc((size_t)rows * cols * 4), rows, cols, s.fmt);
    Mat exact = mat(host_alloc((size_t)rows * cols * 4), rows, cols, F32);
    cpu_f32_ops.convert(exact, input);
    cpu_f32_ops.rotate(exact, exact, s.axis, s.transpose, s.block, NULL);
    cpu_bf16_ops.rotate(plain, input, s.axis, s.transpose, s.block, NULL);
    double err = 0, plain_err = 0;
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            double want = value_at(exact, i, j), d = value_at(got, i, j) - want, p = value_at(plain, i, j) - want;
            err += d * d;
            plain_err += p * p;
        }
    }
    free(got.data);
    free(input.data);
    free(plain.data);
    free(exact.data);
    return sqrt(err) <= 2 * sqrt(plain_err);   // false for NaN; in FP32 both are 0
}

// The maximum of FP32 values and that of the same values rounded to bf16.
static bool same_maximum(float of_f32, float of_bf16) { return of_f32 > 0 && fabsf(of_f32 - of_bf16) <= of_f32 / 256; }

static bool report(const char* what, const char* detail, int rows, int cols, Fmt fmt, double us, double bytes, double copy, bool right) {
    double gbs = bytes / us * 1e-3;
    printf("%-19s %6d x %5d %-4s %-9s | %8.1f us | %6.0f GB/s | %.2f of copy%s\n", what, rows, cols, fmt_name(fmt), detail, us, gbs, gbs / copy,
           right ? "" : "  WRONG");
    return right;
}

static bool bench(Shape s, double copy) {
    bool tokens = s.axis == ROTATE_ROWS;
    char detail[16] = "";
    if (s.block) snprintf(detail, sizeof detail, "block %d", s.block);
    if (s.transpose) snprintf(detail, sizeof detail, "^T");
    Mat x = noise(s.rows, s.cols, s.fmt), y = zeros(s.rows, s.cols, s.fmt), nowhere = mat(NULL, s.rows, s.cols, s.fmt);
    float *written = (float*)cuda_ops.alloc(sizeof(float)), *alone = (float*)cuda_ops.alloc(sizeof(float));
    cuda_ops.rotate(y, x, s.axis, s.transpose, s.block, written);
    cuda_ops.rotate(nowhere, x, s.axis, s.transpose, s.block, alone);
    bool right = agrees(s, y, x), right_maximum = same_maximum(host_float(alone), host_float(written));
    double us = median_us([&] { cuda_ops.rotate(y, x, s.axis, s.transpose, s.block, NULL); });
    report(tokens ? "rotate rows" : "rotate cols", detail, s.rows, s.cols, s.fmt, us, 2.0 * mat_bytes(x), copy, right);
    if (s.fmt == BF16 && !s.transpose) {
        us = median_us([&] { cuda_ops.rotate(nowhere, x, s.axis, s.transpose, s.block, alone); });
        report(tokens ? "max of rows" : "max of cols", detail, s.rows, s.cols, s.fmt, us, (double)mat_bytes(x), copy, right_maximum);
    }
    if (s.fmt == BF16 && !s.transpose && !tokens) {
        QMat q = {mat(y.data, s.rows, s.cols, INT8), {NULL, 0, 0, 0, F32}, (float*)cuda_ops.alloc(sizeof(float)), PER_TENSOR};
        us = median_us([&] { cuda_ops.quantize(q, x, Rotation{ROTATE_COLS, 0}, alone, INT8, 1); });
        report("codes of cols", "", s.rows, s.cols, INT8, us, 1.5 * mat_bytes(x), copy, true);
        cuda_ops.release(q.scale);
    }
    if (!tokens && s.cols == 4096) {
        us = median_us([&] { cuda_ops.absmax(written, x); });
        report("absmax", "", s.rows, s.cols, s.fmt, us, (double)mat_bytes(x), copy, true);
    }
    cuda_ops.release(x.data);
    cuda_ops.release(y.data);
    cuda_ops.release(written);
    cuda_ops.release(alone);
    return right && right_maximum;
}

// The same call as below with transposed codes of x itself, as a linear prepares dY for E and G, and those codes alone.
static bool bench_plain_codes(QMat rotated, Mat x, float* rotated_maximum, void* scratch, double copy) {
    float* numbers = (float*)cuda_ops.alloc(3 * sizeof(float));   // the maximum, and scales of one call and of a call alone
    QMat beside = {{NULL, 0, 0, 0, F32}, zeros(x.cols, x.rows, INT8), numbers + 1, PER_TENSOR}, alone = beside;
    alone.codes_t = zeros(x.cols, x.rows, INT8);
    alone.scale = numbers + 2;
    PlainCodes plain = {beside, numbers, INT8, 1};
    cuda_ops.absmax(numbers, x);
    cuda_ops.quantize_tokens(rotated, x, 0, rotated_maximum, INT8, 1, &plain, scratch);
    cuda_ops.quantize(alone, x, kRotateNone, numbers, INT8, 1);
    Mat a = on_host(beside.codes_t), b = on_host(alone.codes_t);
    bool right = host_float(numbers + 1) == host_float(numbers + 2) && !memcmp(a.data, b.data, mat_bytes(a));
    double us = median_us([&] { cuda_ops.quantize_tokens(rotated, x, 0, rotated_maximum, INT8, 1, &plain, scratch); });
    report("... and codes of x", "", x.rows, x.cols, INT8, us, 3.0 * mat_bytes(x), copy, right);
    us = median_us([&] { cuda_ops.quantize(alone, x, kRotateNone, numbers, INT8, 1); });
    report("codes of x alone", "", x.rows, x.cols, INT8, us, 1.5 * mat_bytes(x), copy, right);
    void* used[] = {beside.codes_t.data, alone.codes_t.data, numbers};
    for (void* p : used) cuda_ops.release(p);
    free(a.data);
    free(b.data);
    return right;
}

// The maximum of H x and INT8 codes in one call, as a linear prepares dY for E.
static bool bench_tokens_in_one_call(int rows, int cols, double copy) {
    Mat x = noise(rows, cols, BF16), nowhere = mat(NULL, rows, cols, BF16);
    QMat one = {zeros(rows, cols, INT8), {NULL, 0, 0, 0, F32}, NULL, PER_TENSOR}, two = one;
    two.codes = zeros(rows, cols, INT8);
    float* numbers = (float*)cuda_ops.alloc(4 * sizeof(float));   // maxima and scales of one call and of two
    one.scale = numbers + 2;
    two.scale = numbers + 3;
    void* scratch = cuda_ops.alloc(cuda_ops.quantize_tokens_scratch(rows, cols, 0));
    Rotation tokens = {ROTATE_ROWS, 0};
    cuda_ops.quantize_tokens(one, x, 0, numbers, INT8, 1, NULL, scratch);
    cuda_ops.rotate(nowhere, x, ROTATE_ROWS, false, 0, numbers + 1);
    cuda_ops.quantize(two, x, tokens, numbers + 1, INT8, 1);
    Mat a = host_corner(one.codes, rows, kCorner), b = host_corner(two.codes, rows, kCorner);
    bool right = host_float(numbers) == host_float(numbers + 1) && !memcmp(a.data, b.data, mat_bytes(a));
    double us = median_us([&] { cuda_ops.quantize_tokens(one, x, 0, numbers, INT8, 1, NULL, scratch); });
    report("max + codes of rows", "", rows, cols, INT8, us, 2.5 * mat_bytes(x), copy, right);
    right = bench_plain_codes(one, x, numbers, scratch, copy) && right;
    Mat y = zeros(rows, cols, BF16);
    us = median_us([&] { cuda_ops.unrotate_tokens(y, x, 0, scratch); });
    report("rows back, scratch", "", rows, cols, BF16, us, 2.0 * mat_bytes(x), copy, true);
    cuda_ops.release(y.data);
    us = median_us([&] { cuda_ops.quantize(two, x, tokens, numbers + 1, INT8, 1); });
    report("codes of rows", "", rows, cols, INT8, us, 1.5 * mat_bytes(x), copy, right);
    void* used[] = {x.data, one.codes.data, two.codes.data, numbers, scratch};
    for (void* p : used) cuda_ops.release(p);
    free(a.data);
    free(b.data);
    return right;
}

// rmsnorm and swiglu with no maximum, with that of y, and with that of y H.
static bool bench_producers(int rows, int C, int F, double copy) {
    bool all_right = true;
    Mat x = noise(rows, C, BF16), delta = noise(rows, C, BF16), res = zeros(rows, C, BF16), h = zeros(rows, C, BF16), w = noise(1, C, BF16);
    Mat gate_up = noise(rows, 2 * F, BF16), act = zeros(rows, F, BF16);
    float *rstd = (float*)cuda_ops.alloc((size_t)rows * sizeof(float)), *found = (float*)cuda_ops.alloc(sizeof(float));
    float* expected = (float*)cuda_ops.alloc(sizeof(float));
    static const char* const asked[] = {"", "max", "max of yH"};
    for (int kind = 0; kind < 3; kind++) {
        Prep prep = {kind == 2, kind ? found : NULL};
        auto check_maximum = [&](Mat y) {
            cuda_ops.zero(expected, sizeof(float));
            if (kind == 2) cuda_ops.rotate(mat(NULL, y.rows, y.cols, BF16), y, ROTATE_COLS, false, 0, expected);
            else cuda_ops.absmax(expected, y);
            bool right = !kind || same_maximum(host_float(found), host_float(expected));
            all_right = all_right && right;
            cuda_ops.zero(found, sizeof(float));
            return right;
        };
        cuda_ops.zero(found, sizeof(float));
        double us = median_us([&] { cuda_ops.rmsnorm_forward(h, rstd, res, x, delta, w, 1e-5f, prep); });
        report("rmsnorm", asked[kind], rows, C, BF16, us, 4.0 * mat_bytes(h), copy, check_maximum(h));
        us = median_us([&] { cuda_ops.swiglu_forward(act, gate_up, prep); });
        report("swiglu", asked[kind], rows, F, BF16, us, 3.0 * mat_bytes(act), copy, check_maximum(act));
    }
    void* used[] = {x.data, delta.data, res.data, h.data, w.data, gate_up.data, act.data, rstd, found, expected};
    for (void* p : used) cuda_ops.release(p);
    return all_right;
}

int main() {
    double copy = copy_gbs();
    printf("copy %.0f GB/s\n", copy);
    bool right = true;
    for (Shape s : kShapes) right = bench(s, copy) && right;
    static const int of_tokens[][2] = {{8192, 4096}, {8192, 14336}, {8192, 28672}, {16384, 2048}, {16384, 8192}, {12288, 8192}, {32768, 4096}};
    for (auto& size : of_tokens) right = bench_tokens_in_one_call(size[0], size[1], copy) && right;
    right = bench_producers(16384, 4096, 14336, copy) && right;
    right = bench_producers(16384, 2048, 8192, copy) && right;
    return right ? 0 : 1;
}
