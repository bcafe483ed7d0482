"""What to change when the memory of a rank does not suffice."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from curriculum.errors import RunFailed, first_line, shortened
from learner.config import LearnerConfig

_torch: Any = torch  # its declarations lack some names
_P = ParamSpec("_P")
_R = TypeVar("_R")
_HOST = ("can't allocate memory", "not enough memory")
"""Parts of what torch says where the host has no memory left."""


def tells_out_of_memory(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap a method of a rank, an object with a `LearnerConfig` in `_config`.

    The wrapped method raises `RunFailed` with the next smaller setting where memory ran out.
    """

    @functools.wraps(method)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(*args, **kwargs)
        except (_torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_about_memory(error):
                raise
            rank: Any = args[0]
            what = shortened(first_line(error), 200)
            raise RunFailed(
                f"{rank!r}: memory ran out in {method.__name__} ({what}); {next_smaller(rank._config)}"
            ) from error

    return wrapped


def next_smaller(config: LearnerConfig) -> str:
    """Return the next setting that takes less memory, cheapest in time first."""
    missing = [part for part in ("optimizer", "parameters", "activations") if part not in config.offload]
    if not config.gradient_checkpointing:
        return "set learner.gradient_checkpointing=true"
    if missing:
        return f"set learner.offload=[{', '.join([*config.offload, missing[0]])}]"
    half = config.max_tokens_per_microbatch // 2
    return (
        f"lower learner.max_tokens_per_microbatch={config.max_tokens_per_microbatch} to {half}, but not below one "
        f"prompt with its response, or raise learner.num_ranks={config.num_ranks} and "
        f"sequence_parallel={config.sequence_parallel}"
    )


def _is_about_memory(error: BaseException) -> bool:
    is_one = isinstance(error, (_torch.OutOfMemoryError, MemoryError))
    return is_one or any(part in str(error) for part in _HOST)
