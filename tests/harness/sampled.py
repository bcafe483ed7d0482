"""What an engine reports for tokens that it sampled, against the learner's own numbers for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from actors.rollout import Sample, Sampling
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch, single_row
from learner.forward.row_tensors import Placement, to_device
from learner.zero3.policy import Policy


def sampling_gaps(policy: Policy, prompt: Sequence[int], samples: Sequence[Sample], sampling: Sampling) -> np.ndarray:
    """Return [N] |engine - learner| (nats) of all sampled tokens, after temperature and top-p.

    A token outside the learner's own nucleus has the gap of its own log-probability, as the loss sees it.
    """
    group = TrainingGroup(
        prompt_ids=np.array(prompt, np.int32),
        response_ids=tuple(np.array(sample.token_ids, np.int32) for sample in samples),
        rollout_logprobs=tuple(np.array(sample.logprobs, np.float32) for sample in samples),
        advantages=(0.0,) * len(samples),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )
    plan = RowPlan(responses={0: tuple(range(len(samples)))})
    row = build_microbatch(plan, {0: group}, num_groups=1, aggregation=TOKEN_MEAN)
    placed = to_device(row, Placement(device=next(policy.parameters()).device))
    with torch.no_grad():
        _, logprobs_N, _, _, log_nucleus_N, *_ = policy(placed)
    theirs_N = np.concatenate([np.array(sample.logprobs, np.float32) for sample in samples])
    return np.abs((logprobs_N - log_nucleus_N).float().cpu().numpy() - theirs_N)


def token_scores(policy: Policy, token_ids: Sequence[int]) -> list[float]:
    """Return [T - 1] the learner's log-probability (nats, temperature 1) of each of the T tokens but the first."""
    row = to_device(single_row(np.array(token_ids, np.int32)), Placement(device=next(policy.parameters()).device))
    with torch.no_grad():
        return policy(row)[1].tolist()
