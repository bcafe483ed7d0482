"""The learner's path for GPUs, run on tensors without values at the shapes of real models."""

from dataclasses import replace

import pytest
import torch

from benchmarks import meta_memory
from curriculum.errors import UserError
from learner.attention.shared_prefix import Pass
from learner.attention.ulysses import check_heads
from learner.batch.packing import RowPlan
from learner.forward import sharing_check
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import to_device
from tests.harness.live_bytes import LiveBytes
from tests.harness.meta_learner import (
    META,
    SIZES,
    Case,
    loss_of,
    make_group,
    make_row,
    measure,
    meta_policy,
    placement,
    row_plan,
    update,
)

PROMPT, RESPONSES = 6_000, [1_000, 350, 7]
SHARED_BY = {"1.5B": (1, 4), "7B": (1, 4), "14B": (1, 4, 8), "32B": (1, 4, 8)}
"""Ranks among which the heads of each model can be divided, of 1, 4 and 8."""
SHAPES = [(name, ranks) for name, counts in SHARED_BY.items() for ranks in counts]


def shortened(name):
    return replace(SIZES[name], layers=2)


@pytest.mark.parametrize(("name", "ranks"), SHAPES)
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_update_gives_every_weight_a_gradient_of_its_shape_and_type(name, ranks, parts, checkpointing):
    policy = meta_policy(shortened(name), checkpointing=checkpointing)
    place = placement(ranks)
    row = make_row(make_group(PROMPT, RESPONSES), place, parts=parts)
    update(policy, row, place)
    for weight in policy.parameters():
        assert weight.grad is not None
        assert (weight.grad.device, weight.grad.shape, weight.grad.dtype) == (META, weight.shape, torch.bfloat16)


@pytest.mark.parametrize(("name", "ranks"), SHAPES)
def test_loss_and_scores_of_a_row_are_fp32_with_one_entry_per_label_of_this_rank(name, ranks):
    policy, place = meta_policy(shortened(name)), placement(ranks)
    group = make_group(PROMPT, RESPONSES)
    row = make_row(group, place, parts=False)
    total, *columns = policy(row, loss_of(row, place))
    assert (total.shape, total.dtype) == ((), torch.float32)
    assert row.input_ids.shape == (1, -(-(PROMPT + sum(RESPONSES)) // ranks))
    for column in columns:
        assert (column.shape, column.dtype) == (row.labels_N.shape, torch.float32)
    if ranks == 1:
        assert len(row.labels_N) == sum(RESPONSES)


@pytest.mark.parametrize(("name", "ranks"), SHAPES)
@pytest.mark.parametrize("parts", [False, True])
def test_the_self_check_compares_as_many_labels_on_both_paths(name, ranks, parts):
    policy, place = meta_policy(shortened(name)), placement(ranks)
    group = make_group(PROMPT, RESPONSES)
    plan = row_plan(group, parts=parts)
    rows = {
        "shared": to_device(sharing_check.shared_row(plan, {0: group}), place),
        "dense": to_device(sharing_check.dense_row(plan, {0: group}), place, dense=True),
    }
    found = {side: sharing_check.gathered(row, scored(policy, row).logprobs_N, place) for side, row in rows.items()}
    assert found["shared"].shape == (RESPONSES[0] + RESPONSES[-1],)
    assert found["dense"].shape == (RESPONSES[-1],)
    assert {column.dtype for column in found.values()} == {torch.float64}


def scored(policy, row):
    """The scores of a row, without gradient."""
    with torch.no_grad():
        return TokenScores(*policy(row)[1:])


def test_a_row_on_meta_takes_the_kernels_of_a_gpu():
    spans = make_row(make_group(10, [3, 2]), placement(1), parts=False).parts[0].layout.spans
    assert spans.offsets is not None
    assert spans.offsets.dtype == torch.int32
    assert spans.lengths == (10, 3, 2)


def test_a_dense_row_takes_torchs_own_attention():
    group = make_group(10, [3])
    row = to_device(sharing_check.dense_row(RowPlan(responses={0: (0,)}), {0: group}), placement(1), dense=True)
    assert row.parts[0].layout.which is Pass.DENSE


@pytest.mark.parametrize("name", ["1.5B", "7B"])
def test_heads_that_eight_ranks_cannot_share_are_refused(name):
    with pytest.raises(UserError, match=r"learner\.sequence_parallel=8 does not divide"):
        check_heads(SIZES[name].heads, SIZES[name].kv_heads, 8)


# memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_the_weights_have_the_bytes_of_the_model(name):
    weights = sum(weight.numel() for weight in meta_policy(SIZES[name]).parameters())
    assert weights == SIZES[name].num_parameters
    assert weights / 1e9 == pytest.approx({"1.5B": 1.78, "7B": 7.62, "14B": 14.77, "32B": 32.76}[name], abs=0.005)


def test_a_checkpointed_update_holds_the_input_of_every_layer():
    few, more = (
        measure(Case(size=replace(SIZES["7B"], layers=layers), prompt=20_000, response=500, group=8))
        for layers in (4, 6)
    )
    inputs = 24_000 * SIZES["7B"].hidden * 2
    assert more.activations - few.activations == 2 * inputs


def test_ranks_that_share_a_row_divide_its_activations():
    alone, shared = (
        measure(Case(size=shortened("32B"), prompt=60_000, response=2_500, group=8, sequence_parallel=ranks))
        for ranks in (1, 8)
    )
    assert alone.activations / 8 <= shared.activations <= 1.4 * alone.activations / 8


def test_a_row_in_parts_takes_no_more_than_one_path_and_its_host_the_inputs():
    size = replace(SIZES["14B"], layers=4)
    one_path = measure(Case(size=size, prompt=20_000, response=4_000, group=1))
    parts = measure(Case(size=size, prompt=20_000, response=4_000, group=8, parts=True))
    assert parts.activations <= 1.15 * one_path.activations


def test_inputs_in_host_memory_leave_the_device():
    case = Case(size=replace(SIZES["7B"], layers=6), prompt=20_000, response=500, group=8)
    inputs = 24_000 * case.size.hidden * 2
    saved = measure(case).activations - measure(replace(case, offload=True)).activations
    assert saved == pytest.approx((case.size.layers - 2) * inputs, rel=0.3)


def test_checkpointing_frees_what_is_inside_the_layers():
    on, off = (
        measure(Case(size=replace(SIZES["1.5B"], layers=8), prompt=8_000, response=1_000, group=8, checkpointing=kept))
        for kept in (True, False)
    )
    assert on.activations < off.activations / 3


@pytest.mark.parametrize("name", ["1.5B, kept", "7B, SP 4", "32B, SP 8"])
def test_the_table_of_the_docs_has_the_peaks_of_this_code(name):
    """The other rows have heads of hundreds of tiles; `benchmarks.meta_memory --write` makes all."""
    page = meta_memory.PAGE.read_text(encoding="utf-8")
    assert meta_memory.line(name, meta_memory.peaks(name)) in page, "run python -m benchmarks.meta_memory --write"


# the meter -------------------------------------------------------------------------------------------------------


def test_the_meter_counts_storages_once_and_forgets_freed_ones():
    before = torch.empty(100, device="meta")
    with LiveBytes("meta", before=[before]) as memory:
        first = torch.empty(10, device="meta")
        view = first.view(2, 5)
        second = before.view(50, 2) + 1
        assert memory.now == 40 + 400
        memory.set_apart(second)
        third = torch.empty(5, device="meta")
        del first
        assert memory.now == 40 + 400 + 20, "a view keeps its storage"
        del view, second, third
    assert (memory.now, memory.peak, memory.peak_apart) == (0, 460, 440)
