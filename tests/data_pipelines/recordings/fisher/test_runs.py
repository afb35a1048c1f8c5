"""Runs of the Fisher importer that follow each other, or end early."""

import argparse
import errno
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.fisher.importer import add_arguments, run
from data_pipelines.records.folder import find_dialogues
from data_pipelines.sound.audio import Audio
from model.errors import UserError
from tests.data_pipelines.kill import tree
from tests.data_pipelines.recordings.fisher.calls import dialogues, imported, talk, write_call, write_tables
from tests.refusals import refused


def test_a_rerun_skips_what_is_complete_and_gives_the_same_files(tmp_path: Path, corpus: Path) -> None:
    for call in ("00002", "00003"):
        write_call(corpus, call, talk(90), 90)
    write_tables(corpus)
    imported([corpus], tmp_path / "whole")
    imported([corpus], tmp_path / "parts", limit=1)
    victim = next((tmp_path / "parts").glob("*-1"))
    (victim / "audio.flac").unlink()
    assert imported([corpus], tmp_path / "parts").recordings == 3
    assert tree(tmp_path / "whole") == tree(tmp_path / "parts")
    assert imported([corpus], tmp_path / "parts").skipped == 3
    with pytest.raises(UserError, match="made with seed 0, not 1"):
        imported([corpus], tmp_path / "parts", seed=1)


def test_dialogues_that_the_split_leaves_without_an_agent_are_gone_and_come_back(tmp_path: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    write_call(corpus, "00002", talk(90), 90)
    write_tables(corpus)
    table = corpus / "fe_03_p1_tran/doc/fe_03_p1_calldata.tbl"
    table.write_text(table.read_text().replace("4242,m.a", "2602,f.a"))  # Both calls are of the same two people.
    imported([corpus], out, limit=1)
    alone = [path.name for path in find_dialogues([out])]
    report = imported([corpus], out)
    together = find_dialogues([out])
    assert alone and all((path / "meta.json").is_file() for path in together)
    assert sorted(path.name for path in out.glob("fe_03_*")) == sorted(path.name for path in together)
    shutil.rmtree(together[0])
    assert len(imported([corpus], out).dialogues) == len(report.dialogues)
    assert find_dialogues([out]) == together


def test_a_side_that_is_no_agent_keeps_no_voice_clip(tmp_path: Path, corpus: Path) -> None:
    write_call(corpus, "00002", talk(90), 90)
    write_tables(corpus)
    imported([corpus], tmp_path / "out")
    found = dialogues(tmp_path / "out")
    assert any(len(dialogue.agent_sides) == 1 for dialogue in found.values())  # The split took the other one away.
    for name, dialogue in found.items():
        kept = {path.name.removesuffix(".voice.flac") for path in (tmp_path / "out" / name).glob("*.voice.flac")}
        spans, rows = dialogue.provenance["voice_spans"], dialogue.provenance["row_frames"]
        assert kept == {*dialogue.agent_sides} == set(spans) == set(rows), name


def test_a_file_that_is_no_draft_is_named(tmp_path: Path, corpus: Path) -> None:
    imported([corpus], tmp_path / "out")
    draft = tmp_path / "out/.drafts/00001.json"
    draft.write_text(draft.read_text().replace('"call"', '"name"'))
    with refused("bad-record", draft, "delete it"):
        imported([corpus], tmp_path / "out")


def test_foreign_folders_are_refused(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("keep me")
    with pytest.raises(UserError, match="mine exists and was not made by `ppx-data fisher`"):
        imported([corpus], tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_seconds", 5.0),
        ("voice_seconds", 2.0),
        ("voice_seconds", 11.0),
        ("limit", 0),
        ("prompt_tokens", 1001),
        ("bandwidth_timeout", math.inf),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, corpus: Path, name: str, value: float) -> None:
    with refused("bad-value", f"--{name.replace('_', '-')} {value:g}"):
        imported([corpus], tmp_path / "out", **{name: value})  # type: ignore[arg-type]


def test_a_full_disk_stops_the_run_and_leaves_no_half_file(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if ".flac" in path.name:
            write(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            imported([corpus], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.flac*"))
    assert imported([corpus], tmp_path / "out").dialogues


def test_no_dialogue_at_all_is_an_error_with_the_first_reason(tmp_path: Path, fake: None) -> None:
    write_call(tmp_path / "corpus", "00001", talk(90), 30)
    with refused("no-data", tmp_path / "out/report.json", "beyond the audio"):
        imported([tmp_path / "corpus"], tmp_path / "out")


def test_the_verb_takes_its_arguments(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = str(tmp_path / "out")
    run(parser.parse_args(["--corpus", str(corpus), "--out", out, "--max-seconds", "30", "--limit", "1"]))
    assert "dialogues" in capsys.readouterr().out and dialogues(tmp_path / "out")


class Hears:
    """A recogniser that hears the same everywhere."""

    def transcribe(self, audio: Audio, rate: int) -> str:
        """Five words."""
        return "Echo foxtrot, golf 5 hotel."

    def identity(self) -> dict[str, Any]:
        """As a real one's."""
        return {"name": "told", "version": "1"}


def test_gaps_are_filled_if_asked_for_and_the_record_says_where(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gaps = [(start, end, side, "(( ))" if n % 5 == 4 else text) for n, (start, end, side, text) in enumerate(talk(90))]
    write_call(corpus, "00001", gaps, 90)
    opened: list[str] = []

    def recogniser(self: Listener) -> Hears:
        opened.append(self.asr)
        return Hears()

    monkeypatch.setattr(Listener, "recogniser", recogniser)
    imported([corpus], tmp_path / "empty")
    assert not opened
    imported([corpus], tmp_path / "filled", listener=Listener(asr="told"))
    empty, filled = dialogues(tmp_path / "empty"), dialogues(tmp_path / "filled")
    assert all("asr" not in d.provenance and "recognised" not in d.provenance for d in empty.values())
    num_spans = 0
    for d in filled.values():
        assert d.provenance["asr"] == {"name": "told", "version": "1"}
        for side, spans in d.provenance["recognised"].items():
            words = d.side(side).words
            inside = [w.text for w in words if any(a - 0.002 <= w.start and w.end <= b + 0.002 for a, b in spans)]
            assert inside == ["Echo", "foxtrot,", "golf", "5", "hotel."] * len(spans)
            assert len([w for w in words if w.text == "foxtrot,"]) == len(spans)
            num_spans += len(spans)
    assert num_spans >= 2
    seconds = [sum(d.seconds * len(d.agent_sides) for d in found.values()) for found in (empty, filled)]
    assert seconds[1] > seconds[0]
    with refused("other-settings", "listener"):
        imported([corpus], tmp_path / "empty", listener=Listener(asr="told"))


def test_options_of_filling_need_it_and_a_missing_recogniser_ends_the_run(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    start = ["--corpus", str(corpus), "--out", str(tmp_path / "out")]
    for option in (["--asr", "tiny.en"], ["--device", "cpu"]):
        with refused("bad-combination", option[0], "--fill-gaps only"):
            run(parser.parse_args([*start, *option]))
    with refused("bad-value", "--asr ''"):
        run(parser.parse_args([*start, "--fill-gaps", "--asr", ""]))
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with refused("missing-package", "pip install 'ppx-train[asr]'"):
        run(parser.parse_args([*start, "--fill-gaps"]))
    assert not (tmp_path / "out").exists()
