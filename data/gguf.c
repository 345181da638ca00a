// The GGUF format: see gguf.h.
#include "gguf.h"

#include "json.h"
#include "safetensors.h"
#include "utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

enum {
    kWindowBytes = 1 << 16,      // what one read of the header fetches
    kPieceBytes = 8 << 20,       // stored bytes that one read of rows fetches at most (one row at least)
    kMaxKeyBytes = 65535,        // the format's limit
    kMaxNameBytes = 63,          // of a tensor, as in llama.cpp
    kMaxDims = 4,
    kMinTensorBytes = 8 + 4 + 8 + 4 + 8,
    kMinPairBytes = 8 + 4 + 1,
};

struct Gguf {
    char* path;
    int fd;
    size_t file_bytes;
    GgufValue* values;     // sorted by key
    int value_count;
    GgufTensor* tensors;   // sorted by name
    int tensor_count;
};

// ---- stored types

// Indexed by the type's number in the file; types without a name cannot be read.
static const struct {
    const char* name;
    int values, bytes;   // of a block
} kTypes[kGgmlTypes] = {
    {"F32", 1, 4}, {"F16", 1, 2}, {"Q4_0", 32, 18}, {"Q4_1", 32, 20}, {NULL, 0, 0}, {NULL, 0, 0}, {"Q5_0", 32, 22},
    {"Q5_1", 32, 24}, {"Q8_0", 32, 34}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {"Q4_K", 256, 144}, {"Q5_K", 256, 176},
    {"Q6_K", 256, 210}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0},
    {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0},
    {"BF16", 1, 2},
};

const char* ggml_type_name(int type) { return type >= 0 && type < kGgmlTypes ? kTypes[type].name : NULL; }
int ggml_block_values(GgmlType type) { return kTypes[type].values; }
int ggml_block_bytes(GgmlType type) { return kTypes[type].bytes; }

static uint16_t u16_at(const unsigned char* p) { return (uint16_t)(p[0] | p[1] << 8); }
static uint32_t u32_at(const unsigned char* p) { return (uint32_t)u16_at(p) | (uint32_t)u16_at(p + 2) << 16; }
static uint64_t u64_at(const unsigned char* p) { return (uint64_t)u32_at(p) | (uint64_t)u32_at(p + 4) << 32; }
static float f16_at(const unsigned char* p) { return f32_from_f16(u16_at(p)); }

// Blocks of 32: a scale, for the _1 types a minimum, for the Q5 types a fifth bit a value, then four bits a value, where the
// low halves of the 16 bytes are the first 16 values.
static void dequantize_32(GgmlType type, const unsigned char* src, float* dst) {
    bool minimum = type == GGML_Q4_1 || type == GGML_Q5_1, fifth = type == GGML_Q5_0 || type == GGML_Q5_1;
    float scale = f16_at(src), least = minimum ? f16_at(src + 2) : 0;
    src += minimum ? 4 : 2;
    uint32_t high = fifth ? u32_at(src) : 0;
    src += fifth ? 4 : 0;
    int zero = minimum ? 0 : fifth ? 16 : 8;
    for (int i = 0; i < 32; i++) {
        int code = (i < 16 ? src[i] & 15 : src[i - 16] >> 4) | (int)(high >> i & 1) << 4;
        float value = scale * (float)(code - zero);
        dst[i] = minimum ? value + least : value;
    }
}

static void dequantize_q8_0(const unsigned char* src, float* dst) {
    float scale = f16_at(src);
    for (int i = 0; i < 32; i++) dst[i] = (float)(int8_t)src[2 + i] * scale;
}

// Q4_K and Q5_K: 8 groups of 32 values, each with a scale and a minimum of six bits that 12 bytes hold together: the first
// four groups' in the low six bits of bytes 0 to 3 (scales) and 4 to 7 (minima); of the others the low four bits lie in bytes
// 8 to 11 and the high two on top of the first eight bytes.
static void dequantize_k(GgmlType type, const unsigned char* src, float* dst) {
    float scale = f16_at(src), least = f16_at(src + 2);
    const unsigned char *packed = src + 4, *high = src + 16, *low = type == GGML_Q5_K ? src + 48 : src + 16;
    for (int group = 0; group < 8; group++) {
        int j = group & 3, s = packed[j] & 63, m = packed[j + 4] & 63;
        if (group >= 4) {
            s = (packed[j + 8] & 15) | packed[j] >> 6 << 4;
            m = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
        }
        float d = scale * (float)s, minimum = least * (float)m;
        for (int i = 0; i < 32; i++) {
            int code = low[group / 2 * 32 + i] >> 4 * (group & 1) & 15;
            if (type == GGML_Q5_K) code |= (high[i] >> group & 1) << 4;
            dst[group * 32 + i] = d * (float)code - minimum;
        }
    }
}

// Q6_K: 16 groups of 16 values, each with a signed scale; of each code 128 bytes hold the low four bits, 64 the high two.
static void dequantize_q6_k(const unsigned char* src, float* dst) {
    const unsigned char *low = src, *high = src + 128, *scales = src + 192;
    float scale = f16_at(src + 208);
    for (int i = 0; i < 256; i++) {
        int half = i >> 7, within = i & 127, quarter = within >> 5, lane = within & 31;
        int code = low[half * 64 + (quarter & 1) * 32 + lane] >> 4 * (quarter >> 1) & 15;
        code |= (high[half * 32 + lane] >> 2 * quarter & 3) << 4;
        dst[i] = scale * (float)(int8_t)scales[i >> 4] * (float)(code - 32);
    }
}

static void dequantize_block(GgmlType type, const unsigned char* src, float* dst) {
    switch (type) {
        case GGML_Q8_0: dequantize_q8_0(src, dst); return;
        case GGML_Q4_K:
        case GGML_Q5_K: dequantize_k(type, src, dst); return;
        case GGML_Q6_K: dequantize_q6_k(src, dst); return;
        default: dequantize_32(type, src, dst); return;
    }
}

void ggml_dequantize(GgmlType type, const unsigned char* src, size_t count, float* dst) {
    size_t values = (size_t)kTypes[type].values, bytes = (size_t)kTypes[type].bytes;
    check(values && count % values == 0, "ggml_dequantize: %zu values of type %d", count, (int)type);
    for (size_t i = 0; i < count / values; i++, src += bytes, dst += values) {
        if (type == GGML_F32) *dst = f32_from_bits(u32_at(src));
        else if (type == GGML_F16) *dst = f16_at(src);
        else if (type == GGML_BF16) *dst = f32_from_bf16(u16_at(src));
        else dequantize_block(type, src, dst);
    }
}

// ---- the header, read front to back

typedef struct {
    const Gguf* g;
    size_t at, window_at, window_bytes;
    unsigned char window[kWindowBytes];
} GgufReader;

static void read_at(const Gguf* g, size_t at, size_t bytes, void* dst) {
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(g->fd, (char*)dst + done, bytes - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) user_error("%s: cannot be read at byte %zu: %s", g->path, at + done, strerror(errno));
        if (got == 0) user_error("%s: ends at byte %zu while it is read; leave the file alone", g->path, at + done);
        done += (size_t)got;
    }
}

static size_t bytes_left(const GgufReader* r) { return r->g->file_bytes - r->at; }

static void take(GgufReader* r, size_t bytes, void* dst, const char* what) {
    if (bytes > bytes_left(r))
        user_error("%s: byte %zu: %s needs %zu bytes, the file ends at %zu; is it cut off?", r->g->path, r->at, what, bytes,
                   r->g->file_bytes);
    char* out = (char*)dst;
    while (bytes) {
        if (r->at >= r->window_at + r->window_bytes || r->at < r->window_at) {
            r->window_at = r->at;
            r->window_bytes = bytes_left(r) < sizeof r->window ? bytes_left(r) : sizeof r->window;
            read_at(r->g, r->window_at, r->window_bytes, r->window);
        }
        size_t from = r->at - r->window_at, n = r->window_bytes - from < bytes ? r->window_bytes - from : bytes;
        memcpy(out, r->window + from, n);
        out += n;
        r->at += n;
        bytes -= n;
    }
}

static uint32_t take_u32(GgufReader* r, const char* what) {
    unsigned char bytes[4];
    take(r, sizeof bytes, bytes, what);
    return u32_at(bytes);
}

static uint64_t take_u64(GgufReader* r, const char* what) {
    unsigned char bytes[8];
    take(r, sizeof bytes, bytes, what);
    return u64_at(bytes);
}

static GgufString take_string(GgufReader* r, const char* what) {
    size_t at = r->at;
    uint64_t bytes = take_u64(r, what);
    if (bytes > bytes_left(r))
        user_error("%s: byte %zu: %s has %llu bytes, %zu are left in the file; is it cut off?", r->g->path, at, what,
                   (unsigned long long)bytes, bytes_left(r));
    GgufString string = {(char*)host_alloc((size_t)bytes + 1), (size_t)bytes};
    take(r, string.bytes, string.text, what);
    return string;
}

// Reads a key or a tensor's name, which must be valid text of at most `most` bytes.
static char* take_name(GgufReader* r, size_t most, const char* what) {
    size_t at = r->at;
    GgufString name = take_string(r, what);
    if (name.bytes == 0 || name.bytes > most)
        user_error("%s: byte %zu: %s has %zu bytes, 1 to %zu are allowed", r->g->path, at, what, name.bytes, most);
    if (strlen(name.text) != name.bytes || utf8_valid_bytes(name.text, name.bytes) != name.bytes)
        user_error("%s: byte %zu: %s is no UTF-8 text", r->g->path, at, what);
    return name.text;
}

static const struct {
    const char* name;
    size_t bytes;   // of a value in the file; of a string: of its length
} kKinds[kGgufKinds] = {{"u8", 1}, {"i8", 1}, {"u16", 2}, {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4}, {"bool", 1},
                        {"string", 8}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

static GgufKind take_kind(GgufReader* r, const char* key) {
    size_t at = r->at;
    uint32_t kind = take_u32(r, "the type of a value");
    if (kind >= kGgufKinds)
        user_error("%s: byte %zu: \"%s\" has the unknown type %u", r->g->path, at, printable(key), kind);
    return (GgufKind)kind;
}

static GgufValue take_value(GgufReader* r, char* key) {
    GgufValue value;
    memset(&value, 0, sizeof value);
    value.key = key;
    value.kind = take_kind(r, key);
    value.array = value.kind == GGUF_ARRAY;
    value.count = 1;
    value.at = r->at;
    if (value.array) {
        value.kind = take_kind(r, key);
        if (value.kind == GGUF_ARRAY)
            user_error("%s: byte %zu: \"%s\" is an array of arrays, which is not supported", r->g->path, value.at,
                       printable(key));
        uint64_t count = take_u64(r, "the size of an array");
        if (count > bytes_left(r) / kKinds[value.kind].bytes)
            user_error("%s: byte %zu: \"%s\" has %llu elements, more than the file has room for; is it cut off?", r->g->path,
                       value.at, printable(key), (unsigned long long)count);
        value.count = (size_t)count;
    }
    if (value.kind == GGUF_STRING) {
        value.strings = (GgufString*)host_alloc(value.count * sizeof(GgufString));
        for (size_t i = 0; i < value.count; i++) value.strings[i] = take_string(r, "a string");
        return value;
    }
    size_t bytes = value.count * kKinds[value.kind].bytes;
    value.numbers = host_alloc(bytes);
    take(r, bytes, value.numbers, "a value");
    for (size_t i = 0; value.kind == GGUF_BOOL && i < bytes; i++)
        if (((unsigned char*)value.numbers)[i] > 1)
            user_error("%s: byte %zu: \"%s\" is neither true nor false", r->g->path, value.at, printable(key));
    return value;
}

static int by_key(const void* a, const void* b) { return strcmp(((const GgufValue*)a)->key, ((const GgufValue*)b)->key); }
static int by_name(const void* a, const void* b) {
    return strcmp(((const GgufTensor*)a)->name, ((const GgufTensor*)b)->name);
}

static void take_values(GgufReader* r, Gguf* g, uint64_t count) {
    g->values = (GgufValue*)host_alloc((size_t)count * sizeof(GgufValue));
    for (; g->value_count < (int)count; g->value_count++)
        g->values[g->value_count] = take_value(r, take_name(r, kMaxKeyBytes, "a key"));
    qsort(g->values, (size_t)count, sizeof(GgufValue), by_key);
    for (int i = 1; i < g->value_count; i++)
        if (!strcmp(g->values[i].key, g->values[i - 1].key))
            user_error("%s: byte %zu: the key \"%s\" comes twice", g->path, g->values[i].at, printable(g->values[i].key));
}

// Reads sizes and type of a tensor; `at` is still the offset that the file gives (place_tensors changes it).
static GgufTensor take_tensor(GgufReader* r) {
    GgufTensor t;
    memset(&t, 0, sizeof t);
    size_t at = r->at;
    t.name = take_name(r, kMaxNameBytes, "a tensor's name");
    const char *path = r->g->path, *shown = printable(t.name);
    uint32_t rank = take_u32(r, "a tensor's dimensions");
    if (rank < 1 || rank > kMaxDims)
        user_error("%s: byte %zu: tensor \"%s\" has %u dimensions, 1 to %d are allowed", path, at, shown, rank, (int)kMaxDims);
    t.rank = (int)rank;
    t.rows = 1;
    for (uint32_t i = 0; i < rank; i++) {
        uint64_t size = take_u64(r, "a tensor's size");
        size_t* product = i ? &t.rows : &t.cols;
        if (size == 0 || size > (uint64_t)1 << 40 || (i && *product > ((size_t)1 << 40) / size))
            user_error("%s: byte %zu: tensor \"%s\" has an impossible shape", path, at, shown);
        *product = i ? *product * (size_t)size : (size_t)size;
    }
    uint32_t type = take_u32(r, "a tensor's type");
    if (type >= kGgmlTypes || !kTypes[type].name)
        user_error("%s: byte %zu: tensor \"%s\" is stored as type %u, which cannot be read here; F32, F16, BF16, Q8_0, Q4_0, "
                   "Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K can", path, at, shown, type);
    t.type = (GgmlType)type;
    size_t block = (size_t)kTypes[type].values;
    if (t.cols % block)
        user_error("%s: byte %zu: tensor \"%s\" has rows of %zu values, %s needs a multiple of %zu", path, at, shown, t.cols,
                   kTypes[type].name, block);
    t.row_bytes = t.cols / block * (size_t)kTypes[type].bytes;
    if (t.row_bytes > r->g->file_bytes || t.rows > r->g->file_bytes / t.row_bytes)
        user_error("%s: byte %zu: tensor \"%s\" is larger than the file; is it cut off?", path, at, shown);
    t.bytes = t.row_bytes * t.rows;
    t.at = (size_t)take_u64(r, "a tensor's offset");
    return t;
}

// Checks that the tensors lie one behind the other in the order of the list, so that no byte is used twice or hidden, and sets their `at`.
static void place_tensors(Gguf* g, size_t header_end, size_t alignment) {
    size_t begin = round_up(header_end, alignment), end = begin;
    for (int i = 0; i < g->tensor_count; i++) {
        GgufTensor* t = &g->tensors[i];
        if (t->at != end - begin)
            user_error("%s: tensor \"%s\" begins at data byte %zu, %zu is expected", g->path, printable(t->name), t->at,
                       end - begin);
        if (end > g->file_bytes || t->bytes > g->file_bytes - end)
            user_error("%s: byte %zu: tensor \"%s\" needs %zu bytes, the file ends at %zu; is it cut off?", g->path, end,
                       printable(t->name), t->bytes, g->file_bytes);
        t->at = end;
        end = round_up(end + t->bytes, alignment);
    }
    if (g->file_bytes > end)
        user_error("%s: byte %zu: the tensors end here, the file has %zu bytes", g->path, end, g->file_bytes);
}

static void take_tensors(GgufReader* r, Gguf* g, uint64_t count) {
    g->tensors = (GgufTensor*)host_alloc((size_t)count * sizeof(GgufTensor));
    for (; g->tensor_count < (int)count; g->tensor_count++) g->tensors[g->tensor_count] = take_tensor(r);
    int alignment = gguf_int_or(g, "general.alignment", 1, 1 << 20, 32);
    if (alignment & (alignment - 1))
        user_error("%s: \"general.alignment\" is %d, no power of two", g->path, alignment);
    place_tensors(g, r->at, (size_t)alignment);
    qsort(g->tensors, (size_t)count, sizeof(GgufTensor), by_name);
    for (int i = 1; i < g->tensor_count; i++)
        if (!strcmp(g->tensors[i].name, g->tensors[i - 1].name))
            user_error("%s: byte %zu: the tensor \"%s\" comes twice", g->path, g->tensors[i].at, printable(g->tensors[i].name));
}

// ---- the file

static void take_file(GgufReader* r, Gguf* g) {
    char magic[4];
    take(r, sizeof magic, magic, "the magic number");
    if (memcmp(magic, "GGUF", 4)) user_error("%s: byte 0: not a GGUF file, it does not start with GGUF", g->path);
    uint32_t version = take_u32(r, "the version");
    if (version > 0xffff) user_error("%s: byte 4: a big-endian file; only little-endian GGUF is supported", g->path);
    if (version != 2 && version != 3)
        user_error("%s: byte 4: GGUF version %u; 2 and 3 are supported, convert the model again", g->path, version);
    uint64_t tensors = take_u64(r, "the number of tensors"), values = take_u64(r, "the number of metadata pairs");
    if (tensors > bytes_left(r) / kMinTensorBytes || tensors > INT32_MAX)
        user_error("%s: byte 8: %llu tensors do not fit in the file; is it cut off?", g->path, (unsigned long long)tensors);
    if (values > bytes_left(r) / kMinPairBytes || values > INT32_MAX)
        user_error("%s: byte 16: %llu metadata pairs do not fit in the file; is it cut off?", g->path,
                   (unsigned long long)values);
    take_values(r, g, values);
    take_tensors(r, g, tensors);
}

Gguf* gguf_open(const char* path) {
    Gguf* g = (Gguf*)host_alloc(sizeof *g);
    g->path = host_strdup(path);
    g->fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (g->fd < 0 || fstat(g->fd, &info)) user_error("%s: cannot be read: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) user_error("%s: not a regular file", path);
    g->file_bytes = (size_t)info.st_size;
    GgufReader* r = (GgufReader*)host_alloc(sizeof *r);
    r->g = g;
    take_file(r, g);
    free(r);
    return g;
}

void gguf_close(Gguf* g) {
    if (!g) return;
    for (int i = 0; i < g->value_count; i++) {
        GgufValue* value = &g->values[i];
        for (size_t k = 0; value->strings && k < value->count; k++) free(value->strings[k].text);
        free(value->strings);
        free(value->numbers);
        free(value->key);
    }
    for (int i = 0; i < g->tensor_count; i++) free(g->tensors[i].name);
    free(g->values);
    free(g->tensors);
    close(g->fd);
    free(g->path);
    free(g);
}

const char* gguf_path(const Gguf* g) { return g->path; }
int gguf_value_count(const Gguf* g) { return g->value_count; }
const GgufValue* gguf_value_at(const Gguf* g, int index) { return &g->values[index]; }
int gguf_tensor_count(const Gguf* g) { return g->tensor_count; }
const GgufTensor* gguf_tensor_at(const Gguf* g, int index) { return &g->tensors[index]; }

const GgufValue* gguf_find(const Gguf* g, const char* key) {
    GgufValue wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.key = (char*)key;
    return (const GgufValue*)bsearch(&wanted, g->values, (size_t)g->value_count, sizeof wanted, by_key);
}

const GgufTensor* gguf_tensor(const Gguf* g, const char* name) {
    GgufTensor wanted;
    memset(&wanted, 0, sizeof wanted);
    wanted.name = (char*)name;
    return (const GgufTensor*)bsearch(&wanted, g->tensors, (size_t)g->tensor_count, sizeof wanted, by_name);
}

// ---- single values

static const GgufValue* demand(const Gguf* g, const char* key) {
    const GgufValue* value = gguf_find(g, key);
    if (!value) user_error("%s: the key \"%s\" is missing", g->path, key);
    return value;
}

static void refuse_kind(const Gguf* g, const GgufValue* value, const char* wanted) {
    user_error("%s: byte %zu: \"%s\" is %s%s where %s is expected", g->path, value->at, value->key,
               value->array ? "an array of " : "of type ", kKinds[value->kind].name, wanted);
}

// A whole number of any width; false if the value is no whole number, or does not fit in an int64_t.
static bool whole_number(const GgufValue* value, int64_t* number) {
    const unsigned char* p = (const unsigned char*)value->numbers;
    if (value->array) return false;
    switch (value->kind) {
        case GGUF_U8: *number = p[0]; return true;
        case GGUF_I8: *number = (int8_t)p[0]; return true;
        case GGUF_U16: *number = u16_at(p); return true;
        case GGUF_I16: *number = (int16_t)u16_at(p); return true;
        case GGUF_U32: *number = u32_at(p); return true;
        case GGUF_I32: *number = (int32_t)u32_at(p); return true;
        case GGUF_U64: *number = (int64_t)(u64_at(p) >> 1 > INT64_MAX / 2 ? INT64_MAX : u64_at(p)); return true;
        case GGUF_I64: *number = (int64_t)u64_at(p); return true;
        default: return false;
    }
}

int gguf_int(const Gguf* g, const char* key, int low, int high) {
    const GgufValue* value = demand(g, key);
    int64_t number;
    if (!whole_number(value, &number)) refuse_kind(g, value, "a whole number");
    if (number < low || number > high)
        user_error("%s: byte %zu: \"%s\" is %lld, allowed are %d to %d", g->path, value->at, key, (long long)number, low, high);
    return (int)number;
}

int gguf_int_or(const Gguf* g, const char* key, int low, int high, int fallback) {
    return gguf_find(g, key) ? gguf_int(g, key, low, high) : fallback;
}

double gguf_number(const Gguf* g, const char* key) {
    const GgufValue* value = demand(g, key);
    int64_t whole;
    if (!value->array && value->kind == GGUF_F32) return f32_from_bits(u32_at((const unsigned char*)value->numbers));
    if (!value->array && value->kind == GGUF_F64) {
        double number;
        memcpy(&number, value->numbers, sizeof number);
        return number;
    }
    if (!whole_number(value, &whole)) refuse_kind(g, value, "a number");
    return (double)whole;
}

double gguf_number_or(const Gguf* g, const char* key, double fallback) {
    return gguf_find(g, key) ? gguf_number(g, key) : fallback;
}

bool gguf_bool_or(const Gguf* g, const char* key, bool fallback) {
    const GgufValue* value = gguf_find(g, key);
    if (!value) return fallback;
    if (value->array || value->kind != GGUF_BOOL) refuse_kind(g, value, "a bool");
    return *(const unsigned char*)value->numbers != 0;
}

const char* gguf_string_or(const Gguf* g, const char* key, const char* fallback) {
    const GgufValue* value = gguf_find(g, key);
    if (!value) return fallback;
    if (value->array || value->kind != GGUF_STRING) refuse_kind(g, value, "a string");
    const GgufString* s = value->strings;
    if (strlen(s->text) != s->bytes || utf8_valid_bytes(s->text, s->bytes) != s->bytes)
        user_error("%s: byte %zu: \"%s\" is no UTF-8 text", g->path, value->at, key);
    return s->text;
}

const GgufValue* gguf_array(const Gguf* g, const char* key, GgufKind kind) {
    const GgufValue* value = gguf_find(g, key);
    if (value && (!value->array || value->kind != kind)) {
        char wanted[32];
        snprintf(wanted, sizeof wanted, "an array of %s", kKinds[kind].name);
        refuse_kind(g, value, wanted);
    }
    return value;
}

// ---- rows

void gguf_rows(const Gguf* g, const GgufTensor* t, size_t first, size_t rows, float* dst) {
    check(first <= t->rows && rows <= t->rows - first, "gguf_rows: rows %zu + %zu of %s (%zu)", first, rows, t->name, t->rows);
    size_t step = t->row_bytes < kPieceBytes ? kPieceBytes / t->row_bytes : 1;
    if (step > rows) step = rows;
    unsigned char* stored = (unsigned char*)host_alloc(step * t->row_bytes);
    for (size_t row = 0; row < rows; row += step) {
        size_t n = rows - row < step ? rows - row : step;
        read_at(g, t->at + (first + row) * t->row_bytes, n * t->row_bytes, stored);
        #pragma omp parallel for if (n > 16)
        for (long i = 0; i < (long)n; i++)
            ggml_dequantize(t->type, stored + (size_t)i * t->row_bytes, t->cols, dst + (row + (size_t)i) * t->cols);
    }
    free(stored);
}
