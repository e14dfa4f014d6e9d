"""A small Hugging Face Hub on the loopback address, for the real clients: repositories with commits, files and pushes.

It speaks the part of the protocol that `huggingface_hub` and `datasets` use. Files are in memory. Every request is
noted, and a test can have the server fail in a chosen way.
"""

import hashlib
import json
import re
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet")  # go by LFS

Files = dict[str, bytes]


@dataclass
class Repository:
    """Commits of one repository: the files of each by its hash, and the hashes by the names of branches and tags."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: Files, *refs: str) -> str:
        """Adds a commit that `refs` point to from now on, and returns its hash."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs |= dict.fromkeys(refs, sha)
        return sha

    def sha(self, revision: str) -> str | None:
        """The hash of a branch, a tag or a commit."""
        return self.refs.get(revision, revision if revision in self.commits else None)


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    method: str
    path: str

    @property
    def resolves(self) -> bool:
        """Whether it asked what a revision of a model is."""
        return self.method == "GET" and re.fullmatch(r"/api/models/[^/]+/[^/]+(/revision/.+)?", self.path) is not None


class Hub:
    """The state of the server.

    Attributes:
        repositories: by "models/ID" or "datasets/ID".
        requests: all that were answered.
        fault: asked before each answer; a status to answer with, "cut" to close the connection half way
            through a file, "drop" to close it at once.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Request] = []
        self.fault: Callable[[Request], int | str | None] = lambda request: None
        self.uploads: Files = {}
        self.address = ""


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs in a thread."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _private(form: dict[str, Any]) -> bool:
    """Versions of the client say it in two ways."""
    return bool(form.get("private", form.get("visibility") == "private"))


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._answer
        raise AttributeError(name)

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, path)
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        if isinstance(fault, int):
            return self._json({"error": "as the test wants it"}, fault)
        if fault == "drop":
            self.close_connection = True
            return None
        self.cut = fault == "cut"
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and re.fullmatch(method, self.command):
                return answer(self, **found.groupdict())
        self._json({"error": "no such place"}, 404, code="EntryNotFound")

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, value: Any, status: int = 200, code: str | None = None) -> None:
        self._send(json.dumps(value).encode(), status, **({"X_Error_Code": code} if code else {}))

    def _found(self, kind: str | None, repo: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the hash of the revision; where there is none, that is answered."""
        repository = self.hub.repositories.get(f"{kind or 'models/'}{repo}")
        if repository is None:
            return self._json({"error": "Invalid username or password."}, 401, code="RepoNotFound")
        sha = repository.sha(revision)
        if sha is None:
            return self._json({"error": f"Invalid rev id: {revision}"}, 404, code="RevisionNotFound")
        return repository, sha

    def _info(self, kind: str, repo: str, revision: str | None = None) -> None:
        if found := self._found(kind, repo, revision or "main"):
            repository, sha = found
            names = [{"rfilename": name} for name in repository.commits[sha]]
            card = {"license": "mit", "language": ["en"]}
            about = {"id": repo, "sha": sha, "siblings": names, "private": repository.private, "cardData": card}
            self._json(about | {"gated": "manual" if repository.gated else False, "tags": [], "downloads": 0})

    def _entries(self, files: Files) -> list[dict[str, Any]]:
        entries = []
        for name, content in files.items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _oid(content)[:40]}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": _oid(content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries

    def _tree(self, kind: str, repo: str, revision: str, below: str | None = None) -> None:
        if found := self._found(kind, repo, revision):
            prefix = f"{below}/" if below else ""
            inside = {n: content for n, content in found[0].commits[found[1]].items() if n.startswith(prefix)}
            if "recursive=true" not in self.path.lower():
                folders = {prefix + n[len(prefix) :].partition("/")[0] for n in inside if "/" in n[len(prefix) :]}
                inside = {n: content for n, content in inside.items() if "/" not in n[len(prefix) :]}
                entries = [{"type": "directory", "path": n, "size": 0, "oid": "0" * 40} for n in sorted(folders)]
            else:
                entries = []
            entries += self._entries(inside)
            self._json(entries, 200 if entries else 404, None if entries else "EntryNotFound")

    def _paths(self, kind: str, repo: str, revision: str) -> None:
        if found := self._found(kind, repo, revision):
            files, wanted = found[0].commits[found[1]], self._form().get("paths", [])
            self._json(self._entries({name: files[name] for name in wanted if name in files}))

    def _form(self) -> dict[str, Any]:
        if "json" in self.headers.get("Content-Type", ""):
            form: dict[str, Any] = json.loads(self.body)
            return form
        pairs = [pair.partition("=")[::2] for pair in self.body.decode().split("&")]
        return {"paths": [unquote(value.replace("+", " ")) for name, value in pairs if name == "paths"]}

    def _file(self, repo: str, revision: str, name: str, kind: str | None = None) -> None:
        if not (found := self._found(kind, repo, revision)):
            return None
        repository, sha = found
        if repository.gated:
            return self._json({"error": "Access to this model is restricted."}, 403, code="GatedRepo")
        content = repository.commits[sha].get(name)
        if content is None:
            return self._json({"error": "Entry not found"}, 404, code="EntryNotFound")
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        rest = content[int(start[1]) :] if start else content
        headers = {"X_Repo_Commit": sha, "ETag": f'"{_oid(content)}"', "Accept_Ranges": "bytes"}
        headers |= {"Content_Length": str(len(rest)), "Content_Type": "application/octet-stream"}
        if start:
            headers["Content_Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
        if self.cut and self.command == "GET":
            self._send(rest[: len(rest) // 2], 206 if start else 200, **headers)
            self.close_connection = True
            return None
        return self._send(rest, 206 if start else 200, **headers)

    def _create(self) -> None:
        form = self._form()
        name = "/".join(filter(None, (form.get("organization"), form["name"])))
        if f"models/{name}" in self.hub.repositories:
            return self._json({"error": "exists", "url": f"{self.hub.address}/{name}"}, 409)
        repository = self.hub.repositories[f"models/{name}"] = Repository(private=_private(form))
        repository.commit({".gitattributes": b""}, "main")
        return self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": "1"})

    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        files = json.loads(self.body)["files"]
        modes = {True: "lfs", False: "regular"}
        answer = [{"path": f["path"], "uploadMode": modes[f["path"].endswith(LARGE)]} for f in files]
        self._json({"files": [each | {"shouldIgnore": False} for each in answer]})

    def _batch(self, repo: str) -> None:
        objects = []
        for each in json.loads(self.body)["objects"]:
            place = {"href": f"{self.hub.address}/upload/{each['oid']}", "header": {}}
            objects.append(each | {"authenticated": True, "actions": {"upload": place}})
        self._json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str) -> None:
        assert _oid(self.body) == oid
        self.hub.uploads[oid] = self.body
        self._json({})

    def _commit(self, kind: str, repo: str, revision: str) -> None:
        if not (found := self._found(kind, repo, revision)):
            return
        files = dict(found[0].commits[found[1]])
        for line in self.body.splitlines():
            step = json.loads(line)
            if step["key"] == "file":
                files[step["value"]["path"]] = b64decode(step["value"]["content"])
            elif step["key"] == "lfsFile":
                files[step["value"]["path"]] = self.hub.uploads[step["value"]["oid"]]
        sha = found[0].commit(files, revision)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{repo}/commit/{sha}"})

    def _settings(self, kind: str, repo: str) -> None:
        repository = self.hub.repositories[f"models/{repo}"]
        repository.private = _private(json.loads(self.body))
        self._json({})


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models/|datasets/){_REPO}"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("HEAD|GET", "/|/mark/.*", lambda handler: handler._json({})),  # a mark is only noted
    ("GET", rf"{_API}(/revision/(?P<revision>.+))?", _Handler._info),
    ("GET", rf"{_API}/tree/(?P<revision>[^/]+)(/(?P<below>.+))?", _Handler._tree),
    ("POST", rf"{_API}/paths-info/(?P<revision>.+)", _Handler._paths),
    ("GET|HEAD", rf"/(?P<kind>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler._file),
    ("POST", "/api/repos/create", _Handler._create),
    ("POST", "/api/validate-yaml", lambda handler: handler._json({"errors": [], "warnings": []})),
    ("POST", rf"{_API}/preupload/(?P<revision>.+)", _Handler._preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._batch),
    ("PUT", "/upload/(?P<oid>.+)", _Handler._upload),
    ("POST", rf"{_API}/commit/(?P<revision>.+)", _Handler._commit),
    ("PUT", rf"{_API}/settings", _Handler._settings),
]
