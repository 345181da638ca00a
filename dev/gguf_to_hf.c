// Writes a Llama model from a GGUF file as a Hugging Face directory, and dumps of single tensors for checks by hand.
//
//   gguf_to_hf FILE.gguf DIR            the directory, weights in BF16 if that is exact, else F32
//   gguf_to_hf FILE.gguf --dump NAME    the tensor's values as raw floats on stdout, as the file orders them
#include "../data/files.h"
#include "../data/gguf_model.h"
#include "../data/hf_read.h"
#include "../data/hf_write.h"

typedef struct {
    const GgufModel* model;
    Fmt fmt;
} Source;

static void rows(void* context, int spec, int layer, int first_row, int count, void* dst) {
    const Source* s = (const Source*)context;
    gguf_model_rows(s->model, spec, layer, first_row, count, s->fmt, dst);
}

static void put(const char* dir, const char* name, char* text) {
    char* path = path_join(dir, name);
    OutFile out = out_open(path, strlen(text));
    out_write(&out, text, strlen(text));
    out_close(&out);
    free(path);
    free(text);
}

static void dump(const char* path, const char* name) {
    Gguf* file = gguf_open(path);
    const GgufTensor* t = gguf_tensor(file, name);
    if (!t) user_error("%s: no tensor \"%s\"", path, name);
    float* values = (float*)host_alloc(t->rows * t->cols * sizeof(float));
    gguf_rows(file, t, 0, t->rows, values);
    check(fwrite(values, sizeof(float), t->rows * t->cols, stdout) == t->rows * t->cols, "stdout: cannot be written");
    free(values);
    gguf_close(file);
}

int main(int argc, char** argv) {
    if (argc == 4 && !strcmp(argv[2], "--dump")) {
        dump(argv[1], argv[3]);
        return 0;
    }
    if (argc != 3) user_error("usage: gguf_to_hf FILE.gguf DIR | gguf_to_hf FILE.gguf --dump NAME");
    Config config;
    GgufModel* model = gguf_model_open(argv[1], &config);
    Source source = {model, gguf_model_fmt(model)};
    HfOutput output = {argv[2], NULL, NULL, source.fmt, kDefaultShardBytes};
    hf_model_write(&output, &config, rows, &source);
    put(argv[2], "config.json", gguf_config_json(model, source.fmt));
    put(argv[2], "generation_config.json", gguf_generation_config_json(model));
    put(argv[2], "tokenizer.json", gguf_tokenizer_json(model));
    put(argv[2], "tokenizer_config.json", gguf_tokenizer_config_json(model));
    put(argv[2], "special_tokens_map.json", gguf_special_tokens_map_json(model));
    gguf_model_close(model);
    return 0;
}
