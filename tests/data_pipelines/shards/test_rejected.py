"""Dialogues that cannot be used are left out, and their reasons are listed."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines.records.schema import Word
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.index import ShardReader
from tests.data_pipelines.tiny_dialogues import RATE, TinyCodec, noise, words_every, write_dialogue
from tests.refusals import refused


def spoil_mono(folder: Path) -> None:
    soundfile.write(folder / "audio.flac", noise(4, 0.1, 0), RATE)


def spoil_rate(folder: Path) -> None:
    soundfile.write(folder / "audio.flac", np.stack([noise(4, 0.1, 0)] * 2, 1), 16000)


def spoil_length(folder: Path) -> None:
    soundfile.write(folder / "audio.flac", np.stack([noise(3, 0.1, 0)] * 2, 1), RATE)


def spoil_clipped(folder: Path) -> None:
    wav_SC = np.stack([noise(4, 0.1, 0)] * 2, 1)
    wav_SC[500:503, 1] = 1
    soundfile.write(folder / "audio.flac", wav_SC, RATE)


def spoil_silence(folder: Path) -> None:
    wav_SC = np.stack([noise(4, 0.1, 0)] * 2, 1)
    wav_SC[:, 0] = 0
    soundfile.write(folder / "audio.flac", wav_SC, RATE)


def spoil_audio(folder: Path) -> None:
    (folder / "audio.flac").write_bytes(b"fLaC, more or less")


def spoil_meta(folder: Path) -> None:
    (folder / "meta.json").write_text('{"id": "bad"}')


def spoil_type(folder: Path) -> None:
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"seconds": 4.0', '"seconds": "4 s"'))


def spoil_encoding(folder: Path) -> None:
    (folder / "meta.json").write_bytes(b"\xff\xfe{}")


def spoil_unfinished(folder: Path) -> None:
    (folder / "meta.json").unlink()


def spoil_id(folder: Path) -> None:
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"id": "bad"', '"id": "good"'))


def spoil_split(folder: Path) -> None:
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"split": "train"', '"split": "test"'))


def spoil_licence(folder: Path) -> None:
    meta = folder / "meta.json"
    meta.write_text(meta.read_text().replace('"licence": "CC0-1.0"', '"licence": " "'))


def spoil_voice(folder: Path) -> None:
    (folder / "left.voice.flac").unlink()


def spoil_short_voice(folder: Path) -> None:
    soundfile.write(folder / "left.voice.flac", noise(1.5, 0.1, 0), RATE)


def spoil_silent_voice(folder: Path) -> None:
    soundfile.write(folder / "left.voice.flac", np.zeros(4 * RATE), RATE)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_mono, "has 1 channel, a dialogue needs 2"),
        (spoil_rate, "16000 Hz"),
        (spoil_length, "3.00 s, but its transcript is for 4.00 s"),
        (spoil_clipped, "right channel is clipped"),
        (spoil_silence, "left channel is silent but has words"),
        (spoil_audio, "cannot be read as audio"),
        (spoil_meta, "not a dialogue record"),
        (spoil_type, "not a dialogue record"),
        (spoil_encoding, "not a dialogue record"),
        (spoil_unfinished, "unfinished"),
        (spoil_id, "id 'good' must be the folder's name"),
        (spoil_split, "split 'test': use one of train, heldout"),
        (spoil_licence, "no licence"),
        (spoil_voice, "left.voice.flac: no such audio file"),
        (spoil_short_voice, "1.50 s: a voice prompt lasts 3 to 10 s"),
        (spoil_silent_voice, "silent"),
    ],
)
def test_one_bad_dialogue_is_left_out_with_its_reason(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    write_dialogue(tmp_path / "d", "good")
    spoil(write_dialogue(tmp_path / "d", "bad"))
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["done"], [r["id"] for r in report["rejected"]]) == (1, ["bad"])
    assert reason in report["rejected"][0]["reason"]
    assert [row.id for row in ShardReader(tmp_path / "out" / "train").rows] == ["good"]


@pytest.mark.parametrize(
    ("left", "reason"),
    [((), "the agent (left) says no word"), ((Word(text="late", start=5, end=6),), "does not fit")],
)
def test_words_must_be_there_and_inside_the_audio(tmp_path: Path, left: tuple[Word, ...], reason: str) -> None:
    write_dialogue(tmp_path / "d", "bad", words={"left": left, "right": words_every(4, 1)})
    with refused("no-data", "1 dialogues", reason):
        build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")


def test_a_run_without_a_usable_dialogue_can_be_repeated_when_one_is_there(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path / "d", "only")
    voice = (folder / "left.voice.flac").read_bytes()
    spoil_voice(folder)
    with refused("no-data", "1 dialogues", "left.voice.flac"):
        build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    (folder / "left.voice.flac").write_bytes(voice)
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "out")
    assert len(ShardReader(tmp_path / "out" / "train")) == 1
