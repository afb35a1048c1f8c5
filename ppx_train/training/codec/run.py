"""The job that trains a codec: from a resolved configuration to RUN/mimi.safetensors."""

import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from model.errors import UserError
from model.files import lock
from model.kernels.allocator import keep_freed_memory
from ppx_train.config.codec import CodecRun
from ppx_train.training.callbacks.checkpoints import Checkpoints
from ppx_train.training.callbacks.signals import Signals
from ppx_train.training.checkpoint import DATA, FILE, check_same_data, read_checkpoint
from ppx_train.training.codec.callbacks import CODEC_FILE, CodecMeters, CodecSoFar
from ppx_train.training.codec.crops import CropBatch, Crops
from ppx_train.training.codec.module import SYMBOLS, CodecModule
from ppx_train.training.codec.recogniser import add_features
from ppx_train.training.codec.tracks import Tracks, open_tracks
from ppx_train.training.curves import draw_curves
from ppx_train.training.loggers import check_login
from ppx_train.training.run import check_device, check_writable, make_trainer, newest_checkpoint, quiet_lightning

PANELS = ("loss", "mel", "readout", "phones", "recogniser", "commit", "inside")
"""The curves that are drawn."""


def train_codec(run: CodecRun) -> int:
    """Trains `run` to its last step and returns 0, or until a signal stops it and returns 128 plus that signal.

    Raises: UserError for settings, audio or checkpoints that do not fit, or if another process works in `run_dir`.
    """
    quiet_lightning()
    check_device(run.trainer.accelerator)
    check_writable(Path(run.run_dir))
    check_login(run)
    with lock(Path(run.run_dir)):
        return _train(run)


def _train(run: CodecRun) -> int:
    run_dir = Path(run.run_dir)
    start_from = newest_checkpoint(run)
    state = read_checkpoint(start_from) if start_from else {}
    if state and int(state["global_step"]) >= run.steps:
        print(f"{run_dir} is complete: {start_from} is at the last step, {run.steps}")
        return 0
    if run.trainer.threads is not None:
        torch.set_num_threads(run.trainer.threads)
    if run.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        keep_freed_memory()
    recordings = open_tracks(run.data.paths, "train", run_dir / "audio" / "train")
    heldout = open_tracks(run.data.heldout, "heldout", run_dir / "audio" / "heldout") if run.data.heldout else None
    hashes = {"data.paths": recordings.sha256} | ({"data.heldout": heldout.sha256} if heldout else {})
    if state:
        step = int(state["global_step"])
        check_same_data(hashes, state.get(DATA), step=step, allow_changed=run.data.allow_changed)
    symbols = [] if not run.loss.phones else state.get(SYMBOLS) or symbols_of(recordings)
    del state  # It maps the file.
    if run.loss.phones and not symbols:
        raise UserError(
            f"loss.phones={run.loss.phones}: none of the audio has sounds beside it (NAME.tsv): set it to 0",
            code="bad-combination",
        )
    if run.loss.recogniser:
        reduction = run_dir / "audio" / "reduction.safetensors"
        add_features(recordings, run_dir / "audio" / "train.safetensors", reduction)
        if heldout:
            add_features(heldout, run_dir / "audio" / "heldout.safetensors", reduction)
    module = CodecModule(run, Crops(recordings.items, run.data, symbols, run.seed), symbols)
    batches: list[CropBatch] = []
    if heldout:
        batches = list(Crops(heldout.items, run.data, symbols, run.seed).fixed(run.data.heldout_crops))
    print(describe(run, module, recordings))
    callbacks = [Signals(), CodecMeters(run), CodecSoFar(run, batches), Checkpoints(run, hashes)]
    # Only some parts of the loss are computed in bf16, so that the module itself decides where.
    trainer = make_trainer(run, callbacks, precision="32-true")
    try:
        trainer.fit(module, Ticks(), ckpt_path=start_from / FILE if start_from else None, weights_only=True)
    finally:
        module.cutter.shutdown(cancel_futures=True)
    print(f"codec: {run_dir / CODEC_FILE}, curves: {draw_curves(run_dir, PANELS, 'each in its own unit')}")
    if module.agreement.stop and trainer.global_step < run.steps:
        print(f"stopped at step {trainer.global_step}; the same command with resume=true goes on")
        return 128 + (module.agreement.stop_signal or signal.SIGTERM)
    return 0


class Ticks:
    """Lightning's loop wants something to loop over; the module draws the crops of each step itself."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


def symbols_of(recordings: Tracks) -> list[str]:
    """The sounds of some recordings, sorted."""
    return sorted({symbol for recording in recordings.items for _, _, symbol in recording.sounds})


def describe(run: CodecRun, module: CodecModule, recordings: Tracks) -> str:
    """What a run trains, and on what."""
    minutes = recordings.minutes
    passed = run.steps * run.data.batch * run.data.seconds / 60
    parameters = sum(parameter.numel() for parameter in module.codec.parameters())
    return "\n".join(
        [
            f"run {run.run_dir}: {run.steps} steps of {run.data.batch} crops of {run.data.seconds:g} s",
            f"  {len(recordings.items):,} recordings, {minutes:,.1f} minutes, heard {passed / minutes:.1f} times",
            f"  codec: {parameters:,} parameters, {module.codec.num_codebooks} codebooks of {module.codec.card}",
        ]
    )
