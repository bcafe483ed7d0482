import asyncio

import pytest

from reward.judge import CachingJudge, combined_verdict
from reward.judge_prompt import JudgeQuestion
from reward.score import Verdict


def question(answer, truth="Paris"):
    return JudgeQuestion(question="Which city?", answer=answer, truth=truth)


class FakeJudge:
    """Says yes to the answers it was told to, keeps what it was asked, and fails on demand."""

    def __init__(self, *, yes=(), delay_s=0.0):
        self.yes = set(yes)
        self.delay_s = delay_s
        self.batches = []
        self.failure = None
        self.reply = None

    async def judge(self, questions):
        self.batches.append([question.answer for question in questions])
        await asyncio.sleep(self.delay_s)
        if self.failure:
            raise self.failure
        if self.reply is not None:
            return self.reply
        return [Verdict.YES if question.answer in self.yes else Verdict.NO for question in questions]


def test_equal_questions_of_a_batch_are_asked_once():
    judge = FakeJudge(yes={"paris, france"})
    caching = CachingJudge(judge, name="fake")
    verdicts = asyncio.run(caching.ask([question("Rome"), question("paris, france"), question("Rome")]))
    assert judge.batches == [["Rome", "paris, france"]]
    assert verdicts == {question("Rome"): Verdict.NO, question("paris, france"): Verdict.YES}


def test_a_known_verdict_is_not_asked_again():
    judge = FakeJudge()
    caching = CachingJudge(judge, name="fake")
    asyncio.run(caching.ask([question("Rome")]))
    asyncio.run(caching.ask([question("Rome"), question("Oslo")]))
    assert judge.batches == [["Rome"], ["Oslo"]]


def test_another_truth_is_another_question():
    judge = FakeJudge()
    caching = CachingJudge(judge, name="fake")
    asyncio.run(caching.ask([question("Rome", truth="Paris"), question("Rome", truth="Oslo")]))
    assert judge.batches == [["Rome", "Rome"]]


def test_equal_questions_of_concurrent_groups_share_one_call():
    judge = FakeJudge(delay_s=0.01)
    caching = CachingJudge(judge, name="fake")

    async def ask_twice():
        return await asyncio.gather(caching.ask([question("Rome")]), caching.ask([question("Rome")]))

    first, second = asyncio.run(ask_twice())
    assert judge.batches == [["Rome"]]
    assert first == second == {question("Rome"): Verdict.NO}


@pytest.mark.parametrize("failure", [RuntimeError("down"), ConnectionError("refused"), TimeoutError()])
def test_a_judge_that_raises_abstains_and_is_asked_again(failure):
    judge = FakeJudge()
    judge.failure = failure
    caching = CachingJudge(judge, name="fake")
    assert asyncio.run(caching.ask([question("Rome")])) == {question("Rome"): Verdict.UNKNOWN}
    judge.failure = None
    assert asyncio.run(caching.ask([question("Rome")])) == {question("Rome"): Verdict.NO}


@pytest.mark.parametrize("reply", [[], [Verdict.YES, Verdict.YES], ["perhaps"], 7])
def test_a_judge_that_breaks_its_interface_abstains(reply):
    judge = FakeJudge()
    judge.reply = reply
    assert asyncio.run(CachingJudge(judge, name="fake").ask([question("Rome")])) == {question("Rome"): Verdict.UNKNOWN}


def test_a_judge_that_is_too_slow_abstains():
    caching = CachingJudge(FakeJudge(delay_s=10.0), name="fake", timeout_s=0.01)
    assert asyncio.run(caching.ask([question("Rome")])) == {question("Rome"): Verdict.UNKNOWN}


def test_a_mumbled_verdict_is_not_kept():
    judge = FakeJudge()
    judge.reply = [Verdict.UNKNOWN]
    caching = CachingJudge(judge, name="fake")
    asyncio.run(caching.ask([question("Rome")]))
    asyncio.run(caching.ask([question("Rome")]))
    assert judge.batches == [["Rome"], ["Rome"]]


def test_a_cancelled_owner_leaves_no_one_waiting():
    caching = CachingJudge(FakeJudge(delay_s=10.0), name="fake")

    async def cancel_owner():
        owner = asyncio.create_task(caching.ask([question("Rome")]))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(caching.ask([question("Rome")]))
        await asyncio.sleep(0.01)
        owner.cancel()
        return await asyncio.wait_for(waiter, timeout=1)

    assert asyncio.run(cancel_owner()) == {question("Rome"): Verdict.UNKNOWN}


def test_the_cache_forgets_the_least_recently_used():
    judge = FakeJudge()
    caching = CachingJudge(judge, name="fake", max_cached=2)
    for answer in ("Rome", "Oslo", "Rome", "Bern", "Rome", "Oslo"):
        asyncio.run(caching.ask([question(answer)]))
    assert judge.batches == [["Rome"], ["Oslo"], ["Bern"], ["Oslo"]]


@pytest.mark.parametrize(
    ("verdicts", "combined"),
    [("ny", "yes"), ("uy", "yes"), ("nn", "no"), ("nu", "unknown"), ("u", "unknown"), ("", "unknown")],
)
def test_yes_needs_one_answer_and_no_needs_all(verdicts, combined):
    short = {"y": Verdict.YES, "n": Verdict.NO, "u": Verdict.UNKNOWN}
    assert combined_verdict([short[letter] for letter in verdicts]) is Verdict(combined)
