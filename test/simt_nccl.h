// NCCL between emulated GPUs (simt.h) of processes on one host: what comm/nccl.cu uses of it, over shared memory.
//
// Every ordered pair of ranks has a channel, a ring of bytes. A group is one piece of a stream's work: its sends and receives
// go on side by side until all are done. A message begins with its length and its number, so that ranks whose calls do not match
// are told. Collectives are made of sends and receives.
#ifndef TEST_SIMT_NCCL_H
#define TEST_SIMT_NCCL_H

#include <fcntl.h>
#include <sys/mman.h>

#include <atomic>
#include <vector>

#include "simt_ipc.h"

typedef enum {
    ncclSuccess, ncclUnhandledCudaError, ncclSystemError, ncclInternalError, ncclInvalidArgument, ncclInvalidUsage, ncclRemoteError, ncclInProgress
} ncclResult_t;
typedef enum { ncclInt8 = 0, ncclUint32 = 3 } ncclDataType_t;
typedef enum { ncclMax = 2 } ncclRedOp_t;
typedef struct {
    char internal[128];
} ncclUniqueId;

enum { kSimtMaxRanks = 8, kSimtChannelBytes = 1 << 18, kSimtPollUs = 20 };

typedef struct {
    std::atomic<size_t> written, read;   // bytes so far
    char ring[kSimtChannelBytes];
} SimtChannel;
typedef struct {
    std::atomic<int> attached;
    SimtChannel channel[kSimtMaxRanks][kSimtMaxRanks];   // from, to
} SimtFabric;

struct ncclComm {
    SimtFabric* fabric;
    int rank, ranks;
    uint64_t sent[kSimtMaxRanks], received[kSimtMaxRanks];   // messages, as calls were made
    std::atomic<bool> aborted;
};
typedef ncclComm* ncclComm_t;

// Half of a message.
struct SimtMessage {
    bool send;
    int peer;
    char* data;
    uint64_t header[2];   // bytes, number
    size_t done;          // with the header
};
// What one group asks of a stream, and what follows its messages.
struct SimtGroup {
    ncclComm_t comm;
    cudaStream_t stream;
    std::vector<SimtMessage> messages;
    std::vector<std::function<void()>> after;
};
inline thread_local SimtGroup simt_group;
inline thread_local int simt_group_depth;

static inline const char* ncclGetErrorString(ncclResult_t status) { return status == ncclSuccess ? "no error" : "emulated error"; }
static inline const char* ncclGetLastError(ncclComm_t) { return ""; }
static inline ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* status) {
    *status = ncclSuccess;
    return ncclSuccess;
}

static inline ncclResult_t ncclGetVersion(int* version) {
    *version = 22809;
    return ncclSuccess;
}

static inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "/halo_simt_nccl_%d", (int)getpid());
    int file = shm_open(id->internal, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (file < 0 || ftruncate(file, sizeof(SimtFabric))) return ncclSystemError;
    close(file);
    return ncclSuccess;
}
static inline ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId id, int rank) {
    check(ranks <= kSimtMaxRanks, "%d ranks are more than %d emulated ones", ranks, (int)kSimtMaxRanks);
    int file = shm_open(id.internal, O_RDWR, 0600);
    if (file < 0) return ncclSystemError;
    ncclComm_t c = new ncclComm();
    c->fabric = (SimtFabric*)mmap(NULL, sizeof(SimtFabric), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    c->rank = rank;
    c->ranks = ranks;
    c->fabric->attached++;
    while (c->fabric->attached < ranks) usleep(kSimtPollUs);
    if (rank == 0) shm_unlink(id.internal);
    *comm = c;
    return ncclSuccess;
}
static inline ncclResult_t ncclCommDestroy(ncclComm_t) { return ncclSuccess; }
static inline ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->aborted = true;
    return ncclSuccess;
}

// Moves what there is room for; false if that was nothing.
static inline bool simt_move(ncclComm_t comm, SimtMessage* m) {
    SimtChannel* c = m->send ? &comm->fabric->channel[comm->rank][m->peer] : &comm->fabric->channel[m->peer][comm->rank];
    size_t written = c->written, read = c->read, total = sizeof m->header + m->header[0], moved = 0;
    uint64_t header[2];
    if (!m->send && m->done == 0) {
        if (written - read < sizeof header) return false;
        for (size_t i = 0; i < sizeof header; i++) ((char*)header)[i] = c->ring[(read + i) % kSimtChannelBytes];
        check(!memcmp(header, m->header, sizeof header), "rank %d receives message %zu of %zu bytes from rank %d, which sent number %zu of %zu",
              comm->rank, (size_t)m->header[1], (size_t)m->header[0], m->peer, (size_t)header[1], (size_t)header[0]);
    }
    size_t room = m->send ? kSimtChannelBytes - (written - read) : written - read, at = m->send ? written : read;
    for (; m->done < total && moved < room; m->done++, moved++) {
        char* byte = m->done < sizeof m->header ? (char*)m->header + m->done : m->data + (m->done - sizeof m->header);
        char* slot = &c->ring[(at + moved) % kSimtChannelBytes];
        if (m->send) *slot = *byte;
        else *byte = *slot;
    }
    if (m->send) c->written += moved;
    else c->read += moved;
    return moved > 0;
}

// Messages between two ranks go one after the other, in the order of their calls.
static inline void simt_run_group(SimtGroup& g) {
    for (size_t left = g.messages.size(); left > 0;) {
        bool busy[2][kSimtMaxRanks] = {}, moved = false;
        if (g.comm->aborted) return;
        left = 0;
        for (SimtMessage& m : g.messages) {
            bool whole = m.done == sizeof m.header + m.header[0];
            if (whole || busy[m.send][m.peer]) {
                left += !whole;
                continue;
            }
            moved = simt_move(g.comm, &m) || moved;
            if (m.done < sizeof m.header + m.header[0]) busy[m.send][m.peer] = true, left++;
        }
        if (!moved && left > 0) usleep(kSimtPollUs);
    }
    for (std::function<void()>& f : g.after) f();
}

static inline ncclResult_t ncclGroupStart() {
    simt_group_depth++;
    return ncclSuccess;
}
static inline ncclResult_t ncclGroupEnd() {
    if (--simt_group_depth > 0 || !simt_group.comm) return ncclSuccess;
    SimtGroup g = std::move(simt_group);
    simt_group = SimtGroup();
    simt_enqueue(g.stream, [g]() mutable { simt_run_group(g); });
    return ncclSuccess;
}

static inline void simt_message(bool send, const void* data, size_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
    check(simt_group_depth > 0, "emulated NCCL: outside of a group");
    check(!simt_group.comm || simt_group.stream == stream, "emulated NCCL: a group on two streams");
    simt_group.comm = comm;
    simt_group.stream = stream;
    uint64_t number = send ? ++comm->sent[peer] : ++comm->received[peer];
    SimtMessage m = {send, peer, (char*)data, {bytes, number}, 0};
    simt_group.messages.push_back(m);
}
static inline ncclResult_t ncclSend(const void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
    simt_message(true, data, count, peer, comm, stream);
    return ncclSuccess;
}
static inline ncclResult_t ncclRecv(void* data, size_t count, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
    simt_message(false, data, count, peer, comm, stream);
    return ncclSuccess;
}
static inline ncclResult_t ncclAllGather(const void* in, void* out, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    char* own = (char*)out + (size_t)comm->rank * count;
    for (int r = 0; r < comm->ranks; r++) {
        if (r == comm->rank) continue;
        ncclSend(in, count, type, r, comm, stream);
        ncclRecv((char*)out + (size_t)r * count, count, type, r, comm, stream);
    }
    simt_group.after.push_back([=] { if (own != in) memcpy(own, in, count); });
    return ncclSuccess;
}
static inline ncclResult_t ncclAllReduce(const void* in, void* out, size_t count, ncclDataType_t, ncclRedOp_t, ncclComm_t comm,
                                         cudaStream_t stream) {
    size_t bytes = count * sizeof(uint32_t);
    uint32_t* others = (uint32_t*)host_alloc(bytes * (size_t)comm->ranks);
    for (int r = 0; r < comm->ranks; r++) {
        if (r == comm->rank) continue;
        ncclSend(in, bytes, ncclInt8, r, comm, stream);
        ncclRecv(others + (size_t)r * count, bytes, ncclInt8, r, comm, stream);
    }
    simt_group.after.push_back([=] {
        memcpy(others + (size_t)comm->rank * count, in, bytes);
        for (size_t i = 0; i < count; i++) {
            uint32_t most = 0;
            for (int r = 0; r < comm->ranks; r++)
                if (others[(size_t)r * count + i] > most) most = others[(size_t)r * count + i];
            ((uint32_t*)out)[i] = most;
        }
        free(others);
    });
    return ncclSuccess;
}

#endif
