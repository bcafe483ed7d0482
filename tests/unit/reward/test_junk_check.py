import asyncio

import pytest

from curriculum.errors import UserError
from reward.config import RewardConfig, RuleSet
from reward.hybrid import HybridScorer
from reward.junk_check import check_for_junk
from reward.score import Verdict


class ConstantJudge:
    def __init__(self, verdict):
        self.verdict = verdict

    async def judge(self, questions):
        return [self.verdict] * len(questions)


class BrokenJudge:
    async def judge(self, questions):
        raise ConnectionError("refused")


class MostlyNo:
    """Gives no verdict on the question mark, otherwise says no."""

    async def judge(self, questions):
        return [Verdict.UNKNOWN if question.answer == "?" else Verdict.NO for question in questions]


def checked(config, judge=None):
    return asyncio.run(check_for_junk(HybridScorer(config, judge)))


def num_unknown(scores):
    return sum(score.accuracy is None for score in scores)


def test_strict_rules_pass_with_and_without_a_judge_that_rejects():
    assert num_unknown(checked(RewardConfig())) == 0
    assert len(checked(RewardConfig(), ConstantJudge(Verdict.NO))) == 3 * 8 * 3


def test_released_rules_pay_for_junk_and_are_refused():
    with pytest.raises(UserError, match=r"pay 1\.0 for the junk answer"):
        checked(RewardConfig(rules=RuleSet.RELEASED))


def test_a_judge_that_says_yes_to_everything_is_refused():
    with pytest.raises(UserError, match=r"reward\.judge"):
        checked(RewardConfig(), ConstantJudge(Verdict.YES))


@pytest.mark.parametrize("judge", [BrokenJudge(), ConstantJudge(Verdict.UNKNOWN)])
def test_a_judge_that_never_gives_a_verdict_is_refused(judge):
    with pytest.raises(UserError, match="no verdict"):
        checked(RewardConfig(), judge)


def test_a_single_unknown_verdict_is_reported_and_tolerated():
    assert num_unknown(checked(RewardConfig(), MostlyNo())) > 0
