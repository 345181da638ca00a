// Speed of rendering and encoding conversations: checks that both cores give what one gives, then times 100 000 conversations of two turns.
//
//   bench_chat TEMPLATE.jinja DIR      (DIR holds a tokenizer.json)
// One line: what | conversations | median time | rate.
#include "../data/chat.h"

#include <omp.h>

enum { kConversations = 100000, kRuns = 3 };

static size_t encode_all(const ChatFormat* f, const Tokenizer* t, json_t* const* messages) {
    static const unsigned char trained[2] = {0, 1};
    size_t tokens = 0;
#pragma omp parallel reduction(+ : tokens)
    {
        ChatTokens out;
        memset(&out, 0, sizeof out);
#pragma omp for schedule(dynamic, 64)
        for (int i = 0; i < kConversations; i++) {
            Conversation c = {messages[i], NULL, trained, ""};
            if (!chat_encode(f, t, &c, &out)) die("the template fails: %s", out.error.text);
            check(out.answer_count == 1, "%d answers", out.answer_count);
            tokens += (size_t)out.tokens.count * (size_t)(out.answers[0].first + 1);
        }
        chat_tokens_free(&out);
    }
    return tokens;
}

static int by_value(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

int main(int argc, char** argv) {
    if (argc != 3) user_error("usage: bench_chat TEMPLATE.jinja DIR");
    Tokenizer* t = tokenizer_load(argv[2]);
    ChatOptions options = {argv[1], NULL, SPECIALS_AUTO};
    ChatFormat f = chat_open(argv[2], t, &options);
    json_t** messages = (json_t**)host_alloc(kConversations * sizeof(json_t*));
    for (int i = 0; i < kConversations; i++) {
        char question[128], answer[128];
        snprintf(question, sizeof question, "Natalia sold clips to %d of her friends. How many clips did she sell altogether?", i);
        snprintf(answer, sizeof answer, "She sold %d/2 = %d clips in May, and %d in April.\n#### %d", i, i / 2, i, i + i / 2);
        messages[i] = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "user", "content", question, "role", "assistant", "content", answer);
    }
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    size_t alone = encode_all(&f, t, messages), together = 0;
    omp_set_num_threads(threads);
    double seconds[kRuns];
    for (int run = 0; run < kRuns; run++) {
        double start = omp_get_wtime();
        together = encode_all(&f, t, messages);
        seconds[run] = omp_get_wtime() - start;
    }
    if (alone != together) die("%d threads give other tokens than one", threads);
    qsort(seconds, kRuns, sizeof(double), by_value);
    double middle = seconds[kRuns / 2];
    printf("render and encode, %d threads | %d conversations | %.2f s | %.0f a second\n", threads, (int)kConversations, middle,
           kConversations / middle);
    for (int i = 0; i < kConversations; i++) json_decref(messages[i]);
    free(messages);
    chat_free(&f);
    tokenizer_free(t);
    return 0;
}
