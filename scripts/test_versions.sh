#!/usr/bin/env bash
# Runs scripts/test.sh on the oldest and on the newest Python and torch that are supported, each in an environment of its
# own (.venv-oldest and .venv-newest, several GB each with torch for CUDA), and prints a table. Arguments go to pytest.
#   PPX_OLDEST_PYTHON (default python3.10), PPX_NEWEST_PYTHON (python3.13): interpreters
#   PPX_OLDEST_TORCH (default torch==2.10.0), PPX_NEWEST_TORCH (torch==2.14.1): what pip installs
#   PPX_OLDEST_VENV, PPX_NEWEST_VENV: other places for the environments
set -euo pipefail
cd "$(dirname "$0")/.."
oldest_python=${PPX_OLDEST_PYTHON:-python3.10}
newest_python=${PPX_NEWEST_PYTHON:-python3.13}

need() { # need PYTHON VARIABLE
  if ! "$1" --version >/dev/null 2>&1; then
    echo "test_versions: $1 does not run here: install it, or name another with $2" >&2
    exit 2
  fi
}
need "$oldest_python" PPX_OLDEST_PYTHON
need "$newest_python" PPX_NEWEST_PYTHON

log=$(mktemp)
trap 'rm -f "$log"' EXIT
table="        Python  torch         result  tests"
status=0
try() { # try NAME PYTHON TORCH VENV ARGUMENT...: one more row of the table
  local name=$1 python=$2 torch=$3 venv=$4 result=passed versions tests
  shift 4
  echo "==== $name: $python and $torch in $venv"
  if ! PYTHON=$python PPX_TORCH=$torch PPX_VENV=$venv bash scripts/test.sh "$@" 2>&1 | tee "$log"; then
    result=FAILED
    status=1
  fi
  versions=$("$venv/bin/python" -c "
import platform, torch
print(f'{platform.python_version():7} {torch.__version__:13}')") || versions="no environment      "
  tests=$(grep -E '^=* ?[0-9]+ (passed|failed|error)' "$log" | tail -n 1) || tests="none"
  table+=$'\n'"$name  $versions $result  $tests"
}
try oldest "$oldest_python" "${PPX_OLDEST_TORCH:-torch==2.10.0}" "${PPX_OLDEST_VENV:-.venv-oldest}" "$@"
try newest "$newest_python" "${PPX_NEWEST_TORCH:-torch==2.14.1}" "${PPX_NEWEST_VENV:-.venv-newest}" "$@"
echo
echo "$table"
exit $status
