"""A run whose parts contradict each other is refused as a whole."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from cluster.recipe.config import RunConfig

PHASES = [
    {"name": "short", "max_prompt_tokens": 100, "end": {"type": "steps", "steps": 1}},
    {"name": "long", "max_prompt_tokens": 300, "end": {"type": "steps", "steps": 1}},
]


def config(**overrides):
    values = {"name": "x", "model": {"path": "a/b"}, "data": {"train": "t.parquet"}, "sft": {"epochs": 0}}
    return RunConfig.model_validate({**values, "curriculum": {"phases": PHASES}, **overrides})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"sft": {"epochs": 1}}, r"sft.epochs > 0 but data.sft is empty; give data.sft a file or set sft.epochs=0"),
        ({"curriculum": {"phases": []}}, r"nothing to train; set one of them"),
        (
            {"groups_per_batch": 10, "learner": {"mini_batches": 4}},
            r"groups_per_batch=10 is not a multiple of learner.mini_batches=4",
        ),
        (
            {"rollout": {"max_policy_lag": 2}},
            r"rollout.max_policy_lag=2 but learner.importance is empty: .* set learner.importance=\{cap: 2.0\}",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(ValidationError, match=message):
        config(**overrides)


def test_the_longest_sequence_is_that_of_the_longest_phase_and_response():
    long_answers = [PHASES[0], {**PHASES[1], "max_response_tokens": 70}]
    assert config(rollout={"max_response_tokens": 50}).max_model_len == 350
    assert config(rollout={"max_response_tokens": 50}, curriculum={"phases": long_answers}).max_model_len == 370


def test_a_limit_that_every_phase_replaces_does_not_count():
    phases = [{**phase, "max_response_tokens": 20} for phase in PHASES]
    assert config(rollout={"max_response_tokens": 50}, curriculum={"phases": phases}).max_model_len == 320


@pytest.mark.parametrize(
    ("device", "sync", "transport"),
    [
        ("cpu", {}, "host_memory"),
        ("cuda", {}, "collective"),
        ("cuda", {"delta": True}, "host_memory"),
        ("cpu", {"transport": "collective"}, "collective"),
        ("cuda", {"transport": "host_memory"}, "host_memory"),
    ],
)
def test_weights_are_broadcast_on_gpus_unless_the_recipe_says_otherwise_or_wants_deltas(device, sync, transport):
    assert config(device=device, rollout={"sync": sync}).weight_transport == transport


def test_deltas_cannot_be_broadcast():
    with pytest.raises(ValidationError, match=r"rollout\.sync\.delta=true but rollout\.sync\.transport=collective"):
        config(rollout={"sync": {"transport": "collective", "delta": True}})


def keys(annotation, prefix=""):
    """Dotted keys below a type; members of a union are merged, indices of lists are left out."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return {key for name, field in fields for key in keys(field.annotation, f"{prefix}{name}.") or {prefix + name}}
    return {key for argument in get_args(annotation) for key in keys(argument, prefix)}


def test_a_recipe_has_at_most_144_keys():
    assert len(keys(RunConfig)) <= 144


@pytest.mark.parametrize(
    ("storage", "line"),
    [
        ("bucket/runs", "no URL of a folder in a storage; give one such as s3://BUCKET/FOLDER"),
        ("s3://", "no URL of a folder in a storage"),
        ("simplecache::s3://bucket/runs", "no URL of a folder in a storage"),
        ("memory://runs", "is seen by one process alone; give another storage"),
        ("s3://key:secret@bucket/runs", r"checkpoint\.storage: holds a user or a secret; leave it to the environment"),
    ],
)
def test_a_storage_is_the_url_of_a_folder_that_all_processes_see(storage, line):
    with pytest.raises(ValidationError, match=line) as refused:
        config(checkpoint={"storage": storage})
    assert "secret@" not in str(refused.value.errors()[0]["msg"])


def test_a_storage_may_end_with_a_slash():
    assert config(checkpoint={"storage": "s3://bucket/runs/"}).checkpoint.storage == "s3://bucket/runs"


def test_an_actor_is_named_before_it_is_killed():
    with pytest.raises(ValidationError, match=r"cluster.standstill_s=30 is not above cluster.notice_s=30; raise it"):
        config(cluster={"standstill_s": 30})
    defaults = config()
    assert defaults.cluster.standstill_s < defaults.rollout.sync.timeout_s
