import pytest
import torch

from curriculum.errors import RunFailed
from learner.config import LearnerConfig
from learner.out_of_memory import next_smaller, tells_out_of_memory


class Rank:
    _config = LearnerConfig()

    def __repr__(self):
        return "learner-3"

    @tells_out_of_memory
    def update(self, error):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError("no room"),
    ],
)
def test_a_rank_without_memory_is_named_with_the_next_smaller_setting(error):
    with pytest.raises(
        RunFailed, match=r"^learner-3: memory ran out in update \(.*\); set learner.gradient_checkpoint"
    ):
        Rank().update(error)


def test_any_other_error_of_a_rank_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shapes"):
        Rank().update(RuntimeError("shapes differ"))


@pytest.mark.parametrize(
    ("settings", "smaller"),
    [
        ({}, "set learner.gradient_checkpointing=true"),
        ({"gradient_checkpointing": True}, "set learner.offload=[optimizer]"),
        ({"gradient_checkpointing": True, "offload": ("optimizer",)}, "set learner.offload=[optimizer, parameters]"),
        (
            {"gradient_checkpointing": True, "offload": ("optimizer", "parameters", "activations")},
            "lower learner.max_tokens_per_microbatch=80000 to 40000, but not below one prompt with its response",
        ),
    ],
)
def test_settings_get_smaller_in_the_order_of_what_they_cost(settings, smaller):
    assert next_smaller(LearnerConfig(**settings)).startswith(smaller)
