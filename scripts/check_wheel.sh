#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment and lists the recipes from another folder.
# The dependencies are borrowed from the current environment; the project itself comes from the wheel alone.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir "$work" .
python -m venv --without-pip "$work/env"
python -m pip --disable-pip-version-check --quiet --python "$work/env/bin/python" install --no-deps "$work"/*.whl
borrowed=$(python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
cd "$work"
PYTHONPATH=$borrowed env/bin/ppx-train recipes
PYTHONPATH=$borrowed env/bin/ppx-train recipe=quickstart --print | head -n 3
PYTHONPATH=$borrowed env/bin/ppx-data make service --dry-run | head -n 1
PYTHONPATH=$borrowed env/bin/python -c "
import ppx_train, model.assets
root = ppx_train.__file__.rsplit('/', 2)[0]
assert '$work/env' in root, root
assert model.assets.asset('mimi_small.safetensors').is_file()
from ppx_train.export.card import TEMPLATE
assert TEMPLATE.is_file(), TEMPLATE
from ppx_train.serve.settings import PAGE
assert {'index.html', 'main.js', 'style.css', 'capture.worklet.js'} <= {path.name for path in PAGE.iterdir()}, PAGE
print('wheel works from', root.replace('$work', 'WORK'))"
