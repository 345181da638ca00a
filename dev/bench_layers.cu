// Speed of everything that moves memory: embedding, norms, rotary embedding, SwiGLU, cross entropy, sums and AdamW, on Llama-3-8B's and
// 1B's shapes. Each is checked first: the last rows of what it writes, against both CPU backends by the rule of the tests (error against
// cpu_f32 at most twice that of cpu_bf16). Then one line: what | shape | us (median) | GB/s | x of the copy bandwidth of the same run | x of
// that of a copy that moves as many bytes.
// Bytes are those of reading every input once and writing every output once.
//
//   bench_layers [tokens ...]     default 8192 16384
#include "../halo/llama3.h"
#include "bandwidth.cuh"

#include <math.h>

#include <functional>

typedef std::vector<Mat> Mats;
typedef std::function<void(const Ops*, const Mats&)> Layer;

enum { kCorner = 48, kLogitRows = 1024 };

// A matrix of a layer. On the CPU, BF16 becomes the backend's format unless the layer takes it as it is.
struct Item {
    Mat m;
    bool kept, whole;   // whole: a table, all of which belongs to every row
    Item(Mat m_, bool kept_ = false, bool whole_ = false) : m(m_), kept(kept_), whole(whole_) {}
};

struct Bench {
    const char* what;
    int rows, cols;
    double bytes;
    std::vector<Item> items;   // what is written and compared first
    int compared;
    bool by_rows;              // rows are independent: the corner of a run over all of it is checked, else a run over the corner
    Layer run;
};

// ---- checking
static Mat corner(const Item& item) {
    Mat m = item.m;
    return item.whole || m.rows <= kCorner ? m : mat_rows(m, m.rows - kCorner, kCorner);
}
// A host matrix in another format, or just a copy.
static Mat converted(Mat host, Fmt fmt) {
    Mat m = mat(NULL, host.rows, host.cols, fmt);
    m.data = host_alloc(mat_bytes(m));
    if (fmt == host.fmt) memcpy(m.data, host.data, mat_bytes(m));
    else cpu_f32_ops.convert(m, host);
    return m;
}
static double error_of(Mat got, Mat want) {
    Mat a = converted(got, F32), b = converted(want, F32);
    double diff = 0, norm = 0;
    for (size_t i = 0; i < (size_t)a.rows * a.cols; i++) {
        double x = ((float*)a.data)[i], y = ((float*)b.data)[i];
        diff += (x - y) * (x - y);
        norm += y * y;
    }
    free(a.data);
    free(b.data);
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);   // NaN if anything is
}
static bool agrees(const Bench& b) {
    const Ops* cpu[2] = {&cpu_f32_ops, &cpu_bf16_ops};
    size_t n = b.items.size();
    Mats on_cpu[2], got, all;
    for (const Item& item : b.items) {
        Mat before = on_host(corner(item));
        for (int k = 0; k < 2; k++) on_cpu[k].push_back(converted(before, item.m.fmt == BF16 && !item.kept ? cpu[k]->act : item.m.fmt));
        all.push_back(b.by_rows ? item.m : corner(item));
        free(before.data);
    }
    b.run(&cuda_ops, all);
    bool right = true;
    for (int k = 0; k < 2; k++) b.run(cpu[k], on_cpu[k]);
    for (int i = 0; i < b.compared; i++) {
        Mat y = on_host(corner(b.items[i]));
        double err = error_of(y, on_cpu[0][i]), bf16_err = error_of(on_cpu[1][i], on_cpu[0][i]);
        // What is rounded to BF16 on both CPUs alike can be a unit off where sums have another order.
        double floor = b.items[i].kept && y.fmt == BF16 ? 4e-3 : 1e-5;
        if (!(err <= 2 * bf16_err + floor)) {
            printf("  %s: output %d errs by %.2e, cpu_bf16 by %.2e\n", b.what, i, err, bf16_err);
            right = false;
        }
        free(y.data);
    }
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < n; i++) free(on_cpu[k][i].data);
    return right;
}

static double copy;   // GB/s
static bool all_right = true;

// Checks, times, prints, and gives the memory back.
static void bench(const Bench& b) {
    bool right = agrees(b);
    Mats mats;
    for (const Item& item : b.items) mats.push_back(item.m);
    double us = median_us([&] { b.run(&cuda_ops, mats); }), gbs = b.bytes / us * 1e-3;
    printf("%-36s %6d x %6d | %8.1f us | %6.0f GB/s | %.2f of copy | %.2f of one as large%s\n", b.what, b.rows, b.cols, us, gbs, gbs / copy,
           gbs / copy_gbs(b.bytes), right ? "" : "  WRONG");
    fflush(stdout);
    for (Mat m : mats) cuda_ops.release(m.data);
    all_right = all_right && right;
}

// ---- matrices
static Mat floats(int n) { return zeros(n, 1, F32); }
static Mat numbers(const std::vector<int>& x) {   // their bits in an F32 matrix
    Mat m = floats((int)x.size());
    cuda_ops.upload(m.data, x.data(), x.size() * sizeof(int));
    return m;
}
static const int* ints(Mat m) { return (const int*)m.data; }
static float* as_floats(Mat m) { return (float*)m.data; }

// ---- layers, each on `tokens` rows
typedef struct {
    const char* name;
    int V, C, F, NH, NKV, HD;
} Sizes;

static void bench_embedding(const Sizes& s, int tokens) {
    // The last rows' tokens stay below kCorner, so that those rows are a problem of their own.
    std::vector<int> ids(tokens), order(tokens), corner_order(kCorner);
    for (int t = 0; t < tokens; t++) ids[t] = (int)((uint32_t)t * 2654435761u % (uint32_t)(t < tokens - kCorner ? s.V : kCorner));
    for (int t = 0; t < tokens; t++) order[t] = t;
    for (int t = 0; t < kCorner; t++) corner_order[t] = t;
    const int* last = ids.data() + tokens - kCorner;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ids[a] < ids[b]; });
    std::stable_sort(corner_order.begin(), corner_order.end(), [&](int a, int b) { return last[a] < last[b]; });
    int distinct = 1;
    for (int t = 1; t < tokens; t++) distinct += ids[order[t]] != ids[order[t - 1]];
    double row = 2.0 * s.C;
    bench({"embed forward", tokens, s.C, 2 * row * tokens, {zeros(tokens, s.C, BF16), noise(s.V, s.C, BF16), numbers(ids)}, 1, false,
           [](const Ops* ops, const Mats& m) { ops->embed_forward(m[0], m[1], ints(m[2])); }});
    for (Fmt grad : {F32, BF16})
        bench({grad == F32 ? "embed backward, f32" : "embed backward, bf16", tokens, s.C,
               row * tokens + 2.0 * (double)fmt_bytes(grad) * s.C * distinct,
               {Item(zeros(s.V, s.C, grad), true), noise(tokens, s.C, BF16), numbers(ids), numbers(order), numbers(corner_order)}, 1, false,
               [tokens](const Ops* ops, const Mats& m) {
                   ops->embed_backward(m[0], m[1], ints(m[2]), ints(m[1].rows == tokens ? m[3] : m[4]));
               }});
}

static void bench_rmsnorm(const Sizes& s, int tokens) {
    double matrix = 2.0 * tokens * s.C;
    const float eps = 1e-5f;
    static const struct {
        const char* what;
        bool add, absmax, rotate;
    } forwards[] = {{"rmsnorm forward", false, false, false}, {"rmsnorm forward, add", true, false, false},
                    {"rmsnorm forward, add, absmax", true, true, false}, {"rmsnorm forward, add, rotated absmax", true, true, true}};
    for (const auto& f : forwards)
        bench({f.what, tokens, s.C, (f.add ? 4 : 2) * matrix,
               {floats(1), zeros(tokens, s.C, BF16), floats(tokens), zeros(tokens, s.C, BF16), noise(tokens, s.C, BF16), noise(tokens, s.C, BF16),
                noise(1, s.C, BF16)},
               f.add ? 4 : 3, !f.absmax, [f, eps](const Ops* ops, const Mats& m) {
                   Mat nothing = m[5];
                   nothing.data = NULL;
                   Prep prep = {f.rotate, f.absmax ? as_floats(m[0]) : NULL};
                   ops->rmsnorm_forward(m[1], as_floats(m[2]), m[3], m[4], f.add ? m[5] : nothing, m[6], eps, prep);
               }});
    void* scratch = cuda_ops.alloc(cuda_ops.rmsnorm_scratch(tokens, s.C));
    for (bool absmax : {false, true})
        bench({absmax ? "rmsnorm backward, absmax" : "rmsnorm backward", tokens, s.C, 4 * matrix,
               {floats(1), noise(tokens, s.C, BF16), Item(zeros(1, s.C, F32), true), noise(tokens, s.C, BF16), noise(tokens, s.C, BF16, 1),
                noise(1, s.C, BF16), noise(tokens, 1, F32, 1)},
               3, false, [absmax, scratch](const Ops* ops, const Mats& m) {
                   std::vector<char> on_cpu(ops == &cuda_ops ? 0 : ops->rmsnorm_scratch(m[1].rows, m[1].cols));
                   ops->rmsnorm_backward(m[1], m[2], m[3], m[4], m[5], as_floats(m[6]), ops == &cuda_ops ? scratch : on_cpu.data(),
                                         absmax ? as_floats(m[0]) : NULL);
               }});
    cuda_ops.release(scratch);
}

static void bench_rope(const Sizes& s, int tokens) {
    enum { kPositions = 1024 };
    Config c;
    memset(&c, 0, sizeof c);
    c.HD = s.HD;
    c.rope_theta = 500000;
    std::vector<int> pos(tokens);
    for (int t = 0; t < tokens; t++) pos[t] = t % kPositions;
    int turned = (s.NH + s.NKV) * s.HD, all = turned + s.NKV * s.HD;
    for (bool backward : {false, true}) {   // backward looks at v too, for its maximum
        double bytes = 2.0 * tokens * (2 * turned + (backward ? s.NKV * s.HD : 0));
        bench({backward ? "rope backward, absmax" : "rope forward", tokens, all, bytes,
               {floats(3), noise(tokens, all, BF16), Item(mat(rope_table(&c, &cuda_ops, kPositions), kPositions, s.HD, F32), true, true), numbers(pos)},
               2, !backward, [s, backward](const Ops* ops, const Mats& m) {
                   ops->rope(m[1], as_floats(m[2]), ints(m[3]), s.NH, s.NKV, s.HD, backward, backward ? as_floats(m[0]) : NULL);
               }});
    }
}

static void bench_swiglu(const Sizes& s, int tokens) {
    double matrix = 2.0 * tokens * s.F;
    static const struct {
        const char* what;
        bool absmax, rotate;
    } forwards[] = {{"swiglu forward", false, false}, {"swiglu forward, absmax", true, false}, {"swiglu forward, rotated absmax", true, true}};
    for (const auto& f : forwards)
        bench({f.what, tokens, s.F, 3 * matrix, {floats(1), zeros(tokens, s.F, BF16), noise(tokens, 2 * s.F, BF16)}, 2, !f.absmax,
               [f](const Ops* ops, const Mats& m) {
                   Prep prep = {f.rotate, f.absmax ? as_floats(m[0]) : NULL};
                   ops->swiglu_forward(m[1], m[2], prep);
               }});
    for (bool absmax : {false, true})
        bench({absmax ? "swiglu backward, absmax" : "swiglu backward", tokens, s.F, 5 * matrix,
               {floats(2), zeros(tokens, 2 * s.F, BF16), noise(tokens, s.F, BF16), noise(tokens, 2 * s.F, BF16)}, 2, !absmax,
               [absmax](const Ops* ops, const Mats& m) { ops->swiglu_backward(m[1], m[2], m[3], absmax ? as_floats(m[0]) : NULL); }});
}

static void bench_loss(int V) {
    const float kScale = 1.0f / 8192;
    int scale;
    memcpy(&scale, &kScale, sizeof scale);
    std::vector<int> labels(kLogitRows);
    for (int t = 0; t < kLogitRows; t++) labels[t] = (int)((uint32_t)t * 2654435761u % (uint32_t)V);
    for (bool grad : {false, true})
        bench({grad ? "cross entropy, gradient" : "cross entropy", kLogitRows, V, (grad ? 4.0 : 2.0) * kLogitRows * V,
               {floats(kLogitRows), normals(kLogitRows, V, 2, 1), numbers(labels), Item(numbers({scale}), true)}, grad ? 2 : 1, true,
               [grad](const Ops* ops, const Mats& m) { ops->cross_entropy(as_floats(m[0]), m[1], ints(m[2]), grad ? as_floats(m[3]) : NULL); }});
}

// ---- sums and the optimizer, on the weights of one linear
static void bench_sums(int rows, int cols) {
    double values = (double)rows * cols;
    for (Fmt fmt : {F32, BF16}) {
        double bytes = (double)fmt_bytes(fmt);
        bench({fmt == F32 ? "add f32" : "add bf16", rows, cols, 3 * bytes * values, {Item(noise(rows, cols, fmt), true), Item(noise(rows, cols, fmt), true)},
               1, true, [](const Ops* ops, const Mats& m) { ops->add(m[0], m[1], NULL); }});
        bench({fmt == F32 ? "convert f32 to bf16" : "convert bf16 to f32", rows, cols, 6 * values,
               {Item(zeros(rows, cols, fmt == F32 ? BF16 : F32), true), Item(noise(rows, cols, fmt), true)}, 1, true,
               [](const Ops* ops, const Mats& m) { ops->convert(m[0], m[1]); }});
        bench({fmt == F32 ? "sum of squares f32" : "sum of squares bf16", rows, cols, bytes * values, {floats(1), Item(noise(rows, cols, fmt), true)},
               1, false, [](const Ops* ops, const Mats& m) { ops->sum_squares(as_floats(m[0]), m[1]); }});
        bench({fmt == F32 ? "squares of rows f32" : "squares of rows bf16", rows, cols, bytes * values,
               {floats(kWideDigits), Item(noise(rows, cols, fmt), true)}, 1, false,
               [](const Ops* ops, const Mats& m) { ops->sum_row_squares((WideSum*)m[0].data, m[1]); }});
    }
}

static void bench_adamw(int rows, int cols) {
    double values = (double)rows * cols;
    for (bool master : {true, false})
        for (Fmt state : {F32, BF16})
            for (Fmt grad : {F32, BF16}) {
                char what[64];
                snprintf(what, sizeof what, "adamw %s, state %s, grad %s", master ? "master" : "bf16-sr", fmt_name(state), fmt_name(grad));
                double bytes = (master ? 10 : 4) + (double)fmt_bytes(grad) + 4 * (double)fmt_bytes(state);
                Mat scale = floats(1);
                const float one = 1;
                cuda_ops.upload(scale.data, &one, sizeof one);
                Mat param = noise(rows, cols, BF16, 1), m = zeros(rows, cols, state), v = zeros(rows, cols, state);
                Item copy_of_param = master ? Item(noise(rows, cols, F32, 1), true) : Item(floats(1), true);
                bench({what, rows, cols, bytes * values,
                       {param, Item(m, true), Item(v, true), copy_of_param, Item(noise(rows, cols, grad), true), scale}, master ? 4 : 3, false,
                       [master, state, grad](const Ops* ops, const Mats& m) {
                           AdamW a = {m[0].data, master ? as_floats(m[3]) : NULL, m[4].data, m[1].data, m[2].data, (size_t)m[0].rows * m[0].cols,
                                      grad, state, as_floats(m[5]), 1e-3f, 0.9f, 0.999f, 1e-8f, 0, 1, {7, 1, 0}};
                           ops->adamw(&a, 1);
                       }});
            }
}

// A gradient in BF16 that is added to one in BF16.
static void bench_stochastic_add(int rows, int cols) {
    bench({"add bf16, stochastic", rows, cols, 6.0 * rows * cols, {Item(noise(rows, cols, BF16), true), Item(noise(rows, cols, BF16), true)}, 1, false,
           [](const Ops* ops, const Mats& m) {
               Noise noise = {7, 1, 0, NULL};
               ops->add(m[0], m[1], &noise);
           }});
}

int main(int argc, char** argv) {
    std::vector<int> tokens = {8192, 16384};
    if (argc > 1) tokens.clear();
    for (int i = 1; i < argc; i++) {
        tokens.push_back(atoi(argv[i]));
        check(tokens.back() > kCorner, "bench_layers: \"%s\" is no number of tokens above %d", argv[i], (int)kCorner);
    }
    copy = copy_gbs();
    printf("copy %.0f GB/s\n", copy);
    static const Sizes models[] = {{"Llama-3-8B", 128256, 4096, 14336, 32, 8, 128}, {"Llama-3.2-1B", 128256, 2048, 8192, 32, 8, 64}};
    for (const Sizes& s : models) {
        for (int n : tokens) {
            printf("%s, %d tokens\n", s.name, n);
            bench_embedding(s, n);
            bench_rmsnorm(s, n);
            bench_rope(s, n);
            bench_swiglu(s, n);
        }
        printf("%s, the weights of up_proj\n", s.name);
        bench_sums(s.F, s.C);
        bench_stochastic_add(s.F, s.C);
        bench_adamw(s.F, s.C);
    }
    bench_loss(models[0].V);
    return all_right ? 0 : 1;
}
