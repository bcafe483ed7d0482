"""Every algorithm through model, packing and head, against its formula on one forward pass per answer, in fp64.

The formulas are written down from the papers. Random ragged groups, several packings each: one row, rows of few groups,
prompts forwarded ahead of batches of responses, two ranks with placeholders.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from learner.batch.aggregation import normaliser_share
from learner.batch.packing import plan_slice
from learner.batch.rows import build_microbatch
from learner.config import LearnerConfig
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, to_device
from learner.objective.objective import policy_loss
from learner.objective.settings import aggregation_of, objective_of

CPU = Placement(device=torch.device("cpu"))
LENGTHS = [(9, (4, 7, 1, 3)), (5, (6,)), (1, (2, 2, 12)), (4, (5, 3))]
"""Prompt and response tokens of the groups."""
PACKINGS = {"one row": (1, 1000), "rows": (1, 30), "phases": (1, 17), "two ranks": (2, 30)}
"""Ranks, and the largest row in tokens."""


def ppo(r, advantage, low, high, dual=None):
    """PPO's surrogate as a loss, with the bound of the dual clip."""
    loss = torch.maximum(-r * advantage, -r.clamp(1 - low, 1 + high) * advantage)
    return loss if dual is None or advantage >= 0 else loss.clamp(max=-dual * advantage)


def tokenwise(low, high, dual=None):
    return lambda new, old, advantage: ppo((new - old).exp(), advantage, low, high, dual)


def gspo(new, old, advantage):
    """One ratio of the whole answer, differentiated as it stands, the same for each of its tokens."""
    return ppo((new - old).mean().exp(), advantage, 0.05, 0.06).expand(len(new))


def gspo_of_tokens(new, old, advantage):
    """The paper's form for tokens that count for themselves: the value of the ratio of the answer, on each token."""
    return ppo((new - old).mean().exp().detach() * (new - new.detach()).exp(), advantage, 0.05, 0.06)


def cispo(new, old, advantage):
    return -(new - old).exp().clamp(max=1.2).detach() * advantage * new


def mean(values):
    return sum(values) / len(values)


def by_answer(groups):
    return mean([mean([tokens.mean() for tokens in group]) for group in groups])


def by_group(groups):
    return mean([torch.cat(group).mean() for group in groups])


def over_the_batch(groups):
    return torch.cat([tokens for group in groups for tokens in group]).mean()


def by_a_constant(groups):
    return mean([mean([tokens.sum() / 16 for tokens in group]) for group in groups])


FORMULAS = {
    '{"type": "grpo", "clip": 0.2}': (tokenwise(0.2, 0.2), by_answer),
    '{"type": "grpo", "clip": 0.2, "dual_clip": 1.3}': (tokenwise(0.2, 0.2, 1.3), by_answer),
    '{"type": "dapo", "clip_low": 0.2, "clip_high": 0.28}': (tokenwise(0.2, 0.28), by_group),
    '{"type": "dapo", "dual_clip": 1.4, "token_mean": "batch"}': (tokenwise(0.2, 0.28, 1.4), over_the_batch),
    '{"type": "dr_grpo", "clip": 0.1, "constant_tokens": 16}': (tokenwise(0.1, 0.1), by_a_constant),
    '{"type": "dr_grpo", "dual_clip": 1.3, "constant_tokens": 16}': (tokenwise(0.2, 0.2, 1.3), by_a_constant),
    '{"type": "gspo", "clip_low": 0.05, "clip_high": 0.06}': (gspo, by_answer),
    '{"type": "cispo", "clip_high": 0.2}': (cispo, by_group),
    '{"type": "cispo", "clip_high": 0.2, "token_mean": "batch"}': (cispo, over_the_batch),
}


class Plain:
    """The same weights in an unchanged model of transformers, and log-probabilities before the first update."""

    def __init__(self, policy, groups, seed):
        shape = {**policy.causal_lm.config.to_dict(), "attn_implementation": "eager"}
        self.model = Qwen2ForCausalLM(Qwen2Config(**shape)).double()
        self.model.load_state_dict(policy.causal_lm.state_dict())
        self.new = [[self._logprobs(group, ids) for ids in group.response_ids] for group in groups]
        rng = np.random.default_rng(seed)
        self.old = [
            [new.detach() + 0.3 * torch.from_numpy(rng.standard_normal(len(new))) for new in g] for g in self.new
        ]

    def _logprobs(self, group, ids):
        prompt, response = torch.from_numpy(group.prompt_ids).long(), torch.from_numpy(ids).long()
        logits = self.model(torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1] / group.temperature
        return logits.log_softmax(-1).gather(1, response[:, None]).squeeze(1)


def formula(plain, groups, surrogate, aggregate):
    """Loss by the formula, and its gradient by the name of the weight."""
    losses = [
        [surrogate(*answer) for answer in zip(plain.new[i], plain.old[i], group.advantages, strict=True)]
        for i, group in enumerate(groups)
    ]
    total = aggregate(losses)
    plain.model.zero_grad(set_to_none=True)
    total.backward(retain_graph=True)
    return total.item(), {name: weight.grad for name, weight in plain.model.named_parameters()}


def ours(policy, groups, old, config, packing):
    """Loss and gradient from packed rows, as the engine makes them: weights, losses, and the division at the end."""
    num_ranks, max_tokens = PACKINGS[packing]
    aggregation, objective = aggregation_of(config, warm_up=False), objective_of(config)
    policy.zero_grad(set_to_none=True)
    total, num_tokens, num_in_parts, sums = 0.0, 0, 0, 0
    for plan in plan_slice(groups, num_ranks=num_ranks, max_tokens=max_tokens):
        for row_plan in plan:
            members = {i: groups[i] for i in row_plan.responses}
            built = build_microbatch(row_plan, members, num_groups=len(groups), aggregation=aggregation)
            row = to_device(built, CPU)
            scores = _old_scores(row, row_plan, old)
            loss = policy_loss(row, objective, old=scores, reference_N=None, add_up=lambda sums: sums)
            of_row, *_ = policy(row, loss)
            of_row.backward()
            total += of_row.item()
            num_in_parts += len(row.parts) > 1
            if not row.is_placeholder:
                num_tokens += len(row.labels_N)
                sums = sums + loss.sums
    share = normaliser_share(aggregation, num_groups=len(groups), max_groups=len(groups), num_tokens=lambda: num_tokens)
    gradient = {name: weight.grad / share for name, weight in policy.causal_lm.named_parameters()}
    return total / share, gradient, sums, num_in_parts


def _old_scores(row, row_plan, old):
    """The old log-probabilities of the responses of a row, in its order; zeros for a placeholder."""
    batches = row_plan.batches or (row_plan.responses,)
    found = [old[group][i] for batch in batches for group, own in batch.items() for i in own]
    logprobs = torch.cat(found) if found else torch.zeros(len(row.labels_N), dtype=torch.float64)
    zeros = torch.zeros_like(logprobs)
    return TokenScores(logprobs, zeros, zeros, zeros, zeros + 1, zeros)


@pytest.fixture(params=range(3))
def batch(request, policy, make_group):
    groups = [make_group(prompt, responses, seed=request.param) for prompt, responses in LENGTHS]
    return groups, Plain(policy, groups, seed=request.param)


@pytest.mark.parametrize("algorithm", FORMULAS)
def test_loss_and_gradient_equal_the_formula_however_the_batch_is_packed(policy, batch, algorithm):
    groups, plain = batch
    config = LearnerConfig.model_validate({"algorithm": json.loads(algorithm)})
    expected_loss, expected = formula(plain, groups, *FORMULAS[algorithm])
    for packing in PACKINGS:
        loss, gradient, _, num_in_parts = ours(policy, groups, plain.old, config, packing)
        assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-6), packing
        assert _error(gradient, expected) < 1e-6, packing
        assert (num_in_parts > 0) == (packing == "phases")


@pytest.mark.parametrize("algorithm", FORMULAS)
def test_tokens_that_are_left_out_add_nothing_and_scale_nothing_up(policy, batch, algorithm):
    groups, plain = batch
    config = LearnerConfig.model_validate({"algorithm": json.loads(algorithm)})
    rng = np.random.default_rng(0)
    masked = [
        dataclasses.replace(
            group,
            rollout_logprobs=tuple(np.where(rng.random(len(x)) < 0.3, np.nan, x) for x in group.rollout_logprobs),
        )
        for group in groups
    ]
    used = iter([torch.from_numpy(np.isfinite(x)) for group in masked for x in group.rollout_logprobs])
    surrogate, aggregate = FORMULAS[algorithm]
    token_form = gspo_of_tokens if surrogate is gspo else surrogate
    expected_loss, expected = formula(
        plain, groups, lambda *answer: token_form(*answer).where(next(used), 0.0), aggregate
    )
    loss, gradient, _, _ = ours(policy, masked, plain.old, config, "rows")
    assert loss == pytest.approx(expected_loss, rel=1e-6, abs=1e-6)
    assert _error(gradient, expected) < 1e-6


def _error(ours, theirs):
    assert ours.keys() == theirs.keys()
    flat, expected = (torch.cat([x[name].flatten() for name in sorted(x)]) for x in (ours, theirs))
    return ((flat - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("algorithm", FORMULAS)
def test_what_is_counted_does_not_depend_on_the_packing(policy, batch, algorithm):
    groups, plain = batch
    config = LearnerConfig.model_validate({"algorithm": json.loads(algorithm)})
    whole, *others = [ours(policy, groups, plain.old, config, packing)[2] for packing in PACKINGS]
    assert whole[0] > 0  # some tokens are clipped
    for sums in others:
        torch.testing.assert_close(sums, whole, equal_nan=True)
