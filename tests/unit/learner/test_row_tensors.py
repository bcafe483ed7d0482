"""Rows spread over ranks: every token and every label belongs to exactly one of them."""

import pytest
import torch

from curriculum.errors import UserError
from learner.attention.shared_prefix import dense_layout
from learner.attention.ulysses import HeadExchange, check_heads
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.row_tensors import Placement, RowTensors

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
        (part,) = share.parts
        assert sum(part.layout.spans.lengths) == num_ranks * share.input_ids.shape[1]


def test_every_part_of_a_row_is_cut_on_its_own_and_a_first_label_follows_the_end_of_its_prompt(groups):
    plan = RowPlan(responses=WHOLE.responses, batches=(WHOLE.responses,))
    row = build_microbatch(plan, groups, num_groups=2, aggregation=TOKEN_MEAN)
    first, second = (RowTensors.of(row, placement) for placement in _ranks(2))
    # 7 prompt tokens and one of padding, four for each rank; 9 response tokens and one of padding, five for each
    assert [part.tokens for part in first.parts] == [part.tokens for part in second.parts] == [slice(0, 4), slice(4, 9)]
    assert first.input_ids[0].tolist() == [*row.input_ids[:4], *row.input_ids[7:12]]
    assert second.input_ids[0].tolist() == [*row.input_ids[4:7], 0, *row.input_ids[12:16], 0]
    # the first prompt ends at 4, the second at 6, both with rank 1, and with them labels 0 and 3, and 5
    assert first.own_N.tolist() == [1, 2, 4]
    assert first.predictors_N.tolist() == [4, 5, 7]
    assert second.own_N.tolist() == [0, 3, 5, 6, 7, 8]
    assert second.predictors_N.tolist() == [0, 0, 2, 4, 5, 6]


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
