// Transfers between the GPUs of one host by their copy engines, which take no multiprocessors from the products beside them.
//
//   window    memory of this rank's GPU that the other ranks have opened and write to: outputs of gathers, staging of sums, flags.
//             It has one size on all ranks, so that a place in it names the same place on every rank
//   meeting   the ranks' wires wait for each other: what each rank had done before is seen by all behind it. Every rank writes the
//             meeting's number into its flag on every other rank and waits until the others' flags here have come as far. These
//             are operations of a stream: neither the host nor a multiprocessor waits
//   transfer  a meeting, behind which places may be written to; copies, each rank writing its own bytes to the others; and a
//             meeting, behind which all bytes have arrived
//
// All ranks make the same calls in the same order.
#ifndef HALO_COMM_ENGINES_CUH
#define HALO_COMM_ENGINES_CUH

#include <vector>

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include "comm.h"
#include "../cuda/device.cuh"

#ifndef HALO_SIMT
#include <cuda.h>
enum { kWindowAlign = 2 << 20, kProofSeconds = 10 };   // whole blocks of the driver's: whoever opens a window opens no other memory with it
#else
enum { kWindowAlign = 4 << 10, kProofSeconds = 3 };
#endif

typedef struct {
    std::vector<char*> at;   // (ranks): where each rank's memory is for this process
    size_t bytes;
} Window;

static struct {
    const Comm* host;              // MPI's
    bool work;                     // can memory become a window?
    std::vector<Window> windows;   // the first: flags (ranks) and behind them the number of the last meeting, which copies read
    uint32_t meeting;
    decltype(&cuStreamWriteValue32) write_value;
    decltype(&cuStreamWaitValue32) wait_value;
} engines;

static bool engines_agree(bool fine) {
    double wrong = !fine;
    engines.host->host_sum(&wrong, 1);
    return wrong == 0;
}

// ---- windows

static void close_window(Window* w) {
    for (int r = 0; r < engines.host->ranks; r++)
        if (r != engines.host->rank && w->at[r]) cuda_ok(cudaIpcCloseMemHandle(w->at[r]), "another GPU's memory");
}

// What rank `from` writes to rank `to` when a window is opened, to prove that it is that rank's memory.
static uint64_t window_mark(int from, int to) { return 0x9e3779b97f4a7c15u * (uint64_t)(1 + from * 4096 + to); }

static bool window_proved(const Window* w) {
    int rank = engines.host->rank, ranks = engines.host->ranks;
    size_t bytes = sizeof(uint64_t) * (size_t)ranks, wrong = 0;
    uint64_t* marks = (uint64_t*)host_alloc(bytes);   // (ranks)
    char *received = w->at[rank], *sent = received + bytes;
    for (int r = 0; r < ranks; r++) marks[r] = window_mark(rank, r);
    cuda_ops.upload(sent, marks, bytes);
    cuda_ops.sync();
    engines.host->barrier();   // all ranks' memory has been zeroed
    for (int r = 0; r < ranks; r++) cuda_ops.copy(w->at[r] + sizeof *marks * (size_t)rank, sent + sizeof *marks * (size_t)r, sizeof *marks);
    cuda_ops.sync();
    engines.host->barrier();
    cuda_ops.download(marks, received, bytes);
    for (int r = 0; r < ranks; r++) wrong += marks[r] != window_mark(r, rank);
    cuda_ops.zero(received, 2 * bytes);
    cuda_ops.sync();
    engines.host->barrier();
    free(marks);
    return wrong == 0;
}

// Opens every rank's memory on every other rank. False on all of them, with nothing opened, if that fails on one.
static bool open_window(Window* w) {
    int rank = engines.host->rank, ranks = engines.host->ranks;
    cudaIpcMemHandle_t mine, *handles = (cudaIpcMemHandle_t*)host_alloc(sizeof mine * (size_t)ranks);
    memset(&mine, 0, sizeof mine);
    bool fine = engines_agree(cudaIpcGetMemHandle(&mine, w->at[rank]) == cudaSuccess);
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, handles, sizeof mine, MPI_BYTE, MPI_COMM_WORLD);
    for (int r = 0; r < ranks && fine; r++)
        if (r != rank && cudaIpcOpenMemHandle((void**)&w->at[r], handles[r], cudaIpcMemLazyEnablePeerAccess) != cudaSuccess) {
            w->at[r] = NULL;
            fine = false;
        }
    free(handles);
    (void)cudaGetLastError();   // a failure is dealt with
    fine = engines_agree(fine) && engines_agree(window_proved(w));
    if (!fine) close_window(w);
    return fine;
}

static void engines_give_up(const char* why) {
    if (engines.host->rank == 0)
        fprintf(stderr, "copy engines: %s; NCCL's kernels do the transfers between GPUs, on multiprocessors\n", why);
}

// Zeroed memory, a window where that is possible. Ends as Ops.alloc does if there is not enough.
static void* engines_alloc(size_t bytes) {
    if (!engines.work || !bytes) return cuda_ops.alloc(bytes);
    Window w;
    w.bytes = round_up(bytes, (size_t)kWindowAlign);
    w.at.assign((size_t)engines.host->ranks, NULL);
    char* own = w.at[engines.host->rank] = (char*)cuda_ops.alloc(w.bytes);
    if (open_window(&w)) {
        engines.windows.push_back(w);
    } else {
        engines.work = false;
        engines_give_up("a GPU cannot open memory of another");
    }
    return own;
}

// The window that holds bytes [p, p + bytes) of this rank; NULL: none.
static Window* window_of(const void* p, size_t bytes) {
    for (Window& w : engines.windows) {
        const char* own = w.at[engines.host->rank];
        if ((const char*)p >= own && (const char*)p + bytes <= own + w.bytes) return &w;
    }
    return NULL;
}
// The address of rank r's memory that is p on this rank.
static char* engines_at(const Window* w, int r, const void* p) { return w->at[r] + ((const char*)p - w->at[engines.host->rank]); }

static void engines_release(void* p) {
    Window* w = window_of(p, 1);
    if (w) {
        cuda_ok(cudaDeviceSynchronize(), "transfers");
        engines.host->barrier();   // no rank writes to it any more
        close_window(w);
        engines.host->barrier();   // it is open nowhere
        engines.windows.erase(engines.windows.begin() + (w - engines.windows.data()));
    }
    cuda_ops.release(p);
}

// ---- meetings

// False if the driver refuses.
static bool meet(cudaStream_t wire) {
    int rank = engines.host->rank, ranks = engines.host->ranks;
    const Window* w = &engines.windows[0];
    uint32_t *flags = (uint32_t*)w->at[rank], *number = flags + ranks;
    engines.meeting++;
    bool fine = engines.write_value(wire, (CUdeviceptr)number, engines.meeting, 0) == CUDA_SUCCESS;
    for (int k = 1; k < ranks; k++)
        cuda_ok(cudaMemcpyAsync(engines_at(w, (rank + k) % ranks, flags + rank), number, sizeof *number, cudaMemcpyDeviceToDevice, wire), "a flag");
    for (int k = 1; k < ranks; k++) {
        CUdeviceptr flag = (CUdeviceptr)(flags + (rank + ranks - k) % ranks);
        fine = engines.wait_value(wire, flag, engines.meeting, CU_STREAM_WAIT_VALUE_GEQ) == CUDA_SUCCESS && fine;
    }
    return fine;
}
static void engines_meet(cudaStream_t wire) { check(meet(wire), "CUDA: streams no longer wait for values"); }

// Do the ranks meet, within kProofSeconds? If not, the wires that still wait are let go.
static bool meeting_proved(cudaStream_t wire) {
    cudaEvent_t met;
    cuda_ok(cudaEventCreateWithFlags(&met, cudaEventDisableTiming), "an event");
    bool fine = meet(wire);
    cuda_ok(cudaEventRecord(met, wire), "an event");
    enum { kLookUs = 200 };
    bool there = false;
    for (int looks = 0; !there && looks < kProofSeconds * (1000000 / kLookUs); looks++) {
        there = cudaEventQuery(met) == cudaSuccess;
        if (!there) usleep(kLookUs);
    }
    fine = engines_agree(fine && there);
    if (!fine) {
        size_t bytes = sizeof(uint32_t) * (size_t)engines.host->ranks;
        uint32_t* numbers = (uint32_t*)host_alloc(bytes);
        for (int r = 0; r < engines.host->ranks; r++) numbers[r] = engines.meeting;
        cuda_ops.upload(engines.windows[0].at[engines.host->rank], numbers, bytes);
        free(numbers);
    }
    cuda_ok(cudaStreamSynchronize(wire), "a meeting");
    cuda_ok(cudaEventDestroy(met), "an event");
    return fine;
}

static bool find_stream_values() {
#ifdef HALO_SIMT
    engines.write_value = cuStreamWriteValue32;
    engines.wait_value = cuStreamWaitValue32;
    return true;
#else
    cudaDriverEntryPointQueryResult found[2];
    (void)cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", (void**)&engines.write_value, 12000, cudaEnableDefault, &found[0]);
    (void)cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", (void**)&engines.wait_value, 12000, cudaEnableDefault, &found[1]);
    (void)cudaGetLastError();
    return engines.write_value && engines.wait_value;
#endif
}

// Is this rank's GPU joined to the others' by NVLink? Over PCIe it depends on the host's bridges whether writing to another GPU is fast.
static bool joined_by_nvlink() {
    int gpus = cuda_device_count(), own = 0;
    if (gpus < engines.host->ranks) return false;   // ranks that see their own GPU alone
    cuda_ok(cudaGetDevice(&own), "the current device");
    for (int r = 0; r < engines.host->ranks; r++) {
        int atomics = 0, other = cuda_usable_device(r);
        if (other == own) continue;
        if (cudaDeviceGetP2PAttribute(&atomics, cudaDevP2PAttrNativeAtomicSupported, own, other) == cudaSuccess && atomics) continue;
        (void)cudaGetLastError();   // a failure is dealt with
        return false;
    }
    return true;
}

// In the environment HALO_COPY_ENGINES=0: NCCL does all transfers, as where ranks are on several hosts. 1: copy engines, over whatever joins the
// GPUs. Unset: copy engines over NVLink.
static void engines_start(const Comm* host, cudaStream_t wire) {
    engines.host = host;
    const char* asked = getenv("HALO_COPY_ENGINES");
    if (asked && strcmp(asked, "0") && strcmp(asked, "1"))
        user_error("HALO_COPY_ENGINES is '%s': give it 0 or 1, or leave it unset (README, Several ranks)", asked);
    bool off = !engines_agree(!asked || strcmp(asked, "0"));
    if (off) return engines_give_up("HALO_COPY_ENGINES is 0");
    if (!engines_agree(host->host_ranks == host->ranks && (asked || joined_by_nvlink()))) return;
    engines.work = engines_agree(find_stream_values());
    if (!engines.work) return engines_give_up("the driver's streams know no values to wait for");
    void* flags = engines_alloc(sizeof(uint32_t) * (size_t)(host->ranks + 1));
    if (!engines.work || meeting_proved(wire)) return;
    engines.work = false;
    engines_release(flags);
    engines_give_up("the GPUs' streams do not meet");
}

#endif
