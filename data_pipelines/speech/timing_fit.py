"""`ppx-data timing`: turn taking fitted to calls, from the word times of dialogue folders.

Words of one side at most 0.2 s apart form a stretch of speech. A stretch of a few listener's words beside a turn of
the other side is a backchannel. Of the rest, the stretch that lasts longest so far holds the floor; when the other
side outlasts it, the speaker changes: the time between is a gap, negative for an overlap. An overlap of more than
half a second is an interruption, and its length is how long the interrupted went on.
"""

import argparse
import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.files import save_once
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.records.schema import SIDES, Dialogue
from data_pipelines.records.turn_taking import Stretch, stretches
from data_pipelines.speech.timing import LIMITS, Table, Timing
from data_pipelines.text.backchannels import backchannels
from model.errors import UserError

INTERRUPTION_SECONDS = 0.5
"""A longer overlap at a change of speaker is an interruption. A choice: overlaps of turn ends are shorter."""
LAPSE_SECONDS = 8.0
"""A longer silence is no gap or pause of a conversation (and no dialogue with one passes its gates)."""
NEEDED = {"gap": 200, "pause": 100, "backchannel": 50, "interruption": 20}
"""Events below which a table of quantiles would say more about chance than about people."""
NUM_QUANTILES = 101


@dataclass
class Observed:
    """Events of some dialogues: lists of seconds, but `backchannel_at` lists shares of the turn."""

    seconds: float = 0.0
    speech: float = 0.0
    """The speech of whoever has the floor, in seconds."""
    turns: float = 0.0
    """The turns of whoever has the floor, pauses included, in seconds."""
    gap: list[float] = field(default_factory=list)
    pause: list[float] = field(default_factory=list)
    backchannel: list[float] = field(default_factory=list)
    backchannel_at: list[float] = field(default_factory=list)
    interruption: list[float] = field(default_factory=list)
    left_starts: int = 0
    dialogues: int = 0

    def add(self, dialogue: Dialogue) -> None:
        """Adds what happens in one dialogue."""
        found = {name: stretches(dialogue.side(name).words, name) for name in SIDES}
        left, right = found["left"], found["right"]
        hums = {
            "left": backchannels(dialogue.left.words, left, right),
            "right": backchannels(dialogue.right.words, right, left),
        }
        rest = sorted(set(left + right) - set(hums["left"] + hums["right"]))
        if len({side for _, _, side in rest}) < 2:
            return
        self.dialogues += 1
        self.seconds += dialogue.seconds
        self.left_starts += rest[0][2] == "left"
        for turn in self._turns(rest):
            self._answers(turn, hums["right" if turn[2] == "left" else "left"])

    def _turns(self, rest: Sequence[Stretch]) -> list[Stretch]:
        """Counts gaps, pauses and interruptions between stretches; returns the turns."""
        turns = [rest[0]]
        self.speech += rest[0][1] - rest[0][0]
        for start, end, side in rest[1:]:
            floor = turns[-1]
            silence = start - floor[1]
            if side == floor[2]:
                if silence <= LAPSE_SECONDS:
                    self.pause.append(silence)
                turns[-1] = (floor[0], end, side)
            elif end <= floor[1]:
                continue  # The other side did not take the floor, or made an aside.
            else:
                if silence < -INTERRUPTION_SECONDS:
                    self.interruption.append(-silence)
                elif silence <= LAPSE_SECONDS:
                    self.gap.append(silence)
                turns.append((start, end, side))
            self.speech += end - start
        self.turns += sum(end - start for start, end, _ in turns)
        return turns

    def _answers(self, turn: Stretch, hums: Sequence[Stretch]) -> None:
        """Backchannels within one turn."""
        first = bisect_left(hums, turn[0], key=lambda hum: hum[0])
        for start, end, _ in takewhile(lambda hum: hum[0] < turn[1], islice(hums, first, None)):
            self.backchannel.append(end - start)
            self.backchannel_at.append((start - turn[0]) / (turn[1] - turn[0]))


def fit(observed: Observed, name: str) -> Timing:
    """The tables of a Timing. Raises UserError naming the kind of event there is too little of."""
    short = {kind: need for kind, need in NEEDED.items() if len(getattr(observed, kind)) < need}
    if short:
        missing = ", ".join(f"{len(getattr(observed, kind))} of {need} {kind}s" for kind, need in short.items())
        raise UserError(
            f"too little to fit to in {observed.dialogues} dialogues: {missing}: give more calls", code="no-data"
        )
    return Timing(
        name=name,
        gap=_table("gap", observed.gap),
        pause=_table("pause", observed.pause),
        pause_rate=round(len(observed.pause) / observed.speech, 5),
        backchannel_rate=round(len(observed.backchannel) / observed.turns, 5),
        backchannel_at=_table("backchannel_at", observed.backchannel_at),
        backchannel_seconds=_table("backchannel_seconds", observed.backchannel),
        stop_after=_table("stop_after", observed.interruption),
        user_silence_share=0.0,  # The gaps include long silences.
    )


def _table(name: str, values: Sequence[float]) -> Table:
    low, high = LIMITS[name]
    quantiles = np.quantile(np.clip(values, low, high), np.linspace(0, 1, NUM_QUANTILES))
    return Table(tuple(round(float(q), 4) for q in quantiles), len(values))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ppx-data timing`."""
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, help="folders with words on both sides")
    parser.add_argument("--out", type=Path, required=True, help="file for `ppx-data speak --timing`")


def run(args: argparse.Namespace) -> None:
    """`ppx-data timing`."""
    observed, licences, sources = Observed(), set(), set()
    for folder in tqdm(find_dialogues(args.dialogues), unit="dialogue", desc="timing"):
        dialogue = load_dialogue(folder)
        observed.add(dialogue)
        licences.add(dialogue.licence)
        sources.add(dialogue.source)
    timing = fit(observed, args.out.stem)
    counts = {kind: len(getattr(observed, kind)) for kind in NEEDED}
    about = {
        "dialogues": observed.dialogues,
        "hours": round(observed.seconds / 3600, 3),
        "counts": counts,
        "left_starts": round(observed.left_starts / observed.dialogues, 3),
        "sources": sorted(sources),
        "licences": sorted(licences),
    }
    content = json.dumps({"format": 1, "about": about, "timing": asdict(timing)}, indent=1)
    is_new = save_once(args.out, content.encode())
    medians = {kind: f"{float(np.median(getattr(observed, kind))):.2f} s" for kind in NEEDED}
    print(
        f"{observed.dialogues} dialogues, {observed.seconds / 3600:.2f} h: "
        + ("" if is_new else "nothing new, ")
        + str(args.out)
    )
    for kind, count in counts.items():
        print(f"  {kind:<12} {count:7} median {medians[kind]}")
