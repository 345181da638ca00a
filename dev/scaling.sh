#!/usr/bin/env bash
# Llama-3-8B on the GPUs of one host, random weights and tokens, T = 1024, everything in BF16 outside of the products (--master bf16-sr,
# BF16 gradients and optimizer state), so that PyTorch FSDP2 holds the same. Prints every run's lines and a short table last.
#
#   dev/scaling.sh            all three:
#   dev/scaling.sh gpus       a cut model on 1, 2, 4, ... GPUs, 16k tokens per GPU and step: the scaling. One GPU is every GPU for itself at
#                             the same time, and the slowest of them: ranks wait for the slowest too
#   dev/scaling.sh batches    all layers on all GPUs, micro-batches of 1k to 16k tokens
#   dev/scaling.sh torch      PyTorch FSDP2 at the micro-batches (dev/fsdp_baseline.py), which makes blocks again where it does not fit otherwise, as
#                             ours does
#
# Not among all:
#   dev/scaling.sh torch8     torch with torchao's FP8 products and gathers
#   dev/scaling.sh engines    batches, with each HALO_COPY_ENGINES of ENGINES ("0 1"): transfers by NCCL's kernels, by copy engines
#   dev/scaling.sh transfers  dev/bench_comm: transfers alone, and what products lose to them, also with few of NCCL's multiprocessors
#
# In the environment: GPUS (all), BATCHES (rows of 1024 tokens; "1 2 4 8 16"), STEPS (5), CUT (16: layers of the cut model), LAYERS (32),
# RECIPES ("bf16 halo0-fp8 halo2-int8"), MORE (further flags), MPIRUN (mpirun), TRAIN_LLAMA3 (./train_llama3), BENCH_COMM
# (build/release/dev/bench_comm), LIMIT (600: seconds of a run).
set -uo pipefail
cd "$(dirname "$0")/.."
gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
batches=${BATCHES:-1 2 4 8 16} steps=${STEPS:-5} cut=${CUT:-16} layers=${LAYERS:-32} recipes=${RECIPES:-bf16 halo0-fp8 halo2-int8}
more=${MORE:-} mpirun=${MPIRUN:-mpirun --bind-to none} train=${TRAIN_LLAMA3:-./train_llama3} limit=${LIMIT:-600}
[ "$(id -u)" -ne 0 ] || mpirun="$mpirun --allow-run-as-root"
export OMP_WAIT_POLICY=passive
table=$(mktemp) alone=$(mktemp -d)
trap 'rm -rf "$table" "$alone"' EXIT

# Activations to make again: none where they fit beside half of the model, its gradients and its optimizer state in 80 GB.
recompute() {   # layers, rows
    if [ $(($1 * $2)) -le 256 ]; then echo none; else echo block; fi
}

# One run and its row: what | GPUs | tokens per GPU | ms | tok/s per GPU | waiting ms | GB sent | GiB taken (of planned)
ours() {   # name, recipe, GPUs, layers, rows, recompute
    local gpu out slowest flags="--preset llama3-8b --layers $4 --recipe $2 --batch $5 --seq 1024 --recompute $6 --master bf16-sr --grad-dtype bf16
        --state-dtype bf16 --steps $steps $more"
    if [ "$3" -gt 1 ]; then
        [ "$2" = bf16 ] || flags="$flags --qfsdp"
        out=$(OMP_NUM_THREADS=$(($(nproc) / $3)) timeout "$limit" $mpirun -np "$3" "$train" bench $flags 2>&1)
    else
        for ((gpu = 0; gpu < gpus; gpu++)); do
            CUDA_VISIBLE_DEVICES=$gpu OMP_NUM_THREADS=$(($(nproc) / gpus)) "$train" bench $flags >"$alone/$gpu" 2>&1 &
        done
        wait
        slowest=$(grep -H '^bench:' "$alone"/* | sort -t ' ' -k 2 -g | tail -n 1 | cut -d : -f 1)
        out=$(cat "${slowest:-$alone/0}")
    fi
    echo "-- $1, $2 on $3 GPUs, $4 layers, $5 x 1024 tokens a GPU, recompute $6"
    echo "$out" | grep -E '^(memory per rank|bench|memory|ranks|train_llama3|copy engines)' || echo "$out" | tail -n 3
    echo "$out" | awk -v what="$1 $2" -v gpus="$3" -v rows="$5" '
        /^bench:/  { ms = $2; rate = $6 / gpus }
        /^ranks:/  { waiting = $2; for (i = 1; i < NF; i++) if ($i == "GB") sent = $(i - 1) }
        /^memory:/ { taken = $2; planned = $5 }
        END { if (ms) printf "%-24s %4d %7d %9.1f %9.0f %9s %8s %7.1f %7.1f\n", what, gpus, 1024 * rows, ms, rate,
                             waiting == "" ? "-" : waiting, sent == "" ? "-" : sent, taken, planned
              else printf "%-24s %4d %7d did not run\n", what, gpus, 1024 * rows }' >>"$table"
}

torch() {   # layers, rows, flags: blocks are made again in backward (--checkpointing) only if it does not fit otherwise
    local flags out
    for flags in "$3" "$3 --checkpointing"; do
        out=$(timeout "$limit" python3 -m torch.distributed.run --standalone --nproc-per-node "$gpus" dev/fsdp_baseline.py --layers "$1" --batch "$2" \
            --steps "$steps" $flags 2>&1)
        ! grep -q '^fsdp2:' <<<"$out" || break
    done
    echo "-- FSDP2 on $gpus GPUs, $1 layers, $2 x 1024 tokens a GPU $flags"
    grep '^fsdp2:' <<<"$out" || grep -v '^$' <<<"$out" | tail -n 3
    awk -v what="PyTorch FSDP2 ${flags//--/}" -v gpus="$gpus" -v rows="$2" '
        /^fsdp2:/ { ms = $2; rate = $6 / gpus; peak = $8 }
        END { if (ms) printf "%-24s %4d %7d %9.1f %9.0f %9s %8s %7.1f %7s\n", what, gpus, 1024 * rows, ms, rate, "-", "-", peak, "-"
              else printf "%-24s %4d %7d did not run\n", what, gpus, 1024 * rows }' <<<"$out" >>"$table"
}

transfers() {
    local bench="timeout $limit $mpirun -np $gpus ${BENCH_COMM:-build/release/dev/bench_comm}" how
    $bench nccl 2>&1
    for how in HALO_COPY_ENGINES=1 HALO_COPY_ENGINES=0 "HALO_COPY_ENGINES=0 NCCL_MAX_CTAS=4" "HALO_COPY_ENGINES=0 NCCL_MAX_CTAS=8"; do
        echo "-- $how"
        env $how $bench beside 2>&1
    done
}

for part in ${*:-gpus batches torch}; do
    case $part in
        gpus)
            for recipe in $recipes; do
                for ((n = 1; n <= gpus; n *= 2)); do ours "$cut layers" "$recipe" $n "$cut" 16 "$(recompute "$cut" 16)"; done
            done ;;
        batches)
            for rows in $batches; do
                for recipe in $recipes; do ours all "$recipe" "$gpus" "$layers" "$rows" "$(recompute "$layers" "$rows")"; done
            done ;;
        torch) for rows in $batches; do torch "$layers" "$rows" ""; done ;;
        torch8) for rows in $batches; do torch "$layers" "$rows" --float8; done ;;
        engines)
            for rows in $batches; do
                for recipe in $recipes; do
                    for how in ${ENGINES:-0 1}; do
                        HALO_COPY_ENGINES=$how ours "engines $how" "$recipe" "$gpus" "$layers" "$rows" "$(recompute "$layers" "$rows")"
                    done
                done
            done ;;
        transfers) transfers ;;
        *) echo "dev/scaling.sh: '$part' is none of gpus, batches, torch, torch8, engines, transfers" >&2; exit 2 ;;
    esac
done
[ -s "$table" ] || exit 0
echo
printf '%-24s %4s %7s %9s %9s %9s %8s %7s %7s\n' run GPUs tokens ms tok/s/GPU 'wait ms' 'GB sent' GiB planned
cat "$table"
