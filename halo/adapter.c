// LoRA and HUT on a frozen linear; see adapter.h.
#include "adapter.h"

LoraShape lora_shape(const Config* config, int linear) {
    LinearShape whole = stack_shape(config, kLinears[linear].stack);
    LoraShape s;
    memset(&s, 0, sizeof s);
    s.K = whole.K;
    s.rank = config->adapter.rank;
    for (int p = 0, column = 0; p < whole.parts; column += whole.N[p++]) {
        if (!adapter_adapts(&config->adapter, linear, p)) continue;
        s.column[s.parts] = column;
        s.N[s.parts++] = whole.N[p];
    }
    return s;
}

void lora_place(Lora* lora, Arena* arena, const Ops* ops, const Config* config, int M, bool train) {
    memset(lora, 0, sizeof *lora);
    lora->ops = ops;
    if (config->adapter.kind != ADAPTER_LORA) return;
    lora->scale = adapter_scale(&config->adapter);
    lora->dropout = config->adapter.dropout;
    if (!train) return;
    int widest_u = 0, widest_K = 0;
    for (int i = 0; i < kLinearCount; i++) {
        LoraShape s = lora_shape(config, i);
        if (!s.parts) continue;
        widest_u = max_int(widest_u, lora_width(s));
        widest_K = max_int(widest_K, s.K);
    }
    lora->v = arena_take(arena, (size_t)M * widest_u * fmt_bytes(ops->act));
    if (lora->dropout > 0) lora->dropped = arena_take(arena, (size_t)M * widest_K * fmt_bytes(ops->act));
}

// drop(x), A's input; x itself if nothing is dropped.
static Mat dropped(const Lora* lora, Mat x, const Noise* drop) {
    if (!drop) return x;
    Mat y = mat(lora->dropped, x.rows, x.cols, x.fmt);
    lora->ops->dropout(y, x, lora->dropout, drop);
    return y;
}

static Mat part_columns(LoraShape s, Mat u, int part) { return mat_cols(u, part * s.rank, s.rank); }

void lora_forward(const Lora* lora, LoraShape s, Mat y, float y_beta, Mat u, Mat x, Mat a, Mat b, const Noise* drop) {
    lora->ops->gemm(u, plain_side(dropped(lora, x, drop), false), multiplied_side(a, false, lora->scale), 0);
    for (int p = 0, row = 0; p < s.parts; row += s.N[p++])
        lora->ops->gemm(mat_cols(y, s.column[p], s.N[p]), plain_side(part_columns(s, u, p), false), plain_side(mat_rows(b, row, s.N[p]), false),
                        y_beta);
}

void lora_backward(const Lora* lora, LoraShape s, Mat dx, float dx_beta, Mat da, Mat db, float beta, Mat dy, Mat u, Mat x, Mat a, Mat b,
                   const Noise* drop) {
    const Ops* ops = lora->ops;
    Mat v = mat(lora->v, x.rows, lora_width(s), x.fmt);
    SideBySide parts = {s.parts, s.column, s.N};
    ops->gemm_narrow(v, lora->scale, db, beta, dy, b, u, parts);
    ops->gemm(da, plain_side(v, true), plain_side(dropped(lora, x, drop), true), beta);
    if (!dx.data) return;
    Mat more = drop && dx_beta != 0 ? mat(lora->dropped, dx.rows, dx.cols, dx.fmt) : dx;
    ops->gemm(more, plain_side(v, false), plain_side(a, true), drop ? 0 : dx_beta);
    if (drop) ops->dropout(more, more, lora->dropout, drop);
    if (more.data != dx.data) ops->add(dx, more, NULL);
}

void hut_effective(const Ops* ops, float scale, LoraShape s, Mat effective, Mat w, Mat a, Mat b, void* wide) {
    if (lora_columns(s) < w.rows) ops->copy(effective.data, w.data, mat_bytes(w));
    for (int p = 0, row = 0; p < s.parts; row += s.N[p++]) {
        Mat product = mat(wide, s.N[p], s.K, F32);
        ops->gemm(product, plain_side(mat_rows(b, row, s.N[p]), false), plain_side(mat_rows(a, p * s.rank, s.rank), true), 0);
        ops->hadamard(mat_rows(effective, s.column[p], s.N[p]), product, mat_rows(w, s.column[p], s.N[p]), scale, 1);
    }
}

void hut_backward(const Ops* ops, float scale, LoraShape s, Mat da, Mat db, float beta, Mat dw, Mat w, Mat a, Mat b, void* narrow) {
    for (int p = 0, row = 0; p < s.parts; row += s.N[p++]) {
        Mat dp = mat(narrow, s.N[p], s.K, ops->act), a_part = mat_rows(a, p * s.rank, s.rank), b_part = mat_rows(b, row, s.N[p]);
        ops->hadamard(dp, mat_rows(dw, s.column[p], s.N[p]), mat_rows(w, s.column[p], s.N[p]), scale, 0);
        ops->gemm(mat_rows(db, row, s.N[p]), plain_side(dp, false), plain_side(a_part, false), beta);
        ops->gemm(mat_rows(da, p * s.rank, s.rank), plain_side(b_part, true), plain_side(dp, true), beta);
    }
}
