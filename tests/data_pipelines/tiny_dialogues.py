"""Dialogue folders of noise with words, and a codec that is a few lines of arithmetic: made in milliseconds."""

import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from data_pipelines.records.schema import Dialogue, Side, Word
from data_pipelines.shards.scan import scan_tar
from data_pipelines.sound.audio import Audio

RATE = 24_000


class TinyCodec:
    """Code k of a frame is its mean absolute level in fine steps, plus k: easy to compute again by other means."""

    card = 64
    num_codebooks = 8
    device = "cpu"

    def encode(self, wav_B1S: Tensor) -> Tensor:
        """[B, 1, S] -> codes [B, 8, T]."""
        wav_B1S = torch.nn.functional.pad(wav_B1S, (0, -wav_B1S.shape[2] % 1920))
        levels_BT = (wav_B1S.reshape(len(wav_B1S), -1, 1920).abs().mean(-1) * 200).long().clamp(max=50)
        return torch.stack([levels_BT + k for k in range(8)], dim=1)

    def constants(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Codes of silence and of a sine."""
        return tuple(range(8)), tuple(range(8, 16))

    def fingerprint(self) -> str:
        """Stands for the weights, of which it has none."""
        return "ab" * 32


def noise(seconds: float, level: float, seed: int) -> Audio:
    """float32 [samples] of white noise."""
    samples = np.random.default_rng(seed).uniform(-level, level, round(seconds * RATE))
    return samples.astype(np.float32)


def words_every(seconds: float, start: float, step: float = 0.5) -> tuple[Word, ...]:
    """Words of 0.3 s, one in each `step` seconds."""
    times = np.arange(start, seconds - 0.4, step)
    return tuple(Word(text=f"w{n}", start=float(t), end=float(t) + 0.3) for n, t in enumerate(times))


def write_dialogue(
    folder: Path,
    id: str,
    *,
    source: str = "service",
    split: str = "train",
    seconds: float = 4.0,
    agents: Sequence[str] = ("left",),
    licence: str = "CC0-1.0",
    words: Mapping[str, tuple[Word, ...]] | None = None,
) -> Path:
    """One folder as the speaking stage leaves it; returns it."""
    place = folder / id
    place.mkdir(parents=True)
    seed = sum(id.encode())
    wav_CS = np.stack([noise(seconds, 0.1, seed), noise(seconds, 0.2, seed + 1)])
    soundfile.write(place / "audio.flac", wav_CS.T, RATE, subtype="PCM_16")
    sides = {}
    for n, side in enumerate(("left", "right")):
        is_agent = side in agents
        if is_agent:
            soundfile.write(place / f"{side}.voice.flac", noise(3.2, 0.05, seed + 2 + n), RATE, subtype="PCM_16")
        sides[side] = Side(
            speaker=f"tiny/{side}",
            words=words_every(seconds, 0.1 + n) if words is None else words[side],
            is_agent=is_agent,
            role_prompt=f"You are {side}." if is_agent else "",
        )
    dialogue = Dialogue(
        id=id, source=source, split=split, scenario="test", seconds=seconds, licence=licence,
        left=sides["left"], right=sides["right"],
    )  # fmt: skip
    (place / "meta.json").write_text(dialogue.to_json(), "utf-8")
    return place


def write_corpus(folder: Path) -> list[Path]:
    """Five service, three assistant and two two-sided calls; one of each of the first two is held out."""
    for n in range(5):
        write_dialogue(folder / "synth", f"service-{n}", seconds=2.0 + n, split="heldout" if n == 4 else "train")
    for n in range(3):
        split = "heldout" if n == 2 else "train"
        write_dialogue(folder / "synth", f"qa-{n}", source="assistant", split=split, licence="MIT")
    for n in range(2):
        write_dialogue(folder / "real", f"call-{n}", source="fisher", agents=("left", "right"), seconds=3.0 + n)
    return [folder / "synth", folder / "real"]


def stored(folder: Path, id: str) -> tuple[Path, dict[str, bytes]]:
    """The members of one dialogue, read by tarfile."""
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            found = {}
            for member in (member for member in tar if member.name.startswith(f"{id}.")):
                file = tar.extractfile(member)
                assert file is not None
                found[member.name.split(".", 1)[1]] = file.read()
        if found:
            return path, found
    raise KeyError(id)


def overwrite(folder: Path, id: str, member: str, change: Callable[[bytes], bytes]) -> None:
    """Changes the bytes of one member in place, so that no size changes."""
    path, _ = stored(folder, id)
    offset, size = scan_tar(path)[id][member]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = change(bytes(data[offset : offset + size]))
    path.chmod(0o644)
    path.write_bytes(data)
