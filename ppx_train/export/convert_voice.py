"""Pickled voices of PersonaPlex become voice files of ours, by the tables of the model that they were made with."""

# Shapes: P prompt frames, Q codebooks

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.files import sha256_file
from model.errors import UserError
from model.weights.voices import read_pickle, recover
from ppx_train.inference.loading import load_codec, model_header
from ppx_train.voices.folder import PICKLE, save_voice
from ppx_train.voices.voice_file import SUFFIX, VoiceFile, check_id


@dataclass(frozen=True, kw_only=True)
class ConvertedVoice:
    """A voice file that was written. source: the pickle. exact: whether its codes give the embeddings bit by bit."""

    path: Path
    source: Path
    frames: int
    exact: bool


def convert(
    source: Path,
    model: str,
    out: Path,
    revision: str | None,
    licence: str | None,
    consent: str | None,
    *,
    overwrite: bool = False,
) -> Iterator[ConvertedVoice]:
    """Converts one voice, or all `.pt` of a folder into the folder `out`, and yields each after it is written.

    licence, consent: terms that are recorded in the voice file. Without a licence it is noted as that of the model.
    Raises: UserError if there is no voice, another file is in the way, or a voice is not the model's. Voices before it
    are kept.
    """
    jobs = _jobs(source, out)
    pickled = [(read_pickle(path), to) for path, to in jobs]
    weights, config = model_header(model, revision)
    codec, _ = load_codec(model, revision)
    if codec.card != config.card or codec.num_codebooks != config.num_codebooks:
        raise UserError(f"{model}: its codec and its language model differ in their codebooks", code="bad-weights")
    fingerprint = codec.fingerprint()
    for voice, to in pickled:
        recovered = recover(voice, weights, config)
        made = VoiceFile(
            id=to.stem,
            label=voice.path.stem,
            licence=f"that of {model}" if licence is None else licence,
            consent=consent,
            codec=fingerprint,
            source=sha256_file(voice.path),
            codes_QP=recovered.codes_QP,
        )
        path = save_voice(to.parent, made, overwrite=overwrite)
        frames = recovered.codes_QP.shape[1]
        yield ConvertedVoice(path=path, source=voice.path, frames=frames, exact=recovered.exact)


def _jobs(source: Path, out: Path) -> list[tuple[Path, Path]]:
    """Pairs of a pickle and the file to write."""
    if source.is_dir():
        jobs = [(path, out / f"{path.stem}{SUFFIX}") for path in sorted(source.glob(f"*{PICKLE}"))]
    else:
        jobs = [(source, out)]
        if out.suffix != SUFFIX:
            raise UserError(f"--out {out}: give a file that ends in {SUFFIX}", code="bad-value")
    if not jobs:
        raise UserError(f"{source}: the folder holds no {PICKLE}", code="no-data")
    for _, to in jobs:
        check_id(to.stem)
    return jobs
