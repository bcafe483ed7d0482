import math

import pytest
import torch

from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, RowTensors
from learner.objective.objective import TOKEN_SUMS, Objective, PolicyLoss, SftLoss


@pytest.fixture
def row(make_group):
    built = build_microbatch(
        RowPlan(responses={0: (0, 1)}), {0: make_group(3, (2, 2))}, num_groups=1, aggregation=TOKEN_MEAN
    )
    return RowTensors.of(built, Placement(device=torch.device("cpu")))


def _scores(row, logprobs=-2.0, **columns):
    full = torch.full_like(row.weights_N, logprobs).requires_grad_()
    zeros = torch.zeros_like(row.weights_N)
    known = {"entropy_N": zeros + 1, "hits_N": zeros, "log_nucleus_N": zeros, "inside_N": zeros + 1, **columns}
    return TokenScores(logprobs_N=full, **known)


def _run(row, objective, scores, **kwargs):
    loss = PolicyLoss(row, objective, **{"old": None, "reference_N": None, **kwargs})
    terms = loss(slice(0, 4), scores)
    terms.sum().backward()
    return terms.detach(), scores.logprobs_N.grad, dict(zip(TOKEN_SUMS, loss.sums.tolist(), strict=True))


PLAIN = Objective(clip_low=0.2, clip_high=0.28)


def test_the_first_update_has_ratio_one_and_the_gradient_of_the_advantage(row):
    terms, gradient, sums = _run(row, PLAIN, _scores(row))
    torch.testing.assert_close(gradient, -row.weights_N * row.advantages_N)
    torch.testing.assert_close(terms, -row.weights_N * row.advantages_N)
    assert (sums["mean_ratio"], sums["masked_fraction"], sums["importance_weight"]) == (4, 0, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_token_without_a_finite_rollout_logprob_is_left_out_and_counted(row, bad, cap):
    row.rollout_logprobs_N[1] = bad
    terms, gradient, sums = _run(row, Objective(clip_low=0.2, clip_high=0.28, importance_cap=cap), _scores(row))
    assert (terms[1].item(), gradient[1].item()) == (0.0, 0.0)
    assert gradient.isfinite().all()
    assert gradient[[0, 2, 3]].all()
    assert sums["masked_fraction"] == 1


def test_a_token_outside_the_learners_nucleus_is_left_out_and_counted(row):
    inside = torch.tensor([1.0, 1.0, 0.0, 1.0])
    _, gradient, sums = _run(row, PLAIN, _scores(row, inside_N=inside))
    assert (gradient != 0).tolist() == [True, True, False, True]
    assert sums["masked_fraction"] == 1


def test_the_importance_weight_compares_the_distributions_cut_to_their_nucleus(row):
    row.rollout_logprobs_N.fill_(-2.0)
    log_nucleus = torch.full((4,), math.log(0.5))  # cut to half the mass, the learner's log-prob is -2 + 0.69
    objective = Objective(clip_low=0.2, clip_high=0.28, importance_cap=10.0)
    terms, _, sums = _run(row, objective, _scores(row, log_nucleus_N=log_nucleus))
    torch.testing.assert_close(terms, -2 * row.weights_N * row.advantages_N)
    assert sums["importance_weight"] == pytest.approx(8.0)
    assert sums["log_nucleus"] == pytest.approx(4 * math.log(0.5))


def test_the_kl_is_measured_without_a_coefficient_and_counts_with_one(row):
    reference = torch.full((4,), -2.5)
    plain, _, sums = _run(row, PLAIN, _scores(row), reference_N=reference)
    assert sums["kl_to_reference"] == pytest.approx(4 * (math.exp(-0.5) + 0.5 - 1), rel=1e-5)
    with_kl, _, _ = _run(
        row, Objective(clip_low=0.2, clip_high=0.28, kl_coefficient=2.0, kl_estimator="k2"), _scores(row),
        reference_N=reference,
    )  # fmt: skip
    torch.testing.assert_close(with_kl - plain, row.weights_N * 2.0 * 0.5**2 / 2)


def test_the_entropy_bonus_lowers_the_loss(row):
    objective = Objective(clip_low=0.2, clip_high=0.28, entropy_coefficient=0.5)
    terms, _, _ = _run(row, objective, _scores(row))
    torch.testing.assert_close(terms, row.weights_N * (-row.advantages_N - 0.5))


def test_the_old_policy_bounds_the_ratio(row):
    old = TokenScores(*(column.detach() for column in _scores(row, logprobs=-3.0)))
    terms, _, sums = _run(row, PLAIN, _scores(row), old=old)
    ratio = math.e
    expected = torch.where(row.advantages_N > 0, 1.28 * row.advantages_N, ratio * row.advantages_N)
    torch.testing.assert_close(terms, -row.weights_N * expected)
    assert sums["clip_fraction"] == int((row.advantages_N > 0).sum())


def test_clipped_tokens_are_told_apart_by_the_side_of_the_clip(row):
    row.advantages_N.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    scores = _scores(row)
    old = TokenScores(*(column.detach() for column in scores))
    ratios = torch.tensor([1.5, 1.1, 0.5, 1.5])  # held at 1.28, free, held at 0.8, free: the last one has A < 0
    old = old._replace(logprobs_N=old.logprobs_N - ratios.log())
    _, _, sums = _run(row, PLAIN, scores, old=old)
    assert (sums["clip_fraction"], sums["clip_low_fraction"], sums["clip_high_fraction"]) == (2, 1, 1)


def test_the_warm_up_is_the_weighted_negative_log_likelihood(row):
    torch.testing.assert_close(SftLoss(row)(slice(1, 3), _part(_scores(row))), 2.0 * row.weights_N[1:3])


def _part(scores):
    return TokenScores(*(column[1:3] for column in scores))


def test_a_group_without_signal_has_no_loss_and_no_gradient(row):
    row.advantages_N.zero_()
    terms, gradient, sums = _run(row, PLAIN, _scores(row))
    assert not terms.any()
    assert not gradient.any()
    assert (sums["masked_fraction"], sums["clip_fraction"]) == (0, 0)
