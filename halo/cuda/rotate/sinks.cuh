// Sinks take rotated values: into a matrix, into codes, or only into their maximum. A kernel gives its sink octets (or single values) of
// the rotated matrix, in FP32 and not yet scaled by 1 / sqrt(n):
//   begin()               once a thread, before its first value
//   at(row, col), ld()    the place of a value, as its number in the output, and the distance from row to row
//   unit(u)               from now on values come in units of u: times u they are right (u is 1 at first)
//   put(place, v)         takes v, the values from this place on
//   pack(a, b)            or: two neighbouring values as they will lie in memory, in the lower 16 bits if they are codes, and then
//   store(place, packed)  the four pairs of an octet; both together do what put does
//   finish()              once a thread, at the end; all threads of the block must call it
#ifndef HALO_CUDA_ROTATE_SINKS_CUH
#define HALO_CUDA_ROTATE_SINKS_CUH

#include "../codes.cuh"

#include <type_traits>

// How values become codes with one scale; absmax NULL: they don't.
struct Quantizer {
    const float* absmax;   // of the whole operand
    float* scale;          // written by the first thread of a launch
    float clip;
};

__device__ inline float begin_codes(const Quantizer& q, Fmt fmt) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *q.scale = quant_scale(*q.absmax, fmt, q.clip);
    return quant_inverse(*q.absmax, fmt, q.clip);
}

// The larger of the magnitude `largest` and |x|; NaN wins.
__device__ inline float raised(float largest, float x) {
#ifdef HALO_SIMT
    return larger_magnitude(largest, x);
#else
    float y;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(largest), "f"(fabsf(x)));
    return y;
#endif
}

struct MaxSink {
    float scale;      // 1 / sqrt(n)
    float* absmax;    // raised
    float largest, in_units, units;   // the largest magnitude before the last unit(), and since then (in_units, times `units`)
    __device__ void begin() {
        largest = in_units = 0;
        units = 1;
    }
    __device__ void unit(float u) {
        largest = raised(largest, in_units * units);
        in_units = 0;
        units = u;
    }
    __device__ size_t at(int, int) const { return 0; }
    __device__ size_t ld() const { return 0; }
    template <int kWidth> __device__ void put(size_t, const Values<kWidth>& v) {
#pragma unroll
        for (int i = 0; i < kWidth; i++) in_units = raised(in_units, v.v[i]);
    }
    __device__ uint32_t pack(float a, float b) {
        in_units = raised(raised(in_units, a), b);
        return 0;
    }
    __device__ void store(size_t, const Packed<8>&) {}
    __device__ void finish() {
        unit(1);
        raise_block_absmax(absmax, f32_bits(largest * scale) & 0x7fffffffu);
    }
};

struct StoreSink {
    Rows<bf16> y;
    float scale;
    float* absmax;    // raised unless NULL
    uint32_t largest;
    float factor;     // of the unscaled values
    __device__ void begin() {
        largest = 0;
        factor = scale;
    }
    __device__ void unit(float u) { factor = scale * u; }
    __device__ size_t at(int row, int col) const { return (size_t)row * y.ld + col; }
    __device__ size_t ld() const { return y.ld; }
    __device__ uint32_t pack(float a, float b) const { return bf16_pair(a * factor, b * factor); }
    __device__ void store(size_t place, const Packed<8>& rounded) {
        if (absmax) largest = max(largest, largest_bits(rounded));
        store_packed(y.data + place, rounded);
    }
    __device__ void put(size_t place, const Values<8>& v) {
        store(place, Packed<8>{{pack(v.v[0], v.v[1]), pack(v.v[2], v.v[3]), pack(v.v[4], v.v[5]), pack(v.v[6], v.v[7])}});
    }
    __device__ void finish() {
        if (absmax) raise_block_absmax(absmax, largest);
    }
};

struct CodeSink {
    Rows<uint8_t> codes;
    Fmt fmt;
    float scale;
    Quantizer quantizer;
    float per_unit, factor;   // codes of an unscaled value, and of a unit
    __device__ void begin() { factor = per_unit = scale * begin_codes(quantizer, fmt); }
    __device__ void unit(float u) { factor = per_unit * u; }
    __device__ size_t at(int row, int col) const { return (size_t)row * codes.ld + col; }
    __device__ size_t ld() const { return codes.ld; }
    __device__ void put(size_t place, Values<8> v) {
#pragma unroll
        for (int i = 0; i < 8; i++) v.v[i] *= factor;
        *(uint2*)(codes.data + place) = code_octet(v, fmt);
    }
    __device__ void finish() {}
};

// Codes of a format that the kernel is compiled for.
template <Fmt kFmt>
struct CodeSinkOf : CodeSink {
    __device__ void begin() { factor = per_unit = scale * begin_codes(quantizer, kFmt); }
    __device__ void put(size_t place, Values<8> v) const {
#pragma unroll
        for (int i = 0; i < 8; i++) v.v[i] *= factor;
        *(uint2*)(codes.data + place) = code_octet<kFmt>(v);
    }
    __device__ uint32_t pack(float a, float b) const { return code_pair<kFmt>(a * factor, b * factor); }
    __device__ void store(size_t place, const Packed<8>& pairs) const {
        *(uint2*)(codes.data + place) = make_uint2(pairs.pair[0] | pairs.pair[1] << 16, pairs.pair[2] | pairs.pair[3] << 16);
    }
};

// Up to kStackMost matrices one above the other, which a launch takes as the rows of one; each block works on one of them. StackBelow has
// of the second and the third what a sink has of the first.
enum { kStackMost = 3 };
struct StackBelow {
    unsigned first_block[kStackMost - 1];   // ~0: there is no such matrix
    float *absmax[kStackMost - 1], *scale[kStackMost - 1];
    uint8_t* codes[kStackMost - 1];         // where they would start if this matrix's rows were counted from the first's on
};
// A MaxSink or CodeSinkOf, for a stack. A type of its own: what a block has to choose would cost the other kernels registers.
template <typename Sink>
struct StackSink : Sink {
    StackBelow below;
    __device__ void begin() {
#pragma unroll
        for (int i = 0; i < kStackMost - 1; i++) {
            if (blockIdx.x < below.first_block[i]) continue;
            if constexpr (std::is_same_v<Sink, MaxSink>) {
                this->absmax = below.absmax[i];
            } else {
                this->quantizer.absmax = below.absmax[i];
                this->codes.data = below.codes[i];
                if (blockIdx.x == below.first_block[i] && threadIdx.x == 0)
                    *below.scale[i] = quant_scale(*below.absmax[i], this->fmt, this->quantizer.clip);
            }
        }
        Sink::begin();
    }
};

// Any format, chosen at run time. Every product is rounded, as on the CPU.
struct AnySink {
    Mat y;                // data NULL: only the maximum
    float scale;
    float* absmax;        // raised unless NULL: to what is written, or else to the FP32 magnitudes
    Quantizer quantizer;
    float inverse;
    uint32_t largest;

    __device__ void begin() {
        largest = 0;
        inverse = quantizer.absmax ? begin_codes(quantizer, y.fmt) : 1.0f;
    }
    __device__ size_t at(int row, int col) const { return (size_t)row * y.ld + col; }
    __device__ void put_codes(size_t place, const Values<1>& v) { store_code(y.data, place, __fmul_rn(v.v[0], inverse), y.fmt); }
    __device__ void put_codes(size_t place, Values<8> v) {
#pragma unroll
        for (int i = 0; i < 8; i++) v.v[i] = __fmul_rn(v.v[i], inverse);
        *(uint2*)((uint8_t*)y.data + place) = code_octet(v, y.fmt);
    }
    template <int kWidth> __device__ void put(size_t place, Values<kWidth> v) {
#pragma unroll
        for (int i = 0; i < kWidth; i++) v.v[i] = __fmul_rn(v.v[i], scale);
        if (y.data && quantizer.absmax) {
            put_codes(place, v);
        } else if (y.data && y.fmt == BF16) {
            Packed<kWidth> rounded = pack(v);
            store_packed((bf16*)y.data + place, rounded);
            largest = max(largest, largest_bits(rounded));
        } else {
            if (y.data) store_values((float*)y.data + place, v);
#pragma unroll
            for (int i = 0; i < kWidth; i++) largest = max(largest, f32_bits(v.v[i]) & 0x7fffffffu);
        }
    }
    __device__ void finish() {
        if (absmax) raise_block_absmax(absmax, largest);
    }
};

// ================================================================ what launchers are asked for

// One transform: vectors of order n of a matrix, `step` rows between their elements if they are columns.
struct RotateJob {
    Mat y, x;              // y in any format; data NULL: only the maximum
    RotateAxis axis;
    bool transpose;
    int n, step;
    float scale;           // 1 / sqrt(n)
    float* absmax;         // raised unless NULL
    Quantizer quantizer;   // if y is codes
    const Coded* stack;    // along features: the matrices of x, one above the other, each with its own maximum, scale and codes
    int stacked;           // their number, up to kStackMost; 0: x is one matrix
    void* scratch;         // NULL, or along tokens cuda_quantize_tokens_scratch bytes: then nothing is cut into bands
};

static inline AnySink any_sink(const RotateJob& job) {
    AnySink sink = {job.y, job.scale, job.absmax, job.quantizer, 1, 0};
    return sink;
}

// Calls launch(sink) with the sink that the job's output needs; false if the output has no aligned octets, or is F32. INT8, which halo2 is meant
// for, has a sink of its own: a kernel that chooses among all formats jumps over the code of the others at every octet.
template <typename Launch>
static bool with_sink(const RotateJob& job, const Launch& launch) {
    if (!job.y.data) return launch(MaxSink{job.scale, job.absmax, 0, 0, 1});
    if (job.y.fmt == BF16) return is_octets(job.y) && launch(StoreSink{rows_of<bf16>(job.y), job.scale, job.absmax, 0, 1});
    if (job.y.fmt == F32 || job.y.cols % 8 || job.y.ld % 8 || (uintptr_t)job.y.data % 8) return false;
    CodeSink sink = {rows_of<uint8_t>(job.y), job.y.fmt, job.scale, job.quantizer, 1, 1};
    if (sink.fmt == INT8) return launch(CodeSinkOf<INT8>{sink});
    return launch(sink);
}

// The same with a sink of pairs, for a kernel that is compiled for every format of codes: those that with_sink leaves to run time.
template <typename Launch>
static bool with_pair_sink(const RotateJob& job, const Launch& launch) {
    return with_sink(job, [&](auto sink) {
        if constexpr (std::is_same_v<decltype(sink), CodeSink>)
            return with_code_fmt(sink.fmt, [&](auto fmt) { return launch(CodeSinkOf<decltype(fmt)::value>{sink}); });
        else return launch(sink);
    });
}

// The same for a launch whose blocks take this many rows each, along features: for a stack too, if each block has rows of one matrix.
template <typename Launch>
static bool with_stack_sink(const RotateJob& job, int rows_a_block, const Launch& launch) {
    if (job.stacked < 2) return with_pair_sink(job, launch);
    StackBelow below = {{~0u, ~0u}, {}, {}, {}};
    for (int i = 1, row = 0; i < job.stacked; i++) {
        const Coded& m = job.stack[i];
        row += job.stack[i - 1].x.rows;
        if (row % rows_a_block) return false;
        below.first_block[i - 1] = (unsigned)(row / rows_a_block);
        below.absmax[i - 1] = m.absmax;
        below.scale[i - 1] = m.q.scale;
        if (job.y.data) below.codes[i - 1] = (uint8_t*)m.q.codes.data - (size_t)row * job.y.ld;
    }
    return with_pair_sink(job, [&](auto sink) {
        if constexpr (std::is_same_v<decltype(sink), StoreSink>) return false;
        else return launch(StackSink<decltype(sink)>{sink, below});
    });
}

#endif
