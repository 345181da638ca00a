// The command verify; see verify.h.
#include "verify.h"

#include "../../data/checkpoint.h"
#include "../../data/digest.h"
#include "../../data/files.h"
#include "../../data/hf_layout.h"
#include "../../data/hf_read.h"
#include "../../data/json.h"
#include "../../data/safetensors.h"
#include "../../data/tokenizer/tokenizer.h"
#include "../attempt.h"

enum { kRowsAtOnce = 512 };

static void verify_tensor(const char* dir, const HfModel* m, const ParamSpec* spec, int index, int layer, Fmt fmt) {
    size_t row_bytes = (size_t)spec->cols * fmt_bytes(fmt);
    void* rows = host_alloc((size_t)min_int(kRowsAtOnce, spec->rows) * row_bytes);
    for (int row = 0; row < spec->rows; row += kRowsAtOnce) {
        int n = min_int(kRowsAtOnce, spec->rows - row);
        size_t count = (size_t)n * (size_t)spec->cols;
        hf_model_rows(m, index, layer, row, n, fmt, rows);
        size_t bad = first_not_finite(rows, count, fmt);
        if (bad == count) continue;
        char name[128];
        param_name(spec, layer, name, sizeof name);
        user_error("%s: tensor \"%s\" is not finite at row %zu, column %zu", dir, name, (size_t)row + bad / (size_t)spec->cols,
                   bad % (size_t)spec->cols);
    }
    free(rows);
}

// Checks the weights' files by the checksums that were written with them, and returns how many there are. Damage is a user_error.
static int verify_checksums(const char* dir) {
    char* path = path_join(dir, HF_CHECKSUMS_NAME);
    int count = 0;
    if (path_exists(path)) {
        json_t* checksums = json_parse_file(path);
        const char* name;
        const json_t* want;
        json_object_foreach(checksums, name, want) {
            char *file = path_join(dir, name), hex[kHexBytes];
            if (strchr(name, '/')) user_error("%s: \"%s\" is not the name of a file in this directory", path, printable(name));
            file_digest(file, hex);
            if (!json_is_string(want) || strcmp(json_string_value(want), hex))
                user_error("%s: is not the file that was written (its checksum in %s differs)", file, HF_CHECKSUMS_NAME);
            free(file);
            count++;
        }
        json_decref(checksums);
    }
    free(path);
    return count;
}

static void verify_model(void* dir_name) {
    const char* dir = (const char*)dir_name;
    Config c;
    HfModel* m = hf_model_open(dir, &c);
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(&c, specs), tensors = 0;
    Fmt fmt = hf_model_fmt(m);
    for (int i = 0; i < count; i++)
        for (int layer = 0; layer < (specs[i].per_layer ? c.L : 1); layer++, tensors++) verify_tensor(dir, m, &specs[i], i, layer, fmt);
    hf_model_close(m);
    int sums = verify_checksums(dir);
    char* path = path_join(dir, "tokenizer.json");
    bool has_tokenizer = path_exists(path);
    free(path);
    if (has_tokenizer) {
        Tokenizer* t = tokenizer_load(dir);
        if (tokenizer_size(t) > c.V) user_error("%s/tokenizer.json: %d tokens, but vocab_size is %d", dir, tokenizer_size(t), c.V);
        tokenizer_free(t);
    }
    printf("%s: a whole model: %d tensors, %.1fM parameters, all of them finite, %d checksum%s%s\n", dir, tensors,
           (double)param_count(&c) / 1e6, sums, sums == 1 ? "" : "s", has_tokenizer ? ", and a tokenizer" : "; no tokenizer.json");
}

static void verify_adapter(void* dir_name) {
    const char* dir = (const char*)dir_name;
    char *config = path_join(dir, HF_ADAPTER_CONFIG_NAME), *path = path_join(dir, HF_ADAPTER_NAME);
    json_decref(json_parse_file(config));
    SafeTensors* file = safetensors_open(path);
    size_t numbers = 0;
    for (int i = 0; i < safetensors_count(file); i++) {
        const Tensor* tensor = safetensors_at(file, i);
        float* values = (float*)host_alloc((tensor->elements + 1) * sizeof *values);
        tensor_read(tensor, 0, tensor->elements, F32, values);
        size_t bad = first_not_finite(values, tensor->elements, F32);
        if (bad < tensor->elements) user_error("%s: tensor \"%s\" is not finite at value %zu", path, printable(tensor->name), bad);
        numbers += tensor->elements;
        free(values);
    }
    printf("%s: a whole adapter: %d tensors, %.2fM parameters, all of them finite\n", dir, safetensors_count(file), (double)numbers / 1e6);
    safetensors_close(file);
    free(path);
    free(config);
}

// Each of these prints what is damaged, and returns how many are.
static int verify_checkpoint(const char* path) {
    char* fault = checkpoint_verify(path);
    if (fault) printf("%s: DAMAGED (%s)\n", path, fault);
    else printf("%s: a whole checkpoint of %d rank%s\n", path, checkpoint_ranks(path), checkpoint_ranks(path) > 1 ? "s" : "");
    int damaged = fault != NULL;
    free(fault);
    return damaged;
}

static int verify_checkpoints(const char* dir, int* found) {
    int *steps, count = checkpoint_steps(dir, &steps), damaged = 0;
    for (int i = 0; i < count; i++) {
        char* path = checkpoint_path(dir, steps[i]);
        damaged += verify_checkpoint(path);
        free(path);
    }
    free(steps);
    *found += count;
    return damaged;
}

int command_verify(Options o) {
    if (!o.model) user_error("verify: name a checkpoint, a model's folder or a run's: train_llama3 verify DIR");
    if (!dir_exists(o.model)) user_error("verify %s: no such folder", o.model);
    int found = 0, damaged = 0;
    if (is_checkpoint(o.model)) {
        found++;
        damaged += verify_checkpoint(o.model);
    }
    char* checkpoints = path_join(o.model, "checkpoints");
    damaged += verify_checkpoints(o.model, &found) + verify_checkpoints(checkpoints, &found);
    free(checkpoints);
    bool adapter = dir_holds(o.model, HF_ADAPTER_CONFIG_NAME) && !dir_holds(o.model, "config.json");
    if (adapter || dir_holds(o.model, "config.json") || !found) {
        char fault[kAttemptBytes];
        found++;
        bool whole = attempt(adapter ? verify_adapter : verify_model, (void*)o.model, fault);
        if (!whole) printf("%s: DAMAGED: %s\n", o.model, fault);
        damaged += !whole;
    }
    fflush(stdout);
    if (damaged) user_error("verify %s: %d of %d damaged", o.model, damaged, found);
    return 0;
}
