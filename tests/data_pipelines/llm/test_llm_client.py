"""The client against a server with faults: what is sent, sent again, kept and counted."""

import json
import re
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import pytest

from data_pipelines.llm.client import Client, retry_after
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.llm.usage import Tokens
from model.errors import Code, UserError
from tests.data_pipelines.llm.asking import GOOD, SCHEMA, Asked, question
from tests.data_pipelines.llm_server import Body, LLMServer, Reply, drop, hang, raw, say, status
from tests.refusals import refused

pytest.importorskip("openai")
pytest.importorskip("jsonschema")


def test_a_good_answer_takes_one_request_and_the_schema_goes_along(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [say(GOOD)])
    assert (asked.value, asked.requests, asked.waits) == (GOOD, 1, [])
    body = asked.server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (body["seed"], body["model"], body["temperature"], body["max_tokens"]) == (10, "m", 0.8, 2048)
    assert asked.server.headers[0]["path"] == "/v1/chat/completions"


def test_the_limit_of_tokens_goes_by_the_servers_name_for_it_and_is_the_same_question(tmp_path: Path) -> None:
    def newer(body: Body) -> Reply:
        if "max_tokens" in body:
            return status(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        return say(GOOD)

    asked = Asked(tmp_path / "a", newer)
    assert "use 'max_completion_tokens'" in str(asked.failed)
    asked = Asked(tmp_path / "b", newer, max_tokens_name="max_completion_tokens", max_tokens=77)
    assert asked.value == GOOD and asked.server.bodies[0]["max_completion_tokens"] == 77
    assert Asked(tmp_path / "b", newer, max_tokens=77).requests == 0  # The kept answer does not depend on the name.


def odd(**message: Any) -> Reply:
    """A chat completion whose message has values of other types."""
    return raw(json.dumps({"model": "m", "choices": [{"message": message, "finish_reason": "stop"}]}).encode())


# What the server does, and the waits between requests in seconds (None: our own back-off, by attempt).
PATIENCE: dict[str, tuple[list[Reply], list[float | None]]] = {
    "500 twice": ([status(500), status(500), say(GOOD)], [None, None]),
    "429 with seconds": ([status(429, Retry_After="7"), say(GOOD)], [7.0]),
    "429 without": ([status(429), say(GOOD)], [None]),
    "503 with zero": ([status(503, Retry_After="0"), say(GOOD)], [0.0]),
    "hang up": ([drop, say(GOOD)], [None]),
    "broken body": ([raw(b'{"id": "x", "choi'), say(GOOD)], [None]),
    "another page": ([raw(b"<html>proxy</html>", "text/html"), say(GOOD)], [None]),
    "no choices": ([raw(b'{"object": "chat.completion", "choices": []}'), say(GOOD)], [None]),
    "choices of another kind": ([raw(b'{"choices": {"0": 1}}'), say(GOOD)], [None]),
    "a choice of another kind": ([raw(b'{"choices": ["Oslo"]}'), say(GOOD)], [None]),
    "a list": ([raw(b"[1, 2]"), say(GOOD)], [None]),
    "nested brackets": ([raw(b"[" * 200_000), say(GOOD)], [None]),
    "content that is a number": ([odd(content=5), say(GOOD)], [None]),
    "content that is a list": ([odd(content=[{"type": "text", "text": '{"city": "Oslo"}'}]), say(GOOD)], [None]),
    "refusal that is an object": ([odd(content=None, refusal={"why": "no"}), say(GOOD)], [None]),
    "half a surrogate pair": ([odd(content="\ud800"), say(GOOD)], [None]),
}


@pytest.mark.parametrize("replies, waits", PATIENCE.values(), ids=PATIENCE)
def test_faults_of_the_line_are_waited_out(tmp_path: Path, replies: list[Reply], waits: list[float | None]) -> None:
    asked = Asked(tmp_path, replies)
    assert (asked.value, asked.requests) == (GOOD, len(replies))
    assert asked.client.usage.requests == len(replies)
    assert len(asked.waits) == len(waits)
    for attempt, (found, expected) in enumerate(zip(asked.waits, waits, strict=True)):
        assert found == expected if expected is not None else 0.5 * 2**attempt <= found <= 2**attempt


@pytest.mark.parametrize("reply", [odd(content=5), odd(content=["Oslo"]), odd(content="{}", refusal={})])
def test_odd_answers_are_not_kept(tmp_path: Path, reply: Reply) -> None:
    assert Asked(tmp_path, [reply], retries=0, tries=1).failed.lasting is False
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("usage", ["100 tokens", 7, [100, 20], {"prompt_tokens": "100", "completion_tokens": -1}])
def test_an_odd_count_of_tokens_is_no_count(tmp_path: Path, usage: Any) -> None:
    choice = {"message": {"content": json.dumps(GOOD)}, "finish_reason": "stop"}
    asked = Asked(tmp_path, [raw(json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode())])
    assert asked.value == GOOD
    assert asked.client.usage.total == Tokens(answers=1, uncounted=1)


def test_a_slow_server_times_out_and_is_asked_again(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [hang, say(GOOD)], timeout=1.5)
    # A slow machine may need more than two requests, because the good answer can come too late as well.
    assert asked.value == GOOD and asked.requests >= 2


@pytest.mark.parametrize(
    "reply, settings, reason",
    [
        (status(500, "out of memory"), {}, "HTTP 500: .*out of memory.*asked 4 times"),
        (status(429, "slow down"), {"retries": 0}, "HTTP 429: .*slow down.*asked 1 times"),
        (hang, {"timeout": 0.1, "retries": 1}, "timeout: no answer in 0.1 s, asked 2 times"),
        (drop, {"retries": 1}, "connection: .*asked 2 times"),
        (status(429, Retry_After="90000"), {}, "asks to wait 90000 s, asked 1 times"),
    ],
    ids=["500", "429", "timeout", "drop", "come back tomorrow"],
)
def test_patience_ends_and_says_why(tmp_path: Path, reply: Reply, settings: dict[str, Any], reason: str) -> None:
    asked = Asked(tmp_path, [reply], **settings)
    assert asked.failed.lasting is False
    assert re.search(reason, str(asked.failed))
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("code", [400, 408, 409, 413, 422])
def test_other_refusals_of_the_server_are_not_repeated(tmp_path: Path, code: int) -> None:
    asked = Asked(tmp_path, [status(code, "context is 2048 tokens")])
    assert (asked.requests, asked.waits) == (1, [])
    assert asked.failed.lasting and asked.failed.fault == f"HTTP {code}"
    assert "context is 2048 tokens" in str(asked.failed)


@pytest.mark.parametrize(
    "status_code, code, named", [(401, "no-access", "$TEST_KEY"), (403, "no-access", "$TEST_KEY"),
                                 (404, "not-found", "--llm-model")]
)  # fmt: skip
def test_a_wrong_key_or_model_ends_the_run_without_showing_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status_code: int, code: Code, named: str
) -> None:
    monkeypatch.setenv("TEST_KEY", "secret-key-1")
    with LLMServer([status(status_code, "bad key secret-key-1")]) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, key_env="TEST_KEY"), tmp_path)
        with refused(code, server.url, status_code, "bad key ***", named):  # The key itself is masked.
            client.ask(question())
    assert server.headers[0]["authorization"] == "Bearer secret-key-1"
    assert len(server.bodies) == 1


@pytest.mark.parametrize("key", ["secret key", "secr\u00e9t-key", "secret\r\nkey"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(UserError, match=r"the key in \$TEST_KEY") as stop:
        Client(LLMSettings(model="m", key_env="TEST_KEY"), tmp_path)
    assert key not in str(stop.value)


def test_the_end_of_a_line_after_the_key_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-3\r\n")
    assert Asked(tmp_path, [say(GOOD)]).server.headers[0]["authorization"] == "Bearer secret-key-3"


def test_what_was_answered_is_never_asked_again_good_or_bad(tmp_path: Path) -> None:
    first = Asked(tmp_path, [say({"city": "Ulm"}), say("prose"), say(GOOD)])
    again = Asked(tmp_path, [status(500)])
    assert (first.requests, again.requests, again.value) == (3, 0, GOOD)
    assert again.client.usage.saved == first.client.usage.spent == Tokens(3, 300, 60)
    assert again.client.usage.total == first.client.usage.total


@pytest.mark.parametrize("change", [{"model": "n"}, {"temperature": 0.1}, {"max_tokens": 9}, {"answer_format": "text"}])
def test_other_settings_are_another_question(tmp_path: Path, change: dict[str, Any]) -> None:
    assert Asked(tmp_path, [say(GOOD)]).requests == 1
    assert Asked(tmp_path, [say(GOOD)], **change).requests == 1


@pytest.mark.parametrize("change", [{"timeout": 9}, {"retries": 0}, {"concurrency": 3}, {"price_input": 5.0}])
def test_patience_width_price_and_address_are_not_part_of_the_question(tmp_path: Path, change: dict[str, Any]) -> None:
    assert Asked(tmp_path, [say(GOOD)]).requests == 1
    assert Asked(tmp_path, [say(GOOD)], **change).requests == 0


@pytest.mark.parametrize("damage", [lambda whole: whole[:50], lambda whole: whole.replace(b'"content"', b'"text"')])
def test_a_damaged_file_in_the_cache_is_asked_for_again(tmp_path: Path, damage: Any) -> None:
    Asked(tmp_path, [say(GOOD)])
    (stored,) = (tmp_path / "cache").rglob("*.json")
    whole = stored.read_bytes()
    stored.write_bytes(damage(whole))
    assert Asked(tmp_path, [say(GOOD)]).requests == 1
    assert stored.read_bytes() == whole


def test_the_cache_is_readable_and_holds_no_key_and_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-2")
    asked = Asked(tmp_path, [say(GOOD)])
    (stored,) = (tmp_path / "cache").rglob("*.json")
    record = json.loads(stored.read_text("utf-8"))
    assert json.loads(record["answer"]["content"]) == GOOD
    assert record["request"]["messages"][1]["content"] == "Name a city."
    assert "secret" not in stored.read_text("utf-8") and "127.0.0.1" not in stored.read_text("utf-8")
    assert "secret" not in repr(asked.client.settings)


def test_tokens_and_cost_are_counted(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [say("prose", usage=None), say(GOOD, usage=(3000, 500))], price_input=2.0, price_output=8.0)
    usage = asked.client.usage
    assert usage.total.report(asked.client.settings) == {
        "answers": 2, "prompt_tokens": 3000, "answer_tokens": 500, "uncounted": 1, "cost": 0.01
    }  # fmt: skip
    assert usage.line() == "tokens spent 3500 (0.01), saved 0 (0.00)"


def test_retry_after_may_be_a_date() -> None:
    for offset, least, most in ((3000, 2000, 3000), (-30, 0, 0)):
        wait = retry_after(formatdate(time() + offset, usegmt=True))
        assert wait is not None and least <= wait <= most
    assert retry_after("soon") is None and retry_after(None) is None
