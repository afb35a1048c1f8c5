"""Folders of recordings: stereo files and pairs, with JSON or subtitles beside them, which are aligned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.data_pipelines.recordings.imports import Found, both_sides, recordings, run_format, write_words
from tests.data_pipelines.spoken_call import SpokenCall, spoken_call, write_srt
from tests.data_pipelines.tiny_recordings import conversation, write_wav
from tests.refusals import refused


def run_folder(root: Path, *options: str) -> Found:
    return run_format("subtitles", root, *options)


def write_pair(root: Path, name: str) -> npt.NDArray[np.float32]:
    """A recording of two files and their words; returns its audio."""
    audio, words = conversation(40.0)
    for side, channel in (("left", 0), ("right", 1)):
        write_wav(root / f"{name}.{side}.wav", audio[channel])
        write_words(root / f"{name}.{side}.json", words[side])
    return audio


def test_a_folder_of_stereo_files_and_of_pairs(tmp_path: Path) -> None:
    audio, words = conversation(40.0)
    write_wav(tmp_path / "one.flac", audio)
    (tmp_path / "one.json").write_bytes(both_sides(words, topic={"role": "You are one."}))
    write_pair(tmp_path, "deep/two")
    found = run_folder(tmp_path, "--role-field", "topic.role")
    assert recordings(found) == ["deep/two", "one"]
    sides = {d.provenance["recording"]: (d.left.words, d.right.words) for _, d in found}
    assert sides["one"] == sides["deep/two"] and len(sides["one"][0]) > 10
    assert {(d.provenance["recording"], d.left.role_prompt) for _, d in found} == {
        ("deep/two", ""),
        ("one", "You are one."),
    }


def test_patterns_find_files_that_are_named_otherwise(tmp_path: Path) -> None:
    audio, words = conversation(40.0)
    for side, channel, label in (("left", 0, "1"), ("right", 1, "2")):
        write_wav(tmp_path / f"call7/speaker_{label}_audio.wav", audio[channel][: len(audio[0]) - 2400 * channel])
        write_words(tmp_path / f"call7/speaker_{label}_words.json", words[side])
    write_wav(tmp_path / "call7/combined_audio.wav", audio)
    (tmp_path / "call7/metadata.json").write_text(json.dumps({"people": [{"id": "x1"}, {"id": "x2"}]}))
    patterns = ["--audio-pattern", "{name}/speaker_{side}_audio.wav"]
    patterns += ["--text-pattern", "{name}/speaker_{side}_words.json"]
    patterns += ["--meta-pattern", "{name}/metadata.json", "--sides", "1", "2"]
    people = ["--speaker-field", "left=people.0.id", "right=people.1.id"]
    _, dialogue = run_folder(tmp_path, *patterns, *people)[0]
    assert (dialogue.left.speaker, dialogue.right.speaker) == ("talks/x1", "talks/x2")
    assert dialogue.provenance["recording"] == "call7" and dialogue.left.words and dialogue.right.words


def test_a_pattern_without_a_name_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "a")
    with refused("bad-value", "--text-pattern speaker_{side}.srt"):
        run_folder(tmp_path, "--text-pattern", "speaker_{side}.srt")


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
def test_pairs_that_do_not_go_together_are_rejected(
    tmp_path: Path, spoil: Callable[[Path, npt.NDArray[Any]], object], message: str
) -> None:
    spoil(tmp_path, write_pair(tmp_path, "a"))
    with refused("no-data", message):
        run_folder(tmp_path)


@pytest.fixture()
def call(tmp_path: Path) -> SpokenCall:
    """A call spoken by espeak-ng, written as call.wav."""
    for package in ("pocketsphinx", "srt", "espeakng_loader"):
        pytest.importorskip(package)
    spoken = spoken_call()
    write_wav(tmp_path / "call.wav", spoken.audio)
    return spoken


def test_utterances_are_aligned_word_by_word_and_numbers_stay_as_written(tmp_path: Path, call: SpokenCall) -> None:
    """Exact times of espeak-ng against the aligner; starts are off by 40 ms at most on average."""
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


def test_a_subtitle_in_the_last_moment_or_twice_costs_its_words_only(tmp_path: Path, call: SpokenCall) -> None:
    end = call.audio.shape[1] / 24000
    text, start, stop = call.utterances["right"][0]
    for side, more in (("left", ("bye", end + 0.21, end + 0.24)), ("right", (text, start + 0.1, stop + 0.1))):
        write_srt(tmp_path / f"call.{side}.srt", [*call.utterances[side], more])
    folder, dialogue = run_folder(tmp_path)[0]
    lost = {side: note["tried"] - note["placed"] for side, note in dialogue.provenance["sides"].items()}
    assert lost == {"left": 1, "right": 2}
    assert "2 utterances lost their words" in (folder.parent / "report.json").read_text()


def test_utterances_that_are_not_in_the_audio_make_no_agent(tmp_path: Path, call: SpokenCall) -> None:
    for side, other in (("left", "right"), ("right", "left")):
        write_srt(tmp_path / f"call.{side}.srt", call.utterances[other])
    with refused("no-data", "the left side is no agent", "the right side is no agent"):
        run_folder(tmp_path)
