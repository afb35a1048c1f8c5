"""Many questions at a time: order, width, one price for equal questions, and how a run ends."""

import threading
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.llm.client import GIVE_UP_AFTER, Client
from data_pipelines.llm.pool import in_threads
from data_pipelines.llm.settings import LLMSettings
from tests.data_pipelines.llm.asking import GOOD, question, reason
from tests.data_pipelines.llm_server import Body, LLMServer, Reply, say, status
from tests.refusals import refused

pytest.importorskip("openai")
pytest.importorskip("jsonschema")


def client_of(server: LLMServer, cache: Path, **settings: Any) -> Client:
    return Client(LLMSettings(model="m", base_url=server.url, **settings), cache)


def test_many_questions_keep_their_order_and_the_width_is_bounded(tmp_path: Path) -> None:
    busy, most, lock = [0], [0], threading.Lock()
    gate = threading.Barrier(3)

    def reply(body: Body) -> dict[str, Any]:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        gate.wait(600)  # Three requests at a time, or the test fails.
        with lock:
            busy[0] -= 1
        return {"city": body["messages"][1]["content"]}

    with LLMServer(reply) as server:
        client = client_of(server, tmp_path, concurrency=3)
        names = [f"city {n}" for n in range(9)]
        values = list(in_threads(lambda name: client.ask(question(user=name))["city"], names, client))
    assert values == names
    assert most[0] == 3


def test_the_same_question_from_many_threads_is_paid_once(tmp_path: Path) -> None:
    with LLMServer([say(GOOD)]) as server:
        client = client_of(server, tmp_path)
        assert list(in_threads(lambda n: client.ask(question()), range(20), client)) == [GOOD] * 20
    assert len(server.bodies) == 1


def test_the_client_keeps_nothing_of_what_was_answered_in_memory(tmp_path: Path) -> None:
    with LLMServer([say(GOOD)]) as server:
        client = client_of(server, tmp_path)
        before = {name: len(value) for name, value in vars(client).items() if hasattr(value, "__len__")}
        for seed in range(20):
            client.ask(question(seed=seed))
    assert {name: len(value) for name, value in vars(client).items() if hasattr(value, "__len__")} == before


def test_a_server_that_is_gone_ends_the_run_instead_of_failing_every_item(tmp_path: Path) -> None:
    with LLMServer([status(500)]) as server:
        client = client_of(server, tmp_path, retries=0, concurrency=1)
        with refused("unreachable", server.url, "HTTP 500", f"{GIVE_UP_AFTER} requests in a row"):
            list(in_threads(lambda n: reason(client, n), range(100), client))
    assert GIVE_UP_AFTER <= len(server.bodies) <= GIVE_UP_AFTER + 2


@pytest.mark.parametrize("answered_first", [False, True])
def test_a_server_that_refuses_everything_ends_the_run_but_one_that_refuses_some_does_not(
    tmp_path: Path, answered_first: bool
) -> None:
    def reply(body: Body) -> Any:
        if body["seed"] == 0 and answered_first:
            return GOOD
        return status(400, "Unsupported parameter: 'max_tokens'")

    with LLMServer(reply) as server:
        client = client_of(server, tmp_path, concurrency=1)
        work = in_threads(lambda n: reason(client, n), range(30), client)
        if answered_first:
            assert list(work).count("") == 1
        else:
            with refused("no-access", server.url, 400, f"first {GIVE_UP_AFTER} requests", "'max_tokens'", "--llm"):
                list(work)
    assert len(server.bodies) == (30 if answered_first else GIVE_UP_AFTER)


def test_when_one_item_ends_the_run_nobody_keeps_waiting_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven threads are in a back-off of five minutes when the eighth meets a wrong key."""
    waiting = threading.Barrier(8)
    woken: list[bool] = []

    def reply(body: Body) -> Reply:
        if not woken:
            waiting.wait(600)
        return status(401) if body["seed"] == 7 else status(503, Retry_After="300")

    with LLMServer(reply) as server:
        client = client_of(server, tmp_path, concurrency=8)
        wait = client._stopping.wait
        monkeypatch.setattr(client, "_sleep", lambda seconds: woken.append(wait(seconds)))
        with refused("no-access", "answers 401"):
            list(in_threads(lambda n: reason(client, n), range(8), client))
    assert woken == [True] * 7  # A wait that lasts to its end returns False.
    assert len(server.bodies) == 8
