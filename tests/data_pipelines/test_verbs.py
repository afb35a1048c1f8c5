import sys
from types import ModuleType

import pytest

from data_pipelines import verbs
from model.errors import UserError


def test_help_lists_every_verb_on_one_line(capsys):
    verbs.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for verb, (_, about) in verbs.VERBS.items():
        assert [line for line in lines if line.split()[:1] == [verb] and line.endswith(about)]


def test_unknown_verb_suggests_the_nearest():
    with pytest.raises(UserError, match="shards: no such verb: did you mean 'shard'"):
        verbs.main(["shards"])
    with pytest.raises(UserError, match="choose one of synth, tokenizer"):
        verbs.main(["xyzzy"])


def test_no_verb_prints_the_help_and_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        verbs.main([])
    assert stop.value.code == 2
    assert "usage: ppx-data VERB" in capsys.readouterr().err


def test_a_verb_runs_its_module_with_the_rest_of_the_line(monkeypatch):
    seen = []
    module = ModuleType("a_verb")
    module.add_arguments = lambda parser: parser.add_argument("--num", type=int)
    module.run = lambda args: seen.append(args.num)
    monkeypatch.setitem(sys.modules, "a_verb", module)
    monkeypatch.setitem(verbs.VERBS, "count", ("a_verb", "count"))
    verbs.main(["count", "--num", "3"])
    assert seen == [3]


def test_importing_the_table_imports_no_verb():
    """Only the chosen verb's dependencies are needed."""
    import subprocess

    code = "import sys, data_pipelines.verbs as v; print([m for m, _ in v.VERBS.values() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
