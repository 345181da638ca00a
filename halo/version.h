// The program's version, as --version prints it and packages are named (the Makefile reads it here).
#ifndef HALO_VERSION_H
#define HALO_VERSION_H

#define HALO_VERSION "0.9.0"

#endif
