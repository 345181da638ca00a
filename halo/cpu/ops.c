// The reference backend, layer by layer in plain C: each header below holds one layer, forward beside backward.
// Compiled twice: as it is it exports cpu_f32_ops, with -DHALO_CPU_BF16 cpu_bf16_ops.
//
// Definition of the arithmetic: FP32 inside a layer, rounded to the matrix's format at every store; sums that grow with a
// dimension (norms, losses, products) in double or in short FP32 chunks added in double. Each output is computed by one
// thread in one order, so the bits do not depend on the number of threads.
#include "../host_memory.h"
#include "../ops.h"

#include <time.h>

#ifdef HALO_CPU_BF16
#define CPU_OPS cpu_bf16_ops
#define CPU_ACT BF16
#else
#define CPU_OPS cpu_f32_ops
#define CPU_ACT F32
#endif
static const Fmt kAct = CPU_ACT;

#include "adamw.h"
#include "attention.h"
#include "dropout.h"
#include "embed.h"
#include "gemm.h"
#include "loss.h"
#include "quantize.h"
#include "rmsnorm.h"
#include "rope.h"
#include "rotate.h"
#include "sums.h"
#include "swiglu.h"
#include "wire.h"

// ---- memory: host memory
enum { kAlign = 256 };

static void* cpu_alloc(size_t bytes) {
    size_t whole = round_up(bytes ? bytes : 1, kAlign);
    void* p = aligned_alloc(kAlign, whole);
    check(p, "out of host memory: %zu bytes", bytes);
    return memset(p, 0, whole);
}
static void cpu_release(void* p) { free(p); }
static void cpu_copy(void* dst, const void* src, size_t bytes) { memcpy(dst, src, bytes); }
static void cpu_zero(void* dst, size_t bytes) { memset(dst, 0, bytes); }
static void cpu_sync(void) {}
static size_t cpu_free_bytes(void) { return host_memory("").left; }
static size_t cpu_total_bytes(void) { return host_memory("").total; }
static size_t cpu_workspace_bytes(void) { return 0; }

// ---- time: work is done when a call returns
static struct timespec* marks;
static int mark_count, mark_room;

static int cpu_mark(void) {
    if (mark_count == mark_room) {
        mark_room = max_int(1024, 2 * mark_room);
        marks = (struct timespec*)host_grow(marks, sizeof *marks * (size_t)mark_room);
    }
    clock_gettime(CLOCK_MONOTONIC, &marks[mark_count]);
    return mark_count++;
}
static float cpu_marked_ms(int from, int to) {
    return 1e3f * (float)(marks[to].tv_sec - marks[from].tv_sec) + 1e-6f * (float)(marks[to].tv_nsec - marks[from].tv_nsec);
}
static void cpu_forget_marks(void) { mark_count = 0; }

const Ops CPU_OPS = {
    CPU_ACT == F32 ? "cpu_f32" : "cpu_bf16",
    CPU_ACT,
    cpu_alloc,
    cpu_release,
    cpu_copy,
    cpu_copy,
    cpu_copy,
    cpu_zero,
    cpu_sync,
    cpu_free_bytes,
    cpu_total_bytes,
    cpu_workspace_bytes,
    cpu_mark,
    cpu_marked_ms,
    cpu_forget_marks,
    NULL,   // record_begin, record_end, replay, record_free
    NULL,
    NULL,
    NULL,
    NULL,   // round_rows
    embed_forward,
    embed_backward,
    rmsnorm_forward,
    rmsnorm_backward,
    rmsnorm_scratch,
    rope,
    attention_forward,
    attention_backward,
    attention_scratch,
    attention_cached,
    NULL,   // attention_append: attention_cached works on blocks of queries too, and gives each row the bits it has alone
    swiglu_forward,
    swiglu_backward,
    cross_entropy,
    argmax,
    cpu_gemm,
    cpu_gemm_narrow,
    rotate,
    absmax,
    quantize,
    absmax_each,
    quantize_each,
    quantize_tokens,
    unrotate_tokens,
    quantize_tokens_scratch,
    count_codes,
    add,
    convert,
    sum_squares,
    sum_row_squares,
    clip_scale,
    adamw,
    transpose_codes,
    pack_fp6,
    unpack_fp6,
    dropout,
    hadamard,
};
