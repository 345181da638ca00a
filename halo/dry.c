// Dry runs; see dry.h.
#include "dry.h"

#include "cuda/scratch.h"

// ---- memory: addresses that nothing lies behind, and the bytes of those that are in use

typedef struct {
    char* at;
    size_t bytes;
} DryBlock;
static DryBlock* blocks;
static int block_count, block_room;
static size_t used_bytes, peak_bytes;
static char* next_address;

static void* dry_alloc(size_t bytes) {
    size_t whole = round_up(bytes ? bytes : 1, kArenaAlign);
    if (block_count == block_room) {
        block_room = max_int(64, 2 * block_room);
        blocks = (DryBlock*)host_grow(blocks, sizeof(DryBlock) * (size_t)block_room);
    }
    DryBlock b = {next_address, whole};
    blocks[block_count++] = b;
    next_address += whole;
    used_bytes += whole;
    if (used_bytes > peak_bytes) peak_bytes = used_bytes;
    return b.at;
}
static void dry_release(void* p) {
    for (int i = 0; i < block_count; i++) {
        if (blocks[i].at != p) continue;
        used_bytes -= blocks[i].bytes;
        blocks[i] = blocks[--block_count];
        return;
    }
    die("dry: %p was not allocated", p);
}
size_t dry_peak_bytes(void) { return peak_bytes; }

static void dry_upload(void* dst, const void* src, size_t bytes) { (void)dst, (void)src, (void)bytes; }
static void dry_download(void* dst, const void* src, size_t bytes) {
    (void)src;
    memset(dst, 0, bytes);
}
static void dry_copy(void* dst, const void* src, size_t bytes) { (void)dst, (void)src, (void)bytes; }
static void dry_zero(void* dst, size_t bytes) { (void)dst, (void)bytes; }
static void dry_nothing(void) {}
static int dry_mark(void) { return 0; }
static float dry_marked_ms(int from, int to) {
    (void)from, (void)to;
    return 0;
}

// ---- layers: nothing happens
static void dry_embed_forward(Mat y, Mat w, const int* tokens) { (void)y, (void)w, (void)tokens; }
static void dry_embed_backward(Mat dw, Mat dy, const int* tokens, const int* order) { (void)dw, (void)dy, (void)tokens, (void)order; }
static void dry_rmsnorm_forward(Mat y, float* rstd, Mat res, Mat x, Mat delta, Mat w, float eps, Prep prep) {
    (void)y, (void)rstd, (void)res, (void)x, (void)delta, (void)w, (void)eps, (void)prep;
}
static void dry_rmsnorm_backward(Mat dres, Mat dw, Mat dy, Mat res, Mat w, const float* rstd, void* scratch, float* absmax) {
    (void)dres, (void)dw, (void)dy, (void)res, (void)w, (void)rstd, (void)scratch, (void)absmax;
}
static void dry_rope(Mat qkv, const float* cos_sin, const int* pos, int NH, int NKV, int HD, bool inverse, float* absmax) {
    (void)qkv, (void)cos_sin, (void)pos, (void)NH, (void)NKV, (void)HD, (void)inverse, (void)absmax;
}
static void dry_attention_forward(Mat y, float* lse, Mat qkv, Attn shape, float* absmax) {
    (void)y, (void)lse, (void)qkv, (void)shape, (void)absmax;
}
static void dry_attention_backward(Mat dqkv, Mat dy, Mat y, Mat qkv, const float* lse, Attn shape, void* scratch) {
    (void)dqkv, (void)dy, (void)y, (void)qkv, (void)lse, (void)shape, (void)scratch;
}
static void dry_attention_cached(Mat y, Mat cache, Mat qkv, const int* slot, const int* pos, int positions, int NH, int NKV, int HD) {
    (void)y, (void)cache, (void)qkv, (void)slot, (void)pos, (void)positions, (void)NH, (void)NKV, (void)HD;
}
static void dry_swiglu_forward(Mat y, Mat gate_up, Prep prep) { (void)y, (void)gate_up, (void)prep; }
static void dry_swiglu_backward(Mat dgate_up, Mat dy, Mat gate_up, float* absmax) { (void)dgate_up, (void)dy, (void)gate_up, (void)absmax; }
static void dry_cross_entropy(float* loss, Mat logits, const int* labels, const float* scale) {
    (void)loss, (void)logits, (void)labels, (void)scale;
}
static void dry_argmax(int* best, Mat logits) { (void)best, (void)logits; }
static void dry_gemm(Mat c, Side a, Side b, float beta) { (void)c, (void)a, (void)b, (void)beta; }
static void dry_gemm_narrow(Mat xp, float factor, Mat xtq, float beta, Mat x, Mat p, Mat q, SideBySide parts) {
    (void)xp, (void)factor, (void)xtq, (void)beta, (void)x, (void)p, (void)q, (void)parts;
}
static void dry_rotate(Mat y, Mat x, RotateAxis axis, bool transpose, int block, float* absmax) {
    (void)y, (void)x, (void)axis, (void)transpose, (void)block, (void)absmax;
}
static void dry_absmax(float* absmax, Mat x) { (void)absmax, (void)x; }
static void dry_quantize(QMat q, Mat x, Rotation rotation, const float* absmax, Fmt fmt, float clip) {
    (void)absmax, (void)clip;
    check_qmat(q, x, rotation, fmt);
}
static void dry_absmax_each(const Coded* matrices, int count, bool rotated) { (void)matrices, (void)count, (void)rotated; }
static void dry_quantize_each(const Coded* matrices, int count, bool rotated, Fmt fmt, float clip) {
    quantize_each_by(dry_quantize, matrices, count, rotated, fmt, clip);
}
static void dry_quantize_tokens(QMat q, Mat x, int block, float* absmax, Fmt fmt, float clip, const PlainCodes* plain, void* scratch) {
    Rotation rotation = {ROTATE_ROWS, block};
    (void)absmax, (void)clip, (void)scratch;
    check_qmat(q, x, rotation, fmt);
    if (plain) check_qmat(plain->q, x, kRotateNone, plain->fmt);
}
static void dry_unrotate_tokens(Mat y, Mat x, int block, void* scratch) { (void)y, (void)x, (void)block, (void)scratch; }
static void dry_count_codes(CodeCounts* counts, Mat x, const float* absmax, Opnd how) { (void)counts, (void)x, (void)absmax, (void)how; }
static void dry_add(Mat y, Mat x, const Noise* noise) { (void)y, (void)x, (void)noise; }
static void dry_convert(Mat y, Mat x) { (void)y, (void)x; }
static void dry_sum_squares(float* total, Mat x) { (void)total, (void)x; }
static void dry_sum_row_squares(WideSum* total, Mat x) { (void)total, (void)x; }
static void dry_clip_scale(float* scale, const WideSum* sum_of_squares, float max_norm) { (void)scale, (void)sum_of_squares, (void)max_norm; }
static void dry_adamw(const AdamW* updates, int count) { check_adamw_args(updates, count); }
static void dry_transpose_codes(Mat y, Mat x) { (void)y, (void)x; }
static void dry_pack_fp6(uint8_t* packed, Mat codes) { (void)packed, (void)codes; }
static void dry_unpack_fp6(Mat codes, const uint8_t* packed) { (void)codes, (void)packed; }
static void dry_dropout(Mat y, Mat x, float p, const Noise* noise) { (void)y, (void)x, (void)p, (void)noise; }
static void dry_hadamard(Mat y, Mat x, Mat w, float factor, float offset) { (void)y, (void)x, (void)w, (void)factor, (void)offset; }

static size_t no_limit(void) { return (size_t)1 << 60; }

// The table for a GPU; dry_ops puts the sizes of another backend in their places.
static const Ops kDryGpu = {
    "cuda", BF16, dry_alloc, dry_release, dry_upload, dry_download, dry_copy, dry_zero, dry_nothing, no_limit, no_limit, cuda_held_bytes,
    dry_mark, dry_marked_ms, dry_nothing, NULL, NULL, NULL, NULL, cuda_round_rows,
    dry_embed_forward, dry_embed_backward, dry_rmsnorm_forward, dry_rmsnorm_backward, cuda_rmsnorm_scratch, dry_rope,
    dry_attention_forward, dry_attention_backward, cuda_attention_scratch, dry_attention_cached, NULL, dry_swiglu_forward, dry_swiglu_backward,
    dry_cross_entropy, dry_argmax, dry_gemm, dry_gemm_narrow, dry_rotate, dry_absmax, dry_quantize, dry_absmax_each, dry_quantize_each, dry_quantize_tokens,
    dry_unrotate_tokens,
    cuda_quantize_tokens_scratch, dry_count_codes, dry_add, dry_convert, dry_sum_squares, dry_sum_row_squares, dry_clip_scale, dry_adamw,
    dry_transpose_codes, dry_pack_fp6, dry_unpack_fp6, dry_dropout, dry_hadamard,
};

const Ops* dry_ops(const Ops* like) {
    static Ops table;
    block_count = 0;
    used_bytes = peak_bytes = 0;
    next_address = (char*)(uintptr_t)(1 << 20);   // not NULL, which means that there is none
    table = kDryGpu;
    if (!like) return &table;
    table.name = like->name;
    table.act = like->act;
    table.free_bytes = like->free_bytes;
    table.total_bytes = like->total_bytes;
    table.workspace_bytes = like->workspace_bytes;
    table.round_rows = like->round_rows;
    table.rmsnorm_scratch = like->rmsnorm_scratch;
    table.attention_scratch = like->attention_scratch;
    table.quantize_tokens_scratch = like->quantize_tokens_scratch;
    return &table;
}

// ---- ranks

static Comm dry;
static double sent;   // bytes, of rank 0 to all others together

static double others(void) { return dry.ranks - 1; }
static void dry_all_gather(void* out, const void* in, size_t bytes) {
    (void)out, (void)in;
    sent += (double)bytes * others();
}
static void dry_reduce_scatter(void* out, const void* in, size_t count, Fmt fmt, bool add, const Noise* noise) {
    (void)out, (void)in, (void)add, (void)noise;
    sent += (double)(count * fmt_bytes(fmt)) * others();
}
static void dry_all_reduce(void* x, size_t count, Fmt fmt) {
    (void)x;
    sent += (double)(count * fmt_bytes(fmt)) * others();
}
// NCCL's goes around a ring.
static void dry_all_reduce_max(float* x, int n) {
    (void)x;
    sent += (double)(sizeof(float) * (size_t)n) * others() * (dry.staging_bytes ? 2.0 / dry.ranks : 1);
}
static Transfer dry_start(void) { return 0; }
static void dry_wait(Transfer transfer) { (void)transfer; }
static double dry_sent_bytes(void) { return sent; }
static int dry_bad_rank(void) { return -1; }
static void dry_host_sum(double* x, int n) { (void)x, (void)n; }
static void dry_host_broadcast(void* x, size_t bytes) { (void)x, (void)bytes; }

const Comm* dry_comm(int ranks, bool gpus) {
    sent = 0;
    Comm table = {ranks == 1 ? "solo" : gpus ? "nccl" : "mpi", 0, ranks, ranks, gpus && ranks > 1 ? kNcclStagingBytes : 0, dry_all_gather,
                  dry_reduce_scatter, dry_all_reduce, dry_all_reduce_max, dry_start, dry_wait, dry_sent_bytes, dry_bad_rank, dry_host_sum,
                  dry_host_broadcast, dry_nothing, dry_nothing, _exit, NULL, NULL};
    dry = table;
    return &dry;
}
