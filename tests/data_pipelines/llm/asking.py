"""One question about a city, and a client that asks it of a server with given replies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.llm.answers import Question
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.settings import LLMSettings
from tests.data_pipelines.llm_server import Body, LLMServer

City = dict[str, Any]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
GOOD: City = {"city": "Oslo"}


def no_town(value: City) -> list[str]:
    """A rule that a schema cannot state."""
    return [f"{value['city']} is a town"] if value["city"] == "Ulm" else []


def question(seed: int = 10, user: str = "Name a city.") -> Question[City]:
    """A question whose record is the JSON object itself."""
    return Question(
        name="city", system="Answer in JSON.", user=user, schema=SCHEMA, seed=seed, read=dict, check=no_town
    )


def reason(client: Client, seed: int) -> str:
    """Why a question gets no answer; "" if it gets one."""
    try:
        client.ask(question(seed=seed))
    except NoAnswer as why:
        return str(why)
    return ""


class Asked:
    """A client of a server with these replies, and what came of one question."""

    def __init__(self, folder: Path, replies: Sequence[Any] | Callable[[Body], Any], **settings: Any) -> None:
        self.waits: list[float] = []
        self.value: City | None = None
        self.failure: NoAnswer | None = None
        with LLMServer(replies) as self.server:
            chosen: dict[str, Any] = {"model": "m", "base_url": self.server.url, "retries": 3, "tries": 3} | settings
            self.client = Client(LLMSettings(**chosen), folder / "cache", sleep=self.waits.append)
            try:
                self.value = self.client.ask(question())
            except NoAnswer as why:
                self.failure = why
        self.requests = len(self.server.bodies)

    @property
    def failed(self) -> NoAnswer:
        """Why the question got no answer."""
        assert self.failure is not None, self.value
        return self.failure
