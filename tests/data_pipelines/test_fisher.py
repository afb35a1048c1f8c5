"""The Fisher importer on files written in the shapes of the release, faults included.

No Fisher file was at hand: the shapes are those that the corpus' readme and public loaders describe. Speech is bursts
of noise here, and a fake aligner spreads the words over them; the real one is tried in test_standin.py.
"""

import errno
import json
import math
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import soundfile

from data_pipelines.audio import to_rate
from data_pipelines.executor import Executor
from data_pipelines.fisher import windows as windows_module
from data_pipelines.fisher.budget import dialogue_seconds, token_counter
from data_pipelines.fisher.cases import ruled
from data_pipelines.fisher.importer import import_corpus, run
from data_pipelines.fisher.job import Filters, Settings
from data_pipelines.fisher.layout import find_corpus
from data_pipelines.fisher.prompts import BARE, role_prompts, spoken_topic
from data_pipelines.fisher.sphere import SHORTEN_CODING, decode, write_sphere
from data_pipelines.fisher.split import CallSides, in_bucket, plan_split
from data_pipelines.fisher.tables import parse_calldata, parse_pindata, parse_sexes, parse_topics, read_tables
from data_pipelines.fisher.transcript import parse_tokens, parse_transcript, read_transcript
from data_pipelines.fisher.windows import Limits, Spoken, candidate_clips, judge, plan_windows
from data_pipelines.fisher.written import with_original
from data_pipelines.folder import find_dialogues
from data_pipelines.listening.align import Alignment
from data_pipelines.schema import Dialogue, Word
from model.errors import UserError
from model.text import TextTokenizer
from tests.data_pipelines.test_bandwidth import GOOD, program

CALLDATA = """\
CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.DL,APHNUM,APHSET,APHTYP,BPIN,BSX.DL,BPHNUM,BPHSET,BPHTYP
00001,20021213_19:36:35,ENG01,3,3,2602,f.a,"5405513275",3,1,1790,m.o,"7039678877",2,1
00002,20021213_19:47:50,ENG02,3.5,NA,4242,m.a,,,,1790,m.o,,,
broken line
00003,20021213_19:47:50,ENG01,3,3,2637,.,,,,2637,m.a,,,
"""
TOPICS = """\
<topic id="ENG01" title="Professional Sports on TV.">
Do either of you have a favorite TV sport? << not counted >>
</topic>
<topic id="ENG02" title="Hypothetical Situations. One Million Dollars to leave the US.">
Would you accept it & go?
</topic>
"""
Line = tuple[float, float, str, str]


def talk(seconds: float, length: float = 5.0, words: int = 8) -> list[Line]:
    """Utterances of both sides in turn, with half a second between them."""
    lines, start, turn = [], 0.8, 0
    while start + length < seconds - 0.3:
        lines.append((start, start + length, "AB"[turn % 2], " ".join(["alpha bravo charlie delta"] * (words // 4))))
        start += length + 0.5
        turn += 1
    return lines


def write_call(
    root: Path,
    call: str,
    lines: list[Line],
    seconds: float,
    heard: list[Line] | None = None,
    places: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """One call: noise bursts where `heard` (default: the transcript) says, mu-law shorten SPHERE, LDC transcript."""
    rng = np.random.default_rng(int(call))
    audio = rng.normal(0, 0.001, (int(seconds * 8000), 2))
    for start, end, letter, _ in heard if heard is not None else lines:
        first, last = int(start * 8000), min(int(end * 8000), len(audio))
        if last > first:
            audio[first:last, "AB".index(letter)] += rng.normal(0, 0.1, last - first)
    sound = root / places.get("audio", "fe_03_p1_sph1/audio/{n}").format(n=call[:3])
    text = root / places.get("text", "fe_03_p1_tran/data/trans/{n}").format(n=call[:3])
    sound.mkdir(parents=True, exist_ok=True)
    text.mkdir(parents=True, exist_ok=True)
    write_sphere(sound / f"fe_03_{call}.sph", np.clip(audio, -1, 1).astype(np.float32), coding=SHORTEN_CODING)
    body = "".join(f"{start:.2f} {end:.2f} {letter}: {words} \n\n" for start, end, letter, words in lines)
    (text / f"fe_03_{call}.txt").write_text(f"# fe_03_{call}.sph\n# Transcribed at the LDC\n\n{body}")


def write_tables(root: Path) -> None:
    doc = root / "fe_03_p1_tran" / "doc"
    doc.mkdir(parents=True, exist_ok=True)
    (doc / "fe_03_p1_calldata.tbl").write_text(CALLDATA)
    (doc / "fe_03_pindata.tbl").write_text("PIN,S,AGE\n2637,F,54,16,English,WA,2,06972_A/m.a;08175_A/f.a\n2602,NA,NA\n")
    (doc / "fe_03_topics.sgm").write_text(TOPICS)
    (root / "filetable.txt").write_text("fe_03_p1_sph1 fe_03_00001.sph fm\n")


class FakeAligner:
    """Spreads words evenly over the audio without its margins; refuses texts that begin with "Reject"."""

    def align(self, audio: np.ndarray, rate: int, words: list[str]) -> Alignment | None:
        seconds = len(audio) / rate
        if not words or words[0].lower() == "reject" or seconds < 0.5:
            return None
        edges = np.linspace(0.2, seconds - 0.2, len(words) + 1)
        spans = zip(words, edges[:-1], edges[1:], strict=True)
        return Alignment(words=tuple(Word(text=w, start=float(a), end=float(b)) for w, a, b in spans), score=-15.0)


@pytest.fixture()
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("desphere_native")
    aligner = FakeAligner()
    monkeypatch.setattr("data_pipelines.fisher.heard.shared_aligner", lambda: aligner)
    monkeypatch.setattr("data_pipelines.fisher.importer.shared_aligner", lambda: aligner)


def imported(roots: list[Path], out: Path, **changes: Any) -> dict[str, Any]:
    limit = changes.pop("limit", None)
    limits = Limits(max_seconds=changes.pop("max_seconds", 40.0), **changes.pop("limits", {}))
    options: dict[str, Any] = {"seed": 0, "limits": limits, "voice_seconds": 5.0, "licence": ""}
    return import_corpus(roots, out, Settings(**(options | changes)), executor=Executor(), limit=limit)


def dialogues(out: Path) -> dict[str, Dialogue]:
    return {p.parent.name: Dialogue.from_json(p.read_text(), str(p)) for p in sorted(out.glob("*/meta.json"))}


# Transcripts


def test_a_transcript_is_sorted_and_lines_of_other_shapes_are_ignored() -> None:
    text = (
        "# fe_03_00001.sph\n# Transcribed by BBN/WordWave\n\n10.5 12.25 B: hi there \n\n1.00 2.50 A: hello \n"
        "3.0 4.0 C: who\nnonsense\n5.0 4.0 A: backwards\n6.0 99.0 A: far too long\n7.0.1 8.0 B: odd number\n8 9 B: \n"
    )
    transcript = parse_transcript(text, "00001")
    assert [(u.start, u.letter) for u in transcript.utterances] == [(1.0, "A"), (10.5, "B")]
    assert transcript.transcriber == "BBN/WordWave" and transcript.num_faulty == 3


def test_the_known_wrong_time_of_call_11487_is_put_right() -> None:
    utterance = parse_transcript("31.09 234.06 A: yeah\n", "11487").utterances[0]
    assert (utterance.start, utterance.end) == (231.09, 234.06)
    assert not parse_transcript("31.09 234.06 A: yeah\n", "00001").utterances


def test_markers_leave_the_text_and_spelling_is_restored() -> None:
    tokens = parse_tokens("[noise] well i'm on t._v. [laughter] mon- monday's game i guess [lipsmack] ")
    assert [t.text for t in tokens if t.kind == "word"] == "Well I'm on T.V. Monday's game I guess".split()
    assert [t.kind for t in tokens].count("laugh") == 1 and [t.said for t in tokens if t.kind == "partial"] == ["mon"]
    assert parse_tokens("[sigh] [breath] [mn]") == ()


def test_uncertain_lines_keep_their_time_and_lose_their_words() -> None:
    found = parse_transcript("1 2 A: (( ))\n3 4 A: so (( maybe this ))\n5 6 B: sure\n", "00001").utterances
    assert [(u.is_certain, len(u.tokens)) for u in found] == [(False, 0), (False, 0), (True, 1)]
    assert found[2].is_backchannel


def test_two_things_said_at_once_by_one_speaker_lose_their_words() -> None:
    text = "1 4 A: one long line\n2 5 A: another one\n4.8 6 A: fine\n1 4 B: fine, too\n6 7 A: (( ))\n6 9 A: fine\n"
    transcript = parse_transcript(text, "00001")
    assert transcript.num_overlapping == 2
    assert [u.start for u in transcript.utterances if not u.is_certain and u.letter == "A"] == [1.0, 2.0, 6.0]
    assert sum(bool(u.tokens) for u in transcript.utterances) == 3


def test_transcripts_that_cannot_be_trusted_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "fe_03_00001.txt"
    good = "".join(f"{n} {n + 0.9} A: word\n" for n in range(10))
    for text, message in (
        ("# fe_03_00002.sph\n\n" + good, "is the transcript of call 00002"),
        (good + "".join(f"{n + 1} {n} B: word\n" for n in range(4)), "4 of 14 lines have impossible times"),
        (good + "".join(f"{n} {n + 8} B: word\n" for n in range(4)), "4 of 14 lines have impossible times"),
        ("9 8 A: reversed\n", "1 of 1 lines have impossible times"),
        ("", "holds no line"),
        ("# fe_03_00001.sph\n# Transcribed at the LDC\n\n", "holds no line"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_transcript(path, "00001")
    with pytest.raises(UserError, match="cannot be read"):
        read_transcript(tmp_path / "missing.txt", "00001")


def test_lines_of_another_shape_and_negative_times_are_counted() -> None:
    found = parse_transcript("1.00 2.00 A: hi \n-1.00 2.00 B: no \n3.00 4.00 C: who \n\nfive six \n", "00001")
    assert (len(found.utterances), found.num_faulty, found.num_strange) == (1, 1, 2)


def test_text_that_is_no_utf_8_is_read_as_windows_1252(tmp_path: Path) -> None:
    path = tmp_path / "fe_03_00001.txt"
    path.write_bytes(b"# fe_03_00001.sph\n1 2 A: it\x92s a caf\xe9 \n3 4 B: odd \x81 byte\n")
    lines = [[t.text for t in u.tokens] for u in read_transcript(path, "00001").utterances]
    assert lines == [["It's", "a", "caf\u00e9"], ["Odd", "byte"]]
    path.write_bytes("1 2 A: it\u2019s a caf\u00e9".encode())
    assert [t.text for t in read_transcript(path, "00001").utterances[0].tokens] == lines[0]


# Case and punctuation

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
    lines = [" ".join(t.text for t in u.tokens if t.kind == "word") for u in transcript.utterances]
    assert lines == [
        "Hi, my name's Candy.",
        "Hi Candy. My name is Cindy. I",
        "Okay. Um, I'm from Missouri. I watch T.V.",
        "and Friends.",
        "Something the typist left out in Ohio",
    ]
    assert share == pytest.approx(21 / 28)
    assert [t.said for t in transcript.utterances[2].tokens][-1] == "t.v."


def test_the_original_of_another_call_changes_nothing() -> None:
    before = parse_transcript(BARE_TEXT, "00001")
    after, share = with_original(before, "L: What about the weather?\nR: I like it.\n")
    assert after is before and share < 0.5


def test_rules_know_places_days_and_the_pronoun() -> None:
    words = "i think i'll see new york's mets on monday in san francisco or may be in a new car from t.v.'s".split()
    expected = "I think I'll see New York's mets on Monday in San Francisco or may be in a new car from T.V.'s".split()
    assert ruled(words) == expected


# Tables


def test_calldata_gives_topic_sexes_and_speakers_without_pins() -> None:
    calls = parse_calldata(CALLDATA, {}, parse_pindata("2637,F,54\n"))
    assert sorted(calls) == ["00001", "00002", "00003"]
    assert calls["00001"].topic == "ENG01" and calls["00001"].sexes == ("f", "m")
    assert calls["00001"].speakers[1] == calls["00002"].speakers[1] != calls["00001"].speakers[0]
    # One PIN, two sexes: two people.
    assert calls["00003"].sexes == ("f", "m") and calls["00003"].speakers[0] != calls["00003"].speakers[1]
    assert "2602" not in str(calls) and "1790" not in str(calls)


def test_grades_and_nativeness_come_from_the_auditors_or_the_speaker() -> None:
    pins = parse_pindata("PIN,S_SEX,S_AGE\n4242,M,40,12,English,WA,1,x\n1790,M,40,12,Polish,NA,1,x\nNA,F\n")
    calls = parse_calldata(CALLDATA, {}, pins)
    assert (calls["00001"].signal, calls["00001"].talk) == (3.0, 3.0)
    assert (calls["00002"].signal, calls["00002"].talk) == (3.5, None)
    assert calls["00001"].natives == (True, False)
    assert calls["00002"].natives == (True, False)  # no dialect for 1790: what he said of himself
    assert sorted(pins) == ["1790", "4242"] and pins["1790"].is_native is False


def test_an_open_quotation_mark_costs_one_row_of_a_table() -> None:
    broken = CALLDATA.replace('2602,f.a,"5405513275"', '"2602,f.a,5405513275') + "x" * 200_000 + "\0\n"
    assert sorted(parse_calldata(broken)) == ["00002", "00003"]
    assert sorted(parse_pindata('"1,F\n2,F\n"' + "x" * 200_000)) == ["2"]


def test_sexes_are_found_whatever_the_order_of_columns() -> None:
    expected = {"05852": ("f", "f")}
    assert parse_sexes("fe_03_p2_sph1 fe_03_05852.sph ff\nsome title\n") == expected
    assert parse_sexes("05852\tfe_03_p2_sph1\tff\tBBN\n") == parse_sexes("fe_03_p2_sph1\t05852\tff\tLDC\n") == expected


def test_topics_are_read_from_markup_that_is_not_well_formed() -> None:
    topics = parse_topics(TOPICS)
    assert topics["ENG01"] == "Professional Sports on TV." and len(topics) == 2


def test_tables_may_all_be_missing() -> None:
    tables = read_tables({name: [] for name in ("calldata", "pindata", "filelist", "topics", "filetable")})
    assert tables.missing == ["calldata", "topics", "filetable"]
    row = tables.call("00007")
    assert row.topic == "" and row.speakers[0] != row.speakers[1]


# Prompts


def test_titles_read_inside_a_sentence() -> None:
    assert spoken_topic("Professional Sports on TV.") == "professional sports on TV"
    assert (
        spoken_topic("Hypothetical Situations. One Million Dollars to leave the US.")
        == "a hypothetical situation: one million dollars to leave the US"
    )
    assert spoken_topic("Arms Inspections in Iraq") == "arms inspections in Iraq"


def test_the_sides_of_a_call_never_share_a_prompt_and_a_seed_repeats_it() -> None:
    levels = set()
    for seed in range(60):
        a, b = role_prompts("Pets", random.Random(seed))
        assert a[0] != b[0] and (a, b) == role_prompts("Pets", random.Random(seed))
        for text, level in (a, b):
            assert (
                (text == BARE) if level == "a" else text.startswith(BARE + " Have a ") and text.endswith(" about pets.")
            )
        levels.add(a[1] + b[1])
    assert levels == {"ab", "ba", "bb"}
    assert role_prompts("", random.Random(0)) == ((BARE, "a"), (BARE, "a"))


# Split


def test_no_speaker_is_an_agent_in_both_splits() -> None:
    rng = random.Random(0)
    keys = [f"fisher/{n}" for n in range(400)]
    calls = [
        CallSides(call=f"{n:05d}", speakers=(p := (rng.choice(keys), rng.choice(keys))), agents=p) for n in range(2000)
    ]
    plan = plan_split(calls)
    agents: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for call in calls:
        agents[plan.splits[call.call]] |= {s for s in call.agents if plan.may_be_agent(call.call, s)}
    assert not plan.note and agents["heldout"] and not agents["train"] & agents["heldout"]
    assert all(plan.splits[c.call] == "heldout" for c in calls if all(map(in_bucket, c.speakers)))


def test_a_tiny_corpus_has_a_call_in_each_split() -> None:
    calls = [CallSides(call=f"{n:05d}", speakers=(p := ("w", "r" if n else "p")), agents=p) for n in range(6)]
    plan = plan_split(calls)
    assert plan.splits["00000"] == "heldout" and set(plan.splits.values()) == {"train", "heldout"} and plan.note
    assert plan.may_be_agent("00000", "p") and not plan.may_be_agent("00000", "w")
    assert plan_split(calls[:1]).splits == {"00000": "train"}


# Layout and import


@pytest.mark.parametrize(
    "places",
    [
        {},
        {"audio": "fisher_eng_tr_sp_d1/audio/{n}", "text": "LDC2004T19/data/trans/{n}"},
        {"audio": "a/b/fe_03_p2_sph3/audio/{n}", "text": "a/c/fe_03_p2_tran/data/trans/{n}"},
        {"audio": ".", "text": "."},
    ],
)
def test_calls_are_found_in_every_layout(tmp_path: Path, places: dict[str, str]) -> None:
    write_call(tmp_path, "00001", talk(10), 10, places=places)
    assert find_corpus([tmp_path]).calls == ["00001"]


def test_audio_named_wav_and_separate_folders_are_found(tmp_path: Path) -> None:
    write_call(tmp_path, "00001", talk(10), 10, places={"audio": "discs", "text": "text"})
    (tmp_path / "discs/fe_03_00001.sph").rename(tmp_path / "discs/FE_03_00001.WAV")
    assert find_corpus([tmp_path / "discs", tmp_path / "text"]).calls == ["00001"]


def test_tables_and_originals_are_found_under_the_names_that_copies_have(tmp_path: Path) -> None:
    write_call(tmp_path, "00001", talk(10), 10)
    for name in (
        "d1/FILETABLE.TXT",
        "d2/docs/filetable2.txt",
        "t/doc/LDC2004T19.fe_03_p1_filelist.tbl",
        "t/doc/fe_03_p1_calldata.tbl",
        "t/doc/fe_03_pindata.tbl",
        "t/doc/fe_03_topics.sgm",
        "t/data/bbn_orig/000/originals/fe_03_00001.txo",
        "t/data/bbn_orig/000/auto-segmented/fe_03_00001.trn",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    corpus = find_corpus([tmp_path])
    assert {name: len(paths) for name, paths in corpus.tables.items()} == {
        "calldata": 1, "pindata": 1, "filelist": 1, "topics": 1, "filetable": 2,
    }  # fmt: skip
    assert corpus.originals["00001"].suffix == ".txo"


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_call(tmp_path, "00001", talk(30), 30)
    scandir = os.scandir

    def locked(path: str) -> Any:
        if str(path).endswith("audio"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(UserError, match=r"sph1/audio: cannot be read \(Permission denied\)"):
        find_corpus([tmp_path])


def test_wrong_folders_are_errors_that_say_what_to_give(tmp_path: Path) -> None:
    write_call(tmp_path, "00001", talk(10), 10, places={"audio": "discs", "text": "text"})
    with pytest.raises(UserError, match="nowhere: no such folder: give the folders that hold fe_03_NNNNN.sph"):
        find_corpus([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no Fisher audio"):
        find_corpus([tmp_path / "text"])
    with pytest.raises(UserError, match="no Fisher transcript"):
        find_corpus([tmp_path / "discs"])
    (tmp_path / "discs/fe_03_00001.sph").rename(tmp_path / "discs/fe_03_00002.sph")
    with pytest.raises(UserError, match="no transcript has the audio beside it"):
        find_corpus([tmp_path])


def test_both_sides_become_agents_with_own_prompt_and_own_voice_from_outside_all_windows(
    tmp_path: Path, fake: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in ("00001", "00002"):
        write_call(tmp_path / "corpus", call, talk(120), 120)
    write_tables(tmp_path / "corpus")
    report = imported([tmp_path / "corpus"], tmp_path / "out")
    found = dialogues(tmp_path / "out")
    assert report["done"] == 2 and len(found) == report["dialogues"] >= 6 and not report["rejected"]
    assert {d.split for d in found.values()} == {"train", "heldout"}
    speakers: dict[str, set[str]] = {"train": set(), "heldout": set()}
    both = 0
    for name, d in found.items():
        folder = tmp_path / "out" / name
        info = soundfile.info(folder / "audio.flac")
        assert (info.samplerate, info.channels) == (24000, 2) and info.duration == pytest.approx(d.seconds, abs=1e-4)
        assert d.seconds <= 40 and d.licence == "LDC User Agreement" and d.source == "fisher"
        assert min(w.start for s in (d.left, d.right) for w in s.words) == pytest.approx(0.5, abs=0.3)
        windows = [e.provenance["window"] for e in found.values() if e.provenance["call"] == d.provenance["call"]]
        assert len(windows) >= 3
        for side in d.agent_sides:
            speakers[d.split].add(d.side(side).speaker)
            clip = soundfile.info(folder / f"{side}.voice.flac")
            assert clip.samplerate == 24000 and clip.channels == 1 and 3 <= clip.duration <= 5
            first, last = d.provenance["voice_spans"][side]
            assert all(last <= start or first >= end for start, end in windows)
        if len(d.agent_sides) == 2:
            both += 1
            assert d.left.role_prompt != d.right.role_prompt
    assert both >= 3 and not speakers["train"] & speakers["heldout"]
    written = "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json"))
    for pin in ("2602", "1790", "4242", "5405513275"):
        assert f'"{pin}' not in written and f" {pin}" not in written
    assert "found 2 calls" in capsys.readouterr().out


def test_words_are_where_the_speech_is_in_the_cut_audio(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    imported([tmp_path / "corpus"], tmp_path / "out")
    for name, d in dialogues(tmp_path / "out").items():
        audio, rate = soundfile.read(tmp_path / "out" / name / "audio.flac")
        for channel, side in enumerate((d.left, d.right)):
            spoken = np.concatenate([audio[int(w.start * rate) : int(w.end * rate), channel] for w in side.words])
            assert np.sqrt((spoken**2).mean()) > 0.05
            assert np.sqrt((audio[:, channel] ** 2).mean()) < 0.1
        assert all(d.left.words[0].text[0].isupper() for _ in [0])


def test_a_call_too_short_for_a_voice_clip_is_refused_and_named(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    write_call(tmp_path / "corpus", "00002", talk(12), 12)
    report = imported([tmp_path / "corpus"], tmp_path / "out")
    assert [r["id"] for r in report["rejected"]] == ["fe_03_00002"]
    assert "too short" in report["rejected"][0]["reason"]


def test_bad_calls_are_rejected_with_a_reason_and_the_others_go_on(tmp_path: Path, fake: None) -> None:
    corpus = tmp_path / "corpus"
    write_call(corpus, "00001", talk(90), 90)
    write_call(corpus, "00002", talk(90), 40)  # a transcript longer than its audio
    swapped = [(a, b, "BA"["AB".index(s)], t) for a, b, s, t in talk(90)]
    write_call(corpus, "00003", talk(90), 90, heard=swapped)
    write_call(corpus, "00004", [(a, b, s, "reject " + t) for a, b, s, t in talk(90)], 90)
    write_call(corpus, "00005", talk(90), 90)
    path = corpus / "fe_03_p1_sph1/audio/000/fe_03_00005.sph"
    path.write_bytes(path.read_bytes()[:5000])
    write_call(corpus, "00006", talk(90), 90)
    (corpus / "fe_03_p1_tran/data/trans/000/fe_03_00006.txt").write_text("# nothing here\n")
    write_call(corpus, "00446", talk(90), 90)
    report = imported([corpus], tmp_path / "out")
    reasons = {r["id"][-5:]: r["reason"] for r in report["rejected"]}
    assert "beyond the audio" in reasons["00002"]
    assert "does not match" in reasons["00003"]
    assert "0 % of its lines fit" in reasons["00004"]
    assert "fe_03_00005.sph" in reasons["00005"]
    assert "holds no line" in reasons["00006"]
    assert "bad audio" in reasons["00446"]
    assert sorted(reasons) == ["00002", "00003", "00004", "00005", "00006", "00446"] and report["done"] == 1
    assert all("\n" not in reason for reason in reasons.values())
    assert json.loads((tmp_path / "out/report.json").read_text())["rejected"] == report["rejected"]


def test_audio_of_one_channel_or_another_rate_is_refused_or_noted(tmp_path: Path, fake: None) -> None:
    corpus = tmp_path / "corpus"
    for call in ("00001", "00002", "00003", "00004"):
        write_call(corpus, call, talk(90), 90)

    def convert(call: str, rate: int, channels: int, to: int) -> None:
        path = corpus / f"fe_03_p1_sph1/audio/000/fe_03_{call}.sph"
        audio = to_rate(np.ascontiguousarray(decode(path)[0].T), 8000, to)[:channels]
        path.unlink()
        soundfile.write(path.with_suffix(".wav"), audio.T, rate)

    convert("00001", 8000, 1, 8000)
    convert("00002", 6000, 2, 8000)
    convert("00003", 16000, 2, 8000)  # a header that lies: everything is over in half the time
    convert("00004", 16000, 2, 16000)
    report = imported([corpus], tmp_path / "out")
    reasons = {r["id"][-5:]: r["reason"] for r in report["rejected"]}
    assert "has 1 channel(s), a call has 2" in reasons["00001"]
    assert "has 6000 Hz, calls have 8000" in reasons["00002"]
    assert "beyond the audio" in reasons["00003"]
    assert sorted(reasons) == ["00001", "00002", "00003"]
    assert {"id": "fe_03_00004", "reason": "the audio has 16000 Hz, not 8000: somebody's conversion"} in report["notes"]


def test_filters_leave_out_calls_by_grade_and_sides_by_sex_and_language(tmp_path: Path, fake: None) -> None:
    for call in ("00001", "00002"):
        write_call(tmp_path / "corpus", call, talk(90), 90)
    write_tables(tmp_path / "corpus")
    graded = imported([tmp_path / "corpus"], tmp_path / "a", filters=Filters(min_signal=3.2))
    assert [r["reason"] for r in graded["rejected"]] == ["fe_03_00001: its signal grade is 3, wanted 3.2"]
    graded = imported([tmp_path / "corpus"], tmp_path / "b", filters=Filters(min_conversation=2))
    assert [r["reason"] for r in graded["rejected"]] == ["fe_03_00002: its conversation grade is unknown, wanted 2"]
    native = imported([tmp_path / "corpus"], tmp_path / "c", filters=Filters(native=True))
    assert all(d.agent_sides == ("left",) for d in dialogues(tmp_path / "c").values()) and native["dialogues"]
    assert any("side B is no agent: is not known as a native speaker" in note["reason"] for note in native["notes"])
    imported([tmp_path / "corpus"], tmp_path / "d", filters=Filters(sex="f"))
    assert {d.provenance["call"] for d in dialogues(tmp_path / "d").values()} == {"fe_03_00001"}


def test_a_filter_without_its_table_is_refused(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    for filters, option in (
        (Filters(min_signal=1), "--min-signal-grade"),
        (Filters(min_conversation=1), "--min-conversation-grade"),
        (Filters(native=True), "--native"),
        (Filters(sex="f"), "--sex"),
    ):
        with pytest.raises(UserError, match=f"{option}: there is no fe_03_pN_calldata.tbl"):
            imported([tmp_path / "corpus"], tmp_path / "out", filters=filters)


def test_a_grade_that_is_no_number_is_refused(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    with pytest.raises(UserError, match="--min-signal-grade nan: give a number"):
        imported([tmp_path / "corpus"], tmp_path / "out", filters=Filters(min_signal=math.nan))


def test_rows_never_pass_2048_frames_however_long_the_prompt(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(400), 400)
    write_tables(tmp_path / "corpus")
    topics = tmp_path / "corpus/fe_03_p1_tran/doc/fe_03_topics.sgm"
    for out, title in (("short", "Pets."), ("long", "pets and " * 60 + "pets.")):
        topics.write_text(f'<topic id="ENG01" title="{title}">\n')
        most = dialogue_seconds(5.0, 128)
        report = imported([tmp_path / "corpus"], tmp_path / out, max_seconds=most)
        found = dialogues(tmp_path / out)
        assert report["dialogues"] == len(found) >= 2
        longest = max(d.seconds for d in found.values())
        assert longest > 140 if out == "short" else 100 < longest < 140
        for name, d in found.items():
            for side in d.agent_sides:
                voice = math.ceil(soundfile.info(tmp_path / out / name / f"{side}.voice.flac").duration * 12.5)
                tokens = math.ceil((len(d.side(side).role_prompt) + 18) / 2)
                frames = voice + tokens + 11 + math.ceil(d.seconds * 12.5)
                assert d.provenance["row_frames"][side] == pytest.approx(frames, abs=1) and frames <= 2048


def test_a_tokenizer_counts_the_prompt_exactly(tmp_path: Path, fake: None) -> None:
    from tests.ppx_train.fixtures import make_tokenizer

    path = make_tokenizer(tmp_path / "text.model")
    count = token_counter(str(path))
    assert count(BARE) == len(TextTokenizer(path).encode(f"<system> {BARE} <system>"))
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    imported([tmp_path / "corpus"], tmp_path / "out", tokenizer=str(path))
    assert {d.provenance["prompt_tokens"] for d in dialogues(tmp_path / "out").values()} == {"exact"}
    with pytest.raises(UserError, match="no such tokenizer"):
        imported([tmp_path / "corpus"], tmp_path / "other", tokenizer="nowhere.model")


def test_no_window_cuts_through_a_word_of_either_side() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        lines: list[Line] = []
        for letter in "AB":  # two people who hardly ever stop
            time = rng.uniform(0, 1)
            while time < 200:
                length = rng.uniform(0.4, 6)
                lines.append((time, time + length, letter, "(( hm ))" if rng.random() < 0.05 else "word"))
                time += length + rng.uniform(0.0, 2.5)
        turns = spoken(sorted(lines))
        clips = {"A": candidate_clips(turns, "A", 5.0), "B": candidate_clips(turns, "B", 5.0)}
        windows = plan_windows(turns, clips, 200.0, Limits(max_seconds=45))  # type: ignore[arg-type]
        assert windows
        for window in windows:
            assert window.end - window.start <= 45
            for turn in turns:
                for start, end in [(w.start, w.end) for w in turn.words] or [(turn.start, turn.end)]:
                    assert not any(start < cut < end for cut in (window.start, window.end)), (seed, window, start, end)


def test_the_sound_is_as_chosen_and_recorded(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(60), 60)
    command = program(tmp_path, GOOD)
    for out, changes in (
        ("hq", {}),
        ("vhq", {"resampler": "soxr-vhq"}),
        ("extended", {"bandwidth_extension": command}),
    ):
        imported([tmp_path / "corpus"], tmp_path / out, **changes)
    found = {out: dialogues(tmp_path / out)["fe_03_00001-1"].provenance for out in ("hq", "vhq", "extended")}
    assert {out: p["resampler"] for out, p in found.items()} == {"hq": "soxr-hq", "vhq": "soxr-vhq", "extended": ""}
    assert {out: p["bandwidth_extension"] for out, p in found.items()} == {"hq": "", "vhq": "", "extended": command}

    def treble(out: str) -> float:
        audio, _ = soundfile.read(tmp_path / out / "fe_03_00001-1" / "audio.flac")
        power = np.abs(np.fft.rfft(audio[:, 0])) ** 2
        return float(power[len(power) * 4200 // 12000 :].sum() / power.sum())

    assert treble("hq") < 1e-3 and treble("vhq") < 1e-3 < treble("extended")
    report = None
    with pytest.raises(UserError, match="bandwidth extension failed with code 1: broken"):
        broken = program(tmp_path, "sys.exit('broken')\n")
        report = imported([tmp_path / "corpus"], tmp_path / "broken", bandwidth_extension=broken)
    assert report is None and not dialogues(tmp_path / "broken")


def spoken(lines: list[Line]) -> list[Spoken]:
    """Aligned utterances of four words; those marked `((` have none."""

    def words(start: float, end: float) -> tuple[Word, ...]:
        edges = [start + (end - start) * quarter / 4 for quarter in range(5)]
        return tuple(Word(text="word", start=a, end=b) for a, b in zip(edges[:-1], edges[1:], strict=True))

    return [
        Spoken(
            start=start,
            end=end,
            letter="A" if letter == "A" else "B",
            words=() if "((" in text else words(start, end),
        )
        for start, end, letter, text in lines
    ]


def test_a_side_with_much_uncertain_speech_is_no_agent() -> None:
    lines = [(a, b, s, "(( mumble ))" if n == 4 else t) for n, (a, b, s, t) in enumerate(talk(200))]
    turns = spoken(lines)
    clips = {"A": candidate_clips(turns, "A", 5.0), "B": candidate_clips(turns, "B", 5.0)}
    window = judge(turns, clips, 0.0, 60.0, Limits(max_seconds=150))  # type: ignore[arg-type]
    assert set(window.clips) == {"B"} and "17 % of its speech has no words" in window.refusals["A"]
    assert set(judge(turns, clips, 0.0, 130.0, Limits(max_seconds=150)).clips) == {"A", "B"}  # type: ignore[arg-type]
    for window in plan_windows(turns, clips, 200, Limits(max_seconds=30)):  # type: ignore[arg-type]
        assert "A" not in window.clips or window.start >= lines[4][1] or window.end <= lines[4][0]


@pytest.mark.parametrize("seconds", [60, 90, 200, 400])
@pytest.mark.parametrize("silent", ["none", "B at first", "B at last"])
def test_no_voice_clip_lies_in_any_window_of_its_call(seconds: int, silent: str) -> None:
    lines = talk(seconds)
    if silent != "none":  # one side says nothing in half of the call
        half = seconds / 2
        lines = [line for line in lines if line[2] == "A" or (line[0] > half) == (silent == "B at first")]
    turns = spoken(lines)
    clips = {"A": candidate_clips(turns, "A", 5.0), "B": candidate_clips(turns, "B", 5.0)}
    windows = plan_windows(turns, clips, float(seconds), Limits(max_seconds=60))  # type: ignore[arg-type]
    for window in windows:
        for clip in [clip for own in window.clips.values() for clip in own]:
            assert all(clip.is_outside(other.start, other.end) for other in windows)
    assert {letter for window in windows for letter in window.clips} == {"A", "B"}
    assert sum(window.end - window.start for window in windows if window.clips) > 0.5 * seconds


def test_windows_are_planned_well_in_a_ten_minute_call(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[float] = []
    monkeypatch.setattr(windows_module, "judge", lambda *given: judged.append(given[2]) or judge(*given))
    rng = random.Random(0)
    lines: list[Line] = []
    time = 0.0
    while time < 590:
        length = rng.uniform(0.5, 6)
        lines.append((time, time + length, rng.choice("AB"), "word"))
        time += length + rng.uniform(-0.3, 0.5)
    turns = spoken(sorted(lines))
    clips = {"A": candidate_clips(turns, "A", 5.0), "B": candidate_clips(turns, "B", 5.0)}
    windows = plan_windows(turns, clips, 600.0, Limits(max_seconds=150))  # type: ignore[arg-type]
    assert len(judged) < 12 * len(lines)  # with every start they would be five times as many
    assert sum(window.end - window.start for window in windows) > 500
    assert all(window.end - window.start <= 150 and set(window.clips) == {"A", "B"} for window in windows)
    assert all(first.end <= second.start for first, second in zip(windows, windows[1:], strict=False))


def test_laughter_and_listening_words_become_events(tmp_path: Path, fake: None) -> None:
    lines = talk(90)
    lines += [(a + 2.0, a + 2.6, "BA"["AB".index(s)], "mhm") for a, b, s, _ in lines]
    lines = [(a, b, s, t.replace("bravo", "bravo [laughter]", 1)) for a, b, s, t in lines]
    write_call(tmp_path / "corpus", "00001", lines, 90)
    imported([tmp_path / "corpus"], tmp_path / "out")
    for d in dialogues(tmp_path / "out").values():
        kinds = {event["kind"] for event in d.events}
        assert "backchannel" in kinds and all(0 <= e["start"] < e["end"] <= d.seconds for e in d.events)
        assert not any("[" in w.text for s in (d.left, d.right) for w in s.words)


def test_a_rerun_skips_what_is_complete_and_gives_the_same_files(tmp_path: Path, fake: None) -> None:
    for call in ("00001", "00002", "00003"):
        write_call(tmp_path / "corpus", call, talk(90), 90)
    write_tables(tmp_path / "corpus")

    def files(out: Path) -> dict[str, bytes]:
        return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}

    imported([tmp_path / "corpus"], tmp_path / "whole")
    imported([tmp_path / "corpus"], tmp_path / "parts", limit=1)
    victim = next((tmp_path / "parts").glob("*-1"))
    (victim / "audio.flac").unlink()
    again = imported([tmp_path / "corpus"], tmp_path / "parts")
    assert again["done"] == 3
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    assert imported([tmp_path / "corpus"], tmp_path / "parts")["skipped"] == 3
    with pytest.raises(UserError, match="made with seed 0, not 1"):
        imported([tmp_path / "corpus"], tmp_path / "parts", seed=1)


def test_dialogues_that_the_split_leaves_without_an_agent_are_gone_and_come_back(tmp_path: Path, fake: None) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    for call in ("00001", "00002"):
        write_call(corpus, call, talk(90), 90)
    write_tables(corpus)
    table = corpus / "fe_03_p1_tran/doc/fe_03_p1_calldata.tbl"
    table.write_text(table.read_text().replace("4242,m.a", "2602,f.a"))  # two calls of the same two people
    imported([corpus], out, limit=1)
    alone = [path.name for path in find_dialogues([out])]
    report = imported([corpus], out)
    together = find_dialogues([out])
    assert alone and all((path / "meta.json").is_file() for path in together)
    assert sorted(path.name for path in out.glob("fe_03_*")) == sorted(path.name for path in together)
    shutil.rmtree(together[0])
    assert imported([corpus], out)["dialogues"] == report["dialogues"]
    assert find_dialogues([out]) == together


def test_foreign_folders_and_numbers_out_of_range_are_refused(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("keep me")
    with pytest.raises(UserError, match="give another --out"):
        imported([tmp_path / "corpus"], tmp_path / "mine")
    for name, value in (
        ("max_seconds", 5.0),
        ("voice_seconds", 2.0),
        ("voice_seconds", 11.0),
        ("limit", 0),
        ("bandwidth_timeout", math.inf),
    ):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value:g}: must be"):
            imported([tmp_path / "corpus"], tmp_path / "out", **{name: value})


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(
    tmp_path: Path, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if ".flac" in path.name:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        imported([tmp_path / "corpus"], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.flac*"))
    monkeypatch.undo()
    monkeypatch.setattr("data_pipelines.fisher.heard.shared_aligner", FakeAligner)
    monkeypatch.setattr("data_pipelines.fisher.importer.shared_aligner", FakeAligner)
    assert imported([tmp_path / "corpus"], tmp_path / "out")["dialogues"]


def test_no_dialogue_at_all_is_an_error_with_the_first_reason(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 30)
    with pytest.raises(UserError, match="no call gave a dialogue.*beyond the audio"):
        imported([tmp_path / "corpus"], tmp_path / "out")


def test_the_licence_is_the_corpus_own_or_the_given_one(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    (tmp_path / "corpus/licence.txt").write_text("CC BY 4.0\nmore\n")
    imported([tmp_path / "corpus"], tmp_path / "own")
    imported([tmp_path / "corpus"], tmp_path / "given", licence="private")
    assert {d.licence for d in dialogues(tmp_path / "own").values()} == {"CC BY 4.0"}
    assert {d.licence for d in dialogues(tmp_path / "given").values()} == {"private"}
    folders = sorted(path for path in (tmp_path / "corpus").iterdir() if path.is_dir())
    imported(folders, tmp_path / "one-by-one")
    assert {d.licence for d in dialogues(tmp_path / "one-by-one").values()} == {"CC BY 4.0"}


def test_one_corpus_never_goes_out_under_the_licence_of_another(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "free", "00001", talk(90), 90)
    write_call(tmp_path / "ldc", "00002", talk(90), 90)
    (tmp_path / "free/licence.txt").write_bytes("CC BY 4.0 \u2019".encode("cp1252"))
    with pytest.raises(UserError, match="different licences .CC BY 4.0 '; none above .*ldc.*: import them one at a"):
        imported([tmp_path / "free", tmp_path / "ldc"], tmp_path / "out")
    (tmp_path / "free/licence.txt").write_text("\n")
    imported([tmp_path / "free", tmp_path / "ldc"], tmp_path / "out")
    assert {d.licence for d in dialogues(tmp_path / "out").values()} == {"LDC User Agreement"}


def test_missing_tables_are_printed(tmp_path: Path, fake: None, capsys: pytest.CaptureFixture[str]) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    write_call(tmp_path / "corpus", "00009", talk(90), 90)
    (tmp_path / "corpus/fe_03_p1_tran/data/trans/000/fe_03_00009.txt").unlink()
    imported([tmp_path / "corpus"], tmp_path / "out")
    printed = capsys.readouterr().out
    assert "no calldata table" in printed and "no topics table" in printed and "1 calls are left out" in printed
    assert all(d.side(s).role_prompt == BARE for d in dialogues(tmp_path / "out").values() for s in d.agent_sides)
    write_tables(tmp_path / "corpus")
    write_call(tmp_path / "corpus", "00009", talk(90), 90)
    imported([tmp_path / "corpus"], tmp_path / "more")
    assert "1 calls have no row in calldata: speakers are told apart by call and side only" in capsys.readouterr().out


def test_the_verb_takes_its_arguments(tmp_path: Path, fake: None, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from data_pipelines.fisher.importer import add_arguments

    write_call(tmp_path / "corpus", "00001", talk(90), 90)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = str(tmp_path / "out")
    run(parser.parse_args(["--corpus", str(tmp_path / "corpus"), "--out", out, "--max-seconds", "30", "--limit", "1"]))
    assert "dialogues" in capsys.readouterr().out and dialogues(tmp_path / "out")
