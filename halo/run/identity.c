// What a run depends on; see identity.h.
#include "identity.h"

#include <sys/stat.h>

#include "../../data/files.h"
#include "../../data/hf_layout.h"
#include "../progress.h"

// The hash of one file's content, or of several files': `paths` may list them with commas and a share behind each (record.h).
static void digest_files(const char* paths, char hex[kHexBytes]) {
    strcpy(hex, "none");
    if (!paths) return;
    if (path_exists(paths)) {
        file_digest(paths, hex);
        return;
    }
    char *list = host_strdup(paths), *rest = list, *one;
    XXH3_state_t* hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    while ((one = strsep(&rest, ",")) != NULL) {
        char *share = path_exists(one) ? NULL : strrchr(one, ':'), content[kHexBytes];
        if (share) *share = 0;
        file_digest(one, content);
        XXH3_128bits_update(hash, content, sizeof content);
        if (share) XXH3_128bits_update(hash, share + 1, strlen(share + 1));
    }
    hex_digest(XXH3_128bits_digest(hash), hex);
    XXH3_freeState(hash);
    free(list);
}

// The hash of those values of config.json that the arithmetic depends on.
static void digest_config(const Config* c, char hex[kHexBytes]) {
    char text[512];
    int n = snprintf(text, sizeof text, "%d %d %d %d %d %d %d %d %a %a %d %a %a %a %d", c->V, c->C, c->L, c->NH, c->NKV, c->HD, c->F, c->tied,
                     (double)c->norm_eps, c->rope_theta, (int)c->rope_type, c->rope_factor, c->rope_low_freq,
                     c->rope_high_freq, c->rope_original_T);
    hex_digest(XXH3_128bits(text, (size_t)n), hex);
}

// The hash of the tokenizer's files and chat templates, without config.json and generation_config.json.
static void digest_tokenizer(const ModelFiles* files, char hex[kHexBytes]) {
    XXH3_state_t* hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    int count = 0;
    for (int i = 0; files && i < model_files_count(files); i++) {
        const ModelFile* f = model_files_at(files, i);
        if (!strcmp(f->name, "config.json") || !strcmp(f->name, "generation_config.json")) continue;
        XXH3_128bits_update(hash, f->name, strlen(f->name) + 1);
        XXH3_128bits_update(hash, f->text, f->bytes);
        count++;
    }
    if (count) hex_digest(XXH3_128bits_digest(hash), hex);
    else strcpy(hex, "none");
    XXH3_freeState(hash);
}

// ---- weights

// A number that identifies the files at `path` without reading them: a hash of the host's name and of what the file system knows of each
// file. A whole number that a double holds exactly.
static double files_at(const char* path) {
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    XXH64_hash_t hash = XXH64(host, strlen(host), 0);
    char** names;
    int count = dir_exists(path) ? dir_names(path, &names) : 0;
    for (int i = -1; i < count; i++) {
        char* file = i < 0 ? host_strdup(path) : path_join(path, names[i]);
        struct stat info;
        memset(&info, 0, sizeof info);
        if (!stat(file, &info)) {
            const uint64_t facts[] = {(uint64_t)info.st_dev, (uint64_t)info.st_ino, (uint64_t)info.st_size, (uint64_t)info.st_mtim.tv_sec,
                                      (uint64_t)info.st_mtim.tv_nsec};
            hash += XXH64(facts, sizeof facts, 0);   // a sum, since a directory may list its files in any order
        }
        free(file);
    }
    if (count) dir_names_free(names, count);
    return (double)(hash >> 12);
}

// The lowest rank that sees the same files as this rank.
static int reader_of(const Session* s) {
    int ranks = s->comm->ranks, reader = 0;
    double* seen = (double*)host_alloc(sizeof(double) * (size_t)ranks);
    double mine = seen[s->comm->rank] = files_at(s->source_path);
    s->comm->host_sum(seen, ranks);
    while (seen[reader] != mine) reader++;
    free(seen);
    return reader;
}

enum { kRowsAtOnce = 512 };

static void digest_tensor(const Session* s, const ParamSpec* spec, int index, int layer, XXH128_canonical_t* to) {
    Fmt fmt = model_source_fmt(s->source);
    size_t row_bytes = (size_t)spec->cols * fmt_bytes(fmt);
    char* rows = (char*)host_alloc((size_t)min_int(kRowsAtOnce, spec->rows) * row_bytes);
    XXH3_state_t* hash = XXH3_createState();
    XXH3_128bits_reset(hash);
    for (int row = 0; row < spec->rows; row += kRowsAtOnce) {
        int n = min_int(kRowsAtOnce, spec->rows - row);
        progress_phase("reading weights whole", layer);
        model_source_rows(s->source, index, layer, row, n, fmt, rows);
        XXH3_128bits_update(hash, rows, (size_t)n * row_bytes);
    }
    XXH128_canonicalFromHash(to, XXH3_128bits_digest(hash));
    XXH3_freeState(hash);
    free(rows);
}

static void name_tensor(const ParamSpec* specs, int specs_count, int layers, int index, char name[128]) {
    for (int i = 0; i < specs_count; i++) {
        int here = specs[i].per_layer ? layers : 1;
        if (index < here) {
            param_name(&specs[i], index, name, 128);
            return;
        }
        index -= here;
    }
    die("identity: no such tensor");
}

static void digest_weights(const Session* s, char hex[kHexBytes]) {
    strcpy(hex, "none");
    if (!s->source) return;
    ParamSpec specs[kMaxParamSpecs];
    int count = param_specs(&s->config, specs), tensors = 0;
    for (int i = 0; i < count; i++) tensors += specs[i].per_layer ? s->config.L : 1;
    size_t bytes = sizeof(XXH128_canonical_t) * (size_t)tensors;
    XXH128_canonical_t *mine = (XXH128_canonical_t*)host_alloc(bytes), *first = (XXH128_canonical_t*)host_alloc(bytes);
    bool reads = reader_of(s) == s->comm->rank;
    for (int i = 0, t = 0; reads && i < count; i++)
        for (int layer = 0; layer < (specs[i].per_layer ? s->config.L : 1); layer++) digest_tensor(s, &specs[i], i, layer, &mine[t++]);
    memcpy(first, mine, bytes);
    s->comm->host_broadcast(first, bytes);
    for (int t = 0; reads && t < tensors; t++) {
        char name[128];
        if (!memcmp(&first[t], &mine[t], sizeof first[t])) continue;
        name_tensor(specs, count, s->config.L, t, name);
        user_error("rank %d disagrees with rank 0: the weights of %s in %s are others; start all ranks with the same model, data and flags",
                   s->comm->rank, name, s->source_path);
    }
    hex_digest(XXH3_128bits(first, bytes), hex);
    free(mine);
    free(first);
}

// ---- all of it

static void same_as_rank_0(const Session* s, const char* what, const char* mine) {
    char first[kHexBytes];
    memcpy(first, mine, kHexBytes);
    s->comm->host_broadcast(first, kHexBytes);
    if (strcmp(first, mine))
        user_error("rank %d disagrees with rank 0: it has another %s; start all ranks with the same model, data and flags", s->comm->rank,
                   what);
}

void identity_take(const Session* s, Identity* id) {
    memset(id, 0, sizeof *id);
    digest_files(s->o.data, id->data);
    digest_files(s->o.val, id->val);
    digest_config(&s->config, id->config);
    digest_tokenizer(s->files, id->tokenizer);
    same_as_rank_0(s, "config.json", id->config);
    same_as_rank_0(s, "tokenizer or chat template", id->tokenizer);
    same_as_rank_0(s, "content of --data", id->data);
    same_as_rank_0(s, "content of --val", id->val);
    digest_weights(s, id->weights);
    if (!s->peft) return;
    char *factors = path_join(s->o.adapter_dir, HF_ADAPTER_NAME), adapter[kHexBytes];
    file_digest(factors, adapter);
    same_as_rank_0(s, "adapter in --adapter-dir", adapter);
    free(factors);
}
