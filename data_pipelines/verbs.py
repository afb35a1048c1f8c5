"""`ppx-data VERB ...`: one module per verb, imported only when its verb runs.

A verb's module has `add_arguments(parser)` and `run(args)`. Errors of the user are raised as UserError; the command
that calls `main` prints them.
"""

import argparse
import sys
from importlib import import_module
from typing import Any

from data_pipelines.arguments import Parser, add_version, complete, completed_words, nearest
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
    "audit": ("data_pipelines.quality.audit", "measure what scripts or dialogues teach, against limits and real calls"),
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
"""Module and purpose of each verb, in the order of use."""


def help_text() -> str:
    """The verbs, one line each."""
    lines = [f"  {verb:<10} {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join(["From text to training shards. Verbs, in the order of use:", "", *lines])


def main(argv: list[str] | None = None, version: str = "unknown") -> int | None:
    """Runs one verb and returns its exit code, None being 0. version: what `--version` prints.

    Raises: UserError for a missing or unknown verb, a wrong option, and whatever the verb raises.
    """
    words = sys.argv[1:] if argv is None else argv
    typed = completed_words()
    if typed is not None:  # a shell that completes words passes them by the environment
        words = typed[1:2]
    if not words or words[0] == "help" or words[0].startswith("-"):
        overview(version).parse_args(["--help"] if words[:1] == ["help"] else words)
        return None
    module, parser = verb_module(words[0]), verb_parser(words[0])
    complete(parser, skip=1)
    code: int | None = module.run(parser.parse_args(words[1:]))
    return code


def overview(version: str) -> Parser:
    """The parser of `ppx-data` without a verb."""
    parser = Parser(
        prog="ppx-data",
        usage="ppx-data VERB ...",
        description=help_text(),
        epilog="`ppx-data VERB --help` lists the options of one verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="what to do")
    add_version(parser, version)
    return parser


def verb_parser(verb: str) -> Parser:
    """The parser of one verb's options. Raises UserError if there is no such verb."""
    module = verb_module(verb)
    about = VERBS[verb][1]
    parser = Parser(prog=f"ppx-data {verb}", description=f"{about[0].upper()}{about[1:]}.")
    module.add_arguments(parser)
    return parser


def verb_module(verb: str) -> Any:
    """The module of a verb. Raises UserError if there is no such verb."""
    if verb not in VERBS:
        hint = nearest(verb, list(VERBS)) or f", choose one of {', '.join(VERBS)}"
        raise UserError(f"ppx-data {verb}: no such verb{hint}", code="unknown-name")
    return import_module(VERBS[verb][0])
