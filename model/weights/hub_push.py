"""Uploads a finished folder to a model or dataset repository of the hub.

It replaces nothing of the user's there: a repository that holds anything else than this folder is refused. An upload
that was cut off resumes when the same command is run again.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from model.errors import Code, UserError

GIVEN_BY_HUB = {".gitattributes"}
"""Files that the hub puts into a new repository."""
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token with write permission"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The repository to upload to."""

    name: str
    """ORG/NAME."""
    asked: str
    """The option that named it, as the user wrote it; messages begin with it."""
    public: bool
    public_flag: str
    """The option that makes it public, for messages."""
    kind: str = "model"
    """`model` or `dataset`."""


def check_push(target: Target, folder: Path | None, sums: Mapping[str, str]) -> None:
    """Checks that an upload can work, before any work is done.

    folder, sums: what to upload, if it exists already, and the sha256 of its files. Without them the repository must be
    new or empty.
    Raises: UserError if the name is no repository's ("bad-value"), the user may not write there ("no-access"), the hub
    cannot be reached ("unreachable"), the repository's visibility differs ("bad-combination"), or it holds other files
    ("exists").
    """
    name = target.name
    try:
        validate_repo_id(name)
    except HFValidationError as why:
        raise UserError(f"{target.asked}: not a repository name; give ORG/NAME", code="bad-value") from why
    if "/" not in name:
        raise UserError(
            f"{target.asked}: give ORG/NAME, with your user name or an organisation of yours", code="bad-value"
        )
    if get_token() is None:
        raise UserError(f"{target.asked}: not logged in; {LOGIN}", code="no-access")
    with _hub(target):
        api = HfApi()
        _check_rights(target, api.whoami())
        try:
            private = api.repo_info(name, repo_type=target.kind).private
        except RepositoryNotFoundError:
            return
        if private == target.public:
            flag = target.public_flag
            now, fix = ("private", f"leave out {flag}") if private else ("public", f"give {flag}")
            raise UserError(
                f"{target.asked} exists and is {now}: {fix}, or choose another name", code="bad-combination"
            )
        check_content(api, target, folder, sums)


def push(folder: Path, target: Target, sums: Mapping[str, str]) -> str:
    """Uploads the files named in `sums`, with their sha256, and returns the repository's address.

    A repository that does not exist is made.
    Raises: UserError if the hub refuses or cannot be reached, with the command that resumes; the folder stays as it is.
    """
    command = f"hf upload {target.name} {folder}" + ("" if target.kind == "model" else f" --repo-type {target.kind}")
    command += "" if target.public else " --private"
    with _hub(target, f"{folder} is whole, so run the same command again, or `{command}`"):
        api = HfApi()
        address = api.create_repo(target.name, repo_type=target.kind, private=not target.public, exist_ok=True)
        check_content(api, target, folder, sums)
        message = f"Upload {folder.name}"
        patterns = sorted(sums)
        api.upload_folder(
            repo_id=target.name,
            repo_type=target.kind,
            folder_path=folder,
            allow_patterns=patterns,
            commit_message=message,
        )
    return str(address)


def check_content(api: HfApi, target: Target, folder: Path | None, sums: Mapping[str, str]) -> None:
    """Checks that the repository holds no files but those of the folder.

    Raises: UserError ("exists") if it holds a file that is not, byte for byte, one of `sums`.
    """
    tree = api.list_repo_tree(target.name, repo_type=target.kind, recursive=True)
    strange = [
        entry.path
        for entry in tree
        if isinstance(entry, RepoFile)
        and entry.path not in GIVEN_BY_HUB
        and (folder is None or not _same(folder, entry, sums))
    ]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise UserError(
            f"{target.asked} holds other files ({', '.join(strange[:3])}{more}), which are not replaced: choose "
            "another name, or write a folder only and use `hf upload`",
            code="exists",
        )


def _same(folder: Path, entry: RepoFile, sums: Mapping[str, str]) -> bool:
    if entry.path not in sums:
        return False
    if entry.lfs is not None:
        return sums[entry.path] == entry.lfs.sha256
    data = (folder / entry.path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == entry.blob_id


def _check_rights(target: Target, who: dict) -> None:
    """Raises UserError if the token may not write to the repository's owner, as far as the hub shows its rights."""
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(f"{target.asked}: the token may only read; {LOGIN}", code="no-access")
    owners = [who["name"], *(org["name"] for org in who.get("orgs", []) if org.get("roleInOrg") != "read")]
    # A fine-grained token may hide its organisations, so that only those of role "write" are checked.
    if role == "write" and target.name.split("/")[0] not in owners:
        raise UserError(f"{target.asked}: you may write to {', '.join(owners)}; choose one of these", code="no-access")


@contextmanager
def _hub(target: Target, again: str = "") -> Iterator[None]:
    """Turns what goes wrong with the hub inside the block into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as why:  # Connections fail in as many ways as huggingface_hub has had HTTP and storage libraries.
        reason, code = _reason(why)
        raise UserError(f"{target.asked}: {reason}" + (f"; {again}" if again else ""), code=code) from why


def _reason(why: Exception) -> tuple[str, Code]:
    """What happened and what to do, in one line, and the kind of mistake."""
    if type(why) is RuntimeError and isinstance(why.__cause__, Exception):  # It only names the file.
        why = why.__cause__
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    first = lines[0].rstrip(".:") if lines else type(why).__name__
    if isinstance(why, OfflineModeIsEnabled):
        return "the hub is switched off; unset HF_HUB_OFFLINE", "unreachable"
    # Older versions of huggingface_hub raise the errors of their HTTP library.
    status = getattr(getattr(why, "response", None), "status_code", 0)
    if status == 401:
        return f"the hub does not know the token ({first}); {LOGIN}", "no-access"
    if 400 <= status < 500 and status != 429:
        return f"refused by the hub ({first}); check the name and what your token may do", "no-access"
    return f"no answer from the hub ({first}); check the network", "unreachable"
