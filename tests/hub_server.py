"""A model hub on this machine that speaks the Hugging Face hub's HTTP API, for tests without a network.

It answers what huggingface_hub (0.34 and newer) asks about model and dataset repositories:
whoami, info, tree, resolve with ETag
and Range, creation, preupload, Git LFS and commits. Private and gated repositories and the error codes are the real
hub's. It has no Xet storage, so clients must run with HF_HUB_DISABLE_XET=1, as `environment` and `connect` say.
Large files are sent from a second origin (localhost instead of 127.0.0.1), as the real hub's CDN does: no token may
arrive there. `fail` makes requests go wrong.
"""

import base64
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.hub_handler import Handler

LARGE = 10_000_000
LFS_SUFFIXES = (".safetensors", ".model", ".pt", ".bin", ".ckpt", ".wav", ".flac", ".png", ".npz", ".tar")
"""Files that go to Git LFS whatever their size, as the hub's own .gitattributes says."""


@dataclass(kw_only=True)
class User:
    """Who a token belongs to. role: `write`, or `read` for a token that may only download."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"


@dataclass(kw_only=True)
class Entry:
    """A file of a commit. sha256: name of its blob. oid: of git, as the hub shows it."""

    sha256: str
    oid: str
    size: int
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(kw_only=True)
class Repository:
    """commits: newest last, a tree each. readers: names who may read it if it is gated."""

    name: str
    kind: str = "model"
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def tree(self, revision: str) -> dict[str, Entry] | None:
        """Files of a branch or commit; None if there is no such revision."""
        return self.commits.get(self.head if revision in ("main", "HEAD") else revision)

    def commit(self, tree: dict[str, Entry], message: str) -> str:
        seed = f"{self.name} {len(self.commits)} {sorted((path, entry.sha256) for path, entry in tree.items())}"
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = tree
        self.messages.append(message)
        return oid


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with the next `times` requests that fit (-1: with all): a status, or a connection that is cut.

    cut: share of the body after which the connection ends; 0 ends it without an answer.
    """

    method: str
    path: re.Pattern[str]
    status: int | None
    cut: float
    times: int


@dataclass(kw_only=True)
class Request:
    """A request that was answered. status 0: the connection was cut."""

    method: str
    path: str
    status: int
    token: str | None
    range: str | None


class Hub:
    """State of the server. users: by token. Blobs lie in `folder`, named by their sha256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.users = {"hf_writer": User(name="ann", orgs=("org",)), "hf_reader": User(name="bob", role="read")}
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        """Another origin than `url`, of the same server."""
        return f"http://localhost:{self.port}"

    def add(
        self,
        name: str,
        files: Path | Mapping[str, bytes] | None = None,
        *,
        private: bool = False,
        gated: bool = False,
        kind: str = "model",
    ) -> Repository:
        """A repository with the files of a folder, or of a mapping from path to content, in one more commit."""
        repository = self.repositories.setdefault(name, Repository(name=name, kind=kind))
        repository.private, repository.gated = private, gated
        if not repository.commits:
            repository.commit({".gitattributes": self.store(b"*.safetensors filter=lfs\n", lfs=False)}, "initial")
        if isinstance(files, Path):
            paths = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        if files:
            new = {path: self.store(data, lfs=self.is_lfs(path, len(data))) for path, data in files.items()}
            repository.commit({**repository.commits[repository.head], **new}, "add files")
        return repository

    def content(self, name: str, path: str, revision: str = "main") -> bytes:
        """Bytes of a file of a repository."""
        tree = self.repositories[name].tree(revision)
        assert tree is not None
        return self.blob(tree[path].sha256).read_bytes()

    def fail(self, method: str, path: str, *, status: int | None = None, cut: float = 0.0, times: int = 1) -> None:
        """Lets the next `times` requests whose path (with its query) matches the expression go wrong, see Fault."""
        self.faults.append(Fault(method=method, path=re.compile(path), status=status, cut=cut, times=times))

    def environment(self, home: Path, token: str | None = "hf_writer") -> dict[str, str]:
        """Environment of a subprocess that talks to this hub, with its cache and settings in `home`."""
        mine = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        mine |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        mine |= {} if token is None else {"HF_TOKEN": token}
        return {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | mine

    def connect(self, patch: pytest.MonkeyPatch, home: Path, token: str | None = "hf_writer") -> None:
        """The same for this process: huggingface_hub reads its environment once, when it is imported."""
        from huggingface_hub import constants, file_download

        patch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # older clients copy it
            patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        for key in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(key, raising=False)
        if token is not None:
            patch.setenv("HF_TOKEN", token)

    def is_lfs(self, path: str, size: int) -> bool:
        return size > 0 and (path.endswith(LFS_SUFFIXES) or size > LARGE)

    def blob(self, sha256: str) -> Path:
        return self.folder / sha256

    def store(self, data: bytes, *, lfs: bool) -> Entry:
        """Keeps the bytes and gives their entry in a tree."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blob(sha256).write_bytes(data)
        return self.entry(sha256, len(data), data=None if lfs else data)

    def entry(self, sha256: str, size: int, data: bytes | None = None) -> Entry:
        """data: of a plain git file; None for a large file, of which git holds a pointer."""
        lfs = data is None
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        content = pointer if data is None else data
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return Entry(sha256=sha256, oid=oid, size=size, lfs=lfs)

    def apply(self, repository: Repository, lines: list[dict[str, Any]]) -> str:
        """Makes a commit of the lines of an NDJSON body. Raises LookupError for a large file that was not uploaded."""
        with self.lock:
            tree, message = dict(repository.commits[repository.head]), ""
            for line in lines:
                key, value = line["key"], line["value"]
                if key == "header":
                    message = value["summary"]
                elif key == "file":
                    tree[value["path"]] = self.store(base64.b64decode(value["content"]), lfs=False)
                elif key == "lfsFile":
                    if not self.blob(value["oid"]).is_file():
                        raise LookupError(value["path"])
                    tree[value["path"]] = self.entry(value["oid"], self.blob(value["oid"]).stat().st_size)
                elif key == "deletedFile":
                    del tree[value["path"]]
                elif key == "deletedFolder":
                    tree = {path: entry for path, entry in tree.items() if not path.startswith(value["path"])}
            return repository.commit(tree, message)

    def note(self, method: str, path: str, status: int, token: str | None, wanted_range: str | None) -> None:
        with self.lock:
            self.requests.append(Request(method=method, path=path, status=status, token=token, range=wanted_range))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, counted down."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None


@contextmanager
def hub_server(folder: Path) -> Iterator[Hub]:
    """A hub on a free port that keeps its files in `folder`, until the block ends."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
