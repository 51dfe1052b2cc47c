#!/bin/sh
# What the images run: run [SETTINGS] | serve [CKPT ...] [OPTIONS] | any other command
set -eu
command=${1:-run}
[ $# -eq 0 ] || shift
case $command in
run) # as `make run`
    exec env HF_HUB_OFFLINE=1 python -m tinychat.pipeline stages=tokenizer,pretrain,sft,reward,ppo "$@"
    ;;
serve) # to the outside of the container, which needs a key: --api-key KEY, or TINYCHAT_API_KEY in the environment
    [ $# -gt 0 ] || set -- latest
    exec python -m tinychat.serve --host 0.0.0.0 "$@"
    ;;
*)
    exec "$command" "$@"
    ;;
esac
