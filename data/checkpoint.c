// Checkpoints: see checkpoint.h.
#include "checkpoint.h"

#include "digest.h"
#include "files.h"
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

enum { kPieceBytes = 16 << 20 };
static const char kFormat[] = "train_llama3 checkpoint";
static const char kWriting[] = ".tmp", kReplaced[] = ".old";   // suffixes of directories that are no checkpoints
static const char kOlder[] = "resume without --resume-from takes the newest whole one by itself";
static const char kSealOpening[] = "{\"manifest_xxh3\": \"";
static const char kSealClosing[] = "\",";

static void host_read(void* context, size_t offset, size_t bytes, void* dst) { memcpy(dst, (char*)context + offset, bytes); }
static void host_write(void* context, size_t offset, size_t bytes, const void* src) {
    memcpy((char*)context + offset, src, bytes);
}

Blob host_blob(const char* name, void* data, size_t bytes) {
    Blob blob = {name, bytes, host_read, host_write, data};
    return blob;
}

// ---- names. A name is recognised by making it again from its numbers, so that no other spelling of the numbers is taken for one.

enum { kNameBytes = 64 };

static void step_name(int step, const char* suffix, char name[kNameBytes]) {
    snprintf(name, kNameBytes, "step-%08d%s", step, suffix);
}

static void rank_name(int rank, int ranks, const char* suffix, char name[kNameBytes]) {
    snprintf(name, kNameBytes, "rank-%05d-of-%05d%s", rank, ranks, suffix);
}

static char* step_path(const char* dir, int step, const char* suffix) {
    char name[kNameBytes];
    step_name(step, suffix, name);
    return path_join(dir, name);
}

static char* rank_path(const char* dir, int rank, int ranks, const char* suffix) {
    char name[kNameBytes];
    rank_name(rank, ranks, suffix, name);
    return path_join(dir, name);
}

// The step of "step-00000040" + suffix; -1 for any other name.
static int parse_step(const char* name, const char* suffix) {
    int step;
    char again[kNameBytes];
    if (sscanf(name, "step-%8d", &step) != 1 || step < 0) return -1;
    step_name(step, suffix, again);
    return strcmp(name, again) ? -1 : step;
}

// The number of ranks in "rank-00000-of-00004.json" or ".bin"; 0 for any other name.
static int parse_ranks(const char* name) {
    int rank, ranks;
    char bin[kNameBytes], json[kNameBytes];
    if (sscanf(name, "rank-%5d-of-%5d", &rank, &ranks) != 2 || rank < 0 || rank >= ranks) return 0;
    rank_name(rank, ranks, ".bin", bin);
    rank_name(rank, ranks, ".json", json);
    return strcmp(name, bin) && strcmp(name, json) ? 0 : ranks;
}

static bool all_ranks_there(const char* path, int ranks) {
    bool there = ranks > 0;
    for (int rank = 0; rank < ranks; rank++) {
        char *bin = rank_path(path, rank, ranks, ".bin"), *json = rank_path(path, rank, ranks, ".json");
        there = there && path_exists(bin) && path_exists(json);
        free(bin);
        free(json);
    }
    return there;
}

static int ranks_of(const char* path) {
    char** names;
    int count = dir_names(path, &names), ranks = 0;
    for (int i = 0; i < count && !ranks; i++) ranks = parse_ranks(names[i]);
    dir_names_free(names, count);
    return ranks;
}

// ---- saving

static void write_blobs(const char* path, const CheckpointState* state, json_t* manifest_blobs) {
    size_t total = 0;
    for (int i = 0; i < state->blob_count; i++) total += state->blobs[i].bytes;
    OutFile out = out_open(path, total);
    XXH3_state_t* hash = XXH3_createState();
    char* piece = (char*)host_alloc(kPieceBytes);
    for (int i = 0; i < state->blob_count; i++) {
        const Blob* blob = &state->blobs[i];
        XXH3_128bits_reset(hash);
        for (size_t at = 0; at < blob->bytes; at += kPieceBytes) {
            size_t n = blob->bytes - at < (size_t)kPieceBytes ? blob->bytes - at : (size_t)kPieceBytes;
            blob->read(blob->context, at, n, piece);
            XXH3_128bits_update(hash, piece, n);
            out_write(&out, piece, n);
        }
        char hex[kHexBytes];
        hex_digest(XXH3_128bits_digest(hash), hex);
        json_array_append_new(manifest_blobs, json_pack("{s:s, s:I, s:s}", "name", blob->name, "bytes",
                                                        (json_int_t)blob->bytes, "xxh3", hex));
    }
    free(piece);
    XXH3_freeState(hash);
    out_close(&out);
}

// Writes the manifest: one JSON object whose first line seals the other lines with a checksum of all their bytes.
static void write_manifest(const char* path, const json_t* manifest) {
    char* json = json_dumps(manifest, JSON_INDENT(2));
    check(json && json[1] == '\n', "checkpoint: no manifest text (a name that is not UTF-8?)");
    const char* sealed = json + 1;   // the object without its opening brace
    size_t sealed_bytes = strlen(sealed);
    char hex[kHexBytes];
    hex_digest(XXH3_128bits(sealed, sealed_bytes), hex);
    OutFile out = out_open(path, strlen(kSealOpening) + strlen(hex) + strlen(kSealClosing) + sealed_bytes);
    out_write(&out, kSealOpening, strlen(kSealOpening));
    out_write(&out, hex, strlen(hex));
    out_write(&out, kSealClosing, strlen(kSealClosing));
    out_write(&out, sealed, sealed_bytes);
    out_close(&out);
    free(json);
}

void checkpoint_write(const char* dir, int step, const CheckpointState* state) {
    check(step >= 0 && step <= 99999999 && state->ranks <= 99999, "checkpoint_write: step %d, %d ranks", step, state->ranks);
    char* tmp = step_path(dir, step, kWriting);
    dir_make(tmp);
    size_t bytes = 0;
    for (int i = 0; i < state->blob_count; i++) bytes += state->blobs[i].bytes;
    disk_require(tmp, bytes);

    json_t *blobs = json_array(), *numbers = json_object(), *settings = json_object();
    for (int i = 0; i < state->number_count; i++)
        json_object_set_new(numbers, state->numbers[i].name, json_integer(*state->numbers[i].value));
    for (int i = 0; i < state->setting_count; i++)
        json_object_set_new(settings, state->settings[i].name, json_string(state->settings[i].value));
    char* path = rank_path(tmp, state->rank, state->ranks, ".bin");
    write_blobs(path, state, blobs);
    free(path);

    json_t* manifest = json_pack("{s:s, s:i, s:i, s:o, s:o, s:o}", "format", kFormat, "rank", state->rank, "ranks",
                                 state->ranks, "numbers", numbers, "settings", settings, "blobs", blobs);
    path = rank_path(tmp, state->rank, state->ranks, ".json");
    write_manifest(path, manifest);
    free(path);
    json_decref(manifest);
    dir_sync(tmp);
    free(tmp);
}

// Removes the files of a checkpoint and its directory, unless that holds other files. but_ranks > 0: removes only files of
// checkpoints with another number of ranks.
static void remove_checkpoint(const char* path, int but_ranks) {
    char** names;
    int count = dir_names(path, &names);
    for (int i = 0; i < count; i++) {
        int ranks = parse_ranks(names[i]);
        if (!ranks || ranks == but_ranks) continue;
        char* file = path_join(path, names[i]);
        file_remove(file);
        free(file);
    }
    dir_names_free(names, count);
    if (rmdir(path) && errno != ENOENT && errno != ENOTEMPTY && errno != EEXIST)
        user_error("%s: cannot be removed: %s", path, strerror(errno));
}

static int newest_first(const void* a, const void* b) {
    int x = *(const int*)a, y = *(const int*)b;
    return (x < y) - (x > y);
}

char* checkpoint_path(const char* dir, int step) { return step_path(dir, step, ""); }

int checkpoint_steps(const char* dir, int** steps) {
    char** names;
    int listed = dir_names(dir, &names), count = 0;
    *steps = (int*)host_alloc((size_t)listed * sizeof(int));
    for (int i = 0; i < listed; i++) {
        int step = parse_step(names[i], "");
        if (step < 0) continue;
        char* path = path_join(dir, names[i]);
        if (dir_exists(path) && all_ranks_there(path, ranks_of(path))) (*steps)[count++] = step;
        free(path);
    }
    dir_names_free(names, listed);
    qsort(*steps, (size_t)count, sizeof(int), newest_first);
    return count;
}

void checkpoint_commit(const char* dir, int step, int ranks, int keep, int best) {
    check(keep >= 1, "checkpoint_commit: keep %d", keep);
    char *written = step_path(dir, step, kWriting), *complete = step_path(dir, step, "");
    char* old = step_path(dir, step, kReplaced);
    remove_checkpoint(written, ranks);   // files left by an earlier run with another number of ranks
    check(all_ranks_there(written, ranks), "checkpoint_commit: %s has not the files of all %d ranks", written, ranks);
    remove_checkpoint(old, 0);
    if (path_exists(complete)) file_rename(complete, old);   // a checkpoint of the same step is being replaced
    file_rename(written, complete);
    dir_sync(dir);
    free(written);
    free(complete);
    free(old);

    char** names;
    int* steps;
    int count = checkpoint_steps(dir, &steps), oldest = step;
    for (int i = 0, kept = 0; i < count && kept < keep; i++) {
        if (steps[i] > step) continue;
        oldest = steps[i];
        kept++;
    }
    free(steps);
    count = dir_names(dir, &names);
    for (int i = 0; i < count; i++) {
        int complete_step = parse_step(names[i], "");
        bool kept = complete_step >= 0 && complete_step <= step && (complete_step >= oldest || complete_step == best);
        bool ours = complete_step >= 0 || parse_step(names[i], kWriting) >= 0 || parse_step(names[i], kReplaced) >= 0;
        if (!ours || kept) continue;
        char* path = path_join(dir, names[i]);
        if (dir_exists(path)) remove_checkpoint(path, 0);
        free(path);
    }
    dir_names_free(names, count);
}

char* checkpoint_latest(const char* dir) {
    int* steps;
    char* path = checkpoint_steps(dir, &steps) ? step_path(dir, steps[0], "") : NULL;
    free(steps);
    return path;
}

// ---- loading

// What is wrong with a manifest's text; NULL if its checksum is right.
static const char* manifest_fault(const char* text, size_t bytes) {
    size_t opening = strlen(kSealOpening), closing = strlen(kSealClosing);
    size_t head = opening + (kHexBytes - 1) + closing;
    if (bytes < head || strncmp(text, kSealOpening, opening) || strncmp(text + head - closing, kSealClosing, closing))
        return "byte 0: not the manifest of a checkpoint of this program, or damaged";
    char hex[kHexBytes];
    hex_digest(XXH3_128bits(text + head, bytes - head), hex);
    return strncmp(text + opening, hex, kHexBytes - 1) ? "damaged (the checksum does not match)" : NULL;
}

static json_t* read_manifest(const char* path) {
    size_t bytes;
    char* text = file_read(path, &bytes);
    const char* fault = manifest_fault(text, bytes);
    if (fault) user_error("%s: %s; %s", path, fault, kOlder);
    json_t* manifest = json_parse(text, bytes, path);
    free(text);
    if (strcmp(member_string(manifest, "format", path), kFormat)) user_error("%s: not a checkpoint of this program", path);
    return manifest;
}

static void load_settings(const json_t* manifest, const CheckpointState* state, const char* path) {
    const json_t* settings = member_object(manifest, "settings", path);
    for (int i = 0; i < state->setting_count; i++) {
        const CheckpointSetting* now = &state->settings[i];
        const char* then = member_string(settings, now->name, path);
        if (strcmp(then, now->value))
            user_error("%s: was saved with %s = %s, this run has %s; %s", path, now->name, printable(then), printable(now->value),
                       now->remedy ? now->remedy : "resume with the same value");
    }
    if (json_object_size(settings) != (size_t)state->setting_count)
        user_error("%s: holds %zu settings, this run has %d", path, json_object_size(settings), state->setting_count);
}

static void load_numbers(const json_t* manifest, const CheckpointState* state, const char* path) {
    const json_t* numbers = member_object(manifest, "numbers", path);
    for (int i = 0; i < state->number_count; i++) {
        const json_t* number = json_object_get(numbers, state->numbers[i].name);
        if (!json_is_integer(number)) user_error("%s: the number \"%s\" is missing", path, state->numbers[i].name);
        *state->numbers[i].value = json_integer_value(number);
    }
    if (json_object_size(numbers) != (size_t)state->number_count)
        user_error("%s: holds %zu numbers, this run has %d", path, json_object_size(numbers), state->number_count);
}

static void load_blobs(const json_t* manifest, const CheckpointState* state, const char* json_path, const char* path) {
    const json_t* listed = json_object_get(manifest, "blobs");
    if (json_array_size(listed) != (size_t)state->blob_count)
        user_error("%s: holds %zu blobs, this run has %d", json_path, json_array_size(listed), state->blob_count);
    int fd = open(path, O_RDONLY);
    struct stat info;
    if (fd < 0 || fstat(fd, &info)) user_error("%s: cannot be read: %s", path, strerror(errno));
    size_t total = 0;
    for (int i = 0; i < state->blob_count; i++) {
        const Blob* blob = &state->blobs[i];
        const json_t* entry = json_array_get(listed, (size_t)i);
        const char* name = member_string(entry, "name", json_path);
        json_int_t bytes = json_integer_value(json_object_get(entry, "bytes"));
        if (strcmp(name, blob->name) || bytes < 0 || (size_t)bytes != blob->bytes)
            user_error("%s: holds \"%s\" with %lld bytes where this run has \"%s\" with %zu; resume with the same model and "
                       "settings", json_path, printable(name), (long long)bytes, blob->name, blob->bytes);
        total += blob->bytes;
    }
    if ((size_t)info.st_size != total)
        user_error("%s: has %lld bytes instead of %zu; %s", path, (long long)info.st_size, total, kOlder);

    XXH3_state_t* hash = XXH3_createState();
    char* piece = (char*)host_alloc(kPieceBytes);
    for (int i = 0; i < state->blob_count; i++) {
        const Blob* blob = &state->blobs[i];
        XXH3_128bits_reset(hash);
        for (size_t at = 0; at < blob->bytes;) {
            size_t n = blob->bytes - at < (size_t)kPieceBytes ? blob->bytes - at : (size_t)kPieceBytes;
            ssize_t got = read(fd, piece, n);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) user_error("%s: cannot be read: %s", path, got ? strerror(errno) : "it became shorter");
            XXH3_128bits_update(hash, piece, (size_t)got);
            blob->write(blob->context, at, (size_t)got, piece);
            at += (size_t)got;
        }
        char hex[kHexBytes];
        hex_digest(XXH3_128bits_digest(hash), hex);
        if (strcmp(hex, member_string(json_array_get(listed, (size_t)i), "xxh3", json_path)))
            user_error("%s: \"%s\" is damaged (the checksum does not match); %s", path, blob->name, kOlder);
    }
    free(piece);
    XXH3_freeState(hash);
    close(fd);
}

bool is_checkpoint(const char* path) { return dir_exists(path) && ranks_of(path) > 0; }

int checkpoint_ranks(const char* path) {
    int ranks = ranks_of(path);
    if (!ranks) user_error("%s: not a checkpoint of this program", path);
    return ranks;
}

void checkpoint_load(const char* path, const CheckpointState* state) {
    int ranks = checkpoint_ranks(path);
    if (ranks != state->ranks)
        user_error("%s: was saved by %d ranks, this run has %d; resume with as many", path, ranks, state->ranks);
    char *bin = rank_path(path, state->rank, ranks, ".bin"), *json = rank_path(path, state->rank, ranks, ".json");
    json_t* manifest = read_manifest(json);
    if (member_int(manifest, "rank", 0, 99999, json) != state->rank || member_int(manifest, "ranks", 1, 99999, json) != ranks)
        user_error("%s: belongs to another rank; was it renamed?", json);
    load_settings(manifest, state, json);
    load_numbers(manifest, state, json);
    load_blobs(manifest, state, json, bin);
    json_decref(manifest);
    free(json);
    free(bin);
}

// ---- verifying: damage is a result here, not a user_error

// A file's text, NUL-terminated, or NULL if it cannot be read whole.
static char* read_quietly(const char* path, size_t* bytes) {
    int fd = open(path, O_RDONLY | O_NONBLOCK);
    struct stat info;
    if (fd < 0) return NULL;
    char* text = NULL;
    if (!fstat(fd, &info) && S_ISREG(info.st_mode)) {
        *bytes = (size_t)info.st_size;
        text = (char*)host_alloc(*bytes + 1);
        for (size_t at = 0; text && at < *bytes;) {
            ssize_t got = read(fd, text + at, *bytes - at);
            if (got < 0 && errno == EINTR) continue;
            if (got > 0) at += (size_t)got;
            else free(text), text = NULL;
        }
    }
    close(fd);
    return text;
}

// Do the bytes of a blob file have the checksums that its manifest lists?
static bool blobs_are_whole(const json_t* listed, const char* path, void (*tick)(void)) {
    FILE* file = dir_exists(path) ? NULL : fopen(path, "rb");
    if (!file) return false;
    XXH3_state_t* hash = XXH3_createState();
    char* piece = (char*)host_alloc(kPieceBytes);
    bool whole = true;
    for (size_t i = 0; whole && i < json_array_size(listed); i++) {
        const json_t* entry = json_array_get(listed, i);
        const char* want = json_string_value(json_object_get(entry, "xxh3"));
        json_int_t left = json_integer_value(json_object_get(entry, "bytes"));
        XXH3_128bits_reset(hash);
        while (whole && left > 0) {
            size_t n = left < kPieceBytes ? (size_t)left : (size_t)kPieceBytes;
            whole = fread(piece, 1, n, file) == n;
            if (whole) XXH3_128bits_update(hash, piece, n);
            left -= (json_int_t)n;
            if (tick) tick();
        }
        char hex[kHexBytes];
        hex_digest(XXH3_128bits_digest(hash), hex);
        whole = whole && want && !strcmp(hex, want);
    }
    whole = whole && fgetc(file) == EOF;
    free(piece);
    XXH3_freeState(hash);
    fclose(file);
    return whole;
}

static bool rank_is_whole(const char* json_path, const char* bin_path, void (*tick)(void)) {
    size_t bytes = 0;
    char* text = read_quietly(json_path, &bytes);
    if (!text) return false;
    json_t* manifest = manifest_fault(text, bytes) ? NULL : json_loadb(text, bytes, JSON_REJECT_DUPLICATES, NULL);
    const json_t* blobs = json_object_get(manifest, "blobs");
    bool whole = json_is_array(blobs) && blobs_are_whole(blobs, bin_path, tick);
    json_decref(manifest);
    free(text);
    return whole;
}

char* checkpoint_verify_parts(const char* path, int first, int stride, void (*tick)(void)) {
    int ranks = dir_exists(path) ? ranks_of(path) : 0;
    if (!ranks) return host_strdup(path);
    char* damaged = NULL;
    for (int rank = first; rank < ranks && !damaged; rank += stride) {
        char *bin = rank_path(path, rank, ranks, ".bin"), *json = rank_path(path, rank, ranks, ".json");
        if (!rank_is_whole(json, bin, tick)) damaged = host_strdup(json);
        free(bin);
        free(json);
    }
    return damaged;
}

char* checkpoint_verify(const char* path) { return checkpoint_verify_parts(path, 0, 1, NULL); }
