"""Scores of answers: the hybrid reward of the training, computed once for every answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

from evaluation.record import Answer, Item, Outcome, ScoredAnswer
from evaluation.store import JsonlLog, fingerprint
from evaluation.task_group import task_group
from reward.config import RewardConfig
from reward.hybrid import HybridScorer
from reward.rules import RULES_VERSION

MAX_ITEMS_AT_ONCE = 32


def scorer_fingerprint(config: RewardConfig) -> str:
    """Return a digest of what decides a score: rules with their version, kinds, thinking, how the judge is asked."""
    judge = config.judge
    names = ("model", "max_tokens", "template_arguments", "request_fields")
    identity = {"type": judge.type, "version": RULES_VERSION, **{name: getattr(judge, name, None) for name in names}}
    rest = config.model_dump(mode="json", exclude={"judge"})
    return fingerprint(json.dumps([identity, rest], sort_keys=True))


def unscored(answers: Sequence[Answer], log: JsonlLog[ScoredAnswer], scorer: str) -> list[Answer]:
    """Return the answers without a known score of this scorer, those it could not decide included."""
    return [answer for answer in answers if (score := current(answer, log, scorer)) is None or score.accuracy is None]


def current(answer: Answer, log: JsonlLog[ScoredAnswer], scorer: str) -> ScoredAnswer | None:
    """Return the score that this scorer gave to exactly this response; None without one."""
    score = log.get(answer.key)
    return score if score and score.scorer == scorer and score.response == fingerprint(answer.text) else None


async def score_all(
    answers: Sequence[Answer],
    items: Mapping[tuple[str, str], Item],
    scorer: HybridScorer,
    log: JsonlLog[ScoredAnswer],
    *,
    scorer_name: str,
    on_score: Callable[[ScoredAnswer], None],
) -> None:
    """Score answers item by item and store each score at once; a failed answer is wrong, without asking the judge."""
    by_item: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        by_item.setdefault(answer.item_key, []).append(answer)
    slots = asyncio.Semaphore(MAX_ITEMS_AT_ONCE)

    async def one(item: Item, group: list[Answer]) -> None:
        async with slots:
            for score in await _score(item, group, scorer, scorer_name):
                log.append(score)
                on_score(score)

    async with task_group() as tasks:
        for key, group in by_item.items():
            tasks.create_task(one(items[key], group))


async def _score(item: Item, answers: list[Answer], scorer: HybridScorer, scorer_name: str) -> list[ScoredAnswer]:
    scores = await scorer.score_group(
        data_source=item.data_source,
        question=item.question,
        answers=item.answers,
        responses=[answer.text for answer in answers],
        num_tokens=[answer.response_tokens for answer in answers],
    )
    return [
        ScoredAnswer(
            benchmark=answer.benchmark,
            item_id=answer.item_id,
            sample=answer.sample,
            scorer=scorer_name,
            response=fingerprint(answer.text),
            accuracy=0.0 if answer.outcome is Outcome.FAILED else score.accuracy,
            answer=score.answer,
            rule=score.rule,
            judge=None if score.judge is None else str(score.judge),
            reason=f"no answer: {answer.error}" if answer.outcome is Outcome.FAILED else score.reason,
        )
        for answer, score in zip(answers, scores, strict=True)
    ]
