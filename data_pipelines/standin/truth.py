"""Measures how far the importer's word times are from the truth of a synthetic stand-in corpus."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.recordings.fisher.timed_lines import SIDE_OF
from data_pipelines.recordings.fisher.written import key_of
from data_pipelines.records.schema import Dialogue

FAR_SECONDS = 0.5
"""A word was put somewhere else if no true word of the same spelling is this near."""


@dataclass(frozen=True, kw_only=True)
class WordErrors:
    """Word starts minus true starts, in seconds, of the words that were found; `num_far` were put somewhere else."""

    starts: tuple[float, ...]
    num_far: int

    def figures(self) -> dict[str, float]:
        """Returns median, mean and 95th percentile of the absolute errors and the bias, in ms, and the far words in %.

        Raises: ValueError if no word was compared.
        """
        if not self.starts:
            raise ValueError("no word was compared")
        size = 1000 * np.abs(self.starts)
        return {
            "words": len(self.starts) + self.num_far,
            "median ms": round(float(np.median(size)), 1),
            "mean ms": round(float(size.mean()), 1),
            "p95 ms": round(float(np.quantile(size, 0.95)), 1),
            "bias ms": round(1000 * float(np.mean(self.starts)), 1),
            "far %": round(100 * self.num_far / (len(self.starts) + self.num_far), 2),
        }


def word_errors(dialogues: Sequence[Dialogue], truth: Path) -> WordErrors:
    """Compares every word of the dialogues of one corpus with `truth`, its folder of CALL.json."""
    starts, num_far = [], 0
    for dialogue in dialogues:
        call = json.loads((truth / f"{dialogue.provenance['call'].removeprefix('fe_03_')}.json").read_text("utf-8"))
        offset = dialogue.provenance["window"][0]
        for letter, side in SIDE_OF.items():
            true: dict[str, list[float]] = {}
            for text, start, _ in call["sides"][letter]["words"]:
                true.setdefault(key_of(text), []).append(start)
            for word in dialogue.side(side).words:
                found = np.array(true.get(key_of(word.text), [np.inf]))
                errors = word.start + offset - found
                nearest = float(errors[np.abs(errors).argmin()])
                if abs(nearest) <= FAR_SECONDS:
                    starts.append(nearest)
                else:
                    num_far += 1
    return WordErrors(starts=tuple(starts), num_far=num_far)
