"""`ppx-data make`: pipelines in files."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from data_pipelines import verbs
from data_pipelines.arguments import Parser
from data_pipelines.make import FOLDER, plan, words_of
from model.errors import Code, UserError
from tests.data_pipelines.kill import tree
from tests.ppx_train.fixtures import make_codec
from tests.refusals import refused

SMALL = """
vars:
  out: data
  num: 3
  codec: ???
steps:
  - synth: {source: service, num: "${num}", max_seconds: 20, out: "${out}/scripts.jsonl"}
  - speak:
      scripts: ${out}/scripts.jsonl
      engine: espeak
      voice-seconds: 3.2
      limit: null
      out: ${out}/dialogues
  - shard: {dialogues: ["${out}/dialogues"], codec: "${codec}", workers: 1, out: "${out}/shards"}
  - check: {shards: "${out}/shards"}
"""
SYNTHETIC = "synth synth speak speak gate shard check report"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command for SMALL, in a folder that holds its codec."""
    monkeypatch.chdir(tmp_path)
    make_codec(tmp_path / "codec.safetensors")
    Path("small.yaml").write_text(SMALL)
    return ["make", "small.yaml", "codec=codec.safetensors"]


def test_a_pipeline_gives_what_its_verbs_give_one_by_one(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    verbs.main([*small, "num=2"])
    out = capsys.readouterr().out
    assert "== 2 of 4: ppx-data speak --scripts=data/scripts.jsonl" in out
    assert re.search(r"==\n1 synth +[\d.]+ s\n2 speak +[\d.]+ s\n3 shard +[\d.]+ s\n4 check +[\d.]+ s\n4 steps", out)
    made = tree(tmp_path / "data")
    verbs.main([*small, "num=2"])
    assert tree(tmp_path / "data") == made and "nothing to do" in capsys.readouterr().out
    verbs.main([*small, "num=2", "out=other", "--dry-run"])
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 4 and not Path("other").exists()
    for command in commands:
        verbs.main(shlex.split(command)[1:])
    assert tree(tmp_path / "other") == made


def test_it_stops_at_the_first_step_that_fails_and_resumes_there_later(
    small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("espeakng_loader")
    Path("codec.safetensors").rename("moved.safetensors")
    with pytest.raises(UserError, match=r"^step 3 \(shard\): codec=codec.safetensors: no such file"):
        verbs.main(small)
    assert re.search(r"2 speak +[\d.]+ s\n3 shard +stopped\n4 steps", capsys.readouterr().out)
    assert not Path("data/shards").exists()
    Path("moved.safetensors").rename("codec.safetensors")
    verbs.main(small)
    assert "0 dialogues" not in capsys.readouterr().out and Path("data/shards/manifest.json").is_file()


def test_executor_address_and_workers_go_to_all_steps_that_know_them_and_have_no_own(small: list[str]) -> None:
    steps = plan("small.yaml", ["codec=c", "executor=ray", "address=local", "workers=4"])
    synth, speak, shard, check = steps
    assert (speak.args.executor, speak.args.address, speak.args.workers) == ("ray", "local", 4)
    assert (shard.args.executor, shard.args.address, shard.args.workers) == ("ray", "local", 1)
    assert not {"executor", "workers"} & (vars(synth.args).keys() | vars(check.args).keys())
    own = "{scripts: a, out: b, executor: local, workers: null}"
    Path("own.yaml").write_text(f"steps:\n- speak: {own}\n- speak: {{scripts: a, out: c}}\n")
    first, second = plan("own.yaml", ["executor=ray", "address=auto", "workers=3"])
    assert (first.args.executor, first.args.address, first.args.workers) == ("local", "", 3)
    assert (second.args.executor, second.args.address, second.args.workers) == ("ray", "auto", 3)


@pytest.mark.parametrize(
    ("settings", "verbs_of"),
    [
        (["service"], "synth speak gate shard check report"),
        (["assistant", "executor=ray", "device=cuda", "encode_gpus=0.5"], "synth speak gate shard check report"),
        (["fisher", "corpus=[a,b]"], "fisher gate shard check report"),
        (["fisher", "corpus=a", "llm_model=m"], "fisher prompts gate shard check report"),
        (["mix", "llm_model=m"], SYNTHETIC),
        (["mix", "corpus=a"], f"{SYNTHETIC} fisher gate shard check report"),
        (["mix", "corpus=[a,b]", "llm_model=m"], f"{SYNTHETIC} fisher prompts gate shard check report"),
    ],
)  # fmt: skip
def test_shipped_pipelines_are_understood(settings: list[str], verbs_of: str) -> None:
    assert " ".join(step.verb for step in plan(settings[0], settings[1:])) == verbs_of


def test_every_variable_of_a_shipped_pipeline_is_used_and_explained() -> None:
    for path in FOLDER.glob("*.yaml"):
        head, steps = path.read_text().split("\nsteps:\n")
        for name in yaml.safe_load(head)["vars"]:
            assert f"${{{name}}}" in steps, f"{path.name}: {name} has no effect"
        assert head.count("#") > 8


@pytest.mark.parametrize(
    ("text", "settings", "code", "names"),
    [
        ("steps: [{speek: {}}]", [], "unknown-name", ["p.yaml, step 1 (speek)", "did you mean 'speak'"]),
        ("steps: [{index: {shard: x}}]", [], "unknown-name", ["step 1 (index)", "'shard'", "did you mean 'shards'"]),
        ("steps: [{index: }]", [], "missing-option", ["step 1 (index)", "SHARDS"]),
        ("steps: [{index: {shards: [a, b]}}]", [], "unknown-name", ["step 1 (index)", "'b'"]),
        ("steps: [{speak: {scripts: a, out: [b, c]}}]", [], "bad-value", ["step 1 (speak)", "out", "not 2"]),
        ("steps: [{speak: {scripts: a, out: true}}]", [], "bad-value", ["step 1 (speak)", "out is True"]),
        ("steps: [{fetch: {engine: kokoro, check: 3}}]", [], "bad-value", ["step 1 (fetch)", "check is 3"]),
        ("steps: [{fetch: {engine: dog}}]", [], "bad-value", ["step 1 (fetch)", "engine", "'dog'"]),
        ("steps: [{make: {pipeline: x}}]", [], "bad-record", ["step 1 (make)"]),
        ("steps: [{index: [x]}]", [], "bad-record", ["step 1 (index)", "verb: {option: value, ...}"]),
        ("steps: [{index: {shards: '${x}'}}]", [], "unknown-name", ["steps[0].index.shards", "'x'"]),
        ("vars: {x: '???'}\nsteps: [{index: {shards: '${x}'}}]", [], "missing-option", ["add x=... to the command"]),
        ("steps: [{index: {shards: x}}]", ["y=1"], "unknown-name", ["y=1", "p.yaml"]),
        ("steps: [{index: {shards: x}}]", ["workers"], "bad-value", ["workers", "key=value"]),
        ("steps: [{index: {shards: x}}]", ["workers=[1"], "bad-value", ["workers=[1"]),
        ("steps: [{index: {shards: x}}]", ["workers=2"], "bad-combination", ["workers=2", "p.yaml"]),
        ("vars: {workers: 2}\nsteps: [{index: {shards: x}}]", [], "bad-record", ["p.yaml", "`vars`", "workers"]),
        ("vars: {1: 2}\nsteps: [{index: {shards: x}}]", ["y=1"], "bad-record", ["p.yaml", "1 stands"]),
        ("steps: [{index: {on: x}}]", [], "bad-record", ["p.yaml", "True stands"]),
        ("steps: [{3: {}}]", [], "bad-record", ["p.yaml", "3 stands"]),
        ("vars: {a: 2}", [], "bad-record", ["p.yaml", "`steps`"]),
        ("steps: [{index: {}, check: {}}]", [], "bad-record", ["p.yaml", "each of `steps`"]),
        ("steps: [index]", [], "bad-record", ["p.yaml", "each of `steps`"]),
        ("steps: [", [], "unreadable", ["p.yaml"]),
        ("steps: [{index: {shards: '${oc.env:HOME}'}}]", [], "unsafe", ["p.yaml", "${oc.env:HOME}"]),
        ("vars: {x: a}\nsteps: [{index: {shards: '${x}'}}]", ["x=${oc.env:HOME}"], "unsafe", ["${oc.env:HOME}"]),
        ("steps: [{index: {shards: a}, when: '${oc.env:HOME}'}]", [], "unsafe", ["${oc.env:HOME}"]),
        ("steps: [{speak: {scripts: a, out: b, gpus: 1}}]", [], "bad-combination", ["step 1 (speak)", "--gpus"]),
        ("steps: [{speak: {scripts: a, out: b}}]", ["executor=slurm"], "bad-value", ["step 1 (speak)", "'slurm'"]),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    tmp_path: Path, text: str, settings: list[str], code: Code, names: list[str]
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with refused(code, *names):
        plan(str(tmp_path / "p.yaml"), settings)


def test_an_unknown_pipeline_is_refused_with_the_shipped_ones() -> None:
    with refused("unknown-name", "nowhere", *(path.stem for path in FOLDER.glob("*.yaml"))):
        plan("nowhere")
    with refused("not-found", "nowhere.yaml"):
        plan("nowhere.yaml")


def test_options_become_the_words_that_argparse_reads_back() -> None:
    parser = Parser()
    parser.add_argument("--many", nargs="+")
    parser.add_argument("--level", type=float)
    parser.add_argument("what", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument_group("looks").add_argument("--colour", action=argparse.BooleanOptionalAction)
    known = parser.options
    options = {"many": ["a", "b c"], "level": -60.5, "what": ["x", 1], "quick": True}
    args = parser.parse_args(list(words_of(known, options | {"no-colour": True})))
    assert vars(args) == {
        "many": ["a", "b c"], "level": -60.5, "what": ["x", "1"], "quick": True, "colour": False
    }  # fmt: skip
    assert list(words_of(known, {"quick": False, "level": None, "what": "one"})) == ["one"]
