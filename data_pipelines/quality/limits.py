"""The limits of the gates out of a shipped or own YAML file and single values of the command line, which win."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_pipelines.arguments import nearest, refuse_resolvers
from data_pipelines.quality.gates import Limits
from model.errors import UserError

T = TypeVar("T")

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "gates"
"""Where the shipped limits are, in a checkout as well as in a wheel."""


def add_arguments(
    parser: argparse.ArgumentParser,
    folder: Path = FOLDER,
    what: str = "limits of the gates",
    example: str = "swap_ratio=3",
) -> None:
    """Adds the options of every verb that judges dialogues."""
    names = f"{_shipped(folder)} or a YAML file (default: default)"
    parser.add_argument("--gates", default="default", metavar="NAME|FILE", help=f"{what}: {names}")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=f"single limits, e.g. {example}; null stands for no limit",
    )


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits that the options of a verb ask for. Raises UserError as load_limits does."""
    return load_limits(args.gates, args.set)


def _shipped(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


@overload
def load_limits(name: str = "default", overrides: Sequence[str] = ()) -> Limits: ...


@overload
def load_limits(name: str, overrides: Sequence[str], kind: type[T], folder: Path) -> T: ...


def load_limits(name: str = "default", overrides: Sequence[str] = (), kind: Any = Limits, folder: Path = FOLDER) -> Any:
    """The limits of a shipped set or a YAML file over those of the default, changed by "key=value" items.

    kind, folder: the dataclass of the limits, and where its shipped sets are.

    Raises: UserError that names the file or key that is unknown, or a value of the wrong type.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"--gates {name} names no limits: give a .yaml file or one of {_shipped(folder)}",
            code="not-found" if path.parent != folder else "unknown-name",
        )
    layers = [(str(each), _layer(each)) for each in dict.fromkeys((folder / "default.yaml", path))]
    for item in overrides:
        if "=" not in item:
            raise UserError(f"--set {item}: write key=value, e.g. swap_ratio=3", code="bad-value")
        layers.append((f"--set {item}", OmegaConf.from_dotlist([item])))
    limits = OmegaConf.structured(kind)
    for where, layer in layers:
        _check_keys(layer, where, [field.name for field in fields(kind)])
        refuse_resolvers(OmegaConf.to_container(layer), where)
        try:
            OmegaConf.set_readonly(limits, False)
            limits = OmegaConf.merge(limits, OmegaConf.to_container(layer, resolve=True, throw_on_missing=True))
        except (OmegaConfBaseException, ValueError) as why:
            raise UserError(f"{where}: {str(why).splitlines()[0]}", code="bad-value") from why
    values: dict[str, Any] = OmegaConf.to_container(limits)  # type: ignore[assignment]
    for key, value in values.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(
                    f"{key}={number} (--gates or --set): give a number, or null for no limit", code="bad-value"
                )
    try:
        return kind(**values)
    except ValueError as why:
        raise UserError(f"{why} (--gates or --set)", code="bad-value") from why


def _layer(path: Path) -> Any:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        return OmegaConf.create({} if content is None else content)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as why:
        raise UserError(
            f"{path} is not YAML ({' '.join(str(why).split())}): write `key: value` lines", code="unreadable"
        ) from why


def _check_keys(layer: object, where: str, known: Sequence[str]) -> None:
    if not OmegaConf.is_dict(layer):
        raise UserError(f"{where} holds no `key: value` lines", code="bad-record")
    for key in layer:  # type: ignore[attr-defined]
        if key not in known:
            hint = nearest(str(key), known) or f", there are {', '.join(known)}"
            raise UserError(f"{where}: no gate is named {key!r}{hint}", code="unknown-name")
