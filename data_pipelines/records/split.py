"""Which side of the train / held-out split a scenario, topic or company is on: a hash of its name alone decides."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from random import Random

TRAIN, HELDOUT = "train", "heldout"


def bucket(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


@lru_cache(maxsize=64)
def members(names: tuple[str, ...], heldout: float, split: str, *, least: int = 1) -> tuple[str, ...]:
    """The names of one split, sorted. With 0 < heldout < 1 each split has at least `least` names."""
    ranked = sorted(names, key=bucket)
    count = sum(bucket(name) < heldout for name in ranked)
    if 0 < heldout < 1:
        count = min(max(count, least), len(ranked) - least)
    return tuple(sorted(ranked[:count] if split == HELDOUT else ranked[count:]))


def split_of_index(seed: int, index: int, heldout: float) -> str:
    """The split that script `index` belongs to; of the first two, one is held out and one trains."""
    if heldout in (0, 1):
        return HELDOUT if heldout else TRAIN
    if index < 2:
        return HELDOUT if index else TRAIN
    return HELDOUT if Random(f"{seed}/split/{index}").random() < heldout else TRAIN


def drawn_in_split(draw: Callable[[], str], prefix: str, heldout: float, split: str) -> str:
    """Calls `draw` until it returns a name whose hash, with `prefix`, lies in the split; returns that name."""
    while True:
        name = draw()
        if heldout in (0, 1) or (bucket(f"{prefix}/{name}") < heldout) == (split == HELDOUT):
            return name
