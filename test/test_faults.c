// Nothing is lost: the program under full and failing disks, kills, signals, and damaged files, on a tiny model.
//
// Each case ends with the same proof: the same command, repeated with --resume and no fault, ends with exit code 0 and the bits of a run
// that nothing disturbed.
#include "program.h"

#include <limits.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "backends.h"

static char* shim;         // faults_shim.so beside this binary
static char* whole_dir;    // a run that nothing disturbed
static const char* const kInjected[] = {"FAULT_CALL", "FAULT_KIND", "FAULT_PATH", "FAULT_MARK", "FAULT_FREE", "LD_PRELOAD", "FAULT_NO_MEMORY", "FAULT_RANK"};

static char* flags_for(const char* out, const char* more) {
    return with_flags(text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps 5 --lr 1e-2 --save-every 2 "
                              "--backend cpu --out %s --log %s", model_dir, data_path, out, out), more);
}

static void make_whole(void) {
    make_inputs();
    if (whole_dir) return;
    whole_dir = scratch_path("whole");
    char* flags = flags_for(whole_dir, "");
    free(run_well(flags, "undisturbed"));
    free(flags);
}

static void inject(const char* out, const char* kind, int call, const char* mark) {
    char* number = text_of("%d", call);
    const char* const values[] = {number, kind, out, mark, "", shim, "", ""};
    for (int i = 0; i < COUNT(kInjected); i++) setenv(kInjected[i], values[i], 1);
    free(number);
}

static void inject_nothing(void) {
    for (int i = 0; i < COUNT(kInjected); i++) unsetenv(kInjected[i]);
}

// Whether the run in `out`, repeated, ends as the undisturbed one.
static bool ends_well(const char* out) {
    char* flags = flags_for(out, "--resume");
    Run r = run(flags);
    bool well = r.code == 0 && same_files(whole_dir, out, "model.safetensors") && same_files(whole_dir, out, "config.json") &&
                same_files(whole_dir, out, "tokenizer.json");
    if (!well) printf("  %s: exit %d, %s%s\n", flags, r.code, r.out, r.err);
    free_run(r);
    free(flags);
    return well;
}

// ---- faults at every step-th call that changes a file, from the first to the last

static void faults_of(const char* kind, int step) {
    make_whole();
    char *out = scratch_path(kind), *mark = scratch_path("mark"), *flags = flags_for(out, "");
    int runs = 0, told = 0, went_on = 0, wrong = 0;
    bool struck = true;
    for (int call = 1; struck; call += step) {
        empty_dir(out);
        shell("rm -f", mark);
        inject(out, kind, call, mark);
        Run r = run(flags);
        inject_nothing();
        struck = path_exists(mark);
        runs += struck;
        bool killed = !strcmp(kind, "kill"), harmless = r.code == 0;
        told += struck && (killed ? r.code == -1 : harmless || (r.code == 2 && !strncmp(r.err, "train_llama3: ", 14)));
        wrong += harmless && !same_files(whole_dir, out, "model.safetensors");
        bool well = !struck || ends_well(out);
        went_on += struck && well;
        if (!well) printf("  %s at call %d: exit %d, %s\n", kind, call, r.code, r.err);
        free_run(r);
    }
    ok(runs > 10, "%s: struck %d times", kind, runs);
    ok(told == runs, "%s: the run ends with a message, or needs no end: %d of %d", kind, told, runs);
    ok(wrong == 0, "%s: exit code 0 is the whole model's: %d wrong", kind, wrong);
    ok(went_on == runs, "%s: the same command goes on to the same bits: %d of %d", kind, went_on, runs);
    empty_dir(out);
    free(out);
    free(mark);
    free(flags);
}

// Steps that share no divisor with the calls of one save: over the saves of a run every call of a save is struck.
static void enospc_case(void) { faults_of("enospc", 5); }
static void eio_case(void) { faults_of("eio", 7); }
static void short_case(void) { faults_of("short", 11); }
static void kill_case(void) { faults_of("kill", 3); }

// --out is --model: killed at any call, the folder holds the old model or the new one, whole, and the same command ends with the new one.
static void in_place_case(void) {
    make_whole();
    char *fresh = scratch_path("fresh"), *out = scratch_path("in-place"), *mark = scratch_path("mark"), *copy = text_of("cp -r %s", fresh);
    char* checkpoints = path_join(fresh, "checkpoints");
    char* flags = text_of("train --model %s --data %s --chat none --seq 32 --batch 8 --steps 2 --lr 1e-2 --backend cpu --out %s --overwrite --resume",
                          out, data_path, out);
    char *verify = text_of("verify %s", out), *done = scratch_path("done"), *make = text_of("cp -r %s", whole_dir);
    shell(make, fresh);
    shell("rm -r", checkpoints);
    char* note = path_join(fresh, "training.json");
    shell("rm", note);   // as a downloaded model
    shell(copy, out);
    free(run_well(flags, "in place, undisturbed"));
    ok(!same_files(fresh, out, "model.safetensors"), "in place: the weights are new");
    char* keep = text_of("cp -r %s", out);
    shell(keep, done);
    int runs = 0, whole = 0, ended = 0;
    bool struck = true;
    for (int call = 1; struck; call += 3) {
        shell("rm -rf", out);
        shell(copy, out);
        shell("rm -f", mark);
        inject(out, "kill", call, mark);
        free_run(run(flags));
        inject_nothing();
        struck = path_exists(mark);
        runs += struck;
        Run r = run(verify);
        whole += struck && r.code == 0;
        free_run(r);
        r = run(flags);
        bool well = r.code == 0 && same_files(done, out, "model.safetensors");
        if (!well) printf("  killed at call %d: exit %d, %s\n", call, r.code, r.err);
        ended += struck && well;
        free_run(r);
    }
    ok(runs > 10 && whole == runs, "in place: killed, the folder is a whole model: %d of %d", whole, runs);
    ok(ended == runs, "in place: killed, the same command ends with the new model: %d of %d", ended, runs);
    shell("rm -rf", out);
    free(keep);
    free(note);
    free(make);
    free(done);
    free(verify);
    free(flags);
    free(checkpoints);
    free(copy);
    free(mark);
    free(out);
    free(fresh);
}

// A disk that hangs, under one rank: the watchdog ends the run.
static void hang_case(void) {
    make_whole();
    char *out = scratch_path("hang"), *mark = scratch_path("mark"), *flags = flags_for(out, "--timeout 2");
    char* below = path_join(out, "checkpoints");
    empty_dir(out);
    inject(below, "hang", 4, mark);
    Run r = run(flags);
    inject_nothing();
    ok(r.code == 3 && strstr(r.err, "no progress for 2 s"), "a disk that hangs: exit %d, %s", r.code, r.err);
    ok(ends_well(out), "a disk that hangs: and --resume goes on");
    free_run(r);
    empty_dir(out);
    free(below);
    free(flags);
    free(mark);
    free(out);
}

// On a slow disk: the milliseconds that training waits for the save of step 1000, as the run says.
static double save_stall_ms(const char* out, bool in_background) {
    char *checkpoints = path_join(out, "checkpoints"), *flags = flags_for(out, "--steps 2000 --save-every 1000 --batch 4 --pack off");
    empty_dir(out);
    inject(checkpoints, "slow", 0, "");
    setenv("FAULT_NO_MEMORY", in_background ? "" : "1", 1);
    char* text = run_well(flags, in_background ? "saves while training goes on" : "saves while training waits");
    inject_nothing();
    ok(!strstr(text, "too little memory for a copy of the state: training waits") == in_background, "too little memory for a copy is said");
    const char *line = strstr(text, "\nsaved step 1000 in "), *waited = line ? strstr(line, ": training waited ") : NULL;
    double ms = NAN, seconds = NAN;
    ok(waited && sscanf(waited, ": training waited %lf ms, written in %lf s", &ms, &seconds) == 2 && seconds > 0.1 && ms <= 1000 * seconds + 10,
       "%.*s", line ? (int)strcspn(line + 1, "\n") : 0, line ? line + 1 : "");
    free(text);
    free(flags);
    free(checkpoints);
    return ms;
}

static void stall_case(void) {
    make_whole();
    char *out = scratch_path("stall"), *other = scratch_path("no-stall");
    double waiting = save_stall_ms(out, false), going_on = save_stall_ms(other, true);
    ok(going_on <= waiting / 4, "a save holds up training for %.1f ms, and for %.1f without room for a copy", going_on, waiting);   // a busy machine is allowed more than a tenth
    ok(same_files(out, other, "model.safetensors"), "and the bits are the same");
    empty_dir(out);
    empty_dir(other);
    free(other);
    free(out);
}

// ---- the end of a run on a full disk, with nothing saved before

static void full_at_the_end_case(void) {
    make_whole();
    char *out = scratch_path("full"), *mark = scratch_path("mark"), *flags = flags_for(out, "--save-every 0");
    char* partial = path_join(out, ".model-being-written");
    empty_dir(out);
    inject(partial, "enospc", 4, mark);   // only writes of the model
    Run r = run(flags);
    inject_nothing();
    ok(r.code == 2 && strstr(r.err, "the model could not be written") && strstr(r.err, "--resume") && strstr(r.out, "saved step 5 in"),
       "a final write that fails leaves a checkpoint of the last step: exit %d, %s", r.code, r.err);
    free_run(r);
    free(flags);
    flags = flags_for(out, "--save-every 0 --resume");
    char* text = run_well(flags, "and --resume writes the model");
    ok(!strstr(text, "\nstep ") && same_files(whole_dir, out, "model.safetensors"), "without a step made again");
    free(text);
    free(flags);

    flags = flags_for(out, "--overwrite --resume");
    empty_dir(out);
    inject("/nowhere", "none", 0, mark);
    setenv("FAULT_FREE", "100000", 1);
    run_refused(flags, "bytes are needed and 100000 are free", "a disk that is too small is told before training");
    inject_nothing();
    free(flags);
    empty_dir(out);
    free(partial);
    free(mark);
    free(out);
}

// Starts a run and returns once its log has a step. The run takes turns behind this process, which so notices before the run is over.
static pid_t start_and_step(const char* flags, const char* log) {
    pid_t child = start(flags);
    setpriority(PRIO_PROCESS, (id_t)child, 19);
    for (int polls = 0; polls < 100000; polls++) {
        struct stat info;
        if (!stat(log, &info) && info.st_size > 0) break;
        usleep(200);
    }
    return child;
}

// The model's text files were read at the start: without them the run ends as with them.
static void lost_side_files_case(void) {
    make_whole();
    char *out = scratch_path("sideless"), *model = scratch_path("going"), *copy = text_of("cp -r %s", model_dir);
    char* log = path_join(out, "log.jsonl");
    empty_dir(out);
    shell("rm -rf", model);
    shell(copy, model);
    char *more = text_of("--from-scratch %s", model), *flags = flags_for(out, more);
    pid_t child = start_and_step(flags, log);
    shell("rm -rf", model);
    Run r = finish(child);
    ok(r.code == 0 && same_files(whole_dir, out, "model.safetensors") && same_files(whole_dir, out, "config.json") &&
       same_files(whole_dir, out, "tokenizer.json"), "the model's folder goes while the run is under way: exit %d, %s", r.code, r.err);
    free_run(r);
    empty_dir(out);
    free(flags);
    free(more);
    free(log);
    free(copy);
    free(model);
    free(out);
}

static void log_and_locks_case(void) {
    make_whole();
    char *out = scratch_path("locked"), *flags, *log_dir = scratch_path("full-log");
    empty_dir(out);
    empty_dir(log_dir);
    char *log = path_join(log_dir, "log.jsonl"), *link = text_of("ln -s /dev/full"), *more = text_of("--log %s", log_dir);
    shell(link, log);
    flags = flags_for(out, more);
    Run r = run(flags);
    ok(r.code == 0 && lines_in(r.err) == 1 && strstr(r.err, "log.jsonl cannot be written") && same_files(whole_dir, out, "model.safetensors"),
       "a full log is said once, and the run goes on: exit %d, %s", r.code, r.err);
    free_run(r);
    free(flags);

    flags = flags_for(out, more);
    run_refused(flags, "--out|checkpoint", "a fresh run over checkpoints");
    free(flags);
    flags = flags_for(out, "--save-every 0");
    char* checkpoints = path_join(out, "checkpoints");
    shell("rm -r", checkpoints);
    run_refused(flags, "holds a model (model.safetensors)|--overwrite", "a fresh run over a model");
    free(flags);
    flags = flags_for(out, "--save-every 0 --overwrite");
    free(run_well(flags, "--overwrite"));
    free(flags);
    flags = flags_for(out, "--overwrite --steps 100000");
    char* other = text_of("export --model %s --out %s --overwrite", whole_dir, out);
    pid_t first = start(flags);
    usleep(700 * 1000);
    char *copy = text_of("'%s' %s >/dev/null 2>%s.err", binary, other, out), *err_path = text_of("%s.err", out);
    int code = system(copy);
    char* err = file_read(err_path, NULL);
    ok(WEXITSTATUS(code) == 2 && strstr(err, "another run writes there now"), "two runs with one --out: the second is refused: %s", err);
    kill(first, SIGTERM);
    r = finish(first);
    ok(r.code == 4, "TERM: exit code 4: %d", r.code);
    free_run(r);
    free(err);
    free(err_path);
    free(copy);
    free(other);
    free(checkpoints);
    free(link);
    free(log);
    free(more);
    free(flags);
    free(log_dir);
    free(out);
}

// ---- stops

// Starts the run with many steps and sends the signal after the first; 0: none, the caller has arranged for the stop.
static Run stopped_by(const char* out, int signal_number, int times) {
    char *flags = flags_for(out, "--save-every 0 --steps 5 --batch 8"), *log = path_join(out, "log.jsonl");
    empty_dir(out);
    pid_t child = start_and_step(flags, log);
    for (int i = 0; i < times; i++) {
        kill(child, signal_number);
        usleep(500);
    }
    free(flags);
    free(log);
    return finish(child);
}

static void signals_case(void) {
    make_whole();
    const struct {
        const char* name;
        int number;
    } signals[] = {{"HUP", SIGHUP}, {"INT", SIGINT}, {"TERM", SIGTERM}, {"USR1", SIGUSR1}};
    char* out = scratch_path("signalled");
    for (int i = 0; i < COUNT(signals); i++) {
        Run r = {-1, NULL, NULL};
        for (int attempt = 0; attempt < 20 && r.code != 4; attempt++) {   // on a busy machine the run may be over before
            free_run(r);
            r = stopped_by(out, signals[i].number, 3);
        }
        ok(r.code == 4 && strstr(r.out, "saved step"), "%s, three times at once: saves and ends with code 4: %d", signals[i].name, r.code);
        ok(ends_well(out), "%s: and --resume goes on", signals[i].name);
        free_run(r);
    }
    // a reader that has gone (nice: before the run is over, on a busy machine too): the pipe's own status is head's
    char *flags = flags_for(out, ""), *line = text_of("(nice -n 19 '%s' %s; echo $? >%s.code) | head -n 1 >/dev/null #", binary, flags, out);
    empty_dir(out);
    shell(line, "");
    char *code_path = text_of("%s.code", out), *code = file_read(code_path, NULL);
    ok(atoi(code) == 4, "a closed pipe: code 4: %s", code);
    ok(ends_well(out), "a closed pipe: and --resume goes on");
    free(code);
    free(line);
    empty_dir(out);
    line = text_of("'%s' %s <&- >&- 2>&- #", binary, flags);   // the shell's system() sees its exit code
    shell(line, "");
    char* log = text_at(out, "log.jsonl");
    ok(lines_in(log) == 5 && !strncmp(log, "{\"step\": 1,", 11) && !strstr(log, "tok/s") && same_files(whole_dir, out, "model.safetensors"),
       "closed standard streams: log.jsonl holds its own lines alone");
    free(log);
    free(line);
    free(code_path);
    free(flags);
    empty_dir(out);
    free(out);
}

// ---- damage

static void flip(const char* path, double place) {
    size_t bytes;
    char* text = file_read(path, &bytes);
    text[(size_t)(place * (double)(bytes - 1))] ^= 1;
    put_file(path, text, bytes);
    free(text);
}

static void damage_case(void) {
    make_whole();
    char *out = scratch_path("damaged"), *copy = text_of("cp -r %s", whole_dir), *checkpoint = text_of("%s/checkpoints/step-00000004", out);
    static const char* const kFiles[] = {"rank-00000-of-00001.bin", "rank-00000-of-00001.json"};
    static const double kPlaces[] = {0, 0.3, 0.999, 1};
    char *verify = text_of("verify %s", out), *resume = flags_for(out, "--resume"), *weights = path_join(out, "model.safetensors");
    char *verify_whole = text_of("verify %s", whole_dir), *text = run_well(verify_whole, "verify a whole run");
    free(verify_whole);
    ok(strstr(text, "step-00000004: a whole checkpoint") && strstr(text, "a whole model: ") && strstr(text, " 1 checksum"),
       "verify names what is whole");
    free(text);
    shell(copy, out);
    flip(weights, 0.5);
    Run flipped = run(verify);
    ok(flipped.code == 2 && strstr(flipped.out, "DAMAGED: ") && strstr(flipped.out, "its checksum in checksums.json differs"),
       "a flipped bit in a model: %s", flipped.out);
    free_run(flipped);
    int found = 0, resumed = 0, runs = 0;
    for (int f = 0; f < COUNT(kFiles); f++)
        for (int p = 0; p < COUNT(kPlaces); p++, runs++) {
            shell("rm -rf", out);
            shell(copy, out);
            char* path = path_join(checkpoint, kFiles[f]);
            flip(path, kPlaces[p]);
            Run r = run(verify);
            found += r.code == 2 && strstr(r.out, "step-00000004: DAMAGED") && strstr(r.out, "step-00000002: a whole");
            free_run(r);
            shell("rm", weights);
            r = run(resume);
            resumed += r.code == 0 && strstr(r.err, "damaged; this checkpoint is passed over") && strstr(r.out, "step-00000002\n") &&
                       same_files(whole_dir, out, "model.safetensors");
            free_run(r);
            free(path);
        }
    ok(found == runs, "a flipped bit in a checkpoint: verify finds it: %d of %d", found, runs);
    ok(resumed == runs, "a flipped bit in the newest checkpoint: the run goes on from the one before, to the same bits: %d of %d", resumed, runs);
    shell("rm -rf", out);
    shell(copy, out);
    shell("rm", weights);
    for (int step = 2; step <= 4; step += 2) {
        char* path = text_of("%s/checkpoints/step-0000000%d/%s", out, step, kFiles[0]);
        flip(path, 0.5);
        free(path);
    }
    Run none = run(resume);
    ok(none.code == 2 && strstr(none.err, "none of the 2 checkpoints"), "checkpoints of which none is whole: exit %d", none.code);
    free_run(none);
    free(weights);
    free(resume);
    free(verify);
    free(checkpoint);
    free(copy);
    free(out);
}

// ---- what a run depends on changes under it, or is no model

static void changed_case(void) {
    make_whole();
    char *out = scratch_path("changed"), *other_model = scratch_path("other-model"), *other_data = scratch_path("other.jsonl");
    char *copy_out = text_of("cp -r %s", whole_dir), *copy_model = text_of("cp -r %s", model_dir), *copy_data = text_of("cp %s", data_path);
    const struct {
        const char *file, *from, *to, *words;
    } changes[] = {{"config.json", "\"rope_theta\": 10000.0", "\"rope_theta\": 20000.0", "config.json (XXH3)"},
                   {"config.json", "\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 2e-05", "config.json (XXH3)"},
                   {"tokenizer_config.json", "{{ m.role }}", "{{ m.roles}}", "tokenizer and chat template (XXH3)"},
                   {"data", "12+25=", "12+52=", "content of --data (XXH3)"},
                   {"nothing", "", "", NULL}};
    for (int i = 0; i < COUNT(changes); i++) {
        shell("rm -rf", out);
        shell(copy_out, out);
        char *weights = path_join(out, "model.safetensors");
        shell("rm", weights);
        free(weights);
        shell("rm -rf", other_model);
        shell(copy_model, other_model);
        shell(copy_data, other_data);
        bool data = !strcmp(changes[i].file, "data");
        char* path = data ? host_strdup(other_data) : path_join(other_model, changes[i].file);
        if (changes[i].words) {
            size_t bytes;
            char *text = file_read(path, &bytes), *at = strstr(text, changes[i].from);
            check(at && strlen(changes[i].from) == strlen(changes[i].to), "%s: no %s", path, changes[i].from);
            memcpy(at, changes[i].to, strlen(changes[i].to));
            put_file(path, text, bytes);
            free(text);
        }
        free(path);
        char *more = text_of("--resume --from-scratch %s --data %s", other_model, other_data), *flags = flags_for(out, more);
        if (changes[i].words) run_refused(flags, changes[i].words, changes[i].words);
        else free(run_well(flags, "other paths, the same contents"));
        free(more);
        free(flags);
    }
    ok(same_files(whole_dir, out, "model.safetensors"), "other paths, the same contents: the same bits");
    free(copy_data);
    free(copy_model);
    free(copy_out);
    free(other_data);
    free(other_model);
    free(out);
}

// ---- ranks

static void on_ranks(int ranks) {
    static char line[128];
    snprintf(line, sizeof line, "mpirun --allow-run-as-root --oversubscribe --mca btl_base_warn_component_unused 0 -np %d ", ranks);
    launcher = ranks > 1 ? line : "";
}

// What `ranks` of them make of the same global batches, undisturbed.
static char* whole_on(int ranks) {
    static char* dirs[4];
    if (dirs[ranks]) return dirs[ranks];
    char *name = text_of("whole-%d", ranks), *more = text_of("--pack off --batch %d", 6 / ranks);
    dirs[ranks] = scratch_path(name);
    char* flags = flags_for(dirs[ranks], more);
    on_ranks(ranks);
    free(run_well(flags, "undisturbed ranks"));
    on_ranks(1);
    free(flags);
    free(more);
    free(name);
    return dirs[ranks];
}

// A NaN in what one rank adds to the fourth step's gradient of one tensor. A step sends 15 parts: norm and head, then in either layer
// norm, qkv, o, norm, gate and up, down, then the embedding.
static void nan_case(void) {
    make_whole();
    if (!has_mpi()) {
        skip("a NaN in one rank's gradient: no MPI on this machine");
        return;
    }
    const struct {
        int ranks, rank, part;
        const char *tensor, *lines;   // the step's four examples, in the order that the seed makes
    } faults[] = {{2, 1, 8, "model.layers.1.mlp.down_proj.weight", "15"}, {3, 0, 2, "lm_head.weight", "7, 13"},
                  {3, 1, 10, "model.layers.0.self_attn.q_proj.weight", "3, 15"}};
    char* out = scratch_path("nan");
    for (int i = 0; i < COUNT(faults); i++) {
        char *whole = whole_on(faults[i].ranks), *rank = text_of("%d", faults[i].rank);
        for (int skips = 0; skips < 2; skips++) {
            char *more = text_of("--pack off --batch %d %s", 6 / faults[i].ranks, skips ? "--on-nan skip" : ""), *flags = flags_for(out, more);
            empty_dir(out);
            on_ranks(faults[i].ranks);
            inject("/nowhere", "nan", 3 * 15 + faults[i].part, "");
            setenv("FAULT_RANK", rank, 1);
            Run r = run(flags);
            inject_nothing();
            char* words = text_of("not finite on rank %d, first the gradient of %s, with recipe bf16 on %s line %s%s", faults[i].rank,
                                  faults[i].tensor, data_path, faults[i].lines, skips ? ": left out" : ", and nothing of this step was saved");
            ok(r.code == (skips ? 0 : 2) && strstr(r.err, "step 4: ") && strstr(r.err, words),
               "%d ranks, %s: exit %d, %s", faults[i].ranks, skips ? "--on-nan skip" : "stop", r.code, r.err);
            free(words);
            free_run(r);
            bool same = same_files(whole, out, "model.safetensors");
            free(flags);
            flags = text_of("verify %s", out);
            on_ranks(1);
            if (skips) free(run_well(flags, "what was trained without the step is whole"));
            ok(!same, "the step was not taken");
            free(flags);
            free(more);
            if (skips) continue;
            more = text_of("--pack off --batch %d --resume", 6 / faults[i].ranks);
            flags = flags_for(out, more);
            on_ranks(faults[i].ranks);
            free(run_well(flags, "and --resume"));
            on_ranks(1);
            ok(same_files(whole, out, "model.safetensors"), "goes on to the bits of an undisturbed run");
            free(flags);
            free(more);
        }
        free(rank);
    }
    empty_dir(out);
    free(out);
}

// A signal to one rank at the `call`-th call of some kind: where the run is then is what the other ranks, or its lines, say.
typedef enum { LOADING, FIRST_STEP, EVALUATING, SAVING, WRITING, kPhases } Phase;
static const struct {
    const char *name, *calls;   // calls: MPI's, or those that change files below this part of --out
    int call;
    bool first_rank;            // only rank 0 makes such calls
} kPhaseAt[kPhases] = {{"loading", "MPI_", 3, false}, {"the first step", "MPI_Alltoall", 4, false}, {"evaluating", "MPI_Allgather", 51, false},
                       {"saving", "checkpoints", 4, false}, {"writing the model", ".model-being-written", 3, true}};

static bool is_at(Phase phase, Run r) {
    switch (phase) {
        case LOADING: return !strstr(r.out, "\nstep ") && !strstr(r.err, ": step 1, ");
        case FIRST_STEP: return !strstr(r.out, "\nstep ") && strstr(r.err, ": step 1, ");
        case EVALUATING: return strstr(r.out, "\nstep   2/5 ") && (strstr(r.err, ": step 2, embedding") || strstr(r.err, ": step 2, forward"));
        case SAVING: return strstr(r.out, "\nstep   2/5 ") && !strstr(r.out, "\nsaved step 4 ");
        case WRITING: return strstr(r.out, "\nstep   5/5 ") && !strstr(r.out, "\nwrote ");
        default: return false;
    }
}

// Whether the run ended as the signal wants it.
static bool ended_by(int signal_number, Phase phase, Run r) {
    if (signal_number == SIGKILL) return r.code != 0 && is_at(phase, r);
    if (signal_number == SIGSTOP) return r.code == 3 && is_at(phase, r) && strstr(r.err, "no progress for 2 s");
    if (phase == LOADING) return r.code != 0;                                      // nothing to save yet
    if (signal_number == SIGTERM) return r.code == 3;                              // a rank that is ended ends the others
    if (phase == WRITING) return r.code == 0 && strstr(r.out, "\nwrote ");         // too late to stop
    return r.code == 4 && strstr(r.out, "saved step") && strstr(r.out, "--resume goes on");
}

static void signal_at(int signal_number, Phase phase, int ranks, int rank) {
    char *out = scratch_path("signalled-ranks"), *mark = scratch_path("mark"), *whole = whole_on(ranks);
    char* calls = *kPhaseAt[phase].calls == 'M' ? host_strdup(kPhaseAt[phase].calls) : path_join(out, kPhaseAt[phase].calls);
    char* more = text_of("--pack off --batch %d --val %s --eval-every 2 --timeout %d", 6 / ranks, val_path, signal_number == SIGSTOP ? 2 : 60);
    char *flags = flags_for(out, more), *number = text_of("%d", signal_number), *which = text_of("%d", kPhaseAt[phase].first_rank ? 0 : rank);
    empty_dir(out);
    shell("rm -f", mark);
    on_ranks(ranks);
    inject(calls, "signal", kPhaseAt[phase].call, mark);
    setenv("FAULT_SIGNAL", number, 1);
    setenv("FAULT_RANK", which, 1);
    Run r = run(flags);
    inject_nothing();
    bool well = path_exists(mark) && ended_by(signal_number, phase, r);
    ok(well, "%s to rank %s of %d, %s: exit %d", strsignal(signal_number), which, ranks, kPhaseAt[phase].name, r.code);
    if (!well) printf("%s%s\n", r.out, r.err);
    free_run(r);
    char* again = text_of("%s --resume", flags);
    r = run(again);
    well = r.code == 0 && same_files(whole, out, "model.safetensors");
    ok(well, "and --resume ends with the bits of an undisturbed run");
    if (!well) printf("exit %d, %s%s\n", r.code, r.out, r.err);
    free_run(r);
    on_ranks(1);
    free(again);
    free(which);
    free(number);
    free(flags);
    free(more);
    free(calls);
    free(mark);
    free(out);
}

static void ranks_case(void) {
    make_whole();
    if (!has_mpi()) {
        skip("signals to ranks: no MPI on this machine");
        return;
    }
    const int everywhere[] = {SIGKILL, SIGSTOP, SIGUSR1, SIGTERM}, like_usr1[] = {SIGINT, SIGHUP};
    for (int i = 0; i < COUNT(everywhere); i++)
        for (int phase = 0; phase < kPhases; phase++) signal_at(everywhere[i], (Phase)phase, 2 + (i + phase) % 2, phase % 2);
    for (int i = 0; i < COUNT(like_usr1); i++) signal_at(like_usr1[i], i ? SAVING : FIRST_STEP, 2 + i, 1);
}

static void infinite_case(void) {
    make_whole();
    char *model = scratch_path("infinite"), *copy = text_of("cp -r %s", whole_dir), *path = path_join(model, "model.safetensors");
    shell("rm -rf", model);
    shell(copy, model);
    size_t bytes;
    char* text = file_read(path, &bytes);
    const uint16_t infinity = 0x7f80;
    memcpy(text + bytes - 2, &infinity, sizeof infinity);
    put_file(path, text, bytes);
    char *eval = text_of("eval --model %s --data %s --chat none --seq 32", model, data_path), *verify = text_of("verify %s", model);
    run_refused(eval, "is not finite at row|the model itself is damaged", "eval of a model with an infinity");
    Run r = run(verify);
    ok(r.code == 2 && strstr(r.out, "DAMAGED: ") && strstr(r.out, "is not finite at row"), "verify finds an infinity: %s", r.out);
    free_run(r);
    free(eval);
    free(verify);
    free(text);
    free(path);
    free(copy);
    free(model);
}

static const Case kCases[] = {
    {"enospc", enospc_case}, {"eio", eio_case}, {"short", short_case}, {"kill", kill_case}, {"in_place", in_place_case},
    {"hang", hang_case}, {"stall", stall_case}, {"full_at_the_end", full_at_the_end_case},
    {"lost_side_files", lost_side_files_case}, {"log_and_locks", log_and_locks_case}, {"signals", signals_case}, {"damage", damage_case}, {"changed", changed_case}, {"infinite", infinite_case}, {"nan", nan_case}, {"ranks", ranks_case},
};

int main(int argc, char** argv) {
    setenv("ASAN_OPTIONS", "detect_leaks=0:verify_asan_link_order=0", 1);   // the shim comes before the sanitizer's own library
    char* self = realpath("/proc/self/exe", NULL);
    shim = text_of("%.*sfaults_shim.so", (int)(strrchr(self, '/') + 1 - self), self);
    free(self);
    return program_main("test_faults", kCases, COUNT(kCases), argc, argv);
}
