// TensorBoard's event files: bytes that TensorBoard's own writer gives, and what its reader makes of ours.
#include "../data/files.h"
#include "../data/tfevents.h"
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>

static void crc_case(void) {
    const char zeros[32] = {0};
    ok(crc32c("123456789", 9) == 0xe3069283u, "the check value of CRC-32C: %08x", crc32c("123456789", 9));
    ok(crc32c(zeros, 32) == 0x8a9136aau, "32 zeros, as RFC 3720 has them: %08x", crc32c(zeros, 32));
    ok(crc32c("123456788", 9) != 0xe3069283u && crc32c("", 0) == 0, "another byte, another sum");
}

// tensorboard.summary.writer.record_writer, version 2.21, of the same three events.
static const char kWanted[] =
    "1800000000000000a37f4b220900000000004a93401a0d627261696e2e4576656e743a3265b8d3fb0f000000000000006d53"
    "2b090900000000004a934010293a02080166b086272b00000000000000861bc34b0900000000004d934010ac022a1d0a110a"
    "0a747261696e2f6c6f737315000020400a080a016115acc527b75fbbb633";

static void bytes_case(void) {
    char* dir = scratch_path("bytes");
    empty_dir(dir);
    EventFile file;
    const EventValue values[] = {{"train/loss", 2.5}, {"a", -1e-5}};
    bool written = events_open(&file, dir, 1234.5, 41) && events_write(&file, 1235.25, 300, values, 2);
    size_t bytes;
    unsigned char* text = (unsigned char*)file_read(file.path, &bytes);
    char* hex = (char*)host_alloc(2 * bytes + 1);
    for (size_t i = 0; i < bytes; i++) sprintf(hex + 2 * i, "%02x", text[i]);
    ok(written && !strcmp(hex, kWanted), "three events have the bytes that TensorBoard's writer gives: %zu", bytes);
    ok(strstr(file.path, "/events.out.tfevents.0000001234.train_llama3") != NULL, "the file's name: %s", file.path);
    EventFile second;
    ok(events_open(&second, dir, 1234.9, 0) && strcmp(second.path, file.path) > 0, "of two in one second the later has the later name");
    events_close(&second);
    events_close(&file);
    char* other = path_join(dir, "events.out.tfevents.0000000001.elsewhere");
    put_file(other, "x", 1);
    char** names;
    ok(events_remove(dir) && dir_names(dir, &names) == 1 && path_exists(other), "events_remove takes ours and leaves others");
    dir_names_free(names, 1);
    free(other);
    free(hex);
    free(text);
    empty_dir(dir);
    free(dir);
}

static void failing_case(void) {
    EventFile file;
    bool opened = events_open(&file, "/nonexistent/folder", 1, 0);
    int fault = errno;
    ok(!opened && fault == ENOENT && file.fd < 0, "a folder that is not there: errno %d", fault);
    events_close(&file);
    EventFile full = {open("/dev/full", O_WRONLY), NULL};
    const EventValue value = {"a", 1};
    bool written = events_write(&full, 1, 1, &value, 1);
    fault = errno;
    ok(!written && fault == ENOSPC, "a full disk: errno %d", fault);
    events_close(&full);
}

// A run of ten steps, resumed behind the sixth with other values: TensorBoard's reader has each step once, with the newer value.
static void tensorboard_case(void) {
    char *dir = scratch_path("run"), line[1200];
    empty_dir(dir);
    EventFile file;
    for (int part = 0; part < 2; part++) {
        bool whole = events_open(&file, dir, 1000 + 5 * part, part ? 7 : 0);
        for (int step = part ? 7 : 1; step <= (part ? 12 : 10); step++) {
            const EventValue values[] = {{"train/loss", step + 0.5 * part}, {"train/lr", 1e-5 * step}};
            whole = events_write(&file, 1000 + 5 * part + 0.1 * step, step, values, 1 + (step % 2)) && whole;
        }
        check(whole, "events were not written");
        events_close(&file);
    }
    snprintf(line, sizeof line, "python3 dev/tensorboard_check.py '%s' 2>/dev/null >'%s.txt'", dir, dir);
    int code = WEXITSTATUS(system(line));
    if (code != 0) {
        skip("tensorboard: %s", code == 3 ? "the package is not there" : "no python3, or not in the repository's root");
    } else {
        snprintf(line, sizeof line, "%s.txt", dir);
        char *text = file_read(line, NULL), *want = (char*)host_alloc(4096), *end = want;
        for (int step = 1; step <= 12; step++) end += sprintf(end, "train/loss %d %.7g\n", step, step + (step > 6 ? 0.5 : 0));
        for (int step = 1; step <= 12; step += 2) end += sprintf(end, "train/lr %d %.7g\n", step, (double)(float)(1e-5 * step));
        if (!ok(!strcmp(text, want), "TensorBoard reads each step once, behind the resume the newer value")) printf("%s", text);
        free(text);
        free(want);
    }
    empty_dir(dir);
    free(dir);
}

static const Case kCases[] = {{"crc", crc_case}, {"bytes", bytes_case}, {"failing", failing_case}, {"tensorboard", tensorboard_case}};

int main(int argc, char** argv) { return scratch_main("test_tfevents", kCases, COUNT(kCases), argc, argv); }
