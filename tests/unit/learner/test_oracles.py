"""Advantages, losses, gradients and KL against numbers that TRL 1.16.0 and verl 0.9.1 computed.

`tests/data/make_learner_oracles.py` made them. Both peers normalise over the whole batch where we normalise within each
group first, so the batch is treated as one group where the token mean is concerned.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from learner.advantages import batch_advantages
from learner.attention.shared_prefix import whole_layout
from learner.batch.aggregation import RESPONSE_MEAN, TOKEN_MEAN, Aggregation, token_weights
from learner.batch.microbatch import PrefixSegment
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import RowTensors
from learner.objective.loss import kl_estimate
from learner.objective.objective import TOKEN_SUMS, Objective, PolicyLoss

ORACLES = json.loads((Path(__file__).parents[2] / "data" / "learner_oracles.json").read_text())
SETTINGS = ORACLES["settings"]
CONSTANT = Aggregation(over="constant", constant_tokens=SETTINGS["max_completion_tokens"])
VERL = {"token-mean": TOKEN_MEAN, "seq-mean-token-mean": RESPONSE_MEAN, "seq-mean-token-sum-norm": CONSTANT}
TRL = {"grpo": RESPONSE_MEAN, "bnpo": TOKEN_MEAN, "dapo": TOKEN_MEAN, "dr_grpo": CONSTANT}


@pytest.fixture(params=range(len(ORACLES["cases"])))
def case(request):
    return ORACLES["cases"][request.param]


def _flat(values):
    return torch.tensor([x for group in values for answer in group for x in answer], dtype=torch.float64)


def _ours(batch, advantages, aggregation, **settings):
    """Loss, its gradient for the log-probabilities, and the diagnostics, in two tiles."""
    lengths = [n for group in batch["lengths"] for n in group]

    def per_token(values):
        return torch.from_numpy(np.repeat(np.array(values, np.float64), lengths))

    policy, old, rollout = (_flat(batch[name]) for name in ("policy", "old", "rollout"))
    segment = PrefixSegment(start=0, prompt_tokens=1, response_tokens=tuple(lengths))
    row = RowTensors(
        input_ids=torch.zeros(1, segment.end),
        position_ids=torch.zeros(1, segment.end),
        layout=whole_layout([segment], torch.device("cpu")),
        predictors_N=torch.arange(len(policy)),
        labels_N=torch.zeros(len(policy), dtype=torch.int64),
        weights_N=per_token(token_weights(lengths, aggregation)),
        advantages_N=per_token(advantages),
        rollout_logprobs_N=rollout,
        temperature_N=torch.ones_like(policy),
        top_p_N=None,
        answers_N=torch.zeros(len(policy), dtype=torch.int64),
        num_answers=1,
        own_N=torch.arange(len(policy)),
        num_labels=len(policy),
        is_placeholder=False,
    )
    objective = Objective(clip_low=SETTINGS["clip_low"], clip_high=SETTINGS["clip_high"], **settings)
    loss = PolicyLoss(row, objective, old=_scores(old), reference_N=_flat(batch["reference"]))
    policy.requires_grad_()
    cut = len(policy) // 3
    tiles = [slice(0, cut), slice(cut, len(policy))]
    total = sum(loss(n, _scores(policy[n])).sum() for n in tiles)
    total.backward()
    return total.item(), policy.grad, dict(zip(TOKEN_SUMS, loss.sums.tolist(), strict=True))


def _scores(logprobs):
    zeros = torch.zeros_like(logprobs).detach()
    return TokenScores(logprobs, zeros, zeros, zeros, zeros + 1)


def test_advantages_equal_verls(case):
    rewards = case["batch"]["rewards"]
    for scale in ("group", "none"):
        ours = batch_advantages(rewards, ["task"] * len(rewards), scale)
        flat = [a for group in ours for a in group]
        assert flat == pytest.approx(case["verl"][f"advantages_{scale}"], abs=1e-6)


@pytest.mark.parametrize("mode", VERL)
@pytest.mark.parametrize("corrected", [False, True])
def test_loss_and_gradient_equal_verls(case, mode, corrected):
    expected = case["verl"][f"{mode}{'-corrected' if corrected else ''}"]
    settings = {"importance_cap": SETTINGS["cap"]} if corrected else {}
    loss, gradient, sums = _ours(case["batch"], case["verl"]["advantages_group"], VERL[mode], **settings)
    assert loss == pytest.approx(expected["loss"], abs=1e-6)
    assert gradient.tolist() == pytest.approx(expected["gradient"], abs=1e-6)
    assert sums["clip_fraction"] / len(gradient) == pytest.approx(expected["clip_fraction"], abs=1e-6)


@pytest.mark.parametrize("loss_type", TRL)
@pytest.mark.parametrize("kl_coefficient", [0.0, SETTINGS["kl_coefficient"]])
def test_loss_and_gradient_equal_trls(case, loss_type, kl_coefficient):
    expected = case["trl"][f"{loss_type}-beta{kl_coefficient}"]
    advantages = case["verl"]["advantages_group"]
    loss, gradient, _ = _ours(case["batch"], advantages, TRL[loss_type], kl_coefficient=kl_coefficient)
    assert loss == pytest.approx(expected["loss"], abs=1e-6)
    assert gradient.tolist() == pytest.approx(expected["gradient"], abs=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_estimates_equal_verls(case, estimator):
    batch = case["batch"]
    ours = kl_estimate(_flat(batch["policy"]), _flat(batch["reference"]), estimator)
    assert ours.tolist() == pytest.approx(case["verl"]["kl"][estimator], abs=1e-6)
