// Runs CUDA kernels on a CPU: a small emulator of one GPU's threads, for machines without a GPU (see device.cuh).
//
//   a grid      its blocks run one after another, in any order, shared out to the OpenMP threads
//   a block     each of its threads is a fiber with a stack of its own; a fiber runs until it waits for others
//   waiting     __syncthreads, and operations in which the lanes of a warp meet (shuffles, votes, mma): `simt_meet`
//   memory      __shared__ is static to the OS thread, which runs one block at a time; device memory is host memory
//   a cluster   its blocks run at the same time, each on an OS thread of its own, and meet at the cluster's barrier
//   streams     are threads (simt_streams.h); a launch, a copy and an event are work that one of them does later
//
// What it finds: threads that wait for others that never come, lanes that meet in different operations or outside their mask,
// blocks that read another's shared memory before it is written or after its block has ended (if it shows: it is NaN by then),
// writes behind the dynamic shared memory, reads of dynamic shared memory that nobody wrote (it starts as NaN), accesses
// outside of an allocation and misaligned vectors (built with -fsanitize=address,undefined), and, by running the threads in an
// order drawn from SIMT_SEED (0: in turn), most missing barriers. What it does not: memory models, alignment of asynchronous copies, anything about time.
//
// An instruction of a whole warp is one call: every lane brings its own operands, and the last to arrive runs `all` for all.
//     simt_meet(mask, mine, [](T* const* lane, unsigned mask) { ... *lane[i] is what lane i brought ... });
#ifndef TEST_SIMT_H
#define TEST_SIMT_H

#include "../halo/base.h"

#include <math.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>

#include <tuple>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

// ---- the language
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __shared__ static thread_local
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define SIMT_VECTOR(type, name)                                                                       \
    struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                          \
    struct alignas(4 * sizeof(type) > 16 ? 16 : 4 * sizeof(type)) name##4 { type x, y, z, w; };       \
    static inline name##2 make_##name##2(type x, type y) { return name##2{x, y}; }                    \
    static inline name##4 make_##name##4(type x, type y, type z, type w) { return name##4{x, y, z, w}; }
SIMT_VECTOR(float, float)
SIMT_VECTOR(int, int)
SIMT_VECTOR(unsigned, uint)
SIMT_VECTOR(short, short)
SIMT_VECTOR(unsigned short, ushort)
SIMT_VECTOR(signed char, char)
SIMT_VECTOR(unsigned char, uchar)
SIMT_VECTOR(double, double)
#undef SIMT_VECTOR

inline thread_local uint3 threadIdx = {0, 0, 0}, blockIdx = {0, 0, 0};
inline thread_local dim3 blockDim, gridDim;

// ---- fibers: the registers that a call keeps, pushed on the fiber's stack
#if defined(__x86_64__)
typedef void* SimtContext;
extern "C" void simt_switch(SimtContext* from, SimtContext* to);
asm(R"(
    .pushsection .text
    .type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq (%rsi), %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size simt_switch, .-simt_switch
    .popsection
)");
static inline void simt_prepare(SimtContext* context, char* stack, size_t bytes, void (*entry)()) {
    void** top = (void**)(stack + bytes) - 2;   // entry finds the stack aligned as after a call
    *top = (void*)entry;
    *context = top - 6;
}
#else
typedef ucontext_t SimtContext;
static inline void simt_switch(SimtContext* from, SimtContext* to) { swapcontext(from, to); }
static inline void simt_prepare(SimtContext* context, char* stack, size_t bytes, void (*entry)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack;
    context->uc_stack.ss_size = bytes;
    context->uc_link = NULL;
    makecontext(context, entry, 0);
}
#endif

enum {
    kSimtWarp = 32,
    kSimtMaxThreads = 1024,
    kSimtStack = 256 << 10,          // address space; a page is used when it is touched
    kSimtSharedMax = 227 << 10,      // bytes of dynamic shared memory a block may ask for (sm_90)
    kSimtCanary = 4 << 10,
    kSimtBarriers = 16,
    kSimtMaxCluster = 8,
    kSimtPatience = 300              // seconds that a thread waits for another block
};

typedef enum { SIMT_READY, SIMT_AT_BARRIER, SIMT_MEETING, SIMT_DONE } SimtState;

struct SimtThread {
    SimtContext context;
    uint3 index;
    SimtState state;
    int barrier;         // AT_BARRIER: which
    unsigned mask;       // MEETING: with whom,
    const void* what;    //   in which operation,
    void* brought;       //   with what
    bool arrived;        // at the cluster's barrier, and has not yet waited
    unsigned turn;       //   which ends when the cluster's turn is this
};

struct SimtBlock;
struct SimtCluster {
    SimtBlock* block[kSimtMaxCluster];
    int blocks;
    std::atomic<int> arrived;      // blocks all of whose threads have arrived
    std::atomic<unsigned> turn;    // how often the barrier has opened
};

struct SimtBlock {       // what one OS thread runs
    const char* kernel;
    void (*body)(void*);
    void* arguments;
    SimtThread thread[kSimtMaxThreads];
    int threads, alive, current;
    int waiting[kSimtBarriers], wanted[kSimtBarriers];   // wanted 0: all that are alive
    int ready[kSimtMaxThreads], first_ready, ready_count;
    uint64_t random;
    SimtContext outside;
    char *stacks, *shared;
    size_t shared_bytes;
    int stacks_guarded;
    SimtCluster* cluster;   // NULL: launched without
    int rank;               // of the block in it
    int cluster_arrived;    // threads
#if defined(__SANITIZE_ADDRESS__)
    const void* outside_stack;
    size_t outside_stack_bytes;
#endif
};
inline thread_local SimtBlock* simt_block = NULL;

static inline void simt_make_ready(SimtBlock* b, int t) {
    b->thread[t].state = SIMT_READY;
    b->ready[(b->first_ready + b->ready_count++) % kSimtMaxThreads] = t;
}

[[noreturn]] static inline void simt_deadlock(SimtBlock* b) {
    char list[400];
    size_t n = 0;
    int last_state = -1, last_barrier = -1;
    for (int t = 0; t < b->threads; t++) {   // where a run of threads in one state begins
        const SimtThread* s = &b->thread[t];
        if (((int)s->state == last_state && s->barrier == last_barrier) || n + 60 > sizeof list) continue;
        last_state = s->state;
        last_barrier = s->barrier;
        if (s->state == SIMT_AT_BARRIER) n += (size_t)snprintf(list + n, sizeof list - n, " %d.. at barrier %d;", t, s->barrier);
        else n += (size_t)snprintf(list + n, sizeof list - n, " %d.. %s;", t, s->state == SIMT_MEETING ? "in a warp operation" : "done");
    }
    die("deadlock in %s, block (%u, %u, %u): threads%s", b->kernel, blockIdx.x, blockIdx.y, blockIdx.z, list);
}

static inline void simt_enter(SimtBlock* b, SimtContext* from, int t, bool from_is_over) {
    b->current = t;
    threadIdx = b->thread[t].index;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = NULL;
    __sanitizer_start_switch_fiber(from_is_over ? NULL : &fake, b->stacks + (size_t)t * kSimtStack, kSimtStack);
    simt_switch(from, &b->thread[t].context);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#else
    (void)from_is_over;
    simt_switch(from, &b->thread[t].context);
#endif
}

static inline int simt_next(SimtBlock* b) {
    if (b->ready_count == 0) simt_deadlock(b);
    if (b->random) {   // any of the ready ones may be next
        b->random = b->random * 6364136223846793005ull + 1442695040888963407ull;
        int at = (b->first_ready + (int)(b->random >> 33) % b->ready_count) % kSimtMaxThreads;
        std::swap(b->ready[at], b->ready[b->first_ready]);
    }
    int t = b->ready[b->first_ready];
    b->first_ready = (b->first_ready + 1) % kSimtMaxThreads;
    b->ready_count--;
    return t;
}

// The current thread lets others run; it comes back when somebody has made it ready.
__attribute__((noinline)) static void simt_wait() {
    SimtBlock* b = simt_block;
    int self = b->current, next = simt_next(b);
    if (next == self) return;
    simt_enter(b, &b->thread[self].context, next, false);
}

// For loops that poll.
static inline void simt_yield() {
    simt_make_ready(simt_block, simt_block->current);
    simt_wait();
}

// ---- barriers count threads; one that has ended counts as arrived at barrier 0
static inline bool simt_barrier_is_full(const SimtBlock* b, int id) {
    return b->waiting[id] > 0 && b->waiting[id] >= (b->wanted[id] ? b->wanted[id] : b->alive);
}
static inline void simt_open_barrier(SimtBlock* b, int id) {
    b->waiting[id] = 0;
    for (int t = 0; t < b->threads; t++)
        if (b->thread[t].state == SIMT_AT_BARRIER && b->thread[t].barrier == id) simt_make_ready(b, t);
}
// bar.sync id, threads (0: all)
static inline void simt_barrier(int id, int threads) {
    SimtBlock* b = simt_block;
    check(id >= 0 && id < kSimtBarriers && threads % kSimtWarp == 0, "%s: barrier %d of %d threads", b->kernel, id, threads);
    check(b->waiting[id] == 0 || b->wanted[id] == threads, "%s: barrier %d of %d threads is one of %d elsewhere", b->kernel, id, threads,
          b->wanted[id]);
    SimtThread* self = &b->thread[b->current];
    self->state = SIMT_AT_BARRIER;
    self->barrier = id;
    b->wanted[id] = threads;
    b->waiting[id]++;
    if (simt_barrier_is_full(b, id)) simt_open_barrier(b, id);
    simt_wait();
}
static inline void __syncthreads() { simt_barrier(0, 0); }
static inline int __syncthreads_or(int predicate) {
    static thread_local int any;
    __syncthreads();
    any = 0;
    __syncthreads();
    if (predicate) any = 1;
    __syncthreads();
    return any;
}

// ---- the barrier of a cluster counts the threads of all its blocks; one that has ended counts as arrived
static inline void simt_cluster_count(SimtBlock* b) {
    SimtCluster* c = b->cluster;
    if (b->alive == 0 || b->cluster_arrived < b->alive) return;
    b->cluster_arrived = 0;
    if (c->arrived.fetch_add(1) + 1 < c->blocks) return;
    c->arrived.store(0);
    c->turn.fetch_add(1);
}
static inline void simt_cluster_arrive() {
    SimtBlock* b = simt_block;
    SimtThread* self = &b->thread[b->current];
    check(b->cluster, "%s: a cluster's barrier in a launch without clusters", b->kernel);
    check(!self->arrived, "%s: thread %d arrives twice at the cluster's barrier", b->kernel, b->current);
    self->arrived = true;
    self->turn = b->cluster->turn.load() + 1;
    b->cluster_arrived++;
    simt_cluster_count(b);
}
static inline void simt_cluster_wait() {
    SimtBlock* b = simt_block;
    SimtThread* self = &b->thread[b->current];
    check(self->arrived, "%s: thread %d waits at the cluster's barrier without having arrived", b->kernel, b->current);
    time_t start = time(NULL);
    while ((int)(b->cluster->turn.load() - self->turn) < 0) {
        check(time(NULL) - start < kSimtPatience, "%s: block %u waits for its cluster, which never comes", b->kernel, blockIdx.x);
        if (b->ready_count == 0) sched_yield();
        simt_yield();
    }
    self->arrived = false;
}
static inline char* simt_cluster_address(const void* p, int rank) {
    SimtBlock* b = simt_block;
    size_t offset = (size_t)((const char*)p - b->shared);
    check(b->cluster && rank >= 0 && rank < b->cluster->blocks && offset < b->shared_bytes, "%s: byte %zu of shared memory of block %d of a cluster",
          b->kernel, offset, rank);
    return b->cluster->block[rank]->shared + offset;
}

// ---- the lanes of a warp meet
// Whether all lanes of the mask that are alive wait in this operation.
static inline bool simt_all_met(SimtBlock* b, int first, unsigned mask, const void* what) {
    for (int lane = min_int(kSimtWarp, b->threads - first) - 1; lane >= 0; lane--) {
        const SimtThread* t = &b->thread[first + lane];
        if (!(mask >> lane & 1) || t->state == SIMT_DONE) continue;
        if (t->state != SIMT_MEETING) return false;
        check(t->mask == mask && t->what == what, "%s: lanes of a warp meet in different operations (thread %d, mask %08x)", b->kernel,
              first + lane, t->mask);
    }
    return true;
}
template <typename T> inline char simt_tag;

template <typename T, typename All>
static inline void simt_meet(unsigned mask, T& mine, All all) {
    SimtBlock* b = simt_block;
    int self = b->current, first = self / kSimtWarp * kSimtWarp;
    SimtThread* t = &b->thread[self];
    check(mask >> (self - first) & 1, "%s: thread %d is not in its mask %08x", b->kernel, self, mask);
    t->state = SIMT_MEETING;
    t->mask = mask;
    t->what = &simt_tag<All>;
    t->brought = &mine;
    if (!simt_all_met(b, first, mask, t->what)) {
        simt_wait();
        return;
    }
    T* lane[kSimtWarp];
    for (int i = 0; i < kSimtWarp; i++) {
        bool here = first + i < b->threads && (mask >> i & 1) && b->thread[first + i].state == SIMT_MEETING;
        lane[i] = here ? (T*)b->thread[first + i].brought : NULL;
    }
    all(lane, mask);
    for (int i = 0; i < kSimtWarp; i++)
        if (lane[i]) simt_make_ready(b, first + i);
    simt_wait();
}

template <typename T> struct SimtShuffle { T value; int from; T result; };
template <typename T>
static inline T simt_shuffle(unsigned mask, T value, int from, bool in_range) {
    SimtShuffle<T> mine = {value, in_range ? from : (int)(simt_block->current % kSimtWarp), value};
    simt_meet(mask, mine, [](SimtShuffle<T>* const* lane, unsigned) {
        for (int i = 0; i < kSimtWarp; i++) {
            if (!lane[i]) continue;
            check(lane[lane[i]->from], "%s: lane %d shuffles from lane %d, which is not there", simt_block->kernel, i, lane[i]->from);
            lane[i]->result = lane[lane[i]->from]->value;
        }
    });
    return mine.result;
}
// A segment of `width` lanes, and this lane's place in it.
static inline int simt_lane() { return simt_block->current % kSimtWarp; }
template <typename T>
static inline T __shfl_sync(unsigned mask, T value, int from, int width = kSimtWarp) {
    return simt_shuffle(mask, value, simt_lane() / width * width + (from & (width - 1)), true);
}
template <typename T>
static inline T __shfl_xor_sync(unsigned mask, T value, int bits, int width = kSimtWarp) {
    int from = simt_lane() ^ bits;
    return simt_shuffle(mask, value, from, from / width <= simt_lane() / width);
}
template <typename T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = kSimtWarp) {
    return simt_shuffle(mask, value, simt_lane() - (int)by, simt_lane() % width >= (int)by);
}
template <typename T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = kSimtWarp) {
    return simt_shuffle(mask, value, simt_lane() + (int)by, simt_lane() % width + (int)by < width);
}
static inline void __syncwarp(unsigned mask = 0xffffffffu) {
    char nothing = 0;
    simt_meet(mask, nothing, [](char* const*, unsigned) {});
}

// The combination of all lanes' values, in every lane.
template <typename T, typename Combine>
static inline T simt_combine(unsigned mask, T value, Combine combine) {
    T mine = value;
    simt_meet(mask, mine, [combine](T* const* lane, unsigned) {
        T total = T();
        bool any = false;
        for (int i = 0; i < kSimtWarp; i++) {
            if (!lane[i]) continue;
            total = any ? combine(total, *lane[i]) : *lane[i];
            any = true;
        }
        for (int i = 0; i < kSimtWarp; i++)
            if (lane[i]) *lane[i] = total;
    });
    return mine;
}
static inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return simt_combine(mask, predicate ? 1u << simt_lane() : 0u, [](unsigned a, unsigned b) { return a | b; });
}
template <typename T> static inline T __reduce_max_sync(unsigned mask, T x) {
    return simt_combine(mask, x, [](T a, T b) { return a > b ? a : b; });
}
template <typename T> static inline T __reduce_min_sync(unsigned mask, T x) {
    return simt_combine(mask, x, [](T a, T b) { return a < b ? a : b; });
}
template <typename T> static inline T __reduce_add_sync(unsigned mask, T x) {
    return simt_combine(mask, x, [](T a, T b) { return (T)(a + b); });
}

// ---- streams
typedef enum { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorInvalidDeviceFunction = 98, cudaErrorNoKernelImageForDevice = 209, cudaErrorNotReady = 600 } cudaError_t;
#include "simt_streams.h"

// ---- launching
static inline void* simt_shared() { return simt_block->shared; }
#define SHARED(type, name) type* name = (type*)simt_shared()

// A fiber's whole life.
static void simt_fiber() {
    SimtBlock* b = simt_block;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    b->body(b->arguments);
    b = simt_block;
    int self = b->current, first = self / kSimtWarp * kSimtWarp;
    b->thread[self].state = SIMT_DONE;
    b->alive--;
    check(!b->thread[self].arrived, "%s: thread %d has ended and not waited at the cluster's barrier", b->kernel, self);
    if (b->cluster) simt_cluster_count(b);
    if (b->alive > 0) {
        if (b->wanted[0] == 0 && simt_barrier_is_full(b, 0)) simt_open_barrier(b, 0);
        for (int i = first; i < min_int(first + kSimtWarp, b->threads); i++)
            check(b->thread[i].state != SIMT_MEETING || !(b->thread[i].mask >> (self - first) & 1),
                  "%s: thread %d has ended, and thread %d waits for it in a warp operation", b->kernel, self, i);
        simt_enter(b, &b->thread[self].context, simt_next(b), true);
    }
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(NULL, b->outside_stack, b->outside_stack_bytes);
#endif
    simt_switch(&b->thread[self].context, &b->outside);
    die("%s: a thread that has ended runs again", b->kernel);
}

// An OS thread's block goes with it: OpenMP ends threads when a smaller team follows a larger one.
struct SimtOwner {
    SimtBlock* block = NULL;
    ~SimtOwner() {
        if (!block) return;
        munmap(block->stacks, (size_t)kSimtStack * kSimtMaxThreads);
        free(block->shared);
        free(block);
    }
};
inline thread_local SimtOwner simt_owner;

static inline SimtBlock* simt_block_of_this_thread() {
    if (simt_block) return simt_block;
    SimtBlock* b = (SimtBlock*)host_alloc(sizeof(SimtBlock));
    size_t stacks = (size_t)kSimtStack * kSimtMaxThreads;
    b->stacks = (char*)mmap(NULL, stacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    check(b->stacks != MAP_FAILED, "no memory for %d stacks", (int)kSimtMaxThreads);
    b->shared = (char*)aligned_alloc(1024, kSimtSharedMax + 1024 + kSimtCanary);
    check(b->shared, "no memory for a block's shared memory");
    simt_owner.block = b;
    return simt_block = b;
}

static inline void simt_run_block(const char* kernel, uint3 index, dim3 grid, dim3 block, size_t shared_bytes,
                                  void (*body)(void*), void* arguments, uint64_t seed) {
    SimtBlock* b = simt_block_of_this_thread();
    int threads = (int)(block.x * block.y * block.z);
    for (; b->stacks_guarded < threads; b->stacks_guarded++)   // overflowing a stack faults instead of reaching the next
        check(mprotect(b->stacks + (size_t)b->stacks_guarded * kSimtStack, 4096, PROT_NONE) == 0, "no guard page for a stack");
    b->kernel = kernel;
    b->body = body;
    b->arguments = arguments;
    b->threads = b->alive = threads;
    b->shared_bytes = shared_bytes;
    b->cluster_arrived = 0;
    b->first_ready = b->ready_count = 0;
    b->random = seed ? seed * 2654435761u + index.x + 65537u * index.y + 131u * index.z : 0;
    memset(b->waiting, 0, sizeof b->waiting);
    memset(b->wanted, 0, sizeof b->wanted);
    blockIdx = index;
    blockDim = block;
    gridDim = grid;
    memset(b->shared, 0xff, shared_bytes);   // NaN
    memset(b->shared + shared_bytes, 0xa5, kSimtCanary);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(b->shared + shared_bytes, kSimtCanary);
#endif
    for (int t = 0; t < threads; t++) {
        SimtThread* s = &b->thread[t];
        s->index.x = (unsigned)t % block.x;
        s->index.y = (unsigned)t / block.x % block.y;
        s->index.z = (unsigned)t / (block.x * block.y);
        s->barrier = 0;
        s->arrived = false;
        simt_prepare(&s->context, b->stacks + (size_t)t * kSimtStack, kSimtStack, simt_fiber);
        simt_make_ready(b, t);
    }
    int first = simt_next(b);
#if defined(__SANITIZE_ADDRESS__)
    void* fake = NULL;
    b->current = first;
    threadIdx = b->thread[first].index;
    // where to come back to: known once the first fiber has been entered and told
    __sanitizer_start_switch_fiber(&fake, b->stacks + (size_t)first * kSimtStack, kSimtStack);
    pthread_attr_t attributes;
    void* outside_stack = NULL;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &outside_stack, &b->outside_stack_bytes);
    pthread_attr_destroy(&attributes);
    b->outside_stack = outside_stack;
    simt_switch(&b->outside, &b->thread[first].context);
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
    __asan_unpoison_memory_region(b->shared + shared_bytes, kSimtCanary);
#else
    simt_enter(b, &b->outside, first, false);
#endif
    for (int i = 0; i < kSimtCanary; i++)
        check((unsigned char)b->shared[shared_bytes + i] == 0xa5, "%s writes byte %zu of %zu of dynamic shared memory", kernel,
              shared_bytes + i, shared_bytes);
}

// The blocks of a grid, or of the clusters of a grid along x, one after another on as many OS threads as there are.
static inline void simt_run_grid(const char* kernel, int cluster, dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*),
                                 void* arguments) {
    size_t blocks = (size_t)grid.x * grid.y * grid.z, threads = (size_t)block.x * block.y * block.z;
    check(blocks > 0 && grid.y < 65536 && grid.z < 65536, "launch of %s: a grid of (%u, %u, %u)", kernel, grid.x, grid.y, grid.z);
    check(threads > 0 && threads <= kSimtMaxThreads, "launch of %s: %zu threads a block", kernel, threads);
    check(shared_bytes <= kSimtSharedMax, "launch of %s: %zu bytes of shared memory", kernel, shared_bytes);
    check(cluster >= 0 && cluster <= kSimtMaxCluster && (cluster == 0 || grid.x % (unsigned)cluster == 0),
          "launch of %s: %u blocks in clusters of %d", kernel, grid.x, cluster);
    const char* seed_text = getenv("SIMT_SEED");
    uint64_t seed = seed_text ? strtoull(seed_text, NULL, 10) : 0;
    auto run = [&](size_t i) {
        uint3 index = {(unsigned)(i % grid.x), (unsigned)(i / grid.x % grid.y), (unsigned)(i / grid.x / grid.y)};
        simt_run_block(kernel, index, grid, block, shared_bytes, body, arguments, seed);
    };
    if (cluster == 0) {
#pragma omp parallel for schedule(dynamic)
        for (size_t i = 0; i < blocks; i++) run(i);
        return;
    }
    size_t clusters = blocks / (size_t)cluster, teams = (size_t)max_int(1, omp_get_max_threads() / cluster);
    SimtCluster* shared = new SimtCluster[teams]();
#pragma omp parallel num_threads((int)teams * cluster)
    {
        check(omp_get_num_threads() == (int)teams * cluster, "%s: no threads for clusters of %d", kernel, cluster);
        int rank = omp_get_thread_num() % cluster;
        size_t team = (size_t)(omp_get_thread_num() / cluster);
        SimtBlock* mine = simt_block_of_this_thread();
        mine->cluster = &shared[team];
        mine->rank = rank;
        shared[team].block[rank] = mine;
        shared[team].blocks = cluster;
#pragma omp barrier
        for (size_t c = team; c < clusters; c += teams) run(c * (size_t)cluster + (size_t)rank);
        mine->cluster = NULL;
    }
    delete[] shared;
}

template <typename... Parameters, typename... Arguments>
static inline void simt_launch(cudaStream_t stream, const char* name, int cluster, dim3 grid, dim3 block, size_t shared_bytes,
                               void (*kernel)(Parameters...), Arguments&&... arguments) {
    typedef std::tuple<std::decay_t<Parameters>...> Copies;
    struct Call {
        void (*kernel)(Parameters...);
        Copies copies;
    } call = {kernel, Copies(std::forward<Arguments>(arguments)...)};
    void (*body)(void*) = [](void* p) { std::apply(((Call*)p)->kernel, ((Call*)p)->copies); };
    simt_enqueue(stream, [=]() mutable { simt_run_grid(name, cluster, grid, block, shared_bytes, body, &call); });
}
#define LAUNCH_ON(stream, kernel, grid, block, shared_bytes, ...) \
    simt_launch((stream), #kernel, 0, (grid), (block), (shared_bytes), kernel, __VA_ARGS__)
#define LAUNCH_CLUSTERS(kernel, cluster, grid, block, shared_bytes, ...) \
    simt_launch(cuda_stream(), #kernel, (cluster), (grid), (block), (shared_bytes), kernel, __VA_ARGS__)

// ---- atomics: blocks run on several OS threads. None on floats: their order would show in the bits.
template <typename T, typename New>
static inline T simt_atomic(T* p, New new_value) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED), next;
    do next = new_value(old);
    while (!__atomic_compare_exchange_n(p, &old, next, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    return old;
}
template <typename T> static inline T atomicMax(T* p, T x) { return simt_atomic(p, [x](T old) { return old > x ? old : x; }); }
template <typename T> static inline T atomicMin(T* p, T x) { return simt_atomic(p, [x](T old) { return old < x ? old : x; }); }
template <typename T> static inline T atomicOr(T* p, T x) { return simt_atomic(p, [x](T old) { return old | x; }); }
template <typename T> static inline T atomicExch(T* p, T x) { return simt_atomic(p, [x](T) { return x; }); }
template <typename T> static inline T atomicCAS(T* p, T expected, T x) {
    return simt_atomic(p, [expected, x](T old) { return old == expected ? x : old; });
}
static inline int atomicAdd(int* p, int x) { return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST); }
static inline unsigned atomicAdd(unsigned* p, unsigned x) { return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST); }
static inline unsigned long long atomicAdd(unsigned long long* p, unsigned long long x) {
    return __atomic_fetch_add(p, x, __ATOMIC_SEQ_CST);
}
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_block() {}
static inline void __nanosleep(unsigned) { simt_yield(); }
[[noreturn]] static inline void __trap() { die("%s traps in block (%u, %u, %u)", simt_block->kernel, blockIdx.x, blockIdx.y, blockIdx.z); }

// ---- loads and stores with a cache hint
template <typename T> static inline T __ldg(const T* p) { return *p; }
template <typename T> static inline T __ldcs(const T* p) { return *p; }
template <typename T> static inline T __ldcg(const T* p) { return *p; }
template <typename T> static inline void __stcs(T* p, T x) { *p = x; }
template <typename T> static inline void __stcg(T* p, T x) { *p = x; }

// ---- arithmetic
template <typename T> static inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __frsqrt_rn(float x) { return (float)(1.0 / sqrt((double)x)); }
#define __expf(x) expf(x)     // glibc has these names for itself
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
static inline float __saturatef(float x) { return x > 1 ? 1.0f : x > 0 ? x : 0.0f; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
template <typename To, typename From> static inline To simt_bits(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "a cast between sizes");
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x) { return simt_bits<unsigned>(x); }
static inline float __uint_as_float(unsigned x) { return simt_bits<float>(x); }
static inline int __float_as_int(float x) { return simt_bits<int>(x); }
static inline float __int_as_float(int x) { return simt_bits<float>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        unsigned pick = selector >> (4 * i) & 0xf, byte = (unsigned)(bytes >> (8 * (pick & 7))) & 0xff;
        if (pick & 8) byte = byte & 0x80 ? 0xff : 0;
        out |= byte << (8 * i);
    }
    return out;
}

// ---- the runtime, on host memory
typedef enum { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault } cudaMemcpyKind;
typedef enum { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributePreferredSharedMemoryCarveout } cudaFuncAttribute;
typedef enum {
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
} cudaDeviceAttr;
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };
typedef struct {
    struct { char bytes[16]; } uuid;
    char name[64];
    int major, minor;
    size_t totalGlobalMem;
} cudaDeviceProp;
typedef enum { cudaDevP2PAttrNativeAtomicSupported = 3 } cudaDeviceP2PAttr;

static inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : "emulated error"; }
static inline cudaError_t cudaGetLastError() { return cudaSuccess; }
// $SIMT_GPUS of them, 1 if that is unset.
static inline cudaError_t cudaGetDeviceCount(int* count) {
    const char* gpus = getenv("SIMT_GPUS");
    *count = gpus ? atoi(gpus) : 1;
    return cudaSuccess;
}
static inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof *properties);
    properties->uuid.bytes[0] = (char)device;
    strcpy(properties->name, "emulated GPU");
    properties->major = 8;
    properties->totalGlobalMem = (size_t)1 << 40;
    return cudaSuccess;
}
static inline cudaError_t cudaDriverGetVersion(int* version) { *version = 13000; return cudaSuccess; }
static inline cudaError_t cudaRuntimeGetVersion(int* version) { *version = 13000; return cudaSuccess; }
static inline cudaError_t cudaDeviceCanAccessPeer(int* reaches, int, int) { *reaches = 1; return cudaSuccess; }
static inline cudaError_t cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr, int, int) { *value = 1; return cudaSuccess; }
static inline cudaError_t cudaGetDevice(int* device) { *device = 0; return cudaSuccess; }
static inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
static inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 4; return cudaSuccess;   // few: the emulator pays for every block
        case cudaDevAttrL2CacheSize: *value = 1 << 20; return cudaSuccess;     // small, so that bands are
        case cudaDevAttrComputeCapabilityMajor: *value = 8; return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = kSimtSharedMax; return cudaSuccess;
    }
    die("cudaDeviceGetAttribute: %d is not emulated", (int)attribute);
}
static const size_t kSimtMemory = (size_t)1 << 40;
static inline cudaError_t cudaMalloc(void** p, size_t bytes) {
    size_t align = bytes % 4096 ? 256 : 4096;   // whole pages can be shared with other processes (simt_ipc.h)
    return bytes <= kSimtMemory && posix_memalign(p, align, bytes) == 0 ? cudaSuccess : cudaErrorMemoryAllocation;
}
static inline cudaError_t cudaHostAlloc(void** p, size_t bytes, unsigned) { return cudaMalloc(p, bytes); }
static inline cudaError_t cudaFree(void* p) {
    cudaDeviceSynchronize();
    free(p);
    return cudaSuccess;
}
static inline cudaError_t cudaFreeHost(void* p) { free(p); return cudaSuccess; }
static inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
    simt_enqueue(s, [=] { if (bytes) memmove(to, from, bytes); });
    return cudaSuccess;
}
static inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t s) {
    simt_enqueue(s, [=] { if (bytes) memset(p, value, bytes); });
    return cudaSuccess;
}
template <typename T>
static inline cudaError_t cudaMemcpyToSymbol(T& symbol, const void* from, size_t bytes, size_t offset = 0) {
    memcpy((char*)&symbol + offset, from, bytes);
    return cudaSuccess;
}
static inline cudaError_t cudaMemGetInfo(size_t* left, size_t* all) {
    *left = kSimtMemory;
    *all = *left + ((size_t)1 << 30);
    return cudaSuccess;
}
typedef struct {
    int maxThreadsPerBlock;
} cudaFuncAttributes;
template <typename Kernel>
static inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) { return cudaSuccess; }
template <typename Kernel>
static inline cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) { return cudaSuccess; }

#endif
