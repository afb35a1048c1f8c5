"""An HTTP server that speaks the chat completion protocol, with every fault that real ones have on bad days."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
"""A request of the protocol."""


class Handler(BaseHTTPRequestHandler):
    """Gives each request the server's next reply."""

    server: "_Server"
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Headers and body are two writes.

    def do_POST(self) -> None:
        """Notes the request and replies."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        llm = self.server.llm
        with llm.lock:
            number = len(llm.bodies)
            llm.bodies.append(body)
            llm.headers.append({k.lower(): v for k, v in self.headers.items()} | {"path": self.path})
        reply = llm.replies(body) if callable(llm.replies) else llm.replies[min(number, len(llm.replies) - 1)]
        (reply if callable(reply) else say(reply))(self)

    def send(self, code: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """One whole answer."""
        self.send_response(code)
        for name, value in ({"Content-Type": "application/json"} | dict(headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


Reply = Callable[[Handler], None]


def say(
    content: Any, *, finish: str = "stop", refusal: str | None = None, usage: tuple[int, int] | None = (100, 20)
) -> Reply:
    """An answer with HTTP 200; `content` may be a JSON value."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)

    def reply(handler: Handler) -> None:
        message = {"role": "assistant", "content": text, "refusal": refusal}
        body: Body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "fake-1",
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        }
        if usage:
            body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        handler.send(200, json.dumps(body).encode())

    return reply


def status(code: int, message: str = "no", **headers: str) -> Reply:
    """An error; names of headers have underscores for dashes."""

    def reply(handler: Handler) -> None:
        body = json.dumps({"error": {"message": message, "type": "t", "code": code}}).encode()
        handler.send(code, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return reply


def raw(data: bytes, kind: str = "application/json") -> Reply:
    """HTTP 200 with these bytes."""
    return lambda handler: handler.send(200, data, {"Content-Type": kind})


def drop(handler: Handler) -> None:
    """Hangs up in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"id": "x", "choi')
    handler.wfile.flush()
    handler.connection.close()
    handler.close_connection = True


def hang(handler: Handler) -> None:
    """Says nothing as long as the server runs."""
    handler.server.llm.stopped.wait()
    handler.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    llm: "LLMServer"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing, because clients that go away are part of the tests."""


class LLMServer:
    """Serves on a free port of this machine while the `with` block lasts.

    `replies` is a list in the order of requests (the last one for all further requests), or a function of the request;
    each reply is a JSON value to say, or a function of the handler. `bodies` and `headers` keep what was asked.
    """

    def __init__(self, replies: Sequence[Any] | Callable[[Body], Any]) -> None:
        self.replies = replies
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.llm = self
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "LLMServer":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
