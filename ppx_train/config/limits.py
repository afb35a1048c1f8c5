"""Limits of numbers in a configuration."""

from collections.abc import Iterable, Sequence
from typing import Any

from model.errors import UserError


def positive(names: Sequence[str], **owner: Any) -> None:
    """Raises UserError unless each named field of the one given owner is above zero."""
    ((prefix, values),) = owner.items()
    for name in names:
        if getattr(values, name) <= 0:
            key = name if prefix == "run" else f"{prefix}.{name}"
            raise UserError(f"{key}={getattr(values, name)}: must be above 0", code="bad-value")


def check_ranges(prefix: str, owner: object, ranges: Iterable[tuple[str, bool, str]]) -> None:
    """Raises UserError for the first (field, whether it is in range, the range in words) that is not."""
    for name, is_good, allowed in ranges:
        if not is_good:
            raise UserError(f"{prefix}.{name}={getattr(owner, name)}: must be {allowed}", code="bad-value")
