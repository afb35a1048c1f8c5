"""The full-duplex language model: 17 token streams in, text and audio tokens of the next frame out.

Callers hand codes over undelayed: codes[b, k, t] is the token of frame t. The model applies the delays itself, once.
Position p of its input is the delayed frame p - 1 (position 0 holds initial ids alone), and it predicts the delayed
frame p: text and codebook 0 of frame p, codebooks 1..7 of frame p - 1.
"""

# Shapes: B batch, K streams (17), Q codebooks (those predicted, dep_q), T frames, D width, V vocabulary
# Shapes: N rows (positions that are not padding), M some rows (those with loss)

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ZERO_ID, LMConfig
from model.depth import DepthTransformer
from model.kernels.cross_entropy import head_loss
from model.kernels.matmul import residual_dtype
from model.kernels.recompute import set_mode
from model.layers import Embedding, Linear, RMSNorm, StackedEmbedding, StepLinear
from model.temporal import TemporalTransformer

HEAD_GAIN = 0.1
"""Factor of the output heads' initial weights."""

HEADS = ("text_head", "depth.heads")
"""Maps that keep their precision where others are held in fewer bits: every logit comes straight out of them, and they
are 2 % of the 7B model."""


class Logits(NamedTuple):
    """Undelayed logits: position t predicts frame t. Where a mask is false, the logits mean nothing."""

    audio_BQTV: Tensor
    audio_mask_BQT: Tensor
    text_BTV: Tensor
    text_mask_BT: Tensor


class StreamSums(NamedTuple):
    """What a batch adds to the loss and to the statistics, per stream, fp32 [17]. Streams beyond dep_q stay 0.

    It is a tuple, not a plain class, so that FSDP2 finds the tensors in it. Sums of several batches add up.
    """

    loss_K: Tensor
    """Sum of weight x cross-entropy."""
    weight_K: Tensor
    """Sum of the weights."""
    correct_K: Tensor
    """Number of targets of weight > 0 where the most likely token is the right one."""
    count_K: Tensor
    """Number of targets of weight > 0."""


class LossRows(NamedTuple):
    """The rows of a packed batch that carry loss, in the order of their positions; see `loss_rows`."""

    text_M: Tensor
    """Positions whose text has weight, int64; position 0 alone if none has."""
    audio_M: Tensor
    """Positions of which any codebook has weight."""
    num_steps: int
    """Depth steps that must run: without a loss on the user's streams, the last 8 need not."""


class DuplexLM(nn.Module):
    """Moshi's and PersonaPlex's language model.

    `device="meta"` builds the shapes alone: fill them with `checkpoint.load_native`, or with `to_empty` and
    `reset_parameters`. Fresh weights are normal with standard deviation 1 / sqrt(input width), heads a tenth of it.
    """

    def __init__(
        self, config: LMConfig, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.text_emb = Embedding(config.text_card + 1, config.dim, device=device, dtype=dtype)
        self.audio_emb = StackedEmbedding(config.n_q, config.card + 1, config.dim, device=device, dtype=dtype)
        self.temporal = TemporalTransformer(config, device=device, dtype=dtype)
        self.out_norm = RMSNorm(config.dim, device=device, dtype=dtype)
        self.text_head = Linear(config.dim, config.text_card, device=device, dtype=dtype)
        self.depth = DepthTransformer(config, device=device, dtype=dtype)
        self._soften_heads()

    def reset_parameters(self) -> None:
        """Draws all weights anew, deterministically under torch.manual_seed. `to_empty` makes this necessary."""
        for module in self.modules():
            if isinstance(module, (RMSNorm, Linear, StepLinear, Embedding, StackedEmbedding)):
                module.reset_parameters()
        self._soften_heads()

    @torch.no_grad()
    def _soften_heads(self) -> None:
        """Makes fresh heads predict nearly uniformly.

        The depth stack has no final norm, so that heads of full size would start far off.
        """
        for head in (self.text_head, self.depth.heads):
            head.weight.mul_(HEAD_GAIN)

    def set_activation_checkpointing(self, mode: str) -> None:
        """Sets what the backward pass computes again: `none`, `selective` or `full` (see recompute.py)."""
        set_mode(self, mode)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles each block of both transformers, in place, for batches of any size; parameter names stay."""
        for block in (*self.temporal.layers, *self.depth.layers):
            block.compile(dynamic=True, backend=backend)

    def num_parameters(self) -> int:
        """Number of parameters, embeddings included."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_frame(self, num_frames: int) -> float:
        """FLOPs of one forward pass per frame, in a sequence of `num_frames` frames.

        It counts 2 for each weight that is multiplied (embeddings are look-ups) and 4 D per layer and visible frame for
        the causal temporal attention. It leaves out the attention within a frame, under 0.1 % at full size.
        """
        config = self.config
        dim, depth_dim = config.dim, config.depformer_dim
        temporal = config.num_layers * (4 * dim**2 + 3 * dim * config.feedforward_hidden) + config.text_card * dim
        step = config.depformer_num_layers * (4 * depth_dim**2 + 3 * depth_dim * config.depformer_hidden)
        depth = config.dep_q * (step + dim * depth_dim + config.card * depth_dim)
        beyond = max(0, num_frames - config.context)
        visible = ((num_frames - beyond) ** 2 / 2 + beyond * config.context) / num_frames
        return 2.0 * (temporal + depth) + 4.0 * dim * config.num_layers * visible

    def embed(self, delayed_BKT: Tensor) -> Tensor:
        """Sum of the 17 embeddings of each position, [B, T, D]; ZERO_ID adds nothing."""
        batch, _, num_frames = delayed_BKT.shape
        return self._embed(_packed(delayed_BKT)).view(batch, num_frames, -1)

    def _embed(self, delayed_KN: Tensor) -> Tensor:
        x_ND = self.text_emb(delayed_KN[0]) + self.audio_emb.summed(delayed_KN[1:])
        return x_ND.to(residual_dtype(x_ND))

    def delayed_inputs(self, codes_BKT: Tensor) -> tuple[Tensor, Tensor]:
        """(inputs_BKT, targets_BKT): what the temporal transformer sees at position p, and the delayed frame p.

        Inputs begin with the initial ids, which also fill the gap of a stream's delay; targets hold ZERO_ID there.
        """
        delayed_BKT = self._delayed_frames(codes_BKT)
        start_K = self._start_ids(codes_BKT.device)
        inputs_BKT = torch.cat((start_K[None, :, None].expand(len(codes_BKT), -1, -1), delayed_BKT[:, :, :-1]), dim=2)
        return inputs_BKT, _delayed(self.config, codes_BKT, ZERO_ID)

    def hidden(self, inputs_BKT: Tensor) -> Tensor:
        """Output of the temporal transformer and the final norm, [B, T, D]."""
        batch, _, num_frames = inputs_BKT.shape
        return self._hidden(_packed(inputs_BKT), [num_frames] * batch).view(batch, num_frames, -1)

    def _hidden(self, inputs_KN: Tensor, lengths: Sequence[int]) -> Tensor:
        return self.out_norm(self.temporal(self._embed(inputs_KN), lengths))

    def logits(self, codes_BKT: Tensor) -> Logits:
        """All logits, for parity and evaluation: memory grows with B x T x V, so that training uses `forward`."""
        num_steps = self.config.dep_q
        batch, _, num_frames = codes_BKT.shape
        inputs_BKT, _ = self.delayed_inputs(codes_BKT)
        hidden_BTD = self.hidden(inputs_BKT)
        tokens_QN = _packed(self._delayed_frames(codes_BKT)[:, :num_steps])
        delayed_QNV = self.depth.heads(self.depth(hidden_BTD.flatten(0, 1), tokens_QN))
        delayed_BQTV = delayed_QNV.unflatten(1, (batch, num_frames)).transpose(0, 1)
        delays, text_BTV = self.config.delays, self.text_head(hidden_BTD)
        mask_BKT = codes_BKT != ZERO_ID
        for stream, delay in enumerate(delays):
            mask_BKT[:, stream, max(0, num_frames - delay) :] = False
        audio_BQTV = torch.zeros_like(delayed_BQTV)
        for k, delay in enumerate(delays[1 : 1 + num_steps]):
            audio_BQTV[:, k] = _undelayed(delayed_BQTV[:, k], delay)
        return Logits(audio_BQTV, mask_BKT[:, 1 : 1 + num_steps], _undelayed(text_BTV, delays[0]), mask_BKT[:, 0])

    def forward(
        self,
        codes_BKT: Tensor,
        weights_BKT: Tensor,
        lengths: Sequence[int] | None = None,
        rows: LossRows | None = None,
    ) -> StreamSums:
        """Summed losses of a batch of undelayed codes.

        Targets that are ZERO_ID, or that the delays leave undefined, get weight 0. If no weight is left, the losses are
        0 and still reach every parameter. Under FSDP2 set cast_forward_inputs=False: in bf16 a weight of 0.3 becomes
        0.3008.
        Shapes: codes_BKT int64; weights_BKT fp32 >= 0, the loss weight of each undelayed target, where 0 means no loss;
        lengths: frames of each row that are not padding (None: all), since nothing is computed behind them.
        rows: what `loss_rows` found for the same batch, on the device of the codes. None finds them here, for which the
        host waits for a GPU three times.
        Raises: ValueError if the shapes or lengths contradict each other.
        """
        if codes_BKT.shape != weights_BKT.shape or codes_BKT.shape[1] != self.config.num_streams:
            raise ValueError(f"codes {tuple(codes_BKT.shape)}, weights {tuple(weights_BKT.shape)}: both are [B, 17, T]")
        batch, _, num_frames = codes_BKT.shape
        lengths = [num_frames] * batch if lengths is None else list(lengths)
        if len(lengths) != batch or min(lengths) < 1 or max(lengths) > num_frames:
            raise ValueError(f"lengths {lengths} of {batch} rows of {num_frames} frames: give 1 to {num_frames} each")
        inputs_BKT, targets_BKT = self.delayed_inputs(codes_BKT)
        hidden_ND = self._hidden(_packed(inputs_BKT, lengths), lengths)
        weights_KN = _packed(_delayed_weights(self.config, codes_BKT, weights_BKT), lengths)
        targets_KN = _packed(targets_BKT, lengths)
        delayed_KN = _packed(self._delayed_frames(codes_BKT), lengths)
        text_M, audio_M, num_steps = _loss_rows(weights_KN, self.config.dep_q) if rows is None else rows

        text_terms = self.text_head.terms(hidden_ND.index_select(0, text_M))
        text_loss_1, text_correct_1 = head_loss(text_terms, targets_KN[:1, text_M], weights_KN[:1, text_M])

        audio = slice(1, 1 + num_steps)
        tokens_QM = delayed_KN[:num_steps, audio_M]
        audio_terms = self.depth.heads.terms(self.depth(hidden_ND.index_select(0, audio_M), tokens_QM))
        audio_loss_Q, audio_correct_Q = head_loss(audio_terms, targets_KN[audio, audio_M], weights_KN[audio, audio_M])

        rest = hidden_ND.new_zeros(self.config.n_q - num_steps, dtype=torch.float32)
        weights_KN[1 + self.config.dep_q :] = 0
        return StreamSums(
            loss_K=torch.cat((text_loss_1, audio_loss_Q, rest)),
            weight_K=weights_KN.sum(1),
            correct_K=torch.cat((text_correct_1, audio_correct_Q, rest)),
            count_K=(weights_KN > 0).sum(1).float(),
        )

    def _start_ids(self, device: torch.device) -> Tensor:
        ids_K = torch.full((self.config.num_streams,), self.config.audio_start_id, device=device)
        ids_K[0] = self.config.text_start_id
        return ids_K

    def _delayed_frames(self, codes_BKT: Tensor) -> Tensor:
        """The delayed codes with initial ids in the gaps, as the depth transformer and the next position see them."""
        return _delayed(self.config, codes_BKT, self._start_ids(codes_BKT.device))


def loss_rows(
    config: LMConfig, codes_BKT: Tensor, weights_BKT: Tensor, lengths: Sequence[int] | None = None
) -> LossRows:
    """Finds which rows carry loss, for `DuplexLM.forward` with the same arguments; best on the host, before its GPU.

    Without any loss it is row 0: at weight 0 it keeps every parameter in the graph, and every rank in the same
    collectives.
    """
    return _loss_rows(_packed(_delayed_weights(config, codes_BKT, weights_BKT), lengths), config.dep_q)


def _loss_rows(weights_KN: Tensor, num_codebooks: int) -> LossRows:
    has_loss_QN = weights_KN[1 : 1 + num_codebooks] > 0
    steps = has_loss_QN.any(1).nonzero()
    num_steps = int(steps[-1]) + 1 if len(steps) else 1
    return LossRows(_where_any(weights_KN[:1] > 0), _where_any(has_loss_QN[:num_steps]), num_steps)


def _where_any(has_loss_QN: Tensor) -> Tensor:
    rows_M = has_loss_QN.any(0).nonzero().flatten()
    return rows_M if len(rows_M) else rows_M.new_zeros(1)


def _delayed(config: LMConfig, values_BKT: Tensor, fill: Tensor | int) -> Tensor:
    delayed_BKT = torch.empty_like(values_BKT)
    for stream, delay in enumerate(config.delays):
        gap = min(delay, values_BKT.shape[2])
        delayed_BKT[:, stream, :gap] = fill[stream] if isinstance(fill, Tensor) else fill
        delayed_BKT[:, stream, gap:] = values_BKT[:, stream, : values_BKT.shape[2] - gap]
    return delayed_BKT


def _delayed_weights(config: LMConfig, codes_BKT: Tensor, weights_BKT: Tensor) -> Tensor:
    return _delayed(config, weights_BKT.float(), 0) * (_delayed(config, codes_BKT, ZERO_ID) != ZERO_ID)


def _undelayed(delayed_BTV: Tensor, delay: int) -> Tensor:
    """The logits of a stream by the frames that they predict, with zeros in the frames that lie behind the end."""
    return F.pad(delayed_BTV[:, delay:], (0, 0, 0, min(delay, delayed_BTV.shape[1])))


def _packed(values_BKT: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
    """The sequences of a batch one after another, without what lies behind their lengths, [B, K, T] -> [K, N]."""
    _batch, _, num_frames = values_BKT.shape
    if lengths is None or min(lengths) == num_frames:
        return values_BKT.transpose(0, 1).flatten(1)
    return torch.cat([row_KT[:, :length] for row_KT, length in zip(values_BKT, lengths, strict=True)], dim=1)
