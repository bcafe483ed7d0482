"""From planned groups to packed rows: the arrays that one forward pass reads.

A row is `prompt, response, response, ..., prompt, response, ...`: every prompt once, followed by its responses. A row
that is too large to be forwarded at once becomes its prompts and several rows of responses, see `three_phase`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    """Return a demonstration as a group with one response, so that the warm-up is packed and forwarded like groups."""
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
        plan: the responses of the row; without any, the row is a placeholder of two tokens with weight zero.
        groups: the groups they belong to, by index in the planned slice.
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
    """Return [T] tokens as a row in which every token but the first is scored."""
    group = demonstration_group(
        Demonstration(demonstration_id="row", prompt_ids=token_ids[:1], response_ids=token_ids[1:])
    )
    return build_microbatch(RowPlan(responses={0: (0,)}), {0: group}, num_groups=1, aggregation=TOKEN_MEAN)


def _phased(
    plan: RowPlan, groups: Mapping[int, TrainingGroup], num_groups: int, aggregation: Aggregation
) -> PhasedMicroBatch:
    members = {index: groups[index] for index in plan.responses} or {0: _PLACEHOLDER}
    batches: list[MicroBatch] = []
    for batch in plan.batches:
        row = _Row(num_prompts=len(members))
        for index, group in members.items():
            responses = batch.get(index, ())
            weights_G = _weights(group, num_groups, aggregation)
            if not batch and not row.segments:  # this row has no responses left, but rows of other ranks have
                group, responses, weights_G = _one_weightless_token(group), (0,), [0.0]
            segment = row.add_cached_prompt(group, responses)
            row.add_responses(group, responses, segment, weights_G)
        batches.append(row.finish())
    return PhasedMicroBatch(prompts=tuple(group.prompt_ids for group in members.values()), batches=tuple(batches))


def _weights(group: TrainingGroup, num_groups: int, aggregation: Aggregation) -> list[float]:
    """Return [G] the share of each token of each response in the loss of the mini-batch."""
    return [weight / num_groups for weight in token_weights(group.response_tokens, aggregation)]


def _one_weightless_token(group: TrainingGroup) -> TrainingGroup:
    return TrainingGroup(
        prompt_ids=group.prompt_ids,
        response_ids=_PLACEHOLDER.response_ids,
        rollout_logprobs=_PLACEHOLDER.rollout_logprobs,
        advantages=_PLACEHOLDER.advantages,
        temperature=1.0,
    )


class _Row:
    """A row while it is built: parts of every column, in order."""

    def __init__(self, num_prompts: int | None = None) -> None:
        """Begin with nothing; `num_prompts` were forwarded before, None where the prompts are in the row."""
        self.segments: list[PrefixSegment] = []
        self._num_prompts = num_prompts
        self._num_tokens = 0
        self._num_cached_tokens = 0
        self._input_ids: list[NDArray[np.int32]] = []
        self._position_ids: list[NDArray[np.int64]] = []
        self._predictors: list[NDArray[np.int64]] = []
        self._responses: list[tuple[TrainingGroup, int, float]] = []

    def add_prompt(self, group: TrainingGroup, responses: Sequence[int]) -> int:
        """Append the prompt; return the index of its last token."""
        self.segments.append(_segment(self._num_tokens, group, responses))
        self._append(group.prompt_ids, first_position=0)
        return self._num_tokens - 1

    def add_cached_prompt(self, group: TrainingGroup, responses: Sequence[int]) -> int:
        """Note a prompt that was forwarded before; return the index of its last state."""
        self.segments.append(_segment(self._num_cached_tokens, group, responses))
        self._num_cached_tokens += len(group.prompt_ids)
        return len(self.segments) - 1

    def add_responses(
        self, group: TrainingGroup, responses: Sequence[int], last_prompt: int, weights_G: Sequence[float]
    ) -> None:
        """Append the responses; the state with index `last_prompt` predicts the first token of each."""
        for i in responses:
            ids, start = group.response_ids[i], self._num_tokens + (self._num_prompts or 0)
            predictors = np.arange(start - 1, start - 1 + len(ids))
            predictors[0] = last_prompt
            self._predictors.append(predictors)
            self._responses.append((group, i, weights_G[i]))
            self._append(ids, first_position=len(group.prompt_ids))

    def finish(self) -> MicroBatch:
        """Return the row."""
        answers = self._responses
        return MicroBatch(
            input_ids=_join(self._input_ids, np.int64),
            position_ids=_join(self._position_ids, np.int64),
            segments=tuple(self.segments),
            predictors=_join(self._predictors, np.int64),
            labels=_join([group.response_ids[i] for group, i, _ in answers], np.int64),
            weights=self._per_token([weight for _, _, weight in answers], np.float32),
            advantages=self._per_token([group.advantages[i] for group, i, _ in answers], np.float32),
            rollout_logprobs=_join([group.rollout_logprobs[i] for group, i, _ in answers], np.float32),
            temperature=self._per_token([group.temperature for group, _, _ in answers], np.float32),
            top_p=self._per_token([group.top_p for group, _, _ in answers], np.float32),
            answers=self._per_token(range(len(answers)), np.int64),
            prompts_ahead=self._num_prompts is not None,
        )

    def _append(self, ids: NDArray[np.int32], *, first_position: int) -> None:
        """Append tokens with consecutive positions."""
        self._input_ids.append(ids)
        self._position_ids.append(np.arange(first_position, first_position + len(ids)))
        self._num_tokens += len(ids)

    def _per_token(self, values: Sequence[float], dtype: type[np.generic]) -> NDArray[Any]:
        """Return [N] the value of its response, for each token of the responses."""
        return np.repeat(np.array(values, dtype), [len(group.response_ids[i]) for group, i, _ in self._responses])


def _segment(start: int, group: TrainingGroup, responses: Sequence[int]) -> PrefixSegment:
    return PrefixSegment(
        start=start,
        prompt_tokens=len(group.prompt_ids),
        response_tokens=tuple(len(group.response_ids[i]) for i in responses),
    )


def _join(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts, dtype=dtype, casting="same_kind")
