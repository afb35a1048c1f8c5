"""The memory that a rank of a run takes on a GPU, in closed form: what is known before any weight is loaded.

Counted are the tensors that are alive at the worst moment, which is early in a backward pass of sequences of the
longest length with loss everywhere. A dry run of the 7B model (tests/test_dry_run.py) agrees to within 5 %. What lies
outside of tensors is not counted: see OUTSIDE.
"""

from collections import Counter
from dataclasses import dataclass

from model.config import LMConfig
from model.duplex import HEADS, DuplexLM
from model.kernels.cross_entropy import CHUNK_LOGITS
from model.layers import Linear, StepLinear
from ppx_train.config.run import Run
from ppx_train.config.trainer import FSDP
from ppx_train.training.build import base_dtype

OUTSIDE = 4e9
"""Bytes for CUDA's context, buffers of exchange, scratch memory of kernels and gaps. Not measured."""
QUANTIZED_BYTES = {"int8": 8.5 / 8, "nf4": 4.5 / 8}
"""Bytes of a quantized weight, its share of the block's scale included."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of a rank by what they are for."""

    weights: float
    moments: float
    gradients: float
    """Those that exist when activations are at their peak: none in a step's only pass."""
    copies: float
    """Weights in the type of products, gathered ones included."""
    activations: float
    work: float
    """Tensors of one block or head in its backward pass."""
    end: float
    """All bytes at the end of a backward pass, when gradients are whole and activations are gone."""

    @property
    def total(self) -> float:
        """The peak."""
        return max(
            self.end,
            self.weights + self.moments + self.gradients + self.copies + self.activations + self.work,
        )


@dataclass(frozen=True, kw_only=True)
class ParameterSizes:
    """Numbers of parameters of a model, and the bytes of those that are frozen."""

    trained: int
    trained_maps: int
    """Those in linear maps, which are copied into the type of products."""
    trained_maps_at_work: int
    """Those that are copied at a time when blocks are computed again: of one block, and outside of all."""
    frozen_bytes: float
    outside_blocks: int
    largest_block: int


def parameter_sizes(run: Run, lm: DuplexLM) -> ParameterSizes:
    """Counts the parameters of `empty_lm(run)`."""
    trained = total = 0
    maps_of_block = Counter[str]()
    frozen_bytes, width = 0.0, base_dtype(run).itemsize
    for path, module in lm.named_modules():
        is_map = isinstance(module, Linear | StepLinear)
        is_small = is_map and run.model.lora.base != "full" and path.removesuffix(".base") not in HEADS
        for name, parameter in module.named_parameters(recurse=False):
            total += parameter.numel()
            if parameter.requires_grad:
                trained += parameter.numel()
                if is_map or name.startswith("lora_"):
                    maps_of_block[block_of(path)] += parameter.numel()
            else:
                frozen_bytes += parameter.numel() * (QUANTIZED_BYTES[run.model.lora.base] if is_small else width)
    blocks = [sum(p.numel() for p in block.parameters()) for block in (*lm.temporal.layers, *lm.depth.layers)]
    outside = maps_of_block.pop("", 0)
    return ParameterSizes(
        trained=trained,
        trained_maps=outside + maps_of_block.total(),
        trained_maps_at_work=outside + max(maps_of_block.values(), default=0),
        frozen_bytes=frozen_bytes,
        outside_blocks=total - sum(blocks),
        largest_block=max(blocks),
    )


def block_of(path: str) -> str:
    """Returns the path of the block that a module lies in, such as `depth.layers.3`; empty outside of all."""
    parts = path.split(".")
    return ".".join(parts[:3]) if parts[1:2] == ["layers"] else ""


def rank_memory(run: Run, lm: DuplexLM) -> RankMemory:
    """Returns what a rank of `run` takes on a GPU; strategy `auto` counts as `ddp`.

    lm: `empty_lm(run)`, which is the same for all strategies, modes, bases and batches.
    """
    sizes, settings = parameter_sizes(run, lm), run.trainer
    strategy, shards, width = settings.strategy, settings.shards, 2 if settings.precision == "bf16-mixed" else 4
    weights = 4.0 * sizes.trained + sizes.frozen_bytes
    again = run.model.activation_checkpointing == "full"
    copies = width * float(sizes.trained_maps_at_work if again else sizes.trained_maps) if width == 2 else 0.0
    averages = 0.0 if run.optim.ema_decay is None else 4.0
    moments, gradients = (8.0 + averages) * sizes.trained / shards, 4.0 * sizes.trained / shards
    if strategy in FSDP or strategy == "zero3":
        weights /= shards
        gathered = 0.0 if shards == 1 and width == 4 else float(width)
        copies = gathered * (sizes.outside_blocks + 2 * sizes.largest_block)
    elif strategy == "zero2":
        masters = 0.0 if settings.offload else 4.0 * sizes.trained / shards
        weights, copies = width * sizes.trained + masters + sizes.frozen_bytes, 0.0
    if settings.offload:
        moments, weights = 0.0, weights if strategy == "zero2" else 0.0
    frames = run.data.pass_frames
    kept, work = activation_bytes(lm.config, run.model.activation_checkpointing, run.model.lora.rank, width)
    logits = min(CHUNK_LOGITS["cuda"], frames * lm.config.text_card) * (width + 8.0)
    return RankMemory(
        weights=weights,
        moments=moments,
        gradients=gradients if run.passes() > 1 else 0.0,
        copies=copies,
        activations=frames * kept,
        work=max(frames * work, logits),
        # Copies that a pass has made go with what it kept; gathered weights stay.
        end=weights + moments + gradients + (copies if strategy in FSDP or strategy == "zero3" else 0.0),
    )


def activation_bytes(config: LMConfig, mode: str, rank: int, width: int) -> tuple[float, float]:
    """Returns (bytes that a frame keeps for the backward pass, bytes of its block that is at work).

    mode: of activation checkpointing; rank: of adapters, 0 for none; width: bytes of a value.
    """
    dim, hidden = config.dim, config.feedforward_hidden
    depth_dim, depth_hidden, steps = config.depformer_dim, config.depformer_hidden, config.dep_q
    # Inputs of both norms, rotated queries and keys, queries to values as they were, the attention's result, the gate's
    # input; the adapters' inner values; fp32 normalisers of heads and norms.
    temporal = width * (8 * dim + 2 * hidden + 4 * rank) + 4 * (config.num_heads + 2)
    # The same; its attention keeps the probabilities of the steps instead of rotated queries and keys.
    probabilities = config.depformer_num_heads * steps
    depth = width * (6 * depth_dim + 2 * depth_hidden + probabilities + 4 * rank) + 8
    # Without recomputation also what follows norms and gates.
    whole_temporal = temporal + width * (2 * dim + hidden)
    whole_depth = steps * (depth + width * (2 * depth_dim + depth_hidden))
    kept = config.num_layers * temporal + config.depformer_num_layers * steps * depth
    # Gradients of the gate and of what comes before and after it.
    work = width * max(steps * (4 * depth_hidden + depth_dim), 4 * hidden + dim)
    if mode == "none":
        kept = config.num_layers * whole_temporal + config.depformer_num_layers * whole_depth
    elif mode == "full":
        kept = width * (config.num_layers * dim + config.depformer_num_layers * steps * depth_dim)
        work += max(whole_temporal, whole_depth)
    # The embedding, the final norm's input and output, its rows with loss, and the gradients of the heads' inputs.
    return kept + width * (5 * dim + steps * depth_dim), float(work)
