"""What --mask leaves in sound, words and records: nothing of what was found, and all that was not."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.recordings.mask import mask_call, mask_prompt
from data_pipelines.recordings.utterances import Utterance
from data_pipelines.records.schema import Word
from data_pipelines.shards.encode import build_shards
from data_pipelines.shards.manifest import read_manifest
from tests.data_pipelines.recordings.imports import imported, run_format, run_moshi
from tests.data_pipelines.tiny_dialogues import TinyCodec
from tests.data_pipelines.tiny_recordings import RATE, bursts, write_wav
from tests.refusals import refused


def said(text: str, start: float) -> list[Word]:
    """Words of 0.3 s, one each 0.4 s from `start` on."""
    return [
        Word(text=part, start=round(start + 0.4 * n, 2), end=round(start + 0.4 * n + 0.3, 2))
        for n, part in enumerate(text.split())
    ]


LEFT = said("Hello, this is Jane Miller, how can I help? What is your phone number?", 0.5)
RIGHT = said("Sure, it's four one five, five five five, oh one three four. Thanks, Jane.", 7.0)
SECONDS = 40.0
SECRET = ("Jane", "Miller", "four", "one", "five", "oh", "three")


def sound(seconds: float = SECONDS, crosstalk: float = 0.1) -> np.ndarray:
    """Both channels; each carries some of the other one."""
    left, right = (bursts(words, seconds, seed=n) for n, words in enumerate((LEFT, RIGHT)))
    return np.stack([left + crosstalk * right, right + crosstalk * left])


def spoken(*more: Utterance) -> dict[str, list[Utterance]]:
    whole = [Utterance(start=w[0].start, end=w[-1].end, words=tuple(w)) for w in (LEFT, RIGHT)]
    return {"left": [whole[0]], "right": [whole[1], *more]}


def level(audio: np.ndarray, start: float, end: float) -> float:
    return float(np.sqrt(np.square(audio[round(start * RATE) : round(end * RATE)]).mean()))


def is_secret(word: Word) -> bool:
    return word.text.strip(".,") in SECRET


def test_the_sound_of_a_find_is_as_quiet_as_the_line_on_both_channels_and_the_rest_is_untouched() -> None:
    before = sound()
    masked = mask_call(before, RATE, spoken(), source_rate=RATE)
    assert masked.counts == {"name": 2, "number": 1} and masked.names == {"jane", "miller"}
    for word in (*LEFT, *RIGHT):
        for channel, own in enumerate((LEFT, RIGHT)):
            if is_secret(word):
                noise = level(masked.audio_CS[channel], word.start - 0.03, word.end + 0.03)
                assert 0.5e-4 < noise < 2e-4, (word, channel)  # The line has 1e-4.
            elif word in own and not any(is_secret(w) and abs(w.start - word.start) < 0.6 for w in (*LEFT, *RIGHT)):
                part = slice(round(word.start * RATE), round(word.end * RATE))
                assert np.array_equal(masked.audio_CS[channel, part], before[channel, part]), word
    edges = np.abs(np.diff(masked.audio_CS, axis=1)).max()
    assert edges <= np.abs(np.diff(before, axis=1)).max() * 1.01  # No click.


def test_words_become_one_marker_each_and_the_same_name_is_masked_everywhere() -> None:
    masked = mask_call(sound(), RATE, spoken(), source_rate=RATE)
    left, right = ([w.text for u in masked.spoken[s] for w in u.words] for s in ("left", "right"))
    assert " ".join(left) == "Hello, this is [name], how can I help? What is your phone number?"
    assert " ".join(right) == "Sure, it's [number]. Thanks, [name]."
    assert (
        mask_prompt("You work for Acme and your name is Jane Miller.") == "You work for Acme and your name is [name]."
    )
    assert mask_prompt("Ask whether Jane is in.", masked.names) == "Ask whether [name] is in."


def test_speech_without_words_is_quiet_because_nobody_knows_what_it_says() -> None:
    audio = sound()
    audio[1, round(20 * RATE) : round(22 * RATE)] = 0.3
    masked = mask_call(audio, RATE, spoken(Utterance(start=20.0, end=22.0)), source_rate=RATE)
    assert masked.counts["speech"] == 1 and masked.spoken["right"][1].is_silent
    assert level(masked.audio_CS[1], 20.02, 21.98) < 2e-4
    assert np.array_equal(masked.audio_CS[0, 20 * RATE : 22 * RATE], audio[0, 20 * RATE : 22 * RATE])


def test_words_of_the_other_side_within_a_find_go_with_it() -> None:
    both = spoken()
    at = next(w for w in RIGHT if w.text == "oh")
    both["left"] = [
        *both["left"],
        Utterance(start=at.start, end=at.end, words=(Word(text="mhm", start=at.start, end=at.end),)),
    ]
    masked = mask_call(sound(), RATE, both, source_rate=RATE)
    assert [w.text for w in masked.spoken["left"][1].words] == [] and masked.spoken["left"][1].is_silent


def write(root: Path, **extra: object) -> None:
    """The call above, and more talk for windows and voice clips, in moshi-finetune's layout."""
    more = {"left": [], "right": []}  # type: dict[str, list[Word]]
    for n, start in enumerate(np.arange(16.0, 75.0, 6.0)):
        more[("left", "right")[n % 2]] += said("and then we went home and had some tea", float(start))
    words = {"left": [*LEFT, *more["left"]], "right": [*RIGHT, *more["right"]]}
    audio = np.stack([bursts(words[side], 80.0, seed=n) for n, side in enumerate(("left", "right"))])
    write_wav(root / "data_stereo/a.wav", audio)
    labels = {"left": "SPEAKER_MAIN", "right": "SPEAKER_OTHER"}
    rows = sorted((w.start, w.end, w.text, labels[side]) for side in words for w in words[side])
    record = {"alignments": [[text, [start, end], label] for start, end, text, label in rows], **extra}
    (root / "data_stereo/a.json").write_text(json.dumps(record))
    (root / "list.jsonl").write_text(json.dumps({"path": "data_stereo/a.wav", "duration": 80.0}) + "\n")


def test_an_import_that_masks_leaves_no_name_or_number_and_its_shards_say_so(tmp_path: Path) -> None:
    write(tmp_path, role="Your name is Jane Miller.", people=["Jane Miller", "Oswin Tapper"])
    fields = ["--role-field", "left=role", "--speaker-field", "left=people.0", "right=people.1"]
    out = run_moshi(tmp_path, "--mask", "--split", "train", *fields)
    found = imported(out)
    kept = "".join(path.read_text() for path in out.rglob("*.json"))
    for secret in ("Jane", "Miller", "Oswin", "Tapper", "four", "three"):
        assert secret not in kept, secret
    first = next(d for _, d in found if d.provenance["window"][0] < 1)
    assert "[number]." in [w.text for w in first.right.words]
    for folder, dialogue in found:
        assert dialogue.provenance["masked"] == {"name": 2, "number": 1}
        assert not dialogue.left.is_agent or dialogue.left.role_prompt == "Your name is [name]."
        audio_SC, _ = soundfile.read(folder / "audio.flac")
        start = dialogue.provenance["window"][0]
        for word in (w for w in (*LEFT, *RIGHT) if is_secret(w) and start == 0.0 and w.end < dialogue.seconds):
            assert np.abs(audio_SC[round(word.start * RATE) : round(word.end * RATE)]).max() < 1e-3
    build_shards([out], TinyCodec(), tmp_path / "shards")
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.masked == manifest.recorded == len(found)


def test_the_settings_of_an_import_that_masks_name_nobody_and_are_told_from_others(tmp_path: Path) -> None:
    write(tmp_path)
    record = (tmp_path / "data_stereo/a.json").read_text()
    (tmp_path / "data_stereo/a.json").write_text(
        record.replace("SPEAKER_MAIN", "Jane Miller").replace("SPEAKER_OTHER", "Tapper")
    )
    options = ["--mask", "--split", "train", "--labels", "Jane Miller", "Tapper", "--role-prompt"]
    out = run_moshi(tmp_path, *options, "Your name is Jane Miller.")
    kept = "".join(path.read_text() for path in out.rglob("*") if path.suffix in (".json", ".jsonl"))
    assert (out / "import.json").is_file() and "Jane" not in kept and "Miller" not in kept and "Tapper" not in kept
    run_moshi(tmp_path, *options, "Your name is Jane Miller.")
    with refused("other-settings", "role_prompts"):
        run_moshi(tmp_path, *options, "Your name is Jane Smith.")


def test_masking_survives_the_way_through_every_export_and_back(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    write(tmp_path)
    first = run_moshi(tmp_path, "--mask", "--split", "train")
    build_shards([first], TinyCodec(), tmp_path / "shards")
    verbs.main(["to-moshi", str(tmp_path / "shards"), "--out", str(tmp_path / "moshi")])
    verbs.main(["to-hf", str(tmp_path / "shards"), "--out", str(tmp_path / "hf")])
    text = ["--text-field", "left=left", "right=right", "--audio-field", "audio"]
    voices = ["--voice-field", "left=left_voice", "right=right_voice"]
    rounds = {
        "moshi": imported(run_moshi(tmp_path / "moshi", "--voice-field", "left=ppx.left.voice", agent="left")),
        "hf": run_format("hf", tmp_path / "hf", *text, *voices),
        "webdataset": run_format(
            "webdataset", tmp_path / "shards/train", "--audio-field", "audio.flac", "--text-field", "meta.json"
        ),
    }
    for name, found in rounds.items():
        assert found and all(d.provenance["masked"] == {"name": 2, "number": 1} for _, d in found), name
        build_shards([found[0][0].parent], TinyCodec(), tmp_path / f"{name}-shards")
        assert read_manifest(tmp_path / f"{name}-shards").masked == len(found)
    markers = {w.text for name in ("moshi", "hf") for _, d in rounds[name] for w in (*d.left.words, *d.right.words)}
    assert markers & {"[name],", "[number].", "[name]."}, "nothing that was masked came back"


def test_masking_again_adds_what_is_found_now(tmp_path: Path) -> None:
    write(tmp_path, ppx={"masked": {"name": 3, "email": 1}})
    for _, dialogue in imported(run_moshi(tmp_path, "--mask", "--split", "train")):
        assert dialogue.provenance["masked"] == {"email": 1, "name": 5, "number": 1}


def test_without_the_option_nothing_is_masked(tmp_path: Path) -> None:
    write(tmp_path)
    found = imported(run_moshi(tmp_path, "--split", "train"))
    assert any("Jane." in [w.text for w in d.right.words] for _, d in found)
    assert all("masked" not in d.provenance for _, d in found)


def test_what_nobody_heard_is_not_called_masked(tmp_path: Path) -> None:
    write(tmp_path)
    with refused("bad-combination", "--mask", "--voice-field"):
        run_moshi(tmp_path, "--mask", "--voice-field", "left=v", "right=v", out="b")
    with refused("bad-combination", "--mask", "--voice:"):
        run_moshi(tmp_path, "--mask", "--voice", "left=v.wav", out="b")
    record = json.loads((tmp_path / "data_stereo/a.json").read_text())
    record["alignments"] = [row for row in record["alignments"] if row[2] == "SPEAKER_MAIN"]
    (tmp_path / "data_stereo/a.json").write_text(json.dumps(record))
    with refused("no-data"):
        run_moshi(tmp_path, "--mask", "--fill", "agent", out="c", agent="left")
    assert "words are unknown" in (tmp_path / "c/report.json").read_text()
