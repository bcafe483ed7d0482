"""What the groups of a step were worth, how long they are, and how old those are that were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated

from cluster.batches.lag_buffer import policy_lag
from cluster.group import ScoredGroup
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
        """Answers without a known reward, because the judge failed or gave no verdict, or because the answer was cut;
        they are not trained on.

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
    def num_trained(self) -> Annotated[int, Metric("rollout/groups_trained", "count")]:
        """Groups the learner trained on.

        Below `groups_per_batch`: `curriculum.max_sampling_rounds` was used up. 0: the step changed nothing.
        """
        return len(self._policy_lags)

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
    def truncated_share(self) -> Annotated[float | None, Metric("rollout/truncated_share", "share")]:
        """Answers that ran into the response limit, repeating themselves or not.

        Rising: raise `rollout.max_response_tokens` or set `reward.overlong`.
        """
        return self._share(sum(group.meta.num_truncated for group in self._sampled))

    @property
    def repetitive_share(self) -> Annotated[float | None, Metric("rollout/repetitive_share", "share")]:
        """Answers that ran into the limit while they repeated themselves: the same period four times at least at the
        end.

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
        """Mean over the trained groups of the weight updates between sampling and training; the oldest token of a group
        counts.

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

    def _share(self, num_answers: int) -> float | None:
        return num_answers / len(self._response_tokens) if self._response_tokens else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
