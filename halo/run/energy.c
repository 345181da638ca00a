// Energy of GPUs; see energy.h.
#include "energy.h"

#include <dlfcn.h>

enum { kBusIdBytes = 32 };

// Calls of libcuda and libnvidia-ml, by their public names and signatures; 0 is success.
static struct {
    int (*device_of_context)(int* device);
    int (*bus_id)(char* text, int bytes, int device);
    int (*start)(void);
    int (*find)(const char* bus_id, void** device);
    int (*millijoules)(void* device, unsigned long long* energy);
} driver;

static bool find_call(void* library, const char* name, void* call) {
    void* found = library ? dlsym(library, name) : NULL;
    memcpy(call, &found, sizeof found);   // ISO C has no cast from data to functions
    return found != NULL;
}

static bool load_driver(void) {
    void *cuda = dlopen("libcuda.so.1", RTLD_NOW), *nvml = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    return find_call(cuda, "cuCtxGetDevice", &driver.device_of_context) && find_call(cuda, "cuDeviceGetPCIBusId", &driver.bus_id) &&
           find_call(nvml, "nvmlInit_v2", &driver.start) && find_call(nvml, "nvmlDeviceGetHandleByPciBusId_v2", &driver.find) &&
           find_call(nvml, "nvmlDeviceGetTotalEnergyConsumption", &driver.millijoules) && driver.start() == 0;
}

double gpu_joules(void) {
    static int state;   // 0: not asked yet; 1: the driver answers; -1: it doesn't
    static void* device;
    if (!state) {
        char bus_id[kBusIdBytes];
        int number;
        bool found = load_driver() && driver.device_of_context(&number) == 0 && driver.bus_id(bus_id, kBusIdBytes, number) == 0 &&
                     driver.find(bus_id, &device) == 0;
        state = found ? 1 : -1;
    }
    unsigned long long energy;
    return state > 0 && driver.millijoules(device, &energy) == 0 ? 1e-3 * (double)energy : -1;
}
