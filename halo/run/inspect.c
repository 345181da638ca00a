// The command inspect; see inspect.h.
#include "inspect.h"

#include "../../data/inspect.h"
#include "session.h"

int command_inspect(Options o) {
    Session s;
    memset(&s, 0, sizeof s);
    s.o = o;
    options_check(&o, INSPECT, 1);
    s.tokenizer_dir = o.tokenizer ? o.tokenizer : o.model;
    s.tokenizer = tokenizer_load(s.tokenizer_dir);
    open_chat(&s);
    DataOptions options = data_options(&s);
    options.inspect = true;
    options.texts = o.examples;
    Dataset* d = dataset_load(o.data, s.tokenizer, &options);
    if (!o.json) dataset_report(d, stdout);
    InspectOptions how = {o.examples, o.json, isatty(STDOUT_FILENO) == 1};
    inspect_dataset(d, s.tokenizer, &how, stdout);
    dataset_free(d);
    chat_free(&s.chat);
    tokenizer_free(s.tokenizer);
    return 0;
}
