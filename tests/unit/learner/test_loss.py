import math

import pytest
import torch

from learner.batch.aggregation import (
    BATCH_MEAN,
    RESPONSE_MEAN,
    TOKEN_MEAN,
    Aggregation,
    normaliser_share,
    token_weights,
)
from learner.objective.loss import (
    answer_ratios,
    clipped_policy_loss,
    importance_weights,
    is_clipped,
    kept_answers,
    kl_estimate,
    weighted_policy_loss,
)


def test_grpo_gives_every_response_the_same_weight():
    assert token_weights([1, 4], RESPONSE_MEAN) == [0.5, 0.125]


def test_dapo_gives_every_token_of_the_group_the_same_weight():
    assert token_weights([1, 4], TOKEN_MEAN) == [0.2, 0.2]


def test_over_the_batch_every_token_has_the_same_weight_whatever_its_group():
    """Groups of 1 + 4 and of 3 tokens: each token an eighth, once the weights are divided as the gradients are."""
    share = normaliser_share(BATCH_MEAN, num_groups=2, max_groups=2, num_tokens=lambda: 8)
    weights = [w / 2 / share for lengths in ([1, 4], [3]) for w in token_weights(lengths, BATCH_MEAN)]
    assert weights == [1 / 8] * 3


def test_a_short_batch_is_divided_by_the_groups_or_the_tokens_that_came():
    came = {"num_groups": 3, "max_groups": 4, "num_tokens": lambda: 8}
    assert normaliser_share(TOKEN_MEAN, **came) == 0.75
    share = normaliser_share(BATCH_MEAN, **came)
    assert token_weights([5], BATCH_MEAN)[0] / 4 / share == 1 / 8


@pytest.mark.parametrize("aggregation", [RESPONSE_MEAN, TOKEN_MEAN])
def test_the_token_weights_of_a_group_sum_to_one(aggregation):
    lengths = [3, 1, 7]
    weights = token_weights(lengths, aggregation)
    assert sum(w * n for w, n in zip(weights, lengths, strict=True)) == pytest.approx(1.0)


def test_the_clip_bounds_the_ratio_from_the_side_that_the_advantage_pushes_to():
    ratios = torch.tensor([1.0, 1.5, 1.5, 0.5, 0.5])
    advantages = torch.tensor([2.0, 1.0, -1.0, 1.0, -1.0])
    loss = clipped_policy_loss(ratios, advantages, clip_low=0.2, clip_high=0.28)
    # 1.5 with A=1 is held at 1.28; 0.5 with A=-1 is held at 0.8; the other two keep the worse, unclipped value
    torch.testing.assert_close(loss, torch.tensor([-2.0, -1.28, 1.5, -0.5, 0.8]))
    clipped = is_clipped(ratios, advantages, clip_low=0.2, clip_high=0.28)
    assert clipped.tolist() == [False, True, False, False, True]


def test_a_clipped_token_has_no_gradient_and_an_unclipped_one_has_ratio_times_advantage():
    logprobs = torch.tensor([math.log(1.5), math.log(1.1)], requires_grad=True)
    clipped_policy_loss(logprobs.exp(), torch.ones(2), clip_low=0.2, clip_high=0.28).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, -1.1]))


def test_at_the_old_policy_the_gradient_of_a_log_probability_is_minus_the_advantage():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    ratios = (logprobs - logprobs.detach()).exp()
    clipped_policy_loss(ratios, torch.tensor([3.0, -4.0]), clip_low=0.2, clip_high=0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-3.0, 4.0]))


def test_the_dual_clip_bounds_the_loss_of_a_bad_answer_that_became_more_likely():
    ratios, advantages = torch.tensor([4.0, 2.0, 4.0, 0.5]), torch.tensor([-2.0, -2.0, 2.0, -2.0])
    settings = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
    # 4 * 2 is held at 3 * 2; 2 * 2 is not; A > 0 is held at 1.28 * 2 and A < 0 at 0.8 * 2 as without
    loss = clipped_policy_loss(ratios, advantages, **settings)
    torch.testing.assert_close(loss, torch.tensor([6.0, 4.0, -2.56, 1.6]))
    assert is_clipped(ratios, advantages, **settings).tolist() == [True, False, True, True]


def test_a_token_beyond_the_dual_clip_has_no_gradient():
    logprobs = torch.tensor([4.0, 2.0]).log().requires_grad_()
    advantages = torch.tensor([-1.0, -1.0])
    clipped_policy_loss(logprobs.exp(), advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0).sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([0.0, 2.0]))


def test_cispo_weighs_log_probabilities_by_a_ratio_that_is_held_and_has_no_gradient():
    logprobs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    ratios, advantages = torch.tensor([0.1, 9.0, 9.0]), torch.tensor([3.0, 2.0, -2.0])
    loss = weighted_policy_loss(logprobs, ratios, advantages, clip_high=4.0)
    torch.testing.assert_close(loss, torch.tensor([0.3, 20.0, -5.0]))  # the ratio 9 weighs 5, whatever the advantage
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([-0.3, -10.0, 10.0]))


def test_the_ratio_of_an_answer_is_the_geometric_mean_over_its_tokens():
    new = torch.tensor([4.0, 1.0, 2.0, 2.0, 0.5]).log()
    ratios = answer_ratios(new, torch.zeros(5), torch.tensor([0, 0, 1, 1, 1]), num_answers=2, add_up=lambda sums: sums)
    torch.testing.assert_close(ratios, torch.tensor([2.0, 2.0, *[2 ** (1 / 3)] * 3]))


def test_the_ratio_of_an_answer_that_two_ranks_hold_is_that_of_all_its_tokens():
    other_rank = torch.tensor([[math.log(0.25), 1.0]], dtype=torch.float64)  # one token more, with ratio 1/4
    ratios = answer_ratios(
        torch.tensor([4.0]).log(), torch.zeros(1), torch.tensor([0]), num_answers=1,
        add_up=lambda sums: sums + other_rank,
    )  # fmt: skip
    assert ratios.item() == pytest.approx(1.0)


def test_kl_estimators_by_hand():
    policy, reference = torch.tensor([-1.0]), torch.tensor([-1.5])  # log(reference / policy) = -0.5
    assert kl_estimate(policy, reference, "k2").item() == pytest.approx(0.125)
    assert kl_estimate(policy, reference, "k3").item() == pytest.approx(math.exp(-0.5) + 0.5 - 1, rel=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_of_equal_policies_is_zero(estimator):
    logprobs = torch.tensor([-0.3, -7.0])
    assert kl_estimate(logprobs, logprobs, estimator).tolist() == [0.0, 0.0]


def _expected_gradient(estimate):
    """Gradient for the logits of the exact mean of an estimate over the tokens of a vocabulary of 5."""
    logits = torch.tensor([0.3, -1.2, 2.0, 0.0, 0.7], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([1.0, 0.2, -0.5, 0.4, 0.0], dtype=torch.float64).log_softmax(0)
    logprobs = logits.log_softmax(0)
    estimate(logprobs, reference).backward()
    return logits.grad


def _mean_over_policy(estimate):
    """The loss weights what is drawn, not how likely it was: the probabilities of the draw have no gradient."""
    return _expected_gradient(lambda policy, reference: (policy.exp().detach() * estimate(policy, reference)).sum())


@pytest.mark.parametrize(
    ("estimate", "exact"),
    [
        pytest.param(
            lambda policy, reference: kl_estimate(policy, reference, "k2"),
            lambda policy, reference: (policy.exp() * (policy - reference)).sum(),
            id="k2 that of KL(policy || reference)",
        ),
        pytest.param(
            lambda policy, reference: kl_estimate(policy, reference, "k3"),
            lambda policy, reference: (reference.exp() * (reference - policy)).sum(),
            id="k3 that of KL(reference || policy)",
        ),
        pytest.param(
            lambda policy, reference: policy - reference, lambda policy, reference: 0 * policy.sum(), id="k1 none"
        ),
    ],
)
def test_the_mean_gradient_of_an_estimator_in_the_loss_is(estimate, exact):
    torch.testing.assert_close(_mean_over_policy(estimate), _expected_gradient(exact), rtol=0, atol=1e-12)


def test_the_two_directions_of_the_kl_have_different_gradients():
    k2, k3 = (_mean_over_policy(lambda p, r, kind=kind: kl_estimate(p, r, kind)) for kind in ("k2", "k3"))
    assert (k2 - k3).abs().max() > 0.1


def test_k3_is_an_unbiased_estimate_of_the_kl_and_k2_is_not():
    policy = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64).log_softmax(0)
    reference = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64).log_softmax(0)
    kl = (policy.exp() * (policy - reference)).sum().item()
    k2, k3 = ((policy.exp() * kl_estimate(policy, reference, kind)).sum().item() for kind in ("k2", "k3"))
    assert k3 == pytest.approx(kl, abs=1e-12)
    assert abs(k2 - kl) > 0.1


def test_dr_grpo_divides_by_a_constant_whatever_the_length():
    assert token_weights([1, 4], Aggregation(over="constant", constant_tokens=10)) == [0.05, 0.05]


def test_a_constant_belongs_to_one_aggregation_only():
    with pytest.raises(ValueError, match="give both or none"):
        Aggregation(over="constant")
    with pytest.raises(ValueError, match="give both or none"):
        Aggregation(over="tokens", constant_tokens=4)


def test_importance_weights_are_held_at_the_cap_or_masked_beyond_it():
    proximal, behaviour = torch.tensor([0.0, 0.0, 0.0]), -torch.tensor([0.5, 2.0, 4.0]).log()
    truncated = importance_weights(proximal, behaviour, cap=2.0, beyond="truncate")
    torch.testing.assert_close(truncated, torch.tensor([0.5, 2.0, 2.0]))
    masked = importance_weights(proximal, behaviour, cap=3.0, beyond="mask")
    torch.testing.assert_close(masked, torch.tensor([0.5, 2.0, 0.0]))


def test_importance_weights_carry_no_gradient():
    proximal = torch.zeros(1, requires_grad=True)
    assert not importance_weights(proximal, torch.zeros(1), cap=2.0, beyond="truncate").requires_grad


def test_an_answer_is_kept_while_the_geometric_mean_of_its_ratios_stays_in_the_band():
    ratio = torch.tensor([4.0, 0.25, 1.5, 1.5, 0.5, float("nan"), 1.2, float("nan")])
    answers = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4])
    # means: 1, 1.5, 0.5, 1.2 (the token without a ratio does not count), and no token at all
    kept = kept_answers(ratio.log(), torch.zeros(8), answers, num_answers=5, max_ratio=1.51, add_up=lambda sums: sums)
    assert kept.tolist() == [True, True, True, True, False, True, True, False]


def test_an_answer_that_two_ranks_hold_is_judged_by_all_of_its_tokens():
    other_rank = torch.tensor([[math.log(0.25), 1.0]], dtype=torch.float64)
    arguments = {"answers_N": torch.tensor([0]), "num_answers": 1, "max_ratio": 1.1}
    ratio = torch.tensor([4.0])
    alone = kept_answers(ratio.log(), torch.zeros(1), **arguments, add_up=lambda sums: sums)
    shared = kept_answers(ratio.log(), torch.zeros(1), **arguments, add_up=lambda sums: sums + other_rank)
    assert (alone.item(), shared.item()) == (False, True)
