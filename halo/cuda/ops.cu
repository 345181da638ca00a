// The CUDA backend: exports cuda_ops, BF16 activations and weights, FP32 inside every layer. Each header below holds one
// layer, forward beside backward; everything runs on one stream, in call order. Compiled by nvcc, or with -x c++ -DHALO_SIMT
// by a C++ compiler, which gives the same table on the emulator (device.cuh).
//
// The device is the one that is current when the backend is first used, or the first usable one if that is too old.
#include "../host_copy.h"
#include "device.cuh"

#include <vector>

#include "adamw.cuh"
#include "attention/attention.cuh"
#include "dropout.cuh"
#include "embed.cuh"
#include "facts.cuh"
#include "gemm/narrow.cuh"
#include "loss.cuh"
#include "quantize.cuh"
#include "rmsnorm.cuh"
#include "rope.cuh"
#include "rotate/rotate.cuh"
#include "sums.cuh"
#include "swiglu.cuh"
#include "wire.cuh"

// ---- the device: a stream, a ring of pinned memory through which the host's data travels, and workspaces
enum { kStagingSlots = 16, kStagingBytes = 4 << 20 };

typedef struct {
    bool started;
    cudaStream_t stream;
    char* staging;                          // kStagingSlots of kStagingBytes
    cudaEvent_t copied[kStagingSlots];      // the last copy from or to the slot is done
    int next_slot;
    CudaHeld held;
} Device;
static Device device;

// Allocates all members of CudaHeld at once, cuda_held_bytes in all.
static void allocate_held(CudaHeld* held) {
    char* memory = NULL;
    Arena arena = {NULL, 0};
    for (int place = 0; place < 2; place++) {   // measure, then place
        held->workspace = arena_take(&arena, kWorkspaceBytes);
        held->strip = (float*)arena_take(&arena, kRotateStripBytes);
        held->signs = (char*)arena_take(&arena, kSignsBytes);
        held->partial_sums = (float*)arena_take(&arena, kSumBlocksMax * sizeof(float));
        held->wide_tally = (WideTally*)arena_take(&arena, kWideTallyBytes);
        held->arrived = (unsigned*)arena_take(&arena, kSplitCounters * sizeof(unsigned));
        for (int i = 0; i < 2; i++) held->scales[i] = (float*)arena_take(&arena, kLtVectorRows * sizeof(float));
        if (place) continue;
        check(arena.used == cuda_held_bytes(), "cuda: %zu bytes are held, %zu counted", arena.used, cuda_held_bytes());
        cuda_ok(cudaMalloc((void**)&memory, arena.used), "workspaces");
        arena = Arena{memory, 0};
    }
    cuda_ok(cudaMemsetAsync(held->wide_tally, 0, kWideTallyBytes, device.stream), "workspaces");
    cuda_ok(cudaMemsetAsync(held->arrived, 0, kSplitCounters * sizeof(unsigned), device.stream), "workspaces");
}

// A user_error if the program holds no code for this GPU: asks for the attributes of a kernel, of which any would do.
static void check_built_for_device() {
    cudaFuncAttributes code;
    cudaError_t status = cudaFuncGetAttributes(&code, absmax_kernel<8, bf16>);
    int sm = gpu_device().capability;
    if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction)
        user_error("the GPU is an sm_%d, and this program was built for another: make ARCH=sm_%d%s", sm, sm, sm >= 90 ? "a" : "");
    cuda_ok(status, "the code of a kernel");
}

// Can the kernels run on GPU `index` of the driver's list? They need bf16 tensor cores and asynchronous copies.
static bool is_usable(int index) {
    int major = 0;
    cuda_ok(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "compute capability");
    return major >= 8;
}
int cuda_device_count(void) {
    int count = 0, usable = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) return 0;
    for (int i = 0; i < count; i++) usable += is_usable(i);
    return usable;
}
int cuda_usable_device(int n) {
    int count = 0, left = n;
    cuda_ok(cudaGetDeviceCount(&count), "the number of GPUs");
    for (int i = 0; i < count; i++)
        if (is_usable(i) && left-- == 0) return i;
    die("cuda: usable GPU %d of %d GPUs", n, count);
}

static void device_start() {
    int current = 0;
    cuda_ok(cudaGetDevice(&current), "the current device");
    if (!is_usable(current)) cuda_ok(cudaSetDevice(cuda_usable_device(0)), "the first usable GPU");
    device.started = true;
    check_built_for_device();
    cuda_ok(cudaStreamCreateWithFlags(&device.stream, cudaStreamNonBlocking), "a stream");
    cuda_ok(cudaHostAlloc((void**)&device.staging, (size_t)kStagingSlots * kStagingBytes, cudaHostAllocDefault), "pinned memory");
    for (int i = 0; i < kStagingSlots; i++) cuda_ok(cudaEventCreateWithFlags(&device.copied[i], cudaEventDisableTiming), "an event");
    allocate_held(&device.held);
    rotate_signs();
    gemm_start();
}

cudaStream_t cuda_stream() {
    if (!device.started) device_start();
    return device.stream;
}
const CudaHeld& cuda_held() {
    cuda_stream();
    return device.held;
}

const char* cuda_last_product(void) { return gemm_ran_on; }
void cuda_cut_products(int width, int splits) {
    gemm_asked.width = width;
    gemm_asked.splits = splits;
}

// ---- memory
static size_t cuda_memory(bool all) {
    size_t left = 0, total = 0;
    cuda_stream();
    cuda_ok(cudaMemGetInfo(&left, &total), "free memory");
    return all ? total : left;
}
static void* cuda_alloc(size_t bytes) {
    void* p = NULL;
    size_t whole = round_up(bytes ? bytes : 1, kArenaAlign);
    cudaStream_t stream = cuda_stream();
    cudaError_t status = cudaMalloc(&p, whole);
    if (status == cudaErrorMemoryAllocation)
        user_error("out of GPU memory: %.2f GiB were wanted, %.2f are free: a smaller --batch or --seq, or --recompute block, take less; "
                   "nvidia-smi shows what else runs on this GPU", (double)bytes / (1 << 30), (double)cuda_memory(false) / (1 << 30));
    cuda_ok(status, "memory");
    cuda_ok(cudaMemsetAsync(p, 0, whole, stream), "zeroing");
    return p;
}
static void cuda_release(void* p) { cuda_ok(cudaFree(p), "cudaFree"); }   // waits for what still uses p

// The next slot of the ring, once its last copy is done.
static int staging_slot() {
    int slot = device.next_slot;
    device.next_slot = (slot + 1) % kStagingSlots;
    cuda_ok(cudaEventSynchronize(device.copied[slot]), "a copy");
    return slot;
}
static char* staging_memory(int slot) { return device.staging + (size_t)slot * kStagingBytes; }
static size_t staged_bytes(size_t at, size_t bytes) { return bytes - at < kStagingBytes ? bytes - at : (size_t)kStagingBytes; }

// Returns when the host's data has been read, which is before it has arrived.
static void cuda_upload(void* dst, const void* host_src, size_t bytes) {
    cudaStream_t stream = cuda_stream();
    for (size_t at = 0; at < bytes; at += kStagingBytes) {
        size_t n = staged_bytes(at, bytes);
        int slot = staging_slot();
        host_copy(staging_memory(slot), (const char*)host_src + at, n);
        cuda_ok(cudaMemcpyAsync((char*)dst + at, staging_memory(slot), n, cudaMemcpyHostToDevice, stream), "upload");
        cuda_ok(cudaEventRecord(device.copied[slot], stream), "upload");
    }
}

// Half of the ring's slots are being filled by the GPU while the host empties the other half.
static void cuda_download(void* host_dst, const void* src, size_t bytes) {
    cudaStream_t stream = cuda_stream();
    int slot_of[kStagingSlots];   // the slot of each kStagingBytes of the data
    size_t pieces = (bytes + kStagingBytes - 1) / kStagingBytes, ahead = kStagingSlots / 2;
    for (size_t turn = 0; turn < pieces + ahead; turn++) {
        if (turn >= ahead) {
            size_t piece = turn - ahead;
            int slot = slot_of[piece % kStagingSlots];
            cuda_ok(cudaEventSynchronize(device.copied[slot]), "download");
            host_copy((char*)host_dst + piece * kStagingBytes, staging_memory(slot), staged_bytes(piece * kStagingBytes, bytes));
        }
        if (turn < pieces) {
            size_t at = turn * kStagingBytes;
            int slot = slot_of[turn % kStagingSlots] = staging_slot();
            cuda_ok(cudaMemcpyAsync(staging_memory(slot), (const char*)src + at, staged_bytes(at, bytes), cudaMemcpyDeviceToHost,
                                    stream), "download");
            cuda_ok(cudaEventRecord(device.copied[slot], stream), "download");
        }
    }
}

static void cuda_copy(void* dst, const void* src, size_t bytes) {
    cuda_ok(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_stream()), "copy");
}
static void cuda_zero(void* dst, size_t bytes) { cuda_ok(cudaMemsetAsync(dst, 0, bytes, cuda_stream()), "zero"); }
static void cuda_sync(void) { cuda_ok(cudaStreamSynchronize(cuda_stream()), "the work before this point"); }
static size_t cuda_free_bytes(void) { return cuda_memory(false); }
static size_t cuda_total_bytes(void) { return cuda_memory(true); }

// ---- time: events, kept for the next marks
static std::vector<cudaEvent_t> marks;
static int mark_count;

static int cuda_mark(void) {
    if (mark_count == (int)marks.size()) {
        marks.push_back(NULL);
        cuda_ok(cudaEventCreate(&marks.back()), "an event");
    }
    cuda_ok(cudaEventRecord(marks[mark_count], cuda_stream()), "a mark");
    return mark_count++;
}
static float cuda_marked_ms(int from, int to) {
    float ms;
    cuda_ok(cudaEventSynchronize(marks[to]), "the work before a mark");
    cuda_ok(cudaEventElapsedTime(&ms, marks[from], marks[to]), "a time");
    return ms;
}
static void cuda_forget_marks(void) { mark_count = 0; }

// ---- recorded work: CUDA's graphs
static void cuda_record_begin(void) { cuda_ok(cudaStreamBeginCapture(cuda_stream(), cudaStreamCaptureModeThreadLocal), "recording"); }
static void* cuda_record_end(void) {
    cudaGraph_t graph;
    cudaGraphExec_t record;
    cuda_ok(cudaStreamEndCapture(cuda_stream(), &graph), "recording");
    cuda_ok(cudaGraphInstantiate(&record, graph, 0), "a record");
    cuda_ok(cudaGraphDestroy(graph), "a record");
    return record;
}
static void cuda_replay(void* record) { cuda_ok(cudaGraphLaunch((cudaGraphExec_t)record, cuda_stream()), "replay"); }
static void cuda_record_free(void* record) {
    cuda_sync();
    cuda_ok(cudaGraphExecDestroy((cudaGraphExec_t)record), "a record");
}

const Ops cuda_ops = {
    "cuda",
    BF16,
    cuda_alloc,
    cuda_release,
    cuda_upload,
    cuda_download,
    cuda_copy,
    cuda_zero,
    cuda_sync,
    cuda_free_bytes,
    cuda_total_bytes,
    cuda_held_bytes,
    cuda_mark,
    cuda_marked_ms,
    cuda_forget_marks,
    cuda_record_begin,
    cuda_record_end,
    cuda_replay,
    cuda_record_free,
    cuda_round_rows,
    embed_forward,
    embed_backward,
    rmsnorm_forward,
    rmsnorm_backward,
    cuda_rmsnorm_scratch,
    rope,
    attention_forward,
    attention_backward,
    cuda_attention_scratch,
    attention_cached,
    attention_append,
    swiglu_forward,
    swiglu_backward,
    cross_entropy,
    argmax,
    gemm,
    gemm_narrow,
    rotate,
    absmax,
    quantize,
    absmax_each,
    quantize_each,
    quantize_tokens,
    unrotate_tokens,
    cuda_quantize_tokens_scratch,
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
