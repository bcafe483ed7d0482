"""Rows spread over ranks: every token and every label belongs to exactly one of them."""

import pytest
import torch

from curriculum.errors import UserError
from learner.attention.shared_prefix import dense_layout
from learner.attention.ulysses import HeadExchange, check_heads
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.row_tensors import Placement, PromptTensors, RowTensors

WHOLE = RowPlan(responses={0: (0, 1), 1: (0,)})


@pytest.fixture
def groups(make_group):
    return {0: make_group(5, (3, 2)), 1: make_group(2, (4,))}


def _ranks(num_ranks):
    exchange = HeadExchange(None, num_ranks)  # type: ignore[arg-type]
    return [Placement(device=torch.device("cpu"), exchange=exchange, rank=rank) for rank in range(num_ranks)]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_a_row_is_cut_into_equal_parts_and_every_label_follows_its_predictor(groups, num_ranks):
    row = build_microbatch(WHOLE, groups, num_groups=2, aggregation=TOKEN_MEAN)
    shares = [RowTensors.of(row, placement) for placement in _ranks(num_ranks)]
    tokens = torch.cat([share.input_ids[0] for share in shares])
    assert len({share.input_ids.shape for share in shares}) == 1
    assert tokens[: len(row.input_ids)].tolist() == row.input_ids.tolist()
    assert sorted(int(i) for share in shares for i in share.own_N) == list(range(len(row.labels)))
    for share, placement in zip(shares, _ranks(num_ranks), strict=True):
        start = placement.own_slice(len(row.input_ids))[0].start
        assert (share.predictors_N + start).tolist() == row.predictors[share.own_N].tolist()
        assert share.labels_N.tolist() == row.labels[share.own_N].tolist()
        assert sum(share.layout.spans.lengths) == num_ranks * share.input_ids.shape[1]


def test_a_label_right_behind_a_prompt_follows_the_prompts_last_state(groups):
    plan = RowPlan(responses=WHOLE.responses, batches=(WHOLE.responses,))
    row = build_microbatch(plan, groups, num_groups=2, aggregation=TOKEN_MEAN)
    prompts = [PromptTensors.of(row.prompts, placement) for placement in _ranks(2)]
    # 7 prompt tokens and one of padding: the first prompt ends at 4, the second at 6, both with rank 1
    assert [share.last_S.tolist() for share in prompts] == [[], [0, 2]]
    first, second = (RowTensors.of(row.batches[0], placement) for placement in _ranks(2))
    # row of 3 + 2 + 4 response tokens and one of padding, five for each rank
    assert first.own_N.tolist() == [1, 2, 4]  # not 0 and 3, which follow the first prompt
    assert first.predictors_N.tolist() == [0, 1, 3]  # no prompt state here, so the row starts at 0
    assert second.own_N.tolist() == [0, 3, 5, 6, 7, 8]
    assert second.predictors_N.tolist() == [0, 0, 1, 2, 3, 4]  # two prompt states, then the row


def test_the_sampler_without_a_nucleus_saves_the_search_for_one(make_group):
    plan = RowPlan(responses={0: (0,)})
    cpu = Placement(device=torch.device("cpu"))
    for top_p, expected in ((1.0, None), (0.5, [0.5, 0.5])):
        built = build_microbatch(plan, {0: make_group(3, (2,), top_p=top_p)}, num_groups=1, aggregation=TOKEN_MEAN)
        found = RowTensors.of(built, cpu).top_p_N
        assert (found if found is None else found.tolist()) == expected


def test_the_dense_path_refuses_a_shared_prompt(groups):
    row = build_microbatch(WHOLE, groups, num_groups=2, aggregation=TOKEN_MEAN)
    with pytest.raises(ValueError, match="unshare the plan"):
        dense_layout(row.segments, torch.device("cpu"))


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(12, 2, 4), (12, 2, 6), (12, 2, 12), (28, 4, 2)])
def test_heads_that_divide_pass(heads, kv_heads, ranks):
    check_heads(heads, kv_heads, ranks)


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), [(12, 2, 8), (12, 2, 3), (28, 4, 7)])
def test_heads_that_do_not_divide_name_the_key_and_what_would(heads, kv_heads, ranks):
    with pytest.raises(UserError, match=rf"learner\.sequence_parallel={ranks}.*use one of \[1, 2"):
        check_heads(heads, kv_heads, ranks)
