// What may be taken of the host's memory: the machine's, and what control groups of both versions leave of it.
#include "../halo/host_memory.h"
#include "scratch.h"

static char* root;   // of a tree with /proc and /sys as a kernel shows them

static void put_line(const char* path, const char* text) {
    char* whole = (char*)host_alloc(strlen(root) + strlen(path) + 1);
    sprintf(whole, "%s%s", root, path);
    char* name = strrchr(whole, '/');
    *name = 0;
    shell("mkdir -p", whole);
    *name = '/';
    put_file(whole, text, strlen(text));
    free(whole);
}

// A machine of 1000 KiB, 600 of them available, whose process is in `groups`.
static void fresh_machine(const char* groups) {
    if (!root) root = scratch_path("root");
    empty_dir(root);
    put_line("/proc/meminfo", "MemTotal:           1000 kB\nMemFree:             100 kB\nMemAvailable:        600 kB\n");
    put_line("/proc/self/cgroup", groups);
}

static void group2(const char* path, const char* limit, const char* used, const char* stat) {
    char file[256];
    snprintf(file, sizeof file, "/sys/fs/cgroup%s/memory.max", path);
    put_line(file, limit);
    snprintf(file, sizeof file, "/sys/fs/cgroup%s/memory.current", path);
    put_line(file, used);
    snprintf(file, sizeof file, "/sys/fs/cgroup%s/memory.stat", path);
    put_line(file, stat);
}

static bool has(size_t total_kib, size_t left_kib) {
    HostMemory m = host_memory(root);
    return m.total == total_kib << 10 && m.left == left_kib << 10;
}

static const char kNoFiles[] = "anon 1\nfile 999999\ninactive_file 0\nactive_file 0\n";

static void machine_case(void) {
    HostMemory here = host_memory("");
    ok(here.total > (size_t)1 << 28 && here.left > 0 && here.left <= here.total, "this machine: %zu bytes, %zu left", here.total, here.left);
    fresh_machine("0::/\n");
    ok(has(1000, 600) && !has(1000, 601), "no limit: the machine's");
    empty_dir(root);
    HostMemory bare = host_memory(root);
    ok(bare.total > (size_t)1 << 28 && bare.left > 0, "without /proc the system is asked");
}

static void version2_case(void) {
    fresh_machine("0::/\n");
    group2("", "409600\n", "102400\n", kNoFiles);   // 400 and 100 KiB
    ok(has(400, 300), "a container's group is the mount itself");
    group2("", "409600\n", "102400\n", "inactive_file 20480\nactive_file 10240\n");
    ok(has(400, 330), "cached pages of files count as left");
    group2("", "409600\n", "102400\n", "inactive_file 204800\nactive_file 10240\n");
    ok(has(400, 400), "more of them than use: all is left");
    group2("", "409600\n", "512000\n", kNoFiles);
    ok(has(400, 0), "a group beyond its limit: nothing is left");
    group2("", "max\n", "102400\n", kNoFiles);
    ok(has(1000, 600), "max is no limit");
    group2("", "4096000000\n", "102400\n", kNoFiles);
    ok(has(1000, 600), "a limit beyond the machine is none");

    fresh_machine("0::/job/step\n");
    group2("/job", "307200\n", "204800\n", kNoFiles);
    group2("/job/step", "409600\n", "0\n", kNoFiles);
    ok(has(300, 100), "the group around it is tighter");
    fresh_machine("0::/elsewhere/box\n");
    group2("", "307200\n", "0\n", kNoFiles);
    ok(has(300, 300), "a group that is not seen from here: the mount's counts");
}

static void version1_case(void) {
    fresh_machine("5:cpu,cpuacct:/job\n4:memory:/job\n1:name=systemd:/job\n0::/\n");
    put_line("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put_line("/sys/fs/cgroup/memory/memory.usage_in_bytes", "307200\n");
    ok(has(1000, 600), "version 1's word for no limit");
    put_line("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "512000\n");
    put_line("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "204800\n");
    put_line("/sys/fs/cgroup/memory/job/memory.stat", "cache 9\ninactive_file 1024\ntotal_inactive_file 51200\ntotal_active_file 51200\n");
    ok(has(500, 400), "version 1: its group, with all groups inside");
}

static const Case kCases[] = {{"machine", machine_case}, {"version2", version2_case}, {"version1", version1_case}};

int main(int argc, char** argv) { return scratch_main("test_host_memory", kCases, COUNT(kCases), argc, argv); }
