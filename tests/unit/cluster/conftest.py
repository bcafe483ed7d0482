"""Hand-written stand-ins for the other processes; they write down what was asked of them."""

from __future__ import annotations

import asyncio
import math
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.rollout import Sampling
from actors.trajectory import FinishReason, Group, GroupMeta, Trajectory, VersionSpan
from actors.weights.update import WeightReceipt, WeightUpdate
from cluster.group import ScoredGroup
from cluster.loop import TrainingLoop
from cluster.recipe.config import RunConfig
from cluster.recipe.heldout import HeldOutSet
from cluster.run.console import Console
from cluster.run.folder import RunFolder
from cluster.run.journal import Journal
from cluster.run.models import Models
from cluster.run.patience import Patience
from cluster.run.progress import Progress
from cluster.weights.sync import WeightSync
from curriculum.coordinator import Coordinator
from curriculum.files import begin_folder, finish_folder
from curriculum.task import Demonstration, Task, TaskEntry, TaskLease
from learner.batch.microbatch import TrainingItem
from learner.reports import SftReport, StepReport
from learner.sft import DemonstrationBatches
from reward.score import Score, Verdict


def make_task(task_id: str, phase: int) -> Task:
    return Task(
        task_id=task_id,
        data_source="test",
        question=f"question of {task_id}?",
        answers=("yes",),
        prompt_ids=np.arange(10 + 10 * phase, dtype=np.int32),
        phase=phase,
    )


def make_group(lease, num_samples: int, policy_version: int = 0) -> Group:
    task = make_task(lease.task_id, 0)
    trajectory = Trajectory(
        response_ids=np.array([5, 6, 2], np.int32),
        rollout_logprobs=np.array([-0.1, -0.2, -0.3], np.float32),
        finish_reason=FinishReason.STOP,
        versions=(VersionSpan(start=0, version=policy_version),),
    )
    return Group(
        task=task,
        lease=lease,
        trajectories=(trajectory,) * num_samples,
        temperature=1.0,
        max_response_tokens=10,
        engine="fake",
    )


def make_score(accuracy: float | None) -> Score:
    rule = accuracy or 0.0
    judge = Verdict.UNKNOWN if accuracy is None else None
    return Score(answer="yes", rule=rule, judge=judge, accuracy=accuracy, reward=accuracy, reason="test")


class AsyncCoordinator:
    """The real coordinator behind the asynchronous role."""

    def __init__(self, coordinator: Coordinator, calls: list[str]) -> None:
        self.coordinator = coordinator
        self.calls = calls

    async def open_batch(self, num_tasks):
        self.calls.append(f"open {num_tasks}")
        return self.coordinator.open_batch(num_tasks)

    async def open_stream(self, num_tasks):
        return self.coordinator.open_stream(num_tasks)

    async def open_leases(self):
        return self.coordinator.open_leases()

    async def keep(self, answered):
        (kept,) = self.coordinator.keep_all([answered])
        return kept

    async def withdraw(self, lease_ids):
        return self.coordinator.withdraw(lease_ids)

    async def report(self, outcomes):
        self.calls.append(f"report {len(outcomes)}")
        return self.coordinator.report(outcomes)

    async def finish_step(self, step, *, num_trained_groups):
        self.calls.append(f"finish step {step}")
        return self.coordinator.finish_step(step, num_trained_groups=num_trained_groups)

    async def phase_state(self):
        return self.coordinator.phase_state()

    async def record_measured(self, task_ids, accuracies):
        self.coordinator.record_measured(task_ids, accuracies)

    async def lease_counts(self):
        return self.coordinator.lease_counts()

    async def state_dict(self):
        return self.coordinator.state_dict()

    async def load_state_dict(self, state):
        self.coordinator.load_state_dict(state)


class FakeRollouts:
    """Answers every lease; `accuracies(lease)` says what the samples are worth."""

    def __init__(self, coordinator: Coordinator, accuracies, calls: list[str]) -> None:
        self.coordinator = coordinator
        self.accuracies = accuracies
        self.calls = calls
        self.block: asyncio.Event | None = None
        self.num_slots = 99
        self.object_store_bytes = 4096
        self.num_late = self.num_faulty = 0
        self.policy_version = 0
        """Of the weights in the engines."""
        self.measured: list[tuple[str, Sampling]] = []
        """Tasks that were answered by whole groups outside of a batch."""
        self.trained: frozenset[str] = frozenset()
        """Tasks that are trained on; the others are held out."""

    async def next_group(self, sampling: Sampling) -> ScoredGroup | None:
        version = self.policy_version
        lease = self.coordinator.lease("fake")
        if lease is None:
            return None
        if self.block is not None:
            self.calls.append("blocked")
            await self.block.wait()
        await self.sample(lease)
        return self._scored(lease, self.accuracies(lease), version)

    async def sample(self, lease) -> None:
        """How long an answer takes."""
        await asyncio.sleep(0)

    async def measure(self) -> None:
        """How long a batch of groups takes that are only measured."""

    async def abort(self):
        self.calls.append("abort")

    async def answer(self, tasks, sampling: Sampling) -> list[ScoredGroup]:
        leases = [
            TaskLease(lease_id=i, task_id=t.task_id, attempt=0, replayed=False, phase=0) for i, t in enumerate(tasks)
        ]
        if any(task.task_id in self.trained for task in tasks):
            self.calls.append(f"measure {len(tasks)}")
            self.measured += [(task.task_id, sampling) for task in tasks]
            await self.measure()
            return [self._scored(lease, self.accuracies(lease), self.policy_version) for lease in leases]
        self.calls.append(f"evaluate {len(tasks)}")
        worth = [self.heldout_accuracies(task, i) for i, task in enumerate(tasks)]
        pairs = [(lease, accuracies) for lease, accuracies in zip(leases, worth, strict=True) if accuracies is not None]
        assert all(len(accuracies) == sampling.num_samples for _, accuracies in pairs)
        return [self._scored(lease, accuracies, self.policy_version) for lease, accuracies in pairs]

    def heldout_accuracies(self, task, index: int):
        """What the answers to a held-out question are worth; None if the task fails."""
        return [float(index % 2 == 0)]

    async def judge_events(self):
        return []

    def _scored(self, lease, accuracies, policy_version=0) -> ScoredGroup:
        group = make_group(lease, len(accuracies), policy_version)
        return ScoredGroup(meta=GroupMeta.of(group), scores=tuple(map(make_score, accuracies)), group=group)


class FakeTransport:
    """Weights that are published at once and reach the engines after `travel`."""

    def __init__(self, calls: list[str], rollouts: FakeRollouts) -> None:
        self.calls = calls
        self.rollouts = rollouts

    async def transfer(self, version):
        self.calls.append(f"publish {version}")
        return WeightUpdate(version=version, source="", tensors=()), asyncio.create_task(self._deliver(version))

    async def _deliver(self, version):
        await self.travel()
        self.calls.append(f"deliver {version}")
        self.rollouts.policy_version = version
        return {"fake": WeightReceipt(version=version, tensors=(), pause_s=0.0)}

    async def travel(self) -> None:
        """How long weights take to the engines."""


class NoProbe:
    """No update is probed."""

    async def score_by_learner(self):
        return None


class FakeLearner:
    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.slices: list[list[ScoredGroup]] = []
        self.groups: list[list[ScoredGroup]] = []
        self.items: list[TrainingItem] = []
        """What the ranks would be sent."""
        self.batches: list[list[str]] = []
        self.learning_rates: list[float] = []
        self.entropies: dict[int, float] = {}
        """Entropy of the update by its number, 0.5 where none is given."""
        self.report = StepReport(
            num_response_tokens=24, num_updates=1, num_skipped_updates=0, learning_rate=0.0, loss=0.1,
            grad_norm=1.0, entropy=0.5, clip_fraction=0.0, clip_low_fraction=0.0, clip_high_fraction=0.0,
            mean_ratio=1.0, rollout_logprob_gap_mean=0.0, rollout_logprob_gap_max=0.0, kl_to_reference=math.nan,
            masked_fraction=0.0, outside_nucleus=0.0, importance_weight=1.0, log_nucleus=0.0, prompt_sharing=True,
        )  # fmt: skip

    async def start_stage(self, stage):
        self.calls.append(f"stage {stage}")

    async def sft_step(self, demonstrations, learning_rate):
        self.calls.append(f"sft {len(demonstrations)}")
        self.learning_rates.append(learning_rate)
        return SftReport(
            num_response_tokens=3, learning_rate=learning_rate, loss=1.0, token_accuracy=0.5, grad_norm=1.0
        )

    async def accumulate(self, groups, *, batch_groups):
        self.calls.append(f"accumulate {len(groups)} of {batch_groups}")
        self.slices.append(list(groups))
        self.items += [group.training_item() for group in groups]
        await self.train()

    async def update(self, learning_rate):
        batch = [group for groups in self.slices for group in groups]
        self.slices = []
        self.calls.append(f"train {len(batch)}")
        self.batches.append([group.task_id for group in batch])
        self.groups.append(batch)
        self.learning_rates.append(learning_rate)
        entropy = self.entropies.get(len(self.batches) - 1, 0.5)
        return replace(self.report, learning_rate=learning_rate, entropy=entropy)

    async def preview(self):
        self.calls.append("preview")
        return self.report

    async def drop(self):
        self.calls.append("drop")
        self.slices = []

    async def train(self) -> None:
        """How long a slice takes."""

    async def save(self, place):
        self.calls.append("save")
        return {}

    async def discard(self, place):
        self.calls.append("discard")

    async def load(self, place):
        self.calls.append(f"load {place.path.parent.name}")


class Bench:
    """A loop on stand-ins, with the real coordinator, journal and run folder."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        accuracies,
        name: str = "run",
        demonstrations: int = 0,
        heldout=None,
        controls=None,
        **overrides,
    ) -> None:
        phases = overrides.pop("phases", None) or [
            {"name": "short", "max_prompt_tokens": 15, "end": {"type": "steps", "steps": 2}},
            {"name": "long", "max_prompt_tokens": 25, "end": {"type": "steps", "steps": 2}},
        ]
        curriculum = {"phases": phases, "max_sampling_rounds": 3, **overrides.pop("curriculum", {})}
        self.config = RunConfig.model_validate(
            {
                "name": "test",
                "device": "cpu",
                "model": {"path": "none/none"},
                "data": {"train": "none.parquet", "sft": "none.parquet"},
                "sft": {"epochs": 1, "batch_size": 2, "learning_rate": 0.5},
                "curriculum": curriculum,
                "groups_per_batch": 4,
                "rollout": {"group_size": 2},
                "checkpoint": {"every_steps": 100, "keep": {"last": 2}},
                **overrides,
            }
        )
        self.quiet = True
        self.calls: list[str] = []
        self.said: list[str] = []
        names = [phase["name"] for phase in phases]
        tasks = [make_task(f"{name}-{i}", phase) for phase, name in enumerate(names) for i in range(12)]
        self.tasks = tasks
        self.coordinator = Coordinator(
            tasks=[TaskEntry.of(task) for task in tasks], config=self.config.curriculum, seed=0
        )
        self.rollouts = FakeRollouts(self.coordinator, accuracies, self.calls)
        self.rollouts.trained = frozenset(task.task_id for task in tasks)
        self.learner = FakeLearner(self.calls)
        self.transport = FakeTransport(self.calls, self.rollouts)
        self.folder = RunFolder.create(tmp_path / name)
        self.progress = Progress()
        self.stop = asyncio.Event()
        self.patience: Patience | None = None
        self.heldout = HeldOutSet(tasks=heldout or {}, under=controls or {})
        self.demonstrations = None
        if demonstrations:
            ids = np.array([1, 2], np.int32)
            rows = [
                Demonstration(demonstration_id=str(i), prompt_ids=ids, response_ids=ids) for i in range(demonstrations)
            ]
            self.demonstrations = DemonstrationBatches(rows, batch_size=2, epochs=1, seed=0)

    def loop(self, *, warm_up_only: bool = False) -> TrainingLoop:
        journal = Journal(
            folder=self.folder,
            console=Console(quiet=self.quiet),
            trackers=[],
            checkpoint=self.config.checkpoint,
            models=Models(self.folder, self.config, self.write_model, self.said.append),
            fetch=lambda groups: groups,
            decode=lambda ids: "the answer is yes",
            patience=self.patience,
        )
        return TrainingLoop(
            config=self.config,
            curriculum=None if warm_up_only else AsyncCoordinator(self.coordinator, self.calls),
            rollouts=self.rollouts,
            learner=self.learner,
            weights=WeightSync(self.transport, NoProbe(), overlaps=self.config.rollout.max_policy_lag > 0),
            demonstrations=self.demonstrations,
            tasks=self.tasks,
            heldout=self.heldout,
            journal=journal,
            progress=self.progress,
            stop=self.stop,
        )

    def write_model(self, checkpoint, path, card, keep_going):
        """Stands in for `export_model`: a model is the name of its checkpoint."""
        keep_going()
        partial = begin_folder(path)
        (partial / "README.md").write_text(card)
        (partial / "weights").write_text(checkpoint.path.name)
        finish_folder(path)

    def run(self) -> list[str]:
        asyncio.run(self.loop().run())
        return self.calls


@pytest.fixture
def bench(tmp_path):
    def build(**arguments) -> Bench:
        return Bench(tmp_path, **arguments)

    return build


@pytest.fixture(scope="session")
def task():
    return make_task


@pytest.fixture(scope="session", name="make_group")
def group_factory():
    return make_group


@pytest.fixture(scope="session", name="make_score")
def score_factory():
    return make_score


@pytest.fixture(scope="session", name="async_coordinator")
def async_coordinator_class():
    return AsyncCoordinator


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("a disk can only be mounted by root")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)  # a test that fails keeps files open
