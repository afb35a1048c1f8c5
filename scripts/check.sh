#!/usr/bin/env bash
# Runs the named checks in the environment that scripts/setup.sh made. Every check is defined here, and only here: the
# Makefile, scripts/test.sh, the hooks and the workflows call this file.
#   bash scripts/check.sh lint types       two of them
#   bash scripts/check.sh all              all of them, in the order below
#   bash scripts/check.sh test -k stream   what follows "test" or "all" goes to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${PPX_VENV:-.venv}
[ ! -d "$venv/bin" ] || PATH="$(cd "$venv/bin" && pwd):$PATH"
export PATH
export OMP_NUM_THREADS=1 # two test processes on two cores: more threads make both slower
export HF_HUB_OFFLINE=1
all=(format lint words types layers docs wheel test)

format() { ruff format --check .; }

lint() {
  ruff check .
  yamllint --strict .
  check-toml pyproject.toml zensical.toml
  check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
  check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
  check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
  check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
  check-jsonschema --builtin-schema vendor.citation-file-format --default-filetype yaml CITATION.cff
  pre-commit validate-config
  zizmor --offline --quiet --persona pedantic .github/workflows
}

words() { python scripts/check_words.py; }

types() { mypy; }

is_python_310() { python -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; }

layers() {
  if is_python_310; then
    echo "layers: not checked, import-linter needs Python 3.11 or newer"
  else
    lint-imports
  fi
}

docs() {
  if is_python_310; then
    echo "docs: not built, Zensical needs Python 3.11 or newer"
  else
    python scripts/build_docs.py
  fi
}

wheel() { bash scripts/check_wheel.sh; }

tests() {
  # material that tests use if it can be had: without it they are skipped, and pytest names them
  material=$(mktemp -d)
  trap 'rm -rf "$material"' EXIT
  ppx-data fetch kokoro || echo "no Kokoro weights: its tests are skipped"
  ppx-data standin --calls 1 --out "$material/corpus" || echo "no real recordings: their tests are skipped"
  pytest -n 2 --dist worksteal -q "$@"
}

fix() {
  ruff check --fix --quiet . || true # what cannot be fixed is for the check to name
  ruff format .
}

step() { echo; echo "== $*"; "$@"; }

[ $# -gt 0 ] || { echo "usage: bash scripts/check.sh all | ${all[*]} | fix" >&2; exit 2; }
[ "$1" != all ] || set -- "${all[@]}" "${@:2}"
while [ $# -gt 0 ]; do
  name=$1
  shift
  case $name in
    test) step tests "$@"; break ;;
    format | lint | words | types | layers | docs | wheel | fix) step "$name" ;;
    *) echo "check.sh: '$name' is no check, choose from ${all[*]} fix" >&2; exit 2 ;;
  esac
done
