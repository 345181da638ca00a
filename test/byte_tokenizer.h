// A tokenizer of bytes (tokenizer_file.h) with the special tokens of the chat formats from 256 on. Tests write it into a directory of
// their own and state what they expect as text, in which a special token reads {name}: text that merely looks like one cannot be
// mistaken for it.
#ifndef TEST_BYTE_TOKENIZER_H
#define TEST_BYTE_TOKENIZER_H

#include "../data/tokenizer/tokenizer.h"
#include "tokenizer_file.h"

#include <dirent.h>
#include <sys/stat.h>

typedef struct {
    const char *content, *shown;
} Special;
static const Special kSpecials[] = {
    {"<|begin_of_text|>", "{bos}"}, {"<|end_of_text|>", "{eos}"},      {"<|start_header_id|>", "{head}"},
    {"<|end_header_id|>", "{text}"}, {"<|eot_id|>", "{eot}"},          {"<|im_start|>", "{im}"},
    {"<|im_end|>", "{end}"},
    // Seventeen more, for a text of many kinds.
    {"<|a|>", "{a}"}, {"<|b|>", "{b}"}, {"<|c|>", "{c}"}, {"<|d|>", "{d}"},
    {"<|e|>", "{e}"}, {"<|f|>", "{f}"}, {"<|g|>", "{g}"}, {"<|h|>", "{h}"},
    {"<|i|>", "{i}"}, {"<|j|>", "{j}"}, {"<|k|>", "{k}"}, {"<|l|>", "{l}"},
    {"<|m|>", "{m}"}, {"<|n|>", "{n}"}, {"<|o|>", "{o}"}, {"<|p|>", "{p}"},
    {"<|q|>", "{q}"},
};

// ---- the test's directory: made by main before any case runs (a case may fork), removed at its end
static char temp_dir[64];

static void temp_make(void) {
    snprintf(temp_dir, sizeof temp_dir, "/tmp/train_llama3_test_%ld", (long)getpid());
    check(mkdir(temp_dir, 0700) == 0, "%s: cannot be made", temp_dir);
}

static const char* temp_path(const char* name) {
    static char path[4][512];
    static int next;
    char* p = path[next++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", temp_dir, name);
    return p;
}

static void temp_write(const char* name, const char* text) {
    FILE* file = fopen(temp_path(name), "wb");
    check(file && fputs(text, file) >= 0 && fclose(file) == 0, "cannot write %s", temp_path(name));
}

static void temp_remove(void) {
    DIR* dir = opendir(temp_dir);
    for (struct dirent* entry; dir && (entry = readdir(dir)) != NULL;)
        if (entry->d_name[0] != '.') unlink(temp_path(entry->d_name));
    if (dir) closedir(dir);
    rmdir(temp_dir);
}

// ---- the tokenizer
// `first` .. `last` are the special tokens that it has; with_bos: its post-processor puts the first one before a text.
static Tokenizer* byte_tokenizer(int first, int last, bool with_bos) {
    const char* special[COUNT(kSpecials)];
    for (int i = first; i <= last; i++) special[i - first] = kSpecials[i].content;
    write_byte_tokenizer(temp_path("tokenizer.json"), special, last - first + 1, first, with_bos);
    return tokenizer_load(temp_dir);
}

// ids as text, special tokens as {name}; with `scored`, only the tokens whose flag is set. Valid until the fourth next call.
static const char* shown(const int* ids, const unsigned char* scored, int count) {
    static char text[4][1 << 14];
    static int next;
    char* out = text[next++ % 4];
    size_t n = 0;
    for (int i = 0; i < count && n < sizeof text[0] - 16; i++) {
        if (scored && !scored[i]) continue;
        if (ids[i] >= 0 && ids[i] < 256) out[n++] = (char)ids[i];
        else if (ids[i] >= 256 && ids[i] < 256 + COUNT(kSpecials))
            n += (size_t)sprintf(out + n, "%s", kSpecials[ids[i] - 256].shown);
        else n += (size_t)sprintf(out + n, "{%d}", ids[i]);
    }
    out[n] = 0;
    return out;
}

// One line of output whatever the texts hold.
static bool same_text(const char* got, const char* want, const char* name) {
    bool same = !strcmp(got, want);
    ok(same, "%s", name);
    if (!same) printf("  got  %s\n  want %s\n", got, want);
    return same;
}

#endif
