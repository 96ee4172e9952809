"""A server that speaks as much of the Hub's HTTP API as pushing and pulling take."""

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
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Hub:
    """What the server holds: files by repository, commits, and uploads by hash."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, list[str]] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    token: str = ""
    meanwhile: dict[str, bytes] = field(default_factory=dict)
    """Files that someone commits before the next commit."""
    commit: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def hub_server(token: str = "") -> Iterator[Hub]:
    hub = Hub(token=token)

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        path, body = self._begin()
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._json({"error": "Invalid credentials"}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
            known = repo in self.hub.repos
            self.hub.repos.setdefault(repo, {})
            self.hub.commits.setdefault(repo, ["0" * 40])
            self._json({"url": f"{self.hub.url}/{repo}", "name": repo}, 409 if known else 200)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = [
                {
                    **asked,
                    "actions": {"upload": {"href": f"{self.hub.url}/upload/{asked['oid']}"}},
                }
                for asked in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._commit(found[1], body)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/paths-info/([^/]+)", path):
            wanted = parse_qs(body.decode()).get("paths", [])
            files_of = self.hub.repos[found[1]]
            self._json([_described(name, files_of[name]) for name in wanted if name in files_of])
        else:
            self._json({"error": f"no such address: {path}"}, 404)

    def do_PUT(self) -> None:
        path, body = self._begin()
        self.hub.large[path.rpartition("/")[2]] = body
        self._send(b"", 200)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _ = self._begin()
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/[^/]+)?", path):
            files = self.hub.repos.get(found[1])
            if files is None:
                self._missing("RepoNotFound", "Repository not found")
                return
            siblings = [{"rfilename": name} for name in sorted(files)]
            sha = self.hub.commits[found[1]][-1]
            self._json({"id": found[1], "sha": sha, "siblings": siblings})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self.hub.repos[found[1]]
            self._json([_described(name, content) for name, content in sorted(files.items())])
        else:
            self._json({"error": f"no such address: {path}"}, 404)

    def _begin(self) -> tuple[str, bytes]:
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return unquote(urlsplit(self.path).path), body

    def _commit(self, repo: str, body: bytes) -> None:
        with self.hub.commit:
            self._committed(repo, body)

    def _committed(self, repo: str, body: bytes) -> None:
        if self.hub.meanwhile:
            self.hub.repos[repo].update(self.hub.meanwhile)
            self.hub.meanwhile = {}
            self.hub.commits[repo].append("3" * 40)
        parent = json.loads(body.splitlines()[0])["value"].get("parentCommit")
        if parent not in (None, self.hub.commits[repo][-1]):
            self._json({"error": "A commit has happened since."}, 412)
            return
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.hub.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.hub.repos[repo][value["path"]] = content
        commit = hashlib.sha1(body, usedforsecurity=False).hexdigest()
        self.hub.commits[repo].append(commit)
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _file(self, repo: str, _revision: str, name: str) -> None:
        files = self.hub.repos.get(repo)
        if files is None:
            self._missing("RepoNotFound", "Repository not found")
        elif name not in files:
            self._missing("EntryNotFound", "Entry not found")
        else:
            content = files[name]
            self._send(
                content,
                200,
                {
                    "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                    "X-Repo-Commit": self.hub.commits[repo][-1],
                },
            )

    def _missing(self, code: str, message: str) -> None:
        self._send(b"", 404, {"X-Error-Code": code, "X-Error-Message": message})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _described(name: str, content: bytes) -> dict[str, Any]:
    return {
        "type": "file",
        "path": name,
        "size": len(content),
        "oid": hashlib.sha1(content, usedforsecurity=False).hexdigest(),
    }
