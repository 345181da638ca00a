// The host's memory from /proc/meminfo and control groups; see host_memory.h. A container sees the whole machine's /proc/meminfo, and a
// process that takes more than its group may have is killed without a word: so both count.
#include "host_memory.h"

#include <unistd.h>

enum { kPath = 4096 };

// A group's files in the two versions of control groups. Its use includes the cached pages of files, active or not, which a full group
// gives up.
typedef struct {
    const char *mount, *limit, *used, *active, *inactive;
} GroupFiles;
static const GroupFiles kVersion1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
                                     "total_active_file ", "total_inactive_file "};
static const GroupFiles kVersion2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "active_file ", "inactive_file "};

// The number behind `key` in the first line that begins with it (with "": in the first line that begins with a number); 0 if there is none.
static unsigned long long number_in(const char* path, const char* key) {
    char line[256];
    unsigned long long value = 0;
    FILE* f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, key, strlen(key)) && sscanf(line + strlen(key), "%llu", &value) == 1) break;
    if (f) fclose(f);
    return value;
}

// Lowers m to what the group whose files lie in `folder` allows. No limit reads as "max", as a number beyond all memory, or as no file.
static void apply_group(HostMemory* m, const GroupFiles* names, const char* folder) {
    char path[kPath + 64];
    snprintf(path, sizeof path, "%s/%s", folder, names->limit);
    unsigned long long limit = number_in(path, "");
    if (!limit) return;
    snprintf(path, sizeof path, "%s/%s", folder, names->used);
    unsigned long long used = number_in(path, "");
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    unsigned long long cached = number_in(path, names->active) + number_in(path, names->inactive);
    used -= cached < used ? cached : used;
    unsigned long long left = used < limit ? limit - used : 0;
    if (limit < m->total) m->total = (size_t)limit;
    if (left < m->left) m->left = (size_t)left;
}

// The group named by a line "id:controllers:/path" of /proc/self/cgroup, and all groups around it: each limits what lies inside. Within a
// container only the innermost folders may be missing: the mount itself is then the container's group.
static void apply_groups(HostMemory* m, const char* root, char* line) {
    char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL, folder[kPath];
    if (!path) return;
    *path++ = 0;
    path[strcspn(path, "\n")] = 0;
    controllers++;
    const GroupFiles* names = !*controllers ? &kVersion2 : !strcmp(controllers, "memory") ? &kVersion1 : NULL;
    if (!names) return;
    int mount = snprintf(folder, sizeof folder, "%s%s", root, names->mount);
    int whole = snprintf(folder, sizeof folder, "%s%s%s", root, names->mount, path);
    if (whole >= (int)sizeof folder) return;
    while ((int)strlen(folder) > mount) {
        apply_group(m, names, folder);
        *strrchr(folder, '/') = 0;
    }
    apply_group(m, names, folder);
}

HostMemory host_memory(const char* root) {
    char path[kPath], line[kPath];
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    HostMemory m = {(size_t)number_in(path, "MemTotal:") << 10, (size_t)number_in(path, "MemAvailable:") << 10};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!m.total) m.total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
    if (!m.left) m.left = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE* f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) apply_groups(&m, root, line);
    if (f) fclose(f);
    return m;
}
