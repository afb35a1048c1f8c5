"""A conversation from file to file: the user's side in, the agent's WAV, its text and a picture out."""

# Shapes: K streams, P prompt frames, S samples

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from torch import Tensor

from model.config import FRAME_RATE, SAMPLE_RATE
from model.errors import UserError
from model.files import whole_file
from model.streaming.sample import Sampling
from ppx_train.inference.chat_settings import NO_VOICE, ChatSettings
from ppx_train.inference.chat_user import ChatUser, read_user
from ppx_train.inference.conversations import check_in_sight
from ppx_train.inference.loading import Release, find_voice, load_release
from ppx_train.inference.microphone import Microphone
from ppx_train.inference.model_options import DEFAULT_PAST_WINDOW
from ppx_train.inference.offline import AgentSide, PlannedChat, chats
from ppx_train.inference.session import Audio, SessionSettings
from ppx_train.inference.timeline import AgentWord, draw_timeline
from ppx_train.inference.user_side import UserSide


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that a conversation needs, read and checked.

    Shapes: prompt_KP [17, P], or None without voice and role. user: None is whoever speaks into the microphone.
    voice: its name, "none" without one.
    """

    settings: ChatSettings
    release: Release
    sampling: Sampling
    user: ChatUser | None
    voice: str
    prompt_KP: Tensor | None

    @property
    def prompt_seconds(self) -> float:
        """How long the prompt is, in seconds of the model's time."""
        return 0.0 if self.prompt_KP is None else self.prompt_KP.shape[1] / FRAME_RATE


def prepare(settings: ChatSettings) -> Prepared:
    """Reads the user's audio and loads the model, its voice and role.

    Raises: UserError, first for an output that exists or an input that cannot be used.
    """
    check_outputs(settings)
    sampling = sampling_of(settings)
    if settings.mic:
        Microphone().close()  # A missing device is named before the model is loaded.
    user = None if settings.mic else read_user(settings)
    release = load_model(settings)
    voice = voice_name(release, settings.voice_prompt, settings.voice_prompt_dir)
    prompt_KP = release.prompt(voice_codes(release, voice, settings.voice_prompt_dir), settings.text_prompt)
    check_prompts(settings, release, [prompt_KP])
    return Prepared(
        settings=settings,
        release=release,
        sampling=sampling,
        user=user,
        voice=voice,
        prompt_KP=prompt_KP,
    )


def load_model(settings: ChatSettings) -> Release:
    """Loads the model that is asked for. Raises: UserError as load_release."""
    assert settings.model is not None
    return load_release(
        settings.model, device=settings.device, precision=settings.precision, revision=settings.revision
    )


def check_prompts(settings: ChatSettings, release: Release, prompts: Sequence[Tensor | None]) -> None:
    """Raises UserError if voice and role are to be kept, and no conversation has any, or one's do not fit."""
    for prompt_KP in prompts:
        frames = 0 if prompt_KP is None else prompt_KP.shape[1]
        check_in_sight(release.lm.config.context, frames, settings.past_window or DEFAULT_PAST_WINDOW)
    if settings.past_window not in (None, "forget") and all(prompt_KP is None for prompt_KP in prompts):
        raise UserError(
            f"--past-window {settings.past_window} has no effect without voice and role: leave it out",
            code="bad-combination",
        )


def voice_codes(release: Release, voice: str, voice_dir: Path | None) -> Tensor | None:
    """The codes [8, P] of a voice; None for "none". Raises: UserError as find_voice."""
    return None if voice == NO_VOICE else find_voice(release, voice, voice_dir)


def sampling_of(settings: ChatSettings) -> Sampling:
    """How tokens are chosen. Raises: UserError for values that cannot be."""
    return Sampling(
        greedy=settings.greedy,
        text_temperature=settings.temp_text,
        text_top_k=settings.topk_text,
        audio_temperature=settings.temp_audio,
        audio_top_k=settings.topk_audio,
    )


def read_input(settings: ChatSettings) -> tuple[Sampling, Audio]:
    """The sampling and the user's recording, mono at 24 kHz.

    Raises: UserError, first for an output that exists or an input that cannot be used.
    """
    check_outputs(settings)
    return sampling_of(settings), read_user(settings).audio_S


def converse(prepared: Prepared, *, show_progress: bool = False) -> AgentSide:
    """Holds the conversation, writes WAV, text and picture, and returns the agent's side.

    Each file appears whole or not at all, the WAV last.
    """
    settings, release = prepared.settings, prepared.release
    agent = _talk(prepared, show_progress)
    tokenizer = release.tokenizer
    words, pieces = agent.words(tokenizer), agent.pieces(tokenizer)
    write_outputs(
        settings, agent.user_S, agent.agent_S, pieces, words, voice=Path(prepared.voice).stem, name=release.name
    )
    return agent


def _talk(prepared: Prepared, show_progress: bool) -> AgentSide:
    """The conversation, as long as the user's audio."""
    of = SessionSettings(
        prompt_KP=prepared.prompt_KP,
        sampling=prepared.sampling,
        seed=None if prepared.settings.seed == -1 else prepared.settings.seed,
    )

    def talk(user: UserSide) -> AgentSide:
        planned = PlannedChat(settings=of, user=user)
        made = chats(
            prepared.release, [planned], slots=1, sampling=of.sampling, show_progress=show_progress,
            past_window=prepared.settings.past_window or DEFAULT_PAST_WINDOW,
        )  # fmt: skip
        return next(made)[1]

    if prepared.user is None:
        with Microphone() as user:
            agent = talk(user)
        if user.missed:
            print(f"the model was too slow for the microphone {user.missed} times: what was said then is lost")
        return agent
    agent = talk(prepared.user.side())
    samples = len(prepared.user.audio_S) or len(agent.user_S)
    return replace(agent, agent_S=agent.agent_S[:samples], user_S=agent.user_S[:samples])


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
        settings.timeline_path, user_S, agent_S, words, title=f"{settings.user_name} with {name}", facts=facts
    )
    with whole_file(settings.wav_path) as path:
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


def check_outputs(settings: ChatSettings) -> None:
    """Raises UserError if an output is named twice, exists (without `overwrite`), is the input, or has no folder."""
    outputs = [settings.wav_path, settings.text_path, settings.timeline_path]
    inputs = [path.resolve() for path in (settings.input_wav, settings.script, settings.replay) if path is not None]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise UserError(
            f"two outputs have the same name: {', '.join(str(path) for path in outputs)}", code="bad-combination"
        )
    for path in outputs:
        if path.resolve() in inputs:
            raise UserError(f"{path} is the input: write the output elsewhere", code="bad-combination")
        if path.is_dir() or not path.parent.is_dir():
            raise UserError(
                f"{path}: not a file in an existing folder; make the folder or choose another name", code="not-found"
            )
        if path.exists() and not settings.overwrite:
            raise UserError(f"{path} exists: choose another name, or add --overwrite", code="exists")


def shorten(text: str, letters: int) -> str:
    """Returns at most `letters` characters, with dots where something is missing."""
    return text if len(text) <= letters else text[: letters - 3].rstrip() + "..."
