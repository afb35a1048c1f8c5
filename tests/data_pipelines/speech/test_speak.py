"""`ppx-data speak` with eSpeak NG for real: folders, resuming, determinism, reports."""

import argparse
import json
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")

from data_pipelines.execution.executor import Executor
from data_pipelines.files import RUN_ONLY
from data_pipelines.records.schema import Dialogue, Script, Turn
from data_pipelines.sound.audio import read_audio, require_stereo_24k
from data_pipelines.speech import speak
from data_pipelines.speech.engines import EngineChoice
from data_pipelines.speech.stitch import StitchOptions
from tests.refusals import refused

OPTIONS = StitchOptions(voice_seconds=3.2)
ESPEAK = EngineChoice(name="espeak")
Spoken = tuple[Path, dict[str, Any]]
"""A folder of dialogues and the report of the run that wrote it."""


def make_script(
    name: str, split: Literal["train", "heldout"] = "train", text: str = "It costs $8/month, and pickup is April 12th."
) -> Script:
    turns = (
        Turn(speaker="agent", text="Hello, this is CitySan Services. How can I help you?"),
        Turn(speaker="user", text="Hi. What does the compost bin cost?"),
        Turn(speaker="agent", text=text),
        Turn(speaker="user", text="Sorry, wait.", kind="barge_in"),
        Turn(speaker="agent", text="Sure, go on."),
    )
    return Script(id=name, source="service", split=split, scenario="x", role_prompt="You work.", turns=turns)


def run(scripts: list[Script], out: Path, seed: int = 0, workers: int = 1) -> dict[str, Any]:
    return speak.speak_scripts(
        scripts, out, engine=ESPEAK, seed=seed, executor=Executor(workers=workers), options=OPTIONS
    )


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


SCRIPTS = [make_script(f"s-{n}", "heldout" if n == 3 else "train") for n in range(4)]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    out = tmp_path_factory.mktemp("speak") / "dialogues"
    return out, run(SCRIPTS, out)


def test_every_folder_is_complete_and_consistent(spoken: Spoken) -> None:
    out, report = spoken
    assert report["done"] == 4 and report["skipped"] == 0 and report["rejected"] == []
    for script in SCRIPTS:
        folder = out / script.id
        d = Dialogue.from_json((folder / "meta.json").read_text("utf-8"), "meta")
        assert sorted(p.name for p in folder.iterdir()) == ["audio.flac", "left.voice.flac", "meta.json"]
        assert require_stereo_24k(folder / "audio.flac").shape[1] == round(d.seconds * 24000)
        voice, rate = read_audio(folder / "left.voice.flac")
        assert rate == 24000 and voice.shape[0] == 1 and 3 <= voice.shape[1] / rate <= 10
        assert "$8/month," in [w.text for w in d.left.words] or d.events
        assert d.provenance["engine"]["version"].startswith("eSpeak NG") and d.gates["swap_ratio"] > 2
    assert json.loads((out / "report.json").read_text()) == {k: v for k, v in report.items() if k not in RUN_ONLY}


def test_held_out_scripts_have_held_out_speakers(spoken: Spoken) -> None:
    out, _ = spoken
    held = {v.key for v in speak.open_engine("espeak").voices() if v.held_out}
    for script in SCRIPTS:
        d = Dialogue.from_json((out / script.id / "meta.json").read_text("utf-8"), "meta")
        assert {d.left.speaker in held, d.right.speaker in held} == {script.split == "heldout"}


def test_the_sound_after_a_barge_in_is_silent_in_the_file(spoken: Spoken) -> None:
    out, _ = spoken
    for script in SCRIPTS:
        d = Dialogue.from_json((out / script.id / "meta.json").read_text("utf-8"), "meta")
        audio_CS = require_stereo_24k(out / script.id / "audio.flac")
        for stop in [event.stop for event in d.events if event.kind == "barge_in" and event.stop is not None]:
            next_word = min((w.start for w in d.left.words if w.start >= stop), default=d.seconds)
            quiet = audio_CS[0, round(stop * 24000) : round((next_word - 0.05) * 24000)]
            assert len(quiet) and np.abs(quiet).max() < 10 ** (-50 / 20)


def test_bytes_do_not_depend_on_the_number_of_workers_or_the_order(spoken: Spoken, tmp_path: Path) -> None:
    out, _ = spoken
    run(SCRIPTS[::-1], tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == contents(out)


def test_a_run_goes_on_where_it_stopped(spoken: Spoken, tmp_path: Path) -> None:
    out, _ = spoken
    run(SCRIPTS[:3], tmp_path / "part")
    (tmp_path / "part" / "s-0" / "meta.json").unlink()
    (tmp_path / "part" / "s-1" / "audio.flac").unlink()
    (tmp_path / "part" / "s-2" / "meta.json").write_text("{")
    report = run(SCRIPTS, tmp_path / "part")
    assert report["done"] == 4 and report["skipped"] == 0
    assert contents(tmp_path / "part") == contents(out)
    report = run(SCRIPTS, tmp_path / "part")
    assert report["done"] == 4 and report["skipped"] == 4


def test_other_settings_and_foreign_folders_are_refused(spoken: Spoken, tmp_path: Path) -> None:
    out, _ = spoken
    before = contents(out)
    with refused("other-settings", out, "seed 0, not 1", "give another --out"):
        run(SCRIPTS, out, seed=1)
    with refused("other-settings", out, "options."):
        speak.speak_scripts(SCRIPTS, out, engine=ESPEAK, seed=0, executor=Executor(), options=StitchOptions())
    assert contents(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with refused("other-settings", tmp_path / "mine", "`ppx-data speak`"):
        run(SCRIPTS, tmp_path / "mine")


def test_other_scripts_under_the_same_ids_are_refused_and_nothing_is_overwritten(
    spoken: Spoken, tmp_path: Path
) -> None:
    out = tmp_path / "dialogues"
    run(SCRIPTS[:2], out)
    before = contents(out)
    edited = [SCRIPTS[0], make_script("s-1", text="It costs $9/month, and pickup is April 12th.")]
    with refused("other-settings", out / "s-1", "--out", "--scripts"):
        run(edited, out)
    assert contents(out) == before


def test_what_cannot_be_spoken_is_counted_with_its_reason(tmp_path: Path) -> None:
    report = run([SCRIPTS[0], make_script("bad", text="...")], tmp_path / "out")
    assert report["done"] == 1 and [r["id"] for r in report["rejected"]] == ["bad"]
    assert "holds nothing to say" in report["rejected"][0]["reason"]
    assert not (tmp_path / "out" / "bad").exists()
    with refused("no-data", tmp_path / "none" / "report.json", "'...' holds nothing to say"):
        run([make_script("bad", text="...")], tmp_path / "none")


@pytest.mark.parametrize("names, named", [(["a", "a"], "'a' is there 2 times"), (["../a"], "'../a'")])
def test_bad_ids_are_refused(names: list[str], named: str, tmp_path: Path) -> None:
    with refused("bad-record", named):
        run([make_script(name) for name in names], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_verb_reads_scripts_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tmp_path / "scripts.jsonl"
    scripts.write_text("\n".join(script.to_json() for script in SCRIPTS), "utf-8")
    parser = argparse.ArgumentParser()
    speak.add_arguments(parser)
    options = ["--scripts", str(scripts), "--out", str(tmp_path / "out")]
    options += ["--engine", "espeak", "--voice-seconds", "3.2"]
    speak.run(parser.parse_args([*options, "--limit", "1"]))
    assert "1 dialogues spoken" in capsys.readouterr().out
    with refused("bad-value", "--limit 0"):
        speak.run(parser.parse_args([*options, "--limit", "0"]))
    with refused("not-found", tmp_path / "no", "ppx-data synth"):
        speak.run(parser.parse_args(["--scripts", str(tmp_path / "no"), "--out", str(tmp_path / "x")]))
    with refused("bad-value", "workers 0"):
        speak.run(parser.parse_args([*options, "--workers", "0"]))


def test_an_interrupt_inside_the_synthesizer_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = speak.open_engine("espeak")

    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_callback", type(engine._callback)(interrupted))
    with pytest.raises(KeyboardInterrupt):
        engine.speak("Hello there.", engine.voices()[0].key, seed=0)


def test_what_a_killed_run_left_is_tidied_up(spoken: Spoken, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "s-0").mkdir(parents=True)
    (out / "s-0" / ".audio.flac.part").write_bytes(b"half")
    outcome = speak.speak_one(SCRIPTS[0], speak.open_engine("espeak"), 0, OPTIONS, out)
    assert not outcome.reason
    assert sorted(p.name for p in (out / "s-0").iterdir()) == ["audio.flac", "left.voice.flac", "meta.json"]
