"""Speaker embeddings against those of the original package (tests/golden), voice by voice."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.listening import speaker
from data_pipelines.sound.audio import Audio
from tests.data_pipelines.voices import RATE, voice
from tests.paths import GOLDEN
from tests.refusals import refused

pytest.importorskip("webrtcvad")
SPEAKERS = GOLDEN / "speaker_resemblyzer.npz"
"""From Resemblyzer 0.1.4's own `preprocess_wav` and `embed_utterance`, on the same four voices."""
VOICES = ((110, 1, 0, 5, 1), (210, 1.15, 1, 7.3, 1), (110, 1, 2, 1.1, 1), (140, 0.9, 3, 4, 0.02))
has_weights = pytest.mark.skipif(importlib.util.find_spec("resemblyzer") is None, reason="Resemblyzer is not installed")


def spoken(pitch: float, throat: float, seed: int, seconds: float, gain: float) -> Audio:
    return voice(seconds, pitch, throat, seed) * np.float32(gain)


@pytest.mark.parametrize("number", range(len(VOICES)))
def test_silences_are_cut_as_the_original_cuts_them(number: int) -> None:
    assert len(speaker.voiced(spoken(*VOICES[number]), RATE)) == np.load(SPEAKERS)["voiced"][number]


@has_weights
@pytest.mark.parametrize("number", range(len(VOICES)))
def test_an_embedding_is_the_originals(number: int) -> None:
    vector = speaker.open_speaker().embed(speaker.voiced(spoken(*VOICES[number]), RATE))
    np.testing.assert_allclose(vector, np.load(SPEAKERS)["vectors"][number], atol=1e-6)
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_silence_has_no_voice_and_quiet_speech_has_as_much_as_loud() -> None:
    assert len(speaker.voiced(np.zeros(RATE, np.float32), RATE)) == 0
    assert len(speaker.voiced(np.zeros(100, np.float32), RATE)) == 0
    x = voice(4, 120)
    quiet, loud = (speaker.voiced(x / np.float32(divisor), RATE) for divisor in (100, 10))
    assert abs(len(quiet) - len(loud)) <= 0.1 * RATE


def test_the_shortest_turns_have_a_voice_too() -> None:
    x = voice(1, 120)
    for windows in range(1, 12):
        heard = speaker.voiced(x[3000 : 3000 + windows * speaker.VAD_SAMPLES + 7], RATE)
        assert len(heard) <= windows * speaker.VAD_SAMPLES and len(heard) % speaker.VAD_SAMPLES == 0


def test_the_mel_bands_are_triangles_of_area_two_over_their_width() -> None:
    """Their area in Hz is 1 for every band, and the centre of the last one lies below 8 kHz."""
    filters = speaker._mel_filters().numpy()
    fine = filters[20:].sum(axis=1) * 8000 / 200  # The narrow bands below are coarse on bins of 40 Hz.
    np.testing.assert_allclose(fine, 1, atol=0.04)
    assert (np.diff(filters.argmax(axis=1)) >= 0).all()


def test_missing_or_other_weights_are_refused(tmp_path: Path) -> None:
    with refused("missing-engine", tmp_path / "pretrained.pt", "pip install --no-deps"):
        speaker.check_weights(tmp_path / "pretrained.pt")
    (tmp_path / "pretrained.pt").write_bytes(b"x")
    with refused("checksum", tmp_path / "pretrained.pt", "2d711642b726b044", "39373b86"):
        speaker.check_weights(tmp_path / "pretrained.pt")


def test_an_unknown_embedder_is_refused() -> None:
    with refused("unknown-name", "'ecapa'", "resemblyzer", "wavlm:MODEL"):
        speaker.open_speaker("ecapa")


def test_a_small_random_wavlm_embeds_and_says_which_weights_it_has(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "xvector_output_dim": 8,
    }
    small |= {
        "conv_dim": (8,) * 7,
        "tdnn_dim": (8,) * 5,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    transformers.WavLMForXVector(transformers.WavLMConfig(**small)).save_pretrained(tmp_path / "tiny")
    embedder = speaker.open_speaker(f"wavlm:{tmp_path / 'tiny'}")
    a, b = (embedder.embed(speaker.voiced(voice(3, pitch), RATE)) for pitch in (110, 210))
    assert a.shape == (8,) and np.linalg.norm(a) == pytest.approx(1, abs=1e-5) and speaker.similarity(a, b) < 1
    assert embedder.name.startswith("wavlm:") and len(embedder.identity()["weights"]) == 16
    with refused("missing-engine", f"speaker wavlm:{tmp_path / 'nowhere'}"):
        speaker.open_speaker(f"wavlm:{tmp_path / 'nowhere'}")
