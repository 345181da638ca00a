// The command plan: its memory is what the start of a run prints, its traffic what ranks send, its suggestion fits, its lines fit a terminal.
#include "program.h"

#include "backends.h"

static const char* binary_of_test;   // beside which the program on emulated GPUs lies

// The number behind a row of the plan's tables, or behind a word of the start's memory line.
static double number_behind(const char* text, const char* name) {
    const char* at = text ? strstr(text, name) : NULL;
    return at ? strtod(at + strlen(name), NULL) : NAN;
}

static char* plan_of(const char* flags) {
    char *line = text_of("plan %s", flags), *text = run_well(line, flags);
    free(line);
    return text;
}

static bool same_memory(const char* plan, const char* start) {
    static const char* const kRows[] = {"weights ", "gradients ", "optimizer ", "gathered ", "codes ", "activations ",
                                        "scratch ", "staging ", "together "};
    const char* line = start ? strstr(start, "memory per rank, GiB: ") : NULL;
    for (int i = 0; i < COUNT(kRows); i++) {
        char row[32];
        snprintf(row, sizeof row, "\n  %s", kRows[i]);
        if (!(fabs(number_behind(plan, row) - number_behind(line, kRows[i])) < 1e-6)) return false;
    }
    return true;
}

// Llama-3-70B with 50 times its layers, too large for any machine this runs on: each rank of these needs 20 TB or more, so that a run ends behind
// its memory line, in no time.
static const char kHuge[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 8192, \"num_hidden_layers\": 4000, \"num_attention_heads\": 64, \"num_key_value_heads\": 8, "
    "\"intermediate_size\": 28672, \"vocab_size\": 128256, \"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, "
    "\"tie_word_embeddings\": false}\n";

static void memory_of(const char* start_launcher, const char* model, const char* flags, int ranks) {
    char *start_line = text_of("bench --from-scratch %s %s", model, flags), *plan_flags = text_of("--from-scratch %s --gpus %d %s", model, ranks, flags);
    launcher = start_launcher;
    Run r = run(start_line);
    launcher = "";
    char* plan = plan_of(plan_flags);
    ok(r.code == 2 && same_memory(plan, r.out), "%d ranks, %s: the plan's memory is the start's", ranks, flags);
    char* planted = strstr(plan, "  scratch");
    if (planted) planted += strspn(planted, " scrath"), planted[0] = planted[0] == '9' ? '8' : '9';
    ok(!same_memory(plan, r.out), "%d ranks, %s: another scratch is noticed", ranks, flags);
    free_run(r);
    free(plan);
    free(start_line);
    free(plan_flags);
}

static const char* const kMemoryFlags[] = {
    "--recipe bf16 --seq 2048",
    "--recipe halo2-int8 --codes keep --seq 1024 --master bf16-sr --grad-dtype bf16 --state-dtype bf16 --recompute block",
    "--recipe halo2-int8 --codes remake --seq 1024 --master bf16-sr --grad-dtype bf16 --state-dtype bf16 --recompute block",
    "--recipe halo1-fp6 --adapter lora --rank 8 --recompute norm-act --zero 3",
    "--recipe halo0-fp8 --codes keep --qfsdp --accum 4 --head-dtype fp8 --prefetch 2",
};
static void memory_on(const char* backend) {
    char* model = scratch_path("huge");
    empty_dir(model);
    put_text(model, "config.json", kHuge);
    for (int i = 0; i < COUNT(kMemoryFlags); i++) {
        char* flags = text_of("%s --backend %s", kMemoryFlags[i], backend);
        memory_of("", model, flags, 1);
        if (!strcmp(backend, "cuda")) continue;   // the emulation of NCCL holds less
        if (has_mpi()) memory_of("mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 ", model, flags, 2);
        else skip("mpirun is not here: %s", flags);
        free(flags);
    }
    free(model);
}
static void cpu_memory_case(void) { memory_on("cpu"); }

static void gpu_memory_case(void) {
    char* emulated = text_of("%.*s/simt_train_llama3", (int)(strrchr(binary_of_test, '/') - binary_of_test), binary_of_test);
    if (access(emulated, X_OK)) {
        skip("%s is not built", emulated);
        return;
    }
    const char* real = binary;
    binary = emulated;
    memory_on("cuda");
    binary = real;
    free(emulated);
}

static const char kMiddle[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 512, \"num_hidden_layers\": 3, \"num_attention_heads\": 8, \"num_key_value_heads\": 4, "
    "\"intermediate_size\": 1024, \"vocab_size\": 1000, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, "
    "\"tie_word_embeddings\": false}\n";

static void traffic_case(void) {
    static const char* const kFlags[] = {"--recipe bf16 --accum 2", "--recipe halo2-int8 --qfsdp", "--recipe bf16 --zero 0", "--recipe bf16 --zero 1",
                                         "--recipe halo0-fp8 --adapter lora --rank 64"};
    if (!has_mpi()) {
        skip("mpirun is not here");
        return;
    }
    char* dir = scratch_path("middle");
    empty_dir(dir);
    put_text(dir, "config.json", kMiddle);
    for (int i = 0; i < COUNT(kFlags); i++) {
        char* flags = text_of("--from-scratch %s --backend cpu --batch 1 --seq 16 --steps 1 %s", dir, kFlags[i]);
        char *bench = text_of("bench %s", flags), *planned = text_of("--gpus 2 %s", flags);
        launcher = "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 2 ";
        char* told = run_well(bench, kFlags[i]);
        launcher = "";
        char* plan = plan_of(planned);
        const char* ranks = strstr(told, "ranks: ");   // "ranks: 1.20 ms a step waiting for each other (3.4%)  0.123 GB sent a step by each"
        double sent = ranks ? number_behind(ranks, "%)  ") : NAN;
        double expected = number_behind(plan, "sent by each rank, every step");
        ok(sent > 0 && fabs(sent - expected) < 0.0011, "%s: %.3f GB sent, %.3f planned", kFlags[i], sent, expected);
        free(told);
        free(plan);
        free(bench);
        free(planned);
        free(flags);
    }
}

// ---- what fits instead

// The flags of the command line below "fits", on how many GPUs; NULL: there is none.
static char* suggested(const char* plan, int* gpus) {
    const char* at = strstr(plan, "./train_llama3 ");
    if (!at) return NULL;
    const char *line = at, *np = NULL;
    while (line > plan && line[-1] != '\n') line--;
    np = strstr(line, "-np ");
    *gpus = np && np < at ? atoi(np + 4) : 1;
    at += strlen("./train_llama3 ");
    char *flags = text_of("%.*s", (int)strcspn(at, "\n"), at), *data = strstr(flags, " --data FILE");
    if (data) *data = 0;
    return flags;
}

static void fit_case(void) {
    static const struct {
        const char *flags, *wanted;   // what the suggestion has
    } kTight[] = {
        {"--preset llama3-8b --gpu-gb 80 --seq 1024 --recipe halo2-int8", "--state-dtype bf16"},
        {"--preset llama3-8b --gpu-gb 24 --seq 1024 --batch 4 --lr 2e-5", "--adapter lora"},
        {"--preset llama3.2-1b --gpu-gb 30 --seq 1024", "--recompute norm-act"},
        {"--preset llama3.2-1b --gpu-gb 16 --batch 6 --seq 2048 --out 'my model'", "--out 'my model'"},
        {"--preset llama3-8b --gpu-gb 80 --gpus 4 --zero 1 --seq 1024 --recipe halo0-fp8", "mpirun --bind-to none -np 4 "},
        {"--preset llama3-70b --gpu-gb 80 --gpus 8 --seq 1024 --recipe halo0-fp8", "--recipe halo0-fp8"},
        {"--preset llama3-70b --gpu-gb 24 --seq 1024", "no flags make it fit on 1; on 8 this does:"},
    };
    for (int i = 0; i < COUNT(kTight); i++) {
        int gpus = 0;
        char *plan = plan_of(kTight[i].flags), *flags = suggested(plan, &gpus);
        const char* limit = strstr(kTight[i].flags, "--gpu-gb ");
        ok(strstr(plan, "IT DOES NOT FIT") && flags && strstr(plan, kTight[i].wanted), "%s: has %s", kTight[i].flags, kTight[i].wanted);
        if (!flags) continue;
        char *again = text_of("%s --gpus %d %.*s", flags, gpus, (int)(strlen("--gpu-gb ") + strcspn(limit + 9, " ")), limit), *told = plan_of(again);
        ok(strstr(told, "it fits") && !strstr(told, "DOES NOT"), "planned again it fits: %s", again);
        free(plan);
        free(flags);
        free(again);
        free(told);
    }
}

static void batch_case(void) {
    const char* flags = "--preset llama3-8b --gpu-gb 80 --seq 1024 --master bf16-sr --grad-dtype bf16 --state-dtype bf16 --recompute block";
    char* plan = plan_of(flags);
    int most = (int)number_behind(plan, "largest --batch that fits: ");
    char *fits = text_of("%s --batch %d", flags, most), *more = text_of("%s --batch %d", flags, most + 1);
    char *a = plan_of(fits), *b = plan_of(more);
    ok(most > 1 && strstr(a, "it fits") && strstr(b, "IT DOES NOT FIT"), "--batch %d fits, %d does not", most, most + 1);
    free(plan);
    free(fits);
    free(more);
    free(a);
    free(b);
}

// ---- data, and lines

static void data_case(void) {
    make_inputs();
    char* flags = text_of("--model %s --data %s --chat none --seq 32 --batch 4 --epochs 3 --gpus 2", model_dir, data_path);
    char* plan = plan_of(flags);
    ok(number_behind(plan, "  records ") == 22 && number_behind(plan, "  steps of the run") == 9 && strstr(plan, "to the end"),
       "22 records in three epochs of steps of 8 examples are 9 steps");
    char *wide = text_of("%s%090d\n", plan, 0);
    ok(fits_80_columns(plan, "./train_llama3") && !fits_80_columns(wide, "./train_llama3"), "its lines fit 80 columns");
    free(wide);
    free(plan);
    free(flags);
    run_refused("plan --preset llama3-8b --gpus 0", "--gpus 0|at least 1", "no GPU");
    run_refused("plan --preset llama3-8b --seq 9000", "--seq 9000|max_position_embeddings", "longer than the model");
    run_refused("plan", "--model|--preset", "no model");
}

// inspect: its steps are plan's, what training refuses it tells without failing, and its JSON holds examples alone.
static void inspect_case(void) {
    make_inputs();
    char* flags = text_of("--model %s --data %s --chat none --seq 32 --batch 4 --epochs 2.5", model_dir, data_path);
    char *inspect = text_of("inspect %s --examples 1", flags), *text = run_well(inspect, "inspect"), *plan = plan_of(flags);
    double steps = number_behind(plan, "  steps of the run");
    ok(steps == 15 && number_behind(text, "  steps of the run") == steps && number_behind(text, "  rows an epoch") == number_behind(plan, "  rows an epoch"),
       "inspect and plan: %.0f steps", steps);
    const char* summary = strstr(text, "--- summary");
    ok(summary && fits_80_columns(summary, "./train_llama3") && strstr(summary, "lengths in tokens") && strstr(summary, "H200") && strstr(summary, "AN ESTIMATE"),
       "a summary of 80 columns, with lengths and times");
    char *json = text_of("inspect %s --examples 3 --json", flags), *lines = run_well(json, "inspect --json");
    ok(lines_in(lines) == 3 && !strncmp(lines, "{\"text\":", 8), "--json: an example a line, and nothing else");
    char* empty = scratch_path("empty.jsonl");
    static const char kEmpty[] = "{\"prompt\": \"a\", \"completion\": \"\"}\n";
    put_file(empty, kEmpty, strlen(kEmpty));
    char *refused = text_of("inspect --model %s --data %s --chat none --seq 32", model_dir, empty), *told = run_well(refused, "empty answers");
    ok(strstr(told, "training would refuse these data: ") && strstr(told, "every answer is empty"), "empty answers: inspect says that training refuses them");
    free(flags);
    free(inspect);
    free(text);
    free(plan);
    free(json);
    free(lines);
    free(empty);
    free(refused);
    free(told);
}

static const Case cases[] = {{"cpu_memory", cpu_memory_case}, {"gpu_memory", gpu_memory_case}, {"traffic", traffic_case},
                             {"fit", fit_case},               {"batch", batch_case},           {"data", data_case},
                             {"inspect", inspect_case}};
int main(int argc, char** argv) {
    binary_of_test = argv[0];
    return program_main("test_plan_runs", cases, COUNT(cases), argc, argv);
}
