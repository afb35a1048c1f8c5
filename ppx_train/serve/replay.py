"""`ppx-chat --replay`: holds a call that the web page kept again, offline, and says whether the agent says the same.

The text is compared frame by frame, and the sound too if it came unchanged, as PCM16 and with nothing left out. Tokens
do not travel; an agent that says another one sounds otherwise, or soon says another word.
"""

# Shapes: A agent streams, C channels, K streams, P prompt frames, Q codebooks, S samples (at 24 kHz), T frames

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipelines.records.typed import OpenRecord, record
from data_pipelines.sound.audio import read_audio
from model.config import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from model.errors import UserError
from ppx_train import __version__
from ppx_train.inference.chat_files import check_outputs, write_outputs
from ppx_train.inference.chat_settings import ChatSettings
from ppx_train.inference.loading import Release, load_release
from ppx_train.inference.model_options import PastWindow, Precision
from ppx_train.inference.offline import AgentSide, PlannedChat, chats
from ppx_train.inference.session import Audio, SessionSettings, TextPieces
from ppx_train.inference.user_side import RecordedUser
from ppx_train.serve.query import CallRequest, Refusal, read_query
from ppx_train.serve.settings import CallLimits
from ppx_train.serve.voices import read_voices

SETTINGS, TRANSCRIPT = "-settings.json", "-transcript.json"
"""The ends of the names of a call's files; the recording has .wav instead."""
LOUDEST_ROUNDING = 2**-9
"""What rounding changes in a sample at most, of full scale; another token is far louder."""
MOST_SLOTS, LONGEST_SECONDS = 1024, 1e6
"""Bounds of what files hold, far beyond any call."""
Kept = TypeVar("Kept")


@dataclass(frozen=True, kw_only=True)
class KeptServer(OpenRecord):
    """The server of a call, as it said when the page was opened. None: a server that did not say."""

    model: str | None = None
    version: str | None = None
    checksum: str | None = None
    device: str | None = None
    precision: Precision | None = None
    past_window: PastWindow | None = None
    sessions: int = 1


@dataclass(frozen=True, kw_only=True)
class KeptCall(OpenRecord):
    """The settings file of a call. sampling: the fields of the query. seconds: of the agent's sound."""

    server: KeptServer
    role: str
    voice: str
    seed: int
    codec: str
    sampling: dict[str, float]
    seconds: float
    frames_dropped: int = 0
    frames_left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class KeptPiece(OpenRecord):
    """A piece of the agent's text, at its second of the call."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class KeptTranscript(OpenRecord):
    """The transcript file of a call."""

    pieces: tuple[KeptPiece, ...]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came of it.

    first: the frame from which the agent says something else, and what differs in it; None if nothing does.
    has_sound: whether the sound was compared, too. reasons: why the agent may say something else.
    """

    frames: int
    first: tuple[int, str] | None
    has_sound: bool
    reasons: Sequence[str] = field(default_factory=tuple)

    @property
    def is_equal(self) -> bool:
        """Whether the agent says the same."""
        return self.first is None

    def __str__(self) -> str:
        """One line for the terminal."""
        what = "text and sound" if self.has_sound else "text"
        if self.first is None:
            return f"equal: {what} of all {self.frames} frames ({self.frames / FRAME_RATE:.1f} s)"
        number, difference = self.first
        return f"different from frame {number} of {self.frames} on ({number / FRAME_RATE:.2f} s): {difference}"


def hold_again(settings: ChatSettings, *, show_progress: bool = False) -> Comparison:
    """Holds the call of `settings.replay` again, writes `settings.output_wav` if it is given, and compares.

    Raises: UserError for a file that is missing or damaged, a model that cannot be loaded, or a voice that it lacks.
    """
    path, model = settings.replay, settings.model
    assert path is not None and model is not None
    recording = settings.input_wav or _beside(path, ".wav")
    settings = replace(settings, input_wav=recording)
    if settings.output_wav is not None:
        check_outputs(settings)
    call, transcript = _read(path, KeptCall), _beside(path, TRANSCRIPT)
    _check(path, call)
    said = _texts(transcript, _read(transcript, KeptTranscript))
    agent_S, user_S = _sound(recording, call)
    wanted = _request(path, call)
    release = load_release(model, device=settings.device, precision=call.server.precision, revision=settings.revision)
    planned = PlannedChat(settings=_session(release, settings, wanted), user=RecordedUser(user_S))
    made = chats(
        release, [planned], slots=call.server.sessions, sampling=wanted.sampling, show_progress=show_progress,
        past_window=call.server.past_window or "forget",
    )  # fmt: skip
    again = next(made)[1]
    if settings.output_wav is not None:
        _write(settings, call, release, again)
    has_sound = call.codec == "pcm16" and not call.frames_left_out
    first = _first_difference(said, agent_S if has_sound else None, again, release)
    frames = again.codes_AT.shape[1]
    reasons = () if first is None else _reasons(call, release)
    return Comparison(frames=frames, first=first, has_sound=has_sound, reasons=reasons)


def _beside(path: Path, ending: str) -> Path:
    """Another file of the same call."""
    if not path.name.endswith(SETTINGS):
        raise UserError(
            f"{path}: its name must end in {SETTINGS}, as the page names it, so that the other files are found",
            code="not-found",
        )
    return path.with_name(path.name.removesuffix(SETTINGS) + ending)


def _read(path: Path, kind: type[Kept]) -> Kept:
    if not path.is_file():
        raise UserError(f"{path}: no such file; keep all three files of a call in one folder", code="not-found")
    try:
        return record(kind, path.read_bytes())
    except ValueError as why:
        raise UserError(f"{path}: {why}; save it again from the page", code="bad-record") from why


def _check(path: Path, call: KeptCall) -> None:
    """Raises UserError for numbers that no call has."""
    server, left_out = call.server, call.frames_left_out
    limits = (
        ("seed", call.seed, call.seed >= 0),
        ("seconds", call.seconds, 0 < call.seconds < LONGEST_SECONDS),
        ("frames_left_out", left_out, 0 <= left_out < LONGEST_SECONDS),
        ("server.sessions", server.sessions, 1 <= server.sessions <= MOST_SLOTS),
    )
    for name, value, is_good in limits:
        if not is_good:
            raise UserError(f"{path}: {name} is {value}, as in no call; save it again from the page", code="bad-record")


def _texts(path: Path, transcript: KeptTranscript) -> dict[int, str]:
    """The text of each frame that has one."""
    texts: dict[int, str] = {}
    for piece in transcript.pieces:
        if not 0 <= piece.at < LONGEST_SECONDS:
            raise UserError(f"{path}: a piece at {piece.at} s; save it again from the page", code="bad-record")
        frame = round(piece.at * FRAME_RATE)
        texts[frame] = texts.get(frame, "") + piece.text
    return texts


def _sound(path: Path, call: KeptCall) -> tuple[Audio, Audio]:
    """The agent's samples, and as many frames of the user's as the agent has heard."""
    both_CS, rate = read_audio(path)
    if both_CS.shape[0] != 2 or rate != SAMPLE_RATE:
        raise UserError(f"{path}: no stereo at {SAMPLE_RATE} Hz; give the recording of the page", code="bad-audio")
    heard = int(call.seconds * SAMPLE_RATE + 0.5) // FRAME_SAMPLES + call.frames_left_out
    frames = min(heard, both_CS.shape[1] // FRAME_SAMPLES)
    if frames < 1:
        raise UserError(f"{path}: the agent was not heard for a frame: nothing can be compared", code="no-data")
    return both_CS[0], both_CS[1, : frames * FRAME_SAMPLES].copy()


def _request(path: Path, call: KeptCall) -> CallRequest:
    """What the page asked the server for, read as the server reads it."""
    query = {name: f"{value:.17g}" for name, value in call.sampling.items()}
    query |= {"voice_prompt": call.voice, "text_prompt": call.role, "seed": str(call.seed), "codec": "pcm16"}
    try:
        return read_query(query, CallLimits())
    except Refusal as why:
        raise UserError(f"{path}: {why.error}; save it again from the page", code="bad-record") from why


def _session(release: Release, settings: ChatSettings, wanted: CallRequest) -> SessionSettings:
    voices = read_voices(release, settings.voice_prompt_dir)
    try:
        voice_QP = voices.codes_of(wanted.voice)
    except Refusal as why:
        raise UserError(
            f"voice {wanted.voice} of the call: {release.name} has {', '.join(voices.voices) or 'none'}; give the "
            "folder that the server had with --voice-prompt-dir",
            code="unknown-name",
        ) from why
    return SessionSettings(
        prompt_KP=release.prompt(voice_QP, wanted.role),
        voice_frames=0 if voice_QP is None else voice_QP.shape[1],
        sampling=wanted.sampling,
        seed=wanted.seed,
    )


def _first_difference(
    said: Mapping[int, str], agent_S: Audio | None, again: AgentSide, release: Release
) -> tuple[int, str] | None:
    """The first frame that differs, and how. The text of the last frame may have come too late for the page."""
    pieces = TextPieces(release.tokenizer)
    texts = [pieces.add(i) for i in again.text_ids]
    count = len(texts)
    if agent_S is not None:
        heard_S = agent_S[: len(again.agent_S)]
        off_S = np.abs(np.clip(again.agent_S[: len(heard_S)], -1.0, 1.0) - heard_S)
        loud = np.flatnonzero(off_S > LOUDEST_ROUNDING)
        sounds = int(loud[0]) // FRAME_SAMPLES if len(loud) else count
    else:
        sounds = count
    for number in range(count):
        if number < count - 1 and texts[number] != said.get(number, ""):
            return number, f"the text is {texts[number]!r}, and was {said.get(number, '')!r}"
        if number == sounds:
            return number, "the sound differs"
    return None


def _reasons(call: KeptCall, release: Release) -> list[str]:
    """Why an agent may say something else, the surest first."""
    server, reasons = call.server, []
    if server.checksum is not None and server.checksum != release.checksum:
        reasons.append(f"another checkpoint, since the call was held with {server.model} {server.checksum[:12]}, this "
                       f"is {release.name} {release.checksum[:12]}")  # fmt: skip
    elif server.checksum is None and server.model != release.name:
        reasons.append(f"another model, since the call was held with {server.model}, this is {release.name}")
    if call.frames_dropped:
        reasons.append(f"dropped frames, since the server left {call.frames_dropped} frames of the user unheard")
    if call.codec != "pcm16":
        reasons.append("the codec, since the server heard what Opus made of the user's sound")
    if server.precision is None:
        reasons.append("the precision, which the settings do not name")
    if server.device is not None and server.device != release.device.type:
        reasons.append(f"the device, which was {server.device} and is {release.device.type}")
    if release.precision != "fp32":
        reasons.append(f"the precision, since {release.precision} rounds differently on other machines")
    if server.version != __version__:
        reasons.append(f"another version, {server.version} and not {__version__}")
    return reasons or ["nothing in the settings; another voice of that name, or another kind of processor, may be"]


def _write(settings: ChatSettings, call: KeptCall, release: Release, again: AgentSide) -> None:
    write_outputs(
        replace(settings, text_prompts=(call.role,), seed=call.seed),
        again.user_S, again.agent_S, again.pieces(release.tokenizer), again.words(release.tokenizer),
        voice=call.voice or "none", name=release.name,
    )  # fmt: skip
