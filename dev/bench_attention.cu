// Speed of attention: checks shapes with every kind of edge against the CPU layers, then times causal sequences.
//   check   y, lse, dq, dk, dv of cuda_ops: error against cpu_f32 at most twice that of cpu_bf16; and twice the same bits
//   time    one line per shape and pass: T B heads HD | us (median) | TFLOP/s
// Flops are those of the causal half: 2 T^2 HD a head forward, 5 T^2 HD backward. HALO_CAPABILITY=80 selects the kernels for older
// GPUs.
//
//   bench_attention            checks, then all times        bench_attention check     the checks alone, which also run under HALO_SIMT
//   bench_attention HD T       the times of one shape
#include "bandwidth.cuh"

#include <math.h>

typedef struct {
    int B, T, NH, NKV, HD, doc, padding;   // documents of `doc` tokens (0: one), the last `padding` tokens alone
} Shape;

static const Shape kChecks[] = {
    {2, 37, 4, 2, 16, 0, 5},      {1, 200, 4, 2, 64, 0, 0},     {1, 300, 3, 1, 64, 90, 7},  {2, 129, 2, 2, 64, 0, 0},
    {1, 260, 4, 1, 128, 0, 0},    {2, 333, 2, 1, 128, 100, 40}, {1, 64, 2, 2, 128, 5, 0},   {1, 150, 2, 1, 96, 70, 0},
    {1, 100, 3, 3, 24, 33, 0},    {1, 90, 2, 1, 13, 40, 2},     {1, 520, 2, 1, 64, 200, 0}, {1, 520, 1, 1, 128, 300, 11},
};

static std::vector<float> normals(size_t n, float scale) {
    static uint64_t state = 88172645463325252ull;
    std::vector<float> x(n);
    for (float& value : x) {
        float sum = -6;
        for (int i = 0; i < 12; i++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            sum += (float)(state >> 40) / 16777216.0f;
        }
        value = f32_from_bf16(bf16_from_f32(scale * sum));
    }
    return x;
}

// ---- a matrix on a backend, from and to floats
static Mat put(const Ops* ops, const std::vector<float>& x, int rows, int cols) {
    Mat m = mat(NULL, rows, cols, ops->act);
    m.data = ops->alloc(mat_bytes(m));
    if (ops->act == F32) {
        ops->upload(m.data, x.data(), mat_bytes(m));
    } else {
        std::vector<uint16_t> h(x.size());
        for (size_t i = 0; i < x.size(); i++) h[i] = bf16_from_f32(x[i]);
        ops->upload(m.data, h.data(), mat_bytes(m));
    }
    return m;
}
static std::vector<float> fetched(const Ops* ops, Mat m) {
    std::vector<float> x((size_t)m.rows * m.cols);
    if (m.fmt == F32) {
        ops->download(x.data(), m.data, mat_bytes(m));
    } else {
        std::vector<uint16_t> h(x.size());
        ops->download(h.data(), m.data, mat_bytes(m));
        for (size_t i = 0; i < x.size(); i++) x[i] = f32_from_bf16(h[i]);
    }
    return x;
}
static void ranges_of(int* start, int* end, const Shape& s) {
    for (int i = 0; i < s.B * s.T; i++) {
        int t = i % s.T, length = s.doc ? s.doc : s.T;
        bool pad = t >= s.T - s.padding;
        start[i] = pad ? t : t / length * length;
        end[i] = pad ? t + 1 : min_int((t / length + 1) * length, s.T - s.padding);
    }
}

// Everything that a forward and a backward pass need, on one backend.
struct Problem {
    const Ops* ops;
    Attn shape;
    Mat qkv, dy, y, dqkv, lse;
    int* ranges;
    void* scratch;

    Problem(const Ops* ops_, const Shape& s, Mat qkv_, Mat dy_) : ops(ops_), qkv(qkv_), dy(dy_) {
        int rows = s.B * s.T, cols = (s.NH + 2 * s.NKV) * s.HD;
        std::vector<int> both(2 * (size_t)rows);
        ranges_of(both.data(), both.data() + rows, s);
        ranges = (int*)ops->alloc(both.size() * sizeof(int));
        ops->upload(ranges, both.data(), both.size() * sizeof(int));
        Attn a = {s.B, s.T, s.NH, s.NKV, s.HD, ranges, ranges + rows};
        shape = a;
        y = mat(NULL, rows, s.NH * s.HD, ops->act);
        y.data = ops->alloc(mat_bytes(y));
        dqkv = mat(NULL, rows, cols, ops->act);
        dqkv.data = ops->alloc(mat_bytes(dqkv));
        lse = mat(NULL, s.B * s.NH, s.T, F32);
        lse.data = ops->alloc(mat_bytes(lse));
        scratch = ops->alloc(ops->attention_scratch(shape));
    }
    ~Problem() {
        void* all[] = {qkv.data, dy.data, y.data, dqkv.data, lse.data, ranges, scratch};
        for (void* p : all) ops->release(p);
    }
    void forward() { ops->attention_forward(y, (float*)lse.data, qkv, shape, NULL); }
    void backward() { ops->attention_backward(dqkv, dy, y, qkv, (const float*)lse.data, shape, scratch); }
};

// ---- checks
// Relative error of the columns [first, first + count) of each row of `cols`.
static double error_of(const std::vector<float>& got, const std::vector<float>& want, int cols, int first, int count) {
    double diff = 0, norm = 0;
    for (size_t i = 0; i < want.size(); i++) {
        int col = (int)(i % cols);
        if (col < first || col >= first + count) continue;
        if (!isfinite(got[i])) return INFINITY;
        diff += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static bool check_shape(const Shape& s) {
    int rows = s.B * s.T, cols = (s.NH + 2 * s.NKV) * s.HD, q = s.NH * s.HD, kv = s.NKV * s.HD;
    std::vector<float> qkv = normals((size_t)rows * cols, 1.5f), dy = normals((size_t)rows * q, 1);
    const Ops* backends[3] = {&cpu_f32_ops, &cpu_bf16_ops, &cuda_ops};
    std::vector<float> y[3], lse[3], dqkv[3];
    bool fine = true;
    for (int i = 0; i < 3; i++) {
        Problem p(backends[i], s, put(backends[i], qkv, rows, cols), put(backends[i], dy, rows, q));
        p.forward();
        p.backward();
        y[i] = fetched(p.ops, p.y);
        lse[i] = fetched(p.ops, p.lse);
        dqkv[i] = fetched(p.ops, p.dqkv);
        if (i < 2) continue;
        p.forward();
        p.backward();
        fine = fetched(p.ops, p.y) == y[i] && fetched(p.ops, p.lse) == lse[i] && fetched(p.ops, p.dqkv) == dqkv[i];
    }
    struct {
        const char* name;
        const std::vector<float>* x;
        int cols, first, count;
    } const outputs[] = {{"y", y, q, 0, q}, {"lse", lse, s.T, 0, s.T}, {"dq", dqkv, cols, 0, q}, {"dk", dqkv, cols, q, kv}, {"dv", dqkv, cols, q + kv, kv}};
    printf("B %d T %d heads %d/%d HD %d doc %d padding %d |", s.B, s.T, s.NH, s.NKV, s.HD, s.doc, s.padding);
    for (const auto& o : outputs) {
        double allowed = 2 * error_of(o.x[1], o.x[0], o.cols, o.first, o.count) + 1e-5;
        double error = error_of(o.x[2], o.x[0], o.cols, o.first, o.count);
        printf(" %s %.1e (%.0f%%)", o.name, error, 100 * error / allowed);
        fine = fine && error <= allowed;
    }
    printf(" | %s\n", fine ? "ok" : "FAIL");
    return fine;
}

// ---- times
static void time_shape(int T, int HD) {
    const int tokens = 16384, NH = 32, NKV = 8;
    Shape s = {tokens / T, T, NH, NKV, HD, 0, 0};
    Problem p(&cuda_ops, s, noise(tokens, (NH + 2 * NKV) * HD, BF16), noise(tokens, NH * HD, BF16));
    double heads = (double)s.B * NH, flops = heads * T * T * HD;
    double forward = median_us([&] { p.forward(); }), backward = median_us([&] { p.backward(); });
    printf("T %5d B %2d heads %d/%d HD %3d forward  | %9.1f us | %6.1f TFLOP/s\n", T, s.B, NH, NKV, HD, forward, 2 * flops / forward * 1e-6);
    printf("T %5d B %2d heads %d/%d HD %3d backward | %9.1f us | %6.1f TFLOP/s\n", T, s.B, NH, NKV, HD, backward, 5 * flops / backward * 1e-6);
}

int main(int argc, char** argv) {
    bool fine = true;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 3) {
        time_shape(atoi(argv[2]), atoi(argv[1]));
        return 0;
    }
    for (const Shape& s : kChecks) fine = check_shape(s) && fine;
    if (!fine) return 1;
    if (argc > 1 && !strcmp(argv[1], "check")) return 0;
    for (int HD : {64, 128})
        for (int T : {512, 1024, 2048, 8192}) time_shape(T, HD);
    return 0;
}
