"""`ppx-data VERB ...`: one module for each verb, which is imported only when its verb runs.

A verb's module has `add_arguments(parser)` and `run(args)`. It raises mistakes of the user as UserError, which the
command that calls `main` prints.
"""

import argparse
import sys
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from model.errors import UserError

VERBS: dict[str, tuple[str, str]] = {
    "synth": ("data_pipelines.writer.synth", "write scripts: customer service or assistant dialogues as text"),
    "tokenizer": ("data_pipelines.writer.tokenizer", "train a SentencePiece tokenizer on scripts"),
    "fetch": ("data_pipelines.speech.engines", "find or check the speech engines"),
    "voices": ("data_pipelines.speech.voices", "list and check clips of voices that may be imitated"),
    "timing": ("data_pipelines.speech.timing_fit", "fit turn taking to calls: gaps, pauses, backchannels"),
    "speak": ("data_pipelines.speech.speak", "speak scripts: two-channel dialogues with word times"),
    "standin": ("data_pipelines.standin.standin", "make a small corpus in Fisher's layout, recorded or synthetic"),
    "fisher": ("data_pipelines.recordings.fisher.importer", "import Fisher English calls"),
    "import": ("data_pipelines.recordings.importer", "import recordings in other data sets' formats"),
    "annotate": ("data_pipelines.recordings.annotate", "write down what audio without a transcript says, word by word"),
    "prompts": ("data_pipelines.roles.prompts", "let a language model write role prompts for real calls"),
    "gate": ("data_pipelines.quality.judge", "judge dialogues: what is heard, who speaks, roles, duplicates, leaks"),
    "shard": ("data_pipelines.shards.encode", "encode dialogues with Mimi and pack them into shards"),
    "index": ("data_pipelines.shards.index", "rebuild the index of shards"),
    "check": ("data_pipelines.quality.check", "verify shards: hashes, index, every sample"),
    "extract": ("data_pipelines.shards.extract", "take one dialogue out of shards as audio and text files"),
    "to-moshi": ("data_pipelines.publish.to_moshi", "export shards in the format of moshi-finetune"),
    "to-hf": ("data_pipelines.publish.to_hf", "export shards as a repository for Hugging Face datasets"),
    "plan": ("data_pipelines.planning.plan", "estimate what a data set costs: cores, GPUs, disk, days"),
    "report": (
        "data_pipelines.quality.report.report",
        "describe shards or dialogues on one page: hours, turns, gates, sound",
    ),
    "make": ("data_pipelines.make", "run a pipeline: several verbs with their options, from one file"),
}


class VerbParser(argparse.ArgumentParser):
    """A parser that imports the module of its verb when it parses words, so that a table of all verbs costs nothing.

    It shows defaults in the help texts of options. `arguments` lists all of its arguments, groups included.
    """

    def __init__(self, *, module: str = "", **options: Any) -> None:
        """`module` has `add_arguments(parser)`; "" for a parser that is filled by hand."""
        self.arguments: list[argparse.Action] = []
        self._module = module
        super().__init__(**options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse; appends the default to the help text."""
        self.arguments.append(super().add_argument(*names, **_with_default(options)))
        return self.arguments[-1]

    def add_argument_group(self, *args: Any, **options: Any) -> Any:
        """As argparse, for a group whose arguments are treated like those of the parser."""
        group = super().add_argument_group(*args, **options)
        add = group.add_argument

        def add_argument(*names: Any, **options: Any) -> argparse.Action:
            self.arguments.append(add(*names, **_with_default(options)))
            return self.arguments[-1]

        group.add_argument = add_argument  # type: ignore[method-assign]
        return group

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """As argparse; the first call adds the arguments of the verb."""
        module, self._module = self._module, ""
        if module:
            import_module(module).add_arguments(self)
        return super().parse_known_args(*args, **options)


def _with_default(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `add_argument` with the default in the help text, unless it is empty or already there."""
    default, text = options.get("default"), options.get("help")
    if (
        text is None
        or "default" in text
        or default is None
        or default is False
        or default in ("", [], argparse.SUPPRESS)
    ):
        return options
    shown = f"{default:g}" if isinstance(default, float) else str(default).replace("%", "%%")
    return options | {"help": f"{text} (default: {shown})"}


def parser() -> VerbParser:
    """The parser of `ppx-data` with all verbs. A verb's module is imported when words of that verb are parsed."""
    table = VerbParser(
        prog="ppx-data",
        description="From text to training shards.",
        epilog="`ppx-data VERB --help` lists the options of one verb.",
    )
    verbs = table.add_subparsers(title="verbs, in the order of use", metavar="VERB")
    for verb, (module, about) in VERBS.items():
        verbs.add_parser(verb, help=about, description=f"{about[0].upper()}{about[1:]}.", module=module)
    return table


def main(argv: list[str] | None = None) -> None:
    """Runs one verb. Raises UserError for an unknown verb and whatever the verb raises; exits 2 without a verb."""
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser().print_help(sys.stderr)
        raise SystemExit(2)
    if words[0] == "help":
        parser().print_help()
        return
    if not words[0].startswith("-"):
        verb_module(words[0])  # refuses an unknown verb in one line that suggests another
    args = parser().parse_args(words)
    verb_module(words[0]).run(args)


def verb_module(verb: str) -> Any:
    """The module of a verb. Raises UserError if there is no such verb."""
    if verb not in VERBS:
        near = get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(VERBS)}"
        raise UserError(f"ppx-data {verb}: no such verb: {hint}", code="unknown-name")
    return import_module(VERBS[verb][0])
