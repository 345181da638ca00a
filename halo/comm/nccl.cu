// GPU ranks: NCCL for the GPUs' memory; MPI for the hosts' memory, and for the ranks to find each other.
//
// Two streams beside the backend's, of the highest priority. On `wire` transfers run one after the other; on `sums` what
// has arrived is added up while the next slice is on its way. The order of ncclReduceScatter's sums depends on how NCCL connects the
// GPUs, which comm.h rules out: here every rank receives the other ranks' parts of its slice and one kernel adds them in rank
// order. A rank sends as many bytes as in a ring.
//
// Where all ranks are on one host and their GPUs can open each other's memory, copy engines write gathered bytes and slices to the other
// ranks, and NCCL is left with the rest (engines.cuh): its kernels would take multiprocessors from the products beside them.
//
//   staging   two halves; in each a lane for every other rank, which holds a slice of what that rank sends
//   transfer  two events, `ready` behind the backend's earlier work and `done` behind the transfer, and the host's place when it was
//             started: the watchdog asks the events how far the GPU is
//
// Compiled by nvcc, or with -x c++ -DHALO_SIMT behind emulations of the GPU and of NCCL, which the Makefile
// includes first (test/simt.h, test/simt_nccl.h).
#include <signal.h>

#include <atomic>

#include "engines.cuh"
#include "../cuda/rank_sums.cuh"
#include "../progress.h"

#ifndef HALO_SIMT
#include <nccl.h>
#endif

// kTransfers: records that are kept. A transfer must be waited for before kTransfers more are started, or not at all. Training needs the
// most with --zero 3: a backward pass starts two transfers a layer, and its sums are waited for at its end.
#ifdef HALO_SIMT
enum { kHalfBytes = 4 << 10, kTransfers = 32 };       // small, so that tests of a tiny model need many slices and all records
#else
enum { kHalfBytes = kNcclStagingBytes / 2, kTransfers = 1024 };   // 0.25 ms of an NVLink: far longer than starting a slice takes
#endif
enum {
    kOperations = 32,         // collectives of one kind in a transfer, at most
    kBlockValues = 128,       // a slice of an all_reduce is a multiple of this
    kGiveUpSeconds = 5        // how long NCCL gets to stop its work
};

typedef struct {
    void* out;
    const void* in;
    size_t bytes;
} Gather;
// out (count) <- [out +] the sum over ranks of their `in`, from rank * step on. step is count, or 0: all of `in`, on every rank.
typedef struct {
    char* out;
    const char* in;
    size_t count, step;
    Fmt fmt;
    bool add, stochastic;
    Noise noise;              // with which out is rounded
} Sum;
typedef struct {
    float* x;
    int n;
} Maximum;
typedef struct {
    cudaEvent_t ready, done;
    ProgressPlace place;
} TransferRecord;
// The part of a sum that lies in one slice: neighbouring values.
typedef struct {
    const Sum* sum;
    size_t first, count;
    size_t lane_offset;   // bytes
} Segment;
static size_t segment_bytes(const Segment* g) { return g->count * fmt_bytes(g->sum->fmt); }

static struct {
    Comm table;               // MPI's, with this file's collectives
    void (*finish_mpi)(void);
    ncclComm_t comm;
    int device;
    cudaStream_t wire, sums;
    char* staging;            // (2, kHalfBytes)
    size_t lane_bytes;
    cudaEvent_t arrived[2], summed[2];   // of each half: its last slice has arrived, has been added up
    int half;                 // the half to be filled next
    unsigned* bad;            // of RankValues, on the GPU; 0: every sum has been finite
    double sent;              // bytes

    // collected for the next transfer
    Gather gathers[kOperations];
    Sum sum[kOperations];
    Maximum maxima[kOperations];
    int gather_count, sum_count, maximum_count;
    const char* collective;

    TransferRecord records[kTransfers];   // transfer t has record t % kTransfers
    std::atomic<Transfer> started;
    Transfer finished;        // used by the watchdog's thread alone
} gpu;

// ---- errors

// A remote or system error means that a peer or the network is lost: ends the job with a report, as the watchdog does.
static void nccl_ok(ncclResult_t status, const char* what) {
    if (status == ncclSuccess) return;
    char why[384];
    snprintf(why, sizeof why, "NCCL: %s: %s (%.200s)", what, ncclGetErrorString(status), ncclGetLastError(gpu.comm));
    if (status != ncclRemoteError && status != ncclSystemError) die("%s", why);
    progress_report(why);
    gpu.table.abort_job(kExitHang);
}

// ---- what the watchdog asks for, on its thread

static DeviceProgress look() {
    static char error[256];
    DeviceProgress d;
    memset(&d, 0, sizeof d);
    (void)cudaSetDevice(gpu.device);
    ncclResult_t status = ncclSuccess;
    if (ncclCommGetAsyncError(gpu.comm, &status) == ncclSuccess && status != ncclSuccess && status != ncclInProgress) {
        snprintf(error, sizeof error, "NCCL: %s (%.200s)", ncclGetErrorString(status), ncclGetLastError(gpu.comm));
        d.error = error;
    }
    Transfer started = gpu.started.load();
    if (started - gpu.finished >= kTransfers) gpu.finished = started - kTransfers + 1;   // older records have been reused
    const TransferRecord* next = NULL;
    while (gpu.finished < started) {
        next = &gpu.records[(gpu.finished + 1) % kTransfers];
        if (cudaEventQuery(next->done) == cudaErrorNotReady) break;   // the main thread reports any other error
        gpu.finished++;
    }
    d.finished = gpu.finished;
    d.busy = gpu.finished < started;
    if (!d.busy) return d;
    d.at = next->place;
    if (cudaEventQuery(next->ready) == cudaErrorNotReady) d.at.collective = NULL;   // the GPU is still at the work before the transfer
    return d;
}

static void exit_stuck(int signal_number) {
    (void)signal_number;
    _exit(kExitHang);
}
static void give_up() {
    signal(SIGALRM, exit_stuck);
    alarm(kGiveUpSeconds);
    (void)cudaSetDevice(gpu.device);
    (void)ncclCommAbort(gpu.comm);
    alarm(0);
}

// ---- sums

// A segment of what this rank brings, for rank `to`.
static const char* part_for(const Segment* g, int to) {
    return g->sum->in + (g->sum->step * (size_t)to + g->first) * fmt_bytes(g->sum->fmt);
}
// Where in `half` of the staging memory of rank `at` a segment from rank `from` arrives: an address of this rank's.
static char* lane_place(const Segment* g, int half, int at, int from) {
    return gpu.staging + (size_t)half * kHalfBytes + (size_t)(from - (from > at)) * gpu.lane_bytes + g->lane_offset;
}

static void exchange_by_engines(const Window* w, const Segment* segments, int count, int half) {
    int rank = gpu.table.rank, ranks = gpu.table.ranks;
    engines_meet(gpu.wire);
    for (int k = 1; k < ranks; k++) {
        int to = (rank + k) % ranks;
        for (int i = 0; i < count; i++) {
            const Segment* g = &segments[i];
            char* lane = engines_at(w, to, lane_place(g, half, to, rank));
            cuda_ok(cudaMemcpyAsync(lane, part_for(g, to), segment_bytes(g), cudaMemcpyDeviceToDevice, gpu.wire), "a slice");
        }
    }
    engines_meet(gpu.wire);
}

static void exchange_by_nccl(const Segment* segments, int count, int half) {
    int rank = gpu.table.rank, ranks = gpu.table.ranks;
    nccl_ok(ncclGroupStart(), "a group");
    for (int i = 0; i < count; i++) {
        const Segment* g = &segments[i];
        for (int k = 1; k < ranks; k++) {
            int to = (rank + k) % ranks, from = (rank + ranks - k) % ranks;
            nccl_ok(ncclSend(part_for(g, to), segment_bytes(g), ncclInt8, to, gpu.comm, gpu.wire), "send");
            nccl_ok(ncclRecv(lane_place(g, half, rank, from), segment_bytes(g), ncclInt8, from, gpu.comm, gpu.wire), "receive");
        }
    }
    nccl_ok(ncclGroupEnd(), "send and receive");
}

// Receives a slice into the next half of staging, and adds it up.
static void run_slice(const Segment* segments, int count) {
    int rank = gpu.table.rank, ranks = gpu.table.ranks, half = gpu.half;
    char* staging = gpu.staging + (size_t)half * kHalfBytes;
    cuda_ok(cudaStreamWaitEvent(gpu.wire, gpu.summed[half], 0), "a half of the staging memory");
    const Window* w = window_of(staging, (size_t)kHalfBytes);
    if (w) exchange_by_engines(w, segments, count, half);
    else exchange_by_nccl(segments, count, half);
    for (int i = 0; i < count; i++) gpu.sent += (double)segment_bytes(&segments[i]) * (ranks - 1);
    cuda_ok(cudaEventRecord(gpu.arrived[half], gpu.wire), "an event");
    cuda_ok(cudaStreamWaitEvent(gpu.sums, gpu.arrived[half], 0), "a slice");
    for (int i = 0; i < count; i++) {
        const Segment* g = &segments[i];
        size_t value = fmt_bytes(g->sum->fmt);
        char* out = g->sum->out + g->first * value;
        const char *own = g->sum->in + (g->sum->step * (size_t)rank + g->first) * value, *others = staging + g->lane_offset;
        if (g->sum->fmt == F32) {
            RankValues<float> in = {(const float*)own, (const float*)others, gpu.lane_bytes / value, rank, ranks, gpu.bad};
            add_ranks(gpu.sums, (float*)out, in, g->count, g->sum->add, NULL);
        } else {
            RankValues<bf16> in = {(const bf16*)own, (const bf16*)others, gpu.lane_bytes / value, rank, ranks, gpu.bad};
            Noise noise = g->sum->noise;
            noise.offset += g->first;
            add_ranks(gpu.sums, (bf16*)out, in, g->count, g->sum->add, g->sum->stochastic ? &noise : NULL);
        }
    }
    cuda_ok(cudaEventRecord(gpu.summed[half], gpu.sums), "an event");
    gpu.half = 1 - half;
}

// Cuts all collected sums into slices as large as a lane; a slice may hold the end of one sum and the beginning of the next.
static void run_sums() {
    Segment segments[kOperations];
    int count = 0;
    size_t used = 0;
    for (int i = 0; i < gpu.sum_count; i++) {
        const Sum* s = &gpu.sum[i];
        size_t value = fmt_bytes(s->fmt);
        for (size_t first = 0; first < s->count;) {
            size_t room = (gpu.lane_bytes - used) / value, left = s->count - first;
            Segment g = {s, first, left < room ? left : room, used};
            segments[count++] = g;
            first += g.count;
            used += round_up(g.count * value, kArenaAlign);
            if (used < gpu.lane_bytes) continue;
            run_slice(segments, count);
            count = 0;
            used = 0;
        }
    }
    if (count > 0) run_slice(segments, count);
}

// A gather writes to this window on every rank; NULL: NCCL has to do it.
static const Window* gather_window(const Gather* g) { return window_of(g->out, g->bytes * (size_t)gpu.table.ranks); }

// Writes what rank `from` has brought to a gather, which lies at `bytes`, to its place on rank `to`.
static void write_part(const Gather* g, int from, int to, const void* bytes) {
    char* place = (char*)g->out + (size_t)from * g->bytes;
    const Window* w = gather_window(g);
    if (w) cuda_ok(cudaMemcpyAsync(engines_at(w, to, place), bytes, g->bytes, cudaMemcpyDeviceToDevice, gpu.wire), "a gather");
}

// What this rank brings goes to the others. Into its own place it comes back: the next rank writes what it has received, since copy engines are
// slow within a GPU and a kernel that copies takes multiprocessors from the products (halo0-fp8 on two H200s: 422 ms a step with, 417 without).
static void gather_by_engines() {
    int rank = gpu.table.rank, ranks = gpu.table.ranks, before = (rank + ranks - 1) % ranks;
    engines_meet(gpu.wire);
    for (int k = 1; k < ranks; k++)
        for (int i = 0; i < gpu.gather_count; i++) write_part(&gpu.gathers[i], rank, (rank + k) % ranks, gpu.gathers[i].in);
    engines_meet(gpu.wire);
    for (int i = 0; i < gpu.gather_count; i++) {
        const Gather* g = &gpu.gathers[i];
        if ((char*)g->out + (size_t)rank * g->bytes == g->in) continue;   // on every rank it is there already
        write_part(g, before, before, (char*)g->out + (size_t)before * g->bytes);
    }
    engines_meet(gpu.wire);
}

static void run_gathers() {
    int by_engines = 0;
    for (int i = 0; i < gpu.gather_count; i++) {
        by_engines += gather_window(&gpu.gathers[i]) != NULL;
        gpu.sent += (double)gpu.gathers[i].bytes * (gpu.table.ranks - 1);
    }
    if (by_engines) gather_by_engines();
    if (by_engines == gpu.gather_count && gpu.maximum_count == 0) return;
    nccl_ok(ncclGroupStart(), "a group");
    for (int i = 0; i < gpu.gather_count; i++) {
        const Gather* g = &gpu.gathers[i];
        if (!gather_window(g)) nccl_ok(ncclAllGather(g->in, g->out, g->bytes, ncclInt8, gpu.comm, gpu.wire), "all-gather");
    }
    for (int i = 0; i < gpu.maximum_count; i++) {   // magnitudes as integers: NaN above all (numfmt.h)
        const Maximum* m = &gpu.maxima[i];
        nccl_ok(ncclAllReduce(m->x, m->x, (size_t)m->n, ncclUint32, ncclMax, gpu.comm, gpu.wire), "all-reduce");
        gpu.sent += 2.0 * (double)sizeof(float) * m->n * (gpu.table.ranks - 1) / gpu.table.ranks;
    }
    nccl_ok(ncclGroupEnd(), "all-gather");
}

// ---- collecting, starting, waiting

static void collects(int count, const char* collective) {
    check(count < kOperations, "%s: more than %d of them in a transfer", collective, kOperations);
    gpu.collective = collective;
}

static void gpu_all_gather(void* out, const void* in, size_t bytes) {
    collects(gpu.gather_count, "all_gather");
    Gather g = {out, in, bytes};
    gpu.gathers[gpu.gather_count++] = g;
}

static void collect_sum(void* out, const void* in, size_t count, size_t step, Fmt fmt, bool add, const Noise* noise) {
    check(fmt == F32 || fmt == BF16, "a sum over ranks in %s", fmt_name(fmt));
    Sum s = {(char*)out, (const char*)in, count, step, fmt, add, noise != NULL, noise ? *noise : Noise{}};
    gpu.sum[gpu.sum_count++] = s;
}
static void gpu_reduce_scatter(void* out, const void* in, size_t count, Fmt fmt, bool add, const Noise* noise) {
    collects(gpu.sum_count, "reduce_scatter");
    collect_sum(out, in, count, count, fmt, add, add && fmt == BF16 ? noise : NULL);
}

// Each rank sums one slice, then the slices are gathered. Every rank sums the values left over, fewer than kBlockValues a rank.
static void gpu_all_reduce(void* x, size_t count, Fmt fmt) {
    size_t ranks = (size_t)gpu.table.ranks, value = fmt_bytes(fmt), slice = count / ranks / kBlockValues * kBlockValues;
    if (slice > 0) {
        char* own = (char*)x + (size_t)gpu.table.rank * slice * value;
        gpu_all_gather(x, own, slice * value);
        collects(gpu.sum_count, "all_reduce");
        collect_sum(own, x, slice, slice, fmt, false, NULL);
    }
    collects(gpu.sum_count, "all_reduce");
    char* rest = (char*)x + ranks * slice * value;
    if (count > ranks * slice) collect_sum(rest, rest, count - ranks * slice, 0, fmt, false, NULL);
}

static void gpu_all_reduce_max(float* x, int n) {
    collects(gpu.maximum_count, "all_reduce_max");
    Maximum m = {x, n};
    gpu.maxima[gpu.maximum_count++] = m;
}

static Transfer gpu_start() {
    Transfer number = gpu.started.load() + 1;
    TransferRecord* r = &gpu.records[number % kTransfers];
    progress_collective(gpu.collective);
    r->place = progress_place();
    cuda_ok(cudaEventRecord(r->ready, cuda_stream()), "an event");
    cuda_ok(cudaStreamWaitEvent(gpu.wire, r->ready, 0), "the backend's work");
    cudaStream_t last = gpu.wire;
    if (gpu.sum_count > 0) {
        run_sums();
        last = gpu.sums;
        cuda_ok(cudaEventRecord(r->done, last), "an event");
    }
    if (gpu.gather_count > 0 || gpu.maximum_count > 0) {
        if (last == gpu.sums) cuda_ok(cudaStreamWaitEvent(gpu.wire, r->done, 0), "sums");
        run_gathers();
        last = gpu.wire;
        cuda_ok(cudaEventRecord(r->done, last), "an event");
    }
    gpu.gather_count = gpu.sum_count = gpu.maximum_count = 0;
    gpu.started.store(number);
    progress_collective(NULL);
    return number;
}

static void gpu_wait(Transfer transfer) {
    check(gpu.started.load() - transfer < kTransfers, "transfer %lu: waited for after %lu", transfer, gpu.started.load());
    cuda_ok(cudaStreamWaitEvent(cuda_stream(), gpu.records[transfer % kTransfers].done, 0), "a transfer");
}

static double gpu_sent_bytes() { return gpu.sent; }

static int gpu_bad_rank() {
    unsigned bad;
    cuda_ops.download(&bad, gpu.bad, sizeof bad);
    cuda_ops.zero(gpu.bad, sizeof bad);
    return bad ? gpu.table.ranks - (int)bad : -1;
}

// ---- start and end

// Picks this rank's GPU by the rank's number on its host, or takes the only one if the launcher leaves one visible.
static int pick_device() {
    MPI_Comm host;
    int rank, ranks, gpus = cuda_device_count();
    char name[256] = "";
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    MPI_Comm_rank(host, &rank);
    MPI_Comm_size(host, &ranks);
    gethostname(name, sizeof name - 1);
    int device = cuda_usable_device(rank % gpus);   // the driver counts GPUs that are too old as well
    cudaDeviceProp properties;
    cuda_ok(cudaGetDeviceProperties(&properties, device), "properties of a GPU");
    enum { kIdBytes = sizeof properties.uuid };
    char* ids = (char*)host_alloc((size_t)kIdBytes * (size_t)ranks);
    MPI_Allgather(&properties.uuid, kIdBytes, MPI_BYTE, ids, kIdBytes, MPI_BYTE, host);
    for (int r = 0; r < ranks; r++)
        if (r != rank && !memcmp(ids + (size_t)r * kIdBytes, &properties.uuid, kIdBytes))
            user_error("host %s: %d ranks, but %d GPU%s: start one rank a GPU (mpirun -np, or --map-by ppr:%d:node on several hosts)", name,
                       ranks, gpus, gpus > 1 ? "s" : "", gpus);
    free(ids);
    MPI_Comm_free(&host);
    return device;
}

// First transfers, before training: NCCL connects the ranks and takes its memory, copy engines show that they work. The sums are
// checked, since they are known.
static void greet() {
    int ranks = gpu.table.ranks, count = 2 * ranks * kBlockValues + 1;
    size_t bytes = sizeof(float) * (size_t)(count + 1);
    float *x = (float*)engines_alloc(bytes), *host = (float*)host_alloc(bytes);
    for (int i = 0; i <= count; i++) host[i] = (float)(gpu.table.rank + i % 7);
    cuda_ops.upload(x, host, bytes);
    gpu_all_reduce(x, (size_t)count, F32);
    gpu_all_reduce_max(x + count, 1);
    gpu_wait(gpu_start());
    cuda_ops.download(host, x, bytes);
    for (int i = 0; i <= count; i++) {
        int want = i < count ? ranks * (ranks - 1) / 2 + ranks * (i % 7) : ranks - 1 + i % 7;
        check(host[i] == (float)want, "ranks: value %d over %d ranks is %g, not %d", i, ranks, (double)host[i], want);
    }
    engines_release(x);
    free(host);
}

static void gpu_finish() {
    cuda_ok(cudaDeviceSynchronize(), "the last transfers");
    nccl_ok(ncclCommDestroy(gpu.comm), "end");
    gpu.finish_mpi();
}

int nccl_version(void) {
    int version = 0;
    (void)ncclGetVersion(&version);
    return version;
}

const Comm* comm_nccl(const Comm* mpi) {
    gpu.table = *mpi;
    gpu.finish_mpi = mpi->finish;
    gpu.device = pick_device();
    cuda_ok(cudaSetDevice(gpu.device), "this rank's GPU");
    int lowest, highest;
    cuda_ok(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "priorities");
    cuda_ok(cudaStreamCreateWithPriority(&gpu.wire, cudaStreamNonBlocking, highest), "a stream");
    cuda_ok(cudaStreamCreateWithPriority(&gpu.sums, cudaStreamNonBlocking, highest), "a stream");
    for (int half = 0; half < 2; half++) {
        cuda_ok(cudaEventCreateWithFlags(&gpu.arrived[half], cudaEventDisableTiming), "an event");
        cuda_ok(cudaEventCreateWithFlags(&gpu.summed[half], cudaEventDisableTiming), "an event");
    }
    for (int i = 0; i < kTransfers; i++) {
        cuda_ok(cudaEventCreateWithFlags(&gpu.records[i].ready, cudaEventDisableTiming), "an event");
        cuda_ok(cudaEventCreateWithFlags(&gpu.records[i].done, cudaEventDisableTiming), "an event");
    }
    engines_start(mpi, gpu.wire);
    gpu.staging = (char*)engines_alloc(2 * (size_t)kHalfBytes);
    gpu.bad = (unsigned*)cuda_ops.alloc(sizeof *gpu.bad);
    gpu.lane_bytes = (size_t)kHalfBytes / (size_t)(mpi->ranks - 1) / kArenaAlign * kArenaAlign;

    ncclUniqueId id;
    if (mpi->rank == 0) nccl_ok(ncclGetUniqueId(&id), "an address (see NCCL_SOCKET_IFNAME)");
    mpi->host_broadcast(&id, sizeof id);
    progress_collective("the start of NCCL");
    nccl_ok(ncclCommInitRank(&gpu.comm, mpi->ranks, id, mpi->rank), "start (NCCL_DEBUG=INFO says more)");
    progress_collective(NULL);

    gpu.table.name = "nccl";
    gpu.table.staging_bytes = 2 * (size_t)kHalfBytes;
    gpu.table.all_gather = gpu_all_gather;
    gpu.table.reduce_scatter = gpu_reduce_scatter;
    gpu.table.all_reduce = gpu_all_reduce;
    gpu.table.all_reduce_max = gpu_all_reduce_max;
    gpu.table.start = gpu_start;
    gpu.table.wait = gpu_wait;
    gpu.table.sent_bytes = gpu_sent_bytes;
    gpu.table.bad_rank = gpu_bad_rank;
    gpu.table.finish = gpu_finish;
    gpu.table.alloc = engines_alloc;
    gpu.table.release = engines_release;
    progress_watch_device(look, give_up);
    greet();
    gpu.sent = 0;
    return &gpu.table;
}
