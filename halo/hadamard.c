// Hadamard matrices: their construction from number theory, and the transform.
//
// Two constructions give every base order but 1:
//   Paley I      K0 = q + 1, q = 3 mod 4 prime: quadratic residues
//   Williamson   K0 = 4 m: four symmetric circulants of order m with A^2 + B^2 + C^2 + D^2 = 4m I; their first rows are data
// The transform works on tiles of kLanes vectors side by side, element i of all of them in one cache line: every step is the
// same operation on kLanes neighbours, and rows and columns differ only in how a tile is read and written.
#include "hadamard.h"

#include <math.h>
#include <pthread.h>

#include "transpose.h"

// ---- orders

int hadamard_base_order(int n) {
    for (int b = 0; b < kHadamardBaseCount; b++) {
        int runs = kHadamardBases[b];
        if (n > 0 && n % runs == 0 && (n / runs & (n / runs - 1)) == 0) return runs;
    }
    return 0;
}

bool hadamard_supported(int n) { return hadamard_base_order(n) != 0; }

int hadamard_round_up(int n) {
    check(n >= 1 && n <= 1 << 30, "hadamard_round_up: order %d is outside [1, 2^30]", n);
    int best = 1 << 30;
    for (int b = 0; b < kHadamardBaseCount; b++) {
        int64_t order = kHadamardBases[b];
        while (order < n) order *= 2;
        if (order < best) best = (int)order;
    }
    return best;
}

// ---- Paley's first construction (1933): with Q[i][j] = chi(i - j), chi the quadratic character mod q,
//         |  1   1...1 |
//     H = | -1         |   + I on the lower right.
//         | ..     Q   |
static void paley_one(int8_t* h, int K0) {
    int q = K0 - 1;
    int8_t* chi = (int8_t*)host_alloc((size_t)q);
    for (int i = 1; i < q; i++) chi[i] = -1;
    for (int i = 1; i < q; i++) chi[i * i % q] = 1;
    for (int j = 0; j < K0; j++) h[j] = 1;
    for (int i = 0; i < q; i++) {
        int8_t* row = h + (size_t)(i + 1) * K0;
        row[0] = -1;
        for (int j = 0; j < q; j++) row[1 + j] = i == j ? 1 : chi[(i - j + q) % q];
    }
    free(chi);
}

// ---- Williamson's construction (1944):
//     |  A  B  C  D |
//     | -B  A -D  C |
//     | -C  D  A -B |
//     | -D -C  B  A |
typedef struct {
    int m;                  // K0 = 4 m
    const char* first[4];   // elements 0 ... (m-1)/2 of the first rows of A, B, C, D; element m - j repeats element j
} Williamson;

static const Williamson kWilliamson[] = {
    {7, {"+-++", "--++", "++-+", "++-+"}},
    {9, {"+-+++", "--+++", "+-++-", "+-++-"}},
    {13, {"++--+++", "-+--+++", "+---+-+", "+---+-+"}},
    {25, {"++--+-+---+++", "-+--+-+---+++", "+-----+-++--+", "+-----+-++--+"}},
    {39, {"+---+---+-++-++----+", "+-++------++--+-+-++", "++--+++-+--++-+-----", "+---+--++++----+-+-+"}},
    {43, {"+---++--++++-+-+++-++-", "++---++++-+--+--++----", "+++-+-++--+-+-++++-+--", "++-++++++----+-+--++-+"}},
};

static void williamson(int8_t* h, const Williamson* w) {
    static const int circulant[4][4] = {{0, 1, 2, 3}, {1, 0, 3, 2}, {2, 3, 0, 1}, {3, 2, 1, 0}};
    static const int sign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};
    int m = w->m, K0 = 4 * m;
    for (int i = 0; i < K0; i++) {
        for (int j = 0; j < K0; j++) {
            int row_block = i / m, col_block = j / m, distance = abs(i % m - j % m);
            const char* first = w->first[circulant[row_block][col_block]];
            bool plus = first[min_int(distance, m - distance)] == '+';
            h[(size_t)i * K0 + j] = (int8_t)((plus ? 1 : -1) * sign[row_block][col_block]);
        }
    }
}

// ---- all bases, built once
static int8_t* bases[kHadamardBaseCount];

static void build_bases(void) {
    for (int b = 0; b < kHadamardBaseCount; b++) {
        int K0 = kHadamardBases[b];
        int8_t* h = (int8_t*)host_alloc((size_t)K0 * K0);
        const Williamson* found = NULL;
        for (size_t i = 0; i < sizeof kWilliamson / sizeof *kWilliamson; i++)
            if (4 * kWilliamson[i].m == K0) found = &kWilliamson[i];
        if (K0 == 1) h[0] = 1;
        else if (found) williamson(h, found);
        else paley_one(h, K0);
        bases[b] = h;
    }
}

const int8_t* hadamard_base(int K0) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    check(pthread_once(&once, build_bases) == 0, "hadamard_base: pthread_once failed");
    for (int b = 0; b < kHadamardBaseCount; b++)
        if (kHadamardBases[b] == K0) return bases[b];
    die("hadamard_base: %d is no base order", K0);
}

// ---- the transform of one tile (n): Lanes, a vector type of GCC and Clang, holds element i of kLanes vectors
enum { kLanes = kSquare, kInRegisters = 8 };
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(16)));

// Butterflies of stride 1, 2, 4, ... count/2 among `count` elements that are `apart` from each other, in registers.
static inline __attribute__((always_inline)) void butterflies(Lanes* v, int count, int apart) {
    Lanes x[kInRegisters];
    for (int i = 0; i < count; i++) x[i] = v[i * apart];
    for (int stride = 1; stride < count; stride *= 2)
        for (int i = 0; i < count; i++) {
            if (i & stride) continue;
            Lanes a = x[i] + x[i + stride], b = x[i] - x[i + stride];
            x[i] = a;
            x[i + stride] = b;
        }
    for (int i = 0; i < count; i++) v[i * apart] = x[i];
}

// Butterflies of stride 1, 2, 4, ... n/2. Three strides are taken in one pass over memory, and eighths that fit a cache are
// finished before they are combined; neither changes an operation or its order for any value.
static void sylvester(Lanes* v, int n) {
    switch (n) {
        case 1: return;
        case 2: butterflies(v, 2, 1); return;
        case 4: butterflies(v, 4, 1); return;
        case 8: butterflies(v, 8, 1); return;
    }
    int eighth = n / 8;
    for (int q = 0; q < 8; q++) sylvester(v + q * eighth, eighth);
    for (int i = 0; i < eighth; i++) butterflies(v + i, 8, eighth);
}

// y_i = sum_j signs[i][j] v_j over K0 runs of `run` elements each; column: scratch (K0). Four sums at a time (4 divides every
// K0 > 1) keep the arithmetic units busy. A product with +-1 is exact, so a fused multiply-add gives the bits of an addition.
static void across(Lanes* v, Lanes* column, const float* signs, int K0, int run) {
    for (int r = 0; r < run; r++) {
        for (int j = 0; j < K0; j++) column[j] = v[j * run + r];
        for (int i = 0; i < K0; i += 4) {
            const float* sign = signs + i * K0;
            Lanes y0 = {0}, y1 = {0}, y2 = {0}, y3 = {0};
            for (int j = 0; j < K0; j++) {
                y0 += sign[j] * column[j];
                y1 += sign[K0 + j] * column[j];
                y2 += sign[2 * K0 + j] * column[j];
                y3 += sign[3 * K0 + j] * column[j];
            }
            v[i * run + r] = y0;
            v[(i + 1) * run + r] = y1;
            v[(i + 2) * run + r] = y2;
            v[(i + 3) * run + r] = y3;
        }
    }
}

// A transform of one order and direction: what is the same for all tiles.
typedef struct {
    int n, K0;
    float* signs;   // (K0, K0): row i has the weights of the inputs of output i
    float scale;
} Transform;

static Transform transform_begin(int n, bool transpose) {
    int K0 = hadamard_base_order(n);
    check(K0, "hadamard: order %d is not supported", n);
    const int8_t* base = hadamard_base(K0);
    Transform t = {n, K0, (float*)host_alloc((size_t)K0 * K0 * sizeof(float)), (float)(1 / sqrt((double)n))};
    for (int i = 0; i < K0; i++)
        for (int j = 0; j < K0; j++) t.signs[i * K0 + j] = base[transpose ? j * K0 + i : i * K0 + j];
    return t;
}

static void transform_end(Transform* t) { free(t->signs); }

// A thread's tile: it grows to the largest transform and stays.
static Lanes* thread_tile(const Transform* t) {
    static __thread Lanes* tile;
    static __thread size_t bytes;
    size_t needed = (size_t)(t->n + t->K0) * sizeof(Lanes);
    if (needed > bytes) {
        free(tile);
        bytes = round_up(needed, 4096);
        tile = (Lanes*)aligned_alloc(64, bytes);
        check(tile, "out of host memory: %zu bytes", bytes);
    }
    return tile;
}

DEFINE_TRANSPOSE_SQUARE(transpose_square, Lanes)

// tile (n) <- `lanes` rows of n elements from `first` on; and back, times `scale`
static void rows_to_tile(Lanes* tile, const float* first, int lanes, int n, int ld) {
    int done = 0;
    for (; lanes == kLanes && done + kLanes <= n; done += kLanes) {
        Lanes square[kLanes];
        for (int l = 0; l < kLanes; l++) memcpy(&square[l], first + (size_t)l * ld + done, sizeof(Lanes));
        transpose_square(square);
        for (int c = 0; c < kLanes; c++) tile[done + c] = square[c];
    }
    for (int c = done; c < n; c++)
        for (int l = 0; l < lanes; l++) tile[c][l] = first[(size_t)l * ld + c];
}
static void tile_to_rows(float* first, const Lanes* tile, int lanes, int n, int ld, float scale) {
    int done = 0;
    for (; lanes == kLanes && done + kLanes <= n; done += kLanes) {
        Lanes square[kLanes];
        for (int c = 0; c < kLanes; c++) square[c] = tile[done + c] * scale;
        transpose_square(square);
        for (int l = 0; l < kLanes; l++) memcpy(first + (size_t)l * ld + done, &square[l], sizeof(Lanes));
    }
    for (int l = 0; l < lanes; l++)
        for (int c = done; c < n; c++) first[(size_t)l * ld + c] = tile[c][l] * scale;
}

// Most tiles are whole: their copies have a size that the compiler knows.
static inline void copy_lanes(void* to, const void* from, int lanes) {
    if (lanes == kLanes) memcpy(to, from, sizeof(Lanes));
    else memcpy(to, from, (size_t)lanes * sizeof(float));
}

// But for the scale, which whoever writes the tile multiplies by.
static void transform_tile(const Transform* t, Lanes* tile) {
    int run = t->n / t->K0;
    for (int j = 0; j < t->K0; j++) sylvester(tile + j * run, run);
    if (t->K0 > 1) across(tile, tile + t->n, t->signs, t->K0, run);
}

void hadamard_rows_f32(float* x, int rows, int n, int ld, bool transpose) {
    Transform t = transform_begin(n, !transpose);   // y = x H is y^T = H^T x^T
    int tiles = ceil_div(rows, kLanes);
#pragma omp parallel if (tiles > 1)
    {
        Lanes* tile = thread_tile(&t);
#pragma omp for
        for (int i = 0; i < tiles; i++) {
            float* first = x + (size_t)i * kLanes * ld;
            int lanes = min_int(kLanes, rows - i * kLanes);
            rows_to_tile(tile, first, lanes, n, ld);
            transform_tile(&t, tile);
            tile_to_rows(first, tile, lanes, n, ld, t.scale);
        }
    }
    transform_end(&t);
}

void hadamard_cols_f32(float* x, int rows, int cols, int ld, int block, bool transpose) {
    int n = block ? block : rows;
    Transform t = transform_begin(n, transpose);
    check(rows % n == 0, "hadamard: blocks of %d rows do not fill %d rows", n, rows);
    int tiles_across = ceil_div(cols, kLanes), tiles = rows / n * tiles_across;
#pragma omp parallel if (tiles > 1)
    {
        Lanes* tile = thread_tile(&t);
#pragma omp for
        for (int i = 0; i < tiles; i++) {
            int col = i % tiles_across * kLanes;
            float* first = x + (size_t)(i / tiles_across) * n * ld + col;
            int lanes = min_int(kLanes, cols - col);
            for (int r = 0; r < n; r++) copy_lanes(&tile[r], first + (size_t)r * ld, lanes);
            transform_tile(&t, tile);
            for (int r = 0; r < n; r++) {
                Lanes scaled = tile[r] * t.scale;
                copy_lanes(first + (size_t)r * ld, &scaled, lanes);
            }
        }
    }
    transform_end(&t);
}
