"""The start of a sharded run: each rank fills its own shards, and holds one whole tensor at a time beside them."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from model.adapters.lora import adapters
from model.duplex import HEAD_GAIN, HEADS, DuplexLM
from model.weights.parameters import stored_parameters
from ppx_train.config.run import Run
from ppx_train.training.build import add_to_digest, base_dtype, check_start, empty_lm, trainable_lm
from ppx_train.training.parallel import shard
from ppx_train.training.sharded import fill
from ppx_train.training.vocabulary import new_vocabulary


def sharded_lm(run: Run, mesh: DeviceMesh, device: torch.device) -> tuple[DuplexLM, str | None]:
    """Returns the model of `run` at its first step, sharded over `mesh`, and the fingerprint of a frozen base.

    The values are those of `trainable_lm(run, base_lm(run))`, whatever the number of ranks.
    Raises: UserError as `base_lm`.
    """
    check_start(run)
    lm = trainable_lm(run, DuplexLM(run.model.lm, device="meta", dtype=base_dtype(run)))
    shard(lm, mesh, run.trainer.precision)
    lm.to_empty(device=device)
    own, digest = dict(lm.named_parameters()), hashlib.sha256()
    torch.manual_seed(run.seed)  # Weights from scratch are drawn from this seed, and adapters after them.
    for name, value in base_values(run):
        path, _, leaf = name.rpartition(".")
        fill([(own[name if name in own else f"{path}.base.{leaf}"], value)])
        if run.model.lora.rank:
            add_to_digest(digest, name, value)
    if not run.model.lora.rank:
        return lm, None
    for path, adapter in adapters(empty_lm(run)):
        fill((own[name], value) for name, value in fresh(path, adapter))
    return lm, digest.hexdigest()


def base_values(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Yields names and values of the start weights on the CPU, in the order of the model, one whole tensor at a time.

    Those from scratch are drawn from torch's generator, as DuplexLM draws them.
    Raises: UserError as `base_lm`.
    """
    dtype, settings = base_dtype(run), run.model
    if settings.init != "scratch":
        vocabulary = new_vocabulary(run)
        for name, value in stored_parameters(settings.init, settings.lm, settings.revision, dtype=dtype):
            yield name, vocabulary.rows(name, value) if vocabulary else value
            del value  # Otherwise it lives on while the next one is read.
        return
    for path, module in DuplexLM(settings.lm, device="meta").named_modules():
        for name, value in fresh(path, module):
            yield name, (value.mul_(HEAD_GAIN) if path in HEADS else value).to(dtype)


@torch.no_grad()
def fresh(path: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields names and fresh values of the parameters that a module on the meta device owns, without its children's."""
    if next(module.parameters(recurse=False), None) is None:
        return
    module.to_empty(device="cpu", recurse=False)
    module.reset_parameters()  # type: ignore[operator]
    yield from ((f"{path}.{leaf}", value.detach()) for leaf, value in module.named_parameters(recurse=False))
    module.to_empty(device="meta", recurse=False)
