// chart < figure.jsonl > figure.svg: draws a chart (data/chart.h) from a line of JSON for each of its parts, in their order:
//
//   {"chart": "title", "subtitle": "..."}
//   {"panel": "title", "x_name": "step", "log_x": false, "log_y": false, "wide": true}     the first is wide unless it says otherwise
//   {"series": "label", "x": [1, 2], "y": [0.5, null], "low": [...], "high": [...], "look": "line|faint|dashed|dots", "color": 0}
//   {"series": "label", "log": "run/log.jsonl", "key": "loss", "smooth": 20}     y from the lines of a run's log that have the key
//
// A series stands in the panel before it. Without "x" the points are numbered from 1, null is a gap, "smooth" is the mean of so many
// neighbours on each side, and "color" counts up by itself. An empty label is none.
#include <math.h>

#include "../data/chart.h"
#include "../data/files.h"
#include "../data/json.h"

enum { kMostPanels = 32, kMostSeries = 64 };

static ChartPanel panels[kMostPanels];
static ChartSeries series[kMostPanels][kMostSeries];
static Chart chart = {NULL, NULL, panels, 0};

static const char* text_of(const json_t* part, const char* key) {
    const char* text = json_string_value(json_object_get(part, key));
    return text && *text ? host_strdup(text) : NULL;
}

static double number_of(const json_t* x) { return json_is_number(x) ? json_number_value(x) : NAN; }

static double* numbers(const json_t* part, const char* key, int line, int* count) {
    const json_t* list = json_object_get(part, key);
    if (!list) return NULL;
    int n = (int)json_array_size(list);
    if (!json_is_array(list) || (*count >= 0 && n != *count)) user_error("line %d: \"%s\" must be a list, as long as the others", line, key);
    double* x = (double*)host_alloc(sizeof(double) * (size_t)n);
    for (int i = 0; i < n; i++) x[i] = number_of(json_array_get(list, (size_t)i));
    *count = n;
    return x;
}

// The lines of a log that have `key`, against their steps.
static void read_log(ChartSeries* s, const char* path, const char* key, int line) {
    if (!key) user_error("line %d: \"log\" needs a \"key\"", line);
    char* text = file_read(path, NULL);
    double *x = NULL, *y = NULL;
    for (char *at = text, *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        json_t* object = json_loadb(at, (size_t)(end - at), 0, NULL);
        const json_t* value = json_object_get(object, key);
        if (value) {
            x = (double*)host_grow(x, sizeof(double) * (size_t)(s->count + 1));
            y = (double*)host_grow(y, sizeof(double) * (size_t)(s->count + 1));
            x[s->count] = number_of(json_object_get(object, "step"));
            y[s->count++] = number_of(value);
        }
        json_decref(object);
    }
    s->x = x;
    s->y = y;
    free(text);
}

static ChartLook look_of(const json_t* part, int line) {
    static const char* const kWords[] = {"line", "faint", "dashed", "dots"};
    const char* word = json_string_value(json_object_get(part, "look"));
    for (int i = 0; word && i < 4; i++)
        if (!strcmp(word, kWords[i])) return (ChartLook)i;
    if (word) user_error("line %d: \"look\" must be one of line, faint, dashed, dots", line);
    return CHART_LINE;
}

static void add_series(const json_t* part, int line) {
    if (!chart.count) user_error("line %d: a series before the first panel", line);
    ChartPanel* p = &panels[chart.count - 1];
    if (p->count == kMostSeries) user_error("line %d: more than %d series in a panel", line, (int)kMostSeries);
    ChartSeries s = {text_of(part, "series"), p->count, look_of(part, line), 0, NULL, NULL, NULL, NULL};
    const char* log = json_string_value(json_object_get(part, "log"));
    int count = -1;
    if (json_object_get(part, "color")) s.color = (int)json_integer_value(json_object_get(part, "color")) & 0xff;
    if (log) read_log(&s, log, json_string_value(json_object_get(part, "key")), line);
    else {
        double* y = numbers(part, "y", line, &count);
        if (!y) user_error("line %d: a series needs \"y\", or \"log\" and \"key\"", line);
        s.count = count;
        s.y = y;
        s.x = numbers(part, "x", line, &count);
        s.low = numbers(part, "low", line, &count);
        s.high = numbers(part, "high", line, &count);
        double* numbered = (double*)host_alloc(sizeof(double) * (size_t)count);
        for (int i = 0; i < count; i++) numbered[i] = i + 1;
        if (!s.x) s.x = numbered;
    }
    int over = (int)json_integer_value(json_object_get(part, "smooth"));
    if (over > 0) s.y = chart_smoothed(s.y, s.count, over);
    series[chart.count - 1][p->count++] = s;
}

static void add_part(const json_t* part, int line) {
    if (json_object_get(part, "chart")) {
        chart.title = text_of(part, "chart");
        chart.subtitle = text_of(part, "subtitle");
    } else if (json_object_get(part, "panel")) {
        if (chart.count == kMostPanels) user_error("line %d: more than %d panels", line, (int)kMostPanels);
        const json_t* wide = json_object_get(part, "wide");
        ChartPanel p = {text_of(part, "panel"), text_of(part, "x_name"), json_is_true(json_object_get(part, "log_x")),
                        json_is_true(json_object_get(part, "log_y")), wide ? json_is_true(wide) : chart.count == 0, series[chart.count], 0};
        panels[chart.count++] = p;
    } else if (json_object_get(part, "series")) {
        add_series(part, line);
    } else {
        user_error("line %d: an object with \"chart\", \"panel\" or \"series\" is expected", line);
    }
}

int main(void) {
    char* text = NULL;
    size_t room = 0, bytes;
    for (int line = 1; getline(&text, &room, stdin) > 0; line++) {
        if (strspn(text, " \t\r\n") == strlen(text)) continue;
        json_error_t error;
        json_t* part = json_loads(text, 0, &error);
        if (!part) user_error("line %d, column %d: %s", line, error.column, error.text);
        add_part(part, line);
        json_decref(part);
    }
    char* svg = chart_svg(&chart, &bytes);
    if (fwrite(svg, 1, bytes, stdout) != bytes || fflush(stdout)) user_error("the chart could not be written");
    return 0;
}
