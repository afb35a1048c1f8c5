"""Wav to wav, on a model of a few thousand random weights."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from model.config import FRAME_SAMPLES, UNGENERATED_ID, LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.mimi.codec import Mimi
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.weights.checkpoint import config_to_dict, save_native
from ppx_train.inference import offline
from ppx_train.inference.loading import Release, encode_voice, find_voice, load_release
from ppx_train.inference.offline import Conversation, chat
from ppx_train.inference.timeline import SpokenWord, draw_timeline
from tests.ppx_train.fixtures import make_codec, make_tokenizer

CONFIG = LMConfig(
    dim=32, num_layers=2, num_heads=2, depformer_dim=16, depformer_dim_feedforward=66, depformer_num_heads=2,
    depformer_num_layers=1, text_card=320, card=64, context=40,
)  # fmt: skip
GREEDY = Sampling(greedy=True)


def noise(seconds: float, rate: int = 24000, channels: int = 1, seed: int = 0) -> np.ndarray:
    samples = 0.2 * np.random.default_rng(seed).standard_normal((int(seconds * rate), channels))
    return samples.astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder in the public layout: no sidecar, 16 depth steps."""
    folder = tmp_path_factory.mktemp("release") / "tiny"
    torch.manual_seed(0)
    save_native(folder, DuplexLM(CONFIG))
    make_codec(folder / "mimi.safetensors")
    make_tokenizer(folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def release(folder: Path) -> Release:
    return load_release(folder)


def arguments(folder: Path, tmp_path: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    offline.add_arguments(parser)
    user = tmp_path / "user.wav"
    if not user.exists():
        soundfile.write(user, noise(1.5), 24000)
    fixed = ["--model", str(folder), "--input-wav", str(user), "--output-wav", str(tmp_path / "out.wav")]
    return parser.parse_args([*fixed, "--device", "cpu", *more])


def test_a_conversation_is_codec_and_stream_frame_by_frame(release: Release) -> None:
    user = noise(2.0)[:, 0]
    prompt = release.prompt(torch.randint(64, (8, 20)), "You are Jane.")
    conversation = chat(release, user, prompt_KP=prompt, sampling=GREEDY)

    stream = DuplexStream(release.lm, GREEDY)
    state = stream.init_state(1)
    stream.prefill(state, prompt[None])
    user_codes = release.codec.encode(torch.from_numpy(user)[None, None])
    agent = torch.stack([stream.step(state, user_BQ) for user_BQ in user_codes.unbind(2)], dim=2)
    assert torch.equal(conversation.codes_AT, agent[0])
    wave = release.codec.decode(agent[:, 1:])[0, 0, : len(user)]
    np.testing.assert_allclose(conversation.agent_S, wave.numpy(), rtol=1e-4, atol=1e-3)


def test_the_answer_is_as_long_as_the_question_and_a_part_of_a_frame_counts(release: Release) -> None:
    for samples in (1, FRAME_SAMPLES, FRAME_SAMPLES * 3 + 777):
        conversation = chat(release, noise(1.0)[:samples, 0], sampling=GREEDY)
        assert len(conversation.agent_S) == samples
        assert conversation.codes_AT.shape == (9, -(-samples // FRAME_SAMPLES))


def test_without_a_prompt_the_first_frame_is_silence_and_pad(release: Release) -> None:
    conversation = chat(release, noise(1.0)[:, 0], sampling=GREEDY)
    assert conversation.text_ids[0] == UNGENERATED_ID and UNGENERATED_ID not in conversation.text_ids[1:]
    assert not conversation.agent_S[:FRAME_SAMPLES].any() and conversation.agent_S[FRAME_SAMPLES:].any()
    assert conversation.pieces(release.tokenizer)[0] == "PAD"


def test_a_seed_repeats_a_conversation(release: Release) -> None:
    first, again, other = (chat(release, noise(1.0)[:, 0], sampling=Sampling(), seed=n) for n in (1, 1, 2))
    assert torch.equal(first.codes_AT, again.codes_AT) and np.array_equal(first.agent_S, again.agent_S)
    assert not torch.equal(first.codes_AT, other.codes_AT)


def test_words_are_put_together_and_timed_by_their_first_piece(release: Release) -> None:
    tokenizer = release.tokenizer
    hello, april = tokenizer.encode("hello"), tokenizer.encode("april")  # "hello" is spelt in letters
    assert len(hello) > 1
    ids = [3, 3, 0, *hello, 3, 0, *april, 3]
    codes = torch.tensor([ids] + [[0] * len(ids)] * 8)
    conversation = Conversation(agent_S=np.zeros(1, np.float32), codes_AT=codes, prompt_seconds=0, step_seconds=1)
    april_frame = 3 + len(hello) + 2
    assert conversation.words(tokenizer) == [
        SpokenWord(text="hello", seconds=3 * 0.08),
        SpokenWord(text="april", seconds=april_frame * 0.08),
    ]
    pieces = conversation.pieces(tokenizer)
    assert pieces[:3] == ["PAD", "PAD", "EPAD"] and "".join(pieces[3 : 3 + len(hello)]) == " hello"
    assert conversation.real_time_factor == pytest.approx(1 / (len(ids) * 0.08))


def test_the_command_writes_wav_text_and_picture(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "user.wav", noise(1.5, 44100, channels=2), 44100)
    soundfile.write(tmp_path / "voice.flac", noise(3.0, 16000, seed=1), 16000)
    more = ["--voice-prompt", str(tmp_path / "voice.flac"), "--text-prompt", "It is april.", "--seed", "3"]
    offline.run(arguments(folder, tmp_path, *more))
    audio, rate = soundfile.read(tmp_path / "out.wav")
    assert (rate, audio.shape) == (24000, (36000,))
    pieces = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert len(pieces) == 19 and all(isinstance(piece, str) for piece in pieces)
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    role_frames = len(load_release(folder).tokenizer.encode("<system> It is april. <system>"))
    assert f"prompt of {(38 + 6 + role_frames + 6) * 0.08:.1f} s" in printed
    assert "x real time" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out.json", "out.png", "out.wav", "user.wav", "voice.flac",
    ]  # fmt: skip


def test_a_voice_is_found_by_its_file_and_a_pickled_one_points_to_its_conversion(
    release: Release, tmp_path: Path
) -> None:
    codes_QP = torch.randint(64, (8, 20), dtype=torch.int32)
    save_file({"codes": codes_QP}, tmp_path / "anna.safetensors")
    (tmp_path / "NATF0.pt").write_bytes(b"pickle")
    assert torch.equal(find_voice(release, str(tmp_path / "anna.safetensors")), codes_QP.long())
    assert torch.equal(find_voice(release, "anna", tmp_path), codes_QP.long())
    for name, folder in ((str(tmp_path / "NATF0.pt"), None), ("NATF0.pt", tmp_path), ("NATF0", tmp_path)):
        with pytest.raises(UserError, match="`ppx-export voice in=.*NATF0.pt model=MODEL out=.*NATF0.safetensors`"):
            find_voice(release, name, folder)


def test_existing_outputs_stay_unless_overwriting_is_asked_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("mine")
    with pytest.raises(UserError, match=r"out.json exists: .*--overwrite"):
        offline.run(arguments(folder, tmp_path))
    assert not (tmp_path / "out.wav").exists() and (tmp_path / "out.json").read_text() == "mine"
    offline.run(arguments(folder, tmp_path, "--overwrite", "--voice-prompt", "none"))
    assert (tmp_path / "out.json").read_text() != "mine"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input-wav", "none.wav"], "none.wav: no such audio file"),
        (["--voice-prompt", "NATF0"], "NATF0: no such audio file and no such voice in tiny; its voices: none"),
        (["--voice-prompt", "NATF0.pt"], "`ppx-export voice in=NATF0.pt model=MODEL out=NATF0.safetensors`"),
        (["--voice-prompt-dir", "voices"], "name the voice to take from it"),
        (["--temp-audio", "0"], "audio_temperature=0.0"),
        (["--seed", "-2"], "--seed -2"),
        (["--device", "fpga"], "device 'fpga' is not usable"),
        (["--model", "no/such/folder"], "no/such/folder: no such folder"),
        (["--output-wav", "no_folder/out.wav"], "existing folder"),
        (["--timeline", "out.json", "--output-text", "out.json"], "two outputs have the same name"),
    ],
)
def test_a_wrong_argument_is_refused_in_one_line(folder: Path, tmp_path: Path, more: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as why:
        offline.run(arguments(folder, tmp_path, *more))
    assert "\n" not in str(why.value)


def test_the_input_is_never_overwritten(folder: Path, tmp_path: Path) -> None:
    args = arguments(folder, tmp_path, "--output-wav", str(tmp_path / "user.wav"), "--overwrite")
    with pytest.raises(UserError, match="is the input"):
        offline.run(args)


def test_a_voice_clip_is_encoded_at_one_loudness_from_any_rate(release: Release, tmp_path: Path) -> None:
    times = np.arange(24000 * 3) / 24000
    clip = 0.3 * np.sin(2 * np.pi * 300 * times) * (1 + np.sin(2 * np.pi * 3 * times))
    soundfile.write(tmp_path / "loud.wav", clip, 24000, "FLOAT")
    soundfile.write(tmp_path / "quiet.wav", clip / 8, 24000, "FLOAT")
    loud, quiet = (encode_voice(tmp_path / name, release.codec) for name in ("loud.wav", "quiet.wav"))
    assert loud.shape == (8, 38)
    assert torch.equal(loud, quiet)
    assert torch.equal(find_voice(release, "quiet", tmp_path), quiet)


def test_a_voice_clip_that_is_silent_or_too_short_is_refused(release: Release, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(72000), 24000)
    soundfile.write(tmp_path / "short.wav", noise(0.5), 24000)
    with pytest.raises(UserError, match="silent.wav: audio is silent"):
        encode_voice(tmp_path / "silent.wav", release.codec)
    with pytest.raises(UserError, match="short.wav: a voice prompt of 0.5 s: give 3 to 10 s"):
        encode_voice(tmp_path / "short.wav", release.codec)


def test_a_codec_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_native(tmp_path / "model", DuplexLM(LMConfig(**(CONFIG.to_dict() | {"card": 32}))))
    for name in ("mimi.safetensors", "tokenizer.model"):
        (tmp_path / "model" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(UserError, match="8 codebooks of 64 entries, the language model 8 of 32"):
        load_release(tmp_path / "model")


def test_weights_with_another_number_of_depth_steps_than_their_configuration_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shape = config_to_dict(CONFIG) | {"dep_q": 8}
    (tmp_path / "personaplex.json").write_text(json.dumps({"format": 1, "lm": shape, "prompt": {}}))
    with pytest.raises(UserError, match="weights of 16 depth steps, but dep_q=8 beside them"):
        load_release(tmp_path)
    (tmp_path / "personaplex.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match="weights of 16 depth steps, but dep_q=8 beside them"):
        load_release(tmp_path)


def test_the_codec_hears_the_user_afresh_after_the_prompt(release: Release) -> None:
    """The same user audio gives the same codes whatever voice was encoded before."""
    user = noise(1.0)[:, 0]
    before = release.codec.encode(torch.from_numpy(user)[None, None])
    release.codec.encode(torch.randn(1, 1, 48000))
    assert torch.equal(before, release.codec.encode(torch.from_numpy(user)[None, None]))
    assert isinstance(release.codec, Mimi)


def test_a_picture_of_a_long_conversation_has_rows(tmp_path: Path) -> None:
    words = [SpokenWord(text="$5 and $6", seconds=n * 0.7) for n in range(60)]  # dollars are no formula
    draw_timeline(tmp_path / "long.png", noise(47.0)[:, 0], noise(46.0)[:, 0], words, title="$a$", facts=["b"])
    draw_timeline(tmp_path / "short.png", noise(5.0)[:, 0], noise(5.0)[:, 0], [], title="a", facts=[])
    long, short = (matplotlib_image(tmp_path / f"{name}.png") for name in ("long", "short"))
    assert long.shape[1] == short.shape[1] and long.shape[0] > 2.5 * short.shape[0]


def matplotlib_image(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)


def test_inference_does_not_load_the_training_stack() -> None:
    code = "import sys, ppx_train.inference.offline; print([m for m in ('lightning', 'wandb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
