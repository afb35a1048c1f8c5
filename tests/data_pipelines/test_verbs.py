"""`ppx-data VERB`: the table of verbs and what becomes of a command line."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from data_pipelines import verbs
from tests.refusals import refused


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_verb_on_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verbs.main(words)
    assert not stop.value.code
    lines = capsys.readouterr().out.splitlines()
    for verb, (_, about) in verbs.VERBS.items():
        assert [line for line in lines if line.split()[:1] == [verb] and line.endswith(about)]


def test_an_unknown_verb_suggests_the_nearest() -> None:
    with refused("unknown-name", "ppx-data shards: no such verb, did you mean 'shard'?"):
        verbs.main(["shards"])
    with refused("unknown-name", "choose one of synth, tokenizer"):
        verbs.main(["xyzzy"])


def test_no_verb_is_one_line_that_names_the_help() -> None:
    with refused("missing-option", "ppx-data: VERB must be given, see `ppx-data --help`"):
        verbs.main([])


def test_the_version_is_the_one_that_the_command_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        verbs.main(["--version"], version="1.2.3")
    assert not stop.value.code and capsys.readouterr().out == "ppx-train 1.2.3\n"


def test_a_verb_runs_its_module_with_the_rest_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    module = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--num", type=int),
        run=lambda args: seen.append(args.num),
    )
    monkeypatch.setitem(sys.modules, "a_verb", module)  # type: ignore[arg-type]
    monkeypatch.setitem(verbs.VERBS, "count", ("a_verb", "count"))
    verbs.main(["count", "--num", "3"])
    assert seen == [3]


def test_importing_the_table_imports_no_verb() -> None:
    """Only the chosen verb's dependencies are needed."""
    code = "import sys, data_pipelines.verbs as v; print([m for m, _ in v.VERBS.values() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
