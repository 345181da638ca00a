// SwiGLU (Shazeer 2020): y = silu(gate) * up, silu(g) = g * sigma(g); gate and up lie side by side in gate_up (BT, 2F).
//   dgate = dy * up * sigma * (1 + g (1 - sigma))      dup = dy * silu(g)
//
// Bytes per element of (BT, F): forward 6 (read 4, write 2), backward 10 (read 6, write 4). At 3 TB/s and BT = 16k, F = 14336:
// forward 470 us, backward 780 us. The same pass finds the maximum of what is written, or of y H: a block that holds its row in shared
// memory needs no second pass over the row.
#ifndef HALO_CUDA_SWIGLU_CUH
#define HALO_CUDA_SWIGLU_CUH

#include "rotate/rotate.cuh"

// 1 / (1 + e^-g); an e^-g that overflows gives 0, as it should.
__device__ inline float sigmoid(float g) { return __fdividef(1.0f, 1.0f + __expf(-g)); }

template <int kWidth>
__global__ void __launch_bounds__(256) swiglu_forward_kernel(Rows<bf16> y, Rows<const bf16> gate_up, int F, float* absmax) {
    size_t t = blockIdx.x;
    const bf16 *gate = gate_up[t], *up = gate + F;
    bf16* out = y[t];
    uint32_t largest = 0;
#pragma unroll 2
    for (int f = threadIdx.x * kWidth; f < F; f += blockDim.x * kWidth) {
        Values<kWidth> g = load_values<kWidth>(gate + f), u = load_values<kWidth>(up + f), r;
#pragma unroll
        for (int i = 0; i < kWidth; i++) r.v[i] = g.v[i] * sigmoid(g.v[i]) * u.v[i];
        Packed<kWidth> rounded = pack(r);
        store_packed(out + f, rounded);
        largest = max(largest, largest_bits(rounded));
    }
    if (absmax) raise_block_absmax(absmax, largest);
}

// Raises *sink.absmax to the largest |y H|. A block takes a row: what it stores is kept in 2 bytes of shared memory an element, and transformed
// there; three blocks a multiprocessor hide each other's waits at barriers.
template <int kTiles>
__global__ void __launch_bounds__(kRotateThreads, 3) swiglu_forward_rotated_kernel(Rows<bf16> y, Rows<const bf16> gate_up, MaxSink sink,
                                                                                   FeatureItem row) {
    SHARED(bf16, shared);
    __shared__ int exponent;
    int F = row.runs.n;
    const bf16 *gate = gate_up[blockIdx.x], *up = gate + F;
    bf16* out = y[blockIdx.x];
    if (threadIdx.x == 0) exponent = kLeastExponent;
    __syncthreads();
    uint32_t largest = 0;
#pragma unroll 4
    for (int f = threadIdx.x * 8; f < F; f += blockDim.x * 8) {
        Values<8> g = load_values<8>(gate + f), u = load_values<8>(up + f);
#pragma unroll
        for (int i = 0; i < 8; i++) g.v[i] = g.v[i] * sigmoid(g.v[i]) * u.v[i];
        Packed<8> rounded = pack(g);
        store_packed(out + f, rounded);
        store_packed(shared + row.runs.place(f), rounded);
        largest = larger_pair_bf16(largest, largest_pair(rounded));
    }
    raise_row_exponent(&exponent, largest);
    __syncthreads();
    sink.begin();
    rotate_row_in_place<kTiles>(sink, shared, &exponent, row);
    sink.finish();
}

// Each thread reads all that it will overwrite, so dgate_up may be gate_up. absmax: NULL, or two: of dgate, of dup.
template <int kWidth>
__global__ void __launch_bounds__(256) swiglu_backward_kernel(Rows<bf16> dgate_up, Rows<const bf16> dy, Rows<const bf16> gate_up, int F,
                                                             float* absmax) {
    size_t t = blockIdx.x;
    const bf16 *gate = gate_up[t], *up = gate + F, *dout = dy[t];
    bf16* out = dgate_up[t];
    uint32_t largest[2] = {0, 0};
#pragma unroll 2
    for (int f = threadIdx.x * kWidth; f < F; f += blockDim.x * kWidth) {
        Values<kWidth> g = load_values<kWidth>(gate + f), u = load_values<kWidth>(up + f), d = load_values<kWidth>(dout + f), dg, du;
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
            float sigma = sigmoid(g.v[i]);
            dg.v[i] = d.v[i] * u.v[i] * sigma * (1.0f + g.v[i] * (1.0f - sigma));
            du.v[i] = d.v[i] * g.v[i] * sigma;
        }
        Packed<kWidth> dgate = pack(dg), dup = pack(du);
        store_packed(out + f, dgate);
        store_packed(out + F + f, dup);
        largest[0] = max(largest[0], largest_bits(dgate));
        largest[1] = max(largest[1], largest_bits(dup));
    }
    if (!absmax) return;
    raise_block_absmax(absmax, largest[0]);
    raise_block_absmax(absmax + 1, largest[1]);
}

template <int kWidth>
static void launch_swiglu_forward(Mat y, Mat gate_up, float* absmax) {
    LAUNCH((swiglu_forward_kernel<kWidth>), y.rows, threads_for(ceil_div(y.cols, kWidth), 256), 0, rows_of<bf16>(y),
           rows_of<const bf16>(gate_up), y.cols, absmax);
}
template <int kTiles>
static void launch_swiglu_forward_rotated(Mat y, Mat gate_up, float* absmax, const FeatureItem& row) {
    allow_shared(swiglu_forward_rotated_kernel<kTiles>, shared_limit());
    MaxSink sink = {row.runs.scale, absmax, 0, 0, 1};
    LAUNCH((swiglu_forward_rotated_kernel<kTiles>), y.rows, kRotateThreads, row.bytes(), rows_of<bf16>(y), rows_of<const bf16>(gate_up), sink, row);
}
static void swiglu_forward(Mat y, Mat gate_up, Prep prep) {
    check_bf16(y, y.rows, y.cols, "swiglu_forward");
    check_bf16(gate_up, y.rows, 2 * y.cols, "swiglu_forward");
    bool octets = is_octets(y) && is_octets(gate_up), rotates = prep.rotate && prep.absmax;
    RowRuns runs;
    if (rotates && octets && producer_runs(y.cols, &runs) && one_row(runs).bytes() <= shared_limit()) {
        if (runs.order <= kFragment) return launch_swiglu_forward_rotated<1>(y, gate_up, prep.absmax, one_row(runs));
        if (runs.order <= 2 * kFragment) return launch_swiglu_forward_rotated<2>(y, gate_up, prep.absmax, one_row(runs));
        if (runs.order <= 4 * kFragment) return launch_swiglu_forward_rotated<4>(y, gate_up, prep.absmax, one_row(runs));
        return launch_swiglu_forward_rotated<11>(y, gate_up, prep.absmax, one_row(runs));
    }
    if (octets) launch_swiglu_forward<8>(y, gate_up, rotates ? NULL : prep.absmax);
    else launch_swiglu_forward<1>(y, gate_up, rotates ? NULL : prep.absmax);
    if (rotates) rotate(mat(NULL, y.rows, y.cols, BF16), y, ROTATE_COLS, false, 0, prep.absmax);
}

template <int kWidth>
static void launch_swiglu_backward(Mat dgate_up, Mat dy, Mat gate_up, float* absmax) {
    LAUNCH((swiglu_backward_kernel<kWidth>), dy.rows, threads_for(ceil_div(dy.cols, kWidth), 256), 0, rows_of<bf16>(dgate_up),
           rows_of<const bf16>(dy), rows_of<const bf16>(gate_up), dy.cols, absmax);
}
static void swiglu_backward(Mat dgate_up, Mat dy, Mat gate_up, float* absmax) {
    check_bf16(dy, dy.rows, dy.cols, "swiglu_backward");
    check_bf16(gate_up, dy.rows, 2 * dy.cols, "swiglu_backward");
    check_bf16(dgate_up, dy.rows, 2 * dy.cols, "swiglu_backward");
    if (is_octets(dgate_up) && is_octets(dy) && is_octets(gate_up)) launch_swiglu_backward<8>(dgate_up, dy, gate_up, absmax);
    else launch_swiglu_backward<1>(dgate_up, dy, gate_up, absmax);
}

#endif
