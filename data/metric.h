// Verdicts on generated answers: is the generated answer the expected one? A table of metrics, each a name and a judge, and the
// figure, with its uncertainty, that follows from the verdicts.
//
//   exact            the same text, white space at both ends apart
//   gsm8k            the same text behind the last "####", stripped; the whole text if it has no "####"
//   gsm8k-strict     lm-evaluation-harness's filter strict-match: the number behind the first "#### "
//   gsm8k-flexible   its filter flexible-extract: the last thing that looks like a number
//   viggo            a meaning representation, name(slot[value], ...): the same name and the same parts in any order
//   sql              the same text, stripped
//
// Both filters of lm-evaluation-harness compare without commas and dollar signs, without a final full stop, in lower case, and
// a text in which a filter finds nothing is "[invalid]" to them. Here "[invalid]" matches nothing, not even itself.
#ifndef DATA_METRIC_H
#define DATA_METRIC_H

#include "../halo/base.h"

typedef struct {
    const char* name;   // as --metric takes it
    bool (*judge)(const char* expected, const char* generated);
} Metric;

C_API const Metric* metrics(int* count);
C_API const Metric* metric_find(const char* name);   // NULL if there is none
C_API const char* metric_names(void);                // "exact|gsm8k|...", for messages

// Standard error of the share of true verdicts, in percent: the standard deviation of that share over 1000 resamplings of the
// verdicts with replacement (Efron's bootstrap), drawn from a fixed seed. 0 for fewer than two verdicts.
C_API double metric_standard_error(const bool* verdicts, int count);

// The line that ends every run of a metric: "gsm8k: 3/4 75.0% (standard error 21.7)". The caller frees it.
C_API char* metric_summary(const char* name, const bool* verdicts, int count);

// ---- answers files: JSON lines with "prompt" (may be missing when it is read), "expected", "generated", and on writing each
// metric's verdict under its name. Other keys are ignored.
typedef struct {
    char *prompt, *expected, *generated;   // prompt may be NULL
} Answer;

typedef struct {
    Answer* answers;
    int count;
} AnswerList;

// A line without "expected" or "generated" is a user_error that names the line; so is a file without lines.
C_API AnswerList answers_read(const char* path);
C_API void answers_free(AnswerList* list);

// One line for the answers file, verdicts of all metrics included, ended by a newline. Bytes that are no UTF-8 become U+FFFD.
// The caller frees it.
C_API char* answer_line(const Answer* answer);

// Judges all answers of a file with one metric, for `eval --metric M --score FILE`; returns the summary line, which the caller frees.
C_API char* answers_score(const char* path, const Metric* metric);

#endif
