"""Rollout settings that make no sense are refused where they are written."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from actors.config import EngineConfig, RolloutConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_actors", 0),
        ("group_size", 1),
        ("temperature", 0),
        ("temperature", float("nan")),
        ("top_p", 1.1),
        ("top_p", 0),
        ("max_response_tokens", 0),
        ("deadline_s", 0),
        ("max_groups_in_flight", 16),
        ("tempertaure", 1),
    ],
)
def test_a_rollout_setting_without_sense_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        RolloutConfig.model_validate({key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dtype", "fp16"),
        ("tensor_parallel_size", 0),
        ("gpu_memory_utilization", 1.5),
        ("cpu_kv_cache_bytes", 0),
        ("max_num_seqs", 0),
    ],
)
def test_an_engine_setting_without_sense_is_refused(key, value):
    with pytest.raises(ValidationError, match=key):
        EngineConfig.model_validate({key: value})


def test_settings_cannot_be_changed_afterwards():
    with pytest.raises(ValidationError, match="frozen"):
        RolloutConfig().group_size = 4  # pyright: ignore[reportAttributeAccessIssue]
