"""Data sets of the hub with configurations, from a small server of our own behind HF_ENDPOINT."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from curriculum.errors import MAX_LINE_CHARS

NAME = "owner/documents"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def jsonl(*ids):
    return "".join(json.dumps({"id": name, "context": f"text of {name}"}) + "\n" for name in ids).encode()


MORE = [f"configuration_number_{index:03}" for index in range(100)]
CARD = """---
configs:
- config_name: short
  data_files:
  - {split: train, path: short/train.jsonl}
  - {split: test, path: short/test.jsonl}
- config_name: long
  data_files:
  - {split: train, path: long/train.jsonl}
"""
CARD += "".join(f"- {{config_name: {name}, data_files: long/train.jsonl}}\n" for name in MORE) + "---\n"
FILES = {
    "README.md": CARD.encode(),
    "short/train.jsonl": jsonl("s1", "s2"),
    "short/test.jsonl": jsonl("s3"),
    "long/train.jsonl": jsonl("l1"),
}


class Hub(BaseHTTPRequestHandler):
    """Answers what the library asks about one data set; everything else is not there."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api, files = f"/api/datasets/{NAME}", f"/datasets/{NAME}/resolve/"
        if path == api or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send({"id": NAME, "sha": COMMIT, "siblings": siblings, "private": False, "disabled": False})
        elif path.startswith(f"{api}/tree/"):
            folder = "/".join(path.removeprefix(f"{api}/tree/").split("/")[1:])
            self._send([entry(name) for name in FILES if name.startswith(folder)])
        elif path.startswith(files) and (name := path.removeprefix(files).partition("/")[2]) in FILES:
            self._send(FILES[name], {"ETag": f'"{hash_of(name)}"', "X-Repo-Commit": COMMIT})
        else:
            self._send({"error": "not there"}, {"X-Error-Code": "EntryNotFound"}, status=404)

    do_HEAD = do_GET

    def _send(self, content: object, headers: dict[str, str] | None = None, *, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def hash_of(name):
    return f"{list(FILES).index(name):040x}"


def entry(name):
    return {"type": "file", "path": name, "size": len(FILES[name]), "oid": hash_of(name)}


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


READ = """
import json, sys
from curriculum.errors import UserError
from curriculum.sources import open_table
for source in sys.argv[1:]:
    try:
        print(json.dumps([row.values["id"] for row in open_table(source, key="data.train").rows]))
    except UserError as error:
        print(json.dumps(error.lines))
"""


def test_configurations_of_a_hub_set_are_read_and_all_of_them_named(hub: str, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"}
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    places = ["short:", "short:train", "short:test", "long:train", "short:train[:1]"]
    wrong = ["train", "shrt:train", "long", "long:test"]
    done = subprocess.run(
        [sys.executable, "-c", READ, *(f"{NAME}:{place}" for place in [*places, *wrong])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert found[:5] == [["s1", "s2"], ["s1", "s2"], ["s3"], ["l1"], ["s1"]], done.stderr
    missing, unknown, meant, no_split = found[5:]
    for lines in (missing, unknown, meant):
        assert ", ".join(line.strip() for line in lines[1:]).split(", ") == ["short", "long", *MORE]
        assert all(len(line) <= MAX_LINE_CHARS for line in lines)
    assert "owner/documents has several configurations; name one of the 102 below, such as" in missing[0]
    assert missing[0].endswith("owner/documents:short:train")
    assert "has no configuration 'shrt'" in unknown[0]
    assert meant[0].endswith("such as owner/documents:long:train")
    assert len(no_split) == 1
    assert "Unknown split" in no_split[0]
