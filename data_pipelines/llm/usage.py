"""What a run costs: requests, tokens and money, spent now or saved by the cache."""

import threading
from typing import Any

from data_pipelines.llm.settings import LLMSettings


class Usage:
    """Counts of one run, kept by many threads."""

    def __init__(self, settings: LLMSettings):
        self._prices = settings.price_input, settings.price_output
        self._lock = threading.Lock()
        self.requests = 0
        """Requests sent over the line, failed ones included."""
        self.answers = {"spent": 0, "saved": 0}
        self.tokens = {"spent": [0, 0], "saved": [0, 0]}
        self.uncounted = 0
        """Answers for which the server told no token counts."""

    def sent(self) -> None:
        with self._lock:
            self.requests += 1

    def answered(self, answer: dict[str, Any], *, from_cache: bool) -> None:
        """Counts one answer as stored in the cache."""
        kind = "saved" if from_cache else "spent"
        with self._lock:
            self.answers[kind] += 1
            self.uncounted += answer["prompt_tokens"] is None
            self.tokens[kind][0] += answer["prompt_tokens"] or 0
            self.tokens[kind][1] += answer["answer_tokens"] or 0

    def cost(self, kind: str) -> float:
        """Money for the tokens "spent" or "saved"."""
        return sum(tokens * price for tokens, price in zip(self.tokens[kind], self._prices, strict=True)) / 1e6

    def report(self) -> dict[str, Any]:
        """For report.json."""
        figures: dict[str, Any] = {"requests": self.requests, "answers_without_token_counts": self.uncounted}
        for kind in ("spent", "saved"):
            prompt, answer = self.tokens[kind]
            figures[kind] = {
                "answers": self.answers[kind],
                "prompt_tokens": prompt,
                "answer_tokens": answer,
                "cost": round(self.cost(kind), 6),
            }
        return figures

    def line(self) -> str:
        """For the progress bar."""
        prompt, answer = self.tokens["spent"]
        line = f"{prompt + answer} tokens"
        if any(self._prices):
            line += f", cost {self.cost('spent'):.2f}, saved {self.cost('saved'):.2f}"
        return f"{line}, {self.answers['saved']} from cache"
