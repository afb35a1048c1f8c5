"""Pickled voices of PersonaPlex become voice files of ours, by the tables of the model that they were made with."""

# Shapes: P prompt frames, Q codebooks

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipelines.files import sha256_file
from model.errors import UserError
from model.weights.checkpoint import write_weights
from model.weights.voices import read_pickle, recover
from ppx_train.inference.loading import model_header


@dataclass(frozen=True, kw_only=True)
class ConvertedVoice:
    """A voice file that was written. source: the pickle. exact: whether its codes give the embeddings bit by bit."""

    path: Path
    source: Path
    frames: int
    exact: bool


def convert(
    source: Path, model: str, out: Path, revision: str | None, licence: str | None, consent: str | None
) -> Iterator[ConvertedVoice]:
    """Converts one voice, or all `.pt` of a folder into the folder `out`, and yields each after it is written.

    licence, consent: terms that are recorded in the voice file; None says that they are those of the model.
    Raises: UserError if there is no voice, an output exists, or a voice is not the model's. Voices before it are kept.
    """
    jobs = _jobs(source, out)
    voices = [(read_pickle(path), to) for path, to in jobs]
    weights, config = model_header(model, revision)
    terms = {
        "licence": f"that of {model}" if licence is None else licence,
        "consent": f"not stated; a preset voice of {model}" if consent is None else consent,
    }
    for voice, to in voices:
        recovered = recover(voice, weights, config)
        name = voice.path.stem
        metadata = {"name": name, "label": name, **terms, "sha256": sha256_file(voice.path)}
        write_weights(to, {"codes": recovered.codes_QP.to(torch.int32)}, metadata)
        frames = recovered.codes_QP.shape[1]
        yield ConvertedVoice(path=to, source=voice.path, frames=frames, exact=recovered.exact)


def _jobs(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """Pairs of a pickle and the file to write."""
    if source.is_dir():
        jobs = [(path, out / f"{path.stem}.safetensors") for path in sorted(source.glob("*.pt"))]
    else:
        jobs = [(source, out)]
        if out.suffix != ".safetensors":
            raise UserError(f"--out {out}: give a file that ends in .safetensors", code="bad-value")
    if not jobs:
        raise UserError(f"{source}: the folder holds no .pt", code="no-data")
    if taken := [to for _, to in jobs if to.exists()]:
        raise UserError(f"{taken[0]} exists: choose another place or remove it", code="exists")
    return jobs
