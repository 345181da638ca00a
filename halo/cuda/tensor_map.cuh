// Descriptors of tensors that TMA fetches from (Hopper and later): (planes, rows, columns) of codes or bf16, in boxes of some rows by 128
// bytes, in the 128-byte swizzle that wgmma reads. Values outside of the tensor read as zero.
#ifndef HALO_CUDA_TENSOR_MAP_CUH
#define HALO_CUDA_TENSOR_MAP_CUH

#include "ptx.cuh"

// `row_bytes` and `plane_bytes` from one row and plane to the next, multiples of 16; fmt BF16 or one byte a value.
static inline CUtensorMap tensor_map(const void* data, Fmt fmt, int columns, int rows, int planes, size_t row_bytes, size_t plane_bytes,
                                     int box_rows) {
#ifdef HALO_SIMT
    check((uintptr_t)data % 16 == 0 && row_bytes % 16 == 0 && plane_bytes % 16 == 0, "tensor_map: rows that do not start at 16 bytes");
    return CUtensorMap{(const char*)data, columns, rows, planes, box_rows, (int)fmt_bytes(fmt), row_bytes, plane_bytes};
#else
    static decltype(&cuTensorMapEncodeTiled) encode;   // looked up at run time, since the program does not link the driver's library
    if (!encode) {
        cudaDriverEntryPointQueryResult found;
        cuda_ok(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void**)&encode, 12000, cudaEnableDefault, &found),
                "cuTensorMapEncodeTiled");
        check(found == cudaDriverEntryPointSuccess && encode, "CUDA: the driver has no cuTensorMapEncodeTiled");
    }
    CUtensorMap map;
    unsigned dimensions = planes > 1 || plane_bytes ? 3 : 2;
    cuuint64_t size[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)planes}, stride[2] = {row_bytes, plane_bytes};
    cuuint32_t box[3] = {(cuuint32_t)(128 / fmt_bytes(fmt)), (cuuint32_t)box_rows, 1}, step[3] = {1, 1, 1};
    CUresult status = encode(&map, fmt == BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_UINT8, dimensions, (void*)data,
                             size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    check(status == CUDA_SUCCESS, "no tensor map of (%d, %d, %d) in %s with rows of %zu bytes: error %d", planes, rows, columns, fmt_name(fmt),
          row_bytes, (int)status);
    return map;
#endif
}

#endif
