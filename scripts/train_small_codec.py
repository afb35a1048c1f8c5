"""Trains a small Mimi on folders of speech; made the shipped model/assets/mimi_small.safetensors.

    python scripts/train_small_codec.py --audio DIR [DIR ...] --out RUN --minutes 90

Any .wav or .flac is taken, at any rate, and held in memory as 16-bit samples (2.9 MB a minute). RUN/last.pt is the
training state: the same command resumes from it. RUN/mimi.safetensors is the codec so far, RUN/log.jsonl the losses.
The learning rate ends with the given minutes (or --steps), so plan them once.

The shipped file was trained on 43 minutes of Kokoro speech (Apache-2.0, 28 English voices) for 50 minutes on one shared
CPU core, the first third with AdamW alone and less telephone sound, the rest as it is here.
"""

# Shapes: B batch, D width, S samples, T frames, V vocabulary, Z quantiser width

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from model.config import SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file
from model.mimi.codec import Mimi
from model.mimi.config import MimiConfig, QuantizerConfig, SeanetConfig, TransformerConfig
from model.mimi.conv import CausalConv1d
from model.mimi.files import CODEC_NAME, write_mimi
from model.mimi.train_optimizer import Muon, split_parameters
from model.mimi.train_quantizer import init_codebooks, pass_unquantized, quantize_with_gradient

CROP_FRAMES = 30  # 2.4 s: longer than the transformers' window, so that every distance in it is trained
# STFT length, mel bands, frames averaged, weight. Short windows are averaged to about 16 ms: below that the loss would
# punish pitch pulses and noise for not falling at the same sample, which no code of 900 bit/s can promise.
SCALES = ((256, 20, 6, 1.0), (512, 32, 3, 1.0), (1024, 48, 1, 1.0), (2048, 96, 1, 0.5))
READOUT = (512, 40, 480)  # STFT length, mel bands and samples of one target of the read-out: 20 ms
FLOOR = 1e-4  # mel magnitudes below -80 dBFS count as silence
WARMUP_STEPS = 200  # of the learning rate
UNQUANTIZED_STEPS = 600  # before the codebooks are filled by k-means
KMEANS_BATCHES = 40
DROPOUT_SHARE = 0.25  # of the steps use fewer acoustic codebooks
BF16_SHARE = 0.7  # of the training runs the convolutions in bf16 (1.4 x faster); the rest settles in fp32


def small_config() -> MimiConfig:
    """2.1 M parameters: 16 to 256 channels, 128 wide, 2 + 2 transformer layers of a 2 s window, 8 x 512 codes."""
    return MimiConfig(
        seanet=SeanetConfig(dimension=128, n_filters=16, ratios=(4, 5, 6, 8)),  # 8 first: a third fewer operations
        quantizer=QuantizerConfig(dimension=64, n_q=8, bins=512),
        transformer=TransformerConfig(
            d_model=128, num_heads=4, num_layers=2, layer_scale=0.1, context=50, dim_feedforward=512
        ),
    )


# Data


def load_folder(folders: list[Path]) -> list[np.ndarray]:
    """All recordings as int16 at 24 kHz, mixed to mono. Raises: UserError if there are none."""
    paths = sorted(path for folder in folders for kind in ("*.wav", "*.flac") for path in folder.rglob(kind))
    clips = []
    for path in tqdm(paths, desc="loading", unit="file"):
        try:
            audio, rate = sf.read(path, dtype="float32", always_2d=True)
        except sf.LibsndfileError as why:
            tqdm.write(f"skipped {path}: {why}")
            continue
        audio = soxr.resample(audio.mean(axis=1), rate, SAMPLE_RATE)
        clips.append((np.clip(audio, -1, 1) * 32767).astype(np.int16))
    if not clips:
        raise UserError(f"no readable .wav or .flac under {', '.join(map(str, folders))}", code="no-data")
    return clips


class Crops:
    """Random augmented crops; batch n of a seed is always the same."""

    def __init__(self, clips: list[np.ndarray], samples: int, batch: int, seed: int) -> None:
        self.clips, self.samples, self.batch, self.seed = clips, samples, batch, seed
        lengths = np.array([len(clip) for clip in clips], np.float64)
        self.share = lengths / lengths.sum()

    def __call__(self, step: int) -> Tensor:
        """[B, 1, S] in -1..1."""
        rng = np.random.default_rng([self.seed, step])
        return torch.from_numpy(np.stack([self._crop(rng) for _ in range(self.batch)]))[:, None].float()

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        clip = self.clips[rng.choice(len(self.clips), p=self.share)]
        # Up to half a second of padding on either side: speech must be able to start and stop.
        start = int(rng.integers(-SAMPLE_RATE // 2, max(1, len(clip) + SAMPLE_RATE // 2 - self.samples)))
        piece = clip[max(0, start) : max(0, start + self.samples)].astype(np.float32) / 32768
        audio = np.zeros(self.samples, np.float32)
        at = max(0, -start)
        audio[at : at + len(piece)] = piece
        return augment(audio, rng)


def augment(audio_S: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speed and pitch, level, telephone channel, noise, gaps of digital silence, now and then a tone."""
    if rng.random() < 0.3:  # more voices than were recorded; the end is held or lost
        speed = rng.uniform(0.85, 1.2)
        audio_S = np.interp(np.arange(len(audio_S)) * speed, np.arange(len(audio_S)), audio_S, right=0).astype(
            np.float32
        )
    if rng.random() < 0.02:
        times = np.arange(len(audio_S)) / SAMPLE_RATE
        pitch = 440.0 if rng.random() < 0.5 else rng.uniform(100, 2000)
        audio_S = 0.5 * np.sin(2 * np.pi * (pitch * times + rng.random())).astype(np.float32)
    audio_S = audio_S * 10 ** (rng.uniform(-18, 6) / 20)
    if rng.random() < 0.15:
        audio_S = audio_S + rng.standard_normal(len(audio_S)).astype(np.float32) * 10 ** (rng.uniform(-70, -35) / 20)
    if rng.random() < 0.5:
        audio_S = telephone(audio_S)
    if rng.random() < 0.15:
        edges = np.sort(rng.integers(0, len(audio_S), 2))
        audio_S = audio_S.copy()
        audio_S[edges[0] : edges[1]] = 0
    return audio_S / max(1.0, float(np.abs(audio_S).max()))


def telephone(audio_S: np.ndarray) -> np.ndarray:
    """200 to 3700 Hz at 8 kHz, through 8-bit mu-law."""
    bins = np.fft.rfft(audio_S)
    hertz = np.fft.rfftfreq(len(audio_S), 1 / SAMPLE_RATE)
    kept = np.where((hertz > 200) & (hertz < 3700), bins, 0)
    narrow = np.fft.irfft(kept[: len(audio_S) // 6 + 1], len(audio_S) // 3) / 3
    bent = np.sign(narrow) * np.log1p(255 * np.minimum(np.abs(narrow), 1)) / np.log(256)
    rounded = np.round(bent * 127) / 127
    narrow = np.sign(rounded) * np.expm1(np.abs(rounded) * np.log(256)) / 255
    wide = np.zeros(len(audio_S) // 2 + 1, np.complex128)
    wide[: len(narrow) // 2 + 1] = np.fft.rfft(narrow)
    return (np.fft.irfft(wide, len(audio_S)) * 3).astype(np.float32)


# Losses


class SpectralLoss(nn.Module):
    """Distance of mel envelopes over several window lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.banks = [mel_bank(length, bands) for length, bands, _, _ in SCALES]

    def forward(self, made_BS: Tensor, wanted_BS: Tensor) -> tuple[Tensor, Tensor]:
        """(mean absolute log difference, relative linear difference), each averaged over the scales."""
        log, linear = made_BS.new_zeros(()), made_BS.new_zeros(())
        for (length, _, pool, weight), bank in zip(SCALES, self.banks, strict=True):
            made, wanted = (envelope(x_BS, length, length // 4, bank, pool) for x_BS in (made_BS, wanted_BS))
            log = log + weight * ((made + FLOOR).log() - (wanted + FLOOR).log()).abs().mean()
            linear = linear + weight * (made - wanted).abs().mean() / (wanted.mean() + 0.003)
        total = sum(weight for _, _, _, weight in SCALES)
        return log / total, linear / total


def envelope(audio_BS: Tensor, length: int, hop: int, bank: Tensor, pool: int) -> Tensor:
    """Mel magnitudes [B, bands, frames]: root of the power, averaged over `pool` frames; a full-scale sine has 1."""
    window = torch.hann_window(length)
    bins = torch.view_as_real(torch.stft(audio_BS, length, hop, window=window, return_complex=True))
    power = torch.matmul(bank, bins.square().sum(-1)) * (2 / window.sum()) ** 2
    return (F.avg_pool1d(power, pool) + 1e-10).sqrt()


class Readout(nn.Module):
    """Mel envelope read linearly from the decoder's 25 Hz steps, in training only.

    It hands the encoder and the codebooks a direct gradient: through the waveform alone they had learnt little more
    than loudness after 2,700 steps.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.length, self.bands, self.hop = READOUT
        self.linear = nn.Linear(width, 2 * self.bands)
        self.bank = mel_bank(self.length, self.bands)

    def forward(self, steps_BDT: Tensor, wanted_BS: Tensor) -> Tensor:
        """Mean absolute log difference of two 20 ms targets a step."""
        made = self.linear(steps_BDT.transpose(1, 2)).unflatten(2, (2, self.bands)).flatten(1, 2)
        wanted = envelope(wanted_BS, self.length, self.hop // 2, self.bank, 2).transpose(1, 2)
        return (made - (wanted + FLOOR).log()).abs().mean()


def mel_bank(length: int, bands: int) -> Tensor:
    """Triangular filters [bands, length / 2 + 1] on the mel scale from 0 to 12 kHz; each sums its bins."""
    hertz = torch.linspace(0, SAMPLE_RATE / 2, length // 2 + 1)
    mels = torch.linspace(0, 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700), bands + 2)
    edges = 700 * (10 ** (mels / 2595) - 1)
    # Narrow low bands would fall between two bins: widen them to one bin.
    step = SAMPLE_RATE / length
    rise = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2]).clamp(min=step)[:, None]
    fall = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1]).clamp(min=step)[:, None]
    return torch.minimum(rise, fall).clamp(min=0)


# Training


def init_weights(model: Mimi) -> None:
    """Keeps the size of the signal through the convolutions, with speech scaled up to about 1 on the way in.

    With the library's default it shrinks a hundredfold to the latent, and nothing was learnt in 1,300 steps.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d):
            gain = 1.0 if name.endswith("_proj") or module.bias is None else 1.4  # 1.4 makes up for the ELU
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, nn.ConvTranspose1d) and module.groups == 1:
            nn.init.normal_(module.weight, std=1.4 / math.sqrt(2 * module.in_channels))  # two taps meet in an output
        elif isinstance(module, nn.ConvTranspose1d):
            nn.init.constant_(module.weight, 0.5)  # the mean of two neighbours
        if isinstance(module, (nn.Conv1d, nn.ConvTranspose1d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
    first, last = model.encoder.model[0], model.decoder.model[-1]
    assert isinstance(first, CausalConv1d) and isinstance(last, CausalConv1d)  # for the type checker
    with torch.no_grad():
        first.conv.conv.weight.mul_(10)
        last.conv.conv.weight.mul_(0.01)


@dataclass
class CodecRun:
    """Everything that a checkpoint brings back."""

    model: Mimi
    readout: Readout
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    minutes: float = 0.0

    def save(self, path: Path) -> None:
        state = {
            "config": self.model.config.to_json(),
            "model": self.model.state_dict(),
            "readout": self.readout.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "minutes": self.minutes,
        }
        with whole_file(path) as temporary:
            torch.save(state, temporary)

    @classmethod
    def start(cls, path: Path, config: MimiConfig, rate: float) -> "CodecRun":
        """Resumes from path if it exists. Raises: UserError if it was trained with another config."""
        model = Mimi(config)
        init_weights(model)
        readout = Readout(config.seanet.dimension)
        matrices, others = split_parameters(model.parameters())
        adam = torch.optim.AdamW([*others, *readout.parameters()], lr=rate, betas=(0.8, 0.99), weight_decay=0.01)
        run = cls(model, readout, [Muon(matrices, rate), adam])
        if path.exists():
            state = torch.load(path, weights_only=True)
            if state["config"] != config.to_json():
                raise UserError(f"{path} was trained with another config: choose another --out", code="other-settings")
            model.load_state_dict(state["model"])
            run.readout.load_state_dict(state["readout"])
            for optimizer, values in zip(run.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            run.step, run.minutes = state["step"], state["minutes"]
            print(f"resumed at step {run.step}, {run.minutes:.1f} minutes", flush=True)
        return run


def export(model: Mimi, path: Path) -> None:
    """Writes the codec in half precision, its constants computed with the rounded weights."""
    rounded = Mimi(replace(model.config, silence_codes=None, sine_codes=None)).eval()
    rounded.load_state_dict(model.state_dict())
    for codebook in rounded.codebooks():  # centroids over counts of one round better than sums over counts
        codebook.embedding_sum.copy_(codebook.centroids_VZ)
        codebook.cluster_usage.fill_(1)
    rounded.load_state_dict({name: tensor.half().float() for name, tensor in rounded.state_dict().items()})
    write_mimi(rounded, path, torch.float16)


@torch.no_grad()
def fill_codebooks(model: Mimi, crops: Crops) -> None:
    """K-means on the latents of many crops, before the first quantised step."""
    batches = [model.latent(crops(UNQUANTIZED_STEPS + n)) for n in range(KMEANS_BATCHES)]
    init_codebooks(model.quantizer, torch.cat(batches))


def losses(run: CodecRun, spectral: SpectralLoss, wav_B1S: Tensor, acoustic: int, bf16: bool) -> dict[str, Tensor]:
    """The terms of the objective; `total` is their weighted sum."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        latent_BDT = run.model.latent(wav_B1S)
    latent_BDT = latent_BDT.float()  # codebooks need the full precision
    if run.step < UNQUANTIZED_STEPS:
        quantized_BDT, commit = pass_unquantized(run.model.quantizer, latent_BDT), latent_BDT.new_zeros(())
    else:
        quantized_BDT, commit = quantize_with_gradient(run.model.quantizer, latent_BDT, acoustic)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        steps_BDT = run.model.decoder_transformer(run.model.upsample.convtr(quantized_BDT))
        made_B1S = run.model.decoder(steps_BDT)
    log, linear = spectral(made_B1S[:, 0].float(), wav_B1S[:, 0])
    readout = run.readout(steps_BDT.float(), wav_B1S[:, 0])
    # No mel band holds 0 Hz: without this term a constant offset would go unpunished.
    offset = F.avg_pool1d(made_B1S.float() - wav_B1S, 480, 240).square().mean()
    total = log + 0.5 * linear + readout + 0.25 * commit + 500 * offset
    return {"total": total, "log_mel": log, "mel": linear, "readout": readout, "commit": commit, "offset": offset}


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Linear warm-up, then a cosine down to a fiftieth."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def train_step(run: CodecRun, spectral: SpectralLoss, crops: Crops, peak: float, progress: float) -> dict[str, float]:
    """One update on the next batch; returns the terms of the loss and the norm of the gradient."""
    if run.step == UNQUANTIZED_STEPS:
        fill_codebooks(run.model, crops)
    rng = np.random.default_rng([crops.seed, run.step, 1])
    acoustic = run.model.num_codebooks - 1
    if rng.random() < DROPOUT_SHARE:
        acoustic = int(rng.integers(1, acoustic))
    terms = losses(run, spectral, crops(run.step), acoustic, progress < BF16_SHARE)
    for optimizer in run.optimizers:
        optimizer.zero_grad(set_to_none=True)
    terms["total"].backward()
    terms["norm"] = torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(peak, run.step, progress)
        optimizer.step()
    run.step += 1
    return {name: float(term.detach()) for name, term in terms.items()}


def train(args: argparse.Namespace) -> None:
    """Trains until the steps or minutes are reached, saving every few minutes and at the end."""
    for name in ("minutes", "steps", "batch", "rate", "save_minutes"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a positive number", code="bad-value")
    config = small_config()
    clips = load_folder(args.audio)
    print(f"{len(clips)} recordings, {sum(map(len, clips)) / SAMPLE_RATE / 60:.1f} minutes", flush=True)
    crops = Crops(clips, CROP_FRAMES * config.frame_samples, args.batch, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    run = CodecRun.start(args.out / "last.pt", config, args.rate)
    spectral = SpectralLoss()
    means: dict[str, float] = {}  # moving averages over some 50 steps
    bar = tqdm(total=args.steps or round(args.minutes), unit="step" if args.steps else "min")
    saved = clock = time.monotonic()
    while (progress := run.step / args.steps if args.steps else run.minutes / args.minutes) < 1:
        for name, value in train_step(run, spectral, crops, args.rate, progress).items():
            means[name] = means.get(name, value) * 0.98 + value * 0.02
        now = time.monotonic()
        run.minutes, clock = run.minutes + (now - clock) / 60, now
        bar.n = run.step if args.steps else round(run.minutes)
        bar.set_postfix(step=run.step, loss=f"{means['total']:.3f}")
        if run.step % 100 == 0:
            record = {"step": run.step, "minutes": round(run.minutes, 2)} | {k: round(v, 4) for k, v in means.items()}
            bar.write(json.dumps(record), file=sys.stdout)
            with open(args.out / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
        if now - saved > 60 * args.save_minutes:
            save(run, args.out)
            saved = now
    save(run, args.out)
    bar.close()
    print(f"{args.out / CODEC_NAME}: {hashlib.sha256((args.out / CODEC_NAME).read_bytes()).hexdigest()}")


def save(run: CodecRun, folder: Path) -> None:
    """Writes the training state and the codec so far."""
    run.save(folder / "last.pt")
    export(run.model, folder / CODEC_NAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--audio", type=Path, nargs="+", required=True, help="folders searched for .wav and .flac")
    parser.add_argument("--out", type=Path, required=True, help="run folder; an existing one is resumed")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="training time, over all resumptions")
    length.add_argument("--steps", type=int, help="training steps instead of minutes")
    parser.add_argument("--batch", type=int, default=2, help="crops of 2.4 s in a step (default 2)")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="peak learning rate (default 1.5e-3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-minutes", type=float, default=3.0, help="time between checkpoints (default 3)")
    try:
        train(parser.parse_args())
    except UserError as why:
        raise SystemExit(f"error: {why}") from why


if __name__ == "__main__":
    main()
