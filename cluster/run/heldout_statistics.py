"""What the answers to the held-out questions came to: as metrics, and as accuracies with their intervals.

Every answer that was asked for is in the denominator. One whose reward is unknown, and one that was never given because
engines or judges failed at its question again and again, is not right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, Any
from urllib.parse import unquote

from cluster.group import ScoredGroup
from cluster.run.parts import parts
from curriculum.controls import Control
from curriculum.metric import Metric, Metrics, member
from curriculum.task import Task
from evaluation.statistics import PASS_AT, bootstrap_mean, mean_pass_at_k
from reward.score import Score

ACCURACY = "heldout/accuracy"
"""Key of the accuracy over all held-out questions; those of parts and controls begin with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutGroup:
    """The answers to one held-out question."""

    task: Task
    phase: str
    """Name of the phase that the question has the length of, with its own document."""
    control: Control | None
    """How it was asked; None as it is."""
    scored: ScoredGroup | None
    """None where engines or judges failed at it again and again."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """Scores of the answers that were given."""
        return self.scored.scores if self.scored else ()

    @property
    def num_right(self) -> int:
        """Answers that are known to be right."""
        return sum(score.accuracy == 1.0 for score in self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the answers to some held-out questions came to."""

    num_questions: int
    accuracy: float
    """avg@n: mean over the questions of the share of right answers."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    pass_at: dict[str, float]
    """pass@k by k, for k = 2, 4, 8, 16 up to n."""
    rule: float
    """Share of the answers that the rule accepted."""
    judge_saved: float
    """Share that the rule rejected and the judge accepted; with `rule` it makes up the accuracy."""
    unknown: float
    """Share without a known reward, or without an answer."""

    @classmethod
    def of(cls, groups: Sequence[HeldOutGroup], *, num_samples: int, seed: int) -> Cell:
        """Add up the answers to some questions, of which `num_samples` each were asked for; `seed` of the bootstrap."""
        scores = [score for group in groups for score in group.scores]
        num_asked = len(groups) * num_samples
        found = bootstrap_mean([group.num_right / num_samples for group in groups], seed=seed)
        passed = {k: mean_pass_at_k([(num_samples, group.num_right) for group in groups], k) for k in PASS_AT if k > 1}
        right = [score for score in scores if score.accuracy == 1.0]
        return cls(
            num_questions=len(groups),
            accuracy=found.mean,
            low=found.low,
            high=found.high,
            pass_at={str(k): value for k, value in passed.items() if value is not None},
            rule=sum(score.rule == 1.0 for score in right) / num_asked,
            judge_saved=sum(score.rule == 0.0 for score in right) / num_asked,
            unknown=(num_asked - sum(score.accuracy is not None for score in scores)) / num_asked,
        )

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """The numbers of one evaluation; all JSON values."""

    step: int
    """Training steps that were finished."""
    num_samples: int
    """Answers to each question."""
    metrics: Metrics = field(default_factory=dict[str, float])
    """By key."""
    cells: dict[str, Cell] = field(default_factory=dict[str, Cell])
    """By the key of their accuracy."""

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Evaluation:
        """Restore what `asdict` gave."""
        cells = {key: Cell(**cell) for key, cell in state["cells"].items()}
        return cls(step=state["step"], num_samples=state["num_samples"], metrics=state["metrics"], cells=cells)

    @property
    def phases(self) -> dict[str, Cell]:
        """The accuracies by the name of the phase whose prompt lengths the questions have."""
        found = {key.removeprefix(f"{ACCURACY}/"): cell for key, cell in self.cells.items() if f"{ACCURACY}/" in key}
        return {unquote(name): cell for name, cell in found.items() if ":" not in name}

    def under(self, control: Control) -> Cell | None:
        """Return the accuracy under a control; None if it was not asked for."""
        return self.cells.get(f"{ACCURACY}_{control}")


class HeldOutStatistics:
    """Numbers of one evaluation, read off its answers."""

    def __init__(self, groups: Sequence[HeldOutGroup], *, num_samples: int, seed: int, seconds: float) -> None:
        """Take the answers to all questions, as they are and under controls.

        Args:
            groups: one for each question and way of asking it; at least one as it is.
            num_samples: answers that were asked for, to each.
            seed: of the bootstrap.
            seconds: that it took to get the answers and their scores.
        """
        self.groups = tuple(groups)
        self.num_samples = num_samples
        self._seconds = seconds
        self._plain = [group for group in groups if group.control is None]
        self.cells = {
            key: Cell.of(of_key, num_samples=num_samples, seed=seed) for key, of_key in _by_key(groups).items()
        }
        """By the key of their accuracy."""

    def evaluation(self, step: int, metrics: Metrics) -> Evaluation:
        """Return the numbers after so many training steps, with the metrics that were read off this object."""
        return Evaluation(step=step, num_samples=self.num_samples, metrics=metrics, cells=self.cells)

    @property
    def accuracy(self) -> Annotated[float, Metric("heldout/accuracy", "share")]:
        """avg@n over the held-out questions: mean over them of the share of right answers.

        Unknown answers count as not right.
        """
        return self.cells[ACCURACY].accuracy

    @property
    def accuracy_low(self) -> Annotated[float, Metric("heldout/accuracy_low", "share")]:
        """Lower end of its 95 % interval: percentile bootstrap over the questions."""
        return self.cells[ACCURACY].low

    @property
    def accuracy_high(self) -> Annotated[float, Metric("heldout/accuracy_high", "share")]:
        """Upper end of its 95 % interval.

        Two evaluations whose intervals overlap widely show no difference.
        """
        return self.cells[ACCURACY].high

    @property
    def accuracy_of_parts(self) -> Annotated[Mapping[str, float], Metric("heldout/accuracy/*", "share")]:
        """The same over the questions of each phase, data source and range of prompt lengths.

        A phase goes by its name alone; its questions are those that have its prompt lengths.

        Their intervals, pass@k, and shares of rule, judge and unknown are in `summary.json`.
        """
        return self._accuracies(f"{ACCURACY}/")

    @property
    def pass_at(self) -> Annotated[Mapping[str, float], Metric("heldout/pass_at/*", "share")]:
        """pass@k: mean over the questions of the probability that one of k answers is right.

        For k = 2, 4, 8, 16 up to `evaluation.num_samples`; pass@1 is `heldout/accuracy`. What the policy can do at all:
        it grows less than the accuracy where training only sharpens what the base model could do.
        """
        return self.cells[ACCURACY].pass_at

    @property
    def rule(self) -> Annotated[float, Metric("heldout/rule", "share")]:
        """Answers that the rule accepted.

        With `heldout/judge_saved` it makes up `heldout/accuracy`.
        """
        return self.cells[ACCURACY].rule

    @property
    def judge_saved(self) -> Annotated[float, Metric("heldout/judge_saved", "share")]:
        """Answers that the rule rejected and the judge accepted.

        Growing while `heldout/rule` does not: read them in `heldout/`, the judge may be fooled.
        """
        return self.cells[ACCURACY].judge_saved

    @property
    def unknown(self) -> Annotated[float, Metric("heldout/unknown", "share")]:
        """Answers without a known reward, or without an answer.

        0 or close to it; otherwise the accuracy says little.
        """
        return self.cells[ACCURACY].unknown

    @property
    def mean_response_tokens(self) -> Annotated[float | None, Metric("heldout/response_tokens_mean", "tokens")]:
        """Mean length of the answers."""
        lengths = [float(n) for group in self._plain if group.scored for n in group.scored.meta.response_tokens]
        return fmean(lengths) if lengths else None

    @property
    def accuracy_no_document(self) -> Annotated[float | None, Metric("heldout/accuracy_no_document", "share")]:
        """Accuracy without the documents, where `evaluation.control` asks for it: a closed-book baseline.

        What `heldout/accuracy` is above it was read; what grows here was memorised or guessed.
        """
        return self._accuracy_under("no_document")

    @property
    def no_document_by_phase(self) -> Annotated[Mapping[str, float], Metric("heldout/accuracy_no_document/*", "share")]:
        """The same by the phase whose lengths the questions have with their documents."""
        return self._accuracies(f"{ACCURACY}_no_document/")

    @property
    def accuracy_other_document(self) -> Annotated[float | None, Metric("heldout/accuracy_other_document", "share")]:
        """Accuracy with the document of another question, where `evaluation.control` asks for it.

        A model that reads is not better than without a document.
        """
        return self._accuracy_under("other_document")

    @property
    def other_document_by_phase(
        self,
    ) -> Annotated[Mapping[str, float], Metric("heldout/accuracy_other_document/*", "share")]:
        """The same by the phase whose lengths the questions have with their own documents."""
        return self._accuracies(f"{ACCURACY}_other_document/")

    @property
    def seconds(self) -> Annotated[float, Metric("time/heldout_s", "s")]:
        """The evaluation, controls included."""
        return self._seconds

    def _accuracies(self, prefix: str) -> dict[str, float]:
        return {k.removeprefix(prefix): cell.accuracy for k, cell in self.cells.items() if k.startswith(prefix)}

    def _accuracy_under(self, control: Control) -> float | None:
        cell = self.cells.get(f"{ACCURACY}_{control}")
        return None if cell is None else cell.accuracy


def _by_key(groups: Sequence[HeldOutGroup]) -> dict[str, list[HeldOutGroup]]:
    """Return the groups of every cell by the key of its accuracy."""
    found: dict[str, list[HeldOutGroup]] = {}
    for group in groups:
        key = ACCURACY if group.control is None else f"{ACCURACY}_{group.control}"
        found.setdefault(key, []).append(group)
        found.setdefault(f"{key}/{member(group.phase)}", []).append(group)
    plain = found[ACCURACY]
    of_parts = parts(
        plain,
        sources=[group.task.data_source for group in plain],
        prompt_tokens=[group.task.prompt_ids.size for group in plain],
    )
    return found | {f"{ACCURACY}/{name}": some for name, some in of_parts.items()}
