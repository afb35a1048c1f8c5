"""Finds what a run names: codec, tokenizer and start weights, by path, shipped name or hub repository."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.assets import asset
from model.errors import UserError

# file names inside the public repositories (kyutai/moshiko-*, nvidia/personaplex-7b-v1)
CODEC_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")


def codec_path(name: str) -> Path:
    """File of the Mimi weights. `name`: `small`, a folder, a .safetensors file or a hub repository."""
    if name == "small":
        return asset("mimi_small.safetensors")
    return _find(name, "codec", (CODEC_FILE, "mimi.safetensors"), CODEC_FILE)


def tokenizer_path(name: str) -> Path:
    """File of the SentencePiece model. `name`: a folder, a .model file or a hub repository."""
    return _find(
        name, "tokenizer", (TOKENIZER_FILE, "tokenizer.model"), TOKENIZER_FILE, make="`ppx-data tokenizer` makes one"
    )


def _find(name: str, key: str, inside: tuple[str, ...], hub_file: str, make: str = "") -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        for file in inside:
            if (path / file).is_file():
                return path / file
        raise UserError(f"{key}={name}: the folder holds none of {', '.join(inside)}")
    if not REPOSITORY.match(name) or path.suffix in (".safetensors", ".model"):
        raise UserError(f"{key}={name}: no such file or folder" + (f"; {make}" if make else ""))
    return hub_download(name, hub_file, key)


def hub_download(repository: str, file: str, key: str) -> Path:
    """One file of a hub repository, through huggingface_hub's cache. Raises UserError with the fix."""
    from huggingface_hub import hf_hub_download

    with hub_errors(f"{key}={repository}"):
        return Path(hf_hub_download(repository, file))


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns what huggingface_hub raises inside the block into a UserError that names `what` and the fix."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as why:
        raise UserError(f"{what} is gated: accept its licence on its hub page, then run `hf auth login`") from why
    except RepositoryNotFoundError as why:
        raise UserError(f"{what}: no such folder here and no such repository on the hub: check the name") from why
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as why:
        reason = str(why).splitlines()[0] if str(why) else type(why).__name__
        raise UserError(f"{what}: no such path, and cannot be downloaded ({reason}): check the name or log in") from why
