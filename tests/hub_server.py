"""A hub on this machine: as much of its API as a download or an upload asks for, with its ways of refusing.

    with HubServer() as hub:
        hub.add("someone/model", folder)
        hub.connect(monkeypatch, cache)  # this process asks it, through the real huggingface_hub

Which answers the hub gives: https://huggingface.co/docs/huggingface_hub, and `hf_raise_for_status` of that package.
"""

import hashlib
import json
import threading
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from tests.local_server import LocalServer

COMMIT = "c" * 40
Access = Literal["public", "private", "gated", "disabled"]


class Answer(NamedTuple):
    """What the server sends."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


@dataclass(frozen=True)
class Repository:
    """What is served under one id."""

    folder: Path
    access: Access = "public"
    revisions: tuple[str, ...] = ("main",)

    def files(self) -> dict[str, Path]:
        """By name within the repository."""
        return {str(path.relative_to(self.folder)): path for path in sorted(self.folder.rglob("*")) if path.is_file()}


def refuse(status: int, message: str, code: str = "", **headers: str) -> Answer:
    """A refusal as the hub words it."""
    said = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}
    return Answer(status, json.dumps({"error": message}).encode(), said)


class HubServer(LocalServer):
    """Repositories by kind and id; `tokens` maps each valid token to the ids that it may read beside the public ones.

    What is uploaded is in `created` (whether a repository is private) and `pushed` (its files); `broken` has what is
    done instead at addresses with a text in them: an answer, or to close the connection, after so many seconds.
    `script` sees the method and path of each request first: what it returns is sent in place of the hub's answer.
    Files of `large` bytes or more lie on another address, to which the hub redirects, as it does to its CDN; `cuts` has
    the bytes of each coming answer from there after which the connection breaks, and `sent` the bytes that were sent.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.tokens: dict[str, set[str]] = {}
        self.script: Callable[[str, str], Answer | None] = lambda method, path: None
        self.requests: list[str] = []
        self.created: dict[str, str] = {}
        self.pushed: dict[str, dict[str, bytes]] = {}
        self.broken: dict[str, Answer | float | None] = {}
        self.large = 1 << 60
        self.cuts: list[int] = []
        self.sent: list[int] = []
        super().__init__(self._handler())

    def add(
        self,
        hub_id: str,
        folder: Path,
        access: Access = "public",
        kind: str = "model",
        revisions: tuple[str, ...] = ("main",),
    ) -> None:
        """Serve a folder under an id."""
        self.repositories[kind, hub_id] = Repository(folder, access, revisions)

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables with which a process of its own asks this hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}

    def connect(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Make this process, which has read its variables already, ask this hub."""
        import huggingface_hub.constants as constants

        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in self.environment(cache).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))

    def answer(self, method: str, path: str, token: str | None) -> Answer:
        """What the hub says to a request."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        asks_api = parts[0] == "api"
        parts = parts[asks_api:]
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[parts[0] in ("datasets", "models") :]
        hub_id, rest = "/".join(parts[:2]), parts[2:]
        if token is not None and token not in self.tokens:
            return refuse(401, "Invalid credentials in Authorization header")
        repository = self.repositories.get((kind, hub_id))
        allowed = token is not None and hub_id in self.tokens[token]
        if repository is None or (repository.access == "private" and not allowed):
            if token is None:  # the hub does not say which of the two it is
                return refuse(401, "Invalid username or password.")
            return refuse(404, "Repository not found", "RepoNotFound")
        if repository.access == "disabled":
            return refuse(403, "Access to this resource is disabled.")
        if len(rest) > 1 and rest[1] not in (*repository.revisions, COMMIT):
            return refuse(404, f"Invalid rev id: {rest[1]}", "RevisionNotFound")
        if not asks_api and repository.access == "gated" and not allowed:  # what is in it may be listed
            return refuse(403 if token else 401, f"Access to {kind} {hub_id} is restricted.", "GatedRepo")
        files = repository.files()
        if not asks_api:
            path_inside = files.get("/".join(rest[2:]))
            if path_inside is None:
                return refuse(404, "Entry not found", "EntryNotFound")
            if path_inside.stat().st_size >= self.large:
                digest = hashlib.sha256(path_inside.read_bytes()).hexdigest()
                linked = {"X-Linked-Size": str(path_inside.stat().st_size), "X-Linked-ETag": f'"{digest}"'}
                return Answer(302, b"", {**linked, "Location": f"{self.url}/cdn/{kind}/{hub_id}/{'/'.join(rest[2:])}"})
            return Answer(200, path_inside.read_bytes(), {"Content-Type": "application/octet-stream"})
        content: Any
        if rest[:1] == ["tree"]:
            content = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": n} for n, f in files.items()]
        else:
            siblings = [{"rfilename": name, "size": file.stat().st_size} for name, file in files.items()]
            content = {"id": hub_id, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def stored(self, path: str, asked: str | None) -> Answer:
        """What the CDN sends of a file, from the byte on that is asked for (`bytes=N-`)."""
        kind, owner, name, *inside = unquote(path).strip("/").split("/")[1:]
        content = self.repositories[kind, f"{owner}/{name}"].files()["/".join(inside)].read_bytes()
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        return Answer(206 if asked else 200, content[start:], span)

    def receive(self, path: str, body: bytes) -> Answer:
        """What the hub does with an upload: https://huggingface.co/docs/hub/api, and `_commit_api` of huggingface_hub,
        which sends small files in lines of JSON."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        content: Any = {"errors": [], "warnings": []}
        if parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            hub_id = f"{asked['organization']}/{asked['name']}"
            self.created[hub_id] = asked.get("visibility") or ("private" if asked.get("private") else "public")
            content = {"url": f"{self.url}/{hub_id}", "id": hub_id}
        elif "preupload" in parts:
            names = [file["path"] for file in json.loads(body)["files"]]
            content = {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        elif "commit" in parts:
            rows = [json.loads(line) for line in body.splitlines()]
            files = [row["value"] for row in rows if row["key"] == "file"]
            hub_id = "/".join(parts[2:4])
            self.pushed[hub_id] = {file["path"]: b64decode(file["content"]) for file in files}
            content = {"commitUrl": f"{self.url}/{hub_id}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
        return Answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.reply()

            def do_GET(self) -> None:
                self.reply()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                for part, instead in hub.broken.items():
                    if part in self.path:
                        if isinstance(instead, Answer):
                            return self.send(instead)
                        threading.Event().wait(instead or 0.0)
                        self.close_connection = True
                        return None
                return self.send(hub.receive(self.path, body))

            def reply(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                if self.path.startswith("/cdn/"):
                    return self.send(hub.stored(self.path, self.headers.get("range")), *hub.cuts[:1])
                token = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
                return self.send(hub.script(self.command, self.path) or hub.answer(self.command, self.path, token))

            def send(self, answer: Answer, most: int | None = None) -> None:
                self.send_response(answer.status)
                found = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(answer.body).hexdigest()}"'}
                for name, value in {**found, **answer.headers, "Content-Length": str(len(answer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body[:most])
                if self.path.startswith("/cdn/"):
                    hub.sent.append(len(answer.body[:most]))
                    self.close_connection = bool(hub.cuts)
                    del hub.cuts[:1]

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler
