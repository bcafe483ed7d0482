"""trajectories/: one row per answer, with everything that decided about it."""

from __future__ import annotations

import pyarrow.parquet as pq

from actors.trajectory import GroupMeta
from cluster.group import ScoredGroup
from cluster.run.trajectory_log import COLUMNS, write_trajectories
from curriculum.task import TaskLease
from reward.score import Score, Verdict

SAVED = Score(answer="seven", rule=0.0, judge=Verdict.YES, accuracy=1.0, reward=0.5, reason="the judge accepts")
WRONG = Score(answer=None, rule=0.0, judge=Verdict.NO, accuracy=0.0, reward=-0.5, reason="no answer")
UNKNOWN = Score(answer="7", rule=0.0, judge=Verdict.UNKNOWN, accuracy=None, reward=None, reason="the judge is away")


def decode(ids):
    return " ".join(map(str, ids))


def scored(make_group, task_id, *scores, advantages=None, lease_id=4):
    lease = TaskLease(lease_id=lease_id, task_id=task_id, attempt=0, replayed=True, phase=1)
    group = make_group(lease, len(scores))
    return ScoredGroup(meta=GroupMeta.of(group), scores=scores, group=group, advantages=advantages), group


def test_a_row_holds_the_answer_and_what_it_was_worth(tmp_path, make_group):
    trained = scored(make_group, "t", SAVED, WRONG, advantages=(0.75, -0.25))
    path = write_trajectories(tmp_path, 12, [trained], decode)
    assert path.name == "step-000012.parquet"
    table = pq.read_table(path)
    assert tuple(table.column_names) == COLUMNS
    first, second = table.to_pylist()
    assert first == {
        "step": 12, "lease_id": 4, "prompt_id": "t", "sample": 0, "data_source": "test", "phase": 1, "replayed": True,
        "question": "question of t?", "truth": ["yes"], "response": "5 6 2", "answer": "seven",
        "rule": 0.0, "judge": "yes", "accuracy": 1.0, "reward": 0.5, "reason": "the judge accepts",
        "advantage": 0.75, "trained": True, "policy_version": 0,
        "newest_policy_version": 0, "engine": "fake", "finish_reason": "stop", "prompt_tokens": 10,
        "response_tokens": 3,
    }  # fmt: skip
    assert (second["sample"], second["answer"], second["judge"], second["advantage"]) == (1, None, "no", -0.25)


def test_an_unknown_reward_is_empty_and_never_zero(tmp_path, make_group):
    trained = scored(make_group, "t", SAVED, WRONG, UNKNOWN, advantages=(0.5, -0.5, None))
    row = pq.read_table(write_trajectories(tmp_path, 0, [trained], decode)).to_pylist()[2]
    assert (row["judge"], row["accuracy"], row["reward"], row["advantage"]) == ("unknown", None, None, None)
    assert row["trained"] is True


def test_a_group_that_is_not_trained_on_has_rewards_and_no_advantages(tmp_path, make_group):
    path = write_trajectories(tmp_path, 0, [scored(make_group, "t", SAVED, WRONG)], decode)
    rows = pq.read_table(path).to_pylist()
    assert [(row["reward"], row["advantage"], row["trained"]) for row in rows] == [
        (0.5, None, False),
        (-0.5, None, False),
    ]


def test_model_text_is_data(tmp_path, make_group):
    nasty = "{0} <script> \x00 \U0001f40d \n '; drop"
    path = write_trajectories(tmp_path, 0, [scored(make_group, "t", SAVED, WRONG)], lambda ids: nasty)
    assert [row["response"] for row in pq.read_table(path).to_pylist()] == [nasty] * 2


def test_a_repeated_step_replaces_its_file_and_leaves_nothing_half_written(tmp_path, make_group):
    write_trajectories(tmp_path, 0, [scored(make_group, "t", SAVED, WRONG)], decode)
    write_trajectories(tmp_path, 0, [scored(make_group, "u", SAVED, WRONG)], decode)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000.parquet"]
    assert {row["prompt_id"] for row in pq.read_table(tmp_path / "step-000000.parquet").to_pylist()} == {"u"}
