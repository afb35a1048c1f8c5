"""What all calls of a server share: model, engine, voices, limits and figures."""

# Shapes: K streams, P prompt frames, Q codebooks

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

from model.errors import UserError
from ppx_train.inference.call import Call
from ppx_train.inference.engine import MOST_QUEUED, LiveEngine
from ppx_train.inference.loading import Release, load_release
from ppx_train.inference.model_options import DEFAULT_PAST_WINDOW
from ppx_train.inference.session import SessionSettings
from ppx_train.serve.access import Access
from ppx_train.serve.admission import Admission, admit
from ppx_train.serve.ends import ENDS, End
from ppx_train.serve.metrics import LoopClock, Metrics
from ppx_train.serve.outbox import Outbox
from ppx_train.serve.own_voices import OwnVoices
from ppx_train.serve.protocol import EventType
from ppx_train.serve.query import CallRequest, Refusal
from ppx_train.serve.settings import ServeSettings
from ppx_train.serve.voice_maker import VoiceMaker, WorkerLost
from ppx_train.serve.voices import VoiceRegistry, read_voices

Phase = Literal["loading", "ready", "draining", "failed"]


class RunningChat(Protocol):
    """A call, as its server sees it."""

    outbox: Outbox
    call: Call | None
    """The call of the engine, once it has begun."""

    def finish(self, end: End) -> None:
        """Ends the call; the first reason holds."""

    def event(self, type_: EventType, **fields: Any) -> None:
        """Sends an event to a client that asked for them."""


class Service:
    """The state of a server. It is made before the model is loaded, so that its health can be asked for meanwhile."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.phase: Phase = "loading"
        self.release: Release | None = None
        self.engine: LiveEngine | None = None
        self.admission: Admission | None = None
        self.voices = VoiceRegistry()
        self.own_voices: OwnVoices | None = None
        """The voices that callers brought; None if they may not."""
        if settings.own_voices:
            maker, limits = VoiceMaker(settings.model, settings.revision), settings.limits
            self.own_voices = OwnVoices(maker, limits.own_voices, limits.own_voice_seconds, self._own_voices_in_use)
        self.metrics = Metrics()
        self.clock = LoopClock(self.metrics)
        self.access = Access(settings.token, settings.origins, is_local=settings.is_local)
        self.chats: set[RunningChat] = set()
        self.encoders = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        """Opus takes a millisecond a frame: too much for the event loop when many frames come at once."""

    def load(self, release: Release | None = None) -> None:
        """Loads the model and its voices and measures how many calls fit. Takes minutes for large models.

        Raises: UserError if something cannot be loaded, or no call fits.
        """
        settings = self.settings
        fingerprint = self._start_maker()
        self.release = release or _load(settings)
        if fingerprint is not None and fingerprint != self.release.codec_fingerprint:
            raise UserError(f"{settings.model}: its codec has just changed, start the server again", code="checksum")
        self.voices = read_voices(self.release, settings.voice_prompt_dir)
        warm = CallRequest.default(self.limits)
        self.admission = admit(
            self.release, settings.max_sessions, self.session(warm), not_realtime=settings.not_realtime,
            past_window=settings.past_window or DEFAULT_PAST_WINDOW,
        )  # fmt: skip
        self.engine = LiveEngine(self.admission.conversations)

    def _start_maker(self) -> str | None:
        """Starts the process that makes voices of clips, if there is to be one; returns what names its codec."""
        try:
            return self.own_voices.maker.start() if self.own_voices is not None else None
        except WorkerLost as why:
            raise UserError(
                "the process that checks clips has ended while it started: free some memory, or leave out --own-voices",
                code="lost-work",
            ) from why

    def start(self) -> None:
        """Begins to take calls."""
        self.phase = "ready"
        self.running.start()

    @property
    def running(self) -> LiveEngine:
        """The engine. Raises: Refusal before there is one."""
        if self.engine is None or self.phase == "loading":
            raise Refusal(503, "the model is being loaded: try again later", retry_after=5)
        return self.engine

    @property
    def is_ready(self) -> bool:
        """Whether a caller would be served: the model is warm, and ticks come on time."""
        return self.phase == "ready" and self.engine is not None and self.engine.is_healthy

    def check_open(self) -> None:
        """Raises: Refusal with status 503 if no calls are taken."""
        if self.phase == "draining":
            raise Refusal(503, "the server restarts: try again in a moment", retry_after=5)
        if self.phase == "failed" or (self.engine is not None and self.engine.failure is not None):
            raise Refusal(503, "the server has failed and will restart: try again in a moment", retry_after=10)
        _ = self.running

    def check_waiting(self) -> None:
        """Raises: Refusal with status 503 if too many clients are connected whose calls have not begun."""
        if sum(chat.call is None for chat in self.chats) >= MOST_QUEUED:
            raise Refusal(503, "too many sessions wait for their first sound: try again later", retry_after=5)

    def session(self, wanted: CallRequest) -> SessionSettings:
        """What a conversation is, from what a client asks for.

        Raises: Refusal for an unknown voice (404), or a role that is too long or cannot be spelled (400).
        """
        assert self.release is not None
        own_QP = self.own_voices.codes_of(wanted.voice) if self.own_voices is not None and wanted.voice else None
        voice_QP = self.voices.codes_of(wanted.voice) if own_QP is None else own_QP
        role, most = wanted.role, self.limits.role_tokens
        try:
            length = len(self.release.tokenizer.encode(role))
            if length > most:
                raise Refusal(
                    400, f"the role has {length} tokens", field="text_prompt", allowed=f"at most {most} tokens"
                )
            prompt_KP = self.release.prompt(voice_QP, role)
        except (UserError, UnicodeError) as why:
            allowed = "text that the model's tokenizer can spell"
            raise Refusal(400, "the role cannot be spelled", field="text_prompt", allowed=allowed) from why
        return SessionSettings(
            prompt_KP=prompt_KP,
            voice_frames=0 if voice_QP is None else voice_QP.shape[1],
            sampling=wanted.sampling,
            seed=wanted.seed,
            own_voice="" if own_QP is None or wanted.voice is None else wanted.voice,
        )

    def _own_voices_in_use(self) -> set[str]:
        return {call.settings.own_voice for call in self.engine.calls()} if self.engine is not None else set()

    def fail(self) -> None:
        """Tells all callers that the server has failed; on the event loop."""
        self.phase = "failed"
        self.end_all("internal")

    def drain(self, seconds: float) -> None:
        """Takes no more calls, and tells those that asked for events how long theirs may go on."""
        self.phase = "draining"
        if self.engine is not None:
            self.engine.drain()
        for chat in self.chats:
            chat.event("limit", reason="draining", seconds=seconds)

    def end_all(self, reason: str) -> None:
        """Ends all calls, for a reason among ENDS."""
        for chat in list(self.chats):
            chat.finish(ENDS[reason])

    def close(self) -> None:
        """Stops the threads."""
        if self.engine is not None and self.phase != "loading":
            self.engine.stop()
        if self.own_voices is not None:
            self.own_voices.maker.close()
        self.encoders.shutdown(wait=False)


def _load(settings: ServeSettings) -> Release:
    return load_release(
        settings.model, device=settings.device, precision="fp16" if settings.half else settings.precision,
        revision=settings.revision, cpu_offload=settings.cpu_offload,
    )  # fmt: skip
