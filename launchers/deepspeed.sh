#!/usr/bin/env bash
# One job through DeepSpeed's launcher, on this machine or on the nodes of a hostfile. Run it once, on node 0.
#
#   NPROC=2 launchers/deepspeed.sh stage=pretrain ds=zero2
#   HOSTFILE=hosts launchers/deepspeed.sh stage=pretrain ds=zero2
#   HOSTFILE=hosts launchers/deepspeed.sh stage=pretrain ds=zero2 launch.dry_run=true    # only prints the command
#
# HOSTFILE  nodes, a line HOST slots=N each (launchers/hostfile.sample); without it: this machine. Needs pdsh, ssh
#           without a password, and the working folder on a disk that all nodes share.
# NNODES    how many of them, from the top (default: all)
# NPROC     ranks on each node (default: the fewest slots of a node; without a hostfile one for each GPU, else one)
# ENDPOINT  HOST:PORT of node 0 that the others reach (default: asked of the first host by ssh, port 29500)
# PYTHON    interpreter (default: that of the active environment, else of the checkout's .venv, else python)
# Arguments are overrides of tinychat.train.
set -euo pipefail

venv=$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/python
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$venv" ]; then
    PYTHON=$venv # no environment is active: the one that make has built
fi
: "${PYTHON:=python}" "${HOSTFILE:=}" "${NNODES:=}" "${NPROC:=}" "${ENDPOINT:=}"
arguments=(launch=deepspeed)
if [ -n "$HOSTFILE" ]; then
    [ -r "$HOSTFILE" ] || {
        echo "HOSTFILE=$HOSTFILE: cannot be read" >&2
        exit 1
    }
    # Lines that are no comment; of each, the number behind slots=
    slots=$(sed -nE 's/^[[:space:]]*[^#[:space:]]+[[:space:]]+slots=([0-9]+).*/\1/p' "$HOSTFILE")
    : "${NNODES:=$(grep -c . <<<"$slots" || true)}"
    if [ "$NNODES" -gt 1 ]; then
        : "${NPROC:=$(head -n "$NNODES" <<<"$slots" | sort -n | head -n 1)}"
    fi
    arguments+=("launch.hostfile=$HOSTFILE" "launch.nnodes=$NNODES")
fi
if [ -z "$NPROC" ]; then
    NPROC=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)
    [ "$NPROC" -gt 0 ] || NPROC=1
fi
arguments+=("launch.nproc=$NPROC")
[ -z "$ENDPOINT" ] || arguments+=("launch.rdzv_endpoint=$ENDPOINT")
exec "$PYTHON" -m tinychat.train "${arguments[@]}" "$@"
