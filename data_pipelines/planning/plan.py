"""`ppx-data plan`: what the published data sets, or ten million dialogues, cost to make: cores, GPUs, disk, days.

Every figure is a sum over stages of amount / measured rate. What was not measured is shown as such and left out of
sums.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.arguments import add_old_flag
from data_pipelines.planning.rates import SHIPPED, UNITS, Rates, load_rates
from model.config import FRAME_RATE
from model.errors import UserError

CODES_MB = 16 * 2 * FRAME_RATE * 3600 / 1e6
"""MB of an hour of codes: each frame has 16 codes of two bytes."""
MEMBERS_KB = 6.0
"""KB of the heads and the padding of a dialogue's members in a tar."""
WINDOW_SECONDS = 140.0
"""About how long the dialogues are into which `ppx-data fisher` cuts calls."""
UNKNOWN = "not measured"


@dataclass(kw_only=True, frozen=True)
class PlannedCorpus:
    """A data set to make."""

    name: str
    kind: str
    """"call", or the kind of scripts."""
    dialogues: int
    hours: float
    agent_sides: int = 1
    """Sides of each dialogue that may be the agent."""


@dataclass(kw_only=True, frozen=True)
class Choice:
    """How the data set is made, and on which machines."""

    writer: str = "template"
    speech: str = "kokoro"
    codec: str = "full"
    encode_on: str = "cpu"
    machines: int = 1
    cores: int = 16
    gpus: int = 0
    price_input: float = 0.0
    """Price of a million tokens that a language model reads."""
    price_output: float = 0.0
    """Price of a million tokens that it writes."""


@dataclass(kw_only=True)
class Stage:
    """One line of the table; None stands for what was not measured."""

    name: str
    rate: str
    cpu_hours: float | None = 0.0
    gpu_hours: float | None = 0.0
    writes_gb: float | None = 0.0
    """GB that lie on disk until the shards are made, or longer."""
    wall_hours: float | None = 0.0
    notes: list[str] = field(default_factory=list)


def published(count: int) -> list[PlannedCorpus]:
    """The published data sets, and one of `count` dialogues that are as long as the published service dialogues."""
    windows = round(1217 * 3600 / WINDOW_SECONDS)
    return [
        PlannedCorpus(name="Fisher, 7,303 calls", kind="call", dialogues=windows, hours=1217, agent_sides=2),
        PlannedCorpus(name="service", kind="service", dialogues=105_410, hours=1840),
        PlannedCorpus(name="assistant", kind="assistant", dialogues=39_322, hours=410),
        PlannedCorpus(name="service, scaled up", kind="service", dialogues=count, hours=count * 1840 / 105_410),
    ]


def stages(corpus: PlannedCorpus, rates: Rates, choice: Choice) -> list[Stage]:
    """The stages from raw material to shards, in order."""
    sides = corpus.dialogues * corpus.agent_sides
    audio = "audio_call" if corpus.kind == "call" else "audio_synthetic"
    folders = _sum(
        _times(rates[audio], corpus.hours, 1e-3),
        _times(rates["record"], corpus.hours, 1e-3),
        _times(rates["voice_clip"], sides, 1e-6),
    )
    kept = _sum(folders, corpus.hours * CODES_MB / 1e3, corpus.dialogues * MEMBERS_KB / 1e6,
                _times(rates["index_row"], sides, 1e-9))  # fmt: skip
    made = _first_stages(corpus, rates, choice, folders)
    made.append(_stage("gate", "gate", corpus.hours, rates, choice))
    on_gpu = choice.encode_on == "gpu"
    rate = f"encode_{choice.codec}" + ("_gpu" if on_gpu else "")
    made.append(_stage("shard: encode", rate, corpus.hours, rates, choice, writes=corpus.hours * CODES_MB / 1e3))
    pack = Stage(name="shard: pack, index", rate=_shown("pack", rates), writes_gb=kept)
    if rates["pack"] and kept is not None:
        pack.cpu_hours = kept * 1e3 / rates["pack"] / 3600
        pack.wall_hours = pack.cpu_hours / choice.machines  # each machine has one run, which packs in one process
    else:
        pack.cpu_hours = pack.wall_hours = None
    return [*made, pack]


def _first_stages(corpus: PlannedCorpus, rates: Rates, choice: Choice, folders: float | None) -> list[Stage]:
    """The stages that end with dialogue folders."""
    if corpus.kind == "call":
        read = _stage("fisher: read, resample", "fisher_read", corpus.hours, rates, choice, writes=folders)
        made = [read, _stage("fisher: align, cut", "fisher_align", corpus.hours, rates, choice)]
        sides = corpus.dialogues * corpus.agent_sides
        return [*made, _llm("prompts", "role", sides, rates, choice)] if choice.writer == "llm" else made
    scripts = _times(rates["script_size"], corpus.dialogues, 1e-6)
    if choice.writer == "llm":
        write = _llm("synth: write", "script", corpus.dialogues, rates, choice)
        write.writes_gb = scripts
    else:
        write = Stage(name="synth: write", rate=_shown("write_template", rates), writes_gb=scripts)
        speed = rates["write_template"]
        write.cpu_hours = None if speed is None else corpus.dialogues / speed / 3600
        write.wall_hours = write.cpu_hours  # scripts are written by one process
    rate = "speak_chatterbox_gpu" if choice.speech == "chatterbox" else f"speak_{choice.speech}"
    return [write, _stage("speak", rate, corpus.hours, rates, choice, writes=folders)]


def _stage(name: str, rate: str, hours: float, rates: Rates, choice: Choice, *, writes: float | None = 0.0) -> Stage:
    """A stage that is spread over all cores, or over all GPUs."""
    on_gpu = rate.endswith("_gpu")
    busy = None if rates[rate] is None else hours / rates[rate]  # type: ignore[operator]
    units = choice.machines * (choice.gpus if on_gpu else choice.cores)
    stage = Stage(name=name, rate=_shown(rate, rates), writes_gb=writes)
    stage.cpu_hours, stage.gpu_hours = (0.0, busy) if on_gpu else (busy, 0.0)
    stage.wall_hours = None if busy is None or not units else busy / units
    return stage


def _llm(name: str, what: str, count: int, rates: Rates, choice: Choice) -> Stage:
    """A stage of a language model: its tokens, the GPU hours of a server of one's own, and the price."""
    prompt = _times(rates[f"{what}_prompt_tokens"], count, 1.0)
    answer = _times(rates[f"{what}_answer_tokens"], count, 1.0)
    stage = Stage(name=f"{name} (LLM)", rate=_shown("llm_gpu", rates), gpu_hours=None, wall_hours=None)
    if answer is not None and rates["llm_gpu"]:
        stage.gpu_hours = answer / rates["llm_gpu"] / 3600
        stage.wall_hours = stage.gpu_hours / (choice.machines * choice.gpus) if choice.gpus else None
    if prompt is None or answer is None:
        stage.notes.append(f"tokens {UNKNOWN}, set {what}_prompt_tokens and {what}_answer_tokens in the rates")
        return stage
    note = f"{prompt / 1e6:,.0f} million tokens in, {answer / 1e6:,.0f} million out"
    if choice.price_input or choice.price_output:
        note += f", cost {(prompt * choice.price_input + answer * choice.price_output) / 1e6:,.0f}"
    stage.notes.append(note)
    return stage


def _shown(name: str, rates: Rates) -> str:
    value = rates[name]
    return UNKNOWN if value is None else f"{value:g} {UNITS[name]}"


def _times(*factors: float | None) -> float | None:
    product = 1.0
    for factor in factors:
        if factor is None:
            return None
        product *= factor
    return product


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def table(corpus: PlannedCorpus, made: Sequence[Stage], choice: Choice) -> str:
    """The stages of one corpus and their sum, as lines of text."""
    heads = ["stage", "rate", "CPU h", "GPU h", "days", "writes GB"]
    rows = [[s.name, s.rate, *map(_cell, (s.cpu_hours, s.gpu_hours, _days(s.wall_hours), s.writes_gb))] for s in made]
    sums, missing = [], [s.name for s in made if None in (s.cpu_hours, s.gpu_hours, s.wall_hours, s.writes_gb)]
    for values in zip(*((s.cpu_hours, s.gpu_hours, _days(s.wall_hours), s.writes_gb) for s in made), strict=True):
        known = [value for value in values if value is not None]
        lost = "+?" if len(known) < len(values) else ""
        sums.append(f"{_cell(sum(known))}{lost}" if any(known) or not lost else "?")
    rows.append(["sum", "", *sums])
    widths = [max(len(line[k]) for line in [heads, *rows]) for k in range(len(heads))]
    lines = [f"{corpus.name}: {corpus.dialogues:,} dialogues, {corpus.hours:,.0f} h"]
    for line in [heads, *rows]:
        cells = [c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    lines += [f"  {s.name}: {note}" for s in made for note in s.notes]
    kept = made[-1].writes_gb
    lines.append(f"  kept: shards of {_cell(kept)} GB; the rest can be deleted when they are checked")
    if missing:
        lines.append(f"  ?: something is {UNKNOWN} in {', '.join(missing)}, and left out of the sum")
    return "\n".join(lines)


def _days(hours: float | None) -> float | None:
    return None if hours is None else hours / 24


def _cell(value: float | None) -> str:
    if value is None:
        return "?"
    return "-" if value == 0 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data plan`."""
    default = Choice()
    parser.add_argument("--rates", type=Path, metavar="FILE", help="measured rates (default: the shipped ones)")
    parser.add_argument(
        "--measure", type=Path, metavar="FILE", help="measure this machine for a minute or two, into FILE, and use that"
    )
    parser.add_argument(
        "--writer", choices=("template", "llm"), default=default.writer, help="who writes scripts and roles of calls"
    )
    parser.add_argument(
        "--engine",
        dest="speech",
        choices=("kokoro", "espeak", "chatterbox"),
        default=default.speech,
        help="the speech engine",
    )
    parser.add_argument(
        "--codec-size",
        dest="codec",
        choices=("full", "small"),
        default=default.codec,
        help="Mimi at full size, or the shipped small one",
    )
    parser.add_argument("--encode-on", choices=("cpu", "gpu"), default=default.encode_on, help="where to encode")
    parser.add_argument("--machines", type=int, default=default.machines, help="number of machines")
    parser.add_argument("--cores-per-machine", type=int, default=default.cores, help="number of cores of each machine")
    parser.add_argument("--gpus-per-machine", type=int, default=default.gpus, help="number of GPUs of each machine")
    parser.add_argument("--num", type=int, default=10_000_000, help="number of dialogues of the last table")
    parser.add_argument(
        "--llm-price-input", type=float, default=0.0, help="price of a million tokens that a model reads"
    )
    parser.add_argument("--llm-price-output", type=float, default=0.0, help="price of a million tokens that it writes")
    add_old_flag(parser, "--speech", "--engine")
    add_old_flag(parser, "--codec", "--codec-size")
    add_old_flag(parser, "--cores", "--cores-per-machine")
    add_old_flag(parser, "--gpus", "--gpus-per-machine")


def run(args: argparse.Namespace) -> None:
    """Prints one table for each corpus. Raises UserError for options or rates that cannot be used."""
    choice = _choice(args)
    if args.measure:
        from data_pipelines.planning.measured import measure

        if args.rates:
            raise UserError(
                f"--rates {args.rates} and --measure {args.measure}: give one of them", code="bad-combination"
            )
        if args.measure.exists():
            raise UserError(
                f"--measure {args.measure} exists: give another name, or use it with --rates", code="exists"
            )
        args.measure.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(args.measure.parent, os.W_OK):  # found out now, not after two minutes of measuring
            raise UserError(
                f"--measure {args.measure}: its folder cannot be written, give another place", code="cannot-write"
            )
        rates = measure()
        rates.save(args.measure)
        print(f"{args.measure}: {rates.num_measured()} rates measured here\n")
    else:
        rates = load_rates(args.rates or SHIPPED)
    print(f"rates: {args.measure or args.rates or SHIPPED}, {rates.machine}")
    print(f"on {choice.machines} x ({choice.cores} cores, {choice.gpus} GPUs), every stage on all of them in turn\n")
    for corpus in published(args.num):
        print(table(corpus, stages(corpus, rates, choice), choice) + "\n")


def _choice(args: argparse.Namespace) -> Choice:
    for name, least in (("machines", 1), ("cores_per_machine", 1), ("gpus_per_machine", 0), ("num", 1)):
        if getattr(args, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} {getattr(args, name)}: give {least} or more", code="bad-value")
    for name in ("llm_price_input", "llm_price_output"):
        if not getattr(args, name) >= 0:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name):g}: give 0 or more", code="bad-value")
    if args.encode_on == "gpu" and args.codec == "small":
        raise UserError(
            "--encode-on gpu --codec-size small: the small codec runs on CPUs, choose --codec-size full",
            code="bad-combination",
        )
    needs = args.encode_on == "gpu" or args.speech == "chatterbox"
    if needs and not args.gpus_per_machine:
        raise UserError(
            "--encode-on gpu and --engine chatterbox need GPUs: add --gpus-per-machine 1", code="missing-option"
        )
    prices = args.llm_price_input or args.llm_price_output
    if prices and args.writer != "llm":
        raise UserError(
            "--llm-price-input and --llm-price-output have an effect with --writer llm only: leave them out",
            code="bad-combination",
        )
    return Choice(
        writer=args.writer,
        speech=args.speech,
        codec=args.codec,
        encode_on=args.encode_on,
        machines=args.machines,
        cores=args.cores_per_machine,
        gpus=args.gpus_per_machine,
        price_input=args.llm_price_input,
        price_output=args.llm_price_output,
    )
