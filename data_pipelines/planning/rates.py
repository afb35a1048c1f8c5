"""Measured rates of the stages: a YAML file of {name: {value, unit, source}}. A rate that was not measured is null."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.arguments import nearest
from data_pipelines.records.typed import record
from model.errors import UserError
from model.files import write_bytes

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "rates" / "cpu.yaml"
"""The shipped rates, in a checkout as well as in a wheel."""

UNITS = {
    # These are speeds of one core; "x real time" counts seconds of dialogue, both channels of it.
    "write_template": "scripts/s",
    "speak_espeak": "x real time",
    "speak_kokoro": "x real time",
    "fisher_read": "x real time",  # decoding, parsing and resampling
    "fisher_align": "x real time",  # aligning, cutting and writing
    "gate": "x real time",
    "gate_levels": "x real time",
    "encode_small": "x real time",
    "encode_full": "x real time",
    "pack": "MB/s",
    # These are speeds of one GPU.
    "speak_chatterbox_gpu": "x real time",
    "encode_full_gpu": "x real time",
    "llm_gpu": "answer tokens/s",
    # These are tokens of a language model.
    "script_prompt_tokens": "tokens/dialogue",
    "script_answer_tokens": "tokens/dialogue",
    "role_prompt_tokens": "tokens/agent side",
    "role_answer_tokens": "tokens/agent side",
    # These are sizes.
    "script_size": "KB/dialogue",
    "audio_synthetic": "MB/h",
    "audio_call": "MB/h",
    "record": "MB/h",
    "voice_clip": "KB/agent side",
    "index_row": "bytes/agent side",
}
"""Every rate and its unit."""


@dataclass(kw_only=True, frozen=True)
class Rate:
    """One measured figure, as in the file; `value` is None if it was not measured."""

    value: float | None = None
    unit: str = ""
    source: str = ""


@dataclass
class Rates:
    """The rates by name, and the machine on which they were measured."""

    rates: dict[str, Rate] = field(default_factory=dict)
    machine: str = "unknown"

    def __getitem__(self, name: str) -> float | None:
        """The value of a rate; None if it was not measured."""
        return self.rates.get(name, Rate()).value

    def num_measured(self) -> int:
        """How many rates have a value."""
        return sum(rate.value is not None for rate in self.rates.values())

    def measured(self, name: str, value: float, source: str) -> None:
        """Stores a figure of three digits; a few seconds cannot measure more."""
        self.rates[name] = Rate(value=float(f"{value:.3g}"), unit=UNITS[name], source=source)

    def save(self, path: Path) -> None:
        """Writes the file, which appears whole or not at all."""
        rates = {
            name: {
                "value": self[name],
                "unit": unit,
                "source": self.rates[name].source if name in self.rates else "not measured",
            }
            for name, unit in UNITS.items()
        }
        text = yaml.safe_dump({"machine": self.machine, "rates": rates}, sort_keys=False, width=118)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())


def load_rates(path: Path) -> Rates:
    """Reads a file of rates; a rate that it leaves out counts as not measured.

    Raises: UserError if it is missing, is no YAML, or has a wrong name or value.
    """
    if not path.is_file():
        raise UserError(
            f"--rates {path} is no file: measure your machine with `ppx-data plan --measure {path}`",
            code="not-found",
        )
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        entries = content["rates"].items()
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as why:
        reason = " ".join(str(why).split())
        raise UserError(
            f"{path} is no file of rates ({reason}): write `rates:` and under it `NAME: {{value: 1.5}}`",
            code="unreadable",
        ) from why
    return Rates({name: _rate(path, name, entry) for name, entry in entries}, str(content.get("machine", "unknown")))


def _rate(path: Path, name: str, entry: Any) -> Rate:
    """One entry of a file, {value, unit, source} or a number. Raises UserError."""
    if name not in UNITS:
        hint = nearest(str(name), list(UNITS)) or f", choose from {', '.join(UNITS)}"
        raise UserError(f"{path} has no rate {name!r}{hint}", code="unknown-name")
    try:
        rate = record(Rate, json.dumps(entry if isinstance(entry, dict) else {"value": entry}))
    except (ValueError, TypeError) as why:
        raise UserError(f"{path}, {name}: {why}, give value, unit and source", code="bad-record") from why
    if rate.value is not None and not 0 < rate.value < math.inf:
        raise UserError(
            f"{path}, {name} is {rate.value:g}: give a number above 0 in {UNITS[name]}, or null", code="bad-value"
        )
    if rate.unit not in ("", UNITS[name]):
        raise UserError(f"{path}, {name} has the unit {rate.unit!r}: give it in {UNITS[name]}", code="bad-value")
    return rate
