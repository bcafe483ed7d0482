import json

import pytest

from evaluation.behaviours import Behaviour
from evaluation.config import EvaluationConfig, VllmGenerator
from evaluation.grounding import DocumentIndex, ground
from evaluation.paper import paper_table
from evaluation.record import Outcome, ScoredAnswer
from evaluation.report import report_json, report_markdown
from evaluation.summary import Result, length_range, summarise

BEHAVIOURS = {
    Behaviour.GROUNDING: 2,
    Behaviour.SUBGOAL_SETTING: 1,
    Behaviour.BACKTRACKING: 0,
    Behaviour.VERIFICATION: 1,
}


@pytest.fixture
def make_result(make_answer):
    def make(accuracy, item_id="a", sample=0, *, passages=(), behaviours=BEHAVIOURS, **values):
        answer = make_answer(item_id, sample, **values)
        score = ScoredAnswer(
            benchmark=answer.benchmark,
            item_id=item_id,
            sample=sample,
            scorer="s",
            response="r",
            accuracy=accuracy,
            answer="x",
            rule=0.0,
            judge=None,
            reason="",
        )
        return Result(answer=answer, score=score, behaviours=behaviours, passages=passages)

    return make


def config(**values):
    return EvaluationConfig(generator=VllmGenerator(model="owner/model"), sources=("x.jsonl",), **values)


def test_failures_stay_in_the_denominator_and_are_counted_apart(make_result):
    results = [
        make_result(1.0, "a"),
        make_result(0.0, "b", outcome=Outcome.FAILED, error="HTTP 500", text="", prompt_tokens=0),
        make_result(0.0, "c", outcome=Outcome.TRUNCATED),
        make_result(None, "d"),
    ]
    row = summarise(results, seed=0, rejects={}).benchmarks["musique"]
    assert (row.num_items, row.num_answers, row.accuracy.mean) == (4, 4, 0.25)
    assert (row.num_failed, row.num_truncated, row.num_unknown) == (1, 1, 1)


def test_avg_at_n_weighs_items_equally_and_pass_at_k_uses_all_samples(make_result):
    results = [make_result(float(sample == 0), "a", sample) for sample in range(4)]
    results += [make_result(1.0, "b", sample) for sample in range(4)]
    row = summarise(results, seed=0, rejects={}).benchmarks["musique"]
    assert row.accuracy.mean == pytest.approx((0.25 + 1.0) / 2)
    assert row.pass_at == {1: pytest.approx(0.625), 2: pytest.approx(0.75), 4: 1.0}


def test_the_macro_average_weighs_benchmarks_equally(make_result):
    results = [make_result(1.0, "a", benchmark="qasper")] + [make_result(0.0, str(i)) for i in range(9)]
    summary = summarise(results, seed=0, rejects={})
    assert summary.macro.mean == 0.5
    assert summary.macro_pass_at == {1: 0.5}


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(0, "no prompt"), (1, "0K-4K"), (4_000, "0K-4K"), (4_001, "4K-8K"), (128_000, "64K-128K"), (128_001, "over 128K")],
)
def test_a_prompt_belongs_to_one_length_range(tokens, name):
    assert length_range(tokens) == name


def test_length_ranges_come_in_order_and_without_the_empty_ones(make_result):
    results = [make_result(1.0, "a", prompt_tokens=50_000), make_result(0.0, "b", prompt_tokens=10)]
    assert list(summarise(results, seed=0, rejects={}).lengths) == ["0K-4K", "32K-64K"]


def test_grounding_precision_pools_passages_and_failed_answers_have_no_behaviour(make_result):
    document = DocumentIndex("the old mill stood by the river")
    half = ground('"the old mill stood" and "the new mill burned down"', document)
    full = ground('"mill stood by the river"', document)
    results = [
        make_result(1.0, "a", passages=half),
        make_result(1.0, "b", passages=full, behaviours=None),
        make_result(0.0, "c", outcome=Outcome.FAILED, error="x", text=""),
    ]
    reasoning = summarise(results, seed=0, rejects={}).reasoning["all"]
    assert reasoning.grounding_precision == pytest.approx(2 / 3)
    assert (reasoning.behaviours["grounding"], reasoning.num_uncounted) == (2.0, 1)


def test_no_result_is_an_error():
    with pytest.raises(ValueError, match="no answer"):
        summarise([], seed=0, rejects={})


def test_the_paper_table_is_whole_and_its_averages_are_the_means_of_its_rows():
    paper = paper_table()
    assert len(paper.accuracy) == len(paper.average) == 18
    assert paper.benchmarks == ("docmath", "frames", "2wikimqa", "hotpotqa", "musique", "narrativeqa", "qasper")
    for model, row in paper.accuracy.items():
        assert sum(row[name] for name in paper.benchmarks) / 7 == pytest.approx(paper.average[model], abs=0.06)
    best = "L1-32B-DAPO"
    assert (paper.accuracy[best]["narrativeqa"], paper.average[best]) == (56.0, 70.7)


def test_the_report_stands_beside_the_paper_and_averages_only_over_all_seven(make_result):
    paper = paper_table()
    some = [make_result(1.0, "a"), make_result(0.0, "b")]
    text = report_markdown(summarise(some, seed=0, rejects={}), config(), paper)
    assert "| **owner/model** | - | - | - | - | **50.0** | - | - | - |" in text
    every = [make_result(1.0, "a", benchmark=name) for name in paper.benchmarks]
    text = report_markdown(summarise(every, seed=0, rejects={}), config(), paper)
    assert f"| **owner/model** |{' **100.0** |' * 8}" in text


def test_names_from_data_cannot_break_the_table(make_result):
    summary = summarise([make_result(1.0, benchmark="a|b\n<script>")], seed=0, rejects={"f|g": 3, "\x1b[2J\u202e": 1})
    text = report_markdown(summary, config(), paper_table())
    assert "| a\\|b \\<script\\> | 1 |" in text
    assert "| f\\|g | 3 |" in text
    assert "| \\x1b\\[2J\\u202e | 1 |" in text


def test_the_report_is_json_and_holds_the_configuration(make_result):
    report = json.loads(json.dumps(report_json(summarise([make_result(1.0)], seed=0, rejects={}), config())))
    assert report["config"]["sampling"]["max_prompt_tokens"] == 120_000
    assert report["benchmarks"]["musique"]["accuracy"]["mean"] == 1.0
