// The GGUF format, versions 2 and 3 (little-endian): one file of metadata and named tensors, as llama.cpp stores models.
//
//   4 bytes     "GGUF"
//   4 + 8 + 8   version, number of tensors, number of metadata pairs
//   pairs       key (string), type (u32), value; a string is a u64 length and bytes, an array an element type (u32), a u64
//               count and the elements
//   tensors     name (string), dimensions (u32), their sizes (u64 each, the row length first), type (u32), offset (u64)
//   padding     to a multiple of general.alignment (32 where the key is absent)
//   the rest    the tensors' bytes in the order of the list, each padded to the alignment
//
// Metadata is read into memory when the file is opened, tensors row by row on demand (by pread, so that a file that shrinks
// meanwhile gives an error message instead of a signal). All that the header claims is checked when the file is opened; a
// violation is a user_error that names the file and the byte. Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
#ifndef DATA_GGUF_H
#define DATA_GGUF_H

#include "../halo/base.h"

// Types of metadata, with the numbers that the file uses.
typedef enum {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_U64,
    GGUF_I64, GGUF_F64, kGgufKinds
} GgufKind;

typedef struct {
    char* text;     // followed by a NUL that bytes does not count
    size_t bytes;
} GgufString;

typedef struct {
    char* key;
    GgufKind kind;        // of the value; of the elements if it is an array
    bool array;
    size_t count;         // elements; 1 unless it is an array
    size_t at;            // where the value begins in the file
    void* numbers;        // (count) as the file stores them; NULL for strings
    GgufString* strings;  // (count) if the kind is GGUF_STRING
} GgufValue;

// How a tensor is stored: the types that can be read, with the numbers that the file uses.
typedef enum {
    GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q4_1 = 3, GGML_Q5_0 = 6, GGML_Q5_1 = 7, GGML_Q8_0 = 8, GGML_Q4_K = 12,
    GGML_Q5_K = 13, GGML_Q6_K = 14, GGML_BF16 = 30, kGgmlTypes
} GgmlType;

// NULL if the type cannot be read.
C_API const char* ggml_type_name(int type);
// A row is stored in blocks: how many values, and how many bytes, one block has.
C_API int ggml_block_values(GgmlType type);
C_API int ggml_block_bytes(GgmlType type);
// `count` values (a multiple of a block's) from their stored bytes, with llama.cpp's arithmetic in single precision: the same
// bits.
C_API void ggml_dequantize(GgmlType type, const unsigned char* src, size_t count, float* dst);

typedef struct {
    char* name;
    GgmlType type;
    size_t rows, cols;          // a vector is one row; further dimensions are counted as rows
    int rank;
    size_t row_bytes, bytes;
    size_t at;                  // where the data begins in the file
} GgufTensor;

typedef struct Gguf Gguf;

C_API Gguf* gguf_open(const char* path);
C_API void gguf_close(Gguf* g);
C_API const char* gguf_path(const Gguf* g);

C_API int gguf_value_count(const Gguf* g);
C_API const GgufValue* gguf_value_at(const Gguf* g, int index);            // in the order of the keys
C_API const GgufValue* gguf_find(const Gguf* g, const char* key);          // NULL if there is none

// Single values. A value that is absent (unless a fallback is given), of another type or out of range is a user_error that names
// the key.
C_API int gguf_int(const Gguf* g, const char* key, int low, int high);
C_API int gguf_int_or(const Gguf* g, const char* key, int low, int high, int fallback);
C_API double gguf_number(const Gguf* g, const char* key);
C_API double gguf_number_or(const Gguf* g, const char* key, double fallback);
C_API bool gguf_bool_or(const Gguf* g, const char* key, bool fallback);
C_API const char* gguf_string_or(const Gguf* g, const char* key, const char* fallback);   // valid UTF-8 without NUL
// An array whose elements are of one kind; NULL if it is absent.
C_API const GgufValue* gguf_array(const Gguf* g, const char* key, GgufKind kind);

C_API int gguf_tensor_count(const Gguf* g);
C_API const GgufTensor* gguf_tensor_at(const Gguf* g, int index);          // in the order of the names
C_API const GgufTensor* gguf_tensor(const Gguf* g, const char* name);      // NULL if there is none
// Rows [first, first + rows) as floats, (rows, cols).
C_API void gguf_rows(const Gguf* g, const GgufTensor* tensor, size_t first, size_t rows, float* dst);

#endif
