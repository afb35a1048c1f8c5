"""`ppx-data make PIPELINE [key=value ...]`: runs verbs one after the other, with the options that a YAML file gives.

    vars:
      out: data
      num: 1000
    steps:
      - synth: {source: service, num: "${num}", out: "${out}/service.jsonl"}
      - speak: {scripts: "${out}/service.jsonl", out: "${out}/dialogues", workers: 8}

Options have the names of the command line, without dashes in front; other arguments have the names that `--help` shows.
A list gives several values, true sets a flag, null leaves an option out. A step may have `when: VALUE` beside its verb:
the step is left out if VALUE is false, null or empty, or a list that holds such a value. Every step is checked before
the first one runs.
"""

import argparse
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from data_pipelines.arguments import Parser, nearest, refuse_resolvers
from data_pipelines.execution.executor import executor_of
from data_pipelines.verbs import verb_module
from model.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "pipelines"
"""Where the shipped pipelines are, in a checkout as well as in a wheel."""
EVERYWHERE = ("executor", "address", "workers")
"""Settings of the command line that go to every step whose verb has them as options, unless the step sets its own."""


@dataclass(kw_only=True, frozen=True)
class Pipeline:
    """A pipeline file as it is written: its variables, and its steps, in which they are not yet replaced."""

    path: Path
    variables: dict[str, Any]
    steps: list[dict[str, Any]]
    """Each is {VERB: {option: value, ...}} or {VERB: null}, with "when" beside the verb or without."""


@dataclass(kw_only=True, frozen=True)
class Step:
    """One verb with its options, checked by the verb's own parser."""

    verb: str
    words: tuple[str, ...]
    args: argparse.Namespace

    def __str__(self) -> str:
        """The command line of this step."""
        return shlex.join(["ppx-data", self.verb, *self.words])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `ppx-data make`."""
    parser.add_argument("pipeline", help=f"a YAML file of your own, or the name of a shipped one: {_shipped()}")
    parser.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help=f"variables of the file, and {', '.join(EVERYWHERE)} for all steps that have these options",
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the commands")


def run(args: argparse.Namespace) -> None:
    """Runs `ppx-data make`. It stops at the first step that fails; a later run resumes there, as every verb does."""
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
        raise UserError(f"step {number} ({step.verb}): {why}", code=why.code) from why


def plan(name: str, settings: Sequence[str] = ()) -> list[Step]:
    """Reads a pipeline file, or a shipped one by name, applies "key=value" settings, and returns its checked steps.

    Raises: UserError that names the file, step, variable or option that is wrong.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    pipeline = _read(path, name)
    variables, everywhere = dict(pipeline.variables), dict[str, Any]()
    for setting in settings:
        key, value = _setting(setting)
        if key in EVERYWHERE:
            everywhere[key] = value
        elif key in variables:
            variables[key] = value
        else:
            hint = _hint(key, [*variables, *EVERYWHERE])
            raise UserError(f"{setting}: {path.name} has no variable {key!r}{hint}", code="unknown-name")
    steps = [
        _step(f"{path.name}, step {number}", raw, everywhere)
        for number, raw in enumerate(_resolved(pipeline, variables), start=1)
        if _is_wanted(raw.pop("when", True))
    ]
    for key, value in everywhere.items():
        if not any(key in vars(step.args) for step in steps):
            raise UserError(
                f"no step of {path.name} has the option {key}={value}: leave it out", code="bad-combination"
            )
    return steps


def _shipped() -> str:
    return ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def _read(path: Path, name: str) -> Pipeline:
    if not path.is_file():
        raise UserError(
            f"{name} is no pipeline: give a .yaml file or one of {_shipped()}",
            code="not-found" if path.parent != FOLDER else "unknown-name",
        )
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as why:
        raise UserError(f"{path}: not YAML ({' '.join(str(why).split())})", code="unreadable") from why
    if not isinstance(content, dict) or content.keys() - {"vars", "steps"} or not content.get("steps"):
        raise _bad(path, "must hold `steps`, and `vars` if it has any, nothing else")
    pipeline = Pipeline(path=path, variables=content.get("vars") or {}, steps=content["steps"])
    if not isinstance(pipeline.variables, dict) or {"steps", *EVERYWHERE} & pipeline.variables.keys():
        raise _bad(path, f"`vars` must be `name: value` lines, none of them {', '.join(EVERYWHERE)} or steps")
    if not isinstance(pipeline.steps, list) or not all(
        isinstance(step, dict) and len(step.keys() - {"when"}) == 1 for step in pipeline.steps
    ):
        raise _bad(path, "each of `steps` must be `verb: {option: value, ...}`, with `when: ...` or without")
    options = [value for step in pipeline.steps for value in step.values() if isinstance(value, dict)]
    for names in (pipeline.variables, *pipeline.steps, *options):
        for key in names:
            if not isinstance(key, str):  # YAML reads `on`, `yes` and `no` as true and false
                raise _bad(path, f"{key!r} stands where a name should: quote it")
    return pipeline


def _bad(path: Path, what: str) -> UserError:
    return UserError(f"{path}: {what}", code="bad-record")


def _setting(setting: str) -> tuple[str, Any]:
    key, equals, value = setting.partition("=")
    try:
        if equals and key.isidentifier():
            return key, yaml.safe_load(value)
    except yaml.YAMLError as why:
        raise UserError(f"the value of {setting} is not readable as YAML: quote it", code="bad-value") from why
    raise UserError(f"{setting}: write key=value, e.g. workers=4", code="bad-value")


def _resolved(pipeline: Pipeline, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of a pipeline with all ${variables} replaced."""
    name = pipeline.path.name
    refuse_resolvers([pipeline.steps, variables], name)
    try:
        config = OmegaConf.create({**variables, "steps": pipeline.steps})
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as why:
        raise UserError(
            f"{why.full_key} of {name} is not set: add {why.full_key}=... to the command", code="missing-option"
        ) from why
    except OmegaConfBaseException as why:
        reason = str(why).splitlines()[0]
        raise UserError(f"{name}, {why.full_key or 'vars'}: {reason}", code="unknown-name") from why
    return resolved["steps"]  # type: ignore[index, call-overload, return-value]


def _is_wanted(when: Any) -> bool:
    return bool(when) and (not isinstance(when, list) or all(when))


def _step(where: str, raw: dict[str, Any], everywhere: Mapping[str, Any]) -> Step:
    ((verb, options),) = raw.items()
    where = f"{where} ({verb})"
    if verb == "make" or not isinstance(options or {}, dict):
        raise UserError(f"{where}: write `verb: {{option: value, ...}}`, with any verb but make", code="bad-record")
    parser = Parser(prog=where, add_help=False, allow_abbrev=False)
    try:
        verb_module(verb).add_arguments(parser)
        known = parser.options
        given = {name.replace("_", "-"): value for name, value in (options or {}).items()}
        own = {name for name, value in given.items() if value is not None}
        if "executor" in own:
            own.add("address")  # the address of the command line belongs to its executor
        words = tuple(words_of(known, given | {k: v for k, v in everywhere.items() if k in known.keys() - own}))
        args = parser.parse_args(words)
        if "executor" in known:
            executor_of(args)
    except UserError as why:
        what = str(why).removeprefix(where).removeprefix(":").strip()
        raise UserError(f"{where}: {what}", code=why.code) from why
    return Step(verb=verb, words=words, args=args)


def words_of(known: Mapping[str, argparse.Action], options: Mapping[str, Any]) -> Iterator[str]:
    """Yields the words of a command line that set `options`.

    Raises: UserError for a name that is not in `known`, or a value of the wrong kind.
    """
    shown = [name for name, action in known.items() if action.help != argparse.SUPPRESS]
    for name in options:
        if name not in known:
            raise UserError(f"no option {name!r}{_hint(str(name), shown)}", code="unknown-name")
    for name, action in sorted(known.items(), key=lambda item: bool(item[1].option_strings)):  # arguments come first
        value = options.get(name)
        flag = next((word for word in action.option_strings if word.lstrip("-") == name), "")
        values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if value is None:
            continue
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UserError(f"{name} is {value!r}: write true or false", code="bad-value")
            yield from [flag] if value else []
        elif isinstance(value, bool | dict):
            raise UserError(f"{name} is {value!r}: it takes a value, not true or false or a mapping", code="bad-value")
        elif not flag:
            yield from values
        elif len(values) == 1:
            yield f"{flag}={values[0]}"
        elif action.nargs is None:
            raise UserError(f"{name}: it takes one value, not {len(values)}", code="bad-value")
        else:
            yield from (flag, *values)


def _hint(name: str, known: Sequence[str]) -> str:
    return nearest(name, known) or f", there are {', '.join(known)}"
