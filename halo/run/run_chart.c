// The curves of a run; see run_chart.h.
#include "run_chart.h"

#include <math.h>

#include "../../data/chart.h"
#include "../../data/files.h"
#include "../../data/json.h"

void curves_add(RunCurves* c, Curve which, int step, double value) {
    int n = c->count[which]++;
    if ((n & (n - 1)) == 0) {   // full at every power of two
        size_t bytes = sizeof(double) * (size_t)(n ? 2 * n : 1);
        c->x[which] = (double*)host_grow(c->x[which], bytes);
        c->y[which] = (double*)host_grow(c->y[which], bytes);
    }
    c->x[which][n] = step;
    c->y[which][n] = value;
}

void curves_add_health(RunCurves* c, int step, const QuantHealth* h) {
    curves_add(c, CURVE_COSINE, step, h->cosine_mean);
    curves_add(c, CURVE_LEAST_COSINE, step, h->cosine_least);
    for (int i = 0; i < 3; i++) {
        curves_add(c, (Curve)(CURVE_CLIPPED_X + i), step, h->clipped[i]);
        curves_add(c, (Curve)(CURVE_UNDERFLOW_X + i), step, h->underflow[i]);
    }
}

void curves_free(RunCurves* c) {
    for (int i = 0; i < kCurves; i++) {
        free(c->x[i]);
        free(c->y[i]);
    }
    memset(c, 0, sizeof *c);
}

void curves_read(RunCurves* c, const char* path) {
    static const struct {
        const char *key, *part;   // as the log's lines have them
    } kKeys[kCurves] = {{"loss", NULL}, {"grad_norm", NULL}, {"lr", NULL}, {"tokens_per_second", NULL}, {"val_loss", NULL},
                        {"dw_cosine", "mean"}, {"dw_cosine", "least"}, {"clipped_percent", "x"}, {"clipped_percent", "w"},
                        {"clipped_percent", "dy"}, {"underflow_percent", "x"}, {"underflow_percent", "w"}, {"underflow_percent", "dy"}};
    if (!path_exists(path)) return;
    char* text = file_read(path, NULL);
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        json_t* object = json_loadb(line, (size_t)(end - line), 0, NULL);
        int step = (int)json_integer_value(json_object_get(object, "step"));
        for (int i = 0; i < kCurves; i++) {
            const json_t* value = json_object_get(object, kKeys[i].key);
            if (value && kKeys[i].part) value = json_object_get(value, kKeys[i].part);
            if (value) curves_add(c, (Curve)i, step, json_is_number(value) ? json_number_value(value) : NAN);
        }
        json_decref(object);
    }
    free(text);
}

// ---- the picture

enum { kLabelBytes = 64, kMostPictured = 8, kPicturedPanels = 6 };

// The series of a panel, with the labels and smoothed values that they point to.
typedef struct {
    ChartSeries series[kMostPictured];
    char labels[kMostPictured][kLabelBytes];
    double* smoothed[kMostPictured];
    int count;
} PictureSeries;

static ChartSeries* add_curve(PictureSeries* p, const RunCurves* c, Curve which, int color, ChartLook look) {
    ChartSeries s = {NULL, color, look, c->count[which], c->x[which], c->y[which], NULL, NULL};
    p->series[p->count] = s;
    return &p->series[p->count++];
}

// Labels the newest series with `name` and its last finite value.
static void label_curve(PictureSeries* p, const char* name) {
    ChartSeries* s = &p->series[p->count - 1];
    char* text = p->labels[p->count - 1];
    int last = s->count - 1;
    while (last >= 0 && !isfinite(s->y[last])) last--;
    char value[kTickBytes] = "";
    if (last >= 0) chart_value(s->y[last], value);
    snprintf(text, kLabelBytes, "%s%s%s", name, *name ? " " : "", value);
    s->label = last >= 0 ? text : NULL;
}

// Adds a curve twice: faint as it is, and smoothed over a fiftieth of its points on each side. A short curve is added once, as it is.
static void add_smoothed(PictureSeries* p, const RunCurves* c, Curve which, int color, const char* name) {
    int reach = c->count[which] / 50;
    if (reach) add_curve(p, c, which, color, CHART_FAINT);
    ChartSeries* s = add_curve(p, c, which, color, CHART_LINE);
    if (reach) s->y = p->smoothed[p->count - 1] = chart_smoothed(s->y, s->count, reach);
    label_curve(p, name);
}

static int best_of(const RunCurves* c, Curve which) {
    int best = -1;
    for (int i = 0; i < c->count[which]; i++)
        if (isfinite(c->y[which][i]) && (best < 0 || c->y[which][i] < c->y[which][best])) best = i;
    return best;
}

// Is the largest value more than `ratio` times the smallest (all above 0)? Then a linear axis would press the small ones flat.
static bool spans(const RunCurves* c, Curve which, double ratio) {
    double low = INFINITY, high = 0;
    for (int i = 0; i < c->count[which]; i++) {
        if (!isfinite(c->y[which][i])) continue;
        low = fmin(low, c->y[which][i]);
        high = fmax(high, c->y[which][i]);
    }
    return low > 0 && high > ratio * low;
}

static void picture_loss(PictureSeries* p, const RunCurves* c) {
    add_smoothed(p, c, CURVE_LOSS, 0, "training");
    int best = best_of(c, CURVE_VAL);
    if (best < 0) return;
    add_curve(p, c, CURVE_VAL, 1, CHART_LINE);
    label_curve(p, "validation");
    ChartSeries* lowest = add_curve(p, c, CURVE_VAL, 1, CHART_DOTS);
    lowest->x += best;
    lowest->y += best;
    lowest->count = 1;
}

static void picture_health(PictureSeries* p, const RunCurves* c, Curve first) {
    static const char* const kNames[] = {"X", "W", "dY"};
    for (int i = 0; i < 3; i++) {
        add_curve(p, c, (Curve)(first + i), i == 0 ? 5 : i == 1 ? 3 : 4, CHART_LINE);
        label_curve(p, kNames[i]);
    }
}

static int picture_panels(PictureSeries p[kPicturedPanels + 1], const RunCurves* c, ChartPanel* panels) {
    const ChartPanel kPanels[] = {{"loss", "step", false, spans(c, CURVE_LOSS, 10), true, NULL, 0},
                                  {"gradient norm", NULL, false, spans(c, CURVE_NORM, 30), false, NULL, 0},
                                  {"learning rate", NULL, false, false, false, NULL, 0},
                                  {"tokens a second", NULL, false, false, false, NULL, 0},
                                  {"cosine of dW with BF16's", NULL, false, false, false, NULL, 0},
                                  {"clipped, %", NULL, false, false, false, NULL, 0},
                                  {"lost to 0, %", NULL, false, false, false, NULL, 0}};
    int count = c->count[CURVE_COSINE] ? kPicturedPanels + 1 : 4;
    picture_loss(&p[0], c);
    add_smoothed(&p[1], c, CURVE_NORM, 2, "");
    add_curve(&p[2], c, CURVE_LR, 3, CHART_LINE);
    add_smoothed(&p[3], c, CURVE_SPEED, 5, "");
    if (count > 4) {
        add_curve(&p[4], c, CURVE_COSINE, 0, CHART_LINE);
        label_curve(&p[4], "mean");
        add_curve(&p[4], c, CURVE_LEAST_COSINE, 4, CHART_LINE);
        label_curve(&p[4], "least");
        picture_health(&p[5], c, CURVE_CLIPPED_X);
        picture_health(&p[6], c, CURVE_UNDERFLOW_X);
    }
    for (int i = 0; i < count; i++) {
        panels[i] = kPanels[i];
        panels[i].series = p[i].series;
        panels[i].count = p[i].count;
    }
    return count;
}

char* curves_svg(const RunCurves* c, const char* title, int steps, size_t* bytes) {
    PictureSeries* pictured = (PictureSeries*)host_alloc(sizeof(PictureSeries) * (kPicturedPanels + 1));
    ChartPanel panels[kPicturedPanels + 1];
    int count = picture_panels(pictured, c, panels), best = best_of(c, CURVE_VAL), last = c->count[CURVE_LOSS] - 1, used = 0;
    char subtitle[160] = "";
    if (last >= 0)
        used = snprintf(subtitle, sizeof subtitle, "step %.0f of %d, loss %.4f", c->x[CURVE_LOSS][last], steps, c->y[CURVE_LOSS][last]);
    if (best >= 0)
        snprintf(subtitle + used, sizeof subtitle - (size_t)used, "%sbest validation loss %.4f at step %.0f", used ? "; " : "",
                 c->y[CURVE_VAL][best], c->x[CURVE_VAL][best]);
    Chart chart = {title, subtitle, panels, count};
    char* svg = chart_svg(&chart, bytes);
    for (int i = 0; i <= kPicturedPanels; i++)
        for (int k = 0; k < kMostPictured; k++) free(pictured[i].smoothed[k]);
    free(pictured);
    return svg;
}
