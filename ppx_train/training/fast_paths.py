"""Fast paths check themselves: before a run they are compared with plain torch on the device, and off if they differ.

The comparison is made on a probe, a model of one block of each transformer with the run's own widths, adapters, base
and precision, on a made batch of the run's lengths. It depends on settings and device alone, so that a run that resumes
decides as it did, and it leaves random numbers, weights and the order of samples as they were.
"""

# Shapes: B batch, K streams, T frames

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from model.duplex import DuplexLM
from model.kernels import fast_paths
from model.kernels.attention import has_packed_flash
from model.kernels.fast_paths import (
    ADAMW,
    BLOCKS,
    COMPILED,
    FLASH,
    FUSED,
    HEADS,
    POINTWISE,
    PRODUCTS,
    RECOMPUTED,
    STEPS,
)
from ppx_train.config.run import Run
from ppx_train.training.build import base_lm, trainable_lm
from ppx_train.training.loss import group_weights, total_loss
from ppx_train.training.micro_batch import MicroBatch, collate
from ppx_train.training.ranks import all_sum
from ppx_train.training.sequences import TrainingSequence

FACTOR = 4.0
"""How much farther from the exact result a fast path may be than the plain one."""
PROBE_FRAMES = {"cpu": 200, "cuda": 2048}
"""Frames of the longer sequence of the probe, if the run's are as long: two blocks of attention on a CPU."""


@dataclass(kw_only=True)
class Outcome:
    """What a pass over the probe gave, or why it ended: the loss and the gradient of each parameter."""

    loss: float = math.nan
    gradients: dict[str, Tensor] = field(default_factory=dict)
    failure: str = ""


@dataclass(frozen=True, kw_only=True)
class PathVerdict:
    """How far from the exact result some fast paths are, and the plain one, as shares of it."""

    names: tuple[str, ...]
    loss: float = math.nan
    plain_loss: float = math.nan
    gradient: float = math.nan
    """Of the parameter where the fast paths are farthest off, measured by what is allowed."""
    plain_gradient: float = math.nan
    parameter: str = ""
    allowed: float = FACTOR
    """By how many times the fast paths may be farther off."""
    floor: float = 0.0
    """The rounding below which no error counts."""
    failure: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the fast paths may stay on."""
        # A loss is a mean over so much that most of its rounding cancels.
        loss_floor = max(torch.finfo(torch.float32).eps, self.floor / 64)
        of_loss = self.loss <= self.allowed * max(self.plain_loss, loss_floor)
        return not self.failure and of_loss and self.gradient <= self.allowed * max(self.plain_gradient, self.floor)

    def __str__(self) -> str:
        """The figures in one line."""
        if self.failure:
            return f"it fails ({self.failure})"
        return (
            f"its loss is {self.loss:.1e} off and the plain one's {self.plain_loss:.1e}, its gradient of "
            f"{self.parameter} {self.gradient:.1e} and {self.plain_gradient:.1e}"
        )


def active_paths(run: Run, device: torch.device) -> tuple[str, ...]:
    """Returns the names of the fast paths that training takes on a device, those that are switched off left out."""
    dtype = torch.bfloat16 if run.trainer.precision == "bf16-mixed" else torch.float32
    attention = [BLOCKS]
    if device.type == "cuda":
        attention = [*([FLASH] if has_packed_flash(device, dtype) else []), FUSED, BLOCKS]
    chosen = next((name for name in attention if fast_paths.is_on(name)), None)
    names = [*([chosen] if chosen else []), STEPS, POINTWISE, PRODUCTS, HEADS]
    names += [RECOMPUTED] if run.model.activation_checkpointing == "selective" else []
    names += [COMPILED] if run.model.compile else []
    return tuple(name for name in names if fast_paths.is_on(name))


def settle(run: Run, device: torch.device) -> list[PathVerdict]:
    """Switches off the fast paths that differ from plain torch, on all ranks alike; returns what they were found to be.

    Every rank has to call it. It takes seconds.
    Raises: torch.OutOfMemoryError on all ranks if the device of one has no room for the probe.
    """
    found = []
    if device.type == "cuda" and not _agree_everywhere(adamw := adamw_verdict(device), device):
        fast_paths.switch_off(ADAMW)
        found.append(adamw)
    probe = _probe_everywhere(run, device)
    while names := active_paths(run, device):
        together = probe.verdict(names)
        if _agree_everywhere(together, device):
            break
        alone = [probe.verdict([name]) for name in names]
        wrong = [verdict for verdict in alone if not _agree_everywhere(verdict, device)] or [together]
        for verdict in wrong:
            for name in verdict.names:
                fast_paths.switch_off(name)
        found += wrong
    return found


def _probe_everywhere(run: Run, device: torch.device) -> "PathProbe":
    probe = None
    with suppress(torch.OutOfMemoryError):
        probe = PathProbe(run, device)
    if all_sum(torch.tensor([float(probe is None)], device=device)).item() or probe is None:
        raise torch.OutOfMemoryError("no room for the probe")
    return probe


def _agree_everywhere(verdict: PathVerdict, device: torch.device) -> bool:
    """Whether no rank objects."""
    return not all_sum(torch.tensor([float(not verdict.agrees)], device=device)).item()


class PathProbe:
    """A small model and a batch, and what plain torch makes of them: exactly, and in the precision of the run."""

    def __init__(self, run: Run, device: torch.device) -> None:
        lm = replace(run.model.lm, num_layers=1, depformer_num_layers=1)
        lora = replace(run.model.lora, base="full")  # A base in few bits is no fast path, and has no exact weights.
        self.run = replace(run, model=replace(run.model, init="scratch", revision=None, lm=lm, lora=lora))
        self.device, self.batch = device, probe_batch(self.run, device)
        self.in_bf16 = run.trainer.precision == "bf16-mixed"
        # Gradients are sums over the frames in fp32, of products in the type of the run.
        of_sums = math.sqrt(self.batch.frames) * torch.finfo(torch.float32).eps
        self.floor = max(torch.finfo(torch.bfloat16 if self.in_bf16 else torch.float32).eps, of_sums)
        with unseen_random_numbers(device):
            self.model = probe_lm(self.run).to(device)
        with fast_paths.only():
            exact_type = torch.float32 if self.in_bf16 else torch.float64
            self.exact = self._pass(copy.deepcopy(self.model).to(exact_type), autocasts=False)
            self.plain = self.outcome()

    def verdict(self, names: Sequence[str]) -> PathVerdict:
        """Returns how far the fast paths `names`, and no others, are from the exact result."""
        with fast_paths.only(*names):
            try:
                fast = self.outcome()
            except Exception as why:  # noqa: BLE001 - whatever a kernel raises, training can go on without it
                return PathVerdict(names=tuple(names), failure=reason(why))
        return self.compared(names, fast)

    def compared(self, names: Sequence[str], fast: Outcome) -> PathVerdict:
        """Returns how far an outcome is from the exact one."""
        return compared(names, fast, self.plain, self.exact, self.floor)

    def outcome(self) -> Outcome:
        """Returns what a pass in the precision of the run gives."""
        self.model.zero_grad()
        return self._pass(self.model, autocasts=self.in_bf16)

    def _pass(self, model: DuplexLM, *, autocasts: bool) -> Outcome:
        how: AbstractContextManager[object] = nullcontext()
        if autocasts:
            how = torch.autocast(self.device.type, torch.bfloat16)
        batch = self.batch
        with unseen_random_numbers(self.device):
            with how:
                sums = model(batch.codes_BKT, batch.weights_BKT, batch.lengths, batch.rows)
                loss = total_loss(sums.loss_K, group_weights(batch.weights_BKT), self.run.loss)
            loss.backward()
        named = model.named_parameters()
        return Outcome(
            loss=float(loss.detach()),
            gradients={name: value.grad for name, value in named if value.grad is not None},
        )


def probe_lm(run: Run) -> DuplexLM:
    """Returns the model of a probe on the CPU, with adapters that count from the start."""
    model = trainable_lm(run, base_lm(run))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # At zero they would keep gradients from the other half.
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def probe_batch(run: Run, device: torch.device) -> MicroBatch:
    """Returns two sequences of random codes, of the run's longest length as far as that is needed, and shorter."""
    config, generator = run.model.lm, torch.Generator().manual_seed(0)
    usual, beyond = PROBE_FRAMES.get(device.type, 200), config.context + 50
    # The window is looked at too if that costs little.
    longest = min(run.data.max_frames, max(usual, beyond) if beyond < 2 * usual else usual)
    sequences = []
    for frames in (longest, max(2, longest * 5 // 8)):
        codes_KT = torch.randint(config.card, (config.num_streams, frames), generator=generator)
        codes_KT[0] = torch.randint(config.text_card, (frames,), generator=generator)
        has_loss_T = torch.arange(frames) >= frames // 10  # As behind a prompt.
        sequences.append(TrainingSequence("probe", codes_KT, has_loss_T))
    return collate(sequences, run.loss, config).to(device)


@contextmanager
def unseen_random_numbers(device: torch.device) -> Iterator[None]:
    """Leaves the state of torch's generators as it was."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@torch.no_grad()
def compared(names: Sequence[str], fast: Outcome, plain: Outcome, exact: Outcome, floor: float) -> PathVerdict:
    """Returns how far two outcomes are from the exact one; below `floor` no error counts."""
    worst = max(exact.gradients, key=lambda name: _excess(name, fast, plain, exact, floor))
    return PathVerdict(
        names=tuple(names),
        loss=abs(fast.loss - exact.loss) / abs(exact.loss),
        plain_loss=abs(plain.loss - exact.loss) / abs(exact.loss),
        gradient=distance(fast, exact, worst),
        plain_gradient=distance(plain, exact, worst),
        parameter=worst,
        floor=floor,
    )


def _excess(name: str, fast: Outcome, plain: Outcome, exact: Outcome, floor: float) -> float:
    """How many times farther off a gradient is than the plain one; a value that is no number is farthest of all."""
    excess = distance(fast, exact, name) / max(distance(plain, exact, name), floor)
    return math.inf if math.isnan(excess) else excess


def distance(outcome: Outcome, exact: Outcome, name: str) -> float:
    """Returns the norm of the difference of a parameter's gradient from the exact one, as a share of that."""
    if name not in outcome.gradients:
        return math.inf
    right = exact.gradients[name]
    off = torch.linalg.vector_norm(outcome.gradients[name].to(right.dtype) - right)
    return float(off / torch.linalg.vector_norm(right).clamp(min=torch.finfo(right.dtype).tiny))


def adamw_verdict(device: torch.device) -> PathVerdict:
    """Returns how far two steps of fused AdamW are from those in fp64, against steps of one operator after another."""

    def steps(dtype: torch.dtype, fused: bool) -> Outcome:
        generator = torch.Generator().manual_seed(0)
        weights = {
            name: torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
            for name, shape in (("matrix", (65, 127)), ("stack", (3, 16, 40)), ("norm", (1, 1, 33)))
        }
        optimizer = torch.optim.AdamW(weights.values(), lr=0.1, betas=(0.9, 0.95), foreach=False, fused=fused)
        for _ in range(2):
            for weight in weights.values():
                weight.grad = torch.randn(weight.shape, generator=generator).to(device, dtype)
            optimizer.step()
        # What a step moved stands in the place of a gradient.
        return Outcome(loss=1.0, gradients={name: weight.detach() for name, weight in weights.items()})

    try:
        fused = steps(torch.float32, True)
    except Exception as why:  # noqa: BLE001 - as in PathProbe
        return PathVerdict(names=(ADAMW,), failure=reason(why))
    exact = partial(steps, torch.float64, False)
    return compared([ADAMW], fused, steps(torch.float32, False), exact(), torch.finfo(torch.float32).eps)


def reason(why: BaseException) -> str:
    """Returns the kind of an exception and the first line of its message."""
    first = next(iter(str(why).splitlines()), "")
    return f"{type(why).__name__}: {first}" if first else type(why).__name__
