// Random weights for training from scratch and for benchmarks.
#include "rng.h"
#include "shard.h"

// Four independent normals (Box & Muller 1958).
static void normal4(uint64_t seed, uint64_t index, uint64_t stream, float out[4]) {
    Philox r = random_words(seed, index, stream);
    for (int pair = 0; pair < 2; pair++) {
        float u = ((float)r.word[2 * pair] + 0.5f) * 0x1p-32f, v = uniform_from_word(r.word[2 * pair + 1]);
        float radius = sqrtf(-2 * logf(fminf(u, 1))), angle = 6.28318530718f * v;
        out[2 * pair] = radius * cosf(angle);
        out[2 * pair + 1] = radius * sinf(angle);
    }
}

// A number for each tensor: FNV-1a of its name.
static uint32_t tensor_number(const ParamSpec* spec, int layer) {
    char name[128];
    param_name(spec, layer, name, sizeof name);
    uint32_t number = 2166136261u;
    for (const char* p = name; *p; p++) number = (number ^ (uint8_t)*p) * 16777619u;
    return number;
}

void random_weights_read(void* self, int index, int layer, int row0, int rows, float* dst) {
    const RandomWeights* random = (const RandomWeights*)self;
    ParamSpec specs[kMaxParamSpecs];
    param_specs(random->config, specs);
    const ParamSpec* spec = &specs[index];
    if (stack_is_norm(spec->stack)) {
        for (int c = 0; c < spec->cols; c++) dst[c] = 1;
        return;
    }
    uint32_t tensor = tensor_number(spec, layer);
    int groups = ceil_div(spec->cols, 4);
#pragma omp parallel for
    for (int r = 0; r < rows; r++) {
        for (int g = 0; g < groups; g++) {
            float four[4];
            normal4(random->seed, (uint64_t)(row0 + r) * (uint64_t)groups + (uint64_t)g, tensor, four);
            for (int k = 0; k < 4 && 4 * g + k < spec->cols; k++)
                dst[(size_t)r * spec->cols + 4 * g + k] = random->deviation * four[k];
        }
    }
}

void lora_start_read(void* self, int index, int layer, int row0, int rows, float* dst) {
    const RandomWeights* random = (const RandomWeights*)self;
    ParamSpec specs[kMaxParamSpecs];
    adapter_specs(random->config, specs);
    const ParamSpec* spec = &specs[index];
    int linear = 0;
    while (linear < kLinearCount && kLinears[linear].a != spec->stack) linear++;
    if (linear == kLinearCount) {
        memset(dst, 0, sizeof(float) * (size_t)rows * spec->cols);
        return;
    }
    uint32_t tensor = tensor_number(spec, layer);
    float bound = 1 / sqrtf((float)spec->cols);
    int groups = ceil_div(spec->cols, 4);
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < spec->cols; c++) {
            Philox four = random_words(random->seed, (uint64_t)(row0 + r) * (uint64_t)groups + (uint64_t)(c / 4), tensor);
            dst[(size_t)r * spec->cols + c] = bound * (2 * uniform_from_word(four.word[c % 4]) - 1);
        }
    }
}
