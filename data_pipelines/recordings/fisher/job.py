"""What one call is imported by, the settings of the run and the files of the call, and what it gives."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipelines.recordings.drafts import Note
from data_pipelines.recordings.fill import Listener
from data_pipelines.recordings.fisher.call_tables import CallFacts
from data_pipelines.recordings.windows import WindowLimits
from data_pipelines.records.schema import SIDES, Dialogue


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

    def refuse_call(self, facts: CallFacts) -> str:
        """Returns why a call is left out, or ""."""
        grades = (("signal", facts.signal, self.min_signal), ("conversation", facts.talk, self.min_conversation))
        for name, grade, least in grades:
            if least is not None and (grade is None or grade < least):
                return f"its {name} grade is {'unknown' if grade is None else f'{grade:g}'}, wanted {least:g}"
        return ""

    def refuse_side(self, facts: CallFacts, side: str) -> str:
        """Returns why a side is no agent, or ""."""
        number = SIDES.index(side)
        if self.native and not facts.natives[number]:
            return "is not known as a native speaker"
        if self.sex and facts.sexes[number] != self.sex:
            return f"its sex is {facts.sexes[number] or 'unknown'}, wanted {self.sex}"
        return ""


@dataclass(frozen=True, kw_only=True)
class FisherSettings:
    """What shapes the output; a rerun into the same folder must have the same.

    `prompt_tokens` are kept free for a role prompt, and `tokenizer` counts them ("" estimates). `bandwidth_extension`
    is a command line ("" resamples instead). `listener` hears what is said in lines that are only `(( ))`, if asked to.
    """

    seed: int
    limits: WindowLimits
    voice_seconds: float
    licence: str
    filters: Filters = field(default_factory=Filters)
    prompt_tokens: int = 128
    tokenizer: str = ""
    resampler: str = "soxr-hq"
    bandwidth_extension: str = ""
    bandwidth_timeout: float = 600.0
    mask: bool = False
    listener: Listener | None = None

    def record(self) -> dict[str, Any]:
        """Returns what OUT keeps of the settings; some are there only if they are set, as in earlier versions."""
        return {name: value for name, value in asdict(self).items() if name not in ("mask", "listener") or value}


@dataclass(frozen=True, kw_only=True)
class CallFiles:
    """One call to import: its files and what the tables say of it.

    `call` is its five digits, `title` that of its topic, `original` its text with case and punctuation if there is one.
    """

    call: str
    audio: Path
    transcript: Path
    facts: CallFacts
    title: str
    original: Path | None = None


@dataclass(frozen=True, kw_only=True)
class CallDraft:
    """What one call gave, or why it is `rejected`; the split of its dialogues is decided when all calls are done."""

    call: str
    dialogues: tuple[Dialogue, ...] = ()
    notes: tuple[Note, ...] = ()
    rejected: str = ""
