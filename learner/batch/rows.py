"""From planned groups to packed rows: the arrays that one forward pass reads.

A row is `prompt, response, response, ..., prompt, response, ...`: every prompt once, its responses behind it. A row
that is too large to be forwarded at once becomes its prompts and several rows of responses, see `three_phase`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from curriculum.task import Demonstration
from learner.batch.aggregation import TOKEN_MEAN, Aggregation, token_weights
from learner.batch.microbatch import MicroBatch, PhasedMicroBatch, PrefixSegment, TrainingGroup
from learner.batch.packing import RowPlan

_PLACEHOLDER = TrainingGroup(
    prompt_ids=np.zeros(1, np.int32),
    response_ids=(np.zeros(1, np.int32),),
    rollout_logprobs=(np.zeros(1, np.float32),),
    advantages=(0.0,),
    temperature=1.0,
)


def demonstration_group(demonstration: Demonstration) -> TrainingGroup:
    """A demonstration as a group of one, so that the warm-up is packed and forwarded like everything else."""
    response = demonstration.response_ids
    return TrainingGroup(
        prompt_ids=demonstration.prompt_ids,
        response_ids=(response,),
        rollout_logprobs=(np.zeros(len(response), np.float32),),
        advantages=(0.0,),
        temperature=1.0,
    )


def build_microbatch(
    plan: RowPlan, groups: Mapping[int, TrainingGroup], *, num_groups: int, aggregation: Aggregation
) -> MicroBatch | PhasedMicroBatch:
    """Lay the planned responses out as one row, or as prompts and batches of responses where the plan has batches.

    Args:
        plan: the responses of the row; without any the row is a placeholder of two tokens that weigh nothing.
        groups: the groups they belong to, by index in the batch.
        num_groups: groups of the whole mini-batch over all ranks, the normaliser of the loss.
        aggregation: how the tokens of a group share its weight.
    """
    if plan.batches:
        return _phased(plan, groups, num_groups, aggregation)
    row = _Row()
    for index, responses in plan.responses.items():
        group = groups[index]
        segment = row.add_prompt(group, responses)
        row.add_responses(group, responses, segment, _weights(group, num_groups, aggregation))
    if not plan.responses:
        segment = row.add_prompt(_PLACEHOLDER, (0,))
        row.add_responses(_PLACEHOLDER, (0,), segment, [0.0])
    return row.finish()


def single_row(token_ids: NDArray[np.int32]) -> MicroBatch | PhasedMicroBatch:
    """[T] tokens as a row of their own, where every token but the first is scored."""
    group = demonstration_group(
        Demonstration(demonstration_id="row", prompt_ids=token_ids[:1], response_ids=token_ids[1:])
    )
    return build_microbatch(RowPlan(responses={0: (0,)}), {0: group}, num_groups=1, aggregation=TOKEN_MEAN)


def _phased(
    plan: RowPlan, groups: Mapping[int, TrainingGroup], num_groups: int, aggregation: Aggregation
) -> PhasedMicroBatch:
    members = {index: groups[index] for index in plan.responses} or {0: _PLACEHOLDER}
    batches = []
    for batch in plan.batches:
        row = _Row(num_prompts=len(members))
        for index, group in members.items():
            responses = batch.get(index, ())
            weights_G = _weights(group, num_groups, aggregation)
            if not batch and not row.segments:  # nothing left of this row, but the other ranks are still at it
                group, responses, weights_G = _one_weightless_token(group), (0,), [0.0]
            segment = row.add_cached_prompt(group, responses)
            row.add_responses(group, responses, segment, weights_G)
        batches.append(row.finish())
    return PhasedMicroBatch(prompts=tuple(group.prompt_ids for group in members.values()), batches=tuple(batches))


def _weights(group: TrainingGroup, num_groups: int, aggregation: Aggregation) -> list[float]:
    """[G] share of each token of each response in the loss of the mini-batch."""
    return [weight / num_groups for weight in token_weights(group.response_tokens, aggregation)]


def _one_weightless_token(group: TrainingGroup) -> TrainingGroup:
    return TrainingGroup(
        prompt_ids=group.prompt_ids,
        response_ids=_PLACEHOLDER.response_ids,
        rollout_logprobs=_PLACEHOLDER.rollout_logprobs,
        advantages=_PLACEHOLDER.advantages,
        temperature=1.0,
    )


@dataclass(slots=True)
class _Row:
    """Columns of a row while it grows."""

    num_prompts: int | None = None
    """Prompts that were forwarded ahead; None where they are in the row."""
    length: int = 0
    prompts_length: int = 0
    segments: list[PrefixSegment] = field(default_factory=list)
    input_ids: list[NDArray] = field(default_factory=list)
    position_ids: list[NDArray] = field(default_factory=list)
    predictors: list[NDArray] = field(default_factory=list)
    labels: list[NDArray] = field(default_factory=list)
    weights: list[NDArray] = field(default_factory=list)
    advantages: list[NDArray] = field(default_factory=list)
    rollout_logprobs: list[NDArray] = field(default_factory=list)
    temperature: list[NDArray] = field(default_factory=list)
    top_p: list[NDArray] = field(default_factory=list)
    answers: list[NDArray] = field(default_factory=list)

    def add_prompt(self, group: TrainingGroup, responses: Sequence[int]) -> int:
        """Append the prompt; returns the index of its last token."""
        self.segments.append(_segment(self.length, group, responses))
        self.input_ids.append(group.prompt_ids)
        self.position_ids.append(np.arange(len(group.prompt_ids)))
        self.length += len(group.prompt_ids)
        return self.length - 1

    def add_cached_prompt(self, group: TrainingGroup, responses: Sequence[int]) -> int:
        """Note a prompt that went ahead; returns the index of its last state."""
        self.segments.append(_segment(self.prompts_length, group, responses))
        self.prompts_length += len(group.prompt_ids)
        return len(self.segments) - 1

    def add_responses(
        self, group: TrainingGroup, responses: Sequence[int], last_prompt: int, weights_G: Sequence[float]
    ) -> None:
        """Append the responses; the state with index `last_prompt` predicts the first token of each."""
        for i in responses:
            ids, start = group.response_ids[i], self.length + (self.num_prompts or 0)
            predictors = np.arange(start - 1, start - 1 + len(ids))
            predictors[0] = last_prompt
            self.predictors.append(predictors)
            self.input_ids.append(ids)
            self.position_ids.append(np.arange(len(group.prompt_ids), len(group.prompt_ids) + len(ids)))
            self.labels.append(ids)
            self.rollout_logprobs.append(group.rollout_logprobs[i])
            for column, value in (
                (self.weights, weights_G[i]),
                (self.advantages, group.advantages[i]),
                (self.temperature, group.temperature),
                (self.top_p, group.top_p),
                (self.answers, len(self.answers)),
            ):
                column.append(np.full(len(ids), value))
            self.length += len(ids)

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
            top_p=_join(self.top_p, np.float32),
            answers=_join(self.answers, np.int64),
            prompts_ahead=self.num_prompts is not None,
        )


def _segment(start: int, group: TrainingGroup, responses: Sequence[int]) -> PrefixSegment:
    return PrefixSegment(
        start=start,
        prompt_tokens=len(group.prompt_ids),
        response_tokens=tuple(len(group.response_ids[i]) for i in responses),
    )


def _join(parts: Sequence[NDArray], dtype: type[np.generic]) -> NDArray:
    return np.concatenate(parts, dtype=dtype, casting="same_kind")
