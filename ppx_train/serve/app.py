"""The routes of the server."""

from pathlib import Path
from typing import Any

import prometheus_client
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from data_pipelines.sound.audio import VOICE_SECONDS
from model.config import FRAME_RATE, SAMPLE_RATE
from model.text_safety import plain
from ppx_train import __version__
from ppx_train.serve.chat import ChatWire
from ppx_train.serve.connection import Connection
from ppx_train.serve.logs import logger
from ppx_train.serve.opus import codecs_here
from ppx_train.serve.own_voices import OwnVoices
from ppx_train.serve.presets import PRESETS
from ppx_train.serve.protocol import MOST_MESSAGE_BYTES, PATH
from ppx_train.serve.query import IGNORED, Refusal, read_query
from ppx_train.serve.realtime import PATH as REALTIME_PATH
from ppx_train.serve.realtime import RealtimeWire
from ppx_train.serve.service import Service
from ppx_train.serve.settings import PAGE

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
OPEN = ("/healthz", "/readyz")
"""What needs no token, so that a supervisor can ask."""


def make_app(service: Service) -> web.Application:
    """The application of a service."""
    app = web.Application(middlewares=[_refusals(service)])
    routes = Routes(service)
    app.router.add_get(PATH, routes.chat)
    app.router.add_get(REALTIME_PATH, routes.realtime)
    app.router.add_post("/api/voices", routes.bring_voice)
    app.router.add_delete("/api/voices/{id}", routes.forget_voice)
    for path in ("/healthz", "/readyz", "/metrics", "/api/info", "/api/voices", "/api/presets"):
        app.router.add_get(path, getattr(routes, path.rpartition("/")[2]))
    if service.settings.static is not None:
        index = service.settings.static / "index.html"
        app.router.add_get("/", _file(index))
        app.router.add_static("/", service.settings.static, follow_symlinks=False)
        if service.settings.static == PAGE:
            app.on_response_prepare.append(_guard_page)
    return app


async def _guard_page(request: web.Request, response: web.StreamResponse) -> None:
    """Adds what keeps foreign scripts out of the page, the page out of foreign frames, and old files out of caches."""
    response.headers.update(PAGE_HEADERS)


def _file(path: Path) -> Handler:
    async def send(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(path)

    return send


def _refusals(service: Service) -> Middleware:
    """Checks who asks, and turns what goes wrong into JSON."""

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path.startswith(("/api/", "/v1/")) or request.path == "/metrics":
                service.access.check(request.headers, request.query, request.host)
            return await handler(request)
        except Refusal as why:
            service.metrics.refused.labels(str(why.status)).inc()
            headers = {} if why.retry_after is None else {"Retry-After": str(why.retry_after)}
            return web.json_response(why.body, status=why.status, headers=headers)
        except web.HTTPException as why:
            return web.json_response({"error": plain(why.reason)}, status=why.status)
        except ConnectionError:  # The client has left before the answer.
            raise
        except Exception:  # noqa: BLE001 - no request ends without an answer
            logger.exception("a request has failed")
            return web.json_response({"error": "the server has failed; it has noted why"}, status=500)

    return handle


def _check_upgrade(request: web.Request) -> None:
    if not web.WebSocketResponse().can_prepare(request).ok:
        raise Refusal(400, f"this address is for WebSockets: ws://HOST:PORT{request.path}")


def _model_facts(service: Service) -> dict[str, Any]:
    """What a call must be held again with to give the same tokens."""
    release, conversations = service.release, service.engine.conversations if service.engine else None
    return {
        "model": release.name if release else None,
        "checksum": release.checksum if release else None,
        "precision": release.precision if release else None,
        "device": release.device.type if release else None,
        "past_window": conversations.past_window if conversations else None,
    }


class Routes:
    """The handlers, one for each path."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """A call."""
        self.service.check_open()
        wanted = read_query(request.query, self.service.limits)
        settings = self.service.session(wanted)
        _check_upgrade(request)
        wire = ChatWire(wanted, self.service.encoders, self.service.limits.queue_seconds)
        connection = Connection(self.service, wire)
        connection.begin(settings, wanted.most_frames)
        return await connection.run(request, seat_first=wanted.proto == 1)  # Others see their place in the queue.

    async def realtime(self, request: web.Request) -> web.StreamResponse:
        """A session in the manner of OpenAI's Realtime API."""
        self.service.check_open()
        if "OpenAI-Beta" in request.headers:
            raise Refusal(
                400, "the beta of the Realtime API is not spoken here: use its successor, without OpenAI-Beta"
            )
        for field in ("call_id", "intent"):
            if field in request.query:
                raise Refusal(400, f"{field} can have no effect here: leave it out", field=field)
        self.service.check_waiting()
        _check_upgrade(request)
        return await Connection(self.service, RealtimeWire(self.service)).run(request)

    async def healthz(self, request: web.Request) -> web.Response:
        """Whether the process is alive."""
        return web.json_response({"status": "ok"})

    async def readyz(self, request: web.Request) -> web.Response:
        """Whether a caller would be served."""
        is_ready = self.service.is_ready
        phase = self.service.phase if is_ready or self.service.phase != "ready" else "ticks come late"
        return web.json_response({"ready": is_ready, "phase": phase}, status=200 if is_ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Figures for Prometheus."""
        service = self.service
        slots = service.admission.slots if service.admission else 0
        page = service.metrics.page(service.engine, slots, sum(chat.outbox.frames for chat in service.chats))
        return web.Response(body=page, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def info(self, request: web.Request) -> web.Response:
        """What this server is and how busy."""
        service = self.service
        engine, admission, limits, own = service.engine, service.admission, service.limits, service.own_voices
        return web.json_response(
            {
                "version": __version__,
                "phase": service.phase,
                **_model_facts(service),
                "sample_rate": SAMPLE_RATE,
                "frame_rate": FRAME_RATE,
                "codecs": codecs_here(),
                "proto": [1, 2],
                "default_voice": service.voices.default,
                "own_voices": None if own is None else {"seconds": VOICE_SECONDS, "kept_seconds": own.seconds},
                "ignored": IGNORED,
                "sessions": admission.slots if admission else 0,
                "active": admission.slots - engine.conversations.free if engine and admission else 0,
                "queued": engine.queued if engine else 0,
                "warm_tick_ms": round(1000 * admission.tick_seconds, 1) if admission else None,
                "tick_ms": service.metrics.ticks(),
                "loop_lag_p99_ms": round(1000 * service.metrics.lag(0.99), 1),
                "limits": {
                    "call_seconds": limits.call_seconds,
                    "idle_seconds": limits.idle_seconds,
                    "role_tokens": limits.role_tokens,
                    "message_bytes": MOST_MESSAGE_BYTES,
                },
            }
        )

    async def voices(self, request: web.Request) -> web.Response:
        """The voices that may be asked for."""
        voices = self.service.voices
        listed = [
            {"id": name, "label": voice.label, "licence": voice.licence, "seconds": round(voice.seconds, 2)}
            for name, voice in voices.voices.items()
        ]
        return web.json_response({"default": voices.default, "voices": listed})

    async def bring_voice(self, request: web.Request) -> web.Response:
        """Makes a voice of a caller's clip; no list has it, and its id is for the caller alone."""
        own_voices = self._own_voices()
        self.service.check_open()
        return web.json_response(await own_voices.bring(request), headers={"Cache-Control": "no-store"})

    async def forget_voice(self, request: web.Request) -> web.Response:
        """Drops a caller's own voice before its time."""
        if not self._own_voices().remove(request.match_info["id"]):
            raise Refusal(404, "there is no voice of that id")
        return web.json_response({"removed": True})

    def _own_voices(self) -> OwnVoices:
        if self.service.own_voices is None:
            raise Refusal(403, "this server takes no voices of callers: it was started without --own-voices on")
        return self.service.own_voices

    async def presets(self, request: web.Request) -> web.Response:
        """Roles to begin with."""
        return web.json_response({"presets": PRESETS})
