"""Prompts, responses in batches, prompts again: the same gradients as the whole row at once."""

import pytest
import torch

from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.packing import RowPlan, plan_slice, unshare
from learner.batch.rows import build_microbatch
from learner.forward.row_tensors import PhasedTensors, Placement, to_device
from learner.forward.three_phase import backward_in_phases, score_in_phases
from learner.objective.objective import Objective, PolicyLoss

CPU = Placement(device=torch.device("cpu"))
OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28, entropy_coefficient=0.1)


def _row(plan, groups, **kwargs):
    return to_device(build_microbatch(plan, groups, num_groups=len(groups), aggregation=TOKEN_MEAN), CPU, **kwargs)


def _plan(parts, batches=()):
    def responses(entries):
        return {group: own for group, *own in entries}

    return RowPlan(responses=responses(parts), batches=tuple(responses(batch) for batch in batches))


def _loss(row):
    return PolicyLoss(row, OBJECTIVE, old=None, reference_N=None)


def _gradients(policy, run):
    policy.zero_grad(set_to_none=True)
    total = run()
    return total, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def _whole(policy, row):
    def run():
        total, *_ = policy(row, _loss(row))
        total.backward()
        return total.item()

    return _gradients(policy, run)


def _phased(policy, row):
    def run():
        done = backward_in_phases(
            policy, lambda scalar, _: scalar.backward(), row, iter([_loss(b) for b in row.batches])
        )
        return sum(total.item() for _, total, _ in done)

    return _gradients(policy, run)


def _assert_equal(ours, theirs):
    """The model's norms compute in fp32, so that is the noise."""
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-6


@pytest.fixture
def groups(make_group):
    return {0: make_group(9, (4, 7, 1, 3)), 1: make_group(5, (6,)), 2: make_group(1, (2, 2))}


PARTS = [(0, 0, 1, 2, 3), (1, 0), (2, 0, 1)]
BATCHES = {
    "one": [PARTS],
    "several": [[(0, 1, 2), (2, 0)], [(0, 0)], [(0, 3), (1, 0), (2, 1)]],
    "with_a_placeholder": [[(0, 0, 1, 2, 3), (1, 0), (2, 0, 1)], []],
}


@pytest.mark.parametrize("batches", BATCHES)
def test_the_gradients_of_the_phases_sum_to_those_of_the_whole_row(policy, groups, batches):
    loss, expected = _whole(policy, _row(_plan(PARTS), groups))
    phased_loss, gradients = _phased(policy, _row(_plan(PARTS, BATCHES[batches]), groups))
    assert phased_loss == pytest.approx(loss, rel=1e-6)  # the loss is summed up in fp32
    _assert_equal(gradients, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_it_holds_under_gradient_checkpointing(policy, groups, use_reentrant):
    _, expected = _whole(policy, _row(_plan(PARTS), groups))
    policy.causal_lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    policy.causal_lm.enable_input_require_grads()
    _, gradients = _phased(policy, _row(_plan(PARTS, BATCHES["several"]), groups))
    _assert_equal(gradients, expected)


def test_what_the_batches_leave_for_the_prompts_is_summed_up_in_fp32(groups):
    row = _row(_plan(PARTS[:1], [[(0, i)] for i in range(4)]), groups)
    states = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    slopes = iter([256.0, 1.0, 1.0, 2.0])

    def forward(_, loss=None, leaf=None):
        return (states * 1,) if leaf is None else ((leaf * next(slopes)).sum(), *[torch.zeros(0)] * 6)

    list(backward_in_phases(forward, lambda scalar, _: scalar.backward(), row, iter([None] * 4)))
    assert states.grad.item() == 260  # in bf16, 256 + 1 is 256


def test_running_a_row_again_starts_from_an_empty_cache(policy, groups):
    row = _row(_plan(PARTS, BATCHES["several"]), groups)
    with torch.no_grad():
        score_in_phases(policy, row)
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    _, gradients = _phased(policy, row)
    _, again = _phased(policy, row)
    _, expected = _whole(policy, _row(_plan(PARTS), groups))
    _assert_equal(gradients, expected)
    assert torch.equal(gradients, again)


def test_the_scores_of_the_batches_are_those_of_the_whole_row(policy, groups):
    with torch.no_grad():
        _, whole_logprobs, *_ = policy(_row(_plan(PARTS[:1]), groups))
        batches = score_in_phases(policy, _row(_plan(PARTS[:1], [[(0, 0, 1)], [(0, 2, 3)]]), groups))
    torch.testing.assert_close(torch.cat([scores.logprobs_N for scores in batches]), whole_logprobs)


def test_the_dense_path_gives_the_same_gradients(policy, groups):
    plan = plan_slice([groups[i] for i in range(3)], num_ranks=1, max_tokens=100)
    _, expected = _whole(policy, _row(plan[0][0], groups))
    total = 0.0
    for single in unshare(plan)[0]:
        total = total + _whole(policy, _row(single, groups, dense=True))[1]
    _assert_equal(total, expected)


def test_a_planned_group_beyond_the_budget_trains_like_one_within(policy, groups):
    alone = [groups[0]]
    (small,) = plan_slice(alone, num_ranks=1, max_tokens=17)[0]
    (large,) = plan_slice(alone, num_ranks=1, max_tokens=99)[0]
    group = {0: groups[0]}
    phased = _row(small, group)
    assert isinstance(phased, PhasedTensors)
    assert max(batch.input_ids.shape[1] for batch in phased.batches) <= 17 - 9
    _assert_equal(_phased(policy, phased)[1], _whole(policy, _row(large, group))[1])


def test_a_phased_row_without_batches_is_refused(policy, groups):
    row = _row(_plan(PARTS, BATCHES["one"]), groups)
    empty = PhasedTensors(prompts=row.prompts, batches=())
    with pytest.raises(RuntimeError, match="at least one batch"):
        list(backward_in_phases(policy, lambda scalar, _: scalar.backward(), empty, iter([])))
