"""Which lines the aligner takes, on synthetic calls whose words are known: right, wrong, shifted, and filled gaps."""

import json
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.fisher.layout import find_corpus
from data_pipelines.recordings.fisher.placed import PlacedLine, place_lines
from data_pipelines.recordings.fisher.sphere import decode
from data_pipelines.recordings.fisher.timed_lines import SIDE_OF, TimedLine, parse_transcript, read_transcript
from data_pipelines.recordings.fisher.written import key_of
from data_pipelines.sound.audio import Audio
from data_pipelines.standin.standin import make_truth_corpus

RATE = 8000


@dataclass
class OneSide:
    """The certain lines of one side, its channel, and the engine's own times: (word, start, end)."""

    lines: list[TimedLine]
    audio: Audio
    truth: list[tuple[str, float, float]]


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> list[OneSide]:
    """Two calls of 40 s by espeak-ng."""
    for package in ("espeakng_loader", "desphere_native", "pocketsphinx"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("placed") / "corpus"
    make_truth_corpus(root, 2, 40.0, 3, "espeak", -62.0)
    corpus, found = find_corpus([root]), []
    for call in corpus.calls:
        audio = np.ascontiguousarray(decode(corpus.audio[call])[0].T)
        truth = json.loads((root / f"truth/{call}.json").read_text())["sides"]
        lines = [
            line for line in read_transcript(corpus.transcripts[call], call).lines if line.is_certain and line.said
        ]
        for channel, (letter, side) in enumerate(SIDE_OF.items()):
            own = [line for line in lines if line.side == side]
            found.append(OneSide(lines=own, audio=audio[channel], truth=truth[letter]["words"]))
    return found


def others(lines: list[TimedLine], chosen: range) -> list[TimedLine]:
    """The lines, of which the chosen ones have the text of the line that is three further on."""
    texts = [lines[(n + 3) % len(lines)].tokens if n in chosen else line.tokens for n, line in enumerate(lines)]
    return [replace(line, tokens=tokens) for line, tokens in zip(lines, texts, strict=True)]


def error(placed: PlacedLine, side: OneSide) -> float:
    """How far the first word of a line is from the nearest word of its spelling, in seconds."""
    starts = [start for word, start, _ in side.truth if key_of(word) == key_of(placed.line.said[0].said)]
    return min((abs(placed.times[0][0] - start) for start in starts), default=9.0)


def test_right_lines_are_taken_and_texts_of_other_lines_are_not(sides: list[OneSide]) -> None:
    right = [bool(placed.times) for side in sides for placed in place_lines(side.lines, side.audio, RATE)]
    wrong = []
    for side in sides:
        chosen = range(0, len(side.lines), 3)
        placed = place_lines(others(side.lines, chosen), side.audio, RATE)
        wrong += [bool(placed[n].times) for n in chosen]
    print(f"taken: {sum(right)} of {len(right)} right lines, {sum(wrong)} of {len(wrong)} wrong ones")
    assert len(right) >= 35 and sum(right) >= 0.97 * len(right)
    assert len(wrong) >= 12 and sum(wrong) <= 0.2 * len(wrong)


def test_a_side_of_wrong_texts_does_not_set_a_limit_that_it_passes(sides: list[OneSide]) -> None:
    wrong = []
    for side in sides:
        placed = place_lines(others(side.lines, range(len(side.lines))), side.audio, RATE)
        wrong += [bool(one.times) for one in placed]
    assert sum(wrong) <= 0.3 * len(wrong)


def test_a_line_whose_times_are_late_is_found_between_its_neighbours(sides: list[OneSide]) -> None:
    found = []
    for side in sides:
        late = [n for n, line in enumerate(side.lines) if n % 3 == 1 and len(line.said) > 3]
        lines = [
            replace(line, start=line.start + 0.6, end=line.end + 0.6) if n in late else line
            for n, line in enumerate(side.lines)
        ]
        placed = place_lines(lines, side.audio, RATE)
        found += [(bool(placed[n].times) and error(placed[n], side) < 0.1) for n in late]
        times = [span for one in placed for span in one.times]
        assert all(before[1] <= after[0] for before, after in pairwise(times))
    assert len(found) >= 6 and sum(found) >= 0.7 * len(found)


class Hears:
    """A recogniser that hears what it is told to."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def transcribe(self, audio: Audio, rate: int) -> str:
        """The next text, whatever the audio is."""
        assert rate == RATE and len(audio) > 0.3 * rate
        return self.texts.pop(0)


def test_gaps_get_what_is_heard_if_it_fits_the_sound(sides: list[OneSide], monkeypatch: pytest.MonkeyPatch) -> None:
    side = sides[0]
    n = max(range(1, len(side.lines) - 1), key=lambda n: len(side.lines[n].said))
    text = " ".join(token.said for token in side.lines[n].said)
    gap = replace(side.lines[n], tokens=(), is_certain=False, is_gap=True, has_sounds=True)
    lines = [*side.lines[:n], gap, *side.lines[n + 1 :]]

    def heard(*texts: str) -> PlacedLine:
        recogniser: Any = Hears(*texts)
        monkeypatch.setattr(Listener, "recogniser", lambda self: recogniser)
        placed = place_lines(lines, side.audio, RATE, Listener(asr="told"))
        assert [one.is_recognised for one in placed[:n] + placed[n + 1 :]] == [False] * (len(lines) - 1)
        return placed[n]

    found = heard(f"{text[0].upper()}{text[1:]}.")
    assert found.is_recognised and not found.line.is_certain
    assert [token.text for token in found.line.tokens][-1] == f"{text.split()[-1]}."
    assert error(found, side) < 0.1
    for other in ("", "Please put the seven yellow boxes over there before midnight", "[Music] ..."):
        kept = heard(other)
        assert not kept.times and not kept.is_recognised and kept.line == gap
    assert place_lines(lines, side.audio, RATE)[n] == PlacedLine(line=gap)  # Nobody was asked to listen.


def test_only_a_line_without_words_is_a_gap_and_sounds_are_known() -> None:
    text = "1 2 A: (( ))\n3 4 A: (( yes ))\n5 6 A: so (( ))\n7 8 A: [noise] well\n9 10 A: well\n11 12 A: mn] right\n"
    lines = parse_transcript(text, "00001").lines
    assert [line.is_gap for line in lines] == [True, False, False, False, False, False]
    assert [line.has_sounds for line in lines] == [True, True, True, True, False, True]
    double = parse_transcript("1 5 A: one two\n2 6 A: three four\n", "00001").lines
    assert [(line.is_gap, line.tokens) for line in double] == [(False, ()), (False, ())]
