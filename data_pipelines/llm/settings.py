"""How a language model is reached and asked: the options that every verb with a model shares."""

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

    What answers depend on is in `identity`; the rest (where the server is, patience, width, prices) may change
    between a run and its continuation. The key is read from the environment and kept nowhere else.
    """

    model: str
    base_url: str = "http://127.0.0.1:8000/v1"
    key_env: str = "OPENAI_API_KEY"
    answer_format: str = "json_schema"
    temperature: float = 0.8
    max_tokens: int = 2048
    max_tokens_name: str = "max_tokens"
    """What the server calls that limit."""
    tries: int = 3
    """How often an invalid answer is asked for, each time with the next seed."""
    timeout: float = 120.0
    """Seconds without an answer after which a request counts as failed."""
    retries: int = 6
    """How often a request is sent again after 429, 5xx, a lost connection or a timeout."""
    concurrency: int = 8
    price_input: float = 0.0
    price_output: float = 0.0
    """Prices for a million tokens, in any currency."""

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "temperature": (0, 2), "max_tokens": (1, 1e6), "tries": (1, 20), "timeout": (0.01, 86400),
            "retries": (0, 100), "concurrency": (1, 1024), "price_input": (0, 1e6), "price_output": (0, 1e6),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                option = name.replace("_", "-")
                raise UserError(f"--llm-{option} {getattr(self, name):g}: must be from {low:g} to {high:g}")
        if self.answer_format not in FORMATS:
            raise UserError(f"--llm-format {self.answer_format!r}: choose one of {', '.join(FORMATS)}")
        if self.max_tokens_name not in LIMIT_NAMES:
            raise UserError(f"--llm-max-tokens-name {self.max_tokens_name!r}: choose one of {', '.join(LIMIT_NAMES)}")
        checked_address(self.base_url, "--llm-url", self.key_env)
        if not self.model:
            raise UserError("--llm-model is empty: name the model as the server does (GET /v1/models lists them)")

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, for provenance and for telling one run's settings from another's."""
        return {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "answer_format": self.answer_format,
            "tries": self.tries,
        }

    def key(self) -> str:
        """The key from the environment; servers that need none get a word that is none. Raises: as `key_of`."""
        return key_of(self.key_env) or "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for an endpoint, the same for every verb that asks a model."""
    d = LLMSettings(model="-")
    add = parser.add_argument_group("language model").add_argument
    add("--llm-model", help="the model's name, as the server lists it")
    add("--llm-url", default=d.base_url, help=f"base URL of an OpenAI-compatible server (default {d.base_url})")
    add("--api-key-env", default=d.key_env, help=f"environment variable that holds the key (default {d.key_env})")
    help_format = "json_schema: the server enforces the schema; json_object, text: for servers that cannot"
    add("--llm-format", choices=FORMATS, default=d.answer_format, help=help_format)
    add("--llm-temperature", type=float, default=d.temperature, help=f"default {d.temperature:g}")
    add("--llm-max-tokens", type=int, default=d.max_tokens, help=f"longest answer (default {d.max_tokens})")
    help_name = "what the server calls that limit (default max_tokens)"
    add("--llm-max-tokens-name", choices=LIMIT_NAMES, default=d.max_tokens_name, help=help_name)
    add("--llm-tries", type=int, default=d.tries, help=f"attempts at a valid answer (default {d.tries})")
    add("--llm-timeout", type=float, default=d.timeout, help=f"seconds for one request (default {d.timeout:g})")
    add("--llm-retries", type=int, default=d.retries, help=f"repeats after 429, 5xx, lost lines (default {d.retries})")
    add("--llm-concurrency", type=int, default=d.concurrency, help=f"requests at a time (default {d.concurrency})")
    add("--llm-price-input", type=float, default=0.0, help="price of a million prompt tokens, to count the cost")
    add("--llm-price-output", type=float, default=0.0, help="price of a million answer tokens")
    add("--llm-cache", type=Path, help="folder of all answers ever got (default: below the output)")


def settings_of(args: argparse.Namespace) -> LLMSettings:
    """The settings that the options ask for. Raises UserError for one out of range, or without a model."""
    if args.llm_model is None:
        raise UserError("--llm-model is missing: name the model as the server does (GET /v1/models lists them)")
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
