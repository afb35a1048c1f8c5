"""How long a step takes on a GPU by the roofline: products, attention and memory one after another.

An estimate, until somebody measures it: the shares of a GPU's peaks that kernels reach are assumed. Exchange between
ranks is counted in bytes, and taken to happen while the GPU computes.
"""

# Shapes: K streams

from dataclasses import dataclass

from model.duplex import DuplexLM
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP
from ppx_train.planning.gpus import Gpu
from ppx_train.training.flops import TrainingFlops, keys_seen
from ppx_train.training.memory import activation_bytes, parameter_sizes

PRODUCTS_REACH, ATTENTION_REACHES, MEMORY_REACHES = 0.65, 0.45, 0.8
"""Shares of the peaks that matrix products, attention and all else are assumed to reach."""
PASSES_OVER_MEMORY = {"none": 6.6, "selective": 7.6, "full": 8.7}
"""Bytes that operators without a product move, over those that the backward pass would keep in mode `none`. Counted in
a dry run of the 7B model without adapters."""
ADAPTERS_MOVE = 1.5
"""Factor on these bytes under adapters, with the time that launching their many small kernels takes."""
DENSE_AGAIN = 2.6
"""Bytes that move when a weight of a base in 8 or 4 bits becomes bf16 for a product, half a byte to two."""
SHARDING_MOVES = 25.0
"""Bytes a weight that FSDP2 copies in a pass to gather weights and spread gradients, counted in the same way."""
OPTIMIZER_MOVES = 40.0
"""Bytes a weight that trains, which clipping and AdamW move in a step."""


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step of one rank by what they are for, and bytes that it exchanges with others."""

    products: float
    attention: float
    memory: float
    exchanged: float
    useful_flops: float

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return self.products + self.attention + self.memory


def step_time(run: Run, lm: DuplexLM, gpu: Gpu, frames: float) -> StepTime:
    """Returns the time of a step whose sequences all have `frames` frames, all with loss.

    lm: `empty_lm(run)`.
    """
    config, settings, mode = lm.config, run.trainer, run.model.activation_checkpointing
    sequences = run.data.batch / run.processes
    rows = sequences * frames
    count_K = [rows] * config.num_streams
    keys = sequences * keys_seen(round(frames), config.context)
    useful = TrainingFlops(lm)
    attention = useful(0, keys, [0.0] * config.num_streams)
    total = useful(rows, keys, count_K)
    again = lm.flops_per_frame(1) * rows if mode == "full" else 0.0
    attention_again = attention / 3 if mode == "full" else 0.0
    kept, _ = activation_bytes(config, "none", run.model.lora.rank, 2)
    moved = kept * rows * PASSES_OVER_MEMORY[mode] * (ADAPTERS_MOVE if run.model.lora.rank else 1.0)
    sizes = parameter_sizes(run, lm)
    if settings.strategy in (*FSDP, "zero3") and settings.shards > 1:
        moved += SHARDING_MOVES * lm.num_parameters() * run.passes(frames)
    if run.model.lora.base != "full":
        uses = 3 if mode == "full" else 2  # Forward, once more where it is computed again, and backward.
        moved += uses * run.passes(frames) * DENSE_AGAIN * (lm.num_parameters() - sizes.trained)
    moved += OPTIMIZER_MOVES * sizes.trained / settings.shards
    return StepTime(
        products=(total - attention + again) / (PRODUCTS_REACH * gpu.peak),
        attention=(attention + attention_again) / (ATTENTION_REACHES * gpu.peak),
        memory=moved / (MEMORY_REACHES * gpu.bandwidth),
        exchanged=exchanged_bytes(run, lm, sizes.trained, frames),
        useful_flops=total,
    )


def exchanged_bytes(run: Run, lm: DuplexLM, trained: int, frames: float) -> float:
    """Returns the bytes that a rank receives in a step: gathered bf16 weights, and fp32 gradients."""
    if run.processes == 1:
        return 0.0
    shards = run.trainer.shards
    if run.trainer.strategy in (*FSDP, "zero3"):  # Weights twice, and gradients, in each pass.
        inside = (1 - 1 / shards) * (2 * 2.0 * lm.num_parameters() + 4.0 * trained)
        between = 2 * (1 - shards / run.processes) * 4.0 * trained / shards  # Shards of the gradient, among copies.
        return run.passes(frames) * (inside + between)
    return (1 - 1 / run.processes) * 2 * 4.0 * trained  # Gradients are added up and spread, or weights after them.
