"""Actors that may die: the first call that fails waits for the restart, brings the actor up to date, and reports it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayTaskError
from ray.util.metrics import Gauge

from cluster.run.metrics import METRICS
from cluster.run.waits import Waits
from curriculum.errors import RunFailed

POLL_S = 1.0


class ActorLost(RunFailed):
    """An actor is gone for good: its failure budget is used up, or it did not come back in time."""


class SupervisedActor:
    """One actor with a failure budget (`max_restarts` of Ray) and what must happen after each restart.

    Consumes: nothing.  Waits for: Ray's restart, at most `startup_timeout_s`, and for `after_restart`, which has bounds
    of its own: new weights may have to wait for a learner in the middle of an update.  Unblocked by: `ready` of the
    actor, then the end of `after_restart`.
    """

    def __init__(
        self,
        name: str,
        handle: Any,
        *,
        startup_timeout_s: float,
        on_fault: Callable[..., None],
        before_restart: Callable[[str], Awaitable[Any]] | None = None,
        after_restart: Callable[[str, Any], Awaitable[None]] | None = None,
        waits: Waits | None = None,
    ) -> None:
        """Take an actor that has a method `ready`.

        Args:
            name: shown in events and errors.
            handle: Ray actor handle.
            startup_timeout_s: longest wait for `ready` after a death.
            on_fault: called at every death and return.
            before_restart: runs once per death, with the name; gives back what the actor held.
            after_restart: runs once the actor is ready again, with name and handle; brings it up to date, or raises.
                Its time does not count towards `startup_timeout_s`.
            waits: is told of the wait for a restart.
        """
        self.name = name
        self.handle = handle
        self.lost = False
        self._startup_timeout_s = startup_timeout_s
        self._on_fault = on_fault
        self._before_restart = before_restart
        self._after_restart = after_restart
        self._waits = waits or Waits()
        self._incarnation = 0
        self._repairing = asyncio.Lock()

    async def call(self, invoke: Callable[[Any], Any], *, attempts: int = 3) -> Any:
        """Await `invoke(handle)`, an idempotent call, and repeat it after a restart.

        Raises:
            ActorLost: the actor is gone for good, or died in every attempt.
        """
        for _ in range(attempts):
            incarnation = self._incarnation
            try:
                return await invoke(self.handle)
            except RayActorError as error:
                if isinstance(error, RayTaskError):
                    raise  # the actor lives; another one that it called died
                await self.repair(incarnation, error)
        raise ActorLost(f"{self.name} died {attempts} times in the same call; read its log under the run's logs folder")

    @property
    def incarnation(self) -> int:
        """Number of repairs so far; note it before a call and hand it to `repair`."""
        return self._incarnation

    @property
    def is_repairing(self) -> bool:
        """True from a death that was noticed until the actor is up to date again."""
        return self._repairing.locked()

    async def repaired(self) -> None:
        """Wait until a repair has succeeded or failed; return at once if there is none."""
        async with self._repairing:
            return

    async def repair(self, incarnation: int, error: RayActorError) -> None:
        """Wait until the actor is back and up to date; callers that saw the same death share one repair.

        Raises:
            ActorLost: it does not come back.
        """
        async with self._repairing:
            if self.lost:
                raise ActorLost(f"{self.name} is gone")
            if incarnation != self._incarnation:
                return
            self._on_fault(actor=self.name, error=type(error).__name__, action="restarting")
            if self._before_restart:
                await self._before_restart(self.name)
            await self._wait_until_up_to_date()
            self._incarnation += 1
            self._on_fault(actor=self.name, action="back")

    async def _wait_until_up_to_date(self) -> None:
        """Wait until the actor is ready and up to date; one that dies again meanwhile is waited for again."""
        try:
            with self._waits.on(f"{self.name} to come back", is_bounded=True):
                async with asyncio.timeout(self._startup_timeout_s) as limit:
                    while not await self._is_up_to_date(limit):
                        await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            self._give_up()
            raise ActorLost(
                f"{self.name} did not come back within cluster.startup_timeout_s={self._startup_timeout_s:.0f}"
            ) from error
        except ActorDiedError as error:
            self._give_up()
            raise ActorLost(
                f"{self.name} died and its failure budget is used up (cluster.max_actor_restarts); "
                "read its log under the run's logs folder"
            ) from error

    async def _is_up_to_date(self, limit: asyncio.Timeout) -> bool:
        """Return whether the actor is ready and up to date; False if it is still down, or died again meanwhile."""
        try:
            await self.handle.ready.remote()
            if self._after_restart:
                with _paused(limit):
                    await self._after_restart(self.name, self.handle)
        except ActorUnavailableError:
            return False
        return True

    def _give_up(self) -> None:
        self.lost = True
        self._on_fault(actor=self.name, action="lost")


@contextlib.contextmanager
def _paused(limit: asyncio.Timeout) -> Generator[None]:
    """Stop the clock of a limit during a block."""
    clock, ends = asyncio.get_running_loop().time, limit.when()
    assert ends is not None, "only of a limit that has a clock"
    began = clock()
    limit.reschedule(None)
    try:
        yield
    finally:
        limit.reschedule(ends + clock() - began)


class RayGauges:
    """The metrics of the run as Ray gauges, which the dashboard's Prometheus scrapes.

    The members of a family `name/*` are one gauge `qwenlong_name_of`, with their names in the tag `part`.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Any] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Set a gauge `qwenlong_<key>` for every metric, and the step itself."""
        self._gauge("step").set(float(step))
        for key, value in metrics.items():
            if key in METRICS:
                self._gauge(key).set(value)
            else:
                family, _, part = key.rpartition("/")
                self._gauge(f"{family}_of", "part").set(value, tags={"part": part})

    def _gauge(self, key: str, *tags: str) -> Any:
        if key not in self._gauges:
            name = "qwenlong_" + key.replace("/", "_")
            self._gauges[key] = Gauge(name, description=key, tag_keys=("run", *tags))
            self._gauges[key].set_default_tags({"run": self._run})
        return self._gauges[key]
