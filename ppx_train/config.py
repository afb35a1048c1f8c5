"""The configuration of a run: dataclasses, and how they are filled.

Later wins: dataclass defaults < config groups (configs/GROUP/NAME.yaml) < recipe < command line.
OmegaConf merges with the dataclasses as schema and the result is turned into plain dataclasses:
no DictConfig leaves this file.
"""

import difflib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from model.config import LMConfig
from model.errors import UserError
from ppx_train.roots import CONFIGS, RECIPES

GROUPS = ("model", "data", "optim", "loss", "trainer", "logging")


@dataclass(kw_only=True)
class Lora:
    """Low-rank adapters; rank 0 trains the full weights."""

    rank: int = 0
    scaling: float = 2.0
    patterns: list[str] = field(default_factory=lambda: [".*"])
    """Regular expressions over the native names of linear layers; each must match at least one."""
    base: Literal["full", "int8", "nf4"] = "full"
    """How the frozen weights are held: as they are, or in 8 or 4 bits (needs the extra `quantized`)."""

    def check(self) -> None:
        if self.rank < 0 or (self.rank and not self.patterns):
            raise UserError(f"model.lora.rank={self.rank}: give a rank >= 0, and patterns when it is > 0")
        if self.base != "full" and not self.rank:
            raise UserError(
                f"model.lora.base={self.base} without adapters would train nothing: set model.lora.rank=128"
            )


@dataclass(kw_only=True)
class Model:
    """What is trained and what it reads and speaks with."""

    init: str = MISSING
    """`scratch`, a folder or .safetensors file in the native layout, or a hub repository id."""
    revision: str | None = None
    """Hub revision of `init`; only with a repository id."""
    codec: str = MISSING
    """Mimi: `small` (shipped), a folder, a .safetensors file, or a hub repository id."""
    tokenizer: str = MISSING
    """SentencePiece model: a .model file or a hub repository id."""
    lm: LMConfig = field(default_factory=LMConfig)
    lora: Lora = field(default_factory=Lora)
    activation_checkpointing: Literal["none", "selective", "full"] = "selective"
    """What the backward pass computes again: nothing; norms and gates, which is cheap; or whole blocks, for the least
    memory and a third more work."""
    compile: bool = False
    """Compile each block with torch.compile: faster on a GPU, after a minute or more at the start."""


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
    """Longest sequence, prompt included, in frames of 80 ms; longer dialogues are cut at the end."""
    bucket_steps: int = 16
    """Batches are formed by length inside windows of this many steps: less padding, less mixing of lengths."""
    max_text_lag_frames: int = 25
    """A sample whose text falls further behind its audio is skipped and reported."""
    both_sides: bool = True
    """Train both sides of a call in turn as the agent, where both are marked as such."""
    limit: int | None = None
    """Use only the first samples of each source, e.g. 1 to overfit one dialogue; None uses all."""
    heldout_samples: int = 64
    """Samples of the held-out split that are scored; 0 switches the held-out loss off."""

    def check(self) -> None:
        positive(data=self, names=("batch", "micro_batch", "max_frames", "bucket_steps"))
        if self.batch % self.micro_batch:
            raise UserError(f"data.batch={self.batch} is not a multiple of data.micro_batch={self.micro_batch}")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"data.limit={self.limit}: give a positive number, or null for all samples")
        if not self.paths:
            raise UserError("data.paths is empty: give a folder made by `ppx-data shard`, e.g. data.paths=[shards]")
        if not any(self.mix.values()) or min(self.mix.values()) < 0:
            raise UserError(f"data.mix={dict(self.mix)}: give at least one source a positive number of draws")


@dataclass(kw_only=True)
class LearningRates:
    """Peak learning rates of the two groups."""

    temporal: float = 2e-6
    depth: float = 4e-6
    """Depth transformer with its input matrices, embeddings and audio heads."""


@dataclass(kw_only=True)
class Optim:
    """AdamW with linear warm-up and cosine decay, a pure function of the step."""

    lr: LearningRates = field(default_factory=LearningRates)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.1
    """On matrices only."""
    clip_norm: float = 1.0
    """Global gradient norm."""
    warmup_steps: int = 500
    final_lr_ratio: float = 0.0
    """Learning rate at the last step over the peak."""

    def check(self) -> None:
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise UserError(f"optim.betas={self.betas}: give two numbers in [0, 1)")
        if self.clip_norm <= 0 or self.warmup_steps < 0 or not 0 <= self.final_lr_ratio <= 1:
            raise UserError("optim: clip_norm must be > 0, warmup_steps >= 0 and final_lr_ratio in [0, 1]")


@dataclass(kw_only=True)
class Loss:
    """Weights of the targets; text and audio are each divided by their own summed weight over the whole step."""

    text: float = 1.0
    """Share of the text loss against the audio loss (the published ratio is not known)."""
    text_padding: float = 0.3
    end_padding_is_padding: bool = True
    """Whether EPAD, the frame before a word, gets the padding weight (not published)."""
    semantic: float = 1.0
    acoustic: float = 0.02
    user: float = 1.0
    """Factor on the user's audio; 0 switches the user loss off."""

    def check(self) -> None:
        if min(asdict(self).values()) < 0:
            raise UserError(f"loss weights must not be negative: {asdict(self)}")


@dataclass(kw_only=True)
class Trainer:
    """Where and how the steps are computed."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    """Processes on each node."""
    num_nodes: int = 1
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """ddp: a whole copy on each process; fsdp2: weights, gradients and moments sharded."""
    precision: Literal["32-true", "bf16-mixed"] = "bf16-mixed"
    """bf16-mixed computes in bf16 and keeps fp32 master weights, gradients and moments."""
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    """The run's own older checkpoints are removed beyond this number; 0 keeps all."""
    heldout_every: int = 500
    """Steps between held-out losses; also scored before the first and after the last step."""
    threads: int | None = None
    """CPU threads of each process; None leaves torch's default."""

    def check(self) -> None:
        positive(trainer=self, names=("devices", "num_nodes", "checkpoint_every", "heldout_every"))


@dataclass(kw_only=True)
class Logging:
    """CSV is always written; the rest by choice."""

    every: int = 10
    """Steps between log lines."""
    tensorboard: bool = True
    wandb: Literal["off", "online", "offline"] = "off"
    project: str = "ppx-train"

    def check(self) -> None:
        positive(logging=self, names=("every",))


@dataclass(kw_only=True)
class Run:
    """One run: what `ppx-train` does."""

    recipe: str = MISSING
    run_dir: str = MISSING
    """Folder of checkpoints, logs and pictures; must not exist unless resume=true."""
    resume: bool = False
    """Go on from the newest checkpoint of run_dir, or start if there is none."""
    seed: int = 0
    steps: int = MISSING
    """Optimiser steps in all."""
    groups: dict[str, str] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    loss: Loss = field(default_factory=Loss)
    trainer: Trainer = field(default_factory=Trainer)
    logging: Logging = field(default_factory=Logging)

    def check(self) -> None:
        """Raises UserError for the first setting that cannot work, before any work is done."""
        for part in (self.model.lora, self.data, self.optim, self.loss, self.trainer, self.logging):
            part.check()
        positive(run=self, names=("steps",))
        if self.optim.warmup_steps >= self.steps:
            raise UserError(f"optim.warmup_steps={self.optim.warmup_steps}: must be below steps={self.steps}")
        passes = self.data.batch // self.data.micro_batch
        processes = self.trainer.devices * self.trainer.num_nodes
        if passes % processes:
            raise UserError(
                f"{passes} micro-batches a step (data.batch={self.data.batch} / data.micro_batch="
                f"{self.data.micro_batch}) cannot be shared by {processes} processes: make it a multiple"
            )
        if self.model.lora.rank and self.trainer.strategy == "fsdp2":
            raise UserError(
                "trainer.strategy=fsdp2 with model.lora.rank > 0 is not supported: use trainer.strategy=ddp"
            )

    @property
    def processes(self) -> int:
        return self.trainer.devices * self.trainer.num_nodes

    def to_yaml(self) -> str:
        """The resolved configuration as YAML that loads back to the same run."""
        return OmegaConf.to_yaml(OmegaConf.create(asdict(self)))


def positive(names: Sequence[str], **owner: Any) -> None:
    """Raises UserError unless each named field of the one given owner is above zero."""
    ((prefix, values),) = owner.items()
    for name in names:
        if getattr(values, name) <= 0:
            key = name if prefix == "run" else f"{prefix}.{name}"
            raise UserError(f"{key}={getattr(values, name)}: must be above 0")


def read_yaml(path: Path) -> DictConfig:
    """Reads one YAML mapping. Raises UserError if it is not one."""
    try:
        config = OmegaConf.load(path)
    except Exception as why:  # yaml raises many kinds; the first line says where
        raise UserError(f"{path}: not readable as YAML: {first_line(why)}") from why
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: must be a mapping of keys to values")
    return config


def first_line(why: Exception) -> str:
    return str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe or of the user's own YAML. Raises UserError suggesting the nearest name."""
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"recipe={name}: no such file")
        return Path(name)
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise UserError(f"unknown recipe {name!r}{nearest(name, recipe_names())}; `ppx-train recipes` lists all")
    return path


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_summary(name: str) -> str:
    """First comment line of a recipe that is not its command."""
    lines = [line[1:].strip() for line in (RECIPES / f"{name}.yaml").read_text("utf-8").splitlines() if line[:1] == "#"]
    return next((line for line in lines if not line.startswith("ppx-train")), "")


def nearest(word: str, choices: Sequence[str]) -> str:
    """' - did you mean X?' or ''."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" - did you mean {found[0]!r}?" if found else ""


def read_group(group: str, name: str) -> DictConfig:
    """One config group file as a mapping under its group's key. Raises UserError listing what exists."""
    if group not in GROUPS:
        raise UserError(f"unknown config group {group!r}{nearest(group, GROUPS)}; groups: {', '.join(GROUPS)}")
    path = CONFIGS / group / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))
        raise UserError(f"{group}={name}: no such config{nearest(name, names)}; there are: {', '.join(names)}")
    return DictConfig({group: read_yaml(path)})


def load(arguments: Sequence[str]) -> Run:
    """Builds the run from `recipe=NAME [group=NAME] [key=value ...]`.

    Raises: UserError in one line for an unknown recipe, group or key, a wrong type, or a missing value.
    """
    for argument in arguments:
        if "=" not in argument or argument.startswith("-"):
            raise UserError(f"{argument!r}: write settings as key=value, e.g. recipe=quickstart steps=100")
    given = dict(argument.split("=", 1) for argument in arguments)
    if "recipe" not in given:
        raise UserError("no recipe: ppx-train recipe=NAME; `ppx-train recipes` lists them")
    name = given.pop("recipe")
    groups = {key: given.pop(key) for key in GROUPS if key in given}
    recipe = read_yaml(recipe_path(name))
    overrides = [f"{key}={value}" for key, value in given.items()]
    for override in overrides:
        check_override(override)
    try:
        command_line = DictConfig(
            OmegaConf.merge(OmegaConf.from_dotlist(overrides), {"groups": groups} if groups else {})
        )
        chosen = DictConfig(OmegaConf.merge(recipe.get("groups") or {}, command_line.get("groups") or {}))
        layers = [read_group(str(key), str(value)) for key, value in chosen.items()]
        merged = OmegaConf.merge(OmegaConf.structured(Run), *layers, recipe, command_line)
        merged.recipe = Path(name).stem if name.endswith((".yaml", ".yml")) else name
        if OmegaConf.is_missing(merged, "run_dir"):
            merged.run_dir = f"runs/{merged.recipe}"
        run = OmegaConf.to_object(merged)
    except OmegaConfBaseException as why:
        if isinstance(why.__cause__, UserError):
            raise why.__cause__ from None
        if isinstance(why, MissingMandatoryValue):
            raise UserError(f"{why.full_key} is not set: add {why.full_key}=... to the command or the recipe") from why
        key = f"{why.full_key}: " if getattr(why, "full_key", None) else ""
        raise UserError(f"{key}{first_line(why)}") from why
    except TypeError as why:  # how OmegaConf reports a list where a mapping belongs
        raise UserError(f"recipe={name}: {first_line(why)}: compare it with `ppx-train --help`") from why
    assert isinstance(run, Run)
    run.check()
    return run


def check_override(override: str) -> None:
    """Raises UserError naming one key=value of the command line that is no setting, or not of its setting's type."""
    try:
        OmegaConf.merge(OmegaConf.structured(Run), OmegaConf.from_dotlist([override]))
    except yaml.YAMLError as why:
        raise UserError(f"{override}: not readable as YAML ({first_line(why)}): quote the value") from why
    except (OmegaConfBaseException, TypeError) as why:  # TypeError: a list where a mapping belongs
        key, _, value = override.partition("=")
        needs_list = "is not a ListConfig" in str(why)
        reason = f"a list is needed, such as {key}=[{value}]" if needs_list else first_line(why)
        raise UserError(f"{override}: {reason}: see `ppx-train --help`") from why


def load_saved(path: Path) -> Run:
    """Reads a resolved configuration that a run saved beside its checkpoint."""
    try:
        run = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Run), read_yaml(path)))
    except OmegaConfBaseException as why:
        raise UserError(f"{path}: {first_line(why)}: was it saved by another version?") from why
    assert isinstance(run, Run)
    return run
