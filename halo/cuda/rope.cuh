// Rotary embedding (Su et al. 2021), rotate-half layout: the pair (a, b) = (x[j], x[j + HD/2]) turns by the angle of its
// position, in place on the q and k columns of qkv (BT, (NH + 2 NKV) HD). Turning back is the transpose.
//
// Bytes per element of q and k: 4 (read 2, write 2); a token's row of the table is read once a block and stays in cache. At
// 3 TB/s and BT = 16k, 40 heads of 128: 112 us.
//
// A block holds a few tokens. A thread has kWidth neighbouring j of one token, loads their cosines and sines once, and turns
// them in every `lanes`-th head.
#ifndef HALO_CUDA_ROPE_CUH
#define HALO_CUDA_ROPE_CUH

#include "device.cuh"

template <int kWidth>
__global__ void __launch_bounds__(1024) rope_kernel(Rows<bf16> qkv, const float* cos_sin, const int* pos, int BT, int heads,
                                                   int lanes, int HD, float direction) {
    int half = HD / 2, groups = half / kWidth;
    int j = threadIdx.x % groups * kWidth, first_head = threadIdx.x / groups;
    int t = blockIdx.x * blockDim.y + threadIdx.y;
    if (t >= BT) return;
    const float* table = cos_sin + (size_t)pos[t] * HD + j;
    Values<kWidth> cosine = load_values<kWidth>(table), sine = load_values<kWidth>(table + half);
#pragma unroll
    for (int i = 0; i < kWidth; i++) sine.v[i] *= direction;
    bf16* row = qkv[t] + j;
#pragma unroll 2
    for (int h = first_head; h < heads; h += lanes) {
        bf16* x = row + h * HD;
        Values<kWidth> a = load_values<kWidth>(x), b = load_values<kWidth>(x + half), to_a, to_b;
#pragma unroll
        for (int i = 0; i < kWidth; i++) {
            to_a.v[i] = a.v[i] * cosine.v[i] - b.v[i] * sine.v[i];
            to_b.v[i] = b.v[i] * cosine.v[i] + a.v[i] * sine.v[i];
        }
        store_values(x, to_a);
        store_values(x + half, to_b);
    }
}

template <int kWidth>
static void launch_rope(Mat qkv, const float* cos_sin, const int* pos, int heads, int HD, bool inverse) {
    int groups = HD / 2 / kWidth, passes = ceil_div(heads * groups, 256), lanes = ceil_div(heads, passes);
    check(lanes * groups <= 1024, "rope (cuda): head_dim %d", HD);
    int tokens = max_int(1, 256 / (lanes * groups));
    LAUNCH((rope_kernel<kWidth>), ceil_div(qkv.rows, tokens), dim3(lanes * groups, tokens), 0, rows_of<bf16>(qkv), cos_sin, pos,
           qkv.rows, heads, lanes, HD, inverse ? -1.0f : 1.0f);
}
static void rope(Mat qkv, const float* cos_sin, const int* pos, int NH, int NKV, int HD, bool inverse) {
    check_bf16(qkv, qkv.rows, (NH + 2 * NKV) * HD, "rope");
    check(HD % 2 == 0, "rope: head_dim %d is odd", HD);
    if (HD % 16 == 0 && is_octets(qkv)) launch_rope<8>(qkv, cos_sin, pos, NH + NKV, HD, inverse);
    else launch_rope<1>(qkv, cos_sin, pos, NH + NKV, HD, inverse);
}

#endif
