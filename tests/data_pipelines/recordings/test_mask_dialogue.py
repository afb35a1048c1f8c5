"""`ppx-data annotate --dialogues --mask` on folders whose words are known, with a listener of our own."""

import json
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
from tests.data_pipelines.tiny_dialogues import RATE, write_dialogue
from tests.refusals import refused


def said(text: str, start: float) -> tuple[Word, ...]:
    return tuple(
        Word(text=part, start=start + 0.4 * n, end=start + 0.4 * n + 0.3) for n, part in enumerate(text.split())
    )


def hear(audio: Audio, rate: int, text: SideText | None, listener: Listener) -> Filled:
    """The voice clip says its speaker's name."""
    words = said("Hello, this is Jane.", 0.5)
    utterance = Utterance(start=0.5, end=words[-1].end, words=words)
    return Filled(utterances=(utterance,), text_by="asr", times_by="given", tried=0, placed=0)


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
    return folder


def test_a_copy_of_a_dialogue_is_masked_with_its_prompt_facts_and_voice_clip(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_dialogue, "fill_side", hear)
    verbs.main(["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--mask"])
    done = load_dialogue(tmp_path / "out/a")
    assert "Jane" not in done.to_json() and "0134" not in done.to_json()
    assert [w.text for w in done.left.words] == "This is [name], how can I help?".split()
    assert [w.text for w in done.right.words] == "Hi [name], it's [number].".split()
    assert done.left.role_prompt == "Your name is [name]. Greet people."
    assert done.left.speaker == f"{done.source}/{digest('Jane Roe')[:12]}" and done.right.speaker == "kokoro/af_heart"
    assert done.facts[0].text == "[name]" and done.probes[0].question == "Is [name] there?"
    assert done.provenance["masked"] == {"name": 3, "number": 1}
    clip_S, _ = soundfile.read(tmp_path / "out/a/left.voice.flac")
    before_S, _ = soundfile.read(folder / "left.voice.flac")
    assert len(clip_S) == len(before_S)
    start, end = round(1.7 * RATE), round(2.0 * RATE)
    assert not np.isclose(clip_S[start:end], before_S[start:end], atol=1e-4).mean() > 0.2
    assert np.array_equal(clip_S[: round(1.5 * RATE)], before_S[: round(1.5 * RATE)])


def test_what_nobody_hears_cannot_be_masked(tmp_path: Path, folder: Path) -> None:
    with refused("bad-combination", "--mask", "--fill agent"):
        verbs.main(
            ["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "o"), "--mask", "--fill", "agent"]
        )
