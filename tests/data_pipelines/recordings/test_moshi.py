"""Lists in moshi-finetune's layout: a broken recording costs itself only."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_pipelines.recordings.imports import imported, reasons, recordings, report, run_moshi, write_moshi
from tests.data_pipelines.tiny_recordings import conversation, write_wav

Spoil = Callable[[Path], object]
"""Spoils the recording "bad" below a folder."""


def spoil_missing(root: Path) -> None:
    (root / "data_stereo/bad.wav").unlink()


def spoil_channels(count: int) -> Spoil:
    return lambda root: write_wav(root / "data_stereo/bad.wav", np.tile(conversation(40.0)[0], (2, 1))[:count])


def spoil_alignments(change: Callable[[int, list[Any]], list[Any]]) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / "data_stereo/bad.json"
        said = json.loads(path.read_text())["alignments"]
        path.write_text(json.dumps({"alignments": [change(n, word) for n, word in enumerate(said)]}))

    return spoil


def spoil_bytes(suffix: str, data: bytes) -> Spoil:
    return lambda root: (root / f"data_stereo/bad.{suffix}").write_bytes(data)


def spoil_line(**entry: Any) -> Spoil:
    def spoil(root: Path) -> None:
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
def test_a_broken_recording_is_listed_with_its_reason_and_the_others_go_on(
    tmp_path: Path, spoil: Spoil, message: str
) -> None:
    write_moshi(tmp_path, "good")
    write_moshi(tmp_path, "bad")
    spoil(tmp_path)
    out = run_moshi(tmp_path, agent="left")
    assert recordings(imported(out)) == ["data_stereo/good.wav"]
    [reason] = reasons(out).values()
    assert message in reason and "\n" not in reason


def test_labels_beyond_two_are_skipped_and_noted(tmp_path: Path) -> None:
    said = write_moshi(tmp_path)
    path = tmp_path / "data_stereo/a.json"
    known = json.loads(path.read_text())["alignments"]
    for n in (0, 3):  # A third and a fourth one speak in between.
        known.append(["strange", [known[n][1][1], known[n][1][1] + 0.01], f"SPEAKER_0{n}"])
    path.write_text(json.dumps({"alignments": known}))
    out = run_moshi(tmp_path)
    [(_, dialogue)] = imported(out)
    words = {word.text for side in (dialogue.left, dialogue.right) for word in side.words}
    assert "strange" not in words and words <= {word.text for side in said.values() for word in side}
    [note] = report(out)["notes"]
    assert all(part in note["reason"] for part in ("SPEAKER_MAIN", "SPEAKER_OTHER", "1 of 'SPEAKER_00'", "SPEAKER_03"))
    named = run_moshi(tmp_path, "--labels", "SPEAKER_MAIN", "SPEAKER_OTHER", out="named")
    assert imported(named)[0][1].right.words == dialogue.right.words


def test_a_line_that_is_there_twice_is_imported_once(tmp_path: Path) -> None:
    write_moshi(tmp_path)
    line = (tmp_path / "list.jsonl").read_text()
    (tmp_path / "list.jsonl").write_text(line + line + "not json\n")
    out = run_moshi(tmp_path)
    assert recordings(imported(out)) == ["data_stereo/a.wav"]
    assert reasons(out)["list.jsonl:2"] == "the same line as before" and "not JSON" in reasons(out)["list.jsonl:3"]
