"""Which lines of calls the Fisher importer takes: right ones, right ones with wrong times, and texts of other lines.

python scripts/bench/fit.py                          synthetic calls, made here, by noise of the line
python scripts/bench/fit.py --corpora CORPUS ...     stand-in corpora that are there
"""

# Shapes: C channels, S samples

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from common import table, write_json
from remembered import remember_alignments

from data_pipelines.recordings.fisher.layout import find_corpus
from data_pipelines.recordings.fisher.placed import place_lines
from data_pipelines.recordings.fisher.sphere import decode
from data_pipelines.recordings.fisher.timed_lines import TimedLine, read_transcript
from data_pipelines.records.schema import SIDES
from data_pipelines.sound.audio import Audio
from data_pipelines.standin.standin import make_truth_corpus

WRONG_EVERY, WRONG_FOLDS = 4, 2
"""One line of this many gets a wrong text or wrong times, so that the others still show how the speaker fits; so often,
with other lines."""


@dataclass
class Counts:
    """Lines tried and lines taken."""

    tried: int = 0
    taken: int = 0

    def add(self, taken: Sequence[bool]) -> None:
        """Counts some more."""
        self.tried, self.taken = self.tried + len(taken), self.taken + sum(taken)

    def percent(self) -> str:
        """The share that was taken."""
        return f"{100 * self.taken / max(self.tried, 1):.1f} % of {self.tried}"


def with_text_of_others(lines: Sequence[TimedLine], chosen: Sequence[int]) -> list[TimedLine]:
    """Gives the chosen lines the text of the line that is seven further on, or of the next one that differs."""
    changed = list(lines)
    for n in chosen:
        others = (lines[(n + step) % len(lines)] for step in range(7, 7 + len(lines)))
        other = next(line for line in others if [t.said for t in line.said] != [t.said for t in lines[n].said])
        changed[n] = replace(lines[n], tokens=other.tokens)
    return changed


def shifted(lines: Sequence[TimedLine], chosen: Sequence[int], seconds: float) -> list[TimedLine]:
    """Moves the times of the chosen lines."""
    changed = list(lines)
    for n in chosen:
        start = max(lines[n].start + seconds, 0.0)
        changed[n] = replace(lines[n], start=start, end=start + lines[n].end - lines[n].start)
    return changed


def measure(corpora: Sequence[Path], shift: float) -> dict[str, str]:
    """Returns the shares of lines taken, of all calls of the corpora."""
    counts = {name: Counts() for name in ("right", "right, shifted", "wrong", "wrong, all of a side")}
    for root in corpora:
        corpus = find_corpus([root])
        for call in corpus.calls:
            samples_SC, rate, _ = decode(corpus.audio[call])
            transcript = read_transcript(corpus.transcripts[call], call)
            for channel, side in enumerate(SIDES):
                lines = [line for line in transcript.lines if line.side == side and line.is_certain and line.said]
                _count(lines, np.ascontiguousarray(samples_SC[:, channel]), rate, shift, counts)
    return {name: count.percent() for name, count in counts.items()}


def _count(lines: Sequence[TimedLine], audio_S: Audio, rate: int, shift: float, counts: dict[str, Counts]) -> None:
    def taken(tried: Sequence[TimedLine], chosen: Sequence[int]) -> list[bool]:
        placed = place_lines(tried, audio_S, rate)
        return [bool(placed[n].times) for n in chosen]

    every = range(len(lines))
    counts["right"].add(taken(lines, every))
    counts["wrong, all of a side"].add(taken(with_text_of_others(lines, every), every))
    for first in range(WRONG_FOLDS):
        chosen = every[first::WRONG_EVERY]
        counts["wrong"].add(taken(with_text_of_others(lines, chosen), chosen))
    chosen = every[::WRONG_EVERY]
    counts["right, shifted"].add(taken(shifted(lines, chosen, shift), chosen))


def main() -> None:
    """Runs the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, nargs="+", default=[])
    parser.add_argument("--noise", nargs="+", type=float, default=[-62.0], help="dBFS; speech is at -24")
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shift", type=float, default=0.6, help="seconds by which times are wrong")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    remember_alignments()
    rows = [{"corpus": root.name} | measure([root], args.shift) for root in args.corpora]
    for noise in [] if args.corpora else args.noise:
        with tempfile.TemporaryDirectory() as folder:
            make_truth_corpus(Path(folder, "corpus"), args.calls, args.seconds, args.seed, "espeak", noise)
            rows.append({"noise dBFS": f"{noise:g}"} | measure([Path(folder, "corpus")], args.shift))
    print(table(rows))
    write_json(args.json, {"calls": args.calls, "seconds": args.seconds, "seed": args.seed, "rows": rows})


if __name__ == "__main__":
    main()
