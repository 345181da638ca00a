// x H of bf16 rows on tensor cores (rotate/hadamard_warp.cuh).
//
// Bytes an element: 2 read, and 2 (bf16), 1 (codes) or none (the maximum) written, each once: the floor of the operation.
//
// Orders 2^k up to 4096: rotate_warp_kernel, all of a row in one warp, without shared memory or barriers: 14 instructions an element for codes,
// 11 for the maximum, which is half of what a multiprocessor can issue while memory brings and takes the bytes.
// Others: rotate_features_kernel, 9 instructions an element for the maximum of 14336 columns, 12 for codes. A block takes one row, or a few short
// ones. Across runs comes first, from the registers to which a warp loads its positions of all runs; so values are written to shared
// memory once and read once, as FP16, and a block waits at two barriers: for the row's largest exponent, and for the sums across.
// Several blocks a multiprocessor hide these waits and the loads.
#ifndef HALO_CUDA_ROTATE_FEATURES_CUH
#define HALO_CUDA_ROTATE_FEATURES_CUH

#include "hadamard_warp.cuh"
#include "exact.cuh"

// ================================================================ within a warp
enum { kRotateWarpThreads = 128 };

// A warp takes a row of 256 kBlocks elements, or (kBlocks 1) the rows of order 2^log2_n in 256, which share an exponent.
template <int kBlocks, typename Sink>
__global__ void __launch_bounds__(kRotateWarpThreads, kBlocks == 16 ? 4 : 8) rotate_warp_kernel(Sink sink, Rows<const bf16> x,
                                                                                                    int rows, int log2_n, const uint4* fragments) {
    enum { kSumBits = 8 };
    int lane = threadIdx.x % kWarp;
    unsigned number = blockIdx.x * (kRotateWarpThreads / kWarp) + threadIdx.x / kWarp;
    int row = kBlocks > 1 ? number : (number * kWarp + lane) >> (log2_n - 3);
    int col = kBlocks > 1 ? lane * 8 : ((number * kWarp + lane) & ((1u << (log2_n - 3)) - 1)) * 8;
    Packed<8> octets[kBlocks] = {};
    uint32_t largest = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
        if (row < rows) octets[b] = load_packed<8>(x[row] + col + b * 256);
    sink.begin();
#pragma unroll
    for (int b = 0; b < kBlocks; b++) largest = larger_pair_bf16(largest, largest_pair(octets[b]));

    int exponent = max(__reduce_max_sync(0xffffffffu, pair_exponent(largest)), (int)kLeastExponent);
    WithinSigns signs = WithinSigns(fragments).times(half_power_of(exponent, kSumBits));
    sink.unit(half_unit_of(exponent, kSumBits) * (1 / kSignAsHalf));
    if constexpr (kBlocks == 1) {
        float v[8];
        hadamard_within(v, octets[0], signs);
#pragma unroll
        for (int p = 0; p < 4; p++) octets[0].pair[p] = sink.pack(v[2 * p], v[2 * p + 1]);
    } else {
#pragma unroll
        for (int b = 0; b < kBlocks; b++) {
            float v[8];
            hadamard_within(v, octets[b], signs);
#pragma unroll
            for (int p = 0; p < 4; p++) octets[b].pair[p] = pack_f16(v[2 * p], v[2 * p + 1]);
        }
#pragma unroll
        for (int p = 0; p < 4; p++) {   // a pair of each 256 at a time: FP32 for all would be too many registers
            float v[kBlocks][2];
#pragma unroll
            for (int b = 0; b < kBlocks; b++) unpack_f16(octets[b].pair[p], v[b][0], v[b][1]);
            add_blocks(v, kBlocks);
#pragma unroll
            for (int b = 0; b < kBlocks; b++) octets[b].pair[p] = sink.pack(v[b][0], v[b][1]);
        }
    }
    size_t place = sink.at(row, col);
#pragma unroll
    for (int b = 0; b < kBlocks; b++)
        if (row < rows) sink.store(place + b * 256, octets[b]);
    sink.finish();
}

template <int kBlocks>
static bool launch_rotate_warp(const RotateJob& job) {
    size_t elements = (size_t)job.x.rows * (size_t)job.n, per_block = (size_t)kRotateWarpThreads * 8 * kBlocks;
    int rows_a_block = (int)per_block / job.n;
    check(elements < 1ull << 34, "rotate (cuda): (%d, %d) is too large to count", job.x.rows, job.n);
    return with_stack_sink(job, rows_a_block, [&](auto sink) {
        LAUNCH((rotate_warp_kernel<kBlocks, decltype(sink)>), (unsigned)((elements + per_block - 1) / per_block), kRotateWarpThreads, 0, sink,
               rows_of<const bf16>(job.x), job.x.rows, floor_log2(job.n), rotate_signs()->within[min_int(floor_log2(job.n), kWithinBits)]);
        return true;
    });
}

// ================================================================ through shared memory
enum { kRotateThreads = 128, kFeatureVectors = 32 };   // of a block: the fewest threads, the most rows

// How rows of order n are cut: a dense matrix of signs of this order transforms across runs of 2^log2_run elements; the lowest 8 bits of a run are
// transformed within 256s and the others by additions between `together` 256s.
struct RowRuns {
    int n, log2_run, together, order;
    int sum_bits;   // sums of 2^sum_bits values are rounded to FP16
    const uint4 *across, *within;   // fragments
    float scale;    // 1 / sqrt(n)
    __host__ __device__ int run() const { return 1 << log2_run; }
    __host__ __device__ int tiles() const { return (order + kFragment - 1) / kFragment; }
    // Where element e of some rows lies in shared memory. Octets of a run are exchanged, so that access to four positions in each of four runs
    // two apart, and to four octets in each of two runs, is free of bank conflicts.
    __host__ __device__ int place(int e) const {
        int number = e >> log2_run;
        return e ^ (((number << 3) ^ (number << 5)) & (run() - 1) & 0x30);
    }
};

// The rows that a block takes.
struct FeatureItem {
    RowRuns runs;
    Divisor octets_across;   // octets in a row
    int vectors, rows;       // of the item, of the matrix
    bool alone;              // each row has its own exponent; else (rows of no whole 256s, or runs shorter than a warp's positions) the item has one
    __host__ __device__ int elements() const { return vectors * runs.n; }
    __device__ int exponent_of(int vector) const { return alone ? vector : 0; }
    size_t bytes() const { return (size_t)elements() * sizeof(bf16); }
};

// One row, which a producer writes to shared memory itself.
static inline FeatureItem one_row(const RowRuns& runs) {
    FeatureItem item = {runs, {}, 1, 1, true};
    return item;
}

// Raises *exponent to that of the largest magnitude among the threads' pairs of bf16.
__device__ inline void raise_row_exponent(int* exponent, uint32_t largest) {
    int of_warp = __reduce_max_sync(0xffffffffu, pair_exponent(largest));
    if (threadIdx.x % kWarp == 0) atomicMax(exponent, of_warp);
}

// The sums across of kEach times 32 positions, from registers to shared memory. places: of this lane's octet in run lane / 4.
template <int kSteps, int kEach>
__device__ inline void features_across(bf16* buffer, const int (&places)[kEach], RunValues<kSteps> (&x)[kEach], const RowRuns& runs, int exponent) {
    int run = threadIdx.x % kWarp / 4, tiles = kSteps <= 2 ? kSteps : runs.tiles();
    uint32_t power = f32_bits(half_power_of(exponent, runs.sum_bits)) >> 16;   // in bf16
#pragma unroll
    for (int g = 0; g < kEach; g++) pair_runs(x[g]);
#pragma unroll 1
    for (int tile = 0; tile < tiles; tile++) {
        AcrossSigns<kSteps> signs(runs.across, tiles, tile, power | power << 16);
#pragma unroll
        for (int g = 0; g < kEach; g++) {
            Packed<8> sums[2];
            sum_across(sums, x[g], signs, tiles);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int before = tile * kFragment + half * 8;   // runs
                if (before + run < runs.order) store_packed(buffer + places[g] + (before << runs.log2_run), sums[half]);
            }
        }
    }
}

// Transforms an item within its runs and gives it to the sink. kGroup: runs.together. exponents: of the rows.
template <int kGroup, typename Sink>
__device__ inline void features_within(Sink& sink, const bf16* buffer, const int* exponents, const FeatureItem& item, int first_row,
                                       WithinSigns signs) {
    int lane = threadIdx.x % kWarp, step = blockDim.x / kWarp * kGroup, blocks = item.elements() / 256;
    for (int r = 0; r < 4 && kGroup > 1; r++) signs.second[r] = signs.first[r];   // both transform four bits
    auto set_unit = [&](int exponent) { sink.unit(half_unit_of(exponent, item.runs.sum_bits) * (1 / (kSignAsHalf * kSignAsHalf))); };
    set_unit(exponents[0]);
    for (int first = threadIdx.x / kWarp * kGroup; first < blocks; first += step) {
        int e = first * 256 + lane * 8, vector = item.vectors == 1 ? 0 : (int)item.octets_across.quotient(e / 8), row = first_row + vector;
        const bf16* at = buffer + item.runs.place(e);
        float v[kGroup][8];
#pragma unroll
        for (int b = 0; b < kGroup; b++) hadamard_within<true>(v[b], load_packed<8>(at + b * 256), signs);
        add_blocks(v, kGroup);
        if (item.vectors > 1) set_unit(exponents[item.exponent_of(vector)]);
        if (item.vectors > 1 && row >= item.rows) continue;
        size_t place = sink.at(row, e - vector * item.runs.n);
#pragma unroll
        for (int b = 0; b < kGroup; b++) {
            Packed<8> octet;
#pragma unroll
            for (int p = 0; p < 4; p++) octet.pair[p] = sink.pack(v[b][2 * p], v[b][2 * p + 1]);
            sink.store(place + b * 256, octet);
        }
    }
}

// A row that a producer has written to shared memory (in the order of place), with its exponent: gives x H to the sink. Runs are of 32 to 512.
template <int kSteps, typename Sink>
__device__ inline void rotate_row_in_place(Sink& sink, bf16* buffer, const int* exponent, const FeatureItem& row) {
    const RowRuns& runs = row.runs;
    int lane = threadIdx.x % kWarp;
    for (int group = threadIdx.x / kWarp; group < runs.run() / 32; group += blockDim.x / kWarp) {
        RunValues<kSteps> x[1];
        int in = group * 32 + lane / 4 * 4 + (lane % 4 * 2 << runs.log2_run);
        load_runs(x[0], buffer + runs.place(in), buffer + runs.place(in + runs.run()), 8 * runs.run(), runs.order);
        __syncwarp();   // all lanes have read what the sums of the same positions overwrite
        const int places[1] = {runs.place(group * 32 + lane % 4 * 8 + (lane / 4 << runs.log2_run))};
        features_across(buffer, places, x, runs, *exponent);
    }
    WithinSigns signs(runs.within);
    __syncthreads();
    if (runs.together == 1) features_within<1>(sink, buffer, exponent, row, 0, signs);
    else features_within<2>(sink, buffer, exponent, row, 0, signs);
}

// How the kernel for orders of up to 16 kSteps and runs of 2^kRunBits is launched; kRunBits 0: runs of up to 256.
template <int kSteps, int kRunBits>
struct FeatureShape {
    enum {
        kEach = kSteps <= 2 ? 4 : kSteps <= 4 ? 2 : 1,   // groups of 32 positions that a warp takes, up to 64 registers of values
        kGroup = kRunBits > 8 ? 1 << (kRunBits - 8) : 1,
        kWarps = (kRunBits > 0 ? 1 << kRunBits : 256) / (32 * kEach),   // for a row
        kThreads = kWarps * kWarp > kRotateThreads ? kWarps * kWarp : kRotateThreads,   // at most
        kVectors = kThreads / (kWarps * kWarp),          // if kRunBits > 0
        kBlocks = kThreads > 256 || kSteps > 4 ? 1 : kThreads > kRotateThreads ? 2 : kSteps == 1 ? 8 : kSteps == 2 ? 5 : 4   // of a multiprocessor
    };
    // The item, with what is known of it.
    __device__ static FeatureItem known(FeatureItem item) {
        if (kRunBits == 0) return item;
        item.runs.log2_run = kRunBits;
        item.vectors = kVectors;
        item.alone = true;
        return item;
    }
};

template <int kSteps, int kRunBits, typename Sink>
__global__ void __launch_bounds__(FeatureShape<kSteps, kRunBits>::kThreads, FeatureShape<kSteps, kRunBits>::kBlocks)
rotate_features_kernel(Sink sink, Rows<const bf16> x, FeatureItem any_item) {
    typedef FeatureShape<kSteps, kRunBits> Shape;
    constexpr int kEach = Shape::kEach;
    SHARED(bf16, shared);
    __shared__ int of_warp[kWarp], exponents[kFeatureVectors];
    const FeatureItem item = Shape::known(any_item);
    const RowRuns& runs = item.runs;
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, run = runs.run(), first_row = blockIdx.x * item.vectors;
    RunValues<kSteps> values[kEach];
    int places[kEach];
#pragma unroll
    for (int g = 0; g < kEach; g++) {
        int group = (warp * kEach + g) * 32, in = group + lane / 4 * 4, out = group + lane % 4 * 8;   // positions
        auto vector_of = [&](int position) { return item.vectors == 1 ? 0 : position >> runs.log2_run; };
        int row = first_row + vector_of(kRunBits ? group : in);   // a group of long runs is of one row
        const bf16* from = x[row] + (in & (run - 1)) + lane % 4 * 2 * run;
        load_runs(values[g], from, from + run, 8 * run, item.vectors == 1 || row < item.rows ? runs.order : 0);
        if (kRunBits && g > 0) places[g] = places[0] ^ g * 32;
        else places[g] = runs.place(vector_of(out) * runs.n + (out & (run - 1)) + (lane / 4 << runs.log2_run));
    }
    sink.begin();
    uint32_t largest = largest_pair(values[0]);
#pragma unroll
    for (int g = 1; g < kEach; g++) largest = larger_pair_bf16(largest, largest_pair(values[g]));
    largest = __reduce_max_sync(0xffffffffu, pair_exponent(largest));
    if (lane == 0) of_warp[warp] = (int)largest;
    __syncthreads();
    int sharing = kRunBits ? (int)Shape::kWarps : item.alone ? run / (32 * kEach) : warps;   // warps of one exponent, a power of two
    int leader = warp & -sharing;                                                       // the first of them
    int exponent = max(__reduce_max_sync(0xffffffffu, lane < sharing ? of_warp[leader + lane] : 0), (int)kLeastExponent);
    if (lane == 0 && warp == leader) exponents[warp / sharing] = exponent;
    features_across(shared, places, values, runs, exponent);
    WithinSigns signs(runs.within);
    __syncthreads();
    features_within<Shape::kGroup>(sink, shared, exponents, item, first_row, signs);
    sink.finish();
}

// ---- launchers
// Cuts rows of order n, with up to `added` bits by additions between 256s; false if rows of this order cannot be cut so.
static bool row_runs(int n, int added, bool transpose, RowRuns* runs) {
    int K0 = hadamard_base_order(n), run = K0 ? n / K0 : 0;
    if (run < 16 || (K0 == 1 && run < 16 * 16)) return false;
    int outer = max_int(0, floor_log2(run) - 8), doublings = K0 == 1 ? max_int(4, outer - added) : max_int(0, outer - added), order = K0 << doublings;
    if (doublings >= kAcrossDoublings || (doublings && order > kAcrossMost)) return false;
    run >>= doublings;
    RowRuns r = {n, floor_log2(run), max_int(1, run / 256), order, floor_log2(2 * order - 1) + 4,
                 rotate_signs()->across[hadamard_base_index(K0)][doublings][!transpose],
                 rotate_signs()->within[min_int(floor_log2(run), kWithinBits)], (float)(1 / sqrt((double)n))};
    *runs = r;
    return true;
}
// The same for a row that a producer gives to rotate_row_in_place: whole 256s, and a warp takes 32 positions of runs.
static bool producer_runs(int n, RowRuns* runs) { return n % 256 == 0 && row_runs(n, 1, false, runs) && runs->run() >= 32; }

template <int kSteps, int kRunBits>
static bool launch_rotate_features(const RotateJob& job, FeatureItem item) {
    typedef FeatureShape<kSteps, kRunBits> Shape;
    // Enough rows for whole 256s and for all warps of a small block.
    int run = item.runs.run(), groups = Shape::kEach;
    while (item.vectors * run < kRotateThreads * groups || item.elements() % 256) item.vectors *= 2;
    item.alone = item.runs.n % 256 == 0 && run >= 32 * groups;
    int threads = item.vectors * run / groups;
    // Orders above 64 leave no registers for the threads that runs of 1024 take (K0 of up to 64, rows beyond 65536).
    if (item.bytes() > shared_limit() || threads > Shape::kThreads) return false;
    check(kRunBits == 0 || (item.vectors == Shape::kVectors && item.alone), "rotate (cuda): runs of %d", run);
    return with_stack_sink(job, item.vectors, [&](auto sink) {
        allow_shared(rotate_features_kernel<kSteps, kRunBits, decltype(sink)>, shared_limit());
        LAUNCH((rotate_features_kernel<kSteps, kRunBits, decltype(sink)>), ceil_div(item.rows, item.vectors), threads, item.bytes(), sink,
               rows_of<const bf16>(job.x), item);
        return true;
    });
}
// Runs of usual orders are known to the compiler.
template <int kSteps>
static bool launch_rotate_features(const RotateJob& job, const FeatureItem& item) {
    int bits = item.runs.log2_run;
    if constexpr (kSteps <= 2) {
        if (bits == 7) return launch_rotate_features<kSteps, 7>(job, item);
        if (bits == 8) return launch_rotate_features<kSteps, 8>(job, item);
    }
    if constexpr (kSteps <= 4)
        if (bits == 10) return launch_rotate_features<kSteps, 10>(job, item);
    return bits == 9 ? launch_rotate_features<kSteps, 9>(job, item) : launch_rotate_features<kSteps, 0>(job, item);
}

// False, with nothing done, if the shape is not one for these kernels.
static bool rotate_features(const RotateJob& job) {
    int n = job.n;
    if (job.axis != ROTATE_COLS || job.x.fmt != BF16 || !is_octets(job.x) || n < 8) return false;
    if (hadamard_base_order(n) == 1 && n <= 4096)
        return n <= 256 ? launch_rotate_warp<1>(job) : n == 512 ? launch_rotate_warp<2>(job) : n == 1024 ? launch_rotate_warp<4>(job)
               : n == 2048 ? launch_rotate_warp<8>(job) : launch_rotate_warp<16>(job);
    FeatureItem item = one_row({});
    if (!row_runs(n, hadamard_base_order(n) <= 4 * kFragment ? 2 : 1, job.transpose, &item.runs)) return false;
    item.octets_across = divisor(n / 8);
    item.rows = job.x.rows;
    int tiles = item.runs.tiles();
    return tiles == 1   ? launch_rotate_features<1>(job, item)
           : tiles == 2 ? launch_rotate_features<2>(job, item)
           : tiles <= 4 ? launch_rotate_features<4>(job, item)
                        : launch_rotate_features<11>(job, item);
}

#endif
