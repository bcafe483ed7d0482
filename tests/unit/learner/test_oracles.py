"""Advantages, losses, gradients and KL against numbers that TRL 1.16.0 and verl 0.9.1 computed.

`tests/data/make_learner_oracles.py` made them. Both peers normalise over the whole batch. Where we normalise within
each group first, the batch is treated as one group; the mean over the tokens of a batch is that over its real groups.
"""

import json
import math
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.advantages import batch_advantages
from learner.attention.shared_prefix import whole_layout
from learner.batch.aggregation import (
    BATCH_MEAN,
    RESPONSE_MEAN,
    TOKEN_MEAN,
    Aggregation,
    normaliser_share,
    token_weights,
)
from learner.batch.microbatch import PrefixSegment
from learner.forward.logprobs import RowLoss, TokenScores
from learner.forward.row_tensors import RowPart, RowTensors
from learner.objective.loss import kl_estimate
from learner.objective.objective import TOKEN_SUMS, Objective, policy_loss

ORACLES = json.loads((Path(__file__).parents[2] / "data" / "learner_oracles.json").read_text())
SETTINGS = ORACLES["settings"]
CLIP = {"clip_low": SETTINGS["clip_low"], "clip_high": SETTINGS["clip_high"]}
ANSWER_CLIP = {"clip_low": SETTINGS["answer_clip_low"], "clip_high": SETTINGS["answer_clip_high"]}
WEIGHT_CLIP = {"clip_low": math.inf, "clip_high": SETTINGS["weight_clip_high"]}
DUAL_CLIP = SETTINGS["dual_clip"]
CONSTANT = Aggregation(over="constant", constant_tokens=SETTINGS["max_completion_tokens"])
VERL = [
    ("token-mean", TOKEN_MEAN),
    ("token-mean", BATCH_MEAN),
    ("seq-mean-token-mean", RESPONSE_MEAN),
    ("seq-mean-token-sum-norm", CONSTANT),
]
TRL = [("grpo", RESPONSE_MEAN), ("bnpo", TOKEN_MEAN), ("dapo", TOKEN_MEAN), ("dapo", BATCH_MEAN), ("dr_grpo", CONSTANT)]
TRL_DUAL = [("grpo", RESPONSE_MEAN), ("dapo", TOKEN_MEAN), ("dapo", BATCH_MEAN), ("dr_grpo", CONSTANT)]
CISPO_MEANS = [TOKEN_MEAN, BATCH_MEAN]


@pytest.fixture(params=range(len(ORACLES["cases"])))
def case(request):
    return ORACLES["cases"][request.param]


def _flat(values):
    return torch.tensor([x for group in values for answer in group for x in answer], dtype=torch.float64)


def _answer_weights(lengths, aggregation):
    """Weight of the tokens of each answer, the division before the optimizer's step included."""
    if aggregation is not BATCH_MEAN:
        return token_weights([n for group in lengths for n in group], aggregation)
    groups = len(lengths)
    num_tokens = sum(map(sum, lengths))
    share = normaliser_share(BATCH_MEAN, num_groups=groups, max_groups=groups, num_tokens=lambda: num_tokens)
    return [w / groups / share for group in lengths for w in token_weights(group, BATCH_MEAN)]


def _row(lengths, advantages, aggregation, rollout):
    """The response tokens of a batch as one row."""
    flat = [n for group in lengths for n in group]
    segment = PrefixSegment(start=0, prompt_tokens=1, response_tokens=tuple(flat))

    def per_token(values):
        return torch.from_numpy(np.repeat(np.array(values, np.float64), flat))

    return RowTensors(
        input_ids=torch.zeros(1, segment.end),
        position_ids=torch.zeros(1, segment.end),
        parts=(RowPart(slice(0, segment.end), whole_layout([segment], torch.device("cpu"))),),
        predictors_N=torch.arange(len(rollout)),
        labels_N=torch.zeros(len(rollout), dtype=torch.int64),
        weights_N=per_token(_answer_weights(lengths, aggregation)),
        advantages_N=per_token(advantages),
        rollout_logprobs_N=rollout,
        temperature_N=torch.ones_like(rollout),
        top_p_N=None,
        answers_N=per_token(range(len(flat))).long(),
        num_answers=len(flat),
        own_N=torch.arange(len(rollout)),
        num_labels=len(rollout),
        is_placeholder=False,
    )


def _ours(batch, advantages, aggregation, **settings):
    """Loss, its gradient for the log-probabilities, and the diagnostics, in two tiles."""
    policy, old, rollout = (_flat(batch[name]) for name in ("policy", "old", "rollout"))
    row = _row(batch["lengths"], advantages, aggregation, rollout)
    objective = Objective(**{**CLIP, **settings})
    reference = _flat(batch["reference"])
    loss = policy_loss(row, objective, old=_scores(old), reference_N=reference, add_up=lambda sums: sums)
    if isinstance(loss, RowLoss):
        loss.see_row(policy.clone())
    policy.requires_grad_()
    cut = len(policy) // 3
    tiles = [slice(0, cut), slice(cut, len(policy))]
    total = sum(loss(n, _scores(policy[n])).sum() for n in tiles)
    total.backward()
    return total.item(), policy.grad, dict(zip(TOKEN_SUMS, loss.sums.tolist(), strict=True))


def _without_truncated(batch):
    """The batch without its truncated answers, as advantages of None leave them out; and which tokens are kept."""
    flags = batch["truncated"]

    def kept(groups):
        pairs = (zip(group, own, strict=True) for group, own in zip(groups, flags, strict=True))
        return [[answer for answer, truncated in group if not truncated] for group in pairs]

    columns = ("lengths", "policy", "old", "reference", "rollout")
    answers = [truncated for group in flags for truncated in group]
    tokens = np.repeat(answers, [n for group in batch["lengths"] for n in group])
    return {name: kept(batch[name]) for name in columns}, torch.from_numpy(~tokens)


def _scores(logprobs):
    zeros = torch.zeros_like(logprobs).detach()
    return TokenScores(logprobs, zeros, zeros, zeros, zeros + 1, zeros)


def _assert_equal(ours, expected):
    loss, gradient, sums = ours
    assert loss == pytest.approx(expected["loss"], abs=1e-6)
    assert gradient.tolist() == pytest.approx(expected["gradient"], abs=1e-6)
    if "clip_fraction" in expected:
        assert sums["clip_fraction"] / len(gradient) == pytest.approx(expected["clip_fraction"], abs=1e-6)


def test_advantages_equal_verls(case):
    rewards = case["batch"]["rewards"]
    for scale in ("group", "none"):
        ours = batch_advantages(rewards, ["task"] * len(rewards), scale)
        flat = [a for group in ours for a in group]
        assert flat == pytest.approx(case["verl"][f"advantages_{scale}"], abs=1e-6)


@pytest.mark.parametrize(("mode", "aggregation"), VERL)
@pytest.mark.parametrize("corrected", [False, True])
def test_loss_and_gradient_equal_verls(case, mode, aggregation, corrected):
    expected = case["verl"][f"{mode}{'-corrected' if corrected else ''}"]
    settings = {"importance_cap": SETTINGS["cap"]} if corrected else {}
    _assert_equal(_ours(case["batch"], case["verl"]["advantages_group"], aggregation, **settings), expected)


@pytest.mark.parametrize(("loss_type", "aggregation"), TRL)
@pytest.mark.parametrize("kl_coefficient", [0.0, SETTINGS["kl_coefficient"]])
def test_loss_and_gradient_equal_trls(case, loss_type, aggregation, kl_coefficient):
    expected = case["trl"][f"{loss_type}-beta{kl_coefficient}"]
    advantages = case["verl"]["advantages_group"]
    kl = {"kl_coefficient": kl_coefficient, "kl_estimator": "k3"}
    _assert_equal(_ours(case["batch"], advantages, aggregation, **kl), expected)


@pytest.mark.parametrize(("mode", "aggregation"), VERL)
def test_the_dual_clip_equals_verls(case, mode, aggregation):
    ours = _ours(case["batch"], case["verl"]["advantages_group"], aggregation, dual_clip=DUAL_CLIP)
    _assert_equal(ours, case["verl"][f"{mode}-dual"])


@pytest.mark.parametrize(("loss_type", "aggregation"), TRL_DUAL)
def test_the_dual_clip_equals_trls_two_sided_clip(case, loss_type, aggregation):
    ours = _ours(case["batch"], case["verl"]["advantages_group"], aggregation, dual_clip=DUAL_CLIP)
    _assert_equal(ours, case["trl"][f"{loss_type}-dual"])


@pytest.mark.parametrize("peer", ["verl", "trl"])
def test_gspo_equals_the_peers(case, peer):
    ours = _ours(case["batch"], case["verl"]["advantages_group"], RESPONSE_MEAN, surrogate="gspo", **ANSWER_CLIP)
    _assert_equal(ours, case[peer]["gspo"])


@pytest.mark.parametrize("peer", ["verl", "trl"])
@pytest.mark.parametrize("aggregation", CISPO_MEANS)
def test_cispo_equals_the_peers(case, peer, aggregation):
    ours = _ours(case["batch"], case["verl"]["advantages_group"], aggregation, surrogate="cispo", **WEIGHT_CLIP)
    _assert_equal(ours, case[peer]["cispo"])


@pytest.mark.parametrize(("mode", "aggregation"), [*VERL, ("dapo", BATCH_MEAN)])
def test_without_truncated_answers_loss_and_gradient_equal_those_of_masked_ones(case, mode, aggregation):
    """Masked by the peers, left out here: the truncated answers have a part in the advantages, and in nothing else."""
    batch, kept_N = _without_truncated(case["batch"])
    advantages = case["verl"]["advantages_group"]
    kept_advantages = [a for a, t in zip(advantages, chain(*case["batch"]["truncated"]), strict=True) if not t]
    expected = case["trl" if mode == "dapo" else "verl"][f"{mode}-truncated"]
    loss, gradient, sums = _ours(batch, kept_advantages, aggregation)
    whole = torch.zeros(len(kept_N), dtype=torch.float64)
    whole[kept_N] = gradient
    assert loss == pytest.approx(expected["loss"], abs=1e-6)
    assert whole.tolist() == pytest.approx(expected["gradient"], abs=1e-6)
    if "clip_fraction" in expected:
        assert sums["clip_fraction"] / len(gradient) == pytest.approx(expected["clip_fraction"], abs=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_estimates_equal_verls(case, estimator):
    batch = case["batch"]
    ours = kl_estimate(_flat(batch["policy"]), _flat(batch["reference"]), estimator)
    assert ours.tolist() == pytest.approx(case["verl"]["kl"][estimator], abs=1e-6)


def test_the_cases_have_what_the_algorithms_differ_in():
    """Every clip acts somewhere, and some answers are truncated; otherwise equal numbers would show nothing."""
    by_name = {
        name: max(case["verl"][name]["clip_fraction"] for case in ORACLES["cases"])
        for name in ("token-mean", "token-mean-dual", "gspo", "cispo")
    }
    assert min(by_name.values()) > 0.1
    assert by_name["token-mean-dual"] > by_name["token-mean"]
    assert all(any(chain(*case["batch"]["truncated"])) for case in ORACLES["cases"])
