"""Stands for the package chatterbox: the same calls, and real speech by eSpeak NG in a voice chosen by the clip.

Some words in the text make it fail the way engines do.
"""

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import torch

from data_pipelines.sound.audio import to_rate
from data_pipelines.speech.tts.espeak import EspeakEngine

VOICES = ("en-us+m1", "en-us+m2", "en-us+f1", "en-us+f2", "en-us+f5")


class ChatterboxTTS:
    sr = 24000

    def __init__(self) -> None:
        self.espeak = EspeakEngine()

    @classmethod
    def from_local(cls, ckpt_dir: str, device: str) -> "ChatterboxTTS":
        assert (Path(ckpt_dir) / "t3_cfg.safetensors").is_file() and device == "cpu"
        return cls()

    @classmethod
    def from_pretrained(cls, device: str) -> "ChatterboxTTS":
        raise OSError("the hub cannot be reached")

    def generate(
        self,
        text: str,
        audio_prompt_path: str,
        exaggeration: float = 0.5,
        cfg_weight: float = 0.5,
        temperature: float = 0.8,
    ) -> torch.Tensor:
        if os.environ.get("FAKE_LOG"):
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(text + "\n")
        clip = Path(audio_prompt_path).read_bytes()
        voice = VOICES[hashlib.sha256(clip).digest()[0] % len(VOICES)]
        chance = float(torch.rand(()))
        said = {"Different": "Nobody ever said that it would be easy to do.", "Babbling": f"{text} {text} {text}"}
        spoken = next((other for word, other in said.items() if word in text), text)
        speech = self.espeak.speak(spoken, f"espeak/{voice}", seed=0, speed=0.95 + 0.1 * chance)
        audio = to_rate(speech.audio, speech.rate, self.sr)
        if "Silence" in text:
            audio = np.zeros_like(audio)
        if "Nothing" in text:
            audio = audio[:0]
        if "Broken" in text:
            audio[len(audio) // 2] = np.nan
        if "Endless" in text:
            audio = np.tile(audio, 20)
        if "Hasty" in text:
            audio = audio[:2000]
        if "Loud" in text:
            audio = audio * 32767
        if "Crash" in text:
            raise RuntimeError("CUDA error: the device is gone")
        if "Sometimes" in text and chance > 0.55:
            audio = np.zeros_like(audio)
        if "Waiting for" in text:
            go = Path(text.split()[-1])
            go.with_suffix(".begun").touch()
            while not go.exists():
                time.sleep(0.02)
        return torch.from_numpy(audio).unsqueeze(0)
