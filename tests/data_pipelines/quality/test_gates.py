"""Gates on their own: limits from files, errors and runs counted by hand or a second way, the set compared."""

import itertools
import random
from collections.abc import Mapping
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from data_pipelines.listening import speaker
from data_pipelines.listening.asr import Hears
from data_pipelines.quality import measure
from data_pipelines.quality.across import BANDS, Finding, Record, compare
from data_pipelines.quality.agreement import (
    asr_values,
    name_words,
    prompt_frames,
    speaker_values,
    text_values,
    turn_pieces,
)
from data_pipelines.quality.gates import GATES, Limits, reasons_to_reject
from data_pipelines.quality.limits import FOLDER, load_limits
from data_pipelines.quality.role_fidelity import role_values
from data_pipelines.quality.transcription import hear_turns
from data_pipelines.recordings.budget import dialogue_seconds, row_frames
from data_pipelines.records.schema import Dialogue, Side, Word
from data_pipelines.sound.audio import Audio
from data_pipelines.text.minhash import Keys, jaccard
from data_pipelines.text.words import word_errors
from model.errors import Code
from model.text import TextTokenizer
from tests.data_pipelines.voices import voice
from tests.refusals import refused

PROMPT = (
    "You work for CitySan Services which is a waste management and your name is Ayelen Lucero. Information: "
    "Verify customer name Omar Torres. Upcoming pickup: April 12th. Compost bin available for $8/month."
)


def said(text: str, start: float = 0.0, step: float = 0.4, length: float = 0.3) -> tuple[Word, ...]:
    """Words at even distances."""
    return tuple(
        Word(text=w, start=round(start + n * step, 3), end=round(start + n * step + length, 3))
        for n, w in enumerate(text.split())
    )


def service(agent: str, user: str = "Hello there.", prompt: str = PROMPT) -> Dialogue:
    """A service call in which both sides say a text."""
    left = Side(speaker="v/a", words=said(agent, 2.0), is_agent=True, role_prompt=prompt)
    right = Side(speaker="v/b", words=said(user))
    return Dialogue(
        id="x", source="service", split="train", scenario="s", seconds=60.0, left=left, right=right, licence="CC0"
    )


# ---- limits
def test_the_shipped_default_is_what_the_schema_says_and_every_limit_has_a_gate() -> None:
    assert load_limits("default") == Limits()
    assert {f.name for f in fields(Limits)} - {"speaker_embedder"} == set(GATES)
    text = (FOLDER / "default.yaml").read_text()
    assert all(f"\n{f.name}: " in text for f in fields(Limits))


def test_files_and_single_values_change_limits_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("swap_ratio: 3\npeak_dbfs: -2\n")
    limits = load_limits(str(tmp_path / "own.yaml"), ["peak_dbfs=-3", "dc=null"])
    assert limits == replace(Limits(), swap_ratio=3.0, peak_dbfs=-3.0, dc=None)
    assert load_limits("espeak").speaker_similarity is None


@pytest.mark.parametrize("name, items, code, names", [
    ("default", ["swap_ration=3"], "unknown-name", ["--set swap_ration=3", "did you mean 'swap_ratio'"]),
    ("default", ["swap_ratio=high"], "bad-value", ["--set swap_ratio=high", "'high'"]),
    ("default", ["dc=.nan"], "bad-value", ["dc=nan"]),
    ("default", ["swap_ratio"], "bad-value", ["--set swap_ratio", "key=value"]),
    ("strict", [], "unknown-name", ["--gates strict", "calls, default, espeak"]),
    ("nowhere.yaml", [], "not-found", ["--gates nowhere.yaml"]),
    ("list.yaml", [], "bad-record", ["list.yaml"]),
    ("broken.yaml", [], "unreadable", ["broken.yaml"]),
    ("empty_list.yaml", [], "bad-record", ["empty_list.yaml"]),
    ("reference.yaml", [], "bad-value", ["reference.yaml", "'x'"]),
    ("missing.yaml", [], "bad-value", ["missing.yaml", "dc"]),
    ("other.yaml", [], "unknown-name", ["other.yaml", "'loudness'"]),
])  # fmt: skip
def test_a_wrong_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, items: list[str], code: Code, names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "empty_list.yaml").write_text("[]")
    (tmp_path / "reference.yaml").write_text("dc: ${x}\n")
    (tmp_path / "missing.yaml").write_text("dc: ???\n")
    (tmp_path / "other.yaml").write_text("loudness: 3\n")
    with refused(code, *names):
        load_limits(name, items)


def test_all_reasons_are_given_and_a_gate_without_a_limit_or_a_value_says_nothing() -> None:
    values = {"swap_ratio": 1.0, "longest_silence_seconds": 9.0, "word_error_rate": float("nan")}
    kinds = [reason.split(":")[0] for reason in reasons_to_reject(values, Limits())]
    assert kinds == ["silence", "channel swap", "transcript"]
    off = replace(Limits(), swap_ratio=None, word_error_rate=None, longest_silence_seconds=10.0)
    assert reasons_to_reject(values, off) == []


# ---- what is heard
def test_a_name_may_be_heard_as_anything_and_nothing_else_may() -> None:
    names = frozenset({"ayelen", "lucero"})
    reference = "this is ayelen lucero how can i help".split()
    for text, errors in (
        ("this is ayelen lucero how can i help", 0),
        ("this is i yell in lou zero how can i help", 0),
        ("this is how can i help", 0),
        ("this is a b c d e f g how can i help", 1),
        ("this is ayelen lucero how can he help", 1),
        ("ayelen", 6),
    ):
        assert word_errors(reference, text.split(), names) == errors, text


def test_without_names_it_is_the_edit_distance() -> None:
    def slow(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b[1:]) + (a[0] != b[0]), slow(a[1:], b) + 1, slow(a, b[1:]) + 1)

    draw = random.Random(3)
    for _ in range(60):
        a, b = ([draw.choice("xyz") for _ in range(draw.randrange(6))] for _ in range(2))
        assert word_errors(a, b) == slow(a, b)


def test_names_are_capitals_inside_a_sentence() -> None:
    assert name_words("Hello, Omar. You live in Ohio? I do.") == {"omar", "ohio"}


def test_hums_are_not_held_against_a_channel_and_a_lost_turn_is() -> None:
    class Inventive(Hears):
        def transcribe(self, audio: Audio, rate: int) -> str:
            return "that's how" if len(audio) < rate else ""

    words, audio = said("mm-hm", 0.0), np.zeros(480_000, np.float32)
    assert hear_turns(Inventive(), audio, 24000, words, names=()) == []
    assert [(score.errors, score.words) for score in hear_turns(Inventive(), audio, 24000, words)] == [(2, 0)]
    lost = said("this is a turn of more than ten words in all", 5.0)
    scores = hear_turns(Inventive(), audio, 24000, words + lost, names=())
    assert asr_values([scores, []]) == {"word_error_rate_left": 1, "word_error_rate": 1, "turn_error_rate": 1}


class Letters:
    """A tokenizer whose pieces are letters."""

    card = 100

    def encode(self, text: str) -> list[int]:
        """One piece for each letter."""
        return [4 + ord(c) % 90 for c in text]


LETTERS = cast(TextTokenizer, Letters())


def test_words_without_room_are_those_counted_by_hand() -> None:
    # starts at frames 0, 2, 3, 10; four, one, three and two letters; the stream ends at frame 11
    words = [Word(text=t, start=s / 12.5, end=s / 12.5) for t, s in (("four", 0), ("a", 2), ("cat", 3), ("it", 10))]
    values = text_values(words, 11 / 12.5, LETTERS)
    assert values == {"overflow_share": 2 / 4, "lag_frames": 2, "lost_pieces": 1}
    assert prompt_frames("x", 3.2, None) == 40 + 12
    assert prompt_frames("x", 3.2, LETTERS) == 40 + 12 + len("<system> x <system>")


def test_every_whole_number_of_frames_is_counted_as_it_is() -> None:
    clips = {"left": np.zeros(40 * 1920, np.float32)}
    listening = measure.Listening(asr="none", speaker="none")
    for frames in range(1, 1876):
        seconds = round(frames * 0.08, 2)
        dialogue = replace(service("", user=""), seconds=seconds)
        assert measure._text(dialogue, clips, listening) == {"frames": frames + 40 + 12}
        # what a row of 2048 frames has beside the clip, a prompt of 100 tokens and both pauses
        assert dialogue_seconds(seconds, 100) == pytest.approx((2048 - frames - 100 - 12) / 12.5)
        assert row_frames(seconds, seconds, 100) == 2 * frames + 100 + 12 - 1


def test_speech_at_twice_the_speed_overflows() -> None:
    sentence = "the number of your order is nine four two one and it will be there on monday morning at ten"
    usual, fast = (said(sentence * 3, step=step, length=step) for step in (0.4, 0.2))
    values = [text_values(words, 60, LETTERS) for words in (usual, fast)]
    kinds = [{reason.split(":")[0] for reason in reasons_to_reject(v, Limits())} for v in values]
    assert kinds[0] <= {"text overflow"} and kinds[1] == {"text overflow", "text lag"}


def test_short_turns_are_pooled_until_they_hold_two_seconds_of_voice() -> None:
    pytest.importorskip("webrtcvad")
    audio = voice(20, 120)
    words = [Word(text="w", start=s, end=s + 0.9) for s in (0, 2, 4, 6, 8, 10, 12)]
    pieces = turn_pieces(audio, 16000, words)
    assert len(pieces) == 2 and all(len(piece) >= 2 * 16000 for piece in pieces)
    assert turn_pieces(audio, 16000, words[:2]) == []


@pytest.mark.skipif(find_spec("resemblyzer") is None, reason="Resemblyzer is not installed")
def test_a_second_voice_in_the_agents_turns_and_one_voice_on_both_sides_are_found() -> None:
    pytest.importorskip("webrtcvad")
    embedder = speaker.open_speaker()
    low, high, user = voice(12, 105, 1.0, 1), voice(12, 230, 1.2, 2), voice(12, 160, 0.8, 4)
    clip = voice(4, 105, 1.0, 3)
    words = said("one two three four five six seven eight", 0, 0.5, 0.45) + said("and once more " * 3, 6, 0.6, 0.5)
    side = Side(speaker="a", words=words, is_agent=True)
    drifting = np.concatenate([low[: 5 * 16000], high[5 * 16000 :]])
    good = speaker_values(embedder, low, user, 16000, side, side, clip)
    drift = speaker_values(embedder, drifting, user, 16000, side, side, clip)
    same = speaker_values(embedder, low, voice(12, 105, 1.0, 9), 16000, side, side, clip)
    silent = speaker_values(embedder, low, user, 16000, side, side, np.zeros(64000, np.float32))
    reasons = [{reason.split(":")[0] for reason in reasons_to_reject(v, Limits())} for v in (good, drift, same, silent)]
    assert reasons == [set(), {"speaker drift"}, {"same speaker"}, {"speaker drift"}]


# ---- roles
@pytest.mark.parametrize("agent, user, kinds", [
    ("CitySan Services, this is Ayelen. The bin is $8 a month.", "Hello.", set()),
    ("Ayelen speaking. Pickup is on April twelfth.", "Omar here.", set()),
    ("You work for CitySan Services which is a waste management and your name is Ayelen Lucero.", "Hi.",
     {"role context leak"}),
    ("You work for CitySan Services, and I am Ayelen.", "Hi.", {"role context leak"}),
    ("This is Ayelen. Information: the bin is $8.", "Hi.", {"role context leak"}),
    ("I work for CitySan Services, my name is Ayelen, and your name is?", "You work for CitySan Services?", set()),
    ("This is Ayelen.", "Verify customer name Omar Torres. Upcoming pickup: April 12th. Compost bin available for "
     "$8/month.", {"role context leak"}),
    ("Ayelen here, the pickup is on the 14th.", "Hello.", {"invented"}),
    ("Ayelen here, ask Mister Baxter.", "Hello.", {"invented"}),
    ("Ayelen here, so it is 14 then.", "I have 14 bins.", set()),
    ("Hello, how can I help?", "Hello.", {"role not said"}),
])  # fmt: skip
def test_an_agent_keeps_to_its_role(agent: str, user: str, kinds: set[str]) -> None:
    values = role_values(service(agent, user))
    assert {reason.split(":")[0] for reason in reasons_to_reject(values, Limits())} == kinds


def test_roles_without_facts_may_say_any_number() -> None:
    prompt = "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way."
    values = role_values(service("Water boils at 212 degrees, as Celsius found.", prompt=prompt))
    assert values == {"agent_prompt_run": 0, "user_prompt_run": 0}
    loud = role_values(service("You are a wise and friendly teacher, I think.", prompt=prompt))
    assert loud["agent_prompt_run"] == 7


def test_an_interrupted_sentence_does_not_make_a_name_of_the_next_word() -> None:
    agent = said("Ayelen here. There is also the") + said("Sure, that is fine.", 4.0)
    dialogue = service("x")
    dialogue = replace(dialogue, left=replace(dialogue.left, words=agent))
    assert role_values(dialogue)["unsupported_names"] == 0


# ---- the whole set
def record(id: str, text: str, **more: Any) -> Record:
    """A training dialogue with a scenario, a voice and audio of its own."""
    rest: dict[str, Any] = {"split": "train", "scenario": id, "companies": (), "speakers": (id,), "audio_sha256": id}
    return Record(id=id, text=text, **(rest | more))


def sentence(seed: int, words: int = 80) -> str:
    """Random words of two letters."""
    draw = random.Random(seed)
    return " ".join(draw.choice("abcdefghijklmnopqrst") + draw.choice("aeiou") for _ in range(words))


def kinds(findings: Mapping[str, Finding]) -> dict[str, list[str]]:
    """The kinds of faults of each dialogue that is rejected."""
    return {id: [reason.split(":")[0] for reason in f.reasons] for id, f in findings.items() if f.reasons}


def test_of_near_duplicates_the_first_id_stays_in_any_order() -> None:
    text = sentence(1)
    words = text.split()
    near = " ".join([*words[:40], "other", *words[41:]])
    records = [record("b", text), record("a", near), record("c", sentence(2)), record("d", text)]
    expected = {"b": ["duplicate"], "d": ["duplicate"]}
    for order in itertools.permutations(records):
        findings = compare(order, Limits())
        assert kinds(findings) == expected
    assert findings["b"].reasons[0].endswith(": a")
    # by another way: sets of tuples
    sets = [{tuple(t.split()[i : i + 13]) for i in range(68)} for t in (text, near)]
    assert findings["b"].values["shared_text"] == pytest.approx(
        len(sets[0] & sets[1]) / len(sets[0] | sets[1]), abs=1e-4
    )
    assert compare(records, replace(Limits(), shared_text=None))["b"].reasons == []


def test_the_same_audio_under_other_words_is_a_duplicate() -> None:
    findings = compare([record("a", sentence(1)), record("b", sentence(2), audio_sha256="a")], Limits())
    assert findings["b"].reasons == ["duplicate: the same audio as a dialogue that is kept: a"]


def test_short_texts_are_one_run_and_no_text_is_no_duplicate() -> None:
    findings = compare([record(i, t) for i, t in zip("abcd", ("hi you", "hi you", "", ""), strict=True)], Limits())
    assert kinds(findings) == {"b": ["duplicate"]}


def test_what_training_and_held_out_share_rejects_the_held_out_one() -> None:
    half = sentence(1, 60)
    train = record("z", half + " " + sentence(2, 20), scenario="s1", companies=("Blue Moon Bakery",), speakers=("v1",))
    good = record("a", sentence(5), split="heldout")
    leaks = record("b", half + " " + sentence(6, 20), split="heldout", scenario="s1", speakers=("v1",))
    findings = compare([train, good, leaks], replace(Limits(), shared_text=None))
    assert findings["a"].reasons == [] and findings["z"].reasons == []
    reasons = " ".join(findings["b"].reasons)
    assert "71% of its text is in training" in reasons and "scenario is in training: s1" in reasons
    assert "voice" in reasons
    company = compare([train, record("c", sentence(7), split="heldout", companies=("Blue Moon Bakery",))], Limits())
    assert company["c"].reasons == ["leakage: its company is in training: Blue Moon Bakery"]


def test_a_company_of_another_role_is_a_leak_of_its_context() -> None:
    a = record("a", "welcome to blue moon bakery", companies=("Blue Moon Bakery",))
    b = record("b", "welcome to blue moon bakery this is ann", companies=("Sunny Travel",))
    c = record("c", "the blue moon is high", companies=("Sunny Travel",))
    findings = compare([a, b, c], Limits())
    assert kinds(findings) == {"b": ["role context leak"]} and "blue moon bakery" in findings["b"].reasons[0]


def test_only_texts_that_share_something_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[float] = []

    def noted(a: Keys, b: Keys) -> float:
        compared.append(jaccard(a, b))
        return compared[-1]

    monkeypatch.setattr("data_pipelines.quality.across.jaccard", noted)
    records = [record(f"r{n:05d}", sentence(n, 110)) for n in range(300)] + [record("z", sentence(7, 110))]
    assert kinds(compare(records, Limits())) == {"z": ["duplicate"]}
    # The pair meets in every band; of the 45,000 other pairs none is compared.
    assert compared == [1.0] * BANDS
