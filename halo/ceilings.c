// What the machine does at best; see ceilings.h.
#include "ceilings.h"

#include "rng.h"

// Normal values, as activations and weights are, in codes with 4 deviations as the largest: a few drawn on the host, repeated on the
// backend.
static void* random_values(const Ops* ops, size_t count, Fmt fmt, uint64_t seed) {
    size_t value = fmt_bytes(fmt), bytes = count * value, drawn = count < 1 << 20 ? count : 1 << 20;
    char* host = (char*)host_alloc(drawn * value);
    for (size_t i = 0; i < drawn; i++) {
        float x = -6;   // twelve uniforms have the variance of a normal value
        for (int k = 0; k < 3; k++)
            for (int w = 0; w < 4; w++) x += uniform_from_word(random_words(seed, i, (uint64_t)k).word[w]);
        uint16_t half = bf16_from_f32(x);
        uint8_t code = value == 1 ? code_from_f32(x / 4 * fmt_max(fmt), fmt) : 0;
        memcpy(host + i * value, value == 4 ? (void*)&x : value == 2 ? (void*)&half : (void*)&code, value);
    }
    char* data = (char*)ops->alloc(bytes);
    ops->upload(data, host, drawn * value);
    for (size_t done = drawn * value; done < bytes; done *= 2) ops->copy(data + done, data, done < bytes - done ? done : bytes - done);
    free(host);
    return data;
}

enum { kCeilingWarmups = 3, kCeilingRuns = 10 };

// Milliseconds of a call, many of them in a row: the clock rate is that of steady work.
typedef void (*Repeated)(void* self);
static double steady_ms(const Ops* ops, Repeated run, void* self) {
    for (int i = 0; i < kCeilingWarmups; i++) run(self);
    int from = ops->mark();
    for (int i = 0; i < kCeilingRuns; i++) run(self);
    double ms = ops->marked_ms(from, ops->mark()) / kCeilingRuns;
    ops->forget_marks();
    return ms;
}

typedef struct {
    const Ops* ops;
    Mat out;
    Side a, b;
} Product;
static void run_product(void* self) {
    const Product* p = (const Product*)self;
    p->ops->gemm(p->out, p->a, p->b, 0);
}

double ceiling_tflops(const Ops* ops, const Config* c, int tokens, Fmt fmt) {
    bool codes = fmt_bytes(fmt) == 1;
    int q = c->NH * c->HD, kv = c->NKV * c->HD;
    const struct {
        int N, K;
    } linears[] = {{q + 2 * kv, c->C}, {c->C, q}, {2 * c->F, c->C}, {c->C, c->F}};
    enum { kLinears = sizeof linears / sizeof linears[0] };
    size_t largest = 0;   // operand or output
    for (int i = 0; i < kLinears; i++) {
        size_t N = (size_t)linears[i].N, K = (size_t)linears[i].K, M = (size_t)tokens;
        size_t most = M * N > N * K ? M * N : N * K;
        if (M * K > most) most = M * K;
        if (most > largest) largest = most;
    }
    void *left = random_values(ops, largest, fmt, 1), *right = random_values(ops, largest, fmt, 2), *out = ops->alloc(largest * fmt_bytes(ops->act));
    float* one = (float*)ops->alloc(sizeof(float));
    const float unit = 1;
    ops->upload(one, &unit, sizeof unit);
    double flops = 0, ms = 0;
    for (int i = 0; i < kLinears; i++) {
        int M = tokens, N = linears[i].N, K = linears[i].K;
        // Y = X W^T, dX = dY W, dW = dY^T X; of codes, every operand is there with its contracted axis last.
        const struct {
            int rows, cols, depth;
            bool a_transposed, b_transposed;
        } products[] = {{M, N, K, false, false}, {M, K, N, false, true}, {N, K, M, true, true}};
        for (int k = 0; k < 3; k++) {
            bool at = products[k].a_transposed && !codes, bt = products[k].b_transposed && !codes;
            int rows = products[k].rows, cols = products[k].cols, depth = products[k].depth;
            Product p = {ops, mat(out, rows, cols, ops->act), plain_side(mat(left, at ? depth : rows, at ? rows : depth, fmt), at),
                         plain_side(mat(right, bt ? depth : cols, bt ? cols : depth, fmt), bt)};
            if (codes) p.a.gran = p.b.gran = PER_TENSOR, p.a.scale = p.b.scale = one;
            ms += steady_ms(ops, run_product, &p);
            flops += 2.0 * rows * cols * depth;
        }
    }
    void* const used[] = {left, right, out, one};
    for (size_t i = 0; i < sizeof used / sizeof used[0]; i++) ops->release(used[i]);
    return flops / ms * 1e-9;
}

typedef struct {
    const Ops* ops;
    void *to, *from;
    size_t bytes;
} Copy;
static void run_copy(void* self) {
    const Copy* c = (const Copy*)self;
    c->ops->copy(c->to, c->from, c->bytes);
}

double ceiling_gbs(const Ops* ops) {
    Copy c = {ops, NULL, NULL, (size_t)512 << 20};
    c.from = random_values(ops, c.bytes / sizeof(uint16_t), BF16, 3);
    c.to = ops->alloc(c.bytes);
    double ms = steady_ms(ops, run_copy, &c);
    ops->release(c.from);
    ops->release(c.to);
    return 2.0 * (double)c.bytes / ms * 1e-6;
}
