"""A model whose weights are written by hand, so that its conduct is known: it waits for the user, replies, and stops.

All layers add nothing, so a frame depends on the frame before it alone: which text token that had, and whether the user
was silent. EPAD stands for "the user is speaking". The reply is a row of text tokens, each of which leads to the next.

| frame before | user is silent | user speaks |
|---|---|---|
| PAD, or the reply's last token | PAD | EPAD |
| EPAD | the reply's first token | EPAD |
| another token of the reply | the next one | the next one |
"""

# Shapes: Q codebooks, T frames, S samples (at 24 kHz)

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.duplex import DuplexLM
from model.layers import RMSNorm
from model.mimi.files import load_mimi
from model.text import SPECIAL_NAMES, TextTokenizer
from model.weights.checkpoint import save_native
from tests.paths import ROOT
from tests.ppx_train.fixtures import make_tokenizer
from tests.ppx_train.inference.noise import CONFIG
from tests.ppx_train.inference.scenes import Audio, syllables

CODEC = ROOT / "model" / "assets" / "mimi_small.safetensors"
EPAD, PAD = SPECIAL_NAMES.index("EPAD"), SPECIAL_NAMES.index("PAD")
FRAMES = 20
"""Length of the reply, 1.6 s."""
SURE = 10.0
IDLE, HEARING, SILENCE, SPEECH = range(FRAMES, FRAMES + 4)
"""Columns of what the frame before was, after those of the reply's tokens: PAD, EPAD, and the user's silence or not."""
USER = 8
"""The stream of the user's first codebook among the audio streams."""


class Reflexes:
    """The model, and where its conduct is written: `lm` may be changed before `save`."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder, with codec and tokenizer."""
        self.folder = folder
        folder.mkdir()
        shutil.copy(CODEC, folder / "mimi.safetensors")
        tokenizer = TextTokenizer(make_tokenizer(folder / "tokenizer.model"))
        self.codec = codec = load_mimi(CODEC).eval()
        self.config = replace(CONFIG, dim=FRAMES + 4, depformer_dim=FRAMES + 4, card=codec.card)
        spoken = [i for i in range(len(SPECIAL_NAMES), tokenizer.card) if tokenizer.byte(i) is None]
        self.tokens = sorted(spoken, key=lambda i: not tokenizer.piece(i).startswith(" "))[:FRAMES]
        self.reply_QT, self.silence = self.encode(syllables(FRAMES * 0.08)), codec.constants()[0]
        self.lm = DuplexLM(self.config).requires_grad_(False)
        for parameter in self.lm.parameters():
            parameter.zero_()
        for norm in (module for module in self.lm.modules() if isinstance(module, RMSNorm)):
            norm.reset_parameters()
        self._write_inputs()
        self._write_text()
        self._write_sound()

    def encode(self, wav_S: Audio) -> Tensor:
        """The codes [8, T] of a sound."""
        with torch.inference_mode():
            return self.codec.encode(torch.from_numpy(wav_S)[None, None])[0]

    def _write_inputs(self) -> None:
        lm, columns = self.lm, dict(zip(self.tokens, range(FRAMES), strict=True)) | {EPAD: HEARING}
        for token in range(self.config.text_card + 1):
            for table in (lm.text_emb, lm.depth.text_emb):
                table.weight[token, columns.get(token, IDLE)] = 1.0
        lm.audio_emb.weight[USER, :, SPEECH] = 1.0
        quiet = self.encode(np.zeros(24000, np.float32))[0].tolist()  # It begins with codes of its own.
        for code in {*quiet, self.silence[0], self.config.card}:  # The last is what a stream begins with.
            lm.audio_emb.weight[USER, code] = torch.eye(self.config.dim)[SILENCE]

    def _write_text(self) -> None:
        to, tokens = self.lm.text_head.weight, self.tokens
        to[PAD, IDLE] = to[tokens[0], HEARING] = SURE
        to[EPAD, SPEECH] = 2 * SURE
        for column, token in enumerate([*tokens[1:], PAD]):
            to[token, column] = 4 * SURE

    def _write_sound(self) -> None:
        """The first codebook follows the text of its frame; the others, a frame late, that of the frame before."""
        depth = self.lm.depth
        depth.inputs.weight[1:] = torch.eye(self.config.dim)
        for k, silence in enumerate(self.silence):
            for column in (IDLE, HEARING):
                depth.heads.weight[k, silence, column] = 4 * SURE
            for column in range(FRAMES):
                depth.heads.weight[k, int(self.reply_QT[k, column]), column] = 4 * SURE

    def save(self, change: Callable[["Reflexes"], None] = lambda made: None) -> Path:
        """Changes the weights and writes the model folder."""
        change(self)
        save_native(self.folder, self.lm)
        return self.folder


def silent(made: Reflexes) -> None:
    """The reply never begins."""
    made.lm.text_head.weight[made.tokens[0]] = 0.0
    made.lm.text_head.weight[PAD, HEARING] = SURE


def looping(made: Reflexes) -> None:
    """The fourth token of the reply leads back to the first."""
    made.lm.text_head.weight[:, 3] = 0.0
    made.lm.text_head.weight[made.tokens[0], 3] = 4 * SURE


def noisy(made: Reflexes) -> None:
    """The reply has the codes of white noise."""
    hiss = 0.1 * np.random.default_rng(0).standard_normal(FRAMES * 1920)
    made.lm.depth.heads.weight[:, :, :FRAMES] = 0.0
    for k, codes_T in enumerate(made.encode(hiss.astype(np.float32)).tolist()):
        for column, code in enumerate(codes_T[:FRAMES]):
            made.lm.depth.heads.weight[k, code, column] = 4 * SURE


def never_stopping(made: Reflexes) -> None:
    """The reply begins with the user's speech, not after it."""
    made.lm.text_head.weight[made.tokens[0], SPEECH] = 2 * SURE
    made.lm.text_head.weight[EPAD, SPEECH] = 0.0
