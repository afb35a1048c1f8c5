import numpy as np
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.quality.report import reason_kind
from data_pipelines.quality.report_picture import excerpt, overlaps
from data_pipelines.quality.turns import TurnTaking, stretches, turn_taking
from data_pipelines.schema import Dialogue, Side, Word
from data_pipelines.shards.encode import build_shards
from model.errors import UserError
from tests.data_pipelines.tiny_dialogues import RATE, TinyCodec, write_corpus, write_dialogue


def talk(left, right, seconds=10.0):
    """A dialogue of words given as (start, end)."""
    sides = [
        Side(speaker=name, words=tuple(Word(text=name, start=a, end=b) for a, b in times), is_agent=True)
        for name, times in (("l", left), ("r", right))
    ]
    return Dialogue(
        id="x", source="fisher", split="train", scenario="", seconds=seconds, left=sides[0], right=sides[1], licence="x"
    )


def test_words_less_than_200_ms_apart_are_one_stretch():
    words = talk([(0, 0.5), (0.65, 1.0), (1.25, 2.0)], []).left.words
    assert stretches(words, "left") == [(0, 1.0, "left"), (1.25, 2.0, "left")]


def test_speech_pauses_gaps_and_overlap_as_counted_by_hand():
    # left 1-2, pause 0.5, left 2.5-4, gap 0.3, right 4.3-6 with left 5.5-8 on it for 0.5 and right 6.5-7 on that, gap 1
    turns = turn_taking(talk([(1, 2), (2.5, 4), (5.5, 8)], [(4.3, 6), (6.5, 7), (9, 10)]))
    measured = (turns.speech, turns.pause, turns.gap, turns.overlap)
    assert measured == pytest.approx((1 + 1.5 + 2.5 + 1.7 + 0.5 + 1, 0.5, 0.3 + 1, 0.5 + 0.5))
    assert turns.offsets == pytest.approx([0.3, -0.5, 1])
    assert turns.per_minute()["gap"] == pytest.approx(6 * 1.3)


def test_the_four_numbers_add_up_to_the_time_between_first_and_last_word():
    draw = np.random.default_rng(4)
    for _ in range(50):
        sides = []
        for _ in range(2):
            edges = np.cumsum(draw.uniform(0.05, 1.2, 20))
            sides.append([(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)])
        dialogue = talk(*sides, seconds=30.0)
        turns = turn_taking(dialogue)
        joined = [s for side in ("left", "right") for s in stretches(dialogue.side(side).words, side)]
        span = max(end for _, end, _ in joined) - min(start for start, _, _ in joined)
        assert turns.speech - turns.overlap + turns.pause + turns.gap == pytest.approx(span)


def test_totals_of_many_dialogues_are_per_minute_of_all():
    total = TurnTaking()
    for seconds in (10, 50):
        total.add(turn_taking(talk([(1, 2)], [(3, 4)], seconds=seconds)))
    assert total.per_minute() == pytest.approx({"speech": 4, "pause": 0, "gap": 2, "overlap": 0})


def test_the_excerpt_has_the_liveliest_stretch():
    quiet, lively = [(1, 2), (20, 21)], [(60.0 + n, 60.4 + n) for n in range(10)]
    start, seconds = excerpt(talk(quiet + lively, [(a + 0.5, b + 0.5) for a, b in lively], seconds=100))
    assert 55 < start < 61 and seconds == 24
    assert excerpt(talk([(1, 2)], [], seconds=9)) == (0, 9)


def test_overlaps_are_where_words_of_both_sides_sound():
    assert overlaps(talk([(1, 2), (3, 4)], [(1.5, 3.2)])) == [(1.5, 2), (3, 3.2)]


def test_reasons_count_together_whatever_their_numbers_and_paths():
    reasons = [
        "/a/b.flac: 1.50 s: a voice prompt lasts 3 to 10 s",
        "d/e/left.voice.flac: 12 s: a voice prompt lasts 3 to 10 s",
    ]
    assert {reason_kind(reason) for reason in reasons} == {"N s: a voice prompt lasts N to N s"}
    assert reason_kind("/x/y: id 'good' must be") == "id '...' must be"


@pytest.fixture
def shards(tmp_path):
    folders = write_corpus(tmp_path / "dialogues")
    bad = write_dialogue(tmp_path / "dialogues" / "synth", "short-voice")
    soundfile.write(bad / "left.voice.flac", np.ones(RATE) * 0.1, RATE)
    build_shards(folders, TinyCodec(), tmp_path / "out")
    return tmp_path / "out"


def test_the_table_has_each_source_of_each_split(shards, tmp_path, capsys):
    verbs.main(["report", str(shards), "--out", str(tmp_path / "report.png")])
    out = capsys.readouterr().out
    rows = {line[:22].strip(): line[22:].split() for line in out.splitlines() if line.startswith(("train", "heldout"))}
    assert rows["train fisher"][:4] == ["2", "4", "0.00", "3.5"]
    assert rows["heldout service"][:4] == ["1", "1", "0.00", "6.0"]
    assert "licence MIT: 3 dialogues" in out
    assert "rejected 1: N s: a voice prompt lasts N to N s" in out


def test_the_picture_is_a_png_of_some_size_and_never_replaces_a_file(shards, tmp_path):
    path = tmp_path / "new" / "report.png"
    verbs.main(["report", str(shards), "--out", str(path)])
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 50_000
    assert [p.name for p in path.parent.iterdir()] == ["report.png"]
    with pytest.raises(UserError, match="exists: give another --out"):
        verbs.main(["report", str(shards), "--out", str(path)])
    with pytest.raises(UserError, match="end its name in .png"):
        verbs.main(["report", str(shards), "--out", str(tmp_path / "report.pdf")])


def test_a_folder_without_a_manifest_is_incomplete(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        verbs.main(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.png")])
    with pytest.raises(UserError, match="manifest.json: missing, so the shards are incomplete"):
        verbs.main(["report", str(tmp_path), "--out", str(tmp_path / "r.png")])
