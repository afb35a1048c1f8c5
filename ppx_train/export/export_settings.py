"""What `ppx-export` is asked for. Importing it is fast, so that the command's help is."""

from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError

LAYOUTS = {"kyutai": 8, "nvidia": 16, "lora": 8}
"""Depth steps of each layout."""
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""Types of the weights, and torch's names for them."""
HELDOUT, NONE = "heldout", "none"
"""Names that stand for the held-out dialogues' voices, and for no voice."""


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is made of a checkpoint.

    ema: whether the moving average of the weights is taken in place of the weights.
    voices: "heldout" for the synthetic voices of held-out dialogues, at most `max_voices`; or a folder of voices; or
    "none".
    data: the run's shards; None takes those that the run names. licence: of the model card; None is that of the start
    weights. base: where an adapter's start weights are; None is where the run found them.
    push: the hub repository that the folder is meant for, OWNER/NAME.
    """

    layout: str = "kyutai"
    dtype: str = "bf16"
    ema: bool = False
    voices: str | Path = HELDOUT
    max_voices: int = 8
    data: Path | None = None
    licence: str | None = None
    base: str | None = None
    push: str | None = None

    def check(self) -> None:
        """Raises UserError for a layout, type or number that does not exist."""
        for flag, value, known in (("layout", self.layout, LAYOUTS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise UserError(f"--{flag} {value}: choose one of {', '.join(known)}", code="bad-value")
        if self.max_voices < 0:
            raise UserError(f"--max-voices {self.max_voices}: give 0 or more", code="bad-value")
