// The safetensors format: one file of named tensors.
//
//   8 bytes     N, the size of the header, little-endian
//   N bytes     JSON: {"name": {"dtype": "BF16", "shape": [rows, cols], "data_offsets": [begin, end]}, ...,
//                      "__metadata__": {string: string}}; offsets count from the end of the header
//   the rest    the tensors' bytes, little-endian, row-major, without gaps
//
// Reading maps the file: no second copy in memory. Whatever the header claims is checked before anything is used, so the
// rest of the program may trust each Tensor; a violation is a user_error that names the file and the tensor or byte.
// Source: https://huggingface.co/docs/safetensors (its 100 MB limit for the header is kept here).
#ifndef DATA_SAFETENSORS_H
#define DATA_SAFETENSORS_H

#include "../halo/numfmt.h"
#include "files.h"

typedef enum {
    ST_F32, ST_F16, ST_BF16, ST_F64, ST_F8_E4M3, ST_F8_E5M2,
    ST_BOOL, ST_U8, ST_I8, ST_U16, ST_I16, ST_U32, ST_I32, ST_U64, ST_I64,
    kDtypeCount
} Dtype;

C_API const char* dtype_name(Dtype dtype);
C_API size_t dtype_bytes(Dtype dtype);
C_API Dtype dtype_of(Fmt fmt);   // how F32 and BF16 are stored

enum { kMaxRank = 8 };

typedef struct {
    const char* name;
    Dtype dtype;
    int rank;
    size_t shape[kMaxRank];
    size_t elements, bytes;
    const unsigned char* data;   // in the mapped file; not aligned
} Tensor;

typedef struct SafeTensors SafeTensors;

C_API SafeTensors* safetensors_open(const char* path);
C_API void safetensors_close(SafeTensors* file);   // its Tensors end with it
C_API const char* safetensors_path(const SafeTensors* file);
// Tensors in the order of their names.
C_API int safetensors_count(const SafeTensors* file);
C_API const Tensor* safetensors_at(const SafeTensors* file, int index);
C_API const Tensor* safetensors_find(const SafeTensors* file, const char* name);   // NULL if there is none

// Elements [first, first + count) as F32 or BF16. Equal formats are copied bit for bit, all others are converted to F32 and
// rounded to nearest even. F64 and integers may lose precision; dtypes that cannot be read as floats are a user_error.
C_API void tensor_read(const Tensor* tensor, size_t first, size_t count, Fmt fmt, void* dst);
// Elements of an I32 or I64 tensor; a value beyond int is a user_error.
C_API void tensor_read_ints(const Tensor* tensor, size_t first, size_t count, int* dst);
// The index of the first NaN or infinity among `count` F32 or BF16 values, or `count` if all are finite.
C_API size_t first_not_finite(const void* values, size_t count, Fmt fmt);
// "[128, 64]" for messages. The result lives until the fourth call after this one.
C_API const char* shape_text(const Tensor* tensor);

// IEEE binary16, exactly.
static inline float f32_from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 0x1fu, mantissa = half & 0x3ffu;
    uint32_t subnormal = f32_bits((float)mantissa * 0x1p-24f);
    uint32_t normal = (exponent + 112) << 23 | mantissa << 13;
    uint32_t special = 0x7f800000u | mantissa << 13;
    return f32_from_bits(sign | (exponent == 0 ? subnormal : exponent == 31 ? special : normal));
}

// ---- writing, front to back: a new file that holds the header of `tensors` (name, dtype, rank and shape are read) with the
// metadata {"format": "pt"}, which transformers insists on. The caller appends the tensors' bytes in the same order, by any
// number of calls of out_write, and closes the file (out_close).
C_API OutFile safetensors_create(const char* path, const Tensor* tensors, int count);

#endif
