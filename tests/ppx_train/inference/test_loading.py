"""Model folders and voices: what is found, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import UserError
from model.prompt import role_ids
from model.streaming.int8 import Int8StepLinear
from model.streaming.sample import Sampling
from model.weights.checkpoint import config_to_dict, save_native
from ppx_train.inference.loading import Release, find_voice, load_codec, load_release
from ppx_train.inference.offline import chat
from ppx_train.voices.clip import encode_voice
from ppx_train.voices.folder import save_voice
from ppx_train.voices.voice_file import VoiceFile
from tests.ppx_train.fixtures import make_codec, make_tokenizer, sidecar_of
from tests.ppx_train.inference.noise import CONFIG, noise
from tests.refusals import refused


def test_a_voice_is_found_by_its_file_and_a_pickled_one_points_to_its_conversion(
    release: Release, tmp_path: Path
) -> None:
    codes_QP = torch.randint(64, (8, 20), dtype=torch.int32)
    save_file({"codes": codes_QP}, tmp_path / "anna.safetensors")
    (tmp_path / "NATF0.pt").write_bytes(b"pickle")
    assert torch.equal(find_voice(release, str(tmp_path / "anna.safetensors")), codes_QP.long())
    assert torch.equal(find_voice(release, "anna", tmp_path), codes_QP.long())
    for name, folder in ((str(tmp_path / "NATF0.pt"), None), ("NATF0.pt", tmp_path), ("NATF0", tmp_path)):
        path = tmp_path / "NATF0.pt"
        with refused("unreadable", f"ppx-voice convert {path} --model MODEL --out {path.with_suffix('.safetensors')}`"):
            find_voice(release, name, folder)


def test_a_voice_clip_is_encoded_at_one_loudness_from_any_rate(release: Release, tmp_path: Path) -> None:
    times = np.arange(24000 * 3) / 24000
    clip = 0.3 * np.sin(2 * np.pi * 300 * times) * (1 + np.sin(2 * np.pi * 3 * times))
    soundfile.write(tmp_path / "loud.wav", clip, 24000, "FLOAT")
    soundfile.write(tmp_path / "quiet.wav", clip / 8, 24000, "FLOAT")
    loud, quiet = (encode_voice(tmp_path / name, release.codec) for name in ("loud.wav", "quiet.wav"))
    assert loud.shape == (8, 38)
    assert torch.equal(loud, quiet)
    assert torch.equal(find_voice(release, str(tmp_path / "quiet.wav")), quiet)
    with refused("old-form", tmp_path / "quiet.wav", "ppx-voice add"):
        find_voice(release, "quiet", tmp_path)


def test_a_voice_clip_that_is_silent_or_too_short_is_refused(release: Release, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(72000), 24000)
    soundfile.write(tmp_path / "short.wav", noise(0.5), 24000)
    with pytest.raises(UserError, match="silent.wav: .*silent"):
        encode_voice(tmp_path / "silent.wav", release.codec)
    with refused("bad-audio", "short.wav: a voice prompt of 0.5 s"):
        encode_voice(tmp_path / "short.wav", release.codec)


def test_a_codec_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_native(tmp_path / "model", DuplexLM(LMConfig(**(CONFIG.to_dict() | {"card": 32}))))
    for name in ("mimi.safetensors", "tokenizer.model"):
        (tmp_path / "model" / name).write_bytes((folder / name).read_bytes())
    with refused("bad-weights", "8 codebooks of 64 entries, the language model 8 of 32"):
        load_release(tmp_path / "model")


def test_weights_with_another_number_of_depth_steps_than_their_configuration_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shape = config_to_dict(CONFIG) | {"dep_q": 8}
    (tmp_path / "personaplex.json").write_text(json.dumps(sidecar_of(CONFIG, lm=shape).to_json()))
    with refused("bad-weights", "weights of 16 depth steps, but dep_q=8 beside them"):
        load_release(tmp_path)
    (tmp_path / "personaplex.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with refused("bad-weights", "weights of 16 depth steps, but dep_q=8 beside them"):
        load_release(tmp_path)


def test_a_voice_of_another_codec_is_refused(release: Release, tmp_path: Path) -> None:
    codes_QP = torch.randint(64, (8, 20))
    own = VoiceFile(id="own", label="Own", codec=release.codec.fingerprint(), codes_QP=codes_QP)
    path = save_voice(tmp_path, own)
    assert torch.equal(find_voice(release, str(path)), codes_QP)
    path = save_voice(tmp_path, replace(own, id="other", codec="ab" * 32))
    for name, folder in ((str(path), None), ("other", tmp_path)):
        with refused("bad-combination", path, "another codec"):
            find_voice(release, name, folder)


def test_a_models_codec_and_loudness_are_read_without_its_weights(
    folder: Path, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "mimi.safetensors").write_bytes((folder / "mimi.safetensors").read_bytes())
    codec, lufs = load_codec(str(tmp_path))
    assert codec.fingerprint() == release.codec.fingerprint() and lufs == -24
    own = sidecar_of(CONFIG)
    own = replace(own, prompt=replace(own.prompt, voice_lufs=-20.0))
    (tmp_path / "personaplex.json").write_text(json.dumps(own.to_json()))
    assert load_codec(str(tmp_path))[1] == -20


def test_the_prompt_is_that_of_the_record_beside_the_weights(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    own = sidecar_of(CONFIG)
    own = replace(own, prompt=replace(own.prompt, pause_frames=9, silence_codes=(7,) * 8))
    (tmp_path / "personaplex.json").write_text(json.dumps(own.to_json()))
    release = load_release(tmp_path)
    prompt_KP = release.prompt(None, "hello")
    assert prompt_KP is not None and prompt_KP.shape[1] == 9 + len(role_ids("hello", release.tokenizer)) + 9
    assert (release.pause_frames, release.silence_codes) == (9, (7,) * 8)


def test_weights_in_the_hosts_memory_are_for_gpus(folder: Path) -> None:
    with refused("bad-combination", "--cpu-offload", "cpu"):
        load_release(folder, cpu_offload=True)


def test_a_model_in_int8_talks_and_cannot_be_offloaded_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_native(tmp_path / "wide", DuplexLM(replace(CONFIG, dim=64, depformer_dim_feedforward=96)))
    make_codec(tmp_path / "wide" / "mimi.safetensors")
    make_tokenizer(tmp_path / "wide" / "tokenizer.model")
    release = load_release(tmp_path / "wide", precision="int8")
    assert any(isinstance(part, Int8StepLinear) for part in release.lm.modules())
    agent = chat(release, noise(1.0)[:, 0], sampling=Sampling(), seed=1)
    assert agent.codes_AT.shape == (9, 13)
    with refused("bad-combination", "--precision int8"):
        load_release(tmp_path / "wide", precision="int8", cpu_offload=True)
