"""The parser of all commands: a mistake on the command line is one line with a code, and shells can complete words."""

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from model.errors import Code, UserError

_CODES: tuple[tuple[str, Code], ...] = (
    (r"the following arguments are required: (?P<names>.*)", "missing-option"),
    (r"one of the arguments (?P<names>.*) is required", "missing-option"),
    (r"unrecognized arguments: (?P<words>.*)", "unknown-name"),
    (r"argument \S+: expected .* arguments?", "missing-option"),
    (r"argument \S+: not allowed with argument .*", "bad-combination"),
)
"""The messages of argparse that are no "bad-value". They are the same from Python 3.10 to 3.13."""

_NAMED = re.compile(r"\$\{\s*[.\w\[\]-]+\s*\}")
"""A `${...}` that names a setting."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are UserErrors, and whose help names the default of each option.

    `options` has every option by its name without dashes, and every argument by the name that help shows.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.options: dict[str, argparse.Action] = {}
        self.subcommands: Mapping[str, Parser] = {}
        super().__init__(**kwargs)

    def add_argument(self, *names: str, **kwargs: Any) -> argparse.Action:
        """As in argparse; the help text gets the default if there is one that it does not mention."""
        return self.note(super().add_argument(*names, **_with_default(kwargs)))

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        """As in argparse; the group's `add_argument` does what the parser's does."""
        group = super().add_argument_group(*args, **kwargs)
        add = group.add_argument
        group.add_argument = lambda *names, **more: self.note(add(*names, **_with_default(more)))  # type: ignore
        return group

    def add_subparsers(self, **kwargs: Any) -> Any:
        """As in argparse; the parsers of subcommands are of this class."""
        action = super().add_subparsers(**kwargs)
        self.subcommands = action.choices  # type: ignore[assignment]
        return action

    def note(self, action: argparse.Action) -> argparse.Action:
        """Keeps an action among `options`; returns it."""
        for name in action.option_strings or [action.dest]:
            self.options[name.lstrip("-")] = action
        return action

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse. Raises UserError for a mistake; when a shell asks for completions, prints them and exits."""
        complete(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises UserError for a mistake that argparse describes with `message`."""
        message = " ".join(message.split())
        found = next(((match, code) for pattern, code in _CODES if (match := re.fullmatch(pattern, message))), None)
        parts, code = (found[0].groupdict(), found[1]) if found else ({}, "bad-value")
        if "names" in parts:
            raise UserError(f"{self.prog}: {parts['names']} must be given{self._see_help()}", code=code)
        if "words" in parts:
            raise UserError(f"{self.prog}: {self._unknown(parts['words'])}", code=code)
        name, colon, what = message.removeprefix("argument ").partition(": ")
        place, what = (f"{self.prog} {name}", what) if colon else (self.prog, name)
        raise UserError(f"{place}: {what.replace(': ', ' ')}", code=code)

    def _see_help(self) -> str:
        return f", see `{self.prog} --help`" if self.add_help else ""

    def _unknown(self, words: str) -> str:
        """What is said about words that no option or argument takes."""
        flags = [word.partition("=")[0] for word in words.split() if word.startswith("--")]
        if not flags:
            return f"nothing takes {words!r}{self._see_help()}"
        known = [self, *self.subcommands.values()]
        names = {f for parser in known for f in option_flags(parser.options.values())}
        return f"no option {flags[0]}{nearest(flags[0], sorted(names)) or self._see_help()}"


class _OldFlag(argparse.Action):
    """An option of an earlier version."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: Any = None
    ) -> NoReturn:
        given = " ".join(map(str, values if isinstance(values, list) else [] if values is None else [values]))
        refuse_old_flag(f"{option_string} {given}".strip(), f"{self.const} {given}".strip())


def add_old_flag(parser: argparse.ArgumentParser, old: str, new: str) -> None:
    """Makes the parser refuse the option `old`, which takes one value, with the name that it has now."""
    parser.add_argument(old, action=_OldFlag, const=new, nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def refuse_old_flag(old: str, new: str) -> NoReturn:
    """Raises UserError with code "old-form" for words of an earlier version."""
    raise UserError(f"{old}: is written {new} now", code="old-form")


def option_flags(actions: Iterable[argparse.Action]) -> list[str]:
    """The flags with two dashes that help shows."""
    shown = [action for action in actions if action.help != argparse.SUPPRESS]
    return sorted({flag for action in shown for flag in action.option_strings if flag.startswith("--")})


def add_version(parser: argparse.ArgumentParser, version: str) -> None:
    """Adds --version, which prints `ppx-train 0.1.0`."""
    parser.add_argument(
        "--version", action="version", version=f"ppx-train {version}", help="print the version and exit"
    )


def nearest(word: str, known: Sequence[str]) -> str:
    """`, did you mean 'X'?` for the known word that is most like `word`; "" if none is."""
    found = get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def refuse_resolvers(content: Any, where: str) -> None:
    """Raises UserError with code "unsafe" if a value of nested settings has a `${...}` that calls a function.

    OmegaConf has functions that read the environment (`${oc.env:NAME}`), and whose values would be saved with a run.
    Other settings may be named (`${name}`), also within each other.
    where: the file or option that has the settings.
    """
    if isinstance(content, Mapping):
        content = [*content.keys(), *content.values()]
    if isinstance(content, (list, tuple)):
        for item in content:
            refuse_resolvers(item, where)
    elif isinstance(content, str):
        rest, count = content, 1
        while count:
            rest, count = _NAMED.subn("", rest)
        if "${" in rest:
            raise UserError(
                f"{where}: {content!r:.100} may only name other settings, as ${{name}} does, and call no function that "
                "reads the environment",
                code="unsafe",
            )


def completed_words() -> list[str] | None:
    """The whole words before the cursor when a shell asks for completions, the command first; None if none asks."""
    if "_ARGCOMPLETE" not in os.environ:
        return None
    typed = os.environ["COMP_LINE"].encode()[: int(os.environ["COMP_POINT"])].decode(errors="ignore")
    return typed.rpartition(" ")[0].split()


def complete(parser: argparse.ArgumentParser, skip: int = 0) -> None:
    """Prints the words that a shell may complete the command line with, and exits; nothing if no shell asks.

    skip: words after the command that are no part of the parser's command line, such as a verb.
    """
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        os.environ["_ARGCOMPLETE"] = str(int(os.environ["_ARGCOMPLETE"]) + skip)
        argcomplete.autocomplete(parser, always_complete_options="long")


def _with_default(options: dict[str, Any]) -> dict[str, Any]:
    """The keywords of add_argument, with the default at the end of the help text."""
    text, default = options.get("help"), options.get("default")
    if default is None or default is False or default in ("", [], argparse.SUPPRESS) or not text or "default" in text:
        return options
    shown = f"{default:g}" if isinstance(default, float) else "%(default)s"  # 150 instead of 150.0
    return options | {"help": f"{text} (default: {shown})"}
