"""Voice files: what is written is read again, to the byte; damage and strangers are one line."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.errors import Code
from ppx_train.voices.folder import check_voices, find_voice_file, save_voice, unready, voice_paths
from ppx_train.voices.voice_file import MOST_FRAMES, VoiceFile, check_codec, read_voice
from tests.ppx_train.inference.noise import CONFIG
from tests.refusals import refused

CODES = torch.randint(64, (8, 50), generator=torch.Generator().manual_seed(0))
ANNA = VoiceFile(
    id="anna",
    label="Anna Müller",
    licence="CC-BY-4.0",
    consent="release of 2026-03-01",
    codec="ab" * 32,
    source="cd" * 32,
    codes_QP=CODES,
)


def test_what_is_written_is_read_again_and_equal_voices_are_equal_bytes(tmp_path: Path) -> None:
    path = save_voice(tmp_path, ANNA)
    again = read_voice(path, CONFIG)
    assert again.is_sealed and again.texts() == ANNA.texts() and torch.equal(again.codes_QP, CODES)
    assert {again.to_bytes() for _ in range(10)} == {path.read_bytes()}
    with safe_open(path, "pt") as file:
        assert file.metadata().keys() == {*ANNA.texts(), "checksum"}
        assert file.get_tensor("codes").dtype == torch.int32


def test_the_checksum_is_that_of_the_texts_and_the_codes() -> None:
    header = json.dumps([sorted(ANNA.texts().items()), [8, 50]])
    assert ANNA.checksum() == sha256(header.encode() + CODES.int().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["label", "licence", "consent", "codec", "id"])
def test_an_edited_text_does_not_fit_the_checksum(tmp_path: Path, name: str) -> None:
    path = save_voice(tmp_path, ANNA)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {name: "other"})
    with refused("checksum", path):
        read_voice(path, CONFIG)
    del metadata[name]
    save_file({"codes": CODES.int()}, path, metadata)
    with refused("checksum", path):
        read_voice(path, CONFIG)


def test_codes_alone_are_a_voice_of_which_nothing_is_known(tmp_path: Path) -> None:
    save_file({"codes": CODES}, tmp_path / "old.safetensors")
    voice = read_voice(tmp_path / "old.safetensors", CONFIG)
    assert voice.texts() == {"id": "old", "label": "old"} and not voice.is_sealed
    check_codec(voice, "ef" * 32, "old")


@pytest.mark.parametrize(
    ("tensors", "metadata", "code", "named"),
    [
        ({"embeddings": torch.zeros(2, 3)}, {}, "bad-weights", "ppx-voice add"),
        ({"codes": CODES[:4].int()}, {}, "bad-weights", "(4, 50)"),
        ({"codes": CODES[0].int()}, {}, "bad-weights", "(50,)"),
        ({"codes": torch.zeros(8, 0, dtype=torch.int32)}, {}, "bad-weights", "(8, 0)"),
        ({"codes": torch.zeros(8, MOST_FRAMES + 1, dtype=torch.int32)}, {}, "bad-weights", f"1 to {MOST_FRAMES}"),
        ({"codes": CODES.float()}, {}, "bad-weights", "float32"),
        ({"codes": CODES.int() + 14}, {}, "bad-weights", "0 to 63"),
        ({"codes": CODES.int() - 1}, {}, "bad-weights", "from -1"),
        ({"codes": CODES.int()}, {"label": "x" * 501}, "bad-record", "label"),
        ({"codes": CODES.int()}, {"consent": ""}, "bad-record", "consent"),
        ({"codes": CODES.int()}, {"licence": "a\nb"}, "bad-record", "licence"),
        ({"codes": CODES.int()}, {"checksum": "00"}, "checksum", "does not fit"),
    ],
)
def test_a_file_that_is_no_voice_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], code: Code, named: str
) -> None:
    save_file(tensors, tmp_path / "v.safetensors", metadata)
    with refused(code, tmp_path / "v.safetensors", named):
        read_voice(tmp_path / "v.safetensors", CONFIG)


def test_a_pickle_under_the_name_of_a_voice_is_never_opened(tmp_path: Path) -> None:
    torch.save({"codes": CODES}, tmp_path / "v.safetensors")
    with refused("unsafe", tmp_path / "v.safetensors"):
        read_voice(tmp_path / "v.safetensors", CONFIG)
    (tmp_path / "v.safetensors").write_bytes(ANNA.to_bytes()[:-1])
    with refused("unreadable", tmp_path / "v.safetensors"):
        read_voice(tmp_path / "v.safetensors", CONFIG)


def test_another_codecs_voice_is_refused(tmp_path: Path) -> None:
    check_codec(ANNA, "ab" * 32, "anna")
    with refused("bad-combination", "anna", "abababab", "efefefef"):
        check_codec(ANNA, "ef" * 32, "anna")


@pytest.mark.parametrize("id_", ["../anna", "a/b", "", "a" * 65, "anna\n", "änna", "anna.wav", "."])
def test_what_is_no_id_is_never_a_files_name(tmp_path: Path, id_: str) -> None:
    with refused("bad-value", repr(id_)):
        save_voice(tmp_path / "voices", replace(ANNA, id=id_))
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_unless_asked_for(tmp_path: Path) -> None:
    path = save_voice(tmp_path, ANNA)
    before = path.stat().st_mtime_ns
    assert save_voice(tmp_path, ANNA) == path and path.stat().st_mtime_ns == before
    other = replace(ANNA, label="Bo")
    with refused("exists", path, "--overwrite"):
        save_voice(tmp_path, other)
    assert read_voice(path, CONFIG).label == "Anna Müller"
    save_voice(tmp_path, other, overwrite=True)
    assert read_voice(path, CONFIG).label == "Bo" and [p.name for p in tmp_path.iterdir()] == ["anna.safetensors"]


def test_a_folder_lists_its_voices_and_what_is_none_yet(tmp_path: Path) -> None:
    for name in ("anna", "bo"):
        save_voice(tmp_path, replace(ANNA, id=name))
    for name in ("anna.wav", "cy.MP3", "NATF0.pt", "notes.txt", ".anna.safetensors.part"):
        (tmp_path / name).write_bytes(b"x")
    assert list(voice_paths(tmp_path)) == ["anna", "bo"]
    assert [path.name for path in unready(tmp_path)] == ["NATF0.pt", "cy.MP3"]
    assert find_voice_file(tmp_path, "bo") == tmp_path / "bo.safetensors"
    with refused("unknown-name", "eve", "anna, bo"):
        find_voice_file(tmp_path, "eve")
    with refused("unknown-name", "../anna"):
        find_voice_file(tmp_path / "..", "../anna")
    with refused("old-form", f"ppx-voice add {tmp_path / 'cy.MP3'} --model MODEL --voice-prompt-dir {tmp_path}"):
        find_voice_file(tmp_path, "cy")
    with refused("unreadable", "ppx-voice convert"):
        find_voice_file(tmp_path, "NATF0")
    with refused("not-found", tmp_path / "none"):
        voice_paths(tmp_path / "none")


def test_check_finds_each_fault_of_a_folder(tmp_path: Path) -> None:
    save_voice(tmp_path, ANNA)
    save_voice(tmp_path, replace(ANNA, id="bo", consent=None, licence=None))
    save_voice(tmp_path, replace(ANNA, id="cy", codec="ef" * 32))
    save_file({"codes": CODES.int()}, tmp_path / "dan.safetensors")
    save_voice(tmp_path, replace(ANNA, id="eve")).rename(tmp_path / "eva.safetensors")
    save_voice(tmp_path, replace(ANNA, id="fay")).rename(tmp_path / "f y.safetensors")
    (tmp_path / "guy.safetensors").write_bytes(ANNA.to_bytes()[:-8] + bytes(8))
    (tmp_path / "hal.wav").write_bytes(b"")
    found = {
        path.name.partition(".")[0]: [str(f) for f in faults]
        for path, faults in check_voices(tmp_path, CONFIG, "ab" * 32)
    }
    assert all(str(tmp_path) in fault for faults in found.values() for fault in faults)
    assert found.pop("anna") == []
    parts = {
        "bo": ["no consent", "no licence"],
        "cy": ["another codec"],
        "dan": ["no checksum or no codec", "no consent", "no licence"],
        "eva": ["its id is eve"],
        "f y": ["its name is no id"],
        "guy": ["does not fit its checksum"],
        "hal": ["a clip, and no voice yet"],
    }
    assert found.keys() == parts.keys()
    for name, wanted in parts.items():
        assert len(found[name]) == len(wanted), found[name]
        assert all(part in fault for part, fault in zip(wanted, found[name], strict=True)), found[name]
