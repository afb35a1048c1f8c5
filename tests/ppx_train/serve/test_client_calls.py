"""Our client with our server: what it asks for arrives, what it is refused is told, and the text has its frames."""

import numpy as np
import pytest

pytest.importorskip("prometheus_client")

from ppx_train.inference.loading import Release
from ppx_train.serve.client import CallOptions, connect
from ppx_train.serve.file_chat import talk
from tests.ppx_train.serve.live import live, within
from tests.refusals import refused


def test_a_talk_has_the_sound_and_the_text_of_every_frame(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced) as one:
            options = CallOptions(voice="ada", role="you work for citysan", seed=3, codec="pcm16")
            async with connect(one.address, options) as call:
                assert [message.event["type"] for message in call.before] == ["loading_voice", "prompting"]
                found = await talk(call, np.zeros(12 * 1920 - 100, np.float32))
        assert len(found.agent_S) == 12 * 1920 - 100 and np.abs(found.agent_S).max() > 0
        assert len(found.pieces) == 12 and any(word.text for word in found.words())
        assert not found.goodbye and 0 < found.ready_seconds < 5

    within(60, test())


def test_refusals_name_what_would_do(voiced: Release) -> None:
    async def test() -> None:
        async with live(voiced, token="a-good-token") as one:
            with refused("no-access", "token"):
                async with connect(one.address, CallOptions(codec="pcm16")):
                    pass
            with refused("unknown-name", "ada", "bob"):
                async with connect(one.address, CallOptions(voice="eve", codec="pcm16", token="a-good-token")):
                    pass
            with refused("bad-value", "tokens"):
                async with connect(
                    one.address, CallOptions(role="tell me " * 500, codec="pcm16", token="a-good-token")
                ):
                    pass

    within(60, test())
