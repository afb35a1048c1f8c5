"""Whose voice leaves with a model: an engine's own, or a clip's with its terms, and nobody else's."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.records.provenance import PRESET_CONSENT, voice_rights
from data_pipelines.shards.encode import build_shards
from ppx_train.export import voices
from ppx_train.export.voices import voices_of_shards
from tests.data_pipelines.tiny_dialogues import TinyCodec, write_dialogue
from tests.refusals import refused

CODEC = TinyCodec().fingerprint()

TERMS = {"licence": "CC-BY-4.0", "consent": "release of 2026-03-01"}


def shards_of(folder: Path, *dialogues: tuple[str, str, dict[str, Any]]) -> Path:
    """Held-out dialogues of (source, speaker, provenance), packed."""
    for n, (source, speaker, provenance) in enumerate(dialogues):
        path = write_dialogue(folder / "dialogues", f"d-{n}", source=source, split="heldout") / "meta.json"
        record = json.loads(path.read_text())
        record["left"]["speaker"], record["provenance"] = speaker, provenance
        path.write_text(json.dumps(record))
    build_shards([folder / "dialogues"], TinyCodec(), folder / "shards")
    return folder / "shards"


def test_only_voices_with_a_stated_right_leave(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = shards_of(
        tmp_path,
        ("service", "espeak/en+m1", {"engine": {"name": "espeak"}}),
        ("calls", "calls/Anna", {"recorded": True, "recording": "a.wav"}),
        ("service", "chatterbox/bob/1", {"engine": {"name": "chatterbox"}, "cloned_voices": {"left": TERMS}}),
        ("service", "chatterbox/eve/1", {"engine": {"name": "chatterbox"}}),
        ("talks", "talks/1/left", {"recording": "old.wav"}),
        ("fisher", "kokoro/af_heart", {"recorded": True, "engine": {"name": "kokoro"}}),
    )
    found = {voice.label: (voice.licence, voice.consent) for voice in voices_of_shards([shards], 8, CODEC)}
    assert found == {
        "espeak/en+m1": ("CC0-1.0", PRESET_CONSENT),
        "chatterbox/bob/1": ("CC-BY-4.0", "release of 2026-03-01"),
    }
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not exported: ")]
    assert [line.split("'")[1] for line in said] == [
        "calls/Anna",
        "chatterbox/eve/1",
        "kokoro/af_heart",
        "talks/1/left",
    ]
    assert "is of a recorded person" in said[0] and all("give --include-voices" in line for line in said)


def test_of_many_voices_that_stay_the_first_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voices, "SHOWN_REFUSALS", 2)
    people = [("calls", f"calls/{n}", {"recorded": True}) for n in range(5)]
    shards = shards_of(tmp_path, ("service", "espeak/en+m1", {"engine": {"name": "espeak"}}), *people)
    assert len(voices_of_shards([shards], 8, CODEC)) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not exported: ")]
    assert len(said) == 3 and "'calls/1'" in said[1] and said[2].startswith("not exported: 3 more voices")


def test_if_no_voice_may_leave_the_export_is_refused_with_the_remedy(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, ("calls", "calls/Anna", {"recorded": True}), ("calls", "calls/Bo", {"recorded": True}))
    with refused("licence", "none of 2 held-out voices", "'calls/Anna'", "give --include-voices a folder", "or none"):
        voices_of_shards([shards], 8, CODEC)
    assert voices_of_shards([shards], 0, CODEC) == []


def test_codes_of_another_codec_do_not_leave(tmp_path: Path) -> None:
    shards = shards_of(tmp_path, ("service", "espeak/en+m1", {"engine": {"name": "espeak"}}))
    with refused("bad-combination", shards, "another codec"):
        voices_of_shards([shards], 8, "ef" * 32)
    assert voices_of_shards([shards], 0, "ef" * 32) == []


@pytest.mark.parametrize(
    ("provenance", "speaker"),
    [
        ({}, "kokoro/af_heart"),
        ({"engine": {"name": "chatterbox"}}, "chatterbox/eve/1"),
        ({"engine": {"name": "kokoro"}}, "calls/Anna"),
        ({"engine": "kokoro"}, "kokoro/af_heart"),
        ({"engine": {"name": ["kokoro"]}}, "kokoro/af_heart"),
        ({"engine": {"name": "kokoro"}, "recorded": True}, "kokoro/af_heart"),
        ({"engine": {"name": "kokoro"}, "recorded": "no"}, "kokoro/af_heart"),
        ({"engine": {"name": "chatterbox"}, "cloned_voices": {"right": TERMS}}, "chatterbox/eve/1"),
        ({"cloned_voices": {"left": TERMS | {"consent": " "}}}, "chatterbox/eve/1"),
        ({"cloned_voices": {"left": TERMS | {"licence": None}}}, "chatterbox/eve/1"),
        ({"cloned_voices": {"left": TERMS}, "recorded": True}, "chatterbox/eve/1"),
    ],
)
def test_whatever_is_not_allowed_is_refused_with_the_remedy(provenance: dict[str, Any], speaker: str) -> None:
    with refused("licence", repr(speaker), "--include-voices"):
        voice_rights(provenance, "left", speaker)
