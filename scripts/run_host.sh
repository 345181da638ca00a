#!/usr/bin/env bash
# Trains on all GPUs of this host; the arguments are train_llama3's:
#
#   scripts/run_host.sh --model Meta-Llama-3-8B-Instruct --data gsm8k.jsonl --level halo2 --dtype int8 --qfsdp --out tuned
#
# RANKS=2 takes fewer, CUDA_VISIBLE_DEVICES chooses which; RANKS with --backend cpu runs on CPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
ranks=${RANKS:-$(nvidia-smi -L | grep -c '^GPU')}
threads=$(($(nproc) / ranks))
export OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) OMP_WAIT_POLICY=passive
root=()
[ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
# Without --bind-to none mpirun gives each rank one core, and all of its threads share it.
exec mpirun "${root[@]}" --bind-to none -np "$ranks" ./train_llama3 "$@"
