// The emulated GPU's streams and events (simt.h): every stream is a thread that does what it was given in order, behind the
// host and beside the other streams, as on a GPU. What the program forgets to order happens in the wrong order sooner or later.
//
//   SIMT_SLOW=n   stream n (in the order of their creation, from 0) sleeps before each piece of work: a missing wait for it shows
#ifndef TEST_SIMT_STREAMS_H
#define TEST_SIMT_STREAMS_H

#include "../halo/base.h"

#include <time.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

struct SimtGraph {
    std::vector<std::function<void()>> work;
};
typedef SimtGraph *cudaGraph_t, *cudaGraphExec_t;
typedef enum { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal } cudaStreamCaptureMode;

struct SimtStream {
    SimtGraph* captured;                      // NULL: work is done; else collected here
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;   // the one that runs is still in it
    pid_t process;                            // a forked child has no threads: it works at once
    bool slow;
};
struct SimtEvent {
    std::mutex mutex;
    std::condition_variable changed;
    unsigned long recorded, reached;
    double seconds;                           // when it was reached last
};
typedef SimtStream* cudaStream_t;
typedef SimtEvent* cudaEvent_t;

enum { kSimtSlowUs = 300, kSimtMaxStreams = 16 };
// One list for all files of a program: hence not static.
inline SimtStream** simt_streams(int* count, SimtStream* added) {
    static SimtStream* all[kSimtMaxStreams];
    static int used;
    if (added) {
        check(used < kSimtMaxStreams, "more than %d streams", kSimtMaxStreams);
        all[used++] = added;
    }
    *count = used;
    return all;
}

static inline void simt_stream_thread(SimtStream* s) {
    std::unique_lock<std::mutex> lock(s->mutex);
    for (;;) {
        s->changed.wait(lock, [s] { return !s->work.empty(); });
        std::function<void()>& next = s->work.front();   // a deque leaves it where it is when more is added
        lock.unlock();
        if (s->slow) usleep(kSimtSlowUs);
        next();
        lock.lock();
        s->work.pop_front();
        s->changed.notify_all();
    }
}

static inline void simt_enqueue(SimtStream* s, std::function<void()> work) {
    if (s && s->captured) {
        s->captured->work.push_back(std::move(work));
        return;
    }
    if (!s || s->process != getpid()) {
        work();
        return;
    }
    std::lock_guard<std::mutex> lock(s->mutex);
    s->work.push_back(std::move(work));
    s->changed.notify_all();
}

static inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
    int count;
    simt_streams(&count, NULL);
    const char* slow = getenv("SIMT_SLOW");
    SimtStream* s = new SimtStream();
    s->process = getpid();
    s->slow = slow && atoi(slow) == count;
    simt_streams(&count, s);
    std::thread(simt_stream_thread, s).detach();
    *stream = s;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) { return cudaStreamCreateWithPriority(s, flags, 0); }
static inline cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    check(!s || !s->captured, "waiting for a stream that is captured");
    if (!s || s->process != getpid()) return cudaSuccess;
    std::unique_lock<std::mutex> lock(s->mutex);
    s->changed.wait(lock, [s] { return s->work.empty(); });
    return cudaSuccess;
}

// ---- graphs: the work that was given to a stream meanwhile, to be done later, any number of times
static inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
    check(!s->captured, "a stream is captured twice");
    s->captured = new SimtGraph();
    return cudaSuccess;
}
static inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) {
    *graph = s->captured;
    s->captured = NULL;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
    *exec = new SimtGraph(*graph);
    return cudaSuccess;
}
static inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}
static inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) { return cudaGraphDestroy(graph); }
static inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t s) {
    simt_enqueue(s, [graph] {
        for (std::function<void()>& work : graph->work) work();
    });
    return cudaSuccess;
}

static inline cudaError_t cudaDeviceSynchronize() {
    int count;
    SimtStream** all = simt_streams(&count, NULL);
    for (int i = 0; i < count; i++) cudaStreamSynchronize(all[i]);
    return cudaSuccess;
}

static inline void simt_reach(SimtEvent* e, unsigned long number) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    std::lock_guard<std::mutex> lock(e->mutex);
    e->seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    if (number > e->reached) e->reached = number;
    e->changed.notify_all();
}
static inline unsigned long simt_recorded(SimtEvent* e) {
    std::lock_guard<std::mutex> lock(e->mutex);
    return e->recorded;
}
static inline void simt_await(SimtEvent* e, unsigned long number) {
    std::unique_lock<std::mutex> lock(e->mutex);
    e->changed.wait(lock, [e, number] { return e->reached >= number; });
}

static inline cudaError_t cudaEventCreate(cudaEvent_t* e) {
    *e = new SimtEvent();
    return cudaSuccess;
}
static inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
static inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    unsigned long number;
    check(!s || !s->captured, "an event in a stream that is captured");
    {
        std::lock_guard<std::mutex> lock(e->mutex);
        number = ++e->recorded;
    }
    simt_enqueue(s, [e, number] { simt_reach(e, number); });
    return cudaSuccess;
}
static inline cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned = 0) {
    unsigned long number = simt_recorded(e);
    simt_enqueue(s, [e, number] { simt_await(e, number); });
    return cudaSuccess;
}
static inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    simt_await(e, simt_recorded(e));
    return cudaSuccess;
}
static inline cudaError_t cudaEventQuery(cudaEvent_t e) {
    std::lock_guard<std::mutex> lock(e->mutex);
    return e->reached >= e->recorded ? cudaSuccess : cudaErrorNotReady;
}
static inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t from, cudaEvent_t to) {
    *ms = (float)(1e3 * (to->seconds - from->seconds));
    return cudaSuccess;
}
// What waits for it is done: programs that destroy an event have synchronized with it.
static inline cudaError_t cudaEventDestroy(cudaEvent_t e) {
    cudaEventSynchronize(e);
    delete e;
    return cudaSuccess;
}

#endif
