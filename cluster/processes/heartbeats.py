"""The driver's watch over all actors and over Ray itself: who stands still is named, and killed if it does not go on.

A killed actor is a death like any other: Ray restarts engines and judges within their budget, and a run that lost its
learner or its coordinator is launched again (`cluster/run/recovery.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from cluster.processes.diagnosis import Diagnosis
from cluster.processes.nodes import (
    end_at_once,
    head_address,
    kill_here,
    kill_on_node,
    raylet_is_stopped,
    raylet_listens,
)
from cluster.recipe.config import ClusterConfig
from cluster.run.recovery import LearnerLost, RayLost, RestartFromCheckpoint
from cluster.run.waits import Sound, Voice, Waits
from curriculum.errors import RunFailed, UserError
from curriculum.heartbeat import IDLE, START, Heartbeat

_T = TypeVar("_T")
_ray: Any = ray  # where its declarations have no complete types

LONGEST_POLL_S = 5.0
HEAD_S = 40.0
"""Longest silence of Ray's head; after 60 s Ray itself ends every process, this one with a crash report."""
BLOCKED_S = 8.0
"""Longest time that the loop may take to end when Ray is gone."""
END_S, END_WITHOUT_RAY_S = 10.0, 3.0
"""Longest wait for the loop to end after the watch has given it up, and the same when Ray is gone."""
ASIDE_S = 1.0
"""How much longer than a round of questions a failure waits for the death that it may follow from."""
COORDINATOR, LEARNER = "coordinator", "learner-"
"""Name of the coordinator, under which the rollout actors find it, and beginning of the names of the ranks."""
WITH_A_MODEL_FOLDER = frozenset({"start_stage", "save", "load", "export"})
"""Work of a rank that is silent while it reads or writes whole models."""


class WatchedActor:
    """One actor, as its heartbeats show it."""

    def __init__(self, name: str, ask: Callable[[], Any], config: ClusterConfig, now: float) -> None:
        """Take its name, what asks it for a `Heartbeat`, and the bounds."""
        self.name = name
        self.beat: Heartbeat | None = None
        """Its last answer; None while it starts, or starts again."""
        self.question: Any = None
        self.voice = Voice(config.notice_s)
        self._ask = ask
        self._config = config
        self._since = now
        """When the open question was asked, or the last answer came."""

    def ask(self, now: float) -> Any:
        """Return the open question, a new one if the last was answered."""
        if self.question is None:
            self.question, self._since = self._ask(), now
        return self.question

    def answer(self, beat: Heartbeat, now: float) -> None:
        """Take an answer."""
        self.question, self.beat, self._since = None, beat, now

    def go_down(self, now: float) -> None:
        """Note that its process is gone; the next answer is that of another one."""
        self.question, self.beat, self._since = None, None, now
        self.voice = Voice(self._config.notice_s)

    def silent_s(self, now: float) -> float:
        """Seconds that the open question is old; 0 without one, and while the actor starts."""
        return 0.0 if self.question is None or self.beat is None else now - self._since

    def still_s(self, now: float) -> float:
        """Seconds without an answer or progress; 0 while it starts, which has a bound of its own."""
        if self.beat is None or self.beat.doing == START:
            return 0.0
        return max(self.silent_s(now), self.beat.still_s)

    def moves(self, now: float) -> bool:
        """Return whether it gets on, or does what has a longer bound, so that those who wait for it do not give up."""
        if self.beat is None or self.beat.doing in WITH_A_MODEL_FOLDER:
            return True
        return self.beat.doing != IDLE and self.still_s(now) < self._config.notice_s

    def complaint(self, now: float) -> str:
        """Say what is missing and since when."""
        doing = "" if self.beat is None or self.beat.doing == IDLE else f" in {self.beat.doing}"
        is_silent = self.beat is None or self.silent_s(now) >= self.beat.still_s
        what = "answer" if is_silent else "progress"
        return f"{self.name}: no {what}{doing} for {self.still_s(now):.0f} s"

    def stands_still(self, now: float) -> bool:
        """Return whether it must be killed."""
        works_on_folder = self.beat is not None and self.beat.doing in WITH_A_MODEL_FOLDER
        longest_s = self._config.startup_timeout_s if works_on_folder else 0.0
        return self.still_s(now) >= max(self._config.standstill_s, longest_s)


class Watch:
    """A thread that asks every actor for its heartbeat, speaks of those that stand still, and kills them in the end.

    Consumes: heartbeats.  Waits for: answers, at most `LONGEST_POLL_S`, whatever the loop does.  Unblocked by: them.
    """

    def __init__(
        self,
        config: ClusterConfig,
        waits: Waits,
        *,
        say: Callable[[str], None],
        note: Callable[..., None],
        on_fault: Callable[..., None],
        diagnosis: Diagnosis,
        kill: Callable[[str, tuple[int, ...]], None] = kill_on_node,
        node_lives: Callable[[], bool] = raylet_listens,
        node_is_stopped: Callable[[], bool] = raylet_is_stopped,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the bounds and what is told.

        Args:
            config: notice, standstill, start.
            waits: what the loop waits for.
            say: prints one line.
            note: records the event `standstill` or `wait`.
            on_fault: is told of every actor that is killed.
            diagnosis: is written before an actor is killed.
            kill: kills processes of a node.
            node_lives: tells whether Ray's process of this node is there.
            node_is_stopped: tells whether it is frozen.
            now: clock (seconds).
        """
        self._kill_on_node = kill
        self._config = config
        self.waits = waits
        self._say = say
        self._note = note
        self._on_fault = on_fault
        self.diagnosis = diagnosis
        self._now = now
        self._poll_s = min(LONGEST_POLL_S, config.notice_s / 4)
        self._actors: dict[str, WatchedActor] = {}
        self._node_lives, self._node_is_stopped = node_lives, node_is_stopped
        self._head_voice = Voice(min(config.notice_s, HEAD_S / 2))
        self._node_voice = Voice(min(config.notice_s, HEAD_S / 2))
        self._head_answered = self._node_moved = self._moved = now()
        self._ended = threading.Event()
        self._lost: asyncio.Future[RunFailed] | None = None
        self._gone: RayLost | None = None
        self.head_is_lost = False
        """Whether Ray's head or its process of this node is gone, so that no call to it may be made."""

    def add(self, name: str, ask: Callable[[], Any]) -> None:
        """Watch an actor from now on; `ask` returns the reference of a `Heartbeat`."""
        self._actors[name] = WatchedActor(name, ask, self._config, self._now())

    def forget_all(self) -> list[WatchedActor]:
        """Watch none of the actors any more; return them."""
        actors, self._actors = list(self._actors.values()), {}
        return actors

    @contextlib.contextmanager
    def watching(self) -> Generator[None]:
        """Watch during the block, in an event loop."""
        loop = asyncio.get_running_loop()
        self._lost = loop.create_future()
        self._loop = loop
        targets = (self._look_after_actors, self._look_after_head)
        threads = [threading.Thread(target=target, name=target.__name__, daemon=True) for target in targets]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(timeout=1.0 if self.head_is_lost else self._poll_s)

    async def guard(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await `work`; give it up when the watch finds that it cannot go on.

        Raises:
            RestartFromCheckpoint: a learner rank died, or all stand still.
            RayLost: Ray is gone.
        """
        assert self._lost is not None, "only while watching"
        if self._lost.done() and not self.head_is_lost:
            self._lost = self._loop.create_future()
        task = asyncio.ensure_future(work)
        try:
            self.require_ray()
            await asyncio.wait({task, self._lost}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                await self._blame_a_death(task, self._lost)
                return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task}, timeout=END_WITHOUT_RAY_S if self.head_is_lost else END_S)
        raise self._lost.result()

    async def _blame_a_death(self, failed: asyncio.Future[Any], lost: asyncio.Future[RunFailed]) -> None:
        """Raise the death that the watch hears of in its next round, if work failed that may have failed of it."""
        if failed.cancelled() or not isinstance(failure := failed.exception(), RunFailed):
            return
        if not isinstance(failure, RestartFromCheckpoint | RayLost):
            await asyncio.wait({lost}, timeout=self._poll_s + ASIDE_S)
            if lost.done():
                raise lost.result() from failure

    # ---- in the threads

    def _look_after_actors(self) -> None:
        while not self._ended.wait(self._poll_s / 2):
            actors = list(self._actors.values())
            with contextlib.suppress(RayError):
                self._listen(actors)
            with contextlib.suppress(UserError, OSError):  # a full disk, which the loop meets as well
                self.judge(actors)
            if self._gone is not None:
                self.end_if_blocked(actors, self._gone)
                return

    def end_if_blocked(self, actors: list[WatchedActor], gone: RayLost) -> None:
        """End this process if the loop does not: it waits in a call of Ray, which Ray would end with a crash report."""
        if not self._ended.wait(BLOCKED_S):
            kill_here(actors)
            end_at_once(f"error: {gone}")

    def _look_after_head(self) -> None:
        own = ray.get_runtime_context().get_node_id()
        while not self._ended.wait(self._poll_s):
            try:
                nodes = _ray.nodes()
            except Exception:
                continue  # it has not answered
            if any(node["NodeID"] == own and node["Alive"] for node in nodes):
                self._head_answered = self._now()

    def _listen(self, actors: list[WatchedActor]) -> None:
        """Ask, and take the answers that come soon."""
        questions = {actor.ask(self._now()): actor for actor in actors}
        if not questions:
            return
        answered, _ = _ray.wait(list(questions), num_returns=len(questions), timeout=self._poll_s / 2)
        for question in answered:
            actor = questions[question]
            try:
                actor.answer(ray.get(question, timeout=1), self._now())
            except RayActorError as error:
                self._down(actor, error)
            except GetTimeoutError:
                continue

    def judge(self, actors: list[WatchedActor]) -> None:
        """Speak of what stands still, and kill what has done so for too long."""
        now = self._now()
        if any(actor.moves(now) or actor.still_s(now) >= self._config.notice_s for actor in actors):
            self._moved = now  # one that stands still is killed, and whoever waits for it hears of its death
        for actor in actors:
            self._speak_of(actor, now)
        for actor in self._to_kill(actors, now):
            self._kill(actor, actor.complaint(now))
        self._speak_of_waits(now)
        self._speak_of_ray(now)

    def _speak_of(self, actor: WatchedActor, now: float) -> None:
        longest_s = actor.voice.longest_s
        match actor.voice.hear(actor.still_s(now)):
            case Sound.STILL:
                waits = self.waits.now()
                reason = f"; the run waits for {waits[-1].what}" if waits else ""
                self._tell(actor.name, actor.complaint(now) + reason, actor.still_s(now))
            case Sound.ON:
                self._tell(actor.name, f"{actor.name}: goes on after {longest_s:.0f} s or more", 0.0)
            case None:
                pass

    def _to_kill(self, actors: list[WatchedActor], now: float) -> list[WatchedActor]:
        """Return those that stand still; ranks that wait for a silent one are not to blame."""
        still = [actor for actor in actors if actor.stands_still(now)]
        ranks = [actor for actor in actors if actor.name.startswith(LEARNER)]
        silent = [rank for rank in ranks if rank.beat is None or rank.silent_s(now) >= self._config.notice_s]
        return [actor for actor in still if not silent or actor in silent or actor not in ranks]

    def _speak_of_waits(self, now: float) -> None:
        for wait, still_s in self.waits.overdue():
            self._tell("driver", f"waiting for {wait.what} for {still_s:.0f} s", still_s)
        for wait in self.waits.now():
            still_s = now - max(wait.since, self._moved)
            if not wait.is_bounded and still_s >= self._config.standstill_s:
                complaint = f"nothing moves while the run waits for {wait.what}, for {still_s:.0f} s"
                self.diagnosis.write(complaint, list(self._actors.values()))
                self._moved = now
                self._give_up(RestartFromCheckpoint(complaint))

    def _speak_of_ray(self, now: float) -> None:
        if not self._node_is_stopped():
            self._node_moved = now
        self._speak_of_part(_head, self._head_voice, now - self._head_answered)
        self._speak_of_part(_own_node, self._node_voice, now - self._node_moved)

    def _speak_of_part(self, part: Callable[[], str], voice: Voice, silent_s: float) -> None:
        if voice.hear(silent_s) is Sound.STILL:
            self._tell("ray", f"{part()}: no answer for {silent_s:.0f} s", silent_s)
        if silent_s >= HEAD_S:
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - silent_s))
            self._lose_ray(f"{part()} has not answered since {since}")

    def check_node(self) -> None:
        """Find out whether Ray's process of this node has ended; any call that needs it would end this process."""
        if not self._node_lives():
            self._lose_ray("Ray's process of this node (raylet) has ended")

    def require_ray(self) -> None:
        """Check that Ray can be called.

        Raises:
            RayLost: it cannot.
        """
        self.check_node()
        if self._gone is not None:
            raise self._gone

    def _lose_ray(self, reason: str) -> None:
        if self.head_is_lost:
            return
        self.head_is_lost = True
        self.diagnosis.write(reason, list(self._actors.values()), ray_answers=False)
        self._gone = RayLost(f"{reason}; start Ray again if it was joined, then go on with --resume")
        self._give_up(self._gone)

    def _down(self, actor: WatchedActor, error: RayActorError) -> None:
        self.check_node()
        was_up = actor.beat is not None and self._actors.get(actor.name) is actor
        actor.go_down(self._now())
        if was_up and actor.name.startswith(LEARNER):
            self._give_up(LearnerLost(f"{actor.name} died ({type(error).__name__})"))
        elif was_up and actor.name == COORDINATOR:
            self._tell(COORDINATOR, f"{COORDINATOR}: its process is gone", 0.0)

    def _kill(self, actor: WatchedActor, complaint: str) -> None:
        beat = actor.beat
        if beat is None or self._actors.get(actor.name) is not actor:
            return  # it was ended meanwhile
        others = [other for other in self._actors.values() if other is not actor]
        self.diagnosis.write(complaint, [actor, *others])
        self._on_fault(actor=actor.name, error="Standstill", doing=beat.doing, action="killing it", why=complaint)
        self._kill_on_node(beat.node_id, (beat.pid, *beat.children))
        actor.go_down(self._now())

    def _tell(self, who: str, line: str, still_s: float) -> None:
        self._say(line)
        self._note(who=who, line=line, seconds=round(still_s, 1))

    def _give_up(self, reason: RunFailed) -> None:
        lost = self._lost

        def set_result() -> None:
            if lost is not None and not lost.done():
                lost.set_result(reason)

        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(set_result)


def _head() -> str:
    return f"Ray's head at {head_address()}"


def _own_node() -> str:
    return "Ray's process of this node (raylet)"
