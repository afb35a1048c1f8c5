"""Uploads an exported folder to a model repository of the hub (model.weights.hub_push)."""

from pathlib import Path

from data_pipelines.files import sha256_file
from model.errors import UserError
from model.weights import hub_push
from model.weights.hub_push import Target
from ppx_train.export.export_settings import ExportSettings
from ppx_train.export.folder import find_checkpoint, request_of
from ppx_train.export.sums import SUMS, check_sums, read_sums
from ppx_train.inference.sidecar import read_sidecar


def export_is_finished(checkpoint: Path, out: Path, settings: ExportSettings, *, public: bool) -> bool:
    """Returns whether `out` is already, unchanged, the export that is asked for, so that only the upload is missing.

    An upload that could not work is refused here, before any work is done.
    Raises: UserError if `out` is something else, or the repository, the token or the network do not allow the upload.
    """
    repository = settings.push
    if repository is None:
        if public:
            raise UserError("--public has no effect without --push ORG/NAME: leave it out", code="bad-combination")
        return False
    settings.check()
    is_finished = out.exists()
    if is_finished:
        _check_finished(out, request_of(find_checkpoint(checkpoint), settings))
    hub_push.check_push(_target(repository, public), out if is_finished else None, _sums(out) if is_finished else {})
    return is_finished


def push(folder: Path, name: str, *, public: bool) -> str:
    """Uploads `folder` to the repository `name`, which is made if it does not exist; returns its address.

    Raises: UserError if the hub refuses or cannot be reached, saying how to resume; the folder is left as it is.
    """
    return hub_push.push(folder, _target(name, public), _sums(folder))


def _check_finished(out: Path, request: str) -> None:
    sidecar = read_sidecar(out) if out.is_dir() else None
    if sidecar is None or sidecar.origin.request != request:
        raise UserError(
            f"--out {out} exists, and is not the export asked for: choose another folder, or the same options",
            code="other-settings",
        )
    check_sums(out)


def _target(name: str, public: bool) -> Target:
    return Target(name=name, asked=f"--push {name}", public=public, public_flag="--public")


def _sums(folder: Path) -> dict[str, str]:
    return read_sums(folder) | {SUMS: sha256_file(folder / SUMS)}
