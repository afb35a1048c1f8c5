"""The table of verbs: help, dispatch, and what is imported for it."""

import argparse
import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from data_pipelines import verbs
from tests.refusals import refused


def test_help_lists_every_verb_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["help"]):
        try:
            verbs.main(words)
        except SystemExit as stop:
            assert stop.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        for verb, (_, about) in verbs.VERBS.items():
            assert f" {verb} {about}" in shown


def test_an_unknown_verb_is_refused_with_the_nearest() -> None:
    with refused("unknown-name", "shards", "did you mean 'shard'"):
        verbs.main(["shards"])
    with refused("unknown-name", "xyzzy", *verbs.VERBS):
        verbs.main(["xyzzy"])


def test_no_verb_prints_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verbs.main([])
    assert stop.value.code == 2
    assert "usage: ppx-data" in capsys.readouterr().err


def a_verb(monkeypatch: pytest.MonkeyPatch, add_arguments: Any) -> list[argparse.Namespace]:
    """A verb `count`; returns what it is run with."""
    seen: list[argparse.Namespace] = []
    module = ModuleType("a_verb")
    module.__dict__.update(add_arguments=add_arguments, run=seen.append)
    monkeypatch.setitem(sys.modules, "a_verb", module)
    monkeypatch.setitem(verbs.VERBS, "count", ("a_verb", "count"))
    return seen


def test_a_verb_runs_its_module_with_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = a_verb(monkeypatch, lambda parser: parser.add_argument("--num", type=int))
    verbs.main(["count", "--num", "3"])
    assert seen == [argparse.Namespace(num=3)]


def test_help_shows_each_default_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--num", type=int, default=0, help="how many")
        parser.add_argument("--share", type=float, default=150.0, help="in %% of all")
        parser.add_argument("--word", default="a", help="which (default: a)")
        parser.add_argument("--quiet", action="store_true", help="say nothing")
        parser.add_argument_group("more").add_argument("--kind", default="50 %", help="inside a group")

    a_verb(monkeypatch, add_arguments)
    with pytest.raises(SystemExit):
        verbs.main(["count", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for part in (
        "how many (default: 0)",
        "in % of all (default: 150)",
        "which (default: a)",
        "a group (default: 50 %)",
    ):
        assert shown.count(part) == 1, part
    assert shown.endswith("inside a group (default: 50 %)") and "say nothing (default" not in shown


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_every_option_of_every_verb_is_explained(verb: str) -> None:
    parser = verbs.VerbParser()
    import_module(verbs.VERBS[verb][0]).add_arguments(parser)
    assert len(parser.arguments) > 1
    unexplained = [action.dest for action in parser.arguments if not action.help]
    assert not unexplained
    assert parser.format_help()  # every help text can be formatted


def test_the_parser_of_all_verbs_imports_no_verb_and_no_heavy_package() -> None:
    code = (
        "import sys, data_pipelines.verbs as v; v.parser().format_help();"
        "heavy = {'torch', 'numpy', 'pydantic', *(m for m, _ in v.VERBS.values())}; print(heavy & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
