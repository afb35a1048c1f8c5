"""Weights and voices saved by the public runtimes, loaded into ours: the numbers must be theirs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.prompt import PAUSE_FRAMES, hybrid_prompt
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.weights.checkpoint import config_to_dict, from_pretrained
from model.weights.native import SPLIT, fuse_split
from model.weights.tensor_files import read_header
from model.weights.voices import read_pickle, recover
from tests.interop import SILENCE, SINE

SMALL = LMConfig(
    dim=128, num_heads=4, num_layers=2, context=200, text_card=48, card=2048,
    depformer_dim=32, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=96,
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def their_model(models: Any, config: LMConfig) -> Any:
    """Their LMModel with random weights, output heads large enough for logits that differ."""
    return models.LMModel(**config_to_dict(config), device="cpu", dtype=torch.float32).eval()


def their_logits(lm: Any, codes_BKT: Tensor) -> Any:
    """Kyutai's `forward`, or NVIDIA's name for it."""
    return lm.forward_train(codes_BKT) if hasattr(lm, "forward_train") else lm(codes_BKT)


def assert_same_logits(model: DuplexLM, lm: Any) -> None:
    config = model.config
    codes_BKT = torch.randint(config.card, (2, 17, 30))
    codes_BKT[:, 0] = torch.randint(config.text_card, (2, 30))
    theirs, ours = their_logits(lm, codes_BKT), model.logits(codes_BKT)
    assert torch.equal(ours.audio_mask_BQT, theirs.mask) and theirs.mask.any()
    assert (ours.audio_BQTV - theirs.logits)[theirs.mask].abs().max() < 1e-4 < theirs.logits[theirs.mask].std()
    assert (ours.text_BTV - theirs.text_logits[:, 0]).abs().max() < 1e-4 < theirs.text_logits.std()


@pytest.mark.parametrize("fused", [False, True])
def test_weights_of_kyutais_model_give_its_logits(kyutai: Any, tmp_path: Path, fused: bool) -> None:
    config = replace(SMALL, dep_q=8)
    lm = their_model(kyutai, config)
    tensors = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    assert any(SPLIT.fullmatch(name) for name in tensors)  # how this version saves them
    if fused:  # as the versions before did, and as it still loads them
        tensors = fuse_split(tensors)
        assert not lm.load_state_dict(tensors).missing_keys
    save_file(tensors, tmp_path / "model.safetensors")
    model = from_pretrained(tmp_path, config)
    assert_same_logits(model, lm)


@pytest.mark.parametrize("steps", [8, 16])
def test_weights_of_nvidias_model_give_its_logits(personaplex: Any, tmp_path: Path, steps: int) -> None:
    config = replace(SMALL, dep_q=steps)
    lm = their_model(personaplex, config)
    save_file(lm.state_dict(), tmp_path / "model.safetensors")
    assert_same_logits(from_pretrained(tmp_path, config), lm)


@pytest.fixture
def saved_voice(personaplex: Any, tmp_path: Path) -> tuple[Any, Path, Tensor]:
    """(their model in bf16, a voice saved by their generator, the codes of its clip); the weights lie in tmp_path."""
    lm = their_model(personaplex, SMALL).bfloat16()
    save_file(lm.state_dict(), tmp_path / "model.safetensors")
    codes_QP = torch.randint(2048, (8, 51))
    generator = personaplex.LMGen(lm, device="cpu", save_voice_prompt_embeddings=True)
    generator._encode_voice_prompt_frames = lambda _: iter(codes_QP.T[:, None, :, None])  # instead of Mimi's
    generator.voice_prompt, generator.voice_prompt_audio = str(tmp_path / "NATF0.wav"), "not read"
    with generator.streaming(1):
        generator._step_voice_prompt(None)
    return lm, tmp_path / "NATF0.pt", codes_QP


def test_a_voice_saved_by_nvidias_generator_is_recovered(saved_voice: tuple[Any, Path, Tensor], tmp_path: Path) -> None:
    _, path, codes_QP = saved_voice
    voice = recover(read_pickle(path), read_header(tmp_path / "model.safetensors"), SMALL)
    assert voice.exact
    assert torch.equal(voice.codes_QP[:, 1:], codes_QP[:, 1:])


def test_a_recovered_voice_prompts_us_as_the_file_prompts_nvidias_generator(
    personaplex: Any, saved_voice: tuple[Any, Path, Tensor], tmp_path: Path
) -> None:
    lm, path, _ = saved_voice
    lm = lm.float()
    state = torch.load(path)
    voice = recover(read_pickle(path), read_header(tmp_path / "model.safetensors"), SMALL)
    torch.save({**state, "embeddings": state["embeddings"].float()}, path)
    generator = personaplex.LMGen(
        lm, device="cpu", use_sampling=False, audio_silence_frame_cnt=PAUSE_FRAMES, text_prompt_tokens=[5, 17, 4]
    )
    generator.load_voice_prompt_embeddings(str(path))
    user_QT = torch.randint(2048, (8, 60))
    with generator.streaming(1):
        generator.step_system_prompts(None)
        theirs = torch.cat([generator.step(user_Q[None, :, None])[0, :9] for user_Q in user_QT.T], dim=1)

    stream = DuplexStream(from_pretrained(tmp_path, SMALL, dtype=torch.float32), Sampling(greedy=True))
    conversation = stream.init_state(1)
    stream.prefill(conversation, hybrid_prompt(SMALL, voice.codes_QP, [5, 17, 4], SILENCE, SINE)[None])
    ours = torch.stack([stream.step(conversation, user_Q[None])[0] for user_Q in user_QT.T], dim=1)
    assert len(ours.unique()) > 100
    # theirs answers one call later; their prompt was rounded to bf16, ours was not
    assert torch.equal(ours[:, :-1], theirs[:, 1:])
