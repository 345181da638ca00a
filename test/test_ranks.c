// CPU ranks under mpirun: 1, 2, 3 and 4 of them train the same bits for every ZeRO stage, with weights gathered as they are and
// as codes; a rank that dies or hangs ends the job and is named; ranks that disagree are told so.
#include "program.h"

#include <signal.h>

enum { kRows = 12 };   // of a global batch

// Trains the tiny model in micro-batches of one row, dealt out to `ranks`, and returns the run's folder.
static char* train_on(int ranks, const char* name, const char* more) {
    char prefix[160], *out = scratch_path(name);
    snprintf(prefix, sizeof prefix, "mpirun --allow-run-as-root --oversubscribe --mca btl_base_warn_component_unused 0 -np %d ",
             ranks);
    launcher = ranks > 1 ? prefix : "";
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 1 --accum %d --steps 4 --lr 1e-2 "
                          "--backend cpu --out %s --log %s %s", model_dir, data_path, kRows / ranks, out, out, more);
    Run r = run(flags);
    ok(r.code == 0, "%s: exit %d %s", name, r.code, r.code ? r.err : "");
    free_run(r);
    free(flags);
    launcher = "";
    return out;
}

// The losses of log.jsonl, one after the other; the gradient norm is summed in another order and may differ in its last digit.
static char* losses_of(const char* dir) {
    char *log = log_of(dir), *losses = (char*)host_alloc(strlen(log) + 1);
    for (char* p = log; (p = strstr(p, "\"loss\": ")) != NULL; p++) {
        char* number = p + strlen("\"loss\": ");
        strncat(losses, number, strcspn(number, ","));
        strcat(losses, " ");
    }
    free(log);
    return losses;
}

static void invariance_case(void) {
    make_inputs();
    const char* const recipes[] = {"--level bf16", "--level halo2 --dtype int8", "--level halo1 --dtype fp6 --head-dtype fp8"};
    const struct {
        int ranks;
        const char* flags;
    } runs[] = {{1, "--zero 2"}, {2, "--zero 3"}, {2, "--zero 2"}, {3, "--zero 3 --qfsdp --quant-stats 3"}, {4, "--zero 3 --quant-stats 4"},
              {4, "--zero 3 --qfsdp"}};
    for (int r = 0; r < COUNT(recipes); r++) {
        char* flags = text_of("%s --zero 3", recipes[r]);
        char *alone = train_on(1, "alone", flags), *want = losses_of(alone);
        free(flags);
        for (int i = 0; i < COUNT(runs); i++) {
            bool codes = strstr(runs[i].flags, "--qfsdp") != NULL;
            if (codes && r == 0) continue;   // nothing is quantized
            flags = text_of("%s %s", recipes[r], runs[i].flags);
            char *out = train_on(runs[i].ranks, "several", flags), *got = losses_of(out);
            ok(*got && !strcmp(got, want) && same_files(alone, out, "model.safetensors"),
               "%d rank%s, %s: losses and weights of one rank, bit for bit", runs[i].ranks, runs[i].ranks > 1 ? "s" : "", flags);
            char* log = log_of(out);
            bool seen = strstr(log, "quant_stats") != NULL, weights_seen = strstr(log, "\"w\": {") != NULL;
            if (strstr(flags, "--quant-stats")) ok(seen && weights_seen == !codes, "and rank 0 tells of its linears, of their weights where it has them");
            free(log);
            empty_dir(out);
            free(got);
            free(out);
            free(flags);
        }
        empty_dir(alone);
        free(want);
        free(alone);
    }
}

// Stages that sum whole gradients once a step take another order: the same to rounding.
static void other_stages_case(void) {
    make_inputs();
    char *alone = train_on(1, "alone", "--backend cpu-f32 --zero 3"), *want = losses_of(alone);
    for (int zero = 0; zero < 2; zero++)
        for (int ranks = 2; ranks <= 3; ranks++) {
            char *flags = text_of("--backend cpu-f32 --zero %d", zero), *out = train_on(ranks, "several", flags), *got = losses_of(out);
            double worst = 0;
            char *a = want, *b = got;
            for (int step = 0; step < 4; step++) worst = fmax(worst, fabs(strtod(a, &a) / strtod(b, &b) - 1));
            ok(worst < 1e-6, "%d ranks, --zero %d: the losses of one rank to %.1e", ranks, zero, worst);
            empty_dir(out);
            free(got);
            free(out);
            free(flags);
        }
    empty_dir(alone);
    free(want);
    free(alone);
}

// A checkpoint of two or four ranks, taken up by other numbers of ranks.
static void resume_case(void) {
    make_inputs();
    const char* const kinds[] = {"--level halo2 --dtype int8 --qfsdp", "--level bf16 --master bf16-sr --zero 2"};
    const struct {
        int saved, resumed;
    } runs[] = {{2, 2}, {4, 2}, {2, 3}};
    for (int k = 0; k < COUNT(kinds); k++) {
        char *whole = train_on(2, "whole", kinds[k]), *saving = text_of("%s --save-every 2", kinds[k]);
        char* resuming = text_of("%s --resume", kinds[k]);
        for (int i = 0; i < COUNT(runs); i++) {
            char *cut = train_on(runs[i].saved, "cut", saving), *model = path_join(cut, "model.safetensors");
            file_remove(model);
            free(train_on(runs[i].resumed, "cut", resuming));
            ok(same_files(whole, cut, "model.safetensors"), "saved by %d ranks, continued by %d, %s: bit for bit", runs[i].saved,
               runs[i].resumed, kinds[k]);
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

// One of three ranks gets the signal once the training runs.
static Run with_signal(int signal_number, const char* timeout) {
    char* pid_file = scratch_path("pids");
    // The ranks write their process ids before they become the program.
    shell("rm -f", pid_file);
    char* line = text_of("mpirun --allow-run-as-root --oversubscribe -np 3 sh -c 'echo $$ >>%s; exec \"$0\" \"$@\"' ", pid_file);
    launcher = line;
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 1 --steps 2000000 --warmup 0 --lr 1e-4 --timeout %s",
                          model_dir, data_path, timeout);
    pid_t child = start(flags);
    launcher = "";
    int pid = 0;
    for (int tries = 0; tries < 200; tries++) {
        usleep(50 * 1000);
        char* printed;
        read_stream("stdout", &printed);
        bool running = strstr(printed, " 3/2000000 ") != NULL;
        free(printed);
        if (!running) continue;
        char* pids = file_read(pid_file, NULL);
        char* last = pids;
        for (int i = 0; i < 2; i++) last = strchr(last, '\n') + 1;
        pid = atoi(last);
        free(pids);
        break;
    }
    check(pid > 1, "the ranks did not start");
    kill(pid, signal_number);
    Run r = finish(child);
    kill(pid, SIGKILL);
    free(pid_file);
    free(line);
    free(flags);
    return r;
}

static void lost_ranks_case(void) {
    make_inputs();
    Run killed = with_signal(SIGKILL, "60");
    ok(killed.code != 0 && strstr(killed.err, "of 3: step ") && strstr(killed.err, "another rank has died"),
       "a killed rank ends the job (exit %d), and the others say where they were", killed.code);
    free_run(killed);
    Run stopped = with_signal(SIGSTOP, "2");
    ok(stopped.code == 3 && strstr(stopped.err, "no progress for 2 s") && strstr(stopped.err, "waiting for the other ranks in "),
       "a rank that hangs ends the job after --timeout (exit %d)", stopped.code);
    free_run(stopped);
}

static void disagreement_case(void) {
    make_inputs();
    // The ranks' shells give rank 1 another learning rate.
    launcher = "mpirun --allow-run-as-root --oversubscribe -np 2 sh -c '\"$0\" \"$@\" --lr $((OMPI_COMM_WORLD_RANK + 1))' ";
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32", model_dir, data_path);
    Run r = run(flags);
    launcher = "";
    ok(r.code != 0 && strstr(r.err, "rank 1 disagrees with rank 0: it has '--lr 2', rank 0 has '--lr 1'"),
       "ranks with different flags are told which");
    free_run(r);
    free(flags);
}

static const Case cases[] = {{"ranks.invariance", invariance_case},
                             {"ranks.other_stages", other_stages_case},
                             {"ranks.resume", resume_case},
                             {"ranks.lost", lost_ranks_case},
                             {"ranks.disagreement", disagreement_case}};

static void no_mpi(void) { skip("ranks: no mpirun on this machine"); }
static const Case skipped[] = {{"ranks", no_mpi}};

int main(int argc, char** argv) {
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);   // for the ranks: MPI leaves memory of its own behind
    bool mpi = system("command -v mpirun >/dev/null 2>&1") == 0;
    return mpi ? program_main("test_ranks", cases, COUNT(cases), argc, argv) : test_main(skipped, COUNT(skipped), argc, argv);
}
