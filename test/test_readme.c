// README's table of promises: every test that it names as showing one exists, case by case, and so does every script.
#include "../data/files.h"
#include "test.h"

static char* binaries;   // the folder of this one, which holds the other tests

// The names of a test's cases, each between newlines; NULL without its binary.
static char* cases_of(const char* test) {
    enum { kMost = 1 << 16 };
    char *path = path_join(binaries, test), command[4096], *list = NULL;
    snprintf(command, sizeof command, "'%s' --list", path);
    if (!access(path, X_OK)) {
        FILE* out = popen(command, "r");
        check(out, "%s: not started", command);
        list = (char*)host_alloc(kMost);
        list[0] = '\n';
        list[1 + fread(list + 1, 1, kMost - 2, out)] = 0;
        check(pclose(out) == 0, "%s fails", command);
    }
    free(path);
    return list;
}

// One code span of the right column: a test and its cases, a script, or a target of make.
static void check_span(char* span) {
    char* name = strtok(span, " ");
    if (!name) return;
    if (!strcmp(name, "make")) {
        char *target = strtok(NULL, " "), *makefile = file_read("Makefile", NULL), rule[64];
        snprintf(rule, sizeof rule, "\n%s:", target ? target : "");
        ok(strstr(makefile, rule) != NULL, "make %s is a target", target);
        free(makefile);
    } else if (strncmp(name, "test_", 5)) {
        ok(path_exists(name), "%s is there", name);
    } else {
        char* list = cases_of(name);
        if (!list) skip("%s is not built", name);
        for (char* one = strtok(NULL, " "); list && one; one = strtok(NULL, " ")) {
            char line[128];
            snprintf(line, sizeof line, "\n%s\n", one);
            ok(strstr(list, line) != NULL, "%s has a case %s", name, one);
        }
        free(list);
    }
}

static void promises_case(void) {
    char *text = file_read("README.md", NULL), *table = strstr(text, "\n## What is promised");
    check(table && strchr(table + 1, '\n'), "README.md: no table of promises");
    char* end = strstr(table + 1, "\n## ");
    if (end) *end = 0;
    int rows = 0;
    for (char *line = strstr(table, "\n| "), *next; line; line = next) {
        next = strstr(line + 1, "\n| ");
        size_t bytes = strcspn(line + 1, "\n");
        char *row = host_strdup(line + 1), *column;
        row[bytes] = 0;
        char* last = strrchr(row, '|');
        *last = 0;
        column = strrchr(row, '|');
        bool heading = !strchr(column, '`');
        rows += !heading;
        ok(heading == !strncmp(row, "| a run's work", 14), "%.60s ... names what shows it", row);
        for (char *open = strchr(column, '`'), *close; open; open = strchr(close + 1, '`')) {
            close = strchr(open + 1, '`');
            check(close, "%s: a ` without its end", row);
            char* span = host_strdup(open + 1);
            span[close - open - 1] = 0;
            check_span(span);
            free(span);
        }
        free(row);
    }
    ok(rows >= 10, "%d promises", rows);
    free(text);
}

static const Case kCases[] = {{"promises", promises_case}};

int main(int argc, char** argv) {
    const char* slash = strrchr(argv[0], '/');
    binaries = host_strdup(slash ? argv[0] : ".");
    if (slash) binaries[slash - argv[0]] = 0;
    return test_main(kCases, COUNT(kCases), argc, argv);
}
