"""Do all strategies train alike? Trains the golden run under each on 1, 2 and 4 ranks of this machine's CPU.

    python scripts/bench/strategies.py [--steps 20] [--only zero2 fsdp2] [--json figures.json]
    python scripts/bench/strategies.py --resume

The table shows how far the training losses and gradient norms are from those of one process, relative to them. With
--resume, a run of two ranks under FSDP2 goes on in the middle under each, and is compared with that run unbroken; its
samples too. ZeRO needs the extra `deepspeed`; the adapters are LoRA of rank 4.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts" / "bench")]

from common import machine, table, write_json  # noqa: E402

from ppx_train.training.curves import read_metrics  # noqa: E402
from tests.ppx_train.ranks import train_on_ranks  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "training"
SAME = (
    f"recipe={GOLDEN / 'golden.yaml'}", f"data.paths=[{GOLDEN / 'shards'}]", "trainer.precision=32-true",
    f"model.tokenizer={GOLDEN / 'tokenizer.model'}", "data.micro_batch=1", "trainer.checkpoint_every=1000",
    "data.heldout_samples=0",
)  # fmt: skip
OFFLOAD = ("trainer.offload=true",)
LORA = ("model.lora.rank=4", "optim.lr.temporal=0.01", "optim.lr.depth=0.01")
RUNS: list[tuple[str, int, tuple[str, ...]]] = [
    *((strategy, ranks, ()) for strategy in ("ddp", "fsdp2", "zero2", "zero3") for ranks in (1, 2, 4)),
    ("hybrid", 4, ("trainer.shard_size=2",)),
    *((strategy, 2, OFFLOAD) for strategy in ("zero2", "zero3")),
    *(("fsdp2", ranks, LORA) for ranks in (2, 4)),
]
NAMES = {LORA: " (LoRA)", OFFLOAD: " (offload)"}
Points = dict[str, list[tuple[int, float]]]
SAVED_BY = ("fsdp2", 2)
GO_ON: list[tuple[str, int, tuple[str, ...]]] = [
    *((*SAVED_BY, ()), ("fsdp2", 4, ()), ("fsdp2", 1, ()), ("ddp", 1, ()), ("ddp", 4, ())),
    *(("hybrid", 4, ("trainer.shard_size=2",)), ("zero2", 2, ()), ("zero3", 4, ())),
]


def trained(strategy: str, ranks: int, more: tuple[str, ...], steps: int) -> tuple[Points, float]:
    """The losses and norms of a run, and its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        words = [*SAME, *more, f"steps={steps}", f"trainer.strategy={strategy}", f"run_dir={folder}/run"]
        train_on_ranks(ranks, words, Path(folder) / "log")
        metrics = read_metrics(Path(folder) / "run")
        return {name: metrics[name] for name in ("train/loss", "gradient_norm")}, time.perf_counter() - start


def distance(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> float:
    """The largest relative difference at any step."""
    return max(abs(a - b) / abs(b) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def samples(run_dir: Path) -> dict[int, list[str]]:
    """The samples of each batch, of all ranks together, sorted."""
    found: dict[int, list[str]] = {}
    for path in run_dir.glob("logs/samples.rank*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            found.setdefault(line["batch"], []).extend(line["samples"])
    return {batch: sorted(ids) for batch, ids in found.items()}


def resumed(steps: int) -> list[dict[str, object]]:
    """A row for each of GO_ON: how far its figures and samples after the middle are from those of an unbroken run."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Path(folder) / "unbroken"
        same = [
            *SAME[:-2],
            f"trainer.checkpoint_every={steps // 2}",
            SAME[-1],
            f"steps={steps}",
            "logging.samples=true",
        ]
        train_on_ranks(
            SAVED_BY[1], [*same, f"trainer.strategy={SAVED_BY[0]}", f"run_dir={unbroken}"], Path(folder) / "log"
        )
        theirs = {name: values[steps // 2 :] for name, values in read_metrics(unbroken).items()}
        ids = {batch: those for batch, those in samples(unbroken).items() if batch > steps // 2}
        for strategy, ranks, more in tqdm(GO_ON, unit="run"):
            run = Path(folder) / "run"
            shutil.copytree(unbroken, run)
            shutil.rmtree(run / "checkpoints" / f"step-{steps:07d}")
            shutil.rmtree(run / "logs")
            words = [*same, *more, f"trainer.strategy={strategy}", f"run_dir={run}", "resume=true"]
            train_on_ranks(ranks, words, Path(folder) / "log")
            ours = read_metrics(run)
            apart = {name: distance(ours[name], theirs[name]) for name in ("train/loss", "gradient_norm")}
            rows.append(
                {
                    "goes on with": strategy,
                    "ranks": ranks,
                    "loss apart": f"{apart['train/loss']:.1e}",
                    "norm apart": f"{apart['gradient_norm']:.1e}",
                    "same samples": samples(run) == ids,
                }
            )
            shutil.rmtree(run)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="strategies, e.g. zero2 fsdp2")
    parser.add_argument("--resume", action="store_true", help="go on under others instead")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.resume:
        rows = resumed(args.steps)
        print(f"{args.steps} steps, {machine('cpu')}", table(rows), sep="\n\n")
        write_json(args.json, {"machine": machine("cpu"), "steps": args.steps, "rows": rows})
        return
    chosen = [run for run in RUNS if not args.only or run[0] in args.only]
    reference = {more: trained("ddp", 1, more, args.steps)[0] for more in dict.fromkeys(
        LORA if run[2] == LORA else () for run in chosen)}  # fmt: skip
    rows = []
    for strategy, ranks, more in tqdm(chosen, unit="run"):
        points, seconds = trained(strategy, ranks, more, args.steps)
        theirs = reference[LORA if more == LORA else ()]
        apart = {name: distance(points[name], theirs[name]) for name in points}
        rows.append(
            {
                "strategy": strategy + NAMES.get(more, ""),
                "ranks": ranks,
                "last loss": f"{points['train/loss'][-1][1]:.6f}",
                "loss apart": f"{apart['train/loss']:.1e}",
                "norm apart": f"{apart['gradient_norm']:.1e}",
                "s": round(seconds),
            }
        )
    print(f"{args.steps} steps, {machine('cpu')}", table(rows), sep="\n\n")
    write_json(args.json, {"machine": machine("cpu"), "steps": args.steps, "rows": rows})


if __name__ == "__main__":
    main()
