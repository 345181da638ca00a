#!/usr/bin/env bash
# Chooses a learning rate for each dataset: BF16 alone, one seed that no table uses, and of the training records a share (VAL_SPLIT, 0.1,
# chosen by their content) that is not trained on, so that neither a recipe nor a test question has a say. The rate with the lowest loss on
# those is written to $TABLES/learning_rates, where the tables look, and a table of all is printed. If it is the lowest or highest of them, stderr says
# so: the best one may lie beyond.
#
#   [LRS="3e-4 1e-3 3e-3"] [TUNE=finetune|lora] scripts/choose_lr.sh      (scripts/cells.sh says what else the environment may hold)
unset LR
. "$(dirname "$0")/cells.sh"
TUNE=${TUNE:-finetune}
if [ "$TUNE" = lora ]; then LRS=${LRS:-1e-3 3e-3 1e-2}; else LRS=${LRS:-3e-4 1e-3 3e-3}; fi
[ "$TUNE" = finetune ] || [ "$TUNE" = lora ] || fail "TUNE=$TUNE: must be finetune or lora"

rate_cell() {   # dataset, learning rate; a run that was cut off has kept nothing, and begins again (--overwrite)
    local head dir
    head=$(opening "rates-$TUNE" "$1" bf16 0 "$2")
    ! is_done "$head" || return 0
    dir=$(run_folder "$head" "rates-$TUNE-$1" "$2" 0)
    data_of "$1"
    tuning_flags "$TUNE"
    training "$dir" bf16 0 "$2" --model "$MODEL" --data "$train" "${TUNING[@]}" --val-split "${VAL_SPLIT:-0.1}" --overwrite || return
    record "$head" "\"val_loss\": $(last_of "$dir" val_loss)"
}

for dataset in $DATASETS; do for lr in $LRS; do echo "$dataset $lr"; done; done >"$TABLES/data/rates.$$"
run_cells rate_cell <"$TABLES/data/rates.$$"
rm "$TABLES/data/rates.$$"

# rates_of DATASET: all rates that were ever tried under these settings, "rate loss", whatever LRS was then; by rate.
rates_of() {
    local head
    head=$(opening "rates-$TUNE" "$1" bf16 0 '<lr>')
    grep -F -- "${head%%<lr>*}" "$RESULTS" | grep -F -- "${head#*<lr>}," | sed -E 's/.*"lr": ([^,]+),.*"val_loss": ([^},]+).*/\1 \2/' | sort -g
}

printf '\nLoss on held-out training records, BF16, %s: %s\n\n| dataset | learning rate | loss | |\n|---|---|---|---|\n' "$TUNE" "$MODEL"
for dataset in $DATASETS; do
    rates=$(rates_of "$dataset")
    best=$(sort -g -k 2 <<<"$rates" | awk 'NR == 1 { print $1 }')
    awk -v dataset="$dataset" -v best="$best" '{ printf "| %s | %s | %s | %s |\n", dataset, $1, $2, $1 == best ? "chosen" : "" }' <<<"$rates"
    case $best in "$(head -n 1 <<<"$rates" | cut -d ' ' -f 1)" | "$(tail -n 1 <<<"$rates" | cut -d ' ' -f 1)")
        echo "${0##*/}: $dataset: $best is the first or last rate tried: name others beyond it in LRS" >&2 ;;
    esac
    (
        flock 9
        { grep -v "^$TUNE $dataset " "$TABLES/learning_rates" 2>/dev/null || true; echo "$TUNE $dataset $best"; } >"$TABLES/learning_rates.new"
        mv "$TABLES/learning_rates.new" "$TABLES/learning_rates"
    ) 9>"$TABLES/lock"
done
