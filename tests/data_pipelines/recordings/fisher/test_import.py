"""The Fisher importer on files written in the shapes of the release, faults included.

No Fisher file was at hand: the shapes are those that the corpus' readme and public loaders describe. The real aligner
is tried in test_standin.py.
"""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.recordings.budget import dialogue_seconds, token_counter
from data_pipelines.recordings.fisher.job import Filters
from data_pipelines.recordings.fisher.sphere import decode
from data_pipelines.roles.topics import BARE
from data_pipelines.sound.audio import to_rate
from model.errors import UserError
from model.text import TextTokenizer
from tests.data_pipelines.recordings.fisher.calls import dialogues, imported, talk, write_call, write_tables
from tests.data_pipelines.recordings.fisher.test_bandwidth import GOOD, program
from tests.refusals import refused


def test_both_sides_become_agents_with_own_prompt_and_own_voice_from_outside_all_windows(
    tmp_path: Path, fake: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for call in ("00001", "00002"):
        write_call(tmp_path / "corpus", call, talk(120), 120)
    write_tables(tmp_path / "corpus")
    report = imported([tmp_path / "corpus"], tmp_path / "out")
    found = dialogues(tmp_path / "out")
    assert report.recordings == 2 and len(found) == len(report.dialogues) >= 6 and not report.rejected
    assert {d.split for d in found.values()} == {"train", "heldout"}
    speakers: dict[str, set[str]] = {"train": set(), "heldout": set()}
    both = 0
    for name, d in found.items():
        folder = tmp_path / "out" / name
        info = soundfile.info(folder / "audio.flac")
        assert (info.samplerate, info.channels) == (24000, 2) and info.duration == pytest.approx(d.seconds, abs=1e-4)
        assert d.seconds <= 40 and d.licence == "LDC User Agreement" and d.source == "fisher"
        assert d.provenance["recorded"] is True
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


def test_words_are_where_the_speech_is_in_the_cut_audio(tmp_path: Path, corpus: Path) -> None:
    imported([corpus], tmp_path / "out")
    for name, d in dialogues(tmp_path / "out").items():
        audio, rate = soundfile.read(tmp_path / "out" / name / "audio.flac")
        for channel, side in enumerate((d.left, d.right)):
            spoken = np.concatenate([audio[int(w.start * rate) : int(w.end * rate), channel] for w in side.words])
            assert np.sqrt((spoken**2).mean()) > 0.05
            assert np.sqrt((audio[:, channel] ** 2).mean()) < 0.1
            assert side.words[0].text[0].isupper()


def test_a_call_too_short_for_a_voice_clip_is_refused_and_named(tmp_path: Path, corpus: Path) -> None:
    write_call(corpus, "00002", talk(12), 12)
    report = imported([corpus], tmp_path / "out")
    assert [note.id for note in report.rejected] == ["fe_03_00002"]
    assert "too short" in report.rejected[0].reason


def test_bad_calls_are_rejected_with_a_reason_and_the_others_go_on(tmp_path: Path, corpus: Path) -> None:
    write_call(corpus, "00002", talk(90), 40)  # This transcript is longer than its audio.
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
    reasons = {note.id[-5:]: note.reason for note in report.rejected}
    assert "beyond the audio" in reasons["00002"]
    assert "does not match" in reasons["00003"]
    assert "0 % of its lines fit" in reasons["00004"]
    assert "fe_03_00005.sph" in reasons["00005"]
    assert "holds no line" in reasons["00006"]
    assert "bad audio" in reasons["00446"]
    assert sorted(reasons) == ["00002", "00003", "00004", "00005", "00006", "00446"] and report.recordings == 1
    assert all("\n" not in reason for reason in reasons.values())
    written = json.loads((tmp_path / "out/report.json").read_text())
    assert written["rejected"] == [{"id": note.id, "reason": note.reason} for note in report.rejected]
    assert written["done"] == 1 and "skipped" not in written


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
    convert("00003", 16000, 2, 8000)  # This header lies, so that everything is over in half the time.
    convert("00004", 16000, 2, 16000)
    report = imported([corpus], tmp_path / "out")
    reasons = {note.id[-5:]: note.reason for note in report.rejected}
    assert "has 1 channel(s), a call has 2" in reasons["00001"]
    assert "has 6000 Hz, calls have 8000" in reasons["00002"]
    assert "beyond the audio" in reasons["00003"]
    assert sorted(reasons) == ["00001", "00002", "00003"]
    notes = [note.reason for note in report.notes if note.id == "fe_03_00004"]
    assert "the audio has 16000 Hz, not 8000: somebody's conversion" in notes


def test_filters_leave_out_calls_by_grade_and_sides_by_sex_and_language(tmp_path: Path, corpus: Path) -> None:
    write_call(corpus, "00002", talk(90), 90)
    write_tables(corpus)
    graded = imported([corpus], tmp_path / "a", filters=Filters(min_signal=3.2))
    assert [note.reason for note in graded.rejected] == ["fe_03_00001: its signal grade is 3, wanted 3.2"]
    graded = imported([corpus], tmp_path / "b", filters=Filters(min_conversation=2))
    assert [note.reason for note in graded.rejected] == ["fe_03_00002: its conversation grade is unknown, wanted 2"]
    native = imported([corpus], tmp_path / "c", filters=Filters(native=True))
    assert all(d.agent_sides == ("left",) for d in dialogues(tmp_path / "c").values()) and native.dialogues
    assert any("side B is no agent: is not known as a native speaker" in note.reason for note in native.notes)
    imported([corpus], tmp_path / "d", filters=Filters(sex="f"))
    assert {d.provenance["call"] for d in dialogues(tmp_path / "d").values()} == {"fe_03_00001"}


@pytest.mark.parametrize(
    ("filters", "option"),
    [
        (Filters(min_signal=1), "--min-signal-grade"),
        (Filters(min_conversation=1), "--min-conversation-grade"),
        (Filters(native=True), "--native"),
        (Filters(sex="f"), "--sex"),
    ],
)
def test_a_filter_without_its_table_is_refused(tmp_path: Path, corpus: Path, filters: Filters, option: str) -> None:
    with refused("not-found", option, "fe_03_pN_calldata.tbl"):
        imported([corpus], tmp_path / "out", filters=filters)


def test_a_grade_that_is_no_number_is_refused(tmp_path: Path, corpus: Path) -> None:
    with refused("bad-value", "--min-signal-grade nan"):
        imported([corpus], tmp_path / "out", filters=Filters(min_signal=math.nan))


def test_rows_never_pass_2048_frames_however_long_the_prompt(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(400), 400)
    write_tables(tmp_path / "corpus")
    topics = tmp_path / "corpus/fe_03_p1_tran/doc/fe_03_topics.sgm"
    for out, title in (("short", "Pets."), ("long", "pets and " * 60 + "pets.")):
        topics.write_text(f'<topic id="ENG01" title="{title}">\n')
        most = dialogue_seconds(5.0, 128)
        report = imported([tmp_path / "corpus"], tmp_path / out, max_seconds=most)
        found = dialogues(tmp_path / out)
        assert len(report.dialogues) == len(found) >= 2
        longest = max(d.seconds for d in found.values())
        assert longest > 140 if out == "short" else 100 < longest < 140
        for name, d in found.items():
            for side in d.agent_sides:
                voice = math.ceil(soundfile.info(tmp_path / out / name / f"{side}.voice.flac").duration * 12.5)
                tokens = math.ceil((len(d.side(side).role_prompt) + 18) / 2)
                frames = voice + tokens + 11 + math.ceil(d.seconds * 12.5)
                assert d.provenance["row_frames"][side] == pytest.approx(frames, abs=1) and frames <= 2048


def test_a_tokenizer_counts_the_prompt_exactly(tmp_path: Path, corpus: Path) -> None:
    from tests.ppx_train.fixtures import make_tokenizer

    path = make_tokenizer(tmp_path / "text.model")
    count = token_counter(str(path))
    assert count(BARE) == len(TextTokenizer(path).encode(f"<system> {BARE} <system>"))
    imported([corpus], tmp_path / "out", tokenizer=str(path))
    assert {d.provenance["prompt_tokens"] for d in dialogues(tmp_path / "out").values()} == {"exact"}
    with pytest.raises(UserError, match="no such tokenizer"):
        imported([corpus], tmp_path / "other", tokenizer="nowhere.model")


def test_the_sound_is_as_chosen_and_recorded(tmp_path: Path, fake: None) -> None:
    corpus = tmp_path / "corpus"
    write_call(corpus, "00001", talk(60), 60)
    command = program(tmp_path, GOOD)
    imported([corpus], tmp_path / "hq")
    imported([corpus], tmp_path / "vhq", resampler="soxr-vhq")
    imported([corpus], tmp_path / "extended", bandwidth_extension=command)
    found = {out: dialogues(tmp_path / out)["fe_03_00001-1"].provenance for out in ("hq", "vhq", "extended")}
    assert {out: p["resampler"] for out, p in found.items()} == {"hq": "soxr-hq", "vhq": "soxr-vhq", "extended": ""}
    assert {out: p["bandwidth_extension"] for out, p in found.items()} == {"hq": "", "vhq": "", "extended": command}

    def treble(out: str) -> float:
        audio, _ = soundfile.read(tmp_path / out / "fe_03_00001-1" / "audio.flac")
        power = np.abs(np.fft.rfft(audio[:, 0])) ** 2
        return float(power[len(power) * 4200 // 12000 :].sum()) / float(power.sum())

    assert treble("hq") < 1e-3 and treble("vhq") < 1e-3 < treble("extended")
    broken = program(tmp_path, "sys.exit('broken')\n")
    with refused("no-data", "bandwidth extension failed with code 1: broken"):
        imported([corpus], tmp_path / "broken", bandwidth_extension=broken)
    assert not dialogues(tmp_path / "broken")


def test_laughter_and_listening_words_become_events(tmp_path: Path, fake: None) -> None:
    lines = talk(90)
    lines += [
        line
        for a, b, s, _ in talk(90)
        for line in ((a + 2.0, a + 2.6, "BA"["AB".index(s)], "mhm"), (b + 0.1, b + 0.4, s, "[laughter]"))
    ]
    lines = [(a, b, s, t.replace("bravo", "bravo [laughter]", 1)) for a, b, s, t in lines]
    write_call(tmp_path / "corpus", "00001", lines, 90)
    imported([tmp_path / "corpus"], tmp_path / "out")
    found = dialogues(tmp_path / "out").values()
    assert found
    for d in found:
        assert {"backchannel", "laughter"} <= {event.kind for event in d.events}
        assert all(0 <= start < end <= d.seconds for start, end in (event.span for event in d.events))
        assert not any("[" in w.text for s in (d.left, d.right) for w in s.words)


def mark(corpus: Path, licence: str) -> None:
    """Writes the marker of a stand-in corpus, by other means than the code."""
    audio = {
        str(path.relative_to(corpus)): hashlib.sha256(path.read_bytes()[:2048]).hexdigest()
        for path in corpus.rglob("*.sph")
    }
    (corpus / "standin.json").write_text(json.dumps({"licence": licence, "audio": audio}))


def licences(out: Path) -> set[str]:
    return {d.licence for d in dialogues(out).values()}


def test_the_licence_is_that_of_the_corpus_own_marker_or_the_given_one(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark(corpus, "CC BY 4.0")
    imported([corpus], tmp_path / "own")
    assert "licence of the audio: CC BY 4.0\n" in capsys.readouterr().out
    imported([corpus], tmp_path / "given", licence="private")
    assert licences(tmp_path / "own") == {"CC BY 4.0"} and licences(tmp_path / "given") == {"private"}
    folders = sorted(path for path in corpus.iterdir() if path.is_dir())
    imported(folders, tmp_path / "one-by-one")
    assert licences(tmp_path / "one-by-one") == {"CC BY 4.0"}


def test_a_stray_licence_or_marker_above_the_discs_relabels_nothing(
    tmp_path: Path, fake: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_call(tmp_path / "discs", "00001", talk(90), 90)
    write_call(tmp_path / "other", "00002", talk(80), 80)
    mark(tmp_path / "other", "CC BY 4.0")
    (tmp_path / "other/standin.json").rename(tmp_path / "standin.json")
    for place in (tmp_path, tmp_path / "discs"):
        (place / "licence.txt").write_text("CC0-1.0\n")
    imported([tmp_path / "discs"], tmp_path / "out")
    assert licences(tmp_path / "out") == {"LDC User Agreement"}
    assert "licence of the audio: LDC User Agreement\n" in capsys.readouterr().out


def test_one_corpus_never_goes_out_under_the_licence_of_another(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "free", "00001", talk(90), 90)
    write_call(tmp_path / "ldc", "00002", talk(80), 80)
    mark(tmp_path / "free", "CC BY 4.0")
    with refused("licence", "CC BY 4.0", tmp_path / "ldc"):
        imported([tmp_path / "free", tmp_path / "ldc"], tmp_path / "out")
    (tmp_path / "free/standin.json").write_text('{"licence": 3}')
    with refused("bad-record", tmp_path / "free/standin.json"):
        imported([tmp_path / "free"], tmp_path / "out")


def test_missing_tables_are_printed(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_call(corpus, "00009", talk(90), 90)
    (corpus / "fe_03_p1_tran/data/trans/000/fe_03_00009.txt").unlink()
    imported([corpus], tmp_path / "out")
    printed = capsys.readouterr().out
    assert "no calldata table" in printed and "no topics table" in printed and "1 calls are left out" in printed
    assert all(d.side(s).role_prompt == BARE for d in dialogues(tmp_path / "out").values() for s in d.agent_sides)
    write_tables(corpus)
    write_call(corpus, "00009", talk(90), 90)
    imported([corpus], tmp_path / "more")
    assert (
        "1 calls have no row in calldata: speakers are distinguished by call and side only" in capsys.readouterr().out
    )


def test_calls_can_be_masked(tmp_path: Path, fake: None) -> None:
    lines = [
        (a, b, side, f"{text} my name is vesna kowal" if n % 3 == 0 else text)
        for n, (a, b, side, text) in enumerate(talk(120))
    ]
    write_call(tmp_path / "corpus", "00001", lines, 120)
    imported([tmp_path / "corpus"], tmp_path / "plain")
    imported([tmp_path / "corpus"], tmp_path / "out", mask=True)
    plain, masked = dialogues(tmp_path / "plain"), dialogues(tmp_path / "out")
    written = "".join(path.read_text().lower() for path in (tmp_path / "out").rglob("*.json"))
    assert "vesna" not in written and "kowal" not in written and "[name]" in written
    assert all(d.provenance["masked"]["name"] > 0 for d in masked.values())
    assert all("masked" not in d.provenance for d in plain.values())
    assert '"mask"' not in (tmp_path / "plain/fisher.json").read_text()  # Folders of earlier versions go on.
    with refused("other-settings", "mask"):
        imported([tmp_path / "corpus"], tmp_path / "plain", mask=True)
    quiet = 0
    for name, d in masked.items():
        audio_SC, _ = soundfile.read(tmp_path / "out" / name / "audio.flac")
        for side in (d.left, d.right):
            for word in side.words:
                if word.text.lower() == "[name]":
                    quiet += 1
                    assert np.abs(audio_SC[int(word.start * 24000) : int(word.end * 24000)]).max() < 0.05
    assert quiet >= 5
