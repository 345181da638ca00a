// The backend that --backend means on this machine.
#ifndef HALO_RUN_BACKEND_H
#define HALO_RUN_BACKEND_H

#include "../options.h"

// auto: the GPU if there is one, else the CPU. A user_error if a GPU was asked for and there is none.
C_API const Ops* backend_pick(BackendChoice choice);

#endif
