"""`ppx-export voice`: pickled voices of PersonaPlex -> voices that `ppx-chat` takes, by the tables of their model."""

# Shapes: P prompt frames, Q codebooks

from collections.abc import Sequence
from pathlib import Path

import torch

from data_pipelines.files import sha256_file
from model.errors import UserError
from model.weights.checkpoint import write_weights
from model.weights.voices import read_pickle, recover
from ppx_train.inference.loading import model_header

KEYS = ("in", "model", "out", "revision", "licence", "consent")
HELP = """\
ppx-export voice in=VOICE.pt model=MODEL out=VOICE.safetensors [key=value ...]

  in=VOICE.pt          pickled voice of a PersonaPlex model; or a folder of them
  model=MODEL          the model it was made with: a folder or a hub repository, e.g. nvidia/personaplex-7b-v1
  out=FILE             file to write; a folder if `in` is one. Nothing is replaced
  revision=REV         revision of the hub repository
  licence=TEXT         licence of the voice (default: that of its model)
  consent=TEXT         why the speaker may be imitated (default: not stated)
"""


def main(arguments: Sequence[str]) -> int:
    """The command. Raises UserError for unknown keys and all that cannot be converted."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(HELP, end="")
        return 0 if arguments else 2
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in KEYS:
            raise UserError(f"{argument!r}: write key=value with a key of {', '.join(KEYS)}")
        given[key] = value
    for key in ("in", "model", "out"):
        if not given.get(key):
            raise UserError(f"{key} is not given: ppx-export voice in=VOICE.pt model=MODEL out=VOICE.safetensors")
    terms = {
        "licence": given.get("licence", f"that of {given['model']}"),
        "consent": given.get("consent", f"not stated; a preset voice of {given['model']}"),
    }
    convert(Path(given["in"]), given["model"], Path(given["out"]), given.get("revision"), terms)
    return 0


def convert(source: Path, model: str, out: Path, revision: str | None, terms: dict[str, str]) -> None:
    """Converts one voice, or all `.pt` of a folder into another, and prints what became of each.

    Raises: UserError if there is no voice, an output exists, or a voice is not the model's. Voices before it are kept.
    """
    jobs = _jobs(source, out)
    voices = [(read_pickle(path), to) for path, to in jobs]
    weights, config = model_header(model, revision)
    for voice, to in voices:
        recovered = recover(voice, weights, config)
        name = voice.path.stem
        metadata = {"name": name, "label": name, **terms, "sha256": sha256_file(voice.path)}
        write_weights(to, {"codes": recovered.codes_QP.to(torch.int32)}, metadata)
        how = "bit by bit" if recovered.exact else "up to rounding"
        print(f"{to}: {recovered.codes_QP.shape[1]} frames, which give the embeddings of {voice.path.name} {how}")


def _jobs(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """Pairs of a pickle and the file to write."""
    if source.is_dir():
        jobs = [(path, out / f"{path.stem}.safetensors") for path in sorted(source.glob("*.pt"))]
    else:
        jobs = [(source, out)]
        if out.suffix != ".safetensors":
            raise UserError(f"out={out}: give a file that ends in .safetensors")
    if not jobs:
        raise UserError(f"in={source}: the folder holds no .pt")
    if taken := [to for _, to in jobs if to.exists()]:
        raise UserError(f"{taken[0]}: exists already: choose another place or remove it")
    return jobs
