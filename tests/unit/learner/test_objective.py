import math

import pytest
import torch

from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, RowTensors
from learner.objective.objective import TOKEN_SUMS, AnswerPolicyLoss, Objective, PolicyLoss, SftLoss, policy_loss


@pytest.fixture
def row(make_group):
    built = build_microbatch(
        RowPlan(responses={0: (0, 1)}), {0: make_group(3, (2, 2))}, num_groups=1, aggregation=TOKEN_MEAN
    )
    return RowTensors.of(built, Placement(device=torch.device("cpu")))


def _scores(row, logprobs=-2.0, **columns):
    full = torch.full_like(row.weights_N, logprobs).requires_grad_()
    zeros = torch.zeros_like(row.weights_N)
    known = {
        "entropy_N": zeros + 1,
        "hits_N": zeros,
        "log_nucleus_N": zeros,
        "inside_N": zeros + 1,
        "spread_N": zeros,
        **columns,
    }
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


def test_a_token_outside_the_learners_nucleus_is_trained_on_and_counted(row):
    inside = torch.tensor([1.0, 1.0, 0.0, 1.0])
    terms, gradient, sums = _run(row, PLAIN, _scores(row, inside_N=inside))
    torch.testing.assert_close(terms, -row.weights_N * row.advantages_N)
    torch.testing.assert_close(gradient, -row.weights_N * row.advantages_N)
    assert (sums["masked_fraction"], sums["outside_nucleus"], sums["importance_weight"]) == (0, 1, 4)


def test_with_an_importance_weight_a_token_outside_the_learners_nucleus_is_left_out(row):
    row.rollout_logprobs_N.fill_(-2.0)
    inside = torch.tensor([1.0, 1.0, 0.0, 1.0])
    objective = Objective(clip_low=0.2, clip_high=0.28, importance_cap=2.0)
    _, gradient, sums = _run(row, objective, _scores(row, inside_N=inside))
    expected = -row.weights_N * row.advantages_N
    expected[2] = 0.0  # the others keep their weights: the normaliser does not change
    torch.testing.assert_close(gradient, expected)
    assert (sums["masked_fraction"], sums["outside_nucleus"], sums["importance_weight"]) == (1, 1, 3)


def test_the_importance_weight_compares_the_distributions_cut_to_their_nucleus(row):
    row.rollout_logprobs_N.fill_(-2.0)
    log_nucleus = torch.full((4,), math.log(0.5))  # cut to half the mass, the learner's log-prob is -2 + 0.69
    objective = Objective(clip_low=0.2, clip_high=0.28, importance_cap=10.0)
    terms, _, sums = _run(row, objective, _scores(row, log_nucleus_N=log_nucleus))
    torch.testing.assert_close(terms, -2 * row.weights_N * row.advantages_N)
    assert sums["importance_weight"] == pytest.approx(8.0)
    assert sums["log_nucleus"] == pytest.approx(4 * math.log(0.5))


K3 = math.exp(-0.5) + 0.5 - 1


@pytest.mark.parametrize(("estimator", "term"), [("k2", 0.5**2 / 2), ("k3", K3)])
def test_the_kl_is_measured_as_k3_and_counts_with_a_coefficient_as_the_estimator_says(row, estimator, term):
    reference = torch.full((4,), -2.5)
    plain, _, sums = _run(row, PLAIN, _scores(row), reference_N=reference)
    assert sums["kl_to_reference"] == pytest.approx(4 * K3, rel=1e-5)
    objective = Objective(clip_low=0.2, clip_high=0.28, kl_coefficient=2.0, kl_estimator=estimator)
    with_kl, _, sums = _run(row, objective, _scores(row), reference_N=reference)
    torch.testing.assert_close(with_kl - plain, row.weights_N * 2.0 * term)
    assert sums["kl_to_reference"] == pytest.approx(4 * K3, rel=1e-5)


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


GSPO = Objective(surrogate="gspo", clip_low=0.1, clip_high=0.1)


def _old(row, first, second):
    """Old scores of two answers of two tokens each, so that the new ones at -2 have these ratios."""
    zeros = torch.zeros(4)
    logprobs = -2.0 - torch.tensor([*first, *second]).log()
    return TokenScores(logprobs, zeros, zeros, zeros, zeros + 1, zeros)


def test_gspo_clips_an_answer_as_a_whole_and_reports_the_ratios_of_tokens(row):
    row.advantages_N.copy_(torch.tensor([1.0, 1.0, 1.0, 1.0]))
    old = _old(row, (4.0, 0.25), (1.21, 1.44))  # geometric means 1 and 1.32: the second answer is held at 1.1
    loss = policy_loss(row, GSPO, old=old, reference_N=None, add_up=lambda sums: sums)
    scores = _scores(row)
    loss.see_row(scores.logprobs_N.detach())
    terms = loss(slice(0, 4), scores)
    terms.sum().backward()
    torch.testing.assert_close(terms.detach(), -0.25 * torch.tensor([1.0, 1.0, 1.1, 1.1]))
    torch.testing.assert_close(scores.logprobs_N.grad, -0.25 * torch.tensor([1.0, 1.0, 0.0, 0.0]))
    sums = dict(zip(TOKEN_SUMS, loss.sums.tolist(), strict=True))
    assert sums["clip_fraction"] == 2
    assert sums["mean_ratio"] == pytest.approx(4.0 + 0.25 + 1.21 + 1.44)


def test_gspo_needs_no_look_at_the_row_while_the_old_policy_is_the_current_one(row):
    loss = policy_loss(row, GSPO, old=None, reference_N=None, add_up=lambda sums: sums)
    assert not isinstance(loss, AnswerPolicyLoss)
    terms = loss(slice(0, 4), _scores(row))
    torch.testing.assert_close(terms, -row.weights_N * row.advantages_N)


def test_cispo_counts_the_tokens_whose_weight_is_held_and_trains_on_them(row):
    row.advantages_N.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    objective = Objective(surrogate="cispo", clip_low=math.inf, clip_high=1.0)
    terms, gradient, sums = _run(row, objective, _scores(row), old=_old(row, (4.0, 0.5), (4.0, 0.5)))
    torch.testing.assert_close(gradient, -0.25 * torch.tensor([2.0, 0.5, -2.0, -0.5]))
    torch.testing.assert_close(terms, -2.0 * gradient)
    assert sums["clip_fraction"] == 2


@pytest.mark.parametrize("max_ratio", [None, 3.0, 1.5])
def test_answers_beyond_the_largest_ratio_to_the_sampler_are_left_out(row, max_ratio):
    row.rollout_logprobs_N.copy_(torch.tensor([-2.0, -2.0, -3.0, -2.6]))  # the second answer: e^0.8 = 2.2
    objective = Objective(clip_low=0.2, clip_high=0.28, max_answer_ratio=max_ratio)
    old = TokenScores(*(column.detach() for column in _scores(row)))
    loss = policy_loss(row, objective, old=old, reference_N=None, add_up=lambda sums: sums)
    terms = loss(slice(0, 4), _scores(row))
    assert (terms != 0).tolist() == [True, True, *[max_ratio != 1.5] * 2]


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
