"""The parts of a run's configuration: dataclasses whose strings under the fields are their help."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from omegaconf import MISSING, OmegaConf

from model.config import LMConfig
from model.errors import UserError
from ppx_train.config.limits import check_ranges, positive
from ppx_train.config.trainer import Trainer


@dataclass(kw_only=True)
class Lora:
    """Low-rank adapters of linear layers."""

    rank: int = 0
    """Rank of the adapters; 0 trains the full weights without any."""
    scaling: float = 2.0
    """Factor on what an adapter adds to its layer."""
    patterns: list[str] = field(default_factory=lambda: [".*"])
    """Regular expressions over the native names of linear layers; each must match at least one."""
    base: Literal["full", "int8", "nf4"] = "full"
    """How the frozen weights are held: as they are, or in 8 or 4 bits (needs the extra `quantized`)."""

    def check(self) -> None:
        """Raises UserError if no adapter can be made of these settings."""
        if self.rank < 0 or (self.rank and not self.patterns):
            raise UserError(
                f"model.lora.rank={self.rank}: give a rank >= 0, and patterns when it is > 0", code="bad-value"
            )
        if not abs(self.scaling) <= 1e6:
            raise UserError(f"model.lora.scaling={self.scaling}: give a number, such as 2", code="bad-value")
        if self.base != "full" and not self.rank:
            raise UserError(
                f"model.lora.base={self.base} without adapters would train nothing: set model.lora.rank=128",
                code="bad-combination",
            )


@dataclass(kw_only=True)
class Model:
    """What is trained, and the codec and tokenizer that belong to it."""

    init: str = MISSING
    """`scratch`, a folder or .safetensors file in the native layout, or a hub repository id."""
    revision: str | None = None
    """Hub revision of `init`; only with a repository id."""
    codec: str = MISSING
    """Mimi: `small` (shipped), a folder, a .safetensors file, or a hub repository id."""
    tokenizer: str = MISSING
    """SentencePiece model: a .model file or a hub repository id."""
    lm: LMConfig = field(default_factory=LMConfig)
    """Shape of the language model, e.g. model.lm.dim=512; it must be that of the start weights."""
    lora: Lora = field(default_factory=Lora)
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    """What the backward pass computes again: nothing; norms and gates, which is cheap; or whole blocks, for the least
    memory and a third more work."""
    compile: bool = False
    """Whether torch.compile compiles each block: faster on a GPU, after a minute or more at the start."""


@dataclass(kw_only=True)
class Data:
    """Which dialogues, in which mixture and batches."""

    paths: list[str] = MISSING
    """Shard folders made by `ppx-data shard`, or their URLs (s3://..., https://...); sources are pooled by name."""
    mix: dict[str, int] = MISSING
    """Draws per source: {service: 14, fisher: 2} takes 14 service dialogues for every 2 calls. 0 drops a source."""
    batch: int = MISSING
    """Sequences per optimiser step, over all processes."""
    micro_batch: int = MISSING
    """Sequences per forward pass; batch / micro_batch / processes passes are accumulated."""
    max_frames: int = 2048
    """The longest sequence, prompt included, in frames of 80 ms; longer dialogues are cut at the end."""
    bucket_steps: int = 16
    """Batches are formed by length inside windows of this many steps: less padding, less mixing of lengths."""
    max_text_lag_frames: int = 25
    """A sample whose text falls further behind its audio is skipped and reported."""
    both_sides: bool = True
    """Whether both sides of a call are trained in turn as the agent, where both are marked as such."""
    limit: int | None = None
    """How many samples of each source are used, e.g. 1 to overfit one dialogue; None uses all."""
    allow_changed: bool = False
    """Whether a run may resume although its shards are no longer those that its checkpoint was trained on."""
    heldout_samples: int = 64
    """Samples of the held-out split that are scored; 0 switches the held-out loss off."""

    def check(self) -> None:
        """Raises UserError if no batch can be formed."""
        positive(data=self, names=("batch", "micro_batch", "max_frames", "bucket_steps"))
        if self.batch % self.micro_batch:
            raise UserError(
                f"data.batch={self.batch} is not a multiple of data.micro_batch={self.micro_batch}: make it one",
                code="bad-combination",
            )
        for name in ("heldout_samples", "max_text_lag_frames"):
            if getattr(self, name) < 0:
                raise UserError(f"data.{name}={getattr(self, name)}: must be 0 or more", code="bad-value")
        if self.limit is not None and self.limit < 1:
            raise UserError(
                f"data.limit={self.limit}: give a positive number, or null for all samples", code="bad-value"
            )
        if not self.paths:
            raise UserError(
                "data.paths is empty: give a folder made by `ppx-data shard`, e.g. data.paths=[shards]",
                code="missing-option",
            )
        for source, draws in self.mix.items():
            if type(draws) is not int:  # OmegaConf lets a mapping pass for a number.
                raise UserError(
                    f"data.mix.{source}={draws}: give a whole number of draws, such as 14", code="bad-value"
                )
        if not any(self.mix.values()) or min(self.mix.values()) < 0:
            mix = ", ".join(f"{name} {draws}" for name, draws in self.mix.items())
            raise UserError(
                f"data.mix ({mix or 'empty'}) draws nothing: give at least one source a positive number, and none a "
                "negative one",
                code="bad-value",
            )


@dataclass(kw_only=True)
class LearningRates:
    """Peak learning rates of the two groups."""

    temporal: float = 2e-6
    """Of all that is not the depth transformer: the temporal transformer with its embeddings and the text head."""
    depth: float = 4e-6
    """Of the depth transformer with its input matrices, embeddings and audio heads."""

    def check(self) -> None:
        """Raises UserError for a rate outside 0 to 1."""
        for name, rate in asdict(self).items():
            if not 0 <= rate <= 1:
                raise UserError(f"optim.lr.{name}={rate}: must be from 0 to 1", code="bad-value")


@dataclass(kw_only=True)
class Optim:
    """AdamW with linear warm-up and cosine decay, a pure function of the step."""

    lr: LearningRates = field(default_factory=LearningRates)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of the first and second moments of AdamW, for each step."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices; vectors have none."""
    clip_norm: float = 1.0
    """The largest norm of the whole gradient; a larger one is scaled down to it."""
    warmup_steps: int = 500
    """Steps in which the learning rates rise from zero to their peak."""
    final_lr_ratio: float = 0.0
    """Learning rate at the last step over the peak."""

    def check(self) -> None:
        """Raises UserError for a number outside its range."""
        self.lr.check()
        if len(self.betas) != 2 or not all(isinstance(b, float) and 0 <= b < 1 for b in self.betas):
            raise UserError(f"optim.betas={self.betas}: give two numbers in [0, 1)", code="bad-value")
        ranges = (
            ("clip_norm", self.clip_norm > 0, "above 0"),
            ("weight_decay", 0 <= self.weight_decay <= 1e6, "0 or more"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("final_lr_ratio", 0 <= self.final_lr_ratio <= 1, "from 0 to 1"),
        )
        check_ranges("optim", self, ranges)


@dataclass(kw_only=True)
class Loss:
    """Weights of the targets; text and audio are each divided by their own summed weight over the whole step."""

    text: float = 1.0
    """Share of the text loss against the audio loss (the published ratio is not known)."""
    text_padding: float = 0.3
    """Weight of a frame without text; a frame with text has 1."""
    end_padding_is_padding: bool = True
    """Whether EPAD, the frame before a word, gets the padding weight (not published)."""
    semantic: float = 1.0
    """Weight of the first codebook."""
    acoustic: float = 0.02
    """Weight of each of the other seven codebooks."""
    user: float = 1.0
    """Factor on the user's audio; 0 switches the user loss off."""

    def check(self) -> None:
        """Raises UserError for a weight that is negative or no number."""
        for name, weight in asdict(self).items():
            if not 0 <= weight <= 1e6:
                raise UserError(f"loss.{name}={weight}: must be from 0 to 1e6", code="bad-value")


@dataclass(kw_only=True)
class Logging:
    """Where figures go. A CSV file is always written."""

    every: int = 10
    """Steps between log lines."""
    tensorboard: bool = True
    """Whether figures are also written for TensorBoard."""
    wandb: Literal["off", "online", "offline"] = "off"
    """Whether figures also go to Weights & Biases (needs the extra `wandb`)."""
    project: str = "ppx-train"
    """Name of the project there."""

    def check(self) -> None:
        """Raises UserError for a number that must be above zero."""
        positive(logging=self, names=("every",))


class AnyJob:
    """What the configurations of all jobs share; each declares these fields, with parts of its own."""

    resume: bool
    seed: int
    steps: int
    data: Any
    optim: Any
    trainer: Trainer

    def check_job(self) -> None:
        """Raises UserError for a setting that no job can work with."""
        positive(run=self, names=("steps",))
        if not -(2**63) <= self.seed < 2**63:
            raise UserError(f"seed={self.seed}: must fit into 64 bits", code="bad-value")
        if self.data.allow_changed and not self.resume:
            raise UserError(
                "data.allow_changed=true has no effect without resume=true: leave it out", code="bad-combination"
            )
        if self.optim.warmup_steps >= self.steps:
            raise UserError(
                f"optim.warmup_steps={self.optim.warmup_steps}: must be below steps={self.steps}",
                code="bad-combination",
            )

    @property
    def idle(self) -> list[tuple[str, str]]:
        """Settings that cannot have an effect, each with the setting that leaves it without one."""
        return []

    @property
    def processes(self) -> int:
        """Processes on all nodes together."""
        return self.trainer.processes

    def to_yaml(self) -> str:
        """Returns the resolved configuration as YAML that loads back to the same run."""
        job: Any = self  # Only the classes that inherit this one are dataclasses.
        return OmegaConf.to_yaml(OmegaConf.create(asdict(job)))
