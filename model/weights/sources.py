"""Finds what a run names: codec, tokenizer and start weights, by path, shipped name or hub repository."""

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that it uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model.assets import asset
from model.errors import UserError
from model.weights.tensor_files import INDEX_NAME, WEIGHTS_NAME

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


def hub_download(repository: str, file: str, key: str, revision: str | None = None) -> Path:
    """One file of a hub repository, through huggingface_hub's cache. Raises UserError with the fix."""
    with hub_errors(f"{key}={repository}", revision, file):
        return Path(hf_hub_download(repository, file, revision=revision))


def hub_model(
    repository: str,
    patterns: Sequence[str],
    revision: str | None = None,
    one_of: Sequence[str] = (WEIGHTS_NAME, INDEX_NAME),
) -> Path:
    """The files of a model's repository that match a pattern, through huggingface_hub's cache -> their folder.

    Raises: UserError with the fix if it is not a repository's name, cannot be fetched or holds no file of `one_of`.
    """
    if not REPOSITORY.match(repository):
        raise UserError(f"{repository}: no such path, nor a repository name like nvidia/personaplex-7b-v1")
    with hub_errors(repository, revision):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    if not any((folder / name).is_file() for name in one_of):
        where = "its cached copy" if constants.HF_HUB_OFFLINE else "the repository"
        raise UserError(f"{repository}: {where} holds no {WEIGHTS_NAME}: give one of a Moshi or PersonaPlex model")
    return folder


@contextmanager
def hub_errors(what: str, revision: str | None = None, file: str = "such file") -> Iterator[None]:
    """Turns what huggingface_hub raises inside the block into a UserError that names `what` and the fix.

    A full disk, or a cache that may not be written, stays the OSError that it is.
    """
    try:
        yield
    except GatedRepoError as why:
        raise UserError(
            f"{what} is gated: ask for access on its hub page, then log in with `hf auth login`, or set HF_TOKEN"
        ) from why
    except RepositoryNotFoundError as why:
        raise UserError(
            f"{what}: no such folder here and no such repository on the hub: check the name, or log in with "
            "`hf auth login` if it is private"
        ) from why
    except RevisionNotFoundError as why:
        raise UserError(f"{what}: the repository has no revision {revision}: see its branches, tags, commits") from why
    except LocalEntryNotFoundError as why:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what}: no such folder here, not (whole) in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it: "
                "unset it"
            ) from why
        raise UserError(
            f"{what}: no such folder here, not (whole) in the hub's cache, and the hub cannot be reached "
            f"({_reason(why.__cause__ or why)}): check the connection and run it again"
        ) from why
    except EntryNotFoundError as why:
        raise UserError(f"{what}: the repository has no {file}: give one that has") from why
    except (HFValidationError, HTTPError, OSError) as why:
        if isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        if isinstance(why, HfHubHTTPError) and getattr(why.response, "status_code", None) in (401, 403):
            raise UserError(
                f"{what}: the hub refuses access ({_reason(why)}): log in with `hf auth login`, or mend HF_TOKEN"
            ) from why
        raise UserError(f"{what}: cannot be downloaded ({_reason(why)}): run it again, whole files are kept") from why


def _reason(why: BaseException) -> str:
    """First line of an error."""
    return str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
