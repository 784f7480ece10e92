"""The Hub's endpoints that uploading and downloading a model takes, in memory, on 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard

# More than this is no request of a test.
_MOST = 64 * 2**20
_LARGE = (".safetensors", ".png")


@dataclass
class Repository:
    """Files by commit, the last one being ``main``."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]]

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    def files(self, revision: str) -> dict[str, bytes] | None:
        wanted = self.head if revision == "main" else revision
        return next((files for oid, files in self.commits if oid == wanted), None)


@dataclass
class Hub:
    """What the stand-in holds, and what it was asked.

    Attributes:
        token: Of the one user, who may read and write everything.
        user: Their name.
        url: Where it listens.
        repositories: By name.
        objects: Large files by SHA-256.
        requests: Method, path, whether the token came with it, and the answer's status.
    """

    token: str
    user: str = "user"
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, bool, int]] = field(default_factory=list)


@contextmanager
def hub(token: str) -> Iterator[Hub]:
    """Serve until the end of the block."""
    state = Hub(token)

    class Handler(_Handler):
        hub = state

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the console."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        known = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        try:
            status, headers, body = self._found(path, self._body(), known)
        except _RefusedError as refused:
            status, body = refused.status, json.dumps({"error": refused.message}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
        self.hub.requests.append((self.command, path, known, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                if size + sum(map(len, parts)) > _MOST:
                    raise _RefusedError(413)
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        if length > _MOST:
            raise _RefusedError(413)
        return self.rfile.read(length)

    def _found(self, path: str, body: bytes, known: bool) -> tuple[int, dict[str, str], bytes]:
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                return getattr(self, f"_{name}")(*match.groups(), body=body, known=known)  # type: ignore[no-any-return]
        raise _RefusedError(501, message=f"The stand-in does not know {self.command} {path}.")

    def _repository(self, name: str, known: bool, *, write: bool = False) -> Repository:
        """As the Hub does: who may not see a repository is told that there is none."""
        found = self.hub.repositories.get(name)
        if write and not known:
            raise _RefusedError(401, message="Invalid username or password.")
        if found is None or (found.private and not known):
            raise _RefusedError(404 if known else 401, "RepoNotFound", "Repository not found")
        return found

    def _whoami(self, *, body: bytes, known: bool) -> Any:  # noqa: ARG002 - as all have them
        if not known:
            raise _RefusedError(401, message="Invalid user token.")
        return _json({"type": "user", "name": self.hub.user, "orgs": []})

    def _create(self, *, body: bytes, known: bool) -> Any:
        if not known:
            raise _RefusedError(401, message="Invalid user token.")
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or self.hub.user}/{wanted['name']}"
        if name in self.hub.repositories:
            raise _RefusedError(409, message="You already created this model repo")
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[name] = Repository(private, [(_oid(name, 0), {".gitattributes": b""})])
        return _json({"url": f"{self.hub.url}/{name}", "name": name})

    def _validate(self, *, body: bytes, known: bool) -> Any:  # noqa: ARG002 - as all have them
        try:
            data = ModelCard(json.loads(body)["content"]).data
        except ValueError as error:
            return _json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        wrong = [name for name in ("library_name", "tags") if not data.get(name)]
        return _json(
            {"errors": [{"message": f"{name} is missing"} for name in wrong], "warnings": []}, 400 if wrong else 200
        )

    def _preupload(self, name: str, _revision: str, *, body: bytes, known: bool) -> Any:
        self._repository(name, known, write=True)
        files = [
            {"path": one["path"], "uploadMode": _mode(one["path"]), "shouldIgnore": False, "oid": None}
            for one in json.loads(body)["files"]
        ]
        return _json({"files": files})

    def _batch(self, name: str, *, body: bytes, known: bool) -> Any:
        self._repository(name, known, write=True)
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/storage/{one['oid']}", "header": {}}}}
            for one in json.loads(body)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, *, body: bytes, known: bool) -> Any:  # noqa: ARG002 - as all have them
        if hashlib.sha256(body).hexdigest() != oid:
            raise _RefusedError(400, message="wrong digest")
        self.hub.objects[oid] = body
        return 200, {}, b""

    def _commit(self, name: str, _revision: str, *, body: bytes, known: bool) -> Any:
        repository = self._repository(name, known, write=True)
        files = dict(repository.commits[-1][1])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"], None)
        oid = _oid(name, len(repository.commits))
        repository.commits.append((oid, files))
        url = f"{self.hub.url}/{name}/commit/{oid}"
        return _json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def _info(self, name: str, revision: str | None = None, *, body: bytes, known: bool) -> Any:  # noqa: ARG002 - as all have them
        repository = self._repository(name, known)
        files = repository.files(revision or "main")
        if files is None:
            raise _RefusedError(404, "RevisionNotFound", "Invalid rev id")
        siblings = [{"rfilename": path} for path in sorted(files)]
        oid = repository.head if revision in (None, "main") else revision
        return _json(
            {"_id": "0", "id": name, "sha": oid, "private": repository.private, "tags": [], "siblings": siblings}
        )

    def _tree(self, name: str, revision: str, folder: str | None = None, *, body: bytes, known: bool) -> Any:  # noqa: ARG002 - as all have them
        files = self._repository(name, known).files(revision)
        if files is None:
            raise _RefusedError(404, "RevisionNotFound", "Invalid rev id")
        inside = "" if folder is None else folder.strip("/") + "/"
        found = [
            {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
            for path, data in sorted(files.items())
            if path.startswith(inside)
        ]
        if inside and not found:
            raise _RefusedError(404, "EntryNotFound", "Entry not found")
        return _json(found)

    def _resolve(self, name: str, revision: str, path: str, *, body: bytes, known: bool) -> Any:  # noqa: ARG002 - as all have them
        repository = self._repository(name, known)
        files = repository.files(revision)
        if files is None:
            raise _RefusedError(404, "RevisionNotFound", "Invalid rev id")
        commit = {"X-Repo-Commit": repository.head if revision == "main" else revision}
        if path not in files:
            return 404, {**commit, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b""
        data = files[path]
        headers = {**commit, "ETag": f'"{_blob(data)}"', "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        if start:
            place = int(start[1])
            headers["Content-Range"] = f"bytes {place}-{len(data) - 1}/{len(data)}"
            return 206, headers, data[place:]
        return 200, headers, data


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate"),
    ("POST", rf"/api/models/{_NAME}/preupload/([^/]+)", "preupload"),
    ("POST", rf"/api/models/{_NAME}/commit/([^/]+)", "commit"),
    ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/storage/([0-9a-f]{64})", "store"),
    ("GET", rf"/api/models/{_NAME}/tree/([^/]+)(/.*)?", "tree"),
    ("GET", rf"/api/models/{_NAME}/revision/([^/]+)", "info"),
    ("GET", rf"/api/models/{_NAME}", "info"),
    ("HEAD GET", rf"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
)


def _json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _mode(path: str) -> str:
    return "lfs" if path.endswith(_LARGE) else "regular"


def _oid(name: str, number: int) -> str:
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()  # noqa: S324 - as git does


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - as git does
