"""Every stage of a run leaves a model and its checkpoint; so does the best step. What is missing is made up."""

from __future__ import annotations

import asyncio
import errno
import json
import os

import pytest

from cluster.recipe.config import KeepConfig
from cluster.run.model_card import checkpoint_of
from cluster.run.models import kept_steps
from cluster.run.patience import Patience
from cluster.run.progress import Best, Progress, StageProgress
from cluster.run.stopping import Interrupted
from curriculum.files import DiskFull

EVERY_STEP = {"every_steps": 1, "keep": {"last": 1}}
BEST = {"every_steps": 100, "keep": {"last": 1, "stages": False, "best": "heldout/accuracy"}}


def always_mixed(lease):
    return [1.0, 0.0]


def models(b):
    return {path.name: (path / "weights").read_text() for path in sorted(b.folder.models.glob("*"))}


def checkpoints(b):
    return sorted(path.name for path in b.folder.checkpoints.path.iterdir())


def continued(bench, b, **arguments):
    """The same run folder in another process, from its newest checkpoint."""
    again = bench(accuracies=always_mixed, name="again", **arguments)
    again.folder = b.folder
    checkpoint = b.folder.checkpoints.choose(pytest.fail)
    again.progress = checkpoint.progress
    again.rollouts.policy_version = checkpoint.progress.policy_version
    again.coordinator.load_state_dict(checkpoint.curriculum)
    return again


def test_the_ends_of_warm_up_and_phases_keep_their_checkpoints_and_leave_their_models(bench):
    b = bench(accuracies=always_mixed, demonstrations=4, checkpoint=EVERY_STEP)
    b.run()
    assert checkpoints(b) == ["step-000002", "step-000004", "step-000006"]
    assert models(b) == {"sft": "step-000002", "short": "step-000004", "long": "step-000006"}


def test_without_stages_only_the_last_checkpoints_stay_and_no_model_is_made(bench):
    b = bench(accuracies=always_mixed, demonstrations=4, checkpoint={"every_steps": 1, "keep": {"stages": False}})
    b.run()
    assert checkpoints(b) == ["step-000005", "step-000006"]
    assert models(b) == {}


@pytest.mark.parametrize("stages", [True, False])
def test_the_final_model_is_that_of_the_last_checkpoint_and_shares_the_files_of_the_last_stage(bench, stages):
    b = bench(accuracies=always_mixed, checkpoint={"every_steps": 1, "keep": {"stages": stages}})

    async def train():
        loop = b.loop()
        await loop.run()
        await loop._journal.export_models(b.progress, final=True)

    asyncio.run(train())
    final = b.folder.model / "weights"
    assert final.read_text() == "step-000004"
    assert final.stat().st_nlink == (2 if stages else 1)
    if stages:
        assert (b.folder.models / "long" / "weights").samefile(final)


def test_a_model_whose_run_was_killed_behind_the_checkpoint_is_made_up_before_the_run_goes_on(bench):
    b = bench(accuracies=always_mixed, checkpoint=EVERY_STEP)

    def dies(checkpoint, path, card, keep_going):
        raise SystemError("killed")

    b.write_model = dies
    with pytest.raises(SystemError):
        b.run()
    assert models(b) == {}
    again = continued(bench, b, checkpoint=EVERY_STEP)
    written = []

    def write_model(checkpoint, path, card, keep_going):
        written.append((path.name, len(again.learner.batches)))
        bench.write_model(checkpoint, path, card, keep_going)

    bench.write_model, again.write_model = again.write_model, write_model
    again.run()
    assert written == [("short", 0), ("long", 2)]
    assert models(again) == {"short": "step-000002", "long": "step-000004"}


def test_a_model_from_another_checkpoint_of_its_stage_is_replaced(bench):
    b = bench(accuracies=always_mixed, checkpoint=EVERY_STEP)
    b.run()
    card = b.folder.models / "short" / "README.md"
    card.write_text(card.read_text().replace(checkpoint_of(card.parent), "0" * 32))
    (card.parent / "weights").write_text("of a run that went another way")
    continued(bench, b, checkpoint=EVERY_STEP).run()
    assert models(b) == {"short": "step-000002", "long": "step-000004"}


def test_a_stage_whose_checkpoint_is_gone_is_told_once_and_the_run_goes_on(bench):
    b = bench(accuracies=always_mixed, checkpoint={"every_steps": 1, "keep": {"last": 1, "stages": False}})
    b.run()
    again = continued(bench, b, checkpoint=EVERY_STEP)
    again.run()
    assert models(again) == {"long": "step-000004"}
    assert [line[:46] for line in again.said] == ["models/short: not made, checkpoint of step 2: "]


def test_a_stop_gives_the_model_up_at_the_next_tensor_and_a_resume_makes_it_up(bench):
    b = bench(accuracies=always_mixed, checkpoint=EVERY_STEP)
    reached = []

    def many_tensors(checkpoint, path, card, keep_going):
        while True:
            keep_going()
            reached.append(path.name)
            if len(reached) == 3:
                b.stopping.call_soon_threadsafe(b.stop.set)

    b.write_model = many_tensors

    async def train():
        b.stopping = asyncio.get_running_loop()
        await b.loop().run()

    with pytest.raises(Interrupted):
        asyncio.run(train())
    assert set(reached) == {"short"}
    assert checkpoints(b) == ["step-000002"]
    again = continued(bench, b, checkpoint=EVERY_STEP)
    again.run()
    assert models(again) == {"short": "step-000002", "long": "step-000004"}


def test_a_full_disk_is_waited_for(bench):
    b = bench(accuracies=always_mixed, checkpoint=EVERY_STEP)
    b.patience = Patience(lambda text: None, b.stop, limit_s=5.0, pauses_s=(0.001,))
    write, refusals = b.write_model, [True, True]

    def refuse_twice(checkpoint, path, card, keep_going):
        if refusals:
            refusals.pop()
            raise DiskFull("no room") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(checkpoint, path, card, keep_going)

    b.write_model = refuse_twice
    b.run()
    assert models(b) == {"short": "step-000002", "long": "step-000004"}


def test_the_best_step_keeps_its_checkpoint_and_leaves_its_model(bench, task):
    """Held-out accuracy 0.25 of the base, 0.75 after the first phase, 0.5 after the second one."""
    b = bench(accuracies=always_mixed, heldout={"short": tuple(task(f"h{i}", 0) for i in range(4))}, checkpoint=BEST)
    right = [number for number in (1, 3, 2) for _ in range(4)]  # of the four questions, evaluation by evaluation
    b.rollouts.heldout_accuracies = lambda task, index: [float(index < right.pop(0))]
    b.run()
    assert b.progress.best == Best(metric="heldout/accuracy", step=2, value=0.75)
    assert checkpoints(b) == ["step-000002", "step-000004"]
    assert models(b) == {"best": "step-000002"}
    events = [json.loads(line) for line in (b.folder.path / "events.jsonl").read_text().splitlines()]
    assert [(event["path"], event["step"]) for event in events if event["event"] == "model"] == [("models/best", 2)]
    restored = Progress.from_state_dict(json.loads(json.dumps(b.progress.state_dict())))
    assert restored.best == b.progress.best


def test_what_is_kept_follows_from_the_progress_alone():
    stages = [StageProgress(name="sft", kind="sft", steps=24), StageProgress(name="phase-1", kind="rl", steps=2)]
    running = StageProgress(name="phase-2", kind="rl", steps=3)
    best = Best(metric="heldout/accuracy", step=27, value=0.5)
    progress = Progress(step=29, finished_stages=stages, stage=running, best=best)
    assert kept_steps(progress, KeepConfig()) == {"sft": 24, "phase-1": 26}
    assert kept_steps(progress, KeepConfig(stages=False)) == {}
    keep = KeepConfig(best="heldout/accuracy")
    assert kept_steps(progress, keep) == {"sft": 24, "phase-1": 26, "best": 27}
    assert kept_steps(progress, KeepConfig(stages=False, best="heldout/other")) == {}
