"""Load and soak of `ppx-serve` with paced clients on loopback: ticks, missed frames, latency, drift, leaks.

    python scripts/bench/serve.py --sessions 8 --seconds 180 --connects 1000
    python scripts/bench/serve.py --model quickstart/export --sessions 1 4 --seconds 60 --connects 0

The server runs as a process of its own, with one thread for the model. Without --model it serves that of the tests, a
few thousand random weights: what is measured is then everything but the model. With --churn, all clients but the first
leave after a random time of that mean, and others come.

The latency of a frame is counted from when the last sample that it heard was sent, to when its sound has arrived; it
includes the wait for the next tick and the tick itself.
"""

# Shapes: S samples (of a frame)

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, table, write_json

from model.config import FRAME_RATE, FRAME_SAMPLES, SAMPLE_RATE
from model.duplex import DuplexLM
from model.weights.checkpoint import save_native
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.loading import load_release
from ppx_train.inference.session import SessionSettings
from ppx_train.serve.client import CallOptions, LiveCall, connect
from ppx_train.serve.query import MOST

ROOT = Path(__file__).resolve().parents[2]
CHUNK = FRAME_SAMPLES // 4
"""Samples that a client sends at a time: 20 ms, as browsers do."""


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model or tests_model(Path(temporary) / "tiny")
        name = machine("cpu")
        print(f"{name}\n{args.model or 'the model of the tests'}, {args.codec}, {args.seconds} s each\n")
        rows = []
        for sessions in args.sessions:
            with Server(model, sessions, args.serve.split()) as server:
                rows.append(load(server, sessions, args))
            rows[-1]["of it model"] = model_ms(model, sessions)
        print(table([{"": name, **{str(row["sessions"]): row[name] for row in rows}} for name in rows[0]][1:]))
        leaks = []
        if args.connects:
            with Server(model, max(args.sessions), args.serve.split()) as server:
                leaks = connects(server, args)
            print(f"\n{args.connects} connects, {max(args.sessions)} at a time\n")
            print(table(leaks))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    write_json(args.json, {"machine": name, "settings": settings, "rows": rows, "connects": leaks})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder made by ppx-export (default: the model of the tests)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[8], help="clients at a time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each load lasts")
    parser.add_argument("--churn", type=float, default=0.0, help="mean seconds of a call; 0: all stay")
    parser.add_argument("--connects", type=int, default=0, help="calls that are opened and closed")
    parser.add_argument("--codec", choices=["opus", "pcm16"], default="opus")
    parser.add_argument("--serve", default="", metavar="WORDS", help="more options for ppx-serve, in one word")
    parser.add_argument("--json", type=Path, help="writes the figures there")
    return parser.parse_args()


class Server:
    """`ppx-serve` as a process, and what the system and the server itself say about it."""

    def __init__(self, model: Path, sessions: int, words: list[str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = ["--model", str(model), "--port", str(port), "--max-sessions", str(sessions), *words]
        program = "from ppx_train.cli.serve import main; main()"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it is read when the server ends
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-c", program, *command], env=environment, stderr=self.log)

    def __enter__(self) -> "Server":
        while self.process.poll() is None:
            with suppress(OSError):
                self.get("/readyz")
                return self
            time.sleep(0.1)
        self.log.seek(0)
        sys.exit(f"the server has ended with exit code {self.process.returncode}: {self.log.read()[-1000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)

    def get(self, path: str) -> str:
        """A page of the server."""
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return answer.read().decode()

    def figure(self, name: str) -> float:
        """One value of /metrics."""
        found = re.search(rf"^{name} (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, name
        return float(found[1])

    def state(self) -> dict[str, float]:
        """Memory, threads and open files of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        read = {key: int(value) for key, value in re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.MULTILINE)}
        files = len(os.listdir(f"/proc/{self.process.pid}/fd"))
        return {"RSS MB": read["VmRSS"] / 1024, "threads": read["Threads"], "descriptors": files}

    def cpu_seconds(self) -> float:
        """Processor time so far, of all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class BenchCaller:
    """One caller. late: seconds from the sending of a frame's last sample to the arrival of what it led to.

    The server cuts the beginning of a call to fit its ticks, and tells how much in its statistics.
    """

    ready_seconds: float = 0.0
    late: list[float] = field(default_factory=list)
    deficit: list[tuple[float, float]] = field(default_factory=list)
    """Frames that were sent and did not come back, over the seconds of the call."""

    async def call(self, url: str, codec: Any, seconds: float) -> None:
        """Talks for some seconds."""
        async with connect(url, CallOptions(codec=codec, role="", seed=1)) as live:
            self.ready_seconds = live.ready_seconds
            began = time.monotonic()
            sender = asyncio.create_task(self._send(live, began))
            heard, cut = 0, 0.0
            try:
                async for message in live:
                    now = time.monotonic()
                    if now - began > seconds:
                        return
                    cut = message.event.get("cut_ms", 1000 * cut) / 1000
                    if message.kind == "audio":
                        heard += len(message.agent_S)
                        self.late.append(now - began - heard / SAMPLE_RATE)
                        self.deficit.append((now - began, (now - began) * FRAME_RATE - heard / FRAME_SAMPLES))
            finally:
                sender.cancel()
                self.late = [seconds - cut for seconds in self.late]

    async def _send(self, live: LiveCall, began: float) -> None:
        """Speech-like noise that comes and goes, 20 ms at a time, each when its last sample would have been spoken."""
        noise_S = 0.1 * np.random.default_rng(0).standard_normal(CHUNK).astype(np.float32)
        for number in itertools.count(1):
            await asyncio.sleep(began + number * CHUNK / SAMPLE_RATE - time.monotonic())
            await live.send(noise_S if number % 100 < 50 else 0 * noise_S)


async def clients(server: Server, sessions: int, args: argparse.Namespace) -> list[BenchCaller]:
    """Runs callers for some time, each replaced when it leaves."""
    chance, until, made = random.Random(0), time.monotonic() + args.seconds, list[BenchCaller]()

    async def seat(number: int) -> None:
        await asyncio.sleep(chance.random())  # starts that fall anywhere between two ticks
        while (left := until - time.monotonic()) > 0:
            made.append(BenchCaller())
            stays = min(left, chance.expovariate(1 / args.churn)) if args.churn and number else left
            await made[-1].call(server.url, args.codec, stays)

    await asyncio.gather(*(seat(number) for number in range(sessions)))
    return made


def load(server: Server, sessions: int, args: argparse.Namespace) -> dict[str, Any]:
    """One row: callers that talk at the same time."""
    asyncio.run(BenchCaller().call(server.url, args.codec, 1.0))  # the first call of a server is slower
    frames, missed, cpu = server.figure("ppx_frames"), server.figure("ppx_ticks_missed"), server.cpu_seconds()
    made = asyncio.run(clients(server, sessions, args))
    frames, cpu = server.figure("ppx_frames") - frames, server.cpu_seconds() - cpu
    info = json.loads(server.get("/api/info"))
    ticks = info["tick_ms"]
    late = np.concatenate([client.late for client in made])
    drift = [drift_frames(client) for client in made]
    return {
        "sessions": sessions,
        "calls": len(made),
        **{f"tick {name} ms": ticks[name] for name in ("p50", "p95", "p99", "max")},
        "missed ticks": int(server.figure("ppx_ticks_missed") - missed),
        "late frames": int(server.figure("ppx_frames_late")),
        "dropped frames": int(server.figure("ppx_frames_dropped")),
        "CPU ms a frame": 1000 * cpu / max(1.0, frames),
        "loop lag p99 ms": info["loop_lag_p99_ms"],
        "ready p50 ms": 1000 * float(np.median([client.ready_seconds for client in made])),
        "ready max ms": 1000 * max(client.ready_seconds for client in made),
        "latency p50 ms": 1000 * float(np.quantile(late, 0.5)),
        "latency p99 ms": 1000 * float(np.quantile(late, 0.99)),
        "of it without the median tick": 1000 * float(np.quantile(late, 0.99)) - ticks["p50"],
        "drift frames": max(drift, key=abs),
    }


def model_ms(model: Path, sessions: int, frames: int = 60) -> float:
    """Processor time of one frame of one conversation in a full batch, of model and codec alone."""
    torch.set_num_threads(1)
    conversations = Conversations(load_release(model), sessions, most=MOST)
    joined = [conversations.join(SessionSettings(seed=n)) for n in range(sessions)]
    silence_S = np.zeros(FRAME_SAMPLES, np.float32)
    for number in range(frames + 5):
        if number == 5:
            began = time.process_time()
        conversations.step(dict.fromkeys(joined, silence_S))
    return 1000 * (time.process_time() - began) / frames / sessions


def drift_frames(client: BenchCaller) -> float:
    """How many frames more were missing in the last tenth of a call than in the first: the medians' difference."""
    if not client.deficit:
        return 0.0
    seconds, frames = np.array(client.deficit).T
    span = seconds[-1] / 10
    return float(np.median(frames[seconds >= seconds[-1] - span]) - np.median(frames[seconds <= seconds[0] + span]))


def connects(server: Server, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Opens and closes calls, as many at a time as there are sessions; memory, threads and files on the way."""
    sessions, rows = max(args.sessions), list[dict[str, Any]]()

    async def some(count: int) -> None:
        async def each(number: int) -> None:
            async with connect(server.url, CallOptions(codec=args.codec, role="", seed=number)) as live:
                await live.send(np.zeros(CHUNK, np.float32))

        for start in range(0, count, sessions):
            await asyncio.gather(*(each(start + n) for n in range(min(sessions, count - start))))

    done, began = 0, time.monotonic()
    while done < args.connects:
        count = min(max(1, args.connects // 5), args.connects - done)
        asyncio.run(some(count))
        done += count
        time.sleep(1.0)  # so that what the last callers had can go
        rows.append({"connects": done, "seconds": time.monotonic() - began, **server.state()})
    return rows


def tests_model(folder: Path) -> Path:
    """A model of a few thousand random weights, as the tests have it."""
    sys.path.insert(0, str(ROOT))
    from tests.ppx_train.fixtures import make_codec, make_tokenizer
    from tests.ppx_train.inference.noise import CONFIG

    torch.manual_seed(0)
    save_native(folder, DuplexLM(CONFIG))
    make_codec(folder / "mimi.safetensors")
    make_tokenizer(folder / "tokenizer.model")
    return folder


if __name__ == "__main__":
    main()
