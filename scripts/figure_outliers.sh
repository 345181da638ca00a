#!/usr/bin/env bash
# The paper's figure of outliers: the largest magnitude among inputs X, weights W and output gradients dY of each layer's linears, as they
# are and rotated (X and W along the features, dY along the tokens), in the first step of a fine-tuning under halo2-int8. Prints Markdown,
# of each dataset, and draws the first one in $TABLES/outliers.svg; each layer is a line of JSON in $TABLES/outliers.jsonl.
#
#   [MODEL=DIR] [DATASETS=viggo] scripts/figure_outliers.sh      (more in scripts/cells.sh)
DATASETS=${DATASETS:-viggo}
RECIPES=halo2-int8 SEEDS=${SEEDS:-1} STEPS=1 LR=1e-6
. "$(dirname "$0")/cells.sh"

outliers_cell() {   # dataset, recipe, seed
    local head dir
    head=$(opening outliers "$@" "$LR")
    ! is_done "$head" || return 0
    dir=$(run_folder "$head" "outliers-$1" "$2" "$3")
    data_of "$1"
    training "$dir" "$2" "$3" "$LR" --model "$MODEL" --data "$train" --quant-stats 1 --overwrite || return
    grep -m 1 '"quant_stats"' "$dir/log.jsonl" >"$dir/quant_stats.json" || fail "$dir/log.jsonl: has no quant_stats"
    record "$head" "\"loss\": $(last_of "$dir" loss)"
}

# A layer's linears stand one after the other, each with "x" and, for every matrix, "w" and "dy": {... "absmax": A, "absmax_rotated": B}.
layers_of() {   # quant_stats.json, dataset, seed
    awk -v dataset="$2" -v seed="$3" -v model="$MODEL" '
        function raise(what, text,   plain, turned) {
            while (match(text, "\"" what "\": [{][^}]*[}]")) {
                plain = turned = substr(text, RSTART, RLENGTH)
                text = substr(text, RSTART + RLENGTH)
                sub(".*\"absmax\": ", "", plain)
                sub(".*\"absmax_rotated\": ", "", turned)
                if (plain + 0 > most[layer, what, 0]) most[layer, what, 0] = plain + 0
                if (turned + 0 > most[layer, what, 1]) most[layer, what, 1] = turned + 0
            }
        }
        {
            count = split($0, linear, "[{]\"layer\": ")
            for (i = 2; i <= count; i++) { layer = linear[i] + 0; raise("x", linear[i]); raise("w", linear[i]); raise("dy", linear[i]) }
            for (l = 0; l <= layer; l++) {
                printf "{\"figure\": \"outliers\", \"model\": \"%s\", \"dataset\": \"%s\", \"seed\": %d, \"layer\": %d", model, dataset, seed, l
                split("x w dy", names, " ")
                for (k = 1; k <= 3; k++) printf ", \"%s\": %.6g, \"%s_rotated\": %.6g", names[k], most[l, names[k], 0], names[k], most[l, names[k], 1]
                print "}"
            }
        }' "$1"
}

every_cell | run_cells outliers_cell
: >"$TABLES/outliers.jsonl"
for dataset in $DATASETS; do
    for seed in $SEEDS; do
        head=$(opening outliers "$dataset" "$RECIPES" "$seed" "$LR")
        layers_of "$(run_folder "$head" "outliers-$dataset" "$RECIPES" "$seed")/quant_stats.json" "$dataset" "$seed" >>"$TABLES/outliers.jsonl"
    done
    printf '\nLargest magnitudes as they are and rotated: %s on %s.\n\n' "$MODEL" "$dataset"
    printf '| seed | layer | X | rotated | W | rotated | dY | rotated |\n|---|---|---|---|---|---|---|---|\n'
    grep -F "\"dataset\": \"$dataset\"" "$TABLES/outliers.jsonl" | sed -E \
        's/.*"seed": ([0-9]+), "layer": ([0-9]+), "x": ([^,]+), "x_rotated": ([^,]+), "w": ([^,]+), "w_rotated": ([^,]+), "dy": ([^,]+), "dy_rotated": ([^}]+)}/| \1 | \2 | \3 | \4 | \5 | \6 | \7 | \8 |/'
done

# A panel for each operand: by layer, the largest magnitude as it is and rotated.
figure() {
    local name
    printf '{"chart": "Largest magnitudes as they are and rotated", "subtitle": "%s on %s"}\n' "$MODEL" "${DATASETS%% *}"
    for name in x w dy; do
        printf '{"panel": "%s", "x_name": "layer", "log_y": true, "wide": false}\n' "$(sed 's/x/X/; s/w/W/; s/dy/dY/' <<<"$name")"
        for what in "$name" "${name}_rotated"; do
            grep -F "\"dataset\": \"${DATASETS%% *}\", \"seed\": ${SEEDS%% *}," "$TABLES/outliers.jsonl" | sed -E "s/.*\"$what\": ([^,}]+).*/\1/" |
                awk -v label="$([ "$what" = "$name" ] && echo 'as it is' || echo rotated)" '
                    { x = x (NR > 1 ? ", " : "") NR - 1; y = y (NR > 1 ? ", " : "") $1 }
                    END { printf "{\"series\": \"%s\", \"x\": [%s], \"y\": [%s]}\n", label, x, y }'
        done
    done
}
figure | draw outliers
