// Chat templates as callers see them: compiled once, rendered often.
#include "internal.h"

static int by_bytes(const void* a, const void* b) {
    const JText *x = *(const JText* const*)a, *y = *(const JText* const*)b;
    size_t bytes = x->bytes < y->bytes ? x->bytes : y->bytes;
    int sign = bytes ? memcmp(x->s, y->s, bytes) : 0;
    return sign ? sign : (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

// Notes every name, and every string that stands alone in brackets, as in message["content"], for jinja_mentions.
static void note_names(JRun* r, Jinja* t, const JToken* tokens, int count) {
    t->mentioned = (const JText**)jinja_take(r, (size_t)count * sizeof(JText*));
    for (int i = 0; i < count; i++) {
        bool key = tokens[i].type == kTString && i && i + 1 < count && tokens[i - 1].type == kTLBracket && tokens[i + 1].type == kTRBracket;
        if (key || tokens[i].type == kTName) t->mentioned[t->mentioned_count++] = tokens[i].value.as.text;
    }
    if (t->mentioned_count) qsort(t->mentioned, (size_t)t->mentioned_count, sizeof(JText*), by_bytes);
}

// The compiled template; the tree lies in r's arena, which therefore outlives this call. A failure jumps to the setjmp in jinja_compile.
static Jinja* compiled(JRun* r, const char* source, size_t bytes) {
    int count;
    char* copy = (char*)jinja_take(r, bytes);
    if (bytes) memcpy(copy, source, bytes);
    Jinja* t = (Jinja*)jinja_take_zeroed(r, sizeof(Jinja));
    t->memory = r;
    JToken* tokens = jinja_lex(r, copy, bytes, &count);
    note_names(r, t, tokens, count);
    t->body = jinja_parse(r, tokens, count);
    jinja_resolve(r, t);
    return t;
}

Jinja* jinja_compile(const char* source, size_t bytes, JinjaError* error) {
    JRun* r = (JRun*)calloc(1, sizeof(JRun));
    check(r, "out of host memory: %zu bytes", sizeof(JRun));
    r->error = error;
    if (!setjmp(r->out)) return compiled(r, source, bytes);
    jinja_release(r);
    free(r);
    return NULL;
}

void jinja_free(Jinja* t) {
    if (!t) return;
    JRun* r = t->memory;   // holds t itself
    jinja_release(r);
    free(r);
}

bool jinja_mentions(const Jinja* t, const char* name) {
    JText wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.s = name;
    wanted.bytes = strlen(name);
    const JText* key = &wanted;
    return t->mentioned_count && bsearch(&key, t->mentioned, (size_t)t->mentioned_count, sizeof(JText*), by_bytes);
}

void jinja_output_free(JinjaOutput* out) {
    free(out->text);
    free(out->from_data);
    free(out->generation);
    memset(out, 0, sizeof *out);
}

static void rendered(JRun* r) {
    int globals = r->template_->global_count;
    r->globals = (JValue*)jinja_take(r, (size_t)globals * sizeof(JValue));
    r->resolved = (bool*)jinja_take_zeroed(r, (size_t)globals);
    jinja_run(r);
}

static void start_output(JinjaOutput* out) {
    out->bytes = 0;
    out->generations = 0;
    if (out->capacity) return;
    out->capacity = 4096;
    out->text = (char*)malloc(out->capacity);
    out->from_data = (unsigned char*)malloc(out->capacity);
    check(out->text && out->from_data, "out of host memory: %zu bytes", 2 * out->capacity);
}

bool jinja_render(const Jinja* t, const json_t* context, const char* const* data_names, const char* date,
                  JinjaOutput* out, JinjaError* error) {
    JRun r;
    memset(&r, 0, sizeof r);
    r.error = error;
    r.template_ = t;
    r.context = context;
    r.data_names = data_names;
    r.date = date;
    r.output = out;
    start_output(out);
    bool done = !setjmp(r.out);
    if (done) rendered(&r);
    jinja_release(&r);
    if (!done) out->bytes = 0, out->generations = 0;
    out->text[out->bytes] = 0;
    return done;
}
