"""Nobody else can use the Ray of a run: it listens on loopback only and asks for a token that nobody else can read."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.integration

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
PARTS = (
    "gcs_server",
    "raylet",
    "dashboard",
    "ray::RolloutActor",
    "VLLM::EngineCore",
    "ray::LearnerActor",
    "cluster.cli",
)


def test_every_socket_of_a_run_is_on_loopback(reference):
    listening = {part for part in PARTS for _, _, command in reference.listeners if part in command}
    assert listening == set(PARTS), "the parts of a run that are known to listen were found"
    assert [found for found in reference.listeners if found[0] not in LOOPBACK] == []


def test_a_process_without_the_token_cannot_join(reference):
    assert "InvalidAuthToken" in reference.stranger
    assert "joined" not in reference.stranger


def test_the_token_is_gone_with_the_run(workshop, reference):
    session = next((reference.folder / "logs").iterdir()).resolve()
    folder = next(parent for parent in session.parents if parent.name.startswith("ray-"))
    assert folder.stat().st_mode & 0o077 == 0
    assert not (folder / "token").exists()
