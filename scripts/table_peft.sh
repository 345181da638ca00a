#!/usr/bin/env bash
# The paper's table of parameter-efficient fine-tuning: LoRA of rank 16, alpha 8, dropout 0.1 on all linears of a model whose own products
# run under each recipe. Prints Markdown and draws the losses in $TABLES/lora.svg; each cell is a line of JSON in
# $TABLES/results.jsonl.
#
#   [MODEL=DIR] [RECIPES="bf16 halo2-int8"] [SEEDS="1 2 3"] scripts/table_peft.sh      (more in scripts/cells.sh)
. "$(dirname "$0")/cells.sh"
RECIPES=${RECIPES:-bf16 halo0-fp8 halo1-fp6 halo0-int8 halo2-int8}

for dataset in $DATASETS; do lr_of lora "$dataset" >/dev/null; done
every_cell | run_cells tuned_cell lora
print_answers_table "LoRA" lora
loss_curves lora lora LoRA lr_of lora | draw lora
