"""What a resumed run may change: every key has a class, free changes go on, others are refused or asked for."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import get_args, get_origin

import pytest
from pydantic import BaseModel

from cluster.recipe.changes import KEY_CLASSES, KeyClass, allowed_keys, changes, check_changes, class_of
from cluster.recipe.config import RunConfig
from cluster.recipe.load import dump_recipe, load_recipe
from cluster.run.folder import RunFolder
from cluster.run.opening import check_demonstrations, open_run, record_changes
from curriculum.errors import UserError

ROOT = Path(__file__).parents[3]
LOCAL = ROOT / "recipes" / "local.yaml"
PRODUCT = ("curriculum", "actors", "reward", "learner", "evaluation", "cluster")


def keys(annotation, prefix=""):
    """Every key below a type as `KEY_CLASSES` writes it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        parts = [
            keys(field.annotation, f"{prefix}.{name}".lstrip(".")) for name, field in annotation.model_fields.items()
        ]
        return {key for part in parts for key in part}
    if get_origin(annotation) is tuple and any(map(_has_model, get_args(annotation))):
        prefix += "[]"
    inner = [argument for argument in get_args(annotation) if _has_model(argument)]
    own = {prefix} if not inner or str in get_args(annotation) else set()
    return own | {key for argument in inner for key in keys(argument, prefix)}


def _has_model(annotation):
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_has_model(argument) for argument in get_args(annotation))


def test_every_key_of_a_recipe_has_a_class():
    found = keys(RunConfig) - {"reward.judge.type.type"}
    assert {"curriculum.phases[].end.steps", "data.train", "data.train.lengths", "learner.betas"} <= found
    assert found - KEY_CLASSES.keys() == set(), "say in cluster/recipe/changes.py what a resumed run may do with it"
    assert KEY_CLASSES.keys() - found == set(), "no key of the recipe"


@pytest.mark.parametrize(
    ("key", "key_class"),
    [
        ("learner.num_ranks", KeyClass.FREE),
        ("curriculum.phases.3.end.steps", KeyClass.ON_REQUEST),
        ("curriculum.phases.0.max_prompt_tokens", KeyClass.NEVER),
        ("reward.kinds.docmath", KeyClass.ON_REQUEST),
        ("learner.importance", KeyClass.ON_REQUEST),
        ("reward.overlong", KeyClass.ON_REQUEST),
        ("curriculum.phases", KeyClass.NEVER),
        ("data.train", KeyClass.FREE),
    ],
)
def test_a_key_has_its_class_and_a_section_the_strictest_of_its_keys(key, key_class):
    assert class_of(key) is key_class


def check(*overrides, allowed=(), base=()):
    check_changes(load_recipe(LOCAL, base), load_recipe(LOCAL, [*base, *overrides]), allowed=allowed, run="runs/a")


def refusal(*overrides, **options):
    with pytest.raises(UserError) as error:
        check(*overrides, **options)
    return str(error.value)


FREE = (
    "cluster.dashboard_port=9000", "cluster.address=local", "cluster.startup_timeout_s=1800",
    "cluster.max_actor_restarts=9", "cluster.object_store_bytes=100000000", "tracking.wandb=false",
    "checkpoint.every_steps=7", "checkpoint.keep.last=9", "rollout.num_actors=2", "learner.num_ranks=2",
    "rollout.engine.cpu_kv_cache_bytes=99999999", "rollout.engine.max_num_seqs=8", "rollout.sync.timeout_s=9",
    "rollout.sync.transport=collective", "learner.max_tokens_per_microbatch=4000", "learner.slices=1",
    "learner.gradient_checkpointing=true", "learner.offload=[optimizer]", "reward.judge.timeout_s=9",
    "reward.judge.max_concurrency=3", "reward.max_outage_s=5", "model.path=/elsewhere/base", "name=other",
    "curriculum.after_fruitless=stop",
)  # fmt: skip


@pytest.mark.parametrize("override", FREE)
def test_what_does_not_change_the_numbers_may_change(override):
    check(override)


def test_the_endpoint_of_a_judge_may_move():
    base = ["reward.judge={type: openai, base_url: 'http://a:1/v1', model: m}"]
    check("reward.judge.base_url=http://b:2/v1", "reward.judge.api_key_env=VLLM_API_KEY", "reward.judge.timeout_s=5",
          base=base)  # fmt: skip
    assert "reward.judge.model: m -> n" in refusal("reward.judge.model=n", base=base)


def test_a_data_file_may_move_but_not_become_generated():
    check("data.train=/b/train.jsonl", base=["data.train=/a/train.jsonl"])
    assert "data.train.items_per_length: none -> 1500" in refusal(
        "data.train={type: generated, items_per_length: 1500, lengths: [[96, 192]]}", base=["data.train=/a/train.jsonl"]
    )


ON_REQUEST = (
    ("learner.learning_rate=1e-3", "learner.learning_rate", "0.0005 -> 0.001"),
    ("curriculum.phases.1.end.steps=200", "curriculum.phases.1.end.steps", "100 -> 200"),
    ("rollout.max_response_tokens=40", "rollout.max_response_tokens", "32 -> 40"),
    ("groups_per_batch=8", "groups_per_batch", "16 -> 8"),
    ("learner.algorithm={type: grpo}", "learner.algorithm.type", "dapo -> grpo"),
    ("device=cuda", "device", "cpu -> cuda"),
)


@pytest.mark.parametrize(("override", "key", "values"), ON_REQUEST)
def test_what_changes_the_numbers_is_asked_for(override, key, values):
    fault = refusal(override)
    assert fault.startswith("--resume runs/a: the recipe differs from that of the run in ")
    assert f"{key}: {values}" in fault
    assert f"--allow-change {key}" in fault
    assert "\n" not in fault


@pytest.mark.parametrize(("override", "key", "_"), ON_REQUEST)
def test_what_is_asked_for_may_change(override, key, _):
    check(override, allowed=[key.partition(".")[0]])
    if key != "learner.algorithm.type":  # the clips differ as well
        check(override, allowed=[key])


def test_a_section_allows_its_keys_and_no_others():
    check("curriculum.phases.0.end.steps=9", allowed=["curriculum.phases.0"])
    assert "phases.1.end.steps" in refusal("curriculum.phases.1.end.steps=9", allowed=["curriculum.phases.0"])
    assert "learner.learning_rate" in refusal("learner.learning_rate=1e-3", allowed=["learner.learning"])


@pytest.mark.parametrize(
    "override",
    [
        "seed=9",
        "learner.dtype=bf16",
        "curriculum.phases.0.max_prompt_tokens=200",
        "data.over_long=truncate_middle",
        "data.prompt=keep",
        'data.markers.context=["<doc>", "</doc>"]',
    ],
)
def test_what_checkpoints_do_not_fit_is_never_allowed(override):
    key = override.partition("=")[0]
    fault = refusal(override, allowed=[key])
    assert f"cannot change within a run: {key}: " in fault
    assert "start a new run with --run-dir" in fault


def test_a_phase_cannot_be_added():
    phases = load_recipe(LOCAL).model_dump(mode="json")["curriculum"]["phases"]
    more = [*phases, {"name": "3", "max_prompt_tokens": 1200, "end": {"type": "steps", "steps": 1}}]
    assert "curriculum.phases.2.max_prompt_tokens: none -> 1200" in refusal(f"curriculum.phases={json.dumps(more)}")


def test_a_reference_policy_that_was_not_kept_cannot_be_asked_for():
    fault = refusal("learner.kl_coefficient=0.1", allowed=["learner"])
    assert "the run has kept no reference policy" in fault
    check("learner.kl_coefficient=0.2", allowed=["learner"], base=["learner.kl_coefficient=0.1"])


def test_a_mistyped_key_of_allow_change_is_named():
    assert "--allow-change learner.lr: no key of the recipe" in refusal(allowed=["learner.lr"])
    check(allowed=["data.train", "model.path", "learner", "curriculum.phases.1.end"])


def test_a_whole_other_recipe_is_still_one_short_line():
    with pytest.raises(UserError) as error:
        check_changes(
            load_recipe(LOCAL), load_recipe(ROOT / "recipes" / "qwenlong_l1_14b_dapo.yaml"), allowed=(), run="a"
        )
    assert all(len(line) < 900 for line in error.value.lines)
    assert re.search(r" and \d+ more; this changes its numbers", str(error.value))


def test_a_section_allows_the_content_of_its_files():
    assert allowed_keys(["data", "learner"]) == {"data", "data.train", "data.sft", "data.evaluation", "learner"}
    assert allowed_keys([]) == frozenset()


def test_every_kind_of_refusal_has_its_line():
    lines = refusal("seed=9", "learner.learning_rate=1.0", allowed=["x"]).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["--allow-change x", "--resume runs/a", "--resume runs/a"]


# ---- the record


@pytest.fixture
def run(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    folder.recipe.write_text(dump_recipe(load_recipe(LOCAL)), encoding="utf-8")
    return folder


def test_overrides_of_a_resume_change_the_recipe_of_the_run(run):
    config, folder = open_run(["checkpoint.keep.last=9"], run_dir=None, resume=run.path)
    assert folder == run.path
    assert [str(change) for change in changes(load_recipe(LOCAL), config)] == ["checkpoint.keep.last: 2 -> 9"]


def test_what_a_resume_changes_is_printed_and_recorded_and_written(run):
    said = []
    config = load_recipe(LOCAL, ["checkpoint.keep.last=9", "learner.learning_rate=1e-3"])
    record_changes(run, config, said.append)
    assert said == ["changed: checkpoint.keep.last: 2 -> 9", "changed: learner.learning_rate: 0.0005 -> 0.001"]
    (event,) = map(json.loads, (run.path / "events.jsonl").read_text().splitlines())
    assert event["event"] == "recipe_changed"
    assert event["changes"] == {"checkpoint.keep.last": [2, 9], "learner.learning_rate": [0.0005, 0.001]}
    assert load_recipe(run.recipe) == config


def test_a_resume_without_changes_writes_nothing(run):
    before = run.recipe.stat().st_mtime_ns
    record_changes(run, load_recipe(LOCAL), lambda _: pytest.fail("nothing changed"))
    assert run.recipe.stat().st_mtime_ns == before
    assert not (run.path / "events.jsonl").exists()


def test_a_smaller_budget_that_refuses_more_demonstrations_is_told(run):
    check_demonstrations(run, 0, allowed=())
    run.rejects("data.sft").write_text("{}\n{}\n", encoding="utf-8")
    check_demonstrations(run, 2, allowed=())
    with pytest.raises(UserError, match=r"3 rows of data.sft are refused instead of 2.*--allow-change data.sft"):
        check_demonstrations(run, 3, allowed=["learner"])
    check_demonstrations(run, 3, allowed=["data.sft"])


# ---- messages that send a person to --resume


def texts(path):
    """Line and text of every string in a file but docstrings; what is formatted in is `…`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    inside |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) not in inside and isinstance(node, ast.JoinedStr | ast.Constant):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield node.lineno, "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def messages():
    """Every text in the product that sends a person to a resume."""
    for folder in PRODUCT:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for line, text in texts(path):
                if re.search(r"--resume|resume (with|from)", text):
                    yield pytest.param(text, id=f"{path.relative_to(ROOT)}:{line}")


@pytest.mark.parametrize("text", messages())
def test_a_message_that_says_change_a_key_then_resume_names_one_that_may_change(text):
    named = re.findall(r"(?:raise|lower|set|change|choose) (?:another )?((?:\w+\.)+\w+)", text)
    refused = [key for key in named if class_of(key) is not KeyClass.FREE and f"--allow-change {key}" not in text]
    assert not refused, text


CHANGE_THEN_RESUME = (
    ("learner/engine.py", "lower …, then go on with --resume and --allow-change …", ["learner.learning_rate=1e-6"],
     ["learner.learning_rate"]),
    ("learner/engine.py", "lower …, then go on with --resume and --allow-change …", ["sft.learning_rate=1e-6"],
     ["sft.learning_rate"]),
    ("learner/zero3/shard.py", "resume with the model it came from", ["model.path=recipes/assets/local_base"], []),
    ("cluster/loop.py", "bring the judge back", ["reward.max_outage_s=9000", "reward.judge.timeout_s=900"], []),
    ("cluster/run/stages.py", "go on with the next phase", ["curriculum.after_fruitless=stop"], []),
    ("cluster/processes/launch.py", "cluster.startup_timeout_s", ["cluster.startup_timeout_s=5000"], []),
    ("cluster/processes/heartbeats.py", "then go on with --resume", ["cluster.object_store_bytes=400000000"], []),
    ("cluster/run/recovery.py", "then go on with --resume", ["cluster.max_run_restarts=9"], []),
    ("cluster/run/guards.py", "learner.learning_rate, data.train or guards",
     ["guards=[{metric: reward/mean, above: 2}]"], ["guards"]),
    ("learner/weights/finite.py", "lower learner.learning_rate", ["learner.learning_rate=1e-7"],
     ["learner.learning_rate"]),
    ("cluster/processes/supervision.py", "cluster.max_actor_restarts", ["cluster.max_actor_restarts=20"], []),
    ("cluster/processes/capacity.py", "lower the counts", ["learner.num_ranks=2", "rollout.num_actors=2"], []),
    ("cluster/processes/placement.py", "raise it", ["cluster.startup_timeout_s=5000"], []),
    ("cluster/processes/rollouts.py", "go on with --resume", ["rollout.engine.cpu_kv_cache_bytes=999999999"], []),
    ("cluster/processes/ray_session.py", "choose another or remove the key", ["cluster.dashboard_port=9999"], []),
    ("cluster/weights/sync.py", "rollout.sync.timeout_s", ["rollout.sync.timeout_s=1200"], []),
)  # fmt: skip
"""(file, words of its message, what the message asks for as overrides, keys that it tells to allow)."""


@pytest.mark.parametrize(("file", "words", "overrides", "allowed"), CHANGE_THEN_RESUME)
def test_a_change_that_a_message_asks_for_is_accepted_at_the_resume(file, words, overrides, allowed, run):
    assert any(words in text for _, text in texts(ROOT / file)), "the message is another one now"
    config, _ = open_run(overrides, run_dir=None, resume=run.path)
    check_changes(load_recipe(run.recipe), config, allowed=allowed, run="a")
