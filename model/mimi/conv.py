"""Causal convolutions with explicit left context.

Shapes: B batch, C channels, T steps of the current rate, K kernel.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ConvState = dict[nn.Module, Tensor]
"""What each convolution carries to its next call. A module that is missing is at the start of its stream."""

FEW_STEPS = 96  # up to here one matrix product beats the library's convolution, which repacks its weight at every call


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
        conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride, dilation=dilation, bias=bias)
        self.conv = nn.ModuleDict({"conv": conv})  # the public names say conv.conv
        self.kernel, self.stride, self.dilation, self.replicate = kernel, stride, dilation, replicate
        self.past = (kernel - 1) * dilation + 1 - stride

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """With a state, continues from its left context and leaves the new one there."""
        if self.past:
            x_BCT = torch.cat([self._left(x_BCT, state), x_BCT], dim=2)
            if state is not None:
                # A copy: a view would keep the whole chunk alive.
                state[self] = x_BCT[..., x_BCT.shape[2] - self.past :].clone()
        conv = self.conv["conv"]
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
        self.convtr = nn.ModuleDict({"convtr": convtr})
        self.stride, self.depthwise = stride, depthwise

    def forward(self, x_BCT: Tensor, state: ConvState | None = None) -> Tensor:
        """With a state, adds what the last call carried over."""
        convtr = self.convtr["convtr"]
        batch, _, steps = x_BCT.shape
        if self.depthwise:
            both_BCKT = x_BCT[:, :, None] * convtr.weight[:, 0, :, None]
        else:
            # One product for all taps: [C' K, C] @ [C, T]. The library's transposed convolution is slower on a CPU.
            both_BCKT = (convtr.weight.flatten(1).t() @ x_BCT).unflatten(1, (-1, 2 * self.stride))
        own_BCST, next_BCST = both_BCKT.split(self.stride, dim=2)
        carried_BCS1 = next_BCST.new_zeros(batch, own_BCST.shape[1], self.stride, 1)
        if state is not None:
            carried_BCS1 = state.get(self, carried_BCS1)
            state[self] = next_BCST[..., -1:].clone()
        y_BCST = own_BCST + torch.cat([carried_BCS1, next_BCST[..., :-1]], dim=3)
        if convtr.bias is not None:
            y_BCST = y_BCST + convtr.bias[:, None, None]
        return y_BCST.transpose(2, 3).reshape(batch, -1, steps * self.stride)
