import asyncio

import pytest

from evaluation.answering import answer_all, missing_samples
from evaluation.config import SamplingConfig
from evaluation.generator import GeneratorDown
from evaluation.record import Outcome
from evaluation.store import EvaluationFolder

SAMPLING = SamplingConfig(max_prompt_tokens=20, max_response_tokens=10, num_samples=2)


@pytest.fixture
def log(tmp_path):
    with EvaluationFolder(tmp_path / "e", {}) as folder:
        yield folder.answers


def run(items, generator, encoder, log, sampling=SAMPLING, **options):
    missing = missing_samples(items, log, num_samples=sampling.num_samples)
    seen = []
    settings = {"max_in_flight": 4, "on_answer": seen.append, **options}
    asyncio.run(answer_all(missing, generator, encoder, log, sampling, **settings))
    return seen


def test_every_sample_is_asked_once_with_a_seed_of_its_own(make_item, table_generator, encoder, log):
    generator = table_generator({"capital": "the answer is Vienna"})
    seen = run([make_item("a"), make_item("b")], generator, encoder, log)
    assert len(seen) == len(log) == 4
    assert len({seed for _, seed in generator.asked}) == 4
    assert {answer.seed for answer in seen} == {seed for _, seed in generator.asked}


def test_the_prompt_is_the_papers_template(make_item, table_generator, encoder, log):
    generator = table_generator({"": "x"})
    run([make_item("a")], generator, encoder, log)
    text = generator.asked[0][0]
    assert text.startswith("Please read the following text and answer the question below.\n\n<text>\nVienna is")
    assert text.endswith('Format your response as follows: "Therefore, the answer is (insert answer here)".')


def test_nothing_that_is_there_is_asked_again(make_item, table_generator, encoder, log):
    items = [make_item("a"), make_item("b")]
    run(items[:1], table_generator({"": "x"}), encoder, log)
    second = table_generator({"": "y"})
    run(items, second, encoder, log)
    assert len(second.asked) == 2
    assert log.get(("musique", "a", 0)).text == "x"


def test_more_samples_keep_those_that_are_there(make_item, table_generator, encoder, log):
    run([make_item("a")], table_generator({"": "x"}), encoder, log)
    second = table_generator({"": "y"})
    run([make_item("a")], second, encoder, log, SAMPLING.model_copy(update={"num_samples": 3}))
    assert [log.get(("musique", "a", i)).text for i in range(3)] == ["x", "x", "y"]


def test_a_prompt_without_an_answer_is_stored_as_failed_and_asked_again(
    make_item, table_generator, encoder, log, refusal
):
    items = [make_item("a"), make_item("b")]
    run(items, table_generator({"? a": refusal, "? b": "x"}), encoder, log)
    answer = log.get(("musique", "a", 0))
    assert (answer.outcome, answer.error) == (Outcome.FAILED, "HTTP 400")
    again = table_generator({"": "y"})
    run(items, again, encoder, log)
    assert len(again.asked) == 2
    assert log.get(("musique", "a", 0)).text == "y"


def test_a_truncated_answer_is_kept_as_such(make_item, table_generator, encoder, log):
    (answer, _) = run([make_item("a")], table_generator({"": "and then..."}), encoder, log)
    assert answer.outcome is Outcome.TRUNCATED


def test_a_long_document_loses_its_middle(make_item, table_generator, encoder, log):
    generator = table_generator({"": "x"})
    item = make_item("a", context=" ".join(map(str, range(1000))))
    (answer, _) = run([item], generator, encoder, log)
    assert (answer.document_cut, answer.prompt_tokens) == (True, 20)
    assert "\n0 1 2 " in generator.asked[0][0]
    assert " 998 999\n" in generator.asked[0][0]
    assert " 500 " not in generator.asked[0][0]


def test_a_question_that_is_too_long_by_itself_is_a_failed_answer(make_item, table_generator, encoder, log):
    (answer, _) = run([make_item("a", question="why " * 30)], table_generator({"": "x"}), encoder, log)
    assert answer.outcome is Outcome.FAILED
    assert "exceeds 20 tokens" in answer.error


def test_control_tokens_of_the_document_reach_no_endpoint(make_item, table_generator, encoder, log):
    generator = table_generator({"": "x"})
    run([make_item("a", context="end <|im_end|> of it")], generator, encoder, log)
    assert "<|im_end|>" not in generator.asked[0][0]


def test_an_outage_ends_the_loop_and_keeps_what_was_answered(make_item, table_generator, encoder, log, outage):
    items = [make_item("a"), make_item("b"), make_item("c")]
    generator = table_generator({"? a": "x", "? b": outage, "? c": "x"})
    with pytest.raises(GeneratorDown, match="the endpoint is down"):
        run(items, generator, encoder, log, max_in_flight=1)
    assert [log.get(("musique", name, 0)) is not None for name in "abc"] == [True, False, False]


def test_no_more_answers_are_in_flight_than_allowed(make_item, encoder, log):
    class Counting:
        now = most = 0

        async def generate(self, prompt, *, seed):
            from evaluation.generator import Completion

            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            return Completion(text="x", num_tokens=1, is_truncated=False)

        async def close(self):
            pass

    generator = Counting()
    run([make_item(str(i)) for i in range(10)], generator, encoder, log, max_in_flight=3)
    assert generator.most == 3
