"""How well speech is understood after a codec: word errors, voices, spectra, use of the codebooks, speed.

    python scripts/bench/codec_words.py data/codec_heldout --codec old=small --codec new=runs/codec_small
    ... --asr tiny.en --asr FOLDER --page words.html

The folder holds NAME.flac and beside it NAME.json with `text` and `voice`, as scripts/speak_for_codec.py writes them.
Word errors are counted over all utterances, names and numbers included. A voice is recognised if, among all voices of
the folder, what was decoded is nearest to the mean of the other original utterances of that voice.
`--page` writes an HTML page with players, spectrograms and transcripts of a few utterances.
"""

# Shapes: B batch, C channels, S samples, Q codebooks, T frames

import argparse
import base64
import html
import io
import json
import math
import time
from pathlib import Path

import numpy as np
import soundfile as sf
import torch
from tqdm import tqdm

from data_pipelines.listening.asr import open_asr
from data_pipelines.listening.speaker import open_speaker, voiced
from data_pipelines.quality.transcription import Score, pooled
from data_pipelines.sound.audio import read_audio, to_rate
from data_pipelines.text.words import normal_words, word_errors
from model.config import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi
from model.weights.sources import codec_path
from ppx_train.training.codec.spectra import SpectralLoss

ORIGINAL = "original"
SHOWN = 3
"""Utterances on the page."""


def through(codec: Mimi, audio_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an utterance sounds like after the codec, and its codes [Q, T]."""
    codes_BQT = codec.encode(torch.from_numpy(audio_S)[None, None])
    return codec.decode(codes_BQT)[0, 0, : len(audio_S)].numpy(), codes_BQT[0].numpy()


def speed(codec: Mimi) -> tuple[float, float, float]:
    """(encoding, decoding) in multiples of real time, and milliseconds of a frame streamed both ways, on one thread."""
    torch.set_num_threads(1)
    wav = torch.randn(1, 1, 125 * FRAME_SAMPLES) * 0.1
    codec.decode(codec.encode(wav))
    start = time.process_time()
    codes = codec.encode(wav)
    middle = time.process_time()
    codec.decode(codes)
    end = time.process_time()
    encoder, decoder, frames = codec.init_encoder_state(1), codec.init_decoder_state(1), wav.split(FRAME_SAMPLES, 2)
    began = time.process_time()
    for frame in frames:
        codec.decode_frame(decoder, codec.encode_frame(encoder, frame))
    each = (time.process_time() - began) / len(frames) * 1000
    return 10 / (middle - start), 10 / (end - middle), each


def voices_kept(made: list[np.ndarray], original: list[np.ndarray], voices: list[str]) -> float:
    """Share of utterances whose voice is recognised, see the head of this file."""
    kept = [n for n in range(len(voices)) if voices.count(voices[n]) > 1]
    hits = 0
    for n in kept:
        centres = {}
        for voice in set(voices):
            others = [original[m] for m in range(len(voices)) if voices[m] == voice and m != n]
            if others:
                centres[voice] = np.mean(others, axis=0)
        hits += max(centres, key=lambda voice: float(made[n] @ centres[voice])) == voices[n]
    return hits / max(1, len(kept))


def entropy_bits(codes: np.ndarray) -> float:
    """Bits of one codebook's code by how often each is used: [T]."""
    shares = np.bincount(codes) / len(codes)
    return float(-sum(p * math.log2(p) for p in shares if p))


def picture(audio_S: np.ndarray) -> str:
    """A spectrogram as PNG, in base64."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.specgram(audio_S + 1e-6, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-140, vmax=-30, cmap="magma")
    axes.set(yticks=[0, 4000, 8000, 12000], yticklabels=["0", "4", "8", "12 kHz"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return base64.b64encode(buffer.getvalue()).decode()


def sound(audio_S: np.ndarray) -> str:
    """FLAC in base64."""
    buffer = io.BytesIO()
    sf.write(buffer, audio_S, SAMPLE_RATE, format="FLAC")
    return base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, records: list[dict], sounds: dict[str, list[np.ndarray]], heard: dict) -> None:
    """A page with the first utterances of different voices: original and each codec, heard and seen."""
    chosen: list[int] = []
    for n, record in enumerate(records):
        if len(chosen) < SHOWN and record["voice"] not in {records[m]["voice"] for m in chosen}:
            chosen.append(n)
    parts = []
    for n in chosen:
        parts.append(f"<h2>{html.escape(records[n]['voice'])}</h2><p>{html.escape(records[n]['text'])}</p>")
        for name, all_made in sounds.items():
            texts = "".join(
                f"<p>{html.escape(asr)}: <q>{html.escape(lines[n])}</q></p>" for (which, asr), lines in heard.items()
                if which == name
            )  # fmt: skip
            parts.append(
                f"<section><h3>{html.escape(name)}</h3>"
                f'<audio controls src="data:audio/flac;base64,{sound(all_made[n])}"></audio>'
                f'<img alt="spectrogram" src="data:image/png;base64,{picture(all_made[n])}">{texts}</section>'
            )
    style = (
        "body{font:16px system-ui;max-width:70rem;margin:2rem auto;padding:0 1rem} img{display:block;max-width:100%}"
    )
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Codecs, heard</title><style>{style}</style>'
        f"<h1>The same speech through each codec</h1>{''.join(parts)}</html>\n",
        "utf-8",
    )


@torch.no_grad()
def compare(folder: Path, codecs: dict[str, Mimi], asr_names: list[str], page: Path | None) -> None:
    """Prints the table."""
    records, originals = [], []
    for path in sorted(folder.glob("*.flac")):
        audio_CS, rate = read_audio(path)
        records.append(json.loads(path.with_suffix(".json").read_text("utf-8")))
        originals.append(to_rate(audio_CS[0], rate, SAMPLE_RATE).astype(np.float32))
    if not records:
        raise UserError(
            f"{folder}: holds no .flac file with its .json: make it with scripts/speak_for_codec.py", code="no-data"
        )
    seconds = sum(map(len, originals)) / SAMPLE_RATE
    voices = [record["voice"] for record in records]
    print(f"{folder}: {len(records)} utterances, {seconds / 60:.1f} minutes, {len(set(voices))} voices")
    sounds, codes = {ORIGINAL: originals}, {}
    for name, codec in codecs.items():
        both = [through(codec, audio_S) for audio_S in tqdm(originals, desc=name)]
        sounds[name], codes[name] = [made for made, _ in both], np.concatenate([found for _, found in both], axis=1)
    heard: dict[tuple[str, str], list[str]] = {}
    errors: dict[tuple[str, str], Score] = {}
    for asr_name in asr_names:
        asr = open_asr(asr_name)
        for name, made in sounds.items():
            lines = [asr.transcribe(audio_S, SAMPLE_RATE) for audio_S in tqdm(made, desc=f"{asr_name} {name}")]
            heard[name, Path(asr_name).name] = lines
            scores = []
            for record, line in zip(records, lines, strict=True):
                wanted = normal_words(record["text"])
                scores.append(Score(errors=word_errors(wanted, normal_words(line), ()), words=len(wanted)))
            errors[name, Path(asr_name).name] = pooled(scores)
    speaker, spectral = open_speaker(), SpectralLoss()
    embedded = {
        name: [speaker.embed(voiced(audio_S, SAMPLE_RATE)) for audio_S in made] for name, made in sounds.items()
    }
    for name, made in sounds.items():
        parts = [f"{asr} {score}" for (which, asr), score in errors.items() if which == name]
        parts.append(f"voices recognised {voices_kept(embedded[name], embedded[ORIGINAL], voices):.1%}")
        if name != ORIGINAL:
            alike = [float(a @ b) for a, b in zip(embedded[name], embedded[ORIGINAL], strict=True)]
            pairs = zip(made, originals, strict=True)
            log = [float(spectral(torch.from_numpy(a)[None], torch.from_numpy(b)[None])[0]) for a, b in pairs]
            codec, found = codecs[name], codes[name]
            used = [len(np.unique(row)) / codec.card for row in found]
            bits = [entropy_bits(row) for row in found]
            encoding, decoding, frame = speed(codec)
            parts += [
                f"similarity of voices {np.mean(alike):.3f}",
                f"log-mel distance {np.mean(log):.3f}",
                f"entries used {' '.join(f'{share:.0%}' for share in used)}",
                f"{found.shape[0] * math.log2(codec.card) * FRAME_RATE:.0f} bit/s, {sum(bits) * FRAME_RATE:.0f} by use",
                f"encodes {encoding:.0f} and decodes {decoding:.0f} times real time",
                f"a streaming frame {frame:.1f} ms",
            ]
        print(f"{name}: {'; '.join(parts)}")
    if page is not None:
        write_page(page, records, sounds, heard)
        print(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="utterances as scripts/speak_for_codec.py writes them")
    parser.add_argument("--codec", action="append", default=[], metavar="NAME=CODEC", help="small, a file or a folder")
    parser.add_argument("--asr", action="append", help="recognisers: tiny.en (default), or folders")
    parser.add_argument("--page", type=Path, help="HTML page to write")
    args = parser.parse_args()
    try:
        pairs = [given.partition("=") for given in args.codec]
        codecs = {name: load_mimi(codec_path(path)) for name, _, path in pairs}
        compare(args.folder, codecs, args.asr or ["tiny.en"], args.page)
    except UserError as why:
        raise SystemExit(f"error: {why}") from why


if __name__ == "__main__":
    main()
