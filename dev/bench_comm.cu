// Transfers between GPUs: what training moves of one block of Llama-3-8B, against NCCL's own collectives on one buffer of 436 MiB.
// Each is checked first: gathered bytes against what every rank has put in, sums of small integers, which every order gives alike,
// against ncclReduceScatter's. Then one line: what | MiB | us (median) | GB/s of the bus | x of NCCL's. Bus bandwidth is bytes * (ranks - 1) /
// ranks / time, the rate at which each rank sends and receives. Then what products lose to a transfer beside them, and last the memory that
// NCCL and CUDA take for themselves beside what plan says.
//
// Gathers run twice: into memory that other ranks can write to (Comm.alloc), which copy engines serve, and into any memory, which NCCL's
// kernels serve. Sums are as the environment says (HALO_COPY_ENGINES=0: NCCL's sends and receives).
//
//   mpirun -np N bench_comm [beside] [nccl]     `beside`: only what products lose. `nccl`: also NCCL's own all-gather by copy engines
//                                  (NCCL_CTA_POLICY_ZERO on symmetric windows, NCCL 2.28, one host)
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <nccl.h>

#include "../halo/comm/comm.h"
#include "../halo/run/plan.h"
#include "bandwidth.cuh"

static const Comm* comm;
static ncclComm_t raw;        // NCCL as it is, on the backend's stream

static void nccl_ok(ncclResult_t status, const char* what) {
    check(status == ncclSuccess, "NCCL: %s: %s", what, ncclGetErrorString(status));
}

// Rows and columns of a block's matrices, and of its two norms.
typedef struct {
    int rows, cols;
} Shape;
static const Shape kBlock[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {4096, 1}, {4096, 1}};
static const size_t kLarge = (size_t)436 << 20;

static size_t share_values(Shape s) { return (size_t)ceil_div(s.rows, comm->ranks) * s.cols; }
static size_t block_values() {
    size_t values = 0;
    for (Shape s : kBlock) values += round_up(share_values(s) * (size_t)comm->ranks, 128);
    return values;
}

template <typename T>
__global__ void integers_kernel(T* x, size_t n, int rank) {
    size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    Values<1> v = {{(float)((int)((i + 3 * (size_t)rank) % 9) - 4)}};
    if (i < n) store_values<1>(x + i, v);
}
static void fill_integers(void* x, size_t n, Fmt fmt) {
    unsigned grid = (unsigned)((n + 255) / 256);
    if (fmt == F32) LAUNCH(integers_kernel<float>, grid, 256, 0, (float*)x, n, comm->rank);
    else LAUNCH(integers_kernel<bf16>, grid, 256, 0, (bf16*)x, n, comm->rank);
}

// On every rank.
static bool agree(bool right) {
    double wrong = !right;
    comm->host_sum(&wrong, 1);
    return wrong == 0;
}

// Every rank's median; the slowest counts.
template <typename Run>
static double slowest_us(Run run) {
    comm->barrier();
    double us = median_us(run), slowest = 0;
    MPI_Allreduce(&us, &slowest, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return slowest;
}

static double line(const char* what, size_t bytes, double us, double of_nccl, bool right) {
    double gbs = (double)bytes * (comm->ranks - 1) / comm->ranks / us * 1e-3;
    if (comm->rank == 0) {
        printf("%-34s | %7.1f MiB | %8.1f us | %6.1f GB/s |", what, (double)bytes / (1 << 20), us, gbs);
        if (of_nccl > 0) printf(" %.2f of NCCL", gbs / of_nccl);
        puts(right ? "" : "  WRONG");
    }
    return gbs;
}

static bool same_bytes(const void* a, const void* b, size_t bytes) {
    std::vector<char> x(bytes), y(bytes);
    cuda_ops.download(x.data(), a, bytes);
    cuda_ops.download(y.data(), b, bytes);
    return x == y;
}

// Memory for what is gathered: that of other ranks' copy engines, or any.
static char* gather_memory(size_t bytes, bool made_for_it) {
    return (char*)(made_for_it ? comm_alloc(comm, &cuda_ops, bytes) : cuda_ops.alloc(bytes));
}

// ---- all-gather: a block whose values take `bits` each
static bool bench_gather(const char* what, int bits, bool made_for_it, double of_nccl) {
    size_t bytes = block_values() * (size_t)bits / 8, at = 0;
    char *out = gather_memory(bytes + 1024, made_for_it), *in = (char*)cuda_ops.alloc(bytes + 1024), *want = (char*)cuda_ops.alloc(bytes + 1024);
    fill_integers(in, bytes / 4, F32);
    auto gather = [&] {
        size_t offset = 0;
        for (Shape s : kBlock) {
            size_t piece = share_values(s) * (size_t)bits / 8;
            comm->all_gather(out + offset, in + offset, piece);
            offset += round_up(piece * (size_t)comm->ranks, 256);
        }
        comm->wait(comm->start());
        at = offset;
    };
    gather();
    size_t offset = 0;
    for (Shape s : kBlock) {
        size_t piece = share_values(s) * (size_t)bits / 8;
        nccl_ok(ncclAllGather(in + offset, want + offset, piece, ncclInt8, raw, cuda_stream()), "all-gather");
        offset += round_up(piece * (size_t)comm->ranks, 256);
    }
    bool right = agree(same_bytes(out, want, at));
    line(what, bytes, slowest_us(gather), of_nccl, right);
    comm_release(comm, &cuda_ops, out);
    cuda_ops.release(in);
    cuda_ops.release(want);
    return right;
}

// ---- reduce-scatter of a block's gradients
static bool bench_reduce(const char* what, Fmt fmt, double of_nccl) {
    size_t value = fmt_bytes(fmt), bytes = block_values() * value;
    char *in = (char*)cuda_ops.alloc(bytes), *out = (char*)cuda_ops.alloc(bytes), *want = (char*)cuda_ops.alloc(bytes);
    fill_integers(in, bytes / value, fmt);
    auto reduce = [&] {
        size_t offset = 0, own = 0;
        for (Shape s : kBlock) {
            comm->reduce_scatter(out + own, in + offset, share_values(s), fmt, false, NULL);
            offset += round_up(share_values(s) * (size_t)comm->ranks, 128) * value;
            own += round_up(share_values(s), 128) * value;
        }
        comm->wait(comm->start());
    };
    reduce();
    size_t offset = 0, own = 0;
    for (Shape s : kBlock) {
        nccl_ok(ncclReduceScatter(in + offset, want + own, share_values(s), fmt == F32 ? ncclFloat32 : ncclBfloat16, ncclSum, raw,
                                  cuda_stream()), "reduce-scatter");
        offset += round_up(share_values(s) * (size_t)comm->ranks, 128) * value;
        own += round_up(share_values(s), 128) * value;
    }
    bool right = agree(same_bytes(out, want, own));
    line(what, bytes, slowest_us(reduce), of_nccl, right);
    cuda_ops.release(in);
    cuda_ops.release(out);
    cuda_ops.release(want);
    return right;
}

// ---- NCCL's all-gather by copy engines, on a stream of its own
static struct {
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t ready, done;
    size_t share;
    char *in, *out;
} nccl_engines;

// NULL where NCCL registers no symmetric window, on any of the ranks.
static char* window_memory(size_t bytes) {
    void* p = NULL;
    ncclWindow_t window = NULL;
    bool works = ncclMemAlloc(&p, bytes) == ncclSuccess;
    if (!agree(works)) return NULL;
    works = ncclCommWindowRegister(nccl_engines.comm, p, bytes, &window, NCCL_WIN_COLL_SYMMETRIC) == ncclSuccess && window;
    return agree(works) ? (char*)p : NULL;
}
static void nccl_engines_start() {
    cuda_ok(cudaEventRecord(nccl_engines.ready, cuda_stream()), "an event");
    cuda_ok(cudaStreamWaitEvent(nccl_engines.stream, nccl_engines.ready, 0), "a wait");
    nccl_ok(ncclAllGather(nccl_engines.in, nccl_engines.out, nccl_engines.share, ncclInt8, nccl_engines.comm, nccl_engines.stream), "all-gather");
    cuda_ok(cudaEventRecord(nccl_engines.done, nccl_engines.stream), "an event");
}
static void nccl_engines_wait() { cuda_ok(cudaStreamWaitEvent(cuda_stream(), nccl_engines.done, 0), "a wait"); }

// Checked, then timed alone. False where NCCL has no windows.
static bool bench_nccl_engines(size_t bytes, double of_nccl, bool* right) {
    ncclUniqueId id;
    if (comm->rank == 0) nccl_ok(ncclGetUniqueId(&id), "an address");
    comm->host_broadcast(&id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
    nccl_ok(ncclCommInitRankConfig(&nccl_engines.comm, comm->ranks, id, comm->rank, &config), "start");
    cuda_ok(cudaStreamCreateWithFlags(&nccl_engines.stream, cudaStreamNonBlocking), "a stream");
    cuda_ok(cudaEventCreateWithFlags(&nccl_engines.ready, cudaEventDisableTiming), "an event");
    cuda_ok(cudaEventCreateWithFlags(&nccl_engines.done, cudaEventDisableTiming), "an event");
    size_t share = nccl_engines.share = bytes / (size_t)comm->ranks / 4096 * 4096, all = share * (size_t)comm->ranks;
    nccl_engines.in = window_memory(share);
    nccl_engines.out = nccl_engines.in ? window_memory(all) : NULL;
    if (!nccl_engines.out) {
        if (comm->rank == 0) puts("NCCL registers no symmetric windows here");
        return false;
    }
    char* want = (char*)cuda_ops.alloc(all);
    fill_integers(nccl_engines.in, share / 4, F32);
    nccl_ok(ncclAllGather(nccl_engines.in, want, share, ncclInt8, raw, cuda_stream()), "all-gather");
    nccl_engines_start();
    nccl_engines_wait();
    bool same = agree(same_bytes(nccl_engines.out, want, all));
    cuda_ops.release(want);
    line("all-gather, NCCL's copy engines", all, slowest_us([&] {
        nccl_engines_start();
        nccl_engines_wait();
    }), of_nccl, same);
    *right = same && *right;
    return true;
}

// ---- products with a transfer beside them
enum { kProducts = 6 };

static void beside_line(const char* what, double us, double alone) {
    if (comm->rank == 0) printf("  beside %-48s %8.1f us, %+7.1f (%.3fx)\n", what, us, us - alone, us / alone);
}

// kProducts products in BF16, or of FP8 codes, alone and beside each way to move a block in BF16.
static void bench_products(Fmt fmt, bool with_nccl_engines) {
    int M = 8192, N = 14336, K = 4096;
    Mat values[2] = {normals(M, K, 1, 1), normals(N, K, 1, 2)}, c = zeros(M, N, BF16);
    float* scales = (float*)cuda_ops.alloc(4 * kScalePlace * sizeof(float));   // a maximum and a scale of each side
    Side side[2];
    for (int i = 0; i < 2; i++) {
        side[i] = plain_side(values[i], false);
        if (fmt == BF16) continue;
        QMat q;
        memset(&q, 0, sizeof q);
        q.codes = zeros(values[i].rows, values[i].cols, fmt);
        q.scale = scales + i * kScalePlace;
        q.gran = PER_TENSOR;
        cuda_ops.absmax(scales + (2 + i) * kScalePlace, values[i]);
        cuda_ops.quantize(q, values[i], kRotateNone, scales + (2 + i) * kScalePlace, fmt, 1);
        side[i] = side_codes(q);
    }
    size_t bytes = block_values() * 2, share = bytes / (size_t)comm->ranks / 256 * 256;
    char *in = (char*)cuda_ops.alloc(bytes), *out[2] = {gather_memory(bytes, false), gather_memory(bytes, true)};
    auto products = [&] {
        for (int i = 0; i < kProducts; i++) cuda_ops.gemm(c, side[0], side[1], 0);
    };
    auto beside = [&](char* gathered) {
        if (gathered) comm->all_gather(gathered, in, share);
        else comm->reduce_scatter(out[0], in, share / 2, BF16, false, NULL);
        Transfer t = comm->start();
        products();
        comm->wait(t);
    };
    products();   // the plan is made
    double before = slowest_us(products);   // and behind the transfers once more: a GPU grows warm and slow
    double us[3] = {slowest_us([&] { beside(out[0]); }), slowest_us([&] { beside(out[1]); }), slowest_us([&] { beside(NULL); })};
    double by_nccl = with_nccl_engines ? slowest_us([&] {
        nccl_engines_start();
        products();
        nccl_engines_wait();
    }) : 0;
    double after = slowest_us(products), alone = (before + after) / 2;
    if (comm->rank == 0)
        printf("%d products of %d x %d x %d, %s: %.1f us alone (%.1f before, %.1f after)\n", kProducts, M, N, K, fmt_name(fmt), alone, before, after);
    beside_line("an all-gather of a block, NCCL's kernels", us[0], alone);
    beside_line("an all-gather of a block, memory for it", us[1], alone);
    beside_line("a reduce-scatter of a block, as set", us[2], alone);
    if (with_nccl_engines) beside_line("an all-gather of a block, NCCL's copy engines", by_nccl, alone);
    for (int i = 0; i < 2; i++) {
        if (fmt != BF16) cuda_ops.release(side[i].m.data);
        cuda_ops.release(values[i].data);
        comm_release(comm, &cuda_ops, out[i]);
    }
    cuda_ops.release(scales);
    cuda_ops.release(c.data);
    cuda_ops.release(in);
}

static bool asked(int argc, char** argv, const char* word) {
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], word)) return true;
    return false;
}

static bool bench_transfers(double* gather) {
    char *x = (char*)cuda_ops.alloc(kLarge), *y = (char*)cuda_ops.alloc(kLarge), *z = gather_memory(kLarge, true);
    size_t share = kLarge / (size_t)comm->ranks / 256 * 256, all = share * (size_t)comm->ranks;
    fill_integers(x, share / 4, F32);
    *gather = line("NCCL all-gather", all, slowest_us([&] {
        nccl_ok(ncclAllGather(x, y, share, ncclInt8, raw, cuda_stream()), "all-gather");
    }), 0, true);
    auto ours = [&] {
        comm->all_gather(z, x, share);
        comm->wait(comm->start());
    };
    ours();
    bool right = agree(same_bytes(z, y, all));
    line("all-gather, memory for it", all, slowest_us(ours), *gather, right);
    double reduce = line("NCCL reduce-scatter, BF16", all, slowest_us([&] {
        nccl_ok(ncclReduceScatter(x, y, share / 2, ncclBfloat16, ncclSum, raw, cuda_stream()), "reduce-scatter");
    }), 0, true);
    cuda_ops.release(x);
    cuda_ops.release(y);
    comm_release(comm, &cuda_ops, z);
    static const struct {
        const char* what;
        int bits;
    } kGathers[] = {{"all-gather of a block, BF16", 16}, {"all-gather of a block, INT8 or FP8", 8}, {"all-gather of a block, packed FP6", 6}};
    for (int i = 0; i < 6; i++) {
        char what[64];
        snprintf(what, sizeof what, "%s%s", kGathers[i / 2].what, i % 2 ? ", for it" : "");
        right = bench_gather(what, kGathers[i / 2].bits, i % 2, *gather) && right;
    }
    right = bench_reduce("reduce-scatter of a block, BF16", BF16, reduce) && right;
    return bench_reduce("reduce-scatter of a block, F32", F32, reduce) && right;
}

int main(int argc, char** argv) {
    comm = comm_on(comm_start(), &cuda_ops);
    if (comm->ranks == 1) {
        puts("bench_comm: one rank sends nothing; start it with mpirun -np N");
        comm->finish();
        return 0;
    }
    // Before a second communicator: what a training run has of NCCL and CUDA.
    double taken = (double)(cuda_ops.total_bytes() - cuda_ops.free_bytes() - cuda_ops.workspace_bytes() - comm->staging_bytes);
    ncclUniqueId id;
    if (comm->rank == 0) nccl_ok(ncclGetUniqueId(&id), "an address");
    comm->host_broadcast(&id, sizeof id);
    nccl_ok(ncclCommInitRank(&raw, comm->ranks, id, comm->rank), "start");
    if (comm->rank == 0) printf("%d ranks\n", comm->ranks);

    bool right = true, nccl = false;
    double gather = 0;
    if (!asked(argc, argv, "beside")) right = bench_transfers(&gather);
    if (asked(argc, argv, "nccl")) nccl = bench_nccl_engines(block_values() * 2, gather, &right);
    bench_products(BF16, nccl);
    bench_products(FP8_E4M3, nccl);
    if (comm->rank == 0)
        printf("context, libraries and NCCL of %d GPUs: %.3f GiB taken when the ranks were connected, %.3f planned for a run\n", comm->ranks,
               taken / (1 << 30), (double)planned_libraries(&cuda_ops, comm) / (1 << 30));
    nccl_ok(ncclCommDestroy(raw), "end");
    comm->finish();
    return right ? 0 : 1;
}
