"""Requests of the hub in hub_server.py: addresses, permissions, error codes and headers as the real hub gives them."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.hub_server import Entry, Fault, Hub, Repository, User

NAME = r"(?P<repo>[^/]+/[^/]+)"
NAME_RULE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")
ROUTES: list[tuple[str, str, str]] = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"/api/(?:models|datasets)/{NAME}/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
    ("POST", rf"/api/(?:models|datasets)/{NAME}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"/api/(?:models|datasets)/{NAME}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api/(?:models|datasets)/{NAME}/commit/(?P<revision>[^/]+)", "commit"),
    ("GET", rf"/api/(?:models|datasets)/{NAME}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/(?:datasets/)?{NAME}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/storage/(?P<sha256>\w+)", "lfs_put"),
    ("GET", r"/storage/(?P<sha256>\w+)", "lfs_get"),
    ("GET", rf"/(?:datasets/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]


class Refused(Exception):
    """An answer that is an error. code: the hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {"X-Repo-Commit": commit} if commit else {}


class Handler(BaseHTTPRequestHandler):
    """One connection; hub_server binds `hub`."""

    hub: "Hub"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        self.address = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        fault = self.hub.fault(self.command, self.path)
        self.cut = fault.cut if fault and fault.status is None else None
        if self.cut is not None and not (self.cut and self.command == "GET"):
            self.break_off(fault)
            return
        self.body = self.read_body()
        try:
            if fault and fault.status:
                raise Refused(fault.status, "the hub has a bad day")
            for known, pattern, name in ROUTES:
                if known == method and (match := re.fullmatch(pattern, unquote(self.address.path))):
                    getattr(self, name)(**{k: v for k, v in match.groupdict().items() if v is not None})
                    return
            raise Refused(404, "Sorry, we can't find the page you are looking for.")
        except Refused as why:
            code = {"X-Error-Code": why.code} if why.code else {}
            self.send_json(why.status, {"error": str(why)}, {**code, "X-Error-Message": str(why), **why.headers})

    # who asks for what

    @property
    def token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    @property
    def kind(self) -> str:
        """What the address is about."""
        return "dataset" if re.match(r"/(api/)?datasets/", self.address.path) else "model"

    def user(self) -> "User | None":
        if self.token is not None and self.token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users[self.token] if self.token is not None else None

    def repository(self, repo: str, *, content: bool = False, write: bool = False) -> "Repository":
        """The repository, if the user may see it (content: and read its files; write: and change it)."""
        user, repository = self.user(), self.hub.repositories.get(repo)
        if repository is not None and repository.kind != self.kind:
            repository = None
        owner = user is not None and repo.split("/")[0] in (user.name, *user.orgs)
        if repository is None or (repository.private and not owner):
            # over https the client takes any 401 of a repository for RepoNotFound, over http it needs the code
            if user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if content and repository.gated and not owner and not (user and user.name in repository.readers):
            message = f"Access to model {repo} is restricted."
            if user is None:
                raise Refused(401, f"{message} You must have access to it and be authenticated.", "GatedRepo")
            raise Refused(403, f"{message} Visit its page to ask for access.", "GatedRepo")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and user and (not owner or user.role == "read"):
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        return repository

    def tree_of(self, repository: "Repository", revision: str) -> "dict[str, Entry]":
        tree = repository.tree(revision)
        if tree is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return tree

    # routes

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.orgs]
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user.role}}
        self.send_json(200, {"type": "user", "id": user.name, "name": user.name, "orgs": orgs, "auth": auth})

    def create(self) -> None:
        user, wanted = self.user(), json.loads(self.body)
        if user is None:
            raise Refused(401, "Invalid username or password.")
        owner = wanted.get("organization") or user.name
        repo = f"{owner}/{wanted['name']}"
        if not NAME_RULE.fullmatch(wanted["name"]):
            raise Refused(400, f"Invalid repo name: {repo}")
        if owner not in (user.name, *user.orgs) or user.role == "read":
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo in self.hub.repositories:
            self.send_json(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"})
            return
        private = bool(wanted.get("private") or wanted.get("visibility") == "private")
        self.hub.add(repo, private=private, kind=wanted.get("type") or "model")
        self.send_json(200, {"url": f"{self.hub.url}/{repo}", "name": repo, "id": repo})

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        if not content.startswith("---\n"):
            self.send_json(200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
            return
        self.send_json(200, {"errors": [], "warnings": []})

    def info(self, repo: str, revision: str = "main") -> None:
        repository = self.repository(repo)
        tree = self.tree_of(repository, revision)
        sha = repository.head if revision in ("main", "HEAD") else revision
        facts: dict[str, Any] = {"_id": "0", "id": repo, "modelId": repo, "sha": sha, "private": repository.private}
        facts |= {"gated": "manual" if repository.gated else False, "disabled": False, "tags": [], "downloads": 0}
        self.send_json(200, facts | {"likes": 0, "siblings": [{"rfilename": path} for path in sorted(tree)]})

    def tree(self, repo: str, revision: str, path: str = "") -> None:
        tree = self.tree_of(self.repository(repo), revision)
        deep = parse_qs(self.address.query).get("recursive", ["false"])[0].lower() == "true"
        prefix = f"{path}/" if path else ""
        inside = [name for name in sorted(tree) if name.startswith(prefix)]
        if path and not inside:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        folders = {prefix + "/".join(name[len(prefix) :].split("/")[:n]) for name in inside for n in range(1, 9)}
        folders = {name for name in folders - set(inside) if deep or "/" not in name[len(prefix) :]}
        files = [name for name in inside if deep or "/" not in name[len(prefix) :]]
        listed = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
        self.send_json(200, listed + [file_facts(name, tree[name]) for name in files])

    def paths_info(self, repo: str, revision: str) -> None:
        tree = self.tree_of(self.repository(repo), revision)
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode()).get("paths", [])
        self.send_json(200, [file_facts(path, tree[path]) for path in paths if path in tree])

    def preupload(self, repo: str, revision: str) -> None:
        tree = self.tree_of(self.repository(repo, write=True), revision)
        files = []
        for wanted in json.loads(self.body)["files"]:
            path = wanted["path"]
            mode = "lfs" if self.hub.is_lfs(path, wanted["size"]) else "regular"
            oid = {"oid": tree[path].etag} if path in tree else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **oid})
        self.send_json(200, {"files": files})

    def lfs_batch(self, repo: str) -> None:
        self.repository(repo, write=True)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if not self.hub.blob(wanted["oid"]).is_file():
                answer["actions"] = {"upload": {"href": f"{self.hub.storage_url}/storage/{wanted['oid']}"}}
            objects.append(answer)
        self.send_json(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, sha256: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != sha256:
            raise Refused(400, "the content has another sha256")
        self.hub.store(self.body, lfs=True)
        self.send_bytes(200, b"", {"ETag": f'"{sha256}"'})

    def lfs_get(self, sha256: str) -> None:
        self.send_file(sha256, {"ETag": f'"{sha256}"'})

    def commit(self, repo: str, revision: str) -> None:
        repository = self.repository(repo, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != repository.head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        try:
            oid = self.hub.apply(repository, lines)
        except LookupError as why:
            raise Refused(400, f"lfs pointer of {why} points to a file that does not exist") from why
        self.send_json(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{oid}"})

    def resolve(self, repo: str, revision: str, path: str) -> None:
        repository = self.repository(repo, content=True)
        tree = self.tree_of(repository, revision)
        commit = repository.head if revision in ("main", "HEAD") else revision
        if path not in tree:
            raise Refused(404, "Entry not found", "EntryNotFound", commit)
        entry = tree[path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry.etag}"'}
        if entry.lfs:
            headers |= {"X-Linked-Size": str(entry.size), "X-Linked-Etag": f'"{entry.etag}"'}
            headers |= {"Location": f"{self.hub.storage_url}/storage/{entry.sha256}?signed=1"}
            self.send_bytes(302, b"", headers)
            return
        self.send_file(entry.sha256, headers)

    # bytes in and out

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def break_off(self, fault: "Fault | None") -> None:
        """Ends the connection without an answer, after a part of an upload."""
        size = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(int(size * (fault.cut if fault else 0)))
        self.note(0)
        self.close_connection = True

    def send_file(self, sha256: str, headers: dict[str, str]) -> None:
        data = self.hub.blob(sha256).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {"Accept-Ranges": "bytes", **headers}
        if wanted is None:
            self.send_bytes(200, data, headers)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
        if start >= len(data):
            self.send_bytes(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
        self.send_bytes(206, data[start : end + 1], headers)

    def send_json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def send_bytes(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.note(status)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.cut is not None:
            data, self.close_connection = data[: int(len(data) * self.cut)], True
        self.wfile.write(data)

    def note(self, status: int) -> None:
        self.hub.note(self.command, self.path, status, self.token, self.headers.get("Range"))

    def log_message(self, *_: Any) -> None:
        """Requests are in hub.requests, not on the terminal."""


def file_facts(path: str, entry: "Entry") -> dict[str, Any]:
    """A file as tree and paths-info list it."""
    lfs = {"lfs": {"oid": entry.sha256, "size": entry.size, "pointerSize": 130}} if entry.lfs else {}
    return {"type": "file", "path": path, "oid": entry.oid, "size": entry.size, **lfs}
