"""A Hub on this machine: the routes that huggingface_hub and `datasets` use for models and data sets, with its headers and errors.

Large files are served as the Hub serves them: by a redirect to another host (``localhost`` for ``127.0.0.1``), which
must not be sent the token. A data set is kept, and addressed, as ``datasets/org/name``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, USER = "hf_right", "me"  # whose token it is
LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0", "other")
LARGE = (".safetensors", ".parquet")


@dataclass
class Repo:
    """A repository: its commits, each a dict of files, and its branches and tags."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Mapping[str, bytes], branch: str = "main", removed: Collection[str] = ()) -> str:
        """Add files on top of a branch, remove others, and return the commit's name."""
        parent = self.refs.get(branch, "")
        tree = {**self.commits.get(parent, {}), **files}
        tree = {name: content for name, content in tree.items() if name not in removed}
        digest = hashlib.sha1(parent.encode())
        for name, content in sorted(tree.items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        self.commits[digest.hexdigest()] = tree
        self.refs[branch] = digest.hexdigest()
        return digest.hexdigest()


@dataclass(frozen=True)
class Request:
    """One request as it came in; `route` is like ``HEAD /org/name/resolve/main/config.json``."""

    route: str
    host: str
    token: str | None


class Hub:
    """The server and what it holds.

    Attributes:
        requests: every request so far.
        answer: how requests are answered: ``"well"``, ``"503"`` or ``"hang up"``.
        cut: a file's name, whose downloads break off half-way.
        lost: a file's name, requests for which are not answered.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.answer, self.cut, self.lost = "well", "", ""
        self._listen(0)

    def _listen(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Refuse connections for a while."""
        self.close()
        try:
            yield
        finally:
            self._listen(self.port)

    @contextlib.contextmanager
    def that(self, **behaviour: str) -> Iterator[None]:
        """Behave in another way for a while."""
        before = {name: getattr(self, name) for name in behaviour}
        vars(self).update(behaviour)
        try:
            yield
        finally:
            vars(self).update(before)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[list[Request]]:
        """Give the requests that come in meanwhile, complete when the block ends."""
        start, seen = len(self.requests), list[Request]()
        yield seen
        seen.extend(self.requests[start:])


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, "X-Error-Code": code} | headers


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(f"{self.command} {path}", (self.headers.get("Host") or "").split(":")[0], self.token))
        if self.hub.answer == "hang up" or (self.hub.lost and path.endswith(f"/{self.hub.lost}")):
            return
        try:
            if self.hub.answer == "503":
                raise _Refusal(503, "Service unavailable")
            self._route(path)
        except _Refusal as refusal:
            self._send(json.dumps({"error": str(refusal)}).encode(), refusal.status, refusal.headers)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _route(self, path: str) -> None:
        api, repo = r"/api/(models/)?(?P<repo>(datasets/)?[^/]+/[^/]+)", r"/(?P<repo>(datasets/)?[^/]+/[^/]+)"
        revision = r"(?P<revision>[^/]+)"
        routes: dict[str, Callable[..., None]] = {
            rf"(HEAD|GET) {repo}/resolve/{revision}/(?P<file>.+)": self._resolve,
            r"(HEAD|GET) /cdn/(?P<oid>\w+)/(?P<file>.+)": self._cdn,
            rf"GET {api}(/revision/{revision})?": self._info,
            rf"GET {api}/tree/{revision}(/(?P<folder>.+))?": self._tree,
            rf"POST {api}/paths-info/{revision}": self._paths,
            r"POST /api/validate-yaml": self._validate,
            r"POST /api/repos/create": self._create,
            rf"POST {api}/preupload/{revision}": self._preupload,
            rf"POST {repo}\.git/info/lfs/objects/batch": self._lfs_batch,
            r"PUT /lfs/(?P<oid>\w+)": self._lfs_put,
            rf"POST {api}/commit/{revision}": self._commit,
        }
        for pattern, answer in routes.items():
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return answer(**match.groupdict())
        raise _Refusal(404, f"no such route: {self.command} {path}")

    # Downloads

    def _repo(self, name: str) -> Repo:
        if self.token not in (None, TOKEN):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.token is None):
            raise _Refusal(401 if self.token is None else 404, "Repository not found", "RepoNotFound")
        if repo.gated:
            raise _Refusal(403, f"Access to model {name} is restricted", "GatedRepo")
        return repo

    def _at(self, name: str, revision: str | None) -> tuple[str, dict[str, bytes]]:
        repo = self._repo(name)
        commit = repo.refs.get(revision or "main", revision or "main")
        if commit not in repo.commits:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.commits[commit]

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        commit, files = self._at(repo, revision)
        headers = {"X-Repo-Commit": commit}
        if file not in files:
            raise _Refusal(404, "Entry not found", "EntryNotFound", **headers)
        content = files[file]
        if not file.endswith(LARGE):
            return self._send(content, 200, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})
        oid = hashlib.sha256(content).hexdigest()
        self.hub.blobs[oid] = content
        headers |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self._send(b"", 302, headers | {"Location": f"http://localhost:{self.hub.port}/cdn/{oid}/{file}"})

    def _cdn(self, oid: str, file: str) -> None:
        content = self.hub.blobs[oid]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        rest, headers = content[start:], {"ETag": f'"{oid}"', "Content-Length": str(len(content) - start)}
        if file == self.hub.cut:
            rest = content[start : len(content) // 2]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(rest, 206 if start else 200, headers)

    def _info(self, repo: str, revision: str | None) -> None:
        commit, files = self._at(repo, revision)
        name = repo.removeprefix("datasets/")
        self._json({"id": name, "sha": commit, "private": self.hub.repos[repo].private, "siblings": [{"rfilename": f} for f in files]})

    def _tree(self, repo: str, revision: str, folder: str | None) -> None:
        files = self._at(repo, revision)[1]
        entries = [_entry(name, files) for name in _names(files) if name.startswith(f"{folder}/" if folder else "")]
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"].removeprefix(f"{folder}/" if folder else "")]
        if folder and not entries:
            raise _Refusal(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self._json(entries)

    def _paths(self, repo: str, revision: str) -> None:
        files = self._at(repo, revision)[1]
        asked = json.loads(self.body)["paths"]
        self._json([_entry(name, files) for name in _names(files) if name in asked])

    # Uploads

    def _writer(self) -> None:
        if self.token != TOKEN:
            raise _Refusal(401, "Invalid username or password")

    def _validate(self) -> None:
        found = re.search(r"^license: (.*)$", json.loads(self.body)["content"], re.MULTILINE)
        errors = [{"message": f'"license" must be one of {LICENSES}'}] if found and found[1] not in LICENSES else []
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _create(self) -> None:
        self._writer()
        asked = json.loads(self.body)
        name = ("datasets/" if asked.get("type") == "dataset" else "") + f"{asked.get('organization') or USER}/{asked['name']}"
        if name in self.hub.repos:
            return self._json({"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}, 409)
        self.hub.repos[name] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        self.hub.repos[name].commit({".gitattributes": b"".join(b"*%s filter=lfs\n" % suffix.encode() for suffix in LARGE)})
        self._json({"url": f"{self.hub.endpoint}/{name}"})

    def _preupload(self, repo: str, revision: str) -> None:
        self._writer()
        _, files = self._at(repo, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            name = asked["path"]
            mode = "lfs" if name.endswith(LARGE) else "regular"
            answer = {"path": name, "uploadMode": mode, "shouldIgnore": False}
            if name in files:
                answer["oid"] = hashlib.sha256(files[name]).hexdigest() if mode == "lfs" else _blob_oid(files[name])
            answers.append(answer)
        self._json({"files": answers})

    def _lfs_batch(self, repo: str) -> None:
        self._writer()
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/lfs/{asked['oid']}"}
            objects.append(asked | ({} if asked["oid"] in self.hub.blobs else {"actions": {"upload": upload}}))
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refusal(400, "not the content that was announced")
        self.hub.blobs[oid] = self.body
        self._send(b"", 200)

    def _commit(self, repo: str, revision: str) -> None:
        self._writer()
        self._at(repo, revision)
        files, removed = {}, []
        for line in self.body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            elif item["key"] == "lfsFile":
                files[item["value"]["path"]] = self.hub.blobs[item["value"]["oid"]]
            elif item["key"] == "deletedFile":
                removed.append(item["value"]["path"])
        commit = self.hub.repos[repo].commit(files, revision, removed)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{commit}"})

    # Answers

    def _json(self, answer: Any, status: int = 200) -> None:
        self._send(json.dumps(answer).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | dict(headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


def _names(files: Mapping[str, bytes]) -> list[str]:
    """Files and the folders above them."""
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {"."}
    return sorted(folders | files.keys())


def _entry(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    """What the Hub tells of a file or folder."""
    if name not in files:
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    content = files[name]
    entry = {"type": "file", "path": name, "size": len(content), "oid": _blob_oid(content)}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _blob_oid(content: bytes) -> str:
    """The name git gives a file's content."""
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()
