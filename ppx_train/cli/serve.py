"""`ppx-serve --model DIR`: a live server that the clients of Moshi and PersonaPlex can call."""

import os
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.arguments import Parser, add_version
from model.extras import require
from ppx_train import __version__
from ppx_train.cli.run import run
from ppx_train.inference.model_options import add_model_options
from ppx_train.serve.settings import AUTO, PAGE, CallLimits, ServeSettings

TOKEN_VARIABLE = "PPX_SERVE_TOKEN"
"""The environment variable that holds the token, out of sight of other users of the machine."""


def main() -> None:
    """The entry point of the command."""
    run(command, again="start the server again")


def parser() -> Parser:
    """The parser of the command's words."""
    parser = Parser(prog="ppx-serve", description="Serves live calls over WebSockets, as moshi.server does, to many.")
    add, default, limits = parser.add_argument, ServeSettings, CallLimits
    add("--model", "--hf-repo", required=True, metavar="DIR", help="folder made by ppx-export, or a hub repository")
    add_model_options(parser)
    add("--host", metavar="HOST", default=default.host, help="address to listen on; 0.0.0.0 for all, with a --token")
    add("--port", type=int, metavar="PORT", default=default.port, help="port to listen on; 0 for any free one")
    add(
        "--ssl", metavar=f"DIR|{AUTO}",
        help="speak TLS with cert.pem and key.pem of this folder, or with a new certificate (default: no TLS)",
    )  # fmt: skip
    add(
        "--max-sessions", type=int, metavar="N", default=default.max_sessions,
        help="calls at a time; fewer if memory or speed do not allow for so much",
    )  # fmt: skip
    add("--token", metavar="TOKEN", help=f"what callers must present (default: that of {TOKEN_VARIABLE}, else none)")
    add("--insecure", action="store_true", help="let anybody call who reaches the address")
    add(
        "--origin", dest="origins", action="append", metavar="URL", default=[],
        help='a web origin whose pages may call, such as https://example.org, or "*"; may be repeated '
        "(default: the server's own)",
    )  # fmt: skip
    add("--max-seconds", type=float, metavar="S", default=limits.call_seconds, help="longest call")
    add("--drain-seconds", type=float, metavar="S", default=limits.drain_seconds, help="what SIGTERM leaves to calls")
    add("--watchdog", type=float, metavar="S", default=default.watchdog_seconds, help="end if a tick takes longer")
    add(
        "--voice-prompt-dir", type=Path, metavar="DIR", help="more voices, made by ppx-voice (default: the model's own)"
    )
    add(
        "--own-voices", choices=("on", "off"), default="off",
        help="let callers bring clips of voices of their own, with stated consent (default: off)",
    )  # fmt: skip
    add("--static", metavar="DIR|none", help='folder of another web page to serve at "/", or none (default: our page)')
    add("--half", action="store_true", help="compute in float16 instead of bfloat16")
    add("--cpu-offload", action="store_true", help="keep weights that the GPU cannot hold in the host's memory: slow")
    add("--not-realtime", action="store_true", help="serve even if a frame takes longer than its 80 ms")
    add_version(parser, __version__)
    return parser


def command(words: Sequence[str]) -> None:
    """Serves until it is stopped."""
    given = vars(parser().parse_args(words))
    limits = CallLimits(call_seconds=given.pop("max_seconds"), drain_seconds=given.pop("drain_seconds"))
    static = given.pop("static")
    settings = ServeSettings(
        model=given.pop("model"),
        token=given.pop("token") or os.environ.get(TOKEN_VARIABLE) or None,
        origins=tuple(given.pop("origins")),
        watchdog_seconds=given.pop("watchdog"),
        own_voices=given.pop("own_voices") == "on",
        static=PAGE if static is None else None if static == "none" else Path(static),
        limits=limits,
        **given,
    )
    settings.check()
    for package in ("aiohttp", "prometheus_client"):
        require(package, extra="serve")
    from ppx_train.serve.logs import log_to_stderr
    from ppx_train.serve.server import serve

    log_to_stderr()
    serve(settings)
