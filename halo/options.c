// The command line; see options.h.
#include "options.h"

#include <errno.h>
#include <math.h>
#include <sys/stat.h>

#include "rng.h"

// TRISTATE: auto, on or off, stored as 0, 1 or 2. Like a switch, a bare flag means on, and its values are shown as yes and no.
typedef enum { TEXT, CHOICE, INTEGER, NUMBER, SWITCH, TRISTATE } FlagType;

typedef struct {
    const char* name;
    FlagType type;
    size_t at;             // of the field in Options
    int commands;
    bool defines_run;      // a resumed run must keep this flag's value
    const char* fallback;
    const char* choices;   // "a|b|c" (of a CHOICE: in the order of its enum), or in capitals what kind of value is expected
    const char* help;
} Flag;

#define AT(field) offsetof(Options, field)
static const Flag kFlags[] = {
    {"model", TEXT, AT(model), kAll | INSPECT, true, NULL, "DIR|FILE.gguf",
     "Hugging Face directory (config.json, *.safetensors, tokenizer.json), or a GGUF file"},
    {"preset", TEXT, AT(preset), TRAIN | BENCH, true, NULL, "NAME", "a published size with random weights, instead of --model"},
    {"from-scratch", TEXT, AT(from_scratch), TRAIN | BENCH, true, NULL, "DIR", "config.json (and tokenizer) of DIR with random weights"},
    {"tokenizer", TEXT, AT(tokenizer), TRAIN | EVAL | GENERATE | INSPECT, true, NULL, "DIR",
     "where tokenizer.json is, if not with the model"},
    {"layers", INTEGER, AT(layers), TRAIN | BENCH, true, "0", "N", "cut the model to its first N layers"},
    {"data", TEXT, AT(data), TRAIN | EVAL | GENERATE | INSPECT, true, NULL, "FILE",
     "FILE[:SHARE][,FILE ...]: .jsonl, .json (.gz) of messages, conversations, prompt+completion, instruction+output, question+answer "
     "or text; ViGGO .csv"},
    {"val", TEXT, AT(val), TRAIN, false, NULL, "FILE", "evaluate on this file as well"},
    {"val-split", NUMBER, AT(val_split), TRAIN, true, "0", "X",
     "hold out this share of the records, chosen by their content, and evaluate on it"},
    {"chat", TEXT, AT(chat), TRAIN | EVAL | GENERATE | INSPECT, true, "auto", "FORM",
     "auto: the model's own chat template; FILE.jinja: that one; llama3, chatml, none: for base models"},
    {"date", TEXT, AT(date), TRAIN | EVAL | GENERATE | INSPECT, true, NULL, "YYYY-MM-DD",
     "the day that a chat template's strftime_now gives"},
    {"special-tokens", CHOICE, AT(special_tokens), TRAIN | EVAL | GENERATE | INSPECT, true, "auto", "auto|template|answers|all",
     "where spellings of special tokens in the data count as such; auto: in text records"},
    {"prompt-file", TEXT, AT(prompt_file), TRAIN | EVAL | GENERATE | INSPECT, true, NULL, "FILE",
     "the prompt of each record, with {name} for a CSV column or a key"},
    {"limit", INTEGER, AT(limit), TRAIN | EVAL | GENERATE | INSPECT, true, "0", "N", "the first N records only; 0: all"},
    {"seq", INTEGER, AT(seq), TRAIN | EVAL | BENCH | INSPECT, true, "512", "N", "tokens in a row"},
    {"pack", TRISTATE, AT(pack), TRAIN | EVAL | INSPECT, true, "auto", "auto|on|off",
     "several examples in a row, hidden from each other; auto: a step has the examples of off; on: as many rows"},
    {"long", CHOICE, AT(long_policy), TRAIN | EVAL | INSPECT, true, "truncate", "truncate|skip",
     "examples above --seq: cut from the prompt side, or left out"},
    {"train-on-prompt", SWITCH, AT(train_on_prompt), TRAIN | EVAL | INSPECT, true, NULL, NULL, "score the prompt's tokens too"},
    {"level", TEXT, AT(level), TRAIN | EVAL | GENERATE | BENCH, true, "bf16", "bf16|halo0|halo1|halo2|haloi|switchback|jetfire",
     "how products are quantized"},
    {"dtype", TEXT, AT(dtype), TRAIN | EVAL | GENERATE | BENCH, true, "auto", "auto|int8|fp8|fp6|bf16",
     "the format they are quantized to; auto: what the level is meant for (halo0: fp8, halo1: fp6, the others: int8)"},
    {"recipe", TEXT, AT(recipe), TRAIN | EVAL | GENERATE | BENCH, true, NULL, "NAME",
     "a row of the recipe table, instead of --level and --dtype"},
    {"token-block", INTEGER, AT(token_block), TRAIN | BENCH, true, "0", "N", "block-diagonal token Hadamard of order N; 0: the full one"},
    {"head-dtype", CHOICE, AT(head_dtype), TRAIN | BENCH, true, "bf16", "bf16|fp8", "lm_head's products; fp8: E4M3, one scale a tensor"},
    {"backend", CHOICE, AT(backend), kAll | DOCTOR, true, "auto", "auto|cuda|cpu|cpu-f32",
     "cpu: BF16 arithmetic; cpu-f32: the FP32 reference"},
    {"batch", INTEGER, AT(batch), TRAIN | BENCH | INSPECT, true, "8", "N", "examples per rank and micro-step; with --pack on, filled rows"},
    {"batch", INTEGER, AT(slots), EVAL | GENERATE, false, "auto", "N|auto",
     "answers (for a loss: rows) side by side; auto: up to 64 as memory allows, rows 8"},
    {"accum", INTEGER, AT(accum), TRAIN | BENCH | EXPORT | INSPECT, false, "1", "N", "micro-steps per optimizer step"},
    {"epochs", NUMBER, AT(epochs), TRAIN | INSPECT, true, "1", "X", "passes over the data"},
    {"steps", INTEGER, AT(steps), TRAIN | BENCH | INSPECT, true, "0", "N", "optimizer steps, instead of --epochs"},
    {"lr", NUMBER, AT(lr), TRAIN, true, "1e-5", "X", "peak learning rate; of an adapter 3e-4 unless it is given"},
    {"warmup", INTEGER, AT(warmup), TRAIN, true, "auto", "N|auto", "steps from 0 to the peak; auto: 20, or a tenth of a short run"},
    {"schedule", CHOICE, AT(schedule), TRAIN, true, "linear", "linear|cosine|constant", "after the warm-up"},
    {"weight-decay", NUMBER, AT(weight_decay), TRAIN, true, "0", "X", "decoupled, not on norms"},
    {"beta1", NUMBER, AT(beta1), TRAIN, true, "0.9", "X", "AdamW"},
    {"beta2", NUMBER, AT(beta2), TRAIN, true, "0.999", "X", "AdamW"},
    {"eps", NUMBER, AT(eps), TRAIN, true, "1e-8", "X", "AdamW"},
    {"clip", NUMBER, AT(clip), TRAIN, true, "0", "X", "clip the gradient's norm; 0: never"},
    {"seed", INTEGER, AT(seed), TRAIN | EVAL | GENERATE | BENCH, true, "0", "N", "of shuffling, random weights, rounding, sampling"},
    {"master", CHOICE, AT(master), TRAIN | BENCH, true, "fp32", "fp32|bf16-sr", "FP32 master weights, or BF16 with stochastic rounding"},
    {"grad-dtype", CHOICE, AT(grad_dtype), TRAIN | BENCH, true, "fp32", "fp32|bf16", "gradients accumulate in"},
    {"state-dtype", CHOICE, AT(state_dtype), TRAIN | BENCH, true, "fp32", "fp32|bf16", "AdamW's two moments"},
    {"recompute", CHOICE, AT(recompute), TRAIN | BENCH, false, "none", "none|norm-act|block", "activations to make again in backward"},
    {"codes", CHOICE, AT(codes), TRAIN | BENCH, false, "auto", "auto|keep|remake",
     "quantized weights: kept from update to update, or made again for each pass over a layer; auto: as many are kept as fit"},
    {"logits-mb", INTEGER, AT(logits_mb), TRAIN | EVAL | BENCH, true, "512", "N", "most logits held at once"},
    {"graphs", CHOICE, AT(graphs), TRAIN | BENCH, false, "auto", "auto|off",
     "auto: one GPU records a micro-step and repeats it, which spares a small model the launches; off: never"},
    {"zero", INTEGER, AT(zero), TRAIN | BENCH, true, "auto", "N|auto",
     "what ranks shard: 0 nothing, 1 optimizer, 2 and gradients, 3 and weights; auto: 3, alone 0"},
    {"prefetch", INTEGER, AT(prefetch), TRAIN | EVAL | BENCH, false, "1", "N", "layers that --zero 3 gathers ahead of their use; 0: none"},
    {"qfsdp", SWITCH, AT(qfsdp), TRAIN | BENCH, true, NULL, NULL, "ranks gather the linears' weights as codes (HQ-FSDP; --zero 3)"},
    {"adapter", CHOICE, AT(adapter), TRAIN | BENCH, true, "none", "none|lora|hut",
     "train low-rank factors on frozen weights, instead of the weights: LoRA's sum, HUT's product"},
    {"rank", INTEGER, AT(rank), TRAIN | BENCH, true, "16", "N", "of the adapter's factors"},
    {"alpha", NUMBER, AT(alpha), TRAIN | BENCH, true, "32", "X", "the adapter counts alpha / rank times"},
    {"rslora", SWITCH, AT(rslora), TRAIN | BENCH, true, NULL, NULL, "alpha / sqrt(rank) instead (some servers read it as alpha / rank)"},
    {"dropout", NUMBER, AT(dropout), TRAIN | BENCH, true, "0", "X", "of the adapter's input, in training"},
    {"target", TEXT, AT(target), TRAIN | BENCH, true, "all-linear", "LIST",
     "the matrices it adapts: some of q,k,v,o,gate,up,down, or all-linear"},
    {"adapter-dir", TEXT, AT(adapter_dir), TRAIN | EVAL | GENERATE | EXPORT, false, NULL, "DIR",
     "an adapter in PEFT's format: to answer with, to merge, to train on; its rank, alpha and targets count"},
    {"merge", SWITCH, AT(merge), EXPORT, false, NULL, NULL, "add the adapter to the weights and write a whole model"},
    {"out", TEXT, AT(out), TRAIN | EXPORT | DOCTOR, false, NULL, "DIR", "where the trained model and its checkpoints go"},
    {"resume", SWITCH, AT(resume), TRAIN | EXPORT, false, NULL, NULL,
     "go on from the newest whole checkpoint in --out; without one: start"},
    {"save-every", INTEGER, AT(save_every), TRAIN, false, "0", "N", "steps between checkpoints; 0: only when interrupted"},
    {"gguf", TEXT, AT(gguf), EXPORT, false, NULL, "FILE", "write a GGUF file for llama.cpp, instead of --out or beside it"},
    {"gguf-type", CHOICE, AT(gguf_type), EXPORT, false, "bf16", "bf16|f16|q8_0", "the type of its matrices"},
    {"keep", INTEGER, AT(keep), TRAIN, false, "2", "N", "checkpoints to keep"},
    {"keep-best", SWITCH, AT(keep_best), TRAIN, false, NULL, NULL, "save, and keep beside them, the one with the lowest loss on --val"},
    {"resume-from", TEXT, AT(resume_from), TRAIN | EXPORT, false, NULL, "DIR",
     "go on from this checkpoint (.../checkpoints/step-00000040)"},
    {"overwrite", SWITCH, AT(overwrite), TRAIN | EXPORT, false, NULL, NULL,
     "--out may hold a model, --log the lines of another run: they are replaced"},
    {"on-nan", CHOICE, AT(on_nan), TRAIN, true, "stop", "stop|skip",
     "a step whose loss or gradient is not finite: end there, or leave it out"},
    {"shard-size", NUMBER, AT(shard_gb), TRAIN | EXPORT, false, "5", "GB", "largest weight file written"},
    {"eval-every", INTEGER, AT(eval_every), TRAIN, false, "0", "N", "steps between evaluations on --val; 0: only at the end"},
    {"log", TEXT, AT(log), TRAIN, false, NULL, "DIR|FILE.jsonl",
     "every step as a line of JSON in DIR/log.jsonl, TensorBoard's events and loss.svg beside it; or the lines alone, in a file"},
    {"quant-stats", INTEGER, AT(quant_stats), TRAIN, false, "0", "N", "steps between reports on what quantization does; 0: none"},
    {"examples", INTEGER, AT(examples), INSPECT, false, "3", "N", "how many examples to show"},
    {"json", SWITCH, AT(json), INSPECT | DOCTOR, false, NULL, NULL, "a line of JSON an example (text, tokens, trained), or a check"},
    {"generate", INTEGER, AT(generate), BENCH, false, "0", "N",
     "time N answers of --max-tokens side by side to prompts of --seq tokens instead"},
    {"profile", SWITCH, AT(profile), BENCH, false, NULL, NULL, "where the time of a step goes, per kernel family"},
    {"metric", TEXT, AT(metric), EVAL, false, "loss", "loss|exact|gsm8k|gsm8k-strict|gsm8k-flexible|viggo|sql",
     "the loss, or the share of generated answers that are right"},
    {"val-metric", TEXT, AT(val_metric), TRAIN, false, NULL, "exact|gsm8k|gsm8k-strict|gsm8k-flexible|viggo|sql",
     "with every evaluation on --val, answer its prompts too, and judge the answers by this"},
    {"answers", TEXT, AT(answers), EVAL, false, NULL, "FILE", "write prompts, answers and verdicts here, a JSON line each"},
    {"score", TEXT, AT(score), EVAL, false, NULL, "FILE", "judge the answers in such a file again; no model is needed"},
    {"prompt", TEXT, AT(prompt), GENERATE, false, NULL, "TEXT",
     "what to answer; or --data: every example's prompt; without both, on a terminal: a conversation"},
    {"max-tokens", INTEGER, AT(max_tokens), TRAIN | EVAL | GENERATE | BENCH, false, "256", "N", "longest answer"},
    {"temperature", NUMBER, AT(temperature), EVAL | GENERATE, false, "0", "X", "0: greedy"},
    {"top-p", NUMBER, AT(top_p), EVAL | GENERATE, false, "1", "X", "sample within this much probability"},
    {"timeout", INTEGER, AT(timeout), TRAIN | EVAL | BENCH | EXPORT | DOCTOR, false, "120", "SECONDS",
     "end the job when a rank makes no progress for this long; 0: never"},
    {"gpus", INTEGER, AT(gpus), PLAN, false, "1", "N", "ranks, one on each GPU"},
    {"gpu-gb", NUMBER, AT(gpu_gb), PLAN, false, "0", "GIB", "memory of a GPU as nvidia-smi tells it; 0: this machine's, if it has one"},
    {"config", TEXT, AT(config), kAll | INSPECT | PLAN, false, NULL, "FILE.toml",
     "flags from a file, a line each: lr = 1e-5; the command line wins"},
    {"print-config", SWITCH, AT(print_config), kAll | INSPECT | PLAN, false, NULL, NULL, "print all values as such a file, and end"},
    {"help", SWITCH, AT(help), kAll | VERIFY | INSPECT | PLAN | DOCTOR, false, NULL, NULL, "this text"},
};
enum { kFlagCount = sizeof kFlags / sizeof kFlags[0] };

// export also takes the flags that define a run, since they tell which run's checkpoints are meant; plan takes all of train's.
static bool takes(const Flag* f, int command) {
    if (command == PLAN && (f->commands & TRAIN)) return true;
    return (f->commands & command) || (command == EXPORT && f->defines_run && (f->commands & TRAIN));
}

static void* field(Options* o, const Flag* f) { return (char*)o + f->at; }

// The number of `value` among the words "a|b|c"; -1 if it is none of them.
static int word_number(const char* value, const char* words) {
    size_t n = strlen(value);
    if (strchr(value, '|')) return -1;
    int number = 0;
    for (const char* p = words; p; p = strchr(p, '|') ? strchr(p, '|') + 1 : NULL, number++)
        if (!strncmp(p, value, n) && (p[n] == '|' || p[n] == 0)) return number;
    return -1;
}
static const char* word_numbered(int number, const char* words, char text[64]) {
    for (; number > 0; number--) words = strchr(words, '|') + 1;
    snprintf(text, 64, "%.*s", (int)strcspn(words, "|"), words);
    return text;
}

static bool has_words(const Flag* f) { return f->choices && !(f->choices[0] >= 'A' && f->choices[0] <= 'Z'); }

// How messages name a value: as it stands on the command line, or in a file at `where`.
static const char* naming(const Flag* f, const char* value, const char* where) {
    static char text[512];
    if (where) snprintf(text, sizeof text, "%s: %s = %s", where, f->name, value);
    else snprintf(text, sizeof text, "--%s %s", f->name, value);
    return text;
}

static int word_of(const Flag* f, const char* value, const char* where) {
    int number = word_number(value, f->choices);
    if (number < 0) user_error("%s: must be one of %s", naming(f, value, where), f->choices);
    return number;
}

static int tristate_of(const Flag* f, const char* value, const char* where) {
    if (!strcmp(value, "yes")) value = "on";
    if (!strcmp(value, "no")) value = "off";
    return word_of(f, value, where);
}

// `where`: the place in a file; NULL: the command line.
static void set_flag(Options* o, const Flag* f, const char* value, const char* where) {
    char* end = NULL;
    errno = 0;
    switch (f->type) {
        case TEXT:
            if (has_words(f)) word_of(f, value, where);
            *(const char**)field(o, f) = value;
            return;
        case CHOICE:
        case TRISTATE: {
            int number = f->type == CHOICE ? word_of(f, value, where) : tristate_of(f, value, where);   // enums are as wide as an int
            memcpy(field(o, f), &number, sizeof number);
            return;
        }
        case INTEGER: {
            if (f->fallback && !strcmp(f->fallback, value) && !strcmp(value, "auto")) {
                *(int*)field(o, f) = kAuto;
                return;
            }
            long n = strtol(value, &end, 10);
            if (end == value || *end || errno || n < 0 || n > 2000000000)
                user_error("%s: a whole number from 0 to 2000000000 is expected", naming(f, value, where));
            *(int*)field(o, f) = (int)n;
            return;
        }
        case NUMBER: {
            double x = strtod(value, &end);
            if (end == value || *end || !isfinite(x) || x < 0) user_error("%s: a number >= 0 is expected", naming(f, value, where));
            *(double*)field(o, f) = x;
            return;
        }
        case SWITCH:
            if (strcmp(value, "yes") && strcmp(value, "no")) user_error("%s: yes or no is expected", naming(f, value, where));
            *(bool*)field(o, f) = !strcmp(value, "yes");
            return;
    }
}

// The fewest digits that read back as x.
static void number_text(double x, char text[64]) {
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, 64, "%.*g", digits, x);
        if (strtod(text, NULL) == x) return;
    }
}

// A flag's value as text, "" for an unset one.
static const char* flag_text(const Options* o, const Flag* f, char text[64]) {
    const void* p = (const char*)o + f->at;
    switch (f->type) {
        case TEXT: return *(const char* const*)p ? *(const char* const*)p : "";
        case CHOICE:
        case TRISTATE: {
            int number;
            memcpy(&number, p, sizeof number);
            return word_numbered(number, f->type == CHOICE ? f->choices : "auto|yes|no", text);
        }
        case INTEGER:
            if (*(const int*)p == kAuto) return "auto";
            snprintf(text, 64, "%d", *(const int*)p);
            return text;
        case NUMBER: number_text(*(const double*)p, text); return text;
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

// `where`: the place in a file, whose keys are names without dashes; NULL: the command line.
static void unknown_flag(const char* name, const char* command, int bit, const char* where) {
    char said[256];
    const char *dashes = where ? "" : "--", *kind = where ? "key" : "flag";
    snprintf(said, sizeof said, "%s%s%s%s", where ? where : "", where ? ": " : "", dashes, name);
    const Flag* nearest = NULL;
    int best = max_int(2, (int)strlen(name) / 3) + 1;
    for (int i = 0; i < kFlagCount; i++) {
        if (!strcmp(kFlags[i].name, name)) user_error("%s: '%s' does not take it; see train_llama3 %s --help", said, command, command);
        int far = distance(name, kFlags[i].name);
        if (takes(&kFlags[i], bit) && far < best) best = far, nearest = &kFlags[i];
    }
    if (nearest)
        user_error("%s: no such %s; did you mean %s%s? (train_llama3 %s --help lists all)", said, kind, dashes, nearest->name, command);
    user_error("%s: no such %s; train_llama3 %s --help lists all", said, kind, command);
}

static void print_help(const Command* commands, int command_count, const Command* command) {
    printf("usage: train_llama3 [%s]", commands[0].name);
    for (int i = 1; i < command_count; i++) printf(" | %s", commands[i].name);
    puts("   --flag value ...\n");
    for (int i = 0; i < command_count; i++) printf("  %-9s %s\n", commands[i].name, commands[i].help);
    printf("\nflags of %s:\n", command->name);
    for (int i = 0; i < kFlagCount; i++) {
        const Flag* f = &kFlags[i];
        if (!takes(f, command->bit)) continue;
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

static const Flag* flag_named(const char* name, int command) {
    for (int i = 0; i < kFlagCount; i++)
        if (!strcmp(kFlags[i].name, name) && takes(&kFlags[i], command)) return &kFlags[i];
    return NULL;
}

bool options_set(Options* o, int command, const char* name, const char* value) {
    const Flag* f = flag_named(name, command);
    if (f) set_flag(o, f, value, NULL);
    return f != NULL;
}

bool options_flag_info(int row, FlagInfo* info) {
    if (row < 0 || row >= kFlagCount) return false;
    const Flag* f = &kFlags[row];
    FlagInfo of = {f->name, f->choices, f->fallback, f->help, 0};
    for (int bit = TRAIN; bit <= DOCTOR; bit <<= 1)
        if (takes(f, bit)) of.commands |= bit;
    *info = of;
    return true;
}

// ---- where values come from: the defaults, a file, the command line

typedef struct {
    Options* o;
    const Command* command;
    const char* given[kFlagCount];   // on the command line, the value of each flag; NULL: it is not there
    bool in_file[kFlagCount];
} FlagSources;

static void set_default(Options* o, const Flag* f) {
    static const char* const kUnset[] = {NULL, NULL, "0", "0", "no", "auto"};   // in the order of FlagType
    if (f->fallback) set_flag(o, f, f->fallback, NULL);
    else if (f->type == TEXT) *(const char**)field(o, f) = NULL;
    else set_flag(o, f, kUnset[f->type], NULL);
}

// Is `name` a flag that only the command line may have?
static bool stays_outside(const char* name) {
    return !strcmp(name, "config") || !strcmp(name, "print-config") || !strcmp(name, "help");
}

// Refuses a setting of another type than the flag's.
static void check_setting(const Flag* f, const Setting* s) {
    bool string = s->type == SETTING_STRING, whole = s->type == SETTING_INTEGER, word = string && !strcmp(s->value, "auto");
    const bool right[] = {string || (s->type == SETTING_STRINGS && !has_words(f)), string,   // in the order of FlagType
                          whole || (word && f->fallback && !strcmp(f->fallback, "auto")), whole || s->type == SETTING_FLOAT,
                          s->type == SETTING_BOOLEAN, s->type == SETTING_BOOLEAN || string};
    static const char* const kExpected[] = {"text in quotes", "a word in quotes", "a whole number, without quotes",
                                            "a number, without quotes", "true or false, without quotes", "true, false, or a word in quotes"};
    const char* quote = string ? "\"" : "";
    if (!right[f->type]) user_error("%s: %s = %s%s%s: %s is expected", s->where, f->name, quote, s->value, quote, kExpected[f->type]);
}

static void take_setting(void* self, const Setting* s) {
    FlagSources* from = (FlagSources*)self;
    const Flag* f = flag_named(s->key, from->command->bit);
    if (f && stays_outside(s->key)) user_error("%s: %s stands on the command line only", s->where, s->key);
    if (!f) unknown_flag(s->key, from->command->name, from->command->bit, s->where);
    check_setting(f, s);
    const char* value = s->type == SETTING_BOOLEAN ? (!strcmp(s->value, "true") ? "yes" : "no") : s->value;
    from->in_file[f - kFlags] = true;
    set_flag(from->o, f, f->type == TEXT ? host_strdup(value) : value, s->where);
}

// Pairs of flags that choose the same thing in different ways. Where one is on the command line and the other in the file, the file's is
// dropped.
static const char* const kEither[][2] = {{"recipe", "level"}, {"recipe", "dtype"}, {"model", "preset"}, {"model", "from-scratch"},
                                         {"preset", "from-scratch"}, {"steps", "epochs"}, {"val", "val-split"}, {"prompt", "data"}};
enum { kEitherCount = sizeof kEither / sizeof kEither[0] };

static void drop_outvoted(FlagSources* from) {
    for (int i = 0; i < kEitherCount; i++)
        for (int k = 0; k < 2; k++) {
            const Flag *wins = flag_named(kEither[i][k], from->command->bit), *loses = flag_named(kEither[i][1 - k], from->command->bit);
            if (!wins || !loses || !from->given[wins - kFlags] || from->given[loses - kFlags] || !from->in_file[loses - kFlags]) continue;
            set_default(from->o, loses);
            from->in_file[loses - kFlags] = false;
        }
}

// What a bare word on the command line was likely meant for, as the end of an error: a folder for --model, a file for --data.
static const char* likely_meaning(const char* word, char text[600]) {
    struct stat there;
    size_t n = strlen(word);
    bool gguf = n > 5 && !strcmp(word + n - 5, ".gguf");
    if (n > 500 || stat(word, &there)) return "train_llama3 --help lists them";
    snprintf(text, 600, "did you mean --%s %s?", gguf || S_ISDIR(there.st_mode) ? "model" : "data", word);
    return text;
}

static void read_command_line(FlagSources* from, int argc, char** argv, int first) {
    const Command* c = from->command;
    for (int a = first; a < argc; a++) {
        if (c->bit == VERIFY && !from->o->model && argv[a][0] != '-') {
            from->o->model = argv[a];
            continue;
        }
        char meaning[600];
        if (strncmp(argv[a], "--", 2)) user_error("%s: a --flag was expected; %s", argv[a], likely_meaning(argv[a], meaning));
        char *name = host_strdup(argv[a] + 2), *equals = strchr(name, '=');   // kept: --flag=value has its value in there
        if (equals) *equals++ = 0;
        const Flag* found = flag_named(name, c->bit);
        if (!found) unknown_flag(name, c->name, c->bit, NULL);
        const char** value = &from->given[found - kFlags];
        if (*value) user_error("--%s: given twice; leave one of them away", name);
        bool alone = found->type == TRISTATE && (a + 1 == argc || !strncmp(argv[a + 1], "--", 2));
        if (equals && found->type == SWITCH) user_error("--%s=%s: this flag takes no value", name, equals);
        if (equals) *value = equals;
        else if (found->type == SWITCH || alone) *value = "yes";
        else if (a + 1 == argc) user_error("--%s: needs a value (%s)", name, found->choices);
        else *value = argv[++a];
    }
}

// A recipe stands for a level and a dtype: --recipe beside one of these is an error.
static void check_recipe_alone(const FlagSources* from) {
    const char* const kNamedByRecipe[] = {"level", "dtype"};
    for (size_t i = 0; from->o->recipe && i < sizeof kNamedByRecipe / sizeof kNamedByRecipe[0]; i++) {
        const Flag* f = flag_named(kNamedByRecipe[i], from->command->bit);
        if (f && (from->given[f - kFlags] || from->in_file[f - kFlags]))
            user_error("--%s beside --recipe %s: the recipe names both level and dtype; leave one of them away", f->name, from->o->recipe);
    }
}

// Does the command line or a file give a flag of this name a value?
static bool is_named(const FlagSources* from, const char* name) {
    const Flag* f = flag_named(name, from->command->bit);
    return f && (from->given[f - kFlags] || from->in_file[f - kFlags]);
}

// An adapter learns almost nothing at the rate that suits the whole weights: LoRA's own default, the paper's, where none is named.
static void take_adapter_rate(FlagSources* from) {
    bool adapts = from->o->adapter != 0 || from->o->adapter_dir;
    if (from->command->bit == TRAIN && adapts && !is_named(from, "lr")) set_flag(from->o, flag_named("lr", TRAIN), "3e-4", NULL);
}

// --rank and the like without an adapter would train all weights, which whoever says them cannot mean. A file that has the flag beside
// adapter = "none", as a printed one does, says nothing by it.
static void check_adapter_named(const FlagSources* from) {
    static const char* const kOfAdapter[] = {"rank", "alpha", "rslora", "dropout", "target"};
    if (from->o->adapter != ADAPT_NONE || from->o->adapter_dir) return;
    for (size_t i = 0; i < sizeof kOfAdapter / sizeof kOfAdapter[0]; i++) {
        const Flag* f = flag_named(kOfAdapter[i], from->command->bit);
        if (f && (from->given[f - kFlags] || (from->in_file[f - kFlags] && !is_named(from, "adapter"))))
            user_error("--%s: is of an adapter, and without one all weights are trained; add --adapter lora (or hut), or leave --%s away", f->name,
                       f->name);
    }
}

// What the demo (data/demo) is trained with where neither the command line nor a file says anything else.
static void take_demo_flags(FlagSources* from) {
    static const char* const kDemo[][2] = {{"batch", "8"}, {"seq", "256"}, {"pack", "on"}, {"steps", "560"}, {"lr", "3e-3"}, {"warmup", "10"},
                                           {"schedule", "cosine"}, {"clip", "1"}, {"val-metric", "exact"}, {"max-tokens", "64"}};
    Options* o = from->o;
    if (from->command->bit != TRAIN || o->model || o->preset || o->from_scratch || o->data) return;
    o->demo = true;
    o->share_batch = !is_named(from, "batch");
    for (size_t i = 0; i < sizeof kDemo / sizeof kDemo[0]; i++) {
        const Flag* f = flag_named(kDemo[i][0], TRAIN);
        if (!is_named(from, f->name) && !(f->at == AT(steps) && is_named(from, "epochs"))) set_flag(o, f, kDemo[i][1], NULL);
    }
}

static void set_all(FlagSources* from, ReadSettings read) {
    const Flag* config = flag_named("config", from->command->bit);
    const char* path = config ? from->given[config - kFlags] : NULL;
    if (path) read(path, take_setting, from);
    for (int i = 0; i < kFlagCount; i++)
        if (from->given[i]) set_flag(from->o, &kFlags[i], from->given[i], NULL);
    drop_outvoted(from);
    check_recipe_alone(from);
    check_adapter_named(from);
    if (from->o->resume_from) from->o->resume = true;
    take_adapter_rate(from);
    take_demo_flags(from);
}

Options options_parse(int argc, char** argv, const Command* commands, int command_count, ReadSettings read, const Command** command) {
    int first = 1, which = 0;
    if (argc > 1 && argv[1][0] != '-') {
        for (which = 0; which < command_count && strcmp(argv[1], commands[which].name); which++) {}
        char meaning[600];
        if (which == command_count) user_error("%s: no such command; %s", argv[1], likely_meaning(argv[1], meaning));
        first = 2;
    }
    *command = &commands[which];
    Options o;
    memset(&o, 0, sizeof o);
    for (int i = 0; i < kFlagCount; i++)
        if (kFlags[i].fallback) set_flag(&o, &kFlags[i], kFlags[i].fallback, NULL);
    FlagSources from;
    memset(&from, 0, sizeof from);
    from.o = &o;
    from.command = *command;
    read_command_line(&from, argc, argv, first);
    const Flag* help = flag_named("help", from.command->bit);
    if (help && from.given[help - kFlags]) {
        print_help(commands, command_count, from.command);
        exit(0);
    }
    set_all(&from, read);
    if (o.print_config) {
        options_write(stdout, &o, from.command->bit);
        exit(0);
    }
    return o;
}

const Recipe* options_recipe(const Options* o) {
    const Recipe* r = o->recipe ? recipe_find(o->recipe) : recipe_pick(o->level, o->dtype);
    if (!r) user_error("--recipe %s: no such row; train_llama3 --help lists them", o->recipe);
    return r;
}

// Tokens of one optimizer step on all ranks are counted in ints, and a micro-step's number is 20 bits of its noise (shard.c, grad_noise).
enum { kMostStepTokens = 1 << 30, kMostMicroSteps = 1 << 20, kMostMicroStepTokens = 1 << 24 };

static void check_batch(const Options* o, int ranks) {
    if ((double)o->batch * o->seq * o->accum * ranks > kMostStepTokens)
        user_error("--batch %d --seq %d --accum %d on %d rank%s: more than %d tokens an optimizer step", o->batch, o->seq, o->accum,
                   ranks, ranks > 1 ? "s" : "", (int)kMostStepTokens);
    if (o->accum > kMostMicroSteps) user_error("--accum %d: at most %d micro-steps", o->accum, (int)kMostMicroSteps);
}

static void check_micro_batch(const Options* o) {
    if (o->seq < 1 || o->batch < 1 || o->accum < 1)
        user_error("--batch %d --seq %d --accum %d: each must be at least 1", o->batch, o->seq, o->accum);
    if ((double)o->batch * o->seq > kMostMicroStepTokens)
        user_error("--batch %d --seq %d: more than %d tokens a micro-step", o->batch, o->seq, (int)kMostMicroStepTokens);
}

// What the recipe demands of the other flags.
static void check_recipe(const Options* o, int command, int ranks) {
    const Recipe* r = options_recipe(o);
    if ((command & (TRAIN | BENCH)) && r->ge.fmt == INT8 && o->batch * o->seq > kInt8Longest)
        user_error("--batch %d --seq %d: recipe %s sums INT8 products over at most %d tokens; take a smaller --batch, and a larger --accum "
                   "instead", o->batch, o->seq, r->name, (int)kInt8Longest);
    if (command == EXPORT && !o->resume) return;
    if (o->zero > 3) user_error("--zero %d: must be 0, 1, 2 or 3", o->zero);
    if (o->qfsdp && ranks > 1 && o->zero != 3 && o->zero != kAuto)
        user_error("--qfsdp --zero %d: codes are gathered with --zero 3 only", o->zero);
    if (o->qfsdp && o->codes == CODES_REMAKE)
        user_error("--codes remake --qfsdp: the codes are what ranks keep and gather; leave one of the two away");
    if (o->qfsdp && !linear_gathers_codes(r))
        user_error("--qfsdp: recipe %s does not quantize weights per tensor; choose a halo or switchback recipe", r->name);
}

// These numbers become floats: one that overflows a float, or becomes 0 there, would not be what the user asked for.
static void check_floats(const Options* o) {
    const struct {
        const char* name;
        double value;
        bool may_be_0;
    } numbers[] = {{"lr", o->lr, false}, {"weight-decay", o->weight_decay, true}, {"eps", o->eps, false}, {"clip", o->clip, true}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        float used = (float)numbers[i].value;
        if (!isfinite(used)) user_error("--%s %g: above the largest float, %g", numbers[i].name, numbers[i].value, (double)__FLT_MAX__);
        if (used < __FLT_MIN__ && !(numbers[i].may_be_0 && numbers[i].value == 0))
            user_error("--%s %g: is 0 or below the smallest float, %g%s", numbers[i].name, numbers[i].value, (double)__FLT_MIN__,
                       numbers[i].may_be_0 ? "; 0 leaves it out" : "");
    }
    if ((float)o->beta1 >= 1 || (float)o->beta2 >= 1)
        user_error("--beta1 %.9g --beta2 %.9g: both must be below 1, as floats too", o->beta1, o->beta2);
}

Adapter options_adapter(const Options* o) {
    static const AdapterKind kinds[] = {ADAPTER_NONE, ADAPTER_LORA, ADAPTER_HUT};
    Adapter a = {kinds[o->adapter], o->rank, (float)o->alpha, o->rslora, (float)o->dropout,
                 (uint64_t)o->seed, 0};
    if (!strcmp(o->target, "all-linear")) {
        a.targets = kAllTargets;
        return a;
    }
    for (const char* at = o->target;; at++) {
        int n = (int)strcspn(at, ","), t = 0;
        while (t < kTargets && (strncmp(kTargetNames[t], at, (size_t)n) || kTargetNames[t][n])) t++;
        if (!n || t == kTargets) user_error("--target %s: '%.*s' is none of q, k, v, o, gate, up, down; or say all-linear", o->target, n, at);
        a.targets |= 1u << t;
        at += n;
        if (!*at) break;
    }
    return a;
}

static const char* targets_text(unsigned targets, char text[64]) {
    size_t n = 0;
    for (int t = 0; t < kTargets; t++)
        if (targets >> t & 1) n += (size_t)snprintf(text + n, 64 - n, "%s%s", n ? "," : "", kTargetNames[t]);
    return targets == kAllTargets ? "all-linear" : text;
}

void options_take_adapter(Options* o, const Adapter* own) {
    Options usual = *o;
    char rank[64], alpha[64], targets[64];
    snprintf(rank, sizeof rank, "%d", own->rank);
    number_text((double)own->alpha, alpha);
    const struct {
        const char *flag, *value;
    } is[] = {{"rank", rank}, {"alpha", alpha}, {"rslora", own->rslora ? "yes" : "no"}, {"target", targets_text(own->targets, targets)}};
    for (size_t i = 0; i < sizeof is / sizeof is[0]; i++) set_default(&usual, flag_named(is[i].flag, TRAIN));
    Adapter said = options_adapter(o), unsaid = options_adapter(&usual);
    const bool other[] = {said.rank != unsaid.rank && said.rank != own->rank, said.alpha != unsaid.alpha && said.alpha != own->alpha,
                          said.rslora && !own->rslora, said.targets != unsaid.targets && said.targets != own->targets};   // in the order of `is`
    for (size_t i = 0; i < sizeof is / sizeof is[0]; i++) {
        const Flag* f = flag_named(is[i].flag, TRAIN);
        char text[64];
        if (other[i])
            user_error("--%s %s: the adapter in --adapter-dir %s has %s, which counts; leave --%s away", f->name, flag_text(o, f, text),
                       o->adapter_dir, is[i].value, f->name);
        set_flag(o, f, f->type == TEXT ? host_strdup(is[i].value) : is[i].value, NULL);
    }
    o->adapter = ADAPT_LORA;
}

static void check_adapter(const Options* o, int command) {
    bool adapts = o->adapter != ADAPT_NONE || o->adapter_dir;
    if (command == EXPORT && o->merge && !adapts) user_error("--merge: name the adapter with --adapter-dir DIR");
    if (!adapts || !(command & (TRAIN | BENCH | EXPORT))) return;
    if (o->rank < 1 || o->rank > 4096) user_error("--rank %d: must be from 1 to 4096", o->rank);
    Adapter a = options_adapter(o);
    if (!(o->alpha > 0)) user_error("--alpha %g: must be above 0", o->alpha);
    if (!isnormal(adapter_scale(&a)))
        user_error("--alpha %g: with --rank %d the adapter's scale lies beyond what a float holds, %g to %g", o->alpha, o->rank,
                   (double)__FLT_MIN__, (double)__FLT_MAX__);
    if (o->adapter == ADAPT_HUT && o->dropout > 0) user_error("--dropout %g: HUT has no input of its own to drop", o->dropout);
    if (o->adapter == ADAPT_HUT && o->qfsdp) user_error("--qfsdp: HUT needs the weights in 16 bits; ranks gather them as they are");
    if (o->adapter == ADAPT_HUT && o->adapter_dir) user_error("--adapter-dir: holds a LoRA adapter; --adapter hut cannot go on from it");
    if (o->adapter == ADAPT_HUT && command == TRAIN && o->out && !o->model)
        user_error("--adapter hut --out: its result is written into the model's own weights; name them with --model DIR");
    if (o->dropout >= 1 || dropout_threshold((float)o->dropout) > UINT16_MAX)   // of 16 bits of noise for each value
        user_error("--dropout %.9g: would drop every value; must be below 0.99999", o->dropout);
    if (o->quant_stats) user_error("--quant-stats: looks at the gradients of weights, which an adapter leaves frozen");
}

static void check_train(const Options* o, bool plans) {
    if (!o->data && !plans) user_error("train: name the data with --data FILE");
    if (o->val_split >= 1 || (o->val && o->val_split > 0)) user_error("--val-split %g: must be below 1, and without --val", o->val_split);
    if (o->eval_every && !o->val && !(o->val_split > 0))
        user_error("--eval-every %d: name the file to evaluate on with --val FILE", o->eval_every);
    if (o->val_metric && !o->val && !(o->val_split > 0)) user_error("--val-metric %s: name the file with --val FILE", o->val_metric);
    check_floats(o);
    if (o->steps && o->warmup > o->steps) user_error("--warmup %d: longer than the run, --steps %d", o->warmup, o->steps);
    if (o->keep_best && !o->val && !(o->val_split > 0)) user_error("--keep-best: name the file whose loss counts with --val FILE");
    if (!o->out && o->resume) user_error("--resume: name the run's folder with --out DIR");
    if (!o->out && o->save_every) user_error("--save-every %d: name the folder to save in with --out DIR", o->save_every);
    if (!o->out && o->keep_best) user_error("--keep-best: name the folder to save in with --out DIR");
}

// --chat: one of the words, or a template's file.
static void check_chat(const Options* o, int command) {
    if (!(command & (TRAIN | EVAL | GENERATE | INSPECT)) || word_number(o->chat, "auto|llama3|chatml|none") >= 0) return;
    if (access(o->chat, R_OK)) user_error("--chat %s: must be auto|llama3|chatml|none, or the file of a chat template", o->chat);
}

void options_check(const Options* o, int command, int ranks) {
    bool plans = command == PLAN;
    if (plans) command = TRAIN;   // what training refuses is not worth planning
    check_chat(o, command);
    check_batch(o, ranks);
    if (command == INSPECT && (!o->data || !o->model == !o->tokenizer))
        user_error("inspect: name the data with --data FILE, and --model DIR or --tokenizer DIR");
    if (command == INSPECT) check_micro_batch(o);
    if (command == INSPECT) return;
    if (!!o->model + !!o->preset + !!o->from_scratch != 1)
        user_error("name one of --model DIR|FILE.gguf, --preset NAME (%s) or --from-scratch DIR", config_preset_names());
    Config published;
    if (o->preset && !config_preset(&published, o->preset))
        user_error("--preset %s: must be one of %s", o->preset, config_preset_names());
    if (command == TRAIN) check_train(o, plans);
    if (command == EVAL && !o->data) user_error("eval: name the data with --data FILE");
    if (command == GENERATE && !o->data && ranks > 1) user_error("generate: without --data runs on one rank; start it without mpirun");
    if (command == GENERATE && o->prompt && o->data) user_error("generate: name one of --prompt TEXT and --data FILE");
    if (command == EXPORT && !o->out && !o->gguf) user_error("export: name the folder to write with --out DIR, or a file with --gguf FILE");
    if (command == EXPORT && o->resume && !o->out) user_error("export --resume: name the run's folder with --out DIR");
    if (command == EXPORT && o->gguf && ranks > 1) user_error("export --gguf: runs on one rank; start it without mpirun");
    if (command & (EVAL | GENERATE) && (o->slots == 0 || o->slots > kMostSlots))
        user_error("--batch %d: must be from 1 to %d", o->slots, (int)kMostSlots);
    if (command & (EVAL | GENERATE | TRAIN) && o->max_tokens < 1) user_error("--max-tokens %d: must be at least 1", o->max_tokens);
    if (command == EVAL && o->answers && !strcmp(o->metric, "loss")) user_error("--answers: choose what judges them with --metric");
    if (command == BENCH && o->generate > kMostSlots) user_error("--generate %d: at most %d", o->generate, (int)kMostSlots);
    if (command & (TRAIN | EVAL | BENCH)) check_micro_batch(o);
    check_adapter(o, command);
    if (command & (TRAIN | BENCH | EXPORT)) check_recipe(o, command, ranks);
}

void print_shell_word(FILE* out, const char* word) {
    bool plain = *word && !word[strspn(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:,=+@")];
    if (!plain) fputc('\'', out);
    for (; *word; word++) {
        if (*word == '\'') fputs("'\\'", out);
        fputc(*word, out);
    }
    if (!plain) fputc('\'', out);
}

char* options_line(const Options* o) {
    char text[64], *line;
    size_t bytes;
    FILE* out = open_memstream(&line, &bytes);
    check(out, "options_line: no memory");
    const char* between = "";
    for (int i = 0; i < kFlagCount; i++) {
        const Flag* f = &kFlags[i];
        const char *value = flag_text(o, f, text), *fallback = f->fallback ? f->fallback : f->type == SWITCH ? "no" : "";
        if (!(f->commands & TRAIN) || stays_outside(f->name) || !strcmp(value, fallback)) continue;
        if (f->type == NUMBER && strtod(value, NULL) == strtod(fallback, NULL)) continue;   // 1e-5 and 1e-05
        fprintf(out, "%s--%s", between, f->name);
        between = " ";
        if (f->type == SWITCH) continue;
        fputc(' ', out);
        print_shell_word(out, f->type != TRISTATE ? value : !strcmp(value, "yes") ? "on" : "off");
    }
    check(fclose(out) == 0, "options_line: no memory");
    return line;
}

// A string as TOML writes it.
static void put_quoted(FILE* out, const char* text) {
    fputc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f) fprintf(out, "\\u%04X", c);
        else fputc(c, out);
    }
    fputc('"', out);
}

// Is f at its default while the other flag of a pair (kEither) is set? Then options_write leaves f out, since both together would contradict.
static bool gives_way(const Options* o, const Flag* f, const char* value, int command) {
    if (f->fallback && strcmp(value, f->fallback)) return false;
    for (int i = 0; i < kEitherCount; i++)
        for (int k = 0; k < 2; k++) {
            const Flag* other = flag_named(kEither[i][k], command);
            char text[64];
            if (!other || strcmp(kEither[i][1 - k], f->name)) continue;
            const char* says = flag_text(o, other, text);
            if (*says && (!other->fallback || strcmp(says, other->fallback))) return true;
        }
    return false;
}

void options_write(FILE* out, const Options* o, int command) {
    char text[64];
    fputs("# flags of train_llama3, read by --config FILE; flags on the command line win\n", out);
    for (int i = 0; i < kFlagCount; i++) {
        const Flag* f = &kFlags[i];
        const char* value = flag_text(o, f, text);
        if (!takes(f, command) || !*value || stays_outside(f->name) || gives_way(o, f, value, command)) continue;
        bool truth = !strcmp(value, "yes") || !strcmp(value, "no");
        fprintf(out, "%s = ", f->name);
        if (truth && (f->type == SWITCH || f->type == TRISTATE)) fputs(!strcmp(value, "yes") ? "true" : "false", out);
        else if (f->type == NUMBER || (f->type == INTEGER && strcmp(value, "auto"))) fputs(value, out);
        else put_quoted(out, value);
        fputc('\n', out);
    }
}
