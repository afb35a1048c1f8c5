"""Whether the shards of a run are whole, and its codec and tokenizer those that they need."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_pipelines.files import sha256_file
from data_pipelines.shards.index import BadSample
from data_pipelines.shards.manifest import read_manifest
from data_pipelines.shards.storage import Folder, storage_at
from model.config import FRAME_RATE
from model.errors import UserError
from model.weights.sources import codec_path, tokenizer_path
from ppx_train.checking.result import CheckResult, refusal
from ppx_train.config.run import Run
from ppx_train.training.data import SamplePool, StepLoader
from ppx_train.training.sequences import SequenceBuilder

SAMPLES = 64
"""Sequences of each split that are built."""
HASHED_BYTES = 4 * 10**9
"""Bytes of tars whose sums are taken, a few seconds' worth; `ppx-data check` takes all."""
BAD_SHARE = 0.05
"""Share of samples that may be unusable: training replaces them."""


@dataclass
class TarCounts:
    """Tars whose sum was compared, and those that there are."""

    summed: int = 0
    total: int = 0
    bytes: int = 0


def check_data(run: Run) -> CheckResult:
    """Reads every index, the sums of tars, and builds some sequences of each split."""
    try:
        return _checked(run)
    except UserError as why:
        return refusal("data", why)


def _checked(run: Run) -> CheckResult:
    builder = SequenceBuilder(
        run.model.lm, run.data, run.loss, codec_path(run.model.codec), tokenizer_path(run.model.tokenizer)
    )
    pool = SamplePool(run.data, "train", builder, run.seed)
    StepLoader(pool, run.data, run.seed)  # It refuses a mixture whose sources are not there.
    pools = [pool, SamplePool(run.data, "heldout", builder)] if run.data.heldout_samples else [pool]
    tars = TarCounts()
    for path in run.data.paths:
        add_sums(path, tars)
    tried = 0
    bad: dict[str, str] = {}
    for one in pools:
        tried += try_samples(one, bad)
    samples = sum(pool.sizes().values())
    hours = sum(float(lengths.sum()) for lengths in pool.lengths.values()) / FRAME_RATE / 3600
    figures = {
        "sources": len(pool.sizes()), "samples": samples, "hours": round(hours, 3), "tars": tars.total,
        "tars_summed": tars.summed, "sequences_built": tried - len(bad), "sequences_unusable": len(bad),
    }  # fmt: skip
    line = (
        f"{samples:,} samples, {hours:.2f} h of {len(pool.sizes())} sources; good are the sums of {tars.summed} of "
        f"{tars.total} tars and {tried - len(bad)} of {tried} sequences; codec and tokenizer fit"
    )
    if len(bad) > BAD_SHARE * tried:
        name, why = next(iter(bad.items()))
        line = f"{len(bad)} of {tried} samples cannot be used, first {name} ({why}): look with `ppx-data check`"
    return CheckResult(name="data", passed=len(bad) <= BAD_SHARE * tried, line=line, figures=figures)


def add_sums(path: str, tars: TarCounts) -> None:
    """Compares the sums of tars with the manifest's, up to HASHED_BYTES in all; of URLs none.

    Raises: UserError for a tar that has changed.
    """
    storage = storage_at(path)
    shards = read_manifest(storage).shards
    tars.total += len(shards)
    if not isinstance(storage, Folder):
        return
    for name, expected in shards.items():
        if tars.bytes + expected.bytes > HASHED_BYTES and tars.bytes:
            continue
        tars.bytes += expected.bytes
        tars.summed += 1
        if sha256_file(storage.path / name) != expected.sha256:
            raise UserError(
                f"{storage.path / name}: its content is not what the manifest says: copy it again, or look with "
                f"`ppx-data check {path}`",
                code="checksum",
            )


def try_samples(pool: SamplePool, bad: dict[str, str]) -> int:
    """Builds sequences all over a split, adds to `bad` those that fail, and returns how many were tried."""
    tried = 0
    for rows in pool.rows.values():
        for number, row in spread(rows.tolist(), max(1, SAMPLES // len(pool.rows))):
            reader = pool.readers[number]
            tried += 1
            try:
                pool.builder(reader.read(row))
            except BadSample as why:
                bad[reader.rows[row].id] = why.reason
    return tried


def spread(rows: Sequence[list[int]], count: int) -> list[list[int]]:
    """Returns at most `count` of the rows, evenly spread over them, the first and the last included."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[place] for place in places]
