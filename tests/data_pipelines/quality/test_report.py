"""`ppx-data report`: turn taking and charts against other ways to compute them, and the page, also in a browser."""

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.quality.report.charts import Series, amount, bars, histogram, spark
from data_pipelines.quality.report.collect import collect, reason_kinds
from data_pipelines.quality.report.page import render
from data_pipelines.quality.report.player import excerpt, overlaps, player_of
from data_pipelines.records.schema import Dialogue, Side, Word
from data_pipelines.records.turn_taking import TurnTaking, stretches, turn_taking
from data_pipelines.records.turns import group_turns
from data_pipelines.shards.encode import build_shards
from model.errors import UserError
from tests.browser import NEEDS_CHROMIUM, chromium, until_root
from tests.data_pipelines.tiny_dialogues import RATE, TinyCodec, write_corpus, write_dialogue
from tests.refusals import refused

Span = tuple[float, float]


def talk(left: Iterable[Span], right: Iterable[Span], seconds: float = 10.0) -> Dialogue:
    """A dialogue of words given as (start, end)."""
    sides = [
        Side(speaker=name, words=tuple(Word(text=name, start=a, end=b) for a, b in times), is_agent=True)
        for name, times in (("l", left), ("r", right))
    ]
    return Dialogue(
        id="x", source="fisher", split="train", scenario="", seconds=seconds, left=sides[0], right=sides[1], licence="x"
    )


def test_a_silence_of_200_ms_joins_wherever_it_is_and_a_longer_one_does_not() -> None:
    for n in range(1000):
        start = n / 100
        for silence, number in ((0.199, 1), (0.2, 1), (0.201, 2)):
            words = talk([(start, start + 0.1), (round(start + 0.1 + silence, 3), start + 1)], []).left.words
            assert len(stretches(words, "left")) == number, (start, silence)


def test_words_of_one_stretch_are_joined() -> None:
    words = talk([(0, 0.5), (0.65, 1.0), (1.25, 2.0)], []).left.words
    assert stretches(words, "left") == [(0, 1.0, "left"), (1.25, 2.0, "left")]


def test_speech_pauses_gaps_and_overlap_as_counted_by_hand() -> None:
    # left 1-2, pause 0.5, left 2.5-4, gap 0.3, right 4.3-6 with left 5.5-8 on it for 0.5 and right 6.5-7 on that, gap 1
    turns = turn_taking(talk([(1, 2), (2.5, 4), (5.5, 8)], [(4.3, 6), (6.5, 7), (9, 10)]))
    measured = (turns.speech, turns.pause, turns.gap, turns.overlap)
    assert measured == pytest.approx((1 + 1.5 + 2.5 + 1.7 + 0.5 + 1, 0.5, 0.3 + 1, 0.5 + 0.5))
    assert turns.offsets == pytest.approx([0.3, -0.5, 1])
    assert turns.per_minute()["gap"] == pytest.approx(6 * 1.3)


def test_the_four_numbers_add_up_to_the_time_between_first_and_last_word() -> None:
    draw = np.random.default_rng(4)
    for _ in range(50):
        sides = []
        for _ in range(2):
            edges = np.cumsum(draw.uniform(0.05, 1.2, 20))
            sides.append([(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)])
        dialogue = talk(sides[0], sides[1], seconds=30.0)
        turns = turn_taking(dialogue)
        joined = [s for side in ("left", "right") for s in stretches(dialogue.side(side).words, side)]
        span = max(end for _, end, _ in joined) - min(start for start, _, _ in joined)
        assert turns.speech - turns.overlap + turns.pause + turns.gap == pytest.approx(span)


def test_totals_of_many_dialogues_are_per_minute_of_all() -> None:
    total = TurnTaking()
    for seconds in (10, 50):
        total.add(turn_taking(talk([(1, 2)], [(3, 4)], seconds=seconds)))
    assert total.per_minute() == pytest.approx({"speech": 4, "pause": 0, "gap": 2, "overlap": 0})


def test_a_pause_of_a_second_does_not_end_a_turn_and_a_longer_one_does() -> None:
    for n in range(1000):
        start = n / 100
        for pause, number in ((0.999, 1), (1.0, 1), (1.001, 2)):
            dialogue = talk([(start, start + 0.1), (round(start + 0.1 + pause, 3), start + 2)], [], seconds=20.0)
            counted = (len(group_turns(dialogue.left.words)), len(turn_taking(dialogue).turns))
            assert counted == (number, number), (start, pause)


def test_turns_end_at_a_pause_of_more_than_a_second() -> None:
    assert sorted(turn_taking(talk([(0, 1), (1.9, 3), (4.1, 5)], [(6, 8)])).turns) == pytest.approx([0.9, 2, 3])


def test_the_excerpt_has_the_liveliest_stretch() -> None:
    quiet, lively = [(1, 2), (20, 21)], [(60.0 + n, 60.4 + n) for n in range(10)]
    start, seconds = excerpt(talk(quiet + lively, [(a + 0.5, b + 0.5) for a, b in lively], seconds=100), 24)
    assert 55 < start < 61 and seconds == 24
    assert excerpt(talk([(1, 2)], [], seconds=9), 24) == (0, 9)


def test_overlaps_are_where_words_of_both_sides_sound() -> None:
    assert overlaps(talk([(1, 2), (3, 4)], [(1.5, 3.2)])) == [(1.5, 2), (3, 3.2)]


def test_reasons_count_together_whatever_their_numbers_and_paths() -> None:
    reasons = [
        "/a/b.flac: 1.50 s: a voice prompt lasts 3 to 10 s",
        "d/e/left.voice.flac: 12 s: a voice prompt lasts 3 to 10 s",
    ]
    assert [reason_kinds(reason) for reason in reasons] == [{"N s: a voice prompt lasts N to N s"}] * 2
    assert reason_kinds("/x/y: id 'good' must be") == {"id '...' must be"}
    assert reason_kinds("gate silence: 9.0 s > 8 s; duplicate: x") == {"gate: silence", "gate: duplicate"}


# ---- charts
def steps(svg: str, colour: str) -> list[float]:
    """The heights of the stepped line of one colour, in the units of the drawing."""
    found = re.search(rf'<path d="([^"]*)" style="fill: none; stroke: var\(--{colour}\)', svg)
    assert found
    points = [float(number) for number in re.findall(r"-?[\d.]+", found[1])]
    return points[1::2]


def test_a_histogram_draws_shares_of_all_numbers_and_the_ends_hold_what_lies_beyond() -> None:
    svg = str(histogram([Series("a", "c0", [-5.0, 0.1, 0.1, 9.0])], 0, 1, "seconds", bins=2))
    zero, first, same, second, *_ = [height for n, height in enumerate(steps(svg, "c0")) if n]
    base = steps(svg, "c0")[0]
    # The bins 0 to 0.5 and 0.5 to 1 hold 3 and 1 of 4 numbers.
    assert zero == first and same == second and (base - second) / (base - first) == pytest.approx(1 / 3)
    ElementTree.fromstring(svg)  # it is well-formed


def test_charts_take_their_colours_from_the_page_and_are_the_same_each_time() -> None:
    series = [Series("a", "c1", [0.1, 0.2]), Series("b", "ref", [0.2])]
    svg = str(histogram(series, 0, 1, "x", zero=True))
    assert svg == str(histogram(series, 0, 1, "x", zero=True))
    used = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", svg))
    assert used == {"none", "var(--c1)", "var(--ref)", "var(--soft)", "var(--line)"}
    assert not re.search(r"id=|url|http|font", svg)


def test_charts_of_nothing_say_so_and_text_is_escaped() -> None:
    assert "nothing to show" in histogram([Series("a", "c0", [])], 0, 1, "x")
    svg = histogram([Series("<b>", "c0", [0.5])], 0, 1, "<script>")
    assert "<script>" not in svg and "<b>" not in svg and "&lt;b&gt;" in svg


def test_a_small_histogram_shows_its_limit_only_where_it_is_near() -> None:
    numbers = [1.0, 2.0, 2.5]
    assert "--warn" in spark(numbers, 3.0) and "--warn" not in spark(numbers, 30.0)
    assert "--warn" not in spark(numbers, None) and "--agent" in spark(numbers, None)
    assert spark([2.0, 2.0], 2.0) == ""


def test_bars_are_sorted_and_the_small_ones_summed_up() -> None:
    found = bars({f"n{n}": {"c0": float(n), "c1": 1.0} for n in range(6)}, "h", most=3)
    assert [(bar.label, bar.value) for bar in found] == [("n5", "6.0 h"), ("n4", "5.0 h"), ("4 others", "10.0 h")]
    assert found[2].parts == (("c0", 60.0), ("c1", 40.0))


def test_amounts_below_an_hour_are_minutes() -> None:
    assert [amount(v, "h") for v in (0.5, 1.5)] == ["30.0 min", "1.5 h"]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of the tiny corpus, of which one dialogue is rejected."""
    folders = write_corpus(tmp_path / "dialogues")
    bad = write_dialogue(tmp_path / "dialogues" / "synth", "short-voice")
    soundfile.write(bad / "left.voice.flac", np.ones(RATE) * 0.1, RATE)
    build_shards(folders, TinyCodec(), tmp_path / "out")
    return tmp_path / "out"


def test_the_table_has_each_source_of_each_split(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verbs.main(["report", str(shards), "--out", str(tmp_path / "report.html")])
    out = capsys.readouterr().out
    rows = {line[:22].strip(): line[22:].split() for line in out.splitlines() if line.startswith(("train", "heldout"))}
    assert rows["train fisher"][:4] == ["2", "4", "0.00", "3.5"]
    assert rows["heldout service"][:4] == ["1", "1", "0.00", "6.0"]
    assert "licences: CC0-1.0 0.01 h, MIT 0.00 h" in out
    assert "rejected 1: N s: a voice prompt lasts N to N s" in out


def text_of(html: str) -> str:
    """The text that a browser shows."""
    return " ".join(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL).split())


def test_the_page_fetches_nothing_and_holds_every_section(shards: Path, tmp_path: Path) -> None:
    verbs.main(["report", str(shards), "--out", str(tmp_path / "new" / "report.html"), "--samples", "3"])
    html = (tmp_path / "new" / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:audio/|#)|@import|url\(|https?://""", html)
    text = text_of(html)
    for part in (
        "By source",
        "Seconds in a minute",
        "Gaps",
        "Role prompts",
        "Loudness",
        "Rejections",
        "Licences",
        "pauses, s/min",
    ):
        assert part in text, part
    assert "reported by the Moshi paper, not verified" in text and html.count("<audio ") == 3
    assert text.count("CC0-1.0") == 1 and "N s: a voice prompt lasts N to N s" in text


def test_the_same_report_again_is_the_same_page_and_another_never_replaces_it(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.html"
    verbs.main(["report", str(shards), "--out", str(path), "--samples", "2"])
    before = path.read_bytes()
    verbs.main(["report", str(shards), "--out", str(path), "--samples", "2"])
    assert "as it was" in capsys.readouterr().out and path.read_bytes() == before
    with refused("exists", path):
        verbs.main(["report", str(shards), "--out", str(path), "--samples", "1"])
    with refused("bad-value", "report.pdf", ".html"):
        verbs.main(["report", str(shards), "--out", str(tmp_path / "report.pdf")])
    assert [p.name for p in tmp_path.glob("report*")] == ["report.html"]


def test_examples_depend_on_the_seed_and_the_ids_alone(tmp_path: Path) -> None:
    folders = write_corpus(tmp_path / "in")
    build_shards(folders, TinyCodec(), tmp_path / "shards")
    chosen = [
        [entry.dialogue.id for entry in collect(paths, 4, seed).examples]
        for paths, seed in ((folders, 1), (folders[::-1], 1), ([tmp_path / "shards"], 1), (folders, 2))
    ]
    assert chosen[0] == chosen[1] == chosen[2] != chosen[3]


def test_rejected_and_unreadable_dialogues_are_counted_and_left_out(tmp_path: Path) -> None:
    folders = write_corpus(tmp_path)
    gates = {"format": 1, "values": {}, "rejected": ["silence: 9 s", "duplicate: x"], "limits": {}, "engines": {}}
    (folders[0] / "qa-0" / "gates.json").write_text(json.dumps(gates))
    (folders[0] / "qa-1" / "meta.json").write_text("{")
    (folders[0] / "report.json").write_text(json.dumps({"rejected": [{"id": "z", "reason": "it was silent"}]}))
    content = collect(folders)
    assert content.rejected == {"gate: silence": 1, "gate: duplicate": 1, "it was silent": 1}
    assert content.unreadable == 1 and sum(group.dialogues for group in content.groups.values()) == 8


def test_everything_that_people_wrote_is_escaped(tmp_path: Path) -> None:
    evil = "<script>document.title='x'</script>"
    folder = write_dialogue(tmp_path / "in", "a", words={"left": said(evil), "right": said('"><img src=x>')})
    record = json.loads((folder / "meta.json").read_text())
    record |= {"scenario": f"service/{evil}", "licence": evil}
    record["left"] |= {"role_prompt": evil, "speaker": f"v/{evil}"}
    record["events"] = [{"kind": evil, "side": "left", "start": 0.5, "end": 1.0}]
    record["provenance"] = {"engine": {"name": evil, "version": "1"}}
    (folder / "meta.json").write_text(json.dumps(record))
    verbs.main(["report", str(tmp_path / "in"), "--out", str(tmp_path / "r.html")])
    html = (tmp_path / "r.html").read_text()
    assert evil not in html and "<img src=x" not in html and html.count("<script>") == 1
    assert html.count("&lt;script&gt;") >= 6


def said(text: str) -> tuple[Word, ...]:
    return (Word(text=text, start=0.5, end=1.0),)


def test_recorded_calls_are_drawn_beside(tmp_path: Path) -> None:
    folders = write_corpus(tmp_path)
    content = collect(folders[:1])
    html = render(content, collect(folders[1:]))
    assert html.count("recorded calls") >= 4
    assert "recorded calls" not in render(content)


def test_words_of_a_player_lie_where_they_sound_and_do_not_touch(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path / "in", "a", seconds=12.0)
    player = player_of(collect([folder.parent], 1).examples[0])
    words = player.lanes[0].words
    assert [word.left for word in words] == pytest.approx([96 * word.start for word in words], abs=0.06)
    ends: dict[int, float] = {}
    for word in words:
        assert word.left >= ends.get(word.row, 0)
        ends[word.row] = word.left + 6.9 * len(word.text)
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(str(player.audio))))
    assert rate == 24000 and audio.shape[1] == 2 and abs(len(audio) / rate - 12) < 0.1


def test_a_folder_that_is_neither_shards_nor_dialogues_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        verbs.main(["report", str(tmp_path / "nowhere"), "--out", str(tmp_path / "r.html")])
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        verbs.main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")])


@pytest.mark.parametrize("source", ["a/b", "../../a", "<b>", ""])
def test_a_dialogue_whose_source_is_no_name_is_left_out(tmp_path: Path, source: str) -> None:
    meta = write_dialogue(tmp_path / "in", "a", seconds=12.0) / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text("utf-8")) | {"source": source}), "utf-8")
    with refused("no-data", "unreadable 1"):
        verbs.main(["report", str(tmp_path / "in"), "--out", str(tmp_path / "r.html")])
    assert not (tmp_path / "r.html").exists()


def test_shards_without_a_manifest_and_one_split_of_them_are_shards(shards: Path) -> None:
    whole = collect([shards]).groups.keys()
    (shards / "manifest.json").unlink()
    assert collect([shards]).groups.keys() == whole
    assert collect([shards / "heldout"]).groups.keys() == {key for key in whole if key[0] == "heldout"}


def judged(folder: Path, id: str, limits: Any, **gates: float) -> Path:
    """A dialogue with values and limits of gates."""
    place = write_dialogue(folder, id, seconds=12.0)
    sidecar = {"format": 1, "values": gates, "rejected": [], "limits": limits, "engines": {}}
    (place / "gates.json").write_text(json.dumps(sidecar))
    return place


def test_limits_that_differ_between_dialogues_are_all_shown(tmp_path: Path) -> None:
    judged(tmp_path, "a", {"word_error_rate": 0.15, "dc": 0.01, "peak_dbfs": None}, word_error_rate=0.1, dc=0.001)
    judged(tmp_path, "b", {"word_error_rate": 0.5, "dc": None}, word_error_rate=0.4, dc=0.002, peak_dbfs=-3)
    text = text_of(render(collect([tmp_path])))
    assert "at most 0.15 or 0.5" in text and "at most 0.01, or none" in text and "peak -3 -3 -3 - 1" in text


def test_values_that_are_no_number_and_limits_of_any_form_do_no_harm(tmp_path: Path) -> None:
    judged(tmp_path, "a", ["dc"], voice_lufs=float("-inf"), dc=float("nan"), swap_ratio=3.0)
    judged(tmp_path, "b", {"dc": "low"}, swap_ratio=4.0)
    content = collect([tmp_path])
    assert set(content.gates) == {"swap_ratio"} and "swap_ratio" in render(content)


def test_audio_that_ends_before_the_excerpt_is_counted_as_unreadable(tmp_path: Path) -> None:
    place = write_dialogue(tmp_path, "a", seconds=90.0, words={"left": late_words(), "right": late_words()[1:]})
    soundfile.write(place / "audio.flac", np.zeros((RATE, 2)), RATE)
    content = collect([tmp_path], 1)
    assert "<audio " not in render(content) and content.unreadable == 1


def late_words() -> tuple[Word, ...]:
    return tuple(Word(text="w", start=80.0 + n / 2, end=80.2 + n / 2) for n in range(10))


def test_if_nothing_is_left_the_reasons_are_given(tmp_path: Path) -> None:
    place = write_dialogue(tmp_path, "a")
    (place / "gates.json").write_text(json.dumps({"format": 1, "rejected": ["silence: 9 s"]}))
    with refused("no-data", tmp_path, "gate: silence 1"):
        collect([tmp_path])
    (tmp_path / "report.json").write_text("[1]")
    with refused("bad-record", tmp_path / "report.json"):
        collect([tmp_path])


def test_shards_and_the_folders_they_were_made_of_are_not_counted_twice(shards: Path, tmp_path: Path) -> None:
    with refused("bad-combination", shards, tmp_path / "dialogues"):
        verbs.main(["report", str(shards), str(tmp_path / "dialogues"), "--out", str(tmp_path / "r.html")])


@NEEDS_CHROMIUM
def test_a_browser_plays_every_sample_and_goes_where_one_presses(shards: Path, tmp_path: Path) -> None:
    """Real Chromium: no error of the script, every player knows its length, a press moves playhead and words."""
    pytest.importorskip("playwright")
    verbs.main(["report", str(shards), "--out", str(tmp_path / "report.html"), "--samples", "4"])

    async def press() -> tuple[dict[str, str], list[str]]:
        async with chromium() as browser:
            page = await browser.new_page()
            await page.goto((tmp_path / "report.html").as_uri())
            assert "error" not in await until_root(page, 'players="4"')
            await page.locator(".track").first.click(position={"x": 96 * 2.7, "y": 10})
            return await until_root(page, "sought"), await page.locator(".sample .on").all_text_contents()

    root, lit = asyncio.run(press())
    assert root["sought"] == "2.70" and "error" not in root
    html = (tmp_path / "report.html").read_text()
    id = re.findall(r'<section class="card sample".*?<h3>([^<]*)</h3>', html, re.DOTALL)[0]
    found = next(entry.dialogue for entry in collect([shards], 4).examples if entry.dialogue.id == id)
    assert lit == [w.text for side in (found.left, found.right) for w in side.words if w.start <= 2.7 < w.end]
