// The safetensors format: see safetensors.h.
#include "safetensors.h"

#include "json.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>

enum { kHeaderAlign = 8 };
static const size_t kMaxHeaderBytes = 100000000;
static const char kMetadataKey[] = "__metadata__";

struct SafeTensors {
    SafeTensors* next;   // in the list of open files
    char* path;
    const unsigned char* map;
    size_t map_bytes;
    json_t* header;      // owns the names
    Tensor* tensors;     // sorted by name
    int count;
};

// ---- dtypes

static const struct {
    const char* name;
    size_t bytes;
} kDtypes[kDtypeCount] = {
    {"F32", 4}, {"F16", 2}, {"BF16", 2}, {"F64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1},
    {"BOOL", 1}, {"U8", 1}, {"I8", 1}, {"U16", 2}, {"I16", 2}, {"U32", 4}, {"I32", 4}, {"U64", 8}, {"I64", 8},
};

const char* dtype_name(Dtype dtype) { return kDtypes[dtype].name; }
size_t dtype_bytes(Dtype dtype) { return kDtypes[dtype].bytes; }

Dtype dtype_of(Fmt fmt) {
    check(fmt == F32 || fmt == BF16, "dtype_of: %s is not a format that weights are stored in", fmt_name(fmt));
    return fmt == F32 ? ST_F32 : ST_BF16;
}

static bool multiply_overflows(size_t a, size_t b, size_t* product) {
    if (b && a > SIZE_MAX / b) return true;
    *product = a * b;
    return false;
}

// Sets elements and bytes from dtype and shape; false if they do not fit in a size_t.
static bool tensor_measure(Tensor* tensor) {
    tensor->elements = 1;
    for (int i = 0; i < tensor->rank; i++)
        if (multiply_overflows(tensor->elements, tensor->shape[i], &tensor->elements)) return false;
    return !multiply_overflows(tensor->elements, dtype_bytes(tensor->dtype), &tensor->bytes);
}

const char* shape_text(const Tensor* tensor) {
    static char slots[4][kMaxRank * 22 + 3];
    static int next;
    char* text = slots[next++ % 4];
    char* end = text + sprintf(text, "[");
    for (int i = 0; i < tensor->rank; i++) end += sprintf(end, i ? ", %zu" : "%zu", tensor->shape[i]);
    strcpy(end, "]");
    return text;
}

// ---- the header

static void check_metadata(const json_t* metadata, const char* path) {
    if (json_is_null(metadata)) return;
    if (!json_is_object(metadata)) user_error("%s: %s has to be an object", path, kMetadataKey);
    const char* key;
    const json_t* value;
    json_object_foreach((json_t*)metadata, key, value) {
        if (!json_is_string(value)) user_error("%s: %s.%s has to be a string", path, kMetadataKey, printable(key));
    }
}

// Reads and checks one tensor's entry; check_layout then checks how the tensors lie beside each other.
static Tensor parse_entry(const char* name, const json_t* entry, const unsigned char* data, size_t data_bytes,
                          const char* path) {
    Tensor tensor = {0};
    tensor.name = name;
    const char* shown = printable(name);
    const json_t* dtype = json_object_get(entry, "dtype");
    const json_t* shape = json_object_get(entry, "shape");
    const json_t* offsets = json_object_get(entry, "data_offsets");
    if (!json_is_string(dtype) || !json_is_array(shape) || !json_is_array(offsets) || json_object_size(entry) != 3)
        user_error("%s: tensor \"%s\" needs exactly dtype, shape and data_offsets", path, shown);

    const char* wanted = json_string_value(dtype);
    while (tensor.dtype < kDtypeCount && strcmp(kDtypes[tensor.dtype].name, wanted))
        tensor.dtype = (Dtype)(tensor.dtype + 1);
    if (tensor.dtype == kDtypeCount)
        user_error("%s: tensor \"%s\" has the unknown dtype \"%s\"", path, shown, printable(wanted));

    if (json_array_size(shape) > kMaxRank)
        user_error("%s: tensor \"%s\" has %zu dimensions, at most %d are supported", path, shown, json_array_size(shape),
                   (int)kMaxRank);
    tensor.rank = (int)json_array_size(shape);
    for (int i = 0; i < tensor.rank; i++) {
        const json_t* size = json_array_get(shape, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            user_error("%s: tensor \"%s\" has a shape that is not a list of sizes", path, shown);
        tensor.shape[i] = (size_t)json_integer_value(size);
    }
    if (!tensor_measure(&tensor)) user_error("%s: tensor \"%s\" has an impossibly large shape", path, shown);

    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(last))
        user_error("%s: tensor \"%s\": data_offsets has to be two whole numbers", path, shown);
    long long begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin || (unsigned long long)end > data_bytes)
        user_error("%s: tensor \"%s\" lies at bytes %lld to %lld, the file has data bytes 0 to %zu; is it cut off?", path,
                   shown, begin, end, data_bytes);
    if ((size_t)(end - begin) != tensor.bytes)
        user_error("%s: tensor \"%s\" has %lld bytes, %s %s needs %zu", path, shown, end - begin, dtype_name(tensor.dtype),
                   shape_text(&tensor), tensor.bytes);
    tensor.data = data + begin;
    return tensor;
}

static int by_place(const void* a, const void* b) {
    const Tensor *x = (const Tensor*)a, *y = (const Tensor*)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);   // an empty tensor comes before its neighbour
}

static int by_name(const void* a, const void* b) { return strcmp(((const Tensor*)a)->name, ((const Tensor*)b)->name); }

// Checks that the tensors cover the data exactly: no byte is used twice or hidden.
static void check_layout(Tensor* tensors, int count, const unsigned char* data, size_t data_bytes, const char* path) {
    qsort(tensors, (size_t)count, sizeof *tensors, by_place);
    size_t end = 0;
    for (int i = 0; i < count; i++) {
        size_t begin = (size_t)(tensors[i].data - data);
        if (begin != end)
            user_error("%s: tensor \"%s\" begins at data byte %zu, but the one before it ends at %zu (%s)", path,
                       printable(tensors[i].name), begin, end, begin < end ? "an overlap" : "a hole");
        end += tensors[i].bytes;
    }
    if (end != data_bytes)
        user_error("%s: the tensors end at data byte %zu, the file has %zu bytes of data", path, end, data_bytes);
}

// ---- reading
//
// If a mapped file becomes shorter, or its disk fails, touching its bytes raises SIGBUS: the handler tells the user which file it was.

static SafeTensors* open_files;

static void say(const char* text) {
    if (write(2, text, strlen(text)) < 0) _exit(kExitUser);
}

static void on_lost_bytes(int signal_number, siginfo_t* info, void* context) {
    (void)context;
    const unsigned char* at = (const unsigned char*)info->si_addr;
    for (const SafeTensors* f = open_files; f; f = f->next) {
        if (at < f->map || at >= f->map + f->map_bytes) continue;
        say("train_llama3: ");
        say(f->path);
        say(": became shorter while it was being read, or its disk fails; write or download it again\n");
        _exit(kExitUser);
    }
    signal(signal_number, SIG_DFL);   // not in a mapped file: the instruction runs again, and the signal ends the program
}

static void remember_open(SafeTensors* file) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_lost_bytes;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    file->next = open_files;
    open_files = file;
}

static void forget_open(SafeTensors* file) {
    SafeTensors** at = &open_files;
    while (*at && *at != file) at = &(*at)->next;
    if (*at) *at = file->next;
}

SafeTensors* safetensors_open(const char* path) {
    size_t file_bytes;
    int fd = file_open(path, &file_bytes);
    if (file_bytes < 8) user_error("%s: %zu bytes, too short for a safetensors file", path, file_bytes);
    void* map = mmap(NULL, file_bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED) user_error("%s: cannot be mapped: %s", path, strerror(errno));
    close(fd);
    refuse_lfs_pointer(path, (const char*)map, file_bytes);

    SafeTensors* file = (SafeTensors*)host_alloc(sizeof *file);
    file->path = host_strdup(path);
    file->map = (const unsigned char*)map;
    file->map_bytes = file_bytes;
    remember_open(file);

    uint64_t header_bytes = 0;
    for (int i = 0; i < 8; i++) header_bytes |= (uint64_t)file->map[i] << 8 * i;
    if (header_bytes > kMaxHeaderBytes)
        user_error("%s: byte 0: a header of %llu bytes, at most %zu are allowed; is it a safetensors file?", path,
                   (unsigned long long)header_bytes, kMaxHeaderBytes);
    if (header_bytes > file_bytes - 8)
        user_error("%s: byte 0: a header of %llu bytes in a file of %zu; is it cut off?", path,
                   (unsigned long long)header_bytes, file_bytes);
    const char* header = (const char*)file->map + 8;
    size_t blank = 0;
    while (blank < header_bytes && header[blank] && strchr(" \t\r\n", header[blank])) blank++;
    if (blank == header_bytes || header[blank] != '{') user_error("%s: byte %zu: the header does not start with '{'", path, 8 + blank);

    char* where = (char*)host_alloc(strlen(path) + 16);
    sprintf(where, "%s: header", path);
    file->header = json_parse(header, (size_t)header_bytes, where);
    free(where);

    const unsigned char* data = file->map + 8 + header_bytes;
    size_t data_bytes = file_bytes - 8 - (size_t)header_bytes;
    if (json_object_size(file->header) > INT_MAX) user_error("%s: too many tensors", path);
    file->tensors = (Tensor*)host_alloc(json_object_size(file->header) * sizeof(Tensor));
    const char* name;
    json_t* entry;
    json_object_foreach(file->header, name, entry) {
        if (!strcmp(name, kMetadataKey)) check_metadata(entry, path);
        else file->tensors[file->count++] = parse_entry(name, entry, data, data_bytes, path);
    }
    check_layout(file->tensors, file->count, data, data_bytes, path);
    qsort(file->tensors, (size_t)file->count, sizeof(Tensor), by_name);
    return file;
}

void safetensors_close(SafeTensors* file) {
    if (!file) return;
    forget_open(file);
    munmap((void*)file->map, file->map_bytes);
    json_decref(file->header);
    free(file->tensors);
    free(file->path);
    free(file);
}

const char* safetensors_path(const SafeTensors* file) { return file->path; }
int safetensors_count(const SafeTensors* file) { return file->count; }

const Tensor* safetensors_at(const SafeTensors* file, int index) {
    check(index >= 0 && index < file->count, "safetensors_at: %d of %d", index, file->count);
    return &file->tensors[index];
}

const Tensor* safetensors_find(const SafeTensors* file, const char* name) {
    Tensor key = {0};
    key.name = name;
    return (const Tensor*)bsearch(&key, file->tensors, (size_t)file->count, sizeof key, by_name);
}

// ---- conversion, in blocks: each block is one thread's work and passes through the cache once

enum { kBlockElements = 1 << 14 };

// One loop for each dtype, with memcpy, since the file's values are not aligned.
#define READ_LOOP(type, expression)                   \
    for (int i = 0; i < count; i++) {                 \
        type x;                                       \
        memcpy(&x, src + (size_t)i * sizeof x, sizeof x); \
        dst[i] = (expression);                        \
    }                                                 \
    return

static void block_to_f32(const Tensor* tensor, size_t first, int count, float* dst) {
    const unsigned char* src = tensor->data + first * dtype_bytes(tensor->dtype);
    switch (tensor->dtype) {
        case ST_F32: memcpy(dst, src, (size_t)count * sizeof *dst); return;
        case ST_F16: READ_LOOP(uint16_t, f32_from_f16(x));
        case ST_BF16: READ_LOOP(uint16_t, f32_from_bf16(x));
        case ST_F64: READ_LOOP(double, (float)x);
        case ST_BOOL:
        case ST_U8: READ_LOOP(uint8_t, (float)x);
        case ST_I8: READ_LOOP(int8_t, (float)x);
        case ST_I32: READ_LOOP(int32_t, (float)x);
        case ST_I64: READ_LOOP(int64_t, (float)x);
        default: user_error("tensor \"%s\": %s cannot be read as numbers here; convert the file to BF16 or F32",
                            printable(tensor->name), dtype_name(tensor->dtype));
    }
}

static void check_range(const Tensor* tensor, size_t first, size_t count) {
    check(first <= tensor->elements && count <= tensor->elements - first, "tensor %s: elements %zu to %zu of %zu",
          tensor->name, first, first + count, tensor->elements);
}

void tensor_read(const Tensor* tensor, size_t first, size_t count, Fmt fmt, void* dst) {
    check_range(tensor, first, count);
    check(fmt == F32 || fmt == BF16, "tensor_read: to %s", fmt_name(fmt));
    bool copy = tensor->dtype == dtype_of(fmt);
    size_t bytes = fmt_bytes(fmt);
    long blocks = (long)((count + kBlockElements - 1) / kBlockElements);
    #pragma omp parallel for if (blocks > 4)
    for (long b = 0; b < blocks; b++) {
        size_t at = (size_t)b * kBlockElements;
        int n = count - at < (size_t)kBlockElements ? (int)(count - at) : kBlockElements;
        char* out = (char*)dst + at * bytes;
        if (copy) {
            memcpy(out, tensor->data + (first + at) * bytes, (size_t)n * bytes);
        } else if (fmt == F32) {
            block_to_f32(tensor, first + at, n, (float*)out);
        } else {
            float values[kBlockElements];
            block_to_f32(tensor, first + at, n, values);
            for (int i = 0; i < n; i++) ((uint16_t*)out)[i] = bf16_from_f32(values[i]);
        }
    }
}

// Is any value's exponent all ones (NaN or infinity)? No branch inside the loops, so that the compiler vectorises them.
static bool any_not_finite(const void* values, size_t count, Fmt fmt) {
    const uint32_t f32_exponent = 0x7f800000u;
    const uint16_t bf16_exponent = 0x7f80;
    unsigned bad = 0;
    if (fmt == F32)
        for (size_t i = 0; i < count; i++) bad |= (((const uint32_t*)values)[i] & f32_exponent) == f32_exponent;
    else
        for (size_t i = 0; i < count; i++) bad |= (((const uint16_t*)values)[i] & bf16_exponent) == bf16_exponent;
    return bad != 0;
}

size_t first_not_finite(const void* values, size_t count, Fmt fmt) {
    check(fmt == F32 || fmt == BF16, "first_not_finite: %s", fmt_name(fmt));
    long blocks = (long)((count + kBlockElements - 1) / kBlockElements), bad = blocks;
    #pragma omp parallel for reduction(min : bad) if (blocks > 4)
    for (long b = 0; b < blocks; b++) {
        size_t at = (size_t)b * kBlockElements, n = count - at < (size_t)kBlockElements ? count - at : (size_t)kBlockElements;
        if (b < bad && any_not_finite((const char*)values + at * fmt_bytes(fmt), n, fmt)) bad = b;
    }
    if (bad == blocks) return count;
    size_t i = (size_t)bad * kBlockElements;
    while (!any_not_finite((const char*)values + i * fmt_bytes(fmt), 1, fmt)) i++;
    return i;
}

void tensor_read_ints(const Tensor* tensor, size_t first, size_t count, int* dst) {
    check_range(tensor, first, count);
    if (tensor->dtype != ST_I32 && tensor->dtype != ST_I64)
        user_error("tensor \"%s\": %s where whole numbers (I32, I64) are expected", printable(tensor->name),
                   dtype_name(tensor->dtype));
    const unsigned char* src = tensor->data + first * dtype_bytes(tensor->dtype);
    if (tensor->dtype == ST_I32) {
        memcpy(dst, src, count * sizeof(int32_t));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        int64_t x;
        memcpy(&x, src + i * sizeof x, sizeof x);
        if (x < INT_MIN || x > INT_MAX)
            user_error("tensor \"%s\": element %zu is %lld, too large here", printable(tensor->name), first + i,
                       (long long)x);
        dst[i] = (int)x;
    }
}

// ---- writing

// The header as JSON text, padded with spaces so that the data starts at a multiple of 8; *data_bytes: the bytes of all tensors.
static char* header_text(const Tensor* tensors, int count, size_t* header_bytes, size_t* data_bytes) {
    json_t* header = json_object();
    json_object_set_new(header, kMetadataKey, json_pack("{s:s}", "format", "pt"));
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        Tensor tensor = tensors[i];
        check(tensor_measure(&tensor), "safetensors_create: %s is too large", tensor.name);
        json_t* shape = json_array();
        for (int d = 0; d < tensor.rank; d++) json_array_append_new(shape, json_integer((json_int_t)tensor.shape[d]));
        json_t* entry = json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(tensor.dtype), "shape", shape, "data_offsets",
                                  (json_int_t)at, (json_int_t)(at + tensor.bytes));
        check(entry && !json_object_get(header, tensor.name), "safetensors_create: %s twice, or no UTF-8", tensor.name);
        json_object_set_new(header, tensor.name, entry);
        at += tensor.bytes;
    }
    char* json = json_dumps(header, JSON_COMPACT);
    check(json, "safetensors_create: no header text");
    json_decref(header);
    size_t json_bytes = strlen(json);
    *header_bytes = round_up(json_bytes, kHeaderAlign);
    *data_bytes = at;
    json = (char*)host_grow(json, *header_bytes);
    memset(json + json_bytes, ' ', *header_bytes - json_bytes);
    return json;
}

OutFile safetensors_create(const char* path, const Tensor* tensors, int count) {
    size_t header_bytes, data_bytes;
    char* header = header_text(tensors, count, &header_bytes, &data_bytes);
    unsigned char length[8];
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)((uint64_t)header_bytes >> 8 * i);
    OutFile out = out_open(path, sizeof length + header_bytes + data_bytes);
    out_hash(&out);
    out_write(&out, length, sizeof length);
    out_write(&out, header, header_bytes);
    free(header);
    return out;
}
