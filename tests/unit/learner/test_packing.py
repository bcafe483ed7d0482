from collections import Counter

import numpy as np
import pytest

from learner.batch.microbatch import TrainingItem
from learner.batch.packing import PAIR_COST, balance, groups_of, part_cost, part_tokens, plan_slice, unshare


def _group(prompt, *responses):
    zeros = (0.0,) * len(responses)
    return TrainingItem(group=None, advantages=zeros, prompt_tokens=prompt, response_tokens=responses)


def _ragged_batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        _group(int(rng.integers(1, 400)), *(int(n) for n in rng.integers(1, 60, size=rng.integers(1, 9))))
        for _ in range(count)
    ]


def _seen(plan):
    return Counter(
        (group, response) for rank in plan for row in rank for group, own in row.responses.items() for response in own
    )


def _tokens(row, groups):
    """Of what is forwarded at once: the row, or its largest batch behind the prompts."""
    return max(
        sum(part_tokens(groups[group], batch.get(group, ())) for group in row.responses)
        for batch in row.batches or (row.responses,)
    )


def _cost(rank, groups):
    return sum(part_cost(groups[group], own, PAIR_COST) for row in rank for group, own in row.responses.items())


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("max_tokens", [460, 1000, 10**6])
def test_every_response_is_forwarded_exactly_once_within_the_budget(num_ranks, max_tokens):
    groups = _ragged_batch(17)
    plan = plan_slice(groups, num_ranks=num_ranks, max_tokens=max_tokens)
    assert _seen(plan) == Counter((g, r) for g, group in enumerate(groups) for r in range(len(group.response_tokens)))
    assert all(_tokens(row, groups) <= max_tokens for rank in plan for row in rank if row.responses)


def test_a_row_counts_each_prompt_once():
    groups = [_group(10, 2, 3), _group(20, 4)]
    ((row,),) = plan_slice(groups, num_ranks=1, max_tokens=10 + 5 + 20 + 4)
    assert row.responses == {1: (0,), 0: (0, 1)}
    ((first, second),) = plan_slice(groups, num_ranks=1, max_tokens=10 + 5 + 20 + 3)
    assert (first.responses, second.responses) == ({1: (0,)}, {0: (0, 1)})


def test_all_ranks_make_the_same_number_of_micro_steps():
    plan = plan_slice([_group(50, 50), _group(1, 1)], num_ranks=3, max_tokens=100)
    assert {len(rank) for rank in plan} == {1}
    assert [len(rank[0].responses) for rank in plan] == [1, 1, 0]


def test_the_responses_of_a_group_beyond_the_budget_go_in_batches_behind_one_prompt():
    ((row,), (other,)) = plan_slice([_group(10, 5, 4, 3, 2)], num_ranks=2, max_tokens=17)
    assert row.responses == {0: (0, 1, 2, 3)}
    assert row.batches == ({0: (0, 3)}, {0: (1, 2)}), "10 + 5 + 2 and 10 + 4 + 3"
    assert (other.responses, other.batches) == ({}, ())


def test_a_row_that_fits_stays_whole_where_another_rank_goes_in_batches():
    plan = plan_slice([_group(10, 5, 4, 3, 2), _group(3, 1)], num_ranks=2, max_tokens=17)
    first, second = (rank[0] for rank in plan)
    assert (len(first.batches), second.batches) == (2, ())


def test_unsharing_gives_every_response_its_own_row_on_the_same_rank():
    plan = plan_slice(_ragged_batch(9), num_ranks=2, max_tokens=460)
    single = unshare(plan)
    for rank, before in zip(single, plan, strict=True):
        assert _seen([rank]) == _seen([before])
        assert all(len(own) == 1 for row in rank for own in row.responses.values())
        assert all(len(row.responses) <= 1 for row in rank)
    assert len({len(rank) for rank in single}) == 1


def test_a_prompt_with_one_response_beyond_the_budget_names_the_key():
    with pytest.raises(ValueError, match=r"learner\.max_tokens_per_microbatch=17; raise it"):
        plan_slice([_group(3, 1), _group(10, 8)], num_ranks=1, max_tokens=17)


@pytest.mark.parametrize("group", [_group(0, 1), _group(1), _group(1, 0)])
def test_empty_prompts_and_responses_are_refused(group):
    with pytest.raises(ValueError, match="at least one token"):
        plan_slice([group], num_ranks=1, max_tokens=17)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="no groups"):
        plan_slice([], num_ranks=1, max_tokens=17)


def test_the_load_of_the_ranks_is_balanced():
    groups = _ragged_batch(128)
    loads = [_cost(rank, groups) for rank in plan_slice(groups, num_ranks=4, max_tokens=2000)]
    assert max(loads) < 1.02 * sum(loads) / 4


def test_long_prompts_weigh_more_than_their_tokens():
    # 100K tokens in one prompt cost more than in two, so they get a rank of their own
    groups = [_group(50_000, 1), _group(50_000, 1), _group(100_000, 1), _group(20_000, 1)]
    plan = plan_slice(groups, num_ranks=2, max_tokens=200_000)
    assert groups_of(plan, 0) == (2,)
    assert groups_of(plan, 1) == (0, 1, 3)


def test_the_ranks_share_the_groups_without_overlap():
    plan = plan_slice(_ragged_batch(20), num_ranks=3, max_tokens=1000)
    assert sorted(g for rank in range(3) for g in groups_of(plan, rank)) == list(range(20))


def test_equal_input_gives_an_equal_plan():
    arguments = {"num_ranks": 3, "max_tokens": 1000}
    assert plan_slice(_ragged_batch(40), **arguments) == plan_slice(_ragged_batch(40), **arguments)


def test_trades_reach_a_balance_that_heaviest_first_misses():
    # heaviest first gives 5 + 3 + 3 = 11 and 5 + 4 = 9 on two ranks; 5 + 5 and 4 + 3 + 3 is even
    assert sorted(map(sorted, balance({0: 5.0, 1: 5.0, 2: 4.0, 3: 3.0, 4: 3.0}, 2))) == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("num_ranks", [1, 2, 7, 300])
def test_balancing_keeps_every_group_once(num_ranks):
    costs = {i: float(c) for i, c in enumerate(np.random.default_rng(3).lognormal(size=200))}
    assigned = balance(costs, num_ranks)
    assert len(assigned) == num_ranks
    assert sorted(group for rank in assigned for group in rank) == list(range(200))
