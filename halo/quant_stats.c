// The health of quantization; see quant_stats.h.
#include "quant_stats.h"

static size_t stats_bytes(const QuantStats* q) { return sizeof(LinearStats) * (size_t)q->layers * kLinearCount; }

void quant_stats_place(QuantStats* q, Arena* arena, const Ops* ops, const LinearShape shape[kLinearCount], int layers, int rows) {
    size_t largest = 0, widest = 0;
    q->ops = ops;
    q->layers = layers;
    for (int i = 0; i < kLinearCount; i++) {
        q->shape[i] = shape[i];
        for (int p = 0; p < shape[i].parts; p++) {
            size_t values = (size_t)shape[i].N[p] * shape[i].K;
            if (values > largest) largest = values;
            widest = (size_t)max_int((int)widest, max_int(shape[i].N[p], shape[i].K));
        }
    }
    q->linears = (LinearStats*)arena_take(arena, stats_bytes(q));
    q->shadow = (float*)arena_take(arena, largest * sizeof(float));
    size_t operand = (size_t)rows * widest > largest ? (size_t)rows * widest : largest;
    q->rotated = arena_take(arena, operand * fmt_bytes(ops->act));
}

void quant_stats_begin(const QuantStats* q) { q->ops->zero(q->linears, stats_bytes(q)); }

// ---- observing

LinearStats* quant_stats_linear(const QuantStats* q, int layer, int linear) { return q->linears + (size_t)layer * kLinearCount + linear; }

void quant_stats_operand(const QuantStats* q, OperandStats* s, Mat x, Opnd how, Rotation rotation, int rows) {
    Mat rotated = mat(q->rotated, rows, x.cols, q->ops->act);
    q->ops->absmax(&s->absmax, x);
    if (how.rotate) q->ops->rotate(rotated, x, rotation.axis, false, rotation.block, &s->rotated_absmax);
    if (fmt_bytes(how.fmt) == 1)
        q->ops->count_codes(&s->counts, how.rotate ? rotated : x, how.rotate ? &s->rotated_absmax : &s->absmax, how);
}

// If dW is rotated, the shadow is rotated too: H is orthonormal, so the cosine is the same. Their inner product comes from |a + b|^2.
void quant_stats_gradient(const QuantStats* q, float squares[3], Mat dw, bool rotated, Mat dy, Mat x) {
    Mat shadow = mat(q->shadow, dw.rows, dw.cols, F32);
    q->ops->gemm(shadow, plain_side(dy, true), plain_side(x, true), 0);
    if (rotated) q->ops->rotate(shadow, shadow, ROTATE_COLS, false, 0, NULL);
    q->ops->sum_squares(&squares[0], dw);
    q->ops->sum_squares(&squares[1], shadow);
    q->ops->add(shadow, dw, NULL);
    q->ops->sum_squares(&squares[2], shadow);
}

double quant_stats_cosine(const float squares[3]) {
    double a = squares[0], b = squares[1], both = squares[2];
    return (both - a - b) / (2 * sqrt(a) * sqrt(b));
}

// ---- the report: JSON

static void put_number(FILE* log, const char* before, double x) {
    fputs(before, log);
    if (isfinite(x)) fprintf(log, "%.6g", x);
    else fputs("null", log);
}

static double percent(uint64_t count, uint64_t all) { return all ? 100.0 * (double)count / (double)all : 0; }

static void put_operand(FILE* log, const char* name, const OperandStats* s) {
    fprintf(log, "\"%s\": {\"clipped_percent\": %.6g, \"underflow_percent\": %.6g", name, percent(s->counts.clipped, s->counts.nonzero),
            percent(s->counts.underflow, s->counts.nonzero));
    put_number(log, ", \"absmax\": ", s->absmax);
    put_number(log, ", \"absmax_rotated\": ", s->rotated_absmax > 0 ? s->rotated_absmax : s->absmax);
    fputs("}, ", log);
}

static void put_matrix(const QuantStats* q, const LinearStats* s, int p, const char* name, FILE* log) {
    fprintf(log, "{\"name\": \"%s\", ", name);
    if (q->has_weights) put_operand(log, "w", &s->w[p][0]);
    else fputs("\"w\": null, ", log);
    if (q->has_weights && q->second_w) put_operand(log, "w_e", &s->w[p][1]);
    put_operand(log, "dy", &s->dy[p][0]);
    if (q->second_dy) put_operand(log, "dy_g", &s->dy[p][1]);
    put_number(log, "\"dw_cosine\": ", quant_stats_cosine(s->squares[p]));
    fputc('}', log);
}

static void put_percents(const char* name, const double percents[3], FILE* log) {
    fprintf(log, ", \"%s\": {\"x\": %.6g, \"w\": %.6g, \"dy\": %.6g}", name, percents[0], percents[1], percents[2]);
}

static void put_json(const QuantStats* q, const LinearStats* linears, const QuantHealth* h, int step, FILE* log) {
    fprintf(log, "{\"step\": %d", step);
    put_number(log, ", \"dw_cosine\": {\"mean\": ", h->cosine_mean);
    put_number(log, ", \"least\": ", h->cosine_least);
    fputc('}', log);
    put_percents("clipped_percent", h->clipped, log);
    put_percents("underflow_percent", h->underflow, log);
    fputs(", \"quant_stats\": [", log);
    for (int layer = 0; layer < q->layers; layer++) {
        for (int i = 0; i < kLinearCount; i++) {
            const LinearStats* s = &linears[layer * kLinearCount + i];
            fprintf(log, "%s{\"layer\": %d, \"linear\": \"%s\", ", layer || i ? ", " : "", layer, kLinears[i].name);
            put_operand(log, "x", &s->x[0]);
            if (q->second_x) put_operand(log, "x_g", &s->x[1]);
            fputs("\"matrices\": [", log);
            for (int p = 0; p < q->shape[i].parts; p++) {
                if (p) fputs(", ", log);
                put_matrix(q, s, p, kLinears[i].matrices[p], log);
            }
            fputs("]}", log);
        }
    }
    fputs("]}\n", log);
}

// ---- the report: a summary

// All operands of one kind together.
typedef struct {
    CodeCounts counts;
    double log_ratio;   // sum of log(absmax / rotated absmax)
    int rotated;
} Summary;

static void sum_up(Summary* total, const OperandStats s[2], bool second) {
    for (int i = 0; i <= second; i++) {
        total->counts.nonzero += s[i].counts.nonzero;
        total->counts.clipped += s[i].counts.clipped;
        total->counts.underflow += s[i].counts.underflow;
        if (!(s[i].rotated_absmax > 0)) continue;
        total->log_ratio += log(s[i].absmax / s[i].rotated_absmax);
        total->rotated++;
    }
}

static QuantHealth health_of(const QuantStats* q, const LinearStats* linears) {
    Summary operands[3];   // X, W, dY
    memset(operands, 0, sizeof operands);
    QuantHealth h;
    memset(&h, 0, sizeof h);
    double sum = 0;
    int count = 0;
    h.cosine_least = NAN;
    for (int n = 0; n < q->layers * kLinearCount; n++) {
        const LinearStats* s = &linears[n];
        sum_up(&operands[0], s->x, q->second_x);
        for (int p = 0; p < q->shape[n % kLinearCount].parts; p++) {
            double cosine = quant_stats_cosine(s->squares[p]);
            sum_up(&operands[1], s->w[p], q->second_w);
            sum_up(&operands[2], s->dy[p], q->second_dy);
            if (!isfinite(cosine)) continue;   // a matrix that no trained token reaches
            sum += cosine;
            if (count++ && cosine >= h.cosine_least) continue;
            h.cosine_least = cosine;
            h.least_layer = n / kLinearCount;
            h.least_matrix = kLinears[n % kLinearCount].matrices[p];
        }
    }
    h.cosine_mean = count ? sum / count : NAN;
    for (int i = 0; i < 3; i++) {
        h.clipped[i] = percent(operands[i].counts.clipped, operands[i].counts.nonzero);
        h.underflow[i] = percent(operands[i].counts.underflow, operands[i].counts.nonzero);
        h.shrunk[i] = operands[i].rotated ? exp(operands[i].log_ratio / operands[i].rotated) : 0;
    }
    return h;
}

static void print_health(const QuantHealth* h, int step) {
    static const char* const names[] = {"X", "W", "dY"};
    printf("quant step %d  ", step);
    if (isfinite(h->cosine_mean))
        printf("dW cosine %.5f, least %.5f (layer %d %s)", h->cosine_mean, h->cosine_least, h->least_layer, h->least_matrix);
    else printf("no dW to compare");
    for (int i = 0; i < 3; i++) {
        printf("  %s clipped %.2f%% underflow %.2f%%", names[i], h->clipped[i], h->underflow[i]);
        if (h->shrunk[i] > 0) printf(" absmax / %.2f", h->shrunk[i]);
    }
    putchar('\n');
    fflush(stdout);
}

QuantHealth quant_stats_report(const QuantStats* q, int step, FILE* log) {
    LinearStats* linears = (LinearStats*)host_alloc(stats_bytes(q));
    q->ops->download(linears, q->linears, stats_bytes(q));
    QuantHealth h = health_of(q, linears);
    print_health(&h, step);
    if (log) put_json(q, linears, &h, step, log);
    free(linears);
    return h;
}
