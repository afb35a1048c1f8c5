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
    init_tokenizer: str | None = None
    """The tokenizer of `init`, where `tokenizer` is another, as for a new language: pieces that both have keep their
    rows of the model, others begin as the mean of the old pieces that spell them. None: it is the same."""
    lm: LMConfig = field(default_factory=LMConfig)
    """Shape of the language model, e.g. model.lm.dim=512; it must be that of the start weights."""
    lora: Lora = field(default_factory=Lora)
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    """What the backward pass computes again: nothing; norms and gates, which is cheap; or whole blocks, for the least
    memory and a third more work."""
    compile: bool = False
    """Whether torch.compile compiles each block: faster on a GPU, after a minute or more at the start."""


@dataclass(kw_only=True)
class LearningRates:
    """Peak learning rates of the two groups."""

    temporal: float = 2e-6
    """Of all that is not the depth transformer: the temporal transformer with its embeddings and the text head."""
    depth: float = 4e-6
    """Of the depth transformer with its input matrices, embeddings and audio heads."""
    text: float | None = None
    """Of the rows of the text vocabulary (two embeddings and the text head); None: those of their parts."""

    def check(self) -> None:
        """Raises UserError for a rate outside 0 to 1."""
        for name, rate in asdict(self).items():
            if rate is not None and not 0 <= rate <= 1:
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
    ema_decay: float | None = None
    """Decay of a moving average of the weights at each step, such as 0.999, which is scored, saved and can be exported;
    None keeps none."""
    spike_factor: float | None = None
    """An update is skipped if its gradient norm is above this many times the median of the last 100; None skips only
    what is not finite."""

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
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1, or null"),
            ("spike_factor", self.spike_factor is None or self.spike_factor > 1, "above 1, or null"),
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
    samples: bool = False
    """Whether each process N writes the samples of every step to run_dir/logs/samples.rankN.jsonl."""

    def check(self) -> None:
        """Raises UserError for a number that must be above zero."""
        positive(logging=self, names=("every",))


class AnyJob:
    """What the configurations of all jobs share; each declares these fields, with parts of its own."""

    resume: bool | Literal["auto"]
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
        if self.trainer.profile and self.trainer.profile[1] > self.steps:
            raise UserError(
                f"trainer.profile={self.trainer.profile}: must end at steps={self.steps} at the latest",
                code="bad-combination",
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
