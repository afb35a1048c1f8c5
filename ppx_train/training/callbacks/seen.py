"""What a run was really trained on: samples, hours and epochs of each source, and prompts that were left out."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from tqdm import tqdm

from model.config import FRAME_RATE
from ppx_train.training.callbacks.meters import log
from ppx_train.training.micro_batch import MicroBatch
from ppx_train.training.module import DuplexModule
from ppx_train.training.ranks import all_sum, world_size

SEEN_FILE = "seen.json"
"""The report beside a checkpoint."""
KEY = "seen"
"""The key of the counts in a saved state."""
COUNTS = ("samples", "frames", "without_voice", "without_prompt")


class Seen(L.Callback):
    """Counts the sequences that the model computed on, those of skipped updates included, and reports at checkpoints.

    It comes before the callback that saves, so that a checkpoint counts its own step.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        """sizes: samples of each source that the run may draw from."""
        self.sizes = dict(sorted(sizes.items()))
        self.mine: Counter[tuple[str, str]] = Counter()
        """Counts of this rank since the run was started or resumed."""
        self.before: dict[str, dict[str, int]] = {}
        self.from_step = 0
        self.hours_before, self.since = 0.0, 0.0
        self.report: dict[str, Any] = {}

    def on_load_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Goes on counting; a checkpoint of an earlier version does not say what was seen before it."""
        saved = checkpoint.get(KEY, {"from_step": checkpoint["global_step"], "sources": {}})
        self.from_step, self.before = saved["from_step"], saved["sources"]
        self.hours_before = saved.get("process_hours", 0.0)

    def on_train_start(self, trainer: L.Trainer, module: DuplexModule) -> None:  # type: ignore[override]
        """Starts the clock."""
        self.since = time.monotonic()

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: DuplexModule, outputs: object, batch: list[MicroBatch], *_: Any
    ) -> None:
        """Counts the sequences of a step."""
        for micro in batch:
            for source, frames, dropped in zip(micro.sources, micro.lengths, micro.dropped, strict=True):
                self.mine[source, "samples"] += 1
                self.mine[source, "frames"] += frames
                for part in dropped:
                    self.mine[source, f"without_{part}"] += 1

    def on_save_checkpoint(self, trainer: L.Trainer, module: DuplexModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Adds up the counts of all ranks, saves them and reports them."""
        rows = [[self.mine[source, name] for name in COUNTS] for source in self.sizes]
        sums = all_sum(torch.tensor(rows, device=module.device)).tolist()
        sources = {source: dict(counts) for source, counts in self.before.items()}
        for source, row in zip(self.sizes, sums, strict=True):
            earlier = sources.get(source, {})
            sources[source] = {name: earlier.get(name, 0) + count for name, count in zip(COUNTS, row, strict=True)}
        hours = self.hours_before + (time.monotonic() - self.since) / 3600 * world_size()
        checkpoint[KEY] = {"from_step": self.from_step, "sources": sources, "process_hours": hours}
        self.report = {
            "step": trainer.global_step,
            "from_step": self.from_step,
            "skipped_steps": module.guard.skipped,
            "process_hours": round(hours, 6),
            "sources": {source: self._described(source, counts) for source, counts in sorted(sources.items())},
        }
        if trainer.is_global_zero:
            metrics = {
                f"seen/{source}_{name}": float(value)
                for source, described in self.report["sources"].items()
                for name, value in described.items()
            }
            log(trainer, metrics, trainer.global_step)
            shown = ", ".join(
                f"{source} {described['samples']:,} samples ({described['hours']:.2f} h)"
                for source, described in self.report["sources"].items()
            )
            tqdm.write(f"seen at step {trainer.global_step}: {shown}")

    def _described(self, source: str, counts: Mapping[str, int]) -> dict[str, float]:
        """The counts of one source as a person reads them; epochs only of a source that the run still draws from."""
        described: dict[str, float] = {
            "samples": counts["samples"],
            "hours": round(counts["frames"] / FRAME_RATE / 3600, 4),
            "without_voice": counts["without_voice"],
            "without_prompt": counts["without_prompt"],
        }
        if source in self.sizes:
            described["epochs"] = round(counts["samples"] / self.sizes[source], 4)
        return described

    def content(self) -> bytes:
        """Returns the last report as JSON."""
        return json.dumps(self.report, indent=1).encode() + b"\n"
