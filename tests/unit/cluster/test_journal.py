"""The journal: every place gets every step, and nothing undefined is written."""

from __future__ import annotations

import asyncio
import json
import math

import pytest

from cluster.recipe.config import CheckpointConfig, KeepConfig
from cluster.roles import SyncReport
from cluster.run.console import Console
from cluster.run.folder import RunFolder
from cluster.run.journal import Journal
from cluster.run.patience import Patience
from cluster.run.progress import Progress, StageProgress
from cluster.run.recovery import LearnerLost
from curriculum.files import DiskError, DiskFull
from curriculum.seal import check_seal


class WritingTracker:
    def __init__(self):
        self.logged = []

    def log(self, step, metrics):
        self.logged.append((step, metrics))


class SavingLearner:
    async def save(self, place):
        return {"weights": place.write("weights", [b"weights"])}

    async def discard(self, place):
        place.remove("weights")


@pytest.fixture
def tracker():
    return WritingTracker()


class LearnerOnAFullDisk(SavingLearner):
    """Finds no room for the first saves."""

    def __init__(self, num_refusals):
        self.num_refusals = num_refusals

    async def save(self, place):
        if self.num_refusals:
            self.num_refusals -= 1
            (place.path.parent / "half").touch()
            raise DiskFull(f"{place}: cannot be written (No space left on device); free some space")
        return await super().save(place)


class LearnerWhosePartIsAltered(SavingLearner):
    def __init__(self):
        self.discarded = []

    async def save(self, place):
        written = await super().save(place)
        place.write("weights", [b"weightz"])
        return written

    async def discard(self, place):
        self.discarded.append(place.path.name)


class LearnerThatDies(SavingLearner):
    async def save(self, place):
        raise LearnerLost("learner-1 died in save")


@pytest.fixture
def journal(tmp_path, tracker):
    return Journal(
        patience=Patience(lambda text: None, asyncio.Event(), limit_s=0.05, pauses_s=(0.001,)),
        folder=RunFolder.create(tmp_path / "run"),
        console=Console(quiet=True),
        trackers=[tracker],
        checkpoint=CheckpointConfig(every_steps=1, keep=KeepConfig(last=1)),
        fetch=list,
        decode=str,
    )


def lines(tmp_path, name):
    return [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]


def test_a_step_reaches_the_folder_and_every_tracker(journal, tracker, tmp_path):
    stage = StageProgress(name="short", kind="rl")
    journal.step(Progress(step=4), stage, {"reward/mean": 0.5}, total_steps=None)
    assert lines(tmp_path, "metrics.jsonl") == [{"step": 4, "stage": "short", "reward/mean": 0.5}]
    assert tracker.logged == [(4, {"reward/mean": 0.5})]


def test_an_infinite_number_is_not_written(journal, tracker, tmp_path):
    stage = StageProgress(name="short", kind="rl")
    journal.step(Progress(step=4), stage, {"reward/mean": 0.5, "learner/loss": math.inf}, total_steps=None)
    assert lines(tmp_path, "metrics.jsonl") == [{"step": 4, "stage": "short", "reward/mean": 0.5}]


def test_a_metric_without_definition_is_refused_before_it_is_written(journal, tracker, tmp_path):
    with pytest.raises(KeyError, match="reward/luck"):
        journal.step(Progress(), StageProgress(name="s", kind="rl"), {"reward/luck": 1.0}, total_steps=1)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert tracker.logged == []


def test_events_carry_their_fields(journal, tmp_path):
    journal.stage_opened(StageProgress(name="short", kind="rl"))
    journal.sync(
        SyncReport(
            version=2,
            num_tensors=3,
            num_bytes=40,
            num_engines=1,
            seconds=0.5,
            gather_s=0.2,
            deliver_s=0.3,
            pause_s=0.1,
            probe_gap_max=None,
            num_travelling_bytes=0,
        )
    )
    events = [{k: v for k, v in event.items() if k != "time"} for event in lines(tmp_path, "events.jsonl")]
    assert events == [
        {"event": "stage_opened", "stage": "short", "kind": "rl"},
        {
            "event": "sync",
            "version": 2,
            "num_tensors": 3,
            "num_bytes": 40,
            "num_engines": 1,
            "seconds": 0.5,
            "gather_s": 0.2,
            "deliver_s": 0.3,
            "pause_s": 0.1,
            "probe_gap_max": None,
            "num_travelling_bytes": 0,
        },
    ]


def test_before_the_first_step_there_is_nothing_to_save(journal, tmp_path):
    asyncio.run(journal.checkpoint(Progress(), None, SavingLearner()))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_holds_learner_progress_and_curriculum(journal, tmp_path):
    asyncio.run(journal.checkpoint(Progress(step=3, policy_version=2), {"phase": 1}, SavingLearner()))
    folder = tmp_path / "run" / "checkpoints" / "step-000003"
    state = json.loads((folder / "state.json").read_text())
    assert Progress.from_state_dict(state["progress"]) == Progress(step=3, policy_version=2)
    assert state["curriculum"] == {"phase": 1}
    assert (folder / "learner" / "weights").is_file()
    assert [event["path"] for event in lines(tmp_path, "events.jsonl")] == ["checkpoints/step-000003"]


def test_a_checkpoint_that_finds_the_disk_full_is_written_when_there_is_room(journal, tmp_path):
    asyncio.run(journal.checkpoint(Progress(step=3), None, LearnerOnAFullDisk(3)))
    folder = tmp_path / "run" / "checkpoints" / "step-000003"
    check_seal(folder)
    assert not (folder / "half").exists()
    assert [event["event"] for event in lines(tmp_path, "events.jsonl")] == ["checkpoint"]


def test_a_part_that_is_altered_behind_its_rank_is_no_checkpoint_and_the_ranks_discard_theirs(journal, tmp_path):
    asyncio.run(journal.checkpoint(Progress(step=3), None, SavingLearner()))
    learner = LearnerWhosePartIsAltered()
    with pytest.raises(DiskError, match="step-000004: learner/weights: its content has changed"):
        asyncio.run(journal.checkpoint(Progress(step=4), None, learner))
    assert learner.discarded == ["learner"]
    check_seal(tmp_path / "run" / "checkpoints" / "step-000003")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]


def test_what_a_rank_that_died_was_writing_is_left_until_the_actors_are_gone(journal, tmp_path):
    """Another rank may still be writing there."""
    with pytest.raises(LearnerLost):
        asyncio.run(journal.checkpoint(Progress(step=3), None, LearnerThatDies()))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [".step-000003.partial"]


def test_a_disk_that_stays_full_ends_the_waiting_and_the_checkpoint_before_is_whole(journal, tmp_path):
    asyncio.run(journal.checkpoint(Progress(step=3), None, SavingLearner()))
    with pytest.raises(DiskFull, match="learner: cannot be written"):
        asyncio.run(journal.checkpoint(Progress(step=4), None, LearnerOnAFullDisk(10_000)))
    check_seal(tmp_path / "run" / "checkpoints" / "step-000003")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    assert [event["step"] for event in lines(tmp_path, "events.jsonl")] == [3]
