"""Recordings become dialogues that can be packed: words where they sound, whole windows, own voices."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.execution.executor import Executor
from data_pipelines.recordings import moshi
from data_pipelines.recordings.convert import ImportSettings
from data_pipelines.recordings.drafts import Note
from data_pipelines.recordings.importer import import_batches
from data_pipelines.recordings.recording import Unready
from data_pipelines.records.folder import find_dialogues
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from data_pipelines.shards.manifest import read_manifest
from model.errors import Code, UserError
from tests.data_pipelines.kill import kill_everywhere, tree
from tests.data_pipelines.recordings.imports import (
    COMMON,
    imported,
    loud_words,
    reasons,
    recordings,
    report,
    run_moshi,
    write_moshi,
)
from tests.data_pipelines.tiny_dialogues import TinyCodec
from tests.data_pipelines.tiny_recordings import write_wav
from tests.refusals import refused


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_words_lie_where_they_sound_in_the_imported_audio(tmp_path: Path, rate: int) -> None:
    write_moshi(tmp_path, rate=rate)
    folder, dialogue = imported(run_moshi(tmp_path))[0]
    audio_SC, written_rate = soundfile.read(folder / "audio.flac")
    assert written_rate == 24000 and audio_SC.shape[1] == 2
    assert loud_words(dialogue, audio_SC.T, written_rate) == (1.0, 0.0)
    assert dialogue.agent_sides == ("left", "right") and dialogue.provenance["source_rate"] == rate
    assert dialogue.provenance["word_times"] == "given" and dialogue.licence == "CC BY 4.0"


def test_long_recordings_become_windows_that_cut_no_word_and_have_voices_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = write_moshi(tmp_path, seconds=130.0)
    reads: list[Path] = []
    read = moshi.read_audio

    def counted(path: Path) -> tuple[npt.NDArray[np.float32], int]:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(moshi, "read_audio", counted)
    found = imported(run_moshi(tmp_path, "--max-seconds", "30"))
    assert len(found) >= 4 and len(reads) == 1
    ends, windows = 0.0, [dialogue.provenance["window"] for _, dialogue in found]
    for folder, dialogue in found:
        start, end = dialogue.provenance["window"]
        assert end - start <= 30 and start >= ends - 1e-3
        ends = end
        for side in ("left", "right"):
            whole = [w for w in words[side] if w.start >= start and w.end <= end]
            cut = [w for w in words[side] if w.start < start < w.end or w.start < end < w.end]
            assert not cut and [w.text for w in dialogue.side(side).words] == [w.text for w in whole]
            assert [w.start + start for w in dialogue.side(side).words] == pytest.approx(
                [w.start for w in whole], abs=2e-3
            )
            if not dialogue.side(side).is_agent:
                continue
            first, last = dialogue.provenance["voice_spans"][side]
            assert all(last <= start or first >= end for start, end in windows)
            assert 3 <= soundfile.info(folder / f"{side}.voice.flac").duration <= 5


def test_a_recording_with_a_voice_of_its_own_stays_whole(tmp_path: Path) -> None:
    words = write_moshi(tmp_path, seconds=40.0, voice="v.wav", role={"text": "You are  kind."})
    clip = np.random.default_rng(0).uniform(-0.2, 0.2, 16000 * 4).astype(np.float32)
    write_wav(tmp_path / "v.wav", clip, 16000)
    options = ["--voice-field", "left=voice", "--role-field", "role.text"]
    [(folder, dialogue)] = imported(run_moshi(tmp_path, *options, agent="left"))
    assert dialogue.seconds == 40.0 and dialogue.left.role_prompt == "You are kind." and not dialogue.right.is_agent
    assert [w.text for w in dialogue.right.words] == [w.text for w in words["right"]]
    assert soundfile.info(folder / "left.voice.flac").duration == 4.0
    by_file = run_moshi(tmp_path, "--voice", f"left={tmp_path / 'v.wav'}", out="file", agent="left")
    assert (find_dialogues([by_file])[0] / "left.voice.flac").read_bytes() == (folder / "left.voice.flac").read_bytes()


def test_the_other_channel_may_be_unknown(tmp_path: Path) -> None:
    write_moshi(tmp_path, other=None)
    _, dialogue = imported(run_moshi(tmp_path, "--fill", "agent", agent="left"))[0]
    assert dialogue.left.words and not dialogue.right.words
    with refused("no-data", "the right side is no agent: its words are unknown"):
        run_moshi(tmp_path, "--fill", "none", out="right", agent="right")


def test_speakers_are_held_out_by_their_name_and_one_voice_is_never_in_both_splits(tmp_path: Path) -> None:
    names = {}
    for n in range(8):
        write_moshi(tmp_path, f"call{n}", seconds=30.0, speakers=[f"p{n % 4}", f"q{n % 3}"])
        names[f"data_stereo/call{n}.wav"] = {"left": f"p{n % 4}", "right": f"q{n % 3}"}
    options = ["--heldout", "0.7"]
    out = run_moshi(tmp_path, *options, "--speaker-field", "left=speakers.0", "right=speakers.1")
    splits: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for _, dialogue in imported(out):
        splits[dialogue.split] |= {dialogue.side(side).speaker for side in dialogue.agent_sides}
    assert splits["train"] and splits["heldout"] and not splits["train"] & splits["heldout"]
    assert splits["train"] | splits["heldout"] <= {f"talks/{name}" for row in names.values() for name in row.values()}
    (tmp_path / "names.json").write_text(json.dumps(names))
    by_file = run_moshi(tmp_path, *options, "--speakers", str(tmp_path / "names.json"), out="file")
    assert [d.to_json() for _, d in imported(by_file)] == [d.to_json() for _, d in imported(out)]
    by_recording = run_moshi(tmp_path, *options, "--split", "recording", out="recordings")
    assert {d.split for _, d in imported(by_recording)} == {"train", "heldout"}
    assert {d.split for _, d in imported(run_moshi(tmp_path, "--split", "heldout", out="held"))} == {"heldout"}


def test_speakers_and_roles_that_are_not_found_are_listed(tmp_path: Path) -> None:
    write_moshi(tmp_path, role="You are kind.")
    (tmp_path / "names.json").write_text(json.dumps({"data_stereo/a.wav": {"left": "Ann"}, "a": {"left": "Bob"}}))
    out = run_moshi(tmp_path, "--speakers", str(tmp_path / "names.json"), "--role-field", "left=role", "right=rule")
    assert {(note["id"], note["reason"]) for note in report(out)["notes"]} == {
        ("a", "--speakers names it, but no recording that was read"),
        ("data_stereo/a.wav", "its record holds no 'rule' for the role of the right side"),
    }


def test_imported_dialogues_are_packed(tmp_path: Path) -> None:
    write_moshi(tmp_path)
    out = run_moshi(tmp_path, "--role-prompt", "left=You are left.", "right=You are right.")
    build_shards([out], TinyCodec(), tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards/train")
    assert {row.side for row in reader.rows} == {"left", "right"}
    assert all(reader.dialogue(n).provenance["recorded"] is True for n in range(len(reader)))
    assert read_manifest(tmp_path / "shards").recorded == len(reader) // 2 > 0
    assert all(reader.read(n).role_prompt == f"You are {row.side}." for n, row in enumerate(reader.rows))


def test_too_short_recordings_and_those_without_room_for_a_voice_are_rejected_with_the_reason(tmp_path: Path) -> None:
    write_moshi(tmp_path, "short", seconds=8.0)
    write_moshi(tmp_path, "narrow", seconds=12.0)
    with refused("no-data", tmp_path / "out/report.json"):
        run_moshi(tmp_path)
    found = reasons(tmp_path / "out")
    assert "8.0 s, a dialogue lasts 10 s or more" in found["data_stereo/short.wav"]
    assert "is no agent" in found["data_stereo/narrow.wav"]


@pytest.mark.parametrize(
    ("options", "code", "names"),
    [
        (["--source", "Big Talks"], "bad-value", ["--source 'Big Talks'"]),
        (["--licence", " "], "licence", ["--licence ''"]),
        (["--max-seconds", "5"], "bad-value", ["--max-seconds 5"]),
        (["--voice-seconds", "2"], "bad-value", ["--voice-seconds 2"]),
        (["--heldout", "2"], "bad-value", ["--heldout 2"]),
        (["--voice", "left=nothing.wav"], "not-found", ["nothing.wav"]),
        (["--agent", "left", "--role-prompt", "right=You"], "bad-combination", ["--role-prompt right=..."]),
        (["--role-prompt", "You", "are"], "bad-value", ["--role-prompt You are", "in quotes"]),
        (["--role-field", "left=a", "left=b"], "bad-value", ["--role-field left=a left=b"]),
        (["--audio-field", "flac"], "bad-combination", ["--audio-field", "webdataset and hf only, not with moshi"]),
        (["--sides", "a", "b"], "bad-combination", ["--sides", "subtitles only"]),
        (["--limit", "0"], "bad-value", ["--limit 0"]),
        (["--labels", "A", "A"], "bad-value", ["--labels A A"]),
        (["--split", "train", "--heldout", "0.3"], "bad-combination", ["--heldout", "--split train"]),
        (["--speakers", "x", "--speaker-field", "left=a"], "bad-combination", ["--speakers", "--speaker-field"]),
        (["--speakers", "nothing.json"], "not-found", ["nothing.json"]),
        (["--speakers", "list.jsonl"], "bad-record", ["--speakers list.jsonl"]),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: Code, names: list[str]
) -> None:
    write_moshi(tmp_path)
    monkeypatch.chdir(tmp_path)
    with refused(code, *names):
        run_moshi(tmp_path, *options)


def test_an_import_without_a_licence_is_refused(tmp_path: Path) -> None:
    write_moshi(tmp_path)
    with refused("missing-option", "--licence"):
        verbs.main(["import", "moshi", str(tmp_path), "--out", str(tmp_path / "out"), "--source", "talks"])


@pytest.mark.parametrize(
    ("kind", "is_folder", "code", "names"),
    [
        ("moshi", True, "not-found", [".jsonl"]),
        ("moshi", False, "not-found", []),
        ("subtitles", True, "not-found", ["--audio-pattern"]),
        ("subtitles", False, "not-found", []),
        ("webdataset", True, "not-found", [".tar.gz"]),
        ("hf", True, "missing-option", ["--audio-field"]),
        ("hf", False, "missing-option", ["--audio-field"]),
    ],
)
def test_a_path_without_recordings_is_refused(
    tmp_path: Path, kind: str, is_folder: bool, code: Code, names: list[str]
) -> None:
    path = tmp_path / "in"
    if is_folder:
        path.mkdir()
    with refused(code, *(names if code == "missing-option" else [path, *names])):
        verbs.main(["import", kind, str(path), "--out", str(tmp_path / "out"), *COMMON])


@pytest.mark.parametrize("kind", ["subtitles", "webdataset", "hf"])
def test_nothing_is_written_where_recordings_are_looked_for(tmp_path: Path, kind: str) -> None:
    with refused("bad-combination", f"--out {tmp_path / 'deep/out'} lies in {tmp_path}"):
        verbs.main(["import", kind, str(tmp_path), "--out", str(tmp_path / "deep/out"), *COMMON])


def test_a_second_run_changes_nothing_and_another_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_moshi(tmp_path)
    before = tree(run_moshi(tmp_path))
    assert tree(run_moshi(tmp_path)) == before
    assert "from 1 recordings, 0 rejected" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made with max_seconds 150.0, not 20.0"):
        run_moshi(tmp_path, "--max-seconds", "20")
    write_moshi(tmp_path, "later")
    assert len(recordings(imported(run_moshi(tmp_path)))) == 2


def test_what_was_repaired_is_tried_again_and_no_longer_listed(tmp_path: Path) -> None:
    write_moshi(tmp_path, "good")
    write_moshi(tmp_path, "bad")
    whole = (tmp_path / "list.jsonl").read_text()
    (tmp_path / "list.jsonl").write_text(whole[:-20])  # Its last line is cut off.
    out = run_moshi(tmp_path)
    assert "not JSON" in reasons(out)["list.jsonl:2"]
    (tmp_path / "list.jsonl").write_text(whole)
    run_moshi(tmp_path)
    assert not reasons(out) and len(recordings(imported(out))) == 2


class Losing(Executor):
    """Loses the first job, as the real one does with a job that kills its worker each time."""

    def run(
        self, work: Callable[[Any], Any], jobs: Sequence[Any], *, lost: Callable[[Any, str], Any] | None = None
    ) -> Iterator[Any]:
        """Yields results."""
        assert lost is not None
        yield lost(jobs[0], "kills its worker each time")
        yield from map(work, jobs[1:])


def test_recordings_that_kill_their_worker_are_listed_and_the_others_go_on(tmp_path: Path) -> None:
    for n in range(2):
        write_moshi(tmp_path, f"call{n}", seconds=30.0)
    settings = ImportSettings(source="talks", licence="x", agents=("left", "right"))
    found = import_batches(moshi.find(tmp_path, None), settings, {}, tmp_path / "out", Losing())
    assert found.recordings == 1
    assert found.rejected == [Note(id="list.jsonl:1", reason="kills its worker each time")]
    assert reasons(tmp_path / "out") == {"list.jsonl:1": "kills its worker each time"}


def test_two_workers_write_the_same_files(tmp_path: Path) -> None:
    for n in range(3):
        write_moshi(tmp_path, f"call{n}", seconds=25.0)
    alone, together = run_moshi(tmp_path, out="alone"), run_moshi(tmp_path, "--workers", "2", out="together")
    assert tree(together) == tree(alone)


def test_an_import_stopped_at_any_moment_goes_on_to_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    for n in range(2):
        write_moshi(tmp_path / "before", f"call{n}", seconds=25.0)
    argv = ["import", "moshi", ".", "--out", "out", *COMMON, "--agent", "both"]
    assert kill_everywhere(tmp_path, argv) > 10


def test_a_missing_package_ends_the_run_instead_of_rejecting_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_moshi(tmp_path, other=None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    monkeypatch.setitem(sys.modules, "faster_whisper.vad", None)
    with pytest.raises(Unready, match=r"pip install 'ppx-train\[asr\]'"):
        run_moshi(tmp_path)
