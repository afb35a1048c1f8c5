"""Causal convolutions with explicit left context.

Shapes: B batch, C channels, T steps of the current rate, K kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ConvState = dict[nn.Module, Tensor]
"""What each convolution carries to its next call. A module that is missing is at the start of its stream."""

FEW_STEPS = 32  # up to here one matrix product is up to 15 x faster than the library's convolution on a CPU


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
    """[B, C, T] -> [B, C', T / stride], each output seeing the past only. T must be a multiple of the stride.

    The start of the stream is padded with zeros, or with the first step (`replicate`).
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
    ) -> None:
        super().__init__()
        self.conv = Conv(nn.Conv1d(channels_in, channels_out, kernel, stride=stride, dilation=dilation, bias=bias))
        self.kernel, self.stride, self.dilation, self.replicate = kernel, stride, dilation, replicate
        self.past = (kernel - 1) * dilation + 1 - stride

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """With a state, continues from its left context and leaves the new one there."""
        if self.past:
            x_BCT = torch.cat([self._left(x_BCT, state), x_BCT], dim=2)
            if state is not None:
                # A copy: a view would keep the whole chunk alive.
                state[self] = x_BCT[..., x_BCT.shape[2] - self.past :].clone()
        conv = self.conv.conv
        steps = (x_BCT.shape[2] - self.past) // self.stride
        if self.dilation == 1 and steps <= FEW_STEPS:
            windows_BTCK = x_BCT.unfold(2, self.kernel, self.stride).transpose(1, 2)
            return F.linear(windows_BTCK.flatten(2), conv.weight.flatten(1), conv.bias).transpose(1, 2)
        return F.conv1d(x_BCT, conv.weight, conv.bias, self.stride, 0, self.dilation)

    def _left(self, x_BCT: Tensor, state: ConvState | None) -> Tensor:
        if state is not None and self in state:
            return state[self]
        if self.replicate:
            return x_BCT[..., :1].expand(-1, -1, self.past)
        return x_BCT.new_zeros(x_BCT.shape[0], x_BCT.shape[1], self.past)


class CausalConvTranspose1d(nn.Module):
    """[B, C, T] -> [B, C', T * stride] with a kernel of twice the stride.

    Every input step adds to its own block of `stride` outputs and to the next block; what would reach past the
    end is carried over, so nothing has to be trimmed. `depthwise`: one filter a channel.
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
        """With a state, adds what the last call carried over."""
        conv = self.convtr.convtr
        carried_BCS = None if state is None else state.get(self)
        if self.depthwise or x_BCT.shape[2] <= FEW_STEPS:
            y_BCS = self._by_product(x_BCT, conv.weight)
        else:
            y_BCS = F.conv_transpose1d(x_BCT, conv.weight, None, self.stride)
        length = x_BCT.shape[2] * self.stride
        if state is not None:
            state[self] = y_BCS[..., length:].clone()
        y_BCS = y_BCS[..., :length]
        if carried_BCS is not None:
            y_BCS = torch.cat([y_BCS[..., : self.stride] + carried_BCS, y_BCS[..., self.stride :]], dim=2)
        return y_BCS if conv.bias is None else y_BCS + conv.bias[:, None]

    def _by_product(self, x_BCT: Tensor, weight: Tensor) -> Tensor:
        """[B, C', (T + 1) * stride]: all taps of all steps at once, then each step's two blocks added in place."""
        batch, _, steps = x_BCT.shape
        if self.depthwise:
            taps_BTCK = (x_BCT[..., None] * weight).transpose(1, 2)
        else:
            taps_BTCK = (x_BCT.transpose(1, 2) @ weight.flatten(1)).unflatten(2, (-1, 2 * self.stride))
        own_BTCS, next_BTCS = taps_BTCK.split(self.stride, dim=3)
        y_BTCS = F.pad(own_BTCS, (0, 0, 0, 0, 0, 1)) + F.pad(next_BTCS, (0, 0, 0, 0, 1, 0))
        return y_BTCS.transpose(1, 2).reshape(batch, -1, (steps + 1) * self.stride)
