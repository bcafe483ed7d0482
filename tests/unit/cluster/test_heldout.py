"""Held-out questions: what is asked when, what the answers come to, and what is kept of them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pyarrow.parquet as pq
import pytest

from actors.trajectory import GroupMeta
from cluster.group import ScoredGroup
from cluster.recipe.config import RunConfig
from cluster.recipe.heldout import heldout_set, write_questions
from cluster.run.guards import GuardStop
from cluster.run.heldout_log import COLUMNS, FAILED
from cluster.run.heldout_statistics import Evaluation, HeldOutGroup, HeldOutStatistics
from cluster.run.progress import Progress
from cluster.run.stopping import Interrupted
from curriculum.dataset import Question
from curriculum.errors import UserError
from curriculum.layout import QUESTION_LAYOUTS, QuestionItem
from curriculum.metric import metrics_of
from curriculum.rows import Row
from curriculum.task import Task, TaskLease
from evaluation.statistics import bootstrap_mean, pass_at_k
from reward.score import Score, Verdict

RIGHT = Score(answer="a", rule=1.0, judge=None, accuracy=1.0, reward=1.0, reason="the rule accepts")
SAVED = Score(answer="b", rule=0.0, judge=Verdict.YES, accuracy=1.0, reward=1.0, reason="the judge accepts")
WRONG = Score(answer="c", rule=0.0, judge=Verdict.NO, accuracy=0.0, reward=0.0, reason="the judge refuses")
UNKNOWN = Score(answer="d", rule=0.0, judge=Verdict.UNKNOWN, accuracy=None, reward=None, reason="no verdict")


def a_task(task_id="t", source="musique", prompt_tokens=10, phase=0):
    ids = np.arange(prompt_tokens, dtype=np.int32)
    return Task(task_id=task_id, data_source=source, question="?", answers=("a",), prompt_ids=ids, phase=phase)


def asked(*scores, phase="short", control=None, tokens=3, **task):
    question = a_task(**task)
    meta = GroupMeta(
        lease=TaskLease(lease_id=0, task_id=question.task_id, attempt=0, replayed=False, phase=0),
        data_source=question.data_source,
        prompt_tokens=question.prompt_ids.size,
        response_tokens=(tokens,) * len(scores),
        truncated=(False,) * len(scores),
        policy_version=0,
        num_bytes=0,
    )
    scored = ScoredGroup(meta=meta, scores=scores, group=None) if scores else None
    return HeldOutGroup(task=question, phase=phase, control=control, scored=scored)


def statistics(*groups, num_samples):
    return HeldOutStatistics(groups, num_samples=num_samples, seed=7, seconds=1.5)


def test_accuracy_is_the_mean_over_questions_of_the_share_of_right_answers_with_its_interval():
    found = statistics(
        asked(RIGHT, RIGHT, SAVED, RIGHT), asked(RIGHT, WRONG, WRONG, UNKNOWN), asked(WRONG, WRONG, WRONG, WRONG),
        num_samples=4,
    )  # fmt: skip
    expected = bootstrap_mean([1.0, 0.25, 0.0], seed=7)
    assert found.accuracy == pytest.approx(1.25 / 3)
    assert (found.accuracy, found.accuracy_low, found.accuracy_high) == (expected.mean, expected.low, expected.high)


def test_rule_and_judge_make_up_the_accuracy_and_what_is_unknown_or_failed_stays_in_the_denominator():
    found = statistics(asked(RIGHT, SAVED), asked(UNKNOWN, WRONG), asked(SAVED, RIGHT), asked(), num_samples=2)
    assert (found.accuracy, found.rule, found.judge_saved, found.unknown) == (0.5, 0.25, 0.25, 3 / 8)
    assert found.rule + found.judge_saved == found.accuracy


def test_pass_at_k_is_the_unbiased_estimate_up_to_the_number_of_samples():
    found = statistics(asked(RIGHT, WRONG, WRONG, WRONG), asked(), num_samples=4)
    assert found.pass_at == {"2": pytest.approx(0.25), "4": 0.5}
    assert found.pass_at["2"] == (pass_at_k(4, 1, 2) + 0.0) / 2
    assert statistics(asked(RIGHT), num_samples=1).pass_at == {}, "pass@1 is the accuracy"


def test_every_part_has_pass_at_k_and_the_shares_of_rule_judge_and_unknown():
    found = statistics(
        asked(RIGHT, SAVED, task_id="a", source="musique"), asked(WRONG, UNKNOWN, task_id="b", source="musique"),
        asked(SAVED, WRONG, task_id="c", source="docmath"),
        num_samples=2,
    ).cells  # fmt: skip
    musique, docmath = found["heldout/accuracy/source:musique"], found["heldout/accuracy/source:docmath"]
    assert (musique.num_questions, musique.accuracy, musique.pass_at) == (2, 0.5, {"2": 0.5})
    assert (musique.rule, musique.judge_saved, musique.unknown) == (0.25, 0.25, 0.25)
    assert (docmath.accuracy, docmath.pass_at, docmath.rule, docmath.judge_saved) == (0.5, {"2": 1.0}, 0.0, 0.5)


def test_accuracies_are_told_by_phase_data_source_and_length():
    found = metrics_of(
        statistics(
            asked(RIGHT, phase="phase 1", source="musique", prompt_tokens=4000),
            asked(WRONG, phase="phase 1", source="docmath", prompt_tokens=4001),
            asked(RIGHT, phase="source:x", source="musique", prompt_tokens=9000, tokens=9),
            num_samples=1,
        )
    )
    parts = {key.removeprefix("heldout/accuracy/"): v for key, v in found.items() if "heldout/accuracy/" in key}
    assert parts == {
        "phase%201": 0.5, "source%3Ax": 1.0,
        "source:musique": 1.0, "source:docmath": 0.0,
        "length:0K-4K": 1.0, "length:4K-8K": 0.0, "length:8K-16K": 1.0,
    }  # fmt: skip
    assert (found["heldout/response_tokens_mean"], found["time/heldout_s"]) == (5.0, 1.5)


def test_controls_have_accuracies_of_their_own_and_change_no_other_number():
    plain = [asked(RIGHT, phase="short"), asked(RIGHT, phase="long")]
    without = [asked(RIGHT, phase="short", control="no_document"), asked(WRONG, phase="long", control="no_document")]
    found = metrics_of(statistics(*plain, *without, num_samples=1))
    assert found["heldout/accuracy_no_document"] == 0.5
    assert found["heldout/accuracy_no_document/short"] == 1.0
    assert "heldout/accuracy_other_document" not in found
    assert found.items() >= metrics_of(statistics(*plain, num_samples=1)).items()


def test_an_evaluation_reads_back_from_json_and_knows_its_phases():
    found = statistics(asked(RIGHT, phase="a/b"), asked(WRONG, phase="c"), num_samples=1)
    evaluation = found.evaluation(12, metrics_of(found))
    assert Evaluation.from_state_dict(json.loads(json.dumps(asdict(evaluation)))) == evaluation
    assert {name: cell.accuracy for name, cell in evaluation.phases.items()} == {"a/b": 1.0, "c": 0.0}
    assert str(evaluation.phases["c"]) == "0.000 [0.00, 0.00]"


# ---- in a run


def always_mixed(lease):
    return [1.0, 0.0]


def held_out(task, prefix="h"):
    return {"short": (task(f"{prefix}0", 0), task(f"{prefix}1", 0)), "long": (task(f"{prefix}2", 1),)}


def evaluations(b):
    lines = [json.loads(line) for line in (b.folder.path / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["stage"]) for line in lines if "heldout/accuracy" in line]


def test_between_the_ends_of_stages_questions_are_asked_every_n_steps_and_once_where_both_fall_together(bench, task):
    b = bench(accuracies=always_mixed, demonstrations=6, heldout=held_out(task), evaluation={"every_steps": 1})
    b.run()
    assert evaluations(b) == [
        (0, "base"), (1, "sft"), (2, "sft"), (3, "sft"), (4, "short"), (5, "short"), (6, "long"), (7, "long"),
    ]  # fmt: skip


def test_engines_get_the_weights_of_the_warm_up_for_an_evaluation_within_it(bench, task):
    b = bench(accuracies=always_mixed, demonstrations=6, heldout=held_out(task), evaluation={"every_steps": 2})
    calls = b.run()
    second = calls.index("sft 2", calls.index("sft 2") + 1)
    assert calls[second + 1 : second + 5] == ["publish 1", "deliver 1", "evaluate 2", "evaluate 1"]


def test_controls_are_asked_before_the_run_and_at_the_ends_of_stages_only(bench, task):
    controls = {"no_document": held_out(task), "other_document": {"long": (task("h2", 1),)}}
    b = bench(
        accuracies=always_mixed, heldout=held_out(task), controls=controls,
        evaluation={"every_steps": 1, "control": ["no_document", "other_document"]},
    )  # fmt: skip
    b.run()
    lines = [json.loads(line) for line in (b.folder.path / "metrics.jsonl").read_text().splitlines()]
    asked_so = [line["step"] for line in lines if "heldout/accuracy_no_document" in line]
    assert asked_so == [0, 2, 4]
    assert [step for step, _ in evaluations(b)] == [0, 1, 2, 3, 4]
    table = pq.read_table(b.folder.heldout / "step-000004.parquet").to_pylist()
    assert [(row["id"], row["control"]) for row in table] == [
        ("h0", None), ("h1", None), ("h2", None),
        ("h0", "no_document"), ("h1", "no_document"), ("h2", "no_document"),
        ("h2", "other_document"),
    ]  # fmt: skip


def test_every_answer_is_kept_so_that_the_table_can_be_counted_again(bench, task):
    b = bench(accuracies=always_mixed, heldout=held_out(task), evaluation={"num_samples": 2})
    worth = {"h0": [1.0, None], "h1": [0.0, 0.0], "h2": None}
    b.rollouts.heldout_accuracies = lambda task, index: worth[task.task_id]
    b.run()
    table = pq.read_table(b.folder.heldout / "step-000002.parquet")
    assert table.column_names == list(COLUMNS)
    rows = table.to_pylist()
    assert [(row["id"], row["phase"], row["sample"], row["accuracy"]) for row in rows] == [
        ("h0", "short", 0, 1.0), ("h0", "short", 1, None), ("h1", "short", 0, 0.0), ("h1", "short", 1, 0.0),
        ("h2", "long", 0, None), ("h2", "long", 1, None),
    ]  # fmt: skip
    assert [row["reason"] for row in rows[4:]] == [FAILED] * 2
    assert {row["response"] for row in rows[:4]} == {"the answer is yes"}
    right = sum(row["accuracy"] == 1.0 for row in rows) / len(rows)
    after = b.progress.finished_stages[0].heldout
    assert (after.step, after.metrics["heldout/accuracy"]) == (2, pytest.approx(right))
    assert after.metrics["heldout/unknown"] == 0.5


def test_a_run_that_was_stopped_in_an_evaluation_asks_again_and_replaces_the_answers(bench, task):
    b = bench(name="stopped", accuracies=always_mixed, heldout=held_out(task), evaluation={"every_steps": 1})

    async def stop_in_the_evaluation_after_the_first_step():
        answer = b.rollouts.answer

        async def blocked(tasks, sampling):
            if b.progress.step == 1:
                b.stop.set()
                await asyncio.Event().wait()
            return await answer(tasks, sampling)

        b.rollouts.answer = blocked
        await b.loop().run()

    with pytest.raises(Interrupted):
        asyncio.run(stop_in_the_evaluation_after_the_first_step())
    state = json.loads((b.folder.checkpoints.newest() / "state.json").read_text())
    assert (state["progress"]["step"], state["progress"]["heldout"]["step"]) == (1, 0)

    resumed = bench(name="resumed", accuracies=always_mixed, heldout=held_out(task), evaluation={"every_steps": 1})
    resumed.coordinator.load_state_dict(state["curriculum"])
    resumed.progress = Progress.from_state_dict(state["progress"])
    resumed.rollouts.policy_version = resumed.progress.policy_version
    (resumed.folder.heldout).mkdir()
    (resumed.folder.heldout / "step-000001.parquet").write_text("of the run before")
    resumed.run()
    assert [step for step, _ in evaluations(resumed)] == [1, 2, 3, 4], "the base model is not asked again"
    assert pq.read_table(resumed.folder.heldout / "step-000001.parquet").num_rows == 3


def test_with_a_lag_an_evaluation_waits_for_the_newest_weights_and_the_steps_go_on_as_without_it(bench, task):
    lag = {
        "rollout": {"group_size": 2, "max_policy_lag": 1},
        "learner": {"importance": {"cap": 2.0}},
        "heldout": held_out(task),
    }
    plain = bench(name="plain", accuracies=always_mixed, **lag)
    plain.run()
    b = bench(name="evaluated", accuracies=always_mixed, evaluation={"every_steps": 1}, **lag)
    calls = b.run()
    assert [step for step, _ in evaluations(b)] == [0, 1, 2, 3, 4]
    assert len(b.learner.batches) == len(plain.learner.batches) == 4
    versions = [
        {row["policy_version"] for row in pq.read_table(b.folder.heldout / f"step-{step:06d}.parquet").to_pylist()}
        for step in range(5)
    ]
    assert versions == [{0}, {1}, {2}, {3}, {4}]
    assert calls.count("evaluate 2") == 5


def test_a_guard_on_held_out_questions_stops_the_run_at_the_end_of_a_stage_too(bench, task):
    rule = {"metric": "heldout/accuracy", "below": 0.9, "steps": 2, "action": "stop"}
    b = bench(accuracies=always_mixed, heldout=held_out(task), guards=[rule])
    with pytest.raises(GuardStop, match=r"guard: heldout/accuracy is 0\.6667, below 0\.9, in 2 evaluations in a row"):
        b.run()
    assert [stage.name for stage in b.progress.finished_stages] == ["short"], "the base model does not count"


# ---- the questions of a recipe

PHASES = [
    {"name": "short", "max_prompt_tokens": 20, "end": {"type": "steps", "steps": 1}},
    {"name": "long", "max_prompt_tokens": 40, "end": {"type": "steps", "steps": 1}},
]


class WordEncoder:
    """One token per word; the ids are those of the words, so that prompts can be compared."""

    def encode(self, context, question):
        return np.array([len(word) for word in (*context.split(), *question.split())], np.int32)

    def encode_messages(self, messages):
        return self.encode("", " ".join(message["content"] for message in messages))

    def truncate_middle(self, context, question, max_tokens):
        return " ".join(context.split()[: max_tokens - len(question.split())])


def recipe(*controls):
    return RunConfig.model_validate(
        {
            "name": "x",
            "model": {"path": "a/b"},
            "data": {"train": "t.parquet", "evaluation": "e.parquet"},
            "sft": {"epochs": 0},
            "curriculum": {"phases": PHASES},
            "evaluation": {"control": controls},
        }
    )


def a_question(item_id, context, phase=0, messages=()):
    item = QuestionItem(
        item_id=item_id, data_source="s", context=context, question="who is it?", answers=("a", "b"), messages=messages
    )
    return Question(item=item, task=replace(a_task(item_id, "s", phase=phase), answers=("a", "b")))


def test_questions_are_asked_under_the_controls_in_the_phase_of_their_own_document():
    texts = {"q0": "one", "q1": "one two three four", "q2": " ".join(["long"] * 60)}
    questions = [a_question(name, text, phase=name == "q2") for name, text in texts.items()]
    found = heldout_set(recipe("no_document", "other_document"), questions, WordEncoder())

    assert {name: len(tasks) for name, tasks in found.tasks.items()} == {"short": 2, "long": 1}
    for control, name in product(("no_document", "other_document"), ("short", "long")):
        ids = [task.task_id for task in found.under[control][name]]
        assert ids == [task.task_id for task in found.tasks[name]]
    alone = [task.prompt_ids.tolist() for tasks in found.under["no_document"].values() for task in tasks]
    assert alone == [[3, 2, 3]] * 3
    own = {name: WordEncoder().encode(text, "who is it?").tolist() for name, text in texts.items()}
    others = [task for tasks in found.under["other_document"].values() for task in tasks]
    assert all(task.prompt_ids.tolist() != own[task.task_id] for task in others)
    assert max(task.prompt_ids.size for task in others) <= 40, "another document is cut to the limit of all phases"


def test_a_recipe_without_controls_asks_the_questions_as_they_are():
    found = heldout_set(recipe(), [a_question("q0", "one")], WordEncoder())
    assert (len(found.tasks["short"]), dict(found.under)) == (1, {})


def test_a_control_that_needs_another_document_is_refused_where_there_is_none():
    with pytest.raises(
        UserError, match=r"^evaluation.control=other_document: the questions of data.evaluation have no"
    ):
        heldout_set(recipe("other_document"), [a_question("q0", "one"), a_question("q1", "One ")], WordEncoder())


def test_a_kept_prompt_whose_document_is_unknown_cannot_be_asked_under_a_control():
    messages = ({"role": "user", "content": "read: one; who is it?"},)
    with pytest.raises(UserError) as told:
        heldout_set(recipe("no_document"), [a_question("q\x1b0", "", messages=messages)], WordEncoder())
    assert str(told.value) == (
        r"evaluation.control=no_document: question 'q\x1b0' of data.evaluation cannot be asked so: no document is "
        "found in its prompt; say where it lies with data.markers.context; or leave the control out"
    )


def test_the_questions_of_a_run_are_written_as_an_evaluation_reads_them(tmp_path):
    path = tmp_path / "heldout" / "questions.jsonl"
    write_questions([a_question("q0", "one\u2028two").item], path)
    write_questions([a_question("q0", "one\u2028two").item, a_question("q1", "three").item], path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == {
        "id": "q0", "data_source": "s", "context": "one\u2028two", "question": "who is it?", "answers": ["a", "b"],
    }  # fmt: skip
    items = [QUESTION_LAYOUTS[0].parse(Row(number=number, values=row)) for number, row in enumerate(rows)]
    assert [item.item_id for item in items] == ["q0", "q1"]
