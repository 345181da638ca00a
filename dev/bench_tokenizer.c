// Speed of the tokenizer on one core: checks that decoding gives the text back, then times loading, encoding and decoding.
//
//   bench_tokenizer [DIR TEXT_FILE...]      (DIR holds a tokenizer.json; default: data/demo's model and training data)
// One line each: what | size | median time | rate.
#include "../data/files.h"
#include "../data/tokenizer/tokenizer.h"

#include <omp.h>

enum { kRuns = 9 };

static int by_value(const void* a, const void* b) {
    double x = *(const double*)a, y = *(const double*)b;
    return (x > y) - (x < y);
}

static double median(double* seconds) {
    qsort(seconds, kRuns, sizeof(double), by_value);
    return seconds[kRuns / 2];
}

int main(int argc, char** argv) {
    if (argc == 2) user_error("usage: bench_tokenizer [DIR TEXT_FILE...]");
    const char* demo[] = {argv[0], "data/demo/model", "data/demo/train.jsonl"};
    const char** names = argc > 2 ? (const char**)argv : demo;
    int count = argc > 2 ? argc : 3;
    double load[kRuns], first[kRuns], again[kRuns], decode[kRuns];
    Text text = {NULL, 0, 0};
    for (int i = 2; i < count; i++) {
        size_t bytes;
        char* file = file_read(names[i], &bytes);
        text_append(&text, file, bytes);
        free(file);
    }
    size_t tokens = 0;
    int size = 0;
    for (int run = 0; run < kRuns; run++) {
        double start = omp_get_wtime();
        Tokenizer* t = tokenizer_load(names[1]);
        load[run] = omp_get_wtime() - start;
        TokenList list = {NULL, 0, 0};
        start = omp_get_wtime();
        tokenizer_encode(t, text.data, text.bytes, kEncodePlain, &list);
        first[run] = omp_get_wtime() - start;   // with an empty cache
        list.count = 0;
        start = omp_get_wtime();
        tokenizer_encode(t, text.data, text.bytes, kEncodePlain, &list);
        again[run] = omp_get_wtime() - start;
        Text back = {NULL, 0, 0};
        start = omp_get_wtime();
        tokenizer_decode(t, list.ids, list.count, false, &back);
        decode[run] = omp_get_wtime() - start;
        if (back.bytes != text.bytes || memcmp(back.data, text.data, text.bytes)) die("decoding does not give the text back");
        tokens = (size_t)list.count;
        size = tokenizer_size(t);
        text_free(&back);
        token_list_free(&list);
        tokenizer_free(t);
    }
    double mb = (double)text.bytes * 1e-6;
    printf("load         | %d tokens | %.1f ms\n", size, 1e3 * median(load));
    printf("encode first | %.2f MB, %zu ids | %.1f ms | %.1f MB/s\n", mb, tokens, 1e3 * median(first), mb / median(first));
    printf("encode again | %.2f MB, %zu ids | %.1f ms | %.1f MB/s\n", mb, tokens, 1e3 * median(again), mb / median(again));
    printf("decode       | %.2f MB, %zu ids | %.1f ms | %.1f MB/s\n", mb, tokens, 1e3 * median(decode), mb / median(decode));
    text_free(&text);
    return 0;
}
