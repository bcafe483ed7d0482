"""From planned groups to packed rows: the arrays that one forward pass reads.

A row is `prompt, response, response, ..., prompt, response, ...`: every prompt once, followed by its responses. A row
that is too large for a layer at once has its prompts first, and then the responses in batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curriculum.task import Demonstration
from learner.batch.aggregation import TOKEN_MEAN, Aggregation, token_weights
from learner.batch.microbatch import MicroBatch, PrefixSegment, TrainingGroup
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
) -> MicroBatch:
    """Lay the planned responses out as one row, in batches where the plan has them.

    Args:
        plan: the responses of the row; without any, the row is a placeholder of two tokens with weight zero.
        groups: the groups they belong to, by index in the planned slice.
        num_groups: groups of the whole mini-batch over all ranks, the normaliser of the loss.
        aggregation: how the tokens of a group share its weight.
    """
    row = _Row()
    if not plan.responses:
        row.add_responses(_PLACEHOLDER, (0,), row.add_prompt(_PLACEHOLDER, (0,)), [0.0])
        return row.finish()
    weights = {index: _weights(groups[index], num_groups, aggregation) for index in plan.responses}
    if not plan.batches:
        for index, responses in plan.responses.items():
            row.add_responses(groups[index], responses, row.add_prompt(groups[index], responses), weights[index])
        return row.finish()
    last_prompts = {index: row.add_prompt(groups[index], ()) for index in plan.responses}
    for batch in plan.batches:
        for index in plan.responses:
            row.add_responses(groups[index], batch.get(index, ()), last_prompts[index], weights[index])
    batches = [[_lengths(groups[index], batch.get(index, ())) for index in plan.responses] for batch in plan.batches]
    return row.finish(tuple(map(tuple, batches)))


def single_row(token_ids: NDArray[np.int32]) -> MicroBatch:
    """Return [T] tokens as a row in which every token but the first is scored."""
    group = demonstration_group(
        Demonstration(demonstration_id="row", prompt_ids=token_ids[:1], response_ids=token_ids[1:])
    )
    return build_microbatch(RowPlan(responses={0: (0,)}), {0: group}, num_groups=1, aggregation=TOKEN_MEAN)


def _weights(group: TrainingGroup, num_groups: int, aggregation: Aggregation) -> list[float]:
    """Return [G] the share of each token of each response in the loss of the mini-batch."""
    return [weight / num_groups for weight in token_weights(group.response_tokens, aggregation)]


class _Row:
    """A row while it is built: parts of every column, in order."""

    def __init__(self) -> None:
        self._segments: list[PrefixSegment] = []
        self._num_tokens = 0
        self._input_ids: list[NDArray[np.int32]] = []
        self._position_ids: list[NDArray[np.int64]] = []
        self._predictors: list[NDArray[np.int64]] = []
        self._responses: list[tuple[TrainingGroup, int, float]] = []

    def add_prompt(self, group: TrainingGroup, responses: Sequence[int]) -> int:
        """Append the prompt, which these responses follow at once; return the index of its last token."""
        self._segments.append(
            PrefixSegment(
                start=self._num_tokens,
                prompt_tokens=group.prompt_tokens,
                response_tokens=_lengths(group, responses),
            )
        )
        self._append(group.prompt_ids, first_position=0)
        return self._num_tokens - 1

    def add_responses(
        self, group: TrainingGroup, responses: Sequence[int], last_prompt: int, weights_G: Sequence[float]
    ) -> None:
        """Append the responses; the token with index `last_prompt` predicts the first token of each."""
        for i in responses:
            ids = group.response_ids[i]
            predictors = np.arange(self._num_tokens - 1, self._num_tokens - 1 + len(ids))
            predictors[0] = last_prompt
            self._predictors.append(predictors)
            self._responses.append((group, i, weights_G[i]))
            self._append(ids, first_position=len(group.prompt_ids))

    def finish(self, batches: tuple[tuple[tuple[int, ...], ...], ...] = ()) -> MicroBatch:
        """Return the row; `batches` as in `MicroBatch`."""
        answers = self._responses
        return MicroBatch(
            input_ids=_join(self._input_ids, np.int64),
            position_ids=_join(self._position_ids, np.int64),
            segments=tuple(self._segments),
            predictors=_join(self._predictors, np.int64),
            labels=_join([group.response_ids[i] for group, i, _ in answers], np.int64),
            weights=self._per_token([weight for _, _, weight in answers], np.float32),
            advantages=self._per_token([group.advantages[i] for group, i, _ in answers], np.float32),
            rollout_logprobs=_join([group.rollout_logprobs[i] for group, i, _ in answers], np.float32),
            temperature=self._per_token([group.temperature for group, _, _ in answers], np.float32),
            top_p=self._per_token([group.top_p for group, _, _ in answers], np.float32),
            answers=self._per_token(range(len(answers)), np.int64),
            batches=batches,
        )

    def _append(self, ids: NDArray[np.int32], *, first_position: int) -> None:
        """Append tokens with consecutive positions."""
        self._input_ids.append(ids)
        self._position_ids.append(np.arange(first_position, first_position + len(ids)))
        self._num_tokens += len(ids)

    def _per_token(self, values: Sequence[float], dtype: type[np.generic]) -> NDArray[Any]:
        """Return [N] the value of its response, for each token of the responses."""
        return np.repeat(np.array(values, dtype), [len(group.response_ids[i]) for group, i, _ in self._responses])


def _lengths(group: TrainingGroup, responses: Sequence[int]) -> tuple[int, ...]:
    return tuple(group.response_tokens[i] for i in responses)


def _join(parts: Sequence[NDArray[Any]], dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts, dtype=dtype, casting="same_kind")
