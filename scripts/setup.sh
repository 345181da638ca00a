#!/usr/bin/env bash
# Installs what the build needs and this machine lacks: a C compiler, make, jansson, PCRE2, xxHash, OpenMPI.
#
#   scripts/setup.sh             silent and quick when nothing is missing
#   scripts/setup.sh valgrind    the same, and the named Debian packages as well (a command of that name counts as one)
#   scripts/setup.sh --check     installs nothing: names what the build cannot do without (MPI it can), and exits 2
#
# As root it asks nothing. Otherwise it uses sudo where that needs no password, or prints the one command and exits 2.
# nvcc and NCCL are never installed: the Makefile uses them if they are there.
set -euo pipefail

compiles() { printf '#include <stdio.h>\n#include <%s>\n' "$1" | ${CC:-cc} -fsyntax-only -x c - 2>/dev/null; }

checks=
[ "${1:-}" != --check ] || { checks=yes; shift; }
missing=()
compiles stdlib.h && { [ -n "$checks" ] || { command -v make && command -v gcc; } >/dev/null; } || missing+=(build-essential)
compiles jansson.h || missing+=(libjansson-dev)
printf '#define PCRE2_CODE_UNIT_WIDTH 8\n#include <pcre2.h>\n' | ${CC:-cc} -fsyntax-only -x c - 2>/dev/null ||
    missing+=(libpcre2-dev)
compiles xxhash.h || missing+=(libxxhash-dev)
compiles zlib.h || missing+=(zlib1g-dev)
[ -n "$checks" ] || [ -n "$(mpicc --showme:compile 2>/dev/null)" ] || missing+=(libopenmpi-dev openmpi-bin)
for extra in "$@"; do command -v "$extra" >/dev/null || dpkg -s "$extra" >/dev/null 2>&1 || missing+=("$extra"); done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ -n "$checks" ]; then
    echo "setup: this machine lacks ${missing[*]} (Debian's names); scripts/setup.sh installs what the build needs" >&2
    exit 2
fi

if ! command -v apt-get >/dev/null; then
    echo "setup: please install these with your system's package manager (Debian's names): ${missing[*]}" >&2
    exit 2
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! { command -v sudo && sudo -n true; } >/dev/null 2>&1; then
        echo "setup: missing packages; run: sudo apt-get update && sudo apt-get install -y ${missing[*]}" >&2
        exit 2
    fi
    as_root=(sudo -n)
fi

echo "setup: installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@" >>"$log" 2>&1; }
if ! { apt update && apt install -y --no-install-recommends "${missing[@]}"; }; then
    tail -n 15 "$log" >&2
    echo "setup: apt-get could not install ${missing[*]} (its last words are above)" >&2
    exit 2
fi
