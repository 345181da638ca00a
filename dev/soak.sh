#!/usr/bin/env bash
# A run of the demo model that is stopped or killed every few seconds and resumed by the same command, against one that nothing disturbs:
# both have to end with the same weights. dev/soak.sh [STEPS [SEED]]; 2000 steps take some minutes on two cores.
set -euo pipefail
set -m   # jobs of their own: a job that is started in the background otherwise ignores SIGINT
cd "$(dirname "$0")/.."
steps=${1:-2000} RANDOM=${2:-1}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
export OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
train=(./train_llama3 --backend cpu --model data/demo/model --data data/demo/train.jsonl --level halo2 --dtype int8 --batch 2 --seq 64
       --steps "$steps" --lr 1e-3 --save-every 20)
"${train[@]}" --out "$out/whole" --log "$out/whole" >"$out/whole.log"
signals=(HUP INT TERM USR1 KILL KILL)
starts=0 code=1
while [ "$code" -ne 0 ]; do
    starts=$((starts + 1))
    "${train[@]}" --out "$out/soaked" --log "$out/soaked" --resume >>"$out/soaked.log" 2>>"$out/soaked.err" &
    job=$!
    sleep "$((RANDOM % 3)).$((RANDOM % 9 + 1))"
    signal=${signals[RANDOM % ${#signals[@]}]}
    kill -"$signal" "$job" 2>/dev/null || true
    code=0
    wait "$job" 2>/dev/null || code=$?
    case $code in
        0 | 4 | 129 | 130 | 137 | 138 | 143) ;;   # done, stopped with its state saved, or a signal before or beside that
        *) tail -n 3 "$out/soaked.err"; echo "FAIL soak: exit code $code after $signal"; exit 1 ;;
    esac
done
cmp "$out/whole/model.safetensors" "$out/soaked/model.safetensors" || { echo "FAIL soak: other weights after $starts starts"; exit 1; }
./train_llama3 verify "$out/soaked" >/dev/null
echo "ok soak: $steps steps in $starts starts, the same weights"
