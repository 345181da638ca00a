// What README and docs/ promise: every command in them is parsed by the program, those that the demo's model can stand in for are run, one
// after the other in a folder for each document, and every message that docs/troubleshooting.md explains stands in the sources.
#include "program.h"

#include <dirent.h>

enum { kMostDocs = 32, kMostCommands = 64 };

// ---- the commands of a document

// What follows in an example begins with one of these; its arguments are train_llama3's.
static const char* const kLaunchers[] = {"./train_llama3", "scripts/run_host.sh", "scripts/run_hosts.sh hosts.txt", "scripts/run_slurm.sh"};

// The arguments behind the launcher in a line of an example, without a comment at its end; NULL: it is no command of ours, or it is cut
// short by dots. The caller frees them.
static char* arguments_in(const char* line) {
    for (int i = 0; i < COUNT(kLaunchers); i++) {
        const char* at = strstr(line, kLaunchers[i]);
        if (!at || (at > line && at[-1] != ' ')) continue;
        at += strlen(kLaunchers[i]);
        if (*at && *at != ' ') continue;
        char* arguments = host_strdup(at + strspn(at, " "));
        char* comment = strstr(arguments, " #");
        if (comment) *comment = 0;
        size_t n = strlen(arguments);
        while (n && arguments[n - 1] == ' ') arguments[--n] = 0;
        bool cut = !strcmp(arguments, "...") || (n > 4 && !strcmp(arguments + n - 4, " ...")) || strstr(arguments, " ... ");
        if (!cut) return arguments;
        free(arguments);
        return NULL;
    }
    return NULL;
}

typedef struct {
    char* commands[kMostCommands];   // arguments of train_llama3
    int count;
} Commands;

static void take_command(Commands* c, const char* line) {
    char* arguments = arguments_in(line);
    if (!arguments) return;
    check(c->count < kMostCommands, "a document of more than %d commands", (int)kMostCommands);
    c->commands[c->count++] = arguments;
}

// Indented lines, joined where a backslash ends them.
static void take_examples(Commands* c, char* text) {
    char* whole = (char*)host_alloc(strlen(text) + 2);
    for (char *line = text, *end; *line; line = end + 1) {
        end = line + strcspn(line, "\n");
        bool last = !*end;
        *end = 0;
        if (*whole || !strncmp(line, "    ", 4)) strcat(strcat(whole, line + strspn(line, " ")), " ");
        size_t n = strlen(whole);
        bool goes_on = n > 1 && whole[n - 2] == '\\';
        if (goes_on) whole[n - 2] = 0;
        else take_command(c, whole), whole[0] = 0;
        if (last) break;
    }
    free(whole);
}

static Commands commands_of(const char* path) {
    Commands c;
    memset(&c, 0, sizeof c);
    char* text = file_read(path, NULL);
    take_examples(&c, text);
    free(text);
    return c;
}

static void free_commands(Commands* c) {
    for (int i = 0; i < c->count; i++) free(c->commands[i]);
}

// README.md, CONTRIBUTING.md and docs/*.md; the caller frees the paths.
static int documents(char* paths[kMostDocs]) {
    char** names;
    int count = 0, in_docs = dir_names("docs", &names);
    paths[count++] = host_strdup("README.md");
    paths[count++] = host_strdup("CONTRIBUTING.md");
    paths[count++] = host_strdup("data/demo/README.md");
    for (int i = 0; i < in_docs; i++) {
        size_t n = strlen(names[i]);
        if (n < 4 || strcmp(names[i] + n - 3, ".md")) continue;
        check(count < kMostDocs, "more than %d documents", (int)kMostDocs);
        paths[count++] = path_join("docs", names[i]);
    }
    dir_names_free(names, in_docs);
    return count;
}

static void parse_case(void) {
    char* paths[kMostDocs];
    int count = documents(paths), commands = 0;
    for (int i = 0; i < count; i++) {
        Commands c = commands_of(paths[i]);
        for (int k = 0; k < c.count; k++, commands++) {
            bool is_help = !strncmp(c.commands[k], "help", 4) || !strcmp(c.commands[k], "--version");
            char* flags = text_of("%s%s", is_help ? "" : "help check ", c.commands[k]);
            Run r = run(flags);
            ok(r.code == 0, "%s: %s: %.*s", paths[i], c.commands[k], (int)strcspn(r.err, "\n"), r.err);
            free_run(r);
            free(flags);
        }
        free_commands(&c);
        free(paths[i]);
    }
    ok(commands > 30, "%d commands in %d documents", commands, count);
    char* wrong = arguments_in("RANKS=2 ./train_llama3 --modle x --data y   # a comment");
    ok(wrong && !strcmp(wrong, "--modle x --data y"), "a command is cut out of its line");
    char* flags = text_of("help check %s", wrong);
    run_refused(flags, "--modle", "a planted misspelling is noticed");
    free(flags);
    free(wrong);
}

// ---- running them

// The words of a command line; quotes hold words together. Returns how many; they point into `line`.
static int split_words(char* line, char* words[], int capacity) {
    int count = 0;
    for (char* p = line; *p;) {
        char quote = *p == '"' || *p == '\'' ? *p++ : 0;
        check(count < capacity, "a command of more than %d words", capacity);
        words[count++] = p;
        p += quote ? strcspn(p, quote == '"' ? "\"" : "'") : strcspn(p, " ");
        if (*p) *p++ = 0;
        p += strspn(p, " ");
    }
    return count;
}

typedef struct {
    const char* folder;    // of the document's runs
    const char *model, *data;
    char line[4096];       // of arguments, rewritten
    char* out;             // --out, in the folder; or NULL
    bool training, has_prompt, resumes;   // training: or export --resume, which takes the flags of the run
} Rewriting;

static void add_word(Rewriting* w, const char* word) {
    size_t used = strlen(w->line);
    int n = snprintf(w->line + used, sizeof w->line - used, " '%s'", word);
    check(n > 0 && (size_t)n < sizeof w->line - used, "a command is too long");
}

// What stands in for a flag's value here: the demo's model and data for others, unless an earlier command made it; small sizes.
static const char* value_here(Rewriting* w, const char* flag, const char* value) {
    static const char* const kSmall[][2] = {{"--seq", "128"}, {"--batch", "2"}, {"--accum", "1"}, {"--save-every", "1"}, {"--eval-every", "1"},
                                            {"--val-split", "0.3"}, {"--max-tokens", "3"}, {"--rank", "4"}};
    char* made = path_join(w->folder, value);
    bool there = path_exists(made);
    free(made);
    if (!strcmp(flag, "--model") || !strcmp(flag, "--tokenizer")) return there ? value : w->model;
    if (!strcmp(flag, "--data") || !strcmp(flag, "--val")) return w->data;
    if (!strcmp(flag, "--out") || !strcmp(flag, "--log")) value += strspn(value, "/");   // below the folder, all of them
    if (!strcmp(flag, "--out")) w->out = path_join(w->folder, value);
    for (int i = 0; i < COUNT(kSmall); i++)
        if (!strcmp(flag, kSmall[i][0])) return kSmall[i][1];
    return value;
}

static bool is_one_of(const char* word, const char* const words[], int count) {
    for (int i = 0; i < count; i++)
        if (!strcmp(word, words[i])) return true;
    return false;
}

static void rewrite(Rewriting* w, char* const words[], int count) {
    static const char* const kReplaced[] = {"--epochs", "--steps", "--warmup", "--profile"};
    bool named = count && words[0][0] != '-';
    w->training = !named || !strcmp(words[0], "train");
    w->has_prompt = !named || strcmp(words[0], "generate");
    for (int i = 0; i < count; i++) {
        bool flag = !strncmp(words[i], "--", 2), value = flag && i + 1 < count && strncmp(words[i + 1], "--", 2);
        bool dropped = is_one_of(words[i], kReplaced, COUNT(kReplaced));
        w->resumes = w->resumes || !strcmp(words[i], "--resume");
        w->has_prompt = w->has_prompt || !strcmp(words[i], "--prompt") || !strcmp(words[i], "--data");
        if (!dropped) add_word(w, words[i]);
        if (value) {
            if (!dropped) add_word(w, value_here(w, words[i], words[i + 1]));
            i++;
        }
    }
    if (!w->has_prompt) strcat(w->line, " --prompt Hello --max-tokens 3");
    w->training = w->training || w->resumes;
    if (w->training) strcat(w->line, " --steps 2 --warmup 1 --backend cpu --limit 12");
}

// Commands that the demo's model cannot stand in for, by a word of theirs.
static bool needs_more(const char* command) {
    static const char* const kWords[] = {"--preset", "--from-scratch", "help", "--version", "plan", "doctor"};
    for (int i = 0; i < COUNT(kWords); i++)
        if (strstr(command, kWords[i])) return true;
    return !*command;
}

static void run_command(const char* document, const char* folder, const char* model, const char* data, const char* command) {
    char *line = host_strdup(command), *words[64];
    Rewriting w = {folder, model, data, "", NULL, false, false, false};
    int count = split_words(line, words, COUNT(words));
    bool demo = !strstr(command, "--model") && !strstr(command, "--score") && (!count || words[0][0] == '-');
    if (!demo) {
        rewrite(&w, words, count);
        if (w.training && w.out && !w.resumes) shell("rm -rf", w.out);
        Run r = run(w.line);
        ok(r.code == 0, "%s: %s: exit %d %.*s", document, w.line, r.code, (int)strcspn(r.err, "\n"), r.err);
        free_run(r);
        free(w.out);
    }
    free(line);
}

// Each document's commands run in their order, in a folder where `tuned` and `my-adapter` are there already.
static void run_case(void) {
    char *model = realpath("data/demo/model", NULL), *own = realpath(binary, NULL), *data = scratch_path("mine.jsonl");
    char *all = file_read("data/demo/test.jsonl", NULL), *half = all, *base = scratch_path("base"), *paths[kMostDocs];
    for (int i = 0; i < 24; i++) half += strcspn(half, "\n") + 1;
    put_file(data, all, (size_t)(half - all));
    const char* before = binary;
    binary = own;
    empty_dir(base);
    char* launch = text_of("env -C %s ", base);
    launcher = launch;
    char* train = text_of("--model %s --data %s --backend cpu --seq 128 --steps 2 --warmup 1 --limit 12 --save-every 1", model, data);
    char *whole = text_of("%s --out tuned", train), *adapter = text_of("%s --adapter lora --out my-adapter", train);
    free(run_well(whole, "a model for the documents"));
    free(run_well(adapter, "an adapter for the documents"));
    int count = documents(paths);
    for (int i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "document%d", i);
        char *folder = scratch_path(name), *copy = text_of("cp -r %s", base), *there = text_of("env -C %s ", folder);
        shell(copy, folder);
        launcher = there;
        Commands c = commands_of(paths[i]);
        for (int k = 0; k < c.count; k++)
            if (!needs_more(c.commands[k])) run_command(paths[i], folder, model, data, c.commands[k]);
        free_commands(&c);
        free(there);
        free(copy);
        free(folder);
        free(paths[i]);
    }
    launcher = "";
    binary = before;
    char* const texts[] = {adapter, whole, train, launch, base, all, data, own, model};
    for (int i = 0; i < COUNT(texts); i++) free(texts[i]);
}

// ---- messages

// Whether the sources hold the words.
static bool in_sources(const char* words) {
    char* line = text_of("grep -rqF -e '%s' halo data train_llama3.cu --include=*.c --include=*.h --include=*.cu --include=*.cuh", words);
    bool found = system(line) == 0;
    free(line);
    return found;
}

static void messages_case(void) {
    char* text = file_read("docs/troubleshooting.md", NULL);
    int messages = 0;
    for (char *line = text, *end; *line; line = end + 1) {
        end = line + strcspn(line, "\n");
        if (!strncmp(line, "| `", 3)) {
            char* words = strndup(line + 3, strcspn(line + 3, "`"));
            ok(in_sources(words), "a message says: %s", words);
            free(words);
            messages++;
        }
        if (!*end) break;
    }
    ok(messages > 20, "%d messages are explained", messages);
    ok(!in_sources("this message was never " "written"), "a message that is nowhere is noticed");
    free(text);
}

// Short enough to be read.
static void length_case(void) {
    char* paths[kMostDocs];
    int count = documents(paths);
    for (int i = 0; i < count; i++) {
        char* text = file_read(paths[i], NULL);
        if (!strncmp(paths[i], "docs/", 5)) ok(lines_in(text) < 120, "%s has %d lines", paths[i], lines_in(text));
        free(text);
        free(paths[i]);
    }
}

static const Case kCases[] = {{"parse", parse_case}, {"messages", messages_case}, {"length", length_case}, {"run", run_case}};

int main(int argc, char** argv) { return program_main("test_docs", kCases, COUNT(kCases), argc, argv); }
