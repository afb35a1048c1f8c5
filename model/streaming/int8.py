"""Linear maps in 8 bits a weight, for streaming where memory or its bandwidth is what lacks.

Each row of a weight keeps its largest magnitude as a scale, and its values as whole numbers from -127 to 127; inputs
are rounded to bf16. The product reads the 8 bits themselves. On a CPU it is the fastest there is up to some 4 rows.
"""

# Shapes: Q codebooks (depth steps), B batch, N rows, I input width, O output width

import torch
from torch import Tensor, nn

from model.duplex import HEADS, DuplexLM
from model.errors import UserError
from model.layers import Linear, StepLinear

LARGEST = 127
WIDTH_STEP = 16


class _Int8(nn.Module):
    """Weights [Q, O, I] as codes and scales, for inference alone."""

    def __init__(self, weight_QOI: Tensor) -> None:
        super().__init__()
        self.steps, self.out_features, self.in_features = weight_QOI.shape
        codes, scales = zip(*(quantize_rows(weight_OI) for weight_OI in weight_QOI), strict=True)
        self.register_buffer("codes_QOI", torch.stack(codes))
        self.register_buffer("scales_QO", torch.stack(scales))

    def product(self, x_NI: Tensor, first: int, last: int) -> Tensor:
        """The maps of some steps of one input, [N, I] -> [N, steps x O]."""
        codes_QOI, scales_QO = self.get_buffer("codes_QOI")[first:last], self.get_buffer("scales_QO")[first:last]
        y = torch._weight_int8pack_mm(
            x_NI.to(torch.bfloat16).contiguous(), codes_QOI.flatten(0, 1), scales_QO.flatten(0, 1)
        )
        return y.to(x_NI.dtype)


class Int8Linear(_Int8):
    """Stands for a `Linear`."""

    def __init__(self, base: Linear) -> None:
        super().__init__(base.weight.detach()[None])

    def forward(self, x: Tensor) -> Tensor:
        """The map, [.., I] -> [.., O]."""
        return self.product(x.reshape(-1, self.in_features), 0, 1).view(*x.shape[:-1], self.out_features)


class Int8StepLinear(_Int8):
    """Stands for a `StepLinear`."""

    def __init__(self, base: StepLinear) -> None:
        super().__init__(base.weight.detach())

    def step(self, k: int, x_BI: Tensor) -> Tensor:
        """The map of step k alone, [B, I] -> [B, O]."""
        return self.product(x_BI, k, k + 1)

    def shared(self, x_NI: Tensor, steps: int) -> Tensor:
        """The first `steps` maps of one input, [N, I] -> [steps, N, O]."""
        return self.product(x_NI, 0, steps).unflatten(1, (steps, -1)).transpose(0, 1)

    def forward(self, x_QNI: Tensor) -> Tensor:
        """The maps of the first steps, each of its own input, [Q, N, I] -> [Q, N, O]."""
        return torch.stack([self.step(k, x_NI) for k, x_NI in enumerate(x_QNI)])


def quantize_rows(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [O, I] int8 and scales [O] bf16 of a weight; the codes make up for the rounding of their scale."""
    largest_O = weight_OI.float().abs().amax(1).clamp(min=1e-12)
    scale_O = (largest_O / LARGEST).to(torch.bfloat16)
    codes_OI = (weight_OI.float() / scale_O.float()[:, None]).round().clamp(-LARGEST, LARGEST)
    return codes_OI.to(torch.int8), scale_O


def hold_in_int8(model: DuplexLM, device: torch.device | str) -> None:
    """Replaces all linear maps but the heads, in place, and moves the model to `device`; it is for inference alone.

    Raises: UserError if this version of torch has no such product there ("no-device"), or a map has an input width
    that it cannot take ("bad-combination").
    """
    check_int8(device)
    maps = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, (Linear, StepLinear)) and path not in HEADS
    ]
    for path, module in maps:
        if module.in_features % WIDTH_STEP:  # The kernel would read beyond the end of the weights.
            raise UserError(
                f"int8 with {path} of input width {module.in_features}: it takes multiples of {WIDTH_STEP}, choose "
                "another precision",
                code="bad-combination",
            )
    for path, module in maps:
        parent, _, name = path.rpartition(".")
        small = Int8Linear(module) if isinstance(module, Linear) else Int8StepLinear(module)
        setattr(model.get_submodule(parent), name, small)
    model.to(device)


def check_int8(device: torch.device | str) -> None:
    """Raises UserError if torch has no product of 8-bit weights on a device."""
    try:
        torch._weight_int8pack_mm(
            torch.zeros(1, 32, dtype=torch.bfloat16, device=device),
            torch.zeros(32, 32, dtype=torch.int8, device=device),
            torch.ones(32, dtype=torch.bfloat16, device=device),
        )
    except (NotImplementedError, RuntimeError) as why:
        raise UserError(
            f"int8 on {device}: torch {torch.__version__} has no product of 8-bit weights there: choose another",
            code="no-device",
        ) from why
