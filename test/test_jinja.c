// The interpreter of chat templates: its features against what Jinja2 renders, the templates of published models, marks of user data,
// generation spans, and templates that mean harm.
#include "../data/jinja/jinja.h"
#include "jinja_cases.h"
#include "test.h"

#include <dirent.h>
#include <pthread.h>
#include <time.h>

static const char* const kUserData[] = {"messages", "tools", "word", NULL};

static double seconds(void) {   // of this thread's work, however busy the machine is
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// Compiles and renders at once. False and *error where either fails.
static bool render(const char* source, const json_t* context, const char* date, JinjaOutput* out, JinjaError* error) {
    memset(error, 0, sizeof *error);
    Jinja* t = jinja_compile(source, strlen(source), error);
    if (!t) return false;
    bool done = jinja_render(t, context, kUserData, date, out, error);
    jinja_free(t);
    return done;
}

static bool is_one_line(const JinjaError* error) { return *error->text && !strchr(error->text, '\n'); }

static bool as_wanted(const JinjaCase* c, const json_t* context, JinjaOutput* out, JinjaError* error) {
    if (!render(c->source, context, NULL, out, error)) return !c->want && is_one_line(error);
    return c->want && out->bytes == strlen(c->want) && !memcmp(out->text, c->want, out->bytes);
}

static void features_case(void) {
    json_t* context = json_loads(JINJA_CONTEXT, 0, NULL);
    JinjaOutput out = {0};
    JinjaError error;
    const JinjaCase planted[] = {{"", "{{ n }}", "8"}, {"", "{{ n }}", NULL}, {"", "{{ 1 / 0 }}", ""}};
    for (int i = 0; i < COUNT(planted); i++) ok(!as_wanted(planted + i, context, &out, &error), "a wrong rendering is noticed (%d)", i);
    for (int i = 0; i < COUNT(jinja_cases); i++) {
        const JinjaCase* c = jinja_cases + i;
        bool good = as_wanted(c, context, &out, &error);
        ok(good, "%s: %s", c->feature, c->source);
        if (!good) printf("    wanted %s\n    got    %s\n", c->want ? c->want : "(an error)", *error.text ? error.text : out.text);
    }
    jinja_output_free(&out);
    json_decref(context);
}

// ---- templates of published models
static json_t* row_context(const json_t* pack, const json_t* row) {
    json_t* context = json_object();
    static const char* const of_pack[] = {"bos_token", "eos_token"};
    static const char* const of_row[] = {"messages", "tools", "add_generation_prompt"};
    for (int i = 0; i < COUNT(of_pack); i++)
        if (json_object_get(pack, of_pack[i])) json_object_set(context, of_pack[i], json_object_get(pack, of_pack[i]));
    for (int i = 0; i < COUNT(of_row); i++)
        if (json_object_get(row, of_row[i])) json_object_set(context, of_row[i], json_object_get(row, of_row[i]));
    return context;
}

static bool row_as_wanted(const Jinja* t, const json_t* context, const json_t* row, JinjaOutput* out, JinjaError* error) {
    const json_t* want = json_object_get(row, "text");
    *error->text = 0;
    bool done = jinja_render(t, context, kUserData, json_string_value(json_object_get(row, "date")), out, error);
    if (!done) return !want && is_one_line(error);
    return want && json_string_length(want) == out->bytes && !memcmp(out->text, json_string_value(want), out->bytes);
}

static void published_rows(const char* name, const Jinja* t, const json_t* pack) {
    JinjaOutput out = {0};
    JinjaError error;
    int good = 0, count = 0;
    size_t i;
    json_t* row;
    json_array_foreach(json_object_get(pack, "rows"), i, row) {
        json_t* context = row_context(pack, row);
        bool same = row_as_wanted(t, context, row, &out, &error);
        json_t* other = json_deep_copy(row);   // with other text, or with an error for the text
        if (json_object_get(row, "text")) json_object_set_new(other, "text", json_sprintf("%s.", json_string_value(json_object_get(row, "text"))));
        else json_object_set_new(other, "text", json_string(""));
        bool rejected = !row_as_wanted(t, context, other, &out, &error);
        if (!same) printf("    %s: %s\n", json_string_value(json_object_get(row, "case")), *error.text ? error.text : out.text);
        if (!rejected) printf("    %s: a wrong text is accepted\n", json_string_value(json_object_get(row, "case")));
        good += same && rejected;
        count++;
        json_decref(other);
        json_decref(context);
    }
    ok(good == count && count > 0, "%s: %d of %d conversations to the byte", name, good, count);
    jinja_output_free(&out);
}

static char* read_text(const char* path, size_t* bytes) {
    FILE* f = fopen(path, "rb");
    char* text = NULL;
    size_t capacity = 0;
    *bytes = 0;
    if (!f) return NULL;
    ssize_t got = getdelim(&text, &capacity, EOF, f);
    *bytes = got > 0 ? (size_t)got : 0;
    fclose(f);
    return text;
}

static void published_case(void) {
    const char* folder = refpack("data/chat_templates");
    if (!folder) return;
    struct dirent** files;
    int count = scandir(folder, &files, NULL, alphasort);
    for (int i = 0; i < count; i++) {
        char path[2048];
        size_t bytes;
        JinjaError error = {0, ""};
        char* dot = strrchr(files[i]->d_name, '.');
        if (dot && !strcmp(dot, ".jinja")) {
            snprintf(path, sizeof path, "%s/%s", folder, files[i]->d_name);
            char* source = read_text(path, &bytes);
            strcpy(strrchr(path, '.'), ".json");
            json_t* pack = json_load_file(path, 0, NULL);
            Jinja* t = source ? jinja_compile(source, bytes, &error) : NULL;
            *dot = 0;
            if (ok(t && pack, "%s compiles %s", files[i]->d_name, error.text)) published_rows(files[i]->d_name, t, pack);
            jinja_free(t);
            json_decref(pack);
            free(source);
        }
        free(files[i]);
    }
    free(files);
}

// ---- marks. '.' in `marks` is the template's byte, '#' the user's.
typedef struct {
    const char *source, *text, *marks;
} MarkCase;
static const MarkCase mark_cases[] = {
    {"<s>{{ messages[0].content }}</s>", "<s>Hi <s> you</s>", "...##########...."},
    {"{{ messages[0].role }}", "user", "...."},
    {"{{ messages[0]['role'] + ':' + messages[0]['content'] }}", "user:Hi <s> you", ".....##########"},
    {"{{ 'a' ~ messages[0].content[3:6] ~ 'b' }}", "a<s>b", ".###."},
    {"{{ messages[0].content | upper }}!", "HI <S> YOU!", "##########."},
    {"{{ messages[0].content | replace('<s>', '-') }}", "Hi - you", "###.####"},
    {"{{ messages[0].content.split(' ')[2] }}{{ messages[0].content.split(' ') | join('+') }}", "youHi+<s>+you", "#####.###.###"},
    {"{% set x %}[{{ messages[0].content }}]{% endset %}{{ x[0] }}{{ x[1:3] }}{{ x[-1] }}", "[Hi]", ".##."},
    {"{% macro m(a) %}({{ a }}){% endmacro %}{{ m(messages[0].content[:2]) }}", "(Hi)", ".##."},
    {"{% for c in messages[0].content[:2] %}{{ c }},{% endfor %}", "H,i,", "#.#."},
    {"{% filter trim %} {{ messages[0].content[2:] }} .{% endfilter %}", "<s> you .", "#######.."},
    {"{{ messages[0].content | tojson }}", "\"Hi <s> you\"", ".##########."},
    {"{{ [messages[0].content[:2]] }}", "['Hi']", "..##.."},
    {"{{ messages[0].content[:2] * 2 }}{{ '<' if messages[0].content else '>' }}", "HiHi<", "####."},
    {"{{ word }}{{ other }}", "wordother", "####....."},
    {"{{ '%s|%s' % (word, other) }}", "word|other", "####......"},
    {"{{ messages[0].content | safe + '&' }}", "Hi <s> you&amp;", "##########....."},
    {"{{ ('&' | safe) + messages[0].content[3:6] }}", "&&lt;s&gt;", ".#########"},
    {"{{ tools[0].name }}{{ tools | tojson }}", "f[{\"name\": \"f\"}]", NULL},
};

static bool marked(const JinjaOutput* out, const char* text, const char* marks) {
    if (out->bytes != strlen(text) || memcmp(out->text, text, out->bytes)) return false;
    for (size_t i = 0; marks && i < out->bytes; i++)
        if (out->from_data[i] != (marks[i] == '#')) return false;
    return true;
}

static void marks_case(void) {
    json_t* context = json_loads("{\"messages\": [{\"role\": \"user\", \"content\": \"Hi <s> you\"}], \"word\": \"word\", \"other\": \"other\","
                                 " \"tools\": [{\"name\": \"f\"}]}", 0, NULL);
    JinjaOutput out = {0};
    JinjaError error;
    render("{{ other }}{{ word }}", context, NULL, &out, &error);
    ok(!marked(&out, "otherword", "....#####"), "a wrong mark is noticed");
    for (int i = 0; i < COUNT(mark_cases); i++) {
        const MarkCase* c = mark_cases + i;
        bool done = render(c->source, context, NULL, &out, &error);
        ok(done && marked(&out, c->text, c->marks), "marks of %s", c->source);
        if (!done || !marked(&out, c->text, c->marks)) printf("    wanted %s\n    got    %s\n", c->text, done ? out.text : error.text);
    }
    render(mark_cases[COUNT(mark_cases) - 1].source, context, NULL, &out, &error);
    int from_data = 0;
    for (size_t i = 0; i < out.bytes; i++) from_data += out.from_data[i];
    ok(from_data == 6, "names and values of tools are the user's: %d bytes", from_data);
    jinja_output_free(&out);
    json_decref(context);
}

// ---- generation spans
static void generation_case(void) {
    static const struct {
        const char *source, *text;
        JinjaSpan spans[3];
        int count;
    } cases[] = {
        {"a{% generation %}bc{% endgeneration %}d", "abcd", {{1, 3}}, 1},
        {"{% for m in messages %}{% if loop.first %}{{ m.content }}{% else %}{% generation %}{{ m.content }}.{% endgeneration %}{% endif %}{% endfor %}",
         "ayesyesyes.non.", {{1, 11}, {11, 15}}, 2},
        {"x{% generation %}{% endgeneration %}", "x", {{1, 1}}, 1},
        {"{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}", "21", {{0, 1}}, 1},
        {"none", "none", {{0, 0}}, 0},
    };
    json_t* context = json_loads("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"yesyesyes\"},"
                                 " {\"role\": \"assistant\", \"content\": \"non\"}]}", 0, NULL);
    JinjaOutput out = {0};
    JinjaError error;
    for (int i = 0; i < COUNT(cases); i++) {
        bool same = render(cases[i].source, context, NULL, &out, &error) && out.generations == cases[i].count;
        for (int k = 0; same && k < out.generations; k++)
            same = out.generation[k].begin == cases[i].spans[k].begin && out.generation[k].end == cases[i].spans[k].end;
        ok(same && !strcmp(out.text, cases[i].text), "generation spans of %s: %s", cases[i].source, out.text);
    }
    jinja_output_free(&out);
    json_decref(context);
}

// ---- errors, names, dates
static void errors_case(void) {
    static const struct {
        const char *source, *words;
        int line;
    } cases[] = {
        {"a\nb\n{{ 1 / 0 }}", "division by zero", 3},
        {"\n{% for x in list %}", "endfor", 2},
        {"{{ raise_exception('Roles must\nalternate') }}", "Roles must alternate", 1},
        {"{% macro m() %}\nx{% endmacro %}\n{{ m() ~ m().x.y }}", "has no attribute", 3},
        {"\n\n{{ absent.x }}", "'absent' is undefined", 3},
        {"\xff", "UTF-8", 1},
        {"{{ 'a' | nosuch }}", "nosuch", 1},
        {"{{ 9223372036854775807 + 1 }}", "64 bits", 1},
    };
    json_t* context = json_object();
    JinjaOutput out = {0};
    JinjaError error;
    for (int i = 0; i < COUNT(cases); i++) {
        bool done = render(cases[i].source, context, NULL, &out, &error);
        ok(!done && is_one_line(&error) && strstr(error.text, cases[i].words) && error.line == cases[i].line, "line %d says: %s", error.line, error.text);
    }
    jinja_output_free(&out);
    json_decref(context);
}

static void names_case(void) {
    const char* source = "{% for m in messages %}{{ m['content'] }}{% generation %}{{ m.name }}{% endgeneration %}{% endfor %}tools {{ 'documents' }}";
    JinjaError error;
    Jinja* t = jinja_compile(source, strlen(source), &error);
    static const char* const there[] = {"messages", "content", "name", "generation"};
    static const char* const absent[] = {"tools", "documents", "conten", "contents", "", "strftime_now"};
    for (int i = 0; i < COUNT(there); i++) ok(t && jinja_mentions(t, there[i]), "%s is mentioned", there[i]);
    for (int i = 0; i < COUNT(absent); i++) ok(t && !jinja_mentions(t, absent[i]), "'%s' is not mentioned", absent[i]);
    jinja_free(t);
}

static void date_case(void) {
    json_t* context = json_object();
    JinjaOutput out = {0};
    JinjaError error;
    bool done = render("{{ strftime_now('%d %B %Y, %A %j %H:%M') }}{{ strftime_now('') }}", context, "2024-02-29", &out, &error);
    ok(done && !strcmp(out.text, "29 February 2024, Thursday 060 00:00"), "strftime_now: %s", done ? out.text : error.text);
    ok(render("{{ strftime_now is defined }}", context, NULL, &out, &error) && !strcmp(out.text, "False"), "no date, no strftime_now");
    ok(!render("{{ strftime_now('%999999999d') }}", context, "2024-02-29", &out, &error) && is_one_line(&error), "an endless date: %s", error.text);
    jinja_output_free(&out);
    json_decref(context);
}

// ---- templates that mean harm
static char* nested(const char* open, const char* middle, const char* close, int count) {
    size_t bytes = (strlen(open) + strlen(close)) * (size_t)count + strlen(middle) + 1;
    char *text = (char*)host_alloc(bytes), *at = text;
    for (int i = 0; i < count; i++) at = stpcpy(at, open);
    at = stpcpy(at, middle);
    for (int i = 0; i < count; i++) at = stpcpy(at, close);
    return text;
}

static void refused_soon(const char* name, const char* source) {
    static json_t* context;
    if (!context) context = json_loads(JINJA_CONTEXT, 0, NULL);
    JinjaOutput out = {0};
    JinjaError error;
    double begin = seconds();
    bool done = render(source, context, "2024-02-29", &out, &error);
    double took = seconds() - begin, limit = 1;
#ifdef __SANITIZE_ADDRESS__
    limit = 20;
#endif
    ok(!done && is_one_line(&error) && took < limit, "%s: %.2f s, %s", name, took, done ? "not refused" : error.text);
    jinja_output_free(&out);
}

// A thread of little stack, which the bounds of nesting have to keep to. Sanitizers need more for the same calls.
static void with_little_stack(void* (*run)(void*)) {
    size_t stack = (size_t)2 << 20;
#ifdef __SANITIZE_ADDRESS__
    stack *= 16;
#endif
    pthread_attr_t little;
    pthread_t thread;
    pthread_attr_init(&little);
    pthread_attr_setstacksize(&little, stack);
    if (ok(pthread_create(&thread, &little, run, NULL) == 0, "a thread of %zu MiB of stack", stack >> 20)) pthread_join(thread, NULL);
    pthread_attr_destroy(&little);
}

static void* hostile_templates(void* unused) {
    (void)unused;
    static const struct {
        const char *name, *source;
    } cases[] = {
        {"endless loops", "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"},
        {"endless output", "{% for a in range(100000) %}{{ 'x' * 10000 }}{% endfor %}"},
        {"a string doubled", "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s | length }}"},
        {"a string joined to itself", "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"},
        {"a list doubled", "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
        {"a repeated string", "{{ 'a' * 9000000000000000000 }}"},
        {"a repeated list", "{{ [1] * 9000000000000000000 }}"},
        {"endless recursion", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"},
        {"endless recursion of callers", "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{{ caller() }}{% endmacro %}{% call m() %}{% endcall %}"},
        {"an endless recursive loop", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"},
        {"exponential macros", "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}"},
        {"a value deep in itself", "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}"},
        {"deep values compared", "{% set ns = namespace(s=[], t=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% set ns.t = [ns.t] %}{% endfor %}"
                                 "{{ ns.s == ns.t }}"},
        {"a deep key", "{% set ns = namespace(s=()) %}{% for i in range(99999) %}{% set ns.s = (ns.s,) %}{% endfor %}{{ {ns.s: 1} }}"},
        {"a deep value as JSON", "{% set ns = namespace(s=[]) %}{% for i in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}"},
        {"shared values printed", "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}"},
        {"shared values compared", "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
                                   "{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}"},
        {"far characters", "{% set s = 'é' * 100000 %}{% for i in range(100000) %}{{ s[99999] }}{% endfor %}"},
        {"long slices", "{% set s = 'é' * 100000 %}{% for i in range(100000) %}{% set t = s[1:] | length %}{% endfor %}"},
        {"long keys", "{% set s = 'e' * 100000 %}{% set d = {s: 1} %}{% for i in range(100000) %}{% set t = d[s] %}{% endfor %}"},
        {"lazy filters in one another", "{% set ns = namespace(s=[1]) %}{% for i in range(99999) %}{% set ns.s = ns.s | map('string') %}{% endfor %}{{ ns.s | list }}"},
        {"a wide number", "{{ '%999999999d' % 1 }}"},
        {"a wide column", "{{ 'x' | center(999999999) }}{{ '{:>999999999}'.format('x') }}"},
        {"a large power", "{{ 7 ** 7 ** 7 ** 7 }}"},
#ifndef __SANITIZE_ADDRESS__   // which looks at a whole text for each part that memmem finds in it
        {"text replaced by more", "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', 'aaaa') %}{% endfor %}"},
#endif
    };
    for (int i = 0; i < COUNT(cases); i++) refused_soon(cases[i].name, cases[i].source);
    return NULL;
}
static void hostile_case(void) { with_little_stack(hostile_templates); }

static void* nested_templates(void* unused) {
    (void)unused;
    static const struct {
        const char *name, *open, *middle, *close;
    } cases[] = {
        {"parentheses", "(", "1", ")"}, {"brackets", "[", "1", "]"}, {"braces", "{1:", "1", "}"}, {"ifs", "{% if 1 %}", "x", "{% endif %}"},
        {"loops", "{% for x in y %}", "x", "{% endfor %}"}, {"macros", "{% macro m() %}", "x", "{% endmacro %}"}, {"nots", "not ", "1", ""},
        {"signs", "-", "1", ""}, {"attributes", "", "a", ".b"}, {"filters", "", "a", "|string"}, {"calls", "a(", "1", ")"}, {"subscripts", "a[", "1", "]"},
        {"sums", "1+", "1", ""}, {"conditions", "1 if 1 else ", "1", ""}, {"or", "0 or ", "1", ""}, {"powers", "1**", "1", ""},
        {"set blocks", "{% set x %}", "x", "{% endset %}"}, {"filter blocks", "{% filter upper %}", "x", "{% endfilter %}"},
        {"tuples", "(1,", "1", ")"}, {"slices", "a[1:a[", "1", "]]"}, {"keywords", "a(b=", "1", ")"},
    };
    for (int i = 0; i < COUNT(cases); i++) {
        bool whole = !strncmp(cases[i].open, "{%", 2);
        char* inner = nested(cases[i].open, cases[i].middle, cases[i].close, 100000);
        char* source = (char*)host_alloc(strlen(inner) + 7);
        sprintf(source, whole ? "%s" : "{{ %s }}", inner);
        refused_soon(cases[i].name, source);
        free(source);
        free(inner);
    }
    return NULL;
}
static void nesting_case(void) { with_little_stack(nested_templates); }

// ---- several threads with one template
typedef struct {
    const Jinja* t;
    const json_t* context;
    int same;
} ThreadCase;

static void* render_often(void* arg) {
    ThreadCase* c = (ThreadCase*)arg;
    JinjaOutput out = {0};
    JinjaError error;
    for (int i = 0; i < 200; i++)
        c->same += jinja_render(c->t, c->context, kUserData, NULL, &out, &error) && !strcmp(out.text, "Zoë & <b>5é312");
    jinja_output_free(&out);
    return NULL;
}

static void threads_case(void) {
    const char* source = "{% macro m() %}{{ word }}{% endmacro %}{{ m() }}{{ 'éabcd' | length }}{{ 'éabcd'[0] }}{% for x in list %}{{ x }}{% endfor %}";
    json_t* context = json_loads(JINJA_CONTEXT, 0, NULL);
    JinjaError error;
    Jinja* t = jinja_compile(source, strlen(source), &error);
    if (!ok(t != NULL, "the threads' template compiles")) return;
    pthread_t threads[4];
    ThreadCase cases[4];
    for (int i = 0; i < 4; i++) {
        cases[i] = (ThreadCase){t, context, 0};
        pthread_create(threads + i, NULL, render_often, cases + i);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        ok(cases[i].same == 200, "thread %d: %d of 200 renderings alike", i, cases[i].same);
    }
    jinja_free(t);
    json_decref(context);
}

// Random templates as Jinja2 renders them, where there is a Python that has it. kDifferential: 20 000 were run without a difference; the suite
// takes some of another seed each day.
enum { kDifferential = 4000 };
static void differential_case(void) {
    static const char* const pythons[] = {"python3", "/usr/bin/python3"};
    const char* python = NULL;
    char command[1200], self[1000];
    for (int i = 0; i < COUNT(pythons) && !python; i++) {
        snprintf(command, sizeof command, "%s -c 'import jinja2' >/dev/null 2>&1", pythons[i]);
        if (!system(command)) python = pythons[i];
    }
    if (!python) {
        skip("jinja differential: no Python here has jinja2 (Debian's python3-jinja2)");
        return;
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    check(n > 0, "the path of the test is unknown");
    self[n] = 0;
    *strrchr(self, '/') = 0;
    long day = (long)(time(NULL) / 86400);
    snprintf(command, sizeof command, "%s -W ignore test/jinja_differential.py %s/jinja_driver %d %ld", python, self, (int)kDifferential, day);
    ok(system(command) == 0, "jinja differential: %d random templates of seed %ld as Jinja2 renders them", (int)kDifferential, day);
}

static const Case cases[] = {
    {"jinja.differential", differential_case},
    {"jinja.features", features_case}, {"jinja.published", published_case}, {"jinja.marks", marks_case}, {"jinja.generation", generation_case},
    {"jinja.errors", errors_case},     {"jinja.names", names_case},         {"jinja.date", date_case},   {"jinja.hostile", hostile_case},
    {"jinja.nesting", nesting_case},   {"jinja.threads", threads_case},
};
int main(int argc, char** argv) { return test_main(cases, COUNT(cases), argc, argv); }
