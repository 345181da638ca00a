// The command inspect; see inspect.h.
#include "inspect.h"

#include "../../data/files.h"
#include "../../data/inspect.h"
#include "session.h"

// The tokenizer's files of a Hugging Face directory, with or without weights, or of a GGUF file.
static ModelFiles* tokenizer_files(const char* path) {
    if (dir_exists(path) || !path_exists(path)) return model_files_from_dirs(NULL, path);
    Config config;
    ModelSource* source = model_source_open(path, &config);
    ModelFiles* files = model_source_files(source);
    model_source_close(source);
    return files;
}

int command_inspect(Options o) {
    Session s;
    memset(&s, 0, sizeof s);
    s.o = o;
    options_check(&o, INSPECT, 1);
    s.tokenizer_path = o.tokenizer ? o.tokenizer : o.model;
    s.files = tokenizer_files(s.tokenizer_path);
    load_tokenizer(&s);
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
    model_files_free(s.files);
    return 0;
}
