#!/usr/bin/env bash
# All that needs a GPU, in one command and at most ten minutes: the tests marked `gpu`, `ppx-train check` on 7B shapes
# with random weights, and the figures of training, streaming, live sessions and codec at full size.
#   bash scripts/bench/gpu.sh OUT      (OUT: folder for the tables and the JSON; needs about 80 GB of GPU memory)
#   PPX_GPU_SECONDS=1800 bash scripts/bench/gpu.sh OUT      (more time than the usual 600 s)
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:?usage: bash scripts/bench/gpu.sh OUT}
python=${PYTHON:-python}
seconds=${PPX_GPU_SECONDS:-600}
command -v nvidia-smi > /dev/null || { echo "gpu.sh: no NVIDIA GPU here (nvidia-smi is not found)" >&2; exit 2; }
[ ! -e "$out/device_report.json" ] || { echo "gpu.sh: $out holds figures already: give another OUT" >&2; exit 2; }
mkdir -p "$out"
export PYTHONPATH=$PWD
failed=()

limited() { # seconds at most, a name for the files, then the command; one that fails does not stop the others
  local left=$((seconds - SECONDS)) limit=$1 name=$2
  shift 2
  if [ "$left" -lt 20 ]; then echo "== $name: left out, the time is up"; failed+=("$name (no time)"); return; fi
  echo; echo "== $name: $*"
  timeout --kill-after 10 $((left < limit ? left : limit)) "$@" 2>&1 | tee "$out/$name.txt" || failed+=("$name")
}
bench() { limited 90 "$1" "$python" "${@:2}" --json "$out/$1.json"; }

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.txt"
golden=tests/golden/training
limited 120 tests "$python" -m pytest -q -m gpu -p no:cacheprovider tests/model
# The shapes of the 7B but for the vocabularies, which are those of the shipped shards, and the run of lora_voice on them.
limited 240 check "$python" -m ppx_train check recipe=lora_voice model.init=scratch model.codec=small \
  model.tokenizer=$golden/tokenizer.model model.lm.text_card=500 model.lm.card=512 "data.paths=[$golden/shards]" \
  data.batch=4 data.micro_frames=512 data.max_frames=512 data.heldout_samples=0 --steps 4 --out "$out/device_report.json"
train=scripts/bench/train_step.py
bench train_lora $train --gpu7b --checkpointing full --rounds 3
bench train_lora_selective $train --gpu7b --checkpointing selective --batch 4 --rounds 3
bench train_all $train --gpu7b --lora 0 --checkpointing full --batch 4 --rounds 3
bench stream scripts/bench/stream_step.py --gpu7b --batch 1 32 --filled 1500
bench sessions scripts/bench/sessions.py --gpu7b --sessions 1 16 32
bench train_lora_compiled $train --gpu7b --checkpointing selective --batch 4 --compile --rounds 3
bench train_prompt $train --gpu7b --checkpointing full --prompt 0.4 --rounds 3
bench precision scripts/bench/precision.py --gpu7b --batch 1 8 --precision bf16 int8
bench codec scripts/bench/codec.py --device cuda
echo
echo "took $SECONDS s, figures in $out"
[ ${#failed[@]} -eq 0 ] || { printf 'failed or left out: %s\n' "${failed[@]}"; exit 1; }
