// Ranks under mpirun: 1, 2, 3 and 4 of them train the same bits for every ZeRO stage, with weights gathered as they are and as
// codes, however many layers are gathered ahead; a rank that dies or hangs ends the job and is named; ranks that disagree are told so.
//
// On CPU ranks; on emulated GPUs, where the streams are threads and one of them is slowed down at a time (simt_streams.h, simt_nccl.h),
// so that a missing wait shows; and on GPUs where the machine has two.
#include "program.h"

#include <signal.h>

#include "backends.h"

typedef struct {
    const char *name, *binary, *backend;
    int most_ranks, rows, steps;   // rows of a global batch
} Machine;
static Machine machine;
static char* emulated_binary;   // beside this one

static void on_cpu(void) {
    static const char* own;
    if (!own) own = binary;   // the program under test, before a case names another
    Machine m = {"cpu", own, "cpu", 4, 12, 4};
    machine = m;
    binary = own;
}
// False, and a skip line, without them.
static bool on_emulated_gpus(void) {
    on_cpu();
    Machine m = {"emulated", emulated_binary, "cuda", 3, 6, 2};
    if (access(emulated_binary, X_OK)) {
        skip("ranks on emulated GPUs: %s is not there", emulated_binary);
        return false;
    }
    setenv("SIMT_GPUS", "4", 1);
    machine = m;
    binary = m.binary;
    return true;
}
static bool on_gpus(void) {
    on_cpu();
#if defined(HALO_CUDA) && defined(HALO_NCCL)
    int gpus = cuda_device_count();
    Machine m = {"gpu", machine.binary, "cuda", min_int(gpus, 4), 12, 4};
    machine = m;
    if (gpus >= 2) return true;
    too_few_gpus("ranks on GPUs", gpus);
#else
    skip("ranks on GPUs: built without NCCL");
#endif
    return false;
}

// The tiny model of program.h with more layers than are gathered at once.
static char *deep_dir, *tied_dir;
static char* replaced(const char* text, const char* from, const char* to) {
    const char* at = strstr(text, from);
    check(at, "%s: not in the text", from);
    return text_of("%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
}
static void make_models(void) {
    make_inputs();
    if (deep_dir) return;
    deep_dir = scratch_path("deep");
    tied_dir = scratch_path("tied");
    char* deep = replaced(kConfig, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 5");
    char* tied = replaced(deep, "\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    char* const dirs[] = {deep_dir, tied_dir};
    char* const configs[] = {deep, tied};
    for (int i = 0; i < COUNT(dirs); i++) {
        empty_dir(dirs[i]);
        put_text(dirs[i], "config.json", configs[i]);
        put_text(dirs[i], "tokenizer_config.json", kTokenizerConfig);
        write_tokenizer(dirs[i]);
        free(configs[i]);
    }
}

static char* mpirun(int ranks) {
    return ranks > 1 ? text_of("mpirun --allow-run-as-root --oversubscribe --mca btl_base_warn_component_unused 0 -np %d ", ranks)
                     : host_strdup("");
}

// Trains a tiny model, with random weights unless --model is among the flags, in micro-batches of one row, dealt out to `ranks`, and
// returns the run's folder.
static char* train(const char* model, int ranks, const char* name, const char* more) {
    char *prefix = mpirun(ranks), *out = scratch_path(name);
    char* flags = with_flags(text_of("train %s %s --data %s --chat none --seq 32 --batch 1 --accum %d --steps %d --lr 1e-2 --backend %s "
                                     "--out %s --log %s", names_flag(more, "--model") ? "" : "--from-scratch",
                                     names_flag(more, "--model") ? "" : model, data_path, machine.rows / ranks, machine.steps, machine.backend,
                                     out, out), more);
    launcher = prefix;
    Run r = run(flags);
    ok(r.code == 0, "%s %s: exit %d %s", machine.name, name, r.code, r.code ? r.err : "");
    launcher = "";
    free_run(r);
    free(flags);
    free(prefix);
    return out;
}
static char* train_on(int ranks, const char* name, const char* more) { return train(deep_dir, ranks, name, more); }

// What log.jsonl has under `key` in its lines, one after the other.
static char* logged(const char* dir, const char* key) {
    char *log = log_of(dir), *values = (char*)host_alloc(strlen(log) + 1), *name = text_of("\"%s\": ", key);
    for (char* p = log; (p = strstr(p, name)) != NULL; p++) {
        char* number = p + strlen(name);
        strncat(values, number, strcspn(number, ","));
        strcat(values, " ");
    }
    free(log);
    free(name);
    return values;
}
static char* losses_of(const char* dir) { return logged(dir, "loss"); }

// The largest relative difference between what two runs have logged under `key` in each step.
static double logged_difference(const char* dir, const char* other, const char* key) {
    char *values[] = {logged(dir, key), logged(other, key)}, *a = values[0], *b = values[1];
    double worst = *a && *b ? 0 : INFINITY;
    for (int step = 0; step < machine.steps; step++) worst = fmax(worst, fabs(strtod(a, &a) / strtod(b, &b) - 1));
    free(values[0]);
    free(values[1]);
    return worst;
}

// One rank's losses and weights, and then those of each run.
typedef struct {
    int ranks;
    const char *flags, *slow;   // slow: the emulated stream; NULL: none
} RankRun;
static void same_bits(const char* model, const char* recipe, const RankRun* runs, int count) {
    char* flags = text_of("%s --zero 3", recipe);
    char *alone = train(model, 1, "alone", flags), *want = losses_of(alone), *want_norms = logged(alone, "grad_norm");
    const char* weights = strstr(recipe, "--adapter") ? "adapter_model.safetensors" : "model.safetensors";
    bool clips = strstr(recipe, "--clip") != NULL;
    free(flags);
    if (clips) ok(strtod(want_norms, NULL) > strtod(strstr(recipe, "--clip ") + 7, NULL), "%s: gradients are clipped", recipe);
    for (int i = 0; i < count; i++) {
        if (runs[i].ranks > machine.most_ranks) continue;
        flags = text_of("%s %s", recipe, runs[i].flags);
        setenv("SIMT_SLOW", runs[i].slow ? runs[i].slow : "none", 1);
        char *out = train(model, runs[i].ranks, "several", flags), *got = losses_of(out);
        ok(*got && !strcmp(got, want) && same_files(alone, out, weights),
           "%s %d rank%s, %s%s%s: losses and weights of one rank, bit for bit", machine.name, runs[i].ranks,
           runs[i].ranks > 1 ? "s" : "", flags, runs[i].slow ? ", slow stream " : "", runs[i].slow ? runs[i].slow : "");
        double norms = logged_difference(alone, out, "grad_norm");   // without --clip summed in another order
        char* got_norms = logged(out, "grad_norm");
        ok(clips ? !strcmp(got_norms, want_norms) : norms < 1e-5, "%s and its gradient norms%s: %.1e", machine.name,
           clips ? " to the last digit" : "", norms);
        free(got_norms);
        char* log = log_of(out);
        bool seen = strstr(log, "quant_stats") != NULL, weights_seen = strstr(log, "\"w\": {") != NULL;
        bool codes = strstr(runs[i].flags, "--qfsdp") != NULL;
        if (strstr(flags, "--quant-stats")) ok(seen && weights_seen == !codes, "and rank 0 tells of its linears, of their weights where it has them");
        free(log);
        empty_dir(out);
        free(got);
        free(out);
        free(flags);
    }
    empty_dir(alone);
    free(want_norms);
    free(want);
    free(alone);
}

static const RankRun kPlainRuns[] = {{1, "--zero 2", NULL},
                                     {2, "--zero 3", NULL},
                                     {2, "--zero 2", NULL},
                                     {2, "--zero 3 --prefetch 0", NULL},
                                     {3, "--zero 3 --prefetch 2", NULL},
                                     {4, "--zero 3", NULL},
                                     {4, "--zero 2 --prefetch 0", NULL}};
static const RankRun kCodedRuns[] = {{2, "--zero 3", NULL},
                                     {1, "--zero 0 --codes remake", NULL},
                                     {2, "--zero 3 --codes remake --recompute block", NULL},
                                     {2, "--qfsdp --prefetch 4", NULL},
                                     {3, "--qfsdp --quant-stats 3", NULL},
                                     {4, "--zero 3 --prefetch 0 --quant-stats 4", NULL},
                                     {4, "--qfsdp --prefetch 0", NULL},
                                     {4, "--qfsdp --prefetch 2 --recompute block", NULL}};

// More examples than one a micro-batch, on fewer rows: some ranks have rows fewer than others, or none. 22 records, 12 micro-batches.
static const RankRun kPackedRuns[] = {{1, "--zero 2", NULL}, {2, "--zero 3", NULL}, {3, "--zero 2", NULL}, {3, "--zero 3", NULL}, {4, "--zero 3", NULL}};

static void packed_bits(void) {
    static const char* const kKinds[] = {"--level bf16 --seq 64 --batch 2", "--level halo2 --dtype int8 --batch 3", "--level bf16 --pack off",
                                         "--level halo1 --dtype fp6 --seq 24 --batch 2 --pack on",
                                         "--adapter lora --rank 3 --dropout 0.2 --level halo2 --dtype int8 --batch 3 --recompute block"};
    make_models();
    for (int i = 0; i < COUNT(kKinds); i++) same_bits(deep_dir, kKinds[i], kPackedRuns, COUNT(kPackedRuns));
}
static void cpu_packed_case(void) {
    on_cpu();
    packed_bits();
}
static void gpu_packed_case(void) {
    if (on_gpus()) packed_bits();
}

// The norm that clips is one sum, however rows are dealt out: 264 rows of 32 on 6 ranks, 32 norms, adapters' rows of 16.
static const RankRun kClippedRuns[] = {{1, "--zero 2", NULL}, {2, "--zero 3", NULL}, {2, "--zero 2", NULL}, {3, "--zero 3", NULL}, {6, "--zero 3", NULL}};
static void clipped_bits(void) {
    make_models();
    char* adapter = text_of("--model %s --adapter lora --target q,v,down --level halo0 --dtype int8 --clip 0.001", train_on(1, "base", "--overwrite"));
    same_bits(deep_dir, "--level bf16 --clip 0.1", kClippedRuns, COUNT(kClippedRuns));
    same_bits(tied_dir, "--level halo2 --dtype int8 --clip 0.1", kClippedRuns + 3, 2);
    same_bits(deep_dir, adapter, kClippedRuns, COUNT(kClippedRuns));
    free(adapter);
}
static void cpu_clip_case(void) {
    on_cpu();
    machine.most_ranks = 6;
    clipped_bits();
}
static void emulated_clip_case(void) {
    if (!on_emulated_gpus()) return;
    make_models();
    same_bits(deep_dir, "--level bf16 --clip 0.1", kClippedRuns + 1, 3);
}
static void gpu_clip_case(void) {
    if (on_gpus()) clipped_bits();
}

static void bits(void) {
    make_models();
    same_bits(deep_dir, "--level bf16", kPlainRuns, COUNT(kPlainRuns));
    same_bits(tied_dir, "--level bf16", kPlainRuns + 3, 2);
    same_bits(deep_dir, "--level halo2 --dtype int8", kCodedRuns, COUNT(kCodedRuns));
    same_bits(deep_dir, "--level halo1 --dtype fp6 --head-dtype fp8", kCodedRuns, COUNT(kCodedRuns));
}
static void cpu_bits_case(void) {
    on_cpu();
    bits();
}
static void gpu_bits_case(void) {
    if (on_gpus()) bits();
}

// The streams in the order of their creation: NCCL's, that of the sums, the backend's.
static const RankRun kEmulatedPlainRuns[] = {{2, "--zero 3", "0"}, {2, "--zero 3", "1"}, {2, "--zero 3 --prefetch 2", "2"},
                                             {2, "--zero 2", "0"}, {3, "--zero 3", NULL}, {3, "--zero 3 --prefetch 0", "0"}};
static const RankRun kEmulatedCodedRuns[] = {{2, "--qfsdp", "0"}, {2, "--qfsdp --prefetch 2", "2"}, {3, "--qfsdp", NULL},
                                             {2, "--zero 3 --codes remake --recompute block", NULL}};
static void emulated_bits_case(void) {
    if (!on_emulated_gpus()) return;
    make_models();
    same_bits(deep_dir, "--level bf16", kEmulatedPlainRuns, COUNT(kEmulatedPlainRuns));
    same_bits(deep_dir, "--level halo1 --dtype fp6", kEmulatedCodedRuns, COUNT(kEmulatedCodedRuns));
    same_bits(tied_dir, "--level halo0 --dtype fp8", kEmulatedCodedRuns + 2, 1);
}

// An evaluation between two steps gathers more often than transfers are remembered (comm/nccl.cu): nothing of the first step may be
// waited for in the second.
static void emulated_evaluation_case(void) {
    if (!on_emulated_gpus()) return;
    make_models();
    char* flags = text_of("--zero 3 --val %s --eval-every 1", data_path);
    RankRun run = {2, flags, NULL};
    same_bits(deep_dir, "--level bf16", &run, 1);
    free(flags);
}

// What the program prints with these arguments on `ranks` ranks; each line of JSON is one of rank 0's.
static char* printed_on(int ranks, const char* arguments) {
    char* prefix = mpirun(ranks);
    launcher = prefix;
    Run r = run(arguments);
    ok(r.code == 0, "%d ranks, %.40s: exit %d %s", ranks, arguments, r.code, r.code ? r.err : "");
    launcher = "";
    free(prefix);
    free(r.err);
    return r.out;
}

// Ranks share out the prompts, of which there are 22: drawn answers come in the order of the file as one rank gives them, also under a
// recipe whose scale spans the batch, and also where the model's weights are spread over the ranks, before and between steps.
static void answers_on(const char* base, const char* name, const char* more) {
    char *model = train(base, 1, name, ""), *file = scratch_path("answers"), *alone = NULL, *judged = NULL, *lines = NULL;
    for (int ranks = 1; ranks <= 3; ranks++) {
        char* generate = text_of("generate --model %s --data %s --chat none --max-tokens 8 --temperature 2 --batch 3 --backend %s %s", model, data_path,
                                 machine.backend, more);
        char* eval = text_of("eval --model %s --data %s --chat none --max-tokens 8 --metric exact --batch 2 --backend %s %s --answers %s", model,
                             data_path, machine.backend, more, file);
        char *out = printed_on(ranks, generate), *verdict = printed_on(ranks, eval), *answers = file_read(file, NULL);
        if (ranks == 1) {
            alone = out, judged = verdict, lines = answers;
            ok(lines_in(alone) == 22 && lines_in(lines) == 22, "%s: %d and %d answers", name, lines_in(alone), lines_in(lines));
        } else {
            ok(!strcmp(alone, out), "%s %s: %d ranks print what one does", name, more, ranks);
            ok(!strcmp(judged, verdict) && !strcmp(lines, answers), "%s %s: %d ranks judge as one does", name, more, ranks);
            free(out);
            free(verdict);
            free(answers);
        }
        free(generate);
        free(eval);
    }
    char* const texts[] = {model, file, alone, judged, lines};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

static void cpu_answers_case(void) {
    on_cpu();
    make_models();
    answers_on(deep_dir, "answers-deep", "");
    answers_on(tied_dir, "answers-tied", "");
    answers_on(deep_dir, "answers-int8", "--recipe halo2-int8");
    char *few = text_of("--zero 3 --val %s --val-metric exact --max-tokens 6 --eval-every 1", val_path), *percent = NULL;
    for (int ranks = 1; ranks <= 3; ranks++) {
        char *name = text_of("metric%d", ranks), *out = train(tied_dir, ranks, name, few), *told = logged(out, "val_percent");
        if (ranks == 1) percent = told;
        else {
            ok(*told && !strcmp(percent, told), "--val-metric on %d ranks: %s", ranks, told);
            free(told);
        }
        free(name);
        free(out);
    }
    free(percent);
    free(few);
}

// Stages that sum whole gradients once a step take another order, and so do their gradients' norms: the same to rounding.
static void stages_with(const char* flags, int from_stage, int to_stage, double tolerance) {
    char *alone_flags = text_of("--zero 3 %s", flags), *alone = train_on(1, "alone", alone_flags);
    for (int zero = from_stage; zero <= to_stage; zero++)
        for (int ranks = 2; ranks <= min_int(3, machine.most_ranks); ranks++) {
            char *more = text_of("--zero %d %s", zero, flags), *out = train_on(ranks, "several", more);
            double losses = logged_difference(alone, out, "loss"), norms = logged_difference(alone, out, "grad_norm");
            ok(losses < tolerance && norms < 10 * tolerance, "%s %d ranks, %s: the losses of one rank to %.1e, its norms to %.1e", machine.name, ranks,
               more, losses, norms);
            empty_dir(out);
            free(out);
            free(more);
        }
    empty_dir(alone);
    free(alone);
    free(alone_flags);
}
static void other_stages(double tolerance) {
    make_models();
    stages_with("", 0, 1, tolerance);
    stages_with("--clip 0.1", 1, 3, tolerance);
}

static void cpu_stages_case(void) {
    on_cpu();
    machine.backend = "cpu-f32";
    other_stages(1e-6);
}
// In BF16 a last digit of a weight may turn.
static void emulated_stages_case(void) {
    if (!on_emulated_gpus()) return;
    other_stages(1e-3);
    setenv("HALO_COPY_ENGINES", "0", 1);   // all transfers by NCCL
    same_bits(deep_dir, "--level bf16", kEmulatedPlainRuns + 2, 2);
    same_bits(deep_dir, "--level halo1 --dtype fp6", kEmulatedCodedRuns + 2, 1);
    unsetenv("HALO_COPY_ENGINES");
}
static void gpu_stages_case(void) {
    if (on_gpus()) other_stages(1e-3);
}

// A checkpoint of two or four ranks, taken up by other numbers of ranks.
static void resume(void) {
    make_models();
    const char* const kinds[] = {"--level halo2 --dtype int8 --qfsdp", "--level bf16 --master bf16-sr --zero 2"};
    const struct {
        int saved, resumed;
    } runs[] = {{2, 2}, {4, 2}, {2, 3}};
    for (int k = 0; k < COUNT(kinds); k++) {
        char *whole = train_on(2, "whole", kinds[k]), *saving = text_of("%s --save-every 2", kinds[k]);
        char* resuming = text_of("%s --resume", kinds[k]);
        for (int i = 0; i < COUNT(runs); i++) {
            if (max_int(runs[i].saved, runs[i].resumed) > machine.most_ranks) continue;
            char *cut = train_on(runs[i].saved, "cut", saving), *model = path_join(cut, "model.safetensors");
            file_remove(model);
            free(train_on(runs[i].resumed, "cut", resuming));
            ok(same_files(whole, cut, "model.safetensors"), "%s saved by %d ranks, continued by %d, %s: bit for bit", machine.name,
               runs[i].saved, runs[i].resumed, kinds[k]);
            empty_dir(cut);
            free(model);
            free(cut);
        }
        empty_dir(whole);
        free(whole);
        free(saving);
        free(resuming);
    }
}

static void cpu_resume_case(void) {
    on_cpu();
    resume();
}
static void gpu_resume_case(void) {
    if (on_gpus()) resume();
}

// The last of the ranks gets the signal once the training runs.
static Run with_signal(int signal_number, const char* timeout) {
    int ranks = min_int(3, machine.most_ranks);
    char* pid_file = scratch_path("pids");
    // The ranks write their process ids before they become the program.
    shell("rm -f", pid_file);
    char* line = text_of("mpirun --allow-run-as-root --oversubscribe -np %d sh -c 'echo $$ >>%s; exec \"$0\" \"$@\"' ", ranks, pid_file);
    launcher = line;
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 1 --steps 2000000 --warmup 0 --lr 1e-4 "
                          "--backend %s --timeout %s", deep_dir, data_path, machine.backend, timeout);
    pid_t child = start(flags);
    launcher = "";
    int pid = 0;
    for (int tries = 0; tries < 1200; tries++) {
        usleep(50 * 1000);
        char* printed;
        read_stream("stdout", &printed);
        bool running = strstr(printed, " 3/2000000 ") != NULL;
        free(printed);
        if (!running) continue;
        char* pids = file_read(pid_file, NULL);
        char* last = pids;
        for (int i = 1; i < ranks; i++) last = strchr(last, '\n') + 1;
        pid = atoi(last);
        free(pids);
        break;
    }
    kill(pid > 1 ? pid : child, pid > 1 ? signal_number : SIGTERM);
    Run r = finish(child);
    check(pid > 1, "the ranks did not start: %s", r.err);
    kill(pid, SIGKILL);
    free(pid_file);
    free(line);
    free(flags);
    return r;
}

static void lost_ranks(void) {
    make_models();
    Run killed = with_signal(SIGKILL, "60");
    ok(killed.code != 0 && strstr(killed.err, ": step ") && strstr(killed.err, "another rank has died"),
       "%s a killed rank ends the job (exit %d), and the others say where they were", machine.name, killed.code);
    free_run(killed);
    // Longer than GPUs that others use take to connect and to try products.
    bool gpu = !strcmp(machine.name, "gpu");
    Run stopped = with_signal(SIGSTOP, gpu ? "15" : "2");
    ok(stopped.code == 3 && strstr(stopped.err, gpu ? "no progress for 15 s" : "no progress for 2 s") && strstr(stopped.err, "waiting for the other ranks in "),
       "%s a rank that hangs ends the job after --timeout (exit %d)", machine.name, stopped.code);
    free_run(stopped);
}
static void cpu_lost_case(void) {
    on_cpu();
    lost_ranks();
}
static void emulated_lost_case(void) {
    if (on_emulated_gpus()) lost_ranks();
}
static void gpu_lost_case(void) {
    if (on_gpus()) lost_ranks();
}

// Ranks that can't run together say why: `shell` runs the program of each rank ("$0" "$@").
static void refused(int ranks, const char* shell_line, const char* words) {
    launcher = text_of("mpirun --allow-run-as-root --oversubscribe -np %d sh -c '%s' ", ranks, shell_line);
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32", deep_dir, data_path);
    Run r = run(flags);
    ok(r.code != 0 && strstr(r.err, words), "%s ranks are told: %s", machine.name, words);
    if (!strstr(r.err, words)) printf("  they were told: %s\n", r.err);
    free((char*)launcher);
    launcher = "";
    free_run(r);
    free(flags);
}

// Two ranks in folders of their own, r0 and r1, whose data, model or adapter differ behind the same relative name.
static void other_contents(const char* flags, const char* words) {
    launcher = text_of("mpirun --allow-run-as-root --oversubscribe -np 2 sh -c 'cd %s/r$OMPI_COMM_WORLD_RANK; exec \"$0\" \"$@\"' ", scratch_dir);
    char* all = text_of("train --tokenizer %s --chat none --seq 32 --steps 1 --backend cpu %s", deep_dir, flags);
    Run r = run(all);
    ok(r.code != 0 && strstr(r.err, words), "ranks with other contents are told: %s", words);
    if (!strstr(r.err, words)) printf("  they were told: %s\n", r.err);
    free((char*)launcher);
    launcher = "";
    free_run(r);
    free(all);
}

// A rank's own copy of a folder, in which the last value of a file of weights has another digit on another rank.
static void copy_of_rank(const char* from, const char* to, const char* file, int rank) {
    char *copy = text_of("cp -r %s", from), *weights = path_join(to, file);
    shell(copy, to);
    size_t bytes;
    char* text = file_read(weights, &bytes);
    text[bytes - 2] = (char)(text[bytes - 2] ^ rank);
    put_file(weights, text, bytes);
    free(text);
    free(weights);
    free(copy);
}

static void contents_refused(void) {
    static const char* const kLines[] = {"{\"prompt\": \"1\", \"completion\": \"2\"}\n", "{\"prompt\": \"3\", \"completion\": \"4\"}\n"};
    char *trained = train_on(1, "trained", ""), *on_trained = text_of("--model %s --adapter lora --rank 4", trained);
    char* trained_adapter = train_on(1, "adapter", on_trained);
    for (int rank = 0; rank < 2; rank++) {
        char *name = text_of("r%d", rank), *dir = scratch_path(name), *data = text_of("%s%s", kLines[rank], kLines[1 - rank]);
        empty_dir(dir);
        put_text(dir, "data.jsonl", data);
        char *model = path_join(dir, "model"), *adapter = path_join(dir, "adapter");
        copy_of_rank(trained, model, "model.safetensors", rank);
        copy_of_rank(trained_adapter, adapter, "adapter_model.safetensors", rank);
        char* const texts[] = {name, dir, data, model, adapter};
        for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
    }
    char *same_data = text_of("--model model --data %s", data_path), *same_model = text_of("--from-scratch %s --data data.jsonl", deep_dir);
    other_contents(same_model, "rank 1 disagrees with rank 0: it has another content of --data");
    other_contents(same_data, "rank 1 disagrees with rank 0: the weights of ");
    char* same_base = text_of("--model %s --data %s --adapter-dir adapter", trained, data_path);
    other_contents(same_base, "rank 1 disagrees with rank 0: it has another adapter in --adapter-dir");
    char* const texts[] = {same_data, same_model, same_base, trained, on_trained, trained_adapter};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

static void cpu_refused_case(void) {
    on_cpu();
    make_models();
    contents_refused();
    refused(2, "\"$0\" \"$@\" --backend cpu --lr $((OMPI_COMM_WORLD_RANK + 1))", "rank 1 disagrees with rank 0: it has '--lr 2', rank 0 has '--lr 1'");
    refused(2, "\"$0\" \"$@\" --backend cpu --prefetch $OMPI_COMM_WORLD_RANK", "rank 1 disagrees with rank 0: it has '--prefetch 1', rank 0 has '--prefetch 0'");
}
static void emulated_refused_case(void) {
    if (!on_emulated_gpus()) return;
    make_models();
    refused(3, "SIMT_GPUS=2 \"$0\" \"$@\" --backend cuda", "3 ranks, but 2 GPUs: start one rank a GPU");
    refused(2, "backend=cuda; [ $OMPI_COMM_WORLD_RANK = 0 ] || backend=cpu; \"$0\" \"$@\" --backend $backend",
            "1 of 2 ranks run on a GPU: start the others where there is one too");
}

static const Case cases[] = {{"cpu.bits", cpu_bits_case},         {"cpu.stages", cpu_stages_case},
                             {"cpu.packed", cpu_packed_case},     {"gpu.packed", gpu_packed_case},
                             {"cpu.clip", cpu_clip_case},         {"emulated.clip", emulated_clip_case},
                             {"gpu.clip", gpu_clip_case},         {"cpu.resume", cpu_resume_case},     {"cpu.lost", cpu_lost_case},
                             {"cpu.refused", cpu_refused_case},   {"cpu.answers", cpu_answers_case},
                             {"emulated.bits", emulated_bits_case},
                             {"emulated.evaluation", emulated_evaluation_case},
                             {"emulated.stages", emulated_stages_case}, {"emulated.lost", emulated_lost_case},
                             {"emulated.refused", emulated_refused_case}, {"gpu.bits", gpu_bits_case},
                             {"gpu.stages", gpu_stages_case},     {"gpu.resume", gpu_resume_case},
                             {"gpu.lost", gpu_lost_case}};

static void no_mpi(void) { skip("ranks: no MPI on this machine"); }
static const Case skipped[] = {{"ranks", no_mpi}};

int main(int argc, char** argv) {
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);   // for the ranks: MPI leaves memory of its own behind
    const char* slash = strrchr(argv[0], '/');
    emulated_binary = text_of("%.*ssimt_train_llama3", slash ? (int)(slash + 1 - argv[0]) : 0, argv[0]);
    return has_mpi() ? program_main("test_ranks", cases, COUNT(cases), argc, argv) : test_main(skipped, COUNT(skipped), argc, argv);
}
