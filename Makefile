# make                the program, for the GPUs if nvcc is found, else for the CPU
# make test           every unit's tests; N passed, N failed, N skipped
# make demo           fine-tunes the embedded small Llama in BF16 and in INT8 and compares them
# make bench          dev/ timings
# make kernels        compiles every .cu file for all supported architectures
# make valgrind       the loaders' tests under valgrind
# make fuzz SECONDS=60  every reader of files under libFuzzer, so long each; JOBS at a time (default: one a core), TARGETS="..." only these
# make sanitize       the GPU kernels under compute-sanitizer
# make man            the manual page, build/train_llama3.1, from the table of flags
# make install PREFIX=/usr/local DESTDIR=  program, demo, manual page and docs
# make deb            a Debian package in build/; make dist: a tarball with the list of run-time libraries (both: say MARCH=x86-64-v3)
# make help           this text and what was found
#
# V=1                 show whole commands
# SAN=1               address and undefined-behaviour sanitizers, in a build folder of its own
# NVCC= MPICC= ...    override what was found; an empty value builds without it
# MARCH=x86-64-v3     the CPU to build for (default: this one)
# STATIC=1            jansson, PCRE2, xxHash and zlib linked into the binaries, to take them to a machine without
# ARCH=sm_90a         the GPU architecture to build for (default: that of this machine's first GPU, else sm_90a)

CC      ?= gcc
NVCC    ?= $(firstword $(wildcard $(shell command -v nvcc 2>/dev/null) /usr/local/cuda/bin/nvcc))
MPICC   ?= $(shell command -v mpicc 2>/dev/null)
ifndef ARCH
# From Hopper on with what only this architecture has (the a).
ARCH    := $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
             awk -F. 'NR == 1 && $$1 + 0 >= 8 { print "sm_" $$1 $$2 ($$1 >= 9 ? "a" : "") }'),sm_90a)
endif
MARCH   ?= native
ARCHS    = sm_80 sm_89 sm_90a sm_100a sm_120a

comma    = ,
Q        = $(if $(V),,@)
BUILD    = build/$(if $(SAN),san,release)$(if $(filter native,$(MARCH)),,-$(MARCH))
WARN     = -Wall -Wextra -Werror
CFLAGS   = -std=c11 -g -O3 -march=$(MARCH) -fopenmp $(WARN) -D_GNU_SOURCE
LDLIBS   = $(if $(STATIC),-Wl$(comma)-Bstatic) -ljansson -lpcre2-8 -lxxhash -lz $(if $(STATIC),-Wl$(comma)-Bdynamic) -lm -lpthread
ifdef SAN
CFLAGS  += -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
endif
# Sums have one order on every machine: no contraction beyond what the source says.
CFLAGS  += -ffp-contract=off

# ---- what this machine has
HALO_CUDA := $(if $(NVCC),yes)
HALO_MPI  := $(if $(MPICC),yes)
ifdef HALO_MPI
MPI_CFLAGS := $(shell $(MPICC) --showme:compile 2>/dev/null)
LDLIBS     += $(shell $(MPICC) --showme:link 2>/dev/null)
DEFINES    += -DHALO_MPI
endif
ifdef HALO_CUDA
CUDA_HOME  := $(patsubst %/bin/,%,$(dir $(NVCC)))
HALO_NCCL  := $(and $(HALO_MPI),$(wildcard $(CUDA_HOME)/include/nccl.h /usr/include/nccl.h),yes)
DEFINES    += -DHALO_CUDA $(if $(HALO_NCCL),-DHALO_NCCL)
LDLIBS     += -L$(CUDA_HOME)/lib64 -lcublasLt -lcudart_static -lrt -ldl $(if $(HALO_NCCL),-lnccl) -lstdc++
endif
FOUND = nvcc: $(or $(NVCC),none) | MPI: $(or $(MPICC),none) | NCCL: $(or $(HALO_NCCL),none)$(if $(HALO_CUDA), | GPU code: $(ARCH))

# What objects and binaries are made with: they are made anew when that changes, say when nvcc was installed since.
COMPILED_WITH = $(CC) $(CFLAGS) $(DEFINES) $(MPI_CFLAGS) $(NVCC) $(ARCH) $(CXX)
CONFIG   = $(BUILD)/compiled_with
LINKED   = $(BUILD)/linked_with
write_if_new = @mkdir -p $(@D); echo '$(1)' | cmp -s - $@ || echo '$(1)' >$@

# ---- sources
SOURCES  = $(wildcard halo/*.c halo/cpu/*.c halo/run/*.c data/*.c data/jinja/*.c data/tokenizer/*.c) halo/comm/comm.c halo/comm/solo.c $(if $(HALO_MPI),halo/comm/mpi.c)
OBJECTS  = $(SOURCES:%.c=$(BUILD)/%.o) $(BUILD)/halo/cpu/ops_bf16.o
CUDA_SOURCES = halo/cuda/ops.cu $(if $(HALO_NCCL),halo/comm/nccl.cu)
ifdef HALO_CUDA
OBJECTS += $(CUDA_SOURCES:%.cu=$(BUILD)/%.o)
endif
LIB      = $(BUILD)/libhalo.a
TESTS    = $(patsubst test/%.c,$(BUILD)/test/%,$(wildcard test/test_*.c))
# The GPU kernels on a CPU: the backend built by the C++ compiler (test/simt.h), under the tests that take any backend.
SIMT     = $(patsubst %,$(BUILD)/test/simt_%,ops gemm quantize linear model generate adapter plan doctor $(if $(HALO_MPI),comm))
# The program on emulated GPUs, for several ranks with the emulation of NCCL (test/simt_nccl.h).
SIMT_PROGRAM = $(BUILD)/test/simt_train_llama3
# Kernels for other architectures than the machine's: Hopper's in the emulation, older ones on a newer GPU.
OTHER_KERNELS = $(patsubst %,HALO_CAPABILITY=90$(comma)$(BUILD)/test/simt_%,ops gemm) \
                $(if $(HALO_CUDA),$(if $(wildcard /dev/nvidia0),$(patsubst %,HALO_CAPABILITY=80$(comma)$(BUILD)/test/test_%,ops gemm linear)))
BENCHES  = $(patsubst dev/%.c,$(BUILD)/dev/%,$(wildcard dev/bench_*.c))
ifdef HALO_CUDA
CUDA_BENCHES = $(filter-out $(if $(HALO_NCCL),,dev/bench_comm.cu),$(wildcard dev/bench_*.cu))
BENCHES += $(CUDA_BENCHES:%.cu=$(BUILD)/%)
endif
DEMO     = $(patsubst data/demo/%.c,$(BUILD)/data/demo/%,$(wildcard data/demo/*.c))

.PHONY: all test demo bench kernels help found clean train_llama3 always
.SECONDARY:
all:
	@CC="$(CC)" scripts/setup.sh --check
	@$(MAKE) --no-print-directory found train_llama3

$(CONFIG): always
	$(call write_if_new,$(COMPILED_WITH))
$(LINKED): always
	$(call write_if_new,$(LDLIBS))

found:
	@echo "$(FOUND)"

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile
	@echo "$(FOUND)"

train_llama3: $(BUILD)/train_llama3
	@ln -sf $< $@

$(BUILD)/train_llama3: $(BUILD)/train_llama3.o $(LIB)
	$(Q)$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

$(LIB): $(OBJECTS) $(LINKED)
	@rm -f $@
	$(Q)ar rcs $@ $(OBJECTS)

# The program is C: on a machine without a GPU the C compiler takes the same file.
PROGRAM_CC = $(if $(HALO_CUDA),$(NVCC) -std=c++17 -g -O3 -arch=$(ARCH),$(CC) $(CFLAGS) -x c)
$(BUILD)/train_llama3.o: train_llama3.cu $(CONFIG)
	@mkdir -p $(@D)
	@echo '  $<'
	$(Q)$(PROGRAM_CC) $(DEFINES) -MMD -MP -c $< -o $@

$(BUILD)/%.o: %.c $(CONFIG)
	@mkdir -p $(@D)
	@echo '  $<'
	$(Q)$(CC) $(CFLAGS) $(DEFINES) $(if $(findstring comm/,$<),$(MPI_CFLAGS)) -MMD -MP -c $< -o $@

$(BUILD)/halo/cpu/ops_bf16.o: halo/cpu/ops.c $(CONFIG)
	@mkdir -p $(@D)
	@echo '  $<'
	$(Q)$(CC) $(CFLAGS) $(DEFINES) -DHALO_CPU_BF16 -MMD -MP -c $< -o $@

$(BUILD)/%.o: %.cu $(CONFIG)
	@mkdir -p $(@D)
	@echo '  $<'
	$(Q)$(NVCC) -std=c++17 -O3 -lineinfo -gencode arch=compute_$(ARCH:sm_%=%),code=$(ARCH) $(DEFINES) \
	  $(if $(findstring comm,$<),$(MPI_CFLAGS)) -MMD -MP -c $< -o $@

# Preloaded into the program by test_faults. Sanitizers want to be the first library: without them.
$(BUILD)/test/faults_shim.so: test/faults_shim.c $(CONFIG)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=c11 -O1 $(WARN) -shared -fPIC $< -ldl -o $@
$(BUILD)/test/test_faults: $(BUILD)/test/faults_shim.so
$(BUILD)/test/%: $(BUILD)/test/%.o $(LIB)
	$(Q)$(CC) $(CFLAGS) $(filter-out %.so,$^) $(LDLIBS) -o $@
$(BUILD)/dev/%: $(BUILD)/dev/%.o $(LIB)
	$(Q)$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/data/demo/%: $(BUILD)/data/demo/%.o $(LIB)
	$(Q)$(CC) $(CFLAGS) $^ $(LDLIBS) -o $@

# Emulated GPUs: kernels by the C++ compiler behind the emulators, and the C files that ask whether there are GPUs. What the kernels
# load as one type and store as another is defined for nvcc: hence -fno-strict-aliasing.
SIMT_DEFINES = -DHALO_CUDA -DHALO_SIMT $(if $(HALO_MPI),-DHALO_MPI -DHALO_NCCL)
SIMT_CXX     = $(CXX) $(filter-out -std=c11,$(CFLAGS)) -std=c++17 -fno-strict-aliasing -Wno-unknown-pragmas -include test/simt.h
SIMT_OBJECTS = $(patsubst %,$(BUILD)/simt/%.o,halo/cuda/ops halo/comm/comm halo/run/backend $(if $(HALO_MPI),halo/comm/nccl))
$(BUILD)/simt/%.o: %.cu $(CONFIG)
	@mkdir -p $(@D)
	@echo '  $< (on the CPU)'
	$(Q)$(SIMT_CXX) $(if $(findstring comm/,$<),-include test/simt_nccl.h $(MPI_CFLAGS)) $(SIMT_DEFINES) -MMD -MP -x c++ -c $< -o $@
$(BUILD)/simt/%.o: %.c $(CONFIG)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SIMT_DEFINES) -MMD -MP -c $< -o $@
$(BUILD)/simt/train_llama3.o: train_llama3.cu $(CONFIG)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $(SIMT_DEFINES) -MMD -MP -x c -c $< -o $@
$(BUILD)/test/simt_%: $(BUILD)/simt/test/test_%.o $(SIMT_OBJECTS) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $^ $(LDLIBS) -lstdc++ -o $@
$(SIMT_PROGRAM): $(BUILD)/simt/train_llama3.o $(SIMT_OBJECTS) $(LIB)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS) $^ $(LDLIBS) -lstdc++ -o $@

# ---- what one runs
test: setup
	@$(MAKE) --no-print-directory -j$(shell nproc) run-tests
run-tests: found $(BUILD)/train_llama3 $(BUILD)/test/jinja_driver $(BUILD)/dev/gradient_cosine $(BUILD)/dev/chart $(TESTS) $(SIMT) $(SIMT_PROGRAM) $(DEMO)
	@BUILD=$(BUILD) test/run.sh $(TESTS) $(SIMT) $(OTHER_KERNELS)

demo: setup
	@$(MAKE) --no-print-directory -j$(shell nproc) train_llama3
	@data/demo/demo.sh

bench: setup
	@$(MAKE) --no-print-directory run-benches
GPU_COUNT = $(shell nvidia-smi -L 2>/dev/null | grep -c '^GPU')
AS_ROOT   = $(if $(filter 0,$(shell id -u)),--allow-run-as-root)
run-benches: $(BUILD)/train_llama3 $(BENCHES)
	@for b in $(BENCHES); do echo "== $${b##*/}"; \
	  if [ $${b##*/} = bench_comm ]; then $(if $(filter-out 0 1,$(GPU_COUNT)),mpirun $(AS_ROOT) --bind-to none -np $(GPU_COUNT)) $$b; else $$b; fi || exit 1; done

# valgrind knows no AVX-512. Children that end in an error message leave their memory behind: leaks are no errors there.
LOADER_TESTS = $(addprefix $(BUILD)/test/test_,safetensors hf_model checkpoint tokenizer chat dataset gguf metric)
valgrind:
	@scripts/setup.sh valgrind
	@$(MAKE) --no-print-directory MARCH=x86-64-v3 run-valgrind
run-valgrind: $(LOADER_TESTS)
	@for t in $(LOADER_TESTS); do echo "== $${t##*/}"; OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive valgrind -q --error-exitcode=9 \
	  --leak-check=full --errors-for-leak-kinds=none --show-leak-kinds=none $$t >$$t.valgrind 2>&1 || { tail -n 30 $$t.valgrind; exit 1; }; \
	  tail -n 1 $$t.valgrind; done

# ---- fuzzing: the readers by clang with libFuzzer, without OpenMP; corpora of our own making in build/fuzz/corpus
FUZZ_CC      = clang
FUZZ_FLAGS   = -std=c11 -g -O1 $(WARN) -Wno-unknown-pragmas -D_GNU_SOURCE -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
FUZZ_SOURCES = $(wildcard data/*.c data/tokenizer/*.c data/jinja/*.c) halo/attempt.c halo/config.c halo/progress.c
FUZZ_OBJECTS = $(FUZZ_SOURCES:%.c=build/fuzz/%.o) build/fuzz/test/fuzz/fuzz.o
FUZZ_WRAPS   = -Wl,--wrap=mmap -Wl,--wrap=munmap -Wl,--wrap=_exit
build/fuzz/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c $< -o $@
# With STATIC=1 the binary needs the C library alone: test/fuzz/run.sh runs it on a machine that has nothing else.
FUZZ_LIBS    = -ljansson -lpcre2-8 -lxxhash -lz
FUZZ_LDLIBS  = $(if $(STATIC),-nostdlib++ -static-libgcc -Wl$(comma)-Bstatic $(FUZZ_LIBS) -lstdc++ -Wl$(comma)-Bdynamic,$(FUZZ_LIBS)) -lm -lpthread
build/fuzz/linked_with: always
	$(call write_if_new,$(FUZZ_LDLIBS))
build/fuzz/fuzz: $(FUZZ_OBJECTS) build/fuzz/linked_with
	$(Q)$(FUZZ_CC) $(FUZZ_FLAGS) -fsanitize=fuzzer $(FUZZ_WRAPS) $(FUZZ_OBJECTS) $(FUZZ_LDLIBS) -o $@
SECONDS ?= 60
JOBS    ?= $(shell nproc)
fuzz:
	@scripts/setup.sh clang libclang-rt-dev
	@$(MAKE) --no-print-directory -j$(JOBS) build/fuzz/fuzz
	@JOBS=$(JOBS) test/fuzz/run.sh $(SECONDS) $(TARGETS)

sanitize: $(patsubst %,$(BUILD)/test/test_%,ops quantize gemm adapter)
	@BUILD=$(BUILD) test/sanitize.sh

# ---- what is taken elsewhere
PREFIX  ?= /usr/local
VERSION  = $(shell sed -n 's/.*HALO_VERSION "\(.*\)"/\1/p' halo/version.h)
NAME     = train_llama3-$(VERSION)
STAGE    = build/stage
MAN_PAGE = build/train_llama3.1
.PHONY: man install deb dist
man: $(MAN_PAGE)
$(MAN_PAGE): $(BUILD)/train_llama3
	@$< help man >$@

install: $(BUILD)/train_llama3 $(MAN_PAGE)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/train_llama3/demo/model \
	  $(DESTDIR)$(PREFIX)/share/doc/train_llama3/docs
	install -m 755 $(BUILD)/train_llama3 $(DESTDIR)$(PREFIX)/bin/train_llama3
	install -m 644 data/demo/model/* $(DESTDIR)$(PREFIX)/share/train_llama3/demo/model/
	install -m 644 data/demo/train.jsonl data/demo/test.jsonl $(DESTDIR)$(PREFIX)/share/train_llama3/demo/
	install -m 644 $(MAN_PAGE) $(DESTDIR)$(PREFIX)/share/man/man1/train_llama3.1
	install -m 644 README.md CHANGELOG.md $(DESTDIR)$(PREFIX)/share/doc/train_llama3/
	install -m 644 docs/*.md $(DESTDIR)$(PREFIX)/share/doc/train_llama3/docs/

deb: $(BUILD)/train_llama3
	@rm -rf $(STAGE)
	$(Q)$(MAKE) --no-print-directory install PREFIX=/usr DESTDIR=$(STAGE) >/dev/null
	$(Q)packaging/deb.sh $(STAGE) $(BUILD)/train_llama3 $(VERSION) build/train-llama3_$(VERSION).deb

dist: $(BUILD)/train_llama3
	@rm -rf $(STAGE)
	$(Q)$(MAKE) --no-print-directory install PREFIX= DESTDIR=$(STAGE)/$(NAME) >/dev/null
	$(Q)packaging/libraries.sh $(BUILD)/train_llama3 >$(STAGE)/$(NAME)/LIBRARIES
	$(Q)tar -C $(STAGE) -czf build/$(NAME)-linux-$(shell uname -m).tar.gz $(NAME)
	@echo build/$(NAME)-linux-$(shell uname -m).tar.gz

# Installs what is missing; quick when nothing is.
.PHONY: fuzz sanitize setup run-tests run-benches valgrind run-valgrind
setup:
	@scripts/setup.sh

# One object per file and architecture; nothing is linked.
KERNEL_FILES = train_llama3.cu $(CUDA_SOURCES) $(CUDA_BENCHES)
KERNELS = $(foreach arch,$(ARCHS),$(KERNEL_FILES:%.cu=build/kernels/$(arch)/%.o))
kernels:
	@$(MAKE) --no-print-directory -j$(shell nproc) $(KERNELS)
define KERNEL_RULE
build/kernels/$(1)/%.o: %.cu $(CONFIG)
	@mkdir -p $$(@D)
	@echo '  $(1) $$<'
	$$(Q)$$(NVCC) -std=c++17 -O3 $(DEFINES) $(if $(HALO_NCCL),$(MPI_CFLAGS)) -gencode arch=compute_$(1:sm_%=%),code=$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach arch,$(ARCHS),$(eval $(call KERNEL_RULE,$(arch))))

clean:
	rm -rf build train_llama3

-include $(shell find build -name '*.d' 2>/dev/null)
