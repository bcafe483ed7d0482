"""What the groups of a step were worth, how long they are, and how old those are that were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated

import numpy as np

from cluster.batches.lag_buffer import policy_lag
from cluster.group import ScoredGroup
from cluster.run.parts import parts
from curriculum.metric import Metric
from reward.score import Verdict


class GroupStatistics:
    """Metrics of the groups of a step: all that were sampled, and those of them that were trained on."""

    def __init__(self, sampled: Sequence[ScoredGroup], batch: Sequence[ScoredGroup] = (), *, version: int = 0) -> None:
        """Look at the groups that were sampled, and at the batch that the policy of `version` trained on."""
        self._sampled = sampled
        self._scores = [score for group in sampled for score in group.scores]
        self._response_tokens = [tokens for group in sampled for tokens in group.meta.response_tokens]
        self._policy_lags = [policy_lag(group, version) for group in batch]
        self._trained_replayed = [group.meta.lease.replayed for group in batch]
        self._parts = parts(
            sampled,
            sources=[group.meta.data_source for group in sampled],
            prompt_tokens=[group.meta.prompt_tokens for group in sampled],
        )

    # ---- rewards

    @property
    def mean_reward(self) -> Annotated[float | None, Metric("reward/mean")]:
        """Mean reward of the known answers, overlong penalty included.

        Below `reward/accuracy` by the mean penalty.
        """
        return _mean([score.reward for score in self._scores if score.reward is not None])

    @property
    def accuracy(self) -> Annotated[float | None, Metric("reward/accuracy", "share")]:
        """Mean of max(rule, judge) over the known answers of all sampled groups, before dynamic sampling drops any.

        The curve to watch, within a phase: it falls at a transition because documents grow.
        """
        return _mean([score.accuracy for score in self._scores if score.accuracy is not None])

    @property
    def accuracy_of_parts(self) -> Annotated[Mapping[str, float], Metric("reward/accuracy/*", "share")]:
        """The same over the groups of each data source and of each range of prompt lengths."""
        found = {name: _known_accuracies(groups) for name, groups in self._parts.items()}
        return {name: fmean(accuracies) for name, accuracies in found.items() if accuracies}

    @property
    def num_judge_calls(self) -> Annotated[int, Metric("reward/judge_calls", "count")]:
        """Answers that the judge was asked about.

        Answers that the rule rejected and that name an answer at all.
        """
        return sum(score.judge is not None for score in self._scores)

    @property
    def num_judge_saves(self) -> Annotated[int, Metric("reward/judge_saves", "count")]:
        """Answers that the rule rejected and the judge accepted.

        A sudden rise without a rise of the rule's own successes: read those answers, the judge may be fooled.
        """
        return sum(score.judge is Verdict.YES and score.rule == 0.0 for score in self._scores)

    @property
    def num_unknown(self) -> Annotated[int, Metric("reward/unknown", "count")]:
        """Answers without a known reward, which are not trained on: no verdict of the judge, or the answer was cut.

        0 or close to it; otherwise look at the judge, or at `rollout/cut_share`.
        """
        return sum(score.accuracy is None for score in self._scores)

    @property
    def judge_is_away(self) -> bool:
        """Whether the judge was asked and most of its verdicts are missing."""
        missing = sum(score.judge is Verdict.UNKNOWN for score in self._scores)
        return missing * 2 > self.num_judge_calls

    # ---- lengths and endings

    @property
    def num_sampled(self) -> Annotated[int, Metric("rollout/groups", "count")]:
        """Groups whose lease ended with the step: the batch, and what was dropped for it.

        `groups_per_batch` where every group had a signal.
        """
        return len(self._sampled)

    @property
    def num_sampled_of_parts(self) -> Annotated[Mapping[str, int], Metric("rollout/groups/*", "count")]:
        """The same for each data source and each range of prompt lengths."""
        return {name: len(groups) for name, groups in self._parts.items()}

    @property
    def all_right_share(self) -> Annotated[float | None, Metric("rollout/all_right_share", "share")]:
        """Sampled groups of which every answer is known and right; nothing can be learned from them.

        Rising: the tasks of the phase are learned.
        """
        return self._share_of_groups(1.0)

    @property
    def all_wrong_share(self) -> Annotated[float | None, Metric("rollout/all_wrong_share", "share")]:
        """Sampled groups of which every answer is known and wrong; nothing can be learned from them either.

        High from the start: the tasks are too hard, or their answers cannot be read.
        """
        return self._share_of_groups(0.0)

    @property
    def num_trained(self) -> Annotated[int, Metric("rollout/groups_trained", "count")]:
        """Groups the learner trained on.

        Below `groups_per_batch`: `curriculum.max_sampling_rounds` was used up. 0: the step changed nothing.
        """
        return len(self._policy_lags)

    @property
    def trained_replayed_share(self) -> Annotated[float | None, Metric("curriculum/trained_replayed_share", "share")]:
        """Replayed groups among the trained ones.

        Below `curriculum/replayed_share`: replayed groups have a signal less often than fresh ones.
        """
        return _mean([float(replayed) for replayed in self._trained_replayed])

    @property
    def mean_prompt_tokens(self) -> Annotated[float | None, Metric("rollout/prompt_tokens_mean", "tokens")]:
        """Mean prompt length of the sampled groups."""
        return _mean([float(group.meta.prompt_tokens) for group in self._sampled])

    @property
    def mean_response_tokens(self) -> Annotated[float | None, Metric("rollout/response_tokens_mean", "tokens")]:
        """Mean length of the answers.

        Growth together with accuracy is thinking; growth alone is rambling.
        """
        return _mean([float(tokens) for tokens in self._response_tokens])

    @property
    def median_response_tokens(self) -> Annotated[float | None, Metric("rollout/response_tokens_p50", "tokens")]:
        """Median length of the answers."""
        return self._quantile(0.5)

    @property
    def long_response_tokens(self) -> Annotated[float | None, Metric("rollout/response_tokens_p95", "tokens")]:
        """Length that 95 % of the answers do not exceed.

        At the limit: see `rollout/truncated_share`.
        """
        return self._quantile(0.95)

    @property
    def max_response_tokens(self) -> Annotated[int | None, Metric("rollout/response_tokens_max", "tokens")]:
        """Length of the longest answer."""
        return max(self._response_tokens, default=None)

    @property
    def mean_right_tokens(self) -> Annotated[float | None, Metric("rollout/response_tokens_mean_right", "tokens")]:
        """Mean length of the answers that are known to be right."""
        return self._mean_tokens(1.0)

    @property
    def mean_wrong_tokens(self) -> Annotated[float | None, Metric("rollout/response_tokens_mean_wrong", "tokens")]:
        """Mean length of the answers that are known to be wrong.

        Growing while that of the right ones does not: the policy rambles where it fails.
        """
        return self._mean_tokens(0.0)

    @property
    def truncated_share(self) -> Annotated[float | None, Metric("rollout/truncated_share", "share")]:
        """Answers that ran into the response limit, repeating themselves or not.

        Rising: raise `rollout.max_response_tokens` or set `reward.overlong`.
        """
        return self._share(sum(group.meta.num_truncated for group in self._sampled))

    @property
    def repetitive_share(self) -> Annotated[float | None, Metric("rollout/repetitive_share", "share")]:
        """Answers that ran into the limit while they repeated the same period, at least four times at the end.

        A part of the truncated ones. Rising: the policy degenerates; a longer limit does not help, a lower learning
        rate may.
        """
        return self._share(sum(group.meta.num_repetitive for group in self._sampled))

    @property
    def cut_share(self) -> Annotated[float | None, Metric("rollout/cut_share", "share")]:
        """Answers that `rollout.deadline_s` cut; their reward is unknown.

        0 without a deadline. More than a few percent: the deadline is too short, and what is trained on leans towards
        short answers.
        """
        return self._share(sum(group.meta.num_cut for group in self._sampled))

    # ---- age

    @property
    def mean_policy_lag(self) -> Annotated[float | None, Metric("rollout/policy_lag_mean", "updates")]:
        """Weight updates between sampling and training, mean over the trained groups; their oldest token counts.

        0 with `rollout.max_policy_lag=0`. About 1 where the learner is the slower part, less where it waits. Close to
        the bound: stragglers, or few groups with a signal.
        """
        return _mean([float(lag) for lag in self._policy_lags])

    @property
    def max_policy_lag(self) -> Annotated[int | None, Metric("rollout/policy_lag_max", "updates")]:
        """The largest of them in the batch.

        Never above `rollout.max_policy_lag`; a group that would be stops the run.
        """
        return max(self._policy_lags, default=None)

    def _share_of_groups(self, accuracy: float) -> float | None:
        """Return the share of groups whose answers all have that accuracy; an unknown one has none."""
        found = [all(score.accuracy == accuracy for score in group.scores) for group in self._sampled]
        return _mean([float(is_such) for is_such in found])

    def _mean_tokens(self, accuracy: float) -> float | None:
        """Return the mean length of the answers of that accuracy."""
        answers = zip(self._response_tokens, self._scores, strict=True)
        return _mean([float(tokens) for tokens, score in answers if score.accuracy == accuracy])

    def _quantile(self, share: float) -> float | None:
        """Return the shortest length that so many answers do not exceed."""
        return (
            float(np.quantile(self._response_tokens, share, method="inverted_cdf")) if self._response_tokens else None
        )

    def _share(self, num_answers: int) -> float | None:
        return num_answers / len(self._response_tokens) if self._response_tokens else None


def _known_accuracies(groups: Sequence[ScoredGroup]) -> list[float]:
    return [accuracy for group in groups for accuracy in group.known_accuracies]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
