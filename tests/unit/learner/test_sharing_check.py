"""The self-check must pass on a sound model and see a broken one."""

import pytest
import torch

from learner.batch.packing import RowPlan
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import PhasedTensors, Placement, to_device
from learner.forward.sharing_check import MAX_MEAN_GAP, check_rows
from learner.forward.three_phase import score_in_phases

CPU = Placement(device=torch.device("cpu"))


def _plan(*responses, batches=()):
    return RowPlan(responses={0: responses} if responses else {}, batches=batches)


def _gap(policy, rows):
    def logprobs(row):
        with torch.no_grad():
            batches = (
                score_in_phases(policy, row) if isinstance(row, PhasedTensors) else [TokenScores(*policy(row)[1:])]
            )
        return torch.cat([scores.logprobs_N for scores in batches])

    shared = logprobs(to_device(rows.shared, CPU))[rows.num_first : rows.num_first + rows.num_common]
    dense = logprobs(to_device(rows.dense, CPU, dense=True))[: rows.num_common]
    return (shared - dense).abs().mean().item()


TWO = {0: (0, 1)}
PLANS = {
    "whole": (_plan(0, 1, 2), 4 + 0, 2),
    "single": (_plan(1), 0, 3),
    "batches": (_plan(0, 1, 2, batches=(TWO, {0: (2,)})), 4, 2),
    "more_batches": (_plan(0, 1, batches=(TWO, {}, {})), 4, 3),
    "one_batch": (_plan(0, 1, batches=(TWO,)), 4, 3),
}


@pytest.mark.parametrize("name", PLANS)
def test_both_rows_hold_the_last_response_and_agree_on_it(policy, make_group, name):
    plan, num_first, num_common = PLANS[name]
    rows = check_rows(plan, {0: make_group(6, (4, 3, 2))})
    assert (rows.num_first, rows.num_common) == (num_first, num_common)
    if plan.batches:
        assert len(rows.shared.batches) == len(plan.batches)  # every rank makes as many calls
    assert _gap(policy, rows) < 1e-6


def test_a_model_that_ignores_positions_is_seen(policy, make_group):
    rows = check_rows(_plan(0, 1), {0: make_group(6, (4, 3))})
    decoder = policy.causal_lm.get_decoder()
    rotary = decoder.rotary_emb.forward
    decoder.rotary_emb.forward = lambda x, ids: rotary(x, torch.arange(ids.shape[1])[None])
    assert _gap(policy, rows) > 100 * MAX_MEAN_GAP["fp32"]


def test_a_placeholder_has_nothing_to_compare():
    rows = check_rows(_plan(), {})
    assert (rows.num_first, rows.num_common) == (0, 0)
    assert rows.shared.is_placeholder
