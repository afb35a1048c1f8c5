"""Layout `lora`: the adapter alone, with the name of the base it belongs to.

lora.safetensors      A and B of every linear layer under Kyutai's names, 8 depth steps, zeros where nothing was trained
config.json           shapes, adapter and base as stock Moshi runtimes read them
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from model.adapters.lora import adapter_state_dict, cut_adapter
from model.duplex import DuplexLM
from model.errors import UserError
from model.weights.checkpoint import HUB_FILES, write_weights
from model.weights.native import depth_steps
from model.weights.sources import hub_model
from model.weights.tensor_files import read_header, weights_path
from ppx_train.config.run import Run
from ppx_train.inference.lora_folder import ADAPTER_NAME


@dataclass(frozen=True, kw_only=True)
class Base:
    """The weights that an adapter is added to.

    name: hub repository or local path. commit: of the repository; None for a path. steps: how many depth steps it has.
    """

    name: str
    commit: str | None
    file: Path
    steps: int

    @property
    def local(self) -> bool:
        """Whether only this machine has it."""
        return self.commit is None

    @property
    def for_stock_moshi(self) -> bool:
        """Whether the stock moshi package can load it: it wants one file, of 8 depth steps, since it cannot cut 16."""
        return self.steps == 8 and self.file.suffix == ".safetensors"

    @property
    def address(self) -> str:
        """How a stock config.json names the weights: in another repository, or on this machine."""
        return f"file://{self.file}" if self.local else f"hf://{self.name}/{self.file.name}"


def check_adapter(run: Run, layout: str, base: str | None) -> None:
    """Raises UserError if `run` has no adapter but layout or `base` need one, or its base is not a file."""
    if not run.model.lora.rank:
        if layout == "lora":
            raise UserError(
                "--layout lora: the run trained all weights, there is no adapter, choose kyutai or nvidia",
                code="bad-combination",
            )
        if base is not None:
            raise UserError(
                f"--base {base} has no effect, since the run trained all weights: leave it out", code="bad-combination"
            )
    if layout == "lora" and run.model.init == "scratch" and base is None:
        raise UserError(
            "--layout lora: the run started from random weights (model.init=scratch), which nobody has, choose kyutai "
            "or nvidia",
            code="bad-combination",
        )


def point_to_base(run: Run, base: str | None, commit: str | None) -> Run:
    """Returns `run` with its start weights named by the place and commit to read them from now."""
    model = run.model
    if base is not None:
        return replace(run, model=replace(model, init=base, revision=None))
    return replace(run, model=replace(model, revision=model.revision or commit)) if model.lora.rank else run


def find_base(run: Run) -> Base:
    """Returns the start weights of a run. Raises UserError if they are not found or cannot be fetched."""
    path, name = Path(run.model.init), run.model.init
    folder = path.resolve() if path.exists() else hub_model(name, HUB_FILES, run.model.revision)
    file = weights_path(folder)
    stored = read_header(file)
    return Base(
        name=str(folder) if path.exists() else name,
        commit=None if path.exists() else folder.name,  # .../snapshots/COMMIT
        file=file,
        steps=depth_steps(stored),
    )


def save_adapter(folder: Path, model: DuplexLM, dtype: torch.dtype) -> int:
    """Writes lora.safetensors and returns its number of values. Raises UserError as `adapter_state_dict` does."""
    tensors = cut_adapter(adapter_state_dict(model, complete=True))
    write_weights(folder / ADAPTER_NAME, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    return sum(tensor.numel() for tensor in tensors.values())


def adapter_keys(run: Run, base: Base) -> dict[str, Any]:
    """Returns the keys of a stock config.json that make a runtime load the base with the adapter on top."""
    lora = {"lora": True, "lora_name": ADAPTER_NAME}
    lora |= {"lora_rank": run.model.lora.rank, "lora_scaling": run.model.lora.scaling}
    return {"moshi_name": base.address, **lora}
