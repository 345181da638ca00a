// The program from outside, as a user runs it: every sub-command on a tiny model with random weights and tiny data, both made
// here (program.h). What it writes loads again; an interrupted run goes on bit for bit; whatever is wrong is told in one line.
#include "program.h"

#include <regex.h>

#include "../halo/version.h"

enum { kSteps = 12 };   // 3 an epoch, the last one not full: step 5 is in the middle of the second

// A run of the tiny model; `more` may say more.
static char* train_flags(const char* out, const char* more) {
    return with_flags(text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps %d --lr 1e-2 --out %s "
                              "--log %s", model_dir, data_path, kSteps, out, out), more);
}

// Its folder, trained; the caller frees the name.
static char* trained(const char* name, const char* more) {
    char *out = scratch_path(name), *flags = train_flags(out, more);
    free(run_well(flags, name));
    free(flags);
    return out;
}

// ---- cases

static void check_step_lines(const char* printed, const char* dir) {
    regex_t form;
    check(!regcomp(&form, "^step +([0-9]+)/12  epoch [0-9]+\\.[0-9]{2}  loss ([0-9]+\\.[0-9]{4})  norm [0-9]+\\.[0-9]{4}  "
                          "lr [0-9]\\.[0-9]{2}e[-+][0-9]{2}  [0-9]+ tok/s  ETA [0-9hms]+$", REG_EXTENDED), "regcomp");
    static const char* const kFields[] = {"step", "epoch", "loss", "grad_norm", "lr", "tokens_per_second", "eta_seconds"};
    char *log = text_at(dir, "log.jsonl"), *line = log;
    int steps = 0, objects = 0, agree = 0;
    double first = 0, last = 0;
    for (const char* p = printed; *p; p = strchr(p, '\n') + 1) {
        char* text = strndup(p, strcspn(p, "\n"));
        regmatch_t match[3];
        if (!regexec(&form, text, 3, match, 0)) {
            steps++;
            size_t bytes = strcspn(line, "\n");
            json_t* object = json_loadb(line, bytes, 0, NULL);
            bool whole = json_object_size(object) == COUNT(kFields);
            for (int i = 0; i < COUNT(kFields); i++) whole = whole && json_is_number(json_object_get(object, kFields[i]));
            objects += whole;
            char loss[32];
            last = json_number_value(json_object_get(object, "loss"));
            if (steps == 1) first = last;
            snprintf(loss, sizeof loss, "%.4f", last);
            agree += atoi(text + match[1].rm_so) == steps && json_integer_value(json_object_get(object, "step")) == steps &&
                     !strncmp(text + match[2].rm_so, loss, strlen(loss));
            json_decref(object);
            line += bytes + (line[bytes] == '\n');
        }
        free(text);
    }
    ok(steps == kSteps, "train prints one step line a step: %d", steps);
    ok(objects == kSteps && *line == 0, "log.jsonl holds one JSON object a step with the seven fields: %d", objects);
    ok(agree == kSteps, "log.jsonl and the step lines agree: %d", agree);
    ok(first > 5 && last < first - 0.3, "the loss falls: %.3f to %.3f", first, last);
    regfree(&form);
    free(log);
}

static void train_case(void) {
    make_inputs();
    char *out = scratch_path("first"), *copy = scratch_path("copy"), *text, *again;
    char* more = text_of("--val %s", val_path);
    char* flags = train_flags(out, "");
    text = run_well(flags, "train");
    check_step_lines(text, out);
    free(text);
    free(flags);

    // config.json is the original but for the dtype, the rest is copied
    text = host_strdup(kConfig);
    char* dtype = strstr(text, "\"float32\"");
    char* config = text_of("%.*s\"bfloat16\"%s", (int)(dtype - text), text, dtype + strlen("\"float32\""));
    again = text_at(out, "config.json");
    ok(!strcmp(config, again), "config.json is copied through with only its dtype changed");
    free(text);
    free(config);
    free(again);
    static const char* const kCopied[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"};
    for (int i = 0; i < COUNT(kCopied); i++) ok(same_files(model_dir, out, kCopied[i]), "%s is copied", kCopied[i]);

    // the written model is the trained one: the loss that training saw last, to the last bit that a reader can see
    char* val_out = trained("first-val", more);
    ok(same_files(out, val_out, "model.safetensors"), "--val does not change the training");
    flags = text_of("eval --model %s --data %s --chat none --seq 32 --batch 8", val_out, val_path);
    text = run_well(flags, "eval");
    again = run_well(flags, "eval again");
    ok(!strcmp(text, again), "eval prints the same twice");
    json_t* last = NULL;
    char* log = text_at(val_out, "log.jsonl");
    for (char* line = log; *line; line = strchr(line, '\n') + 1) {
        if (last) json_decref(last);
        last = json_loadb(line, strcspn(line, "\n"), 0, NULL);
    }
    char want[64];
    snprintf(want, sizeof want, ": loss %.6f  ", json_number_value(json_object_get(last, "val_loss")));
    ok(strstr(text, want) != NULL, "the model that was written has the loss that training saw%s", want);
    json_decref(last);
    free(log);
    free(text);
    free(again);
    free(flags);

    flags = text_of("export --model %s --out %s", out, copy);
    free(run_well(flags, "export"));
    free(flags);
    ok(same_files(out, copy, "model.safetensors") && same_files(out, copy, "config.json"), "export of a model is that model");
    flags = text_of("export --model %s --out %s --backend cpu-f32 --overwrite", out, copy);
    free(run_well(flags, "export in FP32"));
    free(flags);
    text = text_at(copy, "config.json");
    ok(!strcmp(text, kConfig), "export in FP32 says so in config.json");
    free(text);
    free(more);
    free(val_out);
    free(copy);
    free(out);
}

// One run in one go, saving on the way; then its second checkpoint is lost and the first one continued.
static void resume_case(void) {
    make_inputs();
    char* with_val = text_of("--val %s --eval-every 4", val_path);
    const struct {
        const char *name, *flags;
    } kinds[] = {{"bf16", ""},                 {"accum", "--batch 4 --accum 2"},
                 {"pack", "--pack --batch 2"}, {"auto", "--seq 64 --batch 2 --accum 3"}, {"off", "--pack off"}, {"val", with_val},
                 {"halo2-int8", "--level halo2 --dtype int8"},
                 {"fp8-head", "--level halo1 --dtype fp6 --head-dtype fp8"},
                 {"bf16-sr", "--master bf16-sr --grad-dtype bf16 --state-dtype bf16"}};
    for (int i = 0; i < COUNT(kinds); i++) {
        char* saving = text_of("%s --save-every 5 --keep 2", kinds[i].flags);
        char *whole = trained(kinds[i].name, saving), *part = text_of("%s-resumed", whole);
        char *resuming = text_of("%s --resume", saving), *flags = train_flags(part, resuming);
        char* copy = text_of("cp -r %s", whole);
        shell(copy, part);
        char *newest = text_of("%s/checkpoints/step-00000010", part), *weights = path_join(part, "model.safetensors");
        ok(path_exists(newest), "%s: --save-every 5 --keep 2 keeps step 10", kinds[i].name);
        shell("rm -r", newest);
        shell("rm", weights);
        char* text = run_well(flags, "resume");
        ok(strstr(text, "resumed from") && strstr(text, "step   6/12") && !strstr(text, "step   5/12"),
           "%s: goes on with step 6", kinds[i].name);
        ok(same_files(whole, part, "model.safetensors"), "%s: the resumed run's weights are bit for bit the same", kinds[i].name);
        ok(same_logs(whole, part), "%s: so is its log", kinds[i].name);
        free(text);
        free(weights);
        free(newest);
        free(copy);
        free(flags);
        free(resuming);
        free(part);
        free(whole);
        free(saving);
    }
    char *bf16 = scratch_path("bf16"), *without = trained("without-saving", "");
    ok(same_files(bf16, without, "model.safetensors"), "saving does not change the training");
    ok(!exists_in(without, "checkpoints"), "a run that is neither interrupted nor told to save leaves no checkpoint");
    free(bf16);
    free(without);
    free(with_val);
}

// Ctrl-C after the first step line. On a busy machine the run may be over before the signal comes: then once more.
static void interrupt_case(void) {
    make_inputs();
    char *whole = trained("uninterrupted", ""), *part = scratch_path("interrupted"), *flags = train_flags(part, "");
    char* log = path_join(part, "log.jsonl");
    Run r = {-1, NULL, NULL};
    int stopped_after = 0;
    for (int attempt = 0; attempt < 20 && !stopped_after; attempt++) {
        free_run(r);
        empty_dir(part);
        pid_t child = start(flags);
        for (int waited_ms = 0; waited_ms < 20000; waited_ms++) {
            char* text = path_exists(log) ? file_read(log, NULL) : host_strdup("");
            bool started = *text;
            free(text);
            if (started) break;
            usleep(1000);
        }
        kill(child, SIGINT);
        r = finish(child);
        const char* line = strstr(r.out, "stopped after step ");
        if (line) stopped_after = atoi(line + strlen("stopped after step "));
    }
    ok(r.code == 4 && stopped_after > 0 && stopped_after < kSteps && strstr(r.out, "--resume goes on"),
       "Ctrl-C: stops after a step (%d of %d), exit %d, and says how to go on", stopped_after, kSteps, r.code);
    char* text = text_at(part, "log.jsonl");
    ok(lines_in(text) == stopped_after && strstr(r.out, "saved step"), "Ctrl-C: the step is finished, logged and saved");
    ok(!exists_in(part, "model.safetensors"), "Ctrl-C: no model is written yet");
    free(text);
    free_run(r);
    free(flags);

    flags = train_flags(part, "");
    run_refused(flags, "--out|checkpoint|--resume", "a fresh run over a checkpoint");
    free(flags);
    flags = train_flags(part, "--resume");
    free(run_well(flags, "resume after Ctrl-C"));
    ok(same_files(whole, part, "model.safetensors") && same_logs(whole, part),
       "Ctrl-C and --resume: the same weights and log as in one go");
    free(flags);
    free(log);
    free(part);
    free(whole);
}

// A rate so high that the loss on --val rises again: the checkpoint of its lowest stays, while only the newest other one does.
static void keep_best_case(void) {
    make_inputs();
    char *more = text_of("--val %s --eval-every 1 --save-every 1 --keep 1 --keep-best --lr 3 --schedule constant --warmup 6", val_path);
    char *out = trained("best", more), *log = text_at(out, "log.jsonl");
    int best = 0;
    double lowest = 0;
    for (const char* p = log; (p = strstr(p, ", \"val_loss\": ")) != NULL; p++) {
        const char* line = p;
        while (line > log && line[-1] != '\n') line--;
        double loss = atof(p + strlen(", \"val_loss\": "));
        if (!best || (float)loss < (float)lowest) lowest = loss, best = atoi(line + strlen("{\"step\": "));
    }
    char *kept = text_of("checkpoints/step-%08d", best), *before = text_of("checkpoints/step-%08d", best + 1);
    ok(best > 0 && best < kSteps - 2, "the loss on --val is lowest at step %d", best);
    ok(exists_in(out, kept) && exists_in(out, "checkpoints/step-00000011") && !exists_in(out, before), "--keep-best keeps its checkpoint");
    free(kept);
    free(before);
    free(log);
    free(out);
    free(more);
}

// What defines a run is not to be changed on the way.
static void resume_refused_case(void) {
    make_inputs();
    char* out = trained("defined", "--save-every 5");
    const struct {
        const char *flags, *words;
    } changes[] = {{"--lr 2e-2", "lr = 0.01|0.02"},     {"--seed 3", "seed = 0|3"},
                   {"--seq 30", "seq = 32|30"},         {"--batch 4", "batch = 8|4"},
                   {"--steps 13", "steps = 12|13"},     {"--level halo1 --dtype fp8", "level = bf16|halo1"},
                   {"--pack", "pack = auto|yes"},              {"--master bf16-sr", "master = fp32|bf16-sr"},
                   {"--schedule cosine", "schedule"},   {"--backend cpu-f32", "backend|cpu_f32"},
                   {"--chat chatml", "chat = none"},    {"--logits-mb 1", "logits-mb = 512|1"},
                   {"--head-dtype fp8", "head-dtype = bf16|fp8"}};
    for (int i = 0; i < COUNT(changes); i++) {
        char *more = text_of("--save-every 5 --resume %s", changes[i].flags), *flags = train_flags(out, more);
        run_refused(flags, changes[i].words, changes[i].flags);
        free(more);
        free(flags);
    }
    char* weights = path_join(out, "model.safetensors");
    shell("rm", weights);   // else the run is finished
    free(weights);
    char* flags = train_flags(out, "--resume --save-every 3 --keep 2 --recompute block");
    free(run_well(flags, "other --save-every, --keep and --recompute on the way"));
    free(flags);

    char *none = scratch_path("no-checkpoint"), *text;
    flags = train_flags(none, "--resume");
    text = run_well(flags, "--resume without a checkpoint");
    ok(strstr(text, "starting from the beginning") && same_files(out, none, "model.safetensors"), "--resume without a checkpoint starts");
    free(text);
    text = run_well(flags, "--resume of a finished run");
    ok(strstr(text, "finished: ") && !strstr(text, "\nstep "), "--resume of a finished run says so and does nothing");
    free(text);
    free(flags);
    flags = train_flags(none, "--resume --lr 2e-2");
    run_refused(flags, "training.json|lr = 0.01|0.02", "--resume of a finished run with another --lr");
    free(flags);
    free(none);
    free(out);
}

// The same training however activations are kept and the work is cut.
static void same_run_case(void) {
    make_inputs();
    char* none = trained("plain", "--level halo2 --dtype int8");
    const char* const others[] = {"norm-act", "block"};
    for (int i = 0; i < COUNT(others); i++) {
        char *more = text_of("--level halo2 --dtype int8 --recompute %s", others[i]), *other = trained(others[i], more);
        ok(same_logs(none, other) && same_files(none, other, "model.safetensors"), "--recompute %s: the same bits", others[i]);
        free(more);
        free(other);
    }
    setenv("OMP_NUM_THREADS", "1", 1);
    char* alone = trained("one-thread", "--level halo2 --dtype int8");
    setenv("OMP_NUM_THREADS", "2", 1);
    ok(same_logs(none, alone) && same_files(none, alone, "model.safetensors"), "one thread and two: the same bits");
    char* seed = trained("other-seed", "--level halo2 --dtype int8 --seed 1");
    ok(!same_logs(none, seed), "another --seed is another run");
    free(seed);
    free(alone);
    free(none);
}

// ---- --pack

// Losses and gradient norms of two runs, the largest relative difference.
static double log_difference(const char* dir_a, const char* dir_b, const char* key) {
    char *a = log_of(dir_a), *b = log_of(dir_b), *name = text_of("\"%s\": ", key), *p = a, *q = b;
    double worst = strstr(p, name) ? 0 : INFINITY;
    while ((p = strstr(p, name)) != NULL) {
        q = q ? strstr(q, name) : NULL;
        if (!q) worst = INFINITY;
        if (!q) break;
        p += strlen(name);
        q += strlen(name);
        worst = fmax(worst, fabs(strtod(p, NULL) / strtod(q, NULL) - 1));
    }
    free(a);
    free(b);
    free(name);
    return worst;
}

// Steps with the same examples on fewer rows: the losses and norms of a run without packing, to the order of sums.
static void pack_auto_case(void) {
    make_inputs();
    const struct {
        const char *flags;
        double losses, norms;   // tolerated; a scale holds for a micro-step, and so moves with its rows
    } kinds[] = {{"--backend cpu-f32", 1e-5, 1e-5}, {"--backend cpu", 1e-3, 1e-3}, {"--backend cpu --level halo1 --dtype fp6 --zero 3", 5e-3, 0.05}};
    static const char* const kCuts[] = {"--seq 64 --batch 8", "--seq 64 --batch 3 --accum 2", "--seq 32 --batch 1 --accum 5"};
    for (int k = 0; k < COUNT(kinds); k++)
        for (int c = 0; c < COUNT(kCuts); c++) {
            char *more = text_of("%s %s --lr 1e-3", kinds[k].flags, kCuts[c]), *off_flags = text_of("%s --pack off", more);
            char *on_flags = text_of("%s --pack on", more), *packed = trained("auto-pack", more), *off = trained("off-pack", off_flags);
            double losses = log_difference(packed, off, "loss"), norms = log_difference(packed, off, "grad_norm");
            ok(losses < kinds[k].losses && norms < kinds[k].norms, "%s: losses of --pack off to %.1e, norms to %.1e", more, losses, norms);
            char* on = trained("on-pack", on_flags);
            ok(log_difference(on, off, "loss") > kinds[k].losses && log_difference(on, off, "grad_norm") > kinds[k].norms, "%s: --pack on is another run", more);
            ok(log_difference(packed, off, "epoch") == 0, "%s: steps of the same examples", more);
            empty_dir(packed);
            empty_dir(off);
            empty_dir(on);
            free(on), free(on_flags), free(off), free(packed), free(off_flags), free(more);
        }
}

// The three words, the switch that they come from, and its words.
static void pack_words_case(void) {
    make_inputs();
    const struct {
        const char *flags, *printed;   // auto, the default, is not printed
    } words[] = {{"", NULL}, {"--pack", " --pack on "}, {"--pack --warmup 0", " --pack on "}, {"--pack on", " --pack on "}, {"--pack yes", " --pack on "},
                 {"--pack no", " --pack off "}, {"--pack off", " --pack off "}, {"--pack auto", NULL}};
    for (int i = 0; i < COUNT(words); i++) {
        char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps 1 %s", model_dir, data_path, words[i].flags);
        char* text = run_well(flags, words[i].flags);
        ok(words[i].printed ? strstr(text, words[i].printed) != NULL : !strstr(text, " --pack "), "'%s' is%s", words[i].flags,
           words[i].printed ? words[i].printed : " the default");
        free(text);
        free(flags);
    }
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --pack maybe", model_dir, data_path);
    run_refused(flags, "--pack maybe: must be one of auto|on|off", "--pack maybe");
    free(flags);
}

// --epochs N are N passes whatever a pass packs into: 60 chats of the demo fill 25 rows of 128, or 26: one step of 25 rows or two. Of the three
// passes, the third takes two with seed 2, the first and the second with seed 1.
static void epochs_case(void) {
    static const struct {
        const char *pack, *seed;
        int steps;
    } kinds[] = {{"off", "3", 9}, {"auto", "3", 9}, {"on", "2", 4}, {"on", "1", 5}};
    for (int i = 0; i < COUNT(kinds); i++) {
        char *out = scratch_path("epochs"), *flags = text_of("train --model data/demo/model --data data/demo/train.jsonl --limit 60 --seq 128 "
            "--epochs 3 --lr 1e-4 --batch 25 --seed %s --log %s --pack %s", kinds[i].seed, out, kinds[i].pack);
        char *text = run_well(flags, flags), *log = log_of(out), *last = log;
        for (char* p = log; (p = strstr(p, "\"epoch\": ")) != NULL; p++) last = p;
        ok(!strncmp(last, "\"epoch\": 3.000000,", 18) && lines_in(log) == kinds[i].steps, "--pack %s --seed %s --epochs 3 ends with the third: %.17s "
           "after %d steps", kinds[i].pack, kinds[i].seed, last, lines_in(log));
        empty_dir(out);
        free(text), free(log), free(out), free(flags);
    }
}

// ---- --quant-stats: what is said, and that saying it changes nothing

// One operand's four numbers, percentages among them.
static bool is_operand(const json_t* o) {
    double clipped = json_number_value(json_object_get(o, "clipped_percent")), lost = json_number_value(json_object_get(o, "underflow_percent"));
    return json_object_size(o) == 4 && json_is_number(json_object_get(o, "absmax")) && json_is_number(json_object_get(o, "absmax_rotated")) &&
           json_number_value(json_object_get(o, "absmax")) > 0 && clipped >= 0 && clipped <= 100 && lost >= 0 && lost <= 100;
}

// Takes the lines with quant_stats away from DIR/log.jsonl; how many there were that are whole.
static int take_stats(const char* dir) {
    static const char* const kLinearNames[] = {"qkv", "o", "gate_up", "down"};
    static const size_t kMatrices[] = {3, 1, 2, 1};
    char *path = path_join(dir, "log.jsonl"), *text = text_at(dir, "log.jsonl"), *to = text;
    int whole = 0;
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        json_t* object = json_loadb(line, (size_t)(end - line), 0, NULL);
        const json_t *stats = json_object_get(object, "quant_stats"), *linear, *matrix;
        size_t n, k, good = 0;
        json_array_foreach(stats, n, linear) {
            bool fine = json_integer_value(json_object_get(linear, "layer")) == (json_int_t)n / 4 && is_operand(json_object_get(linear, "x")) &&
                        !strcmp(json_string_value(json_object_get(linear, "linear")), kLinearNames[n % 4]) &&
                        json_array_size(json_object_get(linear, "matrices")) == kMatrices[n % 4];
            json_array_foreach(json_object_get(linear, "matrices"), k, matrix) {
                double cosine = json_number_value(json_object_get(matrix, "dw_cosine"));
                fine = fine && json_is_string(json_object_get(matrix, "name")) && is_operand(json_object_get(matrix, "w")) &&
                       is_operand(json_object_get(matrix, "dy")) && is_operand(json_object_get(matrix, "dy_g")) && cosine > 0.98 && cosine < 1.00001;
            }
            good += fine;
        }
        whole += good == 8 && json_integer_value(json_object_get(object, "step")) % 5 == 0;
        if (!stats) {
            memmove(to, line, (size_t)(end + 1 - line));
            to += end + 1 - line;
        }
        json_decref(object);
    }
    put_file(path, text, (size_t)(to - text));
    free(path);
    free(text);
    return whole;
}

static void quant_stats_case(void) {
    make_inputs();
    const char* const kinds[] = {"", "--recompute block --accum 2 --batch 4"};
    for (int i = 0; i < COUNT(kinds); i++) {
        char *plain = text_of("--level halo2 --dtype int8 %s", kinds[i]), *more = text_of("%s --quant-stats 5", plain);
        char *off = trained("unobserved", plain), *on = trained("observed", more);
        int lines = take_stats(on);
        ok(lines == 2, "--quant-stats 5 %s: a whole line of quant_stats at steps 5 and 10: %d", kinds[i], lines);
        ok(same_logs(off, on) && same_files(off, on, "model.safetensors"), "--quant-stats 5 %s: the losses and weights of a run without", kinds[i]);
        empty_dir(on);
        empty_dir(off);
        free(plain);
        free(more);
        free(off);
        free(on);
    }
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps 2 --level halo1 --dtype fp6 --quant-stats 2",
                          model_dir, data_path);
    char* text = run_well(flags, "--quant-stats without --log");
    const char* line = strstr(text, "quant step 2  dW cosine 0.");
    ok(line && strstr(line, "X clipped ") && strstr(line, " absmax / "), "a summary is printed: %.*s", line ? (int)strcspn(line, "\n") : 0,
       line ? line : "");
    free(text);
    free(flags);
}

static void generate_case(void) {
    make_inputs();
    char* out = trained("speaker", "");
    char* flags = text_of("generate --model %s --chat none --prompt 12+25= --max-tokens 0", out);
    run_refused(flags, "--max-tokens 0|at least 1", "no answer is asked for");
    free(flags);
    flags = text_of("generate --model=%s --chat=none --prompt=12+25= --max-tokens 12", out);
    char *a = run_well(flags, "generate"), *b = run_well(flags, "generate again");
    ok(*a && !strcmp(a, b) && a[strlen(a) - 1] == '\n', "greedy is deterministic");
    free(a);
    free(b);
    free(flags);
    char* texts[3];
    for (int i = 0; i < 3; i++) {
        flags = text_of("generate --model %s --chat none --prompt 12+25= --max-tokens 20 --temperature 1.5 --top-p 0.95 --seed %d",
                        out, i == 2 ? 8 : 7);
        texts[i] = run_well(flags, "generate --temperature");
        free(flags);
    }
    ok(!strcmp(texts[0], texts[1]), "--temperature: the same seed, the same text");
    ok(strcmp(texts[0], texts[2]), "--temperature: another seed, another text");
    for (int i = 0; i < 3; i++) free(texts[i]);

    // An untrained model writes bytes that are no UTF-8; the lines have to be JSON all the same.
    flags = text_of("generate --model %s --data %s --max-tokens 8 --temperature 3", out, val_path);
    Run r = run(flags);
    int whole = 0;
    for (char* line = r.out; *line; line += strcspn(line, "\n") + 1) {
        json_t* object = json_loadb(line, strcspn(line, "\n"), 0, NULL);
        whole += json_is_string(json_object_get(object, "prompt")) && json_is_string(json_object_get(object, "expected")) &&
                 json_is_string(json_object_get(object, "generated")) && json_is_boolean(json_object_get(object, "match"));
        json_decref(object);
    }
    ok(r.code == 0 && whole == 6 && lines_in(r.out) == 6, "generate --data: a JSON line an example: %d", whole);
    ok(!strncmp(r.err, "exact match ", 12) && strstr(r.err, "/6 (") && lines_in(r.err) == 1, "and the score on stderr: %.*s",
       (int)strcspn(r.err, "\n"), r.err);
    free_run(r);
    free(flags);

    flags = text_of("generate --model %s --chat none --prompt 1 --max-tokens 500", out);
    free(run_well(flags, "generate stops where the context is full"));
    free(flags);
    flags = text_of("generate --model %s --chat none --prompt ''", out);
    run_refused(flags, "no tokens", "an empty prompt");
    free(flags);
    flags = text_of("generate --model %s --chat none --prompt %070d", out, 1);
    run_refused(flags, "70 tokens|63", "a prompt longer than the context");
    free(flags);
    free(out);
}

// The last line of a text; the caller frees it.
static char* last_line(const char* text) {
    const char *end = text + strlen(text), *line = end > text ? end - 1 : end;
    while (line > text && line[-1] != '\n') line--;
    return strndup(line, strcspn(line, "\n"));
}

// A metric of answers, and the same answers judged again without the model.
static void metric_case(void) {
    make_inputs();
    char *out = trained("judged", ""), *answers = scratch_path("answers.jsonl");
    char* flags = text_of("generate --model %s --data %s --max-tokens 8 --batch 1", out, data_path);
    Run alone = run(flags);
    free(flags);
    flags = text_of("generate --model %s --data %s --max-tokens 8 --batch 5", out, data_path);
    Run beside = run(flags);
    ok(alone.code == 0 && lines_in(alone.out) == 22 && !strcmp(alone.out, beside.out), "generate --batch 5: the lines of --batch 1");
    free_run(alone);
    free_run(beside);
    free(flags);
    flags = text_of("eval --model %s --data %s --metric exact --max-tokens 8 --answers %s", out, data_path, answers);
    char *text = run_well(flags, "eval --metric exact"), *verdict = last_line(text);
    ok(!strncmp(verdict, "exact: ", 7) && strstr(verdict, "/22 ") && strstr(verdict, "% (standard error "), "its last line: %s", verdict);
    free(text);
    free(flags);
    flags = text_of("eval --metric exact --score %s", answers);
    text = run_well(flags, "eval --score");
    char* again = last_line(text);
    ok(!strcmp(verdict, again), "--score says the same of the answers: %s", again);
    free(again);
    free(text);
    free(flags);
    char* lines = file_read(answers, NULL);
    int whole = 0;
    for (char* line = lines; *line; line += strcspn(line, "\n") + 1) {
        json_t* object = json_loadb(line, strcspn(line, "\n"), 0, NULL);
        whole += json_is_string(json_object_get(object, "prompt")) && json_is_string(json_object_get(object, "generated")) &&
                 json_is_boolean(json_object_get(object, "exact")) && json_is_boolean(json_object_get(object, "gsm8k-strict"));
        json_decref(object);
    }
    ok(whole == 22, "--answers: a JSON line an example with every verdict: %d", whole);
    free(lines);
    free(verdict);
    free(answers);
    free(out);
}

// Answers from anywhere, and flags that do not go together.
static void score_case(void) {
    make_inputs();
    char *answers = scratch_path("crafted.jsonl"), *flags, *text;
    const char* crafted = "{\"expected\": \"#### 5\", \"generated\": \"so #### 5.\"}\n{\"expected\": \"#### 5\", \"generated\": \"6\"}\n";
    put_file(answers, crafted, strlen(crafted));
    flags = text_of("eval --metric gsm8k-flexible --score %s", answers);
    text = run_well(flags, "eval --score of crafted answers");
    ok(!strncmp(text, "gsm8k-flexible: 1/2 50.0% (standard error ", 42), "one of two is right: %s", text);
    free(text);
    free(flags);
    flags = text_of("eval --score %s", answers);
    run_refused(flags, "--score|--metric exact", "--score without --metric");
    free(flags);
    flags = text_of("eval --model %s --data %s --answers %s", model_dir, data_path, answers);
    run_refused(flags, "--answers|--metric", "--answers without --metric");
    free(flags);
    flags = text_of("eval --model %s --data %s --metric exact --batch 0", model_dir, data_path);
    run_refused(flags, "--batch 0|1 to", "eval --batch 0");
    free(flags);
    free(answers);
}

// The loss under a recipe, and verdicts while training.
static void evaluation_case(void) {
    make_inputs();
    char *out = trained("evaluated", ""), *flags, *text;
    // eval's loss can be had under a recipe, and says which
    flags = text_of("eval --model %s --data %s --chat none --seq 32 --level halo2", out, val_path);
    text = run_well(flags, "eval --level halo2");
    ok(strstr(text, " tokens, recipe halo2-int8 in bf16\n") != NULL, "eval says which arithmetic its loss is under");
    free(text);
    free(flags);
    char* more = text_of("--val %s --val-metric exact --max-tokens 6 --eval-every 6", val_path);
    char* val_out = scratch_path("val-metric");
    flags = train_flags(val_out, more);
    text = run_well(flags, "train --val-metric");
    int summaries = 0;
    for (const char* at = text; (at = strstr(at, "\nexact: ")) != NULL; at++) summaries++;
    char* log = text_at(val_out, "log.jsonl");
    ok(summaries == 2 && strstr(log, "\"val_metric\": \"exact\", \"val_percent\": "), "two evaluations tell their verdicts: %d", summaries);
    ok(same_files(out, val_out, "model.safetensors"), "--val-metric does not change the training");
    run_refused("train --preset llama3.2-1b --data x --val-metric exact", "--val-metric exact|--val", "--val-metric without --val");
    free(log);
    free(text);
    free(flags);
    free(val_out);
    free(more);
    free(out);
}

// A model as a GGUF file: written, answered from, trained from.
static void gguf_case(void) {
    make_inputs();
    char *out = trained("packed", ""), *file = scratch_path("packed.gguf"), *copy = scratch_path("unpacked");
    char* flags = text_of("export --model %s --gguf %s --out %s", out, file, copy);
    free(run_well(flags, "export --gguf --out"));
    ok(same_files(out, copy, "model.safetensors"), "--out beside --gguf is the model");
    free(flags);
    char* texts[2];
    for (int i = 0; i < 2; i++) {
        flags = text_of("generate --model %s --prompt 12+25= --chat none --max-tokens 12", i ? file : out);
        texts[i] = run_well(flags, "generate from it");
        free(flags);
    }
    ok(!strcmp(texts[0], texts[1]), "the file answers as the directory does");
    flags = text_of("export --model %s --out %s --overwrite", file, copy);
    free(run_well(flags, "export of a GGUF file"));
    free(flags);
    ok(same_files(out, copy, "model.safetensors"), "and has its weights, bit for bit");
    flags = text_of("eval --model %s --data %s --chat none --seq 32", copy, val_path);
    char* plain = run_well(flags, "eval of what came of it");
    free(flags);
    flags = text_of("eval --model %s --data %s --chat none --seq 32", file, val_path);
    char* packed = run_well(flags, "eval of the file");
    free(flags);
    ok(!strcmp(plain, packed), "the losses agree");
    char* trained_out = scratch_path("from-gguf");
    flags = text_of("train --model %s --data %s --chat none --seq 32 --steps 2 --out %s", file, data_path, trained_out);
    free(run_well(flags, "train from the file"));
    free(flags);
    static const char* const kTexts[] = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"};
    for (int i = 0; i < COUNT(kTexts); i++) ok(exists_in(trained_out, kTexts[i]), "what was trained has a %s", kTexts[i]);
    flags = text_of("generate --model %s --prompt 1+2= --chat none --max-tokens 4", trained_out);
    free(run_well(flags, "generate from what was trained"));
    free(flags);
    flags = text_of("export --model %s --gguf %s --gguf-type q8_0", out, file);
    run_refused(flags, "--gguf|is there already|--overwrite", "export --gguf onto a file");
    free(flags);
    flags = text_of("export --model %s --gguf %s --gguf-type q8_0 --overwrite", out, file);
    char* exported = run_well(flags, "export --gguf-type q8_0");
    ok(!strstr(exported, "will not be saved"), "export --gguf without --out says nothing of a model that is lost: %s", exported);
    free(exported);
    free(flags);
    flags = text_of("eval --model %s --data %s --chat none --seq 32", file, val_path);
    free(run_well(flags, "eval of a q8_0 file"));
    free(flags);
    run_refused("generate --model /nonexistent.gguf --prompt x", "/nonexistent.gguf", "a GGUF file that is not there");
    put_file(file, "GGUFwhat", 8);
    flags = text_of("generate --model %s --prompt x", file);
    run_refused(flags, "packed.gguf", "a damaged GGUF file");
    free(flags);
    free(trained_out);
    free(plain);
    free(packed);
    free(texts[0]);
    free(texts[1]);
    free(copy);
    free(file);
    free(out);
}

static void bench_and_export_case(void) {
    make_inputs();
    char* flags = text_of("bench --from-scratch %s --seq 32 --batch 2 --steps 2 --level halo1 --dtype fp6", model_dir);
    char* text = run_well(flags, "bench");
    const char* line = strstr(text, "bench: ");
    ok(line && strstr(line, " tok/s  ") && strstr(line, " TFLOP/s a rank  ") && strstr(line, " GiB a rank, ") && strstr(line, " left\n"),
       "bench prints its line: %.*s", line ? (int)strcspn(line, "\n") : 0, line ? line : "");
    free(text);
    free(flags);

    flags = text_of("bench --from-scratch %s --seq 16 --generate 3 --max-tokens 4", model_dir);
    text = run_well(flags, "bench --generate");
    ok(strstr(text, "prompts: 3 of 16 tokens ") && strstr(text, " of a forward pass's ") && strstr(text, "decoding: ") &&
       strstr(text, " x reading weights and cache once "), "bench --generate prints its two lines");
    free(text);
    free(flags);
    flags = text_of("bench --from-scratch %s --seq 60 --generate 3 --max-tokens 8", model_dir);
    run_refused(flags, "--seq 60 --max-tokens 8|64", "bench --generate beyond the context");
    free(flags);

    // With a constant rate the first ten of twelve steps are those of a run of ten.
    char *longer = trained("longer", "--schedule constant --warmup 0 --save-every 10");
    char *ten = trained("ten", "--schedule constant --warmup 0 --steps 10"), *weights = path_join(longer, "model.safetensors");
    shell("rm", weights);
    flags = text_of("export --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps %d --lr 1e-2 --schedule constant "
                    "--warmup 0 --out %s --resume", model_dir, data_path, kSteps, longer);
    free(run_well(flags, "export --resume"));
    ok(same_files(longer, ten, "model.safetensors") && same_files(longer, ten, "config.json") &&
       same_files(longer, ten, "tokenizer.json"), "export --resume writes what training would have written");
    free(flags);
    free(weights);
    free(longer);
    free(ten);
}

// One example unlike the others, met again when these are known: the step is told, and none of a run without it.
static void spike_case(void) {
    make_inputs();
    char* path = scratch_path("spike.jsonl");
    for (int odd = 0; odd < 2; odd++) {
        FILE* f = fopen(path, "wb");
        check(f, "%s: not written", path);
        for (int i = 0; i < 30; i++) fputs("{\"prompt\": \"abcd\", \"completion\": \"efgh\"}\n", f);
        if (odd) fputs("{\"prompt\": \"xyz\", \"completion\": \"7654321098\"}\n", f);
        check(fclose(f) == 0, "%s: not written", path);
        char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 1 --pack off --steps 90 --lr 1e-2 --schedule constant",
                              model_dir, path);
        char* text = run_well(flags, "a run with a loss that stands out");
        const char* spike = strstr(text, " is a spike: ");
        ok(odd ? spike && strstr(text, " robust deviations above the last 32's median ") : !spike, "%s", spike ? "told" : "not told");
        free(text);
        free(flags);
    }
    free(path);
}

// However short the run is, its rate comes to --lr.
static void short_warmup_case(void) {
    make_inputs();
    const int steps[] = {1, 2, 5, 9};   // --warmup auto: a tenth of the steps, at least 1
    for (int i = 0; i < COUNT(steps); i++) {
        char *more = text_of("--steps %d --overwrite", steps[i]), *out = trained("short", more), *log = text_at(out, "log.jsonl");
        ok(strstr(log, "\"lr\": 0.00999999978,"), "--warmup auto: %d steps come to --lr", steps[i]);
        free(log);
        free(out);
        free(more);
    }
}

static void help_case(void) {
    make_inputs();
    const struct {
        const char *command, *flags;
    } commands[] = {
        {"train", "model preset from-scratch tokenizer layers data val chat seq pack long train-on-prompt level dtype recipe "
                  "token-block head-dtype backend batch accum epochs steps lr warmup schedule weight-decay beta1 beta2 eps clip seed "
                  "master grad-dtype state-dtype recompute logits-mb zero qfsdp out resume save-every keep shard-size eval-every log "
                  "quant-stats val-metric max-tokens timeout help"},
        {"eval", "model tokenizer data chat seq pack long train-on-prompt level dtype recipe backend batch logits-mb metric answers score "
                 "max-tokens temperature top-p seed timeout help"},
        {"generate", "model tokenizer data chat level dtype recipe backend batch seed prompt max-tokens temperature top-p help"},
        {"bench", "model preset from-scratch layers seq level dtype recipe token-block head-dtype backend batch accum steps seed "
                  "master grad-dtype state-dtype recompute logits-mb zero qfsdp generate max-tokens timeout help"},
        {"export", "model preset from-scratch tokenizer layers data chat seq pack long train-on-prompt level dtype recipe "
                   "token-block head-dtype backend batch accum epochs steps lr warmup schedule weight-decay beta1 beta2 eps clip seed "
                   "master grad-dtype state-dtype logits-mb zero qfsdp out resume gguf gguf-type shard-size timeout help"},
    };
    for (int i = 0; i < COUNT(commands); i++) {
        char* flags = text_of("%s --help", commands[i].command);
        char* text = run_well(flags, flags);
        int wanted = 0, listed = 0;
        bool all = true;
        char* names = host_strdup(commands[i].flags);
        for (char* name = strtok(names, " "); name; name = strtok(NULL, " "), wanted++) {
            char* entry = text_of("\n  --%s ", name);
            if (!strstr(text, entry)) all = ok(false, "%s --help lists --%s", commands[i].command, name);
            free(entry);
        }
        for (const char* p = text; (p = strstr(p, "\n  --")) != NULL; p++) listed++;
        ok(all && listed >= wanted, "%s --help lists its flags: %d, of them %d looked for", commands[i].command, listed, wanted);
        free(names);
        free(text);
        free(flags);
    }
    char *plain = run_well("--help", "--help"), *train = run_well("train --help", "train --help");
    ok(!strcmp(plain, train), "train is the default command");
    free(plain);
    free(train);
    const char* const unbuilt[] = {"serve", "chart", "trian"};
    for (int i = 0; i < COUNT(unbuilt); i++) run_refused(unbuilt[i], "no such command|--help", unbuilt[i]);
    char *bare_data = text_of("inspect %s", data_path), *bare_model = text_of("generate %s", model_dir), *no_command = text_of("%s --seq 8", data_path);
    char *meant_data = text_of("did you mean --data %s?", data_path), *meant_model = text_of("did you mean --model %s?", model_dir);
    run_refused(bare_data, meant_data, "a data file without its flag");
    run_refused(bare_model, meant_model, "a model without its flag");
    run_refused(no_command, meant_data, "a data file where a command stands");
    char* const bare[] = {bare_data, bare_model, no_command, meant_data, meant_model};
    for (int i = 0; i < COUNT(bare); i++) free(bare[i]);
}

static void bad_flags_case(void) {
    make_inputs();
    const struct {
        const char *arguments, *words;
    } bad[] = {
        {"--bach 8", "--bach|did you mean --batch?"},
        {"--batch-size 8", "did you mean --batch?"},
        {"--max_tokens 8", "no such flag"},
        {"generate --max_tokens 8", "did you mean --max-tokens?"},
        {"--learning-rate 1", "--learning-rate|no such flag|--help"},
        {"eval --lr 1", "--lr|'eval' does not take it"},
        {"--seq", "--seq|needs a value"},
        {"--seq many", "--seq many|whole number"},
        {"--seq 12x", "--seq 12x|whole number"},
        {"--steps -1", "--steps -1|whole number"},
        {"--seq 99999999999999999999", "whole number"},
        {"--lr fast", "--lr fast|number"},
        {"--lr nan", "--lr nan|number"},
        {"--lr -1", "--lr -1|number"},
        {"--level halo3", "--level halo3|bf16|halo0"},
        {"--chat alpaca", "--chat alpaca|llama3"},
        {"--chat 'llama3|chatml'", "--chat llama3"},
        {"-h", "-h|--help"},
        {"train model", "model|--flag was expected"},
        {"eval --metric bleu", "--metric bleu|loss|gsm8k"},
        {"eval --metric gsm8k", "--model|--preset"},
        {"--data x", "--model|--preset|--from-scratch"},
        {"generate", "--model"},
        {"--model a --preset llama3-8b", "one of --model"},
        {"--level=halo3", "--level halo3: must be one of"},
        {"--qfsdp=yes", "--qfsdp=yes|takes no value"},
        {"--stpes=3", "--stpes: no such flag; did you mean --steps?"},
        {"--steps=3 --steps 4", "--steps: given twice"},
        {"--preset llama9", "--preset llama9|llama3.2-1b"},
        {"--model /nonexistent --data x", "--model /nonexistent: no such folder"},
    };
    for (int i = 0; i < COUNT(bad); i++) run_refused(bad[i].arguments, bad[i].words, bad[i].arguments);

    // with the model and the data: each changes one thing of a run that works; `more` comes last, so that it counts
    char *out = scratch_path("refused"), *file_path = scratch_path("a-file");
    put_file(file_path, "x", 1);
    char *below_a_file = text_of("--out %s/below", file_path), *log_below_a_file = text_of("--log %s/below", file_path);
    const struct {
        const char *more, *words;
    } changes[] = {
        {"--seq 65", "--seq 65|max_position_embeddings is 64"},
        {"--seq 0", "--seq 0|at least 1"},
        {"--batch 0", "--batch 0|at least 1"},
        {"--accum 0", "--accum 0|at least 1"},
        {"--accum 2000000000", "--accum 2000000000|1073741824 tokens an optimizer step"},
        {"--batch 1 --seq 1 --accum 1048577", "--accum 1048577|1048576 micro-steps"},
        {"--level halo0 --dtype int8 --batch 4096", "--batch 4096 --seq 32|131071 tokens|--accum"},
        {"--layers 3", "--layers 3|has 2"},
        {"--zero 4", "--zero 4"},
        {"--beta1 1", "--beta1 1|below 1"},
        {"--steps 0 --epochs 0", "--epochs 0"},
        {"--level halo2 --dtype bf16", "--level halo2 --dtype bf16"},
        {"--recipe halo9", "--recipe halo9"},
        {"--level halo2 --dtype int8 --token-block 17", "--token-block 17|Hadamard"},
        {"--chat llama3", "tokenizer.json|llama3|--chat"},
        {"--data /nonexistent.jsonl", "/nonexistent.jsonl|No such file"},
        {"--eval-every 2", "--eval-every 2|--val"},
        {"--tokenizer /nonexistent", "--tokenizer /nonexistent: no such folder"},
#ifndef HALO_CUDA
        {"--backend cuda", "--backend cuda|without CUDA"},
#endif
        {below_a_file, "a-file"},
        {log_below_a_file, "a-file"},
        {"--lr 1e30 --warmup 0", "step |not finite|--lr"},
        {"--lr 0", "--lr 0|smallest float"},
        {"--lr 1e39", "--lr 1e+39|largest float"},
        {"--eps 0", "--eps 0|smallest float"},
        {"--eps 1e-50", "--eps 1e-50|smallest float"},
        {"--clip 1e-46", "--clip 1e-46|smallest float"},
        {"--weight-decay 1e39", "--weight-decay 1e+39|largest float"},
        {"--beta2 0.99999999", "--beta2 0.99999999|below 1"},
        {"--warmup 13", "--warmup 13|--steps 12"},
        {"--seed 1 --seed 2", "--seed|given twice"},
        {"--level halo0 --recipe bf16", "--level beside --recipe bf16"},
        {"--dtype int8 --recipe bf16", "--dtype beside --recipe bf16"},
        {"--keep-best", "--keep-best|--val"},
    };
    for (int i = 0; i < COUNT(changes); i++) {
        char* flags = train_flags(out, changes[i].more);
        run_refused(flags, changes[i].words, changes[i].more);
        ok(!exists_in(out, "model.safetensors") && !exists_in(out, "config.json") && !exists_in(out, "checkpoints"),
           "%s: leaves nothing behind", changes[i].more);
        free(flags);
    }
    char* flags = text_of("train --from-scratch %s --chat none", model_dir);
    run_refused(flags, "--data", "train without --data");
    free(flags);
    flags = text_of("train --from-scratch %s --chat none --seq 32 --data %s --save-every 2", model_dir, data_path);
    run_refused(flags, "--save-every 2|--out", "--save-every without --out");
    free(flags);
    flags = text_of("train --from-scratch %s --chat none --seq 32 --data %s --resume", model_dir, data_path);
    run_refused(flags, "--resume|--out", "--resume without --out");
    free(flags);
    free(below_a_file);
    free(log_below_a_file);
    free(file_path);
    free(out);
}

static void bad_inputs_case(void) {
    make_inputs();
    char *out = scratch_path("never-made"), *bad = scratch_path("bad.jsonl");
    const struct {
        const char *text, *words;
    } files[] = {
        {"{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"completion\": }\n", "bad.jsonl:2:|JSON"},
        {"{\"prompt\": \"a\", \"completion\": {\"b\": 7}}\n", "bad.jsonl:1:|\"completion\""},
        {"{\"prompt\": \"a\"}\n", "bad.jsonl:1:1|\"completion\" is missing"},
        {"[]\n", "bad.jsonl|no records"},
        {"", "bad.jsonl"},
    };
    for (int i = 0; i < COUNT(files); i++) {
        put_file(bad, files[i].text, strlen(files[i].text));
        char *more = text_of("--data %s", bad), *flags = train_flags(out, more);
        run_refused(flags, files[i].words, files[i].words);
        ok(!path_exists(out), "%s: makes no folder", files[i].words);
        free(more);
        free(flags);
    }

    // a model directory with one thing wrong
    char *broken = scratch_path("broken"), *copy = text_of("cp -r %s", model_dir);
    const struct {
        const char *file, *text, *more, *words;
    } inputs[] = {
        {"tokenizer_config.json", "{\"eos_token\": \"<|end|>\", \"chat_template\": \"### {{ x }}\"}", "--chat auto",
         "answers can be found|--chat"},
        {"tokenizer_config.json", "{\"eos_token\": \"<|end|>\"}", "--chat auto", "no chat template|--chat"},
        {"tokenizer.json", "{\"model\": ", "", "tokenizer.json"},
        {"config.json", "{", "", "config.json"},
        {"config.json", "{\"model_type\": \"llama\", \"hidden_size\": 32, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
         "\"intermediate_size\": 64, \"vocab_size\": 100, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, "
         "\"hidden_act\": \"silu\", \"torch_dtype\": \"float32\", \"tie_word_embeddings\": true}", "",
         "tokenizer.json: 259 tokens|vocab_size is 100"},
        {"config.json", "{\"model_type\": \"llama\", \"hidden_size\": 76, \"num_hidden_layers\": 2, \"num_attention_heads\": 2, "
         "\"intermediate_size\": 64, \"vocab_size\": 264, \"max_position_embeddings\": 64, \"rms_norm_eps\": 1e-05, "
         "\"hidden_act\": \"silu\", \"torch_dtype\": \"float32\", \"tie_word_embeddings\": true}", "--level halo1 --dtype fp8",
         "halo1-fp8|order 76|hidden_size"},
    };
    for (int i = 0; i < COUNT(inputs); i++) {
        shell("rm -rf", broken);
        shell(copy, broken);
        put_text(broken, inputs[i].file, inputs[i].text);
        char* flags = with_flags(text_of("train --from-scratch %s --data %s --chat none --seq 32 --steps 2 --out %s", broken, data_path,
                                         out), inputs[i].more);
        run_refused(flags, inputs[i].words, inputs[i].words);
        ok(!path_exists(out), "%s: makes no folder", inputs[i].words);
        free(flags);
    }
    char* flags = text_of("eval --model %s --data %s --chat none --seq 32", model_dir, data_path);
    run_refused(flags, "model.safetensors", "a model without weights");
    free(flags);
    free(copy);
    free(broken);
    free(bad);
    free(out);
}

static void wrong_places_case(void) {
    make_inputs();
    char *out = scratch_path("never-made"), *bad = scratch_path("bad.jsonl");
    // inspect names all lines that are no records
    static const char kFaulty[] = "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"completion\": \"b\"\n{\"prompt\": \"a\"}\n\n"
                                  "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\", \"completion\": {}}\n";
    put_file(bad, kFaulty, strlen(kFaulty));
    char* inspect = text_of("inspect --model %s --chat none --seq 32 --data %s", model_dir, bad);
    Run faulty = run(inspect);
    ok(faulty.code == 2 && strstr(faulty.err, "bad.jsonl:2:") && strstr(faulty.err, "bad.jsonl:3:") && strstr(faulty.err, "bad.jsonl:6:") &&
           strstr(faulty.err, "3 lines are no records"), "inspect names all broken lines: exit %d %s", faulty.code, faulty.err);
    free_run(faulty);
    free(inspect);

    // a folder in a file's place, a folder without a model, a name that is no path
    const struct {
        const char *flags, *words;
    } places[] = {{"--data .", "a folder; name a file in it"}, {"--model nosuch", "--model nosuch: no such folder or file|org/name"},
                  {"--model llama3.1-8b", "--preset llama3.1-8b"}, {"--model .", "config.json: not there|tokenizer.json"}};
    for (int i = 0; i < COUNT(places); i++) {
        bool model = !strncmp(places[i].flags, "--model", 7);
        char* flags = text_of("train %s %s %s --chat none --seq 32 --out %s", places[i].flags, model ? "--data" : "--from-scratch", model ? data_path : model_dir,
                              out);
        run_refused(flags, places[i].words, places[i].flags);
        free(flags);
    }
    free(bad);
    free(out);
}

// A command line that cannot run: this message, and not a word else.
static void refused_alone(char* more, const char* words) {
    char* flags = text_of("train --from-scratch %s --chat none --seq 32 %s", model_dir, more);
    Run r = run(flags);
    ok(r.code == 2 && !*r.out && lines_in(r.err) == 1 && strstr(r.err, words), "exit %d, the error alone: %s%s", r.code, r.err, r.out);
    free_run(r);
    free(flags);
    free(more);
}

// An error that the command line, the places it names or the first look at the data shows is all that is printed; a run that begins says
// its version, its command line, and what is asked of a log first.
static void error_alone_case(void) {
    make_inputs();
    char *out = trained("taken", ""), *cut = scratch_path("cut.jsonl");
    put_file(cut, "{\"prompt\": \"a\"\n", 15);
    refused_alone(text_of("--data %s --dtype int4", data_path), "--dtype int4");
    refused_alone(text_of("--data %s --batch 0", data_path), "--batch 0");
    refused_alone(text_of("--data %s.not", data_path), "cannot be read");
    refused_alone(text_of("--data %s --out %s", data_path, out), "holds a model");
    refused_alone(text_of("--data %s --log %s", data_path, out), "holds the lines of another run");
    refused_alone(text_of("--data %s --log %s", data_path, val_path), "is not a log");
    refused_alone(text_of("--data %s", cut), "cut.jsonl:1:");
    char* flags = text_of("train --from-scratch %s --chat none --seq 32 --data %s --seed 7 --steps 1", model_dir, data_path);
    char* said = run_well(flags, "a run");
    char* line = text_of("\ntrain_llama3 " HALO_VERSION ": %s --from-scratch %s --data %s --chat none --seq 32 --steps 1 --seed 7\n"
                         "1 step, --batch 8 x --accum 1 x 1 rank, --seq 32, --lr 1e-05, --seed 7\n", binary, model_dir, data_path);
    ok(strstr(said, line) != NULL, "a run that begins says:%s", line);
    char* const texts[] = {line, said, flags, cut, out};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

static const Case kCases[] = {
    {"help", help_case},
    {"error_alone", error_alone_case},
    {"bad_flags", bad_flags_case},
    {"bad_inputs", bad_inputs_case},
    {"wrong_places", wrong_places_case},
    {"train", train_case},
    {"short_warmup", short_warmup_case},
    {"spike", spike_case},
    {"resume", resume_case},
    {"interrupt", interrupt_case},
    {"keep_best", keep_best_case},
    {"resume_refused", resume_refused_case},
    {"same_run", same_run_case},
    {"pack_auto", pack_auto_case},
    {"pack_words", pack_words_case},
    {"epochs", epochs_case},
    {"quant_stats", quant_stats_case},
    {"generate", generate_case},
    {"metric", metric_case},
    {"score", score_case},
    {"evaluation", evaluation_case},
    {"gguf", gguf_case},
    {"bench_and_export", bench_and_export_case},
};

int main(int argc, char** argv) {
    return program_main("test_program", kCases, COUNT(kCases), argc, argv);
}
