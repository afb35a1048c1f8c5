"""The jobs of a stage: what they are called, and those that are lost with their workers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.errors import UserError

Job = TypeVar("Job")

Result = TypeVar("Result")

FEW = 3
"""So many lost jobs are no reason to stop before the end."""


class Losses(Generic[Job, Result]):
    """The jobs of one run that kill their workers, and what stands for them."""

    def __init__(self, lost: Callable[[Job, str], Result] | None) -> None:
        self._lost = lost
        self._names: list[str] = []
        self.num_done = 0
        """Jobs that gave a result; counted by whoever runs them."""

    def add(self, job: Job) -> Iterator[Result]:
        """Yields the result that stands for `job`, if any. Raises UserError if more jobs are lost than done."""
        self._names.append(name_of(job))
        if len(self._names) > max(self.num_done, FEW):
            raise self._error()
        if self._lost is not None:
            yield self._lost(job, "its worker was killed each time: out of memory, or a crash in native code")

    def end(self) -> None:
        """Raises UserError if jobs were lost and nothing stands for them."""
        if self._names and self._lost is None:
            raise self._error()

    def _error(self) -> UserError:
        names = ", ".join(self._names[:FEW]) + (", ..." if len(self._names) > FEW else "")
        return UserError(
            f"{len(self._names)} jobs kill their worker each time ({names}): out of memory, or a crash in native "
            "code: give fewer --workers or more memory, or leave these out; the rest is kept, run it again"
        )


def name_of(job: Any) -> str:
    """A job as messages call it: a path, a text, or its `id`, `call`, `name` or `path`; nothing else of its content."""
    if isinstance(job, (str, Path)):
        return str(job)
    return str(
        next((getattr(job, key) for key in ("id", "call", "name", "path") if hasattr(job, key)), type(job).__name__)
    )
