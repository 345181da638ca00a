// How far every weight gradient of a whole model turns when products are quantized in the forward pass alone, in the backward pass alone, or
// in both, with operands as they are (HALO-0's) or rotated (HALO-2's): the cosine of dW with that of plain BF16 products, of the same
// weights and the same first batch. The paper's figure 2 (arXiv 2501.02625).
//
//   gradient_cosine --model DIR --data FILE --log DIR [--batch N] [--accum N] [--seq N] [...]      flags as train takes them
//
// DIR/cosines.jsonl gets a line for each format, rotation, part, layer and matrix.
#include "../data/files.h"
#include "../halo/run/config_file.h"
#include "../halo/run/train_step.h"

#include <math.h>

typedef enum { QUANTIZE_FORWARD, QUANTIZE_BACKWARD, QUANTIZE_BOTH, kPartsOfPass } QuantizedPart;
static const char* const kPartNames[kPartsOfPass] = {"forward", "backward", "both"};

// F of one recipe with E and G of another, or both of one.
static Recipe recipe_of(const Recipe* quantized, QuantizedPart part) {
    Recipe r = *recipe_find("bf16");
    r.name = quantized->name;
    if (part != QUANTIZE_BACKWARD) r.fx = quantized->fx, r.fw = quantized->fw;
    if (part != QUANTIZE_FORWARD) r.ee = quantized->ee, r.ew = quantized->ew, r.ge = quantized->ge, r.gx = quantized->gx;
    check(!recipe_error(&r), "%s, %s: %s", r.name, kPartNames[part], recipe_error(&r));
    return r;
}

// The gradients of a micro-batch after the other, rotated back.
static void make_gradients(Session* s, Trainer* t, const Dataset* d) {
    const Options* o = &s->o;
    size_t scored = dataset_step_scored(d, 0);
    shard_begin_step(s->shard, 1);
    for (int a = 0; a < o->accum && dataset_micro_batch(d, 0, a).rows > 0; a++) {
        batch_fill(&t->batch, d, dataset_micro_batch(d, 0, a));
        model_train_step(t->model, &t->batch.arrays, 1.0f / (float)scored, t->losses);
        shard_end_micro_step(s->shard);
    }
    shard_reduce_gradients(s->shard);
    shard_finish_gradients(s->shard);
}

static size_t linear_values(const Config* c, int linear) {
    StackSize size = stack_size(c, kLinears[linear].stack);
    return (size_t)size.rows * size.cols;
}

static size_t layer_values(const Config* c) {
    size_t values = 0;
    for (int i = 0; i < kLinearCount; i++) values += linear_values(c, i);
    return values;
}

// Gradients (L, layer_values) of all linears, in the order of kLinears; the caller frees them.
static float* gradients_under(Session* s, const Recipe* recipe, const Dataset* d) {
    const Config* c = &s->config;
    float* all = (float*)host_alloc(sizeof(float) * layer_values(c) * (size_t)c->L);
    s->recipe = recipe;
    load_weights(s, true);
    Trainer t = trainer_new(s, 1);
    make_gradients(s, &t, d);
    for (int layer = c->L - 1; layer >= 0; layer--) {
        const Unit* u = shard_acquire(s->shard, 1 + layer, BACKWARD);
        float* to = all + (size_t)layer * layer_values(c);
        for (int i = 0; i < kLinearCount; to += linear_values(c, i++))
            s->ops->download(to, u->g[kLinears[i].stack].data, sizeof(float) * linear_values(c, i));
    }
    trainer_free(s, &t);
    shard_free(s->shard);
    s->shard = NULL;
    return all;
}

static double cosine(const float* a, const float* b, size_t n) {
    double ab = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < n; i++) ab += (double)a[i] * b[i], aa += (double)a[i] * a[i], bb += (double)b[i] * b[i];
    return ab / sqrt(aa * bb);
}

static void write_cosines(const Session* s, FILE* out, const float* got, const float* want, const char* format, bool rotated, QuantizedPart part) {
    const Config* c = &s->config;
    for (int layer = 0; layer < c->L; layer++) {
        for (int i = 0; i < kLinearCount; i++) {
            LinearShape shape = stack_shape(c, kLinears[i].stack);
            for (int p = 0; p < shape.parts; p++) {
                size_t n = (size_t)shape.N[p] * shape.K;
                fprintf(out, "{\"format\": \"%s\", \"rotated\": %s, \"quantized\": \"%s\", \"layer\": %d, \"matrix\": \"%s\", \"cosine\": %.6f}\n",
                        format, rotated ? "true" : "false", kPartNames[part], layer, kLinears[i].matrices[p], cosine(got, want, n));
                got += n;
                want += n;
            }
        }
    }
}

static int command_cosine(Options o) {
    if (o.grad_dtype != F32 || o.adapter != ADAPT_NONE) user_error("gradient_cosine: takes no --adapter, and gradients are FP32");
    if (!o.data || !o.log) user_error("gradient_cosine: name the data with --data FILE, and a folder for the result with --log DIR");
    Session s = session_open(o, TRAIN);
    if (s.comm->ranks > 1) user_error("gradient_cosine: runs on one rank; start it without mpirun");
    open_tokenizer(&s);
    Dataset* d = open_data(&s, o.data, DATA_TO_TRAIN_ON);
    dataset_plan(d, (uint64_t)o.seed, 0);
    dir_make(o.log);
    char* path = path_join(o.log, "cosines.jsonl");
    FILE* out = fopen(path, "w");
    if (!out) user_error("%s: cannot be written", path);
    float* plain = gradients_under(&s, recipe_find("bf16"), d);
    static const char* const kFormats[] = {"int8", "fp8", "fp6"};
    for (size_t f = 0; f < sizeof kFormats / sizeof kFormats[0]; f++) {
        for (int rotated = 0; rotated < 2; rotated++) {
            for (int part = 0; part < kPartsOfPass; part++) {
                Recipe r = recipe_of(recipe_pick(rotated ? "halo2" : "halo0", kFormats[f]), (QuantizedPart)part);
                float* quantized = gradients_under(&s, &r, d);
                write_cosines(&s, out, quantized, plain, kFormats[f], rotated, (QuantizedPart)part);
                free(quantized);
            }
        }
    }
    if (fclose(out)) user_error("%s: cannot be written", path);
    free(path);
    free(plain);
    dataset_free(d);
    session_close(&s);
    return 0;
}

int main(int argc, char** argv) {
    static const Command kCommands[] = {{"cosine", TRAIN, "compare gradients", command_cosine}};
    const Command* command;
    Options o = options_parse(argc, argv, kCommands, 1, read_config, &command);
    return command->run(o);
}
