#!/usr/bin/env bash
#SBATCH --job-name=@NAME@
#SBATCH --partition=@PARTITION@
#SBATCH --nodes=@HOSTS@
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=@GPUS@
#SBATCH --time=@TIME@
#SBATCH --output=@LOGS@/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
# All tasks run again on 1 (failed), 75 (saved after SIGTERM), 124 (watchdog) and signals; before preemption and the
# time limit they get SIGTERM, save, and the job is queued again. Log: the --output file.
set -uo pipefail
JAX_COORDINATOR_ADDRESS="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):12355"
JAX_NUM_PROCESSES="$SLURM_NTASKS"
export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES
command=@QUOTED_COMMAND@
asked=0 task=
trap 'asked=1; [ -n "$task" ] && kill -TERM "$task"' TERM
for ((attempt = 0; attempt <= @RESTARTS@; attempt++)); do
  # shellcheck disable=SC2016
  srun --kill-on-bad-exit=0 bash -c 'JAX_PROCESS_ID="$SLURM_PROCID" exec bash -c "$0"' "$command" &
  task=$!
  wait "$task"; code=$?
  while kill -0 "$task" 2>/dev/null; do wait "$task"; code=$?; done
  if [ "$asked" = 1 ] && [ "$code" != 0 ]; then scontrol requeue "$SLURM_JOB_ID"; exit "$code"; fi
  case $code in 1 | 75 | 124) ;; *) [ "$code" -gt 128 ] || exit "$code" ;; esac
done
exit "$code"
