"""The self-check must pass on a sound model and see a broken one."""

import math

import pytest
import torch

from learner.batch.packing import RowPlan
from learner.forward.row_tensors import Placement, to_device
from learner.forward.sharing_check import dense_row, is_rounding, shared_row

CPU = Placement(device=torch.device("cpu"))


def _plan(*responses, batches=()):
    return RowPlan(responses={0: responses} if responses else {}, batches=batches)


def _gap(policy, plan, groups):
    def logprobs(row):
        with torch.no_grad():
            return policy(row)[1]

    shared = logprobs(to_device(shared_row(plan, groups), CPU))
    dense = logprobs(to_device(dense_row(plan, groups), CPU, dense=True))
    return (shared[-len(dense) :] - dense).abs().mean().item()


TWO = {0: (0, 1)}
PLANS = {
    "whole": (_plan(0, 1, 2), 4, 2),
    "single": (_plan(1), 0, 3),
    "batches": (_plan(0, 1, 2, batches=(TWO, {0: (2,)})), 4, 2),
    "one_batch": (_plan(0, 1, batches=(TWO,)), 4, 3),
    "placeholder": (_plan(), 0, 1),
}


@pytest.mark.parametrize("name", PLANS)
def test_both_rows_end_with_the_last_response_and_agree_on_it(policy, make_group, name):
    plan, num_before, num_common = PLANS[name]
    groups = {0: make_group(6, (4, 3, 2))}
    shared, dense = shared_row(plan, groups), dense_row(plan, groups)
    assert bool(shared.batches) is bool(plan.batches)
    labels = shared.labels.tolist()
    assert (len(labels), dense.labels.tolist()) == (num_before + num_common, labels[num_before:])
    assert _gap(policy, plan, groups) < 1e-6


def test_a_model_that_ignores_positions_is_seen(policy, make_group):
    decoder = policy.causal_lm.get_decoder()
    rotary = decoder.rotary_emb.forward
    decoder.rotary_emb.forward = lambda x, ids: rotary(x, torch.arange(ids.shape[1])[None])
    assert _gap(policy, _plan(0, 1), {0: make_group(6, (4, 3))}) > 0.01, "of logits that spread by 2"


@pytest.mark.parametrize(("gap", "passes"), [(0.99, True), (1.01, False), (math.nan, False), (math.inf, False)])
def test_only_a_gap_that_rounding_explains_passes(gap, passes, caplog):
    assert is_rounding(gap) is passes
    assert ("shared prompts off" in caplog.text) is not passes
