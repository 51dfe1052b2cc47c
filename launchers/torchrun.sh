#!/usr/bin/env bash
# One job over several nodes, started by hand: run this on every node, each with its own NODE_RANK.
#
#   NNODES=2 NODE_RANK=0 ENDPOINT=node0:29500 NPROC=8 RUN_DIR=outputs/big launchers/torchrun.sh stage=pretrain ds=zero2
#   NNODES=2 NODE_RANK=1 ENDPOINT=node0:29500 NPROC=8 RUN_DIR=outputs/big launchers/torchrun.sh stage=pretrain ds=zero2
#
# ENDPOINT is a port of node 0 that the others reach. RUN_DIR should lie on a disk that all nodes share. NPROC ranks run
# on each node (default: one for each GPU, else one). PYTHON: interpreter (default: that of the active
# environment, else of the checkout's .venv, else python).
set -euo pipefail

venv=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$venv" ]; then
    PYTHON=$venv # no environment is active: the one that make has built
fi
: "${NNODES:=1}" "${NODE_RANK:=0}" "${PYTHON:=python}"
if [ -z "${NPROC:-}" ]; then
    NPROC=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
    [ "$NPROC" -gt 0 ] || NPROC=1
fi
arguments=(launch=torchrun "launch.nproc=$NPROC" "launch.nnodes=$NNODES" "launch.node_rank=$NODE_RANK")
if [ "$NNODES" -gt 1 ]; then
    : "${ENDPOINT:?set ENDPOINT=HOST:PORT of node 0}" "${RUN_DIR:?set RUN_DIR to the same folder on every node}"
    arguments+=("launch.rdzv_endpoint=$ENDPOINT" "run_dir=$RUN_DIR")
elif [ -n "${RUN_DIR:-}" ]; then
    arguments+=("run_dir=$RUN_DIR")
fi
exec "$PYTHON" -m tinychat.train "${arguments[@]}" "$@"
