"""Measured rates of the stages: a YAML file of {name: {value, unit, source}}. What nobody measured has no value."""

import math
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

import yaml

from data_pipelines.files import write_bytes
from model.errors import UserError

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "rates" / "cpu.yaml"  # same in a checkout and in a wheel

UNITS = {
    # Speeds of one core; "x real time" counts seconds of dialogue, both channels of it
    "write_template": "scripts/s",
    "speak_espeak": "x real time",
    "speak_kokoro": "x real time",
    "fisher_read": "x real time",  # decode, parse, resample
    "fisher_align": "x real time",  # align, cut, write
    "gate": "x real time",
    "gate_levels": "x real time",
    "encode_small": "x real time",
    "encode_full": "x real time",
    "pack": "MB/s",
    # Speeds of one GPU
    "speak_chatterbox_gpu": "x real time",
    "encode_full_gpu": "x real time",
    "llm_gpu": "answer tokens/s",
    # Tokens of a language model, prompts first
    "script_prompt_tokens": "tokens/dialogue",
    "script_answer_tokens": "tokens/dialogue",
    "role_prompt_tokens": "tokens/agent side",
    "role_answer_tokens": "tokens/agent side",
    # Sizes
    "script_size": "KB/dialogue",
    "audio_synthetic": "MB/h",
    "audio_call": "MB/h",
    "record": "MB/h",
    "voice_clip": "KB/agent side",
    "index_row": "bytes/agent side",
}
"""Every rate and its unit."""


@dataclass
class Rates:
    """Values by name, None for what was not measured; where each comes from; and the machine."""

    values: dict[str, float | None] = field(default_factory=lambda: dict.fromkeys(UNITS))
    sources: dict[str, str] = field(default_factory=dict)
    machine: str = "unknown"

    def __getitem__(self, name: str) -> float | None:
        return self.values[name]

    def measured(self, name: str, value: float, source: str) -> None:
        """Notes a figure of three digits; more would claim what a few seconds cannot measure."""
        assert name in UNITS
        self.values[name], self.sources[name] = float(f"{value:.3g}"), source

    def save(self, path: Path) -> None:
        """Writes the file, atomically."""
        rates = {
            name: {"value": self.values[name], "unit": unit, "source": self.sources.get(name, "not measured")}
            for name, unit in UNITS.items()
        }
        text = yaml.safe_dump({"machine": self.machine, "rates": rates}, sort_keys=False, width=118)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())


def load_rates(path: Path) -> Rates:
    """Reads a file of rates; rates it leaves out are not measured.

    Raises: UserError if it is missing, no YAML, or a name or value is wrong.
    """
    if not path.is_file():
        raise UserError(f"--rates {path}: no such file: measure your machine with `ppx-data plan --measure {path}`")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        entries = content["rates"].items()
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError, AttributeError) as why:
        reason = " ".join(str(why).split())
        raise UserError(
            f"{path}: no file of rates ({reason}): write `rates:` and under it `NAME: {{value: 1.5}}`"
        ) from why
    rates = Rates(machine=str(content.get("machine", "unknown")))
    for name, entry in entries:
        if name not in UNITS:
            near = get_close_matches(str(name), UNITS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(UNITS)}"
            raise UserError(f"{path}: no rate {name!r}: {hint}")
        for key in entry if isinstance(entry, dict) else ():
            if key not in ("value", "unit", "source"):
                raise UserError(f"{path}: {name}: no {key!r} belongs here: give value, unit and source")
        value = entry.get("value") if isinstance(entry, dict) else entry
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf
        ):
            raise UserError(f"{path}: {name}: {value!r}: give a number above 0 in {UNITS[name]}, or null")
        if isinstance(entry, dict) and entry.get("unit", UNITS[name]) != UNITS[name]:
            raise UserError(f"{path}: {name}: unit {entry['unit']!r}: it is reckoned in {UNITS[name]}")
        rates.values[name] = None if value is None else float(value)
        rates.sources[name] = str(entry.get("source", "")) if isinstance(entry, dict) else ""
    return rates
