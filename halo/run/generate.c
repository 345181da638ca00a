// The command generate; see generate.h.
#include "generate.h"

#include "../../data/json.h"
#include "answer.h"
#include "converse.h"

typedef struct {
    bool prints;   // on rank 0
    int matches, count;
} Matches;

// Prints one JSON line per example: the answer, with the verdict of the metric `exact` as "match".
static void print_answer(void* context, const Answer* answer) {
    Matches* m = (Matches*)context;
    bool match = metric_find("exact")->judge(answer->expected, answer->generated);
    m->matches += match;
    m->count++;
    if (!m->prints) return;
    json_t* line = json_pack("{s:o, s:o, s:o, s:b}", "prompt", json_utf8(answer->prompt), "expected", json_utf8(answer->expected),
                             "generated", json_utf8(answer->generated), "match", match);
    check(line, "print_answer: no JSON");
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    fflush(stdout);
    json_decref(line);
}

int command_generate(Options o) {
    Session s = session_open(o, GENERATE);
    if (!o.prompt && !o.data) {
        if (!isatty(STDIN_FILENO)) user_error("generate: name one of --prompt TEXT and --data FILE, or start it on a terminal to talk to the model");
        converse(&s);
        session_close(&s);
        return 0;
    }
    open_tokenizer(&s);
    load_weights(&s, false);
    if (o.prompt) {
        answer_prompt(&s, o.prompt);
    } else {
        Matches m = {leads(&s), 0, 0};
        Dataset* d = open_prompts(&s, o.data, false);
        answer_examples(&s, d, print_answer, &m);
        if (leads(&s))
            fprintf(stderr, "exact match %d/%d (%.1f%%), %d records left out\n", m.matches, m.count, 100.0 * m.matches / m.count,
                    dataset_stats(d)->skipped);
        dataset_free(d);
    }
    session_close(&s);
    return 0;
}
