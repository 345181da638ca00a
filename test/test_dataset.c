// Data files: every form and every error; cutting, packing, shuffling; the arrays of a batch.
#include "../data/batch.h"
#include "../data/packing.h"
#include "../halo/rng.h"
#include "../data/inspect.h"
#include "../data/record.h"
#include "../halo/progress.h"

#include "byte_tokenizer.h"

#include <zlib.h>

enum { kBos, kEos, kHead, kText, kEot, kImStart, kImEnd };

static Tokenizer* tokenizer;   // bytes, every special token, BOS by the post-processor
static ChatFormat none, llama3;

static DataOptions options_of(const ChatFormat* chat, int seq) {
    DataOptions o;
    memset(&o, 0, sizeof o);
    o.chat = chat;
    o.seq = seq;
    return o;
}

static Dataset* load(const char* name, const char* content, DataOptions options) {
    temp_write(name, content);
    return dataset_load(temp_path(name), tokenizer, &options);
}

// ---- forms

typedef struct {
    const char *file, *content;
    const char *tokens, *scored, *reference;   // of the last record; tokens up to prompt_count stand before the |
    int records;
    const char* name;
} Form;

static void expect_form(const Form* want, const ChatFormat* chat) {
    progress_phase("the test", -1);
    Dataset* d = load(want->file, want->content, options_of(chat, 2000));
    const Example* e = dataset_example(d, want->records - 1);
    char got[8192];
    snprintf(got, sizeof got, "%s|%s", shown(e->tokens, NULL, e->prompt_count),
             shown(e->tokens + e->prompt_count, NULL, e->count - e->prompt_count));
    same_text(got, want->tokens, want->name);
    same_text(shown(e->tokens, e->scored, e->count), want->scored, "  its scored tokens");
    ok(dataset_stats(d)->records == want->records && (e->reference == NULL) == (want->reference == NULL) &&
       (!e->reference || !strcmp(e->reference, want->reference)), "  its reference; %d records", want->records);
    ok(!strcmp(progress_place().phase, "tokenizing"), "  the watchdog hears of them");
    dataset_free(d);
}

#define VIGGO \
    "Given a target sentence construct the underlying meaning representation of the input sentence as a single function with " \
    "attributes and attribute values. This function should describe the target string accurately and the function must be one " \
    "of the following ['inform', 'request', 'give_opinion', 'confirm', 'verify_attribute', 'suggest', 'request_explanation', " \
    "'recommend', 'request_attribute']. The attributes must be one of the following: ['name', 'exp_release_date', " \
    "'release_year', 'developer', 'esrb', 'rating', 'genres', 'player_perspective', 'has_multiplayer', 'platforms', " \
    "'available_on_steam', 'has_linux_release', 'has_mac_release', 'specifier']\n\n### Target sentence:\n"

static void forms_case(void) {
    static const Form plain[] = {
        {"a.jsonl", "{\"prompt\": \"Q\", \"completion\": \"A\"}\r\n\n{\"completion\": \"B \\u00e9\", \"prompt\": \"\\/\"}",
         "{bos}/|B \xc3\xa9{eos}", "B \xc3\xa9{eos}", "B \xc3\xa9", 2, "prompt, completion"},
        {"a.jsonl", "\xef\xbb\xbf{\"question\": \"Q?\", \"answer\": \"#### 4\"}\n", "{bos}Q?\n|#### 4{eos}", "#### 4{eos}",
         "#### 4", 1, "question, answer (behind a byte order mark)"},
        {"a.jsonl", "{\"instruction\": \"I\", \"input\": \"\", \"output\": \"O\"}", "{bos}I\n|O{eos}", "O{eos}", "O", 1,
         "instruction, output; empty input"},
        {"a.jsonl", "{\"instruction\": \"I\", \"output\": \"O\"}\n{\"instruction\": \"I\", \"input\": \"in\", \"output\": \"O\"}",
         "{bos}I\n\nin\n|O{eos}", "O{eos}", "O", 2, "instruction, input, output"},
        {"a.jsonl", "{\"text\": \"a<|eot_id|>\"}", "|{bos}a{eot}{eos}", "a{eot}{eos}", NULL, 1, "text: special tokens are recognised"},
        {"a.jsonl", "{\"text\": \"<|begin_of_text|>a<|end_of_text|>\"}", "|{bos}a{eos}", "a{eos}", NULL, 1,
            "text: BOS and EOS are not doubled"},
        {"a.jsonl", "{\"prompt\": \"\", \"completion\": \"A\"}\n{\"prompt\": \"\", \"completion\": \"\"}", "{bos}|{eos}", "{eos}", "", 2,
         "nothing but the end"},
        {"a.jsonl", "{\"instruction\": \"I\", \"input\": null, \"output\": 7, \"id\": 1}\n{\"instruction\": \"I\", \"output\": 0.1}",
         "{bos}I\n|0.1{eos}", "0.1{eos}", "0.1", 2, "a null input, numbers as answers, other columns"},
        {"a.jsonl", "{\"instruction\": \"I\", \"context\": \"C\", \"response\": \"R\", \"category\": \"x\"}", "{bos}I\n\nC\n|R{eos}",
            "R{eos}", "R", 1,
         "Dolly"},
        {"a.json", "[{\"question\": \"Q\", \"answer\": \"A\"},\n {\"question\": \"R\",\n  \"answer\": \"B\"}\n]\n", "{bos}R\n|B{eos}",
            "B{eos}", "B", 2,
         "a JSON array over several lines"},
        {"a.csv", "question,answer,id\nQ,A,1\n", "{bos}Q\n|A{eos}", "A{eos}", "A", 1, "other columns in CSV"},
        {"a.csv", "mr,ref\r\n\"inform(name[\"\"X\"\", y])\",\"A\nB, c\"\r\nf(x),plain\r\n",
         "{bos}" VIGGO "plain\n|f(x){eos}", "f(x){eos}", "f(x)", 2, "ViGGO"},
        {"a.csv", "target,meaning_representation\n\"say \"\"hi\"\"\n, now\",\"g[a, b]\"",
         "{bos}" VIGGO "say \"hi\"\n, now\n|g[a, b]{eos}", "g[a, b]{eos}", "g[a, b]", 1,
         "ViGGO, the other names in the other order, quoted"},
    };
    for (int i = 0; i < COUNT(plain); i++) expect_form(&plain[i], &none);
    static const Form chat[] = {
        {"a.jsonl", "{\"messages\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q\"}, "
         "{\"role\": \"assistant\", \"content\": \" A\"}, {\"content\": \"R\", \"role\": \"user\"}, "
         "{\"role\": \"assistant\", \"content\": \"B\"}]}",
         "{bos}{head}system{text}\n\nS{eot}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}{head}user{text}\n\nR{eot}"
         "{head}assistant{text}\n\n|B{eot}", "A{eot}B{eot}", "B", 1, "messages: every answer is trained on"},
        {"a.jsonl", "{\"prompt\": \"Q\", \"completion\": \"A\"}", 
         "{bos}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\n|A{eot}", "A{eot}", "A", 1, "prompt, completion in a chat"},
        {"a.jsonl", "{\"text\": \"T\"}", "|{bos}T{eos}", "T{eos}", NULL, 1, "text has no chat around it"},
    };
#define SHARED "{bos}{head}system{text}\n\nS{eot}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}{head}user{text}\n\nR{eot}" \
    "{head}assistant{text}\n\n|B{eot}"
    static const Form shared[] = {
        {"a.jsonl", "{\"conversations\": [{\"from\": \"system\", \"value\": \"S\"}, {\"from\": \"human\", \"value\": \"Q\"}, {\"from\": \"gpt\", "
         "\"value\": \"A\"}, {\"from\": \"human\", \"value\": \"R\"}, {\"from\": \"gpt\", \"value\": \"B\"}, {\"from\": \"human\", \"value\": \"?\"}]}",
         SHARED, "A{eot}B{eot}", "B", 1, "ShareGPT, with a last question that is left off"},
        {"a.jsonl", "{\"prompt\": [{\"role\": \"system\", \"content\": \"S\"}, {\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", "
         "\"content\": \"A\"}, {\"role\": \"user\", \"content\": \"R\"}], \"completion\": \"B\"}", SHARED, "B{eot}", "B", 1,
         "a prompt of messages: what is in it is not trained"},
        {"a.jsonl", "{\"prompt\": \"Q\", \"chosen\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"A\"}], "
         "\"rejected\": \"no\"}", "{bos}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\n|A{eot}", "A{eot}", "A", 1,
             "a chosen conversation"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"A\", \"weight\": 0}, "
         "{\"role\": \"tool\", \"content\": \"T\", \"name\": \"f\"}, {\"role\": \"assistant\", \"content\": \"B\", \"weight\": 1}]}",
         "{bos}{head}user{text}\n\nQ{eot}{head}assistant{text}\n\nA{eot}{head}tool{text}\n\nT{eot}{head}assistant{text}\n\n|B{eot}",
             "B{eot}",
         "B", 1, "weight 0, and a tool's turn"},
    };
    for (int i = 0; i < COUNT(chat); i++) expect_form(&chat[i], &llama3);
    for (int i = 0; i < COUNT(shared); i++) expect_form(&shared[i], &llama3);
    none.specials = SPECIALS_TEMPLATE;
    static const Form plain_text = {"a.jsonl", "{\"text\": \"a<|eot_id|>\"}", "|{bos}a<|eot_id|>{eos}", "a<|eot_id|>{eos}", NULL, 1,
                                    "text with --special-tokens template"};
    expect_form(&plain_text, &none);
    none.specials = SPECIALS_AUTO;
    DataOptions all = options_of(&llama3, 100);
    all.train_on_prompt = true;
    Dataset* d = load("a.jsonl", chat[1].content, all);
    const Example* e = dataset_example(d, 0);
    ok(e->scored_count == e->count - 1 && !e->scored[0], "train on the prompt: every token but the first");
    dataset_free(d);
}

// ---- errors

typedef struct {
    const char *file, *content, *words;
} Refusal;

static void load_refused(void* arg) {
    const Refusal* r = (const Refusal*)arg;
    load(r->file, r->content, options_of(&none, 100));
}

static void load_without_column(void* arg);

static void load_absent(void* arg) {
    DataOptions options = options_of(&none, 100);
    dataset_load((const char*)arg, tokenizer, &options);
}

static void errors_case(void) {
#define GOOD "{\"prompt\": \"Q\", \"completion\": \"A\"}\n"
    static Refusal all[] = {
        {"a.jsonl", GOOD "{\"prompt\": \"Q\" \"completion\": \"A\"}\n", "a.jsonl:2:27: not valid JSON"},
        {"a.jsonl", GOOD "\n{\"prompt\": \"Q\", ", "a.jsonl:3:"},
        {"a.jsonl", "\xff\xfe{", "a.jsonl: UTF-16, and only UTF-8 is read"},
        {"a.csv", "PK\x03\x04x", "a.csv: a ZIP archive or a spreadsheet"},
        {"a.jsonl", "{\n\"prompt\": \"Q\", \"completion\": \"A\"}\n", "a.jsonl:1:2: not valid JSON: the line ends inside a value"},
        {"a.jsonl", GOOD "{\"prompt\": \"Q\", \"completion\": \"A\"\n", "a.jsonl:2:34: not valid JSON: the line ends inside a value"},
        {"a.jsonl", "{\"prompt\": \"Q\", \"completion\": \"A\n", "the line ends inside a value"},
        {"a.jsonl", GOOD "{\"prompt\": \"Q\", \"completion\": \"A\"},\n", "a.jsonl:2:35: not valid JSON: something follows the value"},
        {"a.jsonl", "{\"prompt\": \"\xff\", \"completion\": \"A\"}", "a.jsonl:1:"},
        {"a.jsonl", "{\"prompt\": \"a\", \"prompt\": \"b\", \"completion\": \"A\"}", "duplicate object key"},
        {"a.jsonl", "{\"input\": \"Q\"}", "a.jsonl:1:1: no known form"},
        {"a.jsonl", "{\"input\": \"Q\"}", "question, answer | ref, mr | target, meaning_representation | text"},
        {"a.jsonl", "[1, 2]", "a.jsonl:1:2: expected a JSON object"},
        {"a.jsonl", "[" GOOD GOOD "]", "a.jsonl:2:1: a comma or the list's closing bracket"},
        {"a.jsonl", "[\n" GOOD ",{\"prompt\": 1 2}]", "a.jsonl:3:"},
        {"a.jsonl", "[" GOOD "] x", "a.jsonl:2:3: something follows the list"},
        {"a.jsonl", GOOD "{\"question\": \"Q\", \"answer\": \"A\"}", "a.jsonl:2:1: the key \"prompt\" is missing"},
        {"a.jsonl", "{\"prompt\": \"Q\"}", "\"completion\" is missing"},
        {"a.jsonl", "{\"instruction\": \"Q\", \"output\": null}", "a.jsonl:1:22: \"output\" has to be a string"},
        {"a.jsonl", "{\"instruction\": \"Q\", \"input\": [3], \"output\": \"O\"}", "\"input\" has to be a string"},
        {"a.jsonl", "{\"text\": [\"T\"]}", "\"text\" has to be a string"},
        {"a.jsonl", "{\"messages\": \"Q\"}", "a.jsonl:1:2: \"messages\" has to be a list"},
        {"a.jsonl", "{\"messages\": []}", "at least one message"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"assistant\"}]}", "message 1 has to be an object"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"bard\", \"content\": \"\"}]}", "a.jsonl:1:24: role \"bard\" in message 1"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": [{\"type\": \"image\"}]}]}", "only texts can be trained"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\", \"weight\": 0.5}]}",
            "\"weight\" of message 1 has to be 0 or 1"},
        {"a.jsonl", "{\"conversations\": [{\"from\": \"bard\", \"value\": \"\"}]}", "\"from\": \"bard\""},
        {"a.jsonl", "{\"prompt\": \"Q\", \"completion\": \"\"}\n{\"prompt\": \"Q\", \"completion\": \" \"}", "every answer is empty"},
        {"a.parquet", "PAR1....", "pandas.read_parquet"},
        {"a.jsonl", "version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"},
        {"a.jsonl", "\x1f\x8b\x08", "the gzip data are broken or cut off"},
        {"a.csv", "mr,ref\na,b\n\xff,c\n", "a.csv:3:1: not valid UTF-8"},
        {"a.csv", "mr,mr\na,b\n", "two columns are called"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}]}", "the last message has to be the assistant's"},
        {"a.jsonl", "{\"messages\": [{\"role\": \"assistant\", \"content\": null}]}", "\"content\" has to be a string"},
        {"a.jsonl", "", "no records"},
        {"a.jsonl", " \n\r\n", "no records"},
        {"a.csv", "mr,ref\n", "no records"},
        {"a.csv", "mr,text2\na,b\n", "a.csv:2:1: no known form"},
        {"a.csv", "mr,ref\na,b\na\n", "a.csv:3:1: 1 fields"},
        {"a.csv", "mr,ref\na,\"b\nc\nd", "a.csv:2:3: this quote is never closed"},
        {"a.csv", "mr,ref\na,\"b\nc\" d\n", "a.csv:3:3: a comma or the line's end"},
        {"a.csv", "mr,ref\na,b\"c\n", "a.csv:2:4: a quote inside an unquoted field"},
        {"a.jsonl", "{\"prompt\": \"Q\", \"completion\": \"0123456789012345678901234567890123456789012345678901234567890123456789"
         "01234567890123456789012345678901234567890123456789\"}", "an epoch would train no token: 1 of 1 records"},
    };
    for (int i = 0; i < COUNT(all); i++) expect_exit(load_refused, &all[i], kExitUser, all[i].words, all[i].words);
    temp_write("q.txt", "{gone}");
    expect_exit(load_without_column, (void*)temp_path("q.txt"), kExitUser, "the record has no \"gone\"",
        "--prompt-file with a column that is not there");
    expect_exit(load_absent, (void*)temp_path("absent.jsonl"), kExitUser, "absent.jsonl", "a file that is not there");
}

// Lines that are no records are all named.
static void faults_case(void) {
    char text[4096] = GOOD GOOD, said[4096];
    temp_write("f.jsonl", text);
    FILE* to = tmpfile();
    check(to, "no temporary file");
    ok(records_faults(temp_path("f.jsonl"), NULL, to) == 0 && ftell(to) == 0, "no faults");
    strcpy(text, "{\n" GOOD "{\"prompt\": 1 2}\n\n{\"prompt\": \"Q\"}\n" GOOD);
    for (int i = 0; i < 25; i++) strcat(text, "[]x\n");
    temp_write("f.jsonl", text);
    int count = records_faults(temp_path("f.jsonl"), NULL, to);
    rewind(to);
    said[fread(said, 1, sizeof said - 1, to)] = 0;
    fclose(to);
    ok(count == 28 && strstr(said, "f.jsonl:1:2: not valid JSON") && strstr(said, "f.jsonl:3:14: ") && strstr(said, "f.jsonl:5:1: the key") &&
           !strstr(said, "f.jsonl:2:") && !strstr(said, "f.jsonl:6:") && strstr(said, "f.jsonl: and 8 more such lines\n"),
       "%d faults: %s", count, said);
}

// ---- which records, and what is said of them

static int examples_of(const char* paths, DataOptions o) {
    Dataset* d = dataset_load(paths, tokenizer, &o);
    int count = dataset_stats(d)->examples;
    dataset_free(d);
    return count;
}

static void select_case(void) {
    FILE* f = fopen(temp_path("n.jsonl"), "wb");
    for (int i = 0; i < 1000; i++) fprintf(f, "{\"prompt\": \"%d\", \"completion\": \"A\"}\n", i);
    fclose(f);
    temp_write("m.jsonl", "{\"question\": \"Q\", \"answer\": \"A\"}\n");
    DataOptions o = options_of(&none, 100);
    char both[1024];
    snprintf(both, sizeof both, "%s:0.3,%s", temp_path("n.jsonl"), temp_path("m.jsonl"));
    ok(examples_of(both, o) == 301, "two files, one with a share");
    o.limit = 7;
    ok(examples_of(both, o) == 7, "a limit");
    o.limit = 0;
    o.val_split = 0.1;
    int rest = examples_of(temp_path("n.jsonl"), o);
    o.held_out = true;
    int held = examples_of(temp_path("n.jsonl"), o);
    ok(rest + held == 1000 && held > 60 && held < 140, "val-split 0.1 holds out %d of 1000", held);
    RecordList list = records_read(temp_path("m.jsonl"), NULL), again = records_read(temp_path("n.jsonl"), NULL);
    ok(record_hash(&list.records[0]) != record_hash(&again.records[0]) && record_hash(&again.records[3]) != record_hash(&again.records[4]),
       "records have hashes of their own");
    records_free(&list);
    records_free(&again);
}

static void gzip_case(void) {
    gzFile z = gzopen(temp_path("z.jsonl.gz"), "wb");
    for (int i = 0; i < 5000; i++) gzprintf(z, "{\"prompt\": \"%d\", \"completion\": \"A\"}\n", i);
    gzclose(z);
    ok(examples_of(temp_path("z.jsonl.gz"), options_of(&none, 100)) == 5000, "gzip: 5000 records");
}

static void prompt_file_case(void) {
    temp_write("p.txt", "Say {ref} {x} {\"a\": {}}\n{mr}:");
    DataOptions o = options_of(&none, 300);
    o.prompt_file = temp_path("p.txt");
    static const char csv[] = "mr,ref,x\nm,r,{ref}\n";
    Dataset* d = load("a.csv", csv, o);
    const Example* e = dataset_example(d, 0);
    same_text(shown(e->tokens, NULL, e->count), "{bos}Say r {ref} {\"a\": {}}\nm:\nm{eos}", "--prompt-file: columns in braces");
    dataset_free(d);
    const char* own = refpack("data/prompts/viggo.txt");
    if (!own) return;
    o.prompt_file = own;
    d = load("a.csv", "meaning_representation,target\nm,r\n", o);
    o.prompt_file = NULL;
    Dataset* built_in = load("a.csv", "meaning_representation,target\nm,r\n", o);
    ok(d && dataset_example(d, 0)->count == dataset_example(built_in, 0)->count &&
       !memcmp(dataset_example(d, 0)->tokens, dataset_example(built_in, 0)->tokens, sizeof(int) * (size_t)dataset_example(d, 0)->count),
       "--prompt-file with the paper's prompt: what is built in");
    dataset_free(d);
    dataset_free(built_in);
}

static void load_without_column(void* arg) {
    DataOptions o = options_of(&none, 300);
    o.prompt_file = (const char*)arg;
    load("a.csv", "mr,ref\nm,r\n", o);
}

static void inspect_case(void) {
    DataOptions o = options_of(&llama3, 200);
    o.inspect = true;
    o.texts = 2;
    Dataset* d = load("a.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"<|eot_id|>\"}, {\"role\": \"assistant\", \"content\": \"A\"}], \"id\": 1}\n"
                      "{\"messages\": [{\"role\": \"assistant\", \"content\": \"A\", \"weight\": 0}]}\n", o);
    char *text = NULL, *shown_text = NULL;
    size_t bytes = 0, shown_bytes = 0;
    FILE* f = open_memstream(&text, &bytes);
    InspectOptions json = {2, true, false}, plain = {2, false, false};
    inspect_dataset(d, tokenizer, &json, f);
    fclose(f);
    char* second = strchr(text, '\n');
    json_t* line = json_loadb(text, (size_t)(second - text), 0, NULL);
    json_t *tokens = json_object_get(line, "tokens"), *trained = json_object_get(line, "trained");
    ok(line && !strcmp(json_string_value(json_object_get(line, "text")),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|eot_id|><|eot_id|>"
       "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"), "inspect --json: the rendered text");
    size_t n = json_array_size(tokens);
    ok(n > 2 && json_array_size(trained) == n && json_integer_value(json_array_get(trained, n - 1)) == 1 &&
       json_integer_value(json_array_get(trained, n - 2)) == 1 && json_integer_value(json_array_get(trained, n - 3)) == 0,
       "inspect --json: %zu tokens, the last two trained", n);
    ok(strchr(second + 1, '\n') == text + bytes - 1, "inspect --json: a line an example, one without training among them");
    json_decref(line);
    f = open_memstream(&shown_text, &shown_bytes);
    inspect_dataset(d, tokenizer, &plain, f);
    fclose(f);
    ok(strstr(shown_text, "[[A<|eot_id|>]]") && strstr(shown_text, "NOTHING TO TRAIN") && strstr(shown_text, "ignored: id") &&
       strstr(shown_text, "1 spellings of special tokens") && strstr(shown_text, "2 records of conversations (messages)"),
           "inspect: marks and counts");
    free(text);
    free(shown_text);
    dataset_free(d);
}

// What inspect_summary says of some records; to be freed.
static char* summary_of(const char* content, const ChatFormat* chat, int seq) {
    DataOptions o = options_of(chat, seq);
    o.inspect = true;
    Dataset* d = load("a.jsonl", content, o);
    enum { kMostBytes = 16 << 10 };
    char* text = (char*)host_alloc(kMostBytes);
    FILE* f = fmemopen(text, kMostBytes, "w");
    inspect_summary(d, tokenizer, chat, seq, f);
    fclose(f);
    dataset_free(d);
    return text;
}

static long count_in(const char* summary, const char* row) {
    const char* at = strstr(summary, row);
    return at ? strtol(at + strlen(row), NULL, 10) : -1;
}

#define ANSWER(text) "{\"messages\": [{\"role\": \"user\", \"content\": \"Q\"}, {\"role\": \"assistant\", \"content\": \"" text "\"}]}\n"

static void summary_case(void) {
    static const char kRecords[] = ANSWER("A") ANSWER("B") ANSWER("A") ANSWER("a longer answer than the others are") ANSWER("A") ANSWER("B");
    static const struct {
        const char *name, *template_text;
        long twice, endless;
    } forms[] = {
        {"right.jinja", "<|begin_of_text|>{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}", 0, 0},
        {"twice.jinja", "<|begin_of_text|><|begin_of_text|>{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}", 6, 0},
        {"endless.jinja", "<|begin_of_text|>{% for m in messages %}{{ m.content }}{% endfor %}", 0, 6},
    };
    for (int i = 0; i < COUNT(forms); i++) {
        temp_write(forms[i].name, forms[i].template_text);
        ChatOptions options = {temp_path(forms[i].name), NULL, SPECIALS_AUTO};
        ChatFormat chat = chat_open(temp_dir, tokenizer, &options);
        char* text = summary_of(kRecords, &chat, 200);
        ok(count_in(text, "begin with two BOS tokens") == forms[i].twice && count_in(text, "answers without an end token") == forms[i].endless,
           "summary of %s: %ld begin twice, %ld do not end", forms[i].name, forms[i].twice, forms[i].endless);
        ok(count_in(text, "duplicates") == 3 && strstr(text, "line 3 repeats line 1") && strstr(text, "line 5 repeats line 1") &&
           strstr(text, "line 6 repeats line 2"), "  three of six records repeat an earlier one");
        ok(count_in(text, "empty answers") == 0, "  no answer is empty");
        ok(count_in(text, "records") == 6 && strstr(text, " tokens, line 4") && fits_80_columns(text, NULL), "  the longest is named; lines of 80 columns");
        free(text);
        text = summary_of(ANSWER("A") ANSWER("") ANSWER(" \\n ") ANSWER("B"), &chat, 200);
        ok(count_in(text, "empty answers") == (i == 2 ? 1 : 2) && strstr(text, "\n    line 3\n"), "  empty answers are counted and named: %ld",
           count_in(text, "empty answers"));
        free(text);
        chat_free(&chat);
    }
    static const char kLong[] = "{\"text\": \"0123456789012345678901234567890123456789\"}\n{\"text\": \"0\"}\n";
    char *whole = summary_of(kLong, &none, 100), *cut = summary_of(kLong, &none, 10);
    ok(count_in(whole, "answers without an end token") == 0 && count_in(cut, "answers without an end token") == 0 && strstr(cut, "the longest 11"),
       "a text that goes on in the next row lacks no end");
    ok(!fits_80_columns("                                                                                 ", NULL), "81 columns are noticed");
    free(whole);
    free(cut);
}

// ---- lengths

static void lengths_case(void) {
    // 4 tokens with BOS and EOS; 12; and a completion that alone is too long
    static const char file[] = "{\"prompt\": \"Q\", \"completion\": \"A\"}\n{\"prompt\": \"01234567\", \"completion\": \"AB\"}\n"
                               "{\"prompt\": \"Q\", \"completion\": \"0123456789\"}\n";
    DataOptions o = options_of(&none, 7);
    Dataset* d = load("a.jsonl", file, o);
    const DataStats* s = dataset_stats(d);
    ok(s->records == 3 && s->examples == 2 && s->truncated == 1 && s->skipped == 1 && s->tokens == 4 + 8 && s->scored == 2 + 3,
       "truncate: counts (%d examples, %d truncated, %d skipped, %zu tokens, %zu scored)", s->examples, s->truncated, s->skipped,
       s->tokens, s->scored);
    const Example* e = dataset_example(d, 1);
    same_text(shown(e->tokens, NULL, e->count), "{bos}4567AB{eos}", "truncate: BOS, the end of the prompt, the completion");
    ok(e->prompt_count == 5 && e->scored_count == 3, "truncate: prompt and scored tokens move along");
    dataset_free(d);
    o.long_policy = LONG_SKIP;
    d = load("a.jsonl", file, o);
    s = dataset_stats(d);
    ok(s->examples == 1 && s->truncated == 0 && s->skipped == 2, "skip: counts");
    dataset_free(d);

    d = load("a.jsonl", "{\"text\": \"0123456789\"}", options_of(&none, 5));   // 12 tokens, 11 of them predicted
    s = dataset_stats(d);
    ok(s->examples == 3 && s->scored == 11 && s->truncated == 0, "a long text: three chunks that predict each token once");
    same_text(shown(dataset_example(d, 0)->tokens, NULL, dataset_example(d, 0)->count), "{bos}01234", "  first chunk");
    same_text(shown(dataset_example(d, 1)->tokens, NULL, dataset_example(d, 1)->count), "456789", "  second chunk");
    same_text(shown(dataset_example(d, 2)->tokens, NULL, dataset_example(d, 2)->count), "9{eos}", "  last chunk");
    dataset_free(d);
    d = load("a.jsonl", "{\"text\": \"012345678\"}", options_of(&none, 5));    // 11 tokens: two full chunks, nothing left over
    ok(dataset_stats(d)->examples == 2 && dataset_stats(d)->scored == 10, "a text that fills its chunks exactly");
    dataset_free(d);
}

// ---- batches

static bool same_ints(const int* got, const int* want, int n, const char* name) {
    bool same = !memcmp(got, want, (size_t)n * sizeof(int));
    ok(same, "%s", name);
    for (int i = 0; !same && i < n; i++) printf("  %d: got %d, want %d\n", i, got[i], want[i]);
    return same;
}

static void batch_case(void) {
    Dataset* d = load("a.jsonl", "{\"prompt\": \"Q\", \"completion\": \"AA\"}", options_of(&none, 6));
    RowBatch b = batch_new(2, 6);
    batch_fill_rows(&b, d, 0);
    static const int tokens[] = {256, 'Q', 'A', 'A', 0, 0, 0, 0, 0, 0, 0, 0};
    static const int targets[] = {-100, 'A', 'A', 257, -100, -100, -100, -100, -100, -100, -100, -100};
    static const int pos[] = {0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0};
    static const int start[] = {0, 0, 0, 0, 4, 5, 0, 1, 2, 3, 4, 5};
    static const int end[] = {4, 4, 4, 4, 5, 6, 1, 2, 3, 4, 5, 6};
    static const int order[] = {4, 5, 6, 7, 8, 9, 10, 11, 2, 3, 1, 0};
    same_ints(b.arrays.tokens, tokens, 12, "batch: tokens, and a row of padding behind the last row");
    same_ints(b.arrays.targets, targets, 12, "batch: targets");
    same_ints(b.arrays.pos, pos, 12, "batch: positions");
    same_ints(b.arrays.start, start, 12, "batch: attention starts");
    same_ints(b.arrays.end, end, 12, "batch: attention ends");
    same_ints(b.arrays.order, order, 12, "batch: order by token id");
    ok(b.scored == 3 && b.used == 4 && dataset_scored(d, 0, 2) == 3 && dataset_scored(d, 1, 5) == 0, "batch: counts");
    batch_fill_rows(&b, d, 1);
    ok(b.scored == 0 && b.used == 0 && b.arrays.tokens[0] == 0, "batch: filled anew, all padding");
    batch_free(&b);
    dataset_free(d);
}

// A file of `n` records whose lengths vary and whose completions name them.
static void write_many(const char* name, int n) {
    FILE* f = fopen(temp_path(name), "wb");
    check(f, "cannot write");
    for (int i = 0; i < n; i++)
        fprintf(f, "{\"prompt\": \"%.*s\", \"completion\": \"%04d\"}\n", 1 + (i * 7919) % 50,
                "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz", i);
    fclose(f);
}

// Reads the documents back out of a batch by its attention ranges and marks the records that they name. False if an array
// contradicts another: ranges that overlap, positions that do not restart, targets that are not the next token.
static bool read_back(const RowBatch* b, int* seen, int records) {
    const Batch* a = &b->arrays;
    int scored = 0;
    for (int row = 0; row < a->B; row++) {
        for (int from = 0; from < b->T;) {
            int base = row * b->T, to = a->end[base + from];
            if (to <= from || to > b->T) return false;
            char digits[8];
            int n = 0;
            for (int i = from; i < to; i++) {
                if (a->start[base + i] != from || a->end[base + i] != to || a->pos[base + i] != i - from) return false;
                int target = a->targets[base + i];
                if (target == -100) continue;
                scored++;
                if (target != 257 && n < 7) digits[n++] = (char)target;
                if (i + 1 < to && target != a->tokens[base + i + 1]) return false;
                if ((i + 1 == to) != (target == 257)) return false;   // a document's last target is EOS, and no other is
            }
            digits[n] = 0;
            if (n) {
                int record = atoi(digits);
                if (n != 4 || record >= records || a->tokens[base + from] != 256) return false;
                seen[record]++;
            }
            from = to;
        }
    }
    return scored == b->scored;
}

static bool sorted(const RowBatch* b) {
    const int *order = b->arrays.order, *tokens = b->arrays.tokens;
    for (int i = 1; i < b->arrays.B * b->T; i++) {
        int token = tokens[order[i]], before = tokens[order[i - 1]];
        if (token < before || (token == before && order[i] <= order[i - 1])) return false;
    }
    return true;
}

static void pack_case(void) {
    enum { kRecords = 1000, kSeq = 128, kRows = 4 };
    write_many("many.jsonl", kRecords);
    DataOptions o = options_of(&none, kSeq);
    for (int pack = 0; pack < 2; pack++) {
        o.pack = pack ? PACK_ON : PACK_OFF;
        Dataset* d = dataset_load(temp_path("many.jsonl"), tokenizer, &o);
        int rows = dataset_plan(d, 3, 1), seen[kRecords] = {0}, scored = 0, used = 0, once = 0;
        bool sound = true, in_order = true;
        RowBatch b = batch_new(kRows, kSeq);
        for (int first = 0; first < rows; first += kRows) {
            batch_fill_rows(&b, d, first);
            sound = sound && read_back(&b, seen, kRecords) && b.scored == (int)dataset_scored(d, first, kRows);
            in_order = in_order && sorted(&b);
            scored += b.scored;
            used += b.used;
        }
        for (int i = 0; i < kRecords; i++) once += seen[i] == 1;
        const char* how = pack ? "packed" : "one example a row";
        ok(sound, "%s: documents do not overlap or see each other, positions restart, targets follow", how);
        ok(once == kRecords && scored == (int)dataset_stats(d)->scored && used == (int)dataset_stats(d)->tokens - kRecords,
           "%s: every record once, no token lost", how);
        ok(in_order, "%s: order sorts by token, then position", how);
        double fill = used / ((double)rows * kSeq);
        ok(pack ? fill > 0.95 : rows == kRecords, "%s: %d rows, %.1f%% full", how, rows, 100 * fill);
        // The checks above can fail: break one array at a time.
        batch_fill_rows(&b, d, 0);
        int* arrays[] = {(int*)b.arrays.tokens, (int*)b.arrays.targets, (int*)b.arrays.pos,
                         (int*)b.arrays.start, (int*)b.arrays.end};
        int caught = 0;
        for (int k = 0; k < COUNT(arrays); k++) {
            int at = b.arrays.end[0] - 1, held = arrays[k][at];
            if (k == 0) held = arrays[k][--at];   // the last token has no target to contradict
            arrays[k][at] += 1;
            caught += !read_back(&b, seen, kRecords);
            arrays[k][at] = held;
        }
        int held = b.arrays.order[5], *order = (int*)b.arrays.order;
        order[5] = order[6];
        order[6] = held;
        ok(caught == COUNT(arrays) && !sorted(&b), "%s: planted errors are found", how);
        batch_free(&b);
        dataset_free(d);
    }
}

// The tokens of a whole epoch, row after row, as seen through batches of B; the caller frees them.
static int* epoch_tokens(const Dataset* d, int B, int T, int rows) {
    int* all = (int*)host_alloc((size_t)(rows + B) * T * sizeof(int));
    RowBatch b = batch_new(B, T);
    for (int first = 0; first < rows; first += B) {
        batch_fill_rows(&b, d, first);
        memcpy(all + (size_t)first * T, b.arrays.tokens, (size_t)B * T * sizeof(int));
    }
    batch_free(&b);
    return all;
}

static void shuffle_case(void) {
    enum { kRecords = 300, kSeq = 64 };
    write_many("many.jsonl", kRecords);
    DataOptions o = options_of(&none, kSeq);
    for (int pack = 0; pack < 2; pack++) {
        o.pack = pack ? PACK_ON : PACK_OFF;
        Dataset* d = dataset_load(temp_path("many.jsonl"), tokenizer, &o);
        const char* how = pack ? "packed" : "one example a row";
        int rows = dataset_plan(d, 7, 2);
        size_t bytes = (size_t)rows * kSeq * sizeof(int);
        int *by_1 = epoch_tokens(d, 1, kSeq, rows), *by_8 = epoch_tokens(d, 8, kSeq, rows);
        ok(!memcmp(by_1, by_8, bytes), "%s: the rows do not depend on the batch that reads them", how);
        // Four ranks of two rows and two micro-steps cut the same list.
        int* by_rank = (int*)host_alloc(bytes + 32 * kSeq * sizeof(int));
        RowBatch b = batch_new(2, kSeq);
        for (int rank = 3; rank >= 0; rank--)
            for (int step = 0; step * 16 < rows; step++)
                for (int micro = 0; micro < 2; micro++) {
                    int first = ((step * 2 + micro) * 4 + rank) * 2;
                    batch_fill_rows(&b, d, first);
                    memcpy(by_rank + (size_t)first * kSeq, b.arrays.tokens, 2 * kSeq * sizeof(int));
                }
        ok(!memcmp(by_1, by_rank, bytes), "%s: nor on the number of ranks", how);
        int other_rows = dataset_plan(d, 7, 3);
        int* epoch_3 = epoch_tokens(d, 1, kSeq, other_rows);
        bool other_epoch = other_rows != rows || memcmp(by_1, epoch_3, bytes);
        other_rows = dataset_plan(d, 8, 2);
        int* seed_8 = epoch_tokens(d, 1, kSeq, other_rows);
        ok(other_epoch && (other_rows != rows || memcmp(by_1, seed_8, bytes)), "%s: another epoch and another seed differ", how);
        other_rows = dataset_plan(d, 7, 2);
        int* again = epoch_tokens(d, 1, kSeq, other_rows);
        ok(other_rows == rows && !memcmp(by_1, again, bytes), "%s: the same seed and epoch come back", how);
        batch_free(&b);
        dataset_free(d);
        free(by_1), free(by_8), free(by_rank), free(epoch_3), free(seed_8), free(again);
    }
    // A permutation, and a fair one: each example's mean place over many epochs is near the middle.
    Dataset* d = load("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n{\"text\": \"d\"}\n",
                      options_of(&none, 8));
    int place[4][4] = {{0}};
    for (int epoch = 0; epoch < 4000; epoch++) {
        dataset_plan(d, 1, epoch);
        for (int row = 0; row < 4; row++) {
            const int* examples;
            check(dataset_row(d, row, &examples) == 1, "a row of one example");
            place[examples[0]][row]++;
        }
    }
    bool fair = true;
    for (int i = 0; i < 4; i++)
        for (int row = 0; row < 4; row++) fair = fair && abs(place[i][row] - 1000) < 120;   // 4.4 standard deviations
    ok(fair, "shuffle: every example comes to every place equally often");
    dataset_free(d);
}

// ---- rows for the examples of a step

// First fit decreasing as the books have it.
static int decreasing_by_hand(const int* positions, int count, int seq, int* row_of) {
    int room[512], rows = 0;
    for (int i = 0; i < count; i++) row_of[i] = -1;
    for (int placed = 0; placed < count; placed++) {
        int longest = -1, row = 0;
        for (int i = 0; i < count; i++)
            if (row_of[i] < 0 && (longest < 0 || positions[i] > positions[longest])) longest = i;
        while (row < rows && room[row] < positions[longest]) row++;
        if (row == rows) room[rows++] = seq;
        room[row] -= positions[longest];
        row_of[longest] = row;
    }
    return rows;
}

// The rows that micro-batches take on the counts first, second and most.
static int64_t rows_on(const int64_t* counts, int most, int first, int second) {
    int64_t rows = 0;
    for (int r = 1; r <= most; r++) rows += counts[r] * (r <= first ? first : r <= second ? second : most);
    return rows;
}

static void packing_case(void) {
    enum { kSeq = 100, kMost = 24 };
    int wrong = 0, unlike = 0, misses = 0;
    for (int round = 0; round < 200; round++) {
        int positions[300], got[300], want[300], count = round % 7 ? 1 + (round * 31) % 300 : round / 7;
        for (int i = 0; i < count; i++)
            positions[i] = 1 + (int)(random_words(1, (uint64_t)i, (uint64_t)round).word[0] % (uint32_t)(round % 2 ? kSeq : kSeq / 3));
        int rows = pack_decreasing(positions, count, kSeq, got), by_hand = decreasing_by_hand(positions, count, kSeq, want);
        wrong += rows != by_hand || memcmp(got, want, (size_t)count * sizeof(int));
        pack_first_fit(positions, count, kSeq, 512, got);   // planted: not the longest first
        unlike += memcmp(got, want, (size_t)count * sizeof(int)) != 0;
    }
    ok(wrong == 0, "packing: 200 lists in the rows of first fit decreasing");
    ok(unlike > 150, "packing: planted errors are found (%d)", unlike);
    for (int round = 0; round < 50; round++) {
        int64_t counts[kMost + 1], least = INT64_MAX;
        for (int r = 0; r <= kMost; r++) {
            uint32_t word = random_words(2, (uint64_t)r, (uint64_t)round).word[0];
            counts[r] = word % 3 && r <= 4 + round % 20 ? word % 1000 : 0;
        }
        for (int first = 1; first <= kMost; first++)
            for (int second = first; second <= kMost; second++)
                least = rows_on(counts, kMost, first, second) < least ? rows_on(counts, kMost, first, second) : least;
        RowCounts chosen = choose_row_counts(counts, kMost);
        misses += rows_on(counts, kMost, chosen.first, chosen.second) != least || chosen.first > chosen.second || chosen.second > kMost;
    }
    ok(misses == 0, "row counts: no other two leave fewer rows empty");
    int64_t none_seen[kMost + 1] = {0}, one_seen[kMost + 1] = {0};
    one_seen[8] = 5;
    RowCounts nothing = choose_row_counts(none_seen, kMost), one = choose_row_counts(one_seen, kMost);
    ok(nothing.first == 1 && nothing.second == 2 && one.first == 8 && one.second == 10, "row counts: of nothing, and of one count");
}

// What an epoch of steps is found to be.
typedef struct {
    int steps, rows, laid, sizes, seen_sizes[16];
    bool whole;   // each step has the examples of the step without packing, once, and the tokens to predict of them
    bool fair;    // its micro-batches have the same number of rows but for one, the larger ones first
    bool sound;   // what batch_fill lays out reads back, and no more than `batch` rows
} EpochSeen;

static void note_size(EpochSeen* e, int room) {
    for (int i = 0; i < e->sizes; i++)
        if (e->seen_sizes[i] == room) return;
    if (e->sizes < 16) e->seen_sizes[e->sizes++] = room;
}

static int compare_ints(const void* a, const void* b) { return *(const int*)a - *(const int*)b; }

// The examples of rows [first, first + rows), sorted; returns their number.
static int sorted_examples(const Dataset* d, int first, int rows, int* to) {
    int n = 0;
    for (int row = first; row < first + rows; row++) {
        const int* examples;
        int count = dataset_row(d, row, &examples);
        for (int i = 0; i < count; i++) to[n++] = examples[i];
    }
    qsort(to, (size_t)n, sizeof(int), compare_ints);
    return n;
}

static EpochSeen look_at_epoch(const Dataset* d, const Dataset* plain, RowBatch* b, int micro_batches, int records) {
    EpochSeen e = {dataset_steps(d), dataset_rows(d), 0, 0, {0}, dataset_steps(d) == dataset_steps(plain), true, true};
    int *got = (int*)host_alloc(sizeof(int) * (size_t)records), *want = (int*)host_alloc(sizeof(int) * (size_t)records);
    int* seen = (int*)host_alloc(sizeof(int) * (size_t)records);
    for (int step = 0; step < e.steps; step++) {
        int first = dataset_micro_batch(d, step, 0).first, rows = 0, before = b->B;
        for (int i = 0; i < micro_batches; i++) {
            MicroBatch m = dataset_micro_batch(d, step, i);
            e.fair = e.fair && m.first == first + rows && m.rows <= before && m.rows >= dataset_micro_batch(d, step, 0).rows - 1;
            before = m.rows;
            rows += m.rows;
            batch_fill(b, d, m);
            e.sound = e.sound && read_back(b, seen, records) && b->arrays.B == m.room && m.rows <= m.room && sorted(b);
            e.laid += m.rows ? m.room : 0;
            note_size(&e, m.room);
        }
        int n = sorted_examples(d, first, rows, got), all = b->B * micro_batches;
        e.whole = e.whole && n == sorted_examples(plain, step * all, all, want) && !memcmp(got, want, sizeof(int) * (size_t)n) &&
                  dataset_step_scored(d, step) == dataset_step_scored(plain, step);
    }
    for (int i = 0; i < records; i++) e.whole = e.whole && seen[i] == 1;
    free(got);
    free(want);
    free(seen);
    return e;
}

static void auto_case(void) {
    enum { kRecords = 1003, kSeq = 128 };
    static const struct {
        int batch, micro_batches;
    } cuts[] = {{4, 6}, {16, 1}, {32, 2}, {1, 12}, {3, 50}, {1024, 1}};
    write_many("many.jsonl", kRecords);
    for (int c = 0; c < COUNT(cuts); c++) {
        DataOptions o = options_of(&none, kSeq);
        o.batch = cuts[c].batch;
        o.micro_batches = cuts[c].micro_batches;
        Dataset* plain = dataset_load(temp_path("many.jsonl"), tokenizer, &o);
        o.pack = PACK_AUTO;
        Dataset *d = dataset_load(temp_path("many.jsonl"), tokenizer, &o), *again = dataset_load(temp_path("many.jsonl"), tokenizer, &o);
        RowBatch b = batch_new(o.batch, kSeq);
        EpochSeen all = {0, 0, 0, 0, {0}, true, true, true};
        bool same = true;
        for (int epoch = 0; epoch < 4; epoch++) {
            dataset_plan(plain, 5, epoch);
            dataset_plan(d, 5, epoch);
            EpochSeen e = look_at_epoch(d, plain, &b, o.micro_batches, kRecords);
            all.rows += e.rows, all.laid += e.laid, all.steps += e.steps;
            all.whole = all.whole && e.whole, all.fair = all.fair && e.fair, all.sound = all.sound && e.sound;
            for (int i = 0; i < e.sizes; i++) note_size(&all, e.seen_sizes[i]);
            dataset_plan(again, 5, epoch);   // as a run does that is resumed here
            MicroBatch x = dataset_micro_batch(d, e.steps - 1, 0), y = dataset_micro_batch(again, e.steps - 1, 0);
            same = same && x.first == y.first && x.rows == y.rows && x.room == y.room;
        }
        ok(all.whole, "auto %d x %d: each of %d steps has the examples of the step without packing", o.batch, o.micro_batches, all.steps);
        ok(all.fair && all.sound && same, "auto %d x %d: rows dealt out evenly, laid out soundly, found again", o.batch, o.micro_batches);
        ok(all.sizes <= kRoomSizes && all.rows <= 4 * kRecords, "auto %d x %d: %d examples on %d rows, laid on %d, of %d sizes", o.batch,
           o.micro_batches, 4 * kRecords, all.rows, all.laid, all.sizes);
        dataset_plan(plain, 5, 0);
        dataset_plan(d, 5, 1);
        bool found = o.batch * o.micro_batches >= kRecords || !look_at_epoch(d, plain, &b, o.micro_batches, kRecords).whole;
        ok(found, "auto %d x %d: another epoch's examples are not this one's", o.batch, o.micro_batches);
        batch_free(&b);
        dataset_free(d);
        dataset_free(again);
        dataset_free(plain);
    }
}

// ---- the reference pack

static void refpack_case(void) {
    static const struct {
        const char* path;
        int records;
    } files[] = {{"data/datasets/gsm8k/train.jsonl", 7473}, {"data/datasets/viggo/train.csv", 5103},
                 {"data/datasets/sql/valid.jsonl", 1000}};
    const char* model = refpack("data/models/stories260K/hf");
    if (!model) return;
    Tokenizer* stories = tokenizer_load(model);
    ChatOptions plain = {"none", NULL, SPECIALS_AUTO};
    ChatFormat chat = chat_open(model, stories, &plain);
    ok(chat.text_bos == 1 && chat.turn_end == 2, "stories260K: BOS and EOS");
    for (int i = 0; i < COUNT(files); i++) {
        const char* path = refpack(files[i].path);
        if (!path) continue;
        DataOptions o = options_of(&chat, 512);
        o.pack = PACK_ON;
        Dataset* d = dataset_load(path, stories, &o);
        const DataStats* s = dataset_stats(d);
        bool sound = true;
        for (int k = 0; k < s->examples; k++) {
            const Example* e = dataset_example(d, k);
            sound = sound && e->tokens[0] == 1 && e->tokens[1] != 1 && e->tokens[e->count - 1] == 2 && e->count <= 513 &&
                    e->scored_count == e->count - e->prompt_count && e->scored[e->prompt_count] && !e->scored[e->prompt_count - 1];
        }
        ok(sound && s->records == files[i].records && s->examples + s->skipped == s->records && s->examples > 0.9 * s->records,
           "%s: %d records, %d examples (%d truncated, %d skipped), %zu tokens, %zu scored, %d packed rows", files[i].path,
           s->records, s->examples, s->truncated, s->skipped, s->tokens, s->scored, dataset_rows(d));
        dataset_free(d);
    }
    chat_free(&chat);
    tokenizer_free(stories);
}

static const Case cases[] = {
    {"dataset.errors", errors_case},   // first: a child of a process whose OpenMP threads are up may not start its own
    {"dataset.faults", faults_case},
    {"dataset.forms", forms_case}, {"dataset.select", select_case}, {"dataset.gzip", gzip_case}, {"dataset.prompt_file", prompt_file_case},
    {"dataset.inspect", inspect_case}, {"dataset.summary", summary_case}, {"dataset.lengths", lengths_case}, {"dataset.batch", batch_case},
    {"dataset.pack", pack_case}, {"dataset.packing", packing_case}, {"dataset.auto", auto_case},   {"dataset.shuffle", shuffle_case}, {"dataset.refpack", refpack_case},
};

int main(int argc, char** argv) {
    temp_make();
    tokenizer = byte_tokenizer(kBos, kImEnd, true);
    ChatOptions plain = {"none", NULL, SPECIALS_AUTO}, turns = {"llama3", NULL, SPECIALS_AUTO};
    none = chat_open(temp_dir, tokenizer, &plain);
    llama3 = chat_open(temp_dir, tokenizer, &turns);
    int failed = test_main(cases, COUNT(cases), argc, argv);
    chat_free(&none);
    chat_free(&llama3);
    tokenizer_free(tokenizer);
    temp_remove();
    return failed;
}
