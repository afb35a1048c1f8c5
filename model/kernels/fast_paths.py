"""Which fast paths the kernels take, by name. One that is off gives way to the next one, and in the end to plain torch.

All are on when a process starts. A training run compares them with the plain formulas before its first step, and
switches off what differs (ppx_train/training/fast_paths.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager

FLASH = "flash attention of packed sequences"
"""On a GPU, in 16 bits. Without it, the fused attention of each length."""
FUSED = "fused attention"
"""PyTorch's, on a GPU. Without it, attention in blocks."""
BLOCKS = "attention in blocks"
"""Of plain products, with a gradient of its own, on a CPU."""
STEPS = "attention over depth steps"
POINTWISE = "norms, gates and rotation"
PRODUCTS = "matrix products"
"""oneDNN's in fp32 on a CPU; stacked ones with a gradient of their own on every device."""
HEADS = "losses of the heads"
"""In chunks, together with their gradients."""
RECOMPUTED = "selective recomputation"
COMPILED = "compiled blocks"
ADAMW = "fused AdamW"
"""On a GPU."""
NAMES = (FLASH, FUSED, BLOCKS, STEPS, POINTWISE, PRODUCTS, HEADS, RECOMPUTED, COMPILED, ADAMW)

_is_on = dict.fromkeys(NAMES, True)


def is_on(name: str) -> bool:
    """Returns whether a fast path may be taken."""
    return _is_on[name]


def switch_off(name: str) -> None:
    """Lets this process do without a fast path."""
    _is_on[name] = False


def switch_all_on() -> None:
    """Lets this process take all fast paths, as at its start."""
    _is_on.update(dict.fromkeys(NAMES, True))


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Inside the block no fast path but these is taken; a backward pass belongs inside too."""
    before = dict(_is_on)
    _is_on.update({name: name in names for name in NAMES})
    try:
        yield
    finally:
        _is_on.update(before)
