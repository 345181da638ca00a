// The CPU product: pack both sides as FP32 panels, multiply them tile by tile, add chunks of K in double.
//
//   panels   kMr rows of A (kNr of B), interleaved: panel[k * kMr + i]. Packing undoes formats, leading dimensions and
//            transposition, so that the kernel knows one layout; rows missing at the edge are zero.
//   kernel   one kMr x kNr block of FP32 sums over one chunk of K, held in registers: a broadcast of A times a row of B
//   tile     up to kTileRows x kTileCols of C as doubles, to which the chunks are added; one thread's work at a time
//
// Two sides of INT8 codes without scales per block are summed as integers (gemm_int8.h): no chunks, no doubles, the same sums.
//
// Precision: a chunk is kChunk = 256 long, so FP32 rounding does not grow with K, and sums of INT8 products are exact:
// 256 * 128 * 128 < 2^24 within a chunk, and doubles hold every integer below 2^53 beyond it.
// Determinism: an element's sum depends on K and the chunk alone, never on tiles or threads.
#include "gemm.h"

#include "gemm_int8.h"

enum {
    kNrVecs = 2,
    kMr = kVecRegisters / kNrVecs - 2,   // the block of sums leaves registers for a row of B and a broadcast of A
    kNr = kLanes * kNrVecs,
    kChunk = 256,
    kBlock = 32,                 // PER_BLOCK32
    kPackStrip = 64,
    kTileRows = 8 * kMr,
    kTileCols = 256,
    kPackedFloats = 1 << 24,     // a side is packed up to 64 MiB (but at least one tile)
    kSmallProduct = 1 << 15      // fewer multiplications than this are not worth waking threads for
};

typedef struct {
    Side side;
    int rows, K;
    int panel_rows;              // kMr or kNr
    float code_value[256];       // what each code stands for
} Operand;

static Operand operand(Side s, int panel_rows) {
    Operand o;
    o.side = s;
    o.rows = s.transposed ? s.m.cols : s.m.rows;
    o.K = s.transposed ? s.m.rows : s.m.cols;
    o.panel_rows = panel_rows;
    check((unsigned)s.m.fmt < kFmtCount && s.m.ld >= s.m.cols, "gemm: a side in %s, (%d, %d) with rows of %d",
          fmt_name(s.m.fmt), s.m.rows, s.m.cols, s.m.ld);
    check(!s.transposed || fmt_bytes(s.m.fmt) > 1, "gemm: a transposed side in %s", fmt_name(s.m.fmt));
    check(s.gran == NO_SCALE ? s.factor != 0 : s.scale && s.factor == 1, "gemm: a scaled side without scales, or a factor of %g", s.factor);
    check(!s.scale_transposed || s.gran != PER_ROW, "gemm: scales along K");
    if (fmt_bytes(s.m.fmt) == 1)
        for (int code = 0; code < 256; code++) o.code_value[code] = f32_from_code((uint8_t)code, s.m.fmt);
    return o;
}

// ---- packing
static void decode(float* out, const Operand* o, int row, int k, int n) {
    Mat m = o->side.m;
    const char* from = (const char*)row_data(m, row) + (size_t)k * fmt_bytes(m.fmt);
    if (fmt_bytes(m.fmt) > 1) {
        values_read(out, from, (size_t)n, m.fmt);
    } else {
        for (int j = 0; j < n; j++) out[j] = o->code_value[(uint8_t)from[j]];
    }
}

// `width` is kMr or kNr, written out by the callers so that the inner loops have a constant length.
static inline void pack_panel(float* panel, const Operand* o, int first, int width) {
    int rows = min_int(width, o->rows - first), K = o->K;
    if (o->side.transposed) {
        for (int k = 0; k < K; k++, panel += width) {
            float* to = panel;
            const char* from = (const char*)row_data(o->side.m, k) + (size_t)first * fmt_bytes(o->side.m.fmt);
            if (rows < width) {
                memset(to, 0, (size_t)width * sizeof(float));
                values_read(to, from, (size_t)rows, o->side.m.fmt);
            } else if (o->side.m.fmt == F32) {
                memcpy(to, from, (size_t)width * sizeof(float));
            } else {
                values_read(to, from, (size_t)width, BF16);
            }
        }
        return;
    }
    float strip[(int)kNr > (int)kMr ? kNr : kMr][kPackStrip];   // a strip of rows in the first cache, read there by columns
    for (int i = rows; i < width; i++) memset(strip[i], 0, sizeof strip[i]);
    for (int k0 = 0; k0 < K; k0 += kPackStrip) {
        int n = min_int(kPackStrip, K - k0);
        for (int i = 0; i < rows; i++) decode(strip[i], o, first + i, k0, n);
        for (int k = 0; k < n; k++, panel += width)
            for (int i = 0; i < width; i++) panel[i] = strip[i][k];
    }
}

static void pack(float* packed, const Operand* o, int first, int rows) {
    int panels = ceil_div(rows, o->panel_rows);
#pragma omp parallel for schedule(static) if ((size_t)rows * o->K > kSmallProduct)
    for (int p = 0; p < panels; p++) {
        float* panel = packed + (size_t)p * o->panel_rows * o->K;
        int row = first + p * o->panel_rows;
        if (o->panel_rows == kMr) pack_panel(panel, o, row, kMr);
        else pack_panel(panel, o, row, kNr);
    }
}

// ---- the kernel: block (kMr, kNr) = sum over `length` of a's column times b's row
static void kernel(float* block, const float* a, const float* b, int length) {
    Vec sum[kMr][kNrVecs];
    memset(sum, 0, sizeof sum);
    for (int k = 0; k < length; k++, a += kMr, b += kNr) {
        Vec row[kNrVecs];
        for (int v = 0; v < kNrVecs; v++) row[v] = *(const Vec*)(b + v * kLanes);
#pragma GCC unroll 16
        for (int i = 0; i < kMr; i++) {
            Vec from_a = broadcast(a[i]);
            for (int v = 0; v < kNrVecs; v++) sum[i][v] = fused(from_a, row[v], sum[i][v]);
        }
    }
    memcpy(block, sum, sizeof sum);
}

// ---- scales
static float final_scale(const Operand* o, int row) {
    switch (o->side.gran) {
        case PER_TENSOR: return o->side.scale[0];
        case PER_ROW: return o->side.scale[row];
        default: return o->side.factor;
    }
}
static float block_scale(const Operand* o, int row, int k) {
    if (o->side.gran != PER_BLOCK32) return 1.0f;
    int i = row / kBlock, j = k / kBlock;
    return o->side.scale_transposed ? o->side.scale[(size_t)j * ceil_div(o->rows, kBlock) + i]
                                    : o->side.scale[(size_t)i * ceil_div(o->K, kBlock) + j];
}

// ---- a tile of C
typedef struct {
    int row, col, rows, cols;
} Tile;

// sums (kTileRows, kTileCols) in double: a and b point at the tile's first panels.
static void tile_sums(double* sums, const Operand* A, const Operand* B, const float* a, const float* b, Tile t) {
    bool blocks = A->side.gran == PER_BLOCK32 || B->side.gran == PER_BLOCK32;
    int K = A->K, chunk = blocks ? kBlock : kChunk;
    for (int k = 0; k < K; k += chunk) {
        int length = min_int(chunk, K - k);
        for (int j = 0; j < t.cols; j += kNr) {
            for (int i = 0; i < t.rows; i += kMr) {
                __attribute__((aligned(64))) float block[kMr * kNr];
                kernel(block, a + (size_t)i * K + (size_t)k * kMr, b + (size_t)j * K + (size_t)k * kNr, length);
                int rows = min_int(kMr, t.rows - i), cols = min_int(kNr, t.cols - j);
                for (int r = 0; r < rows; r++) {
                    double* sum = sums + (size_t)(i + r) * kTileCols + j;
                    const float* part = block + r * kNr;
                    if (blocks) {
                        float sa = block_scale(A, t.row + i + r, k);
                        if (k == 0) memset(sum, 0, (size_t)kNr * sizeof(double));
                        for (int l = 0; l < cols; l++) sum[l] += (double)part[l] * sa * block_scale(B, t.col + j + l, k);
                    } else if (k == 0) {
                        for (int l = 0; l < kNr; l++) sum[l] = (double)part[l];
                    } else {
                        for (int l = 0; l < kNr; l++) sum[l] += (double)part[l];
                    }
                }
            }
        }
    }
}

// sums (kTileRows, kTileCols): int32_t with `integers`, else double
static void tile_store(Mat c, const void* sums, bool integers, const Operand* A, const Operand* B, float beta, Tile t) {
    float b_scale[kTileCols], out[kTileCols], before[kTileCols];
    for (int j = 0; j < t.cols; j++) b_scale[j] = final_scale(B, t.col + j);
    for (int i = 0; i < t.rows; i++) {
        char* to = (char*)row_data(c, t.row + i) + (size_t)t.col * fmt_bytes(c.fmt);
        float a_scale = final_scale(A, t.row + i);
        if (integers) {
            const int32_t* sum = (const int32_t*)sums + (size_t)i * kTileCols;
            for (int j = 0; j < t.cols; j++) out[j] = ((float)sum[j] * a_scale) * b_scale[j];
        } else {
            const double* sum = (const double*)sums + (size_t)i * kTileCols;
            for (int j = 0; j < t.cols; j++) out[j] = ((float)sum[j] * a_scale) * b_scale[j];
        }
        if (beta != 0.0f) {
            values_read(before, to, (size_t)t.cols, c.fmt);
            for (int j = 0; j < t.cols; j++) out[j] += beta * before[j];
        }
        values_write(to, out, (size_t)t.cols, c.fmt);
    }
}

// c's rows [row, row + rows) and columns [col, col + cols), both sides packed.
static void multiply_packed(Mat c, const Operand* A, const Operand* B, const float* a, const float* b, float beta,
                            Tile packed) {
    static __thread WorkBuffer work;
    int across = ceil_div(packed.cols, kTileCols), tiles = ceil_div(packed.rows, kTileRows) * across;
#pragma omp parallel for schedule(dynamic) if ((double)packed.rows * packed.cols * A->K > kSmallProduct)
    for (int n = 0; n < tiles; n++) {
        double* sums = (double*)work_bytes(&work, (size_t)kTileRows * kTileCols * sizeof(double));
        int i = n / across * kTileRows, j = n % across * kTileCols;
        Tile t = {packed.row + i, packed.col + j, min_int(kTileRows, packed.rows - i), min_int(kTileCols, packed.cols - j)};
        tile_sums(sums, A, B, a + (size_t)i * A->K, b + (size_t)j * B->K, t);
        tile_store(c, sums, false, A, B, beta, t);
    }
}

// ---- the product of INT8 codes
static bool takes_integers(const Operand* o) {
    return o->side.m.fmt == INT8 && o->side.gran != PER_BLOCK32 && o->K <= kInt8Longest;
}

// block (kMr, kNrVecs) = start (kNrVecs) + sum over words of a's column times b's row; B's panel has its starts in front.
static void int8_kernel(IntVec* block, const uint32_t* a, const IntVec* b, int words) {
    const IntVec zero = {0};
    IntVec sum[kMr][kNrVecs];
    for (int i = 0; i < kMr; i++)
        for (int v = 0; v < kNrVecs; v++) sum[i][v] = b[v];
    b += kNrVecs;
    for (int w = 0; w < words; w++, a += kMr, b += kNrVecs) {
#pragma GCC unroll 16
        for (int i = 0; i < kMr; i++) {
            IntVec from_a = zero + (int32_t)a[i];
            for (int v = 0; v < kNrVecs; v++) sum[i][v] = multiply_words(sum[i][v], from_a, b[v]);
        }
    }
    memcpy(block, sum, sizeof sum);
}

static size_t int8_panel_words(const Operand* o) {
    return (size_t)o->panel_rows * (size_t)(int8_words(o->K) + (o->panel_rows == kNr ? 1 : 0));
}

static void int8_pack(uint32_t* packed, const Operand* o, int first, int rows) {
    bool of_a = o->panel_rows == kMr;
    int panels = ceil_div(rows, o->panel_rows);
#pragma omp parallel for schedule(static) if ((size_t)rows * o->K > kSmallProduct)
    for (int p = 0; p < panels; p++) {
        uint32_t* panel = packed + (size_t)p * int8_panel_words(o);
        int row = first + p * o->panel_rows, count = min_int(o->panel_rows, o->rows - row);
        const int8_t* codes = (const int8_t*)row_data(o->side.m, row);
        size_t ld = (size_t)o->side.m.ld;
        if (of_a) {
            int8_pack_panel(panel, codes, ld, count, kMr, o->K, true);
        } else {
            for (int i = 0; i < kNr; i++) panel[i] = i < count ? (uint32_t)int8_start(codes + (size_t)i * ld, o->K) : 0;
            int8_pack_panel(panel + kNr, codes, ld, count, kNr, o->K, false);
        }
    }
}

static void int8_tile_sums(int32_t* sums, const uint32_t* a, const uint32_t* b, int words, size_t a_panel, size_t b_panel, Tile t) {
    for (int j = 0; j < t.cols; j += kNr, b += b_panel) {
        const uint32_t* from_a = a;
        for (int i = 0; i < t.rows; i += kMr, from_a += a_panel) {
            IntVec block[kMr * kNrVecs];
            int8_kernel(block, from_a, (const IntVec*)b, words);
            for (int r = 0; r < kMr; r++)
                memcpy(sums + (size_t)(i + r) * kTileCols + j, block + r * kNrVecs, (size_t)kNr * sizeof(int32_t));
        }
    }
}

static void int8_multiply_packed(Mat c, const Operand* A, const Operand* B, const uint32_t* a, const uint32_t* b, float beta,
                                 Tile packed) {
    static __thread WorkBuffer work;
    int across = ceil_div(packed.cols, kTileCols), tiles = ceil_div(packed.rows, kTileRows) * across;
    size_t a_panel = int8_panel_words(A), b_panel = int8_panel_words(B);
#pragma omp parallel for schedule(dynamic) if ((double)packed.rows * packed.cols * A->K > kSmallProduct)
    for (int n = 0; n < tiles; n++) {
        int32_t* sums = (int32_t*)work_bytes(&work, (size_t)kTileRows * kTileCols * sizeof(int32_t));
        int i = n / across * kTileRows, j = n % across * kTileCols;
        Tile t = {packed.row + i, packed.col + j, min_int(kTileRows, packed.rows - i), min_int(kTileCols, packed.cols - j)};
        int8_tile_sums(sums, a + (size_t)(i / kMr) * a_panel, b + (size_t)(j / kNr) * b_panel, int8_words(A->K), a_panel, b_panel, t);
        tile_store(c, sums, true, A, B, beta, t);
    }
}

// Rows packed at once: a multiple of the tile.
static int packed_rows(const Operand* o, int tile) {
    return (int)(max_int(kPackedFloats / o->K / tile, 1) * tile);
}

void cpu_gemm(Mat c, Side a, Side b, float beta) {
    static __thread WorkBuffer packed_a, packed_b;
    Operand A = operand(a, kMr), B = operand(b, kNr);
    check(A.K == B.K && A.rows == c.rows && B.rows == c.cols && A.K > 0, "gemm: (%d, %d) = (%d, %d) (%d, %d)^T", c.rows,
          c.cols, A.rows, A.K, B.rows, B.K);
    check_shape(c, c.rows, c.cols, "gemm");
    int a_rows = min_int(packed_rows(&A, kTileRows), (int)round_up((size_t)A.rows, kMr));
    int b_rows = min_int(packed_rows(&B, kTileCols), (int)round_up((size_t)B.rows, kNr));
    bool integers = takes_integers(&A) && takes_integers(&B);
    // One float of memory per value, K + 1 per row: also enough for a row of INT8 words with its start, even where K is 1.
    float* a_panels = work_floats(&packed_a, (size_t)a_rows * (size_t)(A.K + 1));
    float* b_panels = work_floats(&packed_b, (size_t)b_rows * (size_t)(B.K + 1));
    for (int col = 0; col < c.cols; col += b_rows) {
        Tile packed = {0, col, 0, min_int(b_rows, c.cols - col)};
        if (integers) int8_pack((uint32_t*)b_panels, &B, col, packed.cols);
        else pack(b_panels, &B, col, packed.cols);
        for (int row = 0; row < c.rows; row += a_rows) {
            packed.row = row;
            packed.rows = min_int(a_rows, c.rows - row);
            if (integers) {
                int8_pack((uint32_t*)a_panels, &A, row, packed.rows);
                int8_multiply_packed(c, &A, &B, (const uint32_t*)a_panels, (const uint32_t*)b_panels, beta, packed);
            } else {
                pack(a_panels, &A, row, packed.rows);
                multiply_packed(c, &A, &B, a_panels, b_panels, beta, packed);
            }
        }
    }
}
