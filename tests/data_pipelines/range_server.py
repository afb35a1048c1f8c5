"""A folder served over HTTP on this machine, with byte ranges as object storage serves them, and with faults."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """`faults` are the statuses of the next requests; 0 hangs up in the middle of the answer."""

    folder: Path
    url: str = ""
    ranges: bool = True
    faults: list[int] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range header of every request."""
    most_at_once: int = 0
    together: int = 1
    gather: str = ""
    """Requests for paths of this pattern wait until `together` were under way at once, for ten minutes at most."""


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serves a folder; no listing, as on most web servers."""
    served = Served(folder)

    arrived, waiting = threading.Condition(), [0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with arrived:
                waiting[0] += 1
                served.most_at_once = max(served.most_at_once, waiting[0])
                arrived.notify_all()
                if fnmatch(self.path, served.gather):
                    arrived.wait_for(lambda: served.most_at_once >= served.together, 600)
                waiting[0] -= 1
            wanted = self.headers.get("Range", "")
            served.requests.append((self.path, wanted))
            fault = served.faults.pop(0) if served.faults else None
            path = served.folder / self.path.lstrip("/")
            if fault or not path.is_file():
                self.answer(fault or 404, b"")
                return
            data = path.read_bytes()
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted) if served.ranges else None
            if match:
                start, end = int(match[1]), int(match[2]) + 1
                if start >= len(data):
                    self.answer(416, b"")
                    return
                data = data[start:end]
            self.answer(206 if match else 200, data, cut=fault == 0)

        def do_HEAD(self) -> None:
            path = served.folder / self.path.lstrip("/")
            self.send_response(200 if path.is_file() else 404)
            self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
            self.send_header("Accept-Ranges", "bytes")
            self.end_headers()

        def answer(self, status: int, data: bytes, cut: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.close_connection = self.close_connection or cut

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Clients that hang up are part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
