import asyncio

import pytest

from reward.config import RewardConfig, RuleSet
from reward.hybrid import HybridScorer
from reward.probe import JunkRewardError, probe_rewards
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
    """Mumbles about the question mark, otherwise says no."""

    async def judge(self, questions):
        return [Verdict.UNKNOWN if question.answer == "?" else Verdict.NO for question in questions]


def probe(config, judge=None):
    return asyncio.run(probe_rewards(HybridScorer(config, judge)))


def test_strict_rules_pass_with_and_without_a_judge_that_rejects():
    assert probe(RewardConfig()).num_unknown == 0
    assert probe(RewardConfig(), ConstantJudge(Verdict.NO)).num_probes == 3 * 8 * 3


def test_released_rules_pay_for_junk_and_are_refused():
    with pytest.raises(JunkRewardError, match=r"pay 1\.0 for the junk answer"):
        probe(RewardConfig(rules=RuleSet.RELEASED))


def test_a_judge_that_says_yes_to_everything_is_refused():
    with pytest.raises(JunkRewardError, match=r"reward\.judge"):
        probe(RewardConfig(), ConstantJudge(Verdict.YES))


@pytest.mark.parametrize("judge", [BrokenJudge(), ConstantJudge(Verdict.UNKNOWN)])
def test_a_judge_that_never_gives_a_verdict_is_refused(judge):
    with pytest.raises(JunkRewardError, match="no verdict"):
        probe(RewardConfig(), judge)


def test_a_single_mumble_is_reported_and_tolerated():
    assert probe(RewardConfig(), MostlyNo()).num_unknown > 0
