"""Mimi's transformer at 25 Hz: layer norm, GELU, layer scale, rotary positions, a sliding window."""

# Shapes: B batch, T frames (steps at 25 Hz), D width, H heads, E head width, W window (steps that a chunk may see)

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.kernels.matmul import linear
from model.mimi.config import TransformerConfig


class TransformerState:
    """Keys and values of the last steps of every row, in a ring of which each row has its own position.

    keys and values: one [B, H, ring, E] a layer; the step at position p of a row lies in slot p % ring. The ring has
    room for the window and `most_steps` - 1 more, so that one call may write that many before its first step reads.
    """

    def __init__(self, shape: tuple[int, int, int, int], layers: int, most_steps: int, like: Tensor) -> None:
        self.keys = [like.new_zeros(shape) for _ in range(layers)]
        self.values = [like.new_zeros(shape) for _ in range(layers)]
        self.most_steps = most_steps
        self.offset_B = torch.zeros(shape[0], dtype=torch.long, device=like.device)
        self.positions = [0] * shape[0]
        """offset_B on the host."""

    @property
    def room(self) -> int:
        """Slots of the ring."""
        return self.keys[0].shape[2]

    def forget(self, rows: Sequence[int]) -> None:
        """Takes some rows back to the start of a stream."""
        for row in rows:
            self.positions[row] = 0
            self.offset_B[row] = 0


class StepWindow(NamedTuple):
    """Where the steps of one call go and what they may see, the same in all layers."""

    turn: Tensor
    """The `rotation`, [T, E / 2] or [B, 1, T, E / 2]."""
    mask: Tensor | None
    """True where a query may look, [T, W] or [B, 1, T, W]; None: causal."""
    state: TransformerState | None = None
    slots_BT: Tensor | None = None
    """Slots of the new steps; None where `start` says it for all rows."""
    start: int = 0
    """The first of the slots of the new steps, which lie together, if `slots_BT` is None."""
    live: int = 0
    """Slots that are read, from the first."""

    def extend(self, layer: int, new_BHTE: Tensor, which: Literal["keys", "values"]) -> Tensor:
        """Puts the keys or values of new steps into the ring, and returns those to attend to, [B, H, W, E]."""
        if self.state is None:
            return new_BHTE
        ring = getattr(self.state, which)[layer]
        if self.slots_BT is None:
            ring[:, :, self.start : self.start + new_BHTE.shape[2]] = new_BHTE
        else:
            slots = self.slots_BT[:, None, :, None].expand_as(new_BHTE)
            ring.scatter_(2, slots, new_BHTE)
        return ring[:, :, : self.live]


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
        self.heads = config.num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.d_model, config.d_model))
        nn.init.xavier_uniform_(self.in_proj_weight)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_BTD: Tensor, window: StepWindow, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        batch, steps, width = x_BTD.shape
        qkv = linear(x_BTD, self.in_proj_weight).view(batch, steps, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = rotate(query, window.turn), rotate(key, window.turn)
        key, value = window.extend(layer, key, "keys"), window.extend(layer, value, "values")
        is_causal = window.mask is None and steps > 1
        mixed = F.scaled_dot_product_attention(query, key, value, window.mask, is_causal=is_causal)
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

    def forward(self, x_BTD: Tensor, window: StepWindow, layer: int) -> Tensor:
        """[B, T, D] -> [B, T, D], with the arguments of the attention."""
        x_BTD = x_BTD + self.layer_scale_1(self.self_attn(self.norm1(x_BTD), window, layer))
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

    def init_state(self, batch: int, most_steps: int) -> TransformerState:
        """The state before the first step of each row; a call may bring up to `most_steps`."""
        config = self.config
        weight = self.transformer.blocks()[0].linear1.weight
        room = config.context + most_steps - 1
        shape = (batch, config.num_heads, room, config.d_model // config.num_heads)
        return TransformerState(shape, config.num_layers, most_steps, weight.detach())

    def forward(
        self, x_BDT: Tensor, state: TransformerState | None = None, active: Sequence[bool] | None = None
    ) -> Tensor:
        """The output; with a state, it continues after the steps seen, with the numbers of one pass over everything.

        Rows that are not active (None: all are) keep their state, and their output means nothing.
        """
        x_BTD = x_BDT.transpose(1, 2)
        steps = x_BTD.shape[1]
        window = self._window(steps, x_BTD.device, state)
        for layer, block in enumerate(self.transformer.blocks()):
            x_BTD = block(x_BTD, window, layer)
        if state is not None:
            rows = range(len(state.positions)) if active is None else [n for n, goes in enumerate(active) if goes]
            for row in rows:
                state.positions[row] += steps
            if active is None:
                state.offset_B += steps
            else:
                state.offset_B += steps * torch.tensor(list(active), device=x_BTD.device)
        return x_BTD.transpose(1, 2)

    def _window(self, steps: int, device: torch.device, state: TransformerState | None) -> StepWindow:
        """What `steps` new steps see; rows that stand at one position, as those of a recording do, need no table."""
        config = self.config
        size = config.d_model // config.num_heads
        if state is None:
            turn = rotation(torch.arange(steps, device=device), size, config.max_period)
            return StepWindow(turn, window_mask(0, steps, config.context, device))
        most, least = max(state.positions), min(state.positions)
        live, start = min(most + steps, state.room), least % state.room
        if most == least and most == 0:
            turn = rotation(torch.arange(steps, device=device), size, config.max_period)
            return StepWindow(turn, window_mask(0, steps, config.context, device), state, start=0, live=live)
        is_even = most == least
        first = torch.tensor([least], device=device) if is_even else state.offset_B
        position = first[:, None] + torch.arange(steps, device=device)
        newest = position[:, -1:]
        held = newest - (newest - torch.arange(live, device=device)) % state.room
        age = position[:, :, None] - held[:, None]
        mask = ((age >= 0) & (age < config.context) & (held >= 0)[:, None])[:, None]
        turn = rotation(position, size, config.max_period)[:, None]
        if is_even and start + steps <= state.room:
            return StepWindow(turn, mask, state, start=start, live=live)
        slots_BT = (position % state.room).expand(len(state.positions), -1)
        return StepWindow(turn, mask, state, slots_BT=slots_BT, live=live)


def window_mask(past: int, steps: int, context: int, device: torch.device) -> Tensor | None:
    """A mask [T, W], true where query t (key past + t) may look: itself and the context - 1 steps before it.

    It is None where plain causal attention, or no mask at all, has the same result.
    """
    if past + steps <= context and (past == 0 or steps == 1):
        return None
    behind = torch.arange(past, past + steps, device=device)[:, None] - torch.arange(past + steps, device=device)
    return (behind >= 0) & (behind < context)


def rotation(position: Tensor, size: int, max_period: int) -> Tensor:
    """Rotary angles of some positions [..., T], as complex numbers of length 1, fp32 [..., T, E / 2]."""
    rates = max_period ** (-torch.arange(0, size, 2, device=position.device, dtype=torch.float32) / size)
    angles = position.float()[..., None] * rates
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x_BHTE: Tensor, turn: Tensor) -> Tensor:
    """Turns the interleaved pairs of the last axis by their positions, in fp32."""
    pairs = torch.view_as_complex(x_BHTE.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x_BHTE.dtype)
