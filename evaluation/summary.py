"""The numbers of a report, computed from scored answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curriculum.controls import Control
from evaluation.behaviours import Behaviour, BehaviourCounts
from evaluation.exclusion import Comparison
from evaluation.grounding import Passage, grounding_precision
from evaluation.record import Answer, Outcome, ScoredAnswer
from evaluation.statistics import PASS_AT, Estimate, bootstrap_macro, bootstrap_mean, mean_pass_at_k

LENGTH_BOUNDS = (4_000, 8_000, 16_000, 32_000, 64_000, 128_000)
"""Upper bounds, inclusive, of the length ranges, in prompt tokens; the last range is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One answer with its score, reasoning behaviours and grounding."""

    answer: Answer
    score: ScoredAnswer
    behaviours: BehaviourCounts | None
    """None where they could not be counted."""
    passages: tuple[Passage, ...]
    """What the thinking takes from the document."""

    @property
    def is_right(self) -> bool:
        """Whether the answer is known to be right; an unknown one is not."""
        return self.score.accuracy == 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracySummary:
    """Accuracy over some items; every sample of every item is in the denominator.

    The last three counts are of answers that stay in the denominator although something went wrong; one answer may
    be in two of them.
    """

    num_items: int
    num_answers: int
    accuracy: Estimate
    """avg@n: mean over items of the share of right samples."""
    pass_at: Mapping[int, float]
    """pass@k by k."""
    num_failed: int
    """No answer was generated."""
    num_truncated: int
    """The answer ran into the limit of output tokens."""
    num_unknown: int
    """Neither rule nor judge could decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningSummary:
    """How the answers reason, per answer."""

    behaviours: Mapping[Behaviour, float | None]
    """Mean number of instances of each behaviour in one answer; None where nothing was counted."""
    num_uncounted: int
    """Answers whose behaviours could not be counted."""
    grounding_precision: float | None
    """Share of all quoted or paraphrased passages that their documents have; None without passages."""
    num_passages: int
    mean_response_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The numbers of one evaluation."""

    benchmarks: Mapping[str, AccuracySummary]
    macro: Estimate
    """Unweighted mean of the benchmarks' accuracies."""
    macro_pass_at: Mapping[int, float]
    lengths: Mapping[str, AccuracySummary]
    """By range of prompt tokens; ranges without items are left out."""
    reasoning: Mapping[str, ReasoningSummary]
    """By benchmark, and over all under "all"."""
    rejects: Mapping[str, int]
    """Refused rows by source."""
    comparisons: tuple[Comparison, ...]
    """Training sets that the questions were compared with; those that leak are in no number."""
    under: Mapping[Control, Mapping[str, AccuracySummary]]
    """By control and benchmark: the accuracy on the same questions without their documents, or with others."""


def summarise(
    results: Sequence[Result],
    *,
    seed: int,
    rejects: Mapping[str, int],
    comparisons: tuple[Comparison, ...] = (),
    under: Mapping[Control, Sequence[Result]] | None = None,
) -> Summary:
    """Compute all numbers of an evaluation.

    Args:
        results: of the questions.
        seed: of the intervals.
        rejects: refused rows by source.
        comparisons: with training sets.
        under: results of the same questions under controls.

    Raises:
        ValueError: there is no result.
    """
    if not results:
        raise ValueError("there is no answer to summarise; give a benchmark with items")
    groups = _grouped(results, [result.answer.benchmark for result in results])
    benchmarks = _by_benchmark(results, seed)
    ranges = _grouped(results, [length_range(result.answer.prompt_tokens) for result in results])
    ks = [k for k in PASS_AT if all(k in summary.pass_at for summary in benchmarks.values())]
    return Summary(
        benchmarks=benchmarks,
        macro=bootstrap_macro([_item_means(group) for group in groups.values()], seed=seed),
        macro_pass_at={k: float(np.mean([summary.pass_at[k] for summary in benchmarks.values()])) for k in ks},
        lengths={name: _accuracy(ranges[name], seed) for name in length_ranges() if name in ranges},
        reasoning={name: _reasoning(group) for name, group in [*groups.items(), ("all", list(results))]},
        rejects=rejects,
        comparisons=comparisons,
        under={control: _by_benchmark(some, seed) for control, some in (under or {}).items()},
    )


def length_ranges() -> list[str]:
    """Return the names of all length ranges, in order."""
    return ["no prompt", *(length_range(bound) for bound in LENGTH_BOUNDS), length_range(LENGTH_BOUNDS[-1] + 1)]


def length_range(prompt_tokens: int) -> str:
    """Return the name of the range that a prompt belongs to."""
    if prompt_tokens == 0:
        return "no prompt"
    below = 0
    for bound in LENGTH_BOUNDS:
        if prompt_tokens <= bound:
            return f"{below // 1000}K-{bound // 1000}K"
        below = bound
    return f"over {below // 1000}K"


def _grouped(results: Sequence[Result], names: Sequence[str]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for name, result in zip(names, results, strict=True):
        groups.setdefault(name, []).append(result)
    return groups


def _by_benchmark(results: Sequence[Result], seed: int) -> dict[str, AccuracySummary]:
    groups = _grouped(results, [result.answer.benchmark for result in results])
    return {name: _accuracy(group, seed) for name, group in groups.items()}


def _by_item(results: Sequence[Result]) -> list[list[Result]]:
    return list(_grouped(results, ["\0".join(result.answer.item_key) for result in results]).values())


def _item_means(results: Sequence[Result]) -> list[float]:
    return [sum(result.is_right for result in item) / len(item) for item in _by_item(results)]


def _accuracy(results: Sequence[Result], seed: int) -> AccuracySummary:
    counts = [(len(item), sum(result.is_right for result in item)) for item in _by_item(results)]
    pass_at = {k: value for k in PASS_AT if (value := mean_pass_at_k(counts, k)) is not None}
    return AccuracySummary(
        num_items=len(counts),
        num_answers=len(results),
        accuracy=bootstrap_mean(_item_means(results), seed=seed),
        pass_at=pass_at,
        num_failed=sum(result.answer.outcome is Outcome.FAILED for result in results),
        num_truncated=sum(result.answer.outcome is Outcome.TRUNCATED for result in results),
        num_unknown=sum(result.score.accuracy is None for result in results),
    )


def _reasoning(results: Sequence[Result]) -> ReasoningSummary:
    answered = [result for result in results if result.answer.outcome is not Outcome.FAILED]
    counted = [result.behaviours for result in answered if result.behaviours is not None]
    passages = [passage for result in answered for passage in result.passages]
    return ReasoningSummary(
        behaviours={
            behaviour: float(np.mean([counts[behaviour] for counts in counted])) if counted else None
            for behaviour in Behaviour
        },
        num_uncounted=len(answered) - len(counted),
        grounding_precision=grounding_precision(passages),
        num_passages=len(passages),
        mean_response_tokens=float(np.mean([result.answer.response_tokens for result in answered])) if answered else 0,
    )
