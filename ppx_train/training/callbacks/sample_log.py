"""Which samples each process trained on, step by step."""

import json
from pathlib import Path
from typing import IO, Any

import lightning as L

from ppx_train.training.data import StepLoader
from ppx_train.training.micro_batch import MicroBatch
from ppx_train.training.ranks import rank


class SampleLog(L.Callback):
    """Appends a line for each batch: its number in the order of the run, from 1, the step after it, and its samples.

    A run that was killed and goes on writes the batches after its checkpoint again; the later line counts.
    """

    def __init__(self, run_dir: Path, loader: StepLoader) -> None:
        self.run_dir, self.loader = run_dir, loader
        self.file: IO[str] | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Opens run_dir/logs/samples.rankN.jsonl."""
        folder = self.run_dir / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.file = open(folder / f"samples.rank{rank()}.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - for the run

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: list[MicroBatch], *_: Any
    ) -> None:
        """Writes the line of a batch, whole."""
        assert self.file is not None
        ids = [name for micro in batch for name in micro.ids]
        line = {"batch": self.loader.consumed, "step": trainer.global_step, "samples": ids}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Closes the file."""
        assert self.file is not None
        self.file.close()
