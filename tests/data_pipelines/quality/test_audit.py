"""`ppx-data audit`: the verb on scripts, dialogues and shards, its limits, its exit code and its one-line errors."""

import json
from pathlib import Path

import pytest

from data_pipelines import verbs
from data_pipelines.quality.audit import audit, talks
from data_pipelines.quality.limits import load_limits
from data_pipelines.quality.teaching.measures import FOLDER, MEASURES, AuditLimits
from data_pipelines.records.schema import Script
from data_pipelines.shards.encode import build_shards
from data_pipelines.writer.synth import write_scripts
from model.errors import Code
from tests.data_pipelines.tiny_dialogues import TinyCodec, words_every, write_dialogue
from tests.refusals import refused


def write(path: Path, scripts: list[Script]) -> Path:
    path.write_text("".join(script.to_json() + "\n" for script in scripts), "utf-8")
    return path


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("audit") / "service.jsonl", write_scripts("service", num=60, seed=4))


def no_limits() -> list[str]:
    return ["--set", *(f"{name}=null" for name in MEASURES)]


def test_todays_writer_fails_and_each_limit_names_a_remedy(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.main(["audit", str(scripts)]) == 1
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if line and "FAILS" in line}
    lines = [line for line in out.splitlines() if line.startswith("service: ") and " holds: " in line]
    assert {line.split()[1] for line in lines} == set(rows) and len(lines) > 5
    assert any(line.startswith("service: prompt_longest is ") and line.endswith("15 to 300 words") for line in lines)
    assert "service: not measured: no timing: speak the scripts first: " in out
    assert "takeover_all_0_5" not in rows


def test_without_limits_all_is_well_and_the_figures_are_written_once(
    scripts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "audit.json"
    for _ in range(2):
        assert verbs.main(["audit", str(scripts), "--json", str(path), *no_limits()]) == 0
    content = json.loads(path.read_text())["sources"]["service"]
    assert content["count"] == 60 and content["breaches"] == [] and set(content["measures"]) == set(MEASURES)
    with refused("exists", str(path)):
        verbs.main(["audit", str(scripts), "--json", str(path)])


def test_one_limit_decides_the_exit_code(scripts: Path) -> None:
    assert verbs.main(["audit", str(scripts), *no_limits(), "prompt_longest=[0,500]"]) == 0
    assert verbs.main(["audit", str(scripts), *no_limits(), "prompt_longest=[500,null]"]) == 1


def test_shares_of_question_kinds_are_those_of_the_scripts(tmp_path: Path) -> None:
    written = write_scripts("service", num=40, seed=8)
    values = audit(talks([write(tmp_path / "s.jsonl", written)]))["service"].values
    for n in range(7):
        held = sum(any(probe.kind == f"Q{n}" for probe in script.probes) for script in written)
        assert values[f"q{n}"].value == pytest.approx(held / 40)


def test_a_folder_holds_every_source_of_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in ("service", "assistant"):
        write(tmp_path / f"{source}.jsonl", write_scripts(source, num=6, seed=1))
    verbs.main(["audit", str(tmp_path)])
    out = capsys.readouterr().out
    assert "assistant (6)" in out and "service (6)" in out
    assert "assistant: not measured: the source marks no questions (probes): q0, q1" in out


def test_dialogues_and_their_shards_give_the_same_figures(tmp_path: Path) -> None:
    for n in range(4):
        sides = {"left": words_every(6.0, 0.1 + n / 10), "right": words_every(6.0, 1.0, step=0.9)}
        write_dialogue(tmp_path / "d", f"a-{n}", seconds=6.0, words=sides, split="heldout" if n == 3 else "train")
    build_shards([tmp_path / "d"], TinyCodec(), tmp_path / "shards")
    folders, shards = audit(talks([tmp_path / "d"])), audit(talks([tmp_path / "shards"]))
    assert folders == shards
    assert folders["service"].values["overlap"].value is not None


@pytest.mark.parametrize("words, code, names", [
    (["nowhere"], "not-found", ["nowhere"]),
    (["empty"], "no-data", ["empty"]),
    (["bad.jsonl"], "bad-record", ["bad.jsonl:1"]),
    (["good.jsonl", "--set", "pause=3"], "bad-value", ["pause"]),
    (["good.jsonl", "--set", "pause=[3]"], "bad-value", ["pause: [3.0] is no range", "[least, most]"]),
    (["good.jsonl", "--set", "pause=[3,2]"], "bad-value", ["pause: [3.0, 2.0] is no range"]),
    (["good.jsonl", "--set", "pause=[.nan,2]"], "bad-value", ["pause=nan"]),
    (["good.jsonl", "--set", "pauses=[1,2]"], "unknown-name", ["did you mean 'pause'"]),
    (["good.jsonl", "--gates", "calls"], "unknown-name", ["conversation, default"]),
    (["good.jsonl", "--tokenizer", "none.model"], "not-found", ["none.model"]),
])  # fmt: skip
def test_a_mistake_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Path, words: list[str], code: Code, names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text("{}\n")
    (tmp_path / "good.jsonl").write_bytes(scripts.read_bytes())
    with refused(code, *names):
        verbs.main(["audit", *words])


def test_dialogues_that_gates_reject_are_left_out(tmp_path: Path) -> None:
    for n in range(2):
        write_dialogue(tmp_path, f"a-{n}")
    gates = {"format": 1, "values": {}, "rejected": ["silence: 9 s"], "limits": {}, "engines": {}}
    (tmp_path / "a-0" / "gates.json").write_text(json.dumps(gates))
    assert audit(talks([tmp_path]))["service"].count == 1
    (tmp_path / "a-1" / "gates.json").write_text(json.dumps(gates))
    with refused("no-data", str(tmp_path), "rejected by its gates"):
        verbs.main(["audit", str(tmp_path)])


def test_shipped_limits_are_layers_over_the_default() -> None:
    default, casual = (load_limits(name, [], AuditLimits, FOLDER) for name in ("default", "conversation"))
    assert default.takeover_all_0_5 == [None, 0.5] == casual.takeover_all_0_5
    assert default.backchannels != casual.backchannels and casual.facts is None
    for measure, real in (("pause", 5.5), ("gap", 4.4), ("overlap", 3.6), ("turn_words_user", 10)):
        assert getattr(default, measure) == pytest.approx([0.75 * real, 1.25 * real], abs=0.05)
