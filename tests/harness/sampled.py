"""What an engine reports for tokens that it sampled, before and after an update, against the learner's own numbers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from actors.engine import VLLMEngine
from actors.rollout import Sample, Sampling
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, to_device
from learner.weights.sender import WeightSender, WeightSource
from learner.zero3.policy import Policy, load_policy

BASE = Path(__file__).parents[2] / "recipes" / "assets" / "local_base"
SAMPLING = Sampling(num_samples=4, temperature=0.7, top_p=0.95, max_response_tokens=40)
HOT = replace(SAMPLING, temperature=2.0, top_p=1.0)
"""What this model copies from a random prompt is nearly certain at a temperature of 1; vLLM takes 2 at most."""
PROMPTS = [np.random.default_rng(seed).integers(10, 800, size=size).tolist() for seed, size in ((0, 205), (1, 70))]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Samples of one engine, in the order in which they were drawn."""

    cold: list[list[Sample]]
    """Groups of both prompts."""
    warm: list[list[Sample]]
    """The same again, from cached prefixes."""
    hot: list[list[Sample]]
    alone: list[Sample]
    """The first hot group, every sample as a request of its own with its seed."""
    decoding_gap: float
    updated: list[Sample]
    """Hot answers to the first prompt, under way while other weights were loaded."""
    fresh: list[Sample]
    """Answers to the first prompt, whose prefix was cached, afterwards."""
    decoding_gap_after: float


async def find(engine: VLLMEngine, other: Policy) -> Findings:
    """Sample before, during and after an update to the weights of another policy."""
    cold = await asyncio.gather(*[engine.sample(prompt, SAMPLING, seed=5) for prompt in PROMPTS])
    warm = await asyncio.gather(*[engine.sample(prompt, SAMPLING, seed=5) for prompt in PROMPTS])
    hot = [await engine.sample(prompt, HOT, seed=6) for prompt in PROMPTS]
    alone = [await engine.sample(PROMPTS[0], replace(HOT, num_samples=1), seed=6 + i) for i in range(HOT.num_samples)]
    gap = await engine.decoding_gap(PROMPTS[1])
    updated = await _updated(engine, other)
    return Findings(
        cold=cold,
        warm=warm,
        hot=hot,
        alone=[sample for (sample,) in alone],
        decoding_gap=gap,
        updated=updated,
        fresh=await engine.sample(PROMPTS[0], SAMPLING, seed=9),
        decoding_gap_after=await engine.decoding_gap(PROMPTS[1]),
    )


async def _updated(engine: VLLMEngine, other: Policy) -> list[Sample]:
    sender = WeightSender(WeightSource(other.causal_lm), is_root=True, every_byte=False)
    sent = sender.publish(1)
    prefilled = engine.num_prefilled_tokens
    call = asyncio.create_task(engine.sample(PROMPTS[0], replace(HOT, max_response_tokens=250), seed=9))
    async with asyncio.timeout(60):
        while engine.num_prefilled_tokens == prefilled:
            await asyncio.sleep(0.005)
    await engine.load_weights(sent)
    return await call


def sampling_gaps(policy: Policy, prompt: Sequence[int], samples: Sequence[Sample], sampling: Sampling) -> np.ndarray:
    """Return [N] |engine - learner| (nats) of all sampled tokens, after temperature and top-p, of those inside."""
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
    with torch.no_grad():
        scores = TokenScores(*policy(to_device(row, Placement(device=_device(policy))))[1:])
    theirs_N = np.concatenate([np.array(sample.logprobs, np.float32) for sample in samples])
    gaps_N = np.abs((scores.logprobs_N - scores.log_nucleus_N).float().cpu().numpy() - theirs_N)
    return gaps_N[scores.inside_N.cpu().numpy() > 0]


def share_inside(policy: Policy, prompt: Sequence[int], samples: Sequence[Sample], sampling: Sampling) -> float:
    """Return the share of sampled tokens that lie in the policy's own nucleus."""
    gaps_N = sampling_gaps(policy, prompt, samples, sampling)
    return len(gaps_N) / sum(len(sample.token_ids) for sample in samples)


def base_policy(dtype: torch.dtype = torch.float32, *, device: str = "cpu") -> Policy:
    """Return the policy that the engine starts with."""
    policy = load_policy(str(BASE), dtype=dtype, trust_remote_code=False)
    return policy.to(device)


def other_policy(dtype: torch.dtype = torch.float32, *, device: str = "cpu") -> Policy:
    """Return one with other weights, the same in every call."""
    policy = base_policy(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    return policy.to(device)


def _device(policy: Policy) -> torch.device:
    return next(policy.parameters()).device
