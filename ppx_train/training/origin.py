"""The origin of a checkpoint: version and commit of this project, commit of the start weights."""

import os
import subprocess
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from model.weights.sources import REPOSITORY
from model.weights.tensor_files import INDEX_NAME, WEIGHTS_NAME
from ppx_train import __version__
from ppx_train.config.load import Job
from ppx_train.config.run import Run
from ppx_train.roots import ROOT

KEY = "ppx_train"
"""The key of the origin in a saved state."""


def origin(run: Job) -> dict[str, str]:
    """Returns `version` and, where known, `commit` of the project and `start_commit` of the start weights on the hub.

    Call it when training starts, because both may change later.
    """
    found = {"version": __version__, "commit": project_commit(), "start_commit": cached_commit(run)}
    return {key: value for key, value in found.items() if value}


def project_commit() -> str:
    """Returns the git commit of this code's checkout, with `-dirty` if files differ; "" if it is installed."""
    try:
        top = _git("rev-parse", "--show-toplevel")
        if top != str(ROOT):  # The environment may lie inside another project's checkout.
            return ""
        return _git("rev-parse", "HEAD") + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def cached_commit(run: Job) -> str:
    """Returns the commit of the hub repository whose cached weights `run` starts from; "" for local weights."""
    if not isinstance(run, Run) or not REPOSITORY.match(run.model.init) or Path(run.model.init).exists():
        return ""
    for name in (WEIGHTS_NAME, INDEX_NAME):
        path = try_to_load_from_cache(run.model.init, name, revision=run.model.revision)
        if isinstance(path, str):
            return Path(path).parent.name  # The cache names files .../snapshots/COMMIT/model.safetensors.
    return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, timeout=20, check=True)
    return os.fsdecode(done.stdout).strip()
