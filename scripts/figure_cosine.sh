#!/usr/bin/env bash
# The paper's figure of gradients: the cosine of every dW with that of BF16 products when products are quantized in the forward pass alone,
# in the backward pass alone, or in both, with and without rotation, for the first batch of a fine-tuning (dev/gradient_cosine.c). Prints
# Markdown, mean and least over layers and matrices, and draws the means by layer in $TABLES/cosine.svg (the first dataset and seed); the
# cosines are lines of JSON in $TABLES/runs/cosine-*/cosines.jsonl.
#
#   [MODEL=DIR] [DATASETS=viggo] [SEEDS=1] scripts/figure_cosine.sh      (more in scripts/cells.sh; GRADIENT_COSINE names the binary)
DATASETS=${DATASETS:-viggo} SEEDS=${SEEDS:-1} RECIPES=all LR=0
. "$(dirname "$0")/cells.sh"
GRADIENT_COSINE=${GRADIENT_COSINE:-build/release/dev/gradient_cosine}
[ -x "$GRADIENT_COSINE" ] || fail "$GRADIENT_COSINE: not there; run make $GRADIENT_COSINE first"
TRAIN_LLAMA3=$GRADIENT_COSINE

cosine_cell() {   # dataset, recipe, seed
    local head dir
    head=$(opening cosine "$@" "$LR")
    ! is_done "$head" || return 0
    dir=$(run_folder "$head" "cosine-$1" "$2" "$3")
    data_of "$1"
    mkdir -p "$dir"
    logged "$dir/train.txt" --model "$MODEL" --data "$train" --seed "$3" --batch "$BATCH" --seq "$SEQ" --limit "$LIMIT" --log "$dir" "${MORE_FLAGS[@]}" || return
    record "$head" "\"cosines\": $(wc -l <"$dir/cosines.jsonl")"
}

every_cell | run_cells cosine_cell

# cosines DATASET SEED: "format rotated quantized layer cosine", a line for each matrix.
cosines() {
    sed -E 's/.*"format": "([^"]+)", "rotated": ([a-z]+), "quantized": "([a-z]+)", "layer": ([0-9]+).*"cosine": (-?[0-9.]+|-?nan).*/\1 \2 \3 \4 \5/' \
        "$(run_folder "$(opening cosine "$1" all "$2" 0)" "cosine-$1" all "$2")/cosines.jsonl"
}

for dataset in $DATASETS; do
    printf '\nCosine of dW with BF16 products'"'"', mean (least) over layers and matrices: %s on %s.\n\n' "$MODEL" "$dataset"
    printf '| format | rotated | forward quantized | backward quantized | both |\n|---|---|---|---|---|\n'
    for seed in $SEEDS; do cosines "$dataset" "$seed"; done | awk '
            { row = $1 " " $2; if (!(row in seen)) { seen[row] = 1; rows[++count] = row }
              key = row " " $3; sum[key] += $5; if (!n[key]++ || $5 < least[key]) least[key] = $5 }
            END { parts = split("forward backward both", part, " ")
                  for (i = 1; i <= count; i++) {
                      split(rows[i], of, " ")
                      printf "| %s | %s |", of[1], of[2] == "true" ? "yes" : "no"
                      for (p = 1; p <= parts; p++) { key = rows[i] " " part[p]; printf " %.4f (%.4f) |", sum[key] / n[key], least[key] }
                      print ""
                  } }'
done

# A panel for each part of the pass: by layer, the mean cosine over its matrices, a line for each format as it is and rotated.
figure() {
    local dataset=${DATASETS%% *} seed=${SEEDS%% *} part
    printf '{"chart": "Cosine of dW with BF16 products", "subtitle": "%s on %s, the first batch"}\n' "$MODEL" "$dataset"
    for part in forward backward both; do
        printf '{"panel": "%s quantized", "x_name": "layer", "wide": false}\n' "$part"
        cosines "$dataset" "$seed" | awk -v part="$part" '
            $3 == part { line = $1 ($2 == "true" ? " rotated" : ""); if (!(line in seen)) { seen[line] = 1; lines[++count] = line }
              key = line SUBSEP $4; sum[key] += $5; n[key]++; if ($4 > last) last = $4 }
            END { for (i = 1; i <= count; i++) {
                      x = y = ""
                      for (l = 0; l <= last; l++) { key = lines[i] SUBSEP l; x = x (l ? ", " : "") l; y = y (l ? ", " : "") (n[key] ? sum[key] / n[key] : "null") }
                      printf "{\"series\": \"%s\", \"x\": [%s], \"y\": [%s]}\n", lines[i], x, y
                  } }'
    done
}
figure | draw cosine
