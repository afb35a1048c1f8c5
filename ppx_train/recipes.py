"""The YAML files of a run: shipped recipes and config groups, and a user's own recipe."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from data_pipelines.arguments import nearest, refuse_resolvers
from model.errors import UserError
from ppx_train.roots import CONFIGS, RECIPES, ROOT

GROUPS = ("model", "data", "optim", "loss", "trainer", "logging")
"""The folders of configs/ of which a run takes one file each."""


@dataclass(frozen=True, kw_only=True)
class ConfigLayer:
    """Settings from one place. origin: the YAML file that has them, or "command line"."""

    origin: str
    values: DictConfig


def recipe_names() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_summary(name: str) -> str:
    """First comment line of a recipe that is not its command."""
    lines = [line[1:].strip() for line in (RECIPES / f"{name}.yaml").read_text("utf-8").splitlines() if line[:1] == "#"]
    return next((line for line in lines if not line.startswith("ppx-train")), "")


def read_recipe(name: str) -> ConfigLayer:
    """Reads a shipped recipe, or the user's own YAML file. Raises UserError suggesting the nearest name."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise UserError(f"recipe={name}: no such file", code="not-found")
    else:
        if name not in recipe_names():
            hint = nearest(name, recipe_names()) or ", `ppx-train recipes` lists all"
            raise UserError(f"recipe={name:.80}: no such recipe{hint}", code="unknown-name")
        path = RECIPES / f"{name}.yaml"
    return ConfigLayer(origin=_shown(path), values=read_yaml(path))


def group_names(group: str) -> list[str]:
    """Names of the files of a config group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def read_group(group: str, name: str) -> ConfigLayer:
    """Reads one config group file as a mapping under its group's key. Raises UserError listing what exists."""
    if group not in GROUPS:
        hint = nearest(group, GROUPS) or f", there are {', '.join(GROUPS)}"
        raise UserError(f"{group}={name}: no such config group{hint}", code="unknown-name")
    if name not in group_names(group):
        hint = nearest(name, group_names(group)) or f", there are {', '.join(group_names(group))}"
        raise UserError(f"{group}={name:.80}: no such config{hint}", code="unknown-name")
    path = CONFIGS / group / f"{name}.yaml"
    return ConfigLayer(origin=_shown(path), values=DictConfig({group: read_yaml(path)}))


def read_yaml(path: Path) -> DictConfig:
    """Reads one YAML mapping. Raises UserError if it is not one, or a value reads the environment."""
    try:
        config = OmegaConf.load(path)
    except Exception as why:  # yaml raises many kinds; the first line says where
        raise UserError(f"{path}: not readable as YAML ({first_line(why)})", code="unreadable") from why
    if not isinstance(config, DictConfig):
        raise UserError(f"{path}: must be a mapping of keys to values", code="bad-record")
    refuse_resolvers(OmegaConf.to_container(config), str(path))
    return config


def torchrun_layer(layers: Sequence[ConfigLayer]) -> list[ConfigLayer]:
    """Returns the devices and nodes that torchrun started processes on; nothing if it did not.

    Raises: UserError if the last layer that sets one of them says something else, or nodes differ in size.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    devices, processes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if processes % devices:
        raise UserError(
            f"torchrun started {devices} of {processes} processes on this node: start as many on each",
            code="bad-combination",
        )
    own = {"devices": devices, "num_nodes": processes // devices}
    for name, number in own.items():
        trainers = [(layer.origin, layer.values.get("trainer")) for layer in layers]
        given = [
            (origin, trainer[name]) for origin, trainer in trainers if isinstance(trainer, Mapping) and name in trainer
        ]
        origin, value = given[-1] if given else ("", number)
        if value != number:
            raise UserError(
                f"{origin}: trainer.{name}={value}, but torchrun started {number}, leave the setting out or set "
                f"trainer.{name}={number}",
                code="bad-combination",
            )
    return [ConfigLayer(origin="torchrun", values=DictConfig({"trainer": own}))]


def first_line(why: Exception) -> str:
    """The first line of an error's message, or the name of its kind."""
    return str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__


def _shown(path: Path) -> str:
    """A file as a person names it: a shipped one without the folder of the installation."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
