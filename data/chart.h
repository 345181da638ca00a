// Line charts as SVG, for people who look at a run: light or dark as the reader's system is (prefers-color-scheme), without scripts,
// fonts or other files. The same chart gives the same bytes.
//
// A chart is a title over panels; a wide panel has a row of its own, others stand three in a row. A panel's axes span the values of its
// series. Where a line has more points than two for each column of pixels, a column shows only its lowest and its highest point.
#ifndef DATA_CHART_H
#define DATA_CHART_H

#include "../halo/base.h"

typedef enum { CHART_LINE, CHART_FAINT, CHART_DASHED, CHART_DOTS } ChartLook;
enum { kChartColors = 6, kTickBytes = 32 };

typedef struct {
    const char* label;          // beside the line's end, in its colour; NULL: none
    int color;                  // any number: modulo kChartColors
    ChartLook look;
    int count;
    const double *x, *y;        // (count), x rising; the line has a gap where y is not finite, or not above 0 on a logarithmic axis
    const double *low, *high;   // (count) each: a band around the line; NULL: none
} ChartSeries;

typedef struct {
    const char *title, *x_name;   // NULL: none
    bool log_x, log_y, wide;
    const ChartSeries* series;    // drawn in this order
    int count;
} ChartPanel;

typedef struct {
    const char *title, *subtitle;   // NULL: none
    const ChartPanel* panels;
    int count;
} Chart;

// A value to four digits, written as the axes' ticks are: 14.83k, 5313, 0.02941.
C_API void chart_value(double v, char text[kTickBytes]);

// The mean of each y (count) and of up to `over` neighbours on each side. Near the beginning, where fewer stand before a value, as few are
// taken behind the value, so that a steep start is not flattened. Values that are not finite are left out, and stay gaps. The caller
// frees the result.
C_API double* chart_smoothed(const double* y, int count, int over);

// The SVG's text, which the caller frees.
C_API char* chart_svg(const Chart* chart, size_t* bytes);

#endif
