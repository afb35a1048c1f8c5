"""Pickled voices: codes recovered from sums of embeddings, and the files that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LMConfig
from model.duplex import DuplexLM
from model.errors import Code, UserError
from model.prompt import hybrid_prompt, training_sequence
from model.weights.checkpoint import save_native
from model.weights.tensor_files import StoredTensor, read_header
from model.weights.voices import RecoveredVoice, nearest_rows, nearest_rows_whitened, read_pickle, recover
from tests.model.weights.pickles import Trap
from tests.refusals import refused

CONFIG = LMConfig(
    dim=256, num_heads=2, num_layers=1, depformer_dim=16, depformer_dim_feedforward=66, depformer_num_heads=2,
    depformer_num_layers=1, text_card=50, card=64,
)  # fmt: skip
SINE = (43, 12, 38, 16, 10, 14, 56, 47)
SILENCE = (9, 24, 11, 54, 17, 10, 19, 20)
SLOTS = 4  # of the published runtime's ring: the largest delay plus 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoredTensor]:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("model")
    save_native(folder, DuplexLM(CONFIG), dtype=torch.bfloat16)
    return read_header(folder / "model.safetensors")


def fed(codes_QP: Tensor) -> Tensor:
    """[17, P + 1]: what the runtime holds at positions 0 .. P after a clip of P frames; -2: nothing yet."""
    num_frames = codes_QP.shape[1]
    frames = [[CONFIG.text_padding_id, *codes_QP[:, n].tolist(), *SINE] for n in range(num_frames)]
    inputs_KP = torch.full((17, num_frames + 1), -2)
    for n, frame in enumerate(frames):
        for k, delay in enumerate(CONFIG.delays):
            inputs_KP[k, n + delay] = frame[k]
    for k, delay in enumerate(CONFIG.delays):
        inputs_KP[k, : delay + 1] = CONFIG.card if k else CONFIG.text_card
    return inputs_KP


def write_voice(
    path: Path,
    weights: dict[str, StoredTensor],
    codes_QP: Tensor,
    *,
    dtype: torch.dtype = torch.bfloat16,
    slots: int = SLOTS,
) -> Path:
    """A .pt as the published runtime saves it: sums in its order, audio tables first; the ring after the last frame."""
    inputs_KP = fed(codes_QP)
    num_frames = codes_QP.shape[1]
    sums = []
    for p in range(num_frames - 1):
        total = weights["emb.0.weight"].read().to(dtype)[inputs_KP[1, p]]
        for k in range(1, 16):
            total = total + weights[f"emb.{k}.weight"].read().to(dtype)[inputs_KP[1 + k, p]]
        sums.append((total + weights["text_emb.weight"].read().to(dtype)[inputs_KP[0, p]])[None, None])
    cache = torch.full((1, 17, slots), -2)
    for p in range(num_frames + 1):
        known_K = inputs_KP[:, p] != -2
        cache[0, known_K, p % slots] = inputs_KP[known_K, p]
    torch.save({"embeddings": torch.stack(sums), "cache": cache}, path)
    return path


def random_voice(num_frames: int, seed: int = 0) -> Tensor:
    return torch.randint(CONFIG.card, (8, num_frames), generator=torch.Generator().manual_seed(seed))


def recovered(path: Path, weights: dict[str, StoredTensor]) -> RecoveredVoice:
    return recover(read_pickle(path), weights, CONFIG)


@pytest.mark.parametrize("num_frames", [2, 3, 4, 5, 6, 51])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_codes_come_back_from_their_sums(
    tmp_path: Path, weights: dict[str, StoredTensor], num_frames: int, dtype: torch.dtype
) -> None:
    codes_QP = random_voice(num_frames)
    voice = recovered(write_voice(tmp_path / "voice.pt", weights, codes_QP, dtype=dtype), weights)
    assert voice.exact
    assert torch.equal(voice.codes_QP[:, 1:], codes_QP[:, 1:])
    assert torch.equal(voice.codes_QP[:, 0], codes_QP[:, 1])  # frame 0 never reaches the model


def test_the_model_is_fed_the_same_with_the_clip_and_with_the_recovered_voice(
    tmp_path: Path, weights: dict[str, StoredTensor]
) -> None:
    codes_QP = random_voice(9)
    voice = recovered(write_voice(tmp_path / "voice.pt", weights, codes_QP), weights)
    prompts = [hybrid_prompt(CONFIG, codes, [5, 6, 7], SILENCE, SINE) for codes in (codes_QP, voice.codes_QP)]
    dialogue_KT = torch.randint(50, (17, 4))
    model = DuplexLM(CONFIG, device="meta")
    inputs = [model.delayed_inputs(training_sequence(CONFIG, prompt, dialogue_KT)[0][None])[0] for prompt in prompts]
    assert torch.equal(*inputs)
    assert torch.equal(inputs[1][0, :, :8], fed(codes_QP)[:, :8])  # and those are what the sums were made of


def test_sums_added_in_another_order_are_recovered_but_not_called_exact(
    tmp_path: Path, weights: dict[str, StoredTensor]
) -> None:
    codes_QP = random_voice(20)
    path = write_voice(tmp_path / "voice.pt", weights, codes_QP, dtype=torch.float32)
    state = torch.load(path)
    torch.save({**state, "embeddings": state["embeddings"].bfloat16()}, path)  # rounded once, not 16 times
    voice = recovered(path, weights)
    assert torch.equal(voice.codes_QP[:, 1:], codes_QP[:, 1:]) and not voice.exact


@pytest.mark.parametrize("decode", [nearest_rows, nearest_rows_whitened])
def test_rows_are_found_among_tables_that_share_few_strong_directions(decode: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(16, 256, generator=generator)
    tables = [
        torch.randn(128, 16, generator=generator) @ strong + 0.3 * torch.randn(128, 256, generator=generator)
        for _ in range(8)
    ]
    ids_NQ = torch.randint(128, (30, 8), generator=generator)
    sums_ND = torch.stack([table[ids_NQ[:, c]] for c, table in enumerate(tables)]).sum(0).bfloat16().float()
    found = (decode(sums_ND, tables) == ids_NQ).all(1).float().mean()
    assert found == 1 if decode is nearest_rows_whitened else found < 0.5  # why the whitened way is needed


# -- refused ----------------------------------------------------------------------------------------------------------


def test_a_voice_of_another_model_is_refused(tmp_path: Path, weights: dict[str, StoredTensor]) -> None:
    torch.manual_seed(2)
    save_native(tmp_path / "other", DuplexLM(CONFIG), dtype=torch.bfloat16)
    other = read_header(tmp_path / "other" / "model.safetensors")
    path = write_voice(tmp_path / "voice.pt", weights, random_voice(6))
    with refused("bad-combination", path):
        recovered(path, other)


Change = Callable[[dict[str, Any]], dict[str, Any]]
NO_VOICE: Code = "bad-weights"
OTHER_MODEL: Code = "bad-combination"
CHANGES: list[tuple[Change, Code, str]] = [
    (lambda state: {**state, "embeddings": state["embeddings"][..., :128]}, OTHER_MODEL, "width 128, not 256"),
    (lambda state: {"embeddings": state["embeddings"]}, NO_VOICE, "holds embeddings"),
    (lambda state: {**state, "cache": [1, 2]}, NO_VOICE, "embeddings, cache"),
    (lambda state: {**state, "embeddings": state["embeddings"].long()}, NO_VOICE, "[8, 1, 1, 256]"),
    (lambda state: {**state, "embeddings": state["embeddings"][:0]}, NO_VOICE, "[0, 1, 1, 256]"),
    (lambda state: {**state, "embeddings": state["embeddings"].expand(-1, 2, -1, -1)}, NO_VOICE, "[8, 2, 1, 256]"),
    (lambda state: {**state, "cache": state["cache"][:, :9]}, OTHER_MODEL, "[9, 4]"),
    (lambda state: {**state, "cache": state["cache"][..., :2]}, OTHER_MODEL, "[17, 2]"),
    (lambda state: {**state, "cache": state["cache"] + 60}, OTHER_MODEL, "0..63"),
    (lambda state: {**state, "cache": state["cache"].roll(1, 2)}, NO_VOICE, "frame 6"),
    (lambda state: {**state, "embeddings": state["embeddings"][:-1]}, NO_VOICE, "frame"),
]


@pytest.mark.parametrize(("change", "code", "named"), CHANGES)
def test_what_is_no_voice_is_refused(
    tmp_path: Path, weights: dict[str, StoredTensor], change: Change, code: Code, named: str
) -> None:
    path = write_voice(tmp_path / "voice.pt", weights, random_voice(9))
    torch.save(change(torch.load(path)), path)
    with refused(code, path, named):
        recovered(path, weights)


def test_damaged_frames_are_named(tmp_path: Path, weights: dict[str, StoredTensor]) -> None:
    path = write_voice(tmp_path / "voice.pt", weights, random_voice(9))
    state = torch.load(path)
    state["embeddings"][4] += 0.1 * torch.randn(256, generator=torch.Generator().manual_seed(0))
    torch.save(state, path)
    with refused("bad-weights", path, "1 of 8 frames (4 ...)"):
        recovered(path, weights)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_is_run(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "voice.pt"
    content = {
        "embeddings": torch.zeros(3, 1, 1, 256),
        "cache": torch.zeros(1, 17, 4).long(),
        "x": Trap(tmp_path / "m"),
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="voice.pt: not a voice of tensors alone") as caught:
        read_pickle(path)
    assert caught.value.code == "unreadable" and "\n" not in str(caught.value)
    assert not (tmp_path / "m").exists()
    assert "weights_only" not in str(caught.value)  # torch advises to switch the protection off


@pytest.mark.parametrize("kept", [0, 1, 100, 2000, -10])
def test_a_voice_that_is_cut_short_is_refused(tmp_path: Path, weights: dict[str, StoredTensor], kept: int) -> None:
    path = write_voice(tmp_path / "voice.pt", weights, random_voice(9))
    path.write_bytes(path.read_bytes()[:kept])
    with refused("unreadable", path):
        read_pickle(path)


def test_a_voice_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refused("not-found", tmp_path / "none.pt"):
        read_pickle(tmp_path / "none.pt")
