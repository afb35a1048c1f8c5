"""The pool of voices: what a clip must be and state, the hold-out, and who is drawn."""

import csv
import random
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import yaml
from scipy import stats

from data_pipelines import verbs
from data_pipelines.speech import voices
from data_pipelines.speech.perform import choose_voices
from data_pipelines.speech.protocols import Voice
from data_pipelines.speech.voices import FIELDS, draw_voice, is_held_out, load_pool, voiced_seconds
from model.errors import Code
from tests.refusals import refused

RATE = 24000


def voice_like(seconds: float = 4.0, level: float = 0.3, rate: int = RATE) -> np.ndarray:
    """A buzz that comes and goes four times a second, as syllables do."""
    t = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 9))
    return (level * buzz / 2 * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def write_clip(path: Path, samples: np.ndarray | None = None, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, voice_like() if samples is None else samples, rate, subtype="PCM_16")
    return path


def write_speakers(path: Path, *rows: dict[str, str]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def person(name: str, **changed: str) -> dict[str, str]:
    given = {"speaker": name, "sex": "female", "accent": "us", "licence": "CC-BY-4.0", "consent": "signed 2026-03-01"}
    return given | changed


# ---- clips
@pytest.mark.parametrize("samples, rate, reason", [
    (voice_like(), RATE, ""),
    (voice_like(2.5), RATE, "2.5 s: 3 to 10 are needed"),
    (voice_like(11.0), RATE, "11.0 s: 3 to 10 are needed"),
    (np.stack([voice_like(), voice_like()], axis=1), RATE, "2 channels: one speaker on one channel"),
    (voice_like(rate=8000), 8000, "8000 Hz: at least 16000"),
    (np.clip(8 * voice_like(), -1, 1), RATE, "clipped at"),
    (np.zeros(4 * RATE, np.float32), RATE, "0.0 s of voice: 3 are needed"),
    (np.concatenate([voice_like(2.0), np.zeros(3 * RATE, np.float32)]), RATE, "2.0 s of voice: 3 are needed"),
])  # fmt: skip
def test_a_clip_is_checked_and_the_reason_names_the_fault(
    samples: np.ndarray, rate: int, reason: str, tmp_path: Path
) -> None:
    found = voices.reason_against_sound(write_clip(tmp_path / "a.wav", samples, rate))
    assert found.startswith(reason) and bool(found) == bool(reason)


def test_a_broken_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFFwhat")
    assert "cannot be read as audio" in voices.reason_against_sound(tmp_path / "a.wav")


def test_short_pauses_count_as_voice_and_long_ones_do_not() -> None:
    quiet = np.zeros(round(0.1 * RATE), np.float32)
    loud = voice_like(1.0)
    assert voiced_seconds(np.concatenate([loud, quiet, loud]), RATE) == pytest.approx(2.1, abs=0.1)
    assert voiced_seconds(np.concatenate([loud, np.zeros(RATE, np.float32), loud]), RATE) == pytest.approx(2, abs=0.1)


# ---- the verb
def test_the_verb_lists_good_clips_and_says_why_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    write_clip(folder / "anna" / "one.wav")
    write_clip(folder / "anna" / "two.flac")
    write_clip(folder / "bob" / "one.wav", voice_like(2.0))
    write_clip(folder / "carl" / "one.wav")
    write_clip(folder / "dora" / "one.wav")
    write_clip(folder / "eve" / "my clip.wav")
    write_clip(folder / "fritz" / "one.wav")
    write_speakers(
        folder / "speakers.csv", person("anna"), person("bob", sex="male"), person("carl", sex="male", consent=""),
        person("eve"), person("fritz", sex="m"),
    )  # fmt: skip
    out = tmp_path / "voices.yaml"
    verbs.main(["voices", str(folder), "--out", str(out)])
    said = capsys.readouterr().out
    for line in (
        "rejected bob/one.wav: 2.0 s: 3 to 10 are needed",
        "rejected carl/one.wav: no consent: whose voice may be imitated only with consent",
        "rejected dora/one.wav: speaker 'dora' is not in the table of speakers",
        "rejected eve/my clip.wav: speaker and file name may hold letters, digits, '-' and '_' only",
        "rejected fritz/one.wav: sex 'm': give one of female, male",
        "2 clips of 1 speakers (1 female; 0 held out)",
        "5 clips were rejected",
    ):
        assert line in said
    pool = load_pool(out)
    assert [clip.key for clip in pool.clips] == ["anna/one", "anna/two"]
    assert pool.clips == load_pool(tmp_path).clips  # the folder of a manifest
    assert yaml.safe_load(out.read_text())["rejected"]["bob/one.wav"] == "2.0 s: 3 to 10 are needed"
    audio, rate = pool.audio("anna/one")
    assert rate == RATE and audio.shape == (4 * RATE,)
    verbs.main(["voices", str(folder), "--out", str(out)])  # again: nothing changes
    write_clip(folder / "anna" / "one.wav", voice_like(5.0))
    with refused("checksum", folder / "anna" / "one.wav", "run `ppx-data voices` again"):
        pool.audio("anna/one")


def test_the_verb_refuses_what_it_cannot_use(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "no"):
        verbs.main(["voices", str(tmp_path / "no"), "--out", str(tmp_path / "v.yaml")])
    (tmp_path / "clips").mkdir()
    with refused("not-found", tmp_path / "clips" / "speakers.csv", "speaker, sex, accent, licence, consent"):
        verbs.main(["voices", str(tmp_path / "clips"), "--out", str(tmp_path / "v.yaml")])
    (tmp_path / "clips" / "speakers.csv").write_text("speaker,sex\nanna,female\n")
    with refused("bad-record", tmp_path / "clips" / "speakers.csv", "'accent'"):
        verbs.main(["voices", str(tmp_path / "clips"), "--out", str(tmp_path / "v.yaml")])
    write_speakers(tmp_path / "clips" / "speakers.csv", person("anna"))
    with refused("no-data", tmp_path / "clips", "none of 0 clips"):
        verbs.main(["voices", str(tmp_path / "clips"), "--out", str(tmp_path / "v.yaml")])
    with refused("bad-value", "--heldout 1.0"):
        verbs.main(["voices", str(tmp_path / "clips"), "--out", str(tmp_path / "v.yaml"), "--heldout", "1"])


def test_clips_of_one_name_and_speakers_without_a_line_are_rejected_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    for name in ("anna/one.wav", "anna/one.flac", "carl/one.wav"):
        write_clip(folder / name)
    write_speakers(folder / "speakers.csv", person(" anna "))  # Spaces around a name do not belong to it.
    verbs.main(["voices", str(folder), "--out", str(tmp_path / "voices.yaml")])
    printed = capsys.readouterr().out
    assert "rejected anna/one.wav: voice anna/one is there already: rename the file" in printed
    assert "rejected carl/one.wav: speaker 'carl' is not in the table of speakers" in printed
    assert [clip.path for clip in load_pool(tmp_path / "voices.yaml").clips] == ["clips/anna/one.flac"]


@pytest.mark.parametrize("table, code, named", [
    (b"speaker,sex,accent,licence,consent\nann\xe9,female,us,CC0,yes\n", "unreadable", "UTF-8"),
    (b"speaker,sex,accent,licence,consent\nann,female,us,CC0,yes\nann,male,us,CC0,yes\n", "bad-record", "'ann'"),
])  # fmt: skip
def test_a_table_of_speakers_that_cannot_be_right_is_refused(
    tmp_path: Path, table: bytes, code: Code, named: str
) -> None:
    (tmp_path / "speakers.csv").write_bytes(table)
    with refused(code, tmp_path / "speakers.csv", named):
        verbs.main(["voices", str(tmp_path), "--out", str(tmp_path / "v.yaml")])
    assert not (tmp_path / "v.yaml").exists()


# ---- the manifest
@pytest.mark.parametrize("change, code, named", [
    ({"consent": None}, "licence", "a.wav: no consent"),
    ({"consent": " "}, "licence", "a.wav: no consent"),
    ({"licence": " "}, "licence", "a.wav: no licence"),
    ({"accent": " "}, "bad-record", "a.wav: no accent"),
    ({"speaker": "../x"}, "bad-record", "a.wav: speaker"),
    ({"path": "a\nb.wav"}, "bad-record", "a b.wav: speaker and file name may hold"),
    ({"age": 40}, "bad-record", "a.wav: unknown key 'age': use path, speaker"),
    ({"held_out": "no"}, "bad-record", "a.wav: held_out 'no'"),
    ({"path": "b.wav"}, "not-found", "b.wav"),
    ({"path": "broken.wav"}, "bad-audio", "broken.wav"),
])  # fmt: skip
def test_a_manifest_entry_is_refused_with_its_reason(
    change: dict[str, Any], code: Code, named: str, tmp_path: Path
) -> None:
    write_clip(tmp_path / "a.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFFwhat")
    entry = {"path": "a.wav", **person("anna")} | change
    (tmp_path / "voices.yaml").write_text(yaml.safe_dump({"voices": [{k: v for k, v in entry.items() if v}]}))
    with refused(code, tmp_path / "voices.yaml", named):
        load_pool(tmp_path)


def test_other_manifests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "voices.yaml"
    with refused("not-found", path, "make one with `ppx-data voices`"):
        load_pool(path)
    path.write_text("voices: [")
    with refused("unreadable", path):
        load_pool(path)
    for text in ("- a", "voices: 3", "other: []"):
        path.write_text(text)
        with refused("bad-record", path):
            load_pool(path)
    path.write_text("voices: []")
    with refused("bad-record", path, "no voice"):
        load_pool(path)
    write_clip(tmp_path / "a.wav")
    write_clip(tmp_path / "x" / "a.wav")
    write_clip(tmp_path / "b.wav")
    two = [{"path": name, **person("anna")} for name in ("a.wav", "x/a.wav")]
    path.write_text(yaml.safe_dump({"voices": two}))
    with refused("bad-record", path, "anna/a"):
        load_pool(path)
    both = [
        {"path": "a.wav", **person("anna"), "held_out": True},
        {"path": "b.wav", **person("anna"), "held_out": False},
    ]
    path.write_text(yaml.safe_dump({"voices": both}))
    with refused("bad-record", path, "speaker anna"):
        load_pool(path)


def test_the_pools_identity_is_its_clips_and_not_their_place(tmp_path: Path) -> None:
    for place in ("one", "two"):
        write_clip(tmp_path / place / "a.wav")
        (tmp_path / place / "voices.yaml").write_text(yaml.safe_dump({"voices": [{"path": "a.wav", **person("anna")}]}))
    one, two = (load_pool(tmp_path / place) for place in ("one", "two"))
    assert one.sha256 == two.sha256
    write_clip(tmp_path / "two" / "a.wav", voice_like(5.0))
    assert load_pool(tmp_path / "two").sha256 != one.sha256


# ---- who speaks
def test_a_tenth_of_the_speakers_is_held_out_by_name_alone() -> None:
    names = [f"speaker-{n}" for n in range(4000)]
    held = {name for name in names if is_held_out(name)}
    assert len(held) == pytest.approx(400, abs=60)
    assert held < {name for name in names if is_held_out(name, 0.2)}
    # The hash must never change, because held-out voices would come into training.
    assert [n for n in range(40) if is_held_out(f"speaker-{n}")] == GOLDEN_HELD_OUT


GOLDEN_HELD_OUT = [15, 28]  # from hashlib alone


def pool_of(*groups: tuple[Literal["female", "male"], str, int]) -> list[Voice]:
    """Speakers by (sex, accent, number), with one to three clips each."""
    return [
        Voice(key=f"x/{sex}{accent}{n}/{clip}", sex=sex, accent=accent, held_out=False, speaker=f"{sex}{accent}{n}")
        for sex, accent, num in groups for n in range(num) for clip in range(1 + n % 3)
    ]  # fmt: skip


def test_both_sexes_are_drawn_alike_and_rare_accents_more_than_their_share() -> None:
    pool = pool_of(("female", "us", 36), ("female", "in", 4), ("male", "us", 9))
    rng = random.Random(0)
    drawn = [draw_voice(pool, rng) for _ in range(6000)]
    sexes = Counter(voice.sex for voice in drawn)
    assert stats.binomtest(sexes["female"], 6000, 0.5).pvalue > 0.01
    accents = Counter(voice.accent for voice in drawn if voice.sex == "female")
    assert stats.binomtest(accents["in"], sexes["female"], 2 / (2 + 6)).pvalue > 0.01
    speakers = Counter(voice.speaker for voice in drawn if voice.sex == "male")
    assert stats.chisquare(list(speakers.values())).pvalue > 0.01 and len(speakers) == 9


def test_the_two_sides_are_two_people_even_where_one_has_many_clips() -> None:
    pool = [
        *pool_of(("female", "us", 2)),
        *[Voice(key=f"x/a/{n}", sex="female", accent="us", held_out=False, speaker="a") for n in range(50)],
    ]
    for seed in range(200):
        both = choose_voices(pool, "train", random.Random(seed))
        assert both["left"].speaker != both["right"].speaker
    with refused("no-data", "1 voices", "split train"):
        choose_voices(pool[-50:], "train", random.Random(0))
