// Fuzzing of the interpreter of chat templates: the bytes are a template. It may refuse them, in one line.
#include "../../data/jinja/jinja.h"
#include "../jinja_cases.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
    static const char* const user_data[] = {"word", "list", NULL};
    static json_t* context;
    if (!context) context = json_loads(JINJA_CONTEXT, 0, NULL);
    JinjaError error = {0, ""};
    JinjaOutput out = {0};
    Jinja* t = jinja_compile((const char*)data, bytes, &error);
    if (t) jinja_mentions(t, "messages");
    bool done = t && jinja_render(t, context, user_data, "2024-02-29", &out, &error);
    if (!done && (!*error.text || strchr(error.text, '\n'))) abort();
    for (size_t i = 0; done && i < out.bytes; i++)
        if (out.from_data[i] > 1) abort();
    jinja_output_free(&out);
    jinja_free(t);
    return 0;
}
