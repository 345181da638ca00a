// Transfers between GPUs: what training moves of one block of Llama-3-8B, against NCCL's own collectives on one buffer of 436 MiB.
// Each is checked first: gathered bytes against what every rank has put in, sums of small integers, which every order gives alike,
// against ncclReduceScatter's. Then one line: what | MiB | us (median) | GB/s of the bus | x of NCCL's. Bus bandwidth is bytes * (ranks - 1) /
// ranks / time, the rate at which each rank sends and receives. The last lines say what products cost while a transfer runs beside them.
//
//   mpirun -np N bench_comm        `ce` as an argument: also an all-gather by the GPUs' copy engines, which takes no multiprocessors from
//                                  products (NCCL_CTA_POLICY_ZERO on symmetric windows, NCCL 2.28, one host)
#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <nccl.h>

#include "../halo/comm/comm.h"
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

// ---- all-gather: a block whose values take `bits` each
static bool bench_gather(const char* what, int bits, double of_nccl) {
    size_t bytes = block_values() * (size_t)bits / 8, at = 0;
    char *out = (char*)cuda_ops.alloc(bytes + 1024), *in = (char*)cuda_ops.alloc(bytes + 1024), *want = (char*)cuda_ops.alloc(bytes + 1024);
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
    cuda_ops.release(out);
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

// ---- an all-gather by copy engines, on a stream of its own
static struct {
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t ready, done;
    size_t share;
    char *in, *out;
    bool works;
} engines;

static char* window_memory(size_t bytes) {
    void* p = NULL;
    ncclWindow_t window = NULL;
    nccl_ok(ncclMemAlloc(&p, bytes), "memory for a window");
    engines.works = ncclCommWindowRegister(engines.comm, p, bytes, &window, NCCL_WIN_COLL_SYMMETRIC) == ncclSuccess && window && engines.works;
    return (char*)p;
}
static void start_engines(size_t bytes) {
    ncclUniqueId id;
    if (comm->rank == 0) nccl_ok(ncclGetUniqueId(&id), "an address");
    comm->host_broadcast(&id, sizeof id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.CTAPolicy = NCCL_CTA_POLICY_ZERO;
    nccl_ok(ncclCommInitRankConfig(&engines.comm, comm->ranks, id, comm->rank, &config), "start");
    cuda_ok(cudaStreamCreateWithFlags(&engines.stream, cudaStreamNonBlocking), "a stream");
    cuda_ok(cudaEventCreateWithFlags(&engines.ready, cudaEventDisableTiming), "an event");
    cuda_ok(cudaEventCreateWithFlags(&engines.done, cudaEventDisableTiming), "an event");
    engines.works = true;
    engines.share = bytes / (size_t)comm->ranks / 4096 * 4096;
    engines.in = window_memory(engines.share);
    engines.out = window_memory(engines.share * (size_t)comm->ranks);
    engines.works = agree(engines.works);
}
static void engines_gather() {
    cuda_ok(cudaEventRecord(engines.ready, cuda_stream()), "an event");
    cuda_ok(cudaStreamWaitEvent(engines.stream, engines.ready, 0), "a wait");
    nccl_ok(ncclAllGather(engines.in, engines.out, engines.share, ncclInt8, engines.comm, engines.stream), "all-gather");
    cuda_ok(cudaEventRecord(engines.done, engines.stream), "an event");
}
static void engines_wait() { cuda_ok(cudaStreamWaitEvent(cuda_stream(), engines.done, 0), "a wait"); }

// ---- products with a transfer beside them
enum { kProducts = 6 };
static void bench_products(double of_nccl, bool with_engines) {
    int M = 8192, N = 14336, K = 4096;
    Mat a = noise(M, K, BF16), b = noise(N, K, BF16), c = zeros(M, N, BF16);
    size_t bytes = block_values() * 2;
    char *in = (char*)cuda_ops.alloc(bytes), *out = (char*)cuda_ops.alloc(bytes);
    auto products = [&] {
        for (int i = 0; i < kProducts; i++) cuda_ops.gemm(c, plain_side(a, false), plain_side(b, false), 0);
    };
    products();   // the plan is made
    double before = slowest_us(products);   // and behind the transfers once more: a GPU grows warm and slow
    double gathering = slowest_us([&] {
        comm->all_gather(out, in, bytes / (size_t)comm->ranks / 256 * 256);
        Transfer t = comm->start();
        products();
        comm->wait(t);
    });
    double reducing = slowest_us([&] {
        comm->reduce_scatter(out, in, bytes / 2 / (size_t)comm->ranks / 256 * 256, BF16, false, NULL);
        Transfer t = comm->start();
        products();
        comm->wait(t);
    });
    double alone = (before + slowest_us(products)) / 2;
    if (comm->rank == 0)
        printf("%d BF16 products of %d x %d x %d: %.1f us alone, %.1f (%.2fx) beside an all-gather of a block, %.1f (%.2fx) beside a "
               "reduce-scatter of a block in BF16\n", kProducts, M, N, K, alone, gathering, gathering / alone, reducing, reducing / alone);
    if (with_engines) start_engines(bytes);
    if (with_engines && !engines.works && comm->rank == 0) puts("copy engines: NCCL registers no symmetric windows here");
    if (with_engines && engines.works) {
        line("all-gather of as much, copy engines", engines.share * (size_t)comm->ranks, slowest_us([&] {
            engines_gather();
            engines_wait();
        }), of_nccl, true);
        double beside = slowest_us([&] {
            engines_gather();
            products();
            engines_wait();
        });
        if (comm->rank == 0) printf("the products beside it: %.1f us (%.2fx)\n", beside, beside / alone);
    }
    cuda_ops.release(a.data);
    cuda_ops.release(b.data);
    cuda_ops.release(c.data);
    cuda_ops.release(in);
    cuda_ops.release(out);
}

int main(int argc, char** argv) {
    comm = comm_on(comm_start(), &cuda_ops);
    if (comm->ranks == 1) {
        puts("bench_comm: one rank sends nothing; start it with mpirun -np N");
        comm->finish();
        return 0;
    }
    ncclUniqueId id;
    if (comm->rank == 0) nccl_ok(ncclGetUniqueId(&id), "an address");
    comm->host_broadcast(&id, sizeof id);
    nccl_ok(ncclCommInitRank(&raw, comm->ranks, id, comm->rank), "start");
    if (comm->rank == 0) printf("%d ranks\n", comm->ranks);

    char *x = (char*)cuda_ops.alloc(kLarge), *y = (char*)cuda_ops.alloc(kLarge);
    size_t share = kLarge / (size_t)comm->ranks / 256 * 256;
    double gather = line("NCCL all-gather", share * (size_t)comm->ranks, slowest_us([&] {
        nccl_ok(ncclAllGather(x, y, share, ncclInt8, raw, cuda_stream()), "all-gather");
    }), 0, true);
    double reduce = line("NCCL reduce-scatter, BF16", share * (size_t)comm->ranks, slowest_us([&] {
        nccl_ok(ncclReduceScatter(x, y, share / 2, ncclBfloat16, ncclSum, raw, cuda_stream()), "reduce-scatter");
    }), 0, true);
    cuda_ops.release(x);
    cuda_ops.release(y);

    bool right = bench_gather("all-gather of a block, BF16", 16, gather);
    right = bench_gather("all-gather of a block, INT8 or FP8", 8, gather) && right;
    right = bench_gather("all-gather of a block, packed FP6", 6, gather) && right;
    right = bench_reduce("reduce-scatter of a block, BF16", BF16, reduce) && right;
    right = bench_reduce("reduce-scatter of a block, F32", F32, reduce) && right;
    bench_products(gather, argc > 1 && !strcmp(argv[1], "ce"));
    nccl_ok(ncclCommDestroy(raw), "end");
    comm->finish();
    return right ? 0 : 1;
}
