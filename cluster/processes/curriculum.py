"""The coordinator actor, as the loop calls it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from cluster.roles import Curriculum
from curriculum.joined_calls import JoinedCalls


def ray_curriculum(coordinator: Any) -> Curriculum:
    """Return an object whose methods call the coordinator actor's methods of the same name.

    Except `keep`: every group calls it separately, and calls that come together are sent as one `keep_all`.
    """
    names = [name for name in vars(Curriculum) if not name.startswith("_") and name != "keep"]
    methods = {name: getattr(coordinator, name).remote for name in names}
    keep = JoinedCalls[tuple[int, str], bool](lambda answered: coordinator.keep_all.remote(answered))
    return cast("Curriculum", SimpleNamespace(**methods, keep=keep))
