"""What the tests of the four general formats share: inputs of noise bursts, and what an import made of them."""

import io
import itertools
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

from data_pipelines import verbs
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.records.schema import Dialogue, Word
from tests.data_pipelines.tiny_recordings import RATE, Words, conversation, write_wav

COMMON = ["--source", "talks", "--licence", "CC BY 4.0"]
Found = list[tuple[Path, Dialogue]]
"""Dialogues with their folders."""


def write_moshi(
    root: Path,
    name: str = "a",
    seconds: float = 40.0,
    rate: int = RATE,
    *,
    audio: npt.NDArray[np.float32] | None = None,
    other: str | None = "SPEAKER_OTHER",
    **extra: Any,
) -> Words:
    """One recording in moshi-finetune's layout; returns its words by side."""
    made, words = conversation(seconds, rate, seed=len(name))
    path = root / f"data_stereo/{name}.wav"
    write_wav(path, made if audio is None else audio, rate)
    labels = {"left": "SPEAKER_MAIN", "right": other}
    spans = [(w.start, w.end, f" {w.text}", labels[side]) for side in words for w in words[side] if labels[side]]
    said = [[text, [start, end], label] for start, end, text, label in sorted(spans)]
    path.with_suffix(".json").write_text(json.dumps({"alignments": said, **extra}))
    with open(root / "list.jsonl", "a") as file:
        file.write(json.dumps({"path": f"data_stereo/{name}.wav", "duration": seconds}) + "\n")
    return words


def run_moshi(root: Path, *options: str, out: str = "out", agent: str = "both") -> Path:
    """Imports a folder in moshi-finetune's layout; returns the folder of dialogues in it."""
    verbs.main(["import", "moshi", str(root), "--out", str(root / out), *COMMON, "--agent", agent, *options])
    return root / out


def outside(path: Path) -> Path:
    """A folder beside `path`, for what comes out of it."""
    return path.with_name(f"{path.name}-out")


def run_format(kind: str, path: Path, *options: str) -> Found:
    """Imports from `path` into the folder beside it, both sides as agents."""
    argv = ["import", kind, str(path), "--out", str(outside(path)), *COMMON, "--agent", "both", *options]
    verbs.main(argv)
    return imported(outside(path))


def imported(out: Path) -> Found:
    """The dialogues of a folder with their folders, by recording and window."""
    return [(folder, load_dialogue(folder)) for folder in find_dialogues([out])]


def recordings(found: Found) -> list[str]:
    """The names of the recordings that dialogues are from."""
    return sorted({dialogue.provenance["recording"] for _, dialogue in found})


def report(out: Path) -> dict[str, Any]:
    """OUT/report.json."""
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


def reasons(out: Path) -> dict[str, str]:
    """Why recordings were rejected."""
    return {entry["id"]: entry["reason"] for entry in report(out)["rejected"]}


def loud_words(dialogue: Dialogue, audio_CS: npt.NDArray[Any], rate: int) -> tuple[float, float]:
    """Shares of the words inside which, and of the silences between them in which, their channel is loud."""
    inside_loud, outside_loud = [], []
    for channel, side in enumerate(("left", "right")):
        words = dialogue.side(side).words
        level = [
            np.abs(audio_CS[channel, int((w.start + 0.02) * rate) : int((w.end - 0.02) * rate)]).mean() for w in words
        ]
        inside_loud += [value > 0.05 for value in level]
        gaps = [(a.end + 0.02, b.start - 0.02) for a, b in itertools.pairwise(words)]
        outside_loud += [np.abs(audio_CS[channel, int(a * rate) : int(b * rate)]).mean() > 0.05 for a, b in gaps]
    return float(np.mean(inside_loud)), float(np.mean(outside_loud))


def write_words(path: Path, words: Sequence[Word]) -> None:
    """The words of one side as JSON; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"word": w.text, "start": w.start, "end": w.end} for w in words]))


def both_sides(words: Words, **extra: Any) -> bytes:
    """The words of both sides as one JSON."""
    said = [{"word": w.text, "start": w.start, "end": w.end, "speaker": s} for s in words for w in words[s]]
    return json.dumps({"words": said, **extra}).encode()


def flac(audio: npt.NDArray[Any], rate: int = RATE) -> bytes:
    """[samples] or [channels, samples] as the bytes of a FLAC file."""
    data = io.BytesIO()
    soundfile.write(data, audio.T, rate, format="FLAC", subtype="PCM_16")
    return data.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a member to a tar."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
