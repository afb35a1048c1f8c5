"""Mimi: waveform to codes and back, in one pass or frame by frame with the same result.

Source: Moshi paper (arXiv 2410.00037); tensor names are those of the public weights.
"""

# Shapes: B batch, S samples (at 24 kHz), Q codebooks, T frames (of 80 ms), D width

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import UserError
from model.mimi.config import STRIDE, MimiConfig
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d, ConvState
from model.mimi.patch import PatchDecoder
from model.mimi.quantizer import Codebook, SplitQuantizer
from model.mimi.seanet import SeanetDecoder, SeanetEncoder
from model.mimi.transformer import MimiTransformer, TransformerState

NUM_CODEBOOKS = 8
"""Codebooks that are streams of the language model; the public weights hold 32, of which the rest is unused."""
PIECE_FRAMES = 50
"""Frames of one pass, 4 s: this bounds the memory for hours of audio, and makes better use of the cache."""
STEADY_SECONDS = 24.0
"""Length of the audio that the constant frames are taken from; the window of the transformers is 10 s."""


@dataclass
class CodecState:
    """Streaming state of the encoder or of the decoder: left contexts of the convolutions, and keys and values.

    Each row is a stream of its own, which may start again, or pause, while the others go on.
    """

    convs: ConvState
    transformer: TransformerState
    most_frames: int
    """Frames of a pass; a call with more takes several."""

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(self.transformer.positions)

    def reset(self, rows: Sequence[int]) -> None:
        """Begins new streams in some rows. Raises: UserError for a row outside the batch."""
        if not rows or min(rows) < 0 or max(rows) >= self.batch:
            raise UserError(f"rows={list(rows)}: give rows in 0..{self.batch - 1}", code="bad-value")
        self.convs.forget(rows)
        self.transformer.forget(rows)

    def passes(self, length: int, active: Sequence[bool] | None) -> Iterator[tuple[slice, Sequence[bool] | None]]:
        """Where each pass over `length` frames begins and ends, with the state made ready for it.

        Raises: UserError if `active` is not one a row.
        """
        if active is not None and len(active) != self.batch:
            raise UserError(f"active for {len(active)} rows: give {self.batch}, one a row", code="bad-combination")
        if active is not None and all(active):
            active = None
        positions, device = self.transformer.positions, self.transformer.offset_B.device
        for at in range(0, length, self.most_frames):
            is_first = [position == 0 for position in positions]
            self.convs.is_first_B = torch.tensor(is_first, device=device) if any(is_first) else None
            self.convs.active_B = None if active is None else torch.tensor(list(active), device=device)
            yield slice(at, min(length, at + self.most_frames)), active


class Downsample(nn.Module):
    """The learnt step from 25 Hz to 12.5 Hz."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = CausalConv1d(width, width, 2 * STRIDE, stride=STRIDE, bias=False, replicate=True)


class Upsample(nn.Module):
    """The learnt step from 12.5 Hz to 25 Hz, one filter a channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convtr = CausalConvTranspose1d(width, width, STRIDE, bias=False, depthwise=True)


class Mimi(nn.Module):
    """The codec, with parameters in fp32.

    `encode` and `decode` take whole recordings. `encode_frame` and `decode_frame` continue a state, and return the same
    numbers. Training uses the differentiable `latent` and `synthesize`.
    """

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        width = config.seanet.dimension
        self.encoder = SeanetEncoder(config.seanet)
        self.encoder_transformer = MimiTransformer(config.transformer)
        self.downsample = Downsample(width)
        self.quantizer = SplitQuantizer(config.quantizer, width)
        self.upsample = Upsample(width)
        self.decoder_transformer = MimiTransformer(config.transformer)
        self.decoder = SeanetDecoder(config.seanet) if config.patch is None else PatchDecoder(config)

    @property
    def card(self) -> int:
        """Number of entries of a codebook."""
        return self.config.quantizer.bins

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks that `encode` returns: 8, or all of a smaller codec."""
        return min(NUM_CODEBOOKS, self.config.quantizer.n_q)

    # Differentiable halves

    def latent(self, wav_B1S: Tensor, state: CodecState | None = None, active: Sequence[bool] | None = None) -> Tensor:
        """The unquantised latent [B, D, T] of S = T * 1920 samples."""
        convs, transformer = (None, None) if state is None else (state.convs, state.transformer)
        x_BDT = self.encoder_transformer(self.encoder(wav_B1S, convs), transformer, active)
        return self.downsample.conv(x_BDT, convs)

    def synthesize(
        self, latent_BDT: Tensor, state: CodecState | None = None, active: Sequence[bool] | None = None
    ) -> Tensor:
        """The waveform [B, 1, T * 1920] of a quantised latent."""
        convs, transformer = (None, None) if state is None else (state.convs, state.transformer)
        x_BDT = self.decoder_transformer(self.upsample.convtr(latent_BDT, convs), transformer, active)
        return self.decoder(x_BDT, convs)

    # Whole recordings

    @torch.no_grad()
    def encode(self, wav_B1S: Tensor) -> Tensor:
        """Codes [B, Q, T], int64, of 24 kHz audio; a last partial frame is filled with zeros.

        Raises: UserError for empty or misshapen audio.
        """
        frame = self.config.frame_samples
        _check_wav(wav_B1S)
        wav_B1S = F.pad(wav_B1S, (0, -wav_B1S.shape[2] % frame))
        state = self.init_encoder_state(wav_B1S.shape[0], most_frames=PIECE_FRAMES)
        return self.encode_frame(state, wav_B1S)

    @torch.no_grad()
    def decode(self, codes_BQT: Tensor) -> Tensor:
        """The waveform [B, 1, T * 1920] of codes of 1 to n_q codebooks.

        Raises: UserError for misshapen codes or values outside the codebooks.
        """
        return self.decode_frame(self.init_decoder_state(len(codes_BQT), most_frames=PIECE_FRAMES), codes_BQT)

    # Streams

    def init_encoder_state(self, batch: int, *, most_frames: int = 1) -> CodecState:
        """The state before the first frame of `batch` streams; live streams bring one frame at a time."""
        transformer = self.encoder_transformer.init_state(batch, STRIDE * most_frames)
        return CodecState(ConvState(), transformer, most_frames)

    def init_decoder_state(self, batch: int, *, most_frames: int = 1) -> CodecState:
        """The state before the first frame of `batch` streams; live streams bring one frame at a time."""
        transformer = self.decoder_transformer.init_state(batch, STRIDE * most_frames)
        return CodecState(ConvState(), transformer, most_frames)

    @torch.no_grad()
    def encode_frame(self, state: CodecState, wav_B1S: Tensor, active: Sequence[bool] | None = None) -> Tensor:
        """Codes [B, Q, n] of the next n * 1920 samples; it updates the state.

        active: which rows go on, one a row; None: all. The others keep their state, and their codes mean nothing.
        Raises: UserError if S is not a positive multiple of a frame, or the batch is not the state's.
        """
        _check_wav(wav_B1S)
        frame = self.config.frame_samples
        if wav_B1S.shape[2] % frame or wav_B1S.shape[0] != state.batch:
            raise UserError(
                f"audio {tuple(wav_B1S.shape)} for {state.batch} streams: give [{state.batch}, 1, n * {frame}] samples",
                code="bad-audio",
            )
        codes = []
        for piece, goes in state.passes(wav_B1S.shape[2] // frame, active):
            latent_BDT = self.latent(wav_B1S[..., piece.start * frame : piece.stop * frame], state, goes)
            codes.append(self.quantizer.encode(latent_BDT, self.num_codebooks))
        return torch.cat(codes, dim=2)

    @torch.no_grad()
    def decode_frame(self, state: CodecState, codes_BQT: Tensor, active: Sequence[bool] | None = None) -> Tensor:
        """The waveform [B, 1, n * 1920] of the next n frames; it updates the state.

        active: which rows go on, one a row; None: all. The others keep their state, and their samples mean nothing.
        Raises: UserError for misshapen codes or values outside the codebooks.
        """
        count = self.config.quantizer.n_q
        if codes_BQT.dim() != 3 or not 1 <= codes_BQT.shape[1] <= count or codes_BQT.shape[2] == 0:
            raise UserError(
                f"codes of shape {tuple(codes_BQT.shape)}: give [B, 1 to {count} codebooks, at least 1 frame]",
                code="bad-value",
            )
        if codes_BQT.shape[0] != state.batch:
            raise UserError(
                f"codes of {codes_BQT.shape[0]} streams for a state of {state.batch}: give as many",
                code="bad-combination",
            )
        low, high = (int(value) for value in codes_BQT.aminmax())
        if low < 0 or high >= self.card:
            raise UserError(
                f"codes from {low} to {high}: this codec's are 0 to {self.card - 1}; remove special ids first",
                code="bad-value",
            )
        waves = []
        for piece, goes in state.passes(codes_BQT.shape[2], active):
            waves.append(self.synthesize(self.quantizer.decode(codes_BQT[..., piece]), state, goes))
        return torch.cat(waves, dim=2)

    # Constants and identity

    def constants(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Codes [8] of a frame of silence and of a frame of the 440 Hz sine of amplitude 0.5, as the prompts use them.

        They come from the config (the published values for the public weights). Where it has none, they are computed
        once in steady state and kept there.
        """
        if self.config.silence_codes is None or self.config.sine_codes is None:
            times = (
                torch.arange(round(STEADY_SECONDS * self.config.sample_rate), device=self.device)
                / self.config.sample_rate
            )
            sine = 0.5 * torch.sin(2 * math.pi * 440.0 * times)
            silence_codes, sine_codes = self._steady_codes(torch.stack([torch.zeros_like(sine), sine])[:, None])
            self.config = replace(self.config, silence_codes=silence_codes, sine_codes=sine_codes)
        assert self.config.silence_codes is not None and self.config.sine_codes is not None  # for the type checker
        return self.config.silence_codes, self.config.sine_codes

    def _steady_codes(self, wav_B1S: Tensor) -> list[tuple[int, ...]]:
        """The commonest frame of the last half of each recording, because a sine meets the frames in several phases."""
        frames_BTQ = self.encode(wav_B1S).transpose(1, 2).tolist()
        return [Counter(map(tuple, frames[len(frames) // 2 :])).most_common(1)[0][0] for frames in frames_BTQ]

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.upsample.convtr.convtr.convtr.weight.device

    def codebooks(self) -> Iterator[Codebook]:
        """All codebooks in stream order."""
        yield from self.quantizer.rvq_first.codebooks
        yield from self.quantizer.rvq_rest.codebooks

    def fingerprint(self) -> str:
        """The sha256, in hex, of all tensor names, shapes and fp32 values: codecs of one fingerprint are equal."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _check_wav(wav_B1S: Tensor) -> None:
    if wav_B1S.dim() != 3 or wav_B1S.shape[1] != 1 or wav_B1S.shape[2] == 0 or not wav_B1S.is_floating_point():
        raise UserError(
            f"audio {tuple(wav_B1S.shape)} {wav_B1S.dtype}: give floating-point [B, 1, at least 1 sample]",
            code="bad-audio",
        )
