"""`ppx-data gate`: judges dialogue folders, and says so beside each of them in ID/gates.json.

    OUT/gate.json          who listened
    OUT/measured/ID.json   the values of a dialogue; kept, so that other limits are judged without listening again
    OUT/gates_report.json  counts of the reasons, spread of the values, every rejection; written last

First every dialogue is measured on its own, in any order and number of processes. Then all are compared. A killed run
goes on where it stopped; `ppx-data shard` leaves out what was rejected.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_pipelines.execution.executor import Executor, executor_of
from data_pipelines.execution.executor import add_arguments as add_executor_arguments
from data_pipelines.files import claim_folder, sha256_file, write_bytes, write_json
from data_pipelines.quality import limits as settings
from data_pipelines.quality.across import Finding, Record, compare
from data_pipelines.quality.gates import GATES, Limits, reasons_to_reject
from data_pipelines.quality.measure import (
    Listening,
    measure_key,
    measure_one,
    measured_path,
    note_lost,
    open_all,
    shared_speaker,
)
from data_pipelines.records.folder import GATES as SIDECAR
from data_pipelines.records.folder import find_dialogues
from model.errors import UserError
from model.weights.sources import tokenizer_path

REPORT = "gates_report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `ppx-data gate`."""
    parser.add_argument("--dialogues", type=Path, nargs="+", required=True, metavar="DIR", help="folders of dialogues")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder for measurements and the report")
    parser.add_argument("--asr", default="tiny.en", help="tiny.en, a faster-whisper model, parakeet:MODEL, or none")
    parser.add_argument("--speaker", default="resemblyzer", help="resemblyzer, wavlm:MODEL, or none")
    parser.add_argument(
        "--tokenizer", default="none", help="SentencePiece model for the gates of the text stream (default: none)"
    )
    parser.add_argument("--device", default="cpu", help="where the recogniser runs: cpu (default), cuda, cuda:1, ...")
    settings.add_arguments(parser)
    add_executor_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data gate`. Raises UserError as gate_dialogues does, or if an engine cannot be opened."""
    limits, executor = settings.limits_of(args), executor_of(args)
    tokenizer = "none" if args.tokenizer == "none" else str(tokenizer_path(args.tokenizer))
    listening = Listening(asr=args.asr, speaker=args.speaker, tokenizer=tokenizer, device=args.device)
    print(summary(gate_dialogues(args.dialogues, args.out, listening, limits, executor), args.out))


def gate_dialogues(
    folders: Sequence[Path], out: Path, listening: Listening, limits: Limits, executor: Executor
) -> dict[str, Any]:
    """Judges all dialogues below `folders` and returns the report.

    With the same OUT other limits may be given, not other listeners. Raises: UserError if an engine cannot be opened,
    if the limits are for another embedder, if OUT is not ours, or if no dialogue passes.
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
    report["measured"] = len(todo)
    if not report["passed"]:
        first = report["rejected"][0]
        raise UserError(
            f"none of {len(found)} dialogues passes the gates, see {out / REPORT}; "
            f"the first: {first['id']}: {first['reasons'][0]}"
        )
    return report


def _check_engines(listening: Listening, limits: Limits, executor: Executor) -> None:
    """Opens what will listen, so that what is missing is told at once; a device of a cluster's workers is theirs."""
    is_here = executor.kind == "local" or listening.device == "cpu"
    open_all(listening if is_here else replace(listening, asr="none"))
    if listening.speaker == "none" or limits.speaker_similarity is limits.user_similarity is None:
        return
    name = shared_speaker(listening.speaker).name
    if name != limits.speaker_embedder:
        raise UserError(
            f"--speaker {name}: the limits are for {limits.speaker_embedder}, whose numbers differ: give "
            f"--set speaker_embedder={name} with speaker_similarity and user_similarity of its own, or null"
        )


def _is_measured(folder: Path, listening: Listening, out: Path) -> bool:
    try:
        record = json.loads(measured_path(out, folder).read_text("utf-8"))
        return bool(record["key"] == measure_key(folder, listening))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def judge_all(found: Sequence[Path], out: Path, limits: Limits) -> dict[str, Any]:
    """Second pass: judges the measured dialogues, writes the sidecars, then OUT/gates_report.json."""
    reasons: dict[str, list[str]] = {}
    records: dict[str, dict[str, Any]] = {}
    for folder in found:
        record = json.loads(measured_path(out, folder).read_text("utf-8"))
        records[folder.name] = record
        if record["fault"]:
            reasons[folder.name] = [f"unreadable: {record['fault']}"]
        else:
            reasons[folder.name] = reasons_to_reject(record["stored"] | record["values"], limits)
    names = [field.name for field in fields(Record)]
    passing = (Record(**{name: records[id][name] for name in names}) for id, why in reasons.items() if not why)
    findings = compare(passing, limits)
    engines: dict[str, Any] = {}
    for folder in found:
        record, finding = records[folder.name], findings.get(folder.name, Finding())
        reasons[folder.name] += finding.reasons
        values, heard_by = record.get("values", {}) | finding.values, record.get("engines", {})
        record["values"] = values
        engines |= heard_by
        sidecar = {"format": 1, "values": values, "rejected": reasons[folder.name]}
        sidecar |= {"limits": asdict(limits), "engines": heard_by}
        if (folder / "meta.json").is_file():  # else it is unfinished, and may be good when it is done
            _write_if_new(folder / SIDECAR, sidecar)
    report = _report(records, reasons, limits, engines)
    write_json(out / REPORT, report)
    return report


def _write_if_new(path: Path, content: dict[str, Any]) -> None:
    data = (json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    if not path.is_file() or path.read_bytes() != data:
        write_bytes(path, data)


def _report(
    records: Mapping[str, dict[str, Any]], reasons: Mapping[str, list[str]], limits: Limits, engines: dict[str, Any]
) -> dict[str, Any]:
    values: dict[str, list[float]] = {}
    for record in records.values():
        for name, value in (record.get("stored", {}) | record.get("values", {})).items():
            values.setdefault(name, []).append(value)
    rejected = [{"id": id, "reasons": why} for id, why in sorted(reasons.items()) if why]
    kinds = Counter(kind for item in rejected for kind in {reason.split(":")[0] for reason in item["reasons"]})
    return {
        "format": 1,
        "dialogues": len(records),
        "passed": len(records) - len(rejected),
        "rejected": rejected,
        "reasons": dict(sorted(kinds.items())),
        "values": {name: _spread(found) for name, found in sorted(values.items())},
        "not_measured": [name for name in GATES if name not in values and getattr(limits, name) is not None],
        "limits": asdict(limits),
        "engines": engines,
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, five, middle, ninety_five, high = (float(v) for v in np.percentile(values, [0, 5, 50, 95, 100]))
    spread = {"min": low, "p5": five, "median": middle, "p95": ninety_five, "max": high}
    return {name: round(value, 4) for name, value in spread.items()} | {"count": len(values)}


def summary(report: Mapping[str, Any], out: Path) -> str:
    """What happened, for the terminal."""
    share = report["passed"] / max(report["dialogues"], 1)
    lines = [f"{report['passed']} of {report['dialogues']} dialogues pass ({share:.1%}): {out / REPORT}"]
    if not report["measured"]:
        lines[0] += "; all were measured before"
    lines += [f"rejected {count}: {reason}" for reason, count in sorted(report["reasons"].items(), key=lambda r: -r[1])]
    if report["not_measured"]:
        lines.append("not measured: " + ", ".join(report["not_measured"]))
    return "\n".join(lines)
