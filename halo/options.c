// The command line; see options.h.
#include "options.h"

#include <errno.h>
#include <math.h>

#include "llama3.h"

typedef enum { TEXT, INTEGER, NUMBER, SWITCH } FlagType;

typedef struct {
    const char* name;
    FlagType type;
    size_t at;             // of the field in Options
    int commands;
    bool defines_run;      // a resumed run must have it as it was
    const char* fallback;
    const char* choices;   // "a|b|c", or in capitals what the value is
    const char* help;
} Flag;

#define AT(field) offsetof(Options, field)
static const Flag kFlags[] = {
    {"model", TEXT, AT(model), kAll, true, NULL, "DIR", "Hugging Face directory: config.json, *.safetensors, tokenizer.json"},
    {"preset", TEXT, AT(preset), TRAIN | BENCH, true, NULL, "NAME", "a published size with random weights, instead of --model"},
    {"from-scratch", TEXT, AT(from_scratch), TRAIN | BENCH, true, NULL, "DIR", "config.json (and tokenizer) of DIR with random weights"},
    {"tokenizer", TEXT, AT(tokenizer), TRAIN | EVAL | GENERATE, true, NULL, "DIR", "where tokenizer.json is, if not with the model"},
    {"layers", INTEGER, AT(layers), TRAIN | BENCH, true, "0", "N", "cut the model to its first N layers"},
    {"data", TEXT, AT(data), TRAIN | EVAL | GENERATE, true, NULL, "FILE", ".jsonl (messages | prompt+completion | instruction+output | question+answer | text) or ViGGO .csv"},
    {"val", TEXT, AT(val), TRAIN, false, NULL, "FILE", "evaluate on this file as well"},
    {"chat", TEXT, AT(chat), TRAIN | EVAL | GENERATE, true, "auto", "auto|llama3|chatml|none", "chat template; auto reads the model's"},
    {"seq", INTEGER, AT(seq), TRAIN | EVAL | BENCH, true, "512", "N", "tokens in a row"},
    {"pack", SWITCH, AT(pack), TRAIN | EVAL, true, NULL, NULL, "several examples in a row, hidden from each other"},
    {"long", TEXT, AT(long_policy), TRAIN | EVAL, true, "truncate", "truncate|skip", "examples above --seq: cut from the prompt side, or left out"},
    {"train-on-prompt", SWITCH, AT(train_on_prompt), TRAIN | EVAL, true, NULL, NULL, "score the prompt's tokens too"},
    {"level", TEXT, AT(level), TRAIN | BENCH, true, "bf16", "bf16|halo0|halo1|halo2|haloi|switchback|jetfire", "how products are quantized"},
    {"dtype", TEXT, AT(dtype), TRAIN | BENCH, true, "auto", "auto|int8|fp8|fp6|bf16", "the format they are quantized to; auto: what the level is meant for (halo0: fp8, halo1: fp6, the others: int8)"},
    {"recipe", TEXT, AT(recipe), TRAIN | BENCH, true, NULL, "NAME", "a row of the recipe table, instead of --level and --dtype"},
    {"token-block", INTEGER, AT(token_block), TRAIN | BENCH, true, "0", "N", "block-diagonal token Hadamard of order N; 0: the full one"},
    {"head-dtype", TEXT, AT(head_dtype), TRAIN | BENCH, true, "bf16", "bf16|fp8", "lm_head's products; fp8: E4M3, one scale a tensor"},
    {"backend", TEXT, AT(backend), kAll, true, "auto", "auto|cuda|cpu|cpu-f32", "cpu: BF16 arithmetic; cpu-f32: the FP32 reference"},
    {"batch", INTEGER, AT(batch), TRAIN | EVAL | BENCH, true, "8", "N", "rows per rank and micro-step"},
    {"accum", INTEGER, AT(accum), TRAIN | BENCH | EXPORT, false, "1", "N", "micro-steps per optimizer step"},
    {"epochs", NUMBER, AT(epochs), TRAIN, true, "1", "X", "passes over the data"},
    {"steps", INTEGER, AT(steps), TRAIN | BENCH, true, "0", "N", "optimizer steps, instead of --epochs"},
    {"lr", NUMBER, AT(lr), TRAIN, true, "1e-5", "X", "peak learning rate"},
    {"warmup", INTEGER, AT(warmup), TRAIN, true, "auto", "N|auto", "steps from 0 to the peak; auto: 20, or a tenth of a short run"},
    {"schedule", TEXT, AT(schedule), TRAIN, true, "linear", "linear|cosine|constant", "after the warm-up"},
    {"weight-decay", NUMBER, AT(weight_decay), TRAIN, true, "0", "X", "decoupled, not on norms"},
    {"beta1", NUMBER, AT(beta1), TRAIN, true, "0.9", "X", "AdamW"},
    {"beta2", NUMBER, AT(beta2), TRAIN, true, "0.999", "X", "AdamW"},
    {"eps", NUMBER, AT(eps), TRAIN, true, "1e-8", "X", "AdamW"},
    {"clip", NUMBER, AT(clip), TRAIN, true, "0", "X", "clip the gradient's norm; 0: never"},
    {"seed", INTEGER, AT(seed), TRAIN | GENERATE | BENCH, true, "0", "N", "of shuffling, random weights, rounding, sampling"},
    {"master", TEXT, AT(master), TRAIN | BENCH, true, "fp32", "fp32|bf16-sr", "FP32 master weights, or BF16 with stochastic rounding"},
    {"grad-dtype", TEXT, AT(grad_dtype), TRAIN | BENCH, true, "fp32", "fp32|bf16", "gradients accumulate in"},
    {"state-dtype", TEXT, AT(state_dtype), TRAIN | BENCH, true, "fp32", "fp32|bf16", "AdamW's two moments"},
    {"recompute", TEXT, AT(recompute), TRAIN | BENCH, false, "none", "none|norm-act|block", "activations to make again in backward"},
    {"logits-mb", INTEGER, AT(logits_mb), TRAIN | EVAL | BENCH, true, "512", "N", "most logits held at once"},
    {"zero", INTEGER, AT(zero), TRAIN | BENCH, true, "auto", "N|auto", "what ranks shard: 0 nothing, 1 optimizer, 2 and gradients, 3 and weights; auto: 3, alone 0"},
    {"prefetch", INTEGER, AT(prefetch), TRAIN | EVAL | BENCH, false, "1", "N", "layers that --zero 3 gathers ahead of their use; 0: none"},
    {"qfsdp", SWITCH, AT(qfsdp), TRAIN | BENCH, true, NULL, NULL, "ranks gather the linears' weights as codes (HQ-FSDP; --zero 3)"},
    {"out", TEXT, AT(out), TRAIN | EXPORT, false, NULL, "DIR", "where the trained model and its checkpoints go"},
    {"resume", SWITCH, AT(resume), TRAIN | EXPORT, false, NULL, NULL, "go on from the newest checkpoint in --out"},
    {"save-every", INTEGER, AT(save_every), TRAIN, false, "0", "N", "steps between checkpoints; 0: only when interrupted"},
    {"keep", INTEGER, AT(keep), TRAIN, false, "1", "N", "checkpoints to keep"},
    {"shard-size", NUMBER, AT(shard_gb), TRAIN | EXPORT, false, "5", "GB", "largest weight file written"},
    {"eval-every", INTEGER, AT(eval_every), TRAIN, false, "0", "N", "steps between evaluations on --val; 0: only at the end"},
    {"log", TEXT, AT(log), TRAIN, false, NULL, "DIR", "step lines as JSON in DIR/log.jsonl"},
    {"quant-stats", INTEGER, AT(quant_stats), TRAIN, false, "0", "N", "steps between reports on what quantization does; 0: none"},
    {"profile", SWITCH, AT(profile), BENCH, false, NULL, NULL, "where the time of a step goes, per kernel family"},
    {"metric", TEXT, AT(metric), EVAL, false, "loss", "loss", "what to evaluate"},
    {"prompt", TEXT, AT(prompt), GENERATE, false, NULL, "TEXT", "what to answer; or --data: every example's prompt"},
    {"max-tokens", INTEGER, AT(max_tokens), GENERATE, false, "256", "N", "longest answer"},
    {"temperature", NUMBER, AT(temperature), GENERATE, false, "0", "X", "0: greedy"},
    {"top-p", NUMBER, AT(top_p), GENERATE, false, "1", "X", "sample within this much probability"},
    {"timeout", INTEGER, AT(timeout), TRAIN | EVAL | BENCH | EXPORT, false, "120", "SECONDS", "end the job when a rank makes no progress for this long; 0: never"},
    {"help", SWITCH, AT(help), kAll, false, NULL, NULL, "this text"},
};
enum { kFlagCount = sizeof kFlags / sizeof kFlags[0] };

static const struct {
    const char* name;
    int bit;
    const char* help;
} kCommands[] = {
    {"train", TRAIN, "fine-tune (the default)"},
    {"eval", EVAL, "the loss on a data file"},
    {"generate", GENERATE, "answer a prompt, or every prompt of a data file"},
    {"bench", BENCH, "time optimizer steps on random tokens"},
    {"export", EXPORT, "write a model, or the newest checkpoint of a run, as a Hugging Face directory"},
};
enum { kCommandCount = sizeof kCommands / sizeof kCommands[0] };

// What defines a run names its checkpoints too.
static bool takes(const Flag* f, int command) {
    return (f->commands & command) || (command == EXPORT && f->defines_run && (f->commands & TRAIN));
}

static void* field(Options* o, const Flag* f) { return (char*)o + f->at; }

static bool one_of(const char* value, const char* choices) {
    size_t n = strlen(value);
    if (strchr(value, '|')) return false;
    for (const char* p = choices; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL)
        if (!strncmp(p, value, n) && (p[n] == '|' || p[n] == 0)) return true;
    return false;
}

static void set_flag(Options* o, const Flag* f, const char* value) {
    char* end = NULL;
    errno = 0;
    switch (f->type) {
        case TEXT:
            if (f->choices && !(f->choices[0] >= 'A' && f->choices[0] <= 'Z') && !one_of(value, f->choices))
                user_error("--%s %s: must be one of %s", f->name, value, f->choices);
            *(const char**)field(o, f) = value;
            return;
        case INTEGER: {
            if (f->fallback && !strcmp(f->fallback, value) && !strcmp(value, "auto")) {
                *(int*)field(o, f) = kAuto;
                return;
            }
            long n = strtol(value, &end, 10);
            if (end == value || *end || errno || n < 0 || n > 2000000000)
                user_error("--%s %s: a whole number from 0 to 2000000000 is expected", f->name, value);
            *(int*)field(o, f) = (int)n;
            return;
        }
        case NUMBER: {
            double x = strtod(value, &end);
            if (end == value || *end || !isfinite(x) || x < 0) user_error("--%s %s: a number >= 0 is expected", f->name, value);
            *(double*)field(o, f) = x;
            return;
        }
        case SWITCH: *(bool*)field(o, f) = true; return;
    }
}

// A flag's value as text, "" for an unset one.
static const char* flag_text(const Options* o, const Flag* f, char text[64]) {
    const void* p = (const char*)o + f->at;
    switch (f->type) {
        case TEXT: return *(const char* const*)p ? *(const char* const*)p : "";
        case INTEGER:
            if (*(const int*)p == kAuto) return "auto";
            snprintf(text, 64, "%d", *(const int*)p);
            return text;
        case NUMBER: snprintf(text, 64, "%g", *(const double*)p); return text;
        case SWITCH: return *(const bool*)p ? "yes" : "no";
    }
    return "";
}

int options_flags(const Options* o, RunFlag flags[kMaxRunFlags], bool all) {
    int count = 0;
    for (int i = 0; i < kFlagCount; i++) {
        if (!(kFlags[i].defines_run || all) || !(kFlags[i].commands & TRAIN)) continue;
        check(count < kMaxRunFlags, "options_flags: more than %d", kMaxRunFlags);
        RunFlag* f = &flags[count++];
        f->name = kFlags[i].name;
        f->value = flag_text(o, &kFlags[i], f->text);
    }
    return count;
}

// How far a misspelt name is from a flag's: 1 if one begins with the other, else the edit distance (Levenshtein).
static int distance(const char* name, const char* flag) {
    enum { kLongest = 32 };
    int n = (int)strlen(name), m = (int)strlen(flag), row[kLongest + 1];
    if (n > kLongest || m > kLongest) return kLongest;
    if (n >= 2 && !strncmp(name, flag, (size_t)min_int(n, m))) return 1;
    for (int j = 0; j <= m; j++) row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int changed = diagonal + (name[i - 1] != flag[j - 1]);
            diagonal = row[j];
            row[j] = min_int(changed, 1 + min_int(row[j], row[j - 1]));
        }
    }
    return row[m];
}

static void unknown_flag(const char* name, const char* command, int bit) {
    const Flag* nearest = NULL;
    int best = max_int(2, (int)strlen(name) / 3) + 1;
    for (int i = 0; i < kFlagCount; i++) {
        if (!strcmp(kFlags[i].name, name)) user_error("--%s: '%s' does not take it; see train_llama3 %s --help", name, command, command);
        int far = distance(name, kFlags[i].name);
        if (takes(&kFlags[i], bit) && far < best) best = far, nearest = &kFlags[i];
    }
    if (nearest)
        user_error("--%s: no such flag; did you mean --%s? (train_llama3 %s --help lists all)", name, nearest->name, command);
    user_error("--%s: no such flag; train_llama3 %s --help lists all", name, command);
}

static void print_help(const char* command, int bit) {
    puts("usage: train_llama3 [train] | eval | generate | bench | export   --flag value ...\n");
    for (int i = 0; i < kCommandCount; i++) printf("  %-9s %s\n", kCommands[i].name, kCommands[i].help);
    printf("\nflags of %s:\n", command);
    for (int i = 0; i < kFlagCount; i++) {
        const Flag* f = &kFlags[i];
        if (!takes(f, bit)) continue;
        printf("  --%-16s %s", f->name, f->help);
        if (f->choices) printf(" (%s%s%s)", f->choices, f->fallback ? "; default " : "", f->fallback ? f->fallback : "");
        putchar('\n');
    }
    printf("\npresets: %s\nrecipes:", config_preset_names());
    int count;
    const Recipe* table = recipe_table(&count);
    for (int i = 0; i < count; i++) printf(" %s", table[i].name);
    putchar('\n');
}

Options options_parse(int argc, char** argv, int* command) {
    int first = 1, which = 0;
    if (argc > 1 && argv[1][0] != '-') {
        for (which = 0; which < kCommandCount && strcmp(argv[1], kCommands[which].name); which++) {}
        if (which == kCommandCount) user_error("%s: no such command; train_llama3 --help lists them", argv[1]);
        first = 2;
    }
    *command = kCommands[which].bit;
    Options o;
    memset(&o, 0, sizeof o);
    for (int i = 0; i < kFlagCount; i++)
        if (kFlags[i].fallback) set_flag(&o, &kFlags[i], kFlags[i].fallback);
    for (int a = first; a < argc; a++) {
        if (strncmp(argv[a], "--", 2)) user_error("%s: a --flag was expected; train_llama3 --help lists them", argv[a]);
        const char* name = argv[a] + 2;
        const Flag* found = NULL;
        for (int i = 0; i < kFlagCount; i++)
            if (!strcmp(kFlags[i].name, name) && takes(&kFlags[i], *command)) found = &kFlags[i];
        if (!found) unknown_flag(name, kCommands[which].name, *command);
        if (found->type == SWITCH) set_flag(&o, found, "");
        else if (a + 1 == argc) user_error("--%s: needs a value (%s)", name, found->choices);
        else set_flag(&o, found, argv[++a]);
    }
    if (o.help) {
        print_help(kCommands[which].name, *command);
        exit(0);
    }
    return o;
}

void options_print(const Options* o, int command) {
    char text[64];
    int column = 0;
    for (int i = 0; i < kFlagCount; i++) {
        const char* value = flag_text(o, &kFlags[i], text);
        if (!takes(&kFlags[i], command) || !*value || kFlags[i].at == AT(help)) continue;
        int width = (int)strlen(kFlags[i].name) + (int)strlen(value) + 4;
        if (column && column + width > 118) putchar('\n'), column = 0;
        column += printf("%s%s=%s", column ? "  " : "", kFlags[i].name, value);
    }
    putchar('\n');
}
