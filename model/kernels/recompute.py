"""Activation checkpointing: what the backward pass computes again instead of the forward pass keeping it.

none       nothing: fastest on a GPU with memory to spare
selective  the outputs of norms and gates, which cost one pass over their inputs: no matrix product is repeated
full       everything inside a block but its input: least memory, a third more work
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from model.errors import UserError
from model.kernels.fast_paths import COMPILED, RECOMPUTED, is_on

MODES = ("none", "selective", "full")


class Block(nn.Module):
    """A block of a transformer, whose `mode` says what it recomputes."""

    mode = "none"

    def run(self, *inputs: Any) -> Any:
        """The block's output; in mode `full` its inside is computed again in the backward pass."""
        call = self if is_on(COMPILED) else self._call_impl  # What `__call__` comes to without compiling.
        if self.mode == "full" and torch.is_grad_enabled():
            # A block draws no random numbers, so that the state of their generators need not be kept.
            return checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
        return call(*inputs)

    @contextmanager
    def recomputed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[Tensor]:
        """Yields y = function(x); in mode `selective`, autograd saves x in place of y inside the `with` block."""
        y = function(x)
        # A compiled block is left alone: the compiler decides what is cheaper to compute again.
        is_kept = self.mode != "selective" or not torch.is_grad_enabled() or torch.compiler.is_compiling()
        if is_kept or not is_on(RECOMPUTED):
            yield y
            return
        with forget(y, function, x):
            yield y


@contextmanager
def forget(y: Tensor, function: Callable[[Tensor], Tensor], x: Tensor) -> Iterator[None]:
    """Inside the `with` block autograd saves x instead of y = function(x), and computes y again when it is needed.

    Any view of all of y is recognised, in whatever shape it is saved. The state of autocast is that of the forward pass
    both times, so that y has its type again wherever the backward pass runs.
    """
    # Autograd holds on to both functions below, so that they must not hold y.
    storage, size, x = y.untyped_storage()._cdata, y.numel(), x.detach()
    device, autocasts = x.device.type, torch.amp.is_autocast_available(x.device.type)
    dtype = torch.get_autocast_dtype(device) if autocasts else None
    is_enabled = autocasts and torch.is_autocast_enabled(device)

    def pack(saved: Tensor) -> Any:
        if saved.numel() != size or saved.untyped_storage()._cdata != storage:
            return saved
        return saved.shape, saved.stride()

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        same: AbstractContextManager[Any] = torch.autocast(device, dtype, is_enabled) if autocasts else nullcontext()
        with torch.no_grad(), same:
            return function(x).as_strided(*packed)

    with saved_tensors_hooks(pack, unpack):
        yield


def set_mode(model: nn.Module, mode: str) -> None:
    """Sets what all blocks of a model recompute.

    Raises: UserError for a mode that is not one of MODES.
    """
    if mode not in MODES:
        raise UserError(f"activation checkpointing {mode!r}: choose one of {', '.join(MODES)}", code="unknown-name")
    for module in model.modules():
        if isinstance(module, Block):
            module.mode = mode
