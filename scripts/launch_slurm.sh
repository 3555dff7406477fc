#!/usr/bin/env bash
# A verb on every task of a SLURM job, one task a node (or one a GPU); preempted, it saves and is queued again.
#   sbatch --nodes=2 --ntasks-per-node=1 --gpus-per-node=8 scripts/launch_slurm.sh run --config=configs/quickstart.py --workdir=/shared/run
# SEGJAX says how segjax is called there (default: segjax, from the environment in which sbatch was called).
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -uo pipefail
read -ra segjax <<< "${SEGJAX:-segjax}"
srun --kill-on-bad-exit=1 --label "${segjax[@]}" "$@" --distributed
code=$?
if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
