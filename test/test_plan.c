// The plan's bytes are those that a run allocates, whatever the flags; its estimates of time are near what one H200 took.
//
// What the program prints is in test_plan_runs.c.
#include "../halo/dry.h"
#include "../halo/run/plan.h"
#include "../halo/run/roofline.h"
#include "../halo/run/train_step.h"
#include "backends.h"
#include "scratch.h"

static const Command kPlan[] = {{"plan", PLAN, "", NULL}};

// The options that a command line gives.
static Options options_of(const char* flags) {
    enum { kMostWords = 64 };
    char *line = host_strdup(flags), *words[kMostWords] = {(char*)"test", (char*)"plan"};   // values point into the line
    int count = 2;
    for (char* word = strtok(line, " "); word; word = strtok(NULL, " ")) {
        check(count < kMostWords, "more than %d words", (int)kMostWords);
        words[count++] = word;
    }
    const Command* command;
    return options_parse(count, words, kPlan, 1, NULL, &command);
}

// ---- bytes

// A backend around another one that adds up what is allocated.
static const Ops* inner;
static size_t allocated, most_allocated;
static struct {
    void* at;
    size_t bytes;
} held[256];

static void* counting_alloc(size_t bytes) {
    void* p = inner->alloc(bytes);
    int i = 0;
    while (held[i].at) check(++i < COUNT(held), "more than %d allocations", COUNT(held));
    held[i].at = p;
    held[i].bytes = round_up(bytes ? bytes : 1, kArenaAlign);
    allocated += held[i].bytes;
    if (allocated > most_allocated) most_allocated = allocated;
    return p;
}
static void counting_release(void* p) {
    int i = 0;
    while (held[i].at != p) check(++i < COUNT(held), "%p was not allocated", p);
    allocated -= held[i].bytes;
    held[i].at = NULL;
    inner->release(p);
}
static const Ops* counting(const Ops* ops) {
    static Ops table;
    inner = ops;
    table = *ops;
    table.alloc = counting_alloc;
    table.release = counting_release;
    allocated = most_allocated = 0;
    return &table;
}

static const char kSmall[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 32, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, "
    "\"intermediate_size\": 96, \"vocab_size\": 264, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
    "\"tie_word_embeddings\": false}\n";

// What one step of training allocates on a backend at most.
static size_t real_bytes(Options o, const Ops* ops) {
    Session s = session_on(o, PLAN, counting(ops), comm_solo());
    load_weights(&s, true);
    Trainer t = trainer_new(&s, 1);
    shard_begin_step(s.shard, 1);
    for (int a = 0; a < o.accum; a++) {
        batch_random(&t.batch, s.config.V, (uint64_t)a + 1);
        model_train_step(t.model, &t.batch.arrays, 1, t.losses);
        shard_end_micro_step(s.shard);
    }
    update_weights(&s, &t, 1);
    ops->sync();
    trainer_free(&s, &t);
    shard_free(s.shard);
    return most_allocated;
}

static void bytes_case(void) {
    static const char* const kFlags[] = {
        "--batch 2 --recipe bf16",
        "--batch 3 --accum 2 --recipe halo2-int8 --grad-dtype bf16 --state-dtype bf16 --master bf16-sr",
        "--batch 2 --recipe halo1-fp6 --recompute norm-act --head-dtype fp8 --logits-mb 1",
        "--batch 2 --recipe jetfire-int8 --recompute block --clip 1",
        "--batch 4 --recipe halo0-fp8 --zero 3 --accum 2",
        "--batch 2 --recipe switchback-fp8 --adapter lora --rank 4 --dropout 0.1",
        "--batch 2 --recipe halo2-int8 --adapter lora --rank 4 --target q,v",
        "--batch 2 --recipe halo1-fp6 --adapter lora --recompute block",
        "--batch 2 --recipe halo2-int8 --adapter hut --rank 4",
    };
    char* dir = scratch_path("small");
    empty_dir(dir);
    char* path = scratch_path("small/config.json");
    put_file(path, kSmall, strlen(kSmall));
    const Ops* list[kMaxBackends];
    int backends = test_backends(list);
    for (int b = 0; b < backends; b++) {
        bool gpu = !strcmp(list[b]->name, "cuda");
        for (int i = 0; i < COUNT(kFlags); i++) {
            char flags[512];
            snprintf(flags, sizeof flags, "--from-scratch %s --seq 32 %s", dir, kFlags[i]);
            Options o = options_of(flags);
            Session dry = session_on(o, PLAN, dry_ops(gpu ? NULL : list[b]), dry_comm(1, gpu));
            StepCost cost = step_cost(&dry, o.batch);
            PlannedMemory m = planned_memory(&dry, &o, cost.peak_bytes + held_bytes(&dry) - planned_memory(&dry, &o, 0).plan.together);
            size_t real = real_bytes(o, list[b]), planned = m.plan.together + m.tables - list[b]->workspace_bytes();
            ok(cost.peak_bytes == real, "%s %s: %zu bytes dry, %zu real", list[b]->name, kFlags[i], cost.peak_bytes, real);
            ok(planned == real && m.tables < real / 4, "%s %s: %zu bytes planned, %zu of them tables", list[b]->name, kFlags[i], planned, m.tables);
            Options more = o;
            more.batch++;
            Session larger = session_on(more, PLAN, dry_ops(gpu ? NULL : list[b]), dry_comm(1, gpu));
            ok(step_cost(&larger, more.batch).peak_bytes > real, "%s %s: one example more takes more", list[b]->name, kFlags[i]);
        }
    }
}

// ---- time: thousands of tokens a second of a GPU that one H200, or two, reached (dev/RESULTS.md)
static void time_case(void) {
    static const struct {
        const char* flags;
        int gpus;
        double measured;
    } kSteps[] = {
        {"--preset llama3-8b --layers 16 --batch 8 --accum 8 --recipe bf16", 1, 25.5},
        {"--preset llama3-8b --layers 16 --batch 8 --accum 8 --recipe halo0-fp8", 1, 38.8},
        {"--preset llama3-8b --layers 16 --batch 8 --accum 8 --recipe halo0-fp8 --head-dtype fp8", 1, 42.1},
        {"--preset llama3-8b --layers 16 --batch 8 --accum 8 --recipe halo1-fp6", 1, 37.2},
        {"--preset llama3-8b --layers 16 --batch 8 --accum 8 --recipe halo2-int8", 1, 35.7},
        {"--preset llama3.2-1b --batch 16 --accum 4 --recipe bf16", 1, 77.5},
        {"--preset llama3.2-1b --batch 16 --accum 4 --recipe halo0-fp8", 1, 103.9},
        {"--preset llama3.2-1b --batch 16 --accum 4 --recipe halo2-int8", 1, 90.2},
        {"--preset llama3-8b --adapter lora --batch 4 --recipe bf16", 1, 18.3},
        {"--preset llama3-8b --adapter lora --batch 4 --recipe halo0-fp8", 1, 26.0},
        {"--preset llama3-8b --adapter lora --batch 4 --recipe halo2-int8", 1, 22.5},
        {"--preset llama3-8b --batch 8 --recipe bf16", 2, 13.0},
        {"--preset llama3-8b --batch 8 --recipe halo0-fp8 --qfsdp", 2, 19.7},
    };
    const GpuKind* kind = gpu_kinds();
    int h200 = 0;
    while (strcmp(kind[h200].name, "H200")) h200++;
    for (int i = 0; i < COUNT(kSteps); i++) {
        char flags[512];
        snprintf(flags, sizeof flags, "--seq 1024 --grad-dtype bf16 --state-dtype bf16 --master bf16-sr %s", kSteps[i].flags);
        Options o = options_of(flags);
        Session s = session_on(o, PLAN, dry_ops(NULL), dry_comm(kSteps[i].gpus, true));
        double expected = (double)o.batch * o.seq * o.accum / step_cost(&s, o.batch).ms[h200], ratio = kSteps[i].measured / expected;
        ok(ratio > 0.9 && ratio < 1.1, "H200 %s: %.1fk tokens/s expected, %.1fk measured (%.3f)", kSteps[i].flags, expected, kSteps[i].measured, ratio);
    }
}

static void micro_steps_case(void) {
    Options few = options_of("--preset smollm2-135m --seq 64 --batch 2 --accum 3 --recipe halo2-int8 --qfsdp"), many = few;
    many.accum = 8;
    Session a = session_on(few, PLAN, dry_ops(NULL), dry_comm(2, true));
    StepCost of_few = step_cost(&a, 2);
    Session b = session_on(many, PLAN, dry_ops(NULL), dry_comm(2, true));
    StepCost of_many = step_cost(&b, 2);
    ok(of_many.sent_bytes > 2 * of_few.sent_bytes && of_many.sent_bytes < 8.0 / 3 * of_few.sent_bytes && of_many.ms[0] > 2 * of_few.ms[0],
       "micro-steps: 3 send %.0f bytes in %.1f ms, 8 send %.0f in %.1f", of_few.sent_bytes, of_few.ms[0], of_many.sent_bytes, of_many.ms[0]);
}

static const Case cases[] = {{"bytes", bytes_case}, {"time", time_case}, {"micro_steps", micro_steps_case}};
int main(int argc, char** argv) { return scratch_main("test_plan", cases, COUNT(cases), argc, argv); }
