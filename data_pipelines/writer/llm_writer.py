"""The writer that asks a language model: `ppx-data synth SOURCE --writer llm`.

Beside NAME.jsonl stands a folder NAME.llm with all answers (cache), and the counts of requests, tokens and money
(report.json).
"""

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from data_pipelines.files import claim_folder, write_report
from data_pipelines.llm.client import Client, NoAnswer
from data_pipelines.llm.pool import in_threads
from data_pipelines.llm.settings import add_arguments as add_llm_arguments
from data_pipelines.llm.settings import settings_of
from data_pipelines.records.schema import Script
from data_pipelines.records.split import members, split_of_index
from data_pipelines.writer import llm_assistant, llm_service, llm_service_plan
from data_pipelines.writer.llm_scenarios import MIN_SCENARIOS, Scenario, Scenarios
from data_pipelines.writer.problems import problems
from data_pipelines.writer.protocol import Rejected, SynthOptions
from data_pipelines.writer.tables import tables_digest
from data_pipelines.writer.wording import estimated_seconds
from model.errors import UserError

SCENARIOS = 20
"""Scenarios of each domain unless another number is asked for."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the writer that asks a model."""
    add_llm_arguments(parser)
    add = parser.add_argument_group("with --writer llm").add_argument
    add("--scenarios", type=int, default=SCENARIOS, help="number of scenarios of each domain or subject, from 2 up")
    help_skip = "leave out scripts that the server failed on, instead of stopping"
    add("--skip-unanswered", action="store_true", help=help_skip)


def make(options: SynthOptions, args: argparse.Namespace) -> "ModelWriter":
    """The writer that the options ask for.

    Raises: UserError for an option out of range ("bad-value") or without a model, as `LLMSettings`.
    """
    settings = settings_of(args)
    if args.scenarios < MIN_SCENARIOS:
        raise UserError(
            f"--scenarios {args.scenarios}: give {MIN_SCENARIOS} or more, one for each side of the split",
            code="bad-value",
        )
    folder = args.out.with_name(args.out.name.removesuffix(".jsonl") + ".llm")
    client = Client(settings, args.llm_cache or folder / "cache")
    return ModelWriter(options, client, folder, scenarios=args.scenarios, skip_unanswered=args.skip_unanswered)


class ModelWriter:
    """Writes scripts with a model; see `data_pipelines.writer.protocol.Writer`."""

    def __init__(
        self,
        options: SynthOptions,
        client: Client,
        folder: Path,
        *,
        scenarios: int = SCENARIOS,
        skip_unanswered: bool = False,
    ) -> None:
        self.options, self.client, self.folder, self.skip = options, client, folder, skip_unanswered
        self._size = scenarios
        source = llm_service_plan if options.source == "service" else llm_assistant
        self._domains = source.domain_texts()
        self._scenarios = Scenarios(client, source.LEVELS, options.seed, scenarios)

    def identity(self) -> dict[str, Any]:
        """What the text depends on besides the options: the model's settings, the scenarios and the tables."""
        own = {"writer": "llm", "scenarios": self._size, "skip_unanswered": self.skip, "tables": tables_digest()}
        return own | {"llm": self.client.settings.identity()}

    def status(self) -> str:
        """Tokens and money so far."""
        return self.client.usage.line()

    def drafts(self, indexes: Iterable[int]) -> Iterator[Script | Rejected]:
        """The first attempt at each index, in order, written concurrently in threads.

        At the end, even after an error, report.json gets what all answers took, whenever they were paid for.
        Raises: UserError if the folder was made by others ("other-settings"), or as `draft`.
        """
        claim_folder(self.folder, "synth.json", {"made_by": "ppx-data synth --writer llm"}, "synth")
        try:
            yield from in_threads(lambda index: self.draft(index, 0), indexes, self.client)
        finally:
            used = self.client.usage.total.report(self.client.settings)
            redrawn = dict(sorted(self._scenarios.redrawn.items()))
            write_report(self.folder, {"usage": used, "scenarios_drawn_again": redrawn})

    def draft(self, index: int, attempt: int) -> Script | Rejected:
        """Script `index`, or why it is rejected.

        Raises: UserError if the server gave no answer and the script is not to be skipped, or as `Client.ask`.
        """
        name = self.options.name(index)
        rng = Random(f"{self.options.seed}/{name}/{attempt}/plan")
        try:
            script = self._write(index, f"{name}/{attempt}", rng)
        except NoAnswer as why:
            if not why.lasting and not self.skip:
                raise UserError(
                    f"{name}: no answer ({why}): run it again, what was answered is kept; or leave out such scripts "
                    "with --skip-unanswered",
                    code="unreachable",
                ) from why
            return Rejected(id=name, reason=str(why))
        if found := problems(script):
            return Rejected(id=name, reason=f"rules: {'; '.join(found)}")
        return script

    def _write(self, index: int, draw: str, rng: Random) -> Script:
        options = self.options
        name, split = options.name(index), split_of_index(options.seed, index, options.heldout)
        scenario = self._drawn(rng, split)
        if options.source == "service":
            plan = llm_service_plan.draw_plan(name, rng, split, options.heldout, scenario, options.max_seconds)
            script = llm_service.write_service(self.client, plan, draw, rng)
        else:
            talk = llm_assistant.draw_plan(name, rng, split, scenario, options.max_seconds)
            other = self._drawn(rng, split, but=scenario) if talk.changes_topic else None
            script = llm_assistant.write_assistant(self.client, talk, other, draw, rng)
        seconds = round(estimated_seconds(script.turns), 2)
        script.provenance.update(
            seed=options.seed, index=index, estimated_seconds=seconds, llm=self.client.settings.identity()
        )
        return script

    def _drawn(self, rng: Random, split: str, but: Scenario | None = None) -> Scenario:
        """A scenario of a random domain other than that of `but`, from this side of the split."""
        domain = rng.choice([domain for domain in self._domains if but is None or domain != but.domain])
        known = {scenario.id: scenario for scenario in self._scenarios.of(domain, self._domains[domain])}
        return known[rng.choice(members(tuple(sorted(known)), self.options.heldout, split))]
