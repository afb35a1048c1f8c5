"""Frozen linear maps in 8 or 4 bits a weight, as the base of adapters: less memory for the same training.

Each step's weight is cut into blocks of 64 values. A block keeps its largest magnitude (fp32) and per value the nearest
of a few fixed levels: 255 evenly spaced ones (`int8`) or the 16 of NF4 (`nf4`; Dettmers et al. 2023, "QLoRA").
The arithmetic is bitsandbytes'. A dense weight is made for each product, forward and backward, and freed at once.
"""

# Shapes: K steps, N rows, I input width, O output width, P bytes of a step, S blocks of a step

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.duplex import DuplexLM
from model.errors import UserError
from model.extras import require
from model.kernels.matmul import compute_dtype, products
from model.layers import Linear, StepLinear

KINDS = ("int8", "nf4")
EXTRA = "quantized"
BLOCK = 64
HEADS = ("text_head", "depth.heads")
"""Maps that keep their precision: every logit comes straight out of them, and they are 2 % of the 7B model."""


class Layout(NamedTuple):
    """How the bytes of a quantised weight are read."""

    kind: str
    out_features: int
    in_features: int


class _Quantized(nn.Module):
    """The weights of K steps: codes [K, P] uint8 and scales [K, S] fp32.

    They are parameters that never train, not buffers: DDP would send buffers to all processes with every pass.
    """

    def __init__(self, weight_KOI: Tensor, kind: str, work_on: torch.device | None) -> None:
        super().__init__()
        self.layout = Layout(kind, *weight_KOI.shape[1:])
        device = weight_KOI.device
        codes, scales = quantize(weight_KOI.to(work_on or device), kind)
        self.codes = nn.Parameter(codes.to(device), requires_grad=False)
        self.scales = nn.Parameter(scales.to(device), requires_grad=False)

    @property
    def in_features(self) -> int:
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        return self.layout.out_features

    def dense(self, steps: slice, dtype: torch.dtype) -> Tensor:
        """The weight that the products use, [K, O, I]."""
        return dequantize(self.codes[steps], self.scales[steps], self.layout, dtype)

    @torch.compiler.disable  # the library's kernels gain nothing from it
    def product(self, x_KNI: Tensor, steps: slice) -> Tensor:
        """The maps `steps` of their own inputs [K, N, I], or all side by side of one input [1, N, I]: [1, N, K O]."""
        x_KNI = x_KNI.to(compute_dtype(x_KNI))
        return _Product.apply(x_KNI, self.codes[steps], self.scales[steps], self.layout)


class QuantizedLinear(_Quantized):
    """A frozen `Linear` in few bits."""

    def __init__(self, base: Linear, kind: str, work_on: torch.device | None = None) -> None:
        super().__init__(base.weight.detach()[None], kind, work_on)

    def terms(self, x_NI: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(x_NI[None], self.dense(slice(None), compute_dtype(x_NI)))]

    def forward(self, x: Tensor) -> Tensor:
        y_1NO = self.product(x.reshape(1, -1, self.in_features), slice(None))
        return y_1NO.view(*x.shape[:-1], self.out_features)


class QuantizedStepLinear(_Quantized):
    """A frozen `StepLinear` in few bits."""

    def __init__(self, base: StepLinear, kind: str, work_on: torch.device | None = None) -> None:
        super().__init__(base.weight.detach(), kind, work_on)
        self.steps = base.steps

    def terms(self, x_KNI: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [(x_KNI, self.dense(slice(len(x_KNI)), compute_dtype(x_KNI)))]

    def step(self, k: int, x_BI: Tensor) -> Tensor:
        return self.product(x_BI[None], slice(k, k + 1))[0]

    def shared(self, x_NI: Tensor, steps: int) -> Tensor:
        return self.product(x_NI[None], slice(steps))[0].unflatten(1, (steps, -1)).transpose(0, 1)

    def forward(self, x_KNI: Tensor) -> Tensor:
        return self.product(x_KNI, slice(len(x_KNI)))


class _Product(torch.autograd.Function):
    """x W^T. Only the bytes of W are kept for the backward pass, which makes W again for the gradient of x."""

    @staticmethod
    def forward(ctx: Any, x_KNI: Tensor, codes: Tensor, scales: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.layout = layout
        weight_KOI = dequantize(codes, scales, layout, x_KNI.dtype).reshape(len(x_KNI), -1, layout.in_features)
        return products(x_KNI, weight_KOI)

    @staticmethod
    def backward(ctx: Any, grad_KNO: Tensor) -> tuple[Tensor, None, None, None]:
        codes, scales = ctx.saved_tensors
        weight_KOI = dequantize(codes, scales, ctx.layout, grad_KNO.dtype)
        weight_KOI = weight_KOI.reshape(len(grad_KNO), -1, ctx.layout.in_features)
        return products(grad_KNO, weight_KOI.transpose(1, 2)), None, None, None


def quantize_base(model: DuplexLM, kind: str, work_on: torch.device | None = None) -> None:
    """Puts all linear maps but the heads into `kind`, in place, those inside adapters included.

    work_on: a GPU that does the work for weights in main memory: minutes for the 7B model on a CPU.
    The dense weights are gone afterwards: to merge adapters, load them into the full weights.
    Raises: UserError if bitsandbytes is missing, or a map still trains.
    """
    for path, module in list(model.named_modules()):
        if not isinstance(module, Linear | StepLinear) or path.removesuffix(".base") in HEADS:
            continue
        if module.weight.requires_grad:
            raise UserError(f"{path} trains: only a frozen model can be held in {kind}: add adapters first")
        parent, _, name = path.rpartition(".")
        if isinstance(module, Linear):
            small: nn.Module = QuantizedLinear(module, kind, work_on)
        else:
            small = QuantizedStepLinear(module, kind, work_on)
        setattr(model.get_submodule(parent), name, small)


def quantize(weight_KOI: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(codes [K, P], scales [K, S]) of each step's weight. Deterministic on one kind of device."""
    flat_KX = weight_KOI.flatten(1)
    flat_KX = F.pad(flat_KX, (0, -flat_KX.shape[1] % BLOCK)).contiguous()  # so that no block spans two steps
    bnb = bitsandbytes()
    if kind == "nf4":
        codes, state = bnb.quantize_4bit(flat_KX, blocksize=BLOCK, quant_type="nf4")
    else:
        codes, state = bnb.quantize_blockwise(flat_KX, code=_levels(flat_KX.device), blocksize=BLOCK)
    return codes.reshape(len(flat_KX), -1), state.absmax.reshape(len(flat_KX), -1)


def dequantize(codes_KP: Tensor, scales_KS: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    """The weights of the steps, [K, O, I]."""
    bnb = bitsandbytes()
    steps, blocks = scales_KS.shape
    absmax, shape = scales_KS.flatten(), torch.Size((steps, blocks * BLOCK))
    if layout.kind == "nf4":
        state = bnb.QuantState(absmax, shape=shape, blocksize=BLOCK, quant_type="nf4", dtype=dtype)
        flat = bnb.dequantize_4bit(codes_KP.reshape(-1, 1), state)
    else:
        state = bnb.QuantState(absmax, code=_levels(absmax.device), blocksize=BLOCK, dtype=dtype)
        flat = bnb.dequantize_blockwise(codes_KP.contiguous(), state)
    kept = layout.out_features * layout.in_features
    return flat.view(shape)[:, :kept].reshape(steps, layout.out_features, layout.in_features)


@cache
def bitsandbytes() -> Any:
    """The library's functions. Raises: UserError with the install command if it is missing."""
    # it warns of a kernel for a product that is not used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    return require("bitsandbytes.functional", extra=EXTRA)


@cache
def _levels(device: torch.device) -> Tensor:
    """The 255 levels of int8, -1 to 1."""
    return bitsandbytes().create_linear_map(signed=True).to(device)
