"""An HTTP server that speaks the chat completion protocol, with every fault that real ones have on bad days."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def say(content, *, finish="stop", refusal=None, usage=(100, 20)):
    """An answer with HTTP 200; `content` may be a JSON value."""
    text = content if content is None or isinstance(content, str) else json.dumps(content)

    def reply(handler):
        message = {"role": "assistant", "content": text, "refusal": refusal}
        body = {
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


def status(code, message="no", **headers):
    """An error answer; header names with underscores for dashes."""

    def reply(handler):
        body = json.dumps({"error": {"message": message, "type": "t", "code": code}}).encode()
        handler.send(code, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return reply


def raw(data, kind="application/json"):
    """HTTP 200 with these bytes."""
    return lambda handler: handler.send(200, data, {"Content-Type": kind})


def drop(handler):
    """Hangs up in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"id": "x", "choi')
    handler.wfile.flush()
    handler.connection.close()
    handler.close_connection = True


def hang(seconds):
    """Answers too late."""

    def reply(handler):
        time.sleep(seconds)
        handler.close_connection = True

    return reply


class LLMServer:
    """Serves on a free port of this machine while the `with` block lasts.

    `replies`: a list of replies in the order of requests (the last one for all further requests), or a function of
    the request's body that answers a JSON value or a reply. `bodies` and `headers` keep what was asked.
    """

    def __init__(self, replies, port=0):
        self.replies, self.bodies, self.headers = replies, [], []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # headers and body are two writes

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with server.lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append({k.lower(): v for k, v in self.headers.items()} | {"path": self.path})
                if callable(server.replies):
                    reply = server.replies(body)
                else:
                    reply = server.replies[min(number, len(server.replies) - 1)]
                (reply if callable(reply) else say(reply))(self)

            def send(self, code, data, headers=()):
                self.send_response(code)
                for name, value in ({"Content-Type": "application/json"} | dict(headers)).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # clients that go away are part of the tests

        self._server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()
