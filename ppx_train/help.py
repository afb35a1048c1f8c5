"""The settings of a run as text, read from the dataclasses and the strings under their fields."""

import ast
import inspect
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from model.config import LMConfig
from ppx_train.config import CONFIGS, GROUPS, Run


def settings_help() -> str:
    """Every group with its files and every key with its default and help."""
    lines = ["Groups:"]
    for group in GROUPS:
        names = ", ".join(sorted(path.stem for path in (CONFIGS / group).glob("*.yaml")))
        lines.append(f"  {group:8} {names}")
    return "\n".join([*lines, "", "Settings:", *_lines("", Run)])


def _lines(prefix: str, owner: type) -> list[str]:
    lines = []
    notes = _notes(owner)
    for field in fields(owner):
        default: Any = field.default
        if field.default_factory is not NO_DEFAULT:
            default = field.default_factory()
        if is_dataclass(default) and not isinstance(default, LMConfig):
            lines += _lines(f"{prefix}{field.name}.", type(default))
        else:
            shown = {MISSING: "(required)"}.get(default) if isinstance(default, str) else None
            shown = shown or ("(shape of the model)" if isinstance(default, LMConfig) else str(default))
            note = notes.get(field.name, "")
            lines.append(f"  {prefix + field.name + ' = ' + shown:48} {note}".rstrip())
    return lines


def _notes(owner: type) -> dict[str, str]:
    """The string literal under each field of a dataclass."""
    tree: Any = ast.parse(inspect.getsource(owner)).body[0]
    notes = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            notes[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    return notes
