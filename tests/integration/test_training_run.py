"""The whole recipe on real parts: warm-up, two phases with replay, and everything the run folder must hold."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import metadata_load

from cluster.recipe.load import load_recipe
from cluster.run.metrics import METRICS
from cluster.run.trajectory_log import COLUMNS
from curriculum.metric import is_declared
from tests.harness.recipe import NUM_HELDOUT, read_jsonl

pytestmark = pytest.mark.integration

NUM_SFT_STEPS, NUM_SHORT_STEPS, NUM_LONG_STEPS = 24, 2, 6  # as in conftest.py
NUM_STEPS = NUM_SFT_STEPS + NUM_SHORT_STEPS + NUM_LONG_STEPS
GROUP_SIZE = 8
ROOT = Path(__file__).parents[2]


def test_every_stage_leaves_its_checkpoint_and_its_model_and_the_last_one_is_the_final_one(reference):
    ends = {"sft": NUM_SFT_STEPS, "short": NUM_SFT_STEPS + NUM_SHORT_STEPS, "long": NUM_STEPS}
    steps = {int(path.name.removeprefix("step-")) for path in (reference.folder / "checkpoints").iterdir()}
    assert steps == {*ends.values(), NUM_STEPS // 5 * 5}, "the ends of the stages, and the newest two"
    models = {path.name: path for path in (reference.folder / "models").iterdir()}
    assert {name: metadata_load(path / "README.md")["qwenlong"]["step"] for name, path in models.items()} == ends
    weights = {(path / "model.safetensors").read_bytes() for path in models.values()}
    assert len(weights) == 3
    for path in models["long"].iterdir():
        assert path.samefile(reference.folder / "model" / path.name), "written once"
    assert "| long | " in (reference.folder / "model" / "README.md").read_text()


def test_the_run_folder_holds_everything_that_is_promised(reference):
    names = {path.name for path in reference.folder.iterdir()}
    assert names == {
        "recipe.yaml", "metrics.jsonl", "events.jsonl", "trajectories", "checkpoints", "models", "model_files",
        "model", "heldout", "summary.json", "logs", "wandb", ".lock",
    }  # fmt: skip
    assert list((reference.folder / "wandb").glob("offline-run-*/*.wandb"))
    session = next((reference.folder / "logs").iterdir())
    assert any(path.stat().st_size for path in session.glob("worker-*.err"))


def test_no_process_outlives_a_finished_run(reference):
    assert reference.survivors == [[]]


def test_the_stored_recipe_is_the_resolved_one(reference):
    config = load_recipe(reference.folder / "recipe.yaml")
    assert config.name == "tiny"
    assert config.rollout.group_size == GROUP_SIZE
    assert config.learner.betas == load_recipe(ROOT / "recipes" / "local.yaml").learner.betas


def test_every_step_has_one_line_of_metrics(reference):
    assert [line["step"] for line in reference.metrics] == list(range(NUM_STEPS))
    stages = ["sft"] * NUM_SFT_STEPS + ["short"] * NUM_SHORT_STEPS + ["long"] * NUM_LONG_STEPS
    assert [line["stage"] for line in reference.metrics] == stages
    for line in reference.metrics:
        assert all(is_declared(key, METRICS) for key in line.keys() - {"step", "stage"})


def test_the_warm_up_learns_the_demonstrations(reference):
    losses = [line["sft/loss"] for line in reference.metrics[:NUM_SFT_STEPS]]
    assert losses[-1] < 0.3 * losses[0]


def test_both_phases_train_and_the_second_one_replays_within_its_share(reference):
    short = reference.metrics[NUM_SFT_STEPS : NUM_SFT_STEPS + NUM_SHORT_STEPS]
    long = reference.metrics[NUM_SFT_STEPS + NUM_SHORT_STEPS :]
    assert all(line["rollout/groups_trained"] > 0 and line["learner/updates"] == 1 for line in short + long)
    assert [line["curriculum/phase"] for line in short + long] == [0] * NUM_SHORT_STEPS + [1] * NUM_LONG_STEPS
    assert all(line["curriculum/replayed_share"] == 0 for line in short)
    assert all(0 < line["curriculum/replayed_share"] <= 0.25 for line in long)
    assert all(line["curriculum/replayed_prompt_tokens"] < line["curriculum/fresh_prompt_tokens"] for line in long)


def test_the_events_tell_stages_transitions_and_syncs_in_order(reference):
    assert [event["stage"] for event in reference.events("stage_closed")] == ["sft", "short", "long"]
    transitions = reference.events("transition")
    assert [(t["from_phase"], t["to_phase"], t["reason"]) for t in transitions] == [(0, 1, "steps"), (1, None, "steps")]
    assert transitions[0]["pool_size"] > 0
    versions = [event["version"] for event in reference.events("sync")]
    assert versions == list(range(1, 2 + NUM_SHORT_STEPS + NUM_LONG_STEPS)), "one after the warm-up, one per step"
    assert [event["event"] for event in reference.lines("events.jsonl")][-1] == "finished"


def test_the_summary_tells_each_stage(reference):
    summary = reference.summary
    assert (summary["steps"], summary["policy_version"]) == (NUM_STEPS, 1 + NUM_SHORT_STEPS + NUM_LONG_STEPS)
    assert [stage["name"] for stage in summary["stages"]] == ["sft", "short", "long"]
    for before, stage in zip([summary["base_accuracy"], *_after(summary)], summary["stages"], strict=False):
        assert stage["accuracy_before"] == before
        assert set(stage["accuracy_after"]) == {"short", "long"}
        assert stage["wall_seconds"] > 0
        assert {"steps", "replayed_share", "judge_calls", "end_reason"} <= stage.keys()
    assert summary["stages"][2]["replayed_share"] > 0
    assert summary["leases"]["opened"] == summary["leases"]["reported"] > 0


def test_the_held_out_questions_have_a_line_a_file_and_a_cell_at_the_end_of_every_stage(reference):
    ends = [0, NUM_SFT_STEPS, NUM_SFT_STEPS + NUM_SHORT_STEPS, NUM_STEPS]
    assert [(line["step"], line["stage"]) for line in reference.evaluations] == list(
        zip(ends, ["base", "sft", "short", "long"], strict=True)
    )
    questions = read_jsonl(str(reference.folder / "heldout" / "questions.jsonl"))
    assert len({row["id"] for row in questions}) == len(questions) == 2 * NUM_HELDOUT
    for line in reference.evaluations:
        rows = pq.read_table(reference.folder / "heldout" / f"step-{line['step']:06d}.parquet").to_pylist()
        for control in (None, "no_document", "other_document"):
            asked = [row for row in rows if row["control"] == control]
            assert {row["id"] for row in asked} == {row["id"] for row in questions}
            key = "heldout/accuracy" + (f"_{control}" if control else "")
            assert sum(row["accuracy"] == 1.0 for row in asked) / len(asked) == pytest.approx(line[key])
            cells = _heldout_after(reference.summary, line["step"])["cells"]
            assert cells[key]["num_questions"] == 2 * NUM_HELDOUT
            assert cells[key]["low"] <= line[key] <= cells[key]["high"]


def _heldout_after(summary, step):
    found = [summary["base_heldout"], *[stage["heldout"] for stage in summary["stages"]]]
    return next(evaluation for evaluation in found if evaluation["step"] == step)


def _after(summary):
    return [stage["accuracy_after"] for stage in summary["stages"]]


def test_every_answer_is_in_the_trajectories(reference):
    for line in reference.metrics[NUM_SFT_STEPS:]:
        table = pq.read_table(reference.folder / "trajectories" / f"step-{line['step']:06d}.parquet")
        assert tuple(table.column_names) == COLUMNS
        rows = table.to_pylist()
        assert len(rows) == GROUP_SIZE * line["rollout/groups"]
        assert sum(row["reward"] for row in rows) / len(rows) == pytest.approx(line["reward/mean"])
        assert {row["policy_version"] for row in rows} == {line["sync/version"] - 1}, "strictly on-policy"
        assert all((row["advantage"] is not None) == row["trained"] for row in rows)
        assert len({row["response"] for row in rows}) > 1


def test_a_warm_up_alone_starts_neither_coordinator_nor_engines(workshop, head):
    run = workshop.new_run("warm-up")
    command = workshop.join(head.address, run, curriculum__phases=[], data__train=None, data__evaluation=None)
    run.finish(command)
    assert run.exit_statuses == [0], run.output[-4000:]
    assert f"joining Ray at {head.address}" in run.output
    assert set(run.events("actors_ready")[0]["pids"]) == {"learner-0"}
    assert [stage["name"] for stage in run.summary["stages"]] == ["sft"]
    assert (run.folder / "model" / "model.safetensors").is_file()


def test_a_job_submitted_to_a_running_cluster_finishes(submitted):
    assert submitted.exit_statuses == [0], submitted.output[-4000:]
    assert "succeeded" in submitted.output
    assert submitted.summary["steps"] == NUM_SFT_STEPS + 2
    assert (submitted.folder / "model" / "model.safetensors").is_file()


def test_the_actors_of_a_job_have_readable_names(head, submitted):
    reply = head.get("/api/v0/actors?limit=1000")
    names = {actor["name"] for actor in reply["data"]["result"]["result"]}
    assert {"coordinator", "rollout-0", "learner-0", "learner-1"} <= names


def test_two_learner_ranks_give_the_metrics_of_one(reference, submitted):
    for line in submitted.numbers[: NUM_SFT_STEPS + 1]:
        one = reference.numbers[line["step"]]
        assert one.keys() == line.keys()
        for key in line.keys() - {"stage", "learner/rollout_logprob_gap_mean", "learner/rollout_logprob_gap_max"}:
            assert line[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), (line["step"], key)


def test_a_phase_where_every_answer_is_wrong_ends_and_says_so(submitted):
    assert [stage["end_reason"] for stage in submitted.summary["stages"]] == ["steps", "steps", "fruitless"]
    assert "note: stage long trained on nothing in 1 of 1 steps" in submitted.output
    assert submitted.metrics[-1]["rollout/groups_trained"] == 0
    assert len(submitted.events("sync")) == 2, "no new weights without training"
