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

// The numbers behind two keys that lines of a file begin with; 0 for what is not there.
typedef struct {
    unsigned long long first, second;
} Numbers;
static Numbers numbers_in(const char* path, const char* first, const char* second) {
    char line[256];
    Numbers n = {0, 0};
    FILE* f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        if (!strncmp(line, first, strlen(first))) sscanf(line + strlen(first), "%llu", &n.first);
        if (!strncmp(line, second, strlen(second))) sscanf(line + strlen(second), "%llu", &n.second);
    }
    if (f) fclose(f);
    return n;
}
// The number that a file begins with.
static unsigned long long number_in(const char* path) { return numbers_in(path, "", "").first; }

// Lowers m to what the group whose files lie in `folder` allows. No limit reads as "max", as a number beyond all memory, or as no file.
static void apply_group(HostMemory* m, const GroupFiles* names, const char* folder) {
    char path[kPath + 64];
    snprintf(path, sizeof path, "%s/%s", folder, names->limit);
    unsigned long long limit = number_in(path);
    if (!limit) return;
    snprintf(path, sizeof path, "%s/%s", folder, names->used);
    unsigned long long used = number_in(path);
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    Numbers cached = numbers_in(path, names->active, names->inactive);
    used -= cached.first + cached.second < used ? cached.first + cached.second : used;
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
    Numbers kib = numbers_in(path, "MemTotal:", "MemAvailable:");
    HostMemory m = {(size_t)kib.first << 10, (size_t)kib.second << 10};
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!m.total) m.total = (size_t)sysconf(_SC_PHYS_PAGES) * page;
    if (!m.left) m.left = (size_t)sysconf(_SC_AVPHYS_PAGES) * page;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE* f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) apply_groups(&m, root, line);
    if (f) fclose(f);
    return m;
}
