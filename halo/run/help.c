// What the program says about itself; see help.h.
#include "help.h"

#include "../version.h"
#include "config_file.h"

static void print_version(void) {
    printf("train_llama3 %s (CPU"
#ifdef HALO_CUDA
           ", CUDA"
#endif
#ifdef HALO_MPI
           ", MPI"
#endif
#ifdef HALO_NCCL
           ", NCCL"
#endif
           ")\n", HALO_VERSION);
}

static void print_short_help(void) {
    puts("train_llama3 fine-tunes Llama-3 models with every large matrix product in 8 or 6 bits, at BF16 accuracy.\n"
         "  train_llama3 --level halo2 --dtype int8            the demo: a small Llama and its data are here already\n"
         "The three commands that are used most:\n"
         "  train_llama3 --model meta-llama/Llama-3.1-8B-Instruct --data mine.jsonl --level halo0 --dtype fp8 --out tuned\n"
         "  train_llama3 generate --model tuned                talk to it (--prompt \"...\": one answer)\n"
         "  train_llama3 eval --model tuned --data test.jsonl --metric exact\n"
         "A model is a Hugging Face folder, a name in your Hugging Face cache, or a GGUF file. A data file holds lines such as\n"
         "  {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", \"content\": \"...\"}]}\n"
         "Several GPUs: mpirun --bind-to none -np N train_llama3 ...   One small GPU: --adapter lora --recompute block\n"
         "All commands and flags: train_llama3 --help; those of another command: train_llama3 help COMMAND");
}

// ---- the manual page

// In troff a line's first '.' or '\'' is a request, a backslash an escape, and a plain '-' a hyphen.
static void put_troff(const char* text) {
    if (*text == '.' || *text == '\'') fputs("\\&", stdout);
    for (; *text; text++) {
        if (*text == '\\') fputs("\\e", stdout);
        else if (*text == '-') fputs("\\-", stdout);
        else putchar(*text);
    }
}

static void put_flag(const FlagInfo* f, const Command* commands, int count) {
    fputs(".TP\n\\fB", stdout);
    put_troff("--");
    put_troff(f->name);
    fputs("\\fR", stdout);
    if (f->values) {
        putchar(' ');
        put_troff(f->values);
    }
    putchar('\n');
    put_troff(f->help);
    if (f->values && f->fallback) {
        fputs(" (default ", stdout);
        put_troff(f->fallback);
        putchar(')');
    }
    int named = 0;
    for (int i = 0; i < count; i++)
        if (f->commands & commands[i].bit) printf("%s\\fI%s\\fR", named++ ? ", " : ".\nOf ", commands[i].name);
    puts(".");
}

static void print_man_page(const Command* commands, int count) {
    printf(".TH TRAIN_LLAMA3 1 \"\" \"train_llama3 %s\"\n.SH NAME\ntrain_llama3 \\- fine\\-tune Llama\\-3 models in 8 or 6 bits\n", HALO_VERSION);
    printf(".SH SYNOPSIS\n.B train_llama3\n[\\fIcommand\\fR] [\\fB\\-\\-flag\\fR \\fIvalue\\fR ...]\n.SH DESCRIPTION\n");
    puts("Every large matrix product, forward and backward, runs in INT8, FP8 or FP6, by Hadamard\\-assisted quantization (HALO, arXiv "
         "2501.02625). Without \\fB\\-\\-model\\fR and \\fB\\-\\-data\\fR the embedded demo is trained.\n.SH COMMANDS");
    for (int i = 0; i < count; i++) {
        printf(".TP\n.B %s\n", commands[i].name);
        put_troff(commands[i].help);
        putchar('\n');
    }
    puts(".SH FLAGS");
    FlagInfo f;
    for (int row = 0; options_flag_info(row, &f); row++) put_flag(&f, commands, count);
    puts(".SH \"EXIT STATUS\"\n0 done; 2 the user's input; 3 a rank died or hung; 4 stopped early, the state saved; 1 anything else.\n"
         ".SH ENVIRONMENT\n.TP\n.B HF_HUB_CACHE, HF_HOME\nwhere models named org/name are looked for (default ~/.cache/huggingface/hub)\n"
         ".TP\n.B OMP_NUM_THREADS\nthreads of a rank on the CPU");
}

// ---- the command line

static void check_arguments(int argc, char** argv, const Command* commands, int count) {
    const Command* command;
    Options o = options_parse(argc, argv, commands, count, read_config, &command);
    if (o.demo) o.model = o.data = o.val = "(the demo)";
    bool alone = (command->bit & (VERIFY | DOCTOR)) || o.score;   // no model is needed, so that there are no rules about it
    if (!alone) options_check(&o, command->bit, 1);
    printf("train_llama3 %s: these flags are fine\n", command->name);
}

bool help_asked(int argc, char** argv, const Command* commands, int count) {
    const char *first = argc > 1 ? argv[1] : "", *second = argc > 2 ? argv[2] : "";
    if (!strcmp(first, "--version")) {
        print_version();
        return true;
    }
    if (strcmp(first, "help")) return false;
    if (!*second) {
        print_short_help();
    } else if (!strcmp(second, "man")) {
        print_man_page(commands, count);
    } else if (!strcmp(second, "check")) {
        check_arguments(argc - 2, argv + 2, commands, count);
    } else {
        const Command* command;
        char* asking[] = {argv[0], argv[2], (char*)"--help", NULL};
        options_parse(3, asking, commands, count, read_config, &command);
    }
    return true;
}
