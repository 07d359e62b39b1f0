"""A W&B server on this machine: as much of its API as an upload, a saved view and a report ask for.

    with WandbServer() as server:
        server.connect(monkeypatch)  # this process asks it, through the real wandb

It keeps what it is sent: `views` by name, `runs` with config, summary and history, `artifacts` with their files.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

import pytest

from tests.local_server import LocalServer

KEY = "0123456789abcdef0123456789abcdef01234567"
# By GraphQL operation and variables: a status and a body in place of the server's own answer.
Script = Callable[[str, dict[str, Any]], tuple[int, str] | None]


class WandbServer(LocalServer):
    """`script` sees each request first."""

    def __init__(self) -> None:
        self.script: Script = lambda operation, variables: None
        self.asked: list[str] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.charts: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.used: list[str] = []
        self.files: dict[str, bytes] = {}
        super().__init__(self._handler())

    def variables(self) -> dict[str, str]:
        """Of the environment of a process that asks this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make this process ask this server."""
        import wandb

        wandb.teardown()
        for name, value in self.variables().items():
            monkeypatch.setenv(name, value)

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """What W&B says to a GraphQL request."""
        entity, project = "team", variables.get("projectName") or variables.get("project") or "tests"
        of = {"id": "p", "internalId": "p", "name": project, "entityName": entity, "entity": {"name": entity}}
        viewer = {
            "id": "u",
            "entity": entity,
            "username": entity,
            "flags": "{}",
            "teams": {"edges": []},
            "admin": False,
        }
        if operation == "UpsertBucket":
            found = self.runs.setdefault(variables["name"], {"fresh": True})
            found.update({key: value for key, value in variables.items() if value is not None})
            bucket = {"id": "b", "name": variables["name"], "displayName": found.get("displayName"), "config": "{}"}
            bucket |= {"sweepName": None, "project": of, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if operation == "CreateArtifact":
            asked = variables["input"]
            self.artifacts[asked["artifactCollectionName"]] = asked
            sequence = {"id": "s", "name": asked["artifactCollectionName"], "latestArtifact": None}
            made = {"id": asked["artifactCollectionName"], "state": "PENDING", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": made}}
        if operation == "CreateArtifactFiles":
            edges = [
                {
                    "node": {
                        "id": file["name"],
                        "name": file["name"],
                        "displayName": file["name"],
                        "storagePath": None,
                        "uploadUrl": f"{self.url}/put/{file['artifactID']}/{file['name']}",
                        "uploadHeaders": [],
                        "uploadMultipartUrls": None,
                        "artifact": {"id": file["artifactID"]},
                    }
                }
                for file in variables["input"]["artifactFiles"]
            ]
            return {"createArtifactFiles": {"files": {"edges": edges}}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            url = f"{self.url}/put/manifest"
            file = {"id": "m", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []}
            name = operation[0].lower() + operation[1:]
            return {name: {"artifactManifest": {"id": "m", "file": file}}}
        if operation == "ClientIDMapping":
            return {"clientIDMapping": {"serverID": "QXJ0aWZhY3Q6MQ=="}}
        if operation == "CommitArtifact":
            return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
        if operation == "UseArtifact":
            self.used.append(variables["input"]["artifactID"])
            return {"useArtifact": {"artifact": {"id": self.used[-1], "digest": "", "description": ""}}}
        if operation == "CreateRunFiles":
            found = [{"name": name, "uploadUrl": f"{self.url}/put/run/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": found}}
        if operation in ("UpsertView2", "upsertView"):
            view = {**variables, "id": f"v{len(self.views)}", "project": of, "updatedAt": "2026-01-01T00:00:00Z"}
            view["createdAt"] = view["updatedAt"]
            self.views[f"{variables['type']} {variables['displayName']}"] = view
            return {"upsertView": {"view": view, "inserted": True}}
        if operation == "CreateCustomChart":
            self.charts[variables["chartName"]] = variables
            return {"createCustomChart": {"chart": {"id": f"{entity}/{variables['chartName']}"}}}
        if operation == "Runs":
            asked = json.loads(variables.get("filters") or "{}").get("group")
            runs = [(name, run) for name, run in self.runs.items() if asked in (None, run.get("groupName"))]
            edges = [{"cursor": "c", "node": self._node(name, run)} for name, run in runs]
            page = {"endCursor": "c", "hasNextPage": False}
            found = {"internalId": "p", "runCount": len(edges), "readOnly": False}
            return {"project": {**found, "runs": {"edges": edges, "pageInfo": page}}}
        if operation == "ProjectInternalId":
            return {"project": of}
        if operation in ("GetProjects", "Projects"):
            node = {**of, "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            page = {"endCursor": "c", "hasNextPage": False}
            return {"models": {"edges": [{"cursor": "c", "node": node}], "pageInfo": page}}
        return {"viewer": viewer, "serverInfo": None, "project": None, "model": None}

    @staticmethod
    def _node(name: str, run: dict[str, Any]) -> dict[str, Any]:
        texts = {
            key: json.dumps(run.get(of) or {})
            for key, of in (("summaryMetrics", "summary"), ("systemMetrics", "system"))
        }
        plain = {"state": "finished", "config": "{}", "tags": [], "createdAt": "2026-01-01T00:00:00Z"}
        return {"id": name, "name": name, "displayName": name, "group": run.get("groupName"), **plain, **texts}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["content-length"]))
                if not self.path.endswith("/graphql"):
                    self.stream(sent)
                    return
                body = json.loads(sent)
                query, variables = body["query"], body.get("variables") or {}
                operation = body.get("operationName") or (re.findall(r"(?:query|mutation)\s+(\w+)", query) or [""])[0]
                server.asked.append(operation)
                scripted = server.script(operation, variables)
                if scripted is not None:
                    self.reply(*scripted)
                    return
                try:
                    answer = server.answer(operation, variables)
                except Exception as error:  # noqa: BLE001 - not retried, and seen by the test
                    server.asked.append(f"{type(error).__name__} {error} {list(variables)} {variables}")
                    self.reply(400, "{}")
                    return
                self.reply(200, json.dumps({"data": answer}))

            def stream(self, sent: bytes) -> None:
                found = self.path.split("/")[-2]
                streamed = json.loads(sent).get("files") if self.path.endswith("/file_stream") else {}
                for name, part in (streamed or {}).items():
                    rows = [json.loads(line) for line in part["content"] if "jsonl" in name or "summary" in name]
                    if name == "wandb-history.jsonl":
                        server.history[found] += rows
                    elif name == "wandb-summary.json":
                        server.runs[found]["summary"] = rows[-1]
                self.reply(200, "{}")

            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                server.files[unquote(self.path).removeprefix("/put/")] = content
                self.reply(200, "")

            def do_GET(self) -> None:
                self.reply(200, "{}")

            def reply(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: Any) -> None:
                return

        return Handler
