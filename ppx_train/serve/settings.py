"""What `ppx-serve` is asked for, and the limits of a call. Importing it is fast, so that the command's help is."""

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from model.errors import UserError
from ppx_train.inference.model_options import PastWindow, Precision, check_model_options
from ppx_train.serve.protocol import PORT

TOKEN = re.compile(r"^[A-Za-z0-9._~-]{8,256}$")
"""Tokens that fit into a header, a query and a subprotocol alike."""
AUTO = "auto"
PAGE = Path(__file__).parent / "page"
"""The web page, served at "/"."""


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """What a call may ask for and how long it may last; seconds where the name says so."""

    call_seconds: float = 3600.0
    idle_seconds: float = 120.0
    """Without any sound from the client."""
    queue_seconds: float = 60.0
    """In the queue, for clients that see their position; others are sent away after `seat_seconds`."""
    seat_seconds: float = 1.0
    role_tokens: int = 512
    early_seconds: float = 2.0
    """Sound that is kept from before the handshake."""
    heartbeat_seconds: float = 10.0
    """Between pings; a client that is silent for half of it after a ping is gone."""
    speed: float = 2.0
    """Real time, times this, is what a client may send for ever."""
    burst_seconds: float = 10.0
    """Sound that may come sooner, as after a rest of the network."""
    unsent_frames: int = 25
    """Frames that wait for a client that reads too slowly, 2 s; silent ones are dropped well before."""
    drain_seconds: float = 10.0
    own_voices: int = 64
    """Voices of callers that are kept; beyond them the one that was not used for longest is dropped."""
    own_voice_seconds: float = 3600.0
    """How long one is kept after its last use."""


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """The server's options. The names that `python -m moshi.server` has mean the same here.

    model: an exported folder or a hub repository. ssl: a folder with cert.pem and key.pem, or "auto".
    origins: web origins whose pages may call, beside the server's own; "*" allows all.
    own_voices: whether callers may bring voices of their own.
    static: a folder of files that are served at "/", or None. device: None is cuda if there is one. half: fp16 weights.
    precision: None is bf16 on a GPU, fp32 on a CPU.
    cpu_offload: weights that the GPU cannot hold stay in the host's memory.
    past_window: what becomes of prompts in calls that outlast the window; None is DEFAULT_PAST_WINDOW.
    watchdog_seconds: a tick that takes longer ends the process.
    """

    model: str
    revision: str | None = None
    host: str = "127.0.0.1"
    port: int = PORT
    ssl: str | None = None
    max_sessions: int = 8
    token: str | None = None
    insecure: bool = False
    origins: tuple[str, ...] = ()
    voice_prompt_dir: Path | None = None
    own_voices: bool = False
    static: Path | None = PAGE
    device: str | None = None
    half: bool = False
    precision: Precision | None = None
    not_realtime: bool = False
    past_window: PastWindow | None = None
    cpu_offload: bool = False
    watchdog_seconds: float = 10.0
    limits: CallLimits = field(default_factory=CallLimits)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    def check(self) -> None:
        """Raises: UserError for an address that others reach without a token, and for values that cannot be."""
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port {self.port}: give 1 to 65535, or 0 for any free one", code="bad-value")
        check_model_options(self.precision, self.past_window)
        if self.half and self.precision not in (None, "fp16"):
            raise UserError(f"--half with --precision {self.precision}: choose one of them", code="bad-combination")
        if self.max_sessions < 1:
            raise UserError(f"--max-sessions {self.max_sessions}: give 1 or more", code="bad-value")
        for name, value in (("--max-seconds", self.limits.call_seconds), ("--watchdog", self.watchdog_seconds)):
            if not 1 <= value < 10**9:
                raise UserError(f"{name} {value:g}: give 1 or more seconds", code="bad-value")
        if not 0 <= self.limits.drain_seconds < 10**9:
            raise UserError(f"--drain-seconds {self.limits.drain_seconds:g}: give 0 or more", code="bad-value")
        if self.token is not None and not TOKEN.match(self.token):
            raise UserError("the token: give 8 to 256 letters, digits or any of . _ ~ -", code="bad-value")
        if self.static is not None and not (self.static / "index.html").is_file():
            raise UserError(f"--static {self.static}: no folder with an index.html", code="not-found")
        if self.token is None and not self.insecure and not self.is_local:
            raise UserError(
                f"--host {self.host} can be reached by others: add --token TOKEN, or --insecure to let anybody call",
                code="missing-option",
            )


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
