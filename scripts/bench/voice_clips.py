"""False alarms and misses of the checks of `ppx-voice add`, on utterances of known voices.

FOLDER holds NAME.flac and NAME.json with {"voice": ...}, as scripts/speak_for_codec.py makes them. Clips of 3 to 10 s
are joined from utterances of one voice, levelled; the same are damaged, and clips of two voices are joined.

python scripts/bench/voice_clips.py data/codec_heldout --clips 100
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.listening.speaker import open_speaker
from data_pipelines.listening.voice_clip import measure_clip
from data_pipelines.sound.audio import RATE_HZ, Audio, read_audio
from data_pipelines.sound.clip_faults import CHECKS, faults

GAP_SECONDS = 0.2
RMS = 0.05
SPEAKERS = ("one voice", "two in turn", "one, another, the first")
"""Cases in which it is asked how many speak."""


class Utterances:
    """The utterances of a folder, by voice; mixtures of voices (a+b) are left out."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.draw = random.Random(seed)
        self.files: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.glob("*.json")):
            voice = json.loads(path.read_text("utf-8"))["voice"]
            if voice.startswith("espeak/") or "+" not in voice:
                self.files[voice].append(path.with_suffix(".flac"))

    def clip(self, voice: str, seconds: float) -> Audio:
        """[samples] of one voice, at 24 kHz: as many of its utterances as it takes."""
        files = self.draw.sample(self.files[voice], len(self.files[voice]))
        pieces: list[Audio] = []
        for path in files:
            audio = read_audio(path)[0][0]
            pieces += [audio * np.float32(RMS / np.sqrt(np.mean(audio**2))), silence(GAP_SECONDS)]
            if sum(map(len, pieces)) > seconds * RATE_HZ:
                break
        return np.concatenate(pieces)[: round(seconds * RATE_HZ)]

    def voices(self, count: int) -> list[str]:
        """Draws different voices."""
        return self.draw.sample(sorted(self.files), count)


def silence(seconds: float) -> Audio:
    """Digital silence."""
    return np.zeros(round(seconds * RATE_HZ), np.float32)


def with_noise(x: Audio, ratio_db: float, *, pink: bool) -> Audio:
    """Adds noise that is `ratio_db` softer than the clip, by their mean powers."""
    spectrum = np.fft.rfft(np.random.default_rng(len(x)).standard_normal(len(x)))
    if pink:
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, len(x))
    return (x + noise * np.std(x) / np.std(noise) * 10 ** (-ratio_db / 20)).astype(np.float32)


def cases(said: Utterances, count: int) -> dict[str, list[Audio]]:
    """Clips by what they are."""
    uniform, two = said.draw.uniform, {"two in turn": [], "one, another, the first": []}
    one = [said.clip(*said.voices(1), uniform(3, 10)) for _ in range(count)]
    for _ in range(count):
        a, b = said.voices(2)
        pause = silence(GAP_SECONDS)
        two["two in turn"].append(np.concatenate([said.clip(a, uniform(2, 5)), pause, said.clip(b, uniform(2, 5))]))
        parts = [said.clip(voice, uniform(1.6, 3.3)) for voice in (a, b, a)]
        two["one, another, the first"].append(np.concatenate([parts[0], pause, parts[1], pause, parts[2]]))
    damage: dict[str, Callable[[Audio], Audio]] = {
        f"{'pink' if pink else 'white'} noise, {ratio} dB": lambda x, ratio=ratio, pink=pink: with_noise(  # type: ignore
            x, ratio, pink=pink
        )
        for pink in (False, True)
        for ratio in (20, 15, 10, 5)
    }
    damage["twice as loud as full scale"] = lambda x: np.clip(2 * x / np.abs(x).max(), -1, 1)
    damage["the same, then halved"] = lambda x: np.clip(2 * x / np.abs(x).max(), -1, 1) / 2
    damage["two thirds silence"] = lambda x: np.concatenate([x, np.tile(silence(len(x) / RATE_HZ), 2)])
    damage["at -60 LUFS"] = lambda x: x * np.float32(10 ** (-40 / 20))
    return {"one voice": one} | two | {name: [do(x) for x in one] for name, do in damage.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    said, embedder = Utterances(args.folder, args.seed), open_speaker()
    print(
        f"{sum(map(len, said.files.values()))} utterances of {len(said.files)} voices; clips in which a check objects"
    )
    print(f"| clips | number | {' | '.join(CHECKS)} | speakers undecided |")
    for name, clips in cases(said, args.clips).items():
        asks = name in SPEAKERS  # The embedder is slow.
        skip = () if asks else ("speakers",)
        found = dict.fromkeys(CHECKS, 0)
        undecided = 0
        for clip in tqdm(clips, desc=name, disable=None):
            facts = measure_clip(clip[None], RATE_HZ, embedder if asks else None, skip)
            undecided += asks and facts.likeness is None
            for check in faults(facts, skip):
                found[check] += 1
        counts = " | ".join("" if check in skip else str(found[check]) for check in CHECKS)
        print(f"| {name} | {len(clips)} | {counts} | {undecided if asks else ''} |", flush=True)


if __name__ == "__main__":
    main()
