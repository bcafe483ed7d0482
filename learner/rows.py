"""From planned groups to packed rows: the arrays that one forward pass reads.

A row is `prompt, response, response, ..., prompt, response, ...`: every prompt once, its responses behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curriculum.task import Demonstration
from learner.loss import Aggregation, token_weights
from learner.microbatch import MicroBatch, PrefixSegment, ScoredGroup
from learner.packing import GroupPart, MicroBatchPlan


def demonstration_group(demonstration: Demonstration) -> ScoredGroup:
    """A demonstration as a group of one, so that the warm-up is packed and forwarded like everything else."""
    response = demonstration.response_ids
    return ScoredGroup(
        prompt_ids=demonstration.prompt_ids,
        response_ids=(response,),
        rollout_logprobs=(np.zeros(len(response), np.float32),),
        advantages=(0.0,),
        temperature=1.0,
    )


def build_microbatch(
    plan: MicroBatchPlan, groups: Mapping[int, ScoredGroup], *, num_groups: int, aggregation: Aggregation
) -> MicroBatch:
    """Lay the planned parts out as one row.

    Args:
        plan: the parts of the row; without parts the row is a placeholder of two tokens that weigh nothing.
        groups: the groups the parts belong to, by index in the batch.
        num_groups: groups of the whole mini-batch over all ranks, the normaliser of the loss.
        aggregation: how the tokens of a group share its weight.
    """
    row = _Row()
    for part in plan.parts:
        row.add(part, groups[part.group], num_groups, aggregation)
    if not plan.parts:
        row.add_placeholder()
    return row.finish()


@dataclass(slots=True)
class _Row:
    """Columns of a row while it grows."""

    length: int = 0
    segments: list[PrefixSegment] = field(default_factory=list)
    input_ids: list[NDArray] = field(default_factory=list)
    position_ids: list[NDArray] = field(default_factory=list)
    predictors: list[NDArray] = field(default_factory=list)
    labels: list[NDArray] = field(default_factory=list)
    weights: list[NDArray] = field(default_factory=list)
    advantages: list[NDArray] = field(default_factory=list)
    rollout_logprobs: list[NDArray] = field(default_factory=list)
    temperature: list[NDArray] = field(default_factory=list)

    def add(self, part: GroupPart, group: ScoredGroup, num_groups: int, aggregation: Aggregation) -> None:
        weights_G = token_weights(group.shape.response_tokens, aggregation)
        last_prompt = self._add_prompt(group.prompt_ids, [len(group.response_ids[i]) for i in part.responses])
        for i in part.responses:
            ids = group.response_ids[i]
            self._add_response(ids, last_prompt, len(group.prompt_ids))
            self._add_loss_columns(
                ids, weights_G[i] / num_groups, group.advantages[i], group.rollout_logprobs[i], group.temperature
            )

    def add_placeholder(self) -> None:
        token = np.zeros(1, np.int64)
        last_prompt = self._add_prompt(token, [1])
        self._add_response(token, last_prompt, 1)
        self._add_loss_columns(token, 0.0, 0.0, np.zeros(1, np.float32), 1.0)

    def finish(self) -> MicroBatch:
        return MicroBatch(
            input_ids=_join(self.input_ids, np.int64),
            position_ids=_join(self.position_ids, np.int64),
            segments=tuple(self.segments),
            predictors=_join(self.predictors, np.int64),
            labels=_join(self.labels, np.int64),
            weights=_join(self.weights, np.float32),
            advantages=_join(self.advantages, np.float32),
            rollout_logprobs=_join(self.rollout_logprobs, np.float32),
            temperature=_join(self.temperature, np.float32),
        )

    def _add_prompt(self, prompt_ids: NDArray, response_tokens: list[int]) -> int:
        """Append the prompt; returns the index of its last token."""
        self.segments.append(
            PrefixSegment(start=self.length, prompt_tokens=len(prompt_ids), response_tokens=tuple(response_tokens))
        )
        self.input_ids.append(prompt_ids)
        self.position_ids.append(np.arange(len(prompt_ids)))
        self.length += len(prompt_ids)
        return self.length - 1

    def _add_response(self, response_ids: NDArray, last_prompt: int, prompt_tokens: int) -> None:
        predictors = np.arange(self.length - 1, self.length - 1 + len(response_ids))
        predictors[0] = last_prompt
        self.predictors.append(predictors)
        self.input_ids.append(response_ids)
        self.position_ids.append(np.arange(prompt_tokens, prompt_tokens + len(response_ids)))
        self.length += len(response_ids)

    def _add_loss_columns(
        self, ids: NDArray, weight: float, advantage: float, rollout_logprobs: NDArray, temperature: float
    ) -> None:
        self.labels.append(ids)
        self.weights.append(np.full(len(ids), weight))
        self.advantages.append(np.full(len(ids), advantage))
        self.rollout_logprobs.append(rollout_logprobs)
        self.temperature.append(np.full(len(ids), temperature))


def _join(parts: Sequence[NDArray], dtype: type[np.generic]) -> NDArray:
    return np.concatenate(parts, dtype=dtype, casting="same_kind")
