"""Mimi's transformer at 25 Hz: layer norm, GELU, layer scale, rotary positions, a sliding window."""

# Shapes: B batch, T frames (steps at 25 Hz), D width, H heads, E head width, W window (steps that a chunk may see)

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.kernels.matmul import linear
from model.mimi.config import TransformerConfig


@dataclass
class KeyValues:
    """Keys and values of one layer, [B, H, room, E]; the last context - 1 before `end` are in the window."""

    keys: Tensor
    values: Tensor
    end: int = 0

    def append(self, keys_BHTE: Tensor, values_BHTE: Tensor, past: int) -> tuple[Tensor, Tensor]:
        """Stores T steps and returns the views [B, H, W, E], W = min(past, seen) + T, that T queries may see.

        The room is larger than the window, so that old steps are moved to the front only now and then.
        """
        steps = keys_BHTE.shape[2]
        if self.end + steps > self.keys.shape[2]:
            self._make_room(steps, past)
        for store, new in ((self.keys, keys_BHTE), (self.values, values_BHTE)):
            store[:, :, self.end : self.end + steps] = new
        start, self.end = max(0, self.end - past), self.end + steps
        return self.keys[:, :, start : self.end], self.values[:, :, start : self.end]

    def _make_room(self, steps: int, past: int) -> None:
        kept = min(past, self.end)
        room = max(self.keys.shape[2], 2 * past + steps)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], room, old.shape[3])
            new[:, :, :kept] = old[:, :, self.end - kept : self.end]
            setattr(self, name, new)
        self.end = kept


@dataclass
class TransformerState:
    """Keys and values of each layer, and the number of steps seen, which all rows share."""

    layers: list[KeyValues]
    offset: int = 0


class LayerScale(nn.Module):
    """Multiplies each channel of a residual update by a learnt factor."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return self.scale * x_BTD


class MimiAttention(nn.Module):
    """Multi-head attention over the window, without biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.past = config.num_heads, config.context - 1
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.d_model, config.d_model))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, turn: Tensor, mask_TW: Tensor | None, memory: KeyValues | None) -> Tensor:
        """[B, T, D] -> [B, T, D]; turn: the `rotation`, [T, E / 2]; memory: stores the steps for the next chunk."""
        batch, steps, width = x_BTD.shape
        qkv = linear(x_BTD, self.in_proj_weight).view(batch, steps, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = rotate(query, turn), rotate(key, turn)
        if memory is not None:
            key, value = memory.append(key, value, self.past)
        mixed = F.scaled_dot_product_attention(query, key, value, mask_TW, is_causal=mask_TW is None and steps > 1)
        return linear(mixed.transpose(1, 2).reshape(batch, steps, width), self.out_proj.weight)


class MimiBlock(nn.Module):
    """Pre-norm attention and feed-forward, each scaled by a learnt vector."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = MimiAttention(config)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.linear1 = nn.Linear(config.d_model, config.dim_feedforward, bias=False)
        self.linear2 = nn.Linear(config.dim_feedforward, config.d_model, bias=False)
        self.layer_scale_1 = LayerScale(config.d_model, config.layer_scale)
        self.layer_scale_2 = LayerScale(config.d_model, config.layer_scale)

    def forward(self, x_BTD: Tensor, turn: Tensor, mask_TW: Tensor | None, memory: KeyValues | None) -> Tensor:
        """[B, T, D] -> [B, T, D], with the arguments of the attention."""
        x_BTD = x_BTD + self.layer_scale_1(self.self_attn(self.norm1(x_BTD), turn, mask_TW, memory))
        hidden = F.gelu(linear(self.norm2(x_BTD), self.linear1.weight))
        return x_BTD + self.layer_scale_2(linear(hidden, self.linear2.weight))


class Layers(nn.Module):
    """Holds the blocks: the public names say transformer.layers."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([MimiBlock(config) for _ in range(config.num_layers)])

    def blocks(self) -> list[MimiBlock]:
        """The blocks in order."""
        return [layer for layer in self.layers if isinstance(layer, MimiBlock)]


class MimiTransformer(nn.Module):
    """A transformer [B, D, T] -> [B, D, T], causal over the last `context` steps."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Layers(config)

    def init_state(self, batch: int) -> TransformerState:
        """The state before the first step, with room for two windows: old steps move once a window, not once a call."""
        config = self.config
        weight = self.transformer.blocks()[0].linear1.weight
        shape = (batch, config.num_heads, 2 * config.context, config.d_model // config.num_heads)
        return TransformerState(
            [KeyValues(weight.new_empty(shape), weight.new_empty(shape)) for _ in range(config.num_layers)]
        )

    def forward(self, x_BDT: Tensor, state: TransformerState | None = None) -> Tensor:
        """The output; with a state, it continues after the steps seen, with the numbers of one pass over everything."""
        x_BTD = x_BDT.transpose(1, 2)
        steps, offset = x_BTD.shape[1], 0 if state is None else state.offset
        turn = rotation(offset, steps, x_BTD.shape[2] // self.config.num_heads, self.config.max_period, x_BTD.device)
        mask_TW = window_mask(min(offset, self.config.context - 1), steps, self.config.context, x_BTD.device)
        for n, block in enumerate(self.transformer.blocks()):
            x_BTD = block(x_BTD, turn, mask_TW, None if state is None else state.layers[n])
        if state is not None:
            state.offset += steps
        return x_BTD.transpose(1, 2)


def window_mask(past: int, steps: int, context: int, device: torch.device) -> Tensor | None:
    """A mask [T, W], true where query t (key past + t) may look: itself and the context - 1 steps before it.

    It is None where plain causal attention, or no mask at all, has the same result.
    """
    if past + steps <= context and (past == 0 or steps == 1):
        return None
    behind = torch.arange(past, past + steps, device=device)[:, None] - torch.arange(past + steps, device=device)
    return (behind >= 0) & (behind < context)


def rotation(offset: int, steps: int, size: int, max_period: int, device: torch.device) -> Tensor:
    """Rotary angles of positions offset to offset + steps - 1, as complex numbers of length 1, fp32 [T, E / 2]."""
    rates = max_period ** (-torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)
    angles = torch.arange(offset, offset + steps, device=device, dtype=torch.float32)[:, None] * rates
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x_BHTE: Tensor, turn: Tensor) -> Tensor:
    """Turns the interleaved pairs of the last axis by their positions, in fp32."""
    pairs = torch.view_as_complex(x_BHTE.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x_BHTE.dtype)
