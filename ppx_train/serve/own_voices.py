"""The voices that callers brought: in memory alone, for a limited time, under ids that nobody can guess."""

# Shapes: Q codebooks, P prompt frames

import base64
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from safetensors.torch import load
from torch import Tensor

from model.config import FRAME_RATE
from ppx_train.serve.clip_request import MOST_AT_ONCE, read_clip
from ppx_train.serve.logs import logger, note
from ppx_train.serve.query import Refusal
from ppx_train.serve.voice_maker import VoiceMaker, WorkerLost

START = "own-"
"""How the ids begin; 22 random characters follow, which are 128 bits: who knows an id may use the voice."""


@dataclass
class OwnVoice:
    """Codes [8, P] on the CPU, and when they were used last, in seconds of the clock."""

    codes_QP: Tensor
    used: float


class OwnVoices:
    """At most `most` voices, each until `seconds` after its last use. It lives on the event loop.

    maker: makes voices of clips. in_use: returns the ids of the voices of running calls, which are neither dropped nor
    get older. clock: seconds.
    """

    def __init__(
        self, maker: VoiceMaker, most: int, seconds: float, in_use: Callable[[], Set[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.maker, self.most, self.seconds = maker, most, seconds
        self._in_use, self._clock = in_use, clock
        self._clips = 0
        self._kept: OrderedDict[str, OwnVoice] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    async def bring(self, request: web.Request) -> dict[str, Any]:
        """Makes a voice of the clip of a request, and returns what its caller gets to know of it.

        Raises: Refusal as `read_clip`, with status 422 for a clip that fails a check, and 503 if too many come at once.
        """
        if self._clips >= MOST_AT_ONCE:
            raise Refusal(503, "too many clips come at once: try again in a moment", retry_after=5)
        self._clips += 1
        try:
            made = await self.maker.make(await read_clip(request))
        except WorkerLost as why:
            logger.error("a clip could not be checked: %s", why)
            raise Refusal(503, "the clip could not be checked: try again in a moment", retry_after=5) from why
        finally:
            self._clips -= 1
        if "faults" in made:
            note("own voice refused", checks=sorted(made["faults"]))
            faults = made["faults"]
            raise Refusal(422, f"the clip cannot be used: {'; '.join(faults.values())}", field="clip", faults=faults)
        codes_QP = load(base64.b64decode(made["file"]))["codes"].long()
        id_ = self.add(codes_QP)
        note("own voice made", kept=len(self))
        seconds = round(codes_QP.shape[1] / FRAME_RATE, 2)
        return {"id": id_, "seconds": seconds, "kept_seconds": self.seconds, **made}

    def add(self, codes_QP: Tensor) -> str:
        """Keeps one more, and returns its id. Raises: Refusal with status 503 if all that are kept are in use."""
        self.sweep()
        if len(self._kept) >= self.most:
            talking = self._in_use()
            oldest = next((id_ for id_ in self._kept if id_ not in talking), None)
            if oldest is None:
                raise Refusal(503, "the server keeps as many voices as it can: try again later", retry_after=60)
            del self._kept[oldest]
        id_ = START + secrets.token_urlsafe(16)
        self._kept[id_] = OwnVoice(codes_QP, self._clock())
        return id_

    def codes_of(self, id_: str) -> Tensor | None:
        """Codes [8, P] of an id, which becomes the newest; None if it is not kept (any more)."""
        self.sweep()
        found = self._kept.get(id_)
        if found is None:
            return None
        found.used = self._clock()
        self._kept.move_to_end(id_)
        return found.codes_QP

    def remove(self, id_: str) -> bool:
        """Drops one; a call that has it goes on. Returns whether it was kept."""
        return self._kept.pop(id_, None) is not None

    def sweep(self) -> None:
        """Drops those whose time is over; to be called now and then, so that none is kept for longer."""
        if not self._kept:
            return
        now = self._clock()
        for id_ in self._in_use() & self._kept.keys():
            self._kept[id_].used = now
            self._kept.move_to_end(id_)
        for id_ in [id_ for id_, voice in self._kept.items() if now - voice.used > self.seconds]:
            del self._kept[id_]
