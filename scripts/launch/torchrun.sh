#!/usr/bin/env bash
# Trains on several machines without a scheduler. Start it on each of them, from an activated environment:
#   bash scripts/launch/torchrun.sh NODES NUMBER FIRST recipe=mix_real_synth_2nodes 'data.paths=[shards]'
# NODES: how many there are. NUMBER: which this one is, from 0. FIRST: name or address of number 0, which all can reach.
#   PPX_PROCESSES (default 8) processes on each machine, one for each GPU; PPX_PORT (default 29500) a free port of FIRST.
# Run it again, everywhere, to go on from the newest checkpoint; run_dir must be on a disk that all machines see.
set -euo pipefail
[ $# -ge 4 ] || { sed -n '2,6s/^# //p' "$0" >&2; exit 2; }
nodes=$1 number=$2 first=$3
shift 3
# export NCCL_SOCKET_IFNAME=eth0    # the interface between the machines, where NCCL does not find it itself
exec torchrun --nnodes "$nodes" --node-rank "$number" --master-addr "$first" --master-port "${PPX_PORT:-29500}" \
  --nproc-per-node "${PPX_PROCESSES:-8}" -m ppx_train "$@" resume=true
