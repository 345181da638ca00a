// A first evening with the program: the demo that needs no flags, help and version, models of the Hugging Face cache.
#include "program.h"

#include "../halo/options.h"
#include "../halo/version.h"

// ---- the demo

static int first_line_says(const char* text, const char* words) {
    char* line = strndup(text, strcspn(text, "\n"));
    int found = strstr(line, words) != NULL;
    free(line);
    return found;
}

// Without --model and --data: the demo, from any folder and through a link; its global batch is the same for any number of ranks.
static void demo_case(void) {
    char* text = run_well("--level halo2 --dtype int8 --backend cpu --steps 2 --warmup 1 --limit 12 --max-tokens 4", "the demo");
    ok(first_line_says(text, "the demo"), "the first line says so: %.*s", (int)strcspn(text, "\n"), text);
    ok(strstr(text, "\nno --out DIR: ") && strstr(text, "batch=8"), "nothing is saved; eight rows a step");
    ok(strstr(text, "2/2 ") && strstr(text, "\nexact: "), "it trains, and answers its test");
    free(text);

    char *link = scratch_path("linked"), *absolute = realpath(binary, NULL), *out = scratch_path("demo");
    check(absolute && !symlink(absolute, link), "%s: no link", link);
    const char* own = binary;
    char* flags = text_of("--backend cpu --epochs 0.001 --warmup 0 --out %s", out);
    binary = link;
    launcher = "env -C / ";
    text = run_well(flags, "the demo through a link, from another folder");
    launcher = "";
    binary = own;
    ok(strstr(text, "steps=0") && strstr(text, "epochs=0.001"), "--epochs takes the place of the demo's steps");
    ok(exists_in(out, "model.safetensors") && exists_in(out, "tokenizer.json"), "with --out the model is saved");
    free(text);
    free(flags);
    run_refused("--backend cpu --val-metric viggo --chat alpaca", "--chat alpaca", "flags are checked in the demo too");

    char* lone = scratch_path("lone");
    empty_dir(lone);
    char* copy = text_of("cp '%s'", absolute);
    shell(copy, lone);
    char* alone = path_join(lone, strrchr(absolute, '/') + 1);
    binary = alone;
    run_refused("", "the demo was meant|share/train_llama3/demo|--model", "a program that the demo has not come with");
    binary = own;
    free(alone);
    free(copy);
    free(lone);
    free(out);
    free(absolute);
    free(link);
}

static void demo_ranks_case(void) {
    if (system("mpirun --version >/dev/null 2>&1")) {
        skip("mpirun is not there");
        return;
    }
    launcher = "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 4 ";
    Run r = run("--level halo2 --dtype int8 --backend cpu --steps 1 --warmup 1 --limit 12 --val-split 0.5 --max-tokens 4");
    launcher = "";
    ok(r.code == 0 && strstr(r.out, "the demo") && strstr(r.out, "batch=2"), "four ranks share the demo's batch: exit %d %s", r.code, r.err);
    free_run(r);
}

// ---- what it says of itself

static void help_case(void) {
    char* text = run_well("help", "help");
    ok(lines_in(text) == 10 && strstr(text, "--level halo2 --dtype int8") && strstr(text, "generate --model"), "help: ten lines, %d",
       lines_in(text));
    free(text);
    text = run_well("--version", "--version");
    ok(!strncmp(text, "train_llama3 " HALO_VERSION " (CPU", 18 + strlen(HALO_VERSION)) && lines_in(text) == 1, "--version: %s", text);
    free(text);
    char *eval = run_well("help eval", "help eval"), *flags = run_well("eval --help", "eval --help");
    ok(!strcmp(eval, flags), "help eval is eval --help");
    free(eval);
    free(flags);
    run_refused("help frobnicate", "frobnicate|no such command", "help of an unknown command");

    text = run_well("help man", "help man");
    int flag_count = 0, entries = 0;
    FlagInfo f;
    for (; options_flag_info(flag_count, &f); flag_count++) {}
    for (const char* p = text; (p = strstr(p, "\n.TP\n\\fB\\-\\-")) != NULL; p++) entries++;
    ok(flag_count > 50 && entries == flag_count, "the manual page has every row of the table of flags: %d of %d", entries, flag_count);
    free(text);
}

// The parse-only path that checks the commands of README and docs.
static void check_case(void) {
    free(run_well("help check --level halo2 --dtype int8", "help check"));
    free(run_well("help check eval --model nowhere --data x --metric viggo", "help check eval: no file is looked at"));
    run_refused("help check --modle x", "--modle|did you mean", "help check of a misspelt flag");
    run_refused("help check eval --model x", "eval|--data", "help check asks the rules between flags");
}

// ---- the Hugging Face cache

// A cache with the tiny model as org/tiny, as huggingface_hub lays it out: refs/main names the snapshot.
static void fill_cache(const char* hub) {
    char *repository = path_join(hub, "models--org--tiny"), *refs = path_join(repository, "refs"),
         *snapshot = path_join(repository, "snapshots/0123abcd"), *stale = path_join(repository, "snapshots/ffff0000");
    empty_dir(refs);
    empty_dir(snapshot);
    empty_dir(stale);
    put_text(refs, "main", "0123abcd");
    char* copy = text_of("cp -r %s/.", model_dir);
    shell(copy, snapshot);
    free(copy);
    free(stale);
    free(snapshot);
    free(refs);
    free(repository);
}

static void hub_case(void) {
    make_inputs();
    char *home = scratch_path("home"), *hub = path_join(home, ".cache/huggingface/hub");
    fill_cache(hub);
    const struct {
        const char *unset, *variable, *below;   // below: of the cache's folder
    } places[] = {{"HF_HOME", "HF_HUB_CACHE", ""}, {"HF_HUB_CACHE", "HF_HOME", "/.."}, {"HF_HOME", "XDG_CACHE_HOME", "/../.."}, {"XDG_CACHE_HOME", "HOME", "/../../.."}};
    const char* own_home = getenv("HOME");
    char *saved = host_strdup(own_home ? own_home : "/"), *nowhere = scratch_path("nowhere");
    setenv("HOME", nowhere, 1);
    char* flags = text_of("train --from-scratch org/tiny/ --data %s --chat none --seq 32 --steps 1", data_path);
    run_refused(flags, "org/tiny/|nowhere/.cache/huggingface/hub|hf download org/tiny", "a model that is not in the cache");
    for (int i = 0; i < COUNT(places); i++) {
        unsetenv(places[i].unset);
        char* place = text_of("%s%s", hub, places[i].below);
        setenv(places[i].variable, place, 1);
        char* text = run_well(flags, places[i].variable);
        ok(strstr(text, "/snapshots/0123abcd"), "%s: the snapshot of refs/main is trained", places[i].variable);
        free(text);
        free(place);
    }
    unsetenv("HF_HOME");
    free(flags);
    flags = text_of("train --from-scratch org/other --data %s --chat none --seq 32 --steps 1", data_path);
    run_refused(flags, "--from-scratch org/other|hf download org/other", "another name");
    free(flags);
    setenv("HOME", saved, 1);
    free(saved);
    free(nowhere);
    free(hub);
    free(home);
}

static const Case kCases[] = {
    {"demo", demo_case}, {"demo_ranks", demo_ranks_case}, {"help", help_case}, {"check", check_case}, {"hub", hub_case},
};

int main(int argc, char** argv) { return program_main("test_everyday", kCases, COUNT(kCases), argc, argv); }
