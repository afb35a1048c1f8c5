#!/usr/bin/env bash
# All figures of one GPU in one command: training, streaming, live sessions and codec at full size with random weights.
#   bash scripts/bench/gpu.sh OUT      (OUT: folder for the tables and the JSON; needs about 80 GB of GPU memory)
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: bash scripts/bench/gpu.sh OUT}
python=${PYTHON:-python}
command -v nvidia-smi > /dev/null || { echo "gpu.sh: no NVIDIA GPU here (nvidia-smi is not found)" >&2; exit 2; }
mkdir -p "$out"
export PYTHONPATH=$PWD

run() { # a name for the files, then the script and its flags; one that fails does not stop the others
  echo; echo "== $1: ${*:2}"
  "$python" "${@:2}" --json "$out/$1.json" 2>&1 | tee "$out/$1.txt"
}
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.txt"
train=scripts/bench/train_step.py
run train_full $train --gpu7b --checkpointing full --rounds 3
run train_full_compiled $train --gpu7b --checkpointing full --compile --rounds 3
run train_selective $train --gpu7b --checkpointing selective --batch 4 --rounds 3
run train_selective_compiled $train --gpu7b --checkpointing selective --batch 4 --compile --rounds 3
run train_prompt $train --gpu7b --checkpointing full --prompt 0.4 --rounds 3
run stream scripts/bench/stream_step.py --gpu7b --batch 1 32 --filled 1500
run sessions scripts/bench/sessions.py --gpu7b --sessions 1 8 16 32 48
run precision scripts/bench/precision.py --gpu7b --batch 1 8 --precision bf16 int8
run codec scripts/bench/codec.py --device cuda
