"""Frozen linear maps in 8 or 4 bits a weight, as the base of adapters: less memory for the same training.

Each step's weight is cut into blocks of 64 values. A block keeps its largest magnitude (fp32) and for each value the
nearest of a few fixed levels: 255 evenly spaced ones (`int8`) or the 16 of NF4 (`nf4`; Dettmers et al. 2023, "QLoRA").
The arithmetic is bitsandbytes'. A dense weight is made for each product, forward and backward, and freed at once.
"""

# Shapes: Q codebooks (depth steps), N rows, B batch, I input width, O output width, X joined axes (a flat weight)

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.duplex import HEADS, DuplexLM
from model.errors import UserError
from model.extras import require
from model.kernels.matmul import compute_dtype, products
from model.layers import Linear, StepLinear

KINDS = ("int8", "nf4")
EXTRA = "quantized"
BLOCK = 64
"""Values that share one scale."""


class Layout(NamedTuple):
    """What it takes to read the bytes of a quantised weight: their kind, and the widths of the map."""

    kind: str
    out_features: int
    in_features: int


class _Quantized(nn.Module):
    """The weights of the depth steps: codes [Q, bytes] uint8, and scales [Q, blocks] fp32.

    They are parameters that never train, not buffers, because DDP would send buffers to all ranks with every pass.
    """

    def __init__(self, weight_QOI: Tensor, kind: str, work_on: torch.device | None) -> None:
        super().__init__()
        self.layout = Layout(kind, *weight_QOI.shape[1:])
        device = weight_QOI.device
        codes, scales = quantize(weight_QOI.to(work_on or device), kind)
        self.codes = nn.Parameter(codes.to(device), requires_grad=False)
        self.scales = nn.Parameter(scales.to(device), requires_grad=False)

    @property
    def in_features(self) -> int:
        """Width of the map's input."""
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        """Width of the map's output."""
        return self.layout.out_features

    def dense(self, steps: slice, dtype: torch.dtype) -> Tensor:
        """The weight that the products use, [Q, O, I]."""
        return dequantize(self.codes[steps], self.scales[steps], self.layout, dtype)

    @torch.compiler.disable  # The library's kernels gain nothing from compiling.
    def product(self, x_QNI: Tensor, steps: slice) -> Tensor:
        """The maps of `steps`, each of its own input, [Q, N, I] -> [Q, N, O], or of one, [1, N, I] -> [1, N, Q O]."""
        x_QNI = x_QNI.to(compute_dtype(x_QNI))
        return _Product.apply(x_QNI, self.codes[steps], self.scales[steps], self.layout)


class QuantizedLinear(_Quantized):
    """A frozen `Linear` in few bits."""

    def __init__(self, base: Linear, kind: str, work_on: torch.device | None = None) -> None:
        super().__init__(base.weight.detach()[None], kind, work_on)

    def terms(self, x_NI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The pair of (input, weight) whose product is the output, as `Linear.terms`."""
        return [(x_NI[None], self.dense(slice(None), compute_dtype(x_NI)))]

    def forward(self, x: Tensor) -> Tensor:
        """The map, [.., I] -> [.., O]."""
        y_1NO = self.product(x.reshape(1, -1, self.in_features), slice(None))
        return y_1NO.view(*x.shape[:-1], self.out_features)


class QuantizedStepLinear(_Quantized):
    """A frozen `StepLinear` in few bits."""

    def __init__(self, base: StepLinear, kind: str, work_on: torch.device | None = None) -> None:
        super().__init__(base.weight.detach(), kind, work_on)
        self.steps = base.steps

    def terms(self, x_QNI: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The pair of (input, weight) whose product is the output, as `StepLinear.terms`."""
        return [(x_QNI, self.dense(slice(len(x_QNI)), compute_dtype(x_QNI)))]

    def step(self, k: int, x_BI: Tensor) -> Tensor:
        """The map of step k alone, [B, I] -> [B, O]."""
        return self.product(x_BI[None], slice(k, k + 1))[0]

    def shared(self, x_NI: Tensor, steps: int) -> Tensor:
        """The first `steps` maps of one input, [N, I] -> [steps, N, O]."""
        return self.product(x_NI[None], slice(steps))[0].unflatten(1, (steps, -1)).transpose(0, 1)

    def forward(self, x_QNI: Tensor) -> Tensor:
        """The maps of the first steps, each of its own input, [Q, N, I] -> [Q, N, O]."""
        return self.product(x_QNI, slice(len(x_QNI)))


class _Product(torch.autograd.Function):
    """x W^T. It keeps only the bytes of W for the backward pass, which makes W again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x_QNI: Tensor, codes: Tensor, scales: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.layout = layout
        weight_QOI = dequantize(codes, scales, layout, x_QNI.dtype).reshape(len(x_QNI), -1, layout.in_features)
        return products(x_QNI, weight_QOI)

    @staticmethod
    def backward(ctx: Any, grad_QNO: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        weight_QOI = dequantize(codes, scales, ctx.layout, grad_QNO.dtype)
        weight_QOI = weight_QOI.reshape(len(grad_QNO), -1, ctx.layout.in_features)
        return products(grad_QNO, weight_QOI.transpose(1, 2)), None, None, None


def quantize_base(model: DuplexLM, kind: str, work_on: torch.device | None = None) -> None:
    """Quantises all linear maps but the heads in place, those inside adapters included; `kind`: one of KINDS.

    The dense weights are gone afterwards: to merge adapters, load them into the full weights.
    work_on: a GPU that does the work for weights in main memory, which takes minutes for the 7B model on a CPU.
    Raises: UserError if bitsandbytes is missing ("missing-package"), or a map still trains ("bad-combination").
    """
    for path, module in list(model.named_modules()):
        if not isinstance(module, Linear | StepLinear) or path.removesuffix(".base") in HEADS:
            continue
        if module.weight.requires_grad:
            raise UserError(
                f"{path} trains: only a frozen model can be held in {kind}, so add adapters first",
                code="bad-combination",
            )
        parent, _, name = path.rpartition(".")
        if isinstance(module, Linear):
            small: nn.Module = QuantizedLinear(module, kind, work_on)
        else:
            small = QuantizedStepLinear(module, kind, work_on)
        setattr(model.get_submodule(parent), name, small)


def quantize(weight_QOI: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Codes [Q, bytes] and scales [Q, blocks] of each step's weight, the same ones each time on one kind of device."""
    flat_QX = weight_QOI.flatten(1)
    # The padding lets no block span two steps.
    flat_QX = F.pad(flat_QX, (0, -flat_QX.shape[1] % BLOCK)).contiguous()
    bnb = bitsandbytes()
    if kind == "nf4":
        codes, state = bnb.quantize_4bit(flat_QX, blocksize=BLOCK, quant_type="nf4")
    else:
        codes, state = bnb.quantize_blockwise(flat_QX, code=_levels(flat_QX.device), blocksize=BLOCK)
    return codes.reshape(len(flat_QX), -1), state.absmax.reshape(len(flat_QX), -1)


def dequantize(codes: Tensor, scales: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The weights of the steps, [Q, O, I], from their codes [Q, bytes] and scales [Q, blocks]."""
    bnb = bitsandbytes()
    steps, blocks = scales.shape
    absmax, shape = scales.flatten(), torch.Size((steps, blocks * BLOCK))
    if layout.kind == "nf4":
        state = bnb.QuantState(absmax, shape=shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
        flat = bnb.dequantize_4bit(codes.reshape(-1, 1), state)
    else:
        state = bnb.QuantState(absmax, code=_levels(absmax.device), blocksize=BLOCK, dtype=dtype)
        flat = bnb.dequantize_blockwise(codes.contiguous(), state)
    kept = layout.out_features * layout.in_features
    return flat.view(shape)[:, :kept].reshape(steps, layout.out_features, layout.in_features)


@cache
def bitsandbytes() -> Any:
    """The library's functions.

    Raises: UserError with the install command if it is missing.
    """
    # The library warns of a missing kernel for a product that is not used here.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return require("bitsandbytes.functional", extra=EXTRA)


@cache
def _levels(device: torch.device) -> Tensor:
    """The 255 levels of int8, from -1 to 1."""
    return bitsandbytes().create_linear_map(signed=True).to(device)
