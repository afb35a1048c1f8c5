"""Fisher's transcripts as their lines are read, faults of the release included."""

from pathlib import Path

import pytest

from data_pipelines.recordings.fisher.timed_lines import parse_tokens, parse_transcript, read_transcript
from tests.refusals import refused


def test_a_transcript_is_sorted_and_lines_of_other_shapes_are_ignored() -> None:
    text = (
        "# fe_03_00001.sph\n# Transcribed by BBN/WordWave\n\n10.5 12.25 B: hi there \n\n1.00 2.50 A: hello \n"
        "3.0 4.0 C: who\nnonsense\n5.0 4.0 A: backwards\n6.0 99.0 A: far too long\n7.0.1 8.0 B: odd number\n8 9 B: \n"
    )
    transcript = parse_transcript(text, "00001")
    assert [(line.start, line.side) for line in transcript.lines] == [(1.0, "left"), (10.5, "right")]
    assert transcript.transcriber == "BBN/WordWave" and transcript.num_faulty == 3


def test_the_known_wrong_time_of_call_11487_is_put_right() -> None:
    line = parse_transcript("31.09 234.06 A: yeah\n", "11487").lines[0]
    assert (line.start, line.end) == (231.09, 234.06)
    assert not parse_transcript("31.09 234.06 A: yeah\n", "00001").lines


def test_markers_leave_the_text_and_spelling_is_restored() -> None:
    tokens = parse_tokens("[noise] well i'm on t._v. [laughter] mon- monday's game i guess [lipsmack] ")
    assert [t.text for t in tokens if t.kind == "word"] == "Well I'm on T.V. Monday's game I guess".split()
    assert [t.kind for t in tokens].count("laugh") == 1 and [t.said for t in tokens if t.kind == "partial"] == ["mon"]
    assert parse_tokens("[sigh] [breath] [mn]") == ()


@pytest.mark.parametrize(
    ("text", "words", "laughs"),
    [
        ("[baby crying] sorry", "Sorry", 0),
        ("mn] yeah", "Yeah", 0),
        ("well [mn i guess", "Well I guess", 0),
        ("{laugh} okay {breath}", "Okay", 1),
        ("so[laughter]funny [ laughter ]", "So funny", 2),
        ("[laughter yes laughter]", "", 0),
        ("[laughter yes", "Yes", 1),
        ("<background noise> it's {door slams} open", "It's open", 0),
        ("that's right] you know", "That's right you know", 0),
    ],
)
def test_sounds_in_any_brackets_are_no_words(text: str, words: str, laughs: int) -> None:
    tokens = parse_tokens(text)
    assert " ".join(token.text for token in tokens if token.kind == "word") == words
    assert sum(token.kind == "laugh" for token in tokens) == laughs


def test_uncertain_lines_keep_the_words_that_are_there() -> None:
    text = "1 2 A: (( ))\n3 4 A: so (( maybe this )) mon- works ((for))\n5 6 B: sure\n7 8 B: (( yeah ))\n"
    text += "9 9.5 B: i (( )) see\n"
    found = parse_transcript(text, "00001").lines
    said = [" ".join(token.said for token in line.tokens) for line in found]
    assert said == ["", "so maybe this mon works for", "sure", "yeah", "i see"]
    assert [line.is_certain for line in found] == [False, False, True, False, False]
    assert [line.is_backchannel for line in found] == [False, False, True, False, False]


def test_two_things_said_at_once_by_one_speaker_lose_their_words() -> None:
    text = "1 4 A: one long line\n2 5 A: another one\n4.8 6 A: fine\n1 4 B: fine, too\n6 7 A: (( ))\n6 9 A: fine\n"
    transcript = parse_transcript(text, "00001")
    assert transcript.num_overlapping == 2
    uncertain = [line.start for line in transcript.lines if not line.is_certain and line.side == "left"]
    assert uncertain == [1.0, 2.0, 6.0] and sum(bool(line.tokens) for line in transcript.lines) == 3


GOOD = "".join(f"{n} {n + 0.9} A: word\n" for n in range(10))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("# fe_03_00002.sph\n\n" + GOOD, ["call 00002"]),
        (GOOD + "".join(f"{n + 1} {n} B: word\n" for n in range(4)), ["4 of 14"]),
        (GOOD + "".join(f"{n} {n + 8} B: word\n" for n in range(4)), ["4 of 14"]),
        ("9 8 A: reversed\n", ["1 of 1"]),
        ("", ["12.34 15.67 A: text"]),
        ("# fe_03_00001.sph\n# Transcribed at the LDC\n\n", ["12.34 15.67 A: text"]),
    ],
)
def test_transcripts_that_cannot_be_trusted_are_refused(tmp_path: Path, text: str, names: list[str]) -> None:
    path = tmp_path / "fe_03_00001.txt"
    path.write_text(text)
    with refused("bad-transcript", path, *names):
        read_transcript(path, "00001")


def test_a_transcript_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with refused("unreadable", "missing.txt"):
        read_transcript(tmp_path / "missing.txt", "00001")


def test_lines_of_another_shape_and_negative_times_are_counted() -> None:
    found = parse_transcript("1.00 2.00 A: hi \n-1.00 2.00 B: no \n3.00 4.00 C: who \n\nfive six \n", "00001")
    assert (len(found.lines), found.num_faulty, found.num_strange) == (1, 1, 2)


def test_a_transcript_that_is_far_too_long_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "fe_03_00001.txt"
    path.write_text("1.0 2.0 A: hello hello\n" * 100_000)
    with refused("bad-transcript", path, "2,300,000"):
        read_transcript(path, "00001")


def test_text_that_is_no_utf_8_is_read_as_windows_1252(tmp_path: Path) -> None:
    path = tmp_path / "fe_03_00001.txt"
    path.write_bytes(b"# fe_03_00001.sph\n1 2 A: it\x92s a caf\xe9 \n3 4 B: odd \x81 byte\n")
    lines = [[t.text for t in line.tokens] for line in read_transcript(path, "00001").lines]
    assert lines == [["It's", "a", "caf\u00e9"], ["Odd", "byte"]]
    path.write_bytes("1 2 A: it\u2019s a caf\u00e9".encode())
    assert [t.text for t in read_transcript(path, "00001").lines[0].tokens] == lines[0]
