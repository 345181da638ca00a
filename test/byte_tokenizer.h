// A tokenizer that one can read: token b is the byte b, and from 256 on stand the special tokens of the chat formats. Tests
// write it as a tokenizer.json into a directory of their own and state what they expect as text, in which a special token
// reads {name}: text that merely looks like one cannot be mistaken for it.
#ifndef TEST_BYTE_TOKENIZER_H
#define TEST_BYTE_TOKENIZER_H

#include "../data/tokenizer.h"
#include "test.h"

#include <dirent.h>
#include <sys/stat.h>

typedef struct {
    const char *content, *shown;
} Special;
static const Special kSpecials[] = {
    {"<|begin_of_text|>", "{bos}"}, {"<|end_of_text|>", "{eos}"},      {"<|start_header_id|>", "{head}"},
    {"<|end_header_id|>", "{text}"}, {"<|eot_id|>", "{eot}"},          {"<|im_start|>", "{im}"},
    {"<|im_end|>", "{end}"},
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
    FILE* f = fopen(temp_path("tokenizer.json"), "wb");
    check(f, "cannot write %s", temp_path("tokenizer.json"));
    fputs("{\"version\":\"1.0\",\"added_tokens\":[", f);
    for (int i = first; i <= last; i++)
        fprintf(f, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                "\"normalized\":false,\"special\":true}", i > first ? "," : "", 256 + i, kSpecials[i].content);
    fputs("],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
          "\"use_regex\":true},\"post_processor\":", f);
    const char* bos = kSpecials[first].content;
    if (with_bos)
        fprintf(f, "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"%s\",\"type_id\":0}},"
                "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},"
                "{\"Sequence\":{\"id\":\"B\",\"type_id\":1}}],\"special_tokens\":"
                "{\"%s\":{\"id\":\"%s\",\"ids\":[%d],\"tokens\":[\"%s\"]}}}", bos, bos, bos, 256 + first, bos);
    else
        fputs("null", f);
    fputs(",\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
          "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
          "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{", f);
    for (int b = 0, moved = 0; b < 256; b++) {   // GPT-2's map of bytes to characters
        bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        fprintf(f, "%s\"\\u%04x\":%d", b ? "," : "", itself ? b : 256 + moved++, b);
    }
    fputs("},\"merges\":[]}}", f);
    check(fclose(f) == 0, "cannot write the tokenizer");
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
