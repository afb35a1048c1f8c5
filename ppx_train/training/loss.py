"""The weight of every target, and how the summed losses become one number."""

# Shapes: B batch, G groups, K streams, T frames

from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ZERO_ID, LMConfig
from ppx_train.config.parts import Loss


class StreamGroup(NamedTuple):
    """Channels that are reported together."""

    name: str
    channels: tuple[int, ...]


def stream_groups(lm: LMConfig) -> tuple[StreamGroup, ...]:
    """Returns the groups: text, semantic and acoustic of the agent, semantic and acoustic of the user."""
    agent, user = range(lm.num_streams)[lm.agent_audio], range(lm.num_streams)[lm.user_audio]
    return (
        StreamGroup("text", (0,)),
        StreamGroup("semantic", (agent[0],)),
        StreamGroup("acoustic", tuple(agent[1:])),
        StreamGroup("user_semantic", (user[0],)),
        StreamGroup("user_acoustic", tuple(user[1:])),
    )


def target_weights(codes_BKT: Tensor, has_loss_BT: Tensor, lengths_B: Tensor, loss: Loss, lm: LMConfig) -> Tensor:
    """Returns the fp32 weight of every undelayed target; 0 means no loss.

    Shapes: codes_BKT int64; has_loss_BT bool, False on the prompt and on padding; lengths_B frames of each
    sequence; the result is [B, K, T]. The frames that a stream's delay leaves undefined are cut for each
    sequence by itself, so that the loss does not depend on what a batch was padded to.
    Source: PersonaPlex paper (0.02 on non-semantic audio, 0.3 on padded text).
    """
    batch, streams, frames = codes_BKT.shape
    device = codes_BKT.device
    channel_K = torch.full((streams,), loss.acoustic, device=device)
    channel_K[0] = 1.0
    channel_K[[lm.agent_audio.start, lm.user_audio.start]] = loss.semantic
    channel_K[lm.user_audio] *= loss.user
    channel_K[1 + lm.dep_q :] = 0.0  # No depth step predicts these streams.
    weights_BKT = channel_K[None, :, None].expand(batch, streams, frames).clone()

    text_BT = codes_BKT[:, 0]
    padding_BT = text_BT == lm.text_padding_id
    if loss.end_padding_is_padding:
        padding_BT = padding_BT | (text_BT == lm.text_end_padding_id)
    weights_BKT[:, 0] = torch.where(padding_BT, loss.text_padding, 1.0)

    delays_K = torch.tensor(lm.delays, device=device)
    last_KT = torch.arange(frames, device=device)[None] + delays_K[:, None]
    defined_BKT = last_KT[None] < lengths_B[:, None, None]
    keep_BKT = defined_BKT & has_loss_BT[:, None] & (codes_BKT != ZERO_ID)
    return weights_BKT * keep_BKT


def group_weights(weights_BKT: Tensor) -> Tensor:
    """Returns the summed weights [text, audio], in fp64 so that the sum does not depend on how a step is split."""
    return torch.stack([weights_BKT[:, 0].double().sum(), weights_BKT[:, 1:].double().sum()])


def total_loss(loss_K: Tensor, weights_G: Tensor, loss: Loss) -> Tensor:
    """Returns text plus audio loss, each divided by its summed weight over all ranks and micro-batches of the step.

    Shapes: loss_K summed weighted cross-entropy of each stream, weights_G from `group_weights`, summed.
    """
    text, audio = weights_G.clamp(min=1e-8).float()
    return loss.text * loss_K[0] / text + loss_K[1:].sum() / audio
