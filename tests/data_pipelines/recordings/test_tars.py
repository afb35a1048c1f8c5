"""Tars of the webdataset kind."""

import tarfile
from pathlib import Path
from typing import IO

import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.recordings import tars
from tests.data_pipelines.recordings.imports import (
    COMMON,
    add,
    both_sides,
    flac,
    loud_words,
    outside,
    reasons,
    recordings,
    run_format,
)
from tests.data_pipelines.tiny_recordings import conversation, without_length
from tests.refusals import refused


def test_tars_of_stereo_flac_and_of_pairs_with_json(tmp_path: Path) -> None:
    audio, words = conversation(40.0, rate=22050)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "000.flac", flac(audio, 22050))
        add(tar, "000.json", both_sides(words))
        add(tar, "sub/001.json", both_sides(words))
        for side, channel in (("left", 0), ("right", 1)):
            add(tar, f"sub/001.{side}.flac", flac(audio[channel], 22050))
            add(tar, f"sub/001.{side}.voice.flac", flac(audio[channel][: 22050 * 4], 22050))
    found = run_format("webdataset", tmp_path / "a.tar")
    assert recordings(found) == ["a.tar/000", "a.tar/sub/001"]
    assert len(found) == 2 and len(found[0][1].left.words) == len(found[1][1].left.words)
    for folder, dialogue in found:
        assert loud_words(dialogue, soundfile.read(folder / "audio.flac")[0].T, 24000) == (1.0, 0.0)


def test_sound_of_unknown_length_is_imported_whole(tmp_path: Path) -> None:
    audio, words = conversation(40.0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("known", flac(audio)), ("unknown", without_length(flac(audio)))):
            add(tar, f"{name}.flac", data)
            add(tar, f"{name}.json", both_sides(words))
    (one, known), (two, unknown) = run_format("webdataset", tmp_path / "a.tar")
    assert known.seconds == unknown.seconds and (one / "audio.flac").read_bytes() == (two / "audio.flac").read_bytes()


def test_members_are_chosen_by_name(tmp_path: Path) -> None:
    audio, words = conversation(40.0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "x.mix.flac", flac(audio))
        add(tar, "x.noise.flac", flac(audio[:1]))
        add(tar, "x.words.json", both_sides(words))
        add(tar, "x.clip.flac", flac(audio[:, : 24000 * 5]))
    options = ["--audio-field", "mix.flac", "--text-field", "words.json", "--voice-field", "clip.flac"]
    [(folder, dialogue)] = run_format("webdataset", tmp_path, *options)
    assert dialogue.seconds == 40.0 and soundfile.info(folder / "left.voice.flac").duration == 5.0
    with refused("no-data", "0 audio members among mix.flac, noise.flac, words.json, clip.flac", "--audio-field"):
        verbs.main(["import", "webdataset", str(tmp_path / "a.tar"), "--out", str(tmp_path / "b"), *COMMON])


def test_a_recording_larger_than_memory_is_named_and_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, words = conversation(25.0)
    small = flac(audio)
    monkeypatch.setattr(tars, "MAX_BYTES", 2 * len(small))
    read: list[int] = []
    extract = tarfile.TarFile.extractfile

    def counted(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes] | None:
        read.append(entry.size)
        return extract(tar, entry)

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in ("first", "huge", "many", "last"):
            add(tar, f"{key}.flac", bytes(len(small) * 3) if key == "huge" else small)
            add(tar, f"{key}.json", both_sides(words))
            for n in range(3 if key == "many" else 0):
                add(tar, f"{key}.{n}.flac", small)
    monkeypatch.setattr(tarfile.TarFile, "extractfile", counted)
    found = run_format("webdataset", tmp_path)
    assert recordings(found) == ["a.tar/first", "a.tar/last"]
    given = reasons(outside(tmp_path))
    assert all("GiB" in given[f"a.tar/{key}"] for key in ("huge", "many")) and len(given) == 2
    assert max(read) == len(small)


def test_broken_members_and_cut_tars_cost_only_what_they_break(tmp_path: Path) -> None:
    audio, words = conversation(25.0)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key in ("good", "bad", "../evil", "good2", "good", "cut"):
            add(tar, f"{key}.flac", b"fLaC, not" if key == "bad" else flac(audio))
            add(tar, f"{key}.json", both_sides(words))
    data = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        end = next(entry for entry in tar if entry.name == "cut.flac").offset_data
    (tmp_path / "a.tar").write_bytes(data[: end + 1000])
    found = run_format("webdataset", tmp_path)
    assert recordings(found) == ["a.tar/good", "a.tar/good2"]
    given = reasons(outside(tmp_path))
    assert "cannot be read as audio" in given["a.tar/bad"]
    assert "leads out of the tar" in given["a.tar/../evil"]
    assert "it is there twice" in given["a.tar/good (again)"]
    assert "the tar is broken from here on" in given["a.tar after 4"]
