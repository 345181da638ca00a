// Memory of emulated GPUs (simt.h) that processes of one host share, and streams that write values to it and wait for them: what
// comm/engines.cuh uses of CUDA.
//
// Memory becomes shared when its handle is asked for: a file without a name takes the place of its pages, so it must consist of whole
// pages. Another process finds the file among the open ones of its owner.
#ifndef TEST_SIMT_IPC_H
#define TEST_SIMT_IPC_H

#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>

#include <atomic>

typedef struct {
    pid_t process;
    int file;
    size_t bytes;
} cudaIpcMemHandle_t;
enum { cudaIpcMemLazyEnablePeerAccess = 1, kSimtPageBytes = 4096, kSimtMostOpened = 1024 };

// The sizes of other processes' memory that is open here.
static inline size_t* simt_opened(void* p, bool add) {
    static struct {
        void* p;
        size_t bytes;
    } opened[kSimtMostOpened];
    for (int i = 0; i < kSimtMostOpened; i++) {
        if (opened[i].p != (add ? NULL : p)) continue;
        opened[i].p = add ? p : NULL;
        return &opened[i].bytes;
    }
    die("emulated IPC: %s", add ? "too much is open" : "what is closed is not open");
}

static inline cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* p) {
    cudaDeviceSynchronize();
    size_t bytes = malloc_usable_size(p) / kSimtPageBytes * kSimtPageBytes;
    check((uintptr_t)p % kSimtPageBytes == 0 && bytes > 0, "emulated IPC: memory at %p does not consist of pages", p);
    cudaIpcMemHandle_t h = {getpid(), memfd_create("simt_ipc", MFD_CLOEXEC), bytes};
    check(h.file >= 0 && pwrite(h.file, p, bytes, 0) == (ssize_t)bytes, "emulated IPC: no file of %zu bytes", bytes);
    check(mmap(p, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, h.file, 0) == p, "emulated IPC: %zu bytes are not shared", bytes);
    *handle = h;
    return cudaSuccess;
}
// SIMT_NO_IPC=r: rank r cannot open memory of the others.
static inline cudaError_t cudaIpcOpenMemHandle(void** p, cudaIpcMemHandle_t handle, unsigned) {
    char path[64];
    const char *closed = getenv("SIMT_NO_IPC"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (closed && rank && !strcmp(closed, rank)) return cudaErrorNotReady;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)handle.process, handle.file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return cudaErrorNotReady;
    *p = mmap(NULL, handle.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    check(*p != MAP_FAILED, "emulated IPC: %zu bytes are not opened", handle.bytes);
    *simt_opened(*p, true) = handle.bytes;
    return cudaSuccess;
}
static inline cudaError_t cudaIpcCloseMemHandle(void* p) {
    cudaDeviceSynchronize();
    munmap(p, *simt_opened(p, false));
    return cudaSuccess;
}

// ---- values in a stream
typedef uintptr_t CUdeviceptr;
typedef enum { CUDA_SUCCESS } CUresult;
enum { CU_STREAM_WAIT_VALUE_GEQ = 0, kSimtValuePollUs = 20 };

// SIMT_NO_VALUES=r: the values that rank r's streams write are lost.
static inline CUresult cuStreamWriteValue32(cudaStream_t stream, CUdeviceptr at, uint32_t value, unsigned) {
    const char *lost = getenv("SIMT_NO_VALUES"), *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (lost && rank && !strcmp(lost, rank)) return CUDA_SUCCESS;
    simt_enqueue(stream, [=] { ((std::atomic<uint32_t>*)at)->store(value); });
    return CUDA_SUCCESS;
}
static inline CUresult cuStreamWaitValue32(cudaStream_t stream, CUdeviceptr at, uint32_t value, unsigned) {
    simt_enqueue(stream, [=] {
        while ((int32_t)(((std::atomic<uint32_t>*)at)->load() - value) < 0) usleep(kSimtValuePollUs);
    });
    return CUDA_SUCCESS;
}

#endif
