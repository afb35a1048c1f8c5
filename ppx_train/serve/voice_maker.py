"""Makes voices of callers' clips, in a process of its own.

The checks and the codec take a second or more. In the server's process they would compete with the engine for Python's
lock and for the GPU; in a process of lower priority they cost no call a tick, and what they do with a clip from
elsewhere is apart from all calls.
"""

# Shapes: S samples (at 24 kHz), Q codebooks, P prompt frames

import asyncio
import base64
import json
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timezone
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch

from data_pipelines.files import sha256
from data_pipelines.listening.speaker import open_speaker
from data_pipelines.listening.voice_clip import measure_clip
from data_pipelines.sound.audio import RATE_HZ
from data_pipelines.sound.clip_faults import faults
from model.errors import Code, UserError
from ppx_train.inference.loading import load_codec
from ppx_train.voices.clip import advice, encode_audio
from ppx_train.voices.voice_file import VoiceFile

NICER = 10
"""By how much the process is less urgent than the server."""
START_SECONDS = 600.0
CLIP_SECONDS = 120.0
"""What a clip may take; beyond it the process is ended, and the next clip begins another."""
CONSENT = "stated on a web page by a caller on {day}: it is their own voice, or they have the speaker's permission"


class WorkerLost(Exception):
    """The process has ended, or takes too long."""


class VoiceMaker:
    """The process, as the server sees it; clips are worked on one by one."""

    def __init__(self, model: str, revision: str | None) -> None:
        self._model = (model, revision)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="own-voices")
        self._lock = threading.Lock()
        self._process: Any = None
        self._closed = False

    def start(self) -> str:
        """Starts the process, and returns the fingerprint of its codec once it is ready.

        Raises: UserError if the codec or a package is missing; WorkerLost if it ends without a reason.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, *self._model), name="own-voices", daemon=True)
        with self._lock:
            if self._closed:
                raise WorkerLost("the server stops")
            process.start()
            self._process = process
        theirs.close()
        answer = self._receive(START_SECONDS)
        if "error" in answer:
            self._end()
            code: Code = answer["code"]
            raise UserError(answer["error"], code=code)
        return str(answer["codec"])

    async def make(self, pcm: bytes) -> dict[str, Any]:
        """Makes a voice of a clip, PCM16 at 24 kHz, of 3 to 10 s.

        Returns {"faults"}, of `faults`, for a clip that cannot be used, else {"file", "name", "notes"}: the voice file
        in base64, its id, and advice.
        Raises: WorkerLost; UserError if the process cannot be started again.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._make, pcm)

    def close(self) -> None:
        """Ends the process."""
        with self._lock:
            self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _make(self, pcm: bytes) -> dict[str, Any]:
        if self._process is None or not self._process.is_alive():
            self.start()
        try:
            self._pipe.send_bytes(pcm)
        except OSError as why:
            self._end()
            raise WorkerLost("the process has ended") from why
        return self._receive(CLIP_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            if not self._pipe.poll(seconds):
                raise TimeoutError
            answer: dict[str, Any] = json.loads(self._pipe.recv_bytes())
            return answer
        except (EOFError, OSError) as why:
            self._end()
            raise WorkerLost("the process has ended, or takes too long") from why

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(timeout=5)


def work(pipe: Connection, model: str, revision: str | None) -> None:
    """What the process does: makes voices until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process.
    os.nice(NICER)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        try:
            workshop = Workshop(model, revision)
        except UserError as why:
            pipe.send_bytes(json.dumps({"error": str(why), "code": why.code}).encode())
            return
        pipe.send_bytes(json.dumps({"codec": workshop.fingerprint}).encode())
        while True:
            pipe.send_bytes(json.dumps(workshop.make(pipe.recv_bytes())).encode())


class Workshop:
    """Checks and codec, loaded once."""

    def __init__(self, model: str, revision: str | None) -> None:
        self.speaker = open_speaker()
        self.codec, self.lufs = load_codec(model, revision)
        self.fingerprint = self.codec.fingerprint()

    @torch.inference_mode()
    def make(self, pcm: bytes) -> dict[str, Any]:
        """As `VoiceMaker.make`."""
        clip_1S = np.frombuffer(pcm, "<i2").astype(np.float32)[None] / np.float32(2**15)
        facts = measure_clip(clip_1S, RATE_HZ, self.speaker)
        if found := faults(facts):
            return {"faults": found}
        source = sha256(pcm)
        voice = VoiceFile(
            # Not the id that the server gives out: whoever knows that one may use the voice.
            id=f"own-{source[:8]}",
            label="a caller's own voice",
            consent=CONSENT.format(day=datetime.now(timezone.utc).date().isoformat()),
            codec=self.fingerprint,
            source=source,
            codes_QP=encode_audio(clip_1S, RATE_HZ, self.codec, self.lufs, "the clip").cpu(),
        )
        return {"file": base64.b64encode(voice.to_bytes()).decode(), "name": voice.id, "notes": advice(facts)}
