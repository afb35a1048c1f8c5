"""Our exported weights in the public runtimes' own loaders and generators: the tokens must be ours."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.prompt import PAUSE_FRAMES, hybrid_prompt, training_sequence
from model.streaming.sample import Sampling
from model.streaming.stream import DuplexStream
from model.weights.checkpoint import config_to_dict, save_native
from tests.interop import SILENCE, SINE

SMALL = LMConfig(
    dim=64, num_heads=4, num_layers=2, context=200, text_card=48, card=2048,
    depformer_dim=32, depformer_num_heads=2, depformer_num_layers=2, depformer_dim_feedforward=96,
)  # fmt: skip
TEXT_IDS = [5, 17, 4, 40, 23, 9, 11]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def random_model(**changes: Any) -> DuplexLM:
    torch.manual_seed(0)
    model = DuplexLM(replace(SMALL, **changes)).eval()
    for head in (model.text_head, model.depth.heads):
        head.weight.mul_(10)  # fresh heads are nearly uniform: make the likeliest token stand out
    return model


def random_codes(frames: int, seed: int) -> Tensor:
    return torch.randint(2048, (8, frames), generator=torch.Generator().manual_seed(seed))


def our_tokens(model: DuplexLM, prompt_KP: Tensor | None, user_QT: Tensor) -> Tensor:
    """Agent tokens [9, T]."""
    stream = DuplexStream(model, Sampling(greedy=True))
    state = stream.init_state(1)
    if prompt_KP is not None:
        stream.prefill(state, prompt_KP[None])
    return torch.stack([stream.step(state, user_Q[None])[0] for user_Q in user_QT.T], dim=1)


def load_in_kyutai(kyutai: Any, folder: Path, model: DuplexLM) -> Any:
    """Exports in layout kyutai and loads it as their server does, but in fp32 and without codec and tokenizer."""
    save_native(folder, model, dep_q=8)
    weights = str(folder / "model.safetensors")
    info = kyutai.loaders.CheckpointInfo.from_hf_repo(
        "unused", weights, mimi_weights=weights, tokenizer=weights, config_path=str(folder / "config.json")
    )
    return info.get_moshi(dtype=torch.float32)


def load_in_personaplex(personaplex: Any, folder: Path, model: DuplexLM, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exports in layout nvidia; their loader has the shapes built in."""
    save_native(folder / "model.safetensors", model, dep_q=16)
    public = config_to_dict(model.config)
    monkeypatch.setattr(personaplex.loaders, "_lm_kwargs", personaplex.loaders._lm_kwargs | public)
    return personaplex.loaders.get_moshi_lm(folder / "model.safetensors", dtype=torch.float32)


def personaplex_tokens(personaplex: Any, lm: Any, voice_QP: Tensor, user_QT: Tensor) -> Tensor:
    """The agent tokens of every call after the hybrid prompt, [9, T]; prompted by their own functions."""
    generator = personaplex.LMGen(
        lm, device="cpu", use_sampling=False, audio_silence_frame_cnt=PAUSE_FRAMES, text_prompt_tokens=TEXT_IDS
    )
    with generator.streaming(1):
        for voice_Q in voice_QP.T:
            generator._step_voice_prompt_frame(voice_Q[None, :, None])
        generator._step_audio_silence()
        generator._step_text_prompt()
        generator._step_audio_silence()
        return torch.cat([generator.step(user_Q[None, :, None])[0, :9] for user_Q in user_QT.T], dim=1)


def test_kyutais_generator_gives_our_tokens_past_the_window(kyutai: Any, tmp_path: Path) -> None:
    model, user_QT = random_model(context=16), random_codes(80, seed=1)
    generator = kyutai.LMGen(load_in_kyutai(kyutai, tmp_path, model), use_sampling=False, check=True)
    with generator.streaming(1):
        returned = [generator.step(user_Q[None, :, None]) for user_Q in user_QT.T]
    assert returned[0] is None  # frame 0 is discarded by both
    theirs = torch.cat([tokens[0] for tokens in returned[1:]], dim=1)
    ours = our_tokens(model, None, user_QT)[:, 1:]
    assert len(ours.unique()) > 100
    assert torch.equal(ours, theirs)


def test_personaplex_generator_gives_our_tokens_one_call_later(
    personaplex: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, voice_QP, user_QT = random_model(), random_codes(20, seed=2), random_codes(120, seed=3)
    theirs = personaplex_tokens(
        personaplex, load_in_personaplex(personaplex, tmp_path, model, monkeypatch), voice_QP, user_QT
    )
    ours = our_tokens(model, hybrid_prompt(model.config, voice_QP, TEXT_IDS, SILENCE, SINE), user_QT)
    assert len(ours.unique()) > 100
    assert torch.equal(ours[:, :-1], theirs[:, 1:])


def test_personaplex_streaming_loses_the_oldest_frame_of_a_full_window(
    personaplex: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ring hides its oldest slot once it is full: a window of 40 frames acts as one of 39.

    Its slot (end_offset % capacity) is taken for the frame yet to come. Their own pass over the whole sequence sees all
    40, as our streaming does; from their streaming we differ past the window (4 minutes at full size).
    """
    model, voice_QP, user_QT = random_model(context=40), random_codes(10, seed=2), random_codes(60, seed=3)
    lm = load_in_personaplex(personaplex, tmp_path, model, monkeypatch)
    theirs = personaplex_tokens(personaplex, lm, voice_QP, user_QT)
    prompt_KP = hybrid_prompt(model.config, voice_QP, TEXT_IDS, SILENCE, SINE)
    ours = our_tokens(model, prompt_KP, user_QT)

    shorter = random_model(context=39)
    assert torch.equal(our_tokens(shorter, prompt_KP, user_QT)[:, :-1], theirs[:, 1:])
    first = int((ours[:, :-1] != theirs[:, 1:]).any(0).nonzero()[0])
    assert prompt_KP.shape[1] + first >= 39

    codes_KT, has_loss_T = training_sequence(model.config, prompt_KP, torch.cat([ours, user_QT]))
    whole = lm.forward_train(codes_KT[None])
    dialogue_T = has_loss_T.nonzero()[:-1, 0]  # the delayed codebooks of the last frame are past the end
    assert torch.equal(whole.text_logits[0, 0, dialogue_T].argmax(-1), ours[0, :-1])
    assert torch.equal(whole.logits[0, :8, dialogue_T].argmax(-1), ours[1:, :-1])
