// The instructions that CUDA C++ has no name for. An instruction of every architecture (mma, ldmatrix, cp.async, acquire and release)
// has beside it its definition in plain C++, which HALO_SIMT runs: an instruction of a whole warp is one simt_meet. Hopper's own
// instructions (wgmma, TMA, mbarriers, setmaxnreg) exist for sm_90a here, and for HALO_SIMT in ptx_simt.cuh; HALO_HOPPER says that they do.
//
// Fragments of mma m16n8k16, with r = lane / 4 and c = 2 (lane % 4); a register of A or B holds two neighbours along K:
//   A (16 x 16)  a[0] = (r, c)  a[1] = (r + 8, c)  a[2] = (r, c + 8)  a[3] = (r + 8, c + 8)
//   B (16 x 8)   b[0] = (c, r)  b[1] = (c + 8, r)
//   D (16 x 8)   d[0] = (r, c)  d[1] = (r, c + 1)  d[2] = (r + 8, c)  d[3] = (r + 8, c + 1)
// So two neighbouring D, packed, are an A: what attention does with its scores. wgmma's D is the same, warp by warp.
#ifndef HALO_CUDA_PTX_CUH
#define HALO_CUDA_PTX_CUH

#include "device.cuh"

#ifdef HALO_SIMT
#include <vector>
#define HALO_SM90A 0
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HALO_SM90A 1
#else
#define HALO_SM90A 0
#endif
#if HALO_SM90A || defined(HALO_SIMT)
#define HALO_HOPPER 1
#else
#define HALO_HOPPER 0
#endif
#ifdef HALO_SIMT
#include "ptx_simt.cuh"
#else
#include <cuda.h>   // CUtensorMap; nothing of the driver is linked
#endif

// ---- arithmetic
// 2^x within 2 units in the last place; results below 2^-126 are zero.
__device__ inline float exp2_approx(float x) {
#ifdef HALO_SIMT
    return x < -126.0f ? 0.0f : exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// sqrt(x) and a / b rounded once, for x from 2^-100 to 2^80, |a| from 2^-80 to 2^60 and b from 2^-38 to 2^41: __fsqrt_rn and __fdiv_rn
// without their tests for zero and the ends of the range.
__device__ inline float moderate_sqrt(float x) {
#ifdef HALO_SIMT
    return sqrtf(x);
#else
    float r;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    float root = __fmul_rn(x, r);
    return __fmaf_rn(__fmaf_rn(-root, root, x), __fmul_rn(r, 0.5f), root);
#endif
}
__device__ inline float moderate_quotient(float a, float b) {
#ifdef HALO_SIMT
    return a / b;
#else
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
    r = __fmaf_rn(r, __fmaf_rn(-b, r, 1.0f), r);
    float quotient = __fmul_rn(a, r);
    return __fmaf_rn(r, __fmaf_rn(-b, quotient, a), quotient);
#endif
}

// Two values rounded to bf16 as numfmt.h does it (a NaN may differ from it in its payload), `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
#ifdef HALO_SIMT
    return (uint32_t)bf16_from_f32(low) | (uint32_t)bf16_from_f32(high) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}

#ifdef HALO_SIMT
// FP16 as a SmallFloat (numfmt.h), with infinities added.
static const SmallFloat kSimtHalf = {10, 15, 65504.0f};
static inline float simt_f32_from_f16(uint16_t h) {
    float sign = h & 0x8000u ? -1.0f : 1.0f;
    if ((h & 0x7c00u) == 0x7c00u) return h & 0x3ffu ? NAN : sign * INFINITY;
    return sign * small_float_magnitude(h & 0x7fffu, kSimtHalf);
}
static inline uint16_t simt_f16_from_f32(float x) {
    uint32_t sign = f32_bits(x) >> 16 & 0x8000u;
    if (!(fabsf(x) < 65520.0f)) return (uint16_t)(sign | (x == x ? 0x7c00u : 0x7e00u));
    return (uint16_t)(sign | small_float_magnitude_code(small_float_round(x, kSimtHalf), kSimtHalf));
}
#endif
// Two values rounded to FP16, `low` in the lower half; infinity beyond 65519.
__device__ inline uint32_t pack_f16(float low, float high) {
#ifdef HALO_SIMT
    return (uint32_t)simt_f16_from_f32(low) | (uint32_t)simt_f16_from_f32(high) << 16;
#else
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
#endif
}
// The two values of a pair of FP16.
__device__ inline void unpack_f16(uint32_t pair, float& low, float& high) {
#ifdef HALO_SIMT
    low = simt_f32_from_f16((uint16_t)pair);
    high = simt_f32_from_f16((uint16_t)(pair >> 16));
#else
    asm("{.reg .f16 l, h;\n mov.b32 {l, h}, %2;\n cvt.f32.f16 %0, l;\n cvt.f32.f16 %1, h;}" : "=f"(low), "=f"(high) : "r"(pair));
#endif
}
// A pair of bf16, both times a power of two: exact unless one leaves bf16's range.
__device__ inline uint32_t times_power_bf16(uint32_t pair, float power) {
    return pack_bf16(f32_from_bits(pair << 16) * power, f32_from_bits(pair & 0xffff0000u) * power);
}
// Value by value the larger magnitude of two pairs of bf16, with any sign; a NaN may lose.
__device__ inline uint32_t larger_pair_bf16(uint32_t a, uint32_t b) {
#ifdef HALO_SIMT
    return max(a & 0x7fffu, b & 0x7fffu) | max(a & 0x7fff0000u, b & 0x7fff0000u);
#else
    uint32_t larger;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 860
    asm("max.xorsign.abs.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
#else
    asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a & 0x7fff7fffu), "r"(b & 0x7fff7fffu));
#endif
    return larger;
#endif
}

// ---- mma.sync of bf16 or FP16: mma_bf16 and mma_f16 add a b to d[0..3]; mma_bf16_first and mma_f16_first overwrite d with a b, so that no
// zeros need to be written first.
#ifdef HALO_SIMT
template <float (*kValue)(uint16_t)>
static inline void simt_mma(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Lane {
        float* d;
        const uint32_t* a;
        uint32_t b[2];
    } mine = {d, a, {b0, b1}};
    simt_meet(0xffffffffu, mine, [](Lane* const* lane, unsigned) {
        float A[16][16], B[16][8];
        for (int i = 0; i < kWarp; i++) {
            int r = i / 4, c = i % 4 * 2;
            for (int half = 0; half < 2; half++) {
                for (int j = 0; j < 4; j++) A[r + j % 2 * 8][c + j / 2 * 8 + half] = kValue((uint16_t)(lane[i]->a[j] >> 16 * half));
                for (int j = 0; j < 2; j++) B[c + j * 8 + half][r] = kValue((uint16_t)(lane[i]->b[j] >> 16 * half));
            }
        }
        for (int i = 0; i < kWarp; i++) {
            for (int j = 0; j < 4; j++) {
                int row = i / 4 + j / 2 * 8, col = i % 4 * 2 + j % 2;
                for (int k = 0; k < 16; k++) lane[i]->d[j] += A[row][k] * B[k][col];
            }
        }
    });
}
#define MMA_K16(format, value)                                                                                                          \
    static inline void mma_##format(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { simt_mma<value>(d, a, b0, b1); }     \
    static inline void mma_##format##_first(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                              \
        for (int i = 0; i < 4; i++) d[i] = 0;                                                                                          \
        simt_mma<value>(d, a, b0, b1);                                                                                                 \
    }
#else
#define MMA_K16(format, value)                                                                                                          \
    __device__ inline void mma_##format(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                                  \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #format "." #format ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "          \
                     "{%8, %9}, {%0, %1, %2, %3};"                                                                                     \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                                  \
    }                                                                                                                                  \
    __device__ inline void mma_##format##_first(float* d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                          \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." #format "." #format ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "          \
                     "{%8, %9}, {%10, %10, %10, %10};"                                                                                 \
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));                                       \
    }
#endif
MMA_K16(bf16, f32_from_bf16)
MMA_K16(f16, simt_f32_from_f16)
#undef MMA_K16

// INT8, m16n8k32: a register of A or B holds four neighbours along K where bf16 has two; the sums are exact.
__device__ inline void mma_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef HALO_SIMT
    struct Lane {
        int* d;
        const uint32_t* a;
        uint32_t b[2];
    } mine = {d, a, {b0, b1}};
    simt_meet(0xffffffffu, mine, [](Lane* const* lane, unsigned) {
        int8_t A[16][32], B[32][8];
        for (int i = 0; i < kWarp; i++) {
            int r = i / 4, c = i % 4 * 4;
            for (int byte = 0; byte < 4; byte++) {
                for (int j = 0; j < 4; j++) A[r + j % 2 * 8][c + j / 2 * 16 + byte] = (int8_t)(lane[i]->a[j] >> 8 * byte);
                for (int j = 0; j < 2; j++) B[c + j * 16 + byte][r] = (int8_t)(lane[i]->b[j] >> 8 * byte);
            }
        }
        for (int i = 0; i < kWarp; i++) {
            for (int j = 0; j < 4; j++) {
                int row = i / 4 + j / 2 * 8, col = i % 4 * 2 + j % 2;
                for (int k = 0; k < 32; k++) lane[i]->d[j] += A[row][k] * B[k][col];
            }
        }
    });
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// ---- ldmatrix: four 8 x 8 matrices of shared memory. Lane 8 i + j names the 16 bytes of row j of matrix i; r[i] is then this
// lane's pair (lane / 4, 2 (lane % 4)) of matrix i, or of its transpose.
#ifndef HALO_SIMT
__device__ inline uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
#endif

template <bool kTranspose>
__device__ inline void ldmatrix(uint32_t (&r)[4], const bf16* row) {
#ifdef HALO_SIMT
    struct Lane {
        const bf16* row;
        uint32_t* r;
    } mine = {row, r};
    check((uintptr_t)row % 16 == 0, "ldmatrix: a row at %p", (const void*)row);
    simt_meet(0xffffffffu, mine, [](Lane* const* lane, unsigned) {
        for (int i = 0; i < kWarp; i++) {
            for (int j = 0; j < 4; j++) {
                int at = i / 4, c = i % 4 * 2;
                const bf16 low = kTranspose ? lane[8 * j + c]->row[at] : lane[8 * j + at]->row[c];
                const bf16 high = kTranspose ? lane[8 * j + c + 1]->row[at] : lane[8 * j + at]->row[c + 1];
                lane[i]->r[j] = (uint32_t)low | (uint32_t)high << 16;
            }
        }
    });
#else
    if (kTranspose)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}

// ---- cp.async: 16 bytes from global to shared memory, or zeros if not `valid` (src must still be a 16-byte aligned address). What a
// thread has copied before a commit is a group; cp_async_wait<N> waits until at most its N latest groups are under way. The emulator
// copies only at the wait, so that a missing wait shows.
#ifdef HALO_SIMT
struct SimtCopy {
    void* dst;
    const void* src;
    bool valid;
};
struct SimtCopies {
    std::vector<std::vector<SimtCopy>> groups;
    std::vector<SimtCopy> open;
};
inline thread_local SimtCopies simt_copies[kSimtMaxThreads];
#endif

__device__ inline void cp_async16(void* dst, const void* src, bool valid) {
#ifdef HALO_SIMT
    check((uintptr_t)dst % 16 == 0 && (uintptr_t)src % 16 == 0, "cp.async: %p to %p", src, dst);
    simt_copies[simt_block->current].open.push_back(SimtCopy{dst, src, valid});
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(valid ? 16 : 0) : "memory");
#endif
}
// A copy that is always valid: fewer instructions. The L2 fetches the 128 bytes around src, which other threads are about to read.
__device__ inline void cp_async16(void* dst, const void* src) {
#ifdef HALO_SIMT
    cp_async16(dst, src, true);
#else
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_address(dst)), "l"(src) : "memory");
#endif
}
__device__ inline void cp_async_commit() {
#ifdef HALO_SIMT
    SimtCopies& mine = simt_copies[simt_block->current];
    mine.groups.push_back(mine.open);
    mine.open.clear();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kLatest>
__device__ inline void cp_async_wait() {
#ifdef HALO_SIMT
    SimtCopies& mine = simt_copies[simt_block->current];
    while ((int)mine.groups.size() > kLatest) {
        for (const SimtCopy& copy : mine.groups[0]) {
            if (copy.valid) memcpy(copy.dst, copy.src, 16);
            else memset(copy.dst, 0, 16);
        }
        mine.groups.erase(mine.groups.begin());
    }
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(kLatest) : "memory");
#endif
}

// `count` times 16 bytes, to_step and from_step bytes apart. Four at a time: the compiler fences each group of copies.
__device__ inline void cp_async_many(void* dst, const void* src, int to_step, size_t from_step, int count) {
    char* to = (char*)dst;
    const char* from = (const char*)src;
#pragma unroll 1
    for (; count >= 4; count -= 4, to += 4 * to_step, from += 4 * from_step) {
        cp_async16(to, from);
        cp_async16(to + to_step, from + from_step);
        cp_async16(to + 2 * to_step, from + 2 * from_step);
        cp_async16(to + 3 * to_step, from + 3 * from_step);
    }
    if (count & 2) {
        cp_async16(to, from);
        cp_async16(to + to_step, from + from_step);
    }
    if (count & 1) cp_async16(to + (count & 2) * to_step, from + (count & 2) * from_step);
}

// Fetches the line of p from global memory into the L2, without waiting.
__device__ inline void prefetch_l2(const void* p) {
#ifdef HALO_SIMT
    (void)p;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

// ---- a named barrier of some of a block's threads (0 is __syncthreads)
#ifndef HALO_SIMT
__device__ inline void named_barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
#endif

// ---- flags between blocks. A release by one thread, after a __syncthreads, makes visible all that its block wrote before that barrier.
__device__ inline unsigned load_acquire(const unsigned* p) {
#ifdef HALO_SIMT
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
#else
    unsigned x;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
#endif
}
__device__ inline void store_release(unsigned* p, unsigned x) {
#ifdef HALO_SIMT
    __atomic_store_n(p, x, __ATOMIC_RELEASE);
#else
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
#endif
}

// Adds to a counter between blocks, and returns what it held: a release and an acquire in one.
__device__ inline unsigned add_acquire_release(unsigned* p, unsigned x) {
#ifdef HALO_SIMT
    return __atomic_fetch_add(p, x, __ATOMIC_ACQ_REL);
#else
    unsigned before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(p), "r"(x) : "memory");
    return before;
#endif
}

// ================================================================ Hopper
#if HALO_SM90A

// ---- mbarriers: count arrivals and bytes; a phase ends when both are complete, and phases alternate in parity.
__device__ inline void mbarrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to TMA.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ inline void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes) {   // expects bytes more, and arrives
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra over;\n"
        "bra again;\n"
        "over:\n"
        "}" ::"r"(shared_address(barrier)), "r"(parity) : "memory");
}

// ---- TMA: a box of a tensor to shared memory; its bytes count towards the barrier.
__device__ inline void tma_prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Copies `bytes` (a multiple of 16) neighbouring bytes; dst and src are multiples of 16.
__device__ inline void bulk_load(void* dst, const void* src, uint32_t bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(dst)), "l"(src),
                 "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// From shared to global memory, `bytes` and addresses as above: bulk_store copies; bulk_add adds FP32 values, each sum rounded to nearest, as
// red.global.add.f32 does it: what is below 2^-126 counts as zero. After bulk_wait this thread sees all that the copies it started have written.
__device__ inline void bulk_store(void* dst, const void* src, uint32_t bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(dst), "r"(shared_address(src)), "r"(bytes) : "memory");
}
__device__ inline void bulk_add(float* dst, const float* src, uint32_t bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(dst), "r"(shared_address(src)), "r"(bytes)
                 : "memory");
}
__device__ inline void bulk_wait() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// Orders what this thread has seen in global memory before the bulk copies that it starts from here on.
__device__ inline void bulk_fence() { asm volatile("fence.proxy.async;" ::: "memory"); }
__device__ inline void tma_load_3d(void* dst, const CUtensorMap* map, int column, int row, int plane, uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(
                     shared_address(dst)), "l"(map), "r"(column), "r"(row), "r"(plane), "r"(shared_address(barrier)) : "memory");
}
__device__ inline void tma_load_2d(void* dst, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(dst)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)) : "memory");
}

// ---- warps: named barriers without waiting, and moving registers between warpgroups
__device__ inline void named_barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int kRegisters> __device__ inline void registers_shrink() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)); }
template <int kRegisters> __device__ inline void registers_grow() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)); }
// Makes this thread's ordinary writes to shared memory visible to wgmma and TMA.
__device__ inline void async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- wgmma. A matrix in shared memory lies in panels of 64 bf16 = 128 bytes a row, 16-byte units permuted within each eight rows (the
// 128-byte swizzle; a panel starts on 1024 bytes). Its descriptor: address | distance of panels, where the instruction reads across
// several (an operand that is not K-major) | 1024 bytes between groups of eight rows | the swizzle.
__device__ inline uint64_t wgmma_matrix(const void* p, int panel_bytes) {
    return (uint64_t)(shared_address(p) >> 4 & 0x3fff) | (uint64_t)(panel_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
// The descriptor of a matrix that starts `bytes` further on.
__device__ inline uint64_t wgmma_advance(uint64_t matrix, int bytes) { return matrix + (uint64_t)(bytes >> 4); }

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLatest> __device__ inline void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLatest) : "memory"); }
// The compiler may not move uses of x across this point: the registers belong to a wgmma under way.
template <int kCount> __device__ inline void wgmma_pin(float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; i++) asm volatile("" : "+f"(x[i])::"memory");
}

#define WGMMA_D4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_D32(d, i) \
    WGMMA_D4(d, i), WGMMA_D4(d, i + 4), WGMMA_D4(d, i + 8), WGMMA_D4(d, i + 12), WGMMA_D4(d, i + 16), WGMMA_D4(d, i + 20), \
        WGMMA_D4(d, i + 24), WGMMA_D4(d, i + 28)
#define WGMMA_D32_NAMES \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D64_NAMES \
    WGMMA_D32_NAMES ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d (64 x N) = a b + (accumulate ? d : 0): one k16 step of a warpgroup, N = 2 kCount. a is in shared memory, kTransA: (K, M)
// row-major instead of (M, K), or in registers; b in shared memory, kTransB: (K, N) instead of (N, K).
template <int kTransA, int kTransB, int kCount>
__device__ inline void wgmma_bf16(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(kCount == 32 || kCount == 64, "a product 64 or 128 wide");
    if constexpr (kCount == 32)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_D32_NAMES "}, %32, %33, p, 1, 1, %35, %36;\n}"
                     : WGMMA_D32(d, 0) : "l"(a), "l"(b), "r"((int)accumulate), "n"(kTransA), "n"(kTransB));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_D64_NAMES "}, %64, %65, p, 1, 1, %67, %68;\n}"
                     : WGMMA_D32(d, 0), WGMMA_D32(d, 32) : "l"(a), "l"(b), "r"((int)accumulate), "n"(kTransA), "n"(kTransB));
}
template <int kTransB, int kCount>
__device__ inline void wgmma_bf16(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    static_assert(kCount == 32 || kCount == 64, "a product 64 or 128 wide");
    if constexpr (kCount == 32)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" WGMMA_D32_NAMES "}, {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}"
                     : WGMMA_D32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(kTransB));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WGMMA_D64_NAMES "}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
                     : WGMMA_D32(d, 0), WGMMA_D32(d, 32)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate), "n"(kTransB));
}

// ---- clusters: blocks that run together
__device__ inline int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// A barrier of all threads of the cluster: all that they wrote before is visible to all of them after.
__device__ inline void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Arrives at block `rank`'s barrier: the one at the same address as `barrier`, in that block's shared memory. The
// arrival says that wgmma has read a stage. It orders no ordinary memory beyond the block, which would cost a fence of the whole GPU.
__device__ inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(shared_address(barrier)), "r"(rank) : "memory");
}
// tma_load_2d to the same shared address in each block of `blocks` (a bit for each); each block's own barrier counts the bytes.
__device__ inline void tma_load_2d_multicast(void* dst, const CUtensorMap* map, int column, int row, uint64_t* barrier, uint16_t blocks) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
            shared_address(dst)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks) : "memory");
}

// ---- wgmma on INT8: d (64 x N) = a b + (accumulate ? d : 0), one k32 step of a warpgroup, N = 2 kCount, sums exact; a and b K-major
#define WGMMA_S4(d, i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define WGMMA_S32(d, i) \
    WGMMA_S4(d, i), WGMMA_S4(d, i + 4), WGMMA_S4(d, i + 8), WGMMA_S4(d, i + 12), WGMMA_S4(d, i + 16), WGMMA_S4(d, i + 20), \
        WGMMA_S4(d, i + 24), WGMMA_S4(d, i + 28)
#define WGMMA_D96_NAMES \
    WGMMA_D64_NAMES ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_D128_NAMES \
    WGMMA_D96_NAMES ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
template <int kCount>
__device__ inline void wgmma_s8(int (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(kCount == 64 || kCount == 96 || kCount == 128, "a product 128, 192 or 256 wide");
    if constexpr (kCount == 64)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 {" WGMMA_D64_NAMES "}, %64, %65, p;\n}"
                     : WGMMA_S32(d, 0), WGMMA_S32(d, 32) : "l"(a), "l"(b), "r"((int)accumulate));
    else if constexpr (kCount == 96)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %98, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n192k32.s32.s8.s8 {" WGMMA_D96_NAMES "}, %96, %97, p;\n}"
                     : WGMMA_S32(d, 0), WGMMA_S32(d, 32), WGMMA_S32(d, 64) : "l"(a), "l"(b), "r"((int)accumulate));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {" WGMMA_D128_NAMES "}, %128, %129, p;\n}"
                     : WGMMA_S32(d, 0), WGMMA_S32(d, 32), WGMMA_S32(d, 64), WGMMA_S32(d, 96) : "l"(a), "l"(b), "r"((int)accumulate));
}

#endif
#endif
