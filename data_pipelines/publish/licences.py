"""Which terms let a data set be passed on. This is a reminder and no legal advice: it knows words, not contracts."""

import re
from collections.abc import Collection, Iterable

from model.errors import UserError

_FORBIDS = (
    (re.compile(r"\bLDC\b|linguistic data consortium", re.IGNORECASE), "corpora of the LDC may not be passed on"),
    (re.compile(r"\bNC\b|non-?\s?commercial", re.IGNORECASE), "it forbids commercial use"),
    (re.compile(r"proprietary|all rights reserved|confidential|internal use", re.IGNORECASE), "it is not public"),
)
HUB_NAMES = {
    "cc-by-4.0": r"cc[ -]by[ -]4(\.0)?",
    "cc-by-sa-4.0": r"cc[ -]by[ -]sa[ -]4(\.0)?",
    "cc-by-sa-3.0": r"cc[ -]by[ -]sa[ -]3(\.0)?",
    "cc-by-nc-4.0": r"cc[ -]by[ -]nc[ -]4(\.0)?",
    "cc0-1.0": r"cc0([ -]1(\.0)?)?",
    "apache-2.0": r"apache([ -]licen[cs]e)?[ -]2(\.0)?",
    "mit": r"mit",
}
"""Identifiers of the hub, and patterns of how people write them."""


def why_not_public(licence: str) -> str:
    """The reason not to publish data under this licence, or "" if nothing in its words forbids it."""
    return next((reason for pattern, reason in _FORBIDS if pattern.search(licence)), "")


def check_public(licences: Iterable[str], allowed: Collection[str]) -> None:
    """Raises UserError that names the first licence that forbids publication and is not among `allowed`."""
    for licence in sorted(licences):
        if licence not in allowed and (reason := why_not_public(licence)):
            raise UserError(
                f"licence {licence!r}: {reason}; leave that source out, or, if you have the right to publish it, "
                f"add --allow-licence {licence!r}",
                code="licence",
            )


def hub_licence(licences: Iterable[str]) -> str:
    """The hub's identifier for a data set under these licences; "other" if they are several or unknown."""
    known = {
        next(
            (name for name, words in HUB_NAMES.items() if re.fullmatch(words, licence.strip(), re.IGNORECASE)), "other"
        )
        for licence in licences
    }
    return known.pop() if len(known) == 1 else "other"
