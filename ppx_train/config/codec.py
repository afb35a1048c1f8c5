"""The configuration of a run that trains a codec: `job: codec` in its recipe."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from omegaconf import MISSING

from model.errors import UserError
from ppx_train.config.limits import check_ranges, positive
from ppx_train.config.parts import AnyJob, Logging
from ppx_train.config.trainer import Trainer


@dataclass(kw_only=True)
class CodecModel:
    """What is trained. Sizes that are null are those of `init`, or from scratch those of the small codec."""

    init: str = "scratch"
    """`scratch`, or the Mimi to go on from: `small` (shipped), a folder, a .safetensors file, or a hub repository."""
    filters: int | None = None
    """Channels of the first convolution, doubled at each stride."""
    ratios: list[int] | None = None
    """Strides of the decoder's convolutions, in order; their product is 960."""
    width: int | None = None
    """Width of the transformers and of the latent."""
    layers: int | None = None
    """Layers of each of the two transformers."""
    context: int | None = None
    """Steps of 40 ms that a transformer sees."""
    bins: int | None = None
    """Entries of a codebook."""
    decoder: str | None = None
    """`seanet`, the public one, or `patch`, which computes on 10 ms at a time and which no public runtime loads."""

    def check(self) -> None:
        """Raises UserError for a decoder that does not exist."""
        if self.decoder not in (None, "seanet", "patch"):
            raise UserError(f"model.decoder={self.decoder}: give seanet or patch", code="bad-value")


@dataclass(kw_only=True)
class CodecData:
    """Which audio, and how it is varied."""

    paths: list[str] = MISSING
    """Folders of .flac or .wav files, or shard folders with audio."""
    heldout: list[str] = field(default_factory=list)
    """The same, of speech that is only scored; empty switches the held-out losses off."""
    batch: int = 8
    """Crops of an optimiser step."""
    seconds: float = 2.4
    """Length of a crop: more than the transformers' window trains every distance in it."""
    heldout_crops: int = 32
    """Crops that are scored, always the same."""
    speed: float = 0.3
    """Share of crops that are played faster or slower, which also moves the pitch: more voices than were recorded."""
    telephone: float = 0.4
    """Share of crops that go through a telephone line."""
    noise: float = 0.15
    """Share of crops with noise."""
    gaps: float = 0.15
    """Share of crops in which a stretch is digital silence."""
    tones: float = 0.02
    """Share of crops that are a sine, 440 Hz in half of them."""
    allow_changed: bool = False
    """Whether a run may resume although its audio is no longer that of its checkpoint."""

    def check(self) -> None:
        """Raises UserError for a number outside its range."""
        positive(data=self, names=("batch", "seconds", "heldout_crops"))
        for name in ("speed", "telephone", "noise", "gaps", "tones"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"data.{name}={getattr(self, name)}: must be from 0 to 1", code="bad-value")
        if abs(self.seconds * 12.5 - round(self.seconds * 12.5)) > 1e-6:
            raise UserError(f"data.seconds={self.seconds}: give whole frames of 0.08 s", code="bad-value")
        if not self.paths:
            raise UserError(
                "data.paths is empty: give a folder of audio, e.g. data.paths=[speech]", code="missing-option"
            )


@dataclass(kw_only=True)
class CodecLoss:
    """Weights of the terms, and the steps from which some of them count."""

    mel: float = 1.0
    """Distance of log mel spectra of several resolutions, between what is decoded and what went in."""
    linear: float = 0.5
    """The same without the logarithm, which counts loud parts more."""
    readout: float = 1.0
    """Distance of a mel spectrum that is read linearly from the decoder's transformer: a direct way to the codes."""
    commit: float = 0.25
    """Distance of the encoder's latents from the entries that are chosen for them."""
    offset: float = 500.0
    """Constant offset of the waveform, which no mel band holds."""
    phones: float = 0.0
    """Cross-entropy of the sounds (four a frame) read from codebook 0; needs NAME.tsv beside the audio."""
    recogniser: float = 0.0
    """Distance of a frozen recogniser's features, read from codebook 0 and from the decoder's transformer; needs the
    extra asr."""
    adversary: float = 0.0
    """Of judges that learn to tell decoded from real spectra, and of the distance of their inner features."""
    quantize_from: int = 600
    """Step at which the codebooks are filled by k-means; before it latents pass unquantised. 0 with a codec to go on
    from."""
    decode_from: int = 0
    """Step from which the waveform is decoded; before it only what is read from the codes is trained: twice as fast."""
    adversary_from: int = 0
    """Step from which the adversary counts."""
    fp32_from: float = 0.9
    """Share of the steps after which the encoder, too, computes in fp32 under bf16-mixed; the decoder always does."""

    def check(self) -> None:
        """Raises UserError for a weight or step outside its range."""
        for name, value in asdict(self).items():
            if not 0 <= value <= 1e9:
                raise UserError(f"loss.{name}={value}: must be 0 or more", code="bad-value")


@dataclass(kw_only=True)
class CodecOptim:
    """Muon for matrices and AdamW for the rest, with linear warm-up and cosine decay."""

    lr: float = 1.5e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's decay."""
    clip_norm: float = 1.0
    """The largest norm of the whole gradient; a larger one is scaled down to it."""
    warmup_steps: int = 200
    """Steps in which the learning rate rises from zero to its peak."""
    final_lr_ratio: float = 0.02
    """Learning rate at the last step over the peak."""

    def check(self) -> None:
        """Raises UserError for a number outside its range."""
        ranges = (
            ("lr", 0 < self.lr <= 1, "above 0, and 1 at most"),
            ("weight_decay", 0 <= self.weight_decay <= 1e6, "0 or more"),
            ("clip_norm", self.clip_norm > 0, "above 0"),
            ("warmup_steps", self.warmup_steps >= 0, "0 or more"),
            ("final_lr_ratio", 0 <= self.final_lr_ratio <= 1, "from 0 to 1"),
        )
        check_ranges("optim", self, ranges)


@dataclass(kw_only=True)
class CodecRun(AnyJob):
    """One run that trains a codec."""

    job: Literal["codec"] = "codec"
    """What is trained: a codec."""
    recipe: str = MISSING
    """Name of a shipped recipe (`ppx-train recipes`), or a YAML file of your own."""
    run_dir: str = MISSING
    """Folder of checkpoints, logs and pictures; must not exist unless the run resumes. By default runs/RECIPE."""
    resume: bool | Literal["auto"] = False
    """auto resumes from the newest checkpoint of run_dir, or starts if it has none; so does true, the older word."""
    seed: int = 0
    """Seed of the initial weights and of the crops."""
    steps: int = MISSING
    """Optimiser steps in all."""
    groups: dict[str, str] = field(default_factory=dict)
    """The file of each config group, which `group=NAME` chooses; a codec takes trainer and logging."""
    model: CodecModel = field(default_factory=CodecModel)
    data: CodecData = field(default_factory=CodecData)
    optim: CodecOptim = field(default_factory=CodecOptim)
    loss: CodecLoss = field(default_factory=CodecLoss)
    trainer: Trainer = field(default_factory=Trainer)
    logging: Logging = field(default_factory=Logging)

    def check(self) -> None:
        """Raises UserError for the first setting that cannot work, before any work is done."""
        for part in (self.model, self.data, self.optim, self.loss, self.trainer, self.logging):
            part.check()
        self.check_job()
        if self.processes > 1 or self.trainer.strategy != "ddp":
            raise UserError(
                "a codec is trained by one process: leave trainer.devices, num_nodes and strategy out",
                code="bad-combination",
            )
        if not self.trainer.check_fast_paths:
            raise UserError(
                "trainer.check_fast_paths=false has no effect on a codec: leave it out", code="bad-combination"
            )
        if self.logging.samples:
            raise UserError(
                "logging.samples=true has no effect on a codec, which is trained on crops: leave it out",
                code="bad-combination",
            )
        if self.trainer.keep_best:
            raise UserError(
                f"trainer.keep_best={self.trainer.keep_best} has no effect on a codec, which has no single held-out "
                "loss: leave it out",
                code="bad-combination",
            )
        if self.loss.adversary and self.loss.adversary_from < self.loss.decode_from:
            raise UserError(
                f"loss.adversary_from={self.loss.adversary_from}: nothing is decoded before loss.decode_from="
                f"{self.loss.decode_from}: begin later",
                code="bad-combination",
            )
        if self.model.init != "scratch" and self.loss.quantize_from:
            raise UserError(
                f"loss.quantize_from={self.loss.quantize_from} would empty the codebooks of model.init="
                f"{self.model.init}: set it to 0",
                code="bad-combination",
            )

    @property
    def idle(self) -> list[tuple[str, str]]:
        """Settings that cannot have an effect, each with the setting that leaves it without one."""
        idle = []
        if self.trainer.precision == "32-true" and self.loss.fp32_from < 1:
            idle.append(("loss.fp32_from", "trainer.precision"))
        if not self.loss.adversary:
            idle.append(("loss.adversary_from", "loss.adversary"))
        if not self.data.heldout:
            idle.append(("data.heldout_crops", "data.heldout"))
        return idle
