"""Which Ray a run joins, and what is said about who can reach it."""

import os
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from cluster.processes import exposure, ray_session
from cluster.processes.ray_session import unused_keys
from cluster.recipe.config import ClusterConfig


@pytest.fixture
def note(tmp_path, monkeypatch):
    """Writes down the address of a Ray, as `ray start --head` does, and listens there."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = tmp_path / "ray" / "ray_current_cluster"
        path.parent.mkdir()
        path.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        yield path


def test_a_running_ray_of_this_user_is_found(note):
    assert ray_session._running_address() == note.read_text()


def test_a_ray_whose_address_another_user_wrote_down_is_not(note, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: note.stat().st_uid + 1)
    assert ray_session._running_address() is None


def test_a_ray_in_which_another_user_listens_is_not(note, monkeypatch):
    port = int(note.read_text().rpartition(":")[2])
    table = note.parent / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        f"   0: 0100007F:{port:04X} 00000000:0000 0A 00000000:00000000 00:00000000 00000000  {os.getuid() + 1}  0 1\n"
    )
    monkeypatch.setattr(ray_session, "SOCKET_TABLES", (table,))
    assert ray_session._running_address() is None


@pytest.fixture
def dashboard():
    """Serves every request with a status; returns its address."""
    servers = []

    def serve(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def nodes(monkeypatch):
    """Lets Ray have nodes at these addresses."""

    def _nodes(*hosts):
        node = {"Alive": True, "NodeManagerPort": 4000, "ObjectManagerPort": 4001, "MetricsExportPort": 4002}
        found = [{**node, "NodeManagerAddress": host} for host in hosts]
        monkeypatch.setattr(exposure.ray, "nodes", lambda: found)

    return _nodes


def test_an_open_cluster_without_authentication_is_called_so(nodes, dashboard):
    nodes("10.0.0.1", "10.0.0.2")
    line = exposure.exposure("10.0.0.1:6379", dashboard(200))
    assert "open to the network of 10.0.0.1, 10.0.0.2: ports 4000, 4001, 4002, 6379" in line
    assert "authentication: disabled: whoever reaches these ports can run code as this user" in line


def test_an_open_cluster_that_asks_for_a_token(nodes, dashboard):
    nodes("10.0.0.1")
    assert exposure.exposure("10.0.0.1:6379", dashboard(401)).endswith("authentication: token")


def test_a_cluster_on_loopback(nodes, dashboard):
    nodes("127.0.0.1")
    line = exposure.exposure("127.0.0.1:6379", dashboard(401))
    assert line == "Ray at 127.0.0.1:6379 listens on loopback only; authentication: token"


def test_what_is_for_a_ray_of_the_run_itself_is_told_where_it_joins_another():
    assert unused_keys(ClusterConfig()) == []
    assert unused_keys(ClusterConfig(object_store_bytes=10**9)) == [
        "cluster.object_store_bytes=1000000000: not used, since it is for a Ray that this command starts"
    ]
