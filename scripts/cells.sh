# Sourced by the scripts that make the tables and figures of the HALO paper (arXiv 2501.02625): what they have in common.
#
# A table is made of cells: one training run under one recipe from one seed, and what was measured of it. A finished cell is a line of
# $TABLES/results.jsonl, and a line that is there is never made again: a script that was cut off goes on where it was, inside a training
# run too (--resume). A line opens with all that defines its cell, so that other settings make other cells.
#
# In the environment, with what is meant when it is not there:
#   MODEL     the model: a Hugging Face directory or a GGUF file (SmolLM2-135M-Instruct, fetched into models/)
#   RECIPES   rows of train_llama3's recipe table (each script has its own)
#   SEEDS     "1 2 3"
#   DATASETS  some of gsm8k viggo sql, of the reference pack, and demo, which is embedded ("gsm8k viggo sql")
#   LR        one learning rate for every dataset (that which scripts/choose_lr.sh finds)
#   TABLES    where results and runs lie (build/tables)
#   JOBS      cells at work at the same time (1)
#   BUDGET    seconds after which the script stops, its runs saved, with exit code 4 (none)
#   BATCH SEQ STEPS WARMUP LIMIT    32, 512, one epoch, 20, all records: the paper's; with STEPS or LIMIT train_llama3 chooses the warm-up
#   SAVE_EVERY   steps between checkpoints of a run (500); on SIGTERM a run saves itself
#   SHOW      1 prints the table of the cells that are there, and makes none
#   KEEP_MODELS  1 keeps the trained models ($TABLES/runs/*/model)
#   MORE      further flags for every training run
#   REFPACK TRAIN_LLAMA3 CHART    the reference pack (../shared), the program (./train_llama3), what draws (build/release/dev/chart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PACK=${REFPACK:-../shared}/data
TRAIN_LLAMA3=${TRAIN_LLAMA3:-./train_llama3}
CHART=${CHART:-build/release/dev/chart}
TABLES=${TABLES:-build/tables}
SEEDS=${SEEDS:-1 2 3}
DATASETS=${DATASETS:-gsm8k viggo sql}
STEPS=${STEPS:-0}
LIMIT=${LIMIT:-0}
BATCH=${BATCH:-32}
SEQ=${SEQ:-512}
JOBS=${JOBS:-1}
RESULTS=$TABLES/results.jsonl
CUT_OFF=4   # the exit code of train_llama3 and of these scripts when they were stopped early

fail() { echo "${0##*/}: $*" >&2; exit 2; }

[ -x "$TRAIN_LLAMA3" ] || fail "$TRAIN_LLAMA3: not there; run make first"
[ -x "$CHART" ] || fail "$CHART: not there; run make $CHART first"
mkdir -p "$TABLES/runs" "$TABLES/data"
touch "$RESULTS"
: "${MODEL:=$(scripts/fetch_smollm2.sh models)}"
if [ -z "${WARMUP:-}" ]; then WARMUP=20; [ "$STEPS$LIMIT" = 00 ] || WARMUP=auto; fi
LENGTH=(--epochs 1)
[ "$STEPS" -eq 0 ] || LENGTH=(--steps "$STEPS")
# shellcheck disable=SC2206   # MORE holds several words
MORE_FLAGS=(${MORE:-})

# ---- datasets

# The pack has 1000 SQL questions: those whose number (from 1) is a multiple of five are the test.
split_sql() {
    [ -s "$TABLES/data/sql.test.jsonl" ] && return
    awk -v test="$TABLES/data/sql.test.jsonl" -v train="$TABLES/data/sql.train.jsonl" '{ print > (NR % 5 ? train : test) }' "$PACK/datasets/sql/valid.jsonl"
}

# data_of DATASET: sets train, test, metric, and longest (tokens of an answer).
data_of() {
    case $1 in
    gsm8k) train=$PACK/datasets/gsm8k/train.jsonl test=$PACK/datasets/gsm8k/test.jsonl metric=gsm8k longest=320 ;;
    viggo) train=$PACK/datasets/viggo/train.csv test=$PACK/datasets/viggo/valid.csv metric=viggo longest=192 ;;
    sql) train=$TABLES/data/sql.train.jsonl test=$TABLES/data/sql.test.jsonl metric=sql longest=128 ;;
    demo) train=data/demo/train.jsonl test=data/demo/test.jsonl metric=exact longest=64 ;;
    *) fail "$1: no such dataset; there are gsm8k, viggo, sql and demo" ;;
    esac
    [ "$1" = demo ] || [ -d "$PACK/datasets/$1" ] || fail "$PACK/datasets/$1: not there; name the reference pack in REFPACK"
    [ "$1" != sql ] || split_sql
}

# ---- what is trained: everything, or the paper's adapter

# tuning_flags finetune|lora: sets TUNING.
tuning_flags() {
    TUNING=()
    [ "$1" = finetune ] || TUNING=(--adapter lora --rank 16 --alpha 8 --dropout 0.1)
}

# lr_of finetune|lora DATASET: LR, or what choose_lr.sh has found or finds now.
lr_of() {
    [ -z "${LR:-}" ] || { echo "$LR"; return; }
    local found
    found=$(awk -v what="$1 $2" '$1 " " $2 == what { print $3 }' "$TABLES/learning_rates" 2>/dev/null || true)
    if [ -z "$found" ]; then
        TUNE=$1 DATASETS=$2 MODEL=$MODEL BUDGET=${BUDGET:+$((BUDGET - SECONDS))} scripts/choose_lr.sh >&2 || return
        found=$(awk -v what="$1 $2" '$1 " " $2 == what { print $3 }' "$TABLES/learning_rates")
    fi
    echo "$found"
}

# ---- cells

# The opening of a cell's line: table, dataset, recipe, seed, learning rate.
opening() {
    printf '{"table": "%s", "model": "%s", "dataset": "%s", "recipe": "%s", "seed": %s, "lr": %s, "batch": %s, "seq": %s, "steps": %s, "limit": %s, "flags": "%s"' \
        "$1" "$MODEL" "$2" "$3" "$4" "$5" "$BATCH" "$SEQ" "$STEPS" "$LIMIT" "${MORE:-}"
}
is_done() { grep -qF -- "$1," "$RESULTS"; }
# The folder of a cell's run: readable, and another one for every opening.
run_folder() { echo "$TABLES/runs/$2-$3-$4-$(cksum <<<"$1" | cut -d ' ' -f 1)"; }
record() {   # opening, what was measured
    (flock 9; echo "$1, $2}" >>"$RESULTS") 9>"$TABLES/lock"
    echo "${0##*/}: $1, $2}" >&2
}

# program ARGUMENTS...: train_llama3 within what BUDGET leaves. Its code; CUT_OFF when the time was up.
program() {
    local code=0
    if [ -z "${BUDGET:-}" ]; then
        "$TRAIN_LLAMA3" "$@" </dev/null || code=$?
    else
        local left=$((BUDGET - SECONDS))
        [ "$left" -gt 0 ] || return $CUT_OFF
        timeout --signal=TERM "$left" "$TRAIN_LLAMA3" "$@" </dev/null || code=$?
        [ "$code" -ne 124 ] || code=$CUT_OFF
    fi
    return "$code"
}

# logged FILE ARGUMENTS...: the same, its output at the end of a file; a failure shows the last lines.
logged() {
    local file=$1 code=0
    shift
    program "$@" >>"$file" 2>&1 || code=$?
    [ "$code" -eq 0 ] || [ "$code" -eq $CUT_OFF ] || { echo "${0##*/}: train_llama3 $* failed:" >&2; tail -n 3 "$file" >&2; }
    return "$code"
}

# training DIR RECIPE SEED LR FLAGS...: one run with the paper's settings, its log in DIR.
training() {
    local dir=$1 recipe=$2 seed=$3 lr=$4
    shift 4
    mkdir -p "$dir"
    logged "$dir/train.txt" train --recipe "$recipe" --seed "$seed" --lr "$lr" --batch "$BATCH" --seq "$SEQ" "${LENGTH[@]}" --warmup "$WARMUP" \
        --schedule linear --limit "$LIMIT" --log "$dir" "${MORE_FLAGS[@]}" "$@"
}

# tuned_cell finetune|lora DATASET RECIPE SEED: a run, and the share of test questions that the trained model answers right.
tuned_cell() {
    local kind=$1 dataset=$2 recipe=$3 seed=$4 lr head dir line start=$SECONDS
    lr=$(lr_of "$kind" "$dataset")
    head=$(opening "$@" "$lr")
    ! is_done "$head" || return 0
    dir=$(run_folder "$head" "$kind-$dataset" "$recipe" "$seed")
    data_of "$dataset"
    tuning_flags "$kind"
    training "$dir" "$recipe" "$seed" "$lr" --model "$MODEL" --data "$train" "${TUNING[@]}" --out "$dir/model" --resume \
        --save-every "${SAVE_EVERY:-500}" --keep 1 || return
    local seconds=$((SECONDS - start)) trained=(--model "$dir/model")
    [ "$kind" = finetune ] || trained=(--model "$MODEL" --adapter-dir "$dir/model")
    : >"$dir/eval.txt"
    logged "$dir/eval.txt" eval "${trained[@]}" --data "$test" --metric "$metric" --max-tokens "$longest" --limit "$LIMIT" --answers "$dir/answers.jsonl" || return
    # "viggo: 401/500 80.2% (standard error 1.8)"
    line=$(tail -n 1 "$dir/eval.txt" | sed -nE 's|^[a-z0-9-]+: ([0-9]+)/([0-9]+) ([0-9.]+)% \(standard error ([0-9.]+)\)$|"right": \1, "answers": \2, "percent": \3, "standard_error": \4|p')
    [ -n "$line" ] || fail "$dir/eval.txt: has no result in its last line"
    record "$head" "$line, \"loss\": $(last_of "$dir" loss), \"train_seconds\": $seconds"
    [ "${KEEP_MODELS:-0}" = 1 ] || rm -rf "$dir/model"
}

# last_of DIR FIELD: the last number of that name in DIR's log.
last_of() { sed -nE 's/.*"'"$2"'": ([-+0-9.e]+|null).*/\1/p' "$1/log.jsonl" | tail -n 1; }

# run_cells COMMAND...: COMMAND with each line of stdin as further arguments, JOBS at a time. Ends the script with CUT_OFF when the budget is
# used up, and with 2 after a cell that failed; the others at work are finished first.
run_cells() {
    local running=0 worst=0 arguments
    [ "${SHOW:-0}" != 1 ] || { cat >/dev/null; return 0; }
    while read -ra arguments; do
        if [ "$running" -ge "$JOBS" ]; then
            wait -n || worst=$?
            running=$((running - 1))
        fi
        [ "$worst" -eq 0 ] || break
        "$@" "${arguments[@]}" </dev/null &
        running=$((running + 1))
    done
    while [ "$running" -gt 0 ]; do
        wait -n || worst=$?
        running=$((running - 1))
    done
    [ "$worst" -ne $CUT_OFF ] || { echo "${0##*/}: stopped early; the same command goes on" >&2; exit $CUT_OFF; }
    [ "$worst" -eq 0 ] || exit 2
}

# every_cell: "dataset recipe seed", seed by seed so that a table that was cut off is a table of fewer seeds.
every_cell() {
    local dataset recipe seed
    for seed in $SEEDS; do for dataset in $DATASETS; do for recipe in $RECIPES; do echo "$dataset $recipe $seed"; done; done; done
}

# ---- Markdown

# The lines of results.jsonl that these settings ask for, of one table.
lines_of() {
    local dataset recipe seed lr
    for dataset in $DATASETS; do
        lr=$(lr_of "$1" "$dataset")
        for recipe in $RECIPES; do for seed in $SEEDS; do grep -F -- "$(opening "$1" "$dataset" "$recipe" "$seed" "$lr")," "$RESULTS" || true; done; done
    done
}

# spread FIELD DIGITS: lines of results on stdin -> a row a recipe, a column a dataset, "mean +- deviation over seeds" of a field.
spread() {
    awk -v field="$1" -v digits="$2" -v datasets="$DATASETS" -v recipes="$RECIPES" '
        function value(name,   rest) {
            rest = $0
            if (!sub(".*\"" name "\": \"?", "", rest)) return ""
            sub("[\",}].*", "", rest)
            return rest
        }
        {
            key = value("recipe") SUBSEP value("dataset")
            x = value(field)
            n[key]++; sum[key] += x; squares[key] += x * x
        }
        END {
            columns = split(datasets, dataset, " "); rows = split(recipes, recipe, " ")
            printf "| recipe |"; for (c = 1; c <= columns; c++) printf " %s |", dataset[c]
            printf "\n|---|"; for (c = 1; c <= columns; c++) printf "---|"
            print ""
            for (r = 1; r <= rows; r++) {
                printf "| %s |", recipe[r]
                for (c = 1; c <= columns; c++) {
                    key = recipe[r] SUBSEP dataset[c]
                    if (!n[key]) { printf " |"; continue }
                    mean = sum[key] / n[key]
                    spare = squares[key] - n[key] * mean * mean
                    printf " %.*f", digits, mean
                    if (n[key] > 1) printf " ± %.*f", digits, sqrt(spare > 0 ? spare / (n[key] - 1) : 0)
                    printf " (%d) |", n[key]
                }
                print ""
            }
        }'
}

# The table of tuned cells: title, kind.
print_answers_table() {
    printf '\n%s: %s. Exact matches in %% of the test questions: mean ± deviation over (seeds).\n\n' "$1" "$MODEL"
    lines_of "$2" | spread percent 1
    printf '\n'
    local dataset
    for dataset in $DATASETS; do
        DATASETS=$dataset lines_of "$2" | awk -v dataset="$dataset" -v lr="$(lr_of "$2" "$dataset")" '
            { sub(".*\"answers\": ", ""); answers = $0 + 0; sub(".*\"standard_error\": ", ""); sum += $0; n++ }
            END { if (n) printf "%s: %d questions, learning rate %s, standard error of one run'"'"'s answers %.1f.\n", dataset, answers, lr, sum / n }'
    done
}

# ---- pictures

# draw NAME: the figure on stdin (lines of JSON, dev/chart.c) becomes $TABLES/NAME.svg; without a series there is nothing to draw.
draw() {
    local figure
    figure=$(cat)
    grep -q '^{"series"' <<<"$figure" || return 0
    "$CHART" <<<"$figure" >"$TABLES/$1.svg"
    echo "${0##*/}: drawn in $TABLES/$1.svg" >&2
}

# loss_curves TABLE KIND TITLE LR_OF...: a panel for each dataset, and in it each recipe's training loss, of the first seed whose log is here.
# LR_OF: the command that prints a dataset's learning rate.
loss_curves() {
    local table=$1 kind=$2 title=$3 dataset lr recipe seed head log
    shift 3
    printf '{"chart": "%s", "subtitle": "training loss, mean of 21 steps: %s"}\n' "$title" "$MODEL"
    for dataset in $DATASETS; do
        lr=$("$@" "$dataset")
        printf '{"panel": "%s", "x_name": "step", "wide": false}\n' "$dataset"
        for recipe in $RECIPES; do
            for seed in $SEEDS; do
                head=$(opening "$table" "$dataset" "$recipe" "$seed" "$lr")
                log=$(run_folder "$head" "$kind-$dataset" "$recipe" "$seed")/log.jsonl
                [ -s "$log" ] || continue
                printf '{"series": "%s", "log": "%s", "key": "loss", "smooth": 10}\n' "$recipe" "$log"
                break
            done
        done
    done
}
