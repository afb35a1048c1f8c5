#!/usr/bin/env bash
# Sets up an environment from nothing and runs every check of scripts/check.sh: formatter, linters, types, import layers,
# documentation, wheel, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec bash scripts/check.sh all "$@"
