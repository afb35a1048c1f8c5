"""The language model against reference vectors, against a plain second implementation, and against itself."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import DELAYS, LMConfig
from model.duplex import DuplexLM, StreamSums
from model.kernels import cross_entropy
from model.kernels.attention import windowed_attention
from model.kernels.recompute import MODES
from tests.model.golden import language_model, lm_config, tensors
from tests.model.tiny import TINY, assert_same_gradients, gradients, random_codes, random_weights, tiny


def plain_sums(model: DuplexLM, codes_BKT: Tensor, weights_BKT: Tensor) -> StreamSums:
    """Second implementation: undelayed logits, one cross-entropy per stream, masks selected before the loss."""
    logits = model.logits(codes_BKT)
    rows = [torch.zeros(17) for _ in range(4)]
    for stream in range(1 + model.config.dep_q):
        values = logits.text_BTV if stream == 0 else logits.audio_BQTV[:, stream - 1]
        mask = logits.text_mask_BT if stream == 0 else logits.audio_mask_BQT[:, stream - 1]
        mask = mask & (weights_BKT[:, stream] > 0)
        chosen, target, weight = values[mask], codes_BKT[:, stream][mask], weights_BKT[:, stream][mask]
        sums = (
            (F.cross_entropy(chosen, target, reduction="none") * weight).sum(),
            weight.sum(),
            (chosen.argmax(-1) == target).sum(),
            torch.tensor(float(len(target))),
        )
        for row, value in zip(rows, sums, strict=True):
            row[stream] = value
    return StreamSums(*rows)


# -- reference vectors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lm_small", "lm_window"])
def test_forward_logits_equal_the_public_runtimes(name: str) -> None:
    golden = tensors(name)
    with torch.no_grad():
        logits = language_model(name).logits(golden["forward.codes"])
    for ours, our_mask, theirs, mask in (
        (logits.audio_BQTV, logits.audio_mask_BQT, golden["forward.audio_logits"], golden["forward.audio_mask"]),
        (logits.text_BTV, logits.text_mask_BT, golden["forward.text_logits"][:, 0], golden["forward.text_mask"][:, 0]),
    ):
        assert torch.equal(our_mask, mask)
        assert (ours - theirs)[mask].abs().max() < 1e-4


def test_loss_sums_equal_the_reference_losses() -> None:
    golden = tensors("lm_small")
    codes_BKT = golden["forward.codes"]
    weights_BKT = torch.full(codes_BKT.shape, 0.02)
    weights_BKT[:, [1, 9]] = 1.0
    padding_BT = (codes_BKT[:, 0] == 3) | (codes_BKT[:, 0] == 0)
    weights_BKT[:, 0] = torch.where(padding_BT, 0.3, 1.0)
    sums = language_model("lm_small")(codes_BKT, weights_BKT)
    text = sums.loss_K[0].double() / sums.weight_K[0]
    audio = sums.loss_K[1:].double().sum() / sums.weight_K[1:].sum()
    assert abs(text / golden["loss.text"].item() - 1) < 1e-6
    assert abs(audio / golden["loss.audio"].item() - 1) < 1e-6


# -- training loss ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [1, 2, 11, 45])
@pytest.mark.parametrize("dep_q", [8, 16])
@pytest.mark.parametrize("delays", [DELAYS, (2, *DELAYS[1:]), (1, 0, 3) + (2,) * 14], ids=["own", "text", "many"])
def test_sums_and_gradients_equal_a_plain_undelayed_loss(num_frames: int, dep_q: int, delays: tuple[int, ...]) -> None:
    model = tiny(dep_q=dep_q, delays=delays)
    codes_BKT = random_codes(model.config, 2, num_frames)
    weights_BKT = random_weights(codes_BKT)
    factor_K = torch.linspace(0.5, 2, 17)  # streams may be scaled differently afterwards
    ours = model(codes_BKT, weights_BKT)
    (ours.loss_K * factor_K).sum().backward()
    our_grads = gradients(model)
    model.zero_grad()
    theirs = plain_sums(model, codes_BKT, weights_BKT)
    (theirs.loss_K * factor_K).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    assert_same_gradients(our_grads, gradients(model), 1e-5)


def test_loss_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 40)
    weights_BKT = random_weights(codes_BKT)
    results = []
    for rows, cached in ((256, 256), (256, 5), (7, 3)):
        monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", {"cpu": rows * 32})
        monkeypatch.setattr(cross_entropy, "CACHED_LOGITS", {"cpu": cached * 32})
        model.zero_grad()
        sums = model(codes_BKT, weights_BKT)
        sums.loss_K.sum().backward()
        results.append((sums.loss_K.detach(), gradients(model)))
    for loss_K, grads in results[1:]:
        assert torch.allclose(results[0][0], loss_K, rtol=1e-6)
        assert_same_gradients(grads, results[0][1], 1e-5)


def test_weights_of_zero_give_a_finite_loss_that_touches_every_parameter() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 20)
    sums = model(codes_BKT, torch.zeros(codes_BKT.shape))
    assert all((value == 0).all() for value in sums)
    sums.loss_K.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and (parameter.grad == 0).all(), name


def test_without_user_loss_the_agent_sums_are_the_same_and_user_steps_get_no_gradient() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 20)
    weights_BKT = random_weights(codes_BKT)
    both = model(codes_BKT, weights_BKT)
    weights_BKT[:, model.config.user_audio] = 0
    agent = model(codes_BKT, weights_BKT)
    assert torch.allclose(agent.loss_K[:9], both.loss_K[:9], rtol=1e-6)
    assert (agent.loss_K[9:] == 0).all() and (agent.weight_K[9:] == 0).all()
    agent.loss_K.sum().backward()
    grad = model.depth.heads.weight.grad
    assert grad is not None and (grad[8:] == 0).all() and (grad[:8] != 0).any(dim=(1, 2)).all()


def test_positions_without_loss_may_hold_any_weightless_target() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 1, 12)
    codes_BKT[:, :, 4] = -1
    weights_BKT = torch.ones(codes_BKT.shape)
    sums = model(codes_BKT, weights_BKT)
    valid_BKT = codes_BKT != -1
    valid_BKT[:, [k for k in range(17) if model.config.delays[k]], -1] = False
    assert torch.equal(sums.count_K, valid_BKT.sum((0, 2)).float())
    assert sums.loss_K.isfinite().all()


def test_a_target_beyond_the_vocabulary_without_weight_changes_nothing() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 1, 12)
    weights_BKT = torch.ones(codes_BKT.shape)
    weights_BKT[:, 16, -2] = 0
    codes_BKT[:, :, -2:] = 5  # The last codebook of the last frame but one is no input of anything.
    expected = model(codes_BKT, weights_BKT)
    codes_BKT[:, 16, -2] = model.config.audio_start_id
    for ours, theirs in zip(model(codes_BKT, weights_BKT), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_gradients_flow_only_where_grad_is_enabled() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 1, 12)
    weights_BKT = random_weights(codes_BKT)
    with torch.no_grad():
        silent = model(codes_BKT, weights_BKT)
    assert not silent.loss_K.requires_grad
    assert torch.equal(silent.loss_K, model(codes_BKT, weights_BKT).loss_K)


@pytest.mark.parametrize("mode", MODES)
def test_autocast_and_pure_bf16_are_close_to_fp32(mode: str) -> None:
    model = tiny()
    model.set_activation_checkpointing(mode)
    codes_BKT = random_codes(model.config, 2, 40)
    weights_BKT = random_weights(codes_BKT)
    expected = model(codes_BKT, weights_BKT)
    expected.loss_K.sum().backward()
    grads = gradients(model)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = model(codes_BKT, weights_BKT)
    assert sums.loss_K.dtype == torch.float32
    sums.loss_K.sum().backward()
    assert torch.allclose(sums.loss_K, expected.loss_K, rtol=0.02)
    assert torch.equal(sums.weight_K, expected.weight_K)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert F.cosine_similarity(parameter.grad.flatten(), grads[name].flatten(), dim=0) > 0.99, name
    half = model.to(torch.bfloat16)(codes_BKT, weights_BKT)
    half.loss_K.sum().backward()
    assert torch.allclose(half.loss_K, expected.loss_K, rtol=0.02)


def test_an_id_outside_its_table_fails() -> None:
    model = tiny()
    for stream, bad in ((0, 41), (1, 33), (16, 33), (3, -2)):
        codes_BKT = torch.zeros(1, 17, 5, dtype=torch.long)
        codes_BKT[0, stream, 2] = bad
        with pytest.raises((IndexError, RuntimeError)):
            model.embed(codes_BKT)


def test_codes_and_weights_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"both are \[B, 17, T\]"):
        tiny()(torch.zeros(1, 17, 5, dtype=torch.long), torch.zeros(1, 17, 4))


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [3, 16, 17, 40])
def test_blockwise_window_equals_a_dense_banded_mask(num_frames: int) -> None:
    torch.manual_seed(3)
    query, key, value = torch.randn(3, 2, 2, num_frames, 8).unbind(0)
    age = torch.arange(num_frames)[:, None] - torch.arange(num_frames)
    scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill((age < 0) | (age >= 16), float("-inf"))
    assert torch.allclose(windowed_attention(query, key, value, 16), scores.softmax(-1) @ value, atol=1e-6)


# -- construction -----------------------------------------------------------------------------------------------------


def test_fresh_weights_follow_the_seed_also_through_the_meta_device() -> None:
    first, second = tiny(7), tiny(7)
    torch.manual_seed(7)
    with torch.device("meta"):
        third = DuplexLM(TINY)
    assert all(parameter.is_meta for parameter in third.parameters())
    third.to_empty(device="cpu")
    torch.manual_seed(7)
    third.reset_parameters()
    different = tiny(8)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), third.parameters(), strict=True):
        assert torch.equal(a, b) and a.isfinite().all(), name
        assert torch.allclose(c.std(), a.std(), rtol=0.3), name
    assert not torch.equal(different.text_emb.weight, first.text_emb.weight)


def test_a_fresh_model_starts_near_the_uniform_loss() -> None:
    model = tiny()
    codes_BKT = random_codes(model.config, 2, 60)
    sums = model(codes_BKT, torch.ones(codes_BKT.shape))
    nats_K = sums.loss_K / sums.weight_K
    assert nats_K[0] < torch.tensor(40.0).log() + 1.5 and nats_K[1:].max() < torch.tensor(32.0).log() + 3


def test_the_public_shapes_have_the_published_sizes() -> None:
    large = DuplexLM(LMConfig(), device="meta")
    assert round(large.num_parameters() / 1e9, 3) == 8.371
    assert round(DuplexLM(LMConfig(dep_q=8), device="meta").num_parameters() / 1e9, 2) == 7.69
    assert abs(large.flops_per_frame(2048) / 1e9 - 16.6) < 0.05
    # past the window the attention cost per frame stops growing
    assert large.flops_per_frame(10**6) < 2 * 8.05e9 + 4 * 4096 * 32 * 3000


def test_flops_count_the_weights_that_are_multiplied() -> None:
    model = DuplexLM(lm_config("lm_small"))
    embeddings = sum(p.numel() for name, p in model.named_parameters() if "_emb" in name or "norm" in name)
    attention = 2 * 100 * model.config.dim * model.config.num_layers
    assert model.flops_per_frame(100) == 2 * (model.num_parameters() - embeddings) + attention
