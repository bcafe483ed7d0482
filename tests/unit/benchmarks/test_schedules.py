"""Schedules by hand: one second per token unless said, no prefill, no sync."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.length_trace import TracedGroup, long_tailed_trace
from benchmarks.schedules import bounded_lag, one_step_off, released_dapo
from benchmarks.simulated_devices import EnginePool, Speeds

SPEEDS = Speeds(num_sequences=2, decode_s=1.0, prefill_s=0.0, train_s=1.0, sync_s=0.0)


def traced(*response_tokens, prompt_tokens=1, has_signal=True):
    return TracedGroup(prompt_tokens=prompt_tokens, response_tokens=response_tokens, has_signal=has_signal)


def ends(pool):
    found = []
    while pool.next_end_s < float("inf"):
        end_s = pool.next_end_s
        found.append((pool.pop(), end_s))
    return found


def test_answers_take_the_next_free_slot_in_the_order_they_came():
    pool = EnginePool(SPEEDS)
    pool.submit(0, traced(3, 5), 0.0)
    pool.submit(1, traced(4, 1), 0.0)  # slots are free at 3 and 5: 3 + 4 = 7, 5 + 1 = 6
    assert ends(pool) == [(0, 5.0), (1, 7.0)]


def test_a_prompt_is_prefilled_once_and_before_every_answer():
    pool = EnginePool(replace(SPEEDS, prefill_s=0.5))
    pool.submit(0, traced(2, 3, prompt_tokens=4), 10.0)
    assert ends(pool) == [(0, 10.0 + 4 * 0.5 + 3)]


def test_a_pause_delays_what_is_under_way_and_what_comes():
    pool = EnginePool(SPEEDS)
    pool.submit(0, traced(6, 2), 0.0)
    pool.pause(3.0, 10.0)
    pool.submit(1, traced(1), 3.0)
    assert ends(pool) == [(1, 14.0), (0, 16.0)]


def test_dapo_waits_for_its_whole_surplus_and_throws_it_away():
    trace = (traced(2, has_signal=False), traced(4), traced(1), traced(9))
    outcome = released_dapo(trace, replace(SPEEDS, sync_s=3.0), batch_size=1, num_generated=4, num_steps=2)
    # slots: 2 | 4 | 2+1=3 | 3+9=12; training 1+4 tokens; sync 3; twice
    assert outcome.seconds == 2 * (12 + 5 + 3)
    assert (outcome.num_trained, outcome.num_generated, outcome.num_with_signal) == (2, 8, 6)
    assert outcome.used_share == pytest.approx(1 / 3)


def test_dapo_samples_again_until_the_batch_is_full():
    trace = (traced(2, has_signal=False), traced(4), traced(3, has_signal=False), traced(3))
    outcome = released_dapo(trace, SPEEDS, batch_size=2, num_generated=2, num_steps=1)
    assert outcome.seconds == 4 + 3 + (1 + 4) + (1 + 3)


def test_one_step_off_trains_while_it_samples_and_waits_for_the_slower_side():
    trace = (traced(4), traced(1, has_signal=False), traced(2))
    outcome = one_step_off(trace, replace(SPEEDS, sync_s=1.0), batch_size=1, oversampling=1, num_steps=3)
    # sample 4 | train 5, sample 1 then 2 | sync | train 3, sample 4 | sync | train 5 | sync
    assert outcome.seconds == 4 + 5 + 1 + 4 + 1 + 5 + 1
    assert (outcome.num_trained, outcome.num_generated, outcome.max_policy_lag) == (3, 4, 1)
    assert outcome.used_share == 1.0


def test_one_step_off_may_sample_a_surplus():
    outcome = one_step_off((traced(2),), SPEEDS, batch_size=2, oversampling=1.5, num_steps=1)
    assert (outcome.num_generated, outcome.num_trained) == (3, 2)


def test_a_bounded_lag_samples_the_next_batches_while_the_first_is_trained():
    outcome = bounded_lag((traced(2),), SPEEDS, batch_size=1, max_policy_lag=1, groups_in_flight=2, num_steps=4)
    # the learner never waits after the first answer: 2 + 4 * (1 + 2)
    assert outcome.seconds == 2 + 4 * 3
    assert (outcome.num_trained, outcome.num_generated, outcome.used_share) == (4, 4, 1.0)
    assert outcome.max_policy_lag == 1


@pytest.mark.parametrize("max_policy_lag", [1, 2])
def test_on_a_long_tail_the_bound_holds_and_every_good_group_is_used(max_policy_lag):
    trace = long_tailed_trace(1024, group_size=4, acceptance=0.5, seed=0)
    speeds = Speeds(num_sequences=64, decode_s=0.02, prefill_s=1e-4, train_s=0.0, sync_s=2.0).balanced(trace)
    common = {"batch_size": 16, "num_steps": 12}
    ours = bounded_lag(trace, speeds, max_policy_lag=max_policy_lag, groups_in_flight=24, **common)
    assert ours.num_trained == 12 * 16
    assert ours.max_policy_lag <= max_policy_lag
    assert ours.used_share >= 0.95
    assert ours.groups_per_s < speeds.ceiling(trace)
    assert ours.groups_per_s > one_step_off(trace, speeds, oversampling=1.0, **common).groups_per_s
    assert ours.groups_per_s > released_dapo(trace, speeds, num_generated=48, **common).groups_per_s


def test_a_balanced_learner_takes_as_long_as_the_engines():
    trace = (traced(6, 2), traced(3, 1, has_signal=False))
    speeds = SPEEDS.balanced(trace)
    assert speeds.engine_seconds(trace) == 6.0
    assert speeds.train_seconds(trace[:1]) == pytest.approx(6.0)
    assert speeds.ceiling(trace) == pytest.approx(1 / 6)


def test_collocated_devices_all_sample_and_then_all_train():
    both = SPEEDS.collocated()
    assert (both.num_sequences, both.train_s) == (4, 0.5)
