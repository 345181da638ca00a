// The number formats against an independent definition: a table of a format's values in double, and the nearest of them by
// search, ties to the even code. Every code, all 2^16 bf16 values, and the midpoints of neighbours with one ulp either side.
#include "../halo/numfmt.h"
#include "test.h"

// ---- the definition
typedef struct {
    Fmt fmt;
    int exponent_bits, mantissa_bits, bias;
    int count;       // codes 0 ... count - 1 are the values >= 0, in ascending order
    double max;      // the last of them
    double value[0x7f81];
} Grid;

static Grid grids[] = {
    {FP8_E4M3, 4, 3, 7, 0x7f, 448, {0}},    // 0x7f is NaN
    {FP8_E5M2, 5, 2, 15, 0x7c, 57344, {0}},  // 0x7c is infinity
    {FP6_E3M2, 3, 2, 3, 0x20, 28, {0}},
    {FP6_E2M3, 2, 3, 1, 0x20, 7.5, {0}},
    {INT8, 0, 0, 0, 128, 127, {0}},
    {BF16, 8, 7, 127, 0x7f81, 0x1p128, {0}},  // infinity is where the next value would be, as IEEE rounding sees it
};

static const Grid* grid_of(Fmt fmt) {
    for (int g = 0; g < COUNT(grids); g++) {
        Grid* grid = &grids[g];
        if (grid->fmt != fmt) continue;
        for (int code = 0; code < grid->count && grid->value[grid->count - 1] == 0; code++) {
            int exponent = code >> grid->mantissa_bits, mantissa = code & ((1 << grid->mantissa_bits) - 1);
            int leading_one = exponent ? 1 << grid->mantissa_bits : 0;
            grid->value[code] = fmt == INT8 ? code
                : ldexp(leading_one + mantissa, (exponent ? exponent : 1) - grid->bias - grid->mantissa_bits);
        }
        return grid;
    }
    die("no grid for format %d", (int)fmt);
}

// The code >= 0 of the value nearest to a >= 0, ties to even.
static int nearest(const Grid* grid, double a) {
    int low = 0, high = grid->count - 1;
    if (a >= grid->max) return high;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (grid->value[middle] <= a) low = middle; else high = middle;
    }
    double below = a - grid->value[low], above = grid->value[high] - a;
    return below < above ? low : above < below ? high : low % 2 ? high : low;
}

// The byte that code_from_f32 has to give. FP6 is written as the E4M3 code of its value.
static uint8_t wanted_code(float x, Fmt fmt) {
    if (fmt == INT8) {
        int code = isnan(x) ? 0 : nearest(grid_of(INT8), fabs((double)x));
        return (uint8_t)(signbit(x) ? -code : code);
    }
    uint8_t sign = signbit(x) ? 0x80 : 0;
    if (isnan(x)) return sign | 0x7f;
    const Grid* grid = grid_of(fmt);
    int code = nearest(grid, fabs((double)x));
    if (fmt == FP8_E5M2) return (uint8_t)(sign | code);
    return (uint8_t)(sign | nearest(grid_of(FP8_E4M3), grid->value[code]));
}

static uint16_t wanted_bf16(float x) {
    return (uint16_t)((signbit(x) ? 0x8000 : 0) | nearest(grid_of(BF16), fabs((double)x)));   // not for NaN
}

// ---- the inputs: calls visit(x) for each and returns how many calls gave true
typedef bool (*Visit)(float x, Fmt fmt);

static int visit_around(double a, Fmt fmt, Visit visit) {
    int hits = 0;
    float x = (float)a;   // exact: a midpoint of two values has few bits
    float around[3] = {nextafterf(x, 0), x, nextafterf(x, INFINITY)};
    for (int i = 0; i < 3; i++) hits += visit(around[i], fmt) + visit(-around[i], fmt);
    return hits;
}

static int visit_inputs(Fmt fmt, Visit visit) {
    int hits = 0;
    for (uint32_t h = 0; h < 0x10000; h++) hits += visit(f32_from_bits(h << 16), fmt);
    for (int i = 0; i < 200000; i++) {
        hits += visit(f32_from_bits((uint32_t)(test_uniform() * 0x1p32)), fmt);
        hits += visit(test_normal() * ldexpf(1, i % 24 - 12), fmt);
    }
    const Grid* grid = grid_of(fmt);
    for (int code = 0; code < grid->count; code++) {
        hits += visit_around(grid->value[code], fmt, visit);
        if (code) hits += visit_around((grid->value[code - 1] + grid->value[code]) / 2, fmt, visit);
    }
    // Where a format without saturation would go on: half a step and a whole one above the largest value.
    double step = grid->max - grid->value[grid->count - 2];
    return hits + visit_around(grid->max + step / 2, fmt, visit) + visit_around(grid->max + step, fmt, visit);
}

static bool code_differs(float x, Fmt fmt) { return code_from_f32(x, fmt) != wanted_code(x, fmt); }

// Planted errors, which the comparison has to see: ties away from zero, and a lost sign of zero.
static bool ties_away_differs(float x, Fmt fmt) {
    return code_from_f32(nextafterf(x, x < 0 ? -INFINITY : INFINITY), fmt) != wanted_code(x, fmt);
}
static bool unsigned_zero_differs(float x, Fmt fmt) {
    return (code_from_f32(x, fmt) == 0x80 ? 0 : code_from_f32(x, fmt)) != wanted_code(x, fmt);
}

static const Fmt byte_formats[] = {FP8_E4M3, FP8_E5M2, FP6_E3M2, FP6_E2M3, INT8};

static void round_case(void) {
    for (int f = 0; f < COUNT(byte_formats); f++) {
        Fmt fmt = byte_formats[f];
        int ties = visit_inputs(fmt, ties_away_differs);
        int zeros = fmt == INT8 ? 1 : visit_inputs(fmt, unsigned_zero_differs);
        ok(ties > 0 && zeros > 0, "numfmt.round %s: ties away from zero (%d) and a lost -0 (%d) are seen",
           fmt_name(fmt), ties, zeros);
        int wrong = visit_inputs(fmt, code_differs);
        ok(wrong == 0, "numfmt.round %s: %d wrong codes", fmt_name(fmt), wrong);
    }
}

// Values that are written down here, so that the definition above is held against something too.
typedef struct {
    Fmt fmt;
    float x;
    uint8_t code;
} Known;

static const Known known[] = {
    {FP8_E4M3, 1, 0x38}, {FP8_E4M3, 0x1p-9f, 0x01}, {FP8_E4M3, 0x1p-6f, 0x08}, {FP8_E4M3, 448, 0x7e},
    {FP8_E4M3, 1e30f, 0x7e}, {FP8_E4M3, -INFINITY, 0xfe}, {FP8_E4M3, -0.0f, 0x80}, {FP8_E4M3, NAN, 0x7f},
    {FP8_E4M3, 0x1p-10f, 0x00},
    {FP8_E5M2, 1, 0x3c}, {FP8_E5M2, 0x1p-16f, 0x01}, {FP8_E5M2, 57344, 0x7b}, {FP8_E5M2, INFINITY, 0x7b},
    {FP6_E3M2, 1, 0x38}, {FP6_E3M2, 28, 0x5e}, {FP6_E3M2, 100, 0x5e}, {FP6_E3M2, 0.0625f, 0x18}, {FP6_E3M2, 0.03f, 0x00},
    {FP6_E2M3, 1, 0x38}, {FP6_E2M3, 7.5f, 0x4f}, {FP6_E2M3, -9, 0xcf}, {FP6_E2M3, 0.125f, 0x20}, {FP6_E2M3, 0.0625f, 0x00},
    {INT8, 0.5f, 0}, {INT8, 1.5f, 2}, {INT8, -2.5f, 0xfe}, {INT8, 126.5f, 126}, {INT8, 1e9f, 127}, {INT8, -INFINITY, 0x81},
    {INT8, NAN, 0},
};

static void known_case(void) {
    for (int i = 0; i < COUNT(known); i++) {
        Known k = known[i];
        int code = code_from_f32(k.x, k.fmt);
        ok(code == k.code, "numfmt.known %s %g is 0x%02x", fmt_name(k.fmt), k.x, code);
    }
}

// ---- codes back to values
static void decode_case(void) {
    for (int f = 0; f < COUNT(byte_formats); f++) {
        Fmt fmt = byte_formats[f];
        const Grid* grid = grid_of(fmt_is_fp8_coded(fmt) ? FP8_E4M3 : fmt);
        int wrong = 0, changed = 0;
        for (int code = 0; code < 256; code++) {
            float x = f32_from_code((uint8_t)code, fmt);
            int magnitude = code & 0x7f;
            if (fmt == INT8) wrong += x != (code < 128 ? code : code - 256);
            else if (magnitude < grid->count) wrong += fabs(x) != grid->value[magnitude] || !signbit(x) != (code < 128);
            else if (fmt == FP8_E5M2 && magnitude == 0x7c) wrong += !isinf(x) || (x > 0) != (code < 128);
            else wrong += !isnan(x);
            bool in_format = fmt == INT8 ? code != 128 : !isnan(x) && !isinf(x) && wanted_code(x, fmt) == code;
            if (in_format) changed += code_from_f32(x, fmt) != code;
        }
        ok(wrong == 0 && changed == 0, "numfmt.decode %s: %d wrong values, %d codes that change on the way back",
           fmt_name(fmt), wrong, changed);
    }
}

static void fp6_case(void) {
    static const Fmt fp6[] = {FP6_E3M2, FP6_E2M3};
    for (int f = 0; f < COUNT(fp6); f++) {
        const Grid* grid = grid_of(fp6[f]);
        int inexact = 0, wrong = 0;
        for (int six_bits = 0; six_bits < 64; six_bits++) {
            double value = grid->value[six_bits & 31] * (six_bits & 32 ? -1 : 1);
            uint8_t e4m3 = fp6_unpack_code((uint8_t)six_bits, fp6[f]);
            float x = f32_from_code(e4m3, FP8_E4M3);
            inexact += x != value || !signbit(x) != !(six_bits & 32);
            wrong += fp6_pack_code(e4m3, fp6[f]) != six_bits || code_from_f32((float)value, fp6[f]) != e4m3;
        }
        ok(inexact == 0 && wrong == 0, "numfmt.fp6 %s: %d of 64 values that E4M3 lacks, %d that do not survive packing",
           fmt_name(fp6[f]), inexact, wrong);
        ok(fp6_pack_code(0x7f, fp6[f]) == 31 && fp6_pack_code(0xff, fp6[f]) == 63, "numfmt.fp6 %s: NaN packs as the largest",
           fmt_name(fp6[f]));
    }
}

// ---- bf16
static bool bf16_differs(float x, Fmt fmt) {
    (void)fmt;
    uint16_t h = bf16_from_f32(x);
    return isnan(x) ? !isnan(f32_from_bf16(h)) || !!signbit(f32_from_bf16(h)) != !!signbit(x) : h != wanted_bf16(x);
}
static bool bf16_truncated_differs(float x, Fmt fmt) {
    (void)fmt;
    return !isnan(x) && f32_bits(x) >> 16 != wanted_bf16(x);
}

static void bf16_case(void) {
    ok(visit_inputs(BF16, bf16_truncated_differs) > 0, "numfmt.bf16: truncation is seen");
    ok(visit_inputs(BF16, bf16_differs) == 0, "numfmt.bf16: rounds to nearest even");
    ok(bf16_from_f32(f32_from_bits(0x7f800001)) == 0x7fc0, "numfmt.bf16: a NaN in the lower half only stays NaN");
    int changed = 0;
    for (uint32_t h = 0; h < 0x10000; h++) {
        float x = f32_from_bf16((uint16_t)h);
        bool is_nan = isnan(x);
        uint32_t quiet = is_nan ? h | 0x40 : h;
        changed += f32_bits(x) != h << 16 || bf16_from_f32(x) != quiet;
        changed += bf16_from_f32_stochastic(x, 0) != quiet || bf16_from_f32_stochastic(x, 0xffff) != quiet;
    }
    ok(changed == 0, "numfmt.bf16: %d of 2^16 values that rounding changes", changed);
}

// Over all 2^16 noises the mean of the results is x exactly, not about x.
static void stochastic_case(void) {
    static const float exact[] = {1, -3, 0x1.fep-120f, 0x1p-130f, 0, 1e30f};
    int biased = 0, truncation_is_unbiased = 0, far = 0;
    for (int i = 0; i < 64; i++) {
        float x = i < COUNT(exact) ? exact[i] : i < 32 ? test_normal() * 1e-3f : test_normal() * ldexpf(1, 4 * i - 250);
        double sum = 0, quantum = f32_from_bf16((uint16_t)((f32_bits(x) >> 16 & 0x7fff) + 1)) - (double)fabsf(x);
        for (uint32_t noise = 0; noise < 0x10000; noise++) {
            double rounded = f32_from_bf16(bf16_from_f32_stochastic(x, noise | 0xabc00000u));   // upper bits are ignored
            sum += rounded;
            far += fabs(rounded - x) > 2 * fmax(quantum, fabs(x) / 128);
        }
        biased += sum != 65536.0 * x;
        truncation_is_unbiased += f32_from_bf16((uint16_t)(f32_bits(x) >> 16)) == x;
    }
    ok(biased == 0 && far == 0 && truncation_is_unbiased < 32, "numfmt.stochastic: %d of 64 values with a bias", biased);
    ok(isinf(f32_from_bf16(bf16_from_f32_stochastic(-INFINITY, 0xffff))) &&
       isnan(f32_from_bf16(bf16_from_f32_stochastic(f32_from_bits(0x7f800001), 0))),
       "numfmt.stochastic: infinity and NaN stay");
}

// ---- scales
static void scale_case(void) {
    ok(quant_scale(0, INT8, 1) == 1 && quant_scale(-0.0f, FP8_E4M3, 0.75f) == 1, "numfmt.scale of zeros is 1");
    ok(quant_scale(254, INT8, 1) == 2 && quant_scale(28, FP6_E3M2, 0.75f) == 0.75f && quant_scale(448, FP8_E4M3, 1) == 1 &&
       quant_scale(15, FP6_E2M3, 1) == 2 && quant_scale(28672, FP8_E5M2, 1) == 0.5f, "numfmt.scale maps absmax to max(fmt)");
    float largest = larger_magnitude(larger_magnitude(-3, 2), larger_magnitude(0, -0.0f));
    ok(largest == 3 && isnan(larger_magnitude(INFINITY, NAN)) && isnan(larger_magnitude(-NAN, 1e38f)) &&
       isinf(larger_magnitude(1, -INFINITY)), "numfmt.larger_magnitude takes the magnitude, and NaN over all");
    for (int f = 0; f < COUNT(byte_formats); f++) {
        Fmt fmt = byte_formats[f];
        float nan_scale = quant_scale(NAN, fmt, 1), inf_scale = quant_scale(INFINITY, fmt, 1);
        float inf_value = f32_from_code(code_from_f32(1 * quant_inverse(INFINITY, fmt, 1), fmt), fmt) * inf_scale;
        ok(isnan(nan_scale) && isnan(quant_inverse(NAN, fmt, 1)) && isnan(inf_value),
           "numfmt.scale %s: NaN and infinity in an operand reach the product", fmt_name(fmt));

        // From the smallest float to the largest: the largest value comes back within half a step of the grid's top.
        const Grid* grid = grid_of(fmt);
        double half_step = (grid->max - grid->value[grid->count - 2]) / 2;
        double worst = 0;
        int invalid = 0;
        for (int i = 0; i < 100000; i++) {
            uint32_t bits = i < 200 ? (uint32_t)i : i < 400 ? 0x7f800000u - (uint32_t)(i - 199)
                          : (uint32_t)(test_uniform() * 0x7f800000u);
            float absmax = f32_from_bits(bits), scale = quant_scale(absmax, fmt, 1), inverse = quant_inverse(absmax, fmt, 1);
            invalid += !(scale >= 0x1p-126f) || isinf(scale) || !(inverse > 0) || isinf(inverse);
            double back = (double)f32_from_code(code_from_f32(absmax * inverse, fmt), fmt) * scale;
            worst = fmax(worst, fabs(back - absmax) / (half_step * scale));
        }
        ok(invalid == 0 && worst <= 1, "numfmt.scale %s: 2^-149 to 2^128 come back within half a step (%.1f%% of it)",
           fmt_name(fmt), 100 * worst);
    }
}

static void names_case(void) {
    static const size_t bytes[kFmtCount] = {4, 2, 1, 1, 1, 1, 1};
    for (int f = 0; f < kFmtCount; f++) {
        bool byte_format = bytes[f] == 1;
        ok(fmt_bytes((Fmt)f) == bytes[f] && strlen(fmt_name((Fmt)f)) > 2 &&
           (!byte_format || fmt_max((Fmt)f) == grid_of((Fmt)f)->max), "numfmt.names %s", fmt_name((Fmt)f));
    }
    ok(!strcmp(fmt_name((Fmt)99), "?"), "numfmt.names of no format");
}

// The edges of what a code only rounds, from the table: half of the first value (a tie, and 0 is even), half a step beyond the last.
static void range_case(void) {
    for (int fmt = FP8_E4M3; fmt <= INT8; fmt++) {
        const Grid* grid = grid_of((Fmt)fmt);
        CodeRange r = code_range((Fmt)fmt);
        const double* v = grid->value;
        int last = grid->count - 1;
        ok(r.zero == v[1] / 2 && nearest(grid, r.zero) == 0 && nearest(grid, nextafterf(r.zero, 1)) == 1, "%s: magnitudes up to %g become 0",
           fmt_name((Fmt)fmt), (double)r.zero);
        ok(r.clipped == v[last] + (v[last] - v[last - 1]) / 2, "%s: magnitudes beyond %g are clipped", fmt_name((Fmt)fmt), (double)r.clipped);
    }
}

static const Case cases[] = {
    {"numfmt.names", names_case},
    {"numfmt.known", known_case},
    {"numfmt.round", round_case},
    {"numfmt.decode", decode_case},
    {"numfmt.fp6", fp6_case},
    {"numfmt.bf16", bf16_case},
    {"numfmt.stochastic", stochastic_case},
    {"numfmt.scale", scale_case},
    {"numfmt.range", range_case},
};

int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
