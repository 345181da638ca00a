// The scripts that make the paper's tables, each on the demo's model and data with one step: what they print, and that a cell which is
// there is not made again, a run which was cut off goes on, and a budget is kept.
#include "program.h"

#include <sys/stat.h>

// What a table is made with, so that it takes a second.
static const char kSmall[] = "MODEL=data/demo/model DATASETS=demo STEPS=1 LIMIT=40 BATCH=4 SEQ=128 RECIPES='bf16 halo2-int8' SEEDS='1 2' REFPACK=/nowhere";

// Runs a script under these settings ("NAME=VALUE ...") with its results in the folder `tables`.
static Run run_script(const char* name, const char* settings, const char* tables) {
    char* line = text_of("exec env %s TRAIN_LLAMA3='%s' TABLES='%s' GRADIENT_COSINE=%s/dev/gradient_cosine CHART=%s/dev/chart %s scripts/%s.sh",
                         kSmall, binary, tables, build_dir(), build_dir(), settings, name);
    pid_t child = start_line(line);
    free(line);
    return finish(child);
}

// A script in place of the program; the caller frees its name.
static char* stand_in(const char* name, const char* body) {
    char *path = scratch_path(name), *text = text_of("#!/bin/sh\n%s\n", body);
    put_file(path, text, strlen(text));
    check(chmod(path, 0755) == 0, "%s: chmod", path);
    free(text);
    return path;
}

// ---- cases

typedef struct {
    const char* name;
    const char* rows[3];   // words of what it prints
    int cells;             // lines of results.jsonl
    const char* picture;   // what it draws; NULL: nothing
    int lines;             // in the picture
} TableScript;

// Each prints its table; a second time it prints the same without having run the program.
static void tables_case(void) {
    static const TableScript scripts[] = {
        {"choose_lr", {"| dataset | learning rate | loss |", "| demo | 3e-4 | ", "| chosen |"}, 3, NULL, 0},
        {"table_finetune", {"| recipe | demo |", "| bf16 | ", "| halo2-int8 | "}, 7, "finetune.svg", 2},
        {"table_peft", {"| recipe | demo |", "| bf16 | ", "| halo2-int8 | "}, 14, "lora.svg", 2},
        {"table_pretrain", {"| recipe | demo |", "| bf16 | ", " (2) |"}, 18, "pretrain.svg", 2},
        {"figure_outliers", {"| seed | layer | X | rotated |", "\n| 1 | 0 | ", "\n| 2 | 3 | "}, 20, "outliers.svg", 6},
        {"figure_cosine", {"| format | rotated |", "\n| int8 | no | 0.", "\n| fp8 | yes | 0."}, 22, "cosine.svg", 18},
    };
    char *tables = scratch_path("tables"), *none = stand_in("none", "exit 7"), *no_program = text_of("TRAIN_LLAMA3='%s'", none);
    for (int i = 0; i < COUNT(scripts); i++) {
        const TableScript* s = &scripts[i];
        Run first = run_script(s->name, "", tables);
        bool rows = strstr(first.out, s->rows[0]) && strstr(first.out, s->rows[1]) && strstr(first.out, s->rows[2]);
        ok(first.code == 0 && rows, "%s prints its table: exit %d", s->name, first.code);
        if (first.code || !rows) printf("%s%s\n", first.out, first.err);
        char* results = text_at(tables, "results.jsonl");
        ok(lines_in(results) == s->cells, "%s: %d cells in results.jsonl, %d are expected", s->name, lines_in(results), s->cells);
        json_t* cell = json_loads(strrchr(results, '{'), 0, NULL);
        ok(json_object_get(cell, "table") && json_object_get(cell, "seed"), "%s: a cell is a line of JSON", s->name);
        json_decref(cell);
        if (s->picture) {
            char* picture = text_at(tables, s->picture);
            int drawn = count_of(picture, "<path class=\"line ");
            ok(!strncmp(picture, "<svg", 4) && drawn == s->lines, "%s draws %s: %d lines, %d are expected", s->name, s->picture, drawn, s->lines);
            free(picture);
        }
        Run again = run_script(s->name, no_program, tables);
        ok(again.code == 0 && !strcmp(again.out, first.out), "%s: done already, it prints the same without the program", s->name);
        free(results);
        free_run(first);
        free_run(again);
    }
    Run wider = run_script("choose_lr", "LRS=1e-4", tables);
    ok(wider.code == 0 && strstr(wider.out, "| demo | 1e-4 | ") && strstr(wider.out, "| demo | 3e-3 | "), "choose_lr compares all rates that were tried");
    ok(strstr(wider.err, "demo: 3e-3 is the first or last rate tried") != NULL, "and says that the best of one step is the highest: %s", wider.err);
    free_run(wider);
    Run more = run_script("table_finetune", "SEEDS='1 2 3'", tables);
    ok(more.code == 0 && count_of(more.err, "{\"table\"") == 2, "another seed is two more cells: %d", count_of(more.err, "{\"table\""));
    Run refused = run_script("table_finetune", "SEEDS=4 TRAIN_LLAMA3=/nowhere/train", tables);
    ok(refused.code == 2 && strstr(refused.err, "/nowhere/train: not there"), "without the program: exit %d", refused.code);
    free_run(more);
    free_run(refused);
    free(no_program);
    free(none);
    free(tables);
}

// `make` on a machine without what the build needs says so before it compiles anything.
static void setup_case(void) {
    pid_t child = start_line("exec env -u MAKEFLAGS -u MAKELEVEL make CC=/nowhere/cc");
    Run r = finish(child);
    ok(r.code == 2 && strstr(r.err, "lacks build-essential libjansson-dev") && strstr(r.err, "scripts/setup.sh installs") && !strstr(r.out, ".c"),
       "make without a compiler: exit %d %s", r.code, r.err);
    free_run(r);
    if (system("printf '#include <jansson.h>' | cc -fsyntax-only -x c - 2>/dev/null")) {
        skip("this test was built elsewhere: what the build needs is not here");
        return;
    }
    child = start_line("exec scripts/setup.sh --check");
    r = finish(child);
    ok(r.code == 0 && !*r.out && !*r.err, "and where all is there, nothing is said: exit %d %s", r.code, r.err);
    free_run(r);
}

// A run that trained and whose answers failed is not trained again.
static void cut_off_case(void) {
    char *tables = scratch_path("cut_off"), *body = text_of("[ \"$1\" = train ] && exec '%s' \"$@\"\nexit 7", binary);
    char *dies = stand_in("dies", body), *settings = text_of("RECIPES=bf16 SEEDS=1 LR=1e-3 TRAIN_LLAMA3='%s'", dies);
    Run first = run_script("table_finetune", settings, tables);
    ok(first.code == 2 && strstr(first.err, "eval"), "a cell whose answers fail ends the table: exit %d", first.code);
    Run second = run_script("table_finetune", "RECIPES=bf16 SEEDS=1 LR=1e-3", tables);
    ok(second.code == 0 && strstr(second.out, "| bf16 | "), "it goes on: exit %d", second.code);
    char* find = text_of("cat '%s'/runs/*/train.txt", tables);
    FILE* f = popen(find, "r");
    char text[16384];
    size_t bytes = fread(text, 1, sizeof text - 1, f);
    text[bytes] = 0;
    pclose(f);
    ok(count_of(text, "step   1/1") == 1 && strstr(text, "finished: "), "its training was not made again");
    free(find);
    free_run(first);
    free_run(second);
    free(settings);
    free(dies);
    free(body);
    free(tables);
}

// A run without checkpoints that ended early is made again, whatever it has left behind.
static void begins_again_case(void) {
    static const char* const scripts[] = {"choose_lr", "table_pretrain"};
    char *tables = scratch_path("begins_again"), *body = text_of("'%s' \"$@\"\nexit 7", binary);
    char *dies = stand_in("dies_late", body), *settings = text_of("RECIPES=bf16 SEEDS=1 LRS=1e-3 TRAIN_LLAMA3='%s'", dies);
    for (int i = 0; i < COUNT(scripts); i++) {
        Run first = run_script(scripts[i], settings, tables);
        ok(first.code == 2 && strstr(first.err, "failed"), "%s: a run that fails ends it: exit %d", scripts[i], first.code);
        Run second = run_script(scripts[i], "RECIPES=bf16 SEEDS=1 LRS=1e-3", tables);
        ok(second.code == 0 && strstr(second.out, "| demo |"), "%s: the same command makes the run again: exit %d %s", scripts[i], second.code,
           second.err);
        free_run(first);
        free_run(second);
    }
    free(settings);
    free(dies);
    free(body);
    free(tables);
}

static void budget_case(void) {
    char *tables = scratch_path("budget"), *slow = stand_in("slow", "exec sleep 60");
    char* settings = text_of("RECIPES=bf16 SEEDS='1 2' LR=1e-3 BUDGET=1 TRAIN_LLAMA3='%s'", slow);
    Run r = run_script("table_finetune", settings, tables);
    ok(r.code == 4 && strstr(r.err, "stopped early"), "a budget of a second: exit %d, %s", r.code, r.err);
    ok(!*r.out, "and no table is printed");
    free_run(r);
    free(settings);
    free(slow);
    free(tables);
}

static const Case kCases[] = {
    {"setup", setup_case}, {"tables", tables_case},
    {"cut_off", cut_off_case},
    {"begins_again", begins_again_case},
    {"budget", budget_case},
};

int main(int argc, char** argv) { return program_main("test_scripts", kCases, COUNT(kCases), argc, argv); }
