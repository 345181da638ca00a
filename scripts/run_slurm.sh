#!/usr/bin/env bash
#SBATCH --job-name=train_llama3
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
# One task a GPU; the arguments are train_llama3's:
#
#   sbatch --nodes=2 scripts/run_slurm.sh --model ... --data ... --qfsdp --save-every 100 --out /shared/tuned
#
# 120 seconds before the time is up SLURM sends USR1 to the tasks: they save a checkpoint and stop, and the same line goes on
# where it has --resume (which starts from the beginning where nothing has been saved yet), so that it can be sent until the run is done.
# Needs an MPI that srun can start (srun --mpi=list; pmix for OpenMPI).
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8} OMP_WAIT_POLICY=passive
exec srun --mpi="${SRUN_MPI:-pmix}" --cpu-bind=cores ./train_llama3 "$@"
