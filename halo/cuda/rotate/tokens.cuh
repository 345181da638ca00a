// H x of columns of bf16 on tensor cores: the token axis, in two passes.
//
//   within   a block loads a tile: 256 tokens of 64 columns, 128 bytes of each row. ldmatrix turns 16 tokens of 8 columns into an operand
//            that is multiplied by signs, exactly: up to 64 tokens by products. Additions between 64s do up to 2 more bits: runs of up to
//            256 tokens. A warp transforms 256 tokens of 8 columns, and rounds the sums once to FP16, which then leave for global memory.
//   across   products of signs and FP16, over runs of 256 tokens: order 32 for 8192. A warp takes one token of each run, 32 columns of it,
//            while the next ones are on their way to shared memory, and gives the sums to the sink. Up to order 64 it holds all sums of a
//            token at once, beyond that those of 64 runs at a time, reading the token again for each 64.
// If a run is the whole vector (2^k <= 256 tokens) its sums stay FP32 and go to the sink at once, through shared memory: one pass, 2 bytes
// read and those of the output.
//
// Bytes an element of two passes, beside the output's (2 for bf16, 1 for codes, none for a maximum): 2 read and 2 written within, 2 read each
// time across. A maximum and the codes that need it share the pass within: 4 + 2 + 3, where two whole rotations would have a floor of 2 + 3.
// Codes of the matrix as it is, transposed, come from the same tiles: 1 written, where a pass of their own would read the 2 again.
// Without scratch a rotation takes columns in bands, whose FP16 values stay in the L2 cache: then memory moves 2 and the output, the floor, but
// two launches a band cost more than that on an H200 (0.38 of copy, 0.45 in one band).
//
// FP16's range: 256 tokens of 32 columns (a chunk) have one exponent, that of their largest magnitude, and are multiplied by the power
// of two that keeps all possible sums below 2^15: this power is part of the signs within. The signs across carry each chunk's exponent
// relative to the largest, which goes to the sink as its unit. So the one rounding errs by 2^-11 of each value, whatever the magnitudes. A
// column with a NaN or an infinity gives what FP32 would give, but the finite columns of its chunk may lose their values.
//
// Within, a block takes one tile: three blocks fit a multiprocessor, so that some load while others compute and store. Across, each warp
// has its own ring of values that arrive: 80 KB and more a multiprocessor under way. No block waits for another one.
#ifndef HALO_CUDA_ROTATE_TOKENS_CUH
#define HALO_CUDA_ROTATE_TOKENS_CUH

#include "hadamard_warp.cuh"
#include "exact.cuh"

enum {
    kTokenOctets = kTokenColumns / 8,
    kTokenStrips = 2,          // strips of kTokenColumns in a tile, or side by side in a block of the pass across
    kTokenThreads = 256,       // within: a warp for each octet of a tile
    kTokenStripThreads = kTokenThreads / kTokenStrips,
    kTokenAbreast = 8,         // tiles side by side that run together: 1 KB of each row
    kTokenImage = kTokenChunk * kTokenOctets,   // 16-byte units of a chunk
    kAcrossThreads = 128, kAcrossWarps = kAcrossThreads / kWarp,
    kAcrossBits = 4, kAcrossTokens = 1 << kAcrossBits,   // tokens of each run that a block takes; no run is shorter
    kAcrossSums = 4,           // tiles of the matrix across, at most, whose sums a warp holds at a time
    kTokenBytes = kTokenColumns * (int)sizeof(bf16)   // of a strip
};

// How columns are cut: vectors of n tokens have `order` runs of 2^run_bits; the signs across are those of H, order x order.
struct TokenRuns {
    int n, order, run_bits;
    const uint32_t* signs;   // packed (RotateSigns)
};

// The FP16 values between the passes: strips of 32 columns one after the other, each with all its tokens, 64 bytes each in the order of
// half_place.
struct TokenHalves {
    uint4* values;     // (strips, chunks, kTokenImage)
    int* exponents;    // (strips, chunks)
    int strips, chunks;
};
static TokenHalves token_halves(void* memory, int rows, int cols) {
    TokenHalves h = {(uint4*)memory, NULL, ceil_div(cols, kTokenColumns), ceil_div(rows, kTokenChunk)};
    h.exponents = (int*)(h.values + (size_t)h.strips * h.chunks * kTokenImage);
    return h;
}

// Where octet `octet` of a token's 32 columns of bf16 lies in shared memory, as the number of its first value. Every two rows of eight have
// their octets in another of four orders, so that reading an octet of eight rows is free of bank conflicts.
__device__ inline int token_place(int token, int octet) { return token * kTokenColumns + (octet ^ (token >> 1 & 3)) * 8; }

// Where pair `pair` of an octet lies among a strip's FP16 values, as the number of a word: 16 bytes hold one pair of each of a token's octets,
// so that products across leave a whole octet in each lane. The octets' order varies with the token, so that storing the pairs of an octet of
// eight rows is free of bank conflicts.
__device__ inline int half_place(int token, int octet, int pair) {
    return token * (kTokenColumns / 2) + pair * 4 + (octet ^ (token >> 1 & 3));
}

// ================================================================ within runs
// A block's shared memory. A strip's values are bf16 and then FP16, or FP32 if kWide.
template <bool kWide>
struct TokenTile {
    bf16 values[kTokenStrips][kTokenChunk * kTokenColumns * (kWide ? 2 : 1)];
    uint32_t signs[kWarp];                       // of 16 tokens, each lane's
    int of_octet[kTokenStrips][kTokenOctets];    // largest exponents
    int exponent[kTokenStrips];                  // of the chunks
};

// Where FP32 values 4 quad ... 4 quad + 3 of a token's octet lie: neighbouring tokens have their octets in another of four orders, and the
// halves of octets in another of two, so that all accesses are free of bank conflicts.
__device__ inline int wide_place(int token, int octet, int quad) {
    return token * kTokenColumns + (octet ^ (token & 3)) * 8 + (quad ^ (token & 1)) * 4;
}

// This lane's signs of 16 tokens, as tokens_within takes them: the A fragment of Sylvester's matrix.
__device__ inline uint32_t signs_within() {
    unsigned lane = threadIdx.x % kWarp, pair = 0, packed = 0;
    for (unsigned half = 0; half < 2; half++) pair |= (__popc(lane / 4 & (lane % 4 * 2 + half)) & 1u) << (15 + 16 * half);
    for (int r = 0; r < 4; r++) packed |= (r == 3 ? pair ^ 0x80008000u : pair) >> r;   // both indices have bit 3 in register 3 alone
    return packed;
}

// Which tile a block takes: kTokenAbreast side by side first, then down the columns, so that pairs of strips are finished one group after the
// other.
struct TilePlace {
    int chunk, pair;
};
__device__ inline TilePlace tile_place(int block, int chunks, int cols) {
    int pairs = (cols + kTokenStrips * kTokenColumns - 1) / (kTokenStrips * kTokenColumns);
    int first = block / (kTokenAbreast * chunks) * kTokenAbreast, abreast = min((int)kTokenAbreast, pairs - first);
    int inside = block - first * chunks, chunk = inside / abreast;
    return TilePlace{chunk, first + inside - chunk * abreast};
}

// Starts the copy of a tile into shared memory; tokens and columns outside of the matrix are zero.
template <typename Tile>
__device__ inline void fetch_tile(Tile* tile, const Rows<const bf16>& x, TilePlace place, int rows, int cols) {
    enum { kOctets = kTokenStrips * kTokenOctets, kTogether = kTokenThreads / kOctets };   // tokens of all threads
    int octet = threadIdx.x % kOctets, token = threadIdx.x / kOctets;
    int row = place.chunk * kTokenChunk + token, col = (place.pair * kOctets + octet) * 8;
    int inside = col < cols ? rows - row : 0;
    bf16* to = tile->values[octet / kTokenOctets] + token_place(token, octet % kTokenOctets);
    const bf16* from = inside > 0 ? x[row] + col : x.data;
    size_t step = kTogether * x.ld;
    if (inside > kTokenChunk - kTogether) {
        cp_async_many(to, from, kTogether * kTokenColumns * (int)sizeof(bf16), step * sizeof(bf16), kTokenChunk / kTogether);
    } else {
        for (int t = 0; t < kTokenChunk; t += kTogether)
            cp_async16(to + t * kTokenColumns, t < inside ? from + t / kTogether * step : from, t < inside);
    }
    cp_async_commit();
}

// Transforms 256 tokens of 8 columns within their runs, by a warp, in the chunk's memory; three more warps take the chunk's other columns.
// *of_chunk: the chunk's exponent. kWide: the results are FP32. kRunBits: 8, or any number of them (0). all_signs: the sign bits of pair r from
// bits 15 - r and 31 - r on. They are read from memory because some pairs are equal, and the compiler would copy equal ones again and again.
template <bool kWide, int kRunBits>
__device__ inline void tokens_within(bf16* chunk, int* of_octet, int* of_chunk, int octet, int barrier, int any_bits,
                                     const uint32_t* all_signs) {
    int lane = threadIdx.x % kWarp, run_bits = kRunBits ? kRunBits : any_bits;
    uint32_t in[8][4];   // of 32 tokens each
    const bf16* from = chunk + token_place(lane, octet);
#pragma unroll
    for (int i = 0; i < 8; i++) ldmatrix<true>(in[i], from + i * 32 * kTokenColumns);
    uint32_t pair = in[0][0];
#pragma unroll
    for (int i = 1; i < 32; i++) pair = larger_pair_bf16(pair, in[i / 4][i % 4]);
    int exponent = __reduce_max_sync(0xffffffffu, pair_exponent(pair));
    if (lane == 0) of_octet[octet] = exponent;
    named_barrier_sync(barrier, kTokenStripThreads);   // from here on nothing of the chunk is read: results lie elsewhere in its memory
    uint4 all = *(const uint4*)of_octet;
    exponent = (int)max(max(max(all.x, all.y), max(all.z, all.w)), (uint32_t)kLeastExponent);
    if (octet == 0 && lane == 0) *of_chunk = exponent;

    uint32_t power = f32_bits(half_power_of(exponent, run_bits)) >> 16;   // in bf16
    uint32_t plus[4], minus[4], signs = all_signs[lane];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        plus[r] = (signs << r & 0x80008000u) | power | power << 16;
        minus[r] = plus[r] ^ 0x80008000u;
    }
#pragma unroll
    for (int out = 0; out < 4; out++) {   // output of 16 tokens out of each 64
        float v[4][4];
#pragma unroll
        for (int quad = 0; quad < 4; quad++) {
            auto block = [&](int k) { return &in[quad * 2 + k / 2][k % 2 * 2]; };   // operand of 16 tokens
            auto add = [&](int k, const uint32_t (&a)[4]) { mma_bf16(v[quad], a, block(k)[0], block(k)[1]); };
            if (run_bits > 5) {
                // Each sum begins with another block: the compiler would keep common beginnings in registers, of which there are too few.
                mma_bf16_first(v[quad], (out ^ out >> 1) & 1 ? minus : plus, block(out)[0], block(out)[1]);
                add(out ^ 1, out & 2 ? minus : plus);
                add(out ^ 2, out & 1 ? minus : plus);
                add(out ^ 3, plus);
            } else if (run_bits == 5) {
                mma_bf16_first(v[quad], plus, block(out & 2)[0], block(out & 2)[1]);
                add(out | 1, out & 1 ? minus : plus);
            } else {
                mma_bf16_first(v[quad], plus, block(out)[0], block(out)[1]);
            }
        }
        if (run_bits > 6) add_blocks(v, 1 << (run_bits - 6));
        if constexpr (kWide) {
            float* wide = (float*)chunk + wide_place(out * 16 + lane / 4, octet, lane % 4 / 2) + lane % 2 * 2;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float* two = v[i / 2] + i % 2 * 2;
                *(float2*)(wide + (i / 2 * 64 + i % 2 * 8) * kTokenColumns) = make_float2(two[0], two[1]);
            }
        } else {
            uint32_t* halves = (uint32_t*)chunk + half_place(out * 16 + lane / 4, octet, lane % 4);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float* two = v[i / 2] + i % 2 * 2;
                halves[(i / 2 * 64 + i % 2 * 8) * (kTokenColumns / 2)] = pack_f16(two[0], two[1]);
            }
        }
    }
}

// Waits for the block's tile, beside which signs come to shared memory.
template <bool kWide>
__device__ inline void await_tile(TokenTile<kWide>* tile) {
    if (threadIdx.x < kWarp) tile->signs[threadIdx.x] = signs_within();
    cp_async_wait<0>();
    __syncthreads();
}

// Leaves the transformed values of the block's tile in shared memory, and the exponents of its chunks, for threads that then wait for the
// others of their strip.
template <bool kWide, int kRunBits>
__device__ inline void tile_within(TokenTile<kWide>* tile, int run_bits) {
    int warp = threadIdx.x / kWarp, strip = warp / kTokenOctets, octet = warp % kTokenOctets;
    tokens_within<kWide, kRunBits>(tile->values[strip], tile->of_octet[strip], &tile->exponent[strip], octet, 1 + strip, run_bits, tile->signs);
}

// Where a matrix's own codes go, transposed (cols, rows), and how they are made.
struct TokenCodes {
    Rows<uint8_t> codes_t;
    Fmt fmt;
    Quantizer quantizer;
};

// Codes of the block's tile, a warp for 256 tokens of 8 columns. A lane takes 16 neighbouring tokens of every 64, four lanes a column: an access
// stores 64 bytes of each of 8 columns. ldmatrix gives lane l eight pairs of neighbouring tokens of column l / 4, number m in place m ^ l % 4:
// so the rows of a matrix are free of bank conflicts, and the codes are put in order afterwards. The warp's number is made anew and uniform:
// shared with the transform that follows, values of this function would stay in registers that the transform lacks.
__device__ inline void store_tile_codes(const TokenCodes& to, float inverse, const TokenTile<false>* tile, TilePlace place, int rows, int cols) {
    int lane = threadIdx.x % kWarp, warp = __shfl_sync(0xffffffffu, (int)threadIdx.x / kWarp, 0), strip = warp / kTokenOctets;
    int octet = warp % kTokenOctets, col = place.pair * kTokenStrips * kTokenColumns + warp * 8;
    if (col >= cols) return;
    int part = lane % 4, named = lane % 8 / 2;   // of 64 tokens: the 16 that this lane gets, and those of the row that it names for ldmatrix
    int first = place.chunk * kTokenChunk + part * 16;
    uint8_t* column = to.codes_t[col + lane / 4] + first;
    auto in_order = [&](uint2 codes) {
        uint32_t selector = part & 1 ? 0x1032 : 0x3210, low = __byte_perm(codes.x, 0, selector), high = __byte_perm(codes.y, 0, selector);
        return part & 2 ? make_uint2(high, low) : make_uint2(low, high);
    };
#pragma unroll 1
    for (int t = 0; t < kTokenChunk; t += 64) {
        uint2 octets[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Packed<8> pairs;
            ldmatrix<true>(pairs.pair, tile->values[strip] + token_place(t + named * 16 + half * 8 + (lane / 8 ^ named) * 2 + lane % 2, octet));
            Values<8> v = unpack(pairs);
#pragma unroll
            for (int i = 0; i < 8; i++) v.v[i] = __fmul_rn(v.v[i], inverse);
            octets[half] = in_order(code_octet(v, to.fmt));
        }
        store_codes(column + t, make_uint4(octets[0].x, octets[0].y, octets[1].x, octets[1].y), rows - first - t);
    }
}

// The first of two passes. kCodes: it makes codes of x itself too.
template <int kRunBits, bool kCodes>
__global__ void __launch_bounds__(kTokenThreads, 3) tokens_within_kernel(TokenHalves halves, TokenCodes codes, Rows<const bf16> x, int rows,
                                                                         int cols, int run_bits) {
    SHARED(TokenTile<false>, tile);
    TilePlace place = tile_place(blockIdx.x, halves.chunks, cols);
    fetch_tile(tile, x, place, rows, cols);
    float inverse = kCodes ? begin_codes(codes.quantizer, codes.fmt) : 1.0f;
    await_tile(tile);
    if (kCodes) store_tile_codes(codes, inverse, tile, place, rows, cols);
    tile_within<false, kRunBits>(tile, run_bits);
    int half = threadIdx.x / kTokenStripThreads, strip = place.pair * kTokenStrips + half, thread = threadIdx.x % kTokenStripThreads;
    named_barrier_sync(1 + half, kTokenStripThreads);
    if (strip >= halves.strips) return;
    size_t at = (size_t)strip * halves.chunks + place.chunk;
    uint4* to = halves.values + at * kTokenImage;
    const uint4* from = (const uint4*)tile->values[half];
#pragma unroll
    for (int i = 0; i < kTokenImage; i += kTokenStripThreads) to[i + thread] = from[i + thread];
    if (thread == 0) halves.exponents[at] = tile->exponent[half];
}

// The only pass of vectors that are one run.
template <int kRunBits, typename Sink>
__global__ void __launch_bounds__(kTokenThreads, 3) tokens_alone_kernel(Sink sink, Rows<const bf16> x, int chunks, int x_rows, int y_rows,
                                                                        int cols, int run_bits) {
    SHARED(TokenTile<true>, tile);
    enum { kTogether = kTokenStripThreads / kTokenOctets };   // tokens of a strip's threads
    TilePlace place = tile_place(blockIdx.x, chunks, cols);
    sink.begin();
    fetch_tile(tile, x, place, x_rows, cols);
    await_tile(tile);
    tile_within<true, kRunBits>(tile, run_bits);
    int half = threadIdx.x / kTokenStripThreads, thread = threadIdx.x % kTokenStripThreads;
    named_barrier_sync(1 + half, kTokenStripThreads);
    int octet = thread % kTokenOctets, token = thread / kTokenOctets;
    int row = place.chunk * kTokenChunk + token, col = (place.pair * kTokenStrips + half) * kTokenColumns + octet * 8;
    int inside = col < cols ? y_rows - row : 0;
    const float* from = (const float*)tile->values[half];
    sink.unit(half_unit_of(tile->exponent[half], kRunBits ? kRunBits : run_bits));
    size_t to = sink.at(row, col);
#pragma unroll 2
    for (int t = 0; t < kTokenChunk; t += kTogether) {
        float4 low = *(const float4*)(from + wide_place(token + t, octet, 0));
        float4 high = *(const float4*)(from + wide_place(token + t, octet, 1));
        if (t < inside) sink.put(to + t * sink.ld(), Values<8>{{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}});
    }
    sink.finish();
}

// ================================================================ across runs

// 2^-down in FP16, as bits; zero if FP16 has no such value.
__device__ inline uint32_t half_power(int down) {
    return down < 15 ? (uint32_t)(15 - down) << 10 : down < 25 ? 1u << (24 - down) : 0;
}

// The scales of a vector's runs in FP16, up to whole fragments of them, by a warp; returns the unit of their sums. exponents: of the
// strip's chunks; row: the vector's first.
__device__ inline float scale_runs(uint16_t* scales, const int* exponents, const TokenRuns& runs, int row) {
    int lane = threadIdx.x % kWarp, padded = (runs.order + kFragment - 1) / kFragment * kFragment;
    auto exponent_of = [&](int g) { return exponents[(row + (g << runs.run_bits)) / kTokenChunk]; };
    int largest = 0;
#pragma unroll 1
    for (int g = lane; g < runs.order; g += kWarp) largest = max(largest, exponent_of(g));
    largest = __reduce_max_sync(0xffffffffu, largest);
#pragma unroll 1
    for (int g = lane; g < padded; g += kWarp) scales[g] = (uint16_t)(g < runs.order ? half_power(largest - exponent_of(g)) : 0);
    __syncwarp();
    return half_unit_of(largest, runs.run_bits);
}

// The tiles of the matrix across whose sums a warp holds at a time, and the stages of its ring: fewer where more tiles make them large.
// kTiles: of the matrix, or 0 for a number of them, above kAcrossSums, that is known at run time only. Then the bytes of a stage, and of a
// block's shared memory: a ring for each warp, and the scales that it multiplies by.
__host__ __device__ constexpr int across_sums(int kTiles) { return kTiles && kTiles < kAcrossSums ? kTiles : (int)kAcrossSums; }
__host__ __device__ constexpr int across_stages(int kTiles) { return kTiles && kTiles <= kAcrossSums ? 3 : 2; }
__host__ __device__ inline int across_stage_bytes(int tiles) { return tiles * kFragment * kTokenBytes; }
__host__ __device__ inline int across_scale_bytes(int tiles) { return tiles * kFragment * (int)sizeof(uint16_t); }
static int across_bytes(int tiles, int stages) { return kAcrossWarps * (stages * across_stage_bytes(tiles) + across_scale_bytes(tiles)); }

// Where 16 bytes of a run's token lie in a stage: every two of eight runs have them in another of four orders, for ldmatrix.
__device__ inline int stage_place(int run, int unit) { return run * kTokenBytes + (unit ^ (run >> 1 & 3)) * 16; }

// Sums over all runs of one token of each, in a stage: rows [first_tile, first_tile + kSums) of 16 x 16 tiles of the matrix across, as far as it
// has them: `tiles`. Column 2 c + h of product t is column 2 t + h of an octet (half_place), so that lane c of four has an octet's sums.
// scales: of the runs, two to a word.
template <int kSums>
__device__ inline void sum_runs(float (&sum)[kSums][4][4], const char* stage, const uint32_t* signs, const uint32_t* scales, int tiles,
                                int first_tile) {
    int lane = threadIdx.x % kWarp, place = stage_place(lane % 16, lane / 16), words = (tiles + kSignTiles - 1) / kSignTiles;
    auto add = [&](int word, bool first) {   // the 16 runs of each of up to kSignTiles tiles
        uint32_t packed[kSums];
#pragma unroll
        for (int r = 0; r < kSums; r++) packed[r] = __ldg(signs + (min(first_tile + r, tiles - 1) * words + word) * kWarp + lane);
#pragma unroll
        for (int s = 0; s < kSignTiles; s++) {
            int step = word * kSignTiles + s;
            if (step >= tiles) break;
            uint32_t scale[2] = {scales[step * 8 + lane % 4], scales[step * 8 + 4 + lane % 4]}, b[2][4];
#pragma unroll
            for (int two = 0; two < 2; two++)   // products
                ldmatrix<true>(b[two], (const bf16*)(stage + (place ^ two * 32) + step * kFragment * kTokenBytes));
#pragma unroll
            for (int r = 0; r < kSums; r++) {
                if (first_tile + r >= tiles) break;
                uint32_t a[4];
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = (packed[r] << (4 * s + i) & 0x80008000u) | scale[i / 2];
#pragma unroll
                for (int t = 0; t < 4; t++) {
                    const uint32_t* runs = b[t / 2] + t % 2 * 2;
                    if (first && s == 0) mma_f16_first(sum[r][t], a, runs[0], runs[1]);
                    else mma_f16(sum[r][t], a, runs[0], runs[1]);
                }
            }
        }
    };
    add(0, true);
    for (int word = 1; word < words; word++) add(word, false);
}

// The second pass. A block takes kAcrossTokens neighbouring tokens of each run of a vector, in a pair of strips. kTiles: of the matrix
// across, or 0 for a number above kAcrossSums. backwards: the last strip first.
template <int kTiles, typename Sink>
__global__ void __launch_bounds__(kAcrossThreads, kTiles == 1 || kTiles == 2 ? 5 : 4)
    tokens_across_kernel(Sink sink, TokenHalves halves, TokenRuns runs, int vectors, int y_rows, int cols, bool backwards) {
    SHARED(char, shared);
    enum { kSums = across_sums(kTiles), kStages = across_stages(kTiles), kStep = kAcrossWarps / kTokenStrips, kGroups = kAcrossTokens / kStep };
    int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, tiles = kTiles ? kTiles : (runs.order + kFragment - 1) / kFragment;
    int block = (int)(backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x), piece_bits = runs.run_bits - kAcrossBits, rest = block >> piece_bits;
    int pair = rest / vectors, vector = rest - pair * vectors, strip = pair * kTokenStrips + warp % kTokenStrips;
    int row = vector * runs.n, first = row + (block - (rest << piece_bits)) * kAcrossTokens + warp / kTokenStrips;   // of the first run
    int stage_bytes = across_stage_bytes(tiles), strip_col = strip * kTokenColumns;
    char* ring = shared + warp * kStages * stage_bytes;
    uint16_t* scales = (uint16_t*)(shared + kAcrossWarps * kStages * stage_bytes + warp * across_scale_bytes(tiles));
    size_t chunks = (size_t)min(strip, halves.strips - 1) * halves.chunks;   // before the strip's
    const char* values = (const char*)(halves.values + chunks * kTokenImage) + (size_t)first * kTokenBytes + lane % 4 * 16;
    int place = stage_place(lane / 4, lane % 4), arriving = 0, present = 0;   // in bytes
    unsigned run_bytes = (unsigned)kTokenBytes << runs.run_bits;
    auto after = [&](int stage) { return stage + stage_bytes < kStages * stage_bytes ? stage + stage_bytes : 0; };
    auto fetch = [&] {   // beyond the last run that run's values serve again: their scale is zero
#pragma unroll
        for (int i = 0; i < tiles * 2; i++)
            cp_async16(ring + arriving + place + i * 8 * kTokenBytes,
                       values + (size_t)(unsigned)min(i * 8 + lane / 4, runs.order - 1) * run_bytes);
        values += kStep * kTokenBytes;
        arriving = after(arriving);
    };

    sink.begin();
    for (int group = 0; group < kStages - 1; group++) {
        fetch();
        cp_async_commit();
    }
    sink.unit(scale_runs(scales, halves.exponents + chunks, runs, row));
#pragma unroll 1
    for (int group = 0; group < kGroups; group++, present = after(present)) {
        cp_async_wait<kStages - 2>();
        __syncwarp();   // all lanes' copies have arrived, and the stage before is no longer read
        if (group + kStages - 1 < kGroups) fetch();
        cp_async_commit();
        int token = first + group * kStep, col = strip_col + (lane % 4 ^ (token >> 1 & 3)) * 8;
        int inside = col < cols ? min(runs.order, (y_rows - token + (1 << runs.run_bits) - 1) >> runs.run_bits) : 0;   // runs
        int run = lane / 4;
        size_t step = sink.ld() << runs.run_bits, to = sink.at(token, col) + run * step;
        for (int tile = 0; tile < tiles; tile += kSums) {
            float sum[kSums][4][4];   // [tile][product][mma]
            sum_runs<kSums>(sum, ring + present, runs.signs, (const uint32_t*)scales, tiles, tile);
#pragma unroll
            for (int i = 0; i < kSums * 2; i++, run += 8, to += 8 * step) {
                Values<8> octet;
#pragma unroll
                for (int k = 0; k < 8; k++) octet.v[k] = sum[i / 2][k / 2][i % 2 * 2 + k % 2];
                if (run < inside) sink.put(to, octet);
            }
        }
    }
    cp_async_wait<0>();
    sink.finish();
}

// ================================================================ launchers

// False if columns of this job cannot be cut, or its matrices have no aligned octets.
static bool token_runs(const RotateJob& job, TokenRuns* runs) {
    int K0 = hadamard_base_order(job.n), run = job.n / K0, doublings = 0;
    if (job.axis != ROTATE_ROWS || job.step != 1 || job.x.fmt != BF16 || !is_octets(job.x)) return false;
    if (!with_sink(job, [](auto) { return true; })) return false;
    // Across: the base order, or 16 for powers of two beyond 256 (512 tokens are 16 runs of 32, which fill a product), and all bits beyond
    // 8 within.
    if (K0 == 1 && run > kTokenChunk) doublings = 4;
    while (run >> doublings > kTokenChunk) doublings++;
    if (doublings >= kAcrossDoublings || run >> doublings < 16 || (doublings && K0 << doublings > kAcrossMost)) return false;
    TokenRuns r = {job.n, K0 << doublings, floor_log2(run >> doublings),
                   rotate_signs()->packed[hadamard_base_index(K0)][doublings][job.transpose]};
    *runs = r;
    return true;
}

static int token_pairs(int cols) { return ceil_div(cols, kTokenStrips * kTokenColumns); }

static void launch_tokens_alone(const RotateJob& job, const TokenRuns& runs) {
    int chunks = ceil_div(max_int(job.x.rows, job.y.rows), kTokenChunk), blocks = chunks * token_pairs(job.x.cols);
    auto launch = [&](auto sink, auto bits) {
        allow_shared(tokens_alone_kernel<decltype(bits)::value, decltype(sink)>, sizeof(TokenTile<true>));
        LAUNCH((tokens_alone_kernel<decltype(bits)::value, decltype(sink)>), blocks, kTokenThreads, sizeof(TokenTile<true>), sink,
               rows_of<const bf16>(job.x), chunks, job.x.rows, job.y.rows, job.x.cols, runs.run_bits);
        return true;
    };
    with_sink(job, [&](auto sink) {
        return runs.run_bits == 8 ? launch(sink, std::integral_constant<int, 8>()) : launch(sink, std::integral_constant<int, 0>());
    });
}

// plain: NULL, or codes of x itself, which makes_plain_codes has allowed.
static void launch_tokens_within(const TokenHalves& halves, Mat x, const TokenRuns& runs, const PlainCodes* plain) {
    TokenCodes codes = {{NULL, 0}, INT8, {NULL, NULL, 1}};
    if (plain) codes = TokenCodes{rows_of<uint8_t>(plain->q.codes_t), plain->fmt, {plain->absmax, plain->q.scale, plain->clip}};
    auto launch = [&](auto bits, auto with_codes) {
        LAUNCH((tokens_within_kernel<decltype(bits)::value, decltype(with_codes)::value>), halves.chunks * token_pairs(x.cols), kTokenThreads,
               sizeof(TokenTile<false>), halves, codes, rows_of<const bf16>(x), x.rows, x.cols, runs.run_bits);
    };
    auto launch_bits = [&](auto bits) { plain ? launch(bits, std::true_type()) : launch(bits, std::false_type()); };
    if (runs.run_bits == 8) launch_bits(std::integral_constant<int, 8>());
    else launch_bits(std::integral_constant<int, 0>());
}

static void launch_tokens_across(const RotateJob& job, const TokenHalves& halves, const TokenRuns& runs, bool backwards) {
    int vectors = max_int(job.x.rows, job.y.rows) / runs.n, blocks = (token_pairs(job.x.cols) * vectors << runs.run_bits) / kAcrossTokens;
    int tiles = ceil_div(runs.order, kFragment);
    auto launch = [&](auto sink, auto of) {
        int bytes = across_bytes(tiles, across_stages(decltype(of)::value));
        allow_shared(tokens_across_kernel<decltype(of)::value, decltype(sink)>, (size_t)bytes);
        LAUNCH((tokens_across_kernel<decltype(of)::value, decltype(sink)>), blocks, kAcrossThreads, bytes, sink, halves, runs, vectors,
               job.y.rows, job.x.cols, backwards);
        return true;
    };
    with_sink(job, [&](auto sink) {
        switch (tiles) {
            case 1: return launch(sink, std::integral_constant<int, 1>());
            case 2: return launch(sink, std::integral_constant<int, 2>());
            case 3: return launch(sink, std::integral_constant<int, 3>());
            case 4: return launch(sink, std::integral_constant<int, 4>());
            case 8: return launch(sink, std::integral_constant<int, 8>());
            default: return launch(sink, std::integral_constant<int, 0>());
        }
    });
}

// Both passes, with cuda_token_halves_bytes of memory between them. Across goes backwards: the strips that were written last are still in the L2
// cache.
static TokenHalves launch_tokens(const RotateJob& job, const TokenRuns& runs, const PlainCodes* plain, void* memory) {
    TokenHalves halves = token_halves(memory, max_int(job.x.rows, job.y.rows), job.x.cols);
    launch_tokens_within(halves, job.x, runs, plain);
    launch_tokens_across(job, halves, runs, true);
    return halves;
}

// False, with nothing done, if the shape is not one for these kernels.
static bool rotate_tokens(const RotateJob& job) {
    TokenRuns runs;
    if (!token_runs(job, &runs)) return false;
    if (runs.order == 1) {
        launch_tokens_alone(job, runs);
        return true;
    }
    if (job.scratch) {
        launch_tokens(job, runs, NULL, job.scratch);
        return true;
    }
    // Bands of whole vectors and whole pairs of strips, about as large as each other: half of the L2 cache.
    int bytes = min_int((int)(gpu_device().l2_bytes / 2), kRotateStripBytes);
    int tiles = max_int(1, bytes / (int)cuda_token_halves_bytes(kTokenChunk, kTokenStrips * kTokenColumns));   // of a band
    int rows = max_int(job.x.rows, job.y.rows), down = min_int(rows, max_int(1, tiles * kTokenChunk / job.n) * job.n);
    int pairs = token_pairs(job.x.cols), most = max_int(1, tiles / ceil_div(down, kTokenChunk)), bands = ceil_div(pairs, most);
    int across = ceil_div(pairs, bands) * kTokenStrips * kTokenColumns;
    check(cuda_token_halves_bytes(down, across) <= kRotateStripBytes, "rotate (cuda): %d tokens exceed the workspace", job.n);
    for (int row = 0; row < rows; row += down) {
        for (int col = 0; col < job.x.cols; col += across) {
            auto part = [&](Mat m) {
                return mat_cols(mat_rows(m, row, max_int(0, min_int(down, m.rows - row))), col, min_int(across, job.x.cols - col));
            };
            RotateJob band = job;
            band.x = part(job.x);
            band.y = part(job.y);
            launch_tokens(band, runs, NULL, cuda_held().strip);
        }
    }
    return true;
}

// Can the pass within of this job make these codes of the job's x too?
static bool makes_plain_codes(const RotateJob& job, const PlainCodes& plain) {
    TokenRuns runs;
    const QMat& q = plain.q;
    return token_runs(job, &runs) && runs.order > 1 && q.gran == PER_TENSOR && !q.codes.data && q.codes_t.data && is_sixteens(q.codes_t);
}

// Two jobs on the same x, one after the other, from one transform within runs; scratch: cuda_quantize_tokens_scratch bytes. plain: NULL, or
// codes that makes_plain_codes has allowed. False, with nothing done, if the shape is not one for these kernels.
static bool rotate_tokens_twice(const RotateJob& first, const RotateJob& second, const PlainCodes* plain, void* scratch) {
    TokenRuns runs;
    if (!token_runs(first, &runs) || !token_runs(second, &runs)) return false;
    if (runs.order == 1) {
        launch_tokens_alone(first, runs);
        launch_tokens_alone(second, runs);
        return true;
    }
    check(scratch, "rotate (cuda): no scratch for %d tokens", runs.n);
    launch_tokens_across(second, launch_tokens(first, runs, plain, scratch), runs, false);
    return true;
}

#endif
