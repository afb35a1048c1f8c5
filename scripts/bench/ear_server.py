"""`ppx-serve`'s server with a stand-in for the model, whose answer is known to the frame: for mouth_to_ear.py.

    python scripts/bench/ear_server.py HOST PORT

The stand-in hears a frame and says one at once, without codec, acoustic delay or computation: a note if the user was
silent, what it heard if that holds a marker, else nothing. Server, engine, queues and Opus are the real ones; role and
voice are fed to the model of the tests. It prints one line when callers are served, and ends with SIGTERM.
"""

# Shapes: S samples (of a frame)

import asyncio
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ear_marks import AGENT_HZ, LOUD, MARKER_HZ
from serve import tests_model

from model.config import FRAME_SAMPLES, SAMPLE_RATE
from ppx_train.inference.conversations import Conversations
from ppx_train.inference.engine import LiveEngine
from ppx_train.inference.loading import load_release
from ppx_train.inference.session import AgentFrame, Audio, Session
from ppx_train.serve.server import in_thread, listening, running
from ppx_train.serve.service import Service
from ppx_train.serve.settings import ServeSettings

SESSIONS = 2
"""One for the call, and one for that before, which may not have ended yet."""
HEARD = LOUD / 10
"""The level from which the stand-in hears something."""
NOTE_S = (LOUD * np.sin(2 * np.pi * AGENT_HZ * np.arange(FRAME_SAMPLES) / SAMPLE_RATE)).astype(np.float32)


class StandIn(Conversations):
    """Conversations in which the agent says what `answer` says."""

    def step(self, heard: Mapping[Session, Audio]) -> dict[Session, AgentFrame]:
        """One frame of some conversations; the ids are those of padding, which spell nothing."""
        made = {}
        for session, user_S in heard.items():
            self._check(session, user_S)
            frame = session.heard((self.release.lm.config.text_padding_id,) + (0,) * 8, answer(user_S))
            made[session] = frame
        return made


def answer(user_S: Audio) -> Audio:
    """What the agent says to a frame of the user's."""
    if np.abs(user_S).max() < HEARD:
        return NOTE_S
    low, high = (round(hz * FRAME_SAMPLES / SAMPLE_RATE) for hz in MARKER_HZ)
    in_band = np.abs(np.fft.rfft(user_S)[low:high]) * np.sqrt(2) / FRAME_SAMPLES
    return user_S if np.linalg.norm(in_band) > HEARD / 2 else np.zeros_like(user_S)


async def serve(host: str, port: int) -> None:
    settings = ServeSettings(
        model="stand-in", host=host, port=port, insecure=True, not_realtime=True, max_sessions=SESSIONS
    )
    settings.check()
    service, stop = Service(settings), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    with tempfile.TemporaryDirectory() as folder:
        release = load_release(tests_model(Path(folder) / "tiny"))
    async with listening(service) as address:
        await in_thread(lambda: service.load(release))
        service.engine = LiveEngine(StandIn(release, SESSIONS))
        async with running(service):
            print(address, flush=True)
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
