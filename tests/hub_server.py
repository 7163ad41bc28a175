"""A small Hugging Face Hub on a real socket: what pushing to and pulling from a model repository needs of the wire.

Repositories live in memory as lists of commits, each a full tree of path → content, named by the sha1 of what it holds.
Requests it knows are recorded in order, so that tests can say what was sent. In a test: `with HubServer() as hub:`, and
`hub.environment(tmp_path)` holds the variables for a subprocess that shall talk to it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

LFS_SUFFIXES = (".safetensors", ".bin")
WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"


@dataclass(frozen=True)
class ServedCommit:
    """One commit: its sha, its parent's, its message and the whole tree it leaves."""

    sha: str
    parent: str | None
    message: str
    tree: dict[str, bytes]


@dataclass
class ServedRepo:
    """A repository with one branch, main, and tags (name → sha)."""

    private: bool
    gated: bool = False
    commits: list[ServedCommit] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def head(self) -> ServedCommit:
        return self.commits[-1]

    def commit(self, message: str, changes: dict[str, bytes | None]) -> ServedCommit:
        """Append a commit; None as content removes a file."""
        tree = dict(self.commits[-1].tree) if self.commits else {}
        for path, content in changes.items():
            if content is None:
                tree.pop(path, None)
            else:
                tree[path] = content
        parent = self.commits[-1].sha if self.commits else None
        listing = [(path, git_hash(content)) for path, content in sorted(tree.items())]
        sha = hashlib.sha1(json.dumps([parent, message, len(self.commits), listing]).encode()).hexdigest()
        self.commits.append(ServedCommit(sha, parent, message, tree))
        return self.commits[-1]

    def find(self, revision: str) -> ServedCommit | None:
        """Return the commit a branch name, a tag or a sha means."""
        if revision == "main":
            return self.head
        revision = self.tags.get(revision, revision)
        return next((c for c in self.commits if c.sha == revision), None)


@dataclass
class Trouble:
    """What the next `times` requests like "PUT /lfs/…" meet: an error of that status, or a line that breaks (0)."""

    request: str
    status: int
    times: int = 1


def git_hash(content: bytes) -> str:
    """Return git's blob id."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class HubServer(ThreadingHTTPServer):
    """The Hub; a context manager that serves on a free port of 127.0.0.1 while it is open."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, ServedRepo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self.before_commit: Any = None  # called with the repository just before a commit is taken: a rival's chance
        self.troubles: list[Trouble] = []
        self.part_bytes: int | None = None  # larger objects are asked for in parts of so many bytes
        self.parts: dict[tuple[str, int], bytes] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add_repo(self, repo_id: str, files: dict[str, bytes] | None = None, **settings: Any) -> ServedRepo:
        """Create a repository as its owner would, with an initial commit."""
        repo = ServedRepo(**{"private": False, **settings})
        repo.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        if files:
            repo.commit("add files", dict(files))
        self.repos[repo_id] = repo
        return repo

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Return the variables under which a huggingface_hub of its own process talks to this Hub."""
        found = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return found if token is None else {**found, "HF_TOKEN": token}

    def connect(
        self, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = WRITE_TOKEN, *, xet: bool = False
    ) -> None:
        """Point the huggingface_hub of this process here, although it has read its environment already."""
        from huggingface_hub import constants

        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        if token is None:
            monkeypatch.delenv("HF_TOKEN", raising=False)
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_DISABLE_XET": not xet,
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(constants, name, value)

    def __enter__(self) -> HubServer:
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **body: Any) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    _ROUTES = (
        ("POST", r"/api/repos/create", "_create"),
        ("POST", r"/api/validate-yaml", "_validate_yaml"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)", "_preupload"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "_lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "_lfs_put"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})/(?P<part>\d+)", "_lfs_put_part"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "_lfs_complete"),
        ("POST", r"/lfs/verify", "_lfs_verify"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)", "_commit"),
        ("GET", r"/api/whoami-v2", "_whoami"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/refs", "_refs"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/commits/(?P<rev>[^/]+)", "_commits"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/tag/(?P<rev>[^/]+)", "_tag"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)", "_tree"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?", "_info"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "_resolve"),
    )

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Stay silent; `requests` keeps what was asked."""

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        # Read the body first, whatever the answer, or a kept-alive connection falls out of step.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        with self.server.lock:
            try:
                if self._in_trouble(path):
                    return
                self._route(method, path)
            except _Refused as refusal:
                headers = {"X-Error-Message": refusal.message}
                if refusal.code:
                    headers["X-Error-Code"] = refusal.code
                self._answer({"error": refusal.message, **refusal.body}, refusal.status, headers)

    def _in_trouble(self, path: str) -> bool:
        """Say whether the connection broke; raises the error that is due."""
        for trouble in self.server.troubles:
            if trouble.times and re.match(trouble.request, f"{self.command} {path}"):
                trouble.times -= 1
                self.server.requests.append(f"{self.command} {path} -> {trouble.status}")
                if trouble.status:
                    raise _Refused(trouble.status, f"trouble {trouble.status}")
                self.close_connection = True
                return True
        return False

    def _route(self, method: str, path: str) -> None:
        for wanted, pattern, name in self._ROUTES:
            match = re.fullmatch(pattern, path)
            if wanted == method and match:
                self.server.requests.append(f"{self.command} {path}")
                getattr(self, name)(**{k: v and unquote(v) for k, v in match.groupdict().items()})
                return
        raise _Refused(404, f"no route {method} {path}")

    def _answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and for what

    @property
    def _token(self) -> str | None:
        found = self.headers.get("Authorization")
        token = found.removeprefix("Bearer ") if found else None
        if token not in (None, READ_TOKEN, WRITE_TOKEN):
            raise _Refused(401, "Invalid credentials in Authorization header")
        return token

    def _must_write(self) -> None:
        if self._token is None:
            raise _Refused(401, "Invalid username or password.")
        if self._token != WRITE_TOKEN:
            raise _Refused(403, "you don't have the rights to write to this repository")

    def _repo(self, repo_id: str) -> ServedRepo:
        token, repo = self._token, self.server.repos.get(repo_id)
        if repo is None or (repo.private and token is None):
            # The Hub does not tell a stranger whether a repository exists.
            raise _Refused(401 if token is None else 404, "Repository not found", "RepoNotFound")
        if repo.gated and token != WRITE_TOKEN:
            raise _Refused(403, "Access to this model is restricted", "GatedRepo")
        return repo

    def _at(self, repo_id: str, revision: str | None) -> tuple[ServedRepo, ServedCommit]:
        repo = self._repo(repo_id)
        commit = repo.find(revision or "main")
        if commit is None:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, commit

    # Writing

    def _create(self) -> None:
        self._must_write()
        wanted = json.loads(self.body)
        repo_id = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        url = f"{self.server.url}/{repo_id}"
        if repo_id in self.server.repos:
            raise _Refused(409, "You already created this model repo", url=url)
        private = wanted.get("visibility") == "private" or wanted.get("private", False)
        self.server.add_repo(repo_id, private=private)
        self._answer({"url": url, "name": repo_id})

    def _validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        if not re.match(r"---\n.*?\n---\n", content, re.DOTALL):
            raise _Refused(400, "Invalid metadata", errors=[{"message": "README.md has no metadata"}], warnings=[])
        self._answer({"errors": [], "warnings": []})

    def _preupload(self, repo: str, rev: str) -> None:
        self._must_write()
        _, commit = self._at(repo, rev)
        files = []
        for asked in json.loads(self.body)["files"]:
            lfs = asked["path"].endswith(LFS_SUFFIXES)
            found = {"path": asked["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            there = commit.tree.get(asked["path"])
            if there is not None:
                found["oid"] = hashlib.sha256(there).hexdigest() if lfs else git_hash(there)
            files.append(found)
        self._answer({"files": files})

    def _lfs_batch(self, repo: str) -> None:
        self._must_write()
        self._repo(repo)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            found = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.objects:
                upload, verify = f"{self.server.url}/lfs/{asked['oid']}", f"{self.server.url}/lfs/verify"
                action: dict[str, Any] = {"href": upload}
                size = self.server.part_bytes
                if size is not None and asked["size"] > size:
                    numbers = range(1, -(-asked["size"] // size) + 1)
                    urls = {f"{number:05d}": f"{upload}/{number}" for number in numbers}
                    action = {"href": f"{upload}/complete", "header": {"chunk_size": str(size), **urls}}
                found["actions"] = {"upload": action, "verify": {"href": verify}}
            objects.append(found)
        self._answer({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "content does not match its oid")
        self.server.objects[oid] = self.body
        self._answer({})

    def _lfs_put_part(self, oid: str, part: str) -> None:
        self.server.parts[oid, int(part)] = self.body
        self._answer({}, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def _lfs_complete(self, oid: str) -> None:
        content = b""
        for told in json.loads(self.body)["parts"]:
            part = self.server.parts[oid, told["partNumber"]]
            if told["etag"].strip('"') != hashlib.md5(part).hexdigest():
                raise _Refused(400, "a part has another etag")
            content += part
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, "content does not match its oid")
        self.server.objects[oid] = content
        self._answer({})

    def _lfs_verify(self) -> None:
        asked = json.loads(self.body)
        if len(self.server.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, "object is not here")
        self._answer({})

    def _commit(self, repo: str, rev: str) -> None:
        self._must_write()
        served, _ = self._at(repo, rev)
        if self.server.before_commit is not None:
            self.server.before_commit(served)
        header, *operations = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != served.head.sha:
            raise _Refused(412, "A commit has happened since. Please refresh and try again.")
        changes = dict(self._change(operation["key"], operation["value"]) for operation in operations)
        commit = served.commit(header["value"]["summary"], changes)
        if self._in_trouble("answer to a commit"):
            return
        url = f"{self.server.url}/{repo}/commit/{commit.sha}"
        self._answer({"success": True, "commitOid": commit.sha, "commitUrl": url})

    def _change(self, key: str, value: dict[str, Any]) -> tuple[str, bytes | None]:
        if key == "file":
            return value["path"], base64.b64decode(value["content"])
        if key == "lfsFile":
            if value["oid"] not in self.server.objects:
                raise _Refused(400, f"LFS pointer to an object that is not here: {value['oid']}")
            return value["path"], self.server.objects[value["oid"]]
        if key == "deletedFile":
            return value["path"], None
        raise _Refused(400, f"unknown operation {key!r}")

    def _tag(self, repo: str, rev: str) -> None:
        self._must_write()
        served, commit = self._at(repo, rev)
        tag = json.loads(self.body)["tag"]
        if tag in served.tags:
            raise _Refused(409, f"Tag {tag} already exists")
        served.tags[tag] = commit.sha
        self._answer({})

    # Reading

    def _whoami(self) -> None:
        if self._token is None:
            raise _Refused(401, "Invalid username or password.")
        self._answer({"type": "user", "name": "me", "orgs": []})

    def _refs(self, repo: str) -> None:
        served = self._repo(repo)
        branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": served.head.sha}]
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": sha} for tag, sha in served.tags.items()]
        self._answer({"branches": branches, "tags": tags, "converts": []})

    def _commits(self, repo: str, rev: str) -> None:
        served, _ = self._at(repo, rev)
        about = {"message": "", "authors": [], "date": "2026-01-31T12:00:00.000Z"}
        self._answer([{"id": each.sha, "title": each.message, **about} for each in reversed(served.commits)])

    def _info(self, repo: str, rev: str | None) -> None:
        served, commit = self._at(repo, rev)
        siblings = [{"rfilename": path} for path in sorted(commit.tree)]
        record = {"_id": "0" * 24, "id": repo, "modelId": repo, "sha": commit.sha, "private": served.private}
        self._answer({**record, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def _tree(self, repo: str, rev: str) -> None:
        _, commit = self._at(repo, rev)
        entries = []
        for path, content in sorted(commit.tree.items()):
            entry: dict[str, Any] = {"type": "file", "oid": git_hash(content), "size": len(content), "path": path}
            if path.endswith(LFS_SUFFIXES):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._answer(entries)

    def _resolve(self, repo: str, rev: str, path: str) -> None:
        _, commit = self._at(repo, rev)
        if path not in commit.tree:
            raise _Refused(404, f"Entry not found: {path}", "EntryNotFound")
        content = commit.tree[path]
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LFS_SUFFIXES) else git_hash(content)
        self._answer(content, headers={"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"'})
