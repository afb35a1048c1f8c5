"""Causal convolutions with explicit left context."""

# Shapes: B batch, C channels, T frames (steps of the input), F filter taps, U upsampled frames

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class ConvState:
    """What each convolution carries to its next call, for every row: a module that is missing has seen nothing."""

    kept: dict[nn.Module, Tensor] = field(default_factory=dict)
    is_first_B: Tensor | None = None
    """Rows whose stream starts with this call; None: those of modules that are missing."""
    active_B: Tensor | None = None
    """Rows that go on in this call; the others keep what they have. None: all."""

    def keep(self, module: nn.Module, new_BCT: Tensor) -> None:
        """Stores a copy of what a module carries, for the active rows: a view would keep the whole chunk alive."""
        if self.active_B is None:
            self.kept[module] = new_BCT.clone()
            return
        old_BCT = self.kept.get(module)
        old_BCT = torch.zeros_like(new_BCT) if old_BCT is None else old_BCT
        self.kept[module] = torch.where(self.active_B[:, None, None], new_BCT, old_BCT)

    def forget(self, rows: Sequence[int]) -> None:
        """Takes some rows back to the start of a stream."""
        for kept_BCT in self.kept.values():
            kept_BCT[list(rows)] = 0


FEW_STEPS = 32
"""Steps up to which one matrix product is faster than the library's convolution on a CPU, by up to 15 times."""
FEW_STRIDED_STEPS = 512
"""The same for outputs of strided convolutions, of which a streamed frame has at most 480."""


def reduced_type(x: Tensor) -> torch.dtype | None:
    """The reduced precision in which the library would convolve on a CPU; None where it would not.

    Its strided kernel is then wrong for some sizes on processors with matrix units: from 16 to 32 channels with 16 taps
    and a stride of 8 it is off by 118 % in torch 2.13, and so is the gradient of the transposed one from 32 to 16.
    """
    if not x.is_cpu:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in (torch.bfloat16, torch.float16) else None


class Conv(nn.Module):
    """Holds the library's convolution: the public names say conv.conv."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv


class ConvTranspose(nn.Module):
    """Holds the library's transposed convolution: the public names say convtr.convtr."""

    def __init__(self, convtr: nn.ConvTranspose1d) -> None:
        super().__init__()
        self.convtr = convtr


class CausalConv1d(nn.Module):
    """A convolution whose outputs see the past only: [B, C, T] -> [B, C', T / stride], T a multiple of the stride.

    The start of the stream is padded with zeros, or with the first step (`replicate`). `depthwise`: one filter a
    channel.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
        depthwise: bool = False,
    ) -> None:
        super().__init__()
        groups = channels_in if depthwise else 1
        self.conv = Conv(
            nn.Conv1d(channels_in, channels_out, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias)
        )
        self.kernel, self.stride, self.dilation, self.replicate = kernel, stride, dilation, replicate
        self.groups = groups
        self.past = (kernel - 1) * dilation + 1 - stride

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """The output; with a state, it continues from the left context there and leaves the new one."""
        if self.past:
            x_BCT = torch.cat([self._left(x_BCT, state), x_BCT], dim=2)
            if state is not None:
                state.keep(self, x_BCT[..., x_BCT.shape[2] - self.past :])
        conv = self.conv.conv
        steps = (x_BCT.shape[2] - self.past) // self.stride
        if self.groups == self.dilation == 1 and steps <= (FEW_STEPS if self.stride == 1 else FEW_STRIDED_STEPS):
            windows_BTCF = x_BCT.unfold(2, self.kernel, self.stride).transpose(1, 2)
            return F.linear(windows_BTCF.flatten(2), conv.weight.flatten(1), conv.bias).transpose(1, 2)
        shape = (self.stride, 0, self.dilation, self.groups)
        if self.stride > 1 and (dtype := reduced_type(x_BCT)):
            with torch.autocast("cpu", enabled=False):
                bias = None if conv.bias is None else conv.bias.float()
                return F.conv1d(x_BCT.float(), conv.weight.float(), bias, *shape).to(dtype)
        return F.conv1d(x_BCT, conv.weight, conv.bias, *shape)

    def _left(self, x_BCT: Tensor, state: ConvState | None) -> Tensor:
        kept_BCT = None if state is None else state.kept.get(self)
        if self.replicate:
            first_BCT = x_BCT[..., :1].expand(-1, -1, self.past)
            if kept_BCT is None or state is None or state.is_first_B is None:
                return first_BCT if kept_BCT is None else kept_BCT
            return torch.where(state.is_first_B[:, None, None], first_BCT, kept_BCT)
        return x_BCT.new_zeros(x_BCT.shape[0], x_BCT.shape[1], self.past) if kept_BCT is None else kept_BCT


class CausalConvTranspose1d(nn.Module):
    """A transposed convolution with a kernel of twice the stride: [B, C, T] -> [B, C', U], U = T * stride.

    Every input step adds to its own block of `stride` outputs and to the next block. What would reach past the end is
    carried over, so that nothing has to be trimmed. `depthwise`: one filter a channel.
    """

    def __init__(
        self, channels_in: int, channels_out: int, stride: int, *, bias: bool = True, depthwise: bool = False
    ) -> None:
        super().__init__()
        groups = channels_in if depthwise else 1
        convtr = nn.ConvTranspose1d(channels_in, channels_out, 2 * stride, stride=stride, groups=groups, bias=bias)
        self.convtr = ConvTranspose(convtr)
        self.stride, self.depthwise = stride, depthwise

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """The output; with a state, it adds what the last call carried over."""
        conv = self.convtr.convtr
        carried_BCU = None if state is None else state.kept.get(self)
        if self.depthwise or x_BCT.shape[2] <= FEW_STEPS:
            y_BCU = self._by_product(x_BCT, conv.weight)
        elif dtype := reduced_type(x_BCT):
            with torch.autocast("cpu", enabled=False):
                y_BCU = F.conv_transpose1d(x_BCT.float(), conv.weight.float(), None, self.stride).to(dtype)
        else:
            y_BCU = F.conv_transpose1d(x_BCT, conv.weight, None, self.stride)
        length = x_BCT.shape[2] * self.stride
        if state is not None:
            state.keep(self, y_BCU[..., length:])
        y_BCU = y_BCU[..., :length]
        if carried_BCU is not None:
            y_BCU = torch.cat([y_BCU[..., : self.stride] + carried_BCU, y_BCU[..., self.stride :]], dim=2)
        return y_BCU if conv.bias is None else y_BCU + conv.bias[:, None]

    def _by_product(self, x_BCT: Tensor, weight: Tensor) -> Tensor:
        """[B, C', (T + 1) * stride]: all taps of all steps at once, then the sum of each step's two blocks."""
        batch, _, steps = x_BCT.shape
        if self.depthwise:
            taps_BTCF = (x_BCT[..., None] * weight).transpose(1, 2)
        else:
            taps_BTCF = (x_BCT.transpose(1, 2) @ weight.flatten(1)).unflatten(2, (-1, 2 * self.stride))
        own_block, next_block = taps_BTCF.split(self.stride, dim=3)
        blocks = F.pad(own_block, (0, 0, 0, 0, 0, 1)) + F.pad(next_block, (0, 0, 0, 0, 1, 0))
        return blocks.transpose(1, 2).reshape(batch, -1, (steps + 1) * self.stride)
