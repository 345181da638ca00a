// data/safetensors: every dtype, the reference pack, and files that lie about themselves.
#include "scratch.h"

#include "../data/files.h"
#include "../data/safetensors.h"

#include <limits.h>
#include <sys/stat.h>
#include <signal.h>
#include <sys/resource.h>

// A file of `header` and `data_bytes` bytes 0, 1, 2, ...; claimed_bytes < 0 announces the header's true length.
static char* make_file(const char* name, const char* header, size_t data_bytes, long long claimed_bytes) {
    char* path = scratch_path(name);
    uint64_t claim = claimed_bytes < 0 ? strlen(header) : (uint64_t)claimed_bytes;
    size_t header_bytes = strlen(header), file_bytes = 8 + header_bytes + data_bytes;
    unsigned char* bytes = (unsigned char*)host_alloc(file_bytes);
    memcpy(bytes, &claim, 8);
    memcpy(bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) bytes[8 + header_bytes + i] = (unsigned char)i;
    put_file(path, bytes, file_bytes);
    free(bytes);
    return path;
}

// ---- values

static float slow_f16(int half) {
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                    : exponent ? ldexpf(1.0f + (float)mantissa / 1024.0f, exponent - 15) : ldexpf((float)mantissa, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void f16_case(void) {
    int wrong = 0;
    for (int half = 0; half < 1 << 16; half++) {
        float got = f32_from_f16((uint16_t)half), want = slow_f16(half);
        if (isnan(want) ? !isnan(got) : f32_bits(got) != f32_bits(want)) wrong++;
    }
    ok(wrong == 0, "f16: %d of 65536 values differ from their definition", wrong);
}

static void dtypes_case(void) {
    // A header of odd length: nothing in the data is aligned.
    const char* header = "{\"f16\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},"
                         "\"u8\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[4,7]},"
                         "\"f32\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[7,11]},"
                         "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[11,15]},"
                         "\"f64\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[15,23]},"
                         "\"i32\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[23,27]},"
                         "\"i64\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[27,35]},"
                         "\"none\":{\"dtype\":\"F32\",\"shape\":[4,0],\"data_offsets\":[27,27]}}";
    char* path = make_file("dtypes.safetensors", header, 35, -1);
    SafeTensors* file = safetensors_open(path);
    ok(safetensors_count(file) == 8 && !safetensors_find(file, "f3") && !strcmp(safetensors_at(file, 0)->name, "bf16"),
       "dtypes: 8 tensors, by name");
    unsigned char bytes[35];
    for (int i = 0; i < 35; i++) bytes[i] = (unsigned char)i;

    float got[4];
    uint16_t half[2], rounded;
    memcpy(half, bytes, 4);
    tensor_read(safetensors_find(file, "f16"), 0, 2, F32, got);
    ok(got[0] == slow_f16(half[0]) && got[1] == slow_f16(half[1]), "dtypes: F16");
    tensor_read(safetensors_find(file, "u8"), 1, 2, F32, got);
    ok(got[0] == 5 && got[1] == 6, "dtypes: U8, from the second on");
    float f32;
    memcpy(&f32, bytes + 7, 4);
    tensor_read(safetensors_find(file, "f32"), 0, 1, F32, got);
    tensor_read(safetensors_find(file, "f32"), 0, 1, BF16, &rounded);
    ok(got[0] == f32 && rounded == bf16_from_f32(f32), "dtypes: F32, and rounded to BF16");
    memcpy(half, bytes + 11, 4);
    tensor_read(safetensors_find(file, "bf16"), 1, 1, F32, got);
    ok(got[0] == f32_from_bf16(half[1]), "dtypes: BF16, the second only");
    double f64;
    memcpy(&f64, bytes + 15, 8);
    tensor_read(safetensors_find(file, "f64"), 0, 1, F32, got);
    ok(got[0] == (float)f64, "dtypes: F64, a scalar");
    int32_t i32;
    int read_back;
    memcpy(&i32, bytes + 23, 4);
    tensor_read_ints(safetensors_find(file, "i32"), 0, 1, &read_back);
    ok(read_back == i32, "dtypes: I32");
    tensor_read(safetensors_find(file, "none"), 0, 0, F32, got);
    ok(safetensors_find(file, "none")->elements == 0, "dtypes: an empty tensor");
    safetensors_close(file);
    free(path);
}

static void open_file(void* path) { safetensors_close(safetensors_open((const char*)path)); }
static void read_first_as_f32(void* path) {
    float x[4];
    tensor_read(safetensors_at(safetensors_open((const char*)path), 0), 0, 1, F32, x);
}
static void read_first_as_int(void* path) {
    int x[4];
    tensor_read_ints(safetensors_at(safetensors_open((const char*)path), 0), 0, 1, x);
}
static void read_past_the_end(void* path) {
    float x[4];
    tensor_read(safetensors_at(safetensors_open((const char*)path), 0), 1, 4, F32, x);
}

static void refusals_case(void) {
    char* i64 = make_file("i64.safetensors", "{\"x\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, -1);
    char* fp8 = make_file("fp8.safetensors", "{\"x\":{\"dtype\":\"F8_E4M3\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, -1);
    expect_exit(read_first_as_int, i64, kExitUser, "too large", "refusals: an I64 beyond int");
    expect_exit(read_first_as_int, fp8, kExitUser, "whole numbers", "refusals: FP8 as int");
    expect_exit(read_first_as_f32, fp8, kExitUser, "F8_E4M3", "refusals: FP8 as F32");
    expect_exit(read_past_the_end, i64, kExitBug, "elements 1 to 5 of 1", "refusals: elements past the end");
    free(i64);
    free(fp8);
}

// ---- writing

// Random BF16 and F32 matrices large enough for several threads, written in uneven pieces.
static void round_trip_case(void) {
    const size_t n = 300 * 401;
    float* values = test_normals(n, 1);
    uint16_t* halves = (uint16_t*)host_alloc(n * 2);
    for (size_t i = 0; i < n; i++) halves[i] = bf16_from_f32(values[i]);
    halves[7] = 0x7f81;   // a signalling NaN stays what it is
    Tensor tensors[2] = {{"b \"quoted\"", ST_F32, 2, {300, 401}, 0, 0, NULL}, {"a", ST_BF16, 3, {300, 401, 1}, 0, 0, NULL}};
    char* path = scratch_path("round_trip.safetensors");
    OutFile out = safetensors_create(path, tensors, 2);
    for (size_t at = 0, piece = 1; at < n * 4; at += piece, piece = piece * 3 + 1)
        out_write(&out, (char*)values + at, piece < n * 4 - at ? piece : n * 4 - at);
    out_write(&out, halves, n * 2);
    out_close(&out);

    size_t bytes;
    char* text = file_read(path, &bytes);
    uint64_t header_bytes;
    memcpy(&header_bytes, text, 8);
    ok(header_bytes % 8 == 0 && bytes == 8 + header_bytes + n * 6, "write: the data is 8-byte aligned, the size is right");
    ok(strstr(text + 8, "\"__metadata__\":{\"format\":\"pt\"}") != NULL, "write: format pt");
    free(text);

    SafeTensors* file = safetensors_open(path);
    const Tensor *a = safetensors_find(file, "a"), *b = safetensors_find(file, "b \"quoted\"");
    ok(a && b && a->rank == 3 && a->shape[1] == 401 && b->bytes == n * 4 && !strcmp(shape_text(b), "[300, 401]"),
       "write: names and shapes come back");
    uint16_t* got_halves = (uint16_t*)host_alloc(n * 2);
    float* got = (float*)host_alloc(n * 4);
    tensor_read(a, 0, n, BF16, got_halves);
    tensor_read(b, 0, n, F32, got);
    ok(!memcmp(got_halves, halves, n * 2) && !memcmp(got, values, n * 4), "write: bit-identical in the stored format");
    tensor_read(b, 0, n, BF16, got_halves);
    tensor_read(a, 401, n - 401, F32, got);
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++) wrong += got_halves[i] != bf16_from_f32(values[i]);
    for (size_t i = 401; i < n; i++) wrong += got[i - 401] != f32_from_bf16(halves[i]);
    ok(wrong == 0, "write: %zu values differ after conversion, whole and from the second row on", wrong);
    safetensors_close(file);
    free(path);
    free(values);
    free(halves);
    free(got);
    free(got_halves);
}

static void write_64k(void* path) {
    Tensor tensor = {"x", ST_F32, 1, {1 << 14}, 0, 0, NULL};
    float* zeros = (float*)host_alloc(1 << 16);
    OutFile out = safetensors_create((const char*)path, &tensor, 1);
    out_write(&out, zeros, 1 << 16);
    out_close(&out);
}
static void write_64k_limited(void* path) {
    struct rlimit limit = {1 << 12, 1 << 12};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
    write_64k(path);
}
static void write_too_little(void* path) {
    Tensor tensor = {"x", ST_F32, 1, {2}, 0, 0, NULL};
    OutFile out = safetensors_create((const char*)path, &tensor, 1);
    out_write(&out, "1234", 4);
    out_close(&out);
}
static void need_an_exabyte(void* dir) { disk_require((const char*)dir, (size_t)1 << 60); }

static void write_errors_case(void) {
    char *path = scratch_path("limited.safetensors"), *nowhere = scratch_path("no/such/dir");
    expect_exit(write_64k, (void*)"/dev/full", kExitUser, "/dev/full: cannot be written at byte", "write: a full disk");
    expect_exit(write_64k_limited, path, kExitUser, "File too large", "write: a file size limit");
    expect_exit(write_64k, nowhere, kExitUser, "cannot be created", "write: no such directory");
    expect_exit(write_too_little, path, kExitBug, "announced", "write: fewer bytes than announced");
    expect_exit(need_an_exabyte, scratch_dir, kExitUser, "bytes are needed", "write: more than the disk has free");
    free(path);
    free(nowhere);
}

// ---- hostile files

#define ENTRY(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" begin "," end "]}"

typedef struct {
    const char* name;
    const char* header;
    size_t data_bytes;
    long long claimed_bytes;   // -1: the header's length
    const char* words;         // of the message
} Hostile;

static const Hostile hostile[] = {
    {"header over the limit", "{}", 0, 100000001, "at most 100000000"},
    {"header length 2^63", "{}", 0, LLONG_MAX, "at most 100000000"},
    {"header longer than the file", "{}", 0, 3, "cut off"},
    {"empty header", "", 4, 0, "byte 8"},
    {"header not an object", "[]", 0, -1, "byte 8"},
    {"broken JSON", "{\"x\":", 0, -1, "not valid JSON"},
    {"text after the object", "{}x", 0, -1, "not valid JSON"},
    {"not UTF-8", "{\"\xff\":1}", 0, -1, "not valid JSON"},
    {"duplicate name", "{" ENTRY("x", "U8", "[1]", "0", "1") "," ENTRY("x", "U8", "[1]", "0", "1") "}", 1, -1, "duplicate"},
    {"metadata not strings", "{\"__metadata__\":{\"a\":1}}", 0, -1, "has to be a string"},
    {"metadata not an object", "{\"__metadata__\":[]}", 0, -1, "has to be an object"},
    {"entry not an object", "{\"x\":3}", 0, -1, "needs exactly dtype"},
    {"no dtype", "{\"x\":{\"shape\":[1],\"data_offsets\":[0,1]}}", 1, -1, "needs exactly dtype"},
    {"a fourth member", "{\"x\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"y\":0}}", 1, -1, "needs exactly"},
    {"unknown dtype", "{" ENTRY("x", "F4", "[2]", "0", "1") "}", 1, -1, "unknown dtype \"F4\""},
    {"negative size", "{" ENTRY("x", "U8", "[-1]", "0", "1") "}", 1, -1, "not a list of sizes"},
    {"fractional size", "{" ENTRY("x", "U8", "[1.0]", "0", "1") "}", 1, -1, "not a list of sizes"},
    {"nine dimensions", "{" ENTRY("x", "U8", "[1,1,1,1,1,1,1,1,1]", "0", "1") "}", 1, -1, "9 dimensions"},
    {"shape overflow", "{" ENTRY("x", "U8", "[4294967296,4294967296]", "0", "0") "}", 0, -1, "impossibly large"},
    {"bytes overflow", "{" ENTRY("x", "F32", "[4611686018427387904]", "0", "0") "}", 0, -1, "impossibly large"},
    {"a number beyond 64 bits", "{" ENTRY("x", "U8", "[99999999999999999999]", "0", "1") "}", 1, -1, "not valid JSON"},
    {"three offsets", "{" ENTRY("x", "U8", "[1]", "0", "1,2") "}", 1, -1, "two whole numbers"},
    {"negative offset", "{" ENTRY("x", "U8", "[1]", "-1", "0") "}", 1, -1, "cut off"},
    {"offsets backwards", "{" ENTRY("x", "U8", "[1]", "1", "0") "}", 1, -1, "cut off"},
    {"data cut off", "{" ENTRY("x", "F32", "[2]", "0", "8") "}", 7, -1, "cut off"},
    {"bytes and shape disagree", "{" ENTRY("x", "F32", "[2]", "0", "4") "}", 4, -1, "F32 [2] needs 8"},
    {"overlap", "{" ENTRY("x", "U8", "[2]", "0", "2") "," ENTRY("y", "U8", "[2]", "1", "3") "}", 3, -1, "overlap"},
    {"same bytes twice", "{" ENTRY("x", "U8", "[2]", "0", "2") "," ENTRY("y", "U8", "[2]", "0", "2") "}", 2, -1, "overlap"},
    {"a hole", "{" ENTRY("x", "U8", "[1]", "0", "1") "," ENTRY("y", "U8", "[1]", "2", "3") "}", 3, -1, "hole"},
    {"a hole at the start", "{" ENTRY("x", "U8", "[1]", "1", "2") "}", 2, -1, "hole"},
    {"bytes after the end", "{" ENTRY("x", "U8", "[1]", "0", "1") "}", 2, -1, "end at data byte 1"},
    {"line break in a name", "{" ENTRY("x\\ny", "F4", "[1]", "0", "1") "}", 1, -1, "x?y"},
};

static void hostile_case(void) {
    for (int i = 0; i < COUNT(hostile); i++) {
        const Hostile* h = &hostile[i];
        char* path = make_file("hostile.safetensors", h->header, h->data_bytes, h->claimed_bytes);
        expect_exit(open_file, path, kExitUser, h->words, h->name);
        free(path);
    }
    static const char* const fine[] = {" \n{}", "{\"__metadata__\":null}"};
    for (int i = 0; i < COUNT(fine); i++) {
        char* path = make_file("fine.safetensors", fine[i], 0, -1);
        SafeTensors* file = safetensors_open(path);
        ok(safetensors_count(file) == 0, "read as the safetensors package reads it: header %d", i + 1);
        safetensors_close(file);
        free(path);
    }
    char* path = scratch_path("pipe.safetensors");
    check(mkfifo(path, 0600) == 0, "no pipe");
    expect_exit(open_file, path, kExitUser, "not a regular file", "a pipe");
    free(path);
    path = scratch_path("short.safetensors");
    put_file(path, "version https://git-lfs.github.com/spec/v1\n", 43);
    expect_exit(open_file, path, kExitUser, "git lfs pull", "an LFS pointer");
    put_file(path, "1234567", 7);
    expect_exit(open_file, path, kExitUser, "too short", "seven bytes");
    expect_exit(open_file, scratch_dir, kExitUser, "a folder; name a file in it", "a directory");
    expect_exit(open_file, (void*)"no/such/file", kExitUser, "cannot be read", "no such file");
    free(path);
}

// A mapped file from which its bytes are taken away: a signal, unless somebody catches it.
static void read_cut_file(void* path) {
    enum { kValues = 1 << 14 };   // in pages that nobody has touched
    float* values = (float*)host_alloc(kValues * sizeof(float));
    SafeTensors* file = safetensors_open((const char*)path);
    check(truncate((const char*)path, 128) == 0, "not truncated");
    tensor_read(safetensors_at(file, 0), 0, kValues, F32, values);
    printf("%g\n", (double)values[kValues - 1]);
}
static void cut_case(void) {
    char* path = make_file("cut.safetensors", "{\"a\": {\"dtype\": \"F32\", \"shape\": [16384], \"data_offsets\": [0, 65536]}}", 65536, -1);
    expect_exit(read_cut_file, path, kExitUser, "cut.safetensors: became shorter while it was being read", "a file that is truncated while it is mapped");
    free(path);
}

// ---- the reference pack

static void read_pack_file(const char* path) {
    SafeTensors* file = safetensors_open(path);
    size_t elements = 0, wrong = 0;
    for (int i = 0; i < safetensors_count(file); i++) {
        const Tensor* tensor = safetensors_at(file, i);
        wrong += safetensors_find(file, tensor->name) != tensor;
        if (tensor->dtype == ST_I32 || tensor->dtype == ST_I64) {
            int* ints = (int*)host_alloc(tensor->elements * sizeof(int));
            tensor_read_ints(tensor, 0, tensor->elements, ints);
            for (size_t k = 0; k < tensor->elements; k++) wrong += ints[k] < -100 || ints[k] > 1 << 20;
            free(ints);
        } else {
            float* values = (float*)host_alloc(tensor->elements * sizeof(float));
            tensor_read(tensor, 0, tensor->elements, F32, values);
            for (size_t k = 0; k < tensor->elements; k++) wrong += !isfinite(values[k]);
            if (tensor->dtype == ST_F32) wrong += memcmp(values, tensor->data, tensor->bytes) != 0;
            free(values);
        }
        elements += tensor->elements;
    }
    ok(wrong == 0 && elements > 0, "pack: %s, %d tensors, %zu elements", path, safetensors_count(file), elements);
    safetensors_close(file);
}

static void pack_case(void) {
    const char* fixtures = refpack("fixtures");
    if (fixtures) {
        char** names;
        int count = dir_names(fixtures, &names);
        for (int i = 0; i < count; i++) {
            const char* files[] = {"model.safetensors", "expected.safetensors"};
            char* dir = path_join(fixtures, names[i]);
            for (int f = 0; f < 2; f++) {
                char* path = path_join(dir, files[f]);
                if (path_exists(path)) read_pack_file(path);
                free(path);
            }
            free(dir);
        }
        dir_names_free(names, count);
    }
    const char* stories = refpack("data/models/stories260K/hf/model.safetensors");
    if (stories) read_pack_file(stories);
}

static const Case cases[] = {
    {"safetensors.f16", f16_case},           {"safetensors.dtypes", dtypes_case},
    {"safetensors.refusals", refusals_case}, {"safetensors.round_trip", round_trip_case},
    {"safetensors.write_errors", write_errors_case}, {"safetensors.hostile", hostile_case},
    {"safetensors.pack", pack_case},         {"safetensors.cut", cut_case},
};

int main(int argc, char** argv) { return scratch_main("test_safetensors", cases, COUNT(cases), argc, argv); }
