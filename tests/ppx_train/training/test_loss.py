"""Loss weights against the published numbers and a plain second implementation; the learning-rate schedule."""

import math

import pytest
import torch

from model.config import ZERO_ID, LMConfig
from ppx_train.config.parts import Loss, Optim
from ppx_train.training.loss import group_weights, target_weights, total_loss
from ppx_train.training.micro_batch import collate
from ppx_train.training.optim import lr_scale, make_optimizer
from ppx_train.training.sequences import TrainingSequence
from tests.model.golden import language_model, lm_config, tensors

LM = LMConfig(
    dim=32, num_heads=2, num_layers=1, depformer_dim=16, depformer_num_heads=2, depformer_num_layers=1,
    text_card=40, card=16,
)  # fmt: skip


def test_the_golden_losses_come_out_of_our_weights() -> None:
    vectors = tensors("lm_small")
    lm = lm_config("lm_small")
    codes_BKT = vectors["forward.codes"]
    everywhere = torch.ones(codes_BKT[:, 0].shape, dtype=torch.bool)
    lengths_B = torch.full((len(codes_BKT),), codes_BKT.shape[2])
    weights_BKT = target_weights(codes_BKT, everywhere, lengths_B, Loss(), lm)
    with torch.no_grad():
        sums = language_model("lm_small")(codes_BKT, weights_BKT)
    text, audio = group_weights(weights_BKT)
    assert float(sums.loss_K[0] / text) == pytest.approx(float(vectors["loss.text"]), rel=1e-6)
    assert float(sums.loss_K[1:].sum() / audio) == pytest.approx(float(vectors["loss.audio"]), rel=1e-6)
    assert torch.equal(sums.weight_K > 0, weights_BKT.sum((0, 2)) > 0)


def test_weights_equal_a_loop_over_every_target() -> None:
    generator = torch.Generator().manual_seed(0)
    codes_BKT = torch.randint(0, 16, (3, 17, 12), generator=generator)
    codes_BKT[:, 0, ::3] = 3
    codes_BKT[:, 0, 1::5] = 0
    codes_BKT[1, 5, 4] = ZERO_ID
    has_loss_BT = torch.rand(3, 12, generator=generator) > 0.3
    lengths = [12, 7, 9]
    loss = Loss(user=0.5, text_padding=0.25, acoustic=0.1, semantic=2.0, end_padding_is_padding=False)
    weights_BKT = target_weights(codes_BKT, has_loss_BT, torch.tensor(lengths), loss, LM)
    for b in range(3):
        for k in range(17):
            for t in range(12):
                code = int(codes_BKT[b, k, t])
                delay = 0 if k in (0, 1, 9) else 1
                if not has_loss_BT[b, t] or code == ZERO_ID or t + delay >= lengths[b]:
                    expected = 0.0
                elif k == 0:
                    expected = 0.25 if code == 3 else 1.0
                else:
                    expected = (2.0 if k in (1, 9) else 0.1) * (0.5 if k >= 9 else 1.0)
                assert float(weights_BKT[b, k, t]) == pytest.approx(expected), (b, k, t)


def test_padding_in_a_batch_does_not_change_the_loss() -> None:
    torch.manual_seed(0)
    from model.duplex import DuplexLM

    lm = DuplexLM(LM)
    sequences = [TrainingSequence("a", torch.randint(4, 16, (17, n)), torch.arange(n) > 3) for n in (9, 17, 12)]

    def loss_of(groups: list[list[int]]) -> float:
        batches = [collate([sequences[i] for i in group], Loss(), LM) for group in groups]
        shared = torch.stack([group_weights(b.weights_BKT) for b in batches]).sum(0)
        return sum(total_loss(lm(b.codes_BKT, b.weights_BKT).loss_K, shared, Loss()).item() for b in batches)

    assert loss_of([[0, 1, 2]]) == pytest.approx(loss_of([[0], [1], [2]]), rel=1e-6)


def test_no_user_loss_when_its_weight_is_zero() -> None:
    codes_BKT = torch.randint(4, 16, (1, 17, 6))
    weights_BKT = target_weights(codes_BKT, torch.ones(1, 6, dtype=torch.bool), torch.tensor([6]), Loss(user=0.0), LM)
    assert weights_BKT[:, 9:].sum() == 0
    assert (weights_BKT[:, 1:9].sum((0, 2)) > 0).all()


def test_the_schedule_warms_up_then_follows_a_cosine() -> None:
    optim = Optim(warmup_steps=10, final_lr_ratio=0.1)
    assert lr_scale(0, optim, 110) == pytest.approx(0.1)
    assert lr_scale(9, optim, 110) == 1.0
    assert lr_scale(60, optim, 110) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert lr_scale(110, optim, 110) == pytest.approx(0.1)


def test_every_parameter_is_in_the_group_of_its_transformer() -> None:
    from model.duplex import DuplexLM

    lm = DuplexLM(LM)
    optimizer = make_optimizer(lm.named_parameters(), Optim())
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert set(groups) == {"temporal", "temporal_norms", "depth", "depth_norms"}
    depth = sum(p.numel() for p in lm.depth.parameters())
    assert sum(p.numel() for name in ("depth", "depth_norms") for p in groups[name]["params"]) == depth
    assert sum(p.numel() for g in groups.values() for p in g["params"]) == lm.num_parameters()
    assert (groups["depth"]["lr"], groups["temporal"]["lr"]) == (4e-6, 2e-6)
    assert all(p.numel() in (32, 16) for name in ("temporal_norms", "depth_norms") for p in groups[name]["params"])
    assert groups["depth_norms"]["weight_decay"] == groups["temporal_norms"]["weight_decay"] == 0
