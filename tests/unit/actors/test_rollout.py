"""From a lease to a group, on an engine that returns what the test says."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from actors.rollout import Sample, Sampling, sample_group, sampling_seed

SAMPLING = Sampling(num_samples=2, temperature=0.7, top_p=0.9, max_response_tokens=5)
STOPPED = Sample(token_ids=(7, 8, 2), logprobs=(-0.5, -0.25, -1.0), finish_reason="stop")
CUT = Sample(token_ids=(7, 9), logprobs=(-0.5, -2.0), finish_reason="length")


@pytest.fixture
def sampled(task):
    def sample(engine, lease, *, run_seed=0):
        return asyncio.run(sample_group(engine, task, lease, SAMPLING, run_seed=run_seed, engine_name="rollout-0"))

    return sample


def test_a_group_carries_lease_task_and_samples_in_order(sampled, fake_engine, lease):
    group = sampled(fake_engine([STOPPED, CUT]), lease)
    assert (group.lease_id, group.task_id, group.phase, group.replayed) == (9, "t1", 1, True)
    assert (group.question, group.answers, group.engine) == ("who?", ("alice",), "rollout-0")
    assert group.temperature == 0.7
    assert [t.response_ids.tolist() for t in group.trajectories] == [[7, 8, 2], [7, 9]]
    assert [t.rollout_logprobs.tolist() for t in group.trajectories] == [[-0.5, -0.25, -1.0], [-0.5, -2.0]]
    assert [t.finish_reason for t in group.trajectories] == ["stop", "length"]
    assert {t.policy_version for t in group.trajectories} == {3}


def test_a_group_is_one_request(sampled, fake_engine, lease):
    engine = fake_engine([STOPPED, CUT])
    sampled(engine, lease, run_seed=5)
    assert engine.requests == [([4, 5, 6], SAMPLING, sampling_seed(5, "t1", 2))]


def test_a_lease_that_is_handed_out_again_asks_for_the_same_samples(sampled, fake_engine, lease):
    engine = fake_engine([STOPPED, CUT])
    sampled(engine, lease)
    sampled(engine, replace(lease, lease_id=30))
    sampled(engine, replace(lease, attempt=3))
    first, again, next_attempt = (seed for _, _, seed in engine.requests)
    assert first == again != next_attempt


def test_too_few_samples_are_refused(sampled, fake_engine, lease):
    with pytest.raises(ValueError, match="task t1: rollout-0 returned 1 of 2 samples"):
        sampled(fake_engine([STOPPED]), lease)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (replace(CUT, logprobs=(-0.5,)), "2 response tokens but 1 log-probabilities"),
        (replace(CUT, token_ids=(), logprobs=()), "at least one response token"),
        (replace(CUT, finish_reason="tired"), "'tired' is not a valid FinishReason"),
    ],
)
def test_a_broken_sample_is_refused(sampled, fake_engine, lease, sample, message):
    with pytest.raises(ValueError, match=message):
        sampled(fake_engine([STOPPED, sample]), lease)


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
