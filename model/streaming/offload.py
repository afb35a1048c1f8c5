"""Weights that stay in the host's memory, so that a model runs on a GPU that cannot hold it."""

# Shapes: I input width, O output width

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.duplex import DuplexLM
from model.layers import Linear


class HostLinear(nn.Module):
    """y = W x with the weight in the host's memory: each product copies it to where its input is."""

    def __init__(self, weight_OI: Tensor) -> None:
        super().__init__()
        # It is no parameter, so that it stays when the model moves; pinned memory is copied at the bus's full speed.
        self.weight_OI = weight_OI.pin_memory() if torch.cuda.is_available() else weight_OI

    def forward(self, x: Tensor) -> Tensor:
        """[.., I] -> [.., O]."""
        return F.linear(x, self.weight_OI.to(x.device, non_blocking=True))


def offload(model: DuplexLM, device: torch.device | str, room: int) -> int:
    """Moves a model from the host to `device`, but for the last temporal layers, which no longer fit.

    room: bytes of the device that the weights may take.
    Returns how many layers keep their matrices in the host's memory; it is for inference alone.
    """
    layers = list(model.temporal.layers)
    matrices = [[part for part in layer.modules() if type(part) is Linear] for layer in layers]
    sizes = [sum(part.weight.nbytes for part in parts) for parts in matrices]
    room -= sum(parameter.nbytes for parameter in model.parameters()) - sum(sizes)
    stays = 0
    while stays < len(layers) and sizes[stays] <= room:
        room -= sizes[stays]
        stays += 1
    for layer in layers[stays:]:
        for parent in list(layer.modules()):
            for name, part in list(parent.named_children()):
                if type(part) is Linear:
                    setattr(parent, name, HostLinear(part.weight.detach()))
    model.to(device)
    return len(layers) - stays


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights of a model stay in the host's memory."""
    return any(isinstance(part, HostLinear) for part in model.modules())
