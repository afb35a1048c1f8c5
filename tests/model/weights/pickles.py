"""A pickle that shows whether it was read."""

from pathlib import Path
from typing import Any


class Trap:
    """Unpickled, it leaves the file `mark` behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.mark, "unpickled"))
