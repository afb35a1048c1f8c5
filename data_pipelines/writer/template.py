"""The embedded writer: fills templates from the tables beside it, without any other program."""

import argparse
from collections.abc import Iterable, Iterator
from random import Random
from typing import Any

from data_pipelines.records.schema import Script
from data_pipelines.records.split import split_of_index
from data_pipelines.writer.assistant import write_assistant
from data_pipelines.writer.problems import problems
from data_pipelines.writer.protocol import SynthOptions
from data_pipelines.writer.service import write_service
from data_pipelines.writer.tables import tables_digest
from data_pipelines.writer.wording import estimated_seconds
from model.errors import UserError

ATTEMPTS = 400
"""Draws of one script until one keeps the limit and the rules."""
SHORTEST_SERVICE = 20.0
"""Seconds; below this hardly any request fits."""
_SOURCES = {"service": write_service, "assistant": write_assistant}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds nothing: the template writer has no options of its own."""


def make(options: SynthOptions, args: argparse.Namespace) -> "TemplateWriter":
    """The writer for these options."""
    return TemplateWriter(options)


class TemplateWriter:
    """Writes scripts from templates; see `data_pipelines.writer.protocol.Writer`."""

    def __init__(self, options: SynthOptions) -> None:
        """Raises: UserError for a limit of length that no script of this writer keeps ("bad-value")."""
        limit = options.max_seconds
        if options.source == "service" and limit is not None and limit < SHORTEST_SERVICE:
            raise UserError(
                f"--max-seconds {limit:g}: a service script needs at least {SHORTEST_SERVICE:g} s", code="bad-value"
            )
        self.options = options

    def identity(self) -> dict[str, Any]:
        """The kind of writer and the digest of its tables."""
        return {"writer": "template", "tables": tables_digest()}

    def status(self) -> str:
        """Always "", because templates cost nothing."""
        return ""

    def drafts(self, indexes: Iterable[int]) -> Iterator[Script]:
        """The first attempt at each index, in order."""
        return (self.draft(index, 0) for index in indexes)

    def draft(self, index: int, attempt: int) -> Script:
        """Script `index`. Raises: UserError if none comes out short enough ("bad-value")."""
        options, name = self.options, self.options.name(index)
        split = split_of_index(options.seed, index, options.heldout)
        for draw in range(ATTEMPTS):
            rng = Random(f"{options.seed}/{name}/{attempt}/{draw}")
            script = _SOURCES[options.source](name, rng, split, options.heldout, options.max_seconds)
            seconds = estimated_seconds(script.turns)
            if (options.max_seconds is None or seconds <= options.max_seconds) and not problems(script):
                script.provenance.update(seed=options.seed, index=index, estimated_seconds=round(seconds, 2))
                return script
        raise UserError(
            f"--max-seconds {options.max_seconds}: no script came out that short, allow a few seconds more",
            code="bad-value",
        )
