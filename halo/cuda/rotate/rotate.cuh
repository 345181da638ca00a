// Hadamard rotations of a matrix from the right (features) or from the left (tokens), and its largest magnitude.
//
// bf16 is rotated on tensor cores: rotate/features.cuh, rotate/tokens.cuh, rotate/dense.cuh. rotate/exact.cuh takes F32, and the bf16 shapes
// that these leave over. Any of these kernels gives its values to a sink (rotate/sinks.cuh): a matrix, codes, or only their maximum.
// absmax reads 2 bytes an element of bf16.
//
// Words of these files:
//   vector  what one transform is of: n elements of a row (features) or of a column (tokens)
//   run     2^k neighbours of a vector; their transforms come first (within), then the transform over the runs (across)
//   octet   eight neighbours of a row: 16 bytes of bf16
//   unit    what a thread moves at a time, an octet or a single value
//   item    whole vectors that a block of threads loads, rotates and stores at a time
//   strip   neighbouring columns, with all their rows
//   band    whole vectors, rows or columns, few enough to stay in the L2 cache between two passes
//   chunk   256 tokens of 32 columns, which share an exponent (rotate/tokens.cuh)
//   256s    256 neighbours that a warp holds as an octet a lane (rotate/hadamard_warp.cuh)
// Other kernels mean the same by octet, strip and band; where a kernel has more words of its own, its banner explains them.
#ifndef HALO_CUDA_ROTATE_CUH
#define HALO_CUDA_ROTATE_CUH

#include "dense.cuh"
#include "features.cuh"
#include "tokens.cuh"

// ================================================================ the largest magnitude
enum { kAbsmaxThreads = 512, kAbsmaxLoads = 4 };

// Of a matrix that `blocks` blocks share, by the block of this number.
template <int kWidth, typename T>
__device__ __forceinline__ void raise_absmax_of(float* absmax, Rows<const T> x, int rows, unsigned units_across, unsigned block,
                                                unsigned blocks) {
    uint32_t largest = 0;
    unsigned units = (unsigned)rows * units_across, threads = blocks * blockDim.x;
    for (unsigned unit = block * blockDim.x + threadIdx.x; unit < units; unit += threads * kAbsmaxLoads) {
        Values<kWidth> v[kAbsmaxLoads] = {};
#pragma unroll
        for (int i = 0; i < kAbsmaxLoads; i++) {
            unsigned at = unit + i * threads;
            if (at < units) v[i] = load_values<kWidth>(x[at / units_across] + at % units_across * kWidth);
        }
#pragma unroll
        for (int i = 0; i < kAbsmaxLoads; i++)
#pragma unroll
            for (int j = 0; j < kWidth; j++) largest = max(largest, f32_bits(v[i].v[j]) & 0x7fffffffu);
    }
    raise_block_absmax(absmax, largest);
}
template <int kWidth, typename T>
__global__ void __launch_bounds__(kAbsmaxThreads) absmax_kernel(float* absmax, Rows<const T> x, int rows, unsigned units_across) {
    raise_absmax_of<kWidth>(absmax, x, rows, units_across, blockIdx.x, gridDim.x);
}

// Blocks for a matrix that is read `across` units a row.
static unsigned absmax_blocks(Mat x, int across) {
    check((size_t)x.rows * across < 1u << 31, "absmax (cuda): (%d, %d) is too large to count in 32 bits", x.rows, x.cols);
    size_t per_block = (size_t)kAbsmaxThreads * kAbsmaxLoads, blocks = ((size_t)x.rows * across + per_block - 1) / per_block;
    size_t most = (size_t)gpu_device().multiprocessors * 4;
    return (unsigned)(blocks < most ? blocks : most);
}
template <typename T>
static void launch_absmax(float* absmax, Mat x) {
    bool octets = is_octets(x);
    int across = octets ? x.cols / 8 : x.cols;
    unsigned grid = absmax_blocks(x, across);
    if (octets) LAUNCH((absmax_kernel<8, T>), grid, kAbsmaxThreads, 0, absmax, rows_of<const T>(x), x.rows, across);
    else LAUNCH((absmax_kernel<1, T>), grid, kAbsmaxThreads, 0, absmax, rows_of<const T>(x), x.rows, across);
}
static void absmax(float* absmax, Mat x) {
    check_mat(x, x.rows, x.cols, "absmax");
    if (x.rows == 0 || x.cols == 0) return;
    if (x.fmt == BF16) launch_absmax<bf16>(absmax, x);
    else launch_absmax<float>(absmax, x);
}

// ================================================================ rotations

// y has the rows and the format of the result; y.data NULL: only the maximum is wanted.
static RotateJob rotate_job(Mat y, Mat x, RotateAxis axis, bool transpose, int block) {
    bool from_right = axis == ROTATE_COLS;
    int rows = max_int(y.rows, x.rows), n = from_right ? x.cols : block ? block : rows;
    check_mat(x, x.rows, x.cols, "rotate");
    check(axis != ROTATE_NONE && y.rows == (from_right ? x.rows : y.rows) && y.cols == x.cols, "rotate (cuda): (%d, %d) to (%d, %d)", x.rows,
          x.cols, y.rows, y.cols);
    check(block >= 0 && (from_right ? block == 0 : rows % max_int(n, 1) == 0), "rotate (cuda): (%d, %d) in blocks of %d", rows, x.cols, block);
    check(rows == 0 || hadamard_supported(n), "rotate (cuda): no Hadamard transform of order %d", n);
    RotateJob job = {y, x, axis, transpose, n, 1, (float)(1 / sqrt((double)n)), NULL, {NULL, NULL, 1}, NULL, 0, NULL};
    return job;
}

static void run_rotate_job(const RotateJob& job) {
    if (max_int(job.x.rows, job.y.rows) == 0 || job.x.cols == 0) return;
    if (rotate_features(job) || rotate_tokens(job) || rotate_dense(job) || rotate_exact(job)) return;
    if (job.axis == ROTATE_COLS) rotate_long_rows(job);
    else rotate_long_columns(job);
}

static void unrotate_tokens(Mat y, Mat x, int block, void* scratch) {
    check_mat(y, y.rows, y.cols, "rotate");
    RotateJob job = rotate_job(y, x, ROTATE_ROWS, true, block);
    job.scratch = scratch;
    run_rotate_job(job);
}
static void rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax) {
    check(y.data || absmax, "rotate (cuda): nothing to do");
    if (y.data) check_mat(y, y.rows, y.cols, "rotate");
    RotateJob job = rotate_job(y, x, axis, transpose, block);
    job.absmax = absmax;
    run_rotate_job(job);
}

#endif
