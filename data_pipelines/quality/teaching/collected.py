"""All measures of one source, collected in one pass."""

from dataclasses import dataclass

from data_pipelines.quality.teaching.blind import Blind
from data_pipelines.quality.teaching.floor import Floor
from data_pipelines.quality.teaching.lesson import Lesson, Value
from data_pipelines.quality.teaching.manners import Manners
from data_pipelines.quality.teaching.stream import Stream
from data_pipelines.quality.teaching.wording import Wording
from model.text import TextTokenizer


@dataclass
class Result:
    """What was measured of one source: how many talks, and every measure by name."""

    count: int
    values: dict[str, Value]


class Audit:
    """Collects the measures of one source."""

    def __init__(self, tokenizer: TextTokenizer | None = None) -> None:
        self.wording = Wording()
        self._parts = (Blind(), Floor(), Manners(), Stream(tokenizer), self.wording)

    def add(self, talk: Lesson) -> None:
        """Adds one script or dialogue."""
        for part in self._parts:
            part.add(talk)

    def result(self) -> Result:
        """All values."""
        values: dict[str, Value] = {}
        for part in self._parts:
            values.update(part.values())
        return Result(self.wording.scripts, values)
