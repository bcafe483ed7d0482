from collections import Counter

import numpy as np
import pytest

from learner.batch.microbatch import GroupShape
from learner.batch.packing import balance, plan_slice, unshare


def _shape(prompt, *responses):
    return GroupShape(prompt_tokens=prompt, response_tokens=responses)


def _ragged_batch(count, seed=0):
    rng = np.random.default_rng(seed)
    return [
        _shape(int(rng.integers(1, 400)), *(int(n) for n in rng.integers(1, 60, size=rng.integers(1, 9))))
        for _ in range(count)
    ]


def _seen(plan):
    return Counter(
        (part.group, response)
        for rank in plan.ranks
        for micro in rank
        for part in micro.parts
        for response in part.responses
    )


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("max_tokens", [460, 1000, 10**6])
def test_every_response_is_forwarded_exactly_once_within_the_budget(num_ranks, max_tokens):
    shapes = _ragged_batch(17)
    plan = plan_slice(shapes, num_ranks=num_ranks, max_tokens=max_tokens)
    assert _seen(plan) == Counter((g, r) for g, shape in enumerate(shapes) for r in range(len(shape.response_tokens)))
    rows = [micro for rank in plan.ranks for micro in rank]
    assert all(row.num_tokens <= max_tokens for row in rows)


def test_a_row_counts_each_prompt_once():
    plan = plan_slice([_shape(10, 2, 3), _shape(20, 4)], num_ranks=1, max_tokens=100)
    (row,) = plan.ranks[0]
    assert row.num_tokens == 10 + 5 + 20 + 4


def test_all_ranks_make_the_same_number_of_micro_steps():
    plan = plan_slice([_shape(50, 50), _shape(1, 1)], num_ranks=3, max_tokens=100)
    ranks = plan.ranks
    assert {len(rank) for rank in ranks} == {1}
    assert [len(rank[0].parts) for rank in ranks] == [1, 1, 0]


def test_the_responses_of_a_group_beyond_the_budget_go_in_batches_behind_one_prompt():
    plan = plan_slice([_shape(10, 5, 4, 3, 2)], num_ranks=2, max_tokens=17)
    first, second = plan.ranks
    (row,) = first
    assert [part.responses for part in row.parts] == [(0, 1, 2, 3)]
    assert [[part.responses for part in batch] for batch in row.batches] == [[(0, 3)], [(1, 2)]]
    assert row.num_tokens == 10 + 7
    # the other rank makes the same calls on nothing
    assert [(row.parts, row.batches) for row in second] == [((), ((), ()))]


def test_a_row_that_fits_is_cut_alike_where_another_rank_goes_in_batches():
    plan = plan_slice([_shape(10, 5, 4, 3, 2), _shape(3, 1)], num_ranks=2, max_tokens=17)
    first, second = (rank[0] for rank in plan.ranks)
    assert len(first.batches) == len(second.batches) == 2
    assert second.batches == (second.parts, ())


def test_unsharing_gives_every_response_its_own_row_on_the_same_rank():
    plan = plan_slice(_ragged_batch(9), num_ranks=2, max_tokens=460)
    single = unshare(plan)
    for rank, before in zip(single.ranks, plan.ranks, strict=True):
        pairs = sorted((part.group, i) for row in before for part in row.parts for i in part.responses)
        assert sorted((row.parts[0].group, *row.parts[0].responses) for row in rank if row.parts) == pairs
    assert len({len(rank) for rank in single.ranks}) == 1


def test_a_prompt_with_one_response_beyond_the_budget_names_the_key():
    with pytest.raises(ValueError, match=r"learner\.max_tokens_per_microbatch=17; raise it"):
        plan_slice([_shape(3, 1), _shape(10, 8)], num_ranks=1, max_tokens=17)


@pytest.mark.parametrize("shape", [_shape(0, 1), _shape(1), _shape(1, 0)])
def test_empty_prompts_and_responses_are_refused(shape):
    with pytest.raises(ValueError, match="at least one token"):
        plan_slice([shape], num_ranks=1, max_tokens=17)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="no groups"):
        plan_slice([], num_ranks=1, max_tokens=17)


def test_the_load_of_the_ranks_is_balanced():
    plan = plan_slice(_ragged_batch(128), num_ranks=4, max_tokens=2000)
    loads = [sum(row.cost for row in rank) for rank in plan.ranks]
    assert max(loads) < 1.02 * sum(loads) / 4


def test_long_prompts_weigh_more_than_their_tokens():
    # 100K tokens in one prompt cost more than in two, so they get a rank of their own
    shapes = [_shape(50_000, 1), _shape(50_000, 1), _shape(100_000, 1), _shape(20_000, 1)]
    plan = plan_slice(shapes, num_ranks=2, max_tokens=200_000)
    assert plan.groups_of(0) == (2,)
    assert plan.groups_of(1) == (0, 1, 3)


def test_the_ranks_share_the_groups_without_overlap():
    plan = plan_slice(_ragged_batch(20), num_ranks=3, max_tokens=1000)
    assert sorted(g for rank in range(3) for g in plan.groups_of(rank)) == list(range(20))


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
