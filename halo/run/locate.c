// Inputs that are found; see locate.h.
#include "locate.h"

#include <libgen.h>
#include <limits.h>

#include "../../data/files.h"

// ---- the demo

// The folder of the program that runs, links resolved.
static char* program_dir(void) {
    char path[PATH_MAX];
    ssize_t bytes = readlink("/proc/self/exe", path, sizeof path - 1);
    if (bytes <= 0) user_error("/proc/self/exe cannot be read, so that the demo cannot be found: name --model DIR and --data FILE");
    path[bytes] = 0;
    return host_strdup(dirname(path));
}

static char* demo_dir(void) {
    // From the folder of the program: a source tree's build/release and build/release/test, an unpacked archive, an installed prefix.
    static const char* const kPlaces[] = {"../../data/demo", "../../../data/demo", "data/demo", "../share/train_llama3/demo"};
    char* dir = program_dir();
    for (size_t i = 0; i < sizeof kPlaces / sizeof kPlaces[0]; i++) {
        char *place = path_join(dir, kPlaces[i]), *config = path_join(place, "model/config.json"), *real = NULL;
        if (path_exists(config)) real = realpath(place, NULL);
        free(config);
        free(place);
        if (!real) continue;
        free(dir);
        return real;
    }
    user_error("no --model and no --data: the demo was meant, but it is neither in data/demo beside %s nor in ../share/train_llama3/demo; name "
               "--model DIR and --data FILE", dir);
}

static void locate_demo(Options* o) {
    char* dir = demo_dir();
    o->model = path_join(dir, "model");
    o->data = path_join(dir, "train.jsonl");
    if (!o->val && !(o->val_split > 0)) o->val = path_join(dir, "test.jsonl");
    free(dir);
}

// ---- the Hugging Face cache

static char* cache_dir(void) {
    static const struct {
        const char *variable, *below;
    } kPlaces[] = {{"HF_HUB_CACHE", NULL}, {"HUGGINGFACE_HUB_CACHE", NULL}, {"HF_HOME", "hub"}, {"XDG_CACHE_HOME", "huggingface/hub"},
                   {"HOME", ".cache/huggingface/hub"}};
    for (size_t i = 0; i < sizeof kPlaces / sizeof kPlaces[0]; i++) {
        const char* value = getenv(kPlaces[i].variable);
        if (value && *value) return kPlaces[i].below ? path_join(value, kPlaces[i].below) : host_strdup(value);
    }
    return host_strdup(".cache/huggingface/hub");
}

// Whether `name` can be a repository's name, org/name, maybe with a slash at its end: letters, digits, '-', '_' and '.', and no path that
// begins with a dot.
static bool is_hub_name(const char* name) {
    const char* slash = strchr(name, '/');
    size_t allowed = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./"), n = strlen(name);
    if (!slash || slash == name || !slash[1] || name[0] == '.' || slash[1] == '.' || allowed != n) return false;
    const char* second = strchr(slash + 1, '/');
    return !second || !second[1];
}

// The snapshot of refs/main in the cache's folder of a repository; NULL: there is none.
static char* snapshot_of(const char* repository) {
    char *ref = path_join(repository, "refs/main"), *found = NULL;
    if (path_exists(ref)) {
        char *commit = file_read(ref, NULL), *snapshots = path_join(repository, "snapshots");
        commit[strcspn(commit, " \t\r\n/")] = 0;
        char* dir = path_join(snapshots, commit);
        if (*commit && commit[0] != '.' && dir_exists(dir)) found = dir;
        else free(dir);
        free(snapshots);
        free(commit);
    }
    free(ref);
    return found;
}

static void refuse_missing(const char* flag, const char* name) {
    Config config;
    if (!strcmp(flag, "model") && config_preset(&config, name))
        user_error("--model %s: no such folder; --preset %s has this model's sizes without its weights, for plan and bench", name, name);
    user_error("--%s %s: no such folder or file (a name in the Hugging Face cache has the form org/name)", flag, name);
}

// What in_cache has found.
enum { kMostFound = 4 };
static struct {
    char *name, *path;
} found_in_cache[kMostFound];

const char* name_as_given(const char* path) {
    for (int i = 0; i < kMostFound && found_in_cache[i].path; i++)
        if (!strcmp(found_in_cache[i].path, path)) return found_in_cache[i].name;
    return path;
}

static void remember_name(const char* name, int bytes, char* path) {
    int i = 0;
    while (i < kMostFound && found_in_cache[i].path) i++;
    check(i < kMostFound, "more than %d names from the cache", kMostFound);
    found_in_cache[i].name = host_strdup(name);
    found_in_cache[i].name[bytes] = 0;
    found_in_cache[i].path = path;
}

// The path of `name`, which is a path already or the name of a repository in the cache; `flag` for messages.
static const char* in_cache(const char* flag, const char* name) {
    if (path_exists(name)) return name;
    if (!is_hub_name(name)) refuse_missing(flag, name);
    const char* slash = strchr(name, '/');
    int org = (int)(slash - name), rest = (int)strcspn(slash + 1, "/");
    char *cache = cache_dir(), *folder = (char*)host_alloc(strlen(name) + 16);
    sprintf(folder, "models--%.*s--%.*s", org, name, rest, slash + 1);
    char *repository = path_join(cache, folder), *found = snapshot_of(repository);
    if (!found)
        user_error("--%s %s: no such folder, and the Hugging Face cache %s does not hold it; download it with: hf download %.*s/%.*s", flag,
                   name, cache, org, name, rest, slash + 1);
    remember_name(name, org + 1 + rest, found);
    free(repository);
    free(folder);
    free(cache);
    return found;
}

void locate_inputs(Options* o, int command) {
    if (command == VERIFY) return;   // what it looks at are folders of runs
    if (o->demo) locate_demo(o);
    if (o->model && (o->preset || o->from_scratch)) return;   // which options_check refuses
    const struct {
        const char *flag, **value;
    } named[] = {{"model", &o->model}, {"from-scratch", &o->from_scratch}, {"tokenizer", &o->tokenizer}, {"adapter-dir", &o->adapter_dir}};
    for (size_t i = 0; i < sizeof named / sizeof named[0]; i++)
        if (*named[i].value) *named[i].value = in_cache(named[i].flag, *named[i].value);
}
