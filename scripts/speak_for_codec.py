"""Speaks utterances for training and testing a codec: FLAC files, each with its text and the times of its sounds.

    python scripts/speak_for_codec.py data/codec --minutes 120
    python scripts/speak_for_codec.py data/codec_heldout --split heldout --minutes 10

The lines are those of written customer-service and assistant dialogues, and loose words of the dictionary, which bring
the sounds that dialogues lack. Kokoro speaks most of them: with one of its voices, or with a mean of two or three,
which is a voice of its own; eSpeak NG the rest. The held-out split has other lines, and the voices that are held out.
Utterance n of a split is always the same, so the same command goes on where it stopped.

Needs the extra tts and `ppx-data fetch kokoro`.
"""

import argparse
import json
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np
import soundfile as sf
from tqdm import tqdm

from data_pipelines.speech.engines import kokoro_folder
from data_pipelines.speech.protocols import Speech
from data_pipelines.speech.tts.espeak import EspeakEngine
from data_pipelines.speech.tts.kokoro import KokoroEngine
from data_pipelines.writer.assistant import write_assistant
from data_pipelines.writer.service import write_service
from model.errors import UserError
from model.files import whole_file

ESPEAK_SHARE, WORDS_SHARE, BLEND_SHARE = 0.1, 0.35, 0.6
CHARACTERS = (12, 170)
"""Shorter lines are words like "Yes.", and longer ones are slow to speak."""


@lru_cache(maxsize=1)
def dictionary(folder: Path) -> list[str]:
    """The words of Kokoro's lexicons that are spelt with small letters."""
    words = json.loads((folder / "lexicons" / "us_gold.json").read_text("utf-8"))
    return sorted(word for word in words if word.isascii() and word.isalpha() and word.islower() and len(word) > 2)


def line(rng: Random, split: str, words: list[str]) -> str:
    """Something to say."""
    if rng.random() < WORDS_SHARE and split == "train":
        said = rng.sample(words, rng.randint(4, 9))
        cut = rng.randint(2, len(said) - 1)
        return f"{' '.join(said[:cut])}, {' '.join(said[cut:])}.".capitalize()
    write = write_service if rng.random() < 0.7 else write_assistant
    script = write("line", rng, split, 0.1, None)
    lines = [turn.text for turn in script.turns if CHARACTERS[0] <= len(turn.text) <= CHARACTERS[1]]
    return rng.choice(lines)


def utterance(
    number: int, split: str, seed: int, kokoro: KokoroEngine, espeak: EspeakEngine, words: list[str]
) -> tuple[str, str, Speech]:
    """(text, voice, speech) of utterance `number`."""
    rng = Random(f"{seed} {split} {number}")
    text = line(rng, split, words)
    speed = round(rng.uniform(0.85, 1.25), 2)
    is_heldout = split == "heldout"
    if rng.random() < ESPEAK_SHARE:
        voice = rng.choice([v for v in espeak.voices() if v.held_out == is_heldout])
        return text, voice.key, espeak.speak(text, voice.key, seed=number, speed=speed)
    voices = [v for v in kokoro.voices() if v.held_out == is_heldout]
    if is_heldout or rng.random() >= BLEND_SHARE:
        mixed = [rng.choice(voices)]
    else:
        accent = rng.choice(voices).accent
        mixed = rng.sample([v for v in voices if v.accent == accent], rng.choice((2, 2, 3)))
    weights = np.array([rng.uniform(0.2, 1.0) for _ in mixed], np.float32)
    style = sum(w * kokoro.style(v.key) for w, v in zip(weights / weights.sum(), mixed, strict=True))
    name = "+".join(v.key.partition("/")[2] for v in mixed)
    return text, f"kokoro/{name}", kokoro.speak_as(style, mixed[0].accent, text, speed=speed)


def speak(out: Path, minutes: float, split: str, seed: int, kokoro_folder: Path) -> None:
    """Writes NNNNN.flac, and beside it NNNNN.json (text, voice) and NNNNN.tsv (start, end, sound)."""
    kokoro, espeak = KokoroEngine(kokoro_folder), EspeakEngine()
    words = dictionary(kokoro_folder)
    out.mkdir(parents=True, exist_ok=True)
    seconds, number = 0.0, 0
    with tqdm(total=round(minutes, 1), unit="min", bar_format="{l_bar}{bar}| {n:.1f}/{total} min {elapsed}") as bar:
        while seconds < 60 * minutes:
            path = out / f"{number:05}.flac"
            if not path.exists():
                text, voice, speech = utterance(number, split, seed, kokoro, espeak, words)
                record = json.dumps({"text": text, "voice": voice})
                path.with_suffix(".json").write_text(record + "\n", "utf-8")
                if speech.phones:
                    rows = [f"{start:.3f}\t{end:.3f}\t{phone}\n" for phone, start, end in speech.phones]
                    path.with_suffix(".tsv").write_text("".join(rows), "utf-8")
                with whole_file(path) as temporary:  # Written last: an utterance that has it is complete.
                    sf.write(temporary, speech.audio, speech.rate, format="FLAC")
            info = sf.info(path)
            seconds += info.frames / info.samplerate
            number += 1
            bar.n = seconds / 60
            bar.refresh()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the utterances; one that exists is gone on with")
    parser.add_argument("--minutes", type=float, required=True, help="speech to have in the folder")
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kokoro", type=Path, default=None, help="its folder (default: where fetch put it)")
    args = parser.parse_args()
    try:
        speak(args.out, args.minutes, args.split, args.seed, args.kokoro or kokoro_folder())
    except UserError as why:
        raise SystemExit(f"error: {why}") from why


if __name__ == "__main__":
    main()
