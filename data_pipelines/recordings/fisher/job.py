"""What a call is imported by: settings of the run, filters, and the files and table rows of one call."""

from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.recordings.fisher.call_tables import Call
from data_pipelines.recordings.windows import Limits


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which calls are imported and which sides may be the agent; the defaults leave out nothing.

    Grades are the auditors' (SIG_GRADE, CNV_GRADE). A side whose sex or native language is unknown does not pass a
    filter that asks for it.
    """

    min_signal: float | None = None
    min_conversation: float | None = None
    native: bool = False
    sex: str = ""

    def refuse_call(self, row: Call) -> str:
        """Why a call is left out, or ""."""
        for name, grade, least in (("signal", row.signal, self.min_signal), ("talk", row.talk, self.min_conversation)):
            if least is not None and (grade is None or grade < least):
                what = {"signal": "signal", "talk": "conversation"}[name]
                return f"its {what} grade is {'unknown' if grade is None else f'{grade:g}'}, wanted {least:g}"
        return ""

    def refuse_side(self, row: Call, side: int) -> str:
        """Why a side is no agent, or ""."""
        if self.native and not row.natives[side]:
            return "is not known as a native speaker"
        if self.sex and row.sexes[side] != self.sex:
            return f"its sex is {row.sexes[side] or 'unknown'}, wanted {self.sex}"
        return ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What shapes the output; a rerun into the same folder must have the same.

    `prompt_tokens` are kept free for a role prompt, `tokenizer` counts them ("": estimated), `bandwidth_extension` is
    a command line ("": none).
    """

    seed: int
    limits: Limits
    voice_seconds: float
    licence: str
    filters: Filters = field(default_factory=Filters)
    prompt_tokens: int = 128
    tokenizer: str = ""
    resampler: str = "soxr-hq"
    bandwidth_extension: str = ""
    bandwidth_timeout: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call to import; `original` is its text with case and punctuation, if there is one."""

    call: str
    audio: Path
    transcript: Path
    row: Call
    title: str
    original: Path | None = None
