// Verdicts on crafted answers, the bootstrap, answers files.
#include "../data/metric.h"
#include "scratch.h"

// `verdicts` in the order of the table: exact, gsm8k, gsm8k-strict, gsm8k-flexible, viggo, sql; y or n.
static const struct {
    const char *what, *expected, *generated, *verdicts;
} kAnswers[] = {
    {"equal", "a b", "a b", "yynnyy"},
    {"blanks at the ends", "SELECT 1", "  SELECT 1\n", "yynyyy"},
    {"a no-break space at the end", "x", "x\xc2\xa0", "yynnyy"},
    {"blanks inside", "SELECT  1 ", "SELECT 1", "nnnynn"},
    {"empty, both", "", "", "yynnyy"},
    {"empty answer", "#### 12", "", "nnnnnn"},
    {"other steps, same number", "a\n#### 12", "b c\n#### 12", "nyyynn"},
    {"no ####", "a\n#### 12", "12", "nynynn"},
    {"no #### and words", "a\n#### 12", "The answer is 12.", "nnnynn"},
    {"several ####", "a\n#### 12", "#### 7 then #### 12", "nynynn"},
    {"several ####, the first is right", "a\n#### 12", "#### 12 then #### 7", "nnynnn"},
    {"a comma in thousands", "#### 1,200", "#### 1200", "nnyynn"},
    {"currency", "#### 18", "#### 18 dollars, $18", "nnyynn"},
    {"currency before the number", "#### 18", "#### $18", "nnnynn"},
    {"trailing full stop", "#### 18", "so\n#### 18.", "nnyynn"},
    {"negative", "#### -5", "x\n#### -5", "nyyynn"},
    {"sign missing", "#### -5", "x\n#### 5", "nnnnnn"},
    {"a mark without a number, then one with", "#### 5", "#### x #### 5", "nyyynn"},
    {"five hashes", "#### 5", "##### 5", "nnyynn"},
    {"viggo, parts in another order", "inform(name[A], year[2001])", "inform(year[2001], name[A])", "nnnyyn"},
    {"viggo, other name", "inform(name[A])", "confirm(name[A])", "nnnnnn"},
    {"viggo, commas inside brackets are commas", "inform(genres[a, b], esrb[c])", "inform(esrb[c], genres[a, b])", "nnnnyn"},
    {"viggo, genres swapped keep their brackets", "inform(genres[a, b])", "inform(genres[b, a])", "nnnnnn"},
    {"viggo, the name inside again", "request(specifier[request x])", "request(specifier[ x])", "nnnnyn"},
    {"viggo, a part twice", "inform(a[1], a[1])", "inform(a[1])", "nnnynn"},
    {"viggo, no parenthesis", "inform", "inform()", "nnnnyn"},
    {"viggo, blanks around parts", "inform(a[x],b[y])", " inform( b[y] ,a[x] ) ", "nnnnyn"},
    {"unicode", "\xc3\xa9t\xc3\xa9", "\xc3\xa9t\xc3\xa9 ", "yynnyy"},
    {"unicode that differs", "\xc3\xa9", "e\xcc\x81", "nnnnnn"},
    {"case matters", "SELECT a", "select a", "nnnnnn"},
};

static void verdicts_case(void) {
    int count;
    const Metric* table = metrics(&count);
    for (int i = 0; i < COUNT(kAnswers); i++) {
        char got[16] = "";
        for (int k = 0; k < count; k++) got[k] = table[k].judge(kAnswers[i].expected, kAnswers[i].generated) ? 'y' : 'n';
        ok(!strcmp(got, kAnswers[i].verdicts), "%s: %s, %s is right", kAnswers[i].what, got, kAnswers[i].verdicts);
    }
    bool named = true;
    for (int k = 0; k < count; k++) named = named && metric_find(table[k].name) == &table[k] && strstr(metric_names(), table[k].name);
    ok(named && !metric_find("bleu"), "metrics are found by their names");
}

static void bootstrap_case(void) {
    bool verdicts[400];
    for (int i = 0; i < 400; i++) verdicts[i] = i % 4 == 0;
    double error = metric_standard_error(verdicts, 400), formula = 100 * sqrt(0.25 * 0.75 / 400);
    ok(fabs(error - formula) < 0.15, "the bootstrap's %.3f is near the binomial %.3f", error, formula);
    ok(error == metric_standard_error(verdicts, 400), "twice the same");
    bool all[3] = {true, true, true};
    ok(metric_standard_error(all, 3) == 0 && metric_standard_error(verdicts, 1) == 0, "no spread, no error");
    char* line = metric_summary("sql", all, 3);
    ok(!strcmp(line, "sql: 3/3 100.0% (standard error 0.0)"), "%s", line);
    free(line);
}

static void read_answers(void* path) { answers_read((const char*)path); }

static void files_case(void) {
    char* path = scratch_path("answers.jsonl");
    Answer answers[2] = {{(char*)"p", (char*)"#### 3", (char*)"x\n#### 3"}, {NULL, (char*)"a", (char*)"b\xc3"}};
    char *first = answer_line(&answers[0]), *second = answer_line(&answers[1]);
    char text[1024];
    int bytes = snprintf(text, sizeof text, "%s\n%s", first, second);
    put_file(path, text, (size_t)bytes);
    AnswerList list = answers_read(path);
    ok(list.count == 2 && !strcmp(list.answers[0].generated, "x\n#### 3") && !strcmp(list.answers[0].prompt, "p") &&
       !list.answers[1].prompt && !strcmp(list.answers[1].generated, "b\xef\xbf\xbd"), "written answers are read again");
    answers_free(&list);
    char* line = answers_score(path, metric_find("gsm8k"));
    ok(!strncmp(line, "gsm8k: 1/2 50.0% (standard error 3", 34), "%s", line);
    free(line);
    free(first);
    free(second);
    put_file(path, "{\"expected\": \"a\", \"generated\": \"b\"}\n{\"expected\": \"a\"}\n", 54);
    expect_exit(read_answers, path, kExitUser, "line 2: \"generated\" is missing", "an answer without its text");
    put_file(path, "\n", 1);
    expect_exit(read_answers, path, kExitUser, "no answers", "an empty file");
    free(path);
}

static const Case cases[] = {{"verdicts", verdicts_case}, {"bootstrap", bootstrap_case}, {"files", files_case}};
int main(int argc, char** argv) { return scratch_main("test_metric", cases, COUNT(cases), argc, argv); }
