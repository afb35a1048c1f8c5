"""How much of a step ranks wait for each other, by how it is split into micro-batches.

    python scripts/bench/batches.py

Waste is 1 - frames / (ranks x the sum over micro-batches of the frames of their fullest rank): padding is not computed,
so that it is time in which ranks wait. Lengths are drawn with a fixed seed: `dialogues` from a log-normal distribution
(sigma 0.6) clipped to 50 and 2,048 frames, with the mean of the published ones, 700 frames (56 s); `with calls` mixes
service, assistant and Fisher 14 : 5 : 2, with 70 frames of prompt: the first two log-normal with their published means
(62.8 and 37.5 s), the calls cut to 2,048 frames. Nothing is computed on, so that it takes no GPU.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from common import table, write_json

from data_pipelines.shards.order import Mixture, StepPlan
from data_pipelines.shards.packing import packed

LONGEST, SHORTEST, PROMPT = 2048, 50, 70
SIGMA = 0.6
BATCH, BUDGET = 32, 8192
RANKS = (1, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=512, help="steps of 32 sequences (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the lengths and of their order (default: 0)")
    parser.add_argument("--json", type=Path, help="write the figures")
    args = parser.parse_args()
    rows = []
    for name, lengths in (("dialogues", dialogues(args.seed)), ("with calls", with_calls(args.seed))):
        draws = {"service": 14, "assistant": 5, "fisher": 2} if len(lengths) > 1 else {"dialogues": 1}
        mixture = Mixture(lengths, draws, seed=args.seed)
        for micro_batch in (4, 2, 1):
            plan = StepPlan(mixture, batch=BATCH, micro_batch=micro_batch, window=16)
            rows.append(row(name, f"micro_batch={micro_batch}, bucket_steps=16", plan, args.steps))
        for window in (1, 16):
            plan = StepPlan(mixture, batch=BATCH, micro_batch=None, window=window)
            rows.append(row(name, f"micro_frames={BUDGET}, bucket_steps={window}", plan, args.steps))
    print(table(rows))
    write_json(args.json, {"rows": rows})


def row(lengths: str, settings: str, plan: StepPlan, steps: int) -> dict[str, str]:
    """Waste on each number of ranks, and how far the frames of steps lie apart."""
    shown = {"lengths": lengths, "settings": settings}
    for ranks in RANKS:
        if plan.micro_batch and BATCH // plan.micro_batch % ranks:
            shown[f"{ranks} ranks"] = "-"
            continue
        frames = longest = passes = 0
        for sums in micro_batches(plan, steps, ranks):
            frames += sum(sums)
            longest += ranks * sum(max(sums[k : k + ranks]) for k in range(0, len(sums), ranks))
            passes += len(sums) // ranks
        shown[f"{ranks} ranks"] = f"{100 * (1 - frames / longest):.1f} % ({passes / steps:.1f})"
    of_steps = [sum(plan.length(place) for group in plan.step(n) for place in group) for n in range(steps)]
    return shown | {"frames of a step": f"{np.mean(of_steps):,.0f} ± {np.std(of_steps):,.0f}"}


def micro_batches(plan: StepPlan, steps: int, ranks: int) -> Iterator[list[int]]:
    """Frames of the micro-batches of each step."""
    for n in range(steps):
        groups = [[plan.length(place) for place in group] for group in plan.step(n)]
        if plan.micro_batch is None:
            (frames,) = groups
            groups = [[frames[i] for i in part] for part in packed(frames, frames, ranks=ranks, budget=BUDGET)]
        yield [sum(group) for group in groups]


def dialogues(seed: int) -> dict[str, npt.NDArray[np.int32]]:
    return {"dialogues": drawn(20_000, 700, np.random.default_rng(seed))}


def with_calls(seed: int) -> dict[str, npt.NDArray[np.int32]]:
    draw = np.random.default_rng(seed)
    means = {"service": 1840 * 3600 / 105_410, "assistant": 410 * 3600 / 39_322}
    lengths = {name: drawn(20_000, seconds * 12.5 + PROMPT, draw) for name, seconds in means.items()}
    return lengths | {"fisher": np.full(5_000, LONGEST, np.int32)}


def drawn(count: int, mean: float, draw: np.random.Generator) -> npt.NDArray[np.int32]:
    """Lengths of a clipped log-normal distribution, whose mean is met by bisection."""
    z, low, high = SIGMA * draw.standard_normal(count), 0.0, 12.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if clipped(z + middle).mean() < mean else (low, middle)
    return clipped(z + low).astype(np.int32)


def clipped(logarithms: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.exp(logarithms).clip(SHORTEST, LONGEST)


if __name__ == "__main__":
    main()
