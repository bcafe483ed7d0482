"""Records of the learner: groups to train on, and the packed rows they become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from actors.trajectory import Group


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingItem:
    """One group of a batch as the driver passes it to every rank: by reference, with all that planning needs."""

    group: Any
    """`ray.ObjectRef` of a `Group`; only the rank that trains on it fetches it."""
    advantages: tuple[float | None, ...]
    """[G] advantage of each answer; None for an answer that is left out: its reward is unknown, or it was truncated and
    `learner.mask_truncated` is set."""
    prompt_tokens: int
    """P, tokens of the shared prompt."""
    response_tokens: tuple[int, ...]
    """Tokens of each answer that is not left out, in the order of the answers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingGroup:
    """The tokens and advantages of a group: what the loss needs of it."""

    prompt_ids: NDArray[np.int32]
    """[P] token ids of the shared prompt."""
    response_ids: tuple[NDArray[np.int32], ...]
    """[G] arrays of [R_i] token ids."""
    rollout_logprobs: tuple[NDArray[np.float32], ...]
    """[G] arrays of [R_i] log-probabilities (nats) under the sampling policy."""
    advantages: tuple[float, ...]
    """[G] advantage of each response; responses that are left out are not in the group."""
    temperature: float
    """Sampling temperature; logits are divided by it."""
    top_p: float = 1.0
    """Nucleus of the sampler; `rollout_logprobs` are those of the distribution restricted to it."""

    def __post_init__(self) -> None:
        sizes = {len(self.response_ids), len(self.rollout_logprobs), len(self.advantages)}
        if sizes == {0} or len(sizes) != 1:
            raise ValueError(
                f"group with {sorted(sizes)} responses, log-probabilities and advantages; give equally many, at least "
                "one"
            )
        for index, (ids, logprobs) in enumerate(zip(self.response_ids, self.rollout_logprobs, strict=True)):
            if len(ids) != len(logprobs):
                raise ValueError(
                    f"response {index} has {len(ids)} tokens but {len(logprobs)} rollout log-probabilities; ask the "
                    "engine for the log-probability of every sampled token"
                )
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} cannot divide logits; sample with a temperature above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not a probability mass; give a value in (0, 1]")

    @classmethod
    def of(cls, group: Group, advantages: Sequence[float | None]) -> Self:
        """Take the answers of a group that have an advantage; its arrays are not copied.

        Args:
            group: the group.
            advantages: [G] of its answers; None for those to leave out.
        """
        kept = [(t, a) for t, a in zip(group.trajectories, advantages, strict=True) if a is not None]
        return cls(
            prompt_ids=group.task.prompt_ids,
            response_ids=tuple(trajectory.response_ids for trajectory, _ in kept),
            rollout_logprobs=tuple(trajectory.rollout_logprobs for trajectory, _ in kept),
            advantages=tuple(advantage for _, advantage in kept),
            temperature=group.temperature,
            top_p=group.top_p,
        )

    @property
    def prompt_tokens(self) -> int:
        """P, tokens of the shared prompt."""
        return len(self.prompt_ids)

    @property
    def response_tokens(self) -> tuple[int, ...]:
        """[G] tokens of each response."""
        return tuple(len(ids) for ids in self.response_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixSegment:
    """One prompt in a packed row, followed by its responses one after the other."""

    start: int
    """Index of the first prompt token in the row."""
    prompt_tokens: int
    """P, at least 1."""
    response_tokens: tuple[int, ...]
    """[G] tokens of each response, at least 1 each; empty where a row has none of them."""

    @property
    def end(self) -> int:
        """Index after the last response token."""
        return self.start + self.prompt_tokens + sum(self.response_tokens)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MicroBatch:
    """One packed row, ready to be forwarded. T: tokens of the row. N: response tokens that count in the loss."""

    input_ids: NDArray[np.int64]
    """[T] token ids."""
    position_ids: NDArray[np.int64]
    """[T] positions; every response continues where its prompt ended."""
    segments: tuple[PrefixSegment, ...]
    """Cover the row without gaps; in a row with batches they cover its prompts, which come first."""
    predictors: NDArray[np.int64]
    """[N] index in the row of the token that predicts each response token: the one before it; for the first token of
    every response, the last token of the prompt."""
    labels: NDArray[np.int64]
    """[N] the response tokens."""
    weights: NDArray[np.float32]
    """[N] weight of each token in the loss of the mini-batch, see `aggregation`; in the warm-up, and but for `constant`
    and `batch`, those of a mini-batch sum to 1 over all ranks."""
    advantages: NDArray[np.float32]
    """[N] advantage of the response each token belongs to; zeros in the warm-up."""
    rollout_logprobs: NDArray[np.float32]
    """[N] log-probabilities (nats) under the sampling policy; zeros in the warm-up."""
    temperature: NDArray[np.float32]
    """[N] sampling temperature; ones in the warm-up."""
    top_p: NDArray[np.float32]
    """[N] nucleus of the sampler; ones in the warm-up."""
    answers: NDArray[np.int64]
    """[N] index of the response in the row that each token belongs to."""
    batches: tuple[tuple[tuple[int, ...], ...], ...] = ()
    """[B][S] tokens of each response in the batch to each of the S prompts, for a row that goes through the layers in
    parts: its prompts, then one batch of responses after the other. Empty for a row that is forwarded whole."""

    @property
    def is_placeholder(self) -> bool:
        """True for a row with weight zero, which only keeps the ranks in step."""
        return not self.weights.any()
