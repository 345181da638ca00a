// The program as a child process, on a tiny model with random weights and tiny data that are made here.
//
// The binary is $TRAIN_LLAMA3 (./train_llama3 if unset); the children run with two OpenMP threads.
#ifndef TEST_PROGRAM_H
#define TEST_PROGRAM_H

#include "../data/files.h"
#include "../data/json.h"
#include "scratch.h"
#include "tokenizer_file.h"

#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>

static const char* binary;
static const char* launcher = "";   // "mpirun ... " in front of it

// Below the test's directory; make_inputs writes them before the first case that reads them.
static char *model_dir, *data_path, *val_path;

// ---- running the program

typedef struct {
    int code;           // of the exit; -1 if a signal ended it
    char *out, *err;    // what it printed
} Run;

__attribute__((unused))
static void free_run(Run r) {
    free(r.out);
    free(r.err);
}

__attribute__((unused))
static void read_stream(const char* name, char** text) {
    char* path = scratch_path(name);
    *text = file_read(path, NULL);
    free(path);
}

// Starts a line of shell; its streams go into files.
static pid_t start_line(const char* line) {
    char *out = scratch_path("stdout"), *err = scratch_path("stderr");
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (!freopen(out, "w", stdout) || !freopen(err, "w", stderr)) _exit(99);
        execl("/bin/sh", "sh", "-c", line, (char*)NULL);
        _exit(99);
    }
    free(out);
    free(err);
    return child;
}

// Starts a line of shell in a terminal of its own, 40 lines high; what it reads and prints passes through *terminal.
__attribute__((unused))
static pid_t start_in_terminal(const char* line, int columns, int* terminal) {
    struct winsize size = {40, (unsigned short)columns, 0, 0};
    fflush(stdout);
    pid_t child = forkpty(terminal, NULL, NULL, &size);
    check(child >= 0, "no pseudo-terminal");
    if (child == 0) {
        execl("/bin/sh", "sh", "-c", line, (char*)NULL);
        _exit(99);
    }
    return child;
}

// Starts the program with these arguments.
static pid_t start(const char* arguments) {
    char* line = (char*)host_alloc(strlen(arguments) + 1024);
    sprintf(line, "exec %s'%s' %s", launcher, binary, arguments);
    pid_t child = start_line(line);
    free(line);
    return child;
}

__attribute__((unused))
static Run finish(pid_t child) {
    int status = 0;
    waitpid(child, &status, 0);
    Run r = {WIFEXITED(status) ? WEXITSTATUS(status) : -1, NULL, NULL};
    read_stream("stdout", &r.out);
    read_stream("stderr", &r.err);
    return r;
}

static Run run(const char* arguments) { return finish(start(arguments)); }

// "text %s ..." in memory of its own.
__attribute__((unused, format(printf, 1, 2)))
static char* text_of(const char* format, ...) {
    char text[4096];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    check(n >= 0 && (size_t)n < sizeof text, "text_of: %d bytes", n);
    return host_strdup(text);
}

// Whether `flags` names `flag` ("--seq").
__attribute__((unused))
static bool names_flag(const char* flags, const char* flag) {
    size_t n = strlen(flag);
    for (const char* p = flags; (p = strstr(p, flag)) != NULL; p += n)
        if ((p == flags || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return true;
    return false;
}

// The flags of `base` that `more` does not name, and then `more`; frees base. No value in `base` holds a space.
__attribute__((unused))
static char* with_flags(char* base, const char* more) {
    char* all = (char*)host_alloc(strlen(base) + strlen(more) + 2);
    bool dropping = false;
    for (char* word = strtok(base, " "); word; word = strtok(NULL, " ")) {
        if (!strncmp(word, "--", 2)) dropping = names_flag(more, word);
        if (!dropping) strcat(strcat(all, word), " ");
    }
    free(base);
    return strcat(all, more);
}

// A run that has to succeed and say nothing on stderr. Returns its stdout.
__attribute__((unused))
static char* run_well(const char* arguments, const char* name) {
    Run r = run(arguments);
    ok(r.code == 0 && !*r.err, "%s: exit %d %s", name, r.code, r.err);
    free(r.err);
    return r.out;
}

// A run that has to end with code 2 and one line on stderr that holds all of `words` (separated by |).
__attribute__((unused))
static void run_refused(const char* arguments, const char* words, const char* name) {
    Run r = run(arguments);
    const char* newline = strchr(r.err, '\n');
    bool right = r.code == 2 && newline && newline[1] == 0 && !strncmp(r.err, "train_llama3: ", 14);
    char* list = host_strdup(words);
    for (char* word = strtok(list, "|"); word; word = strtok(NULL, "|")) right = right && strstr(r.err, word);
    ok(right, "%s: exit %d, %.*s", name, r.code, (int)strcspn(r.err, "\n"), r.err);
    if (!right) printf("  expected: exit 2 and one line with %s\n", words);
    free(list);
    free_run(r);
}

// ---- files

__attribute__((unused))
static char* text_at(const char* dir, const char* name) {
    char *path = path_join(dir, name), *text = file_read(path, NULL);
    free(path);
    return text;
}

__attribute__((unused))
static bool same_files(const char* dir_a, const char* dir_b, const char* name) {
    char *path_a = path_join(dir_a, name), *path_b = path_join(dir_b, name);
    bool same = false;
    if (path_exists(path_a) && path_exists(path_b)) {
        size_t bytes_a, bytes_b;
        char *a = file_read(path_a, &bytes_a), *b = file_read(path_b, &bytes_b);
        same = bytes_a == bytes_b && !memcmp(a, b, bytes_a);
        free(a);
        free(b);
    }
    free(path_a);
    free(path_b);
    return same;
}

__attribute__((unused))
static void put_text(const char* dir, const char* name, const char* text) {
    char* path = path_join(dir, name);
    put_file(path, text, strlen(text));
    free(path);
}

__attribute__((unused))
static bool exists_in(const char* dir, const char* name) {
    char* path = path_join(dir, name);
    bool there = path_exists(path);
    free(path);
    return there;
}

__attribute__((unused))
static int lines_in(const char* text) {
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

// DIR/log.jsonl without what depends on the clock.
__attribute__((unused))
static char* log_of(const char* dir) {
    char *text = text_at(dir, "log.jsonl"), *to = text;
    for (char *line = text, *end; *line; line = end + 1) {
        end = strchr(line, '\n');
        char* clock = strstr(line, ", \"tokens_per_second\"");
        size_t keep = (size_t)((clock && clock < end ? clock : end) - line);
        memmove(to, line, keep);
        to += keep;
        *to++ = '\n';
    }
    *to = 0;
    return text;
}

__attribute__((unused))
static bool same_logs(const char* dir_a, const char* dir_b) {
    char *a = log_of(dir_a), *b = log_of(dir_b);
    bool same = *a && !strcmp(a, b);
    free(a);
    free(b);
    return same;
}

// ---- the model directory: bytes as tokens, then ChatML's two and one that ends texts

static const char kConfig[] =
    "{\n  \"model_type\":   \"llama\",\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"torch_dtype\": \"float32\",\n"
    "  \"hidden_size\": 32, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,\n"
    "  \"intermediate_size\": 64, \"vocab_size\": 264, \"max_position_embeddings\": 64, \"hidden_act\": \"silu\",\n"
    "  \"rms_norm_eps\": 1e-05, \"rope_theta\": 10000.0, \"tie_word_embeddings\": false, \"eos_token_id\": 258,\n"
    "  \"a key of somebody else's\": {\"kept\": true}\n}\n";
static const char kGenerationConfig[] = "{\"eos_token_id\": [258, 257]}\n";
static const char kTokenizerConfig[] =
    "{\"eos_token\": \"<|end|>\", \"chat_template\": \"{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}"
    "<|im_end|>\\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}\"}\n";

__attribute__((unused))
static void write_tokenizer(const char* dir) {
    static const char* const kSpecial[] = {"<|im_start|>", "<|im_end|>", "<|end|>"};
    char* path = path_join(dir, "tokenizer.json");
    write_byte_tokenizer(path, kSpecial, COUNT(kSpecial), 0, false);
    free(path);
}

__attribute__((unused))
static void write_data(const char* path, int first, int count) {
    FILE* f = fopen(path, "wb");
    check(f, "%s: not written", path);
    for (int i = first; i < first + count; i++)
        fprintf(f, "{\"prompt\": \"%d+%d=\", \"completion\": \"%d\"}\n", i, 2 * i + 1, 3 * i + 1);
    check(fclose(f) == 0, "%s: not written", path);
}

__attribute__((unused))
static void make_inputs(void) {
    if (model_dir) return;
    model_dir = scratch_path("model");
    data_path = scratch_path("data.jsonl");
    val_path = scratch_path("val.jsonl");
    empty_dir(model_dir);
    put_text(model_dir, "config.json", kConfig);
    put_text(model_dir, "generation_config.json", kGenerationConfig);
    put_text(model_dir, "tokenizer_config.json", kTokenizerConfig);
    write_tokenizer(model_dir);
    write_data(data_path, 10, 22);
    write_data(val_path, 70, 6);
}

static int program_main(const char* name, const Case* cases, int count, int argc, char** argv) {
    const char* named = getenv("TRAIN_LLAMA3");
    binary = named && *named ? named : "./train_llama3";
    check(access(binary, X_OK) == 0, "%s: not there; build it with make, or name it in TRAIN_LLAMA3", binary);
    binary = realpath(binary, NULL);   // some cases change the directory
    setenv("OMP_WAIT_POLICY", "passive", 1);
    setenv("OMP_NUM_THREADS", "2", 1);
    return scratch_main(name, cases, count, argc, argv);
}

#endif
