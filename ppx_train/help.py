"""The settings of a run as text, read from the dataclasses and the strings under their fields."""

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING, OmegaConf

from model.config import LMConfig
from ppx_train.config.codec import CodecRun
from ppx_train.config.load import Job
from ppx_train.config.run import Run
from ppx_train.recipes import GROUPS, ConfigLayer, group_names, recipe_names

_NOTHING = object()


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key of a run. default: "(required)" if it must be given; choices: all values, if they are few."""

    key: str
    default: str
    note: str
    choices: tuple[str, ...]


def settings_help() -> str:
    """Returns every group with its files, and every key with its default and help."""
    lines = ["Groups:", *(f"  {group:8} {', '.join(group_names(group))}" for group in GROUPS)]
    for title, owner in (("Settings:", Run), ("Settings of a recipe that trains a codec (job: codec):", CodecRun)):
        lines += ["", title]
        for setting in settings("", owner):
            lines.append(f"  {f'{setting.key} = {setting.default}':48} {setting.note}".rstrip())
    return "\n".join(lines)


def setting_words() -> list[str]:
    """Returns the words that a command line of ppx-train may hold: `recipe=NAME`, `GROUP=NAME`, `KEY=` or `KEY=VALUE`.

    A key with few values is returned with each of them, but for those that YAML reads as something else, such as off;
    any other key is returned without a value.
    """
    words = ["recipes", *(f"recipe={name}" for name in recipe_names())]
    words += [f"{group}={name}" for group in GROUPS for name in group_names(group)]
    both = {setting.key: setting for owner in (CodecRun, Run) for setting in settings("", owner)}
    for setting in both.values():
        if setting.key not in ("recipe", "groups", "job"):
            choices = [value for value in setting.choices if str(yaml.safe_load(value)).lower() == value]
            words += [f"{setting.key}={value}" for value in choices or [""]]
    return words


def settings(prefix: str = "", owner: type = Run) -> Iterator[Setting]:
    """Yields the keys of a dataclass of the configuration, and of those inside it, in their order."""
    notes, hints = _notes(owner), get_type_hints(owner)
    for field in fields(owner):
        default: Any = field.default
        if field.default_factory is not NO_DEFAULT:
            default = field.default_factory()
        if is_dataclass(default) and not isinstance(default, LMConfig):
            yield from settings(f"{prefix}{field.name}.", type(default))
            continue
        shown = "(required)" if default == MISSING else str(default)
        yield Setting(
            key=prefix + field.name,
            default="(shape of the model)" if isinstance(default, LMConfig) else shown,
            note=notes.get(field.name, ""),
            choices=tuple(_choices(hints[field.name])),
        )


def _choices(hint: Any) -> list[str]:
    """The words for all values of a type; none if they are too many."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    of_each = [_choices(each) for each in get_args(hint)] if get_origin(hint) in (Union, UnionType) else []
    return [word for words in of_each for word in words] if all(of_each) else []


def marked_yaml(run: Job, layers: Sequence[ConfigLayer]) -> str:
    """Returns the configuration of a run as YAML, with a comment behind each value that differs from its default.

    The comment names the place of the value: a file, or the command line. The text loads back to the same run.
    layers: what the run was built from, by `ppx_train.config.load.layers_of`.
    """
    text = run.to_yaml()
    lines = text.splitlines()
    values, defaults = asdict(run), OmegaConf.to_container(OmegaConf.structured(type(run)))
    given = [(layer.origin, OmegaConf.to_container(layer.values)) for layer in layers]
    for path, line in _leaves(yaml.compose(text)):
        if _at(values, path) != _at(defaults, path):
            origin = next((name for name, content in reversed(given) if _at(content, path) is not _NOTHING), "")
            lines[line] += f"  # {origin}"
    return "\n".join(lines) + "\n"


def _leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yields the path of each value of a YAML mapping that is no mapping itself, and its line for a comment."""
    for key, value in node.value:
        here = (*path, key.value)
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, here)
        else:
            is_block = isinstance(value, yaml.SequenceNode) and not value.flow_style
            yield here, key.start_mark.line if is_block else value.end_mark.line


def _at(content: Any, path: Sequence[str]) -> Any:
    """The value at a path of nested mappings; _NOTHING if it does not exist."""
    for key in path:
        if not isinstance(content, Mapping) or key not in content:
            return _NOTHING
        content = content[key]
    return content


def _notes(owner: type) -> dict[str, str]:
    """The string literal under each field of a dataclass."""
    tree: Any = ast.parse(inspect.getsource(owner)).body[0]
    notes = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            notes[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    return notes
