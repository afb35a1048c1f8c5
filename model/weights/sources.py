"""Finds the parts that a run names: codec, tokenizer and start weights, by path, shipped name or hub repository."""

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
    HTTPError,  # It belongs to the HTTP library that huggingface_hub uses.
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from model.assets import asset
from model.errors import UserError
from model.weights.tensor_files import INDEX_NAME, WEIGHTS_NAME

CODEC_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
"""Name of the codec's file in the public repositories (kyutai/moshiko-*, nvidia/personaplex-7b-v1)."""
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
"""Name of the tokenizer's file there."""
REPOSITORY = re.compile(r"^[\w.-]+/[\w.-]+$")
"""The form of a repository's name, ORG/NAME."""


def codec_path(name: str) -> Path:
    """File of the Mimi weights; `name`: `small`, a folder, a .safetensors file or a hub repository.

    Raises: UserError if it is missing, or the hub does not give it.
    """
    if name == "small":
        return asset("mimi_small.safetensors")
    return _find(name, "codec", (CODEC_FILE, "mimi.safetensors"), CODEC_FILE)


def tokenizer_path(name: str) -> Path:
    """File of the SentencePiece model; `name`: a folder, a .model file or a hub repository.

    Raises: UserError if it is missing, or the hub does not give it.
    """
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
        raise UserError(f"{key}={name}: the folder holds none of {', '.join(inside)}", code="not-found")
    if not REPOSITORY.match(name) or path.suffix in (".safetensors", ".model"):
        raise UserError(f"{key}={name}: no such file or folder" + (f"; {make}" if make else ""), code="not-found")
    return hub_download(name, hub_file, key)


def hub_download(repository: str, file: str, key: str, revision: str | None = None) -> Path:
    """One file of a hub repository, through huggingface_hub's cache.

    Raises: UserError with the fix, as `hub_errors`.
    """
    with hub_errors(f"{key}={repository}", revision, file):
        return Path(hf_hub_download(repository, file, revision=revision))


def hub_model(
    repository: str,
    patterns: Sequence[str],
    revision: str | None = None,
    one_of: Sequence[str] = (WEIGHTS_NAME, INDEX_NAME),
) -> Path:
    """Folder with the files of a model's repository that match a pattern, in huggingface_hub's cache.

    Raises: UserError with the fix if it is not a repository's name, cannot be fetched, or holds no file of `one_of`.
    """
    if not REPOSITORY.match(repository):
        raise UserError(
            f"{repository}: no such path, nor a repository name like nvidia/personaplex-7b-v1", code="not-found"
        )
    with hub_errors(repository, revision):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    if not any((folder / name).is_file() for name in one_of):
        where = "its cached copy" if constants.HF_HUB_OFFLINE else "the repository"
        raise UserError(
            f"{repository}: {where} holds no {one_of[0]}; give one of a Moshi or PersonaPlex model",
            code="not-found",
        )
    return folder


@contextmanager
def hub_errors(what: str, revision: str | None = None, file: str = "such file") -> Iterator[None]:
    """Turns what huggingface_hub raises inside the block into a UserError that names `what` and the fix.

    A full disk, or a cache that may not be written, stays the OSError that it is.
    Raises: UserError: "no-access" (a gated repository, or a refused token), "not-found" (no such repository, revision
    or file) or "unreachable".
    """
    try:
        yield
    except GatedRepoError as why:
        raise UserError(
            f"{what} is gated: ask for access on its hub page, then log in with `hf auth login`, or set HF_TOKEN",
            code="no-access",
        ) from why
    except RepositoryNotFoundError as why:
        raise UserError(
            f"{what}: no such folder here and no such repository on the hub; check the name, or log in with "
            "`hf auth login` if it is private",
            code="not-found",
        ) from why
    except RevisionNotFoundError as why:
        raise UserError(
            f"{what}: the repository has no revision {revision}; see its branches, tags and commits", code="not-found"
        ) from why
    except LocalEntryNotFoundError as why:
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"{what}: no such folder here, not (whole) in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; "
                "unset it",
                code="unreachable",
            ) from why
        raise UserError(
            f"{what}: no such folder here, not (whole) in the hub's cache, and the hub cannot be reached "
            f"({_reason(why.__cause__ or why)}); check the connection and run it again",
            code="unreachable",
        ) from why
    except EntryNotFoundError as why:
        raise UserError(f"{what}: the repository has no {file}; give one that has it", code="not-found") from why
    except (HFValidationError, HTTPError, OSError) as why:
        if isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        if isinstance(why, HfHubHTTPError) and getattr(why.response, "status_code", None) in (401, 403):
            raise UserError(
                f"{what}: the hub refuses access ({_reason(why)}); log in with `hf auth login`, or correct HF_TOKEN",
                code="no-access",
            ) from why
        raise UserError(
            f"{what}: cannot be downloaded ({_reason(why)}); run it again, whole files are kept", code="unreachable"
        ) from why


def _reason(why: BaseException) -> str:
    """The first line of an error, or its type if it has no text."""
    return str(why).strip().splitlines()[0] if str(why).strip() else type(why).__name__
