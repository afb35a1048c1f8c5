"""The parser of all commands: mistakes are one line with a code."""

import argparse

import pytest

from data_pipelines import verbs
from data_pipelines.arguments import Parser, add_old_flag, option_flags
from tests.refusals import refused


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="ppx-thing")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files to read")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--layout", choices=("flat", "deep"), default="flat", help="how it is laid out")
    group = parser.add_argument_group("size")
    group.add_argument("--max-seconds", type=float, default=60.0, help="longest file in seconds")
    add_old_flag(parser, "--seconds", "--max-seconds")
    return parser


def test_what_is_right_is_read(parser: Parser) -> None:
    args = parser.parse_args(["a", "b", "--out", "o", "--max-seconds", "3"])
    assert vars(args) == {"files": ["a", "b"], "out": "o", "layout": "flat", "max_seconds": 3.0}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("a", "missing-option", "ppx-thing: --out must be given, see `ppx-thing --help`"),
        ("--out o", "missing-option", "ppx-thing: FILE must be given, see `ppx-thing --help`"),
        ("a --out", "missing-option", "ppx-thing --out: expected one argument"),
        ("a --out o --max-second 3 --max-secnds 3", "unknown-name", "no option --max-secnds, did you mean '--max-sec"),
        ("a --out o --xyz 3", "unknown-name", "ppx-thing: no option --xyz, see `ppx-thing --help`"),
        ("a --out o --layout wide", "bad-value", "ppx-thing --layout: invalid choice 'wide' (choose from "),
        ("a --out o --max-seconds many", "bad-value", "ppx-thing --max-seconds: invalid float value 'many'"),
        ("a --out o --seconds 7", "old-form", "--seconds 7: is written --max-seconds 7 now"),
    ],
)
def test_a_mistake_is_one_line_with_its_code(parser: Parser, words: str, code: str, message: str) -> None:
    with refused(code, message):  # type: ignore[arg-type]
        parser.parse_args(words.split())


def test_a_word_that_nothing_takes_is_named() -> None:
    with refused("unknown-name", "ppx-thing: nothing takes 'out=x', see `ppx-thing --help`"):
        Parser(prog="ppx-thing").parse_args(["out=x"])


def test_options_that_exclude_each_other_are_refused() -> None:
    parser = Parser(prog="ppx-thing")
    either = parser.add_mutually_exclusive_group(required=True)
    either.add_argument("--one")
    either.add_argument("--other")
    with refused("bad-combination", "--other", "--one"):
        parser.parse_args(["--one", "1", "--other", "2"])
    with refused("missing-option", "--one --other must be given"):
        parser.parse_args([])


def test_options_of_a_subcommand_are_suggested() -> None:
    parser = Parser(prog="ppx-thing")
    parser.add_subparsers(required=True, metavar="VERB").add_parser("turn").add_argument("--model")
    with refused("missing-option", "ppx-thing: VERB must be given"):
        parser.parse_args([])
    with refused("unknown-name", "did you mean '--model'?"):
        parser.parse_args(["turn", "--modle", "a"])


def test_old_options_are_not_in_the_help(parser: Parser) -> None:
    assert "--seconds SECONDS" not in parser.format_help().replace("--max-seconds", "")
    assert "--seconds" not in option_flags(parser.options.values())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("check shards --asr 4", "--asr-samples 4"),
        ("check shards --asr-samples 4 --asr-model large-v3", "--asr large-v3"),
        ("check shards --codec small --again 2", "--codec-samples 2"),
        ("speak --scripts a --out b --voice-prompt clip", "--voice-prompt-from clip"),
        ("speak --scripts a --out b --model weights", "--engine-model weights"),
        ("voices clips --out b --speakers s.csv", "--speaker-table s.csv"),
        ("plan --speech espeak", "--engine espeak"),
        ("plan --codec small", "--codec-size small"),
        ("plan --cores 8", "--cores-per-machine 8"),
        ("plan --gpus 1", "--gpus-per-machine 1"),
    ],
)
def test_options_that_have_another_name_now_are_refused_with_it(old: str, new: str) -> None:
    with refused("old-form", old.partition(" --")[2].split()[-1], f"is written {new} now"):
        verbs.main(old.split())


def test_an_option_that_takes_a_value_takes_one_in_every_verb() -> None:
    takes_value: dict[str, dict[bool, str]] = {}
    for verb in verbs.VERBS:
        for name, action in verbs.verb_parser(verb).options.items():
            if action.option_strings and action.help != argparse.SUPPRESS:
                takes_value.setdefault(name, {})[action.nargs != 0] = verb
    assert not {name: of_verb for name, of_verb in takes_value.items() if len(of_verb) > 1}
