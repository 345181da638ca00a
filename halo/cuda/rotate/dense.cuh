// x H of bf16 rows of small orders that have no runs of 16, or of rows without aligned octets: one dense product with the matrix of signs.
//
// Bytes an element: 2 read and those of the output written, each once; values are loaded and stored one at a time. A dense product is n/16
// times the work of the fast transform: 3 mma an element at n = 172, of about 40 instructions in all.
//
// A warp takes 16 rows. They are read from shared memory, where a row's length is an odd multiple of 16 bytes, so that ldmatrix is free of
// bank conflicts; the signs are read through the L1 cache. The sums go back to shared memory and from there to the sink, row by row.
#ifndef HALO_CUDA_ROTATE_DENSE_CUH
#define HALO_CUDA_ROTATE_DENSE_CUH

#include "hadamard_warp.cuh"
#include "exact.cuh"

enum { kDenseWarps = 4, kDenseRows = 16 * kDenseWarps, kDenseTiles = 11, kDenseFewTiles = 4 };   // 11 x 16 is the first beyond order 172

template <int kTiles>
__global__ void __launch_bounds__(kDenseWarps * kWarp) rotate_dense_kernel(AnySink sink, Rows<const bf16> x, const uint4* fragments, int n,
                                                                           int x_rows) {
    __shared__ __align__(16) float shared[kDenseRows * (kTiles * kFragment + 4)];   // bf16 values on the way in
    bf16* values = (bf16*)shared;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tiles = (n + kFragment - 1) / kFragment, pitch = tiles * kFragment + 8;
    int first_row = blockIdx.x * kDenseRows;
    for (int row = warp; row < kDenseRows; row += kDenseWarps)
        for (int col = lane; col < tiles * kFragment; col += kWarp)
            values[row * pitch + col] = col < n && first_row + row < x_rows ? x[first_row + row][col] : (bf16)0;
    __syncthreads();   // from here on nothing of x is read: y may be x

    float sum[kTiles][2][4] = {};
    for (int step = 0; step < tiles; step++) {
        uint32_t rows[4];
        ldmatrix<false>(rows, values + (warp * 16 + lane % 16) * pitch + step * kFragment + lane / 16 * 8);
#pragma unroll
        for (int t = 0; t < kTiles; t++) {
            if (t >= tiles) break;
            uint4 signs = __ldg(fragments + (t * tiles + step) * kWarp + lane);   // two B operands of eight columns each
            mma_bf16(sum[t][0], rows, signs.x, signs.z);
            mma_bf16(sum[t][1], rows, signs.y, signs.w);
        }
    }
    __syncthreads();   // the sums overwrite the values in shared memory
    int sums = tiles * kFragment + 4;
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
        if (t >= tiles) break;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int row = warp * 16 + lane / 4 + i % 2 * 8, col = t * kFragment + i / 2 * 8 + lane % 4 * 2;
            *(float2*)(shared + row * sums + col) = make_float2(sum[t][i / 2][i % 2 * 2], sum[t][i / 2][i % 2 * 2 + 1]);
        }
    }
    __syncthreads();
    sink.begin();
    for (int row = warp; row < kDenseRows && first_row + row < x_rows; row += kDenseWarps)
        for (int col = lane; col < n; col += kWarp) sink.put(sink.at(first_row + row, col), Values<1>{{shared[row * sums + col]}});
    sink.finish();
}

template <int kTiles>
static void launch_rotate_dense(const RotateJob& job, const uint4* fragments) {
    LAUNCH((rotate_dense_kernel<kTiles>), ceil_div(job.x.rows, kDenseRows), kDenseWarps * kWarp, 0, any_sink(job), rows_of<const bf16>(job.x),
           fragments, job.n, job.x.rows);
}

// False, with nothing done, if the shape is not one for this kernel.
static bool rotate_dense(const RotateJob& job) {
    int K0 = hadamard_base_order(job.n), doublings = floor_log2(job.n / K0);
    if (job.axis != ROTATE_COLS || job.x.fmt != BF16 || doublings >= kAcrossDoublings || (doublings && job.n > kAcrossMost)) return false;
    const uint4* fragments = rotate_signs()->across[hadamard_base_index(K0)][doublings][!job.transpose];
    if (job.n <= kDenseFewTiles * kFragment) launch_rotate_dense<kDenseFewTiles>(job, fragments);
    else launch_rotate_dense<kDenseTiles>(job, fragments);
    return true;
}

#endif
