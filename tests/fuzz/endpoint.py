"""A server that speaks the OpenAI protocol badly: wrong shapes, wrong numbers, wrong bytes, wrong statuses, silence."""

from __future__ import annotations

import contextlib
import http.server
import json
import random
import threading
from typing import Any, ClassVar

MODEL = "m"


class LyingEndpoint:
    """One server for each process; every trial begins with other lies."""

    _mine: ClassVar[LyingEndpoint | None] = None

    def __init__(self) -> None:
        self.rng = random.Random(0)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._lies: tuple[Any, ...] = ()

    @classmethod
    def of_this_process(cls) -> LyingEndpoint:
        """Return the server, started where there is none yet."""
        if cls._mine is None:
            cls._mine = cls()
        return cls._mine

    def begin(self, rng: random.Random) -> None:
        """Choose the lies of a trial, always the same ones for a state of `rng`."""
        self.rng = random.Random(rng.random())
        number = self.rng.choice((0, 1, 1, 2, 5))
        self._lies = tuple(self.rng.choice(LIES) for _ in range(number))

    def reply(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request."""
        if self._lies and self.rng.random() < 0.8:
            lie = self.rng.choice(self._lies)
            return lie(self.rng, path) if callable(lie) else lie
        return 200, {}, json.dumps(_models() if path.endswith("/models") else _completion()).encode()


def _completion(**changes: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "the answer is 7 [[YES]]"},
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage, **changes}


def _models() -> dict[str, Any]:
    return {"object": "list", "data": [{"id": MODEL, "object": "model"}]}


def _changed(rng: random.Random, path: str) -> tuple[int, dict[str, str], bytes]:
    """Return a reply with one value replaced by a value of another kind."""
    reply: Any = _models() if path.endswith("/models") else _completion()
    node, parent, key = reply, None, None
    while isinstance(node, dict | list) and node and rng.random() < 0.85:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node, parent = node[key], node
    value = rng.choice((None, 0, -1, 1.5, 10**400, float("nan"), float("inf"), float("-inf"), "",
    "x" * 100_000, "\ud800",
                        "a\x00b", "\x1b[2J", [], {}, [None], [[]], {"a": 1}, True, "Infinity", "1e999"))  # fmt: skip
    if parent is None:
        reply = value
    else:
        parent[key] = value
    return 200, {}, json.dumps(reply).encode()


LIES: tuple[Any, ...] = (
    *(_changed,) * 12,
    *(
        (status, {}, b'{"error": {"message": "no"}}')
        for status in (301, 400, 401, 403, 404, 413, 422, 429, 500, 503, 599)
    ),
    (429, {"retry-after": "0"}, b""),
    (503, {"retry-after": "-5"}, b""),
    (503, {"retry-after": "nan"}, b""),
    (204, {}, b""),
    (200, {}, b""),
    (200, {"content-type": "text/html"}, b"<html>login</html>"),
    (200, {}, b"\xff\xfe\x00"),
    (200, {}, b'{"choices": [' + b"[" * 5000),
    (200, {"content-encoding": "gzip"}, b"not gzip"),
    (200, {"content-type": "application/json; charset=nope"}, b'{"choices": []}'),
    (200, {}, b"null"),
    (200, {}, b'{"choices": [], "usage": ' + b"9" * 5000 + b"}"),
    (302, {"location": "/v1/loop"}, b""),
    (302, {"location": "http://[::1"}, b""),
    (200, {"content-length": "99999"}, b"{"),
    (200, {"close": "now"}, b""),
)
"""Replies (status, headers, body), or functions that make one."""


def _handler(endpoint: LyingEndpoint) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self._answer()

        def _answer(self) -> None:
            status, headers, body = endpoint.reply(self.path)
            if "close" in headers:
                self.connection.close()
                return
            self.send_response(status)
            for name, value in ({"content-length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client has heard enough
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
