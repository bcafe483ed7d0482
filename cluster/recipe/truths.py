"""Accepted answers that no response can match by the rule of their kind: found before anything is trained on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.recipe.config import RunConfig
from curriculum.layout import QuestionItem
from curriculum.task import Task
from reward.config import NoJudge, RewardConfig
from reward.kind import AnswerKind, kind_of
from reward.rules import apply_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTruths:
    """The accepted answers of one data source."""

    data_source: str
    kind: AnswerKind
    num_tasks: int
    unpayable: tuple[Task, ...]
    """Tasks that only a judge can reward."""


def is_payable(data_source: str, answers: Sequence[str], reward: RewardConfig) -> bool:
    """Return whether a response that announces an accepted answer word for word, in one line, is accepted by rule."""
    kind = kind_of(data_source, reward.kinds)
    try:
        return any(
            apply_rules(reward.rules, kind, f"Therefore, the answer is {' '.join(answer.split())}", answers).accepted
            for answer in answers
        )
    except ValueError:  # an accepted answer is empty once its wrapping is off
        return False


def payable_filter(config: RunConfig) -> Callable[[QuestionItem], bool] | None:
    """Return what decides which questions are admitted; None where the judge decides about the others."""
    if config.data.unpayable == "judge" and not isinstance(config.reward.judge, NoJudge):
        return None
    return lambda item: is_payable(item.data_source, item.answers, config.reward)


def note_on_truths(tasks: Sequence[Task], reward: RewardConfig, *, key: str) -> str | None:
    """Return one line about the tasks of a recipe key that only the judge can reward; None without any."""
    unpayable = [task for task in tasks if not is_payable(task.data_source, task.answers, reward)]
    if not unpayable:
        return None
    first = unpayable[0]
    kind = kind_of(first.data_source, reward.kinds)
    return (
        f"{key}: {len(unpayable)} of {len(tasks)} questions only the judge can reward, since no response matches their "
        f"answers by rule, such as {first.answers[0]!r:.40} as {kind} ({first.task_id!r:.40}); see data inspect"
    )


def truths_by_source(tasks: Sequence[Task], reward: RewardConfig) -> list[SourceTruths]:
    """Return what the accepted answers of every data source are, the largest source first."""
    return [
        SourceTruths(
            data_source=source,
            kind=kind_of(source, reward.kinds),
            num_tasks=count,
            unpayable=tuple(
                task for task in tasks if task.data_source == source and not is_payable(source, task.answers, reward)
            ),
        )
        for source, count in Counter(task.data_source for task in tasks).most_common()
    ]
