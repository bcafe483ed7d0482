import asyncio

import pytest

from evaluation.record import Outcome
from evaluation.scoring import current, score_all, scorer_fingerprint, unscored
from evaluation.store import EvaluationFolder
from reward.config import OpenAIJudge, RewardConfig, RuleSet
from reward.hybrid import HybridScorer
from reward.score import Verdict

URL = "http://127.0.0.1:9/v1"


class HandJudge:
    def __init__(self, verdict):
        self.verdict = verdict
        self.asked = 0

    async def judge(self, questions):
        self.asked += len(questions)
        return [self.verdict] * len(questions)


@pytest.fixture
def folder(tmp_path):
    with EvaluationFolder(tmp_path / "e", {}) as folder:
        yield folder


def config(**judge):
    return RewardConfig(judge=OpenAIJudge(base_url=URL, model="j", **judge))


def run(answers, item, folder, judge=None, reward=None):
    reward = reward or (config() if judge else RewardConfig())
    name = scorer_fingerprint(reward)
    waiting = unscored(answers, folder.scores, name)
    asyncio.run(
        score_all(
            waiting,
            {item.key: item},
            HybridScorer(reward, judge),
            folder.scores,
            scorer_name=name,
            on_score=lambda _: None,
        )
    )
    return [current(answer, folder.scores, name) for answer in answers]


def test_the_rule_scores_without_a_judge(make_item, make_answer, folder):
    answers = [make_answer(sample=0), make_answer(sample=1, text="the answer is Paris")]
    assert [score.accuracy for score in run(answers, make_item("a"), folder)] == [1.0, 0.0]


def test_the_judge_is_asked_about_what_the_rule_rejects_and_only_once(make_item, make_answer, folder):
    judge = HandJudge(Verdict.YES)
    answers = [make_answer(sample=0), make_answer(sample=1, text="the answer is the Austrian capital")]
    assert [score.accuracy for score in run(answers, make_item("a"), folder, judge)] == [1.0, 1.0]
    assert judge.asked == 1
    run(answers, make_item("a"), folder, judge)
    assert judge.asked == 1


def test_a_failed_answer_is_wrong_and_no_judge_hears_of_it(make_item, make_answer, folder):
    judge = HandJudge(Verdict.YES)
    failed = make_answer(text="", outcome=Outcome.FAILED, error="HTTP 500")
    (score,) = run([failed], make_item("a"), folder, judge)
    assert (score.accuracy, judge.asked) == (0.0, 0)
    assert score.reason == "no answer: HTTP 500"


def test_an_unknown_verdict_is_stored_as_unknown_and_asked_again(make_item, make_answer, folder):
    answers = [make_answer(text="the answer is the Austrian capital")]
    (score,) = run(answers, make_item("a"), folder, HandJudge(Verdict.UNKNOWN))
    assert score.accuracy is None
    (score,) = run(answers, make_item("a"), folder, HandJudge(Verdict.NO))
    assert score.accuracy == 0.0


def test_a_score_of_other_rules_or_of_another_response_does_not_count(make_item, make_answer, folder):
    answer = make_answer()
    run([answer], make_item("a"), folder)
    released = scorer_fingerprint(RewardConfig(rules=RuleSet.RELEASED))
    assert current(answer, folder.scores, released) is None
    other = make_answer(text="the answer is Rome")
    assert current(other, folder.scores, scorer_fingerprint(RewardConfig())) is None


def test_the_address_and_patience_of_a_judge_do_not_change_its_scores():
    moved = RewardConfig(judge=OpenAIJudge(base_url="http://127.0.0.1:10/v1", model="j", timeout_s=3))
    other = RewardConfig(judge=OpenAIJudge(base_url=URL, model="k"))
    assert scorer_fingerprint(config()) == scorer_fingerprint(moved) != scorer_fingerprint(other)
