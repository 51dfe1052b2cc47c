#!/usr/bin/env bash
# Several workers on one sweep of this machine: one for each GPU, or as many as you say.
#
#   launchers/sweep_worker.sh stage=ppo sweep=ppo_bayes                one worker for each GPU (without a GPU: one)
#   launchers/sweep_worker.sh 2 stage=ppo sweep=ppo_bayes              two workers, on the GPUs in turn or on the CPU
#
# All workers share the study, so together they run sweep.n_trials trials. More machines: start this on each, with
# paths.outputs on a disk they share and sweep.storage=postgresql://... (SQLite is for one machine). Starting it again
# goes on where it stopped. Ctrl-C ends all workers. What worker 1 says goes to this terminal, what the others say to
# sweep-worker-N.log in LOGS (default: outputs). PYTHON: interpreter (default: that of the active
# environment, else of the checkout's .venv, else python).
set -euo pipefail

venv=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$venv" ]; then
    PYTHON=$venv # no environment is active: the one that make has built
fi
: "${PYTHON:=python}" "${LOGS:=outputs}"
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
workers=$((gpus > 0 ? gpus : 1))
if [[ "${1:-}" =~ ^[0-9]+$ ]]; then
    workers=$1
    shift
fi
if [ "$workers" -lt 1 ] || [ $# -eq 0 ]; then
    echo "usage: launchers/sweep_worker.sh [WORKERS] stage=... sweep=... (WORKERS at least 1)" >&2
    exit 2
fi
cores=$(nproc)
if [ "$gpus" -eq 0 ]; then
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / workers > 0 ? cores / workers : 1))}"
fi
mkdir -p "$LOGS"

pids=()
# shellcheck disable=SC2317,SC2329  # the trap calls it
stop() {
    trap - INT TERM HUP
    kill -INT "${pids[@]}" 2>/dev/null || true
    wait || true
    exit 130
}
trap stop INT TERM HUP
set -m # workers get Ctrl-C from `stop` alone, once
for ((i = 0; i < workers; i++)); do
    variables=()
    if [ "$gpus" -gt 0 ]; then
        variables=("CUDA_VISIBLE_DEVICES=$((i % gpus))")
    fi
    if [ "$i" -eq 0 ]; then
        env "${variables[@]}" "$PYTHON" -m tinychat.train -m "$@" &
    else
        env "${variables[@]}" "$PYTHON" -m tinychat.train -m "$@" >"$LOGS/sweep-worker-$((i + 1)).log" 2>&1 &
    fi
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
done
exit "$status"
