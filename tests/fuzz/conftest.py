"""Prints the table of outcomes after the tests."""

from typing import Any

KIND = "fuzz"
"""The property of a test under which its counts are found."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints a line for each target, from the reports, which come from other processes, too."""
    rows = [
        value
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in report.user_properties
        if name == KIND
    ]
    if not rows:
        return
    terminalreporter.section("damaged files")
    columns = ("cases", "taken", "skipped", "refused", "failures")
    terminalreporter.write_line(f"{'target':<22}" + "".join(f"{name:>10}" for name in columns))
    for name, *counts in (*sorted(rows), ("all", *(sum(row[1 + k] for row in rows) for k in range(len(columns))))):
        terminalreporter.write_line(f"{name:<22}" + "".join(f"{count:>10}" for count in counts))
