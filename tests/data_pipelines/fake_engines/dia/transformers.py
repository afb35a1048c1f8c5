"""Stands for transformers' Dia: the same calls, and a mixture of two eSpeak NG voices with a gap between turns."""

import os
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from data_pipelines.sound.audio import Audio, to_rate
from data_pipelines.speech.tts.espeak import EspeakEngine

RATE, HOP = 44100, 512
VOICES = {"S1": "espeak/en-us+f2", "S2": "espeak/en-us+m2"}


class Inputs(dict[str, Any]):
    def to(self, device: str) -> "Inputs":
        return self


class Processor:
    feature_extractor = SimpleNamespace(sampling_rate=RATE)

    def __call__(
        self,
        text: list[str],
        padding: bool,
        return_tensors: str,
        audio: Audio | None = None,
        sampling_rate: int | None = None,
    ) -> Inputs:
        frames = 0 if audio is None else len(audio) // HOP
        assert audio is None or sampling_rate == RATE
        return Inputs(text=text[0], decoder_attention_mask=torch.ones(1, 1 + frames + 15), prompt=audio)

    def get_audio_prompt_len(self, mask: torch.Tensor) -> int:
        return mask.shape[1] - 15

    def batch_decode(self, codes: torch.Tensor, audio_prompt_len: int | None = None) -> list[torch.Tensor]:
        return [codes]


class AutoProcessor:
    @staticmethod
    def from_pretrained(model: str) -> Processor:
        return Processor()


class Engine:
    config = SimpleNamespace(
        decoder_config=SimpleNamespace(max_position_embeddings=3072), delay_pattern=[0, 8, 9, 10, 11, 12, 13, 14, 15]
    )

    def __init__(self) -> None:
        self.espeak = EspeakEngine()

    def to(self, device: str) -> "Engine":
        return self

    def eval(self) -> "Engine":
        return self

    def generate(
        self,
        text: str,
        decoder_attention_mask: torch.Tensor,
        prompt: Audio | None,
        max_new_tokens: int,
        do_sample: bool,
        **options: float,
    ) -> torch.Tensor:
        turns: list[tuple[str, str]] = re.findall(r"\[(S[12])\] ([^\[]+)", text)
        for n, seconds in enumerate(lengths(prompt) if prompt is not None else []):
            tag, said = turns[n]
            turns[n] = (tag, self.after(tag, said, seconds))
        turns = [(tag, said) for tag, said in turns if said]
        if os.environ.get("FAKE_LOG"):
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(f"{prompt is not None} {turns}\n")
        gap = -0.3 if "Overlapping" in text else 0.15 + 0.1 * float(torch.rand(()))
        audio, at = np.zeros(0, np.float32), 0.1
        for tag, said in turns:
            wave = self.say(tag, said)
            start = round(at * RATE)
            audio = np.pad(audio, (0, max(0, start + len(wave) - len(audio))))
            audio[start : start + len(wave)] += wave
            at = len(audio) / RATE + gap
        return torch.from_numpy(0.7 * audio)

    def say(self, tag: str, text: str) -> Audio:
        speech = self.espeak.speak(text, VOICES[tag], seed=0)
        return to_rate(speech.audio, speech.rate, RATE)

    def after(self, tag: str, text: str, seconds: float) -> str:
        """The text without its beginning that lasts `seconds`: what the reference holds already."""
        words = text.split()
        spans = [abs(len(self.say(tag, " ".join(words[:n]))) / RATE - seconds) for n in range(1, len(words) + 1)]
        return " ".join(words[1 + int(np.argmin(spans)) :])


def lengths(prompt: Audio) -> list[float]:
    """Seconds of each voice in a reference: they are followed by 0.2 s of exact silence."""
    silent = np.concatenate(([0], (prompt == 0).astype(int), [0]))
    starts, stops = np.flatnonzero(np.diff(silent) == 1), np.flatnonzero(np.diff(silent) == -1)
    edges = [(a, b) for a, b in zip(starts, stops, strict=True) if b - a >= 0.19 * RATE]
    begin = [0, *(b for _, b in edges[:-1])]
    return [(a - at) / RATE for (a, _), at in zip(edges, begin, strict=True)]


class DiaForConditionalGeneration:
    @staticmethod
    def from_pretrained(model: str) -> Engine:
        return Engine()
