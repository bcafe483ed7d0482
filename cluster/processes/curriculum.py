"""The coordinator actor, as the loop reaches it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from cluster.roles import Curriculum
from curriculum.joined_calls import JoinedCalls


def ray_curriculum(coordinator: Any) -> Curriculum:
    """Return what calls the coordinator actor: every method of `Curriculum` is the actor's method of the same name.

    Only `keep`, which every group calls on its own, joins its calls in the actor's `keep_all`.
    """
    names = [name for name in vars(Curriculum) if not name.startswith("_") and name != "keep"]
    methods = {name: getattr(coordinator, name).remote for name in names}
    keep = JoinedCalls[tuple[int, str], bool](lambda answered: coordinator.keep_all.remote(answered))
    return cast("Curriculum", SimpleNamespace(**methods, keep=keep))
