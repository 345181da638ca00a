// What a run leaves in --log: lines, TensorBoard's events, the picture; what it says at its end; and the energy that a driver tells.
#include "../data/tfevents.h"
#include "../halo/run/energy.h"
#include "program.h"

#include <math.h>

enum { kLogSteps = 12 };   // 3 an epoch of 22 records

static char* log_flags(const char* out, const char* log, const char* more) {
    return with_flags(text_of("train --from-scratch %s --data %s --chat none --seq 32 --batch 8 --steps %d --lr 1e-2 --backend cpu --out %s "
                              "--log %s --val %s --eval-every 4", model_dir, data_path, (int)kLogSteps, out, log, val_path), more);
}

// ---- events, read by what tfevents.h says of them

enum { kMostRead = 400 };
typedef struct {
    int step;
    char tag[48];
    float value;
} ReadValue;
typedef struct {
    ReadValue values[kMostRead];
    int count, starts, broken;
} ReadEvents;

static uint64_t little_endian(const unsigned char* p, int bytes) {
    uint64_t x = 0;
    for (int i = 0; i < bytes; i++) x |= (uint64_t)p[i] << 8 * i;
    return x;
}

static uint64_t varint(const unsigned char** p) {
    uint64_t x = 0;
    for (int shift = 0;; shift += 7) {
        unsigned char byte = *(*p)++;
        x |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80)) return x;
    }
}

// The values of one Summary.
static void read_summary(const unsigned char* p, const unsigned char* end, int step, ReadEvents* r) {
    while (p < end) {
        check(*p++ == 0x0a && r->count < kMostRead, "not a value of a summary");
        ReadValue* v = &r->values[r->count++];
        size_t bytes = varint(&p);
        const unsigned char* next = p + bytes;
        check(*p++ == 0x0a, "not a tag");
        size_t tag = varint(&p);
        snprintf(v->tag, sizeof v->tag, "%.*s", (int)tag, p);
        p += tag;
        uint32_t bits = (uint32_t)little_endian(p + 1, 4);
        check(*p == 0x15, "not a simple_value");
        memcpy(&v->value, &bits, 4);
        v->step = step;
        p = next;
    }
}

static void read_event(const unsigned char* p, size_t bytes, ReadEvents* r) {
    const unsigned char* end = p + bytes;
    int step = 0;
    while (p < end) {
        int key = *p++;
        if (key == 0x09) p += 8;
        else if (key == 0x10) step = (int)varint(&p);
        else {
            size_t inside = varint(&p);
            if (key == 0x2a) read_summary(p, p + inside, step, r);
            if (key == 0x3a) {   // a start: what was there from its step on is gone
                int kept = 0;
                for (int i = 0; i < r->count; i++)
                    if (r->values[i].step < step) r->values[kept++] = r->values[i];
                r->count = kept;
                r->starts++;
            }
            p += inside;
        }
    }
}

static void read_file_of_events(const char* path, ReadEvents* r) {
    size_t bytes;
    unsigned char* text = (unsigned char*)file_read(path, &bytes);
    for (size_t at = 0; at < bytes;) {
        size_t length = little_endian(text + at, 8);
        if (at + 16 + length > bytes || little_endian(text + at + 8, 4) != crc32c_masked(text + at, 8) ||
            little_endian(text + at + 12 + length, 4) != crc32c_masked(text + at + 12, length)) {
            r->broken++;
            break;
        }
        read_event(text + at + 12, length, r);
        at += 16 + length;
    }
    free(text);
}

static int by_name(const void* a, const void* b) { return strcmp(*(char* const*)a, *(char* const*)b); }

static ReadEvents* events_in(const char* dir) {
    ReadEvents* r = (ReadEvents*)host_alloc(sizeof *r);
    char** names;
    int count = dir_names(dir, &names);
    qsort(names, (size_t)count, sizeof *names, by_name);
    for (int i = 0; i < count; i++) {
        if (strncmp(names[i], "events.out.tfevents.", 20)) continue;
        char* path = path_join(dir, names[i]);
        read_file_of_events(path, r);
        free(path);
    }
    dir_names_free(names, count);
    return r;
}

// How many values of `tag` agree with `key` in the lines of DIR/log.jsonl, in their order; -1: one does not, or there are more or fewer.
static int agreeing(const ReadEvents* r, const char* tag, const char* dir, const char* key) {
    char* text = text_at(dir, "log.jsonl");
    int at = 0, agree = 0;
    for (char *line = text, *end; (end = strchr(line, '\n')) != NULL && agree >= 0; line = end + 1) {
        json_t* object = json_loadb(line, (size_t)(end - line), 0, NULL);
        const json_t* value = json_object_get(object, key);
        while (value && at < r->count && strcmp(r->values[at].tag, tag)) at++;
        if (value) {
            bool same = at < r->count && r->values[at].step == json_integer_value(json_object_get(object, "step")) &&
                        fabs(r->values[at].value - json_number_value(value)) <= 1e-6 * fabs(json_number_value(value));
            agree = same ? agree + 1 : -1;
            at++;
        }
        json_decref(object);
    }
    for (; at < r->count; at++)
        if (!strcmp(r->values[at].tag, tag)) agree = -1;
    free(text);
    return agree;
}

// The path of loss.svg's first line, which is the training loss.
static char* loss_line(const char* dir) {
    char *svg = text_at(dir, "loss.svg"), *at = strstr(svg, "<path class=\"line s0\""), *end = at ? strstr(at, "/>") : NULL;
    char* line = host_strdup(at && end ? text_of("%.*s", (int)(end - at), at) : "");
    free(svg);
    return line;
}

// ---- cases

static void folder_case(void) {
    make_inputs();
    char *out = scratch_path("tuned"), *log = scratch_path("log"), *flags = log_flags(out, log, "--level halo2 --dtype int8 --quant-stats 5");
    char *text = run_well(flags, "--log DIR"), *svg = text_at(log, "loss.svg");
    ok(strstr(svg, "<svg ") == svg && strstr(svg, "</svg>\n") && strstr(svg, ">validation ") && strstr(svg, ">cosine of dW") &&
       strstr(svg, "model on data.jsonl, halo2-int8"), "loss.svg has the losses, the health of quantization, and a title");
    ok(!exists_in(log, ".loss.svg.part"), "and nothing is left beside it");
    ReadEvents* r = events_in(log);
    ok(r->broken == 0 && r->starts == 0, "events: whole records");
    ok(agreeing(r, "train/loss", log, "loss") == kLogSteps && agreeing(r, "train/learning_rate", log, "lr") == kLogSteps &&
       agreeing(r, "train/gradient_norm", log, "grad_norm") == kLogSteps, "events and log.jsonl agree in all steps");
    ok(agreeing(r, "val/loss", log, "val_loss") == 4, "and in the evaluations, of which the first is before the first step");
    r->values[0].value += 1;
    ok(agreeing(r, "train/loss", log, "loss") == -1 || agreeing(r, "val/loss", log, "val_loss") == -1, "a planted other value is seen");
    ok(strstr(text, "before the first step, ") && strstr(text, "before the first step, ") < strstr(text, "step   1/12"), "the loss on --val comes first");
    ok(strstr(text, "12 steps in ") && strstr(text, ", 88 examples\n"), "the summary counts the examples of four epochs of 22");
    double best = INFINITY, first = NAN;
    int best_step = 0;
    char *lines = text_at(log, "log.jsonl"), want[96];
    for (const char* p = lines; (p = strstr(p, "\"val_loss\": ")) != NULL; p++) {
        const char* line = p;
        while (line > lines && line[-1] != '\n') line--;
        int step = atoi(line + strlen("{\"step\": "));
        double loss = atof(p + strlen("\"val_loss\": "));
        if (!step) first = loss;
        else if (loss < best) best = loss, best_step = step;
    }
    snprintf(want, sizeof want, "best validation loss %.4f at step %d (%.4f before the first)\n", best, best_step, first);
    ok(strstr(text, want) != NULL, "and has the %s", want);
    char* talk = text_of("generate --model %s --prompt \"...\"\n", out);
    ok(strstr(text, talk) && strstr(text, "vllm serve "), "and the commands that go on");
    char* command = text_of("generate --model %s --prompt 12+25= --max-tokens 4", out);
    free(run_well(command, "the command to talk to it"));
    free(command);
    free(talk);
    free(lines);
    free(r);
    free(svg);
    free(text);
    free(flags);
    free(log);
    free(out);
}

// Interrupted at step 5 (its later checkpoint and model are lost), and continued: the log is that of a run in one go.
static void resume_case(void) {
    make_inputs();
    char *whole = scratch_path("whole"), *part = scratch_path("part"), *more = text_of("--save-every 5 --keep 2");
    char *flags = log_flags(whole, whole, more), *copy = text_of("cp -r %s", whole);
    free(run_well(flags, "in one go"));
    free(flags);
    shell(copy, part);
    char *newest = text_of("%s/checkpoints/step-00000010", part), *weights = path_join(part, "model.safetensors");
    shell("rm -r", newest);
    shell("rm", weights);
    flags = log_flags(part, part, "--save-every 5 --keep 2 --resume");
    char* text = run_well(flags, "resumed");
    ok(strstr(text, "7 steps in ") && strstr(text, " since the resume, "), "the summary counts what was done since the resume");
    ok(!strstr(text, "before the first step"), "a resumed run does not evaluate before its first step");
    const char* eta = strstr(text, "step   6/12");
    ok(eta && strstr(eta, "  ETA ") && strstr(eta, " tok/s"), "its first step has tok/s and ETA");
    ok(same_logs(whole, part), "log.jsonl is that of a run in one go");
    ReadEvents* r = events_in(part);
    ok(r->starts == 1 && r->broken == 0 && agreeing(r, "train/loss", part, "loss") == kLogSteps && agreeing(r, "val/loss", part, "val_loss") == 4,
       "events: the resumed run takes back what is behind its checkpoint, and each step is there once");
    char *a = loss_line(whole), *b = loss_line(part);
    ok(*a && !strcmp(a, b), "loss.svg has the whole curve");
    free(a);
    free(b);
    free(r);
    free(text);
    free(flags);
    flags = log_flags(part, part, "--resume");   // without a checkpoint: a log of a crash before the first one is there
    shell("rm -r", part);
    empty_dir(part);
    put_text(part, "log.jsonl", "{\"step\": 0, \"val_loss\": 1}\n{\"step\": 1, \"loss\": 2}\n{\"st");
    free(run_well(flags, "--resume without a checkpoint"));
    ok(same_logs(whole, part), "a log without a checkpoint is begun anew");
    free(flags);
    free(weights);
    free(newest);
    free(copy);
    free(more);
    free(part);
    free(whole);
}

static void file_case(void) {
    make_inputs();
    char *out = scratch_path("file-out"), *file = scratch_path("lines.jsonl"), *flags = log_flags(out, file, "");
    free(run_well(flags, "--log FILE.jsonl"));
    char* text = file_read(file, NULL);
    ok(lines_in(text) == kLogSteps + 4 && !strncmp(text, "{\"step\": 0, \"val_loss\": ", 24), "--log FILE.jsonl: the lines alone: %d", lines_in(text));
    ok(!exists_in(out, "loss.svg") && !exists_in(scratch_dir, "loss.svg"), "and no picture");
    free(flags);
    char* again = text_of("rm -rf");
    shell(again, out);
    flags = log_flags(out, file, "");
    run_refused(flags, "--log|holds the lines of another run|--overwrite", "another run's lines");
    char *data = scratch_path("data.jsonl"), *kept = file_read(data_path, NULL);
    put_file(data, kept, strlen(kept));
    const char* const claims[] = {"", "--resume", "--overwrite"};
    for (int i = 0; i < COUNT(claims); i++) {
        char *claim = log_flags(out, data, claims[i]), *after;
        run_refused(claim, "data.jsonl is not a log", "a data file as --log");
        after = file_read(data, NULL);
        ok(!strcmp(kept, after), "and it is left as it is: %s", claims[i]);
        free(after);
        free(claim);
    }
    free(kept);
    free(data);
    free(again);
    free(text);
    free(flags);
    free(file);
    free(out);
}

static void failing_case(void) {
    make_inputs();
    char *out = scratch_path("failing-out"), *log = scratch_path("failing"), *flags = log_flags(out, log, "");
    char* in_the_way = path_join(log, ".loss.svg.part");
    empty_dir(in_the_way);
    Run r = run(flags);
    ok(r.code == 0 && lines_in(r.err) == 1 && strstr(r.err, "loss.svg cannot be written: "), "a picture that cannot be written is said once: exit %d, %s", r.code, r.err);
    ok(exists_in(out, "model.safetensors"), "and the run goes on");
    free_run(r);
    free(in_the_way);
    free(flags);
    free(log);
    free(out);
}

// ---- energy: a driver of our own making, found where the linker is told to look first

static const char kFakeCuda[] = "int cuCtxGetDevice(int* d) { *d = 5; return 0; }\n"
                                "int cuDeviceGetPCIBusId(char* t, int n, int d) { t[0] = '0' + d; t[1] = 0; return n < 2; }\n";
static const char kFakeNvml[] = "static unsigned long long mj = 7000000; static int up, other;\n"
                                "int nvmlInit_v2(void) { up = 1; return 0; }\n"
                                "int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** d) { *d = &other; return up && id[0] == '5' ? 0 : 2; }\n"
                                "int nvmlDeviceGetTotalEnergyConsumption(void* d, unsigned long long* e) { *e = mj += 1500; return d != &other; }\n";

static bool make_library(const char* dir, const char* name, const char* text) {
    char *source = text_of("%s/%s.c", dir, name), *command = text_of("cc -shared -fPIC -o %s/%s %s 2>/dev/null", dir, name, source);
    put_file(source, text, strlen(text));
    bool made = system(command) == 0;
    free(command);
    free(source);
    return made;
}

static char* own_path;   // of this binary

static void energy_case(void) {
    char *dir = scratch_path("driver"), *asked = text_of("LD_LIBRARY_PATH=%s '%s' --joules >%s/said", dir, own_path, dir);
    char* nowhere = text_of("LD_LIBRARY_PATH=%s/none '%s' --joules >%s/said", dir, own_path, dir);
    empty_dir(dir);
    if (!make_library(dir, "libcuda.so.1", kFakeCuda) || !make_library(dir, "libnvidia-ml.so.1", kFakeNvml)) {
        skip("energy: no C compiler");
    } else {
        check(system(asked) == 0, "%s failed", asked);
        char* said = text_at(dir, "said");
        ok(!strcmp(said, "7001.5 7003.0\n"), "a driver's millijoules, as joules: %s", said);
        free(said);
    }
    if (access("/dev/nvidia0", F_OK)) {
        check(system(nowhere) == 0, "%s failed", nowhere);
        char* said = text_at(dir, "said");
        ok(!strcmp(said, "-1.0 -1.0\n"), "without a driver nobody tells: %s", said);
        free(said);
    }
    free(nowhere);
    free(asked);
    free(dir);
}

static const Case kCases[] = {{"folder", folder_case}, {"resume", resume_case}, {"file", file_case}, {"failing", failing_case}, {"energy", energy_case}};

int main(int argc, char** argv) {
    if (argc == 2 && !strcmp(argv[1], "--joules")) {
        double first = gpu_joules();
        printf("%.1f %.1f\n", first, gpu_joules());
        return 0;
    }
    own_path = realpath("/proc/self/exe", NULL);
    return program_main("test_log", kCases, COUNT(kCases), argc, argv);
}
