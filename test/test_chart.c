// Charts: what a reader of the SVG would see, read back from its text.
#include "../data/chart.h"
#include "test.h"

static char* svg_of(ChartPanel panel) {
    Chart chart = {"title", NULL, &panel, 1};
    size_t bytes;
    char* svg = chart_svg(&chart, &bytes);
    check(strlen(svg) == bytes, "chart_svg: %zu bytes announced", bytes);
    return svg;
}

static char* svg_of_line(ChartSeries s, bool log_y) {
    ChartPanel panel = {"panel", "step", false, log_y, true, &s, 1};
    return svg_of(panel);
}

enum { kMostPoints = 4096 };
typedef struct {
    double x[kMostPoints], y[kMostPoints];
    int count, moves;   // moves: how often the pen was lifted
} Drawn;

// The path of the first element whose class begins with `look`.
static Drawn drawn(const char* svg, const char* look) {
    Drawn d;
    memset(&d, 0, sizeof d);
    char opening[64];
    snprintf(opening, sizeof opening, "<path class=\"%s", look);
    const char* at = strstr(svg, opening);
    at = at ? strstr(at, " d=\"") : NULL;
    if (!at) return d;
    for (at += 4; *at == 'M' || *at == 'L'; d.count++) {
        d.moves += *at == 'M';
        int n = 0;
        if (d.count == kMostPoints || sscanf(at + 1, "%lf %lf%n", &d.x[d.count], &d.y[d.count], &n) != 2) break;
        at += 1 + n;
    }
    return d;
}

// Every element that is opened is closed, and no text holds what XML gives a meaning.
static bool well_formed(const char* svg) {
    int depth = 0;
    for (const char* p = svg; *p; p++) {
        if (*p == '&' && strncmp(p, "&amp;", 5) && strncmp(p, "&lt;", 4) && strncmp(p, "&gt;", 4) && strncmp(p, "&quot;", 6)) return false;
        if (*p != '<') continue;
        const char* end = strchr(p, '>');
        if (!end) return false;
        if (p[1] == '/') depth--;
        else if (end[-1] != '/') depth++;
        if (depth < 0) return false;
        p = end;
    }
    return depth == 0;
}

static void places_case(void) {
    const double x[] = {0, 10, 20}, y[] = {5, 1, 3}, tens[] = {1, 10, 1000};
    ChartSeries s = {"end", 0, CHART_LINE, 3, x, y, NULL, NULL};
    char *svg = svg_of_line(s, false), *again = svg_of_line(s, false);
    Drawn d = drawn(svg, "line");
    ok(d.count == 3 && d.moves == 1, "a line of three points: %d, lifted %d times", d.count, d.moves);
    ok(fabs(d.x[1] - 0.5 * (d.x[0] + d.x[2])) < 0.11 && d.x[0] < d.x[2], "x is linear and rises to the right");
    ok(d.y[0] < d.y[2] && d.y[2] < d.y[1] && fabs(d.y[2] - 0.5 * (d.y[0] + d.y[1])) < 0.11, "y is linear and rises upwards");
    ok(!strcmp(svg, again), "the same chart, the same bytes");
    ok(strstr(svg, ">10</text>") && strstr(svg, ">4</text>") && strstr(svg, ">end</text>"), "ticks at round values, and the label");
    ok(strstr(svg, "@media (prefers-color-scheme:dark)") != NULL, "a dark page has its own colours");
    ok(well_formed(svg) && !well_formed("<a><b></a>") && !well_formed("<a>&</a></b>"), "the text is well-formed XML");
    free(svg);
    free(again);
    s.y = tens;
    svg = svg_of_line(s, true);
    d = drawn(svg, "line");
    ok(fabs((d.y[0] - d.y[1]) * 2 - (d.y[1] - d.y[2])) < 0.31, "a logarithmic axis gives a decade the same height everywhere");
    ok(strstr(svg, ">100</text>") != NULL, "its ticks are decades");
    free(svg);
}

static void gaps_case(void) {
    const double x[] = {1, 2, 3, 4, 5}, y[] = {1, NAN, 2, -1, 3};
    ChartSeries s = {NULL, 1, CHART_LINE, 5, x, y, NULL, NULL};
    char *linear = svg_of_line(s, false), *logarithmic = svg_of_line(s, true);
    Drawn a = drawn(linear, "line"), b = drawn(logarithmic, "line");
    ok(a.count == 4 && a.moves == 2, "NaN is a gap: %d points in %d pieces", a.count, a.moves);
    ok(b.count == 3 && b.moves == 3, "on a logarithmic axis so is -1: %d points in %d pieces", b.count, b.moves);
    s.look = CHART_DOTS;
    char* dots = svg_of_line(s, false);
    ok(count_of(dots, "<circle") == 4, "as many dots as values: %d", count_of(dots, "<circle"));
    free(linear);
    free(logarithmic);
    free(dots);
}

// A hundred thousand points draw at most two a pixel, and the one that sticks out is among them.
static void many_case(void) {
    enum { kPoints = 100000, kSpike = 54321 };
    double *x = (double*)host_alloc(sizeof(double) * kPoints), *y = (double*)host_alloc(sizeof(double) * kPoints);
    for (int i = 0; i < kPoints; i++) x[i] = i, y[i] = test_uniform();
    y[kSpike] = 100;
    ChartSeries s = {NULL, 0, CHART_LINE, kPoints, x, y, NULL, NULL};
    char* svg = svg_of_line(s, false);
    Drawn d = drawn(svg, "line");
    int top = 0, falls = 0;
    for (int i = 1; i < d.count; i++) {
        if (d.y[i] < d.y[top]) top = i;
        falls += d.x[i] < d.x[i - 1] - 1e-9;
    }
    double share = (d.x[top] - d.x[0]) / (d.x[d.count - 1] - d.x[0]);
    ok(d.count > 500 && d.count < 2000 && strlen(svg) < 60000, "100000 points are drawn as %d", d.count);
    ok(fabs(share - (double)kSpike / kPoints) < 0.003 && falls == 0, "a single high one is kept in its place: at %.4f", share);
    free(svg);
    free(x);
    free(y);
}

static void labels_case(void) {
    const double x[] = {0, 1}, y[][2] = {{0, 5}, {1, 5.01}, {2, 5.02}, {3, 0}};
    ChartSeries s[4];
    for (int i = 0; i < 4; i++) {
        ChartSeries one = {i == 3 ? "a < b & \"c\" \x01\xff" : "same", i, CHART_LINE, 2, x, y[i], NULL, NULL};
        s[i] = one;
    }
    ChartPanel panel = {NULL, NULL, false, false, false, s, 4};
    char* svg = svg_of(panel);
    double heights[4], nearest = 1e9;
    int n = 0;
    for (const char* p = svg; n < 4 && (p = strstr(p, "<text class=\"f")) != NULL; p++) heights[n++] = atof(strstr(p, " y=\"") + 4);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++) nearest = fmin(nearest, fabs(heights[i] - heights[k]));
    ok(n == 4 && nearest > 14.9, "labels of lines that end in one place stand apart: %d labels, %.1f px", n, nearest);
    ok(strstr(svg, ">a &lt; b &amp; &quot;c&quot; ?\?</text>") && well_formed(svg), "a label's text is escaped");
    free(svg);
    s[0].label = "a label that is much longer than a small panel has room for, in one piece";
    svg = svg_of(panel);
    ok(strstr(svg, "\u2026</text>") && strstr(svg, ">a label") && !strstr(svg, "small panel"), "a label that is too long is cut");
    free(svg);
}

static void values_case(void) {
    const struct {
        double v;
        const char* text;
    } cases[] = {{14830, "14.83k"}, {5313, "5313"}, {0.029412, "0.02941"}, {10.1, "10.10"}, {-3.14159, "-3.142"}, {0, "0"}, {1234567, "1.235M"},
                 {99999, "100.0k"}, {0.00012345, "0.000123"}, {123.456, "123.5"}};
    for (int i = 0; i < COUNT(cases); i++) {
        char text[kTickBytes];
        chart_value(cases[i].v, text);
        ok(!strcmp(text, cases[i].text), "%g is written %s", cases[i].v, text);
    }
}

// Whatever a run may hold: no NaN and no infinity reaches the picture.
static void extremes_case(void) {
    const double x[] = {1, 2, 3}, huge[] = {-1e308, 1e308, INFINITY}, none[] = {NAN, NAN, NAN}, same[] = {7, 7, 7}, tiny[] = {1e-310, 2e-310, 0},
                 small[] = {1e-9, 3e-9, 2e-9}, zero[] = {0, 0, 0}, wide[] = {1e-200, 1, 1e200};
    const double* const values[] = {huge, none, same, tiny, small, zero, wide};
    for (int i = 0; i < COUNT(values) * 3; i++) {
        int count = i / 7 == 2 ? 0 : i / 7 == 1 ? 1 : 3;
        for (int log_y = 0; log_y < 2; log_y++) {
            ChartSeries s = {"label", 0, CHART_LINE, count, x, values[i % 7], values[i % 7], same};
            char* svg = svg_of_line(s, log_y);
            const char* body = strstr(svg, "</style>");
            ok(!strstr(body, "nan") && !strstr(body, "inf") && well_formed(svg) && strlen(svg) < 20000, "values %d, %d of them, log %d", i % 7, count, log_y);
            free(svg);
        }
    }
}

static void smooth_case(void) {
    enum { kPoints = 300, kReach = 17 };
    double y[kPoints];
    float got[kPoints], want[kPoints];
    for (int i = 0; i < kPoints; i++) y[i] = test_normal() + 0.01 * i;
    y[100] = NAN;
    double* smooth = chart_smoothed(y, kPoints, kReach);
    for (int i = 0; i < kPoints; i++) {
        int reach = min_int(kReach, i), n = 0;
        double sum = 0;
        for (int k = i - reach; k <= i + reach && k < kPoints; k++)
            if (isfinite(y[k])) sum += y[k], n++;
        got[i] = i == 100 ? 0 : (float)smooth[i];
        want[i] = i == 100 ? 0 : (float)(sum / n);
    }
    ok(isnan(smooth[100]), "smoothed: a gap stays one");
    ok(smooth[0] == y[0], "smoothed: the first value stays");
    close_to(got, want, kPoints, 1e-6, "smoothed: the mean of the neighbours");
    free(smooth);
}

static const Case kCases[] = {{"places", places_case}, {"gaps", gaps_case},         {"many", many_case},
                              {"labels", labels_case}, {"values", values_case}, {"extremes", extremes_case}, {"smooth", smooth_case}};

int main(int argc, char** argv) { return test_main(kCases, COUNT(kCases), argc, argv); }
