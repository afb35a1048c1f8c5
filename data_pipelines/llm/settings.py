"""How a language model is reached and asked, and the options for it that every verb with a model shares."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.web import checked_address, key_of
from model.errors import UserError

FORMATS = ("json_schema", "json_object", "text")
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")


@dataclass(kw_only=True, frozen=True)
class LLMSettings:
    """An OpenAI-compatible endpoint and how to use it.

    What the answers depend on is in `identity`; the rest (where the server is, timeouts, concurrency, prices) may
    change when a run is resumed. The key is read from the environment and kept nowhere else.
    Raises: UserError for a value out of range ("bad-value"), an unknown name ("unknown-name"), a missing model
    ("missing-option") or an address that holds a key ("unsafe").
    """

    model: str
    base_url: str = "http://127.0.0.1:8000/v1"
    key_env: str = "OPENAI_API_KEY"
    answer_format: str = "json_schema"
    temperature: float = 0.8
    max_tokens: int = 2048
    max_tokens_name: str = "max_tokens"
    """What the server calls the limit of tokens."""
    tries: int = 3
    """How often an invalid answer is asked for, each time with the next seed."""
    timeout: float = 120.0
    """Seconds without an answer after which a request counts as failed."""
    retries: int = 6
    """How often a request is sent again after 429, 5xx, a lost connection or a timeout."""
    concurrency: int = 8
    """Requests that are sent concurrently."""
    price_input: float = 0.0
    """Price of a million prompt tokens."""
    price_output: float = 0.0
    """Price of a million answer tokens; both prices are in the same currency, whichever it is."""

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "temperature": (0, 2), "max_tokens": (1, 1e6), "tries": (1, 20), "timeout": (0.01, 86400),
            "retries": (0, 100), "concurrency": (1, 1024), "price_input": (0, 1e6), "price_output": (0, 1e6),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                option = name.replace("_", "-")
                raise UserError(
                    f"--llm-{option} {getattr(self, name):g}: must be from {low:g} to {high:g}", code="bad-value"
                )
        if self.answer_format not in FORMATS:
            raise UserError(
                f"--llm-format {self.answer_format!r}: choose one of {', '.join(FORMATS)}", code="unknown-name"
            )
        if self.max_tokens_name not in LIMIT_NAMES:
            raise UserError(
                f"--llm-max-tokens-name {self.max_tokens_name!r}: choose one of {', '.join(LIMIT_NAMES)}",
                code="unknown-name",
            )
        checked_address(self.base_url, "--llm-url", self.key_env)
        if not self.model:
            raise UserError(
                "--llm-model is empty: name the model as the server does (GET /v1/models lists them)",
                code="missing-option",
            )

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, for the provenance and to compare the settings of runs."""
        return {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "answer_format": self.answer_format,
            "tries": self.tries,
        }

    def key(self) -> str:
        """The key from the environment, or the placeholder "none" when it is not set.

        Raises: UserError if the key cannot be sent, as `data_pipelines.web.key_of`.
        """
        return key_of(self.key_env) or "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for an endpoint, the same for every verb that asks a model."""
    d = LLMSettings(model="-")
    add = parser.add_argument_group("language model").add_argument
    add("--llm-model", help="name of the model, as the server lists it (GET /v1/models)")
    add("--llm-url", default=d.base_url, help="base URL of an OpenAI-compatible server")
    add("--api-key-env", default=d.key_env, help="environment variable that holds the key")
    help_format = "json_schema has the server enforce the schema; json_object and text are for servers that cannot"
    add("--llm-format", choices=FORMATS, default=d.answer_format, help=help_format)
    add("--llm-temperature", type=float, default=d.temperature, help="sampling temperature, from 0 to 2")
    add("--llm-max-tokens", type=int, default=d.max_tokens, help="longest answer in tokens")
    help_name = "what the server calls that limit"
    add("--llm-max-tokens-name", choices=LIMIT_NAMES, default=d.max_tokens_name, help=help_name)
    add("--llm-tries", type=int, default=d.tries, help="attempts at a valid answer, each with the next seed")
    help_timeout = "seconds without an answer after which a request counts as failed"
    add("--llm-timeout", type=float, default=d.timeout, help=help_timeout)
    help_retries = "how often a request is sent again after 429, 5xx, a lost connection or a timeout"
    add("--llm-retries", type=int, default=d.retries, help=help_retries)
    add("--llm-concurrency", type=int, default=d.concurrency, help="requests that are sent concurrently")
    help_price = "price of a million prompt tokens, in any currency, to count the cost"
    add("--llm-price-input", type=float, default=d.price_input, help=help_price)
    add("--llm-price-output", type=float, default=d.price_output, help="price of a million answer tokens")
    add("--llm-cache", type=Path, help="folder that keeps all answers (default: a folder `cache` beside the results)")


def settings_of(args: argparse.Namespace) -> LLMSettings:
    """The settings that the options ask for. Raises UserError as `LLMSettings`."""
    if args.llm_model is None:
        raise UserError(
            "--llm-model is missing: name the model as the server does (GET /v1/models lists them)",
            code="missing-option",
        )
    return LLMSettings(
        model=args.llm_model,
        base_url=args.llm_url,
        key_env=args.api_key_env,
        answer_format=args.llm_format,
        temperature=args.llm_temperature,
        max_tokens=args.llm_max_tokens,
        max_tokens_name=args.llm_max_tokens_name,
        tries=args.llm_tries,
        timeout=args.llm_timeout,
        retries=args.llm_retries,
        concurrency=args.llm_concurrency,
        price_input=args.llm_price_input,
        price_output=args.llm_price_output,
    )
