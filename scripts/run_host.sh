#!/usr/bin/env bash
# Trains on all GPUs of this host; the arguments are train_llama3's:
#
#   scripts/run_host.sh --model Meta-Llama-3-8B-Instruct --data gsm8k.jsonl --level halo2 --dtype int8 --qfsdp --out tuned
#
# Ctrl-C, TERM and a closed terminal let the ranks save and stop (exit code 4); the same line with --resume goes on, until it is done.
# RANKS=2 takes fewer, CUDA_VISIBLE_DEVICES=1,3 these; RANKS with --backend cpu runs on CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
visible=${CUDA_VISIBLE_DEVICES:-}
ranks=${RANKS:-}
if [ -z "$ranks" ] && [ -n "$visible" ]; then
    commas=${visible//[!,]/}
    ranks=$((${#commas} + 1))
elif [ -z "$ranks" ]; then
    ranks=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') ||
        { echo "run_host.sh: nvidia-smi finds no GPU here; RANKS=4 scripts/run_host.sh ... --backend cpu runs on CPUs" >&2; exit 2; }
fi
threads=$(($(nproc) / ranks))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) OMP_WAIT_POLICY=passive
root=()
[ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
# Without --bind-to none mpirun gives each rank one core, and all of its threads share it.
. scripts/until_done.sh
until_done mpirun "${root[@]}" --bind-to none -np "$ranks" ./train_llama3 "$@"
