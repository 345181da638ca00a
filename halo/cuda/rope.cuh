// Rotary embedding (Su et al. 2021), rotate-half layout: the pair (a, b) = (x[j], x[j + HD/2]) turns by the angle of its
// position, in place on the q and k columns of qkv (BT, (NH + 2 NKV) HD). Turning back is the transpose.
//
// Bytes per element of q and k: 4 (read 2, write 2); a token's row of the table is read once a block and stays in cache. At
// 3 TB/s and BT = 16k, 40 heads of 128: 112 us. Finding the maxima of q, k and v costs 2 bytes per element of v, which is read for them.
//
// A block holds a few tokens. A thread has kWidth neighbouring j of one token, loads their cosines and sines once, and turns
// them in every `lanes`-th head.
#ifndef HALO_CUDA_ROPE_CUH
#define HALO_CUDA_ROPE_CUH

#include "device.cuh"

struct RopeShape {
    int BT, NH, NKV, HD;
    int lanes, tokens;   // heads side by side, and tokens, of a block
    float direction;     // -1: turns back
};

template <int kWidth>
__global__ void __launch_bounds__(1024) rope_kernel(Rows<bf16> qkv, const float* cos_sin, const int* pos, RopeShape s, float* absmax) {
    int half = s.HD / 2, groups = half / kWidth, within = threadIdx.x % (s.lanes * groups), token = threadIdx.x / (s.lanes * groups);
    int j = within % groups * kWidth, first_head = within / groups, t = blockIdx.x * s.tokens + token;
    uint32_t largest[3] = {0, 0, 0};
    if (token < s.tokens && t < s.BT) {
        const float* table = cos_sin + (size_t)pos[t] * s.HD + j;
        Values<kWidth> cosine = load_values<kWidth>(table), sine = load_values<kWidth>(table + half);
#pragma unroll
        for (int i = 0; i < kWidth; i++) sine.v[i] *= s.direction;
        bf16* row = qkv[t] + j;
#pragma unroll 2
        for (int h = first_head; h < s.NH + s.NKV; h += s.lanes) {
            bf16* x = row + h * s.HD;
            Values<kWidth> a = load_values<kWidth>(x), b = load_values<kWidth>(x + half), to_a, to_b;
#pragma unroll
            for (int i = 0; i < kWidth; i++) {
                to_a.v[i] = a.v[i] * cosine.v[i] - b.v[i] * sine.v[i];
                to_b.v[i] = b.v[i] * cosine.v[i] + a.v[i] * sine.v[i];
            }
            Packed<kWidth> turned_a = pack(to_a), turned_b = pack(to_b);
            store_packed(x, turned_a);
            store_packed(x + half, turned_b);
            uint32_t bits = max(largest_bits(turned_a), largest_bits(turned_b));
            largest[0] = max(largest[0], h < s.NH ? bits : 0u);
            largest[1] = max(largest[1], h < s.NH ? 0u : bits);
        }
        for (int h = first_head; absmax && h < s.NKV; h += s.lanes) {
            const bf16* v = row + (s.NH + s.NKV + h) * s.HD;
            largest[2] = max(largest[2], max(largest_bits(load_packed<kWidth>(v)), largest_bits(load_packed<kWidth>(v + half))));
        }
    }
    if (!absmax) return;
    for (int part = 0; part < 3; part++) raise_block_absmax(absmax + part, largest[part]);
}

template <int kWidth>
static void launch_rope(Mat qkv, const float* cos_sin, const int* pos, RopeShape s, float* absmax) {
    int heads = s.NH + s.NKV, groups = s.HD / 2 / kWidth, passes = ceil_div(heads * groups, 256);
    s.lanes = ceil_div(heads, passes);
    check(s.lanes * groups <= 1024, "rope (cuda): head_dim %d", s.HD);
    s.tokens = max_int(1, 256 / (s.lanes * groups));
    LAUNCH((rope_kernel<kWidth>), ceil_div(s.BT, s.tokens), threads_for(s.lanes * groups * s.tokens, 1024), 0, rows_of<bf16>(qkv), cos_sin, pos, s,
           absmax);
}
static void rope(Mat qkv, const float* cos_sin, const int* pos, int NH, int NKV, int HD, bool inverse, float* absmax) {
    check_bf16(qkv, qkv.rows, (NH + 2 * NKV) * HD, "rope");
    check(HD % 2 == 0, "rope: head_dim %d is odd", HD);
    RopeShape s = {qkv.rows, NH, NKV, HD, 0, 0, inverse ? -1.0f : 1.0f};
    if (HD % 16 == 0 && is_octets(qkv)) launch_rope<8>(qkv, cos_sin, pos, s, absmax);
    else launch_rope<1>(qkv, cos_sin, pos, s, absmax);
}

#endif
