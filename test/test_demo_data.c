// The demo's data: the committed files are what the committed programs write, no prompt comes twice, the worked answers are
// right, and every chat is as short as the demo counts on.
#include "../data/files.h"
#include "../data/json.h"
#include "../data/tokenizer/tokenizer.h"
#include "test.h"

enum { kTestRows = 150, kTrainRows = 6000, kLongestChat = 128, kHeaderTokens = 11 };   // of a chat's two turns

static const char kDemo[] = "data/demo";

static bool same_file(const char* got_dir, const char* want_dir, const char* name) {
    char* paths[2] = {path_join(got_dir, name), path_join(want_dir, name)};
    size_t bytes[2];
    char* texts[2];
    for (int i = 0; i < 2; i++) texts[i] = file_read(paths[i], &bytes[i]);
    bool same = ok(bytes[0] == bytes[1] && !memcmp(texts[0], texts[1], bytes[0]), "%s is what the programs write", paths[1]);
    for (int i = 0; i < 2; i++) {
        free(texts[i]);
        free(paths[i]);
    }
    return same;
}

static void regenerate_case(void) {
    char* out = path_join(build_dir(), "test/demo_data");
    char* model = path_join(kDemo, "model");
    char command[2048];
    dir_make(out);
    snprintf(command, sizeof command,
             "p=%s/data/demo o=%s && $p/generate tasks $o && $p/generate corpus $o/pretrain.jsonl && "
             "$p/train_bpe $o $o/pretrain.jsonl $o/train.jsonl", build_dir(), out);
    if (ok(system(command) == 0, "generate and train_bpe run")) {
        same_file(out, kDemo, "test.jsonl");
        same_file(out, kDemo, "train.jsonl");
        same_file(out, model, "tokenizer.json");
        same_file(out, model, "tokenizer_config.json");
        same_file(out, model, "generation_config.json");
    }
    free(model);
    free(out);
}

// ---- what the chats say

typedef struct {
    char* user;
    char* assistant;
} Chat;

static int read_chats(const char* name, Chat* chats, int capacity) {
    char* path = path_join(kDemo, name);
    char* text = file_read(path, NULL);
    int count = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')) && count < capacity; line = end + 1) {
        json_t* row = json_parse(line, (size_t)(end - line), path);
        const json_t* messages = json_object_get(row, "messages");
        chats[count].user = host_strdup(member_string(json_array_get(messages, 0), "content", path));
        chats[count++].assistant = host_strdup(member_string(json_array_get(messages, 1), "content", path));
        json_decref(row);
    }
    free(text);
    free(path);
    return count;
}

static int by_prompt(const void* a, const void* b) { return strcmp(((const Chat*)a)->user, ((const Chat*)b)->user); }

// Every <<a+b=c>>c of an answer must hold, and #### must repeat the last c.
static bool sums_hold(const char* answer) {
    int left, right, result = 0, said, last;
    char op;
    for (const char* at = answer; (at = strstr(at, "<<")); at++) {
        if (sscanf(at, "<<%d%c%d=%d>>%d", &left, &op, &right, &result, &said) != 5) return false;
        int want = op == '+' ? left + right : op == '-' ? left - right : left * right;
        if (result != want || said != want) return false;
    }
    const char* closing = strstr(answer, "#### ");
    return closing && sscanf(closing, "#### %d", &last) == 1 && last == result;
}

static void chats_case(void) {
    Chat* chats = (Chat*)host_alloc((kTestRows + kTrainRows + 2) * sizeof(Chat));
    int tests = read_chats("test.jsonl", chats, kTestRows + 1);
    int count = tests + read_chats("train.jsonl", chats + tests, kTrainRows + 1);
    ok(tests == kTestRows && count == kTestRows + kTrainRows, "%d test and %d training chats", tests, count - tests);

    char* model = path_join(kDemo, "model");
    Tokenizer* tokenizer = tokenizer_load(model);
    free(model);
    int longest = 0, wrong_sums = 0, problems = 0, changed = 0;
    for (int i = 0; i < count; i++) {
        const char* parts[2] = {chats[i].user, chats[i].assistant};
        int tokens = kHeaderTokens;
        for (int p = 0; p < 2; p++) {
            TokenList ids = {0};
            Text back = {0};
            tokenizer_encode(tokenizer, parts[p], strlen(parts[p]), kEncodePlain, &ids);
            tokenizer_decode(tokenizer, ids.ids, ids.count, true, &back);
            tokens += ids.count;
            if (!back.data || strcmp(back.data, parts[p])) changed++;
            text_free(&back);
            token_list_free(&ids);
        }
        longest = max_int(longest, tokens);
        if (strstr(chats[i].assistant, "####")) {
            problems++;
            if (!sums_hold(chats[i].assistant)) wrong_sums++;
        }
    }
    tokenizer_free(tokenizer);
    ok(longest <= kLongestChat, "the longest chat has %d tokens, at most %d allowed", longest, kLongestChat);
    ok(changed == 0, "decode(encode(text)) is the text, %d of %d differ", changed, 2 * count);
    ok(problems == count / 3 && wrong_sums == 0, "%d word problems, %d with a wrong sum", problems, wrong_sums);
    ok(!sums_hold("Ada has 7 + 5 = <<7+5=12>>13 pens.\n#### 12") && !sums_hold("<<7+5=12>>12\n#### 11"),
       "a planted wrong sum is noticed");

    qsort(chats, (size_t)count, sizeof(Chat), by_prompt);
    int twice = 0;
    for (int i = 1; i < count; i++) twice += !strcmp(chats[i - 1].user, chats[i].user);
    ok(twice == 0, "%d prompts come twice in training and test together", twice);
    for (int i = 0; i < count; i++) {
        free(chats[i].user);
        free(chats[i].assistant);
    }
    free(chats);
}

static const Case cases[] = {{"demo_data.regenerate", regenerate_case}, {"demo_data.chats", chats_case}};
int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
