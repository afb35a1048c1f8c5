"""Checkpoints of a run on disk: one folder each, with the resolved configuration beside the weights.

A folder appears whole or not at all (see callbacks/checkpoints.py).

RUN/checkpoints/step-0000100/checkpoint.ckpt       loader and loop state, and the names of all tensors
RUN/checkpoints/step-0000100/tensors-*.safetensors weights and moments, the parts of each rank in a file of its own
RUN/checkpoints/step-0000100/config.yaml           the resolved run
RUN/checkpoints/step-0000100/seen.json             what the run was trained on until then
RUN/checkpoints/step-0000100/heldout.json          the held-out loss, if the step was scored
RUN/checkpoints/step-0000100/SHA256SUMS            checksums of all these, as sha256sum writes them

Earlier versions have put the tensors into checkpoint.ckpt too, which is read as well.

Weights that are frozen under adapters are not saved: they are read again from where the run found them. `base_sha256`
in the checkpoint proves that they are still the same.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipelines.files import sha256_file
from data_pipelines.shards.index import ShardReader
from model.errors import UserError
from model.weights.checkpoint import check_names
from ppx_train.config.load import Job, load_saved
from ppx_train.training.saved_tensors import SavedTensor, with_values

FILE, CONFIG, SUMS = "checkpoint.ckpt", "config.yaml", "SHA256SUMS"
SCORE = "heldout.json"
"""The file with the held-out loss of a checkpoint, if its step was scored."""
ANY_TENSORS = "tensors-*.safetensors"
SUM_LINE = re.compile(rb"([0-9a-f]{64})  (\w[\w.-]*)\n")
FILES = "tensor_files"
"""The key of a saved state that says how many files hold its tensors."""
BASE = "base_sha256"
AVERAGE = "ema"
"""The key of the moving average of the weights in a saved state."""
DATA = "data_sha256"
"""The key of the shards in a saved state: the SHA-256 of each index, by folder and split."""


def sum_lines(sums: Mapping[str, str]) -> bytes:
    """Returns the lines of SUMS for files with these SHA-256, in hex, by name."""
    return "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()


def check_sums(folder: Path) -> None:
    """Compares the files of a checkpoint with their checksums; one of an earlier version, without any, is named.

    Raises: UserError naming the first file that is not as it was saved.
    """
    path = folder / SUMS
    if not path.is_file():
        print(f"{folder} has no {SUMS}, as an earlier version made it: it is used unchecked")
        return
    text = path.read_bytes()
    sums = {name.decode(): value.decode() for value, name in SUM_LINE.findall(text)}
    needed = {FILE, CONFIG, *(file.name for file in folder.glob(ANY_TENSORS))}
    names = [*sums, *sorted(needed - sums.keys())]
    with ThreadPoolExecutor() as pool:  # Each hash takes a core, and files of many ranks are large.
        found = list(pool.map(lambda name: sha256_file(folder / name) if (folder / name).is_file() else "", names))
    wrong = [folder / name for name, value in zip(names, found, strict=True) if sums.get(name) != value]
    if wrong or sum_lines(sums) != text:
        what = f"{wrong[0]} is missing" if wrong and not wrong[0].is_file() else f"{(wrong or [path])[0]} is damaged"
        raise UserError(
            f"{what} (its SHA-256 is not that in {SUMS}): move {folder} away to resume from the one before, or remove "
            f"{SUMS} if you have changed it yourself",
            code="bad-checkpoint",
        )


def data_hashes(readers: Iterable[ShardReader]) -> dict[str, str]:
    """Returns the SHA-256 of the index of each split, in hex, by its folder or URL."""
    return {str(reader.storage): reader.sha256 for reader in readers}


def check_same_data(
    found: Mapping[str, str], saved: Mapping[str, str] | None, *, step: int, allow_changed: bool
) -> None:
    """Compares the shards that a run finds with those of its checkpoint, by `data_hashes`; prints what has changed.

    saved: None for a checkpoint of an earlier version, which does not say. step: of the checkpoint.
    Raises: UserError with code "checksum" naming the first split that changed, unless `allow_changed`.
    """
    if saved is None:
        print("the checkpoint does not say which shards it was trained on, as an earlier version made it: not compared")
        return
    changed = sorted(name for name in found.keys() | saved.keys() if found.get(name) != saved.get(name))
    if changed and not allow_changed:
        what = "has changed" if changed[0] in found and changed[0] in saved else "was added or removed"
        raise UserError(
            f"{changed[0]} {what} since step {step} (by its SHA-256): give the same data, or "
            "data.allow_changed=true to go on with others",
            code="checksum",
        )
    if changed:
        print(f"data.allow_changed: from step {step} on the run reads other data than before ({', '.join(changed)})")


def checkpoints(run_dir: Path) -> list[Path]:
    """Returns the complete checkpoint folders of a run, oldest first."""
    folders = run_dir.glob("checkpoints/step-*")
    return sorted(folder for folder in folders if folder.suffix != ".partial" and (folder / CONFIG).is_file())


def best_checkpoints(folders: Sequence[Path], count: int) -> list[Path]:
    """Returns those of some checkpoints that have the lowest held-out loss, `count` at most; others have no score."""
    scored = [(json.loads((each / SCORE).read_bytes())["loss"], each) for each in folders if (each / SCORE).is_file()]
    return [each for _, each in sorted(scored)[:count]]


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Returns the saved state with a SavedTensor for each tensor; files are memory-mapped, and no object is unpickled.

    Raises: UserError that names a file that is missing, damaged, or of another checkpoint.
    """
    try:
        state = torch.load(folder / FILE, map_location="cpu", mmap=True, weights_only=True)
    except Exception as why:  # For damaged files torch raises RuntimeError, EOFError, UnpicklingError and others.
        raise UserError(
            f"{folder / FILE} is damaged ({type(why).__name__}): move {folder} away to resume from the one before",
            code="bad-checkpoint",
        ) from why
    files = state.get(FILES, 0) if isinstance(state, dict) else None
    if not isinstance(files, int) or "state_dict" not in state or "global_step" not in state:
        raise UserError(f"{folder / FILE} is not a checkpoint of ppx-train", code="bad-checkpoint")
    found: dict[str, Any] = with_values(state, folder, files)
    return found


def language_model(state: dict[str, Any], key: str = "state_dict") -> dict[str, SavedTensor]:
    """Returns the language model's tensors of a saved state, by their names in DuplexLM.

    key: AVERAGE for their moving average.
    """
    return {name[3:]: value for name, value in state[key].items() if name.startswith("lm.")}


def check_weights(folder: Path, tensors: Mapping[str, SavedTensor], model: nn.Module) -> None:
    """Checks that a checkpoint holds exactly the tensors that train in its configuration.

    Raises: UserError naming `folder` and the first tensor that is missing, extra or misshapen.
    """
    trained = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        check_names({name: torch.empty(value.shape, device="meta") for name, value in tensors.items()}, trained)
    except UserError as why:
        raise UserError(f"{folder / FILE} is not of the model in {CONFIG} ({why})", code="bad-checkpoint") from why


# These settings may differ when a run is resumed: they change how it is watched and stored, not what it computes.
RESUMABLE = {"resume", "run_dir", "groups", "logging", "recipe"}
RESUMABLE_KEYS = {f"trainer.{name}" for name in ("checkpoint_every", "keep_checkpoints", "heldout_every", "threads")}
RESUMABLE_KEYS |= {"data.allow_changed", "trainer.profile", "trainer.hang_seconds", "trainer.check_fast_paths"}
RESUMABLE_KEYS |= {"trainer.async_save", "trainer.keep_best"}
# These change in which order sums are taken: the result is the same up to rounding.
PARALLEL_KEYS = {f"trainer.{name}" for name in ("strategy", "devices", "num_nodes", "shard_size", "offload")}
PARALLEL_KEYS |= {"data.micro_frames"}  # Where it is null, data.micro_batch differs too.


def check_same_run(run: Job, checkpoint: Path) -> list[str]:
    """Checks that `run` computes what the run of `checkpoint` computed.

    It returns, in words, what differs in how ranks share the work.
    Raises: UserError naming the first setting that differs and would change the result.
    """
    saved = load_saved(checkpoint / CONFIG, type(run))
    shared = []
    for key, ours, theirs in _differences("", run, saved):
        if key.partition(".")[0] in RESUMABLE or key in RESUMABLE_KEYS:
            continue
        if key in PARALLEL_KEYS:
            shared.append(f"{key}={ours} instead of {theirs}")
            continue
        raise UserError(
            f"{key}={ours} but {checkpoint.parent.parent} was started with {theirs}: "
            "resume with the same settings, or start another run_dir",
            code="other-settings",
        )
    return shared


def _differences(prefix: str, ours: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    if not hasattr(ours, "__dataclass_fields__"):
        return [] if ours == theirs else [(prefix, ours, theirs)]
    found = []
    for name in ours.__dataclass_fields__:
        key = f"{prefix}.{name}" if prefix else name
        found += _differences(key, getattr(ours, name), getattr(theirs, name))
    return found
