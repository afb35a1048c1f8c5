#!/usr/bin/env bash
# Sets up an environment from nothing and runs everything: formatter, linter, types, import layers, wheel, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh tts,align,dia,fisher,asr,parakeet,speaker,llm,llm-test,quantized,wandb,datasets,subtitles,ray,dev
PATH="$(cd "${PPX_VENV:-.venv}" && pwd)/bin:$PATH"
export PATH
export OMP_NUM_THREADS=1 # two test processes on two cores: more threads make both slower
export HF_HUB_OFFLINE=1

step() { echo; echo "== $*"; "$@"; }
# material that tests use if it can be had: without it they are skipped, and pytest names them
material=$(mktemp -d)
trap 'rm -rf "$material"' EXIT
step ppx-data fetch kokoro || echo "no Kokoro weights: its tests are skipped"
step ppx-data standin --calls 1 --out "$material/corpus" || echo "no real recordings: their tests are skipped"
step ruff format --check .
step ruff check .
step mypy
step lint-imports
step bash scripts/check_wheel.sh
step pytest -n 2 --dist worksteal -q "$@"
