// Residual add + RMSNorm (Zhang & Sennrich 2019).
//   r = x + delta      y = w * r * rstd      rstd = (mean(r^2) + eps)^-1/2
//   dr += rstd * (w dy - r * rstd^2 * mean(w dy r))      dw += sum over rows of dy * r * rstd
//
// Bytes per element of (BT, C): forward 8 (x, delta; r, y), or 4 without delta; backward 8 (dy, r, dr; dr) and 0.5 for the
// partial sums of dw, which stay in the L2. w is read from cache. At 3 TB/s and BT = 16k, C = 4096: 179 us each.
//
// A block keeps a row in registers between the sum over it and its use, kKeep octets a thread. The backward pass gives a
// block kNormRows rows, one after the other; each thread sums its columns of dw over them into the block's row of scratch,
// and a second kernel adds those rows in a fixed order. A frozen norm wants no dw: then a block has one row. Rows that are not
// made of aligned octets, or are longer than the registers hold, are read again instead (the *_any kernels).
//
// A block that takes short rows one after the other has too few bytes on their way from memory: 10 KB a multiprocessor at C = 576, where a
// copy's speed needs 30. So rows of up to kNormNarrowMax columns have another backward kernel, whose block asks for all its rows at once.
// The order of its sums, and so every bit of dr and dw, is that of the kernel for long rows.
#ifndef HALO_CUDA_RMSNORM_CUH
#define HALO_CUDA_RMSNORM_CUH

#include "rotate/rotate.cuh"

#include <limits.h>

enum {
    kNormForwardMax = 8 * 8 * 512,    // columns: octets * kKeep * threads
    kNormBackwardMax = 8 * 4 * 512,
    kNormNarrowMax = 1024, kNormNarrowThreads = 256,   // of the backward kernel for short rows
    kDwCols = 8, kDwLanes = 32        // of the kernel that adds the rows of scratch: a sector of a row, so that narrow rows make blocks enough
};

// ---- forward. kTiles 0: *absmax is raised to the largest |y|; else to the largest |y H|, with a matrix across of kTiles tiles.
template <int kKeep, int kTiles>
__global__ void __launch_bounds__(512)
rmsnorm_forward_kernel(Rows<bf16> y, float* rstd, Rows<bf16> res, Rows<const bf16> x, Rows<const bf16> delta, const bf16* w, int C, float eps,
                       float* absmax, FeatureItem row) {
    SHARED(bf16, shared);
    __shared__ int exponent;
    if (kTiles > 0 && threadIdx.x == 0) exponent = kLeastExponent;   // block_sum synchronizes
    size_t t = blockIdx.x;
    int stride = blockDim.x * 8, begin = threadIdx.x * 8;
    Packed<8> r[kKeep];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kKeep; k++) {
        int c = begin + k * stride;
        if (c < C) r[k] = load_packed<8>(x[t] + c);
    }
    if (delta.data) {
        Packed<8> d[kKeep];
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * stride;
            if (c < C) d[k] = load_packed<8>(delta[t] + c);
        }
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * stride;
            if (c >= C) continue;
            Values<8> a = unpack(r[k]), b = unpack(d[k]);
#pragma unroll
            for (int i = 0; i < 8; i++) a.v[i] += b.v[i];
            r[k] = pack(a);   // the norm is taken of the rounded values, as stored
            store_packed(res[t] + c, r[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < kKeep; k++) {
        if (begin + k * stride >= C) continue;
        Values<8> a = unpack(r[k]);
#pragma unroll
        for (int i = 0; i < 8; i++) squares += a.v[i] * a.v[i];
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / C + eps);
    if (threadIdx.x == 0) rstd[t] = scale;
    uint32_t largest = 0;   // kTiles > 0: a pair of bf16
#pragma unroll
    for (int k = 0; k < kKeep; k++) {
        int c = begin + k * stride;
        if (c >= C) continue;
        Values<8> a = unpack(r[k]), weight = load_values<8>(w + c);
#pragma unroll
        for (int i = 0; i < 8; i++) a.v[i] = a.v[i] * scale * weight.v[i];
        Packed<8> out = pack(a);
        store_packed(y[t] + c, out);
        if constexpr (kTiles > 0) {
            store_packed(shared + row.runs.place(c), out);
            largest = larger_pair_bf16(largest, largest_pair(out));
        } else {
            largest = max(largest, largest_bits(out));
        }
    }
    if constexpr (kTiles > 0) {
        raise_row_exponent(&exponent, largest);
        __syncthreads();
        MaxSink sink = {row.runs.scale, absmax, 0, 0, 1};
        rotate_row_in_place<kTiles>(sink, shared, &exponent, row);
        sink.finish();
    } else {
        if (absmax) raise_block_absmax(absmax, largest);
    }
}

__global__ void __launch_bounds__(512) rmsnorm_forward_any_kernel(Rows<bf16> y, float* rstd, Rows<bf16> res, Rows<const bf16> x,
                                                                 Rows<const bf16> delta, const bf16* w, int C, float eps, float* absmax) {
    size_t t = blockIdx.x;
    const bf16* r = delta.data ? res[t] : x[t];   // each thread reads again what it wrote itself
    float squares = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        if (delta.data) {
            Values<1> sum = {{f32_from_bf16(x[t][c]) + f32_from_bf16(delta[t][c])}};
            store_values(res[t] + c, sum);
        }
        float a = f32_from_bf16(r[c]);
        squares += a * a;
    }
    float scale = 1.0f / sqrtf(block_sum(squares) / C + eps);
    if (threadIdx.x == 0) rstd[t] = scale;
    uint32_t largest = 0;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        Values<1> out = {{f32_from_bf16(r[c]) * scale * f32_from_bf16(w[c])}};
        store_values(y[t] + c, out);
        largest = max(largest, largest_bits(pack(out)));
    }
    if (absmax) raise_block_absmax(absmax, largest);
}

// ---- backward. Without dw (kDw false, dw_rows NULL) a block has one row.
template <int kKeep, bool kDw>
__global__ void __launch_bounds__(512) rmsnorm_backward_kernel(Rows<bf16> dres, float* dw_rows, Rows<const bf16> dy, Rows<const bf16> res,
                                                              const bf16* w, const float* rstd, int BT, int C, float* absmax) {
    int stride = blockDim.x * 8, begin = threadIdx.x * 8;
    float dw[kKeep][8] = {};
    uint32_t largest = 0;
    const int kRows = kDw ? kNormRows : 1;
    int first = blockIdx.x * kRows, end = min(first + kRows, BT);
    for (int t = first; t < end; t++) {
        Packed<8> g[kKeep], r[kKeep], before[kKeep];
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * stride;
            if (c >= C) continue;
            g[k] = load_packed<8>(dy[t] + c);
            r[k] = load_packed<8>(res[t] + c);
            before[k] = load_packed<8>(dres[t] + c);   // needed only after the sum, but loaded early
        }
        float scale = rstd[t], along_r = 0;
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * stride;
            if (c >= C) continue;
            Values<8> gv = unpack(g[k]), rv = unpack(r[k]), weight = load_values<8>(w + c);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float product = gv.v[i] * rv.v[i];
                along_r += product * weight.v[i];
                if (kDw) dw[k][i] += product * scale;
            }
        }
        along_r = block_sum(along_r) / C * scale * scale;
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * stride;
            if (c >= C) continue;
            Values<8> gv = unpack(g[k]), rv = unpack(r[k]), weight = load_values<8>(w + c), out = unpack(before[k]);
#pragma unroll
            for (int i = 0; i < 8; i++) out.v[i] += scale * (gv.v[i] * weight.v[i] - rv.v[i] * along_r);
            Packed<8> rounded = pack(out);
            store_packed(dres[t] + c, rounded);
            largest = max(largest, largest_bits(rounded));
        }
    }
    if (absmax) raise_block_absmax(absmax, largest);
#pragma unroll
    for (int k = 0; kDw && k < kKeep; k++) {
        int c = begin + k * stride;
        if (c >= C) continue;
        Values<8> out;
#pragma unroll
        for (int i = 0; i < 8; i++) out.v[i] = dw[k][i];
        store_values(dw_rows + (size_t)blockIdx.x * C + c, out);
    }
}

// The same with dw for rows of up to 512 kWarps columns, to which the kernel above would give kWarps warps, with two octets a thread. All of a
// block's rows of dy, res and dres go to shared memory at once. A warp takes whole rows, so that no row waits at a barrier, and sums for each
// of those kWarps warps in turn. Then a thread sums its two columns of dw over the rows.
template <int kWarps>
__global__ void __launch_bounds__(kNormNarrowThreads, 4)
rmsnorm_backward_narrow_kernel(Rows<bf16> dres, float* dw_rows, Rows<const bf16> dy, Rows<const bf16> res, const bf16* w, const float* rstd,
                               int BT, int C, float* absmax) {
    enum { kBlockWarps = kNormNarrowThreads / kWarp, kEach = kNormRows / kBlockWarps, kKeep = 2 * kWarps };
    static_assert(kEach == 2, "a warp waits for its first row, then for its second");
    SHARED(bf16, shared);   // three times (kNormRows, C)
    __shared__ float scales[kNormRows];
    bf16 *dy_rows = shared, *res_rows = dy_rows + kNormRows * C, *dres_rows = res_rows + kNormRows * C;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, begin = lane * 8;
    int first = blockIdx.x * kNormRows, rows = min((int)kNormRows, BT - first);
#pragma unroll
    for (int each = 0; each < kEach; each++) {
        int row = warp + each * kBlockWarps;
        for (int c = begin; c < C && row < rows; c += kWarp * 8) {
            cp_async16(dy_rows + row * C + c, dy[first + row] + c);
            cp_async16(res_rows + row * C + c, res[first + row] + c);
            cp_async16(dres_rows + row * C + c, dres[first + row] + c);
        }
        cp_async_commit();
    }
    if ((int)threadIdx.x < rows) scales[threadIdx.x] = rstd[first + threadIdx.x];
    Packed<8> weights[kKeep];
#pragma unroll
    for (int k = 0; k < kKeep; k++)
        if (begin + k * kWarp * 8 < C) weights[k] = load_packed<8>(w + begin + k * kWarp * 8);
    uint32_t largest = 0;
#pragma unroll 1
    for (int each = 0; each < kEach; each++) {
        int row = warp + each * kBlockWarps;
        if (each == 0) cp_async_wait<1>();
        else cp_async_wait<0>();
        __syncwarp();   // every lane's octets have arrived
        if (row >= rows) break;
        const bf16 *g = dy_rows + row * C, *r = res_rows + row * C, *before = dres_rows + row * C;
        float scale = rstd[first + row], of_warp[kWarps] = {}, along_r = 0;
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * kWarp * 8;
            if (c >= C) continue;
            Values<8> gv = load_values<8>(g + c), rv = load_values<8>(r + c), weight = unpack(weights[k]);
#pragma unroll
            for (int i = 0; i < 8; i++) of_warp[k % kWarps] += gv.v[i] * rv.v[i] * weight.v[i];
        }
#pragma unroll
        for (int part = 0; part < kWarps; part++) along_r += warp_sum(of_warp[part]);
        along_r = along_r / C * scale * scale;
#pragma unroll
        for (int k = 0; k < kKeep; k++) {
            int c = begin + k * kWarp * 8;
            if (c >= C) continue;
            Values<8> gv = load_values<8>(g + c), rv = load_values<8>(r + c), weight = unpack(weights[k]), out = load_values<8>(before + c);
#pragma unroll
            for (int i = 0; i < 8; i++) out.v[i] += scale * (gv.v[i] * weight.v[i] - rv.v[i] * along_r);
            Packed<8> rounded = pack(out);
            store_packed(dres[first + row] + c, rounded);
            largest = max(largest, largest_bits(rounded));
        }
    }
    if (absmax) raise_block_absmax(absmax, largest);
    __syncthreads();   // every warp's rows have arrived
    for (int c = threadIdx.x * 2; c < C; c += kNormNarrowThreads * 2) {
        float dw[2] = {};
#pragma unroll 8
        for (int row = 0; row < rows; row++) {
            uint32_t gv = *(const uint32_t*)(dy_rows + row * C + c), rv = *(const uint32_t*)(res_rows + row * C + c);
            dw[0] += f32_from_bits(gv << 16) * f32_from_bits(rv << 16) * scales[row];
            dw[1] += f32_from_bits(gv & 0xffff0000u) * f32_from_bits(rv & 0xffff0000u) * scales[row];
        }
        *(float2*)(dw_rows + (size_t)blockIdx.x * C + c) = make_float2(dw[0], dw[1]);
    }
}

__global__ void __launch_bounds__(512) rmsnorm_backward_any_kernel(Rows<bf16> dres, float* dw_rows, Rows<const bf16> dy,
                                                                  Rows<const bf16> res, const bf16* w, const float* rstd, int BT, int C,
                                                                  float* absmax) {
    uint32_t largest = 0;
    float* dw = dw_rows + (size_t)blockIdx.x * C;
    int rows = dw_rows ? kNormRows : 1, first = blockIdx.x * rows, end = min(first + rows, BT);
    for (int t = first; t < end; t++) {
        float scale = rstd[t], along_r = 0;
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            float product = f32_from_bf16(dy[t][c]) * f32_from_bf16(res[t][c]);
            along_r += product * f32_from_bf16(w[c]);
            if (dw_rows) dw[c] = (t == first ? 0.0f : dw[c]) + product * scale;
        }
        along_r = block_sum(along_r) / C * scale * scale;
        for (int c = threadIdx.x; c < C; c += blockDim.x) {
            float through_y = f32_from_bf16(dy[t][c]) * f32_from_bf16(w[c]) - f32_from_bf16(res[t][c]) * along_r;
            Packed<1> out = pack(Values<1>{{f32_from_bf16(dres[t][c]) + scale * through_y}});
            store_packed(dres[t] + c, out);
            largest = max(largest, largest_bits(out));
        }
    }
    if (absmax) raise_block_absmax(absmax, largest);
}

// dw (C) += the sum of the rows of scratch: kDwLanes of them side by side, each in steps of kDwLanes, then the lanes in order.
template <typename Grad>
__global__ void __launch_bounds__(kDwCols * kDwLanes) rmsnorm_dw_kernel(Grad* dw, const float* dw_rows, int rows, int C) {
    __shared__ float partial[kDwLanes][kDwCols];
    int c = blockIdx.x * kDwCols + threadIdx.x, lane = threadIdx.y;
    float sum = 0;
    if (c < C) {
#pragma unroll 16
        for (int p = lane; p < rows; p += kDwLanes) sum += dw_rows[(size_t)p * C + c];
    }
    partial[lane][threadIdx.x] = sum;
    __syncthreads();
    if (lane != 0 || c >= C) return;
    Values<1> total = load_values<1>(dw + c);
    float added = 0;
    for (int l = 0; l < kDwLanes; l++) added += partial[l][threadIdx.x];
    total.v[0] += added;
    store_values(dw + c, total);
}

// ---- launchers
#define LAUNCH_RMSNORM_FORWARD(kernel, threads, shared_bytes, ...)                                                         \
    LAUNCH(kernel, y.rows, (threads), (shared_bytes), rows_of<bf16>(y), rstd, rows_of<bf16>(res), rows_of<const bf16>(x),  \
           rows_of<const bf16>(delta), (const bf16*)w.data, y.cols, eps, absmax, ##__VA_ARGS__)

// kKeep: octets that a thread keeps. kTiles: 0, or tiles for the maximum after the rotation.
template <int kKeep, int kTiles>
static void launch_rmsnorm_forward(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, float* absmax, RowRuns runs, int most_threads) {
    auto kernel = rmsnorm_forward_kernel<kKeep, kTiles>;
    FeatureItem row = one_row(runs);
    size_t shared_bytes = kTiles ? row.bytes() : 0;
    if (kTiles) allow_shared(kernel, shared_limit());
    LAUNCH_RMSNORM_FORWARD(kernel, threads_for(ceil_div(y.cols / 8, kKeep), most_threads), shared_bytes, row);
}
static void rmsnorm_forward(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, Prep prep) {
    int C = y.cols, octets = ceil_div(C, 8);
    check_bf16(y, y.rows, C, "rmsnorm_forward");
    check_bf16(x, y.rows, C, "rmsnorm_forward");
    check_bf16(w, 1, C, "rmsnorm_forward");
    if (delta.data) {
        check_bf16(delta, y.rows, C, "rmsnorm_forward");
        check_bf16(res, y.rows, C, "rmsnorm_forward");
    }
    bool fast = is_octets(y) && is_octets(x) && is_octets(w) && C <= kNormForwardMax && (!delta.data || (is_octets(delta) && is_octets(res)));
    RowRuns runs = {};
    bool rotates = prep.rotate && prep.absmax;
    bool inside = rotates && fast && octets <= 4 * 512 && producer_runs(C, &runs) && runs.order <= 2 * kFragment;
    float* absmax = rotates && !inside ? NULL : prep.absmax;
    // Which kernel is launched for rows of up to most_octets octets: its kKeep, its kTiles, and its most threads. The first row that fits.
    static const struct {
        int most_octets, most_order;   // most_order: of H across runs, if the kernel takes the rotated maximum itself; 0: it does not
        void (*launch)(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, float* absmax, RowRuns runs, int most_threads);
        int most_threads;
    } kLaunches[] = {
        {2 * 256, 0, launch_rmsnorm_forward<2, 0>, 256}, {2 * 256, kFragment, launch_rmsnorm_forward<2, 1>, 256},
        {2 * 256, 2 * kFragment, launch_rmsnorm_forward<2, 2>, 256}, {4 * 512, 0, launch_rmsnorm_forward<4, 0>, 512},
        {4 * 512, kFragment, launch_rmsnorm_forward<4, 1>, 512}, {4 * 512, 2 * kFragment, launch_rmsnorm_forward<4, 2>, 512},
        {8 * 512, 0, launch_rmsnorm_forward<8, 0>, 512}};
    if (fast) {
        int n = 0, order = inside ? runs.order : 0;
        while (octets > kLaunches[n].most_octets || inside != (kLaunches[n].most_order > 0) || order > kLaunches[n].most_order) n++;
        kLaunches[n].launch(y, rstd, res, x, delta, w, eps, absmax, runs, kLaunches[n].most_threads);
    } else {
        LAUNCH_RMSNORM_FORWARD(rmsnorm_forward_any_kernel, threads_for(C, 512), 0);
    }
    if (rotates && !inside) rotate(mat(NULL, y.rows, C, BF16), y, ROTATE_COLS, false, 0, prep.absmax);
}

#define LAUNCH_RMSNORM_BACKWARD(kernel, threads, shared_bytes)                                                                        \
    LAUNCH(kernel, blocks, (threads), (shared_bytes), rows_of<bf16>(dres), dw_rows, rows_of<const bf16>(dy), rows_of<const bf16>(res), \
           (const bf16*)w.data, rstd, BT, C, absmax)

static void rmsnorm_backward(Mat dres, Mat dw, Mat dy, Mat res, Mat w, const float* rstd, void* scratch, float* absmax) {
    int BT = dres.rows, C = dres.cols, blocks = dw.data ? ceil_div(BT, kNormRows) : BT, octets = ceil_div(C, 8);
    check_bf16(dres, BT, C, "rmsnorm_backward");
    check_bf16(dy, BT, C, "rmsnorm_backward");
    check_bf16(res, BT, C, "rmsnorm_backward");
    check_bf16(w, 1, C, "rmsnorm_backward");
    if (dw.data) check_mat(dw, 1, C, "rmsnorm_backward");
    float* dw_rows = dw.data ? (float*)scratch : NULL;
    bool fast = is_octets(dres) && is_octets(dy) && is_octets(res) && is_octets(w) && C <= kNormBackwardMax;
    int by_two = threads_for(ceil_div(octets, 2), 512), by_four = threads_for(ceil_div(octets, 4), 512);   // threads of two or four octets
    size_t narrow_bytes = 3 * sizeof(bf16) * kNormRows * (size_t)C;
    bool narrow = fast && dw.data && C <= kNormNarrowMax && narrow_bytes <= shared_limit();
    if (narrow) {
        allow_shared(rmsnorm_backward_narrow_kernel<1>, narrow_bytes);
        allow_shared(rmsnorm_backward_narrow_kernel<2>, narrow_bytes);
    }
    if (!fast) LAUNCH_RMSNORM_BACKWARD(rmsnorm_backward_any_kernel, threads_for(C, 512), 0);
    else if (narrow && octets <= 2 * kWarp) LAUNCH_RMSNORM_BACKWARD(rmsnorm_backward_narrow_kernel<1>, kNormNarrowThreads, narrow_bytes);
    else if (narrow) LAUNCH_RMSNORM_BACKWARD(rmsnorm_backward_narrow_kernel<2>, kNormNarrowThreads, narrow_bytes);
    else if (octets <= 2 * 512 && dw.data) LAUNCH_RMSNORM_BACKWARD((rmsnorm_backward_kernel<2, true>), by_two, 0);
    else if (octets <= 2 * 512) LAUNCH_RMSNORM_BACKWARD((rmsnorm_backward_kernel<2, false>), by_two, 0);
    else if (dw.data) LAUNCH_RMSNORM_BACKWARD((rmsnorm_backward_kernel<4, true>), by_four, 0);
    else LAUNCH_RMSNORM_BACKWARD((rmsnorm_backward_kernel<4, false>), by_four, 0);
    if (!dw.data) return;
    dim3 grid(ceil_div(C, kDwCols)), block(kDwCols, kDwLanes);
    if (dw.fmt == F32) LAUNCH((rmsnorm_dw_kernel<float>), grid, block, 0, (float*)dw.data, dw_rows, blocks, C);
    else LAUNCH((rmsnorm_dw_kernel<bf16>), grid, block, 0, (bf16*)dw.data, dw_rows, blocks, C);
}

#undef LAUNCH_RMSNORM_FORWARD
#undef LAUNCH_RMSNORM_BACKWARD

#endif
