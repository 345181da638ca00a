// The command doctor: does this machine have what training needs? A line for each check, and where something is missing what to do about it. A
// warning is what costs speed or comfort; a problem is what keeps some run from working.
#ifndef HALO_RUN_DOCTOR_H
#define HALO_RUN_DOCTOR_H

#include "session.h"

C_API int command_doctor(Options o);   // 0, or 1 if there is a problem

// ---- what its parts (doctor.c: the host; doctor_gpu.c) report to
typedef enum { DOCTOR_OK, DOCTOR_WARNING, DOCTOR_PROBLEM } DoctorResult;
typedef struct {
    bool json, quiet;        // quiet: another rank speaks
    int count[3];            // by result
} Doctor;
// One check: a line of the table and what to do below it, to 80 columns, or a line of JSON. remedy: what to do; not told if the result is ok.
C_API void doctor_report(Doctor* d, const char* check, DoctorResult result, const char* detail, const char* remedy);
// detail is printf's of what follows.
C_API void doctor_note(Doctor* d, const char* check, DoctorResult result, const char* remedy, const char* detail, ...)
    __attribute__((format(printf, 5, 6)));

// Driver, GPUs, what connects them, and their libraries.
C_API void doctor_gpus(Doctor* d);
// Runs a product of each format on a backend, quantized there, and holds it against the CPU's FP32 layers; then says what each recipe runs on.
C_API void doctor_kernels(Doctor* d, const Ops* ops);

#endif
