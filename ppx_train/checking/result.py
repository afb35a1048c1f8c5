"""What one of the checks has found."""

from dataclasses import dataclass, field
from typing import Any

from model.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of a check.

    `line` is for the person at the terminal, and may name paths. `figures` go into the report, and must not.
    """

    name: str
    passed: bool | None
    """None: the check could not be made here."""
    line: str
    figures: dict[str, Any] = field(default_factory=dict)


def refusal(name: str, why: UserError) -> CheckResult:
    """Returns the result of a check that ended with a mistake of the user, whose message says what to do."""
    return CheckResult(name=name, passed=False, line=str(why), figures={"code": why.code})
