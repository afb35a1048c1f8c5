"""`ppx-data annotate --dialogues --mask` on folders whose words are known, with a listener of our own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.files import digest
from data_pipelines.recordings import mask_dialogue
from data_pipelines.recordings.fill import Filled, Listener
from data_pipelines.recordings.utterances import SideText, Utterance
from data_pipelines.records.folder import load_dialogue
from data_pipelines.records.schema import Word
from data_pipelines.sound.audio import Audio
from tests.data_pipelines.tiny_dialogues import RATE, noise, write_dialogue
from tests.refusals import refused


def said(text: str, start: float) -> tuple[Word, ...]:
    return tuple(
        Word(text=part, start=start + 0.4 * n, end=start + 0.4 * n + 0.3) for n, part in enumerate(text.split())
    )


CLIP = "Hello, this is Jane. I am happy to help you with whatever there is."
"""What the voice clip says, a word each 0.4 s from 0.5 s on: the name is the fourth."""


def hears(text: str) -> Callable[..., Filled]:
    """A listener that hears `text` in a voice clip."""

    def hear(audio: Audio, rate: int, known: SideText | None, listener: Listener) -> Filled:
        words = said(text, 0.5)
        utterance = Utterance(start=0.5, end=words[-1].end, words=words)
        return Filled(utterances=(utterance,), text_by="asr", times_by="given", tried=0, placed=0)

    return hear


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    words = {"left": said("This is Jane, how can I help?", 0.5), "right": said("Hi Jane, it's 415-555-0134.", 4.0)}
    folder = write_dialogue(tmp_path / "in", "a", seconds=8.0, words=words)
    record = json.loads((folder / "meta.json").read_text())
    record["left"]["speaker"], record["right"]["speaker"] = f"{record['source']}/Jane Roe", "kokoro/af_heart"
    record["left"]["role_prompt"] = "Your name is Jane. Greet people."
    record["facts"] = [{"type": "name", "text": "Jane"}]
    record["probes"] = [{"kind": "Q0", "question": "Is Jane there?", "answer": "Jane speaking."}]
    (folder / "meta.json").write_text(json.dumps(record))
    soundfile.write(folder / "left.voice.flac", noise(6.5, 0.05, 7), RATE, subtype="PCM_16")
    return folder


def annotate(tmp_path: Path, out: str = "out", source: str = "in") -> Path:
    verbs.main(["annotate", "--dialogues", str(tmp_path / source), "--out", str(tmp_path / out), "--mask"])
    return tmp_path / out


def test_a_copy_of_a_dialogue_is_masked_with_its_prompt_facts_and_voice_clip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_dialogue, "fill_side", hears(CLIP))
    done = load_dialogue(annotate(tmp_path) / "a")
    assert "Jane" not in done.to_json() and "0134" not in done.to_json()
    assert [w.text for w in done.left.words] == "This is [name], how can I help?".split()
    assert [w.text for w in done.right.words] == "Hi [name], it's [number].".split()
    assert done.left.role_prompt == "Your name is [name]. Greet people."
    assert done.left.speaker == f"{done.source}/{digest('Jane Roe')[:12]}" and done.right.speaker == "kokoro/af_heart"
    assert done.facts[0].text == "[name]" and done.probes[0].question == "Is [name] there?"
    assert done.provenance["masked"] == {"name": 3, "number": 1}


def test_a_voice_clip_is_cut_around_what_is_masked_in_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_dialogue, "fill_side", hears(CLIP))
    clip_S, _ = soundfile.read(annotate(tmp_path) / "a/left.voice.flac")
    before_S, _ = soundfile.read(folder / "left.voice.flac")
    # "Hello, this is" sounds from 0.5 to 1.6 s, "Jane." from 1.7 to 2.0 s, the rest from 2.1 to 6.0 s.
    at, sample = [], 0
    for n in range(0, len(clip_S) - 240, 240):  # Where each 10 ms of the clip come from, in order.
        found = [m for m in range(sample, len(before_S) - 240) if clip_S[n + 120] == before_S[m]]
        same = [m for m in found if np.isclose(clip_S[n + 120 : n + 140], before_S[m : m + 20], atol=1e-4).all()]
        if same:
            at.append(same[0] / RATE)
            sample = same[0]
    assert len(at) > 0.95 * len(clip_S) / 240, "sound that is not of the clip: noise for what was masked"
    assert not any(1.71 < time < 1.99 for time in at) and at[0] < 0.5 and at[-1] > 5.9


def test_a_clip_in_which_nothing_is_masked_stays_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_dialogue, "fill_side", hears("I am happy to help you."))
    clip_S, _ = soundfile.read(annotate(tmp_path) / "a/left.voice.flac")
    assert np.array_equal(clip_S, soundfile.read(folder / "left.voice.flac")[0])


def test_a_clip_that_says_little_else_is_refused_in_a_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_dialogue, "fill_side", hears("Hello, this is Jane."))
    with refused("no-data", "left side: its voice clip has less than 3 s", "give it another left.voice.flac"):
        annotate(tmp_path)
    assert not (tmp_path / "out/a").exists()


def test_masking_again_forgets_no_count(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_dialogue, "fill_side", hears("I am happy to help you."))
    first = load_dialogue(annotate(tmp_path) / "a").provenance["masked"]
    again = load_dialogue(annotate(tmp_path, "again", "out") / "a").provenance["masked"]
    assert first == again == {"name": 2, "number": 1}


def test_what_nobody_hears_cannot_be_masked(tmp_path: Path, folder: Path) -> None:
    with refused("bad-combination", "--mask", "--fill agent"):
        verbs.main(
            ["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "o"), "--mask", "--fill", "agent"]
        )
