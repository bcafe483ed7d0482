"""A hub on loopback that takes uploads, as much of it as the library asks: repositories, LFS objects, commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_owner"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class UploadHub:
    """Repositories by name, each with its files; only who shows `TOKEN` may write, and only below `owner/`."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[str] = []
        self.broken: str | None = None
        """Part of the path of requests that the hub fails at."""
        self._objects: dict[str, bytes] = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._handle("GET")

            def do_POST(self) -> None:
                self._handle("POST")

            def do_PUT(self) -> None:
                self._handle("PUT")

            def _handle(self, method: str) -> None:
                body = self._body()
                path = unquote(urlsplit(self.path).path)
                hub.requests.append(f"{method} {path}")
                allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" or method == "PUT"
                status, content = hub.answer(method, path, body) if allowed else (401, {"error": "no such user"})
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if self.broken is not None and self.broken in path:
            return 400, {"error": "the hub is broken here"}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/objects/"):
            self._objects[path.rpartition("/")[2]] = body
            return 200, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._lfs(wanted) for wanted in json.loads(body)["objects"]]}
        return self._of_repository(path, body)

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted["organization"] != "owner":
            return 403, {"error": "you have no rights to create a model there"}
        if name in self.repositories:
            return 409, {"error": "you already created this model repo", "url": f"{self.url}/{name}"}
        self.repositories[name] = {}
        self.private[name] = wanted.get("visibility") == "private"
        return 200, {"url": f"{self.url}/{name}"}

    def _lfs(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {**wanted, "actions": {"upload": {"href": f"{self.url}/objects/{wanted['oid']}"}}}

    def _of_repository(self, path: str, body: bytes) -> tuple[int, Any]:
        _, _, _, owner, name, *rest = path.split("/")
        repository = f"{owner}/{name}"
        files = self.repositories.get(repository)
        if files is None or not path.startswith("/api/models/"):
            return 404, {"error": "not there"}
        match rest[0] if rest else "":
            case "":
                return 200, {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            case "tree":
                return 200, [{"type": "file", "path": file, "size": len(files[file]), "oid": COMMIT} for file in files]
            case "preupload":
                return 200, {"files": [self._mode(file["path"]) for file in json.loads(body)["files"]]}
            case "commit":
                for line in body.splitlines():
                    self._commit(files, json.loads(line))
                return 200, {"commitUrl": f"{self.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT}
        return 404, {"error": "not there"}

    def _mode(self, path: str) -> dict[str, Any]:
        return {
            "path": path,
            "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
            "shouldIgnore": False,
        }

    def _commit(self, files: dict[str, bytes], line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = self._objects[value["oid"]]
            assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
        elif line["key"] == "deletedFile":
            del files[value["path"]]
