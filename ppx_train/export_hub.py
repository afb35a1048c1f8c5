"""Uploads an exported folder to a model repository of the hub.

Nothing of the user's is replaced there: a repository that holds anything else than this export is refused. An upload
that was cut off goes on when it is asked for again.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from model.errors import UserError
from ppx_train.export_sums import SUMS, read_sums

GIVEN_BY_HUB = {".gitattributes"}
"""Files that a new repository has of itself."""
LOGIN = "run `hf auth login`, or set HF_TOKEN to a token with write permission"


def check_push(name: str, *, public: bool, folder: Path | None) -> None:
    """Raises UserError if an upload to `name` could not work: asked before any work is done.

    folder: the export, if it exists already; without it the repository must be new or empty.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as why:
        raise UserError(f"push_to_hub={name}: not a repository name: give ORG/NAME") from why
    if "/" not in name:
        raise UserError(f"push_to_hub={name}: give ORG/NAME, with your user name or an organisation of yours")
    if get_token() is None:
        raise UserError(f"push_to_hub={name}: not logged in: {LOGIN}")
    with _hub(name):
        api = HfApi()
        _check_rights(name, api.whoami())
        try:
            private = api.model_info(name).private
        except RepositoryNotFoundError:
            return
        if private == public:
            now, fix = ("private", "leave out public=true") if private else ("public", "give public=true")
            raise UserError(f"push_to_hub={name} exists and is {now}: {fix}, or choose another name")
        check_content(api, name, folder)


def push(folder: Path, name: str, *, public: bool) -> str:
    """Uploads `folder` to the repository `name`, which is made if it does not exist; returns its address.

    Raises: UserError if the hub refuses or cannot be reached, saying how to go on; the folder is left as it is.
    """
    command = f"hf upload {name} {folder}" + ("" if public else " --private")
    with _hub(name, f"{folder} is whole: run the same command again, or `{command}`"):
        api = HfApi()
        address = api.create_repo(name, private=not public, exist_ok=True)
        check_content(api, name, folder)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {folder.name}")
    return str(address)


def check_content(api: HfApi, name: str, folder: Path | None) -> None:
    """Raises UserError if the repository holds a file that is not, byte for byte, one of `folder`."""
    entries = [entry for entry in api.list_repo_tree(name, recursive=True) if isinstance(entry, RepoFile)]
    strange = [
        entry.path
        for entry in entries
        if entry.path not in GIVEN_BY_HUB and (folder is None or not _same(folder, entry, read_sums(folder)))
    ]
    if strange:
        more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
        raise UserError(
            f"push_to_hub={name} holds other files ({', '.join(strange[:3])}{more}), which are not replaced: choose "
            "another name, or export without push_to_hub and use `hf upload`"
        )


def _same(folder: Path, entry: RepoFile, sums: dict[str, str]) -> bool:
    if entry.path not in (*sums, SUMS):
        return False
    if entry.lfs is not None:
        return sums.get(entry.path) == entry.lfs.sha256
    data = (folder / entry.path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == entry.blob_id


def _check_rights(name: str, who: dict) -> None:
    """Raises UserError if the token may not write to the owner of `name`, as far as the hub says so."""
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(f"push_to_hub={name}: the token may only read: {LOGIN}")
    orgs = [org["name"] for org in who.get("orgs", []) if org.get("roleInOrg") != "read"]
    if role == "write" and name.split("/")[0] not in (who["name"], *orgs):  # a fine-grained token may hide its orgs
        raise UserError(f"push_to_hub={name}: you may write to {', '.join([who['name'], *orgs])}: choose one of these")


@contextmanager
def _hub(name: str, again: str = "") -> Iterator[None]:
    """Turns what goes wrong with the hub inside the block into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as why:  # connections fail in as many ways as huggingface_hub has had HTTP and storage libraries
        raise UserError(f"push_to_hub={name}: {_reason(why)}" + (f"; {again}" if again else "")) from why


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
