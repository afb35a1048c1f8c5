"""FSDP2 under Lightning, over all ranks or (hybrid) over groups of ranks that each hold a copy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ppx_train.training.checkpoint import read_checkpoint
from ppx_train.training.optim import moments_by_name
from ppx_train.training.saved_tensors import SavedTensor, local_part


class ShardedStrategy(ModelParallelStrategy):
    """Saves and loads the checkpoint that all strategies share, by the names of parameters: of each rank its shards."""

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
        """Returns the weights that train, as this rank holds them."""
        assert self.model is not None
        reshard(self.model)
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Returns the state of the optimiser by names, as this rank holds it."""
        assert self.model is not None
        reshard(self.model)
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        names = self.lightning_module.parameter_groups  # type: ignore[union-attr]
        groups = [{**group, "params": own} for group, own in zip(plain.param_groups, names, strict=True)]  # type: ignore[arg-type]
        state = {name: plain.state[value] for name, value in self.model.named_parameters() if value in plain.state}
        return {"state": state, "param_groups": groups}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes the part of this rank, if it belongs to the first copy of the model."""
        number, size = self.shard_mesh.get_local_rank(self.shard_mesh.ndim - 1), self.shard_mesh.shape[-1]
        if self.global_rank < size:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options=(number, size))

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


def reshard(model: nn.Module) -> None:
    """Lets go of gathered weights: those outside of all blocks stay after a forward pass without gradients."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def fill(pairs: Iterable[tuple[nn.Parameter | Tensor, Tensor | SavedTensor]]) -> None:
    """Copies into each parameter its part of a whole tensor, of which no more is read."""
    for parameter, whole in pairs:
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(whole[local_part(parameter)])
        else:
            parameter.copy_(whole if isinstance(whole, Tensor) else whole.whole())


def _sharded_like(parameter: nn.Parameter, moments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an optimiser's state of one parameter, sharded as the parameter is."""
    state: dict[str, Any] = {}
    for key, value in moments.items():
        if isinstance(value, SavedTensor):
            state[key] = torch.zeros_like(parameter)
            fill([(state[key], value)])
        else:
            state[key] = value.clone() if isinstance(value, Tensor) else value
    return state
