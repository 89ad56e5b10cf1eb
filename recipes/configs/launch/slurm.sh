#!/bin/bash
# Several nodes under Slurm (untested on a cluster; tested with stand-ins for srun and scontrol, two gloo processes).
# The training resumes by itself after a pre-emption or the end of its time.
#   sbatch --nodes 2 --gpus-per-node 4 --ntasks-per-node 4 --time 04:00:00 recipes/configs/launch/slurm.sh \
#     method/dmgal_adapter data/ssv2_small --train.tasks-per-step 8 --out RUN
# RUN lies on a disk that all nodes share. One task is one process and one GPU. Slurm sends SIGUSR1 90 seconds before the
# end; the training saves within a step and exits with code 75, and the job is requeued unless it was
# cancelled. A signal that comes before the training can answer (138, 143) loses nothing either.
#SBATCH --job-name=dmgal
#SBATCH --signal=USR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export MASTER_ADDR MASTER_PORT
[ -n "${SLURM_CPUS_PER_TASK:-}" ] && export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it

# without torchrun, the signal and the exit code pass through srun as they are
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  exec python -m dmgal.recipes.train "$@" --resume --quiet' dmgal "$@" &
step=$!
trap '' USR1 TERM # for the steps, not for this script
wait "$step"
code=$?

case "$code" in
  75 | 138 | 143)
    scontrol show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING' && scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
exit "$code"
