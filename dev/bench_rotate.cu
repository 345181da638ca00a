// Speed of rotations and of absmax: checks each shape against the CPU layers on some of its rows or columns, then times it.
// One line per shape: what | us (median) | GB/s | x of the copy bandwidth measured in the same run. Bytes are those of reading the input
// once and writing the output once.
#include "bandwidth.cuh"

#include <math.h>

typedef struct {
    RotateAxis axis;
    int rows, cols, block;
    Fmt fmt;
    bool transpose;
} Shape;

// Llama-3's widths; other base orders; the token axis of 8 x 1024 tokens and around it; FP32 gradients on their way back.
static const Shape kShapes[] = {
    {ROTATE_COLS, 65536, 2048, 0, BF16, false},  {ROTATE_COLS, 32768, 3072, 0, BF16, false},  {ROTATE_COLS, 32768, 4096, 0, BF16, false},
    {ROTATE_COLS, 16384, 8192, 0, BF16, false},  {ROTATE_COLS, 8192, 14336, 0, BF16, false},  {ROTATE_COLS, 8192, 16384, 0, BF16, false},
    {ROTATE_COLS, 4096, 28672, 0, BF16, false},  {ROTATE_COLS, 262144, 576, 0, BF16, false},  {ROTATE_COLS, 65536, 1536, 0, BF16, false},
    {ROTATE_COLS, 524288, 172, 0, BF16, false},  {ROTATE_COLS, 8192, 11008, 0, BF16, false},  {ROTATE_COLS, 8192, 14336, 0, BF16, true},
    {ROTATE_ROWS, 8192, 4096, 0, BF16, false},   {ROTATE_ROWS, 8192, 14336, 0, BF16, false},  {ROTATE_ROWS, 4096, 14336, 0, BF16, false},
    {ROTATE_ROWS, 2048, 28672, 0, BF16, false},  {ROTATE_ROWS, 6144, 14336, 0, BF16, false},  {ROTATE_ROWS, 16384, 4096, 0, BF16, false},
    {ROTATE_ROWS, 8192, 14336, 256, BF16, false}, {ROTATE_COLS, 4096, 14336, 0, F32, true},   {ROTATE_COLS, 14336, 4096, 0, F32, true},
};

static bool agrees(Shape s, Mat y, Mat x) {
    bool from_right = s.axis == ROTATE_COLS;
    int rows = from_right ? min_int(s.rows, 24) : s.rows, cols = from_right ? s.cols : min_int(s.cols, 24);
    Mat from = mat_cols(mat_rows(x, 0, rows), 0, cols), to = mat_cols(mat_rows(y, 0, rows), 0, cols);
    Mat got = on_host(to), input = on_host(from), plain = mat(host_alloc((size_t)rows * cols * 4), rows, cols, s.fmt);
    Mat exact = mat(host_alloc((size_t)rows * cols * 4), rows, cols, F32);
    cpu_f32_ops.convert(exact, input);
    cpu_f32_ops.rotate(exact, exact, s.axis, s.transpose, s.block, NULL);
    cpu_bf16_ops.rotate(plain, input, s.axis, s.transpose, s.block, NULL);
    double err = 0, plain_err = 0;
    for (int i = 0; i < rows; i++) {
        for (int j = 0; j < cols; j++) {
            auto value = [&](Mat m) {
                size_t at = (size_t)i * m.ld + j;
                return m.fmt == F32 ? ((float*)m.data)[at] : f32_from_bf16(((uint16_t*)m.data)[at]);
            };
            double want = value(exact), d = value(got) - want, p = value(plain) - want;
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

static bool bench(Shape s, double copy) {
    Mat x = noise(s.rows, s.cols, s.fmt), y = zeros(s.rows, s.cols, s.fmt);
    float* largest = (float*)cuda_ops.alloc(sizeof(float));
    cuda_ops.rotate(y, x, s.axis, s.transpose, s.block, largest);
    bool right = agrees(s, y, x);
    double us = median_us([&] { cuda_ops.rotate(y, x, s.axis, s.transpose, s.block, largest); });
    double gbs = 2.0 * mat_bytes(x) / us * 1e-3;
    printf("rotate %s %6d x %5d block %3d %-4s%s | %8.1f us | %6.0f GB/s | %.2f of copy%s\n", s.axis == ROTATE_COLS ? "cols" : "rows", s.rows,
           s.cols, s.block, fmt_name(s.fmt), s.transpose ? " ^T" : "   ", us, gbs, gbs / copy, right ? "" : "  WRONG");
    if (s.axis == ROTATE_COLS && s.cols == 4096) {
        us = median_us([&] { cuda_ops.absmax(largest, x); });
        gbs = (double)mat_bytes(x) / us * 1e-3;
        printf("absmax      %6d x %5d           %-4s    | %8.1f us | %6.0f GB/s | %.2f of copy\n", s.rows, s.cols, fmt_name(s.fmt), us, gbs,
               gbs / copy);
    }
    cuda_ops.release(x.data);
    cuda_ops.release(y.data);
    cuda_ops.release(largest);
    return right;
}

int main() {
    setvbuf(stdout, NULL, _IOLBF, 0);
    double copy = copy_gbs();
    printf("copy %.0f GB/s\n", copy);
    bool right = true;
    for (Shape s : kShapes) right = bench(s, copy) && right;
    return right ? 0 : 1;
}
