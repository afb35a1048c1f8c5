"""Parakeet TDT through transformers, the recogniser of published full-duplex figures.

It punctuates, and needs a GPU to be quick.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipelines.sound.audio import Audio, to_rate
from model.errors import UserError
from model.extras import require
from model.weights.sources import REPOSITORY, hub_errors

RATE_HZ = 16_000
BATCH = 16
MIN_SAMPLES = 1600
"""The encoder gets no frame out of a shorter piece."""


class Parakeet:
    """A `ParakeetForTDT` with its processor; weights are read from safetensors only."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        """`name`: a folder or ORG/NAME. Raises UserError if the package is missing or the model cannot be used."""
        require("num2words", extra="asr")
        transformers = require("transformers", extra="parakeet")
        if not (name and Path(name).is_dir()) and not REPOSITORY.match(name):
            raise UserError(
                f"asr parakeet:{name}: no such folder, nor a repository name: give ORG/NAME or a folder",
                code="unknown-name",
            )
        try:
            with hub_errors(f"asr parakeet:{name}"):
                self._processor: Any = transformers.AutoProcessor.from_pretrained(name)
                model = transformers.ParakeetForTDT.from_pretrained(name, use_safetensors=True)
                self._model: Any = model.to(device).eval()
        except UserError:
            raise
        except (ValueError, RuntimeError, AssertionError, AttributeError, KeyError) as why:
            reason = str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
            raise UserError(
                f"asr parakeet:{name} on {device}: {reason}: give a Parakeet TDT model", code="missing-engine"
            ) from why
        self.name, self.device = name, device
        self._version = transformers.__version__

    def identity(self) -> dict[str, Any]:
        """Returns the provenance: name, version, model."""
        return {
            "name": "transformers parakeet-tdt",
            "version": self._version,
            "model": self.name,
            "revision": getattr(self._model.config, "_commit_hash", None) or "",
            "deterministic": self.device == "cpu",
        }

    def transcribe(self, audio: Audio, rate: int) -> str:
        """Returns the text of one utterance: float32 [samples] in [-1, 1]; "" if nothing is heard."""
        return self.transcribe_all([audio], rate)[0]

    @torch.inference_mode()
    def transcribe_all(self, pieces: Sequence[Audio], rate: int) -> list[str]:
        """Returns the text of each utterance, which are recognised in batches."""
        texts: list[str] = [""] * len(pieces)
        heard = [to_rate(piece, rate, RATE_HZ) for piece in pieces]
        order = sorted((n for n in range(len(heard)) if len(heard[n]) >= MIN_SAMPLES), key=lambda n: len(heard[n]))
        for first in range(0, len(order), BATCH):
            chosen = order[first : first + BATCH]
            inputs = self._processor([heard[n] for n in chosen], sampling_rate=RATE_HZ, return_tensors="pt")
            inputs = inputs.to(self.device, dtype=self._model.dtype)
            # Without an end token the library adds words to finished texts until all texts are finished.
            end = self._processor.tokenizer.pad_token_id
            found = self._model.generate(**inputs, return_dict_in_generate=True, eos_token_id=end).sequences
            for n, text in zip(chosen, self._processor.batch_decode(found, skip_special_tokens=True), strict=True):
                texts[n] = " ".join(text.split())
        return texts
