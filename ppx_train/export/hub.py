"""Uploads an exported folder to a model repository of the hub (model.weights.hub_push)."""

from pathlib import Path

from data_pipelines.files import sha256_file
from model.weights import hub_push
from model.weights.hub_push import Target
from ppx_train.export.sums import SUMS, read_sums


def check_push(name: str, *, public: bool, folder: Path | None) -> None:
    """Raises UserError if an upload to `name` could not work: asked before any work is done.

    folder: the export, if it exists already; without it the repository must be new or empty.
    """
    hub_push.check_push(_target(name, public), folder, _sums(folder) if folder else {})


def push(folder: Path, name: str, *, public: bool) -> str:
    """Uploads `folder` to the repository `name`, which is made if it does not exist; returns its address.

    Raises: UserError if the hub refuses or cannot be reached, saying how to go on; the folder is left as it is.
    """
    return hub_push.push(folder, _target(name, public), _sums(folder))


def _target(name: str, public: bool) -> Target:
    return Target(name=name, asked=f"push_to_hub={name}", public=public, public_flag="public=true")


def _sums(folder: Path) -> dict[str, str]:
    return read_sums(folder) | {SUMS: sha256_file(folder / SUMS)}
