"""What every writer of scripts offers, and the options of a run of `ppx-data synth` that all of them share."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from data_pipelines.records.schema import Script
from model.errors import UserError

SOURCES = ("assistant", "service")
SHORTEST_LIMIT = 15.0
"""Seconds; below this no script of greeting, request, answer and goodbye fits."""


@dataclass(kw_only=True, frozen=True)
class SynthOptions:
    """Options of one run that every writer has.

    Raises: UserError for a value out of range ("bad-value") or an unknown source ("unknown-name").
    """

    source: str
    num: int
    """How many scripts."""
    seed: int = 0
    heldout: float = 0.1
    """Share of held-out scripts; their scenarios and companies never occur in training ones."""
    max_seconds: float | None = None
    """Longest estimated length of a script, by `wording.estimated_seconds`; None for no limit."""

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise UserError(f"source {self.source!r}: choose one of {', '.join(SOURCES)}", code="unknown-name")
        if self.num < 1:
            raise UserError(f"--num {self.num}: ask for at least 1 script", code="bad-value")
        if not 0 <= self.heldout <= 1:
            raise UserError(f"--heldout {self.heldout}: give a share from 0 to 1, e.g. 0.1", code="bad-value")
        if self.max_seconds is not None and not SHORTEST_LIMIT <= self.max_seconds < math.inf:
            raise UserError(
                f"--max-seconds {self.max_seconds}: a whole dialogue needs at least {SHORTEST_LIMIT:g} s",
                code="bad-value",
            )

    def name(self, index: int) -> str:
        """The id of script `index`."""
        return f"{self.source}-{self.seed}-{index:06d}"


@dataclass(kw_only=True, frozen=True)
class Rejected:
    """A script that could not be written, and why: "kind" or "kind: details"; reasons are counted by kind."""

    id: str
    reason: str


class Writer(Protocol):
    """Makes the scripts of one run; whether one resembles another is not its concern."""

    def identity(self) -> dict[str, Any]:
        """What the text depends on besides the options: versions, models. JSON values."""
        ...

    def status(self) -> str:
        """What the run has cost so far, for the progress bar; "" if it costs nothing."""
        ...

    def draft(self, index: int, attempt: int) -> Script | Rejected:
        """Script `index`, whole and checked. Another attempt gives another text; nothing else does."""
        ...

    def drafts(self, indexes: Iterable[int]) -> Iterator[Script | Rejected]:
        """The first attempt at each index, in order; the writer may prefetch and work concurrently."""
        ...
