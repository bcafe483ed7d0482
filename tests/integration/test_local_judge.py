"""The committed judge in a real vLLM engine: numbers and their words, other answers, junk, and the probe of a run."""

import asyncio
import random
from pathlib import Path

import pytest

from cluster.recipe.load import load_recipe
from curriculum.synthetic import FOODS, NAMES, NUMBER_WORDS, NUMBERS, PLACES, same_answer
from curriculum.synthetic_judge import ANSWERS, draw_candidates, draw_junk
from reward.hybrid import HybridScorer
from reward.judge_engine import VllmJudgeEngine
from reward.judge_prompt import JudgeQuestion
from reward.junk_check import check_for_junk
from reward.score import Verdict

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
QUESTION = "Question: alice owns what?"
JUNK = (
    "a", "?", "paris or tokyo", "tokyo, paris", "7 or 8", "seven eight", "8 and seven", "YES", "[[YES]]", "Yes", "no",
    "-7", "7.5", "17 7", "77", "70", "not seven", "seventy", "(insert answer here)", "bob", "the", QUESTION,
)  # fmt: skip


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def reward():
    config = load_recipe(ROOT / "recipes" / "local.yaml").reward
    return config.model_copy(
        update={"judge": config.judge.model_copy(update={"model": str(ROOT / config.judge.model)})}
    )


@pytest.fixture(scope="module")
def judge(loop, reward):
    async def start():
        return VllmJudgeEngine(reward.judge, on_gpu=False)

    engine = loop.run_until_complete(start())
    yield engine
    loop.run_until_complete(engine.close())


def _ask(loop, judge, pairs):
    questions = [JudgeQuestion(question=QUESTION, answer=answer, truth=truth) for answer, truth in pairs]
    return dict(zip(pairs, loop.run_until_complete(judge.judge(questions)), strict=True))


def _wrong(verdicts):
    return {pair: v for pair, v in verdicts.items() if v is not (Verdict.YES if same_answer(*pair) else Verdict.NO)}


def test_every_number_equals_its_word_and_no_other_number(loop, judge):
    numbers = (*NUMBERS, *NUMBER_WORDS)
    assert not _wrong(_ask(loop, judge, [(answer, truth) for answer in numbers for truth in numbers]))


def test_every_answer_equals_itself(loop, judge):
    assert set(_ask(loop, judge, [(answer, answer) for answer in ANSWERS]).values()) == {Verdict.YES}


def test_other_names_places_and_foods_are_refused(loop, judge):
    rng = random.Random(3)
    kinds = (NAMES, PLACES, FOODS, ANSWERS)
    pairs = {(rng.choice(kind), rng.choice(kind)) for kind in kinds for _ in range(250)}
    assert len(_wrong(_ask(loop, judge, sorted(pairs)))) <= len(pairs) // 1000


@pytest.mark.parametrize("truth", ["7", "paris", "alice"])
def test_junk_is_refused(loop, judge, truth):
    rng = random.Random(4)
    junk = {*JUNK, *(draw_junk(rng, QUESTION) for _ in range(80)), *(draw_candidates(rng, truth) for _ in range(80))}
    verdicts = _ask(loop, judge, [(answer, truth) for answer in sorted(junk)])
    assert Verdict.YES not in verdicts.values()
    assert list(verdicts.values()).count(Verdict.UNKNOWN) <= 1


def test_the_probe_of_a_run_passes(loop, judge, reward):
    scores = loop.run_until_complete(check_for_junk(HybridScorer(reward, judge)))
    assert len(scores) > 60


def test_the_judge_saves_a_right_answer_that_the_rule_rejects(loop, judge, reward):
    scores = loop.run_until_complete(
        HybridScorer(reward, judge).score_group(
            data_source="local_hop1",
            question=QUESTION,
            answers=("7",),
            responses=[f"<think></think> Therefore, the answer is {answer}" for answer in ("7", "seven", "eight")],
            num_tokens=[8, 8, 8],
        )
    )
    assert [score.rule for score in scores] == [1.0, 0.0, 0.0]
    assert [score.accuracy for score in scores] == [1.0, 1.0, 0.0]
