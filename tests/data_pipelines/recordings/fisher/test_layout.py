"""Files of a corpus are found in the layout of any copy."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.recordings.fisher.layout import find_corpus
from tests.data_pipelines.recordings.fisher.calls import talk, write_call
from tests.refusals import refused

APART = {"audio": "discs", "text": "text"}


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
    write_call(tmp_path, "00001", talk(10), 10, places=APART)
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


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_call(tmp_path, "00001", talk(30), 30)
    scandir = os.scandir

    def locked(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("audio"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with refused("unreadable", "sph1/audio", "Permission denied"):
        find_corpus([tmp_path])


def test_wrong_folders_are_errors_that_say_what_to_give(tmp_path: Path) -> None:
    write_call(tmp_path, "00001", talk(10), 10, places=APART)
    with refused("not-found", "nowhere: no such folder; give the folders that hold fe_03_NNNNN.sph"):
        find_corpus([tmp_path / "nowhere"])
    with refused("not-found", tmp_path / "text", "no Fisher audio"):
        find_corpus([tmp_path / "text"])
    with refused("not-found", tmp_path / "discs", "no Fisher transcript"):
        find_corpus([tmp_path / "discs"])
    (tmp_path / "discs/fe_03_00001.sph").rename(tmp_path / "discs/fe_03_00002.sph")
    with refused("not-found", "fe_03_00002.sph"):
        find_corpus([tmp_path])
