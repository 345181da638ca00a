// A first evening with the program: the demo that needs no flags, help and version, models of the Hugging Face cache.
#include "program.h"

#include <poll.h>

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
    ok(strstr(text, "\nno --out DIR: ") && strstr(text, "\n2 steps, --batch 8 x "), "nothing is saved; eight rows a step");
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
    ok(strstr(text, " --epochs 0.001 ") && !strstr(text, " --steps "), "--epochs takes the place of the demo's steps");
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

// The flags that demo.sh trains with, but for its seed, are those that the program takes for the demo by itself.
static void demo_flags_case(void) {
    char *script = file_read("data/demo/demo.sh", NULL), *first = strstr(script, "train_flags=("), *end = first ? strstr(first, " --seed") : NULL;
    check(end, "data/demo/demo.sh: no train_flags=(... --seed");
    first += strlen("train_flags=(");
    char* flags = text_of("%.*s --print-config", (int)(end - first), first);
    char *own = run_well("--print-config", "the demo's own flags"), *given = run_well(flags, "demo.sh's flags");
    char* other = run_well("--schedule linear --print-config", "another flag");
    ok(strcmp(own, other) != 0, "a flag that differs shows");
    ok(!strcmp(own, given), "demo.sh trains with what the program takes for the demo: %s", flags);
    free(other);
    free(given);
    free(own);
    free(flags);
    free(script);
}

static void demo_ranks_case(void) {
    if (system("mpirun --version >/dev/null 2>&1")) {
        skip("mpirun is not there");
        return;
    }
    launcher = "mpirun --allow-run-as-root --oversubscribe --bind-to none -np 4 ";
    Run r = run("--level halo2 --dtype int8 --backend cpu --steps 1 --warmup 1 --limit 12 --val-split 0.5 --max-tokens 4");
    launcher = "";
    ok(r.code == 0 && strstr(r.out, "the demo") && strstr(r.out, "--batch 2 x --accum 1 x 4 ranks"), "four ranks share the demo's batch: exit %d %s", r.code, r.err);
    free_run(r);
}

// `make install` into a folder, and the demo from there.
static void install_case(void) {
    const char* build = build_dir();
    char *stage = scratch_path("stage"), *program = path_join(build, "train_llama3");
    if (!path_exists(program)) {
        skip("%s is not there", program);
        free(program);
        free(stage);
        return;
    }
    char* command = text_of("env -u MAKEFLAGS -u MAKELEVEL make -s -o %s install BUILD=%s PREFIX=/usr DESTDIR=", program, build);
    char* line = text_of("%s'%s' >/dev/null", command, stage);
    ok(system(line) == 0, "make install DESTDIR=");
    static const char* const kInstalled[] = {"bin/train_llama3", "share/man/man1/train_llama3.1", "share/train_llama3/demo/model/model.safetensors",
                                             "share/train_llama3/demo/train.jsonl", "share/doc/train_llama3/README.md"};
    char* usr = path_join(stage, "usr");
    for (int i = 0; i < COUNT(kInstalled); i++) ok(exists_in(usr, kInstalled[i]), "%s is installed", kInstalled[i]);
    const char* own = binary;
    char* installed = path_join(usr, "bin/train_llama3");
    binary = installed;
    launcher = "env -C / ";
    char* text = run_well("--level halo2 --dtype int8 --backend cpu --steps 1 --warmup 1 --limit 6 --max-tokens 4", "the demo, installed");
    launcher = "";
    binary = own;
    ok(first_line_says(text, "/usr/share/train_llama3/demo/model"), "from the installed folder: %.*s", (int)strcspn(text, "\n"), text);
    char* const texts[] = {text, installed, usr, line, command, program, stage};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// Threads that wait sleep, unless the environment says how they wait: doctor shows what OpenMP's library was started with.
static void threads_case(void) {
    const struct {
        const char *environment, *policy;
    } starts[] = {{"-u OMP_WAIT_POLICY", "OMP_WAIT_POLICY passive"}, {"OMP_WAIT_POLICY=active", "OMP_WAIT_POLICY active"},
                  {"-u OMP_WAIT_POLICY GOMP_SPINCOUNT=1000", "OMP_WAIT_POLICY unset"}};
    for (int i = 0; i < COUNT(starts); i++) {
        char* before = text_of("env %s ", starts[i].environment);
        launcher = before;
        Run r = run("doctor");
        launcher = "";
        ok(strstr(r.out, starts[i].policy) != NULL, "env %s: %s", starts[i].environment, starts[i].policy);
        free_run(r);
        free(before);
    }
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
    int flag_count = 0, entries = count_of(text, "\n.TP\n\\fB\\-\\-");
    FlagInfo f;
    for (; options_flag_info(flag_count, &f); flag_count++) {}
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
    } places[] = {{"HF_HOME", "HF_HUB_CACHE", ""}, {"HF_HUB_CACHE", "HF_HOME", "/.."},
                {"HF_HOME", "XDG_CACHE_HOME", "/../.."}, {"XDG_CACHE_HOME", "HOME", "/../../.."}};
    const char* own_home = getenv("HOME");
    char *saved = host_strdup(own_home ? own_home : "/"), *nowhere = scratch_path("nowhere");
    setenv("HOME", nowhere, 1);
    const char* const set_by_users[] = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"};
    for (int i = 0; i < COUNT(set_by_users); i++) unsetenv(set_by_users[i]);
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

// ---- a conversation on a terminal

// The program under a pseudo-terminal; what it printed since the last line was sent is in `text`.
typedef struct {
    pid_t child;
    int terminal;
    char text[16384];
    size_t bytes;
    int halves;   // reads that ended inside a character
} Terminal;

static Terminal talk_to(const char* arguments) {
    Terminal t;
    memset(&t, 0, sizeof t);
    char* line = text_of("exec '%s' generate --backend cpu %s", binary, arguments);
    t.child = start_in_terminal(line, 80, &t.terminal);
    free(line);
    return t;
}

static bool ends_inside_character(const char* text, size_t bytes) {
    size_t tail = 0;
    while (tail < bytes && tail < 3 && ((unsigned char)text[bytes - 1 - tail] & 0xc0) == 0x80) tail++;
    if (tail == bytes) return false;
    unsigned char lead = (unsigned char)text[bytes - 1 - tail];
    size_t wanted = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : lead >= 0xc0 ? 1 : 0;
    return tail < wanted;
}

// Reads until `words` have come; false: the program ended, or said nothing for long.
static bool wait_for(Terminal* t, const char* words) {
    enum { kPatienceMs = 60000 };
    while (!strstr(t->text, words)) {
        struct pollfd waiting = {t->terminal, POLLIN, 0};
        if (poll(&waiting, 1, kPatienceMs) <= 0) return false;
        ssize_t n = read(t->terminal, t->text + t->bytes, sizeof t->text - 1 - t->bytes);
        if (n <= 0) return false;
        t->bytes += (size_t)n;
        t->text[t->bytes] = 0;
        t->halves += ends_inside_character(t->text, t->bytes);
    }
    return true;
}

static void type(Terminal* t, const char* keys) {
    t->bytes = 0;
    t->text[0] = 0;
    check(write(t->terminal, keys, strlen(keys)) == (ssize_t)strlen(keys), "the terminal takes no input");
}

// Types a line, and expects `words` and then the prompt.
static void expect(Terminal* t, const char* line, const char* words) {
    char* keys = text_of("%s\r", line);
    type(t, keys);
    ok(wait_for(t, "\n> ") && strstr(t->text, words), "%s: %s", *line ? line : "(an empty line)", words);
    free(keys);
}

static void end_talk(Terminal* t, const char* keys) {
    int status = 0;
    type(t, keys);
    wait_for(t, "never said");
    ok(waitpid(t->child, &status, 0) == t->child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s ends it", *keys == 4 ? "Ctrl-D" : "/quit");
    close(t->terminal);
}

// A model that answers everything with characters of two, three and four bytes, each byte a token.
static char* polyglot_model(void) {
    make_inputs();
    char *data = scratch_path("polyglot.jsonl"), *out = scratch_path("polyglot");
    FILE* f = fopen(data, "wb");
    for (int i = 0; i < 8; i++) fprintf(f, "{\"messages\": [{\"role\": \"user\", \"content\": \"%d\"}, {\"role\": \"assistant\", \"content\": "
                                           "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x8e\xb2\"}]}\n", i);
    check(f && !fclose(f), "%s: not written", data);
    char* flags = text_of("train --backend cpu --from-scratch %s --data %s --seq 48 --batch 8 --steps 60 --lr 2e-2 --out %s", model_dir, data, out);
    free(run_well(flags, "a model for the conversation"));
    free(flags);
    free(data);
    return out;
}

static void talk_case(void) {
    char *model = polyglot_model(), *flags = text_of("--model %s --max-tokens 12", model);
    Terminal t = talk_to(flags);
    ok(wait_for(&t, "\n> ") && strstr(t.text, "/help") && strstr(t.text, "bf16 products"), "it says what it is");
    expect(&t, "1", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x8e\xb2");
    ok(strstr(t.text, "tokens, ") && strstr(t.text, " a second"), "with tokens a second");
    expect(&t, "2", " a second");
    expect(&t, "4", "the beginning of the conversation is left out");
    ok(t.halves == 0, "no character is printed in halves: %d", t.halves);
    expect(&t, "/reset", "a new conversation");
    expect(&t, "/system x", "the system text is set");
    expect(&t, "3", " a second");
    expect(&t, "/nonsense", "/nonsense is no command");
    expect(&t, "a line that is much longer than this model's context of sixty-four tokens", "room for");
    expect(&t, "/help", "/system TEXT");
    type(&t, "\x03");
    ok(wait_for(&t, "\n> ") && strstr(t.text, "ends"), "Ctrl-C at the prompt says how to end");
    end_talk(&t, "/quit\r");
    free(flags);

    run_refused("generate --model data/demo/model </dev/null", "--prompt|--data|terminal", "without a terminal a prompt has to be named");
    free(model);
}

// Ctrl-C stops an answer and not the program.
static void stop_case(void) {
    // Nearly uniform sampling hardly meets an end token: at this seed the answer goes on for all of its tokens, unless it is stopped.
    Terminal t = talk_to("--model data/demo/model --level halo2 --dtype int8 --temperature 20 --seed 3 --max-tokens 480");
    ok(wait_for(&t, "\n> ") && strstr(t.text, "halo2-int8 products"), "under a recipe");
    type(&t, "Hello\r");
    ok(wait_for(&t, "Hello\r\n"), "the terminal echoes");
    size_t echoed = t.bytes;
    struct pollfd answering = {t.terminal, POLLIN, 0};
    if (t.bytes == echoed) poll(&answering, 1, 60000);
    check(write(t.terminal, "\x03", 1) == 1, "the terminal takes no input");
    ok(wait_for(&t, "; stopped)") && wait_for(&t, "\n> "), "Ctrl-C stops the answer");
    expect(&t, "/reset", "a new conversation");
    end_talk(&t, "\x04");
}

// A model without a chat template goes on with the text.
static void plain_case(void) {
    make_inputs();
    char *bare = scratch_path("bare"), *out = scratch_path("bare-out");
    empty_dir(bare);
    char *copy = text_of("cp -r %s/.", model_dir);
    char* flags = text_of("train --backend cpu --from-scratch %s --data %s --chat none --seq 32 --steps 1 --out %s", bare, data_path, out);
    shell(copy, bare);
    put_text(bare, "tokenizer_config.json", "{\"eos_token\": \"<|end|>\"}\n");
    free(run_well(flags, "a model without a template"));
    free(flags);
    flags = text_of("--model %s --max-tokens 4", out);
    Terminal t = talk_to(flags);
    ok(wait_for(&t, "\n> ") && strstr(t.text, "no chat template: your text is continued plainly"), "a line says so");
    expect(&t, "1+2=", " a second");
    expect(&t, "/system x", "no system text");
    end_talk(&t, "/quit\r");
    free(flags);
    free(copy);
    free(out);
    free(bare);
}

static const Case kCases[] = {
    {"demo", demo_case}, {"demo_flags", demo_flags_case}, {"demo_ranks", demo_ranks_case}, {"install", install_case}, {"help", help_case},
    {"threads", threads_case}, {"check", check_case}, {"hub", hub_case}, {"talk", talk_case}, {"stop", stop_case}, {"plain", plain_case},
};

int main(int argc, char** argv) { return program_main("test_everyday", kCases, COUNT(kCases), argc, argv); }
