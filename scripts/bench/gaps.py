"""What lines that are only `(( ))` cost the Fisher importer, and what a recogniser gives back.

python scripts/bench/gaps.py --shares 0 0.05 0.1 0.2

Every line of synthetic calls becomes such a gap with the given chance; its speech stays as clear as it was.
"""

# Shapes: C channels, S samples

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import table, write_json
from remembered import remember_alignments

from data_pipelines.recordings.clips import candidate_clips
from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.fisher.heard import align_lines
from data_pipelines.recordings.fisher.layout import find_corpus
from data_pipelines.recordings.fisher.sphere import decode
from data_pipelines.recordings.fisher.timed_lines import SIDE_OF, TimedLine, read_transcript
from data_pipelines.recordings.fisher.written import key_of
from data_pipelines.recordings.windows import WindowLimits, plan_windows
from data_pipelines.records.schema import SIDES
from data_pipelines.standin.standin import make_truth_corpus
from data_pipelines.standin.truth import FAR_SECONDS


def with_gaps(lines: Sequence[TimedLine], share: float, seed: str) -> list[TimedLine]:
    """Makes gaps of lines with words; a greater share has those of a smaller one, too."""
    rng = random.Random(seed)
    gap: dict[str, Any] = {"tokens": (), "is_certain": False, "is_gap": True, "has_sounds": True}
    return [replace(line, **gap) if rng.random() < share and line.said else line for line in lines]


def measure(root: Path, share: float, listener: Listener | None, seconds: float) -> dict[str, Any]:
    """Returns what all calls of a corpus give."""
    corpus, limits = find_corpus([root]), WindowLimits(max_seconds=seconds)
    row: dict[str, Any] = {"gaps": f"{100 * share:g} %", "filled": "yes" if listener else "no"}
    num_gaps = num_filled = num_windows = num_words = num_right = 0
    agent_seconds = 0.0
    for call in corpus.calls:
        samples_SC, rate, _ = decode(corpus.audio[call])
        lines = with_gaps(read_transcript(corpus.transcripts[call], call).lines, share, call)
        spoken, _ = align_lines(lines, np.ascontiguousarray(samples_SC.T), rate, listener)
        clips = {side: candidate_clips(spoken[side], 4.0) for side in SIDES}
        windows = [w for w in plan_windows(spoken, clips, len(samples_SC) / rate, limits) if w.clips]
        num_windows += len(windows)
        agent_seconds += sum((w.end - w.start) * len(w.clips) for w in windows)
        num_gaps += sum(line.is_gap for line in lines)
        for side in SIDES:
            recognised = [u for u in spoken[side] if u.is_recognised]
            num_filled += len(recognised)
            words = [(word.text, word.start) for u in recognised for word in u.words]
            num_words += len(words)
            num_right += count_right(words, root, call, side)
    right = f"{100 * num_right / num_words:.0f} % of {num_words}" if num_words else ""
    return row | {
        "lines filled": f"{num_filled} of {num_gaps}", "their words right": right,
        "windows": num_windows, "agent minutes": round(agent_seconds / 60, 2),
    }  # fmt: skip


def count_right(words: Sequence[tuple[str, float]], root: Path, call: str, side: str) -> int:
    """Returns how many of the words are said within half a second of where they are put."""
    letter = next(letter for letter, name in SIDE_OF.items() if name == side)
    truth = json.loads((root / f"truth/{call}.json").read_text("utf-8"))["sides"][letter]["words"]
    return sum(
        any(key_of(text) == key_of(word) and abs(start - true) <= FAR_SECONDS for word, true, _ in truth)
        for text, start in words
    )


def main() -> None:
    """Runs the benchmark of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    parser.add_argument("--corpus", type=Path, help="a synthetic stand-in corpus (default: one is made)")
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="longest window")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--asr", default="tiny.en")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    remember_alignments()
    with tempfile.TemporaryDirectory() as folder:
        root = args.corpus or Path(folder, "corpus")
        if not args.corpus:
            make_truth_corpus(root, args.calls, args.seconds, args.seed, "espeak", -62.0)
        ways = [(share, listener) for share in args.shares for listener in (None, Listener(asr=args.asr))]
        rows = [measure(root, share, listener, args.max_seconds) for share, listener in ways if share or not listener]
    print(table(rows))
    write_json(args.json, {"calls": args.calls, "seconds": args.seconds, "seed": args.seed, "rows": rows})


if __name__ == "__main__":
    main()
