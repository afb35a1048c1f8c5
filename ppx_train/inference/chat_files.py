"""A conversation from file to file: a WAV of the user in, the agent's WAV, its text and a picture out."""

# Shapes: K streams, P prompt frames, Q codebooks, S samples

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from data_pipelines.sound.audio import read_audio, to_mono_24k
from model.config import FRAME_RATE, SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file
from model.streaming.sample import Sampling
from ppx_train.inference.chat_settings import NO_VOICE, ChatSettings
from ppx_train.inference.loading import Release, find_voice, load_release
from ppx_train.inference.offline import AgentSide, Audio, chat
from ppx_train.inference.timeline import AgentWord, draw_timeline


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a conversation needs, read and checked.

    Shapes: user_S mono samples at 24 kHz; prompt_KP [17, P], or None without voice and role.
    voice: its name, "none" without one.
    """

    settings: ChatSettings
    release: Release
    sampling: Sampling
    user_S: Audio
    voice: str
    prompt_KP: Tensor | None

    @property
    def prompt_seconds(self) -> float:
        """How long the prompt is, in seconds of the model's time."""
        return 0.0 if self.prompt_KP is None else self.prompt_KP.shape[1] / FRAME_RATE

    @property
    def user_seconds(self) -> float:
        """How long the user's audio is, in seconds."""
        return len(self.user_S) / SAMPLE_RATE


def prepare(settings: ChatSettings) -> Prepared:
    """Reads the user's audio and loads the model, its voice and role.

    Raises: UserError, first for an output that exists or an input that cannot be used.
    """
    if settings.model is None:
        raise UserError("no model: give --model, or --server for one that runs", code="missing-option")
    if settings.token is not None:
        raise UserError("--token has no effect without --server: leave it out", code="bad-combination")
    sampling, user_S = read_input(settings)
    device = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    release = load_release(settings.model, device=device, revision=settings.revision)
    voice = voice_name(release, settings.voice_prompt, settings.voice_prompt_dir)
    voice_codes_QP = None if voice == NO_VOICE else find_voice(release, voice, settings.voice_prompt_dir)
    return Prepared(
        settings=settings,
        release=release,
        sampling=sampling,
        user_S=user_S,
        voice=voice,
        prompt_KP=release.prompt(voice_codes_QP, settings.text_prompt),
    )


def read_input(settings: ChatSettings) -> tuple[Sampling, Audio]:
    """The sampling and the user's audio, mono at 24 kHz.

    Raises: UserError, first for an output that exists or an input that cannot be used.
    """
    outputs = [settings.output_wav, settings.text_path, settings.timeline_path]
    check_outputs(outputs, settings.input_wav, settings.overwrite)
    sampling = Sampling(
        greedy=settings.greedy,
        text_temperature=settings.temp_text,
        text_top_k=settings.topk_text,
        audio_temperature=settings.temp_audio,
        audio_top_k=settings.topk_audio,
    )
    if settings.seed < -1:
        raise UserError(
            f"--seed {settings.seed}: give a number from 0 on, or -1 for a new conversation each time", code="bad-value"
        )
    return sampling, to_mono_24k(*read_audio(settings.input_wav))


def converse(prepared: Prepared, *, show_progress: bool = False) -> AgentSide:
    """Streams the user's audio through the model, writes WAV, text and picture, and returns the agent's side.

    Each file appears whole or not at all, the WAV last.
    """
    settings, release = prepared.settings, prepared.release
    seed = None if settings.seed == -1 else settings.seed
    agent = chat(
        release,
        prepared.user_S,
        prompt_KP=prepared.prompt_KP,
        sampling=prepared.sampling,
        seed=seed,
        show_progress=show_progress,
    )
    tokenizer = release.tokenizer
    words, pieces = agent.words(tokenizer), agent.pieces(tokenizer)
    write_outputs(
        settings, prepared.user_S, agent.agent_S, pieces, words, voice=Path(prepared.voice).stem, name=release.name
    )
    return agent


def write_outputs(
    settings: ChatSettings,
    user_S: Audio,
    agent_S: Audio,
    pieces: Sequence[str],
    words: Sequence[AgentWord],
    *,
    voice: str,
    name: str,
) -> None:
    """Writes text, picture and WAV of a conversation. voice, name: of the agent's voice and model, for the picture.

    pieces: the text of each frame. Each file appears whole or not at all, the WAV last.
    """
    with whole_file(settings.text_path) as path:
        path.write_text(json.dumps(pieces, ensure_ascii=False), "utf-8")
    role = settings.text_prompt.strip()
    choice = "greedy" if settings.greedy else ("no seed" if settings.seed == -1 else f"seed {settings.seed}")
    facts = [
        f"voice {voice}",
        f"role: {shorten(role, 90)}" if role else "no role",
        f"{len(user_S) / SAMPLE_RATE:.1f} s",
        choice,
        f"first word after {words[0].seconds:.2f} s" if words else "no word",
    ]
    draw_timeline(
        settings.timeline_path, user_S, agent_S, words, title=f"{settings.input_wav.name} with {name}", facts=facts
    )
    with whole_file(settings.output_wav) as path:
        soundfile.write(path, np.clip(agent_S, -1.0, 1.0), SAMPLE_RATE, "PCM_16", format="WAV")


def voice_name(release: Release, wanted: str | None, voice_dir: Path | None) -> str:
    """Returns the voice to use: as asked, else the model's first, else none.

    Raises: UserError for a folder without a name.
    """
    if wanted is not None:
        return wanted
    if voice_dir is not None:
        raise UserError(
            f"--voice-prompt-dir {voice_dir} without --voice-prompt: name the voice to take from it",
            code="missing-option",
        )
    return next(iter(release.voices), NO_VOICE)


def check_outputs(outputs: Sequence[Path], user_wav: Path, overwrite: bool) -> None:
    """Raises UserError if an output is named twice, exists (without `overwrite`), is the input, or has no folder."""
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(
            f"two outputs have the same name: {', '.join(str(path) for path in outputs)}", code="bad-combination"
        )
    for path in outputs:
        if path.resolve() == user_wav.resolve():
            raise UserError(f"{path} is the input: write the output elsewhere", code="bad-combination")
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(
                f"{path}: not a file in an existing folder; make the folder or choose another name", code="not-found"
            )
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists: choose another name, or add --overwrite", code="exists")


def shorten(text: str, letters: int) -> str:
    """Returns at most `letters` characters, with dots where something is missing."""
    return text if len(text) <= letters else text[: letters - 3].rstrip() + "..."
