import json
import re
import threading
from email.utils import formatdate
from time import time

import pytest

from data_pipelines.llm.answers import repeats_itself
from data_pipelines.llm.client import GIVE_UP_AFTER, Client, NoAnswer, Question, retry_after
from data_pipelines.llm.pool import in_threads
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.llm.usage import Tokens
from model.errors import UserError
from tests.data_pipelines.llm_server import LLMServer, drop, hang, raw, say, status

pytest.importorskip("openai")
pytest.importorskip("jsonschema")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
GOOD = {"city": "Oslo"}
LOOP = '{"city": "' + "and so on " * 40 + '"}'


def no_town(value):
    return [f"{value['city']} is a town"] if value["city"] == "Ulm" else []


def question(seed=10, user="Name a city."):
    return Question(name="city", system="Answer in JSON.", user=user, schema=SCHEMA, seed=seed, check=no_town)


class Asked:
    """A client of a server with these replies, and what came of one question."""

    def __init__(self, tmp_path, replies, **settings):
        self.waits = []
        with LLMServer(replies) as self.server:
            settings = {"model": "m", "base_url": self.server.url, "retries": 3, "tries": 3} | settings
            self.client = Client(LLMSettings(**settings), tmp_path / "cache", sleep=self.waits.append)
            self.value = self.failure = None
            try:
                self.value = self.client.ask(question())
            except NoAnswer as why:
                self.failure = why
        self.requests = len(self.server.bodies)


def test_a_good_answer_takes_one_request_and_the_schema_goes_along(tmp_path):
    asked = Asked(tmp_path, [say(GOOD)])
    assert (asked.value, asked.requests, asked.waits) == (GOOD, 1, [])
    body = asked.server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (body["seed"], body["model"], body["temperature"], body["max_tokens"]) == (10, "m", 0.8, 2048)
    assert asked.server.headers[0]["path"] == "/v1/chat/completions"


def test_the_limit_of_tokens_goes_by_the_servers_name_for_it_and_is_the_same_question(tmp_path):
    def newer(body):
        if "max_tokens" in body:
            return status(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        return say(GOOD)

    asked = Asked(tmp_path / "a", newer)
    assert "use 'max_completion_tokens'" in str(asked.failure)
    asked = Asked(tmp_path / "b", newer, max_tokens_name="max_completion_tokens", max_tokens=77)
    assert asked.value == GOOD and asked.server.bodies[0]["max_completion_tokens"] == 77
    assert Asked(tmp_path / "b", newer, max_tokens=77).requests == 0  # kept: the answer does not hang on the name


@pytest.mark.parametrize("form", ["json_object", "text"])
def test_a_server_without_schemas_gets_the_schema_in_words(tmp_path, form):
    asked = Asked(tmp_path, [say(GOOD)], answer_format=form)
    body = asked.server.bodies[0]
    assert asked.value == GOOD
    assert '"required":["city"]' in body["messages"][0]["content"]
    assert body.get("response_format") == ({"type": "json_object"} if form == "json_object" else None)


def test_only_the_text_format_takes_json_out_of_prose(tmp_path):
    wrapped = say('<think>{hm}</think>Here you are:\n```json\n{"city": "Oslo"}\n```')
    assert Asked(tmp_path / "a", [wrapped], answer_format="text").value == GOOD
    asked = Asked(tmp_path / "b", [wrapped], tries=1)
    assert asked.failure.fault == "prose"


# what the server does, requests made, waits between them (None: our own back-off, by attempt)
PATIENCE = {
    "500 twice": ([status(500), status(500), say(GOOD)], [None, None]),
    "429 with seconds": ([status(429, Retry_After="7"), say(GOOD)], [7.0]),
    "429 without": ([status(429), say(GOOD)], [None]),
    "503 with zero": ([status(503, Retry_After="0"), say(GOOD)], [0.0]),
    "hang up": ([drop, say(GOOD)], [None]),
    "broken body": ([raw(b'{"id": "x", "choi'), say(GOOD)], [None]),
    "another page": ([raw(b"<html>proxy</html>", "text/html"), say(GOOD)], [None]),
    "no choices": ([raw(b'{"object": "chat.completion", "choices": []}'), say(GOOD)], [None]),
}


@pytest.mark.parametrize("replies, waits", PATIENCE.values(), ids=PATIENCE)
def test_faults_of_the_line_are_waited_out(tmp_path, replies, waits):
    asked = Asked(tmp_path, replies)
    assert (asked.value, asked.requests) == (GOOD, len(replies))
    assert asked.client.usage.requests == len(replies)
    assert len(asked.waits) == len(waits)
    for attempt, (found, expected) in enumerate(zip(asked.waits, waits, strict=True)):
        assert found == expected if expected is not None else 0.5 * 2**attempt <= found <= 2**attempt


def test_a_slow_server_times_out_and_is_asked_again(tmp_path):
    asked = Asked(tmp_path, [hang(60), say(GOOD)], timeout=1.5)
    assert asked.value == GOOD and asked.requests >= 2  # more where the good answer takes as long


@pytest.mark.parametrize(
    "reply, settings, reason",
    [
        (status(500, "out of memory"), {}, "HTTP 500: .*out of memory.*asked 4 times"),
        (status(429, "slow down"), {"retries": 0}, "HTTP 429: .*slow down.*asked 1 times"),
        (hang(60), {"timeout": 0.1, "retries": 1}, "timeout: no answer in 0.1 s, asked 2 times"),
        (drop, {"retries": 1}, "connection: .*asked 2 times"),
        (status(429, Retry_After="90000"), {}, "asks to wait 90000 s, asked 1 times"),
    ],
    ids=["500", "429", "timeout", "drop", "come back tomorrow"],
)
def test_patience_ends_and_says_why(tmp_path, reply, settings, reason):
    asked = Asked(tmp_path, [reply], **settings)
    assert asked.failure.lasting is False
    assert re.search(reason, str(asked.failure))
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("code", [400, 408, 409, 413, 422])
def test_other_refusals_of_the_server_are_not_repeated(tmp_path, code):
    asked = Asked(tmp_path, [status(code, "context is 2048 tokens")])
    assert (asked.requests, asked.waits) == (1, [])
    assert asked.failure.lasting
    assert f"HTTP {code}: the server refuses the request" in str(asked.failure)
    assert "context is 2048 tokens" in str(asked.failure)


@pytest.mark.parametrize("code, hint", [(401, r"\$TEST_KEY"), (403, r"\$TEST_KEY"), (404, "--llm-model")])
def test_a_wrong_key_or_model_ends_the_run_without_showing_the_key(tmp_path, monkeypatch, code, hint):
    monkeypatch.setenv("TEST_KEY", "secret-key-1")
    with LLMServer([status(code, "bad key secret-key-1")]) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, key_env="TEST_KEY"), tmp_path)
        with pytest.raises(UserError, match=hint) as stop:
            client.ask(question())
    assert "secret" not in str(stop.value)
    assert server.headers[0]["authorization"] == "Bearer secret-key-1"
    assert len(server.bodies) == 1


@pytest.mark.parametrize("key", ["secret key", "secr\u00e9t-key", "secret\r\nkey"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("TEST_KEY", key)
    with pytest.raises(UserError, match=r"the key in \$TEST_KEY holds a space or a character") as stop:
        Client(LLMSettings(model="m", key_env="TEST_KEY"), tmp_path)
    assert key not in str(stop.value)


def test_the_end_of_a_line_after_the_key_is_no_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-3\r\n")
    assert Asked(tmp_path, [say(GOOD)]).server.headers[0]["authorization"] == "Bearer secret-key-3"


# what the model says, the kind of fault, and what is told to it with the next request
FAULTS = {
    "malformed": (say('{"city": "Oslo'), "malformed JSON", "not a JSON object"),
    "prose": (say("Oslo is a nice city."), "prose", "Oslo is a nice city"),
    "empty": (say(""), "prose", "not a JSON object"),
    "null": (say(None), "prose", "not a JSON object"),
    "refusal in words": (say("I'm sorry, but I can't help with that."), "refusal", "refused"),
    "refusal": (say(None, refusal="I will not."), "refusal", "I will not."),
    "filtered": (say("", finish="content_filter"), "refusal", "refused"),
    "cut": (say('{"city": "Os', finish="length"), "length", "more briefly"),
    "cut but valid": (say(GOOD, finish="length"), "length", "more briefly"),
    "loop": (say(LOOP), "repeats", "repeats itself"),
    "other object": (say({"town": "Oslo"}), "schema", "'city' is a required property"),
    "a list": (say([GOOD]), "schema", "is not of type 'object'"),
    "rules": (say({"city": "Ulm"}), "rules", "Ulm is a town"),
}


@pytest.mark.parametrize("reply, fault, told", FAULTS.values(), ids=FAULTS)
def test_a_bad_answer_is_asked_for_again_with_the_next_seed_and_the_reason(tmp_path, reply, fault, told):
    asked = Asked(tmp_path, [reply, say(GOOD)])
    assert (asked.value, asked.requests, asked.waits) == (GOOD, 2, [])
    assert [body["seed"] for body in asked.server.bodies] == [10, 11]
    messages = asked.server.bodies[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert told in messages[-1]["content"] and 0 < len(messages[2]["content"]) < 200


@pytest.mark.parametrize("reply, fault, told", FAULTS.values(), ids=FAULTS)
def test_bad_answers_fail_in_the_end_with_their_kind(tmp_path, reply, fault, told):
    asked = Asked(tmp_path, [reply], tries=1)
    assert (asked.failure.fault, asked.requests, asked.failure.lasting) == (fault, 1, True)
    assert told in str(asked.failure)


def test_answers_that_differ_are_tried_as_often_as_allowed(tmp_path):
    asked = Asked(tmp_path, [say(f"prose {n}") for n in range(9)], tries=4)
    assert (asked.requests, asked.failure.fault) == (4, "prose")


def test_the_same_bad_answer_twice_ends_it(tmp_path):
    asked = Asked(tmp_path, [say({"city": "Ulm"})], tries=9)
    assert (asked.requests, asked.failure.fault) == (2, "repeats")
    assert "the same answer again, which is wrong: Ulm is a town" in str(asked.failure)


def test_what_was_answered_is_never_asked_again_good_or_bad(tmp_path):
    first = Asked(tmp_path, [say({"city": "Ulm"}), say("prose"), say(GOOD)])
    again = Asked(tmp_path, [status(500)])
    assert (first.requests, again.requests, again.value) == (3, 0, GOOD)
    assert again.client.usage.saved == first.client.usage.spent == Tokens(3, 300, 60)
    assert again.client.usage.total == first.client.usage.total


@pytest.mark.parametrize("change", [{"model": "n"}, {"temperature": 0.1}, {"max_tokens": 9}, {"answer_format": "text"}])
def test_other_settings_are_another_question(tmp_path, change):
    assert Asked(tmp_path, [say(GOOD)]).requests == 1
    assert Asked(tmp_path, [say(GOOD)], **change).requests == 1


@pytest.mark.parametrize("change", [{"timeout": 9}, {"retries": 0}, {"concurrency": 3}, {"price_input": 5.0}])
def test_patience_width_price_and_address_are_not_part_of_the_question(tmp_path, change):
    assert Asked(tmp_path, [say(GOOD)]).requests == 1
    assert Asked(tmp_path, [say(GOOD)], **change).requests == 0


def test_a_damaged_file_in_the_cache_is_asked_for_again(tmp_path):
    Asked(tmp_path, [say(GOOD)])
    (stored,) = (tmp_path / "cache").rglob("*.json")
    whole = stored.read_bytes()
    stored.write_bytes(whole[:50])
    assert Asked(tmp_path, [say(GOOD)]).requests == 1
    assert stored.read_bytes() == whole


def test_the_cache_is_readable_and_holds_no_key_and_no_address(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-2")
    asked = Asked(tmp_path, [say(GOOD)])
    (stored,) = (tmp_path / "cache").rglob("*.json")
    record = json.loads(stored.read_text("utf-8"))
    assert json.loads(record["answer"]["content"]) == GOOD
    assert record["request"]["messages"][1]["content"] == "Name a city."
    assert "secret" not in stored.read_text("utf-8") and "127.0.0.1" not in stored.read_text("utf-8")
    assert "secret" not in repr(asked.client.settings)


def test_tokens_and_cost_are_counted(tmp_path):
    asked = Asked(tmp_path, [say("prose", usage=None), say(GOOD, usage=(3000, 500))], price_input=2.0, price_output=8.0)
    usage = asked.client.usage
    assert usage.total.report(asked.client.settings) == {
        "answers": 2, "prompt_tokens": 3000, "answer_tokens": 500, "uncounted": 1, "cost": 0.01
    }  # fmt: skip
    assert usage.line() == "tokens spent 3500 (0.01), saved 0 (0.00)"


def test_many_questions_keep_their_order_and_the_width_is_bounded(tmp_path):
    busy, most, lock = [0], [0], threading.Lock()
    gate = threading.Barrier(3)

    def reply(body):
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        gate.wait(600)  # three at a time or the test fails
        with lock:
            busy[0] -= 1
        return {"city": body["messages"][1]["content"]}

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, concurrency=3), tmp_path)
        names = [f"city {n}" for n in range(9)]
        values = list(in_threads(lambda name: client.ask(question(user=name))["city"], names, client))
    assert values == names
    assert most[0] == 3


def test_the_same_question_from_many_threads_is_paid_once(tmp_path):
    with LLMServer([say(GOOD)]) as server:
        client = Client(LLMSettings(model="m", base_url=server.url), tmp_path)
        assert list(in_threads(lambda n: client.ask(question()), range(20), client)) == [GOOD] * 20
    assert len(server.bodies) == 1


def test_the_client_keeps_nothing_of_what_was_answered_in_memory(tmp_path):
    with LLMServer([say(GOOD)]) as server:
        client = Client(LLMSettings(model="m", base_url=server.url), tmp_path)
        before = {name: len(value) for name, value in vars(client).items() if hasattr(value, "__len__")}
        for seed in range(20):
            client.ask(question(seed=seed))
    assert {name: len(value) for name, value in vars(client).items() if hasattr(value, "__len__")} == before


def test_a_server_that_is_gone_ends_the_run_instead_of_failing_every_item(tmp_path):
    with LLMServer([status(500)]) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, retries=0, concurrency=1), tmp_path)

        def ask(n):
            try:
                client.ask(question(seed=n))
            except NoAnswer:
                return n

        with pytest.raises(UserError, match="did not answer 8 requests in a row"):
            list(in_threads(ask, range(100), client))
    assert GIVE_UP_AFTER <= len(server.bodies) <= GIVE_UP_AFTER + 2


@pytest.mark.parametrize("answered_first", [False, True])
def test_a_server_that_refuses_everything_ends_the_run_but_one_that_refuses_some_does_not(tmp_path, answered_first):
    def reply(body):
        if body["seed"] == 0 and answered_first:
            return GOOD
        return status(400, "Unsupported parameter: 'max_tokens'")

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, concurrency=1), tmp_path)
        work = in_threads(lambda n: client.ask(question(seed=n)) if n == 0 else quietly(client, n), range(30), client)
        if answered_first:
            assert len(list(work)) == 30
        else:
            with pytest.raises(
                UserError, match="answers 400 to all of the first 8 requests .*'max_tokens'.*--llm options"
            ):
                list(in_threads(lambda n: quietly(client, n), range(30), client))
    assert len(server.bodies) == (30 if answered_first else GIVE_UP_AFTER)


def test_when_one_item_ends_the_run_nobody_keeps_waiting_for_the_server(tmp_path, monkeypatch):
    """Seven threads are in a back-off of minutes when the eighth meets a wrong key."""
    waiting, woken = threading.Barrier(8), []

    def reply(body):
        waiting.wait(600)
        return status(401) if body["seed"] == 7 else status(503, Retry_After="300")

    with LLMServer(reply) as server:
        client = Client(LLMSettings(model="m", base_url=server.url, concurrency=8), tmp_path)
        monkeypatch.setattr(client, "_sleep", lambda s, sleep=client._sleep: woken.append(sleep(s)))
        with pytest.raises(UserError, match="answers 401"):
            list(in_threads(lambda n: quietly(client, n), range(8), client))
    assert woken and all(woken)  # none has waited to the end
    assert len(server.bodies) == 8


def quietly(client, n):
    try:
        client.ask(question(seed=n))
    except NoAnswer as why:
        return str(why)


def test_retry_after_may_be_a_date():
    assert 2000 < retry_after(formatdate(time() + 3000, usegmt=True)) <= 3000
    assert retry_after(formatdate(time() - 30, usegmt=True)) == 0
    assert retry_after("soon") is None and retry_after(None) is None


@pytest.mark.parametrize(
    "text, loops",
    [
        ("no " * 15, True),
        ("the cat sat down and " * 5, True),
        ("fine so far. " + "I agree with you. " * 6, True),
        ("no " * 14, False),
        ("the cat sat down and " * 4, False),
        (" ".join(str(n) for n in range(400)), False),
        ('{"turns": [' + ", ".join(f'{{"speaker": "agent", "text": "line {n}"}}' for n in range(30)) + "]}", False),
    ],
)
def test_loops_are_told_from_lists(text, loops):
    assert repeats_itself(text) is loops


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": 3}, "--llm-temperature 3: must be from 0 to 2"),
        ({"concurrency": 0}, "--llm-concurrency 0"),
        ({"tries": 0}, "--llm-tries 0"),
        ({"answer_format": "xml"}, "--llm-format 'xml': choose one of json_schema"),
        ({"base_url": "localhost:8000"}, "--llm-url 'localhost:8000': give a URL like http"),
        ({"model": ""}, "--llm-model is empty"),
        ({"base_url": "http://"}, "--llm-url 'http://': give a URL like http"),
        ({"base_url": "http://[host/v1"}, "--llm-url 'http://.host/v1': give a URL"),
        ({"base_url": "http://host:99999/v1"}, "--llm-url 'http://host:99999/v1': give a URL"),
        ({"base_url": "https://me:secret@host/v1"}, "--llm-url holds a user name or key: put"),
        ({"base_url": "https://host/v1?key=secret"}, "--llm-url holds a user name or key: put"),
        ({"max_tokens_name": "limit"}, "--llm-max-tokens-name 'limit': choose one of max_tokens, max_completion"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LLMSettings(**({"model": "m"} | settings))
