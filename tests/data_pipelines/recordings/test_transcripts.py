"""Transcripts in the shapes that people have: the same words, whatever they are wrapped in; and what is refused."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.recordings.times import drop_bad_times, mute_overlapping
from data_pipelines.recordings.transcripts import clean_text, read_json, read_plain, read_srt, read_transcript
from data_pipelines.recordings.utterances import Sides, SideText, Utterance
from data_pipelines.records.schema import Word
from model.errors import Code, UserError
from tests.refusals import refused

SAID = [("hello", 0.5, 0.9, "left"), ("there", 1.0, 1.4, "left"), ("hi", 3.0, 3.2, "right")]
FLAT: list[dict[str, Any]] = [{"word": text, "start": a, "end": b, "speaker": side} for text, a, b, side in SAID]

NAN = float("nan")


def words(sides: Sides, side: str) -> list[tuple[str, float, float]]:
    """The words of one side."""
    return [(w.text, w.start, w.end) for u in sides[side].utterances for w in u.words]


@pytest.mark.parametrize(
    "value",
    [
        {"alignments": [[f" {text}", [a, b], side] for text, a, b, side in SAID]},
        {"words": FLAT},
        FLAT,
        {"words": [{"text": t, "start_time": a, "stop": b, "channel": side} for t, a, b, side in SAID]},
        [{"text": w["word"], "start": w["start"], "end": w["end"], "speaker": w["speaker"]} for w in FLAT],
        {"left": {"words": [w for w in FLAT if w["speaker"] == "left"]}, "right": [FLAT[2]]},
        {
            "segments": [
                {"start": 0.5, "end": 1.4, "text": "hello there", "speaker": "left", "words": FLAT[:2]},
                {"start": 3.0, "end": 3.2, "text": "hi", "speaker": "right", "words": FLAT[2:]},
            ]
        },
        {"alignments": [[text, [a, b], {"left": "SPEAKER_MAIN", "right": "bob"}[side]] for text, a, b, side in SAID]},
        {"words": [w | {"speaker": {"left": 0, "right": 1}[w["speaker"]]} for w in FLAT]},
    ],
    ids=["moshi", "words", "list", "other keys", "list of texts", "by side", "segments", "main and another", "numbers"],
)  # fmt: skip
def test_words_are_the_same_in_every_shape(value: Any) -> None:
    sides = read_json(value, None, "x.json")
    assert words(sides, "left") == [("hello", 0.5, 0.9), ("there", 1.0, 1.4)]
    assert words(sides, "right") == [("hi", 3.0, 3.2)]


def test_utterances_keep_their_times_and_wait_for_alignment() -> None:
    value = {"utterances": [
        {"tts_text": "Well, I see.", "start_time": 1, "end_time": 4.5, "speaker_id": "B",
         "words": [{"word": "Well,", "start": 0.0, "dur": 0.3}],
         "backchannels": [{"tts_text": "mm-hm", "start_time": 2.0, "end_time": 2.4}]},
        {"tts_text": "[laughter] Yes", "start_time": 5, "end_time": 6, "speaker_id": "A"},
    ]}  # fmt: skip
    sides = read_json(value, None, "x.json")
    assert sides["right"].utterances == (Utterance(start=1.0, end=4.5, text="Well, I see."),)
    assert [u.text for u in sides["left"].utterances] == ["mm-hm", "Yes"]


def test_word_times_that_are_counted_from_the_utterance_are_not_taken_for_times_of_the_recording() -> None:
    inner = [{"word": "late", "start": 0.1, "end": 0.5}]
    value = [{"text": "late", "start": 60.0, "end": 61.0, "speaker": "left", "words": inner}]
    assert read_json(value, None, "x")["left"].utterances == (Utterance(start=60.0, end=61.0, text="late"),)


def test_a_pause_between_words_ends_an_utterance() -> None:
    value = [{"word": str(n), "start": t, "end": t + 0.3, "speaker": "left"} for n, t in enumerate((0.0, 0.4, 1.5))]
    assert [u.text for u in read_json(value, None, "x")["left"].utterances] == ["0 1", "2"]


def test_json_without_a_transcript_says_that_nothing_is_known() -> None:
    assert read_json({"topic": "cats", "duration": 3.5}, None, "x") == {}
    assert read_json({"speakers": [{"id": 1}], "duration": 3.5}, None, "x") == {}


def test_speakers_get_their_sides_from_the_option_or_from_known_names() -> None:
    value = {"words": [FLAT[0] | {"speaker": "Bob"}, FLAT[2] | {"speaker": "Ann"}]}
    sides = read_json(value, ("Ann", "Bob"), "x")
    assert words(sides, "left") == [("hi", 3.0, 3.2)] and words(sides, "right") == [("hello", 0.5, 0.9)]
    with pytest.raises(UserError, match="x: unknown speaker: 'Ann', 'Bob': say which one is on the left with --labels"):
        read_json(value, None, "x")
    with refused("bad-record", "'Bob'", "--labels", "'Tom'"):
        read_json(value, ("Ann", "Tom"), "x")
    with refused("bad-record", "'1'"):  # It may be the second of 0 and 1, or the first of 1 and 2.
        read_json({"words": [FLAT[0] | {"speaker": "1"}]}, None, "x")
    with refused("bad-record", "x: does not say who speaks"):
        read_json({"words": [{"word": "a", "start": 0, "end": 1}]}, None, "x")
    main = [["a", [0, 1], "SPEAKER_MAIN"], ["b", [1, 2], "x"], ["c", [2, 3], "y"]]
    with refused("bad-record", "'SPEAKER_MAIN'", "'x'", "'y'"):
        read_json({"alignments": main}, None, "x")


@pytest.mark.parametrize(
    "value",
    [{"alignments": [["a", 1.0, "left"]]}, {"words": [{"start": 1}]}, {"words": ["a"]},
     {"alignments": [["a", ["soon", "later"], "left"]]}, {"alignments": [["a", [10**400, 1], "left"]]},
     {"alignments": [[NAN, [0, 1], "left"]]}, {"alignments": [["a", [NAN, 1], "left"]]},
     {"alignments": [[None, [0, 1], "left"]]}, {"alignments": [["a", [0, math.inf], "left"]]},
     {"left": [{"text": "a b", "start": NAN, "end": 1}]}, {"left": {"words": [{"word": "a", "start": 0, "end": NAN}]}},
     {"left": [{"text": "a b", "start": 0, "end": 1, "words": [{"word": "a", "start": NAN, "end": 1}]}]}],
)  # fmt: skip
def test_json_of_wrong_types_is_refused(value: Any) -> None:
    with refused("bad-record", "x.json"):
        read_json(value, None, "x.json")


SRT = """1
00:00:01,500 --> 00:00:02,750
{}Hello <i>there</i>,
friend. [laughter]

2
00:01:00,000 --> 00:01:01,000
{}Bye.
"""


@pytest.mark.parametrize(
    ("first", "second", "side"),
    [("", "", "left"), ("A: ", "A: ", ""), ("[A] ", "[A] ", ""), ("<v A>", "<v A>", "")],
)
def test_subtitles_of_one_side_or_with_speakers_in_them(tmp_path: Path, first: str, second: str, side: str) -> None:
    pytest.importorskip("srt")
    path = tmp_path / "a.srt"
    path.write_text("\ufeff" + SRT.format(first, second), "utf-8")
    sides = read_transcript(path, None, side)
    assert sides["left"].utterances == (
        Utterance(start=1.5, end=2.75, text="Hello there, friend."),
        Utterance(start=60.0, end=61.0, text="Bye."),
    )


@pytest.mark.parametrize(
    ("name", "content", "code", "named"),
    [
        ("a.srt", "caf\u00e9".encode("latin-1"), "unreadable", "not UTF-8 (byte 3)"),
        ("a.json", '{"words": "caf\u00e9"}'.encode("latin-1"), "unreadable", "not UTF-8"),
        ("a.json", b'{"words": [', "unreadable", "not JSON"),
        ("a.json", b"[" * 100_000, "unreadable", "not JSON"),
        ("a.txt", "A: hi".encode("utf-16"), "unreadable", "iconv -f UTF-16"),
        ("a.srt", b"no subtitles here", "unreadable", "not SRT"),
        ("a.srt", b"1\n00:00:01,000 -> 00:00:02,000\nA: hi\n", "unreadable", "not SRT"),
        ("a.srt", SRT.format("", "").encode(), "bad-record", "subtitle 1"),
        ("a.txt", b"A: hi\nno speaker\n", "bad-record", "line 2"),
    ],
)
def test_broken_transcript_files_are_refused(tmp_path: Path, name: str, content: bytes, code: Code, named: str) -> None:
    pytest.importorskip("srt")
    (tmp_path / name).write_bytes(content)
    with refused(code, tmp_path / name, named):
        read_transcript(tmp_path / name, None)


def test_a_missing_transcript_is_refused(tmp_path: Path) -> None:
    with refused("not-found", "none.srt"):
        read_transcript(tmp_path / "none.srt", None)


def test_a_text_without_times_is_kept_as_it_is() -> None:
    assert read_plain("Hello <b>you</b>.\nBye.", None, "x", "right") == {"right": SideText(text="Hello you. Bye.")}
    assert read_plain("A: Hi.\nB: Oh.\nA: Bye.", None, "x")["left"] == SideText(text="Hi. Bye.")


def side_of(*times: tuple[float, float]) -> Sides:
    """A left side of one word for each pair of times."""
    said = [Word(text=f"w{n}", start=a, end=b) for n, (a, b) in enumerate(times)]
    utterances = tuple(Utterance(start=w.start, end=w.end, text=w.text, words=(w,)) for w in said)
    return {"left": SideText(utterances=utterances)}


def test_a_few_impossible_times_are_dropped_and_counted() -> None:
    good = [(n * 0.1, n * 0.1 + 0.05) for n in range(40)]
    sides, dropped = drop_bad_times(side_of(*good, (3.0, 2.0), (99.0, 99.5)), 10.0, "x")
    assert dropped == 2 and len(sides["left"].utterances) == 40


@pytest.mark.parametrize("bad", [(3.0, 2.0), (99.0, 99.5), (-5.0, 1.0), (float("nan"), 1.0)])
def test_many_impossible_times_are_refused(bad: tuple[float, float]) -> None:
    with refused("bad-transcript", "x: 2 of 4 times", "10.00 s", "'w2'"):
        drop_bad_times(side_of((0.0, 0.5), (1.0, 1.5), bad, bad), 10.0, "x")


def test_overlapping_words_are_cut_at_the_next_start_and_the_last_at_the_end_of_the_audio() -> None:
    words = (Word(text="a", start=0.0, end=0.8), Word(text="b", start=0.5, end=1.2))
    sides, _ = drop_bad_times(
        {"left": SideText(utterances=(Utterance(start=0, end=1.2, text="a b", words=words),))}, 1.0, "x"
    )
    assert [(w.start, w.end) for w in sides["left"].utterances[0].words] == [(0.0, 0.5), (0.5, 1.0)]


def test_two_things_said_at_once_by_one_side_lose_their_text() -> None:
    def said(start: float, end: float, words: tuple[Word, ...] = ()) -> Utterance:
        return Utterance(start=start, end=end, text="hello", words=words)

    exact = (Word(text="hello", start=8.2, end=9.0),)
    left = (said(0, 2), said(1, 3), said(3, 4), said(3.8, 5), said(6, 9), said(8.2, 9, exact))
    sides, count = mute_overlapping({"left": SideText(utterances=left), "right": SideText(utterances=(said(0, 2),))})
    assert [utterance.text for utterance in sides["left"].utterances] == ["", "", "hello", "hello", "", "hello"]
    assert count == 3 and sides["right"].utterances[0].text == "hello"


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [(" " * 100_000, False), ("\n" * 100_000, False), ("[" * 100_000, True), ("{" * 100_000, True), ("9" * 5000, True)],
)
def test_long_rows_of_one_character_take_no_time(text: str, is_refused: bool) -> None:
    """Each of them took minutes or hours, as the square or worse of its length."""
    whole = f"{text}\n{SRT.format('A: ', 'A: ')}"
    with refused("unreadable", "a.srt") if is_refused else nullcontext():
        assert len(read_srt(whole, None, "a.srt")["left"].utterances) == 2
    assert len(clean_text(text)) in (0, len(text))
