// Fuzzing of the GGUF reader: the bytes are a file. A refusal ends the process with exit code 2, hence one child an input.
#include "../../data/gguf_model.h"

#include <sys/mman.h>
#include <sys/wait.h>

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes);

static void read_everything(const char* path) {
    Config config;
    GgufModel* m = gguf_model_open(path, &config);
    free(gguf_config_json(m, gguf_model_fmt(m)));
    free(gguf_generation_config_json(m));
    free(gguf_tokenizer_json(m));
    free(gguf_tokenizer_config_json(m));
    gguf_model_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
    int fd = memfd_create("fuzz.gguf", 0);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (fd < 0 || write(fd, data, bytes) != (ssize_t)bytes) abort();
    pid_t child = fork();
    if (child == 0) {
        if (!freopen("/dev/null", "w", stderr)) _exit(0);
        read_everything(path);
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    close(fd);
    if (!WIFEXITED(status) || (WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != kExitUser)) abort();
    return 0;
}
