"""The jobs of a stage: how messages name them, and what happens when one is lost with its worker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from model.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")

FEW = 3
"""Tolerate this many lost jobs; beyond it, stop once lost jobs outnumber results."""


class Losses(Generic[Job, Result]):
    """Counts the jobs of one run that kill their workers, and gives their placeholder results."""

    def __init__(self, lost: Callable[[Job, str], Result] | None) -> None:
        """`lost(job, reason)` returns the placeholder result of a lost job; without it lost jobs end the run."""
        self._lost = lost
        self._names: list[str] = []
        self.num_done = 0
        """Jobs that gave a result; the runner counts them."""

    def add(self, job: Job) -> Iterator[Result]:
        """Yields the placeholder result of a lost job, if there is one. Raises UserError if most jobs are lost."""
        self._names.append(name_of(job))
        if len(self._names) > max(self.num_done, FEW):
            raise self._error()
        if self._lost is not None:
            yield self._lost(job, "its worker was killed each time: out of memory, or a crash in native code")

    def end(self) -> None:
        """Raises UserError if jobs were lost and have no placeholder result."""
        if self._names and self._lost is None:
            raise self._error()

    def _error(self) -> UserError:
        names = ", ".join(self._names[:FEW]) + (", ..." if len(self._names) > FEW else "")
        return UserError(
            f"{len(self._names)} jobs kill their worker each time ({names}), by lack of memory or a crash in native "
            "code: give fewer --workers or more memory, or leave these out; the rest is kept, run it again",
            code="lost-work",
        )


def name_of(job: Any) -> str:
    """How messages name a job: a path, a text, or its `id`, `call`, `name` or `path`; nothing else of its content."""
    if isinstance(job, (str, Path)):
        return str(job)
    return str(
        next((getattr(job, key) for key in ("id", "call", "name", "path") if hasattr(job, key)), type(job).__name__)
    )
