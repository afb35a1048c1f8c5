"""Uploads a finished folder to a model or dataset repository of the hub.

Nothing of the user's is replaced there: a repository that holds anything else than this folder is refused. An upload
that was cut off goes on when it is asked for again.
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

from model.errors import UserError

GIVEN_BY_HUB = {".gitattributes"}
"""Files that a new repository has of itself."""
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token with write permission"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where to upload to. `asked` and `public_flag` are the user's words for it, in messages."""

    name: str
    asked: str
    public: bool
    public_flag: str
    kind: str = "model"


def check_push(target: Target, folder: Path | None, sums: Mapping[str, str]) -> None:
    """Raises UserError if an upload could not work: asked before any work is done.

    folder: what to upload, if it exists already, with the sha256 of its files; without it the repository must be new or
    empty.
    """
    name = target.name
    try:
        validate_repo_id(name)
    except HFValidationError as why:
        raise UserError(f"{target.asked}: not a repository name: give ORG/NAME") from why
    if "/" not in name:
        raise UserError(f"{target.asked}: give ORG/NAME, with your user name or an organisation of yours")
    if get_token() is None:
        raise UserError(f"{target.asked}: not logged in: {LOGIN}")
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
            raise UserError(f"{target.asked} exists and is {now}: {fix}, or choose another name")
        check_content(api, target, folder, sums)


def push(folder: Path, target: Target, sums: Mapping[str, str]) -> str:
    """Uploads the files named in `sums`, by sha256, to the repository, made if it does not exist -> its address.

    Raises: UserError if the hub refuses or cannot be reached, saying how to go on; the folder is left as it is.
    """
    command = f"hf upload {target.name} {folder}" + ("" if target.kind == "model" else f" --repo-type {target.kind}")
    command += "" if target.public else " --private"
    with _hub(target, f"{folder} is whole: run the same command again, or `{command}`"):
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
    """Raises UserError if the repository holds a file that is not, byte for byte, one of `sums`."""
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
            "another name, or write a folder only and use `hf upload`"
        )


def _same(folder: Path, entry: RepoFile, sums: Mapping[str, str]) -> bool:
    if entry.path not in sums:
        return False
    if entry.lfs is not None:
        return sums[entry.path] == entry.lfs.sha256
    data = (folder / entry.path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == entry.blob_id


def _check_rights(target: Target, who: dict) -> None:
    """Raises UserError if the token may not write to the owner of the repository, as far as the hub says so."""
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(f"{target.asked}: the token may only read: {LOGIN}")
    orgs = [org["name"] for org in who.get("orgs", []) if org.get("roleInOrg") != "read"]
    if role == "write" and target.name.split("/")[0] not in (
        who["name"],
        *orgs,
    ):  # a fine-grained token may hide its orgs
        raise UserError(f"{target.asked}: you may write to {', '.join([who['name'], *orgs])}: choose one of these")


@contextmanager
def _hub(target: Target, again: str = "") -> Iterator[None]:
    """Turns what goes wrong with the hub inside the block into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as why:  # connections fail in as many ways as huggingface_hub has had HTTP and storage libraries
        raise UserError(f"{target.asked}: {_reason(why)}" + (f"; {again}" if again else "")) from why


def _reason(why: Exception) -> str:
    """What happened, and what to do, in one line."""
    if type(why) is RuntimeError and isinstance(why.__cause__, Exception):  # it only names the file
        why = why.__cause__
    lines = [line.strip() for line in str(why).splitlines() if line.strip()]
    first = lines[0].rstrip(".:") if lines else type(why).__name__
    if isinstance(why, OfflineModeIsEnabled):
        return "the hub is switched off: unset HF_HUB_OFFLINE"
    status = getattr(
        getattr(why, "response", None), "status_code", 0
    )  # older clients raise their HTTP library's errors
    if status == 401:
        return f"the hub does not know the token ({first}): {LOGIN}"
    if 400 <= status < 500 and status != 429:
        return f"refused by the hub ({first}): check the name and what your token may do"
    return f"no answer from the hub ({first}): check the network"
