"""`ppx-data make PIPELINE [key=value ...]`: runs verbs, one after the other, as a YAML file says.

    vars:
      out: data
      num: 1000
    steps:
      - synth: {source: service, num: "${num}", out: "${out}/service.jsonl"}
      - speak: {scripts: "${out}/service.jsonl", out: "${out}/dialogues", workers: 8}

Options have the names of the command line, without dashes; arguments without dashes have the names that `--help` shows.
A list gives several values, true sets a flag, null leaves an option out. A step may say `when: VALUE` beside its verb:
it is left out if VALUE is false, null or empty, or a list that holds such a value. Every step is checked before the
first one runs.
"""

import argparse
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from data_pipelines.execution.executor import executor_of
from data_pipelines.verbs import verb_module
from model.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "pipelines"  # same in a checkout and in a wheel
EVERYWHERE = ("executor", "address", "workers")
"""Settings of the command line that every step gets whose verb knows them, unless it has its own."""


@dataclass(kw_only=True, frozen=True)
class Step:
    """One verb with its options, checked by its own parser."""

    verb: str
    words: tuple[str, ...]
    args: argparse.Namespace

    def __str__(self) -> str:
        return shlex.join(["ppx-data", self.verb, *self.words])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `ppx-data make`."""
    shipped = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
    parser.add_argument("pipeline", help=f"a YAML file of your own, or one that is shipped: {shipped}")
    parser.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help=f"variables of the file, and {', '.join(EVERYWHERE)}",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")


def run(args: argparse.Namespace) -> None:
    """`ppx-data make`. Stops at the first step that fails; a later run goes on there, as every verb is resumable."""
    steps = plan(args.pipeline, args.settings)
    if args.dry_run:
        print("\n".join(map(str, steps)))
        return
    lines: list[str] = []
    began = time.perf_counter()
    try:
        for number, step in enumerate(steps, start=1):
            print(f"== {number} of {len(steps)}: {step}", flush=True)
            started = time.perf_counter()
            lines.append(f"{number} {step.verb:<10} stopped")
            _run_step(number, step)
            lines[-1] = f"{number} {step.verb:<10} {time.perf_counter() - started:8.1f} s"
    finally:
        print("\n".join(["==", *lines, f"{len(steps)} steps {time.perf_counter() - began:11.1f} s"]), flush=True)


def _run_step(number: int, step: Step) -> None:
    try:
        verb_module(step.verb).run(step.args)
    except UserError as why:
        raise UserError(f"step {number} ({step.verb}): {why}") from why


def plan(name: str, settings: Sequence[str] = ()) -> list[Step]:
    """Reads a pipeline file, or a shipped one by name, with "key=value" settings; answers its steps.

    Raises: UserError naming the file, step, variable or option that is wrong.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    content = _read(path, name)
    variables, everywhere = dict(content["vars"]), dict[str, Any]()
    for setting in settings:
        key, value = _setting(setting)
        if key in EVERYWHERE:
            everywhere[key] = value
        elif key in variables:
            variables[key] = value
        else:
            raise UserError(f"{setting}: {path.name} has no variable {key!r}: {_hint(key, [*variables, *EVERYWHERE])}")
    steps = [
        _step(f"{path.name}, step {number}", raw, everywhere)
        for number, raw in enumerate(_resolved(path, variables, content["steps"]), start=1)
        if _is_wanted(raw.pop("when", True))
    ]
    for key, value in everywhere.items():
        if not any(key in vars(step.args) for step in steps):
            raise UserError(f"{key}={value}: no step of {path.name} has this option: leave it out")
    return steps


def _read(path: Path, name: str) -> dict[str, Any]:
    if not path.is_file():
        shipped = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise UserError(f"{name}: no such pipeline: give a .yaml file or one of {shipped}")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as why:
        raise UserError(f"{path}: not YAML ({' '.join(str(why).split())})") from why
    if not isinstance(content, dict) or content.keys() - {"vars", "steps"} or not content.get("steps"):
        raise UserError(f"{path}: must hold `steps`, and `vars` if it has any, nothing else")
    content = {"vars": content.get("vars") or {}, "steps": content["steps"]}
    if not isinstance(content["vars"], dict) or {"steps", *EVERYWHERE} & content["vars"].keys():
        raise UserError(f"{path}: `vars` must be `name: value` lines, none of them {', '.join(EVERYWHERE)} or steps")
    if not isinstance(content["steps"], list) or not all(
        isinstance(step, dict) and len(step.keys() - {"when"}) == 1 for step in content["steps"]
    ):
        raise UserError(f"{path}: each of `steps` must be `verb: {{option: value, ...}}`, with `when: ...` or without")
    options = [value for step in content["steps"] for value in step.values() if isinstance(value, dict)]
    for names in (content["vars"], *content["steps"], *options):
        for name in names:
            if not isinstance(name, str):  # YAML reads on, yes and no as true and false
                raise UserError(f"{path}: {name!r} stands where a name should: quote it")
    return content


def _setting(setting: str) -> tuple[str, Any]:
    key, equals, value = setting.partition("=")
    try:
        if equals and key.isidentifier():
            return key, yaml.safe_load(value)
    except yaml.YAMLError as why:
        raise UserError(f"{setting}: the value is not readable as YAML: quote it") from why
    raise UserError(f"{setting}: write key=value, e.g. workers=4")


def _resolved(path: Path, variables: Mapping[str, Any], steps: list[Any]) -> list[dict[str, Any]]:
    """The steps with all ${variables} replaced."""
    try:
        config = OmegaConf.create({**variables, "steps": steps})
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as why:
        raise UserError(f"{path.name}: {why.full_key} is not set: add {why.full_key}=... to the command") from why
    except OmegaConfBaseException as why:
        raise UserError(f"{path.name}: {why.full_key or 'vars'}: {str(why).splitlines()[0]}") from why
    return resolved["steps"]  # type: ignore[index, call-overload, return-value]


def _is_wanted(when: Any) -> bool:
    return bool(when) and (not isinstance(when, list) or all(when))


def _step(where: str, raw: dict[str, Any], everywhere: Mapping[str, Any]) -> Step:
    ((verb, options),) = raw.items()
    where = f"{where} ({verb})"
    if verb == "make" or not isinstance(options or {}, dict):
        raise UserError(f"{where}: write `verb: {{option: value, ...}}`, with any verb but make")
    parser = _Parser(where)
    try:
        verb_module(verb).add_arguments(parser)
        actions = actions_of(parser)
        given = {name.replace("_", "-"): value for name, value in (options or {}).items()}
        own = {name for name, value in given.items() if value is not None}
        if "executor" in own:
            own.add("address")  # the address of the command line belongs to its executor
        words = tuple(words_of(actions, given | {k: v for k, v in everywhere.items() if k in actions.keys() - own}))
        args = parser.parse_args(words)
        if "executor" in actions:
            executor_of(args)
    except UserError as why:
        raise UserError(f"{where}: {str(why).removeprefix(f'{where}: ')}") from why
    return Step(verb=verb, words=words, args=args)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are UserErrors. Its parsers of subcommands are of the same kind."""

    def __init__(self, where: str = "", **kwargs: Any) -> None:
        super().__init__(prog=where, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message.replace("\n", " "))


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Options by name without dashes, and arguments by name; arguments first, in their order."""
    actions = sorted(parser._actions, key=lambda action: bool(action.option_strings))
    return {name.lstrip("-"): action for action in actions for name in action.option_strings or [action.dest]}


def words_of(actions: Mapping[str, argparse.Action], options: Mapping[str, Any]) -> Iterator[str]:
    """The words of a command line. Raises UserError for a name that is none of `actions`, or a value that cannot be."""
    for name in options:
        if name not in actions:
            raise UserError(f"no option {name!r}: {_hint(str(name), list(actions))}")
    for name, action in actions.items():
        value = options.get(name)
        flag = next((word for word in action.option_strings if word.lstrip("-") == name), "")
        values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if value is None:
            continue
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{name}: {value}: write true or false")
            yield from [flag] if value else []
        elif isinstance(value, bool | dict):
            raise UserError(f"{name}: {value}: it takes a value, not true or false or a mapping")
        elif not flag:
            yield from values
        elif len(values) == 1 or isinstance(action, argparse._AppendAction):
            yield from (f"{flag}={item}" for item in values)
        elif action.nargs is None:
            raise UserError(f"{name}: it takes one value, not {len(values)}")
        else:
            yield from (flag, *values)


def _hint(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
