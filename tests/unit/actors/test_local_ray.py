"""A Ray of one command: whose environment it gets, who may enter its folder, and what is said if it does not start."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from actors.local_ray import head_environment, kill_session, local_ray
from curriculum.errors import RunFailed, UserError


def test_every_actor_inherits_the_token_and_the_loopback_address():
    environment = head_environment({"PATH": "/bin"}, Path("/t/ray-1"), Path("/t/ray-1/token"))
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/t/ray-1/token"
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["PATH"] == "/bin"


def test_what_a_person_has_set_for_another_ray_does_not_count():
    mine = {"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": "old", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": "/tmp"}
    environment = head_environment(mine, Path("/t/ray-1"), Path("/t/ray-1/token"))
    assert "RAY_ADDRESS" not in environment
    assert "RAY_AUTH_TOKEN" not in environment
    assert (environment["RAY_AUTH_MODE"], environment["RAY_TMPDIR"]) == ("token", "/t/ray-1")


def test_a_start_that_fails_is_one_line_and_leaves_no_token(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    environment = dict(os.environ)
    with (
        pytest.raises(RunFailed, match=r"Ray did not start: .*no_such_argument.*head.log"),
        local_ray(print, no_such_argument=1),
    ):
        pytest.fail("it started")
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    assert not (folder / "token").exists()
    assert dict(os.environ) == environment


def test_a_folder_for_sockets_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="file: cannot be written"), local_ray(print):
        pytest.fail("it started")


def test_a_session_ends_with_all_its_process_groups():
    shell = "set -m; sleep 1000 & echo $!; wait"
    leader = subprocess.Popen(["bash", "-c", shell], stdout=subprocess.PIPE, text=True, start_new_session=True)
    child = int(leader.stdout.readline())
    assert os.getpgid(child) != leader.pid, "a group of its own"
    kill_session(leader.pid)
    assert leader.wait(5) == -signal.SIGKILL
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
