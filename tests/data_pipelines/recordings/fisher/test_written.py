"""Words get the spelling of a typed original where they match it."""

import pytest

from data_pipelines.recordings.fisher.timed_lines import parse_transcript
from data_pipelines.recordings.fisher.written import with_original

TYPED = """\
L:  Hi, my name's Candy.
R:  Hi Candy.  My name is Cindy. [LAUGH] I--
L:  Okay.  Um, I'm from Min[?] Missouri.  I watch T.V. --
    and "Friends."
"""
BARE_TEXT = """\
1 2 A: hi my name's candy
3 4 B: hi candy my name is cindy [laughter] i
5 6 A: okay um i'm from min- missouri i watch t._v.
6 7 A: and friends
7 8 A: something the typist left out in ohio
"""


def test_words_get_case_and_punctuation_from_the_typed_original_where_they_match() -> None:
    transcript, share = with_original(parse_transcript(BARE_TEXT, "00001"), TYPED)
    lines = [" ".join(t.text for t in line.tokens if t.kind == "word") for line in transcript.lines]
    assert lines == [
        "Hi, my name's Candy.",
        "Hi Candy. My name is Cindy. I",
        "Okay. Um, I'm from Missouri. I watch T.V.",
        "and Friends.",
        "Something the typist left out in Ohio",
    ]
    assert share == pytest.approx(21 / 28)
    assert [t.said for t in transcript.lines[2].tokens][-1] == "t.v."


def test_the_original_of_another_call_changes_nothing() -> None:
    before = parse_transcript(BARE_TEXT, "00001")
    after, share = with_original(before, "L: What about the weather?\nR: I like it.\n")
    assert after is before and share < 0.5
