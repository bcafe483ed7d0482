"""The stream on simulated engines and a simulated clock: whatever the order of completion, no group is trained on
beyond the bound, none is thrown away for its age, and every lease ends exactly once."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.rollout import Sampling
from actors.trajectory import GroupMeta
from cluster.batches.bounded_lag import BoundedLagSource
from cluster.batches.lag_buffer import policy_lag
from cluster.batches.ledger import GroupOutcome, Ledger
from cluster.batches.source import BatchOrder
from cluster.group import ScoredGroup
from cluster.roles import GroupLost
from curriculum.config import CurriculumConfig
from curriculum.coordinator import LEASE_TIMEOUT_S, Coordinator
from curriculum.task import TaskEntry

SAMPLING = Sampling(num_samples=2, temperature=1.0, top_p=1.0, max_response_tokens=8)


class SimulatedClock(asyncio.SelectorEventLoop):
    """An event loop whose time jumps to the next timer as soon as nothing else is left to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        timers = [] if self._ready else [timer.when() for timer in self._scheduled if not timer.cancelled()]
        self.now = max([self.now, min(timers)]) if timers else self.now
        super()._run_once()


class Engines:
    """Engines that take updates one after the other and answer after a time that a test chooses."""

    def __init__(self, coordinator, *, num_engines, seconds, accuracies, make_group, make_score):
        self.coordinator = coordinator
        self.versions = [0] * num_engines
        self.num_slots = 100
        self.seconds = seconds
        self.accuracies = accuracies
        self.make_group = make_group
        self.make_score = make_score
        self.calls = 0
        self.busy = 0
        self.most_busy = 0
        self.versions_override = {}

    async def abort(self):
        """The pulls are cancelled anyway."""

    async def next_group(self, sampling):
        lease = self.coordinator.lease("engine")
        if lease is None:
            return None
        self.calls += 1
        version = self.versions_override.get(lease.lease_id, self.versions[self.calls % len(self.versions)])
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        await asyncio.sleep(self.seconds(lease))
        self.busy -= 1
        accuracies = self.accuracies(lease)
        if accuracies is None:
            raise GroupLost(lease.lease_id, lease.task_id, "its node died")
        group = self.make_group(lease, len(accuracies), version)
        return ScoredGroup(meta=GroupMeta.of(group), scores=tuple(map(self.make_score, accuracies)), group=group)


def _end(steps):
    """A number of steps, or another rule as a recipe writes it."""
    return {"type": "steps", "steps": steps} if isinstance(steps, int) else steps


class Simulation:
    """Phases on a stream, with a learner that takes its time."""

    def __init__(
        self,
        make_task,
        async_coordinator,
        *,
        max_policy_lag,
        engines,
        steps=(6,),
        batch_size=4,
        max_rounds=3,
        num_slices=1,
        train_s=1.0,
        sync_s=0.25,
        overlaps=False,
        share=0.25,
        num_tasks=12,
    ):
        names = [f"phase-{i}" for i in range(len(steps))]
        config = CurriculumConfig.model_validate(
            {
                "phases": [
                    {"name": name, "max_prompt_tokens": 15 + 10 * i, "end": _end(steps[i])}
                    for i, name in enumerate(names)
                ],
                "retrospective": {"max_share": share, "selection": "difficulty"},
            }
        )
        tasks = [make_task(f"{name}-{i}", phase) for phase, name in enumerate(names) for i in range(num_tasks)]
        self.clock = SimulatedClock()
        self.coordinator = Coordinator(
            tasks=[TaskEntry.of(task) for task in tasks], config=config, seed=0, now=self.clock.time
        )
        self.engines = engines(self.coordinator)
        self.max_policy_lag = max_policy_lag
        self.batch_size = batch_size
        self.train_s, self.sync_s = train_s, sync_s
        self.steps = steps
        self.stream = BoundedLagSource(
            async_coordinator(self.coordinator, []),
            self.engines,
            batch_size=batch_size,
            slice_size=-(-batch_size // num_slices),
            max_policy_lag=max_policy_lag,
            max_rounds=max_rounds,
            dynamic_sampling=True,
        )
        self.overlaps = overlaps
        self.push = None
        self.version = 0
        self.ledger = Ledger()
        self.batches = []
        self.lags = []
        self.waits = []
        self.departures = []
        self.phases = []

    def run(self, num_steps=10**6):
        with asyncio.Runner(loop_factory=lambda: self.clock) as runner:
            return runner.run(self._run(num_steps))

    async def _run(self, num_steps):
        step = 0
        while not (state := self.coordinator.phase_state()).finished and step < num_steps:
            self.phases.append(state.phase)
            steps = self.steps[state.phase]
            await self._step(step, steps - state.num_steps if isinstance(steps, int) else None)
            step += 1
            if self.coordinator.phase_state().phase != state.phase:
                left = asyncio.all_tasks() - {asyncio.current_task(), self.push}
                assert not left, "a pull outlived its phase"
        await self.stream.close()
        if self.push is not None:
            await self.push
        return asyncio.get_running_loop().time()

    async def _step(self, step, remaining_steps):
        order = BatchOrder(sampling=SAMPLING, version=self.version, remaining_steps=remaining_steps)
        loop = asyncio.get_running_loop()
        waited = 0.0
        while True:
            started = loop.time()
            groups = await self.stream.next_slice(order)
            waited += loop.time() - started
            if not groups:
                break
            self.lags += [policy_lag(group, self.version) for group in groups]
            if self.stream._buffer.num_missing == 0:
                self.departures.append(loop.time())
            await asyncio.sleep(self.train_s * len(groups) / self.batch_size)
        self.waits.append(waited)
        collected = self.stream.close_batch()
        self.batches.append(collected.batch)
        if collected.batch:
            await self._send()
        report = await self.stream.finish_step(step, num_trained_groups=len(collected.batch), version=self.version)
        self.ledger.add(collected.outcome_counts)
        if report.transition:
            self.ledger.add((await self.stream.end_phase()).outcome_counts)
        assert self.imbalance() is None

    async def _send(self):
        """The update before this one has arrived; this one may travel while the next batch begins."""
        if self.push is not None:
            await self.push
        self.version += 1
        self.push = asyncio.create_task(self._travel(self.version))
        if not self.overlaps:
            await self.push

    async def _travel(self, version):
        """The engines take the new weights one after the other, while others already sample under them."""
        for engine in range(len(self.engines.versions)):
            await asyncio.sleep(self.sync_s)
            self.engines.versions[engine] = version
        await self.stream.weights_delivered(version)

    def imbalance(self):
        return self.ledger.imbalance(self.coordinator.lease_counts(), num_open=len(self.coordinator.open_leases()))

    @property
    def trained_leases(self):
        return [group.lease_id for batch in self.batches for group in batch]


@pytest.fixture(scope="module")
def simulate(task, make_group, make_score, async_coordinator):
    def build(*, seconds=lambda lease: 1.0, accuracies=lambda lease: [1.0, 0.0], num_engines=2, **arguments):
        def engines(coordinator):
            return Engines(
                coordinator,
                num_engines=num_engines,
                seconds=seconds,
                accuracies=accuracies,
                make_group=make_group,
                make_score=make_score,
            )

        return Simulation(task, async_coordinator, engines=engines, **arguments)

    return build


def draws(seed, lease):
    """Random numbers of one lease."""
    return random.Random(f"{seed}/{lease.lease_id}")


@given(
    seed=st.integers(0, 10**6),
    max_policy_lag=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    tail=st.sampled_from([1.0, 5.0, 60.0]),
    acceptance=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    train_s=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    num_slices=st.integers(1, 5),
    sync_s=st.sampled_from([0.0, 0.25, 4.0]),
)
@settings(max_examples=200, deadline=None)
def test_whatever_the_order_of_completion_the_bound_holds_and_the_ledger_balances(
    simulate, seed, max_policy_lag, batch_size, tail, acceptance, train_s, num_slices, sync_s
):
    def seconds(lease):
        draw = draws(seed, lease)
        return draw.random() * (tail if draw.random() < 0.2 else 1.0)

    def accuracies(lease):
        if lease.lease_id % 40 == 7:
            return None
        draw = draws(seed + 1, lease)
        if draw.random() < 0.05:
            return [1.0, None]
        return [1.0, 0.0] if draw.random() < acceptance else [0.0, 0.0]

    simulation = simulate(
        seconds=seconds,
        accuracies=accuracies,
        max_policy_lag=max_policy_lag,
        batch_size=batch_size,
        train_s=train_s,
        sync_s=sync_s,
        num_slices=num_slices,
        overlaps=True,
        steps=(4, 4),
        max_rounds=4,
    )
    simulation.run()
    assert all(0 <= lag <= max_policy_lag for lag in simulation.lags)
    assert simulation.ledger.too_old == 0, "no group is sampled only to be thrown away for its age"
    assert len(set(simulation.trained_leases)) == len(simulation.trained_leases) == simulation.ledger.trained
    assert simulation.engines.most_busy <= (max_policy_lag + 1) * batch_size
    assert simulation.coordinator.open_leases() == ()
    assert simulation.imbalance() is None
    counts = simulation.coordinator.lease_counts()
    assert counts.duplicate == counts.unknown == 0, "every outcome is reported once"
    for phase, batch in zip(simulation.phases, simulation.batches, strict=True):
        assert {group.meta.lease.phase for group in batch} <= {phase}


def test_the_learner_never_waits_for_engines_that_are_as_fast(simulate):
    simulation = simulate(max_policy_lag=1, seconds=lambda lease: 0.9, train_s=1.0, sync_s=0.0, steps=(8,))
    end = simulation.run()
    assert simulation.waits == pytest.approx([0.9] + [0.0] * 7)
    assert end == pytest.approx(0.9 + 8 * 1.0), "strictly on-policy this takes 8 * 1.9"


def test_a_straggler_holds_up_the_batch_that_it_is_due_in_and_none_before(simulate):
    simulation = simulate(
        max_policy_lag=2, seconds=lambda lease: 7.0 if lease.lease_id == 0 else 0.5, train_s=1.0, sync_s=0.0, steps=(6,)
    )
    simulation.run()
    assert [0 in [group.lease_id for group in batch] for batch in simulation.batches] == [
        False, False, True, False, False, False,
    ]  # fmt: skip
    assert simulation.departures[2] == pytest.approx(7.0)
    assert simulation.departures[1] < 7.0 - 2 * 1.0
    assert max(simulation.lags) == 2


def test_a_larger_bound_than_one_does_not_make_every_group_older(simulate):
    simulation = simulate(max_policy_lag=6, seconds=lambda lease: 0.5, steps=(12,), sync_s=0.0)
    simulation.run()
    assert max(simulation.lags) == 1


def test_the_last_batch_of_a_phase_leaves_nothing_over(simulate):
    simulation = simulate(max_policy_lag=3, steps=(3, 3))
    simulation.run()
    assert simulation.ledger == Ledger(trained=6 * 4)


def test_a_phase_where_nothing_has_a_signal_ends_and_opens_nothing_more(simulate):
    simulation = simulate(
        max_policy_lag=2,
        accuracies=lambda lease: [0.0, 0.0] if lease.phase == 0 else [1.0, 0.0],
        seconds=lambda lease: 1.0 + lease.lease_id % 3,
        steps=(40, 2),
    )
    simulation.run()
    assert [len(batch) for batch in simulation.batches] == [0, 0, 0, 4, 4]
    assert 3 * 3 * 4 <= simulation.ledger.no_variance < 3 * (3 * 4 + 3 * 4), (
        "three steps, three batches' worth of tries"
    )
    assert simulation.ledger.returned == 0


def test_groups_that_a_phase_leaves_unused_are_given_back_and_never_trained_on(simulate):
    simulation = simulate(
        max_policy_lag=2,
        seconds=lambda lease: 0.3 + lease.lease_id % 3,
        steps=({"type": "epochs", "epochs": 1.0}, 2),
    )
    simulation.run()
    assert simulation.phases == [0, 0, 0, 1, 1], "twelve tasks are three batches"
    assert simulation.ledger.trained == 5 * 4
    assert simulation.ledger.returned > 0
    assert simulation.ledger.returned == simulation.coordinator.lease_counts().returned


def test_a_lease_whose_engine_hangs_is_taken_over_when_it_expires(simulate):
    calls = Counter()

    def seconds(lease):
        calls[lease.lease_id] += 1
        return 1e9 if lease.lease_id == 3 and calls[3] == 1 else 0.5

    simulation = simulate(max_policy_lag=1, seconds=seconds, steps=(3, 3))
    assert LEASE_TIMEOUT_S < simulation.run() < LEASE_TIMEOUT_S + 60
    assert calls[3] == 2
    assert simulation.ledger == Ledger(trained=6 * 4)


def test_oversampling_follows_the_acceptance_rate_within_the_bound(simulate):
    every_other = lambda lease: [1.0, 0.0] if lease.lease_id % 2 else [1.0, 1.0]  # noqa: E731
    plain = simulate(max_policy_lag=3, steps=(12,))
    plain.run()
    scarce = simulate(max_policy_lag=3, steps=(12,), accuracies=every_other)
    scarce.run()
    assert plain.engines.most_busy == 2 * 4
    assert plain.engines.most_busy < scarce.engines.most_busy <= 4 * 4
    assert plain.stream.acceptance_rate == 1.0
    assert scarce.stream.acceptance_rate == pytest.approx(0.5, abs=0.07)


def test_admission_stops_at_the_slots_of_the_engines(simulate):
    simulation = simulate(max_policy_lag=2)
    simulation.engines.num_slots = 3
    simulation.run()
    assert simulation.engines.most_busy == 3
    assert simulation.ledger == Ledger(trained=6 * 4)


def test_a_group_of_weights_that_were_replaced_before_it_was_admitted_is_not_trained_on(simulate):
    simulation = simulate(max_policy_lag=1, steps=(6,))
    simulation.engines.versions_override = {14: 0}
    simulation.run()
    assert simulation.ledger == Ledger(trained=6 * 4, too_old=1)
    assert 14 not in simulation.trained_leases


def test_replayed_tasks_keep_their_share_of_what_is_sampled(simulate):
    simulation = simulate(max_policy_lag=2, steps=(4, 8), accuracies=lambda lease: [1.0, 0.0])
    simulation.run()
    later = [group for batch in simulation.batches[4:] for group in batch]
    assert 0.15 <= sum(group.meta.lease.replayed for group in later) / len(later) <= 0.25


def test_lost_groups_are_sampled_anew_and_booked(simulate):
    simulation = simulate(max_policy_lag=1, accuracies=lambda lease: None if lease.lease_id in (1, 6) else [1.0, 0.0])
    simulation.run()
    assert simulation.ledger == Ledger(trained=6 * 4, failed=2)


def test_a_run_that_loses_group_after_group_stops(simulate):
    simulation = simulate(max_policy_lag=1, accuracies=lambda lease: None)
    with pytest.raises(GroupLost, match="its node died"):
        simulation.run()


def test_an_engine_that_fails_ends_the_run_with_its_own_error(simulate):
    def seconds(lease):
        if lease.lease_id == 5:
            raise RuntimeError("the engine is broken")
        return 1.0

    with pytest.raises(RuntimeError, match="the engine is broken"):
        simulate(max_policy_lag=2, seconds=seconds).run()


def test_what_was_under_way_or_waiting_at_a_checkpoint_is_sampled_again_after_a_resume(simulate):
    simulation = simulate(max_policy_lag=2, seconds=lambda lease: 0.3 + lease.lease_id % 5)
    simulation.run(num_steps=3)
    state, ledger = simulation.coordinator.state_dict(), simulation.ledger
    left = simulation.coordinator.open_leases()
    assert left
    assert ledger.trained == 3 * 4
    resumed = simulate(max_policy_lag=2)
    resumed.coordinator.load_state_dict(state)
    resumed.version, resumed.engines.versions, resumed.ledger = 3, [3, 3], ledger
    resumed.run()
    assert set(left) <= set(resumed.trained_leases)
    assert not set(simulation.trained_leases) & set(resumed.trained_leases)
    assert Counter(map(len, resumed.batches)) == {4: 3}
    assert resumed.ledger == Ledger(trained=6 * 4)


def test_fates_are_named_as_the_ledger_names_them():
    assert {str(outcome) for outcome in GroupOutcome} == set(Ledger.__slots__)
