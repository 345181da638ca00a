// What the machine does at best; see ceilings.h.
#include "ceilings.h"

#include "rng.h"

// Roughly normal values, as activations and weights are; in codes, 4 deviations are the largest code. Up to 2^20 values are drawn on the
// host and repeated on the backend.
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

enum { kCeilingWarmups = 3, kCeilingRuns = 10, kSteadyMs = 1000 };

// Milliseconds of a call, averaged over the last kCeilingRuns of those that fill warm_ms, at least so many. A GPU that was idle runs products
// up to 15% faster for a few tenths of a second, until its power limit lowers the clock to that of steady work.
typedef void (*Repeated)(void* self);
static double steady_ms(const Ops* ops, Repeated run, void* self, double warm_ms) {
    double ms, together = 0;
    for (int i = 0; i < kCeilingWarmups; i++) run(self);
    do {
        int from = ops->mark();
        for (int i = 0; i < kCeilingRuns; i++) run(self);
        ms = ops->marked_ms(from, ops->mark());
        together += ms;
        ops->forget_marks();
    } while (together < warm_ms);
    return ms / kCeilingRuns;
}

typedef struct {
    Mat out;
    Side a, b;
} Product;
// The F, E and G products of every linear stack of a block.
typedef struct {
    const Ops* ops;
    Product product[3 * kLinearCount];
    int count;
    double flops;
} Products;
static void run_products(void* self) {
    const Products* all = (const Products*)self;
    for (int i = 0; i < all->count; i++) all->ops->gemm(all->product[i].out, all->product[i].a, all->product[i].b, 0);
}

// Operands and output of the largest product; `one` is the scale of codes.
typedef struct {
    void *left, *right, *out;
    float* one;
} Operands;

static Operands operands_new(const Ops* ops, const Config* c, int tokens, Fmt fmt) {
    size_t largest = 0, M = (size_t)tokens;
    for (int i = 0; i < kLinearCount; i++) {
        LinearShape shape = stack_shape(c, kLinears[i].stack);
        size_t N = (size_t)linear_N(shape), K = (size_t)shape.K, sizes[] = {M * N, N * K, M * K};
        for (int k = 0; k < 3; k++)
            if (sizes[k] > largest) largest = sizes[k];
    }
    Operands o = {random_values(ops, largest, fmt, 1), random_values(ops, largest, fmt, 2), ops->alloc(largest * fmt_bytes(ops->act)),
                  (float*)ops->alloc(sizeof(float))};
    const float unit = 1;
    ops->upload(o.one, &unit, sizeof unit);
    return o;
}
static void operands_free(const Ops* ops, Operands* o) {
    void* const used[] = {o->left, o->right, o->out, o->one};
    for (size_t i = 0; i < sizeof used / sizeof used[0]; i++) ops->release(used[i]);
}

// Adds out (rows, cols) = left right^T over `depth`. Only BF16 and F32 operands can be transposed in memory; codes always have their
// contracted axis last.
static void add_product(Products* all, const Operands* o, Fmt fmt, int rows, int cols, int depth, bool left_transposed,
                        bool right_transposed) {
    bool codes = fmt_bytes(fmt) == 1, lt = left_transposed && !codes, rt = right_transposed && !codes;
    Product p = {mat(o->out, rows, cols, all->ops->act), plain_side(mat(o->left, lt ? depth : rows, lt ? rows : depth, fmt), lt),
                 plain_side(mat(o->right, rt ? depth : cols, rt ? cols : depth, fmt), rt)};
    if (codes) p.a.gran = p.b.gran = PER_TENSOR, p.a.scale = p.b.scale = o->one;
    all->product[all->count++] = p;
    all->flops += 2.0 * rows * cols * depth;
}

double ceiling_tflops(const Ops* ops, const Config* c, int tokens, Fmt fmt) {
    Operands o = operands_new(ops, c, tokens, fmt);
    Products all;
    memset(&all, 0, sizeof all);
    all.ops = ops;
    for (int i = 0; i < kLinearCount; i++) {
        LinearShape shape = stack_shape(c, kLinears[i].stack);
        int M = tokens, N = linear_N(shape), K = shape.K;
        add_product(&all, &o, fmt, M, N, K, false, false);   // Y = X W^T
        add_product(&all, &o, fmt, M, K, N, false, true);    // dX = dY W
        add_product(&all, &o, fmt, N, K, M, true, true);     // dW = dY^T X
    }
    double ms = steady_ms(ops, run_products, &all, kSteadyMs);
    operands_free(ops, &o);
    return all.flops / ms * 1e-9;
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
    double ms = steady_ms(ops, run_copy, &c, 0);
    ops->release(c.from);
    ops->release(c.to);
    return 2.0 * (double)c.bytes / ms * 1e-6;
}
