import json
import random
import time
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curriculum.config import CurriculumConfig, FixedEpochs, FixedSteps, PhaseConfig, RetrospectiveConfig
from curriculum.coordinator import LEASE_TIMEOUT_S, Coordinator
from curriculum.errors import RunFailed, UserError
from curriculum.leases import LeaseCounts
from curriculum.task import TaskEntry, TaskOutcome
from curriculum.transition import EndReason

REPLAY = RetrospectiveConfig(selection="zero_accuracy", max_share=0.25)


def config(*ends, retrospective=REPLAY, **others):
    phases = tuple(
        PhaseConfig(name=f"phase-{index}", max_prompt_tokens=100 * (index + 1), end=end)
        for index, end in enumerate(ends)
    )
    return CurriculumConfig(phases=phases, retrospective=retrospective, **others)


def pull_all(coordinator, holder="rollout-0"):
    return list(iter(lambda: coordinator.lease(holder), None))


def outcome(lease, *accuracies):
    return TaskOutcome(
        lease_id=lease.lease_id, task_id=lease.task_id, accuracies=accuracies, num_samples=max(2, len(accuracies))
    )


def run_step(coordinator, step, num_tasks, accuracies_of, *, trained=1):
    """One step with one holder; returns its leases and the report."""
    coordinator.open_batch(num_tasks)
    leases = pull_all(coordinator)
    coordinator.report([outcome(lease, *accuracies_of(lease)) for lease in leases])
    return leases, coordinator.finish_step(step, num_trained_groups=trained)


def half_right(_lease):
    return (0.0, 1.0)


def all_wrong(_lease):
    return (0.0, 0.0)


def all_right(_lease):
    return (1.0, 1.0)


def entries(tasks):
    return [TaskEntry.of(task) for task in tasks]


def start(tasks, *ends, seed=0, now=time.monotonic, **others):
    return Coordinator(tasks=entries(tasks), config=config(*ends, **others), seed=seed, now=now)


# ---- batches


def test_nothing_is_leased_before_a_batch_is_opened(make_tasks):
    coordinator = start(make_tasks(4), FixedSteps(steps=1))
    assert coordinator.lease("rollout-0") is None


def test_several_leases_go_out_together_as_long_as_there_are_any(make_tasks):
    coordinator = start(make_tasks(4), FixedSteps(steps=1))
    coordinator.open_batch(3)
    assert [lease.lease_id for lease in coordinator.lease_up_to("rollout-0", 2)] == [0, 1]
    assert [lease.lease_id for lease in coordinator.lease_up_to("rollout-1", 2)] == [2]
    assert coordinator.lease_up_to("rollout-1", 2) == ()


def test_a_batch_is_a_quota_of_leases_with_ordinals(make_tasks):
    coordinator = start(make_tasks(8), FixedSteps(steps=9))
    coordinator.open_batch(3)
    leases = pull_all(coordinator)
    assert [lease.lease_id for lease in leases] == [0, 1, 2]
    assert len({lease.task_id for lease in leases}) == 3
    coordinator.open_batch(2)
    assert [lease.lease_id for lease in pull_all(coordinator)] == [3, 4]


def test_a_phase_trains_exclusively_on_its_own_tasks_and_visits_each_once_per_pass(make_tasks):
    coordinator = start(make_tasks(6, 6), FixedSteps(steps=9), FixedSteps(steps=9))
    leases = [lease for step in range(4) for lease in run_step(coordinator, step, 3, half_right)[0]]
    ids = [lease.task_id for lease in leases]
    assert sorted(ids[:6]) == sorted(ids[6:]) == [f"t0-{index}" for index in range(6)]
    assert [lease.attempt for lease in leases] == [0] * 6 + [1] * 6
    assert not any(lease.replayed for lease in leases)


def test_a_batch_larger_than_the_phase_goes_into_the_next_pass(make_tasks):
    coordinator = start(make_tasks(2), FixedSteps(steps=9))
    leases, report = run_step(coordinator, 0, 5, half_right)
    assert len(leases) == 5
    assert report.epoch == 2.5


@pytest.mark.parametrize("num_tasks", [0, -1])
def test_an_empty_batch_is_refused(make_tasks, num_tasks):
    with pytest.raises(ValueError, match="at least one"):
        start(make_tasks(1), FixedSteps(steps=1)).open_batch(num_tasks)


# ---- transitions and replay


def test_a_transition_is_reported_logged_and_moves_to_the_next_phase(make_tasks):
    coordinator = start(make_tasks(4, 4), FixedSteps(steps=2), FixedSteps(steps=1))
    assert run_step(coordinator, 0, 2, half_right)[1].transition is None
    # all four tasks have been visited; t0-1 and t0-3 failed all their samples
    hard = {"t0-1", "t0-3"}
    coordinator = start(make_tasks(4, 4), FixedSteps(steps=2), FixedSteps(steps=1))
    for step in range(2):
        _, report = run_step(coordinator, step, 2, lambda x: (0.0, 0.0) if x.task_id in hard else (1.0, 0.0))
    transition = report.transition
    assert transition is not None
    assert (transition.step, transition.from_phase, transition.to_phase) == (1, 0, 1)
    assert (transition.reason, transition.num_steps, transition.epochs) == (EndReason.STEPS, 2, 1.0)
    assert (transition.num_candidates, transition.pool_size, transition.pool_accuracy) == (2, 2, 0.0)
    assert transition.pool_prompt_tokens == (11 + 13) / 2
    state = coordinator.phase_state()
    assert (state.phase, state.name, state.num_steps) == (1, "phase-1", 0)


def test_the_end_of_the_last_phase_finishes_the_curriculum(make_tasks):
    coordinator = start(make_tasks(2), FixedSteps(steps=1))
    _, report = run_step(coordinator, 0, 2, half_right)
    assert report.transition is not None
    assert report.transition.to_phase is None
    assert coordinator.phase_state().finished
    with pytest.raises(ValueError, match="last phase is over"):
        coordinator.open_batch(1)
    with pytest.raises(ValueError, match="last phase is over"):
        coordinator.finish_step(1, num_trained_groups=1)


def in_second_phase(make_tasks, *, num_first=8, num_second=40, accuracies_of=all_wrong, **others):
    coordinator = start(make_tasks(num_first, num_second), FixedEpochs(epochs=1), FixedSteps(steps=50), **others)
    run_step(coordinator, 0, num_first, accuracies_of)
    assert coordinator.phase_state().phase == 1
    return coordinator


def test_replayed_tasks_take_their_share_of_a_batch_evenly_spread(make_tasks):
    coordinator = in_second_phase(make_tasks)
    leases, report = run_step(coordinator, 1, 8, all_wrong)
    assert [lease.replayed for lease in leases] == [False, False, False, True, False, False, False, True]
    assert [lease.task_id.startswith("t0-") for lease in leases if lease.replayed] == [True, True]
    assert {lease.phase for lease in leases} == {1}
    assert report.replayed_share == 0.25


def test_replacements_are_fresh_so_that_the_share_holds_for_the_whole_step(make_tasks):
    coordinator = in_second_phase(make_tasks)
    coordinator.open_batch(8)
    coordinator.open_batch(8)
    assert [lease.replayed for lease in pull_all(coordinator)].count(True) == 2


@pytest.mark.parametrize(("share", "num_tasks", "expected"), [(0.25, 3, 0), (0.25, 7, 1), (0.29, 100, 8), (0.0, 8, 0)])
def test_the_share_is_rounded_down_and_bounded_by_the_pool(make_tasks, share, num_tasks, expected):
    coordinator = in_second_phase(make_tasks, retrospective=REPLAY.model_copy(update={"max_share": share}))
    leases, _ = run_step(coordinator, 1, num_tasks, all_wrong)
    assert sum(lease.replayed for lease in leases) == expected


def test_a_share_that_is_not_a_binary_fraction_is_not_cut_short(make_tasks):
    coordinator = in_second_phase(make_tasks, num_first=40, retrospective=REPLAY.model_copy(update={"max_share": 0.29}))
    leases, _ = run_step(coordinator, 1, 100, all_wrong)
    assert sum(lease.replayed for lease in leases) == 29


def test_with_nothing_to_replay_the_whole_batch_is_fresh(make_tasks):
    coordinator = in_second_phase(make_tasks, accuracies_of=half_right)
    leases, report = run_step(coordinator, 1, 8, half_right)
    assert len(leases) == 8
    assert not any(lease.replayed for lease in leases)
    assert (report.replayed_share, report.replayed_accuracy, report.pool_size) == (0.0, None, 0)


def test_replay_can_be_switched_off(make_tasks):
    coordinator = in_second_phase(make_tasks, retrospective=None)
    leases, report = run_step(coordinator, 1, 8, all_wrong)
    assert not any(lease.replayed for lease in leases)
    assert report.pool_size == 0


def test_fresh_tasks_are_visited_once_per_pass_however_much_is_replayed(make_tasks):
    coordinator = in_second_phase(make_tasks, num_second=12)
    leases = [lease for step in range(1, 5) for lease in run_step(coordinator, step, 4, all_wrong)[0]]
    fresh = [lease.task_id for lease in leases if not lease.replayed]
    assert sorted(fresh) == sorted(f"t1-{index}" for index in range(12))


def test_a_replayed_task_that_is_solved_leaves_the_pool(make_tasks):
    coordinator = in_second_phase(make_tasks, num_first=2)
    _, report = run_step(coordinator, 1, 8, lambda lease: (1.0, 1.0) if lease.replayed else (0.0, 0.0))
    assert report.pool_size == 0
    leases, _ = run_step(coordinator, 2, 8, all_wrong)
    assert not any(lease.replayed for lease in leases)


def test_the_pool_of_a_third_phase_is_drawn_from_both_earlier_ones(make_tasks):
    coordinator = start(make_tasks(2, 4, 4), *[FixedSteps(steps=1)] * 3)
    run_step(coordinator, 0, 2, all_wrong)
    # of the first phase one task is replayed and solved, the other one stays hard; the second phase solves nothing
    leases, report = run_step(coordinator, 1, 5, lambda lease: (float(lease.replayed),))
    assert sum(lease.replayed for lease in leases) == 1
    assert report.transition is not None
    assert (report.transition.to_phase, report.transition.pool_size) == (2, 5)


def test_the_weighted_selection_keeps_every_task_that_is_not_solved(make_tasks):
    replay = RetrospectiveConfig(selection="difficulty", max_share=0.5)
    coordinator = start(make_tasks(3, 8), FixedSteps(steps=1), FixedSteps(steps=9), retrospective=replay)
    accuracies = {"t0-0": (0.0, 0.0), "t0-1": (1.0, 0.0), "t0-2": (1.0, 1.0)}
    _, report = run_step(coordinator, 0, 3, lambda lease: accuracies[lease.task_id])
    assert report.transition is not None
    assert (report.transition.pool_size, report.transition.pool_accuracy) == (2, 0.25)


def test_a_task_that_was_not_solved_at_the_transition_is_one_to_replay_as_soon_as_it_relapses(make_tasks):
    replay = RetrospectiveConfig(selection="difficulty", max_share=0.5)
    coordinator = start(make_tasks(1, 8), FixedSteps(steps=1), FixedSteps(steps=9), retrospective=replay)
    coordinator.open_batch(1)
    coordinator.report([outcome(lease, 1.0, 1.0) for lease in pull_all(coordinator)])
    assert coordinator.finish_step(0, num_trained_groups=0).transition.pool_size == 0
    coordinator.record_measured(["t0-0"], {"t0-0": 0.5})
    leases, _ = run_step(coordinator, 1, 2, half_right)
    assert [lease.task_id for lease in leases if lease.replayed] == ["t0-0"]


def test_a_report_tells_replayed_groups_from_fresh_ones(make_tasks):
    coordinator = in_second_phase(make_tasks, num_first=1, num_second=3)
    coordinator.open_batch(4)
    leases = pull_all(coordinator)
    fresh = [lease for lease in leases if not lease.replayed]
    (replayed,) = (lease for lease in leases if lease.replayed)
    coordinator.report([outcome(fresh[0], 1.0, 0.0), outcome(fresh[1], 1.0), outcome(fresh[2]), outcome(replayed, 0.0)])
    report = coordinator.finish_step(1, num_trained_groups=1)
    assert (report.replayed_share, report.fresh_accuracy) == (0.25, 0.75)
    assert report.fresh_prompt_tokens == (20 + 21 + 22) / 3
    assert (report.replayed_accuracy, report.replayed_prompt_tokens) == (0.0, 10.0)
    assert (report.phase, report.epoch) == (1, 1.0)


def test_a_run_without_any_variance_ends(make_tasks):
    coordinator = start(make_tasks(4, 4), FixedSteps(steps=500), FixedEpochs(epochs=500), max_fruitless_steps=2)
    reasons = []
    while not coordinator.phase_state().finished:
        _, report = run_step(coordinator, len(reasons), 2, all_wrong, trained=0)
        reasons.append(report.transition and report.transition.reason)
    assert reasons == [None, EndReason.FRUITLESS, None, EndReason.FRUITLESS]


# ---- leases


def test_leases_of_a_dead_holder_are_given_out_again_unchanged(make_tasks):
    coordinator = start(make_tasks(4), FixedSteps(steps=9))
    coordinator.open_batch(3)
    lost = coordinator.lease("dead")
    kept = coordinator.lease("alive")
    assert coordinator.release("dead") == ()
    assert coordinator.lease("alive") is lost
    assert kept.lease_id == 1
    assert coordinator.lease("alive").lease_id == 2
    assert coordinator.lease("alive") is None


def test_an_expired_lease_is_given_out_again_and_only_its_first_report_counts(make_tasks, clock):
    tasks = make_tasks(2)
    coordinator = start(tasks, FixedSteps(steps=9), now=clock)
    coordinator.open_batch(1)
    slow = coordinator.lease("slow")
    clock.now_s = LEASE_TIMEOUT_S
    assert coordinator.lease("quick") is slow
    assert coordinator.report([outcome(slow, 0.5), outcome(slow, 1.0)]) == (0,)
    assert coordinator.lease_counts() == LeaseCounts(opened=1, leased=2, expired=1, reported=1, duplicate=1)
    assert coordinator.finish_step(0, num_trained_groups=1).fresh_accuracy == 0.5


def test_a_report_of_an_unknown_lease_is_ignored_and_counted(make_tasks):
    coordinator = start(make_tasks(2), FixedSteps(steps=9))
    coordinator.open_batch(1)
    lease = coordinator.lease("rollout-0")
    stray = TaskOutcome(lease_id=99, task_id=lease.task_id, accuracies=(1.0,), num_samples=1)
    assert coordinator.report([stray]) == ()
    assert coordinator.lease_counts().unknown == 1


# ---- quarantine


def quarantine(lease):
    return TaskOutcome(lease_id=lease.lease_id, task_id=lease.task_id, accuracies=(), num_samples=0, quarantined=True)


def test_a_task_in_quarantine_is_leased_no_more_and_a_pass_ends_without_it(make_tasks):
    coordinator = start(make_tasks(4), FixedSteps(steps=9))
    coordinator.open_batch(2)
    bad, good = pull_all(coordinator)
    coordinator.report([quarantine(bad), outcome(good, 0.0, 1.0)])
    assert coordinator.finish_step(0, num_trained_groups=1).num_quarantined == 1
    leases = [lease for step in range(1, 5) for lease in run_step(coordinator, step, 2, half_right)[0]]
    first, second, third = leases[:2], leases[2:5], leases[5:]
    assert {lease.task_id for lease in second} == {good.task_id, *[lease.task_id for lease in first]}
    assert {lease.task_id for lease in third} == {lease.task_id for lease in second}
    counts = coordinator.lease_counts()
    assert (counts.opened, counts.reported) == (10, 10)


def test_a_task_in_quarantine_is_replayed_no_more(make_tasks):
    coordinator = start(make_tasks(4, 8), FixedSteps(steps=1), FixedSteps(steps=9))
    coordinator.open_batch(4)
    bad, *others = pull_all(coordinator)
    coordinator.report([quarantine(bad), *[outcome(lease, 0.0, 0.0) for lease in others]])
    assert coordinator.finish_step(0, num_trained_groups=1).transition.pool_size == 3
    coordinator.open_batch(4)
    replayed = next(lease for lease in pull_all(coordinator) if lease.replayed)
    coordinator.report([quarantine(replayed)])
    assert coordinator.finish_step(1, num_trained_groups=1).pool_size == 2
    leases = [lease for step in range(2, 8) for lease in run_step(coordinator, step, 4, all_wrong)[0]]
    healthy = {lease.task_id for lease in others} - {replayed.task_id}
    assert {lease.task_id for lease in leases if lease.replayed} == healthy


def test_quarantine_is_part_of_the_state(make_tasks):
    tasks = make_tasks(3)
    coordinator = start(tasks, FixedSteps(steps=9))
    coordinator.open_batch(1)
    (bad,) = pull_all(coordinator)
    coordinator.report([quarantine(bad)])
    coordinator.finish_step(0, num_trained_groups=1)
    restored = start(tasks, FixedSteps(steps=9))
    restored.load_state_dict(json.loads(json.dumps(coordinator.state_dict())))
    leases, report = run_step(restored, 1, 4, half_right)
    assert bad.task_id not in [lease.task_id for lease in leases]
    assert (report.num_quarantined, report.num_tasks) == (1, 3)


def test_a_phase_whose_tasks_are_all_in_quarantine_ends_the_run(make_tasks):
    coordinator = start(make_tasks(1), FixedSteps(steps=9))
    coordinator.open_batch(1)
    (bad,) = pull_all(coordinator)
    coordinator.report([quarantine(bad)])
    with pytest.raises(RunFailed, match="every task of phase-0 is in quarantine"):
        coordinator.open_batch(1)


# ---- determinism and resume


def accuracies_by_lot(lease):
    """A fixed lottery: two samples that depend on the task and the attempt alone."""
    lot = zlib.crc32(f"{lease.task_id} {lease.attempt}".encode())
    return (float(lot % 3 == 0), float(lot % 5 == 0))


def describe(lease):
    return (lease.lease_id, lease.task_id, lease.attempt, lease.replayed, lease.phase)


def whole_run(coordinator, *, first_step=0, batch=5, holders=("a",), order=None, after_step=lambda c, s: c):
    """Runs to the end, with a replacement wave in every step; returns leases and reports."""
    rng, leases, reports, step = random.Random(order), [], [], first_step
    while not coordinator.phase_state().finished:
        for wave in (batch, 2):
            coordinator.open_batch(wave)
            pulled = []
            while lease := coordinator.lease(rng.choice(holders)):
                pulled.append(lease)
            leases += [describe(lease) for lease in pulled]
            if order is not None:
                rng.shuffle(pulled)
            for lease in pulled:
                coordinator.report([outcome(lease, *accuracies_by_lot(lease))])
        reports.append(coordinator.finish_step(step, num_trained_groups=1))
        coordinator = after_step(coordinator, step)
        step += 1
    return leases, reports


ENDS = (FixedEpochs(epochs=1.5), FixedSteps(steps=4), FixedEpochs(epochs=2))
EQ_10 = RetrospectiveConfig(selection="difficulty", max_share=0.4)
BOTH = pytest.mark.parametrize("replay", [REPLAY, EQ_10])


@BOTH
def test_the_sequence_of_leases_does_not_depend_on_who_pulls_or_reports_first(make_tasks, replay):
    tasks = make_tasks(9, 7, 5)
    plain = whole_run(start(tasks, *ENDS, retrospective=replay))
    for order in range(3):
        assert whole_run(start(tasks, *ENDS, retrospective=replay), holders=("a", "b", "c"), order=order) == plain
    assert any(replayed for _, _, _, replayed, _ in plain[0])


def test_the_sequence_of_leases_depends_on_the_seed(make_tasks):
    tasks = make_tasks(9, 7, 5)
    assert whole_run(start(tasks, *ENDS, seed=0))[0] != whole_run(start(tasks, *ENDS, seed=1))[0]


@BOTH
def test_a_run_that_resumes_from_json_after_every_step_equals_the_uninterrupted_one(make_tasks, replay):
    tasks = make_tasks(9, 7, 5)

    def resume(coordinator, _step):
        fresh = start(tasks, *ENDS, retrospective=replay)
        fresh.load_state_dict(json.loads(json.dumps(coordinator.state_dict())))
        assert fresh.state_dict() == coordinator.state_dict()
        return fresh

    plain = whole_run(start(tasks, *ENDS, retrospective=replay))
    assert whole_run(start(tasks, *ENDS, retrospective=replay), after_step=resume) == plain


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_resume_in_the_middle_of_a_step_gives_the_open_leases_out_again(make_tasks_once, data):
    tasks = make_tasks_once
    whole, stopped = start(tasks, *ENDS), start(tasks, *ENDS)
    for coordinator in (whole, stopped):
        run_step(coordinator, 0, 9, accuracies_by_lot)
        coordinator.open_batch(6)
    num_pulled = data.draw(st.integers(0, 6))
    pulled = [stopped.lease("a") for _ in range(num_pulled)]
    reported = [lease for lease in pulled if data.draw(st.booleans())]
    stopped.report([outcome(lease, *accuracies_by_lot(lease)) for lease in reported])

    resumed = start(tasks, *ENDS)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    rest = pull_all(resumed)
    done = {lease.lease_id for lease in reported}
    everything = pull_all(whole)
    assert [describe(x) for x in rest] == [describe(x) for x in everything if x.lease_id not in done]
    resumed.report([outcome(lease, *accuracies_by_lot(lease)) for lease in rest])
    whole.report([outcome(lease, *accuracies_by_lot(lease)) for lease in everything])
    assert resumed.finish_step(1, num_trained_groups=1) == whole.finish_step(1, num_trained_groups=1)
    assert whole_run(resumed, first_step=2) == whole_run(whole, first_step=2)


@pytest.fixture(scope="module")
def make_tasks_once():
    import numpy as np

    from curriculum.task import Task

    return [
        Task(
            task_id=f"t{p}-{i}",
            data_source="x",
            question="?",
            answers=("a",),
            prompt_ids=np.zeros(9, np.int32),
            phase=p,
        )
        for p, count in enumerate((9, 7, 5))
        for i in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.sampled_from(["open", "lease", "die", "late", "report", "wait"]), max_size=60),
    seed=st.integers(0, 3),
)
def test_whatever_happens_no_lease_is_lost_and_the_counts_add_up(make_tasks_once, events, seed):
    rng, now_s = random.Random(seed), [0.0]
    coordinator = Coordinator(
        tasks=entries(make_tasks_once),
        config=config(*ENDS),
        seed=seed,
        now=lambda: now_s[0],
    )
    handed_out, accepted = [], []
    for event in events:
        now_s[0] += LEASE_TIMEOUT_S / 3
        match event:
            case "open":
                coordinator.open_batch(2)
            case "lease":
                handed_out += [x for x in [coordinator.lease(rng.choice("ab"))] if x]
            case "die":
                coordinator.release("a")
            case "late" | "report" if handed_out:
                accepted += coordinator.report([outcome(rng.choice(handed_out), 1.0)])
    counts, num_open = coordinator.lease_counts(), len(coordinator.open_leases())
    num_held = coordinator.state_dict()["leases"]["num_held"]
    assert len(accepted) == len(set(accepted)) == counts.reported
    assert counts.opened == counts.reported + num_open
    assert counts.leased == counts.reported - counts.late + counts.released + counts.expired + num_held
    assert counts.unknown == 0


@pytest.mark.parametrize(
    ("counts", "ends", "seed"), [((3, 4), 2, 1), ((4, 3), 2, 0), ((3, 4), 3, 0)], ids=["seed", "tasks", "phases"]
)
def test_a_state_of_another_run_is_refused(make_tasks, counts, ends, seed):
    state = start(make_tasks(3, 4), *[FixedSteps(steps=1)] * 2).state_dict()
    other = start(make_tasks(*counts, *[1] * (ends - 2)), *[FixedSteps(steps=1)] * ends, seed=seed)
    with pytest.raises(UserError, match="fingerprint"):
        other.load_state_dict(state)


@pytest.mark.parametrize(("steps", "phases"), [(4, [0, 0, 1]), (3, [0, 1]), (1, [1])], ids=["longer", "equal", "over"])
def test_a_phase_may_be_made_longer_or_shorter_between_two_states(make_tasks, steps, phases):
    first = start(make_tasks(3, 4), FixedSteps(steps=3), FixedSteps(steps=1))
    run_step(first, 0, 2, half_right)
    again = start(make_tasks(3, 4), FixedSteps(steps=steps), FixedSteps(steps=1), retrospective=None)
    again.load_state_dict(first.state_dict())
    found = []
    for step in range(1, 1 + len(phases)):
        run_step(again, step, 2, half_right)
        found.append(again.phase_state().phase)
    assert found == phases


def test_a_state_of_another_format_is_refused(make_tasks):
    coordinator = start(make_tasks(1), FixedSteps(steps=1))
    with pytest.raises(UserError, match="format=0"):
        coordinator.load_state_dict({**coordinator.state_dict(), "format": 0})


# ---- bad input


def test_a_curriculum_without_phases_is_refused(make_tasks):
    with pytest.raises(ValueError, match=r"curriculum\.phases"):
        start(make_tasks(1))


def test_a_phase_without_tasks_is_refused(make_tasks):
    with pytest.raises(ValueError, match=r"phases\[1\]=phase-1: no task"):
        start(make_tasks(3), FixedSteps(steps=1), FixedSteps(steps=1))


def test_a_task_outside_the_phases_is_refused(make_tasks):
    with pytest.raises(ValueError, match=r"t1-0: phase=1, expected 0\.\.0"):
        start(make_tasks(1, 1), FixedSteps(steps=1))


def test_task_ids_must_be_unique(make_tasks):
    with pytest.raises(ValueError, match="t0-0: the id is not unique"):
        start(make_tasks(1) * 2, FixedSteps(steps=1))


@pytest.mark.parametrize("accuracy", [1.5, -0.1, float("nan")])
def test_an_accuracy_outside_zero_and_one_is_refused(accuracy):
    with pytest.raises(ValueError, match="accuracies"):
        TaskOutcome(lease_id=0, task_id="a", accuracies=(accuracy,), num_samples=1)


# ---- streams


def replaying(make_tasks):
    """A coordinator in its second phase, with a pool of unsolved tasks of the first."""
    coordinator = start(make_tasks(8, 40), FixedSteps(steps=1), FixedSteps(steps=9))
    run_step(coordinator, 0, 8, all_wrong)
    return coordinator


def test_a_stream_replays_as_soon_as_the_share_of_the_step_allows_it(make_tasks):
    coordinator = replaying(make_tasks)
    ids = [lease_id for number in (1, 2, 1, 3, 1) for lease_id in coordinator.open_stream(number)]
    leases = pull_all(coordinator)
    assert [lease.lease_id for lease in leases] == ids == list(range(8, 16))
    assert [lease.replayed for lease in leases] == [False, False, False, True, False, False, False, True]


def test_a_kept_lease_is_open_until_its_outcome_is_reported(make_tasks):
    coordinator = replaying(make_tasks)
    coordinator.open_stream(2)
    first, second = pull_all(coordinator)
    answered = [(first.lease_id, first.task_id)]
    assert coordinator.keep_all([*answered, (99, "nothing")]) == (True, False)
    assert coordinator.open_leases() == (first.lease_id, second.lease_id)
    assert coordinator.report([outcome(first, 1.0, 0.0)]) == (first.lease_id,)
    assert coordinator.withdraw([second.lease_id]) == 1
    assert coordinator.open_leases() == ()


def test_tasks_that_are_under_way_do_not_count_towards_the_epochs(make_tasks):
    coordinator = start(make_tasks(4), FixedEpochs(epochs=1.0))
    coordinator.open_stream(4)
    leases = pull_all(coordinator)
    coordinator.report([outcome(lease, 1.0, 0.0) for lease in leases[:2]])
    report = coordinator.finish_step(0, num_trained_groups=2)
    assert (report.epoch, report.transition) == (0.5, None)
    coordinator.report([outcome(lease, 1.0, 0.0) for lease in leases[2:]])
    assert coordinator.finish_step(1, num_trained_groups=2).transition.epochs == 1.0


def test_nothing_is_opened_for_a_stream_after_the_last_phase(make_tasks):
    coordinator = start(make_tasks(4), FixedSteps(steps=1))
    run_step(coordinator, 0, 1, half_right)
    with pytest.raises(ValueError, match=r"open_stream\(1\).*phase_state\(\).finished"):
        coordinator.open_stream(1)


@pytest.mark.parametrize("key", ["phase", "clock", "sampler", "pool", "difficulty", "leases", "tally"])
@pytest.mark.parametrize("value", [None, "text", 7.5])
def test_a_state_with_a_wrong_part_is_refused_in_one_line(make_tasks, key, value):
    coordinator = start(make_tasks(3), FixedSteps(steps=1))
    with pytest.raises(UserError, match=r"^curriculum state: not what a coordinator writes \(.*\); resume from"):
        coordinator.load_state_dict({**coordinator.state_dict(), key: value})


def test_a_state_without_a_part_is_refused(make_tasks):
    coordinator = start(make_tasks(3), FixedSteps(steps=1))
    for key in coordinator.state_dict():
        state = {name: part for name, part in coordinator.state_dict().items() if name != key}
        with pytest.raises(UserError, match=r"^curriculum state: "):
            coordinator.load_state_dict(state)
