// Renders chat templates for test/jinja_differential.py: a line of JSON {"template", "context"} in, a line {"text", "marks"} or
// {"error"} out. marks: a 0 or 1 for each byte of the text, 1 where it came out of the messages or tools.
#include "../data/jinja/jinja.h"

static json_t* answer(const json_t* request) {
    static const char* const data_names[] = {"messages", "tools", NULL};
    const json_t *source = json_object_get(request, "template"), *context = json_object_get(request, "context");
    JinjaError error;
    JinjaOutput out;
    memset(&out, 0, sizeof out);
    check(json_is_string(source) && json_is_object(context), "a request has a template and a context");
    Jinja* t = jinja_compile(json_string_value(source), json_string_length(source), &error);
    bool done = t && jinja_render(t, context, data_names, NULL, &out, &error);
    json_t* reply = json_pack("{s:o}", done ? "text" : "error", done ? json_stringn(out.text, out.bytes) : json_string(error.text));
    for (size_t i = 0; done && i < out.bytes; i++) out.text[i] = (char)('0' + out.from_data[i]);
    if (done) json_object_set_new(reply, "marks", json_stringn(out.text, out.bytes));
    check(reply, "text that is no UTF-8");
    jinja_free(t);
    jinja_output_free(&out);
    return reply;
}

int main(void) {
    char* line = NULL;
    size_t capacity = 0;
    ssize_t bytes;
    while ((bytes = getline(&line, &capacity, stdin)) > 0) {
        json_error_t error;
        json_t* request = json_loadb(line, (size_t)bytes, JSON_ALLOW_NUL, &error);
        check(request, "a request is no JSON: %s", error.text);
        json_t* reply = answer(request);
        json_dumpf(reply, stdout, JSON_COMPACT);
        putchar('\n');
        fflush(stdout);
        json_decref(reply);
        json_decref(request);
    }
    free(line);
    return 0;
}
