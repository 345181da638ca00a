#!/usr/bin/env bash
# Ratios of full fine-tuning steps, all on this machine and in this run: train_llama3 against PyTorch, and its levels against its own
# BF16. T = 1024; weights, gradients and AdamW's states in BF16 on both sides.
#
#   dev/ratio.sh [row ...]     default: all
#     1b        Llama-3.2-1B, B 16: BF16 against PyTorch
#     8b        Llama-3-8B cut to 16 layers, B 8: BF16 against PyTorch
#     mfu       the same, accum 8: FLOP/s against the mean rate of its products alone
#     levels    the same, accum 8: every level against BF16
#     8b-fp8    Llama-3-8B cut to 8 layers, B 8: halo0 in FP8 against PyTorch with FP8 linears
#     1b-fp8    Llama-3.2-1B, B 16, accum 8: halo0 in FP8 against BF16
#
# What each program prints goes to stderr, the table to stdout. PYTHON and TRAIN_LLAMA3 name other binaries; MORE holds further flags for
# ours, such as --profile.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${TRAIN_LLAMA3:-./train_llama3} python=${PYTHON:-python3}
rows=("$@")
[ $# -gt 0 ] || rows=(1b 8b mfu levels 8b-fp8 1b-fp8)

declare -A printed   # by command: a run that two rows need is made once

# What a command's line says, kept under its arguments; it is in $line afterwards.
measure() {   # pattern of the line, command ...
    local pattern=$1
    shift
    if [ -z "${printed[$*]:-}" ]; then
        echo "+ $*" >&2
        printed[$*]=$("$@" </dev/null 2>&1 | tee >(cat >&2) | grep "$pattern") || { echo "ratio.sh: no result from: $*" >&2; exit 1; }
    fi
    line=${printed[$*]}
}
ours() {   # size, layers, batch, accum, other flags
    local preset=llama3-8b steps=10
    [ "$1" = 8b ] || preset=llama3.2-1b
    [ "$4" = 1 ] || steps=3
    measure '^bench: ' "$program" bench --preset $preset --layers "$2" --batch "$3" --accum "$4" --seq 1024 --steps $steps \
        --master bf16-sr --grad-dtype bf16 --state-dtype bf16 ${MORE:-} "${@:5}"
}
theirs() { measure '^pytorch ' "$python" dev/pytorch_step.py "$1" "$2" "$3" 1024 "$4"; }   # size, layers, batch, dtype

rate() { sed -E 's|.* ([0-9.]+) tok/s.*|\1|' <<<"$line"; }
table=()
trap '[ ${#table[@]} -eq 0 ] || printf "%s\n" "${table[@]}"' EXIT   # what there is, also when a run has failed
row() {   # what, tokens per second, those it is held against, the goal
    table+=("$(awk -v what="$1" -v a="$2" -v b="$3" -v goal="$4" \
        'BEGIN { printf "%-68s %7.0f tok/s : %7.0f  %6.3fx  %s", what, a, b, a / b, goal }')")
}

for name in "${rows[@]}"; do
    case $name in
    1b)
        theirs 1b 0 16 bf16; base=$(rate)
        ours 1b 0 16 1; row "1B, B 16, BF16 : PyTorch BF16" "$(rate)" "$base" "at least 1.10" ;;
    8b)
        theirs 8b 16 8 bf16; base=$(rate)
        ours 8b 16 8 1; row "8B, 16 layers, B 8, BF16 : PyTorch BF16" "$(rate)" "$base" "at least 1.10" ;;
    mfu)
        ours 8b 16 8 8
        table+=("$(printf '%-68s %s of the products alone  at least 0.84' "8B, 16 layers, B 8, accum 8, BF16" \
            "$(sed -E "s|.* ([0-9.]+) of the plain GEMM's.*|\1|" <<<"$line")")") ;;
    levels)
        ours 8b 16 8 8; base=$(rate)
        while read -r recipe head goal; do
            ours 8b 16 8 8 --recipe "$recipe" --head-dtype "$head"
            row "8B, 16 layers, B 8, accum 8, $recipe, head $head : BF16" "$(rate)" "$base" "$goal"
        done <<'LEVELS'
halo0-fp8 bf16 at least 1.35
halo0-fp8 fp8 aim 1.55
halo1-fp6 bf16 at least 1.30
halo2-int8 bf16 at least 1.20
haloi-fp8 bf16 the bound
haloi-int8 bf16 the bound
LEVELS
        ;;
    8b-fp8)
        theirs 8b 8 8 fp8; base=$(rate)
        ours 8b 8 8 1 --recipe halo0-fp8; row "8B, 8 layers, B 8, halo0-fp8 : PyTorch FP8" "$(rate)" "$base" "at least 1.10" ;;
    1b-fp8)
        ours 1b 0 16 8; base=$(rate)
        ours 1b 0 16 8 --recipe halo0-fp8; row "1B, B 16, accum 8, halo0-fp8 : BF16" "$(rate)" "$base" "at least 1.15" ;;
    *)
        echo "ratio.sh: no row $name; the rows are 1b 8b mfu levels 8b-fp8 1b-fp8" >&2
        exit 2 ;;
    esac
done
