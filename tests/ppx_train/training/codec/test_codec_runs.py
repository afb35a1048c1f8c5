"""Whole runs that train a codec of a few thousand weights: exact resume, its file, bad input in one line."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import torch

from model.errors import Code, UserError
from model.mimi.codec import Mimi
from model.mimi.files import load_mimi
from ppx_train.cli.train import command
from ppx_train.config.codec import CodecRun
from ppx_train.config.load import layers_of, merge
from ppx_train.training.checkpoint import checkpoints, read_checkpoint
from ppx_train.training.codec import module as codec_module
from ppx_train.training.codec.run import train_codec
from ppx_train.training.curves import read_metrics
from ppx_train.training.saved_tensors import whole_tensors
from tests.refusals import refused

RATE = 24000
TINY = ["model.filters=4", "model.width=32", "model.layers=1", "model.context=8", "model.bins=16"]
SHORT = ["data.batch=2", "data.seconds=0.8", "data.heldout_crops=3", "optim.warmup_steps=2", "logging.every=1"]
PHASES = [
    "loss.quantize_from=3",
    "loss.decode_from=4",
    "loss.adversary=0.1",
    "loss.adversary_from=6",
    "loss.recogniser=0",
]
RARE = ["trainer.checkpoint_every=5", "trainer.heldout_every=5", "logging.tensorboard=false"]


def write_speech(folder: Path, count: int = 3, seconds: float = 1.5) -> Path:
    """Buzzing files, each with two sounds beside it, the second of a higher pitch."""
    folder.mkdir(parents=True)
    for number in range(count):
        times = np.arange(int(seconds * RATE)) / RATE
        pitch = np.where(times < seconds / 2, 110 + 10 * number, 260 + 10 * number)
        wave = 0.2 * np.sign(np.sin(2 * np.pi * np.cumsum(pitch) / RATE)).astype(np.float32)
        sf.write(folder / f"{number}.flac", wave, RATE)
        half, end = seconds / 2, seconds
        (folder / f"{number}.tsv").write_text(f"0\t{half}\ta\n{half}\t{end}\tb\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech(tmp_path_factory.mktemp("codec") / "speech")


def settings(speech: Path, run_dir: Path, *more: str) -> CodecRun:
    """A run of ten steps that meets every phase."""
    words = [
        "recipe=codec_small", f"data.paths=[{speech}]", f"data.heldout=[{speech}]", f"run_dir={run_dir}", "steps=10",
        *TINY, *SHORT, *PHASES, *RARE, *more,
    ]  # fmt: skip
    run = merge(layers_of(words))
    assert isinstance(run, CodecRun)
    return run


def digest(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "mimi.safetensors").read_bytes()).hexdigest()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The next run gets a signal in this step."""
    ordinary = codec_module.CodecModule.training_step

    def stops(self: codec_module.CodecModule, *args: object) -> None:
        if self.global_step == step - 1:
            self.agreement.stop_signal = 2
        ordinary(self, *args)

    monkeypatch.setattr(codec_module.CodecModule, "training_step", stops)


@pytest.fixture(scope="module")
def whole(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps without a stop."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train_codec(settings(speech, run_dir)) == 0
    return run_dir


@pytest.mark.parametrize("stop", [2, 5, 8])
def test_a_stopped_run_ends_with_the_same_codec(
    speech: Path, whole: Path, tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(patched, stop)
        assert train_codec(settings(speech, run_dir)) == 130
    assert int(read_checkpoint(checkpoints(run_dir)[-1])["global_step"]) == stop
    assert train_codec(settings(speech, run_dir, "resume=true")) == 0
    assert digest(run_dir) == digest(whole)
    states = [whole_tensors(read_checkpoint(checkpoints(folder)[-1])) for folder in (run_dir, whole)]
    ours, theirs = (state["state_dict"] for state in states)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_with_the_patch_decoder_ends_with_the_same_codec_and_keeps_its_shape(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model.decoder=patch", "trainer.precision=bf16-mixed"]
    assert train_codec(settings(speech, tmp_path / "whole", *words)) == 0
    with monkeypatch.context() as patched:
        stop_at(patched, 5)
        assert train_codec(settings(speech, tmp_path / "run", *words)) == 130
    assert train_codec(settings(speech, tmp_path / "run", *words, "resume=true")) == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "whole")
    codec = load_mimi(tmp_path / "run")
    assert codec.config.patch is not None and codec.decode(torch.zeros(1, 8, 3, dtype=torch.int64)).shape == (
        1,
        1,
        5760,
    )
    with refused("bad-combination", "model.decoder=seanet", "patch"):
        init = [f"model.init={tmp_path / 'run'}", "model.decoder=seanet", "loss.quantize_from=0"]
        train_codec(settings(speech, tmp_path / "other", *init))


def test_every_phase_is_logged_and_drawn_and_the_codec_has_its_constants(whole: Path) -> None:
    metrics = read_metrics(whole)
    first = {name: metrics[f"train/{name}"][0][0] for name in ("readout", "phones", "mel", "judge")}
    assert first == {"readout": 1, "phones": 1, "mel": 5, "judge": 7}  # steps are counted from 1 in the log
    assert [step for step, value in metrics["train/commit"] if value] == list(range(4, 11))
    assert [step for step, _ in metrics["heldout/mel"]] == [5, 10]
    assert (whole / "curves.png").stat().st_size > 10_000
    codec = load_mimi(whole)
    assert codec.card == 16 and codec.config.silence_codes is not None and codec.config.sine_codes is not None


def test_streaming_with_the_trained_codec_equals_one_pass(whole: Path) -> None:
    codec: Mimi = load_mimi(whole)
    wav = torch.randn(1, 1, 6 * 1920, generator=torch.Generator().manual_seed(0)) * 0.1
    codes = codec.encode(wav)
    encoder, decoder = codec.init_encoder_state(1), codec.init_decoder_state(1)
    parts = [codec.encode_frame(encoder, frame) for frame in wav.split(1920, 2)]
    assert torch.equal(torch.cat(parts, 2), codes)
    made = torch.cat([codec.decode_frame(decoder, part) for part in parts], 2)
    assert torch.allclose(made, codec.decode(codes), atol=1e-5)


def test_the_recogniser_teaches_and_its_reduction_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, run_dir = write_speech(tmp_path / "here"), tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert train_codec(settings(here, run_dir, "loss.recogniser=1")) == 130
    kept = (run_dir / "audio" / "reduction.safetensors").read_bytes()
    write_speech(here / "more", count=5)
    with refused("checksum", "data.heldout", "data.allow_changed"):
        train_codec(settings(here, run_dir, "loss.recogniser=1", "resume=true"))
    assert train_codec(settings(here, run_dir, "loss.recogniser=1", "resume=true", "data.allow_changed=true")) == 0
    assert (run_dir / "audio" / "reduction.safetensors").read_bytes() == kept
    assert all(math.isfinite(value) for _, value in read_metrics(run_dir)["train/recogniser"])


def test_a_shipped_codec_goes_on_with_its_own_sizes(speech: Path, tmp_path: Path) -> None:
    words = ["model.init=small", "loss.quantize_from=0", "loss.decode_from=0", "steps=3"]
    own = [f"model.{name}=null" for name in ("filters", "width", "layers", "context", "bins")]
    run = settings(speech, tmp_path / "run", *own, *words)
    assert train_codec(run) == 0
    before, after = load_mimi(Path("model/assets/mimi_small.safetensors")), load_mimi(tmp_path / "run")
    assert after.config.seanet == before.config.seanet and after.fingerprint() != before.fingerprint()
    with refused("bad-combination", "model.filters=4", "small"):
        train_codec(settings(speech, tmp_path / "other", *words))


def test_other_audio_or_another_shape_is_refused_on_resume(speech: Path, whole: Path, tmp_path: Path) -> None:
    other = write_speech(tmp_path / "other", count=2)
    with refused("other-settings", "data.paths"):
        train_codec(settings(other, whole, "resume=true", f"data.heldout=[{speech}]"))
    with refused("other-settings", "model.width=64"):
        train_codec(settings(speech, whole, "resume=true", "model.width=64"))
    with refused("exists", whole):
        train_codec(settings(speech, whole))


def test_audio_that_cannot_teach_is_refused(speech: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with refused("no-data", empty):
        train_codec(settings(empty, tmp_path / "run"))
    with refused("not-found", tmp_path / "none"):
        train_codec(settings(tmp_path / "none", tmp_path / "run"))
    sf.write(empty / "silent.wav", np.zeros(RATE), RATE)
    sf.write(empty / "short.wav", np.ones(100) * 0.1, RATE)
    (empty / "text.flac").write_text("no sound")
    with refused("no-data", empty):
        train_codec(settings(empty, tmp_path / "run"))
    sf.write(empty / "speech.wav", np.random.default_rng(0).standard_normal(RATE) * 0.1, RATE)
    with refused("bad-combination", "loss.phones"):
        train_codec(settings(empty, tmp_path / "run"))
    (empty / "speech.tsv").write_text("0\tx\ta\n")
    with refused("bad-record", "speech.tsv:1"):
        train_codec(settings(empty, tmp_path / "run"))


def test_losses_that_are_not_finite_end_the_run(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = codec_module.Adversary.codec_loss

    def broken(self: codec_module.Adversary, *args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        fooled, inside = ordinary(self, *args)
        return fooled * math.nan, inside

    monkeypatch.setattr(codec_module.Adversary, "codec_loss", broken)
    with refused("bad-value", "5 steps", "loss.adversary"):
        train_codec(settings(speech, tmp_path / "run", "loss.adversary_from=4", "loss.decode_from=4", "steps=20"))


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (["model.dim=5"], "unknown-name", ["model.dim"]),
        (["data.seconds=0.81"], "bad-value", ["0.81"]),
        (["loss.adversary_from=1"], "bad-combination", ["loss.adversary_from=1"]),
        (["model.init=small"], "bad-combination", ["loss.quantize_from"]),
        (["trainer.devices=2"], "bad-combination", ["one process"]),
        (["model.decoder=vocos"], "bad-value", ["model.decoder=vocos"]),
        (["model.width=33"], "bad-value", ["model.width=33"]),
        (["job=other"], "bad-value", ["job"]),
        (["data.speed=2"], "bad-value", ["data.speed=2"]),
    ],
)
def test_settings_that_cannot_work_are_refused(
    speech: Path, tmp_path: Path, words: list[str], code: Code, names: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        train_codec(settings(speech, tmp_path / "run", *words))
    assert caught.value.code == code and all(name in str(caught.value) for name in names), str(caught.value)


def test_the_command_prints_a_codecs_configuration(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert command(["recipe=codec_small", "--print"]) == 0
    printed = capsysbinary.readouterr().out.decode()
    assert "job: codec" in printed and "quantize_from" in printed and "lora" not in printed
