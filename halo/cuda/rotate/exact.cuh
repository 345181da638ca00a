// Rotations with the FP32 operations of hadamard.h in their order: the bits are the CPU's. For F32, and for bf16 that the kernels on tensor
// cores do not take: rows without aligned octets, runs shorter than an octet, columns longer than shared memory.
//
// Bytes: those of the input and of the output, each once. At one element a clock and multiprocessor F32 would run at 0.6 of a copy;
// about 25 instructions an element for a power of two, and 1.2 K0 more for the base order.
//
// A block of threads takes an item: `vectors` vectors of order n = K0 2^k, W columns side by side (W = 1 from the right, where a vector
// is a row). Element i of a vector in column w has the number e = (vector n + i) W + w. So the bits of e are, from below: w, the bits of the
// run 2^k, then K0 and the vector; butterflies work on some of e's bits, the same way for both axes. Shared memory holds the item in units
// of eight neighbours (or single values); a thread takes 64 (32) values to registers for six (five) bits of butterflies at a time.
#ifndef HALO_CUDA_ROTATE_EXACT_CUH
#define HALO_CUDA_ROTATE_EXACT_CUH

#include "hadamard_signs.cuh"
#include "sinks.cuh"

// ---- x / d for x < 2^30, as x * ceil(2^shift / d) >> shift with shift = 31 + floor(log2 d)
struct Divisor {
    uint32_t d, inverse;
    int shift;
    __device__ uint32_t quotient(uint32_t x) const { return (uint32_t)((uint64_t)x * inverse >> shift); }
};
static inline int floor_log2(int n) { return 31 - __builtin_clz((unsigned)n); }
static inline Divisor divisor(int d) {
    Divisor x = {(uint32_t)d, 0, 31 + floor_log2(d)};
    x.inverse = (uint32_t)(((1ull << x.shift) + (unsigned)d - 1) / (unsigned)d);
    return x;
}

struct ExactItem {
    Divisor across;              // units in a row of the item: n or W columns
    int items_across;            // items side by side in the matrix
    int item_step, row_step;     // rows of the matrix from item to item, and from row to row of one item
    int x_rows, y_rows, cols;
    int elements;
    int first_bit, log2_run;     // butterflies take the bits [first_bit, log2_run) of e; a run is 2^log2_run elements
    int K0;
    const float* signs;          // (K0, K0): [j][i] is the weight of input j in output i

    // The row and column of a unit of kWidth elements.
    template <int kWidth> __device__ void locate(uint32_t unit, int* row, int* col) const {
        int down = (int)across.quotient(unit), item = blockIdx.x;
        *row = item / items_across * item_step + down * row_step;
        *col = (item % items_across * (int)across.d + (int)unit - down * (int)across.d) * kWidth;
    }
};

// ---- an item in shared memory. After every eight octets (or 32 values) one place is skipped: then units eight (32) apart lie in different
// banks, as neighbours do. Nothing is skipped where runs are shorter than eight octets (32 values).
template <int kWidth> struct ExactUnits;
template <> struct ExactUnits<8> {
    float4 *low, *high;
    int skip;   // the places skipped before a unit are unit >> skip
    __host__ __device__ static int skip_of(int run) { return run >= 8 * 8 ? 3 : 31; }
    __host__ __device__ static int places(int elements, int run) { return elements / 8 + (elements / 8 >> skip_of(run)) + 1; }
    static size_t bytes(int elements, int run) { return (size_t)places(elements, run) * 2 * sizeof(float4); }
    __device__ ExactUnits(char* shared, int elements, int run) : low((float4*)shared), high(low + places(elements, run)), skip(skip_of(run)) {}
    __device__ int place(int unit) const { return unit + (unit >> skip); }
    __device__ Values<8> at(int place) const {
        float4 a = low[place], b = high[place];
        return Values<8>{{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
    }
    __device__ void store(int unit, const Values<8>& x) const {
        low[place(unit)] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
        high[place(unit)] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
    }
};
template <> struct ExactUnits<1> {
    float* value;
    int skip;
    __host__ __device__ static int skip_of(int run) { return run >= 32 ? 5 : 31; }
    static size_t bytes(int elements, int run) { return ((size_t)elements + (size_t)(elements >> skip_of(run)) + 1) * sizeof(float); }
    __device__ ExactUnits(char* shared, int, int run) : value((float*)shared), skip(skip_of(run)) {}
    __device__ int place(int unit) const { return unit + (unit >> skip); }
    __device__ Values<1> at(int place) const { return Values<1>{{value[place]}}; }
    __device__ void store(int unit, const Values<1>& x) const { value[place(unit)] = x.v[0]; }
};

__device__ inline void butterfly(float& a, float& b) {
    float sum = a + b;
    b = a - b;
    a = sum;
}

// For each group of kRadix units 2^log2_stride apart in the item: butterflies of the bits [inner_from, inner_end) within a unit, then
// butterflies between units 1, 2, ... kRadix/2 strides apart.
template <int kWidth, int kRadix>
__device__ inline void exact_butterflies(const ExactUnits<kWidth>& units, int count, int log2_stride, int inner_from, int inner_end) {
    int stride = 1 << log2_stride;
    for (int group = threadIdx.x; group < count / kRadix; group += blockDim.x) {
        int first = (group >> log2_stride) * (stride * kRadix) + (group & (stride - 1));
        Values<kWidth> v[kRadix];
#pragma unroll
        for (int i = 0; i < kRadix; i++) v[i] = units.at(units.place(first + i * stride));
#pragma unroll
        for (int bit = 0; 1 << bit < kWidth; bit++) {
            if (bit < inner_from || bit >= inner_end) continue;
#pragma unroll
            for (int i = 0; i < kRadix; i++)
#pragma unroll
                for (int j = 0; j < kWidth; j++)
                    if (!(j >> bit & 1)) butterfly(v[i].v[j], v[i].v[j | 1 << bit]);
        }
#pragma unroll
        for (int step = 1; step < kRadix; step *= 2)
#pragma unroll
            for (int i = 0; i < kRadix; i++)
#pragma unroll
                for (int j = 0; j < kWidth; j++)
                    if (!(i & step)) butterfly(v[i].v[j], v[i + step].v[j]);
#pragma unroll
        for (int i = 0; i < kRadix; i++) units.store(first + i * stride, v[i]);
    }
}

enum { kExactThreads = 256, kExactLoads = 4, kExactSums = 4 };   // 4 divides every K0 > 1

// Load: the item's values of x to shared memory, zero outside of x.
template <int kWidth, typename X>
__device__ __forceinline__ void exact_load(const ExactUnits<kWidth>& units, Rows<const X> x, const ExactItem& item, int count) {
    for (int first = threadIdx.x; first < count; first += blockDim.x * kExactLoads) {
        Values<kWidth> v[kExactLoads];
#pragma unroll
        for (int i = 0; i < kExactLoads; i++) {
            int row, col, unit = first + i * (int)blockDim.x;
            item.template locate<kWidth>(unit, &row, &col);
            v[i] = Values<kWidth>{};
            if (unit < count && row < item.x_rows && col < item.cols) v[i] = load_values<kWidth>(x[row] + col);
        }
#pragma unroll
        for (int i = 0; i < kExactLoads; i++)
            if (first + i * (int)blockDim.x < count) units.store(first + i * (int)blockDim.x, v[i]);
    }
}

// Transform: all butterflies within runs, kPassBits bits at a time; the bits inside a unit go with the first pass.
template <int kUnitBits, int kWidth>
__device__ __forceinline__ void exact_transform(const ExactUnits<kWidth>& units, const ExactItem& item, int count) {
    constexpr int kPassBits = kWidth == 8 ? 3 : 5;
    int bit = max(item.first_bit, kUnitBits), inner_from = item.first_bit, inner_end = min(item.log2_run, kUnitBits);
    while (bit < item.log2_run || inner_from < inner_end) {
        int bits = max(0, min(kPassBits, item.log2_run - bit)), log2_stride = bit - kUnitBits;
        switch (bits) {
            case 0: exact_butterflies<kWidth, 1>(units, count, 0, inner_from, inner_end); break;
            case 1: exact_butterflies<kWidth, 2>(units, count, log2_stride, inner_from, inner_end); break;
            case 2: exact_butterflies<kWidth, 4>(units, count, log2_stride, inner_from, inner_end); break;
            case 3: exact_butterflies<kWidth, 8>(units, count, log2_stride, inner_from, inner_end); break;
            case 4: if constexpr (kPassBits >= 4) exact_butterflies<kWidth, 16>(units, count, log2_stride, 0, 0); break;
            default: if constexpr (kPassBits >= 5) exact_butterflies<kWidth, 32>(units, count, log2_stride, 0, 0);
        }
        bit += bits;
        inner_end = inner_from;   // done
        __syncthreads();
    }
}

// Store, across runs: each output is a sum over the K0 runs; `put` takes kExactSums outputs of a position at a time. +-1 times a value is
// exact, so a fused multiply-add gives the bits of hadamard.h's addition.
template <int kUnitBits, int kWidth, typename Put>
__device__ __forceinline__ void exact_sums(const ExactUnits<kWidth>& units, const ExactItem& item, int count, const Put& put) {
    int run = 1 << (item.log2_run - kUnitBits), positions = count / item.K0;   // in units
    for (int n = threadIdx.x; n < positions * (item.K0 / kExactSums); n += blockDim.x) {
        int position = n % positions, first = n / positions * kExactSums;
        int unit = position / run * (item.K0 * run) + position % run, place = units.place(unit);
        const float4* signs = (const float4*)(item.signs + first);
        Values<kWidth> sum[kExactSums] = {};
#pragma unroll 2
        for (int j = 0; j < item.K0; j++, place += run + (run >> units.skip), signs += item.K0 / 4) {
            Values<kWidth> v = units.at(place);
            float4 sign = __ldg(signs);
            const float weight[kExactSums] = {sign.x, sign.y, sign.z, sign.w};
#pragma unroll
            for (int i = 0; i < kExactSums; i++)
#pragma unroll
                for (int w = 0; w < kWidth; w++) sum[i].v[w] = __fmaf_rn(weight[i], v.v[w], sum[i].v[w]);
        }
#pragma unroll
        for (int i = 0; i < kExactSums; i++) put(unit + (first + i) * run, sum[i]);
    }
}

template <int kWidth, typename X>
__global__ void __launch_bounds__(kExactThreads, 2) rotate_exact_kernel(AnySink sink, Rows<const X> x, ExactItem item) {
    SHARED(char, shared);
    constexpr int kUnitBits = kWidth == 8 ? 3 : 0;
    ExactUnits<kWidth> units(shared, item.elements, 1 << item.log2_run);
    int count = item.elements / kWidth;
    exact_load(units, x, item, count);
    __syncthreads();   // from here on nothing of x is read: y may be x

    sink.begin();
    auto put = [&](int unit, const Values<kWidth>& v) {
        int row, col;
        item.template locate<kWidth>(unit, &row, &col);
        if (row < item.y_rows && col < item.cols) sink.put(sink.at(row, col), v);
    };
    exact_transform<kUnitBits>(units, item, count);
    if (item.K0 == 1) {
        for (int unit = threadIdx.x; unit < count; unit += blockDim.x) put(unit, units.at(units.place(unit)));
    } else {
        exact_sums<kUnitBits>(units, item, count, put);
    }
    sink.finish();
}

// ---- launchers
enum { kExactElements = 8192, kExactWidest = 32, kExactLongest = 1024 };

template <int kWidth, typename X>
static bool launch_rotate_exact(const RotateJob& job) {
    bool from_right = job.axis == ROTATE_COLS;
    int K0 = hadamard_base_order(job.n), rows = max_int(job.x.rows, job.y.rows), W = from_right ? 1 : kWidth, vectors = 1;
    int run = job.n / K0;
    if ((size_t)job.n * W * sizeof(float) > shared_limit() || ExactUnits<kWidth>::bytes(job.n * W, run * W) > shared_limit()) return false;
    if (run * W % kWidth) return false;
    while (!from_right && W < kExactWidest && W < job.x.cols && (size_t)job.n * W * 2 <= kExactElements) W *= 2;
    while (job.step == 1 && vectors * (from_right ? 1 : job.n) < rows && (size_t)vectors * job.n * W * 2 <= kExactElements) vectors *= 2;
    ExactItem item = {};
    int columns = from_right ? job.n : W;
    item.across = divisor(columns / kWidth);
    item.items_across = from_right ? 1 : ceil_div(job.x.cols, W);
    item.row_step = job.step;
    item.item_step = from_right ? vectors : job.step == 1 ? vectors * job.n : 1;
    item.x_rows = job.x.rows;
    item.y_rows = job.y.rows;
    item.cols = job.x.cols;
    item.elements = vectors * job.n * W;
    item.first_bit = floor_log2(W);
    item.log2_run = item.first_bit + floor_log2(job.n / K0);
    item.K0 = K0;
    item.signs = rotate_signs()->base[hadamard_base_index(K0)][from_right != job.transpose];   // y = x H is y^T = H^T x^T
    int items = item.items_across * (job.step > 1 ? job.step : ceil_div(rows, item.item_step));
    int threads = threads_for(item.elements / (kWidth == 8 ? 64 : 16), kExactThreads);
    allow_shared(rotate_exact_kernel<kWidth, X>, shared_limit());
    LAUNCH((rotate_exact_kernel<kWidth, X>), items, threads, ExactUnits<kWidth>::bytes(item.elements, 1 << item.log2_run), any_sink(job), rows_of<const X>(job.x),
           item);
    return true;
}

// False, with nothing done, if a vector is too long for shared memory, or columns are too long for eight of them side by side.
static bool rotate_exact(const RotateJob& job) {
    bool bf16_in = job.x.fmt == BF16, octets = is_octets(job.x);
    if (job.y.data) octets = octets && job.y.ld % 8 == 0 && (uintptr_t)job.y.data % (8 * min_int(2, (int)fmt_bytes(job.y.fmt))) == 0;
    if (octets && (bf16_in ? launch_rotate_exact<8, bf16>(job) : launch_rotate_exact<8, float>(job))) return true;
    if (octets && job.axis == ROTATE_ROWS && job.n > kExactLongest) return false;
    return bf16_in ? launch_rotate_exact<1, bf16>(job) : launch_rotate_exact<1, float>(job);
}

// Vectors longer than shared memory take two passes, some columns (or rows) at a time: first within runs of kRotateLow elements, then over the
// elements that are kRotateLow apart. In between the values are FP32 and stay in the L2 cache. Long rows must follow each other without
// gaps: the first pass treats their runs as rows, and the second treats the runs of a row as a block of tokens.
enum { kRotateLow = 256 };

static bool rotate_in_two_passes(RotateJob within, RotateJob over) {
    within.scale = 1;
    within.absmax = NULL;
    within.quantizer.absmax = NULL;
    return rotate_exact(within) && rotate_exact(over);
}

static void rotate_long_columns(const RotateJob& job) {
    int low = min_int(kRotateLow, job.n / hadamard_base_order(job.n)), rows = max_int(job.x.rows, job.y.rows);
    size_t fit = kRotateStripBytes / sizeof(float) / (size_t)job.n;
    int width = fit >= 64 ? (int)(fit / 64 * 64) : (int)fit;
    check(width > 0, "rotate (cuda): %d tokens exceed the workspace", job.n);
    for (int row = 0; row < rows; row += job.n) {
        auto block_of = [&](Mat m) { return mat_rows(m, row, max_int(0, min_int(job.n, m.rows - row))); };
        for (int first = 0; first < job.x.cols; first += width) {
            int cols = min_int(width, job.x.cols - first);
            RotateJob within = job, over = job;
            within.x = mat_cols(block_of(job.x), first, cols);
            over.y = mat_cols(block_of(job.y), first, cols);
            within.y = over.x = mat(cuda_held().strip, job.n, cols, F32);
            within.n = over.step = low;
            over.n = job.n / low;
            check(rotate_in_two_passes(within, over), "rotate (cuda): %d tokens exceed shared memory in two passes", job.n);
        }
    }
}

static void rotate_long_rows(const RotateJob& job) {
    int low = min_int(kRotateLow, job.n / hadamard_base_order(job.n)), runs = job.n / low;
    int band = (int)(kRotateStripBytes / sizeof(float) / (size_t)job.n);
    check(band > 0 && job.x.ld == job.n && (!job.y.data || job.y.ld == job.n),
          "rotate (cuda): (%d, %d) in %s and %s: a row exceeds the %zu bytes of shared memory of sm_%d, and rows have gaps", job.x.rows, job.n,
          fmt_name(job.x.fmt), fmt_name(job.y.fmt), shared_limit(), gpu_device().capability);
    for (int first = 0; first < job.x.rows; first += band) {
        int rows = min_int(band, job.x.rows - first);
        RotateJob within = job, over = job;
        within.x = mat(mat_rows(job.x, first, rows).data, rows * runs, low, job.x.fmt);
        over.y = mat(mat_rows(job.y, first, rows).data, rows * runs, low, job.y.fmt);
        within.y = over.x = mat(cuda_held().strip, rows * runs, low, F32);
        within.n = low;
        over.n = runs;
        over.axis = ROTATE_ROWS;
        over.transpose = !job.transpose;   // y = x H is y^T = H^T x^T
        check(rotate_in_two_passes(within, over), "rotate (cuda): rows of %d exceed shared memory in two passes", job.n);
    }
}

#endif
