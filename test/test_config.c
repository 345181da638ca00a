// Files of flags: the TOML that is read and refused, what --config does to a command, and the file that a run leaves beside its model.
#include "../data/toml.h"
#include "program.h"

// ---- TOML

static void values_case(void) {
    const struct {
        const char *text, *value;
        TomlType type;
    } values[] = {
        {"k = \"a b\"", "a b", TOML_STRING},
        {"k=\"\\\"\\\\\\t\\u00e9\\U0001F600\"# c", "\"\\\t\xc3\xa9\xf0\x9f\x98\x80", TOML_STRING},
        {"k = 'C:\\dir' # c", "C:\\dir", TOML_STRING},
        {"k = ''", "", TOML_STRING},
        {"k = 0", "0", TOML_INTEGER},
        {"\n\n  k\t=\t+1_000  ", "1000", TOML_INTEGER},
        {"k = -3\r\n", "-3", TOML_INTEGER},
        {"k = 1e-5", "1e-5", TOML_FLOAT},
        {"k = -0.5E+2", "-0.5E2", TOML_FLOAT},
        {"\xef\xbb\xbfk = true", "true", TOML_BOOLEAN},
        {"k = false#", "false", TOML_BOOLEAN},
        {"k = [\"a\", 'b' , # c\n\n \"c d\",\n]", "a,b,c d", TOML_STRINGS},
        {"k = []", "", TOML_STRINGS},
    };
    char* path = scratch_path("values.toml");
    for (int i = 0; i < COUNT(values); i++) {
        put_file(path, values[i].text, strlen(values[i].text));
        Toml t = toml_read(path);
        ok(t.count == 1 && !strcmp(t.entries[0].key, "k") && t.entries[0].type == values[i].type && !strcmp(t.entries[0].value, values[i].value),
           "%s", values[i].value);
        toml_free(&t);
    }
    const char text[] = "# a file\r\n\r\na-1 = 1\nB_2 = [ ]\n   \nc = \"x\"";
    put_file(path, text, sizeof text - 1);
    Toml t = toml_read(path);
    ok(t.count == 3 && t.entries[0].line == 3 && t.entries[1].line == 4 && t.entries[2].line == 6, "keys in the lines that they stand in");
    toml_free(&t);
    put_file(path, "", 0);
    t = toml_read(path);
    ok(t.count == 0, "an empty file has none");
    toml_free(&t);
    free(path);
}

static void read_toml(void* path) { toml_read((const char*)path); }

static void refused_case(void) {
    const struct {
        const char *text, *words;
    } bad[] = {
        {"a = 1\nb", "toml:2:2: an = is expected"},       {"a = 1\na = 2", "toml:2:1: a stands in line 1"},
        {"[train]\na = 1", "toml:1:1: a table"},           {"a.b = 1", "toml:1:2: a dotted key"},
        {"\"a\" = 1", "toml:1:1: a key stands without"},   {"a = ", "toml:1:5: '' is no value"},
        {"a = yes", "toml:1:5: 'yes' is no value"},        {"a = 1 2", "toml:1:7: the end of the line"},
        {"a = 01", "'01' is no value"},                    {"a = 0x1f", "'0x1f' is no value"},
        {"a = 1__0", "'1__0' is no value"},                {"a = inf", "'inf' is no value"},
        {"a = 2026-11-30", "'2026-11-30' is no value"},    {"a = 1.", "'1.' is no value"},
        {"a = trueish", "'trueish' is no value"},          {"a = \"x", "toml:1:7: the string does not end"},
        {"a = \"x\ny\"", "toml:1:7: the string does not"}, {"a = \"\"\"x\"\"\"", "several lines"},
        {"a = \"\\q\"", "toml:1:7: an unknown escape"},    {"a = \"\\u12\"", "4 hexadecimal digits"},
        {"a = \"\\uD800\"", "no character"},               {"a = \"\\u0000\"", "no character"},
        {"a = {b = 1}", "inline table"},                   {"a = [1]", "an array's strings"},
        {"a = [\"b\" \"c\"]", "a comma or ]"},             {"a = [\"b,c\"]", "a string with a comma"},
        {"a = [\"\"]", "an empty string"},                 {"a = [\"b\",", "an array's strings"},
        {"= 1", "toml:1:1: a line of the form"},           {"a = \"\x01\"", "control character"},
        {"# \x02", "control character"},                   {"a = \"\xff\"", "is not UTF-8 at byte 5"},
    };
    char* path = scratch_path("x.toml");
    for (int i = 0; i < COUNT(bad); i++) {
        put_file(path, bad[i].text, strlen(bad[i].text));
        expect_exit(read_toml, path, 2, bad[i].words, bad[i].words);
    }
    put_file(path, "a = \"x\0y\"", 9);
    expect_exit(read_toml, path, 2, "has a NUL at byte 6", "a NUL");
    free(path);
}

// ---- --config

static char* file_at(const char* name, const char* text) {
    char* path = scratch_path(name);
    put_file(path, text, strlen(text));
    return path;
}

// What a command prints is a file that gives the same command.
static void round_trip_case(void) {
    make_inputs();
    char* file = scratch_path("round.toml");
    const char* const commands[] = {
        "train --model a --data b",
        "train --preset llama3-8b --data 'a.jsonl:0.3,b.jsonl' --recipe halo2-int8 --lr 1.2345678901e-5 --steps 7 --pack --zero 2 --warmup 3 --qfsdp "
        "--adapter lora --alpha 0.1 --out 'a \"b\"\\c' --resume-from x --val-split 0.05",
        "train --from-scratch a --data b --level halo1 --dtype fp6 --epochs 2.5 --pack off --target q,v --adapter lora --val c --date 2026-11-30",
        "eval --model a --data b --batch 3 --metric gsm8k",
        "generate --model a --prompt 'x\ty' --temperature 0.7",
        "bench --preset llama3-8b --layers 2 --profile",
        "export --model a --gguf b --gguf-type q8_0",
        "inspect --model a --data b --json",
        "plan --preset llama3-8b --gpus 4 --gpu-gb 79.6",
    };
    for (int i = 0; i < COUNT(commands); i++) {
        char *print = text_of("%s --print-config", commands[i]), *first = run_well(print, commands[i]);
        put_file(file, first, strlen(first));
        char *reading = text_of("%.*s --config %s --print-config", (int)strcspn(commands[i], " "), commands[i], file);
        char *second = run_well(reading, "read back");
        ok(lines_in(first) > 8 && !strcmp(first, second), "%s: reads back to the same values", commands[i]);
        free(second);
        free(reading);
        free(first);
        free(print);
    }
    char* rate = run_well("train --model a --data b --adapter lora --print-config", "an adapter without --lr");
    ok(strstr(rate, "lr = 0.0003\n") != NULL, "  an adapter learns at 3e-4 unless --lr is given");
    free(rate);
    rate = run_well("train --model a --data b --adapter lora --lr 1e-5 --print-config", "an adapter with --lr");
    ok(strstr(rate, "lr = 1e-05\n") != NULL, "  a rate that is given stays");
    free(rate);
    char* text = run_well("train --model a --data b --lr 2e-5 --pack --warmup auto --adapter lora --target q,v --print-config", "--print-config");
    ok(strstr(text, "\nlr = 2e-05\n") && strstr(text, "\npack = true\n") && strstr(text, "\nwarmup = \"auto\"\n") && strstr(text, "\ntarget = \"q,v\"\n") &&
       strstr(text, "\nmodel = \"a\"\n") && strstr(text, "\nqfsdp = false\n") && !strstr(text, "\npreset") && !strstr(text, "\nconfig"),
       "numbers, switches and words as TOML has them; what is unset is not there");
    free(text);
    free(file);
}

// Whether `command` ends up with all of `lines` (separated by |) among its values, and with none of `not_lines`.
static void check_values(const char* command, const char* lines, const char* not_lines, const char* name) {
    char *print = text_of("%s --print-config", command), *text = run_well(print, name), *list = host_strdup(lines), *not_list = host_strdup(not_lines);
    bool right = true;
    for (char* word = strtok(list, "|"); word; word = strtok(NULL, "|")) {
        char* line = text_of("\n%s\n", word);
        right = right && strstr(text, line);
        free(line);
    }
    for (char* word = strtok(not_list, "|"); word; word = strtok(NULL, "|")) {
        char* line = text_of("\n%s", word);
        right = right && !strstr(text, line);
        free(line);
    }
    if (!ok(right, "%s", name)) fputs(text, stdout);
    free(not_list);
    free(list);
    free(text);
    free(print);
}

static void flags_win_case(void) {
    char* file = file_at("run.toml", "model = \"m\"   # a comment\ndata = [\"a.jsonl:0.3\", \"b.jsonl\"]\nlevel = \"halo2\"\ndtype = \"int8\"\n"
                                     "lr = 3e-4\nsteps = 100\nqfsdp = true\npack = \"on\"\n");
    char* command = text_of("train --config %s", file);
    check_values(command, "model = \"m\"|data = \"a.jsonl:0.3,b.jsonl\"|level = \"halo2\"|lr = 0.0003|qfsdp = true|pack = true|seq = 512", "epochs",
                 "a file's values, and the defaults of the others");
    free(command);
    const struct {
        const char *more, *lines, *not_lines;
    } wins[] = {{"--lr 1 --pack off", "lr = 1|pack = false|steps = 100", ""},
                {"--recipe halo0-fp8", "recipe = \"halo0-fp8\"", "level|dtype"},
                {"--epochs 2", "epochs = 2", "steps"},
                {"--preset llama3-8b", "preset = \"llama3-8b\"", "model"},
                {"--level halo1", "level = \"halo1\"|dtype = \"int8\"", "recipe"}};
    for (int i = 0; i < COUNT(wins); i++) {
        command = text_of("train %s --config %s", wins[i].more, file);
        check_values(command, wins[i].lines, wins[i].not_lines, wins[i].more);
        free(command);
    }
    free(file);
}

static void bad_files_case(void) {
    const struct {
        const char *text, *words;
    } bad[] = {
        {"lrr = 1e-5", "bad.toml:1: lrr: no such key|did you mean lr?"},
        {"\n\nsave_every = 5", "bad.toml:3: save_every|did you mean save-every?"},
        {"zzzzzzzz = 5", "bad.toml:1: zzzzzzzz: no such key"},
        {"lr = \"1e-5\"", "bad.toml:1: lr = \"1e-5\": a number, without quotes"},
        {"lr = -1", "bad.toml:1: lr = -1: a number >= 0"},
        {"steps = 1.5", "bad.toml:1: steps = 1.5: a whole number"},
        {"steps = 3000000000", "bad.toml:1: steps = 3000000000: a whole number from 0"},
        {"steps = \"auto\"", "bad.toml:1: steps = \"auto\": a whole number"},
        {"qfsdp = \"yes\"", "bad.toml:1: qfsdp = \"yes\": true or false"},
        {"model = 3", "bad.toml:1: model = 3: text in quotes"},
        {"schedule = \"cosin\"", "bad.toml:1: schedule = cosin: must be one of linear|cosine"},
        {"schedule = true", "bad.toml:1: schedule = true: a word in quotes"},
        {"pack = 3", "bad.toml:1: pack = 3: true, false"},
        {"prompt = \"x\"", "bad.toml:1: prompt|'train' does not take it"},
        {"config = \"x\"", "bad.toml:1: config stands on the command line only"},
        {"level = \"halo2\"\nrecipe = \"bf16\"", "--level beside --recipe bf16"},
        {"[train]", "bad.toml:1:1: a table"},
        {"lr = 1\nlr = 2", "bad.toml:2:1: lr stands in line 1"},
    };
    for (int i = 0; i < COUNT(bad); i++) {
        char *file = file_at("bad.toml", bad[i].text), *command = text_of("train --config %s --print-config", file);
        run_refused(command, bad[i].words, bad[i].words);
        free(command);
        free(file);
    }
    run_refused("train --config /nonexistent.toml", "/nonexistent.toml|No such file", "a file that is not there");
    run_refused("train --config", "--config: needs a value", "--config without a file");
}

// The run's own file gives the same weights again.
static void beside_the_model_case(void) {
    make_inputs();
    char *out = scratch_path("noted"), *again = scratch_path("again");
    char* flags = text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps 3 --lr 1.23456789e-2 --level halo2 --dtype int8 --backend cpu "
                          "--out %s", model_dir, data_path, out);
    char *print = text_of("%s --print-config", flags), *printed = run_well(print, "--print-config");
    free(run_well(flags, "a run"));
    char* noted = text_at(out, "train_llama3.toml");
    ok(!strcmp(noted, printed), "train_llama3.toml beside the model is what --print-config prints");
    char* second = text_of("--config %s/train_llama3.toml --out %s", out, again);
    free(run_well(second, "the run again, from its file"));
    ok(same_files(out, again, "model.safetensors"), "it gives the same weights");
    free(second);
    free(noted);
    free(printed);
    free(print);
    free(flags);
    free(again);
    free(out);
}

static const Case kCases[] = {{"values", values_case},       {"refused", refused_case},     {"round_trip", round_trip_case},
                              {"flags_win", flags_win_case}, {"bad_files", bad_files_case}, {"beside_the_model", beside_the_model_case}};

int main(int argc, char** argv) { return program_main("test_config", kCases, COUNT(kCases), argc, argv); }
