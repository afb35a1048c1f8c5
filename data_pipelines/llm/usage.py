"""What a run costs: requests, tokens and money, spent now or saved by the cache."""

import threading
from dataclasses import dataclass
from typing import Any

from data_pipelines.llm.answers import Answer
from data_pipelines.llm.settings import LLMSettings


@dataclass
class Tokens:
    """Counts of some answers, invalid ones included."""

    answers: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    uncounted: int = 0
    """Answers for which the server stated no counts."""

    def add(self, answer: Answer) -> None:
        """Counts one answer."""
        self.answers += 1
        self.prompt_tokens += answer.prompt_tokens or 0
        self.answer_tokens += answer.answer_tokens or 0
        self.uncounted += answer.prompt_tokens is None

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    def cost(self, settings: LLMSettings) -> float:
        """Money for these tokens, in the currency of the prices."""
        spent = self.prompt_tokens * settings.price_input + self.answer_tokens * settings.price_output
        return round(spent / 1e6, 6)

    def report(self, settings: LLMSettings) -> dict[str, Any]:
        """The counts and their cost, for report.json."""
        return vars(self) | {"cost": self.cost(settings)}


class Usage:
    """Counts of one run, kept by many threads."""

    def __init__(self, settings: LLMSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self.requests = 0
        """Requests sent to the server, failed ones included."""
        self.spent, self.saved = Tokens(), Tokens()

    def sent(self) -> None:
        """Counts one request."""
        with self._lock:
            self.requests += 1

    def answered(self, answer: Answer, *, from_cache: bool) -> None:
        """Counts one answer, which was paid for unless it came from the cache."""
        with self._lock:
            (self.saved if from_cache else self.spent).add(answer)

    @property
    def total(self) -> Tokens:
        """All answers that this run used, whenever they were paid for."""
        return self.spent + self.saved

    def line(self) -> str:
        """The counts in words, for the progress bar and the last line of a run."""
        spent, saved, priced = self.spent, self.saved, self._settings.price_input or self._settings.price_output
        cost = [f" ({tokens.cost(self._settings):.2f})" if priced else "" for tokens in (spent, saved)]
        return (
            f"tokens spent {spent.prompt_tokens + spent.answer_tokens}{cost[0]}, "
            f"saved {saved.prompt_tokens + saved.answer_tokens}{cost[1]}"
        )
