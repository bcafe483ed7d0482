"""From a lease to a group, on an engine that returns what the test says."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import replace

import pytest

from actors.faults import FaultKind, FaultyGroup
from actors.rollout import Sample, Sampling, sample_group, sampling_seed
from actors.trajectory import GroupMeta

SAMPLING = Sampling(num_samples=2, temperature=0.7, top_p=0.9, max_response_tokens=5)
STOPPED = Sample(token_ids=(7, 8, 2), logprobs=(-0.5, -0.25, -1.0), finish_reason="stop", versions=((0, "3"),))
CUT = Sample(token_ids=(7, 9), logprobs=(-0.5, -2.0), finish_reason="length", versions=((0, "2"), (1, "3")))
NOTHING = Sample(token_ids=(), logprobs=(), finish_reason="deadline", versions=())


@pytest.fixture
def sampled(task):
    def sample(engine, lease, *, run_seed=0):
        return asyncio.run(sample_group(engine, task, lease, SAMPLING, run_seed=run_seed, engine_name="rollout-0"))

    return sample


def test_a_group_carries_lease_task_and_samples_in_order(sampled, fake_engine, lease):
    group = sampled(fake_engine([STOPPED, CUT]), lease)
    assert group.lease is lease
    assert (group.task.question, group.task.answers, group.engine) == ("who?", ("alice",), "rollout-0")
    assert group.temperature == 0.7
    assert [t.response_ids.tolist() for t in group.trajectories] == [[7, 8, 2], [7, 9]]
    assert [t.rollout_logprobs.tolist() for t in group.trajectories] == [[-0.5, -0.25, -1.0], [-0.5, -2.0]]
    assert [t.finish_reason for t in group.trajectories] == ["stop", "length"]
    assert [(t.policy_version, t.newest_policy_version) for t in group.trajectories] == [(3, 3), (2, 3)]


def test_a_group_is_one_request(sampled, fake_engine, lease):
    engine = fake_engine([STOPPED, CUT])
    assert sampled(engine, lease, run_seed=5).max_response_tokens == 5
    assert engine.requests == [([4, 5, 6], SAMPLING, sampling_seed(5, "t1", 2))]


def test_a_lease_that_is_handed_out_again_asks_for_the_same_samples(sampled, fake_engine, lease):
    engine = fake_engine([STOPPED, CUT])
    sampled(engine, lease)
    sampled(engine, replace(lease, lease_id=30))
    sampled(engine, replace(lease, attempt=3))
    first, again, next_attempt = (seed for _, _, seed in engine.requests)
    assert first == again != next_attempt


def test_too_few_samples_are_a_fault_that_names_task_lease_and_engine(sampled, fake_engine, lease):
    with pytest.raises(FaultyGroup, match=r"task t1 \(lease 9\): rollout-0 returned 1 of 2 samples .*sampled again"):
        sampled(fake_engine([STOPPED]), lease)


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (replace(CUT, logprobs=(-0.5,)), FaultKind.MISSING_LOGPROBS),
        (replace(CUT, logprobs=()), FaultKind.MISSING_LOGPROBS),
        (replace(CUT, token_ids=(), logprobs=(), versions=()), FaultKind.EMPTY_ANSWER),
        (replace(CUT, finish_reason="tired"), FaultKind.UNKNOWN_FINISH),
        (replace(CUT, versions=((0, "4"),)), FaultKind.FUTURE_VERSION),
        (replace(CUT, versions=((0, "3"), (1, "9"))), FaultKind.FUTURE_VERSION),
        (replace(CUT, versions=((0, "three"),)), FaultKind.UNREADABLE_VERSION),
        (replace(CUT, versions=()), FaultKind.UNREADABLE_VERSION),
        (replace(CUT, versions=((1, "3"),)), FaultKind.UNREADABLE_VERSION),
        (replace(CUT, versions=((0, "3"), (2, "3"))), FaultKind.UNREADABLE_VERSION),
    ],
)
def test_a_sample_that_must_not_be_trained_on_is_a_fault_of_its_kind(sampled, fake_engine, lease, sample, kind):
    with pytest.raises(FaultyGroup, match=r"returned sample 1 (with|of)") as raised:
        sampled(fake_engine([STOPPED, sample]), lease)
    assert raised.value.kind is kind
    assert not raised.value.is_final


def test_a_fault_of_a_lease_that_came_back_three_times_is_final(sampled, fake_engine, lease):
    with pytest.raises(FaultyGroup, match="given up") as raised:
        sampled(fake_engine([STOPPED]), replace(lease, num_requeues=3))
    assert raised.value.is_final


def test_a_fault_survives_the_way_to_another_process(sampled, fake_engine, lease):
    with pytest.raises(FaultyGroup) as raised:
        sampled(fake_engine([STOPPED]), lease)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.kind, copy.lease_id) == (str(raised.value), FaultKind.MISSING_SAMPLES, 9)


def test_an_answer_that_was_cut_before_its_first_token_has_the_version_that_would_have_sampled_it(
    sampled, fake_engine, lease
):
    group = sampled(fake_engine([STOPPED, NOTHING]), lease)
    assert (group.trajectories[1].finish_reason, group.trajectories[1].policy_version) == ("deadline", 3)
    assert GroupMeta.of(group).num_cut == 1


def test_an_answer_that_repeats_itself_until_the_limit_is_marked(sampled, fake_engine, lease):
    ids = (9, *(4, 5) * 20)
    endless = Sample(token_ids=ids, logprobs=(0.0,) * 41, finish_reason="length", versions=((0, "3"),))
    group = sampled(fake_engine([endless, replace(endless, finish_reason="stop")]), lease)
    assert [t.finish_reason for t in group.trajectories] == ["repetition", "stop"]
    meta = GroupMeta.of(group)
    assert (meta.num_truncated, meta.num_repetitive) == (1, 1)


def test_seeds_differ_by_run_task_and_attempt_and_leave_room_for_every_sample():
    triples = [(run, f"t{task}", attempt) for run in range(10) for task in range(20) for attempt in range(10)]
    seeds = {sampling_seed(*triple) for triple in triples}
    assert len(seeds) == len(triples)
    near = sum(other in seeds for seed in seeds for other in range(seed + 1, seed + 9))
    assert near <= 2, "sample i of a group uses seed + i; groups do not share samples"
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_seeds_are_the_same_on_every_machine():
    assert sampling_seed(0, "t1", 0) == 773_344_492
    assert sampling_seed(1, "1/t", 0) != sampling_seed(1, "1", 0)
