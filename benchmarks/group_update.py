"""One update of one group: a Qwen2 and a batch from a seed, and the ceiling of what sharing the prompt can save.

For the benchmarks; P prompt tokens, R response tokens, G responses.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from learner.attention.shared_prefix import ATTENTION_KEY, register
from learner.batch.aggregation import TOKEN_MEAN
from learner.batch.microbatch import TrainingGroup
from learner.batch.packing import RowPlan
from learner.batch.rows import build_microbatch
from learner.forward.logprobs import TokenScores
from learner.forward.row_tensors import Placement, RowTensors, to_device
from learner.objective.objective import Objective, PolicyLoss
from learner.zero3.policy import Policy

CPU = Placement(device=torch.device("cpu"))
OBJECTIVE = Objective(clip_low=0.2, clip_high=0.28)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of model and group."""

    prompt: int
    responses: tuple[int, ...]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int

    @property
    def ceiling(self) -> float:
        """FLOPs with the prompt forwarded per response over FLOPs with the prompt forwarded once, LM head included."""
        return self.dense_flops / self.shared_flops

    @property
    def dense_flops(self) -> float:
        """Of a forward pass of every response behind its own copy of the prompt."""
        return sum(self._flops(self.prompt + r, 0, r) for r in self.responses)

    @property
    def shared_flops(self) -> float:
        """Of a forward pass with the prompt once."""
        return self._flops(self.prompt, 0, 0) + sum(self._flops(r, self.prompt, r) for r in self.responses)

    @property
    def shared_attention_flops(self) -> float:
        """Those of them that are scores and their product with the values."""
        pairs = self.prompt * (self.prompt + 1) / 2
        pairs += sum(r * self.prompt + r * (r + 1) / 2 for r in self.responses)
        return self.layers * 4 * self.hidden * pairs

    def _flops(self, tokens: int, before: int, scored: int) -> float:
        """Forward pass of `tokens` tokens that follow `before` others; `scored` of them go through the LM head."""
        width = self.hidden // self.heads
        linear = 2 * self.hidden * self.hidden + 2 * self.hidden * width * self.kv_heads
        linear += 3 * self.hidden * self.intermediate
        pairs = tokens * before + tokens * (tokens + 1) / 2
        return self.layers * (2 * linear * tokens + 4 * self.hidden * pairs) + 2 * self.hidden * self.vocab * scored


def add_shape_options(parser: ArgumentParser) -> None:
    """Options for the sizes, the seed and the threads."""
    for name, default in (
        ("prompt", 2048), ("response", 128), ("group", 8), ("hidden", 512), ("layers", 6), ("heads", 8),
        ("kv-heads", 2), ("intermediate", 1536), ("vocab", 8192), ("threads", 1), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ragged", action="store_true", help="responses between a quarter of and all of --response")


def shape_of(options: Namespace) -> Shape:
    """Sizes from the options; ragged lengths derive from the seed."""
    rng = np.random.default_rng([options.seed, 1])
    shortest = max(1, options.response // 4) if options.ragged else options.response
    lengths = rng.integers(shortest, options.response + 1, size=options.group)
    return Shape(
        prompt=options.prompt,
        responses=tuple(int(n) for n in lengths),
        hidden=options.hidden,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads,
        intermediate=options.intermediate,
        vocab=options.vocab,
    )


def make_model(shape: Shape, seed: int, attention: str) -> torch.nn.Module:
    """A Qwen2 with random weights that the seed alone decides."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    register()
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.prompt + max(shape.responses),
    )
    config._attn_implementation = attention
    return Qwen2ForCausalLM(config).train()


def make_policy(shape: Shape, seed: int) -> Policy:
    """The model with our attention and head."""
    return Policy(make_model(shape, seed, ATTENTION_KEY))  # type: ignore[arg-type]


def make_group(shape: Shape, seed: int) -> TrainingGroup:
    """A group whose tokens, advantages and log-probabilities the seed alone decides."""
    rng = np.random.default_rng([seed, 2])

    def ids(count: int) -> NDArray[np.int32]:
        return rng.integers(shape.vocab, size=count, dtype=np.int32)

    advantages = rng.standard_normal(len(shape.responses))
    return TrainingGroup(
        prompt_ids=ids(shape.prompt),
        response_ids=tuple(ids(n) for n in shape.responses),
        rollout_logprobs=tuple(
            (-math.log(shape.vocab) + 0.1 * rng.standard_normal(n)).astype(np.float32) for n in shape.responses
        ),
        advantages=tuple(float(a) for a in advantages - advantages.mean()),
        temperature=1.0,
    )


def make_rows(group: TrainingGroup, *, shared: bool) -> list[RowTensors]:
    """The whole group as one row, or every response in a row of its own behind its own copy of the prompt."""
    everything = tuple(range(len(group.response_ids)))
    parts = [everything] if shared else [(i,) for i in everything]
    rows = []
    for responses in parts:
        row = build_microbatch(RowPlan(responses={0: responses}), {0: group}, num_groups=1, aggregation=TOKEN_MEAN)
        rows.append(to_device(row, CPU, dense=not shared))
    return rows


def make_row_in_parts(group: TrainingGroup) -> RowTensors:
    """The group as one row whose responses go through the layers one by one."""
    everything = tuple(range(len(group.response_ids)))
    plan = RowPlan(responses={0: everything}, batches=tuple({0: (i,)} for i in everything))
    return to_device(build_microbatch(plan, {0: group}, num_groups=1, aggregation=TOKEN_MEAN), CPU)


def update(policy: Policy, rows: Sequence[RowTensors]) -> float:
    """Loss and gradients of one update: everything forward, then one backward pass; returns the loss.

    The policy before the update is stood in for by the sampler's log-probabilities, so that ratios differ from 1.
    """
    policy.zero_grad(set_to_none=True)
    total = torch.zeros(())
    for row in rows:
        loss = PolicyLoss(row, OBJECTIVE, old=_old_scores(row), reference_N=None)
        total = total + policy(row, loss)[0]
    total.backward()
    return total.item()


def gradient(policy: torch.nn.Module) -> torch.Tensor:
    """All gradients in one vector, in the order of the parameters."""
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def _old_scores(row: RowTensors) -> TokenScores:
    zeros = torch.zeros_like(row.rollout_logprobs_N)
    return TokenScores(row.rollout_logprobs_N, zeros, zeros, zeros, zeros + 1, zeros)
