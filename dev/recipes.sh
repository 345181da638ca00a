#!/usr/bin/env bash
# Does a backend train like the CPU? Fine-tunes stories260K (in the reference pack) on GSM8K under every recipe with three orders of the
# data, 60 steps of 4 x 128 tokens, and prints the mean loss of the last ten steps: recipe | seed 1 | seed 2 | seed 3 | mean.
#
#   dev/recipes.sh cpu|cuda
#
# In the environment: REFPACK (../shared), JOBS (runs at a time: 4), TRAIN_LLAMA3 (./train_llama3).
set -euo pipefail
cd "$(dirname "$0")/.."
export backend=${1:?cpu or cuda} pack=${REFPACK:-../shared} program=${TRAIN_LLAMA3:-./train_llama3} OMP_NUM_THREADS=1
export logs
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
recipes="bf16 halo0-int8 halo0-fp8 halo0-fp6 halo1-int8 halo1-fp8 halo1-fp6 halo2-int8 halo2-fp8 halo2-fp6 switchback-int8 switchback-fp8 jetfire-int8"

fine_tune() {   # recipe, seed
    "$program" train --backend "$backend" --model "$pack/data/models/stories260K/hf" --data "$pack/data/datasets/gsm8k/train.jsonl" \
        --chat none --seq 128 --batch 4 --lr 1e-3 --steps 60 --recipe "$1" --seed "$2" --log "$logs/$1.$2" >"$logs/$1.$2.txt" 2>&1 ||
        { tail -n 3 "$logs/$1.$2.txt" >&2; return 1; }
}
export -f fine_tune
for recipe in $recipes; do for seed in 1 2 3; do echo "$recipe $seed"; done; done | xargs -P "${JOBS:-4}" -L 1 bash -c 'fine_tune "$@"' fine_tune

for recipe in $recipes; do
    row=$(printf '%-16s' "$recipe") sum=0
    for seed in 1 2 3; do
        mean=$(tail -n 10 "$logs/$recipe.$seed/log.jsonl" | sed -E 's/.*"loss": ([0-9.]+).*/\1/' | awk '{ sum += $1 } END { printf "%.4f", sum / NR }')
        row="$row  $mean" sum=$(awk "BEGIN { print $sum + $mean }")
    done
    printf '%s  %.4f\n' "$row" "$(awk "BEGIN { print $sum / 3 }")"
done
