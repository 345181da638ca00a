// Fuzzing of everything that reads a file: one binary, linked to once for each target, whose name it looks up (fuzz_safetensors ...).
//
// An input is written as a file and read as the program reads it. A refusal (user_error) comes back here and is a good end; whatever
// else happens is a finding: a sanitizer's report, a broken promise (die), memory or time without bound. A refusal leaves open what it
// was reading: files and mappings are taken back after each input, memory is not.
//
// To add a target: a function, and a line in the table.
#include "../../data/checkpoint.h"
#include "../../data/csv.h"
#include "../../data/digest.h"
#include "../../data/files.h"
#include "../../data/gguf_model.h"
#include "../../data/hf_config.h"
#include "../../data/hf_read.h"
#include "../../data/jinja/jinja.h"
#include "../../data/record.h"
#include "../../data/safetensors.h"
#include "../../data/tokenizer/tokenizer.h"
#include "../../data/toml.h"
#include "../../halo/attempt.h"
#include "../jinja_cases.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int* argc, char*** argv);
int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes);

static char dir[64], path[128];   // of this process; the input as a file in it

// ---- what a refusal leaves behind: mappings of files (those without a file are a linked library's own)

enum { kMostMaps = 64 };
static struct {
    void* at;
    size_t bytes;
} maps[kMostMaps];
static int map_count;

void* __real_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset);
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset);
void* __wrap_mmap(void* at, size_t bytes, int protection, int flags, int fd, off_t offset) {
    void* map = __real_mmap(at, bytes, protection, flags, fd, offset);
    if (fd >= 0 && map != MAP_FAILED && map_count < kMostMaps) maps[map_count].at = map, maps[map_count++].bytes = bytes;
    return map;
}

int __real_munmap(void* at, size_t bytes);
int __wrap_munmap(void* at, size_t bytes);
int __wrap_munmap(void* at, size_t bytes) {
    for (int i = 0; i < map_count; i++)
        if (maps[i].at == at) maps[i] = maps[--map_count];
    return __real_munmap(at, bytes);
}

// A broken promise ends the program with _exit, which libFuzzer does not see: here it is a crash.
void __wrap__exit(int code);
void __wrap__exit(int code) {
    (void)code;
    abort();
}

static void take_back(void) {
    while (map_count) {
        map_count--;
        __real_munmap(maps[map_count].at, maps[map_count].bytes);
    }
    for (int fd = 3; fd < 32; fd++) {
        char link[32], name[128];
        if (fcntl(fd, F_GETFD) < 0) continue;
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(link, name, sizeof name - 1);
        if (n > 0 && !strncmp(name, dir, strlen(dir))) close(fd);
    }
}

// ---- targets

static void write_input(const char* name, const char* head, const void* text, size_t bytes) {
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE* f = fopen(path, "wb");
    if (!f || fwrite(head, 1, strlen(head), f) != strlen(head) || fwrite(text, 1, bytes, f) != bytes || fclose(f)) abort();
}

static void as_safetensors(void* unused) {
    (void)unused;
    SafeTensors* s = safetensors_open(path);
    for (int i = 0; i < safetensors_count(s); i++) {
        const Tensor* t = safetensors_at(s, i);
        float values[64];
        if (t->dtype < ST_F64) tensor_read(t, 0, t->elements < 64 ? t->elements : 64, F32, values);
    }
    safetensors_close(s);
}

// A model whose index is the input; its config.json and one shard are small and whole.
static void as_index(void* unused) {
    (void)unused;
    Config c;
    hf_model_close(hf_model_open(dir, &c));
}

static void as_config(void* unused) {
    (void)unused;
    Config c;
    hf_config_read(dir, &c);
}

static void as_tokenizer(void* unused) {
    (void)unused;
    static const char kText[] = "Hello, w\xc3\xb6rld! <|end|> 12345\n\n  x";
    Tokenizer* t = tokenizer_load(dir);
    TokenList ids = {NULL, 0, 0};
    Text text = {NULL, 0, 0};
    tokenizer_encode(t, kText, sizeof kText - 1, 0, &ids);
    tokenizer_decode(t, ids.ids, ids.count, false, &text);
    token_list_free(&ids);
    text_free(&text);
    tokenizer_free(t);
}

static void as_records(void* unused) {
    (void)unused;
    RecordList records = records_read(path, NULL);
    records_free(&records);
}

static void as_toml(void* unused) {
    (void)unused;
    Toml toml = toml_read(path);
    for (int i = 0; i < toml.count; i++)
        if (!*toml.entries[i].key || !toml.entries[i].value) abort();
    toml_free(&toml);
}

static void as_gguf(void* unused) {
    (void)unused;
    Config config;
    GgufModel* m = gguf_model_open(path, &config);
    free(gguf_config_json(m, gguf_model_fmt(m)));
    free(gguf_generation_config_json(m));
    free(gguf_tokenizer_json(m));
    free(gguf_tokenizer_config_json(m));
    gguf_model_close(m);
}

// A checkpoint whose manifest is the input behind a seal that holds: damage is the checksum's matter, these are the lies that it lets pass.
static void as_checkpoint(void* unused) {
    (void)unused;
    static char weights[64];
    static int64_t step;
    Blob blob = host_blob("weights", weights, sizeof weights);
    CheckpointNumber number = {"step", &step};
    CheckpointSetting setting = {"seed", "0", NULL};
    CheckpointState state = {0, 1, &blob, 1, &number, 1, &setting, 1};
    free(checkpoint_verify(dir));
    checkpoint_load(dir, &state);
}

// The input is a chat template: it renders, or is refused in one line.
static void as_template(void* unused) {
    static const char* const user_data[] = {"word", "list", NULL};
    static json_t* context;
    (void)unused;
    if (!context) context = json_loads(JINJA_CONTEXT, 0, NULL);
    size_t bytes;
    char* text = file_read(path, &bytes);
    JinjaError error = {0, ""};
    JinjaOutput out = {0};
    Jinja* t = jinja_compile(text, bytes, &error);
    if (t) jinja_mentions(t, "messages");
    bool done = t && jinja_render(t, context, user_data, "2024-02-29", &out, &error);
    if (!done && (!*error.text || strchr(error.text, '\n'))) abort();
    for (size_t i = 0; done && i < out.bytes; i++)
        if (out.from_data[i] > 1) abort();
    jinja_output_free(&out);
    if (t) jinja_free(t);
    free(text);
}

static const struct {
    const char *name, *file;
    void (*read)(void*);
} kReaders[] = {
    {"fuzz_safetensors", "x.safetensors", as_safetensors},
    {"fuzz_index", "model.safetensors.index.json", as_index},
    {"fuzz_config", "config.json", as_config},
    {"fuzz_tokenizer", "tokenizer.json", as_tokenizer},
    {"fuzz_jsonl", "x.jsonl", as_records},
    {"fuzz_csv", "x.csv", as_records},
    {"fuzz_toml", "x.toml", as_toml},
    {"fuzz_gguf", "x.gguf", as_gguf},
    {"fuzz_jinja", "x.jinja", as_template},
    {"fuzz_checkpoint", "rank-00000-of-00001.json", as_checkpoint},
};
enum { kReaderCount = sizeof kReaders / sizeof kReaders[0] };
static int target = -1;

static const char kSmallConfig[] =
    "{\"model_type\": \"llama\", \"hidden_size\": 8, \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"intermediate_size\": 8,"
    "\"vocab_size\": 8, \"max_position_embeddings\": 8, \"rms_norm_eps\": 1e-05, \"hidden_act\": \"silu\", \"torch_dtype\": \"float32\"}";
static const char kShardHeader[] = "{\"model.norm.weight\": {\"dtype\": \"F32\", \"shape\": [8], \"data_offsets\": [0, 32]}} ";

static void remove_dir(void) {
    char line[128];
    snprintf(line, sizeof line, "rm -rf '%s'", dir);
    if (system(line)) perror(line);
}

int LLVMFuzzerInitialize(int* argc, char*** argv) {
    (void)argc;
    const char *slash = strrchr((*argv)[0], '/'), *name = slash ? slash + 1 : (*argv)[0];
    for (int i = 0; i < kReaderCount; i++)
        if (!strcmp(kReaders[i].name, name)) target = i;
    if (target < 0) {
        fprintf(stderr, "%s: no such target\n", name);
        exit(2);
    }
    snprintf(dir, sizeof dir, "%s/%s.%d", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm", name, (int)getpid());
    if (mkdir(dir, 0700)) abort();
    atexit(remove_dir);
    write_input("config.json", "", kSmallConfig, strlen(kSmallConfig));
    char shard[8 + sizeof kShardHeader - 1 + 32] = {(char)(sizeof kShardHeader - 1)};
    memcpy(shard + 8, kShardHeader, sizeof kShardHeader - 1);
    write_input("a.safetensors", "", shard, sizeof shard);
    char zeros[64] = {0};
    write_input("rank-00000-of-00001.bin", "", zeros, sizeof zeros);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
    char message[kAttemptBytes], head[128] = "";
    if (kReaders[target].read == as_checkpoint) {
        char hex[kHexBytes];
        hex_digest(XXH3_128bits(data, bytes), hex);
        snprintf(head, sizeof head, "{\"manifest_xxh3\": \"%s\",", hex);
    }
    write_input(kReaders[target].file, head, data, bytes);
    attempt(kReaders[target].read, NULL, message);
    take_back();
    return 0;
}
