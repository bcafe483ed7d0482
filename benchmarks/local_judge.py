"""How often the local judge is right, over every pair of its vocabulary and over junk: one JSON line.

`python -m benchmarks.local_judge` asks the judge of recipes/local.yaml in its real engine (CPU, under a minute).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.recipe.load import load_recipe
from curriculum.synthetic import NUMBER_WORDS, NUMBERS, same_answer
from curriculum.synthetic_judge import ANSWERS, draw_candidates, draw_junk, draw_question
from reward.config import VllmJudge
from reward.judge_engine import VllmJudgeEngine
from reward.judge_prompt import JudgeQuestion
from reward.score import Verdict

QUESTIONS_PER_BATCH = 2000


def pairs_by_kind(rng: random.Random, num_junk: int) -> dict[str, list[JudgeQuestion]]:
    """Every pair of answers, every pair of numbers among them, and samples of what must be refused."""

    def pair(answer: str, truth: str) -> JudgeQuestion:
        return JudgeQuestion(question=draw_question(rng), answer=answer, truth=truth)

    numbers = (*NUMBERS, *NUMBER_WORDS)
    truths = rng.choices(ANSWERS, k=num_junk)
    return {
        "numbers": [pair(answer, truth) for answer in numbers for truth in numbers],
        "vocabulary": [pair(answer, truth) for answer in ANSWERS for truth in ANSWERS],
        "candidates": [pair(draw_candidates(rng, truth), truth) for truth in truths],
        "junk": [pair(draw_junk(rng, draw_question(rng)), truth) for truth in truths],
    }


async def measure(config: VllmJudge, kinds: dict[str, list[JudgeQuestion]]) -> dict[str, dict[str, float]]:
    """Kind -> questions, wrong yes, wrong no, without verdict, seconds."""
    judge = VllmJudgeEngine(config, on_gpu=False)
    try:
        return {kind: await _measure_kind(judge, questions) for kind, questions in kinds.items()}
    finally:
        await judge.close()


async def _measure_kind(judge: VllmJudgeEngine, questions: Sequence[JudgeQuestion]) -> dict[str, float]:
    started = time.perf_counter()
    verdicts: list[Verdict] = []
    for start in range(0, len(questions), QUESTIONS_PER_BATCH):
        verdicts += await judge.judge(questions[start : start + QUESTIONS_PER_BATCH])
    found = list(zip(verdicts, [same_answer(q.answer, q.truth) for q in questions], strict=True))
    return {
        "questions": len(found),
        "wrong_yes": found.count((Verdict.YES, False)),
        "wrong_no": found.count((Verdict.NO, True)),
        "unknown": verdicts.count(Verdict.UNKNOWN),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="judge folder; by default the one of recipes/local.yaml")
    parser.add_argument("--num-junk", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=99)
    arguments = parser.parse_args()
    config = load_recipe(Path("recipes/local.yaml")).reward.judge
    if not isinstance(config, VllmJudge):
        raise SystemExit(f"recipes/local.yaml: reward.judge.type={config.type}; this measures a judge served by vLLM")
    if arguments.model:
        config = config.model_copy(update={"model": arguments.model})
    found = asyncio.run(measure(config, pairs_by_kind(random.Random(arguments.seed), arguments.num_junk)))
    print(json.dumps({"benchmark": "local_judge", "model": config.model, **found}))


if __name__ == "__main__":
    main()
