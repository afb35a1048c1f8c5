"""Dia: pieces, chunks, and how a mixture of two voices is cut."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("espeakng_loader")
pytest.importorskip("num2words")
pytest.importorskip("pocketsphinx")

from data_pipelines.sound.audio import Audio
from data_pipelines.speech.engines import open_engine
from data_pipelines.speech.protocols import Speech
from data_pipelines.speech.tts import dia, server
from data_pipelines.text.spoken import expand
from tests.data_pipelines import speech_servers
from tests.data_pipelines.speech_servers import LINES, check_speech, choice_of
from tests.refusals import refused

fakes, manifest, chatterbox_server, dia_server, here = speech_servers.FIXTURES


def test_lines_become_pieces_and_chunks_within_the_limits() -> None:
    long = "This sentence is here to make the turn as long as it takes. " * 8
    lines = [("user", "Hello."), ("agent", long.strip()), ("user", "I see.")]
    pieces = dia.to_pieces(lines)
    assert [piece.tag for piece in pieces] == ["[S1]", *["[S2]"] * (len(pieces) - 2), "[S1]"] and len(pieces) > 4
    assert max(len(piece.text) for piece in pieces) <= dia.PIECE_LETTERS + 20
    chunks = dia.to_chunks(pieces)
    assert [piece for chunk in chunks for piece in chunk] == pieces
    assert max(sum(len(piece.text) for piece in chunk) for chunk in chunks) <= dia.CHUNK_LETTERS
    with refused("bad-value", "3 speakers"):
        dia.to_pieces([*lines, ("other", "Hm.")])
    assert dia.tagged([("[S1]", "a"), ("[S1]", "b"), ("[S2]", "c")]) == "[S1] a b [S2] c"


def test_long_dialogues_keep_their_voices_from_chunk_to_chunk(
    request: pytest.FixtureRequest, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference of later chunks holds the voices of the first, and what it says is not said again."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(dia, "CHUNK_LETTERS", 110)
    engine = open_engine(choice_of("dia-here", request, tmp_path / "store"))
    spoken = engine.converse(LINES, seed=0)
    for (_, text), speech in zip(LINES, spoken, strict=True):
        check_speech(speech, text.split())
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["False", "True"]
    assert "CitySan" not in calls[1] and "Alright" in calls[1]


def mixture(
    gap: float, texts: tuple[str, str] = ("Hello there, my friend.", "What does it cost today?")
) -> tuple[Audio, int, list[Speech], float]:
    espeak = open_engine("espeak")
    parts = [
        espeak.speak(text, voice, seed=0)
        for text, voice in zip(texts, ("espeak/en-us+f2", "espeak/en-us+m2"), strict=True)
    ]
    rate = parts[0].rate
    end = parts[0].words[-1][2]
    offset = round((end + gap - parts[1].words[0][1]) * rate)
    audio = np.zeros(offset + len(parts[1].audio), np.float32)
    audio[: len(parts[0].audio)] += parts[0].audio[: len(audio)]
    audio[offset:] += parts[1].audio
    return np.float32(0.7) * audio, rate, parts, offset / rate


@pytest.mark.parametrize("gap", [0.1, 0.2, 0.5])
def test_a_mixture_is_cut_between_the_turns(gap: float) -> None:
    audio, rate, parts, _offset = mixture(gap)
    texts = ("Hello there, my friend.", "What does it cost today?")
    split = dia.split_mixture(audio, rate, [expand(text) for text in texts])
    for speech, truth in zip(split, parts, strict=True):
        assert speech.seconds == pytest.approx(truth.seconds, abs=0.12)
        # Each piece is its own speaker alone, so that it correlates with that voice as it was before the mixture.
        size = 1 << (len(truth.audio) + len(speech.audio)).bit_length()
        cross = np.fft.irfft(np.fft.rfft(truth.audio, size) * np.conj(np.fft.rfft(speech.audio, size)), size)
        assert np.max(cross) / np.linalg.norm(truth.audio) / np.linalg.norm(speech.audio) > 0.97


@pytest.mark.parametrize("gap", [-0.15, -0.3, -0.5])
def test_turns_that_lie_on_each_other_are_refused(gap: float) -> None:
    audio, rate, _, _ = mixture(gap)
    with refused("bad-answer", "turns overlap", "'friend.'", "'What'"):
        dia.split_mixture(audio, rate, [expand("Hello there, my friend."), expand("What does it cost today?")])


@pytest.mark.parametrize("way", ["dia-http", "dia-here"])
def test_a_dialogue_with_overlaps_is_refused_whatever_the_seed(
    way: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    engine = open_engine(choice_of(way, request, tmp_path))
    with refused("bad-answer", "turns overlap"):
        engine.converse([("agent", "Overlapping is bad."), ("user", "Why is it so bad?")], seed=0)


def test_dia_refuses_a_text_that_is_too_long(here: None) -> None:
    engine = server.Dia()
    with pytest.raises(server.Refused, match="at most 1024 bytes"):
        engine.say("[S1] " + "a" * 1024, b"", 0, {})
    with pytest.raises(server.Refused, match="begin with .S1."):
        engine.say("[S2] hello", b"", 0, {})
