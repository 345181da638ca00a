// SVG charts; see chart.h.
#include "chart.h"

#include <math.h>

#include "utf8.h"

// ---- the look

enum { kWidth = 960, kMargin = 24, kGap = 28, kInRow = 3, kWideHeight = 340, kSmallHeight = 210, kHeadHeight = 30, kFootHeight = 34 };

static const char kStyle[] =
    "<style>\n"
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2328}\n"
    ".title{font-size:18px;font-weight:600}.head{font-size:13px;font-weight:600}.muted{fill:#59636e}.end{text-anchor:end}.middle{text-anchor:middle}\n"
    ".page{fill:#ffffff}.grid{stroke:#e4e8ec}.axis{stroke:#8c959f}\n"
    ".line{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}.faint{fill:none;stroke-width:1;stroke-opacity:.35;stroke-linejoin:round}\n"
    ".dashed{fill:none;stroke-width:1.5;stroke-dasharray:5 4}.band{stroke:none;fill-opacity:.16}\n"
    ".s0{stroke:#2266d4}.s1{stroke:#cf5b00}.s2{stroke:#15803d}.s3{stroke:#8b3fc4}.s4{stroke:#c62f3f}.s5{stroke:#0b7a86}\n"
    ".f0{fill:#2266d4}.f1{fill:#cf5b00}.f2{fill:#15803d}.f3{fill:#8b3fc4}.f4{fill:#c62f3f}.f5{fill:#0b7a86}\n"
    "@media (prefers-color-scheme:dark){\n"
    "text{fill:#e6edf3}.muted{fill:#9da7b1}.page{fill:#0d1117}.grid{stroke:#262c34}.axis{stroke:#6e7681}\n"
    ".s0{stroke:#6ea8ff}.s1{stroke:#ffa657}.s2{stroke:#56d38b}.s3{stroke:#c9a0ff}.s4{stroke:#ff7b86}.s5{stroke:#4fd1dc}\n"
    ".f0{fill:#6ea8ff}.f1{fill:#ffa657}.f2{fill:#56d38b}.f3{fill:#c9a0ff}.f4{fill:#ff7b86}.f5{fill:#4fd1dc}\n"
    "}\n"
    "</style>\n";

// Text of an element: what XML gives a meaning is escaped, what it cannot hold becomes '?'.
static void put_escaped(FILE* out, const char* text) {
    size_t left = strlen(text);
    while (left) {
        int n = utf8_char_bytes(text, left);
        const char* special = strchr("&<>\"", *text);
        static const char* const kEntities[] = {"&amp;", "&lt;", "&gt;", "&quot;"};
        if (special) fputs(kEntities[special - strchr("&<>\"", '&')], out);
        else if (n <= 0 || (n == 1 && (unsigned char)*text < 0x20)) fputc('?', out);
        else fwrite(text, 1, (size_t)n, out);
        n = max_int(n, 1);
        text += n;
        left -= (size_t)n;
    }
}

static void put_text(FILE* out, const char* look, double x, double y, const char* text) {
    fprintf(out, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\">", look, x, y);
    put_escaped(out, text);
    fputs("</text>\n", out);
}

// ---- axes

// From a value to a place: linear, or by the logarithm.
typedef struct {
    double low, high;     // values at `from` and `to`
    double from, to;      // pixels
    bool logarithmic;
    bool empty;           // no value to show
} ChartAxis;

// Ratios and spans of what is shown are finite: a value beyond these bounds is as good as none.
static bool shows(const ChartAxis* a, double v) { return fabs(v) < 1e150 && (!a->logarithmic || v > 1e-150); }

static double place(const ChartAxis* a, double v) {
    double t = a->logarithmic ? (log(v) - log(a->low)) / (log(a->high) - log(a->low)) : (v - a->low) / (a->high - a->low);
    return a->from + t * (a->to - a->from);
}

static void widen(ChartAxis* a, const double* values, int count) {
    for (int i = 0; values && i < count; i++) {
        if (!shows(a, values[i])) continue;
        if (a->empty || values[i] < a->low) a->low = values[i];
        if (a->empty || values[i] > a->high) a->high = values[i];
        a->empty = false;
    }
}

// Room around the values, and a span above 0 also for a single one. `share`: of the span, on each side.
static void settle(ChartAxis* a, double share) {
    if (a->empty) a->low = a->logarithmic ? 1 : 0, a->high = a->logarithmic ? 10 : 1;
    if (a->logarithmic) {
        double ratio = a->high / a->low > 1.0001 ? pow(a->high / a->low, share) : 1.5;
        a->low /= ratio;
        a->high *= ratio;
        return;
    }
    double least = 1e-9 * fmax(fabs(a->low), fabs(a->high)), room = a->high - a->low > least ? share * (a->high - a->low) : 0;
    if (a->high == 0 && a->low == 0) {
        a->high = 1;
        return;
    }
    if (a->high - a->low <= least) room = 0.1 * fabs(a->high);
    a->low -= room;
    a->high += room;
}

// 1, 2 or 5 times a power of ten: the smallest step that makes at most `most` ticks over the span.
static double nice_step(double span, int most) {
    double power = pow(10, floor(log10(span / most))), factors[] = {1, 2, 5};
    for (int i = 0; i < 3; i++)
        if (span / (factors[i] * power) <= most) return factors[i] * power;
    return 10 * power;
}

enum { kMostTicks = 24 };

// The values of an axis' ticks; at most `most`, which is below kMostTicks.
static int ticks_of(const ChartAxis* a, int most, double ticks[kMostTicks]) {
    int count = 0;
    double decades = a->logarithmic ? log10(a->high / a->low) : 0;
    if (decades > 1) {
        double every = ceil(decades / most);
        static const double kWithin[] = {1, 2, 5};
        for (double power = floor(log10(a->low)); power <= log10(a->high); power += every)
            for (int i = 0; i < (decades * 3 <= most ? 3 : 1); i++) {
                double v = kWithin[i] * pow(10, power);
                if (v >= a->low && v <= a->high && count < kMostTicks) ticks[count++] = v;
            }
        return count;
    }
    double step = nice_step(a->high - a->low, most);
    for (double k = ceil(a->low / step); k * step <= a->high && count < kMostTicks; k++) ticks[count++] = k * step;
    return count;
}

// A tick's value, with as many digits as tell it from its neighbours.
static void tick_text(double v, double step, char text[kTickBytes]) {
    double size = fabs(v);
    const char* unit = "";
    if (size >= 1e4 && size < 1e13 && step >= 10) {
        int thousands = min_int((int)floor(log10(size) / 3 + 1e-9), 4);
        unit = thousands == 1 ? "k" : thousands == 2 ? "M" : thousands == 3 ? "G" : "T";
        v /= pow(1000, thousands);
        step /= pow(1000, thousands);
    }
    int digits = step > 0 ? (int)ceil(-log10(step) - 1e-9) : 0;
    if (v == 0) strcpy(text, "0");
    else if (*unit == 0 && (size >= 1e6 || (size > 0 && size < 1e-3))) snprintf(text, kTickBytes, "%.3g", v);
    else snprintf(text, kTickBytes, "%.*f%s", max_int(0, min_int(digits, 6)), v, unit);
}

// The place of a value's fourth digit: 0.01 of 14.83.
static double fourth_place(double v) { return pow(10, floor(log10(fabs(v)) + 1e-9) - 3); }

void chart_value(double v, char text[kTickBytes]) {
    if (v != 0) v = round(v / fourth_place(v)) * fourth_place(v);   // 99999 gets one digit more
    tick_text(v, v == 0 ? 0 : fourth_place(v), text);
}

static void tick_texts(const ChartAxis* a, const double* ticks, int count, char texts[kMostTicks][kTickBytes]) {
    for (int i = 0; i < count; i++) {
        double step = count < 2 ? fabs(ticks[0]) : a->logarithmic ? ticks[i] : ticks[1] - ticks[0];
        tick_text(ticks[i], step, texts[i]);
    }
}

// ---- lines

typedef struct {
    ChartAxis x, y;
} ChartFrame;

static bool point_shows(const ChartFrame* f, const ChartSeries* s, const double* y, int i) { return shows(&f->x, s->x[i]) && shows(&f->y, y[i]); }

// Which of the points are drawn: all if they are few, else the lowest and the highest of each column of pixels, in their order, and
// one where the line has a gap. Returns how many; the caller frees `kept`.
static int pick_points(const ChartFrame* f, const ChartSeries* s, const double* y, int** kept) {
    int *picked = (int*)host_alloc(sizeof(int) * (size_t)s->count), n = 0;
    bool all = s->count <= 2 * fabs(f->x.to - f->x.from);
    *kept = picked;
    for (int i = 0; i < s->count;) {
        if (all || !point_shows(f, s, y, i)) {
            picked[n++] = i++;
            continue;
        }
        double column = floor(place(&f->x, s->x[i]));
        int low = i, high = i;
        for (; i < s->count && point_shows(f, s, y, i) && floor(place(&f->x, s->x[i])) == column; i++) {
            if (y[i] < y[low]) low = i;
            if (y[i] > y[high]) high = i;
        }
        picked[n++] = min_int(low, high);
        if (low != high) picked[n++] = max_int(low, high);
    }
    return n;
}

static void put_line(FILE* out, const ChartFrame* f, const ChartSeries* s) {
    static const char* const kLooks[] = {"line", "faint", "dashed"};
    int *kept, n = pick_points(f, s, s->y, &kept);
    bool drawing = false;
    fprintf(out, "<path class=\"%s s%d\" d=\"", kLooks[s->look], s->color % kChartColors);
    for (int i = 0; i < n; i++) {
        int k = kept[i];
        bool shown = point_shows(f, s, s->y, k);
        if (shown) fprintf(out, "%c%.1f %.1f", drawing ? 'L' : 'M', place(&f->x, s->x[k]), place(&f->y, s->y[k]));
        drawing = shown;
    }
    fputs("\"/>\n", out);
    free(kept);
}

static void put_dots(FILE* out, const ChartFrame* f, const ChartSeries* s) {
    for (int i = 0; i < s->count; i++)
        if (point_shows(f, s, s->y, i))
            fprintf(out, "<circle class=\"f%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.2\"/>\n", s->color % kChartColors, place(&f->x, s->x[i]), place(&f->y, s->y[i]));
}

// The band goes along its upper edge and back along its lower one; it leaves out what a gap leaves out.
static void put_band(FILE* out, const ChartFrame* f, const ChartSeries* s) {
    int n = 0, *seen = (int*)host_alloc(sizeof(int) * (size_t)max_int(s->count, 1));
    for (int i = 0; i < s->count; i++)
        if (point_shows(f, s, s->low, i) && shows(&f->y, s->high[i])) seen[n++] = i;
    fprintf(out, "<path class=\"band f%d\" d=\"", s->color % kChartColors);
    for (int i = 0; i < n; i++) fprintf(out, "%c%.1f %.1f", i ? 'L' : 'M', place(&f->x, s->x[seen[i]]), place(&f->y, s->high[seen[i]]));
    for (int i = n - 1; i >= 0; i--) fprintf(out, "L%.1f %.1f", place(&f->x, s->x[seen[i]]), place(&f->y, s->low[seen[i]]));
    fputs(n ? "Z\"/>\n" : "\"/>\n", out);
    free(seen);
}

double* chart_smoothed(const double* y, int count, int over) {
    double *smooth = (double*)host_alloc(sizeof(double) * (size_t)count), *sums = (double*)host_alloc(sizeof(double) * ((size_t)count + 1));
    int* counts = (int*)host_alloc(sizeof(int) * ((size_t)count + 1));   // of the finite among the first i, as sums[i] is their sum
    for (int i = 0; i < count; i++) {
        sums[i + 1] = sums[i] + (isfinite(y[i]) ? y[i] : 0);
        counts[i + 1] = counts[i] + (isfinite(y[i]) ? 1 : 0);
    }
    for (int i = 0; i < count; i++) {
        int reach = min_int(over, i), from = i - reach, to = min_int(i + reach, count - 1) + 1;
        smooth[i] = isfinite(y[i]) ? (sums[to] - sums[from]) / (counts[to] - counts[from]) : NAN;
    }
    free(sums);
    free(counts);
    return smooth;
}

// ---- panels

typedef struct {
    double x, y, width, height;
} ChartBox;

// Pixels of a text of 12 px; a character of more bytes than one counts once.
static double text_width(const char* text) {
    int n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return 6.7 * n;
}

enum { kMostLabels = 16, kLabelHeight = 15, kLabelBytes = 256 };

// A label with its end left out where it would be wider than `room`.
static void fit_label(const char* label, double room, char text[kLabelBytes]) {
    snprintf(text, kLabelBytes - 4, "%s", label);
    text[strlen(text) - (size_t)utf8_cut_bytes(text, strlen(text))] = 0;
    bool whole = strlen(text) == strlen(label) && text_width(label) <= room;
    while (!whole && *text && text_width(text) > room - text_width(".")) {
        size_t n = strlen(text) - 1;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) n--;
        text[n] = 0;
    }
    if (!whole) strcat(text, "\u2026");
}

// Labels stand where their lines end, pushed apart where they would touch.
static void put_labels(FILE* out, const ChartFrame* f, const ChartPanel* p, double room) {
    double top = f->y.to, bottom = f->y.from;
    struct {
        double y;
        const ChartSeries* s;
    } labels[kMostLabels], moved;
    int n = 0;
    for (int i = 0; i < p->count && n < kMostLabels; i++) {
        const ChartSeries* s = &p->series[i];
        int last = s->count - 1;
        while (last >= 0 && !point_shows(f, s, s->y, last)) last--;
        if (!s->label || last < 0) continue;
        labels[n].y = place(&f->y, s->y[last]) + 4;
        labels[n++].s = s;
    }
    for (int i = 1; i < n; i++)   // by their height
        for (int k = i; k > 0 && labels[k].y < labels[k - 1].y; k--) moved = labels[k], labels[k] = labels[k - 1], labels[k - 1] = moved;
    for (int i = 0; i < n; i++) labels[i].y = fmax(labels[i].y, i ? labels[i - 1].y + kLabelHeight : top + 4);
    double limit = bottom + 4;
    for (int i = n - 1; i >= 0; i--, limit -= kLabelHeight) labels[i].y = fmin(labels[i].y, limit);
    for (int i = 0; i < n; i++) {
        char look[16], text[kLabelBytes];
        snprintf(look, sizeof look, "f%d", labels[i].s->color % kChartColors);
        fit_label(labels[i].s->label, room, text);
        put_text(out, look, f->x.to + 8, labels[i].y, text);
    }
}

static int most_y_ticks(double height) { return max_int(5, (int)(height / 42)); }

static void put_axes(FILE* out, const ChartFrame* f, const ChartPanel* p) {
    double ticks[kMostTicks];
    char texts[kMostTicks][kTickBytes];
    int n = ticks_of(&f->y, most_y_ticks(f->y.from - f->y.to), ticks);
    tick_texts(&f->y, ticks, n, texts);
    for (int i = 0; i < n; i++) {
        double y = place(&f->y, ticks[i]);
        fprintf(out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>\n", f->x.from, y, f->x.to);
        put_text(out, "muted end", f->x.from - 7, y + 4, texts[i]);
    }
    fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>\n", f->x.from, f->y.from, f->x.to);
    n = ticks_of(&f->x, max_int(5, (int)((f->x.to - f->x.from) / 70)), ticks);
    tick_texts(&f->x, ticks, n, texts);
    double room = f->x.to - (p->x_name ? 0.5 * text_width(p->x_name) + 8 : 0), free_from = f->x.from - kWidth;
    for (int i = 0; i < n; i++) {
        double x = place(&f->x, ticks[i]), half = 0.5 * text_width(texts[i]);
        fprintf(out, "<path class=\"axis\" d=\"M%.1f %.1fv4\"/>\n", x, f->y.from);
        if (x - half < free_from || x + half > room - (p->x_name ? 0.5 * text_width(p->x_name) : -half)) continue;
        put_text(out, "muted middle", x, f->y.from + 18, texts[i]);
        free_from = x + half + 6;
    }
    if (p->x_name) put_text(out, "muted end", f->x.to, f->y.from + 18, p->x_name);
}

// The widest text of the y axis' ticks, which is what the frame leaves room for at its left.
static double tick_width(const ChartAxis* y, double height) {
    double ticks[kMostTicks], widest = 0;
    char texts[kMostTicks][kTickBytes];
    int n = ticks_of(y, most_y_ticks(height), ticks);
    tick_texts(y, ticks, n, texts);
    for (int i = 0; i < n; i++) widest = fmax(widest, text_width(texts[i]));
    return widest;
}

static ChartFrame frame_of(const ChartPanel* p, ChartBox box) {
    ChartFrame f = {{0, 0, 0, 0, p->log_x, true}, {0, 0, box.y + box.height - kFootHeight, box.y + kHeadHeight, p->log_y, true}};
    double labels = 0;
    for (int i = 0; i < p->count; i++) {
        const ChartSeries* s = &p->series[i];
        widen(&f.x, s->x, s->count);
        widen(&f.y, s->y, s->count);
        widen(&f.y, s->low, s->count);
        widen(&f.y, s->high, s->count);
        if (s->label) labels = fmax(labels, text_width(s->label) + 4);
    }
    settle(&f.x, 0);
    settle(&f.y, 0.05);
    f.x.from = box.x + tick_width(&f.y, f.y.from - f.y.to) + 9;
    f.x.to = box.x + box.width - fmin(labels, 0.4 * box.width) - 6;
    return f;
}

static void put_panel(FILE* out, const ChartPanel* p, ChartBox box) {
    ChartFrame f = frame_of(p, box);
    if (p->title) put_text(out, "head", box.x, box.y + 14, p->title);
    put_axes(out, &f, p);
    for (int i = 0; i < p->count; i++)
        if (p->series[i].low && p->series[i].high) put_band(out, &f, &p->series[i]);
    for (int i = 0; i < p->count; i++) {
        if (p->series[i].look == CHART_DOTS) put_dots(out, &f, &p->series[i]);
        else put_line(out, &f, &p->series[i]);
    }
    put_labels(out, &f, p, box.x + box.width - f.x.to - 8);
}

// Where panel `index` stands; *bottom: the end of what stands so far, moved along.
static ChartBox box_of(const Chart* c, int index, int* in_row, double* bottom) {
    const double inner = kWidth - 2 * kMargin, small = (inner - (kInRow - 1) * kGap) / kInRow;
    bool wide = c->panels[index].wide;
    if (wide || *in_row == 0 || *in_row == kInRow) {
        *in_row = 0;
        *bottom += wide ? kWideHeight : kSmallHeight;
    }
    double height = wide ? kWideHeight : kSmallHeight;
    ChartBox box = {kMargin + *in_row * (small + kGap), *bottom - height, wide ? inner : small, height - 12};
    *in_row = wide ? 0 : *in_row + 1;
    return box;
}

char* chart_svg(const Chart* c, size_t* bytes) {
    char *text, *body;
    size_t body_bytes;
    FILE *panels = open_memstream(&body, &body_bytes), *out = open_memstream(&text, bytes);
    check(panels && out, "chart_svg: no memory");
    double bottom = kMargin + (c->title ? 26 : 0) + (c->subtitle ? 18 : 0);
    if (c->title) put_text(panels, "title", kMargin, kMargin + 10, c->title);
    if (c->subtitle) put_text(panels, "muted", kMargin, kMargin + (c->title ? 30 : 8), c->subtitle);
    int in_row = 0;
    for (int i = 0; i < c->count; i++) {
        ChartBox box = box_of(c, i, &in_row, &bottom);
        put_panel(panels, &c->panels[i], box);
    }
    fclose(panels);
    int height = (int)bottom + 8;
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\">\n%s"
                 "<rect class=\"page\" width=\"100%%\" height=\"100%%\"/>\n%s</svg>\n", (int)kWidth, height, (int)kWidth, height, kStyle, body);
    check(!ferror(out) && fclose(out) == 0, "chart_svg: no memory");
    free(body);
    return text;
}
