// Hopper's instructions as HALO_SIMT runs them; ptx.cuh has the same functions for sm_90a. Data moves, and sums are formed, at once
// when an instruction is issued; only the order in which the emulator runs the threads varies. So the emulator checks descriptors, swizzles,
// parities and turns, but not whether a kernel waits for a wgmma before it touches that wgmma's registers.
#ifndef HALO_CUDA_PTX_SIMT_CUH
#define HALO_CUDA_PTX_SIMT_CUH

static inline uint32_t shared_address(const void* p) { return (uint32_t)((const char*)p - simt_block->shared); }

// ---- clusters
static inline int cluster_rank() { return simt_block->rank; }
static inline void cluster_sync() {
    simt_cluster_arrive();
    simt_cluster_wait();
}

// ---- mbarriers: blocks of a cluster, each on an OS thread, arrive at each other's
struct SimtMbarrier {
    uint64_t arrivals : 12, pending : 12, phase : 1;
    int64_t bytes : 39;
};
static inline void simt_mbarrier_update(uint64_t* barrier, int arrived, int bytes) {
    simt_atomic(barrier, [=](uint64_t old) {
        SimtMbarrier b;
        memcpy(&b, &old, sizeof b);
        check(b.pending >= (unsigned)arrived, "%s: more arrivals at an mbarrier than it counts", simt_block->kernel);
        b.pending -= (unsigned)arrived;
        b.bytes += bytes;
        if (!b.pending && !b.bytes) {
            b.pending = b.arrivals;
            b.phase ^= 1;
        }
        memcpy(&old, &b, sizeof b);
        return old;
    });
}
static inline void mbarrier_init(uint64_t* barrier, int arrivals) {
    SimtMbarrier b = {(uint64_t)arrivals, (uint64_t)arrivals, 0, 0};
    memcpy(barrier, &b, sizeof b);
}
static inline void mbarrier_init_fence() {}
static inline void mbarrier_arrive(uint64_t* barrier) { simt_mbarrier_update(barrier, 1, 0); }
static inline void mbarrier_arrive_at(uint64_t* barrier, uint32_t rank) {
    simt_mbarrier_update((uint64_t*)simt_cluster_address(barrier, (int)rank), 1, 0);
}
static inline void mbarrier_expect(uint64_t* barrier, uint32_t bytes) { simt_mbarrier_update(barrier, 1, (int)bytes); }
static inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    time_t start = time(NULL);
    for (;;) {
        uint64_t now = __atomic_load_n(barrier, __ATOMIC_SEQ_CST);
        SimtMbarrier b;
        memcpy(&b, &now, sizeof b);
        if (b.phase != parity) return;
        check(time(NULL) - start < kSimtPatience, "%s: block %u waits for an mbarrier that never completes", simt_block->kernel, blockIdx.x);
        if (simt_block->cluster && simt_block->ready_count == 0) sched_yield();
        simt_yield();
    }
}

// ---- TMA on a (planes, rows, columns) tensor, in boxes of 128 bytes of each of some rows
struct CUtensorMap {
    const char* data;
    int columns, rows, planes, box_rows, value_bytes;
    size_t row_bytes, plane_bytes;
};
// The 128-byte swizzle: the 16-byte unit within a row of 128 bytes, permuted by the row's number modulo 8.
static inline size_t simt_swizzle(size_t offset) { return offset ^ (offset >> 7 & 7) << 4; }

static inline void tma_prefetch_map(const CUtensorMap*) {}
// To the shared memory of the block that has `shared`, at byte `offset`.
static inline void simt_tma_load(char* shared, size_t offset, const CUtensorMap* map, int column, int row, int plane) {
    check(offset % 1024 == 0, "%s: a swizzled box at byte %zu of shared memory", simt_block->kernel, offset);
    for (int i = 0; i < map->box_rows; i++) {
        for (int j = 0; j < 128 / map->value_bytes; j++) {
            bool inside = row + i < map->rows && column + j < map->columns && plane < map->planes;
            char* to = shared + simt_swizzle(offset + (size_t)i * 128 + (size_t)j * map->value_bytes);
            if (inside) memcpy(to, map->data + plane * map->plane_bytes + (row + i) * map->row_bytes + (size_t)(column + j) * map->value_bytes, map->value_bytes);
            else memset(to, 0, map->value_bytes);
        }
    }
}
static inline void tma_load_3d(void* dst, const CUtensorMap* map, int column, int row, int plane, uint64_t* barrier) {
    simt_tma_load(simt_block->shared, shared_address(dst), map, column, row, plane);
    simt_mbarrier_update(barrier, 0, -map->box_rows * 128);
}
static inline void tma_load_2d(void* dst, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
    tma_load_3d(dst, map, column, row, 0, barrier);
}
static inline void tma_load_2d_multicast(void* dst, const CUtensorMap* map, int column, int row, uint64_t* barrier, uint16_t blocks) {
    for (int rank = 0; blocks >> rank; rank++) {
        if (!(blocks >> rank & 1)) continue;
        simt_tma_load(simt_cluster_address(simt_block->shared, rank), shared_address(dst), map, column, row, 0);
        simt_mbarrier_update((uint64_t*)simt_cluster_address(barrier, rank), 0, -map->box_rows * 128);
    }
}

static inline void bulk_load(void* dst, const void* src, uint32_t bytes, uint64_t* barrier) {
    check((uintptr_t)dst % 16 == 0 && (uintptr_t)src % 16 == 0 && bytes % 16 == 0, "bulk copy: %u bytes from %p to %p", bytes, src, dst);
    memcpy(dst, src, bytes);
    simt_mbarrier_update(barrier, 0, -(int)bytes);
}

// From shared to global memory: both are read and written only at bulk_wait, so that a missing wait shows.
struct SimtBulk {
    void* dst;
    const void* src;
    uint32_t bytes;
    bool adds;
};
inline thread_local std::vector<SimtBulk> simt_bulks[kSimtMaxThreads];
static inline void simt_bulk(void* dst, const void* src, uint32_t bytes, bool adds) {
    check((uintptr_t)dst % 16 == 0 && shared_address(src) % 16 == 0 && bytes % 16 == 0, "bulk copy: %u bytes from %p to %p", bytes, src, dst);
    simt_bulks[simt_block->current].push_back(SimtBulk{dst, src, bytes, adds});
}
static inline void bulk_store(void* dst, const void* src, uint32_t bytes) { simt_bulk(dst, src, bytes, false); }
static inline void bulk_add(float* dst, const float* src, uint32_t bytes) { simt_bulk(dst, src, bytes, true); }
static inline void bulk_wait() {
    for (const SimtBulk& bulk : simt_bulks[simt_block->current]) {
        if (bulk.adds)
            for (uint32_t i = 0; i < bulk.bytes / sizeof(float); i++) ((float*)bulk.dst)[i] += ((const float*)bulk.src)[i];
        else memcpy(bulk.dst, bulk.src, bulk.bytes);
    }
    simt_bulks[simt_block->current].clear();
}
static inline void bulk_fence() {}

// ---- warps
static inline void named_barrier_sync(int id, int threads) { simt_barrier(id, threads); }
static inline void named_barrier_arrive(int id, int threads) {
    SimtBlock* b = simt_block;
    check(b->waiting[id] == 0 || b->wanted[id] == threads, "%s: barrier %d of %d threads is one of %d elsewhere", b->kernel, id, threads,
          b->wanted[id]);
    b->wanted[id] = threads;
    b->waiting[id]++;
    if (simt_barrier_is_full(b, id)) simt_open_barrier(b, id);
}
template <int kRegisters> static inline void registers_shrink() {}
template <int kRegisters> static inline void registers_grow() {}
static inline void async_proxy_fence() {}

// ---- wgmma
static inline uint64_t wgmma_matrix(const void* p, int panel_bytes) {
    size_t offset = shared_address(p);
    return (offset >> 4 & 0x3fff) | (uint64_t)(panel_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
static inline uint64_t wgmma_advance(uint64_t matrix, int bytes) { return matrix + (uint64_t)(bytes >> 4); }
static inline void wgmma_fence() {}
static inline void wgmma_commit() {}
template <int kLatest> static inline void wgmma_wait() {}
template <int kCount> static inline void wgmma_pin(float (&)[kCount]) {}

// Value (i, k) of a matrix of shared memory: i along M or N, which is the slow axis, or (transposed) the fast one.
static inline float simt_wgmma_value(uint64_t matrix, int i, int k, bool transposed) {
    size_t start = (matrix & 0x3fff) << 4, leading = (matrix >> 16 & 0x3fff) << 4, stride = (matrix >> 32 & 0x3fff) << 4;
    size_t offset = transposed ? start + i / 64 * leading + i % 64 * 2 + k / 8 * stride + k % 8 * 128
                               : start + i / 8 * stride + i % 8 * 128 + k * 2;
    bf16 x;
    memcpy(&x, simt_block->shared + simt_swizzle(offset), sizeof x);
    return f32_from_bf16(x);
}

// One warp's 16 rows of a wgmma: a (16 x 16), and the d of each of its lanes.
static inline void simt_wgmma_warp(float* const* d, int count, const float (&a)[16][16], uint64_t b, bool transposed, bool accumulate) {
    for (int n = 0; n < count * 2; n++) {
        float column[16];
        for (int k = 0; k < 16; k++) column[k] = simt_wgmma_value(b, n, k, transposed);
        for (int row = 0; row < 16; row++) {
            float& x = d[row % 8 * 4 + n % 8 / 2][n / 8 * 4 + row / 8 * 2 + n % 2];
            if (!accumulate) x = 0;
            for (int k = 0; k < 16; k++) x += a[row][k] * column[k];
        }
    }
}
template <int kTransA, int kTransB, int kCount>
static inline void wgmma_bf16(float (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    struct Lane {
        float* d;
        uint64_t a, b;
        bool accumulate;
    } mine = {d, a, b, accumulate};
    simt_meet(0xffffffffu, mine, [](Lane* const* lane, unsigned) {
        float A[16][16], *all_d[kWarp];
        int first = (int)threadIdx.x % 128 / kWarp * 16;
        for (int i = 0; i < 16; i++)
            for (int k = 0; k < 16; k++) A[i][k] = simt_wgmma_value(lane[0]->a, first + i, k, kTransA);
        for (int i = 0; i < kWarp; i++) all_d[i] = lane[i]->d;
        simt_wgmma_warp(all_d, kCount, A, lane[0]->b, kTransB, lane[0]->accumulate);
    });
}
template <int kTransB, int kCount>
static inline void wgmma_bf16(float (&d)[kCount], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
    struct Lane {
        float* d;
        const uint32_t* a;
        uint64_t b;
        bool accumulate;
    } mine = {d, a, b, accumulate};
    simt_meet(0xffffffffu, mine, [](Lane* const* lane, unsigned) {
        float A[16][16], *all_d[kWarp];
        for (int i = 0; i < kWarp; i++) {
            for (int j = 0; j < 4; j++)
                for (int half = 0; half < 2; half++)
                    A[i / 4 + j % 2 * 8][i % 4 * 2 + j / 2 * 8 + half] = f32_from_bf16((bf16)(lane[i]->a[j] >> 16 * half));
            all_d[i] = lane[i]->d;
        }
        simt_wgmma_warp(all_d, kCount, A, lane[0]->b, kTransB, lane[0]->accumulate);
    });
}

// INT8: sums (64 x 2 kCount) of one k32 step.
template <int kCount>
static inline void wgmma_s8(int (&d)[kCount], uint64_t a, uint64_t b, bool accumulate) {
    struct Lane {
        int* d;
        uint64_t a, b;
        bool accumulate;
    } mine = {d, a, b, accumulate};
    simt_meet(0xffffffffu, mine, [](Lane* const* lane, unsigned) {
        int first = (int)threadIdx.x % 128 / kWarp * 16;
        auto read = [](int8_t* to, uint64_t matrix, int row) {   // 32 codes of a row
            size_t start = (matrix & 0x3fff) << 4, stride = (matrix >> 32 & 0x3fff) << 4, at = start + row / 8 * stride + row % 8 * 128;
            for (int unit = 0; unit < 32; unit += 16) memcpy(to + unit, simt_block->shared + simt_swizzle(at + unit), 16);
        };
        int8_t A[16][32], column[32];
        for (int i = 0; i < 16; i++) read(A[i], lane[0]->a, first + i);
        for (int n = 0; n < 2 * kCount; n++) {
            read(column, lane[0]->b, n);
            for (int row = 0; row < 16; row++) {
                int& x = lane[row % 8 * 4 + n % 8 / 2]->d[n / 8 * 4 + row / 8 * 2 + n % 2];
                if (!lane[0]->accumulate) x = 0;
                for (int k = 0; k < 32; k++) x += A[row][k] * column[k];
            }
        }
    });
}

#endif
