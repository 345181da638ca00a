// The command doctor, and what it says of the host; see doctor.h.
#include "doctor.h"

#include <jansson.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>

#include "../../data/files.h"
#include "../attempt.h"
#include "../progress.h"
#include "backend.h"

// ---- the table: check, result, detail; what to do below

static const char* const kResults[] = {"ok", "warning", "problem"};
enum { kColumns = 80, kDetailAt = 26 };

// Words of text in the columns from kDetailAt on; the first line goes on where one was begun.
static void print_wrapped(const char* text) {
    int column = kDetailAt;
    for (const char* word = text; *word;) {
        int n = (int)strcspn(word, " ");
        if (column > kDetailAt && column + 1 + n > kColumns) {
            printf("\n%*s", (int)kDetailAt, "");
            column = kDetailAt;
        }
        column += printf("%s%.*s", column > kDetailAt ? " " : "", n, word);
        word += n;
        word += strspn(word, " ");
    }
    putchar('\n');
}

void doctor_report(Doctor* d, const char* check, DoctorResult result, const char* detail, const char* remedy) {
    d->count[result]++;
    if (d->quiet) return;
    if (result == DOCTOR_OK) remedy = "";
    if (d->json) {
        json_t* line = json_pack("{s:s, s:s, s:s, s:s}", "check", check, "result", kResults[result], "detail", detail, "remedy", remedy);
        json_dumpf(line, stdout, JSON_COMPACT);
        putchar('\n');
        json_decref(line);
        return;
    }
    printf("%-16s %-8s ", check, kResults[result]);
    print_wrapped(detail);
    if (!*remedy) return;
    printf("%*s", (int)kDetailAt, "");
    char* advice = (char*)host_alloc(strlen(remedy) + 8);
    sprintf(advice, "-> %s", remedy);
    print_wrapped(advice);
    free(advice);
}

void doctor_note(Doctor* d, const char* check, DoctorResult result, const char* remedy, const char* detail, ...) {
    char text[1024];
    va_list args;
    va_start(args, detail);
    vsnprintf(text, sizeof text, detail, args);
    va_end(args);
    doctor_report(d, check, result, text, remedy);
}

// ---- ranks, cores and threads

static int cores_of_this_rank(void) {
    cpu_set_t cores;
    return sched_getaffinity(0, sizeof cores, &cores) ? 1 : CPU_COUNT(&cores);
}

static void check_mpi(Doctor* d, const Comm* comm) {
    CommLibraries libraries = comm_libraries();
    if (!*libraries.mpi) {
        doctor_report(d, "MPI", DOCTOR_WARNING, "built without it: runs have one rank", "install OpenMPI (scripts/setup.sh) and run make again");
        return;
    }
    bool launcher = system("command -v mpirun >/dev/null 2>&1") == 0;
    doctor_note(d, "MPI", launcher ? DOCTOR_OK : DOCTOR_WARNING, "install it, or put it into PATH, for more than one rank",
                "%s, %s%d rank%s here over %s", libraries.mpi, launcher ? "" : "no mpirun in PATH, ", comm->ranks,
                comm->ranks > 1 ? "s" : "", comm->name);
}

// Threads on the cores that a rank may use: mpirun binds a rank to one core unless it is told otherwise.
static void check_cores(Doctor* d, const Comm* comm) {
    const char *named = getenv("OMP_NUM_THREADS"), *policy = getenv("OMP_WAIT_POLICY");
    int host = (int)sysconf(_SC_NPROCESSORS_ONLN), own = cores_of_this_rank(), threads = named && atoi(named) > 0 ? atoi(named) : own;
    double fewest = own;
    double* all = (double*)host_alloc(sizeof(double) * (size_t)comm->ranks);
    all[comm->rank] = own;
    comm->host_sum(all, comm->ranks);
    for (int r = 0; r < comm->ranks; r++)
        if (all[r] < fewest) fewest = all[r];
    free(all);
    bool bound = comm->ranks > 1 && fewest < host / comm->ranks, crowded = threads > fewest || (!named && comm->ranks > 1);
    doctor_note(d, "cores", bound ? DOCTOR_WARNING : DOCTOR_OK, "mpirun --bind-to none: loading and the CPU backend use all cores then",
                "%d, of which a rank may use %.0f%s", host, fewest, bound ? ": ranks are bound" : "");
    doctor_note(d, "threads", crowded ? DOCTOR_WARNING : DOCTOR_OK, "OMP_NUM_THREADS = cores of a host / its ranks",
                "OMP_NUM_THREADS %s, OMP_WAIT_POLICY %s", named ? named : "unset", policy ? policy : "unset");
}

// ---- limits and space

// `least`: below that a warning; 0: none. unit: of what is shown.
static void check_limit(Doctor* d, const char* name, rlim_t limit, double least, double unit, const char* shown, const char* remedy) {
    bool unlimited = limit == RLIM_INFINITY, low = !unlimited && (double)limit < least;
    char text[64] = "unlimited";
    if (!unlimited) snprintf(text, sizeof text, "%.0f%s", (double)limit / unit, shown);
    doctor_report(d, name, low ? DOCTOR_WARNING : DOCTOR_OK, text, remedy);
}

static void check_limits(Doctor* d, bool ranks) {
    struct rlimit files, locked;
    if (getrlimit(RLIMIT_NOFILE, &files) || getrlimit(RLIMIT_MEMLOCK, &locked)) return;
    check_limit(d, "ulimit -n", files.rlim_cur, 1024, 1, " open files", "ulimit -n 4096: shards of a model and ranks' connections are files");
    check_limit(d, "ulimit -l", locked.rlim_cur, ranks ? 1 << 26 : 0, 1024, " KiB of locked memory",
                "ulimit -l unlimited (docker run --ulimit memlock=-1): InfiniBand wants it");
}

static void check_space(Doctor* d, const Options* o) {
    enum { kLeastDiskGb = 1 };
    const char* out = o->out ? o->out : ".";
    double gb = disk_free_bytes(out) * 1e-9;
    bool full = gb < kLeastDiskGb;
    doctor_note(d, "disk", full ? DOCTOR_PROBLEM : DOCTOR_OK, "free some space, or another --out; plan says what a run writes", "%.1f GB free for %s%s",
                gb, out, o->out ? "" : " (--out DIR: another place)");
    struct statvfs shared;
    if (statvfs("/dev/shm", &shared)) {
        doctor_report(d, "/dev/shm", DOCTOR_WARNING, "is not there: ranks of a host talk more slowly, or not at all",
                      "a container: --ipc=host or --shm-size=1g");
        return;
    }
    double mb = (double)shared.f_bavail * (double)shared.f_frsize * 1e-6;
    bool small = mb < 256;
    doctor_note(d, "/dev/shm", small ? DOCTOR_WARNING : DOCTOR_OK,
                "NCCL takes some of it for each rank: docker run --ipc=host or --shm-size=1g", "%.0f MB free", mb);
}

static void check_host_memory(Doctor* d) {
    size_t all = cpu_f32_ops.total_bytes(), left = cpu_f32_ops.free_bytes();
    bool low = left < (size_t)1 << 30;
    doctor_note(d, "memory", low ? DOCTOR_WARNING : DOCTOR_OK, "end other programs: data and checkpoints pass through it",
                "%.1f GiB, %.1f of them free", gib(all), gib(left));
}

// ---- the command

typedef struct {
    Doctor* doctor;
    const Options* o;
    const Comm* ranks;   // on the host
    const Comm* comm;    // on the backend
} Examination;

// Whatever the start of a backend, or of its ranks, says is a problem.
static void start_backend(void* self) {
    Examination* e = (Examination*)self;
    const Ops* ops = backend_pick(e->o->backend);
    e->comm = comm_on(e->ranks, ops);
    size_t left = ops->free_bytes(), all = ops->total_bytes();
    if (strcmp(ops->name, "cuda")) return;
    bool shared = (double)left < 0.9 * (double)all;
    doctor_note(e->doctor, "GPU memory", shared ? DOCTOR_WARNING : DOCTOR_OK, "nvidia-smi shows what else runs there",
                "%.1f of %.1f GiB are free", gib(left), gib(all));
}

static void examine(Examination* e) {
    Doctor* d = e->doctor;
    char message[kAttemptBytes];
    doctor_gpus(d);
    if (attempt(start_backend, e, message)) {
        const Ops* ops = backend_pick(e->o->backend);
        doctor_note(d, "backend", DOCTOR_OK, "", "%s, in %s", ops->name, ops->act == BF16 ? "BF16" : "FP32");
        doctor_kernels(d, ops);
    } else {
        doctor_report(d, "backend", DOCTOR_PROBLEM, message, "");
        e->comm = e->ranks;
    }
    check_mpi(d, e->comm);
    check_cores(d, e->ranks);
    check_host_memory(d);
    check_space(d, e->o);
    check_limits(d, e->comm->ranks > 1);
}

int command_doctor(Options o) {
    const Comm* ranks = comm_start();
    Doctor d = {o.json, ranks->rank != 0, {0, 0, 0}};
    Examination e = {&d, &o, ranks, ranks};
    progress_watch(ranks->rank, ranks->ranks, ranks->ranks > 1 ? o.timeout : 0, ranks->abort_job);
    examine(&e);
    double problems = d.count[DOCTOR_PROBLEM];
    ranks->host_sum(&problems, 1);
    if (!d.quiet && !d.json) printf("%d ok, %d warning%s, %d problem%s\n", d.count[DOCTOR_OK], d.count[DOCTOR_WARNING],
                                    d.count[DOCTOR_WARNING] == 1 ? "" : "s", d.count[DOCTOR_PROBLEM], d.count[DOCTOR_PROBLEM] == 1 ? "" : "s");
    if (!d.quiet && !d.count[DOCTOR_PROBLEM] && problems > 0)
        doctor_report(&d, "other ranks", DOCTOR_PROBLEM, "another rank found one", "doctor without mpirun there says which");
    progress_stop_watching();
    e.comm->finish();
    return problems > 0;
}
