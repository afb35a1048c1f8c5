"""`ppx-data gate`: judges dialogue folders, and writes the verdict beside each of them into ID/gates.json.

    OUT/gate.json          the engines that listened
    OUT/measured/ID.json   the values of a dialogue; kept, so that other limits are judged without listening again
    OUT/gates_report.json  counts of the reasons, spread of the values, every rejection; written last

First every dialogue is measured on its own, in any order and number of processes. Then all are compared. A killed run
resumes where it stopped. `ppx-data shard` leaves out what was rejected.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder, json_bytes, sha256_file, write_json
from data_pipelines.quality.across import Finding, compare
from data_pipelines.quality.gates import GATES, Limits, reasons_to_reject
from data_pipelines.quality.limits import add_arguments as add_limit_arguments
from data_pipelines.quality.limits import limits_of
from data_pipelines.quality.measure import (
    Listening,
    Measurement,
    measure_key,
    measure_one,
    note_lost,
    open_all,
    read_measurement,
    shared_speaker,
)
from data_pipelines.records.folder import GATES as SIDECAR
from data_pipelines.records.folder import Gates, find_dialogues
from model.errors import UserError
from model.files import write_bytes
from model.weights.sources import tokenizer_path

REPORT = "gates_report.json"


@dataclass(kw_only=True, frozen=True)
class Rejection:
    """A dialogue that does not pass, and every reason."""

    id: str
    reasons: tuple[str, ...]


@dataclass(kw_only=True, frozen=True)
class GateReport:
    """The content of gates_report.json."""

    format: int = 1
    dialogues: int
    passed: int
    rejected: tuple[Rejection, ...]
    reasons: dict[str, int]
    """How many dialogues are rejected for each kind of fault."""
    values: dict[str, dict[str, float]]
    """The spread of each value over all dialogues."""
    not_measured: tuple[str, ...]
    """Gates that have a limit, and no value in any dialogue."""
    limits: dict[str, Any]
    engines: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ppx-data gate`."""
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, metavar="DIR", help="folders of dialogues")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for measurements and the report")
    parser.add_argument(
        "--asr", default="tiny.en", help="recogniser: tiny.en, a faster-whisper model, parakeet:MODEL, or none"
    )
    parser.add_argument("--speaker", default="resemblyzer", help="speaker embedder: resemblyzer, wavlm:MODEL, or none")
    parser.add_argument(
        "--tokenizer", default="none", help="SentencePiece model for the gates of the text stream (default: none)"
    )
    parser.add_argument("--device", default="cpu", help="where the recogniser runs: cpu (default), cuda, cuda:1, ...")
    add_limit_arguments(parser)
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data gate`. Raises UserError as gate_dialogues does, or if an engine cannot be opened."""
    limits, executor = limits_of(args), executor_of(args)
    tokenizer = "none" if args.tokenizer == "none" else str(tokenizer_path(args.tokenizer))
    listening = Listening(asr=args.asr, speaker=args.speaker, tokenizer=tokenizer, device=args.device)
    report, num_measured = gate_dialogues(args.dialogues, args.out, listening, limits, executor)
    print(summary(report, num_measured, args.out))


def gate_dialogues(
    folders: Sequence[Path], out: Path, listening: Listening, limits: Limits, executor: Executor
) -> tuple[GateReport, int]:
    """Judges all dialogues below `folders`; returns the report, and how many dialogues this run measured.

    With the same OUT other limits may be given, but not other engines.
    Raises: UserError if an engine cannot be opened, if the limits are for another embedder, if OUT holds other
    content, or if no dialogue passes.
    """
    found = find_dialogues(folders)
    _check_engines(listening, limits, executor)
    who = asdict(listening)
    if listening.tokenizer != "none":
        who["tokenizer"] = sha256_file(Path(listening.tokenizer))
    claim_folder(out, "gate.json", who, "gate")
    (out / "measured").mkdir(exist_ok=True)
    todo = [folder for folder in found if not _is_measured(folder, listening, out)]
    work = partial(measure_one, listening=listening, out=out)
    done = executor.run(work, todo, lost=partial(note_lost, out=out))
    for _ in tqdm(done, total=len(todo), desc="gate", unit="dialogue", disable=None):
        pass
    report = judge_all(found, out, limits)
    if not report.passed:
        first = report.rejected[0]
        raise UserError(
            f"none of {len(found)} dialogues passes the gates, see {out / REPORT}; "
            f"the first is {first.id} ({first.reasons[0]})",
            code="no-data",
        )
    return report, len(todo)


def _check_engines(listening: Listening, limits: Limits, executor: Executor) -> None:
    """Opens the engines, so that a missing one ends the run at once. On a cluster only its workers have the device."""
    is_here = executor.kind == "local" or listening.device == "cpu"
    open_all(listening if is_here else replace(listening, asr="none"))
    if listening.speaker == "none" or limits.speaker_similarity is limits.user_similarity is None:
        return
    name = shared_speaker(listening.speaker).name
    if name != limits.speaker_embedder:
        raise UserError(
            f"the limits are for {limits.speaker_embedder}, whose numbers differ from those of --speaker {name}: give "
            f"--set speaker_embedder={name} with speaker_similarity and user_similarity of its own, or null",
            code="bad-combination",
        )


def _is_measured(folder: Path, listening: Listening, out: Path) -> bool:
    try:
        return read_measurement(out, folder).key == measure_key(folder, listening)
    except (OSError, ValueError):
        return False


def judge_all(found: Sequence[Path], out: Path, limits: Limits) -> GateReport:
    """The second pass: judges the measured dialogues, writes the sidecars, then OUT/gates_report.json."""
    reasons: dict[str, list[str]] = {}
    measured: dict[str, Measurement] = {}
    for folder in found:
        one = measured[folder.name] = read_measurement(out, folder)
        if one.fault:
            reasons[folder.name] = [f"unreadable: {one.fault}"]
        else:
            reasons[folder.name] = reasons_to_reject(one.stored | one.values, limits)
    findings = compare((measured[id].record() for id, why in reasons.items() if not why), limits)
    engines: dict[str, Any] = {}
    for folder in found:
        finding = findings.get(folder.name, Finding())
        one = measured[folder.name]
        one = measured[folder.name] = replace(one, values=one.values | finding.values)
        reasons[folder.name] += finding.reasons
        engines |= one.engines
        verdict = Gates(
            values=one.values, rejected=tuple(reasons[folder.name]), limits=asdict(limits), engines=one.engines
        )
        if (folder / "meta.json").is_file():  # without it the dialogue is unfinished, and may be good when it is done
            _write_if_new(folder / SIDECAR, json_bytes(asdict(verdict)))
    report = _report(measured, reasons, limits, engines)
    write_json(out / REPORT, asdict(report))
    return report


def _write_if_new(path: Path, data: bytes) -> None:
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def _report(
    measured: Mapping[str, Measurement], reasons: Mapping[str, list[str]], limits: Limits, engines: dict[str, Any]
) -> GateReport:
    values: dict[str, list[float]] = {}
    for one in measured.values():
        for name, value in (one.stored | one.values).items():
            values.setdefault(name, []).append(value)
    rejected = tuple(Rejection(id=id, reasons=tuple(why)) for id, why in sorted(reasons.items()) if why)
    kinds = Counter(kind for one in rejected for kind in {reason.split(":")[0] for reason in one.reasons})
    return GateReport(
        dialogues=len(measured),
        passed=len(measured) - len(rejected),
        rejected=rejected,
        reasons=dict(sorted(kinds.items())),
        values={name: _spread(found) for name, found in sorted(values.items())},
        not_measured=tuple(name for name in GATES if name not in values and getattr(limits, name) is not None),
        limits=asdict(limits),
        engines=engines,
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, five, middle, ninety_five, high = (float(v) for v in np.percentile(values, [0, 5, 50, 95, 100]))
    spread = {"min": low, "p5": five, "median": middle, "p95": ninety_five, "max": high}
    return {name: round(value, 4) for name, value in spread.items()} | {"count": len(values)}


def summary(report: GateReport, num_measured: int, out: Path) -> str:
    """What happened, for the terminal."""
    share = report.passed / max(report.dialogues, 1)
    lines = [f"{report.passed} of {report.dialogues} dialogues pass ({share:.1%}): {out / REPORT}"]
    if not num_measured:
        lines[0] += "; all were measured before"
    lines += [f"rejected {count}: {reason}" for reason, count in sorted(report.reasons.items(), key=lambda r: -r[1])]
    if report.not_measured:
        lines.append("not measured: " + ", ".join(report.not_measured))
    return "\n".join(lines)
