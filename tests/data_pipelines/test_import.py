"""Recordings in four formats become dialogues that can be packed: words where they sound, whole windows, own voices."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.executor import Executor
from data_pipelines.folder import find_dialogues, load_dialogue
from data_pipelines.imports import moshi
from data_pipelines.imports.cut import Settings
from data_pipelines.imports.importer import import_batches
from data_pipelines.imports.item import Unready, inside, item_id
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from model.errors import UserError
from tests.data_pipelines.kill import kill_everywhere, tree
from tests.data_pipelines.tiny_dialogues import TinyCodec
from tests.data_pipelines.tiny_recordings import RATE, conversation, write_wav

COMMON = ["--source", "talks", "--licence", "CC BY 4.0"]


def write_moshi(root, name="a", seconds=40.0, rate=RATE, *, audio=None, other="SPEAKER_OTHER", **extra):
    """One recording in moshi-finetune's layout; returns its words by side."""
    made, words = conversation(seconds, rate, seed=len(name))
    path = root / f"data_stereo/{name}.wav"
    write_wav(path, made if audio is None else audio, rate)
    labels = {"left": "SPEAKER_MAIN", "right": other}
    said = [[f" {w.text}", [w.start, w.end], labels[side]] for side in words for w in words[side] if labels[side]]
    said.sort(key=lambda word: word[1][0])
    path.with_suffix(".json").write_text(json.dumps({"alignments": said, **extra}))
    with open(root / "list.jsonl", "a") as file:
        file.write(json.dumps({"path": f"data_stereo/{name}.wav", "duration": seconds}) + "\n")
    return words


def imported(out):
    """The dialogues of a folder with their folders, by recording and window."""
    return [(folder, load_dialogue(folder)) for folder in find_dialogues([out])]


def recordings(found):
    return sorted({dialogue.provenance["recording"] for _, dialogue in found})


def report(out):
    return json.loads((out / "report.json").read_text())


def reasons(out):
    return {entry["id"]: entry["reason"] for entry in report(out)["rejected"]}


def run_moshi(root, *options, out="out", agent="both"):
    verbs.main(["import", "moshi", str(root), "--out", str(root / out), *COMMON, "--agent", agent, *options])
    return root / out


def loud_words(dialogue, audio_CS, rate):
    """Shares of the words inside which, and of the silences between them in which, their channel is loud."""
    inside_loud, outside_loud = [], []
    for channel, side in enumerate(("left", "right")):
        words = dialogue.side(side).words
        level = [
            np.abs(audio_CS[channel, int((w.start + 0.02) * rate) : int((w.end - 0.02) * rate)]).mean() for w in words
        ]
        inside_loud += [value > 0.05 for value in level]
        gaps = [(a.end + 0.02, b.start - 0.02) for a, b in zip(words, words[1:], strict=False)]
        outside_loud += [np.abs(audio_CS[channel, int(a * rate) : int(b * rate)]).mean() > 0.05 for a, b in gaps]
    return np.mean(inside_loud), np.mean(outside_loud)


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_words_lie_where_they_sound_in_the_imported_audio(tmp_path, rate):
    write_moshi(tmp_path, rate=rate)
    folder, dialogue = imported(run_moshi(tmp_path))[0]
    audio_SC, written_rate = soundfile.read(folder / "audio.flac")
    assert written_rate == 24000 and audio_SC.shape[1] == 2
    assert loud_words(dialogue, audio_SC.T, written_rate) == (1.0, 0.0)
    assert dialogue.agent_sides == ("left", "right") and dialogue.provenance["source_rate"] == rate
    assert dialogue.provenance["word_times"] == "given" and dialogue.licence == "CC BY 4.0"


def test_long_recordings_become_windows_that_cut_no_word_and_have_voices_from_outside(tmp_path, monkeypatch):
    words = write_moshi(tmp_path, seconds=130.0)
    reads = []
    read = moshi.read_audio
    monkeypatch.setattr(moshi, "read_audio", lambda path: reads.append(path) or read(path))
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


def test_a_recording_with_a_voice_of_its_own_stays_whole(tmp_path):
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


def test_the_other_channel_may_be_unknown(tmp_path):
    write_moshi(tmp_path, other=None)
    _, dialogue = imported(run_moshi(tmp_path, "--fill", "agent", agent="left"))[0]
    assert dialogue.left.words and not dialogue.right.words
    with pytest.raises(
        UserError, match="no recording gave a dialogue.* the right side is no agent: its words are unknown"
    ):
        run_moshi(tmp_path, "--fill", "none", out="right", agent="right")


def test_speakers_are_held_out_by_their_name_and_one_voice_is_never_in_both_splits(tmp_path):
    names = {}
    for n in range(8):
        write_moshi(tmp_path, f"call{n}", seconds=30.0, speakers=[f"p{n % 4}", f"q{n % 3}"])
        names[f"data_stereo/call{n}.wav"] = {"left": f"p{n % 4}", "right": f"q{n % 3}"}
    options = ["--heldout", "0.7"]
    out = run_moshi(tmp_path, *options, "--speaker-field", "left=speakers.0", "right=speakers.1")
    splits = {"train": set(), "heldout": set()}
    for _, dialogue in imported(out):
        splits[dialogue.split] |= {dialogue.side(side).speaker for side in dialogue.agent_sides}
    assert splits["train"] and splits["heldout"] and not splits["train"] & splits["heldout"]
    assert splits["train"] | splits["heldout"] <= {f"talks/{name}" for row in names.values() for name in row.values()}
    (tmp_path / "names.json").write_text(json.dumps(names))
    by_file = run_moshi(tmp_path, *options, "--speakers", str(tmp_path / "names.json"), out="file")
    assert [d.to_json() for _, d in imported(by_file)] == [d.to_json() for _, d in imported(out)]
    recordings = run_moshi(tmp_path, *options, "--split", "recording", out="recordings")
    assert {d.split for _, d in imported(recordings)} == {"train", "heldout"}
    assert {d.split for _, d in imported(run_moshi(tmp_path, "--split", "heldout", out="held"))} == {"heldout"}


def test_speakers_and_roles_that_are_not_found_are_told(tmp_path):
    write_moshi(tmp_path, role="You are kind.")
    (tmp_path / "names.json").write_text(json.dumps({"data_stereo/a.wav": {"left": "Ann"}, "a": {"left": "Bob"}}))
    out = run_moshi(tmp_path, "--speakers", str(tmp_path / "names.json"), "--role-field", "left=role", "right=rule")
    assert {(note["id"], note["reason"]) for note in report(out)["notes"]} == {
        ("a", "--speakers names it, but no recording that was read"),
        ("data_stereo/a.wav", "its record holds no 'rule' for the role of the right side"),
    }


def test_imported_dialogues_are_packed(tmp_path):
    write_moshi(tmp_path)
    out = run_moshi(tmp_path, "--role-prompt", "left=You are left.", "right=You are right.")
    build_shards([out], TinyCodec(), tmp_path / "shards")
    reader = ShardReader(tmp_path / "shards/train")
    assert {row.side for row in reader.rows} == {"left", "right"}
    assert all(reader.read(n).role_prompt == f"You are {row.side}." for n, row in enumerate(reader.rows))


def spoil_missing(root):
    (root / "data_stereo/bad.wav").unlink()


def spoil_channels(count):
    return lambda root: write_wav(root / "data_stereo/bad.wav", np.tile(conversation(40.0)[0], (2, 1))[:count])


def spoil_alignments(change):
    def spoil(root):
        path = root / "data_stereo/bad.json"
        said = json.loads(path.read_text())["alignments"]
        path.write_text(json.dumps({"alignments": [change(n, word) for n, word in enumerate(said)]}))

    return spoil


def spoil_bytes(suffix, data):
    return lambda root: (root / f"data_stereo/bad.{suffix}").write_bytes(data)


def spoil_line(**entry):
    def spoil(root):
        good = (root / "list.jsonl").read_text().splitlines()[0]
        (root / "list.jsonl").write_text(good + "\n" + json.dumps({"path": "data_stereo/bad.wav"} | entry) + "\n")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing, "no such audio file"),
        (spoil_channels(1), "has 1 channel, 2 are wanted"),
        (spoil_channels(3), "has 3 channels, 2 are wanted"),
        (spoil_bytes("wav", b"RIFF no wave"), "cannot be read as audio"),
        (lambda root: write_wav(root / "data_stereo/bad.wav", conversation(40.0)[0][::-1]), "swapped channels"),
        (lambda root: write_wav(root / "data_stereo/bad.wav", conversation(5.0)[0]), "5.0 s, its list says 40.0 s"),
        (spoil_alignments(lambda n, w: [w[0], [w[1][0] + 100, w[1][1] + 100], w[2]]), "beyond the audio of 40.00 s"),
        (spoil_alignments(lambda n, w: [w[0], w[1][::-1], w[2]]), "are reversed or beyond the audio"),
        (spoil_alignments(lambda n, w: [w[0], w[1], f"speaker {n}"]), "unknown speaker"),
        (spoil_alignments(lambda n, w: [w[0], w[1][:1], w[2]]), "not a transcript"),
        (spoil_bytes("json", '{"alignments": "\u00e9"}'.encode("latin-1")), "not UTF-8"),
        (spoil_bytes("json", b'{"alignments": ['), "not JSON"),
        (spoil_line(duration=10**400), "40.0 s, its list says 1000"),
        (spoil_line(duration=float("nan")), "40.0 s, its list says nan"),
        (spoil_line(path="../secret.wav"), "leads out of"),
        (spoil_line(path="/etc/passwd"), "leads out of"),
        (spoil_line(path="data_stereo/../../x.wav"), "leads out of"),
        (spoil_line(path=3), "not {\"path\": ..., \"duration\": ...}"),
    ],
)  # fmt: skip
def test_a_broken_recording_is_listed_with_its_reason_and_the_others_go_on(tmp_path, spoil, message):
    write_moshi(tmp_path, "good")
    write_moshi(tmp_path, "bad")
    spoil(tmp_path)
    out = run_moshi(tmp_path, agent="left")
    assert recordings(imported(out)) == ["data_stereo/good.wav"]
    [reason] = reasons(out).values()
    assert message in reason and "\n" not in reason


def test_a_line_that_is_there_twice_is_imported_once(tmp_path):
    write_moshi(tmp_path)
    line = (tmp_path / "list.jsonl").read_text()
    (tmp_path / "list.jsonl").write_text(line + line + "not json\n")
    out = run_moshi(tmp_path)
    assert recordings(imported(out)) == ["data_stereo/a.wav"]
    assert reasons(out)["list.jsonl:2"] == "the same line as before" and "not JSON" in reasons(out)["list.jsonl:3"]


def test_too_short_recordings_and_those_without_room_for_a_voice_are_rejected_with_the_reason(tmp_path):
    write_moshi(tmp_path, "short", seconds=8.0)
    write_moshi(tmp_path, "narrow", seconds=12.0)
    with pytest.raises(UserError, match="no recording gave a dialogue"):
        run_moshi(tmp_path)
    found = reasons(tmp_path / "out")
    assert "8.0 s, a dialogue lasts 10 s or more" in found["data_stereo/short.wav"]
    assert "is no agent" in found["data_stereo/narrow.wav"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "Big Talks"], "--source 'Big Talks': use lower-case letters"),
        (["--licence", " "], "--licence '': say under which terms"),
        (["--max-seconds", "5"], "--max-seconds 5: must be 10 or more"),
        (["--voice-seconds", "2"], "--voice-seconds 2: a voice clip lasts 3 to 10 s"),
        (["--heldout", "2"], "--heldout 2: give a share from 0 to 1"),
        (["--voice", "left=nothing.wav"], "nothing.wav: no such audio file"),
        (["--agent", "left", "--role-prompt", "right=You"], "--role-prompt right=...: that side is no agent"),
        (["--role-prompt", "You", "are"], "give one value, in quotes if it has spaces"),
        (["--role-field", "left=a", "left=b"], "give left=X, right=Y, or both"),
        (["--audio-field", "flac"], "--audio-field has an effect with webdataset and hf only, not with moshi"),
        (["--sides", "a", "b"], "--sides has an effect with subtitles only"),
        (["--limit", "0"], "--limit 0: must be 1 or more"),
        (["--labels", "A", "A"], "--labels A A: give two different names"),
        (["--split", "train", "--heldout", "0.3"], "--heldout has no effect with --split train"),
        (["--speakers", "x", "--speaker-field", "left=a"], "--speakers and --speaker-field say the same"),
        (["--speakers", "nothing.json"], "nothing.json: no such file"),
        (["--speakers", "list.jsonl"], r"--speakers .*list.jsonl: not \{"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, monkeypatch, options, message):
    write_moshi(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run_moshi(tmp_path, *options)


def test_an_import_without_a_licence_is_refused(tmp_path, capsys):
    write_moshi(tmp_path)
    with pytest.raises(SystemExit) as stop:
        verbs.main(["import", "moshi", str(tmp_path), "--out", str(tmp_path / "out"), "--source", "talks"])
    assert stop.value.code == 2 and "--licence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("moshi", lambda p: p.mkdir(), r"holds no \.jsonl"),
        ("moshi", lambda p: None, "no such file"),
        ("subtitles", lambda p: p.mkdir(), r"holds no recording"),
        ("subtitles", lambda p: None, "no such folder of recordings"),
        ("webdataset", lambda p: p.mkdir(), "no such tar, nor a folder that holds one"),
        ("hf", lambda p: p.mkdir(), "--audio-field: name the column"),
        ("hf", lambda p: None, "--audio-field: name the column"),
    ],
)
def test_a_path_without_recordings_is_refused(tmp_path, kind, make, message):
    make(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        verbs.main(["import", kind, str(tmp_path / "in"), "--out", str(tmp_path / "out"), *COMMON])


def test_a_second_run_changes_nothing_and_another_one_is_refused(tmp_path, capsys):
    write_moshi(tmp_path)
    before = tree(run_moshi(tmp_path))
    assert tree(run_moshi(tmp_path)) == before
    assert "from 1 recordings, 0 rejected" in capsys.readouterr().out
    with pytest.raises(UserError, match="was made with max_seconds 150.0, not 20.0"):
        run_moshi(tmp_path, "--max-seconds", "20")
    write_moshi(tmp_path, "later")
    assert len(recordings(imported(run_moshi(tmp_path)))) == 2


def test_what_was_mended_is_tried_again_and_no_longer_listed(tmp_path):
    write_moshi(tmp_path, "good")
    write_moshi(tmp_path, "bad")
    whole = (tmp_path / "list.jsonl").read_text()
    (tmp_path / "list.jsonl").write_text(whole[:-20])  # its last line is cut off
    out = run_moshi(tmp_path)
    assert "not JSON" in reasons(out)["list.jsonl:2"]
    (tmp_path / "list.jsonl").write_text(whole)
    run_moshi(tmp_path)
    assert not reasons(out) and len(recordings(imported(out))) == 2


class Losing(Executor):
    """Loses the first job, as the real one does with a job that kills its worker each time."""

    def run(self, work, jobs, *, lost=None):
        yield lost(jobs[0], "kills its worker each time")
        yield from map(work, jobs[1:])


def test_recordings_that_kill_their_worker_are_listed_and_the_others_go_on(tmp_path):
    for n in range(2):
        write_moshi(tmp_path, f"call{n}", seconds=30.0)
    settings = Settings(source="talks", licence="x", agents=("left", "right"))
    found = import_batches(moshi.find(tmp_path, None), settings, {}, tmp_path / "out", Losing())
    assert found["recordings"] == 1
    assert found["rejected"] == [{"id": "list.jsonl:1", "reason": "kills its worker each time"}]


def test_two_workers_write_the_same_files(tmp_path):
    for n in range(3):
        write_moshi(tmp_path, f"call{n}", seconds=25.0)
    alone, together = run_moshi(tmp_path, out="alone"), run_moshi(tmp_path, "--workers", "2", out="together")
    assert tree(together) == tree(alone)


def test_an_import_stopped_at_any_moment_goes_on_to_the_same_files(tmp_path):
    (tmp_path / "before").mkdir()
    for n in range(2):
        write_moshi(tmp_path / "before", f"call{n}", seconds=25.0)
    argv = ["import", "moshi", ".", "--out", "out", *COMMON, "--agent", "both"]
    assert kill_everywhere(tmp_path, argv) > 10


def test_a_missing_package_ends_the_run_instead_of_rejecting_everything(tmp_path, monkeypatch):
    write_moshi(tmp_path, other=None)
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    monkeypatch.setitem(sys.modules, "faster_whisper.vad", None)
    with pytest.raises(Unready, match=r"pip install 'ppx-train\[asr\]'"):
        run_moshi(tmp_path)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\\b", "a\0b"])
def test_no_name_leads_out_of_its_folder(tmp_path, name):
    with pytest.raises(UserError, match="leads out of"):
        inside(tmp_path, name, "path")


def test_ids_can_name_folders_and_never_meet():
    names = ["a/b.wav", "a_b.wav", "a.b", "a b", "\u00e9", "x" * 300, "x" * 301, "plain-1", "a/b"]
    ids = [item_id("src", name) for name in names]
    assert len(set(ids)) == len(ids) and ids[7] == "src-plain-1"
    assert all(len(id) < 110 and id.isascii() and set(id) <= set(map(chr, range(128))) for id in ids)


# a folder of recordings


def write_json(path, words):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"word": w.text, "start": w.start, "end": w.end} for w in words]))


def outside(path):
    """A folder beside `path`, for what comes out of it."""
    return path.with_name(f"{path.name}-out")


def run_folder(root, *options):
    verbs.main(["import", "subtitles", str(root), "--out", str(outside(root)), *COMMON, "--agent", "both", *options])
    return imported(outside(root))


def test_a_folder_of_stereo_files_and_of_pairs(tmp_path):
    audio, words = conversation(40.0)
    write_wav(tmp_path / "one.flac", audio)
    both = [{"word": w.text, "start": w.start, "end": w.end, "speaker": s} for s in words for w in words[s]]
    (tmp_path / "one.json").write_text(json.dumps({"words": both, "topic": {"role": "You are one."}}))
    for side, channel in (("left", 0), ("right", 1)):
        write_wav(tmp_path / f"deep/two.{side}.wav", audio[channel], 24000)
        write_json(tmp_path / f"deep/two.{side}.json", words[side])
    found = run_folder(tmp_path, "--role-field", "topic.role")
    assert recordings(found) == ["deep/two", "one"]
    sides = {d.provenance["recording"]: (d.left.words, d.right.words) for _, d in found}
    assert sides["one"] == sides["deep/two"] and len(sides["one"][0]) > 10
    assert {(d.provenance["recording"], d.left.role_prompt) for _, d in found} == {
        ("deep/two", ""),
        ("one", "You are one."),
    }


def test_patterns_find_files_that_are_named_otherwise(tmp_path):
    audio, words = conversation(40.0)
    for side, channel, label in (("left", 0, "1"), ("right", 1, "2")):
        write_wav(tmp_path / f"call7/speaker_{label}_audio.wav", audio[channel][: len(audio[0]) - 2400 * channel])
        write_json(tmp_path / f"call7/speaker_{label}_words.json", words[side])
    write_wav(tmp_path / "call7/combined_audio.wav", audio)
    (tmp_path / "call7/metadata.json").write_text(json.dumps({"people": [{"id": "x1"}, {"id": "x2"}]}))
    patterns = [
        "--audio-pattern",
        "{name}/speaker_{side}_audio.wav",
        "--text-pattern",
        "{name}/speaker_{side}_words.json",
    ]
    patterns += ["--meta-pattern", "{name}/metadata.json", "--sides", "1", "2"]
    people = ["--speaker-field", "left=people.0.id", "right=people.1.id"]
    _, dialogue = run_folder(tmp_path, *patterns, *people)[0]
    assert (dialogue.left.speaker, dialogue.right.speaker) == ("talks/x1", "talks/x2")
    assert dialogue.provenance["recording"] == "call7" and dialogue.left.words and dialogue.right.words


@pytest.mark.parametrize("kind", ["subtitles", "webdataset", "hf"])
def test_nothing_is_written_where_recordings_are_looked_for(tmp_path, kind):
    with pytest.raises(UserError, match="out lies in .*, where recordings are looked for: choose a folder outside"):
        verbs.main(["import", kind, str(tmp_path), "--out", str(tmp_path / "deep/out"), *COMMON])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root, audio: (root / "a.right.wav").unlink(), "has 1 channel"),
        (lambda root, audio: write_wav(root / "a.right.wav", audio), "the right file has 2 channels"),
        (
            lambda root, audio: write_wav(root / "a.right.wav", audio[1][:240000]),
            "its two files last 40.0 s and 10.0 s",
        ),
    ],
)
def test_pairs_that_do_not_go_together_are_rejected(tmp_path, spoil, message):
    audio, words = conversation(40.0)
    for side, channel in (("left", 0), ("right", 1)):
        write_wav(tmp_path / f"a.{side}.wav", audio[channel])
        write_json(tmp_path / f"a.{side}.json", words[side])
    spoil(tmp_path, audio)
    with pytest.raises(UserError, match=message):
        run_folder(tmp_path)


def test_utterances_are_aligned_word_by_word_and_numbers_stay_as_written(tmp_path):
    """Exact times of espeak-ng against the aligner; starts are off by 40 ms at most on average."""
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("srt")
    from tests.data_pipelines.spoken_call import spoken_call, write_srt

    call = spoken_call()
    write_wav(tmp_path / "call.wav", call.audio)
    for side in ("left", "right"):
        write_srt(tmp_path / f"call.{side}.srt", call.utterances[side])
    found = run_folder(tmp_path)
    errors, texts = [], []
    for _, dialogue in found:
        offset = dialogue.provenance["window"][0]
        for side in ("left", "right"):
            for word in dialogue.side(side).words:
                texts.append(word.text)
                same = [abs(word.start + offset - start) for text, start, _ in call.words[side] if text == word.text]
                errors.append(min(same))
    assert "$95" in texts and len(errors) >= 50
    assert np.mean(errors) <= 0.04 and np.percentile(errors, 95) <= 0.1
    assert found[0][1].provenance["word_times"] == "pocketsphinx 5.1.1" and found[0][1].gates["aligned_share"] == 1.0


def test_a_subtitle_in_the_last_moment_or_twice_costs_its_words_only(tmp_path):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("srt")
    from tests.data_pipelines.spoken_call import spoken_call, write_srt

    call = spoken_call()
    write_wav(tmp_path / "call.wav", call.audio)
    end = call.audio.shape[1] / 24000
    text, start, stop = call.utterances["right"][0]
    for side, more in (("left", ("bye", end + 0.21, end + 0.24)), ("right", (text, start + 0.1, stop + 0.1))):
        write_srt(tmp_path / f"call.{side}.srt", [*call.utterances[side], more])
    folder, dialogue = run_folder(tmp_path)[0]
    sides = dialogue.provenance["sides"]
    assert (
        sides["left"]["tried"] - sides["left"]["placed"] == 1
        and sides["right"]["tried"] - sides["right"]["placed"] == 2
    )
    assert "2 utterances lost their words" in (folder.parent / "report.json").read_text()


def test_utterances_that_are_not_in_the_audio_make_no_agent(tmp_path):
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("srt")
    from tests.data_pipelines.spoken_call import spoken_call, write_srt

    call = spoken_call()
    write_wav(tmp_path / "call.wav", call.audio)
    for side, other in (("left", "right"), ("right", "left")):
        write_srt(tmp_path / f"call.{side}.srt", call.utterances[other])
    with pytest.raises(UserError, match=r"of its utterances fit the audio|as loud outside its words"):
        run_folder(tmp_path)


# tars


def flac(audio, rate=24000):
    data = io.BytesIO()
    soundfile.write(data, audio.T, rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def add(tar, name, data):
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def both_sides(words):
    return json.dumps(
        {"words": [{"word": w.text, "start": w.start, "end": w.end, "speaker": s} for s in words for w in words[s]]}
    )


def run_tars(path, *options):
    out = outside(path)
    verbs.main(["import", "webdataset", str(path), "--out", str(out), *COMMON, "--agent", "both", *options])
    return imported(out)


def test_tars_of_stereo_flac_and_of_pairs_with_json(tmp_path):
    audio, words = conversation(40.0, rate=22050)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "000.flac", flac(audio, 22050))
        add(tar, "000.json", both_sides(words).encode())
        add(tar, "sub/001.json", both_sides(words).encode())
        for side, channel in (("left", 0), ("right", 1)):
            add(tar, f"sub/001.{side}.flac", flac(audio[channel], 22050))
            add(tar, f"sub/001.{side}.voice.flac", flac(audio[channel][: 22050 * 4], 22050))
    found = run_tars(tmp_path / "a.tar")
    assert recordings(found) == ["a.tar/000", "a.tar/sub/001"]
    assert len(found) == 2 and len(found[0][1].left.words) == len(found[1][1].left.words)
    for folder, dialogue in found:
        assert loud_words(dialogue, soundfile.read(folder / "audio.flac")[0].T, 24000) == (1.0, 0.0)


def test_members_are_chosen_by_name(tmp_path):
    audio, words = conversation(40.0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "x.mix.flac", flac(audio))
        add(tar, "x.noise.flac", flac(audio[:1]))
        add(tar, "x.words.json", both_sides(words).encode())
        add(tar, "x.clip.flac", flac(audio[:, : 24000 * 5]))
    options = ["--audio-field", "mix.flac", "--text-field", "words.json", "--voice-field", "clip.flac"]
    [(folder, dialogue)] = run_tars(tmp_path, *options)
    assert dialogue.seconds == 40.0 and soundfile.info(folder / "left.voice.flac").duration == 5.0
    with pytest.raises(UserError, match="0 audio members among mix.flac, noise.flac, words.json, clip.flac: name one"):
        verbs.main(["import", "webdataset", str(tmp_path / "a.tar"), "--out", str(tmp_path / "b"), *COMMON])


def test_broken_members_and_cut_tars_cost_only_what_they_break(tmp_path):
    audio, words = conversation(25.0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in ("good", "bad", "../evil", "good2", "good", "cut"):
            add(tar, f"{key}.flac", b"fLaC, not" if key == "bad" else flac(audio))
            add(tar, f"{key}.json", both_sides(words).encode())
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        end = [entry for entry in tar if entry.name == "cut.flac"][0].offset_data
    (tmp_path / "a.tar").write_bytes(data[: end + 1000])
    found = run_tars(tmp_path)
    assert recordings(found) == ["a.tar/good", "a.tar/good2"]
    told = reasons(outside(tmp_path))
    assert "cannot be read as audio" in told["a.tar/bad"]
    assert "leads out of the tar" in told["a.tar/../evil"]
    assert "it is there twice" in told["a.tar/good (again)"]
    assert "the tar is broken from here on" in told["a.tar after 4"]


# Hugging Face datasets


@pytest.fixture
def parquet(tmp_path):
    """A local data set of three recordings with words in columns; returns its folder and the words."""
    datasets = pytest.importorskip("datasets")
    import pyarrow
    from pyarrow import parquet

    audio, words = conversation(40.0)
    column = {s: [{"text": w.text, "start": w.start, "end": w.end} for w in words[s]] for s in words}
    rows = [
        {"sound": {"bytes": flac(audio), "path": f"{n}.flac"}, "a": column["left"], "b": column["right"],
         "name": f"call {n}", "who": {"l": f"p{n}", "r": f"q{n}"}}
        for n in range(3)
    ]  # fmt: skip
    text, number = datasets.Value("string"), datasets.Value("float64")
    said = datasets.List({"text": text, "start": number, "end": number})
    schema = datasets.Features(
        {"sound": datasets.Audio(), "a": said, "b": said, "name": text, "who": {"l": text, "r": text}}
    ).arrow_schema
    root = tmp_path / "set"
    root.mkdir()
    for n, part in enumerate((rows[:2], rows[2:])):
        parquet.write_table(pyarrow.Table.from_pylist(part, schema=schema), root / f"train-{n:05d}-of-00002.parquet")
    return root, words


HF = ["--audio-field", "sound", "--text-field", "left=a", "right=b", "--id-field", "name"]
HF += ["--speaker-field", "left=who.l", "right=who.r"]


def test_a_local_data_set_is_streamed_without_a_decoder_of_its_own(tmp_path, parquet):
    root, words = parquet
    out = tmp_path / "out"
    verbs.main(["import", "hf", str(root), "--out", str(out), *COMMON, "--agent", "both", *HF])
    found = imported(out)
    assert len(recordings(found)) == 3 and {d.left.speaker for _, d in found} == {"talks/p0", "talks/p1", "talks/p2"}
    for folder, dialogue in found:
        assert loud_words(dialogue, soundfile.read(folder / "audio.flac")[0].T, 24000) == (1.0, 0.0)
        assert {w.text for w in dialogue.left.words} <= {w.text for w in words["left"]}


def test_a_data_set_that_was_saved_to_disk_is_read(tmp_path, parquet):
    datasets = pytest.importorskip("datasets")
    root, _ = parquet
    rows = datasets.load_dataset(str(root), split="train", cache_dir=str(tmp_path / "cache"))
    rows = rows.cast_column("sound", datasets.Audio(decode=False))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
    argv = ["import", "hf", str(tmp_path / "saved"), "--out", str(tmp_path / "out"), *COMMON, "--agent", "both", *HF]
    verbs.main([*argv, "--hf-split", "test"])
    assert len(recordings(imported(tmp_path / "out"))) == 3


def test_a_layout_that_datasets_reads_only_with_a_decoder_is_told(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", None)
    audio, words = conversation(30.0)
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set/a.tar", "w") as tar:
        add(tar, "one.flac", flac(audio))
        add(tar, "one.json", both_sides(words).encode())
    argv = ["import", "hf", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *COMMON]
    with pytest.raises(Unready, match="torchcodec.*; or fetch its tars and use `ppx-data import webdataset`"):
        verbs.main([*argv, "--audio-field", "flac", "--text-field", "json", "--id-field", "__key__"])


def test_columns_that_are_not_there_and_splits_that_are_not_there_are_told(tmp_path, parquet):
    root, _ = parquet
    base = ["import", "hf", str(root), "--out", str(tmp_path / "out"), *COMMON]
    for options, message in (
        ([], "--audio-field: name the column"),
        (["--audio-field", "audio"], "has no column 'audio', only sound, a, b, name, who"),
        (["--audio-field", "sound", "--hf-split", "test"], "split test: cannot be loaded"),
        (["--audio-field", "left=sound"], "--audio-field left=sound: give both sides, or one value for both"),
    ):
        with pytest.raises(UserError, match=message):
            verbs.main([*base, *options])


def test_a_data_set_that_is_not_there_is_told(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    base = ["import", "hf", str(tmp_path / "none"), "--out", "out", *COMMON, "--audio-field", "audio"]
    with pytest.raises(UserError, match=r"none, split train: cannot be loaded \(.*\): check the path, and log in"):
        verbs.main(base)


def test_rows_with_broken_audio_or_the_same_name_are_listed(tmp_path, parquet):
    root, _ = parquet
    import pyarrow
    from pyarrow import parquet as files

    path = root / "train-00000-of-00002.parquet"
    table = files.read_table(path)
    rows = table.to_pylist()
    rows[0]["sound"]["bytes"] = b"no audio"
    rows += [rows[1], {**rows[1], "name": "thief", "sound": {"bytes": None, "path": "/etc/passwd"}}]
    files.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path)
    out = tmp_path / "out"
    verbs.main(["import", "hf", str(root), "--out", str(out), *COMMON, "--agent", "both", *HF])
    assert len(recordings(imported(out))) == 2
    told = reasons(out)
    assert "cannot be read as audio" in told["train-00000-call 0"]
    assert told["train-00000-call 1 (row 2)"] == "another row has the same name"
    assert "leads out of" in told["train-00000-thief"]


def test_a_repository_of_the_hub_is_streamed(tmp_path, parquet):
    from tests.hub_server import hub_server

    root, _ = parquet
    with hub_server(tmp_path / "hub") as hub:
        hub.add("org/talks", root, kind="dataset")
        argv = ["import", "hf", "org/talks", "--out", str(tmp_path / "out"), *COMMON, "--agent", "both", *HF]
        code = f"from data_pipelines import verbs; verbs.main({argv!r})"
        environment = hub.environment(tmp_path / "home") | {"PYTHONPATH": str(Path(__file__).parents[2])}
        environment |= {
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "PATH": os.environ["PATH"],
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=1200
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(recordings(imported(tmp_path / "out"))) == 3
