"""A judge on loopback, and what it does wrong."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

LONGEST_HANG_S = 60.0


class Endpoint:
    """An OpenAI-compatible judge on loopback that says yes to the answers in `yes` and no to others, or misbehaves.

    `faults` holds what happens to the next requests: (status, headers, body), "hang", "hang up", or None for a good
    reply; `fault` is what happens to all the others.
    """

    def __init__(self):
        self.yes = set()
        self.faults = []
        self.fault = None
        self.delay_s = 0.0
        self.requests = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self.num_waited_out = 0
        """Hangs that ended before whoever asked gave up."""
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.answer(self, body)

            def do_GET(self):
                models = {"object": "list", "data": [{"id": name, "object": "model"} for name in endpoint.models]}
                send(self, 200, {}, json.dumps(models))

            def log_message(self, *_):
                pass

        self.models = ["the-judge"]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, handler, body):
        with self._lock:
            self.requests.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self.faults.pop(0) if self.faults else self.fault
        try:
            time.sleep(self.delay_s)
            self._act(handler, body, fault)
        finally:
            with self._lock:
                self._at_once -= 1

    def _act(self, handler, body, fault):
        if fault == "hang":
            self.num_waited_out += not self.closing.wait(LONGEST_HANG_S)
        if fault in ("hang", "hang up"):
            handler.close_connection = True
        elif fault is not None:
            send(handler, *fault)
        else:
            lines = body["messages"][1]["content"].split("\n")
            prediction = lines[1].removeprefix("Answer 1: ")
            send(handler, 200, {}, completion("[[YES]]" if prediction in self.yes else "They differ. [[NO]]"))

    def close(self):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def completion(content):
    message = {"role": "assistant", "content": content}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})


def send(handler, status, headers, body):
    body = body if isinstance(body, bytes) else body.encode()
    try:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
    except (BrokenPipeError, ConnectionResetError):
        handler.close_connection = True  # the client has stopped waiting


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.fixture
def dead_url():
    """The address of an endpoint that has gone."""
    endpoint = Endpoint()
    endpoint.close()
    return endpoint.url
