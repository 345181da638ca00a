// Speed of quantizers, plain and of rotated matrices: checks codes, transposed codes and scales against the CPU layers on a corner of
// the matrix (rotated codes but for a few that lie by a tie), then times it.
// One line per shape: what | us (median) | GB/s | x of the copy bandwidth measured in the same run. Bytes are those of reading the input
// once and writing each wanted form of the codes once.
#include "bandwidth.cuh"

typedef struct {
    int rows, cols;
    Fmt in, fmt;
    Gran gran;
    bool codes, transposed;
    Rotation rotation;
} Shape;
static const Rotation kFeatures = {ROTATE_COLS, 0}, kTokens = {ROTATE_ROWS, 0};

static const Shape kShapes[] = {
    {16384, 4096, BF16, INT8, PER_TENSOR, true, true, kRotateNone},      {16384, 4096, BF16, FP8_E4M3, PER_TENSOR, true, true, kRotateNone},
    {16384, 4096, BF16, FP6_E3M2, PER_TENSOR, true, true, kRotateNone},  {16384, 4096, BF16, FP8_E5M2, PER_TENSOR, true, true, kRotateNone},
    {16384, 4096, BF16, INT8, PER_TENSOR, true, false, kRotateNone},     {16384, 4096, BF16, INT8, PER_TENSOR, false, true, kRotateNone},
    {8192, 14336, BF16, INT8, PER_TENSOR, true, true, kRotateNone},      {8192, 14336, BF16, FP8_E4M3, PER_TENSOR, true, true, kRotateNone},
    {8192, 28672, BF16, INT8, PER_TENSOR, true, true, kRotateNone},      {8192, 14336, BF16, INT8, NO_SCALE, true, true, kRotateNone},
    {8192, 14336, BF16, INT8, PER_ROW, true, true, kRotateNone},         {8192, 14336, BF16, INT8, PER_BLOCK32, true, true, kRotateNone},
    {14336, 4096, F32, INT8, PER_TENSOR, true, true, kRotateNone},       {8192, 14336, BF16, FP6_E2M3, PER_TENSOR, true, true, kRotateNone},
    // X and W of a linear, with codes_t; dY of halo2's E.
    {16384, 4096, BF16, INT8, PER_TENSOR, true, true, kFeatures},   {16384, 4096, BF16, INT8, PER_TENSOR, true, false, kFeatures},
    {16384, 4096, BF16, FP8_E4M3, PER_TENSOR, true, true, kFeatures}, {16384, 4096, BF16, FP6_E3M2, PER_TENSOR, true, false, kFeatures},
    {8192, 14336, BF16, INT8, PER_TENSOR, true, true, kFeatures},   {8192, 14336, BF16, INT8, PER_TENSOR, true, false, kFeatures},
    {8192, 14336, BF16, FP8_E4M3, PER_TENSOR, true, false, kFeatures}, {8192, 4096, BF16, INT8, PER_TENSOR, true, false, kTokens},
    {8192, 14336, BF16, INT8, PER_TENSOR, true, false, kTokens},    {8192, 28672, BF16, INT8, PER_TENSOR, true, false, kTokens},
    {16384, 4096, BF16, INT8, PER_TENSOR, true, false, kTokens},    {8192, 14336, BF16, FP8_E4M3, PER_TENSOR, true, false, kTokens},
    {8192, 14336, BF16, FP6_E3M2, PER_TENSOR, true, false, kTokens},
};

static QMat outputs(const Shape& s, void* (*alloc)(size_t)) {
    QMat q = {mat(NULL, s.rows, s.cols, s.fmt), mat(NULL, s.cols, s.rows, s.fmt), NULL, s.gran};
    if (s.codes) q.codes.data = alloc(mat_bytes(q.codes));
    if (s.transposed) q.codes_t.data = alloc(mat_bytes(q.codes_t));
    q.scale = (float*)alloc(sizeof(float) * (size_t)max_int(1, scale_count(s.rows, s.cols, s.gran)));
    return q;
}
static size_t differing(const void* on_gpu, const void* want, size_t bytes) {
    std::vector<unsigned char> got(bytes);
    if (bytes) cuda_ops.download(got.data(), on_gpu, bytes);
    size_t differ = 0;
    for (size_t i = 0; i < bytes; i++) differ += got[i] != ((const unsigned char*)want)[i];
    return differ;
}
// A corner of what was written: vectors of a rotation are whole in it.
static bool agrees_rotated(const Shape& s, QMat q, Mat x, const float* absmax) {
    bool tokens = s.rotation.axis == ROTATE_ROWS;
    Shape part = s;
    part.rows = tokens ? s.rows : 24;
    part.cols = tokens ? 24 : s.cols;
    Mat input = host_corner(x, part.rows, part.cols), codes = host_corner(q.codes, part.rows, part.cols), codes_t = {};
    if (s.transposed) codes_t = host_corner(q.codes_t, part.cols, part.rows);
    QMat want = outputs(part, cpu_f32_ops.alloc);
    float largest = host_float(absmax);
    cpu_f32_ops.quantize(want, input, s.rotation, &largest, s.fmt, 1);
    size_t flipped = 0, torn = 0, count = (size_t)part.rows * part.cols;
    for (int i = 0; i < part.rows; i++) {
        for (int j = 0; j < part.cols; j++) {
            uint8_t code = ((uint8_t*)codes.data)[(size_t)i * part.cols + j];
            flipped += code != ((uint8_t*)want.codes.data)[(size_t)i * part.cols + j];
            torn += s.transposed && code != ((uint8_t*)codes_t.data)[(size_t)j * part.rows + i];
        }
    }
    // The token axis rounds once to FP16 on its way (halo/cuda/rotate/tokens.cuh).
    bool right = flipped <= count / (tokens ? 60 : 200) && torn == 0 && host_float(q.scale) == *want.scale && largest > 0;
    void* host[] = {input.data, codes.data, codes_t.data, want.codes.data, want.codes_t.data, want.scale};
    for (void* p : host) free(p);
    return right;
}

static bool agrees(Shape s) {
    s.rows = 392;   // tails of tiles in both directions
    s.cols = 520;
    Mat x = noise(s.rows, s.cols, s.in), host = on_host(x);
    QMat q = outputs(s, cuda_ops.alloc), want = outputs(s, cpu_f32_ops.alloc);
    float largest = 0;
    float* absmax = (float*)cuda_ops.alloc(sizeof(float));
    cuda_ops.absmax(absmax, x);
    cpu_f32_ops.absmax(&largest, host);
    cuda_ops.quantize(q, x, kRotateNone, absmax, s.fmt, 1);
    cpu_f32_ops.quantize(want, host, kRotateNone, &largest, s.fmt, 1);
    size_t wrong = differing(q.codes.data, want.codes.data, s.codes ? mat_bytes(q.codes) : 0) +
                   differing(q.codes_t.data, want.codes_t.data, s.transposed ? mat_bytes(q.codes_t) : 0) +
                   differing(q.scale, want.scale, sizeof(float) * (size_t)scale_count(s.rows, s.cols, s.gran)) +
                   differing(absmax, &largest, sizeof largest);
    void* gpu[] = {x.data, q.codes.data, q.codes_t.data, q.scale, absmax};
    for (void* p : gpu)
        if (p) cuda_ops.release(p);
    free(host.data);
    free(want.codes.data);
    free(want.codes_t.data);
    free(want.scale);
    return wrong == 0;
}

static bool bench(Shape s, double copy) {
    bool rotated = s.rotation.axis != ROTATE_NONE, right = rotated || agrees(s);
    Mat x = noise(s.rows, s.cols, s.in);
    QMat q = outputs(s, cuda_ops.alloc);
    float* absmax = (float*)cuda_ops.alloc(sizeof(float));
    if (rotated) cuda_ops.rotate(mat(NULL, s.rows, s.cols, s.in), x, s.rotation.axis, false, s.rotation.block, absmax);
    else cuda_ops.absmax(absmax, x);
    double us = median_us([&] { cuda_ops.quantize(q, x, s.rotation, absmax, s.fmt, 1); });
    if (rotated) right = agrees_rotated(s, q, x, absmax);
    double bytes = (double)s.rows * s.cols * (double)(fmt_bytes(s.in) + s.codes + s.transposed), gbs = bytes / us * 1e-3;
    static const char* const grans[] = {"tensor", "row", "block32", "no scale"}, *const turns[] = {"", "xH", "Hx"};
    printf("quantize %5d x %5d %-4s %2s -> %-8s %-8s%s%s | %8.1f us | %6.0f GB/s | %.2f of copy%s\n", s.rows, s.cols, fmt_name(s.in),
           turns[s.rotation.axis], fmt_name(s.fmt), grans[s.gran], s.codes ? " codes" : "      ", s.transposed ? " codes_t" : "        ", us, gbs, gbs / copy,
           right ? "" : "  WRONG");
    void* gpu[] = {x.data, q.codes.data, q.codes_t.data, q.scale, absmax};
    for (void* p : gpu)
        if (p) cuda_ops.release(p);
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
