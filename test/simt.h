// Runs CUDA kernels on a CPU: a small emulator of one GPU's threads, for machines without a GPU (see device.cuh).
//
//   a grid      its blocks run one after another, in any order, shared out to the OpenMP threads
//   a block     each of its threads is a fiber with a stack of its own; a fiber runs until it waits for others
//   waiting     __syncthreads, and operations in which the lanes of a warp meet (shuffles, votes, mma): `simt_meet`
//   memory      __shared__ is static to the OS thread, which runs one block at a time; device memory is host memory
//
// What it finds: threads that wait for others that never come, lanes that meet in different operations or outside their mask,
// writes behind the dynamic shared memory, reads of shared memory that nobody wrote (it starts as NaN), accesses outside of
// an allocation (built with -fsanitize=address), and, by running the threads in an order drawn from SIMT_SEED (0: in turn),
// most missing barriers. What it does not: memory models, alignment of asynchronous copies, anything about time.
//
// An instruction of a whole warp is one call: every lane brings its own operands, and the last to arrive runs `all` for all.
//     simt_meet(mask, mine, [](T* const* lane, unsigned mask) { ... *lane[i] is what lane i brought ... });
#ifndef TEST_SIMT_H
#define TEST_SIMT_H

#include "../halo/base.h"

#include <math.h>
#include <sys/mman.h>

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
    kSimtBarriers = 16
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

// value op value over the lanes of the mask
template <typename T, typename Combine>
static inline T simt_combine(unsigned mask, T value, Combine combine) {
    (void)combine;   // stateless: made again where the lanes have met
    T mine = value;
    simt_meet(mask, mine, [](T* const* lane, unsigned) {
        T total = T();
        bool any = false;
        for (int i = 0; i < kSimtWarp; i++) {
            if (!lane[i]) continue;
            total = any ? (*(Combine*)NULL)(total, *lane[i]) : *lane[i];
            any = true;
        }
        for (int i = 0; i < kSimtWarp; i++)
            if (lane[i]) *lane[i] = total;
    });
    return mine;
}
