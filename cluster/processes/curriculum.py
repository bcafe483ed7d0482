"""The coordinator actor, as the loop calls it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

from ray.exceptions import RayActorError

from cluster.roles import Curriculum
from cluster.run.recovery import CoordinatorLost
from curriculum.joined_calls import JoinedCalls


def ray_curriculum(coordinator: Any) -> Curriculum:
    """Return an object whose methods call the coordinator actor's methods of the same name.

    Except `keep`: every group calls it separately, and calls that come together are sent as one `keep_all`. Each of
    them raises `CoordinatorLost` when the actor is gone.
    """
    names = [name for name in vars(Curriculum) if not name.startswith("_") and name != "keep"]
    methods = {name: _method(coordinator, name) for name in names}
    keep = JoinedCalls[tuple[int, str], bool](_method(coordinator, "keep_all"))
    return cast("Curriculum", SimpleNamespace(**methods, keep=keep))


def released_by(coordinator: Any) -> Callable[[str], Awaitable[Any]]:
    """Return a function that gives back the leases of a holder, by its name."""
    return _method(coordinator, "release")


def _method(coordinator: Any, name: str) -> Callable[..., Awaitable[Any]]:
    """Return a function that calls a method at once, and whose result is awaited."""

    def call(*arguments: Any, **options: Any) -> Awaitable[Any]:
        return _reply(getattr(coordinator, name).remote(*arguments, **options), name)

    return call


async def _reply(reply: Awaitable[Any], name: str) -> Any:
    try:
        return await reply
    except RayActorError as error:
        raise CoordinatorLost(f"the coordinator died in {name} ({type(error).__name__})") from error
