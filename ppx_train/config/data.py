"""The `data` part of a run's configuration: which dialogues, in which mixture and batches."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from omegaconf import MISSING

from model.errors import UserError
from ppx_train.config.limits import check_ranges, positive


@dataclass(kw_only=True)
class LaterMix:
    """A mixture that replaces the one before it."""

    from_step: int = MISSING
    """How many steps come before it."""
    mix: dict[str, int] = MISSING
    """Draws per source, as in data.mix; a source that is not named has none."""


@dataclass(kw_only=True)
class Data:
    """Which dialogues, in which mixture and batches."""

    paths: list[str] = MISSING
    """Shard folders made by `ppx-data shard`, or their URLs (s3://..., https://...); sources are pooled by name."""
    mix: dict[str, int] = MISSING
    """Draws per source: {service: 14, fisher: 2} takes 14 service dialogues for every 2 calls. 0 drops a source."""
    mix_by: Literal["samples", "hours"] = "samples"
    """Whether data.mix counts dialogues or their hours: {service: 14, fisher: 2} by hours is 14 hours for every 2."""
    curriculum: list[LaterMix] = field(default_factory=list)
    """Later mixtures, e.g. [{from_step: 1000, mix: {service: 1, fisher: 1}}]; data.mix holds until the first."""
    drop_voice: float = 0.0
    """Share of the samples that are trained without their voice prompt, as a call without a voice begins."""
    drop_prompt: float = 0.0
    """Share of the samples that are trained without their role prompt, as a call without a role begins."""
    batch: int = MISSING
    """Sequences per optimiser step, over all processes."""
    micro_frames: int | None = None
    """Frames per forward pass at most; the sequences of a step are shared out evenly, in as few passes as hold them."""
    micro_batch: int | None = None
    """Instead of data.micro_frames, sequences per forward pass, of similar length: batch / micro_batch / processes
    passes are accumulated."""
    max_frames: int = 2048
    """The longest sequence, prompt included, in frames of 80 ms; longer dialogues are cut at the end."""
    bucket_steps: int = 16
    """Batches are formed by length inside windows of this many steps: processes wait less, lengths mix less. With
    data.micro_frames, 1 (random order) is even enough for up to a quarter as many processes as sequences."""
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

    @property
    def mixtures(self) -> dict[int, dict[str, int]]:
        """The mixture from each step on, step 0 being the first."""
        return {0: self.mix, **{later.from_step: later.mix for later in self.curriculum}}

    @property
    def pass_frames(self) -> int:
        """The most frames of a forward pass."""
        return self.micro_frames or (self.micro_batch or 0) * self.max_frames

    @property
    def sources(self) -> set[str]:
        """Sources that any mixture draws from."""
        return {source for mix in self.mixtures.values() for source in _drawn(mix)}

    def check(self, steps: int) -> None:
        """Raises UserError if no batch can be formed, or a mixture is not reached in `steps` steps."""
        positive(data=self, names=("batch", "max_frames", "bucket_steps"))
        self._check_passes()
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
        shares = ((name, 0 <= getattr(self, name) <= 1, "from 0 to 1") for name in ("drop_voice", "drop_prompt"))
        check_ranges("data", self, shares)
        _check_mix("data.mix", self.mix)
        if self.mix_by == "hours" and all(len(_drawn(mix)) == 1 for mix in self.mixtures.values()):
            raise UserError(
                "data.mix_by=hours has no effect on a mixture of one source: leave it out", code="bad-combination"
            )
        self._check_curriculum(steps)

    def _check_passes(self) -> None:
        if (self.micro_frames is None) == (self.micro_batch is None):
            raise UserError(
                f"data.micro_frames={self.micro_frames} and data.micro_batch={self.micro_batch}: give one of them, and "
                "null for the other",
                code="bad-combination",
            )
        positive(data=self, names=("micro_batch" if self.micro_frames is None else "micro_frames",))
        if self.micro_batch and self.batch % self.micro_batch:
            raise UserError(
                f"data.batch={self.batch} is not a multiple of data.micro_batch={self.micro_batch}: make it one",
                code="bad-combination",
            )
        if self.micro_frames and self.micro_frames < self.max_frames:
            raise UserError(
                f"data.micro_frames={self.micro_frames} does not hold a sequence of data.max_frames={self.max_frames}: "
                "raise it, or lower the other",
                code="bad-combination",
            )

    def _check_curriculum(self, steps: int) -> None:
        before, mix = 0, self.mix
        for number, later in enumerate(self.curriculum):
            where = f"data.curriculum[{number}]"
            if not before < later.from_step < steps:
                raise UserError(
                    f"{where}.from_step={later.from_step}: must be above {before} and below steps={steps}",
                    code="bad-value",
                )
            _check_mix(f"{where}.mix", later.mix)
            if _drawn(later.mix) == _drawn(mix):
                raise UserError(f"{where}.mix is the mixture before it: leave it out", code="bad-combination")
            before, mix = later.from_step, later.mix

    def describe_mix(self) -> str:
        """Describes the mixtures in one line, such as `a 14, b 2 (hours); from step 1,000: b 1 (hours)`."""
        unit = " (hours)" if self.mix_by == "hours" else ""
        return "; ".join(
            (f"from step {step:,}: " if step else "")
            + ", ".join(f"{name} {draws}" for name, draws in mix.items())
            + unit
            for step, mix in self.mixtures.items()
        )


def _drawn(mix: Mapping[str, int]) -> dict[str, int]:
    return {source: draws for source, draws in mix.items() if draws}


def _check_mix(where: str, mix: Mapping[str, int]) -> None:
    for source, draws in mix.items():
        if type(draws) is not int:  # OmegaConf lets a mapping pass for a number.
            raise UserError(f"{where}.{source}={draws}: give a whole number of draws, such as 14", code="bad-value")
    if not any(mix.values()) or min(mix.values()) < 0:
        shown = ", ".join(f"{name} {draws}" for name, draws in mix.items())
        raise UserError(
            f"{where} ({shown or 'empty'}) draws nothing: give at least one source a positive number, and none a "
            "negative one",
            code="bad-value",
        )
