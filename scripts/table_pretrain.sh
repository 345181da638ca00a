#!/usr/bin/env bash
# The paper's pre-training from random weights, in BF16, FP8, FP6 and INT8: the loss on text that was not trained on. The model has MODEL's
# config.json and tokenizer, cut to LAYERS layers (0: all). The text is that of the reference pack's corpora; with DATASETS=demo the
# embedded one. Prints Markdown and draws the losses in $TABLES/pretrain.svg; each cell is a line of JSON in $TABLES/results.jsonl.
#
#   [MODEL=DIR] [RECIPES="bf16 halo2-int8"] [SEEDS="1 2 3"] [LR=1e-3] scripts/table_pretrain.sh      (more in scripts/cells.sh)
DATASETS=${DATASETS:-corpora}
LR=${LR:-1e-3}
. "$(dirname "$0")/cells.sh"
RECIPES=${RECIPES:-bf16 halo0-fp8 halo1-fp6 halo2-int8}
LAYERS=${LAYERS:-0}

# Texts of 40 lines each, of which every twentieth is for validation.
text_of_corpora() {
    text=$TABLES/data/corpora.train.jsonl unseen=$TABLES/data/corpora.valid.jsonl
    [ -s "$unseen" ] && return
    [ -d "$PACK/corpora" ] || fail "$PACK/corpora: not there; name the reference pack in REFPACK, or take DATASETS=demo"
    find "$PACK/corpora" -name '*.txt' | LC_ALL=C sort | xargs cat | tr -d '\r' | LC_ALL=C awk -v train="$text" -v valid="$unseen" '
        function put() { if (lines) print "{\"text\": \"" whole "\"}" > (++texts % 20 ? train : valid); whole = ""; lines = 0 }
        { gsub(/\\/, "\\\\"); gsub(/"/, "\\\""); gsub(/\t/, "\\t"); gsub(/[\001-\037]/, " "); whole = whole $0 "\\n"; if (++lines == 40) put() }
        END { put() }'
}

pretrain_cell() {   # dataset, recipe, seed; a run that was cut off has kept nothing, and begins again (--overwrite)
    local head dir flags=()
    head=$(opening "pretrain-$LAYERS" "$@" "$LR")
    ! is_done "$head" || return 0
    dir=$(run_folder "$head" "pretrain-$1" "$2" "$3")
    case $1 in
    corpora) text_of_corpora ;;
    demo) text=data/demo/train.jsonl unseen=data/demo/test.jsonl flags=(--train-on-prompt) ;;
    *) fail "DATASETS=$1: must be corpora or demo" ;;
    esac
    training "$dir" "$2" "$3" "$LR" --from-scratch "$MODEL" --layers "$LAYERS" --data "$text" --val "$unseen" "${flags[@]}" --overwrite || return
    record "$head" "\"val_loss\": $(last_of "$dir" val_loss), \"loss\": $(last_of "$dir" loss)"
}

[ -d "$MODEL" ] || fail "MODEL=$MODEL: must be a folder with config.json and tokenizer.json (train_llama3 export makes one of a GGUF file)"
[ "$DATASETS" = demo ] || text_of_corpora
every_cell | run_cells pretrain_cell
printf '\nPre-training from random weights: %s, %s layers. Loss on held-out text: mean ± deviation over (seeds).\n\n' "$MODEL" "${LAYERS/#0/all}"
lines_of "pretrain-$LAYERS" | spread val_loss 4
loss_curves "pretrain-$LAYERS" pretrain "Pre-training from random weights" lr_of pretrain | draw pretrain
