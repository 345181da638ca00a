// Sinks take rotated values: into a matrix, into codes, or only into their maximum. A kernel gives its sink octets (or single values) of
// the rotated matrix, in FP32 and not yet scaled by 1 / sqrt(n):
//   begin()               once a thread, before its first value
//   at(row, col), ld()    the place of a value, as its number in the output, and the distance from row to row
//   unit(u)               from now on values come in units of u: times u they are right (u is 1 at first)
//   put(place, v)         takes v, the values from this place on
//   finish()              once a thread, at the end; all threads of the block must call it
#ifndef HALO_CUDA_ROTATE_SINKS_CUH
#define HALO_CUDA_ROTATE_SINKS_CUH

#include "../codes.cuh"

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
    __device__ void put(size_t place, Values<8> v) {
#pragma unroll
        for (int i = 0; i < 8; i++) v.v[i] *= factor;
        Packed<8> rounded = pack(v);
        if (absmax) largest = max(largest, largest_bits(rounded));
        store_packed(y.data + place, rounded);
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
};

static inline AnySink any_sink(const RotateJob& job) {
    AnySink sink = {job.y, job.scale, job.absmax, job.quantizer, 1, 0};
    return sink;
}

// Calls launch(sink) with the sink that the job's output needs; false if the output has no aligned octets, or is F32.
template <typename Launch>
static bool with_sink(const RotateJob& job, const Launch& launch) {
    if (!job.y.data) return launch(MaxSink{job.scale, job.absmax, 0, 0, 1});
    if (job.y.fmt == BF16) return is_octets(job.y) && launch(StoreSink{rows_of<bf16>(job.y), job.scale, job.absmax, 0, 1});
    if (job.y.fmt == F32 || job.y.cols % 8 || job.y.ld % 8 || (uintptr_t)job.y.data % 8) return false;
    return launch(CodeSink{rows_of<uint8_t>(job.y), job.y.fmt, job.scale, job.quantizer, 1, 1});
}

#endif
