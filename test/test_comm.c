// The collectives against their definition (comm.h), byte for byte: on CPU ranks, on emulated GPUs (simt_comm) and on GPUs where there
// are two. Started alone this program starts itself under mpirun; each rank knows what all ranks bring, rank 0 reports.
#include "../halo/comm/comm.h"
#include "../halo/progress.h"
#include "../halo/rng.h"
#include "backends.h"

#if defined(HALO_CUDA) && defined(HALO_NCCL) && !defined(HALO_SIMT)
static const bool kHasGpus = true;
#else
static const bool kHasGpus = false;
#endif
static const Ops* ops;
static const Comm* comm;

// ---- on each rank

// Value i of what a rank brings: small noise that does not add up exactly, in F32 or BF16, the same on every machine.
static float brought(int rank, size_t i) {
    uint32_t h = (uint32_t)i * 2654435761u + (uint32_t)rank * 2246822519u;
    h = (h ^ h >> 15) * 3266489917u;
    return (float)((int32_t)(h ^ h >> 13) >> 8) * 0x1p-20f;
}
static void put(void* x, size_t i, Fmt fmt, float value) {
    if (fmt == F32) ((float*)x)[i] = value;
    else ((uint16_t*)x)[i] = bf16_from_f32(value);
}
static float got(const void* x, size_t i, Fmt fmt) { return fmt == F32 ? ((const float*)x)[i] : f32_from_bf16(((const uint16_t*)x)[i]); }

// What rank `rank` brings, `count` values from `first` on, in host memory.
static void* contribution(int rank, size_t first, size_t count, Fmt fmt) {
    void* x = host_alloc(count * fmt_bytes(fmt));
    for (size_t i = 0; i < count; i++) put(x, i, fmt, brought(rank, first + i));
    return x;
}
static void* on_backend(void* host, size_t bytes) {
    void* x = ops->alloc(bytes);
    ops->upload(x, host, bytes);
    free(host);
    return x;
}

// Rank 0 says it for all: `wrong` bytes or values on this rank.
static void report(size_t wrong, const char* what) {
    double all = (double)wrong;
    comm->host_sum(&all, 1);
    if (comm->rank == 0) ok(all == 0, "%s %d ranks: %s (%.0f wrong)", comm->name, comm->ranks, what, all);
}

static size_t differing(const void* x, const void* want, size_t bytes) {
    char* host = (char*)host_alloc(bytes);
    size_t wrong = 0;
    ops->download(host, x, bytes);
    for (size_t i = 0; i < bytes; i++) wrong += host[i] != ((const char*)want)[i];
    free(host);
    return wrong;
}

// Sums of values [first, first + count) of all ranks, after `start` (NULL: nothing), rounded with `noise` unless that is NULL.
static void* sums(const void* start, size_t first, size_t count, Fmt fmt, const Noise* noise) {
    void* x = host_alloc(count * fmt_bytes(fmt));
    for (size_t i = 0; i < count; i++) {
        float sum = start ? got(start, i, fmt) : 0;
        for (int r = 0; r < comm->ranks; r++) {
            uint32_t one;
            put(&one, 0, fmt, brought(r, first + i));
            sum += got(&one, 0, fmt);
        }
        if (fmt == F32 || !noise) put(x, i, fmt, sum);
        else ((uint16_t*)x)[i] = bf16_from_f32_stochastic(sum, noise_of_value(noise->seed, noise->offset + i, kGradNoise, noise->stream));
    }
    return x;
}

// Into memory that is made for it, or any memory.
static void gather_case(size_t bytes, bool in_place, bool made_for_it) {
    size_t ranks = (size_t)comm->ranks, all = bytes * ranks;
    char* want = (char*)host_alloc(all);
    for (size_t r = 0; r < ranks; r++)
        for (size_t i = 0; i < bytes; i++) want[r * bytes + i] = (char)(i * 7 + r * 31);
    char *out = (char*)(made_for_it ? comm_alloc(comm, ops, all) : ops->alloc(all)), *own = in_place ? out + (size_t)comm->rank * bytes : (char*)ops->alloc(bytes);
    ops->upload(own, want + (size_t)comm->rank * bytes, bytes);
    comm->all_gather(out, own, bytes);
    comm->wait(comm->start());
    char what[96];
    snprintf(what, sizeof what, "all_gather of %zu bytes%s%s", bytes, in_place ? " in place" : "", made_for_it ? " of memory for it" : "");
    report(differing(out, want, all), what);
    if (!in_place) ops->release(own);
    comm_release(comm, ops, out);
    free(want);
}

// Gathers of two pieces each into two places by turns, as a ring of layers has them: each place is read while the other is filled, and no
// rank may write to a place before all ranks have read it.
static void ring_case(void) {
    enum { kGathers = 12, kPlaces = 2 };
    const size_t piece[2] = {3001, 256}, ranks = (size_t)comm->ranks, first = 24064, place_bytes = 32768;   // of 8 ranks at most
    char *ring = (char*)comm_alloc(comm, ops, kPlaces * place_bytes), *both = (char*)ops->alloc(2 * 4096), *read[kGathers];
    char *host = (char*)host_alloc(place_bytes), *want = (char*)host_alloc(place_bytes);
    Transfer transfer[kGathers];
    size_t wrong = 0;
    for (int g = 0; g < kGathers; g++) read[g] = (char*)ops->alloc(place_bytes);
    for (int g = 0; g <= kGathers; g++) {
        if (g < kGathers) {
            for (int i = 0; i < 4096; i++) host[i] = (char)(i * 5 + g * 17 + comm->rank * 31);
            char* in = both + (size_t)(g % 2) * 4096;
            ops->upload(in, host, 4096);
            char* place = ring + (size_t)(g % kPlaces) * place_bytes;
            comm->all_gather(place, in, piece[0]);
            comm->all_gather(place + first, in + 3072, piece[1]);
            transfer[g] = comm->start();
        }
        if (g > 0) {
            comm->wait(transfer[g - 1]);
            ops->copy(read[g - 1], ring + (size_t)((g - 1) % kPlaces) * place_bytes, place_bytes);
        }
    }
    for (int g = 0; g < kGathers; g++) {
        memset(want, 0, place_bytes);
        ops->download(host, read[g], place_bytes);
        for (size_t r = 0; r < ranks; r++) {
            for (size_t i = 0; i < piece[0]; i++) want[r * piece[0] + i] = (char)((int)i * 5 + g * 17 + (int)r * 31);
            for (size_t i = 0; i < piece[1]; i++) want[first + r * piece[1] + i] = (char)((int)(i + 3072) * 5 + g * 17 + (int)r * 31);
        }
        for (size_t i = 0; i < place_bytes; i++) wrong += host[i] != want[i];
        ops->release(read[g]);
    }
    comm_release(comm, ops, ring);
    ops->release(both);
    free(host);
    free(want);
    report(wrong, "12 gathers into a ring of two places");
}

// Two sums in one transfer, of which the first writes to its own slice.
static void reduce_scatter_case(size_t count, Fmt fmt, bool add) {
    size_t ranks = (size_t)comm->ranks, value = fmt_bytes(fmt), first = (size_t)comm->rank * count;
    void* in[2] = {on_backend(contribution(comm->rank, 0, count * ranks, fmt), count * ranks * value),
                   on_backend(contribution(comm->rank, 0, count * ranks, fmt), count * ranks * value)};
    void *before = contribution(99, first, count, fmt), *in_place = (char*)in[0] + first * value;
    void* out = ops->alloc(count * value);
    ops->upload(out, before, count * value);
    comm->reduce_scatter(in_place, in[0], count, fmt, false, NULL);
    Noise noise = {7, 3, first, NULL};   // of what is added up in BF16
    comm->reduce_scatter(out, in[1], count, fmt, add, &noise);
    comm->wait(comm->start());
    void *want[2] = {sums(NULL, first, count, fmt, NULL), sums(add ? before : NULL, first, count, fmt, add ? &noise : NULL)};
    char what[96];
    snprintf(what, sizeof what, "reduce_scatter of %zu %s%s", count, fmt_name(fmt), add ? ", added" : "");
    report(differing(in_place, want[0], count * value) + differing(out, want[1], count * value), what);
    for (int i = 0; i < 2; i++) {
        ops->release(in[i]);
        free(want[i]);
    }
    ops->release(out);
    free(before);
}

static void all_reduce_case(size_t count, Fmt fmt) {
    size_t bytes = count * fmt_bytes(fmt);
    void *x = on_backend(contribution(comm->rank, 0, count, fmt), bytes), *want = sums(NULL, 0, count, fmt, NULL);
    comm->all_reduce(x, count, fmt);
    comm->wait(comm->start());
    char what[96];
    snprintf(what, sizeof what, "all_reduce of %zu %s", count, fmt_name(fmt));
    report(differing(x, want, bytes), what);
    ops->release(x);
    free(want);
}

static void maximum_case(void) {
    enum { kCount = 300 };
    float want[kCount], mine[kCount];
    for (int i = 0; i < kCount; i++) {
        want[i] = 0;
        for (int r = 0; r < comm->ranks; r++) {
            float x = fabsf(brought(r, (size_t)i));
            if (i % 50 == 3 && r == i / 50 % comm->ranks) x = i % 100 == 3 ? NAN : INFINITY;
            if (r == comm->rank) mine[i] = x;
            if (f32_bits(x) > f32_bits(want[i])) want[i] = x;
        }
    }
    float* x = (float*)ops->alloc(sizeof mine);
    ops->upload(x, mine, sizeof mine);
    comm->all_reduce_max(x, kCount);
    comm->wait(comm->start());
    report(differing(x, want, sizeof want), "all_reduce_max of magnitudes, infinity and NaN among them");
    ops->release(x);
}

// A rank whose values are not finite is known to the rank that adds them up, once, and to no other.
static void bad_rank_case(Fmt fmt) {
    size_t count = 1000, ranks = (size_t)comm->ranks, bytes = count * ranks * fmt_bytes(fmt), wrong = comm->bad_rank() != -1;
    for (int bad = 0; bad < comm->ranks; bad++) {
        void* host = contribution(comm->rank, 0, count * ranks, fmt);
        int owner = (bad + 1) % comm->ranks;
        if (comm->rank >= bad) put(host, (size_t)owner * count + 17, fmt, bad % 2 ? NAN : INFINITY);
        void *x = on_backend(host, bytes), *out = ops->alloc(count * fmt_bytes(fmt));
        comm->reduce_scatter(out, x, count, fmt, false, NULL);
        comm->wait(comm->start());
        wrong += comm->bad_rank() != (comm->rank == owner ? bad : -1);
        wrong += comm->bad_rank() != -1;
        ops->release(x);
        ops->release(out);
    }
    report(wrong, fmt == F32 ? "bad_rank of F32 sums" : "bad_rank of BF16 sums");
}

// Transfers beside each other and beside the backend's work, each waited for late: what is copied out is whole.
static void order_case(void) {
    enum { kTransfers = 40 };
    size_t count = 1000, ranks = (size_t)comm->ranks, bytes = count * sizeof(float), wrong = 0;
    float *in[kTransfers], *out[kTransfers];
    Transfer transfer[kTransfers];
    for (int t = 0; t < kTransfers; t++) {
        in[t] = (float*)on_backend(contribution(comm->rank, 0, count * ranks, F32), bytes * ranks);
        out[t] = (float*)ops->alloc(bytes);
    }
    for (int t = 0; t < kTransfers; t++) {
        // The backend's work before it: what is sent comes out of a copy, here from the transfer's neighbour.
        if (t) ops->copy(in[t], in[t - 1], bytes * ranks);
        comm->reduce_scatter(out[t], in[t], count, F32, false, NULL);
        transfer[t] = comm->start();
        if (t < 2) continue;
        comm->wait(transfer[t - 2]);
        ops->zero(in[t - 2], bytes * ranks);   // its slices have been sent
    }
    comm->wait(transfer[kTransfers - 2]);
    comm->wait(transfer[kTransfers - 1]);
    void* want = sums(NULL, (size_t)comm->rank * count, count, F32, NULL);
    for (int t = 0; t < kTransfers; t++) {
        wrong += differing(out[t], want, bytes);
        ops->release(in[t]);
        ops->release(out[t]);
    }
    free(want);
    report(wrong, "40 transfers, their memory reused");
}

static int on_a_rank(const char* backend) {
    ops = &cpu_bf16_ops;
#ifdef HALO_CUDA
    if (!strcmp(backend, "cuda")) ops = &cuda_ops;
#else
    (void)backend;
#endif
    comm = comm_start();
    progress_watch(comm->rank, comm->ranks, 60, comm->abort_job);
    comm = comm_on(comm, ops);
    report(comm->host_ranks != comm->ranks, "all ranks are this host's");
    const size_t gathers[] = {1, 2, 7, 256, 100003};
    for (int i = 0; i < COUNT(gathers); i++) {
        gather_case(gathers[i], i % 2, false);
        gather_case(gathers[i], i % 2, true);
        gather_case(gathers[i], !(i % 2), true);
    }
    ring_case();
    // Below a block of an all_reduce, over several slices of the emulation's staging memory, and of a GPU's.
    const size_t counts[] = {1, 3, 129, 1024, 20011, kHasGpus && !strcmp(backend, "cuda") ? 17000000 : 5000};
    for (int i = 0; i < COUNT(counts); i++) {
        reduce_scatter_case(counts[i], F32, i % 2);
        reduce_scatter_case(counts[i], BF16, false);
        reduce_scatter_case(counts[i], BF16, true);
        all_reduce_case(counts[i], i % 2 ? F32 : BF16);
        all_reduce_case(counts[i] * 3 + 1, i % 2 ? BF16 : F32);
    }
    maximum_case();
    bad_rank_case(F32);
    bad_rank_case(BF16);
    order_case();
    progress_stop_watching();
    int failed = test_failed;
    if (comm->rank == 0) printf("%d passed, %d failed, %d skipped\n", test_passed, test_failed, test_skipped);
    comm->finish();
    return failed > 0;
}

// ---- alone

static const char* self;

static FILE* start_ranks(int ranks, const char* backend) {
    char line[1024];
    snprintf(line, sizeof line, "mpirun --allow-run-as-root --oversubscribe --mca btl_base_warn_component_unused 0 -np %d '%s' ranks %s 2>&1",
             ranks, self, backend);
    fflush(stdout);
    FILE* out = popen(line, "r");
    check(out, "%s: not started", line);
    return out;
}

// `slow`: the emulated stream that is slowed down; `says`: what one rank is to say once, NULL: nothing of it.
static void run_ranks(int ranks, const char* backend, const char* slow, const char* says) {
    char text[512];
    int said = 0;
    setenv("SIMT_SLOW", slow, 1);
    FILE* out = start_ranks(ranks, backend);
    bool closed = false;
    int passed, failed, skipped;
    while (fgets(text, sizeof text, out)) {
        if (sscanf(text, "%d passed, %d failed, %d skipped", &passed, &failed, &skipped) == 3) {
            test_passed += passed;
            test_failed += failed;
            closed = true;
        } else if (strstr(text, "copy engines: ")) {
            said += says && strstr(text, says) ? 1 : 100;
        } else {
            fputs(text, stdout);
        }
    }
    ok(pclose(out) == 0 && closed, "%d ranks on %s, slow stream %s, come to an end", ranks, backend, slow);
    ok(said == (says != NULL), "copy engines are used%s%s", says ? " no more, said once: " : ", or nothing is said", says ? says : "");
}

#ifdef HALO_SIMT
// The ranks end with exit code 2 and a line that says `why`.
static void refused_ranks(const char* why) {
    char text[512];
    bool said = false;
    FILE* out = start_ranks(2, "cuda");
    while (fgets(text, sizeof text, out)) said = said || strstr(text, why);
    int status = pclose(out);
    ok(said && WIFEXITED(status) && WEXITSTATUS(status) == 2, "ranks are refused: %s", why);
}
static void ranks_case(void) {
    setenv("SIMT_GPUS", "4", 1);
    const char* const slow[] = {"none", "0", "1", "2"};
    for (int i = 0; i < COUNT(slow); i++) run_ranks(2 + i % 2, "cuda", slow[i], NULL);
    run_ranks(4, "cuda", "none", NULL);
    setenv("SIMT_NO_IPC", "1", 1);
    run_ranks(3, "cuda", "1", "cannot open memory of another");
    unsetenv("SIMT_NO_IPC");
    setenv("SIMT_NO_VALUES", "0", 1);
    run_ranks(3, "cuda", "none", "do not meet");
    unsetenv("SIMT_NO_VALUES");
    setenv("HALO_COPY_ENGINES", "0", 1);
    for (int i = 0; i < 3; i++) run_ranks(2 + i % 2, "cuda", slow[i], "HALO_COPY_ENGINES is 0");
    setenv("HALO_COPY_ENGINES", "off", 1);
    refused_ranks("HALO_COPY_ENGINES is 'off'");
    unsetenv("HALO_COPY_ENGINES");
}
#else
static void ranks_case(void) {
    for (int ranks = 2; ranks <= 4; ranks++) run_ranks(ranks, "cpu", "none", NULL);
    int gpus = 0;
#ifdef HALO_CUDA
    if (kHasGpus) gpus = cuda_device_count();
#endif
    if (!kHasGpus) skip("collectives on GPUs: built without NCCL");
    else if (gpus < 2) too_few_gpus("collectives on GPUs", gpus);
    for (int ranks = 2; ranks <= gpus && ranks <= 8; ranks *= 2) {
        run_ranks(ranks, "cuda", "none", NULL);
        setenv("HALO_COPY_ENGINES", "0", 1);
        run_ranks(ranks, "cuda", "none", "HALO_COPY_ENGINES is 0");
        unsetenv("HALO_COPY_ENGINES");
    }
}
#endif
static void no_mpi(void) { skip("collectives: no MPI on this machine"); }

static const Case cases[] = {{"comm.ranks", ranks_case}};
static const Case skipped[] = {{"comm.ranks", no_mpi}};

int main(int argc, char** argv) {
    if (argc == 3 && !strcmp(argv[1], "ranks")) return on_a_rank(argv[2]);
    self = argv[0];
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);   // for the ranks: MPI leaves memory of its own behind
    return test_main(has_mpi() ? cases : skipped, 1, argc, argv);
}
