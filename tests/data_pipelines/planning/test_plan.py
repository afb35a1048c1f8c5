"""Costs of data sets: closed forms by hand, unknown rates shown as such, rates measured for real."""

import importlib.util
import math
from pathlib import Path

import pytest
import yaml

from data_pipelines import verbs
from data_pipelines.planning import measured as measuring
from data_pipelines.planning.plan import Choice, PlannedCorpus, published, stages, table
from data_pipelines.planning.rates import SHIPPED, UNITS, Rates, load_rates
from model.errors import Code
from tests.refusals import refused

KNOWN = {
    "write_template": 1000, "speak_kokoro": 4, "gate": 20, "encode_full": 10, "pack": 200, "script_size": 2.5,
    "audio_synthetic": 100, "record": 1, "voice_clip": 100, "index_row": 100,
}  # fmt: skip
SERVICE = PlannedCorpus(name="service", kind="service", dialogues=3_600_000, hours=72_000)


def rates(**more: float | None) -> Rates:
    """KNOWN with other values; None stands for one that was not measured."""
    made = Rates(machine="a machine")
    for name, value in (KNOWN | more).items():
        if value is not None:
            made.measured(name, value, "by hand")
    return made


def test_hours_days_and_disk_are_amounts_over_rates() -> None:
    write, speak, gate, encode, pack = stages(SERVICE, rates(), Choice(machines=3, cores=8))
    assert write.cpu_hours == write.wall_hours == 1  # 3.6 million scripts at 1000 a second, one process
    assert write.writes_gb == pytest.approx(9)
    assert (speak.cpu_hours, gate.cpu_hours, encode.cpu_hours) == (18_000, 3600, 7200)
    assert (speak.wall_hours, gate.wall_hours, encode.wall_hours) == (750, 150, 300)  # on 24 cores
    folders = 72_000 * 0.101 + 3.6 * 0.1 * 1000  # audio and records by the hour, clips by the dialogue
    assert speak.writes_gb == pytest.approx(folders)
    codes = 72_000 * 16 * 12.5 * 3600 * 2 / 1e9
    assert encode.writes_gb == pytest.approx(codes)
    kept = folders + codes + 3.6 * 6 + 3.6 * 0.1
    assert pack.writes_gb == pytest.approx(kept)
    assert pack.cpu_hours == pytest.approx(kept * 1000 / 200 / 3600)
    assert pack.wall_hours == pytest.approx(kept * 1000 / 200 / 3600 / 3)  # one process on each machine
    assert not any(stage.gpu_hours for stage in (write, speak, gate, encode, pack))


def test_what_was_not_measured_is_said_and_left_out_of_the_sum() -> None:
    made = stages(SERVICE, rates(speak_kokoro=None), Choice())
    assert made[1].cpu_hours is None
    text = table(SERVICE, made, Choice())
    (speak,) = [line for line in text.splitlines() if line.startswith("  speak")]
    assert "not measured" in speak and speak.split()[-4:-1] == ["?", "-", "?"]
    (total,) = [line for line in text.splitlines() if line.startswith("  sum")]
    assert total.split()[1].endswith("+?") and total.split()[1].startswith("10,8")
    assert "?: something is not measured in speak, and left out of the sum" in text
    assert "not measured" not in table(SERVICE, stages(SERVICE, rates(), Choice()), Choice())


def test_calls_have_two_agents_in_each_window_and_no_script() -> None:
    call = published(10)[0]
    assert call.hours == 1217 and call.agent_sides == 2 and call.dialogues == round(1217 * 3600 / 140)
    made = stages(call, rates(fisher_read=500, fisher_align=40, audio_call=90), Choice())
    assert [stage.name for stage in made] == [
        "fisher: read, resample", "fisher: align, cut", "gate", "shard: encode", "shard: pack, index"
    ]  # fmt: skip
    assert made[1].cpu_hours == pytest.approx(1217 / 40)


def test_the_scaled_up_set_has_the_mean_length_of_the_published_one() -> None:
    corpus = published(10_000_000)[-1]
    assert corpus.dialogues == 10_000_000
    assert corpus.hours * 3600 / corpus.dialogues == pytest.approx(62.84, abs=0.01)


def test_a_language_model_costs_tokens_money_and_gpus_where_these_are_known() -> None:
    choice = Choice(writer="llm", gpus=2, price_input=0.5, price_output=2.0)
    known = rates(script_prompt_tokens=1000, script_answer_tokens=500, llm_gpu=2500)
    write = stages(SERVICE, known, choice)[0]
    assert write.gpu_hours == 200 and write.wall_hours == 100
    assert write.notes == ["3,600 million tokens in, 1,800 million out, cost 5,400"]
    unknown = stages(SERVICE, rates(), choice)[0]
    assert unknown.gpu_hours is None and "tokens not measured" in unknown.notes[0]


def test_gpus_are_counted_apart_from_cores() -> None:
    choice = Choice(machines=2, cores=10, gpus=4, encode_on="gpu")
    encode = stages(SERVICE, rates(encode_full_gpu=900), choice)[3]
    assert (encode.cpu_hours, encode.gpu_hours, encode.wall_hours) == (0, 80, 10)


def test_the_shipped_rates_say_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    shipped = load_rates(SHIPPED)
    stated = yaml.safe_load(SHIPPED.read_text())["rates"]
    assert stated.keys() == UNITS.keys()
    for name, unit in UNITS.items():
        assert (shipped[name] is None) == (shipped.rates[name].source == "not measured")
        assert stated[name]["unit"] == shipped.rates[name].unit == unit
    verbs.main(["plan", "--machines", "2", "--cores-per-machine", "32"])
    out = capsys.readouterr().out
    for line in ("service: 105,410 dialogues, 1,840 h", "assistant: 39,322 dialogues, 410 h", "10,000,000 dialogues"):
        assert line in out
    assert "7,303 calls" in out and "on 2 x (32 cores, 0 GPUs)" in out


@pytest.mark.parametrize(
    ("text", "code", "names"),
    [
        ("rates: [1, 2]", "unreadable", ["rates:"]),
        ("rates: {speak_kokro: {value: 3}}", "unknown-name", ["'speak_kokro'", "did you mean 'speak_kokoro'"]),
        ("rates: {gate: {value: -1}}", "bad-value", ["gate is -1", "x real time"]),
        ("rates: {gate: {vale: 3}}", "bad-record", ["gate: vale"]),
        ("rates: {gate: .inf}", "bad-value", ["gate is inf"]),
        ("rates: {gate: fast}", "bad-record", ["gate", "'fast'"]),
        ("rates: {gate: true}", "bad-record", ["gate", "True"]),
        ("rates: {gate: 2026-01-01}", "bad-record", ["gate"]),
        ("rates: {pack: {value: 3, unit: GB/s}}", "bad-value", ["pack", "'GB/s'", "MB/s"]),
        ("rates: {", "unreadable", ["rates:"]),
    ],
)
def test_wrong_rates_are_refused(tmp_path: Path, text: str, code: Code, names: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with refused(code, tmp_path / "r.yaml", *names):
        verbs.main(["plan", "--rates", str(tmp_path / "r.yaml")])


def test_a_rate_may_be_a_plain_number_or_null(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("rates: {gate: 20, pack: null}")
    read = load_rates(tmp_path / "r.yaml")
    assert read["gate"] == 20 and read["pack"] is read["llm_gpu"] is None and read.num_measured() == 1


@pytest.mark.parametrize(
    ("argv", "code", "names"),
    [
        (["--rates", "nowhere.yaml"], "not-found", ["nowhere.yaml", "`ppx-data plan --measure nowhere.yaml`"]),
        (["--rates", "a.yaml", "--measure", "b.yaml"], "bad-combination", ["--rates a.yaml", "--measure b.yaml"]),
        (["--machines", "0"], "bad-value", ["--machines 0"]),
        (["--encode-on", "gpu"], "missing-option", ["--encode-on gpu", "--gpus-per-machine"]),
        (
            ["--encode-on", "gpu", "--gpus-per-machine", "1", "--codec-size", "small"],
            "bad-combination",
            ["small codec"],
        ),
        (["--llm-price-input", "1"], "bad-combination", ["--llm-price-input", "--writer llm"]),
        (["--writer", "llm", "--llm-price-output", "-1"], "bad-value", ["--llm-price-output -1"]),
    ],
)
def test_options_that_cannot_be_used_are_refused(argv: list[str], code: Code, names: list[str]) -> None:
    with refused(code, *names):
        verbs.main(["plan", *argv])


def test_rates_are_saved_and_read_back(tmp_path: Path) -> None:
    made = rates()
    made.measured("gate", 12.3456, "two dialogues")
    made.save(tmp_path / "r.yaml")
    again = load_rates(tmp_path / "r.yaml")
    assert {name: again[name] for name in UNITS} == {name: made[name] for name in UNITS}
    assert again["gate"] == 12.3 and again["llm_gpu"] is None and again.rates["llm_gpu"].source == "not measured"
    assert again.machine == "a machine" and again.rates["gate"].source == "two dialogues"
    with refused("exists", tmp_path / "r.yaml"):
        verbs.main(["plan", "--measure", str(tmp_path / "r.yaml")])


def test_a_folder_that_cannot_be_written_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with refused("cannot-write", tmp_path / "r.yaml"):
        verbs.main(["plan", "--measure", str(tmp_path / "r.yaml")])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("espeakng_loader") is None, reason="needs the extra tts")
def test_stages_are_measured_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("SCRIPTS", 20), ("SPOKEN", 3), ("READ_AGAIN", 1), ("CALL_SECONDS", 80)):
        monkeypatch.setattr(measuring, name, few)
    left_out = []
    for name in ("_kokoro", "_gate", "_full_codec"):  # these are slow, and the gates have a test of their own
        monkeypatch.setattr(measuring, name, lambda *_: left_out.append(1))
    made = measuring.measure(lambda line: pytest.fail(line) if "align" not in line else None)
    for name in ("write_template", "speak_espeak", "encode_small", "pack", "script_size"):
        assert (made[name] or 0) > 0, name
    # 16-bit FLAC of two channels at 24 kHz is smaller than its samples, and speech is larger than a tenth of MB/h.
    assert 10 < (made["audio_synthetic"] or math.nan) < 24_000 * 2 * 2 * 3600 / 1e6
    assert 60 < (made["index_row"] or math.nan) < 150
    assert len(left_out) == 3
