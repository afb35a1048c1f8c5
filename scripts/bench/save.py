"""How long does a checkpoint hold training up? Trains a 0.4 B parameter model on this machine, and saves it once.

    python scripts/bench/save.py [--dim 896] [--frames 128] [--device cuda] [--json figures.json]

The delay is what the steps from the save until its files are whole take beyond ordinary ones, the copy of the state
included. `behind` writes them while training goes on, `at once` does not. Data are random, weights and moments fp32.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import check_device, machine, synchronise, table, write_json

from model.config import LMConfig
from model.duplex import DuplexLM
from ppx_train.config.parts import Optim
from ppx_train.training.checkpoint import FILE
from ppx_train.training.checkpoint_files import CheckpointFiles
from ppx_train.training.optim import make_optimizer


class ModelInTraining:
    """Steps of a model on random codes."""

    def __init__(self, dim: int, frames: int, device: str) -> None:
        config = LMConfig(
            dim=dim, num_heads=14, num_layers=14, text_card=8000, depformer_dim=448, depformer_num_heads=7,
            depformer_num_layers=6, depformer_dim_feedforward=1344,
        )  # fmt: skip
        torch.manual_seed(0)
        self.lm = DuplexLM(config, device=device)
        self.optimizer = make_optimizer(self.lm.named_parameters(), Optim())
        self.codes = torch.randint(0, config.card, (1, config.num_streams, frames), device=device)
        self.weights = torch.ones(self.codes.shape, device=device)
        self.device = device

    def step(self) -> float:
        """Takes a step, and returns its seconds."""
        began = time.perf_counter()
        loss, weight, *_ = self.lm(self.codes, self.weights)
        (loss.sum() / weight.sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        synchronise(self.device)
        return time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"state_dict": self.lm.state_dict(), "optimizer_states": [self.optimizer.state_dict()], "global_step": 0}


def delay(training: ModelInTraining, folder: Path, background: bool, step: float) -> dict[str, Any]:
    """Saves twice, the second time into memory that is there, and measures that."""
    files = CheckpointFiles(background)
    for number in range(2):
        place = folder / f"{background}{number}"
        place.mkdir()
        began, steps = time.perf_counter(), 0
        files.save_checkpoint(training.state(), place / FILE)
        called = time.perf_counter() - began
        while files.is_writing:
            training.step()
            steps += 1
        files.wait()
        seconds = time.perf_counter() - began
        if files.error:
            raise files.error
    late = seconds - steps * step
    name = "behind" if background else "at once"
    return {"written": name, "s until training goes on": called, "s until whole": seconds, "steps meanwhile": steps,
            "delay s": late, "delay / step": late / step}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dim", type=int, default=896, help="width of the temporal transformer")
    parser.add_argument("--frames", type=int, default=128, help="frames of a step")
    parser.add_argument("--steps", type=int, default=5, help="ordinary steps that are timed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    check_device(parser, args.device)
    training = ModelInTraining(args.dim, args.frames, args.device)
    training.step()
    step = median(training.step() for _ in range(args.steps))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = [delay(training, Path(folder), background, step) for background in (True, False)]
    size = sum(parameter.numel() for parameter in training.lm.parameters())
    print(f"{machine(args.device)}\n{size / 1e9:.2f} B parameters, {size * 12 / 1e9:.1f} GB a checkpoint")
    print(f"a step of {args.frames} frames takes {step:.2f} s\n\n{table(rows)}")
    write_json(args.json, {"machine": machine(args.device), "parameters": size, "step_s": step, "rows": rows})


if __name__ == "__main__":
    main()
