// The curves of a training run, and the picture of them: loss.svg in --log DIR.
#ifndef HALO_RUN_CHART_H
#define HALO_RUN_CHART_H

#include "../quant_stats.h"

typedef enum {
    CURVE_LOSS, CURVE_NORM, CURVE_LR, CURVE_SPEED, CURVE_VAL, CURVE_COSINE, CURVE_LEAST_COSINE,
    CURVE_CLIPPED_X, CURVE_CLIPPED_W, CURVE_CLIPPED_DY, CURVE_UNDERFLOW_X, CURVE_UNDERFLOW_W, CURVE_UNDERFLOW_DY, kCurves
} Curve;

typedef struct {
    double *x[kCurves], *y[kCurves];   // (count): steps and values, in the order in which they were added
    int count[kCurves];
} RunCurves;

C_API void curves_add(RunCurves* curves, Curve which, int step, double value);
C_API void curves_add_health(RunCurves* curves, int step, const QuantHealth* h);
// Adds the values in the lines of a log (run_log.h), so that the picture of a resumed run shows its beginning too. Lines that are not JSON are
// skipped.
C_API void curves_read(RunCurves* curves, const char* path);
C_API void curves_free(RunCurves* curves);

// The SVG's text, which the caller frees. `steps`: of the whole run.
C_API char* curves_svg(const RunCurves* curves, const char* title, int steps, size_t* bytes);

#endif
