#!/usr/bin/env bash
# The paper's table of full fine-tuning: every recipe on every dataset from every seed, exact matches of greedy answers to the test's
# questions. Prints Markdown and draws the losses in $TABLES/finetune.svg; each cell is a line of JSON in $TABLES/results.jsonl.
#
#   [MODEL=DIR] [RECIPES="bf16 halo2-int8"] [SEEDS="1 2 3"] scripts/table_finetune.sh      (more in scripts/cells.sh)
. "$(dirname "$0")/cells.sh"
RECIPES=${RECIPES:-bf16 switchback-int8 jetfire-int8 halo0-fp8 halo1-fp8 halo2-fp8 halo0-fp6 halo1-fp6 halo2-fp6 halo0-int8 halo1-int8 halo2-int8}

for dataset in $DATASETS; do lr_of finetune "$dataset" >/dev/null; done
every_cell | run_cells tuned_cell finetune
print_answers_table "Full fine-tuning" finetune
loss_curves finetune finetune "Full fine-tuning" lr_of finetune | draw finetune
