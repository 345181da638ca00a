#!/usr/bin/env bash
# What `make demo` runs once the program is built: fine-tunes the embedded small Llama twice, in BF16 and with every large
# matrix product in INT8 (HALO-2), from the same start, with the same data order, steps and learning rate, and compares how
# many test answers come out exactly right. On the GPU if there is one, else on the CPU. SEED=2 takes another order of the data.
set -euo pipefail
cd "$(dirname "$0")/../.."

demo=data/demo
out=build/demo
train_flags=(--pack --batch 8 --seq 256 --steps 560 --lr 3e-3 --warmup 10 --schedule cosine --clip 1 --seed ${SEED:-1})
tests_per_task=$(($(wc -l <$demo/test.jsonl) / 3))   # three equal parts: gsm-like, sql-like, viggo-like
longest_answer=64                                    # tokens
mkdir -p $out
seconds=(0 0 0)

# fine_tune NAME INDEX FLAGS...: $out/NAME is the fine-tuned model
fine_tune() {
    local name=$1 index=$2 start=$SECONDS
    shift 2
    echo "== fine-tuning: $name"
    rm -rf "${out:?}/$name"
    ./train_llama3 train --model $demo/model --data $demo/train.jsonl "${train_flags[@]}" "$@" --out $out/"$name"
    seconds[index]=$((SECONDS - start))
}

# answer_tests NAME MODEL: $out/NAME.jsonl has one line per test, with the answer and whether it matches
answer_tests() {
    echo "== answering the tests: $1"
    ./train_llama3 generate --model "$2" --data $demo/test.jsonl --max-tokens $longest_answer >$out/"$1".jsonl 2>$out/"$1".log ||
        { cat $out/"$1".log >&2; exit 1; }
}

matches() { grep -cE '"match": ?true' || true; }

# row TITLE NAME SECONDS
row() {
    local first=1 counts=() answers=$out/$2.jsonl
    for _ in 1 2 3; do
        counts+=("$(sed -n "$first,$((first + tests_per_task - 1))p" "$answers" | matches)")
        first=$((first + tests_per_task))
    done
    local right=$((counts[0] + counts[1] + counts[2])) all=$((3 * tests_per_task))
    printf '%-22s %8s %8s %10s %16s %13s\n' "$1" "${counts[0]}/$tests_per_task" "${counts[1]}/$tests_per_task" \
        "${counts[2]}/$tests_per_task" "$((100 * right / all))% ($right/$all)" "$3"
}

# field PATTERN: the JSON string after PATTERN in a line, unescaped
field() { printf '%b\n' "$(sed -E 's/.*'"$1"': ?"(([^"\\]|\\.)*)".*/\1/')"; }

answer_tests before $demo/model
fine_tune bf16 1 --level bf16
answer_tests bf16 $out/bf16
fine_tune halo2-int8 2 --level halo2 --dtype int8
answer_tests halo2-int8 $out/halo2-int8

printf '\n%-22s %8s %8s %10s %16s %13s\n' "exact match" gsm-like sql-like viggo-like "all" "train seconds"
row "before" before -
row "after BF16" bf16 "${seconds[1]}"
row "after HALO-2 INT8" halo2-int8 "${seconds[2]}"

if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    cat <<'END'

There is no GPU here, so that the seconds say nothing of speed: the CPU rotates and quantizes in plain C what a GPU does beside its products, and
loses by this about what it gains by INT8. On one H100 the 8B model trains 1.28 times as fast in HALO-2 INT8 as in BF16, and 1.45 times in FP8
(dev/RESULTS.md).
END
fi

number=$(grep -nE -m 1 '"match": ?true' $out/halo2-int8.jsonl | cut -d : -f 1) || number=1
printf '\nTest question %s, and the answer of the model trained in INT8:\n\n' "$number"
sed -n "${number}p" $demo/test.jsonl | field '"role": "user", "content"' | sed 's/^/    /'
echo
sed -n "${number}p" $out/halo2-int8.jsonl | field '"generated"' | sed 's/^/    /'
