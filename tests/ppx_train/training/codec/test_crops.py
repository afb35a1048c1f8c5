"""Crops, labels and losses against closed forms."""

import math

import numpy as np
import pytest
import torch

from model.config import SAMPLE_RATE
from ppx_train.config.codec import CodecData
from ppx_train.training.codec.augment import telephone
from ppx_train.training.codec.crops import UNKNOWN, Crops
from ppx_train.training.codec.spectra import Adversary, SpectralLoss
from ppx_train.training.codec.teachers import Teachers
from ppx_train.training.codec.tracks import Track

PLAIN = CodecData(
    paths=["x"], batch=4, seconds=0.8, speed=0.0, telephone=0.0, noise=0.0, gaps=0.0, tones=0.0, heldout_crops=1
)


def ramp(seconds: float = 4.0) -> Track:
    """A recording whose sample tells its time, whose sound changes every 100 ms, whose feature is its place."""
    count = int(seconds * SAMPLE_RATE)
    audio = (np.arange(count) / count * 30000 + 100).astype(np.int16)
    sounds = [(n / 10, (n + 1) / 10, str(n)) for n in range(int(seconds * 10))]
    places = np.arange(int(seconds * 50), dtype=np.float16)[:, None].repeat(2, 1)
    return Track(audio, sounds, places)


def crops(data: CodecData = PLAIN, seed: int = 0) -> Crops:
    return Crops([ramp()], data, [str(n) for n in range(40)], seed)


@pytest.mark.parametrize(("start", "speed"), [(0, 1.0), (12345, 1.0), (30000, 1.2), (777, 0.85), (-6000, 1.1)])
def test_labels_and_features_are_of_the_sound_that_is_heard(start: int, speed: float) -> None:
    drawn = crops()
    audio_S, labels, features_TD = drawn.cut(drawn.recordings[0], drawn.labels[0], start, speed, None)
    assert features_TD is not None
    seconds_S = (audio_S * 32768 - 100) / 30000 * 4.0  # what the ramp says
    for place, label in enumerate(labels):
        seconds = float(seconds_S[place * 480 + 240])
        if audio_S[place * 480] == 0:  # before the recording
            assert label == UNKNOWN or seconds < 0.02
        elif 0.02 < (seconds * 10) % 1 / 10 < 0.08:
            assert label == int(seconds * 10)
    for frame, (feature, _, known) in enumerate(features_TD):
        middle = float(seconds_S[frame * 1920 + 960])
        if known:
            assert abs(float(feature) - (middle * 50 - 0.5)) < 0.6
        else:
            assert audio_S[frame * 1920] == 0


def test_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    varied = CodecData(paths=["x"], batch=3, seconds=0.8)
    one, other = crops(varied), crops(varied)
    for step in (5, 2, 5):
        assert torch.equal(one(step).wav_B1S, other(step).wav_B1S)
    assert not torch.equal(one(1).wav_B1S, one(2).wav_B1S)
    assert not torch.equal(one(1).wav_B1S, crops(varied, seed=1)(1).wav_B1S)
    assert float(one(1).wav_B1S.abs().max()) <= 1


def test_outside_a_recording_nothing_is_known() -> None:
    short = Track(ramp(0.4).audio_S, [(0.0, 0.4, "0")], None)
    (batch,) = Crops([short], PLAIN, ["0"], 0).fixed(1)
    assert batch.labels[0].tolist() == [0] * 20 + [UNKNOWN] * 20 and batch.features_BTD is None


def test_a_telephone_line_keeps_its_band() -> None:
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE

    def level(hertz: float) -> float:
        heard = telephone(0.5 * np.sin(2 * np.pi * hertz * times).astype(np.float32))
        return float(np.sqrt(np.mean(heard**2)) * math.sqrt(2) / 0.5)

    assert all(abs(level(hertz) - 1) < 0.05 for hertz in (300, 1000, 3000))
    assert all(level(hertz) < 0.05 for hertz in (100, 5000, 9000))


def test_spectral_loss_of_a_change_of_level_is_its_logarithm() -> None:
    noise = torch.randn(2, 24000, generator=torch.Generator().manual_seed(0)) * 0.1
    loss = SpectralLoss()
    log, linear = loss(noise, noise)
    assert float(log) == 0 and float(linear) == 0
    log, _ = loss(noise * 2, noise)
    assert float(log) == pytest.approx(math.log(2), rel=0.02)


def test_judges_learn_to_tell_and_only_their_own_loss_trains_them() -> None:
    torch.manual_seed(0)
    adversary = Adversary()
    real, made = torch.randn(2, 12000) * 0.1, torch.randn(2, 12000).cumsum(1) * 0.01
    optimizer = torch.optim.AdamW(adversary.parameters(), lr=3e-4, betas=(0.5, 0.9))
    before = float(adversary.judge_loss(made, real).detach())
    for _ in range(100):
        optimizer.zero_grad()
        adversary.judge_loss(made, real).backward()
        optimizer.step()
    assert float(adversary.judge_loss(made, real).detach()) < 0.7 * before
    made.requires_grad_()
    fooled, inside = adversary.codec_loss(made, real)
    assert float(fooled.detach()) > 1 and float(inside.detach()) > 0
    assert float(adversary.codec_loss(real, real)[1].detach()) == 0


def test_sounds_that_are_unknown_cost_nothing() -> None:
    torch.manual_seed(0)
    teachers = Teachers(16, sounds=5, features=0)
    first = torch.randn(1, 16, 3)
    labels = torch.full((1, 12), UNKNOWN)
    assert float(teachers.read_sounds(first, labels)) == 0
    labels[0, 4] = 2
    logits = teachers.sounds(first.transpose(1, 2)).view(1, 12, 5) if teachers.sounds is not None else first
    wanted = -torch.log_softmax(logits[0, 4], 0)[2]
    assert float(teachers.read_sounds(first, labels)) == pytest.approx(float(wanted), rel=1e-5)
