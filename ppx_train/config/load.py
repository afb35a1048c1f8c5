"""How the configuration of a run is filled.

Later wins: dataclass defaults < config groups (configs/GROUP/NAME.yaml) < recipe < command line.
OmegaConf merges with the dataclasses as schema and the result is turned into plain dataclasses:
no DictConfig leaves this file.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from data_pipelines.arguments import refuse_resolvers
from model.errors import Code, UserError
from ppx_train.config.codec import CodecRun
from ppx_train.config.run import Run
from ppx_train.recipes import (
    GROUPS,
    ConfigLayer,
    first_line,
    read_group,
    read_recipe,
    read_yaml,
    recipe_names,
    torchrun_layer,
)

Job = Run | CodecRun
"""What a recipe can describe."""
Kind = TypeVar("Kind", bound=Job)
JOBS: dict[str, type[Job]] = {"duplex": Run, "codec": CodecRun}
"""The schema of each job, by its name in a recipe; a recipe without a name trains a language model."""
COMMAND_LINE = "command line"
"""The origin of settings that are given by hand."""


def load(arguments: Sequence[str], fallback: Sequence[ConfigLayer] = ()) -> Run:
    """Builds the run of a language model from `recipe=NAME [group=NAME] [key=value ...]`.

    fallback: settings where neither groups, nor the recipe, nor the command says anything.
    Raises: UserError in one line for an unknown recipe, group or key, a wrong type, a missing value, or another job.
    """
    return _of_kind(merge([*fallback, *layers_of(arguments)]), Run, "recipe")


def layers_of(arguments: Sequence[str]) -> list[ConfigLayer]:
    """Reads the places that `recipe=NAME [group=NAME] [key=value ...]` names, in the order in which later ones win.

    Raises: UserError for an unknown recipe, group or key of the command line, or a file that cannot be read.
    """
    for argument in arguments:
        if "=" not in argument or argument.startswith("-"):
            known = argument if argument in recipe_names() else "quickstart steps=100"
            raise UserError(f"{argument!r}: write settings as key=value, e.g. recipe={known}", code="bad-value")
        refuse_resolvers(argument, "command line")
    given = dict(argument.split("=", 1) for argument in arguments)
    if "recipe" not in given:
        raise UserError("no recipe is given: add recipe=NAME, `ppx-train recipes` lists them", code="missing-option")
    recipe = given.pop("recipe")
    by_recipe = read_recipe(recipe)
    groups = {key: given.pop(key) for key in GROUPS if key in given}
    overrides = [f"{key}={value}" for key, value in given.items()]
    schema = schema_of(f"recipe={recipe}", by_recipe.values)
    for override in overrides:
        check_override(override, schema)
    by_hand = DictConfig(OmegaConf.merge(OmegaConf.from_dotlist(overrides), {"groups": groups} if groups else {}))
    refuse_resolvers(OmegaConf.to_container(by_hand), "command line")
    for where, settings in ((f"recipe={recipe}", by_recipe.values), ("command line", by_hand)):
        if not isinstance(settings.get("groups") or {}, Mapping):
            raise UserError(
                f"{where}: groups is {settings.groups!r}, write a mapping such as {{model: small, optim: scratch}}",
                code="bad-value",
            )
    try:
        chosen = DictConfig(OmegaConf.merge(by_recipe.values.get("groups") or {}, by_hand.get("groups") or {}))
        files = [(str(group), str(name)) for group, name in chosen.items()]  # A name may stand for another setting.
    except (OmegaConfBaseException, TypeError, ValueError) as why:
        raise UserError(f"recipe={recipe}: groups, {first_line(why)}", code="bad-value") from why
    by_hand.recipe = Path(recipe).stem
    layers = [
        ConfigLayer(origin="name of the recipe", values=DictConfig({"run_dir": f"runs/{by_hand.recipe}"})),
        *(read_group(group, name) for group, name in files),
        by_recipe,
        ConfigLayer(origin=COMMAND_LINE, values=by_hand),
    ]
    return [*layers, *torchrun_layer(layers)]


def schema_of(where: str, values: DictConfig) -> type[Job]:
    """Returns the schema of the job that a recipe or a saved configuration names.

    Raises: UserError for an unknown name.
    """
    job = values.get("job", "duplex")
    if not isinstance(job, str) or job not in JOBS:
        raise UserError(f"{where}: job={job!s:.40}: must be {' or '.join(JOBS)}", code="unknown-name")
    return JOBS[job]


def merge(layers: Sequence[ConfigLayer]) -> Job:
    """Builds the run from defaults and layers, of which later ones win. Raises UserError as `load` does."""
    named = [layer for layer in layers if "job" in layer.values]
    schema = schema_of(named[-1].origin, named[-1].values) if named else Run
    merged: Any = OmegaConf.structured(schema)
    for layer in layers:
        try:
            merged.merge_with(layer.values)
        except (OmegaConfBaseException, TypeError, OverflowError) as why:  # a list for a mapping; 10**400 for a number
            raise UserError(f"{layer.origin}: {_see_help(_what(why))}", code=_code_of(why)) from why
    try:
        run = OmegaConf.to_object(merged)
    except OmegaConfBaseException as why:
        if isinstance(why.__cause__, UserError):
            raise why.__cause__ from None
        if isinstance(why, MissingMandatoryValue):
            raise UserError(
                f"{why.full_key} is not set: add {why.full_key}=... to the command or the recipe",
                code="missing-option",
            ) from why
        raise UserError(_what(why), code=_code_of(why)) from why
    assert isinstance(run, Job)
    refuse_resolvers(asdict(run), "settings that name others")  # A saved value must not become a call when it is read.
    run.check()
    _refuse_idle(run, layers)
    return run


def _refuse_idle(run: Job, layers: Sequence[ConfigLayer]) -> None:
    """Raises UserError for a setting of the command line that cannot have an effect.

    Files may hold such settings: `trainer.precision=32-true` leaves the recipe's `loss.fp32_from` behind, and a run
    that is printed lists all of them.
    """
    by_hand = [layer for layer in layers if layer.origin == COMMAND_LINE]
    for name, cause in run.idle:
        for layer in by_hand:
            if (value := OmegaConf.select(layer.values, name)) is not None:
                raise UserError(
                    f"{name}={value} has no effect with {cause}={_value(run, cause)}: leave it out",
                    code="bad-combination",
                )


def _value(run: Job, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), run)


def load_saved(path: Path, kind: type[Kind]) -> Kind:
    """Reads a resolved configuration that a run saved beside its checkpoint, which names no other settings any more.

    Raises: UserError if it is not readable, not a configuration of this version, or of another job.
    """
    saved = read_yaml(path)
    if "${" in str(OmegaConf.to_container(saved)):
        raise UserError(f"{path}: names other settings by ${{...}}, which no run saves", code="unsafe")
    try:
        run = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema_of(str(path), saved)), saved))
    except (OmegaConfBaseException, TypeError, ValueError) as why:
        raise UserError(f"{path}: {first_line(why)}, was it saved by another version?", code="bad-record") from why
    assert isinstance(run, Job)
    return _of_kind(run, kind, str(path))


def _of_kind(run: Job, kind: type[Kind], where: str) -> Kind:
    if not isinstance(run, kind):
        raise UserError(
            f"{where}: job={run.job}, but job={kind.job} is needed here: give another", code="other-settings"
        )
    return run


def check_override(override: str, schema: type[Job]) -> None:
    """Raises UserError naming one key=value of the command line that is no setting, or not of its setting's type."""
    try:
        OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.from_dotlist([override]))
    except yaml.YAMLError as why:
        raise UserError(
            f"{override}: not readable as YAML ({first_line(why)}), quote the value", code="unreadable"
        ) from why
    except (OmegaConfBaseException, TypeError) as why:  # TypeError: a list where a mapping belongs
        key, _, value = override.partition("=")
        needs_list = "is not a ListConfig" in str(why)
        reason = f"a list is needed, such as {key}=[{value}]" if needs_list else first_line(why)
        raise UserError(f"{override}: {_see_help(reason)}", code=_code_of(why)) from why


def _see_help(reason: str) -> str:
    return reason if reason.endswith("?") else f"{reason}, see `ppx-train --help`"


def _what(why: Exception) -> str:
    key = getattr(why, "full_key", None)
    return f"{key}: {first_line(why)}" if key else first_line(why)


def _code_of(why: Exception) -> Code:
    return "unknown-name" if isinstance(why, ConfigKeyError) else "bad-value"
