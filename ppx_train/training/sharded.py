"""FSDP2 under Lightning, over all ranks or (hybrid) over groups of ranks that each hold a copy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ppx_train.training.checkpoint import read_checkpoint
from ppx_train.training.optim import moments_by_name


class ShardedStrategy(ModelParallelStrategy):
    """Saves and loads the checkpoint that all strategies share: whole tensors, by the names of parameters."""

    def __init__(self, copies: int, copy_size: int, backend: str | None) -> None:
        """copies, copy_size: copies of the model, and the ranks that share each."""
        # Lightning makes a mesh of these two sizes; its second dimension means tensor parallelism only to models that
        # use it so.
        super().__init__(
            data_parallel_size=copies,
            tensor_parallel_size=copy_size,
            save_distributed_checkpoint=False,
            process_group_backend=backend,
        )
        self.copies = copies

    @property
    def shard_mesh(self) -> DeviceMesh:
        """The mesh for `fully_shard`: the ranks of the one copy, or [copies, ranks of a copy]."""
        return self.device_mesh if self.copies > 1 else self.device_mesh["tensor_parallel"]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns the whole weights that train, on the CPU of the first rank; the other ranks get nothing."""
        return get_model_state_dict(self.model, options=_WHOLE)  # type: ignore[arg-type]

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Returns the whole state of the optimiser by names, on the CPU of the first rank."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return get_optimizer_state_dict(self.model, plain, options=_WHOLE)  # type: ignore[arg-type]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Fills this rank's shards from the checkpoint, and returns the rest of it."""
        assert self.model is not None
        state = read_checkpoint(Path(checkpoint_path).parent)
        named = dict(self.model.named_parameters())
        fill((named[name], value) for name, value in state.pop("state_dict").items() if name in named)
        (saved,), (optimizer,) = state.pop("optimizer_states"), self.optimizers
        order = self.lightning_module.parameter_order  # type: ignore[union-attr]
        for name, moments in moments_by_name(saved, order)["state"].items():  # type: ignore[arg-type]
            optimizer.state[named[name]] = _sharded_like(named[name], moments)
        return state


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


@torch.no_grad()
def fill(pairs: Iterable[tuple[nn.Parameter | Tensor, Tensor]]) -> None:
    """Copies into each parameter its part of a whole tensor."""
    for parameter, whole in pairs:
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(whole[local_part(parameter)])
        else:
            parameter.copy_(whole)


def local_part(parameter: DTensor) -> tuple[slice, ...]:
    """Returns which part of the whole tensor this rank holds."""
    part = [slice(0, size) for size in parameter.shape]
    for dim, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            whole = part[placement.dim]
            rows = -(-(whole.stop - whole.start) // parameter.device_mesh.size(dim))  # As torch.chunk cuts.
            start = min(whole.start + rows * parameter.device_mesh.get_local_rank(dim), whole.stop)
            part[placement.dim] = slice(start, min(start + rows, whole.stop))
    return tuple(part)


def _sharded_like(parameter: nn.Parameter, moments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an optimiser's state of one parameter, sharded as the parameter is."""
    state: dict[str, Any] = {}
    for key, value in moments.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            state[key] = torch.zeros_like(parameter)
            fill([(state[key], value)])
        else:
            state[key] = value.clone() if isinstance(value, Tensor) else value
    return state
