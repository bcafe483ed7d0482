"""The coordinator: opens batches, hands out leases, records outcomes, and moves from phase to phase.

It is a plain object; `coordinator_actor.py` puts it into a process of its own. One step of the driver is

    open_batch(n)                  the n leases of the step are fixed here: fresh tasks and replayed ones
    lease(holder) ... report(...)  holders pull in any order; outcomes refresh the difficulty table
    open_batch(m)                  replacements for groups without variance, as often as needed
    finish_step(step, ...)         the phase clock ticks; at the end of a phase the next one begins
    record_measured(...)           where difficulty is measured: before the first phase, or at the beginning of another

or, where groups are sampled while the learner trains, `open_stream(n)` at any time, `keep_all` for answered leases
until it is trained on, and `withdraw` for what is left at the end of a phase.

A task is not drawn twice into one batch while others are left: it is taken while one of its leases is open, and until
the end of the step in which one was opened. Which task a lease carries depends on the seed and on what was reported
before `open_batch`, never on the order in which holders pull or report in between.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from curriculum.config import CurriculumConfig
from curriculum.difficulty import DifficultyTable
from curriculum.errors import RunFailed, UserError, one_line
from curriculum.leases import LeaseBook, LeaseCounts
from curriculum.phases import PhaseClock
from curriculum.pool import open_pool, tasks_to_measure
from curriculum.sampler import FreshTasks, spread_slots
from curriculum.step_counts import StepCounts, mean
from curriculum.task import TaskEntry, TaskLease, TaskOutcome
from curriculum.task_set import by_source, check_measured, check_state, check_tasks, fingerprint
from curriculum.transition import CurriculumReport, EndReason, PhaseState, Transition

STATE_FORMAT = 3
LEASE_TIMEOUT_S = 3600.0
"""A lease that is not reported back within this time is given out again."""


class Coordinator:
    """State of the curriculum, and the decision what to train on next.

    Args:
        tasks: An entry for every task of the run; ids are unique and every phase has at least one.
        config: Phases and replay.
        seed: Seed of all orders and draws; >= 0.
        now: Monotonic clock in seconds; only lease timeouts look at it.

    Raises:
        ValueError: No phases, a phase without tasks, a task outside the phases, or ids that repeat.
    """

    def __init__(
        self,
        *,
        tasks: Sequence[TaskEntry],
        config: CurriculumConfig,
        seed: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        check_tasks(tasks, config)
        self._config = config
        self._seed = seed
        self._tasks = {task.task_id: task for task in tasks}
        self._fingerprint = fingerprint(tasks, config, seed)
        self._replay = config.retrospective.model_dump(mode="json") if config.retrospective else {}
        self._phase_task_ids = [
            [task.task_id for task in tasks if task.phase == phase] for phase in range(len(config.phases))
        ]
        self._book = LeaseBook(timeout_s=LEASE_TIMEOUT_S, now=now)
        self._difficulty = DifficultyTable()
        self._quarantined: set[str] = set()
        self._taken: set[str] = set()
        """Tasks that are in the running batch, or in flight."""
        self._finished = False
        self._enter(0)

    # ---- called by the driver

    def open_batch(self, num_tasks: int) -> tuple[int, ...]:
        """Open `num_tasks` more leases for the current step; return their ids.

        The first call of a step fixes its batch size: up to floor(max_share * num_tasks) slots are replayed, evenly
        spread. Later calls open replacements, which are always fresh, so that neither the batch nor its replacements
        exceed the share.

        Raises:
            ValueError: `num_tasks` is not positive, or the last phase is over.
            RunFailed: every task of the phase is in quarantine.
        """
        if self._finished:
            raise ValueError(f"open_batch({num_tasks}): the last phase is over; check phase_state().finished first")
        if num_tasks < 1:
            raise ValueError(f"open_batch({num_tasks}): ask for at least one task")
        replayed = self._pool.draw(self._num_replay_slots(num_tasks))
        slots = spread_slots(num_tasks, len(replayed))
        hard = iter(replayed)
        return tuple(
            self._open(next(hard), True) if marked else self._open(self._draw_fresh(), False) for marked in slots
        )

    def open_stream(self, num_tasks: int) -> tuple[int, ...]:
        """Open `num_tasks` more leases where groups are sampled without a break; return their ids.

        A lease is replayed as soon as the share allows it: of n leases opened since the last `finish_step`, at most
        floor(max_share * n) are.

        Raises:
            ValueError: `num_tasks` is not positive, or the last phase is over.
            RunFailed: every task of the phase is in quarantine.
        """
        if self._finished or num_tasks < 1:
            raise ValueError(
                f"open_stream({num_tasks}): ask for at least one task, while phase_state().finished is false"
            )
        return tuple(self._open_next() for _ in range(num_tasks))

    def finish_step(self, step: int, *, num_trained_groups: int) -> CurriculumReport:
        """Close the step: the phase clock ticks and, if the phase is over, the next one begins.

        Leases that are still open stay open and count for the step in which they are reported.

        Args:
            step: number of the step in the run.
            num_trained_groups: groups that the learner trained on; 0 makes the step fruitless.

        Raises:
            ValueError: The last phase is over.
        """
        if self._finished:
            raise ValueError(f"finish_step({step}): the last phase is over")
        fresh, replayed = self._counts.fresh, self._counts.replayed
        self._free_taken()
        reason = self._clock.advance(
            accuracy=fresh.accuracy if fresh.is_telling else None,
            num_trained_groups=num_trained_groups,
            epochs=self._epochs,
        )
        report = CurriculumReport(
            phase=self._phase,
            epoch=self._epochs,
            pool_size=self._pool.num_live,
            replayed_share=self._counts.replayed_share,
            fresh_accuracy=fresh.accuracy,
            fresh_prompt_tokens=fresh.mean_prompt_tokens,
            replayed_accuracy=replayed.accuracy,
            replayed_prompt_tokens=replayed.mean_prompt_tokens,
            num_quarantined=len(self._quarantined),
            num_tasks=len(self._tasks),
            transition=None,
        )
        self._counts = StepCounts()
        return replace(report, transition=self._transit(step, reason, fresh.accuracy)) if reason else report

    def phase_state(self) -> PhaseState:
        """Return the running phase and its progress."""
        return PhaseState(
            phase=self._phase,
            name=self._config.phases[self._phase].name,
            num_steps=self._clock.num_steps,
            finished=self._finished,
            to_measure=self._to_measure,
        )

    def record_measured(self, task_ids: Sequence[str], accuracies: Mapping[str, float]) -> None:
        """Record groups that were sampled to measure how hard tasks are; they count as the latest visits.

        Args:
            task_ids: tasks of `phase_state().to_measure` that were asked for.
            accuracies: mean accuracy of those of them whose group had enough known rewards.
        """
        retrospective = self._config.retrospective
        for task_id, accuracy in accuracies.items():
            self._difficulty.record(task_id, lease_id=self._book.last_id, accuracy=accuracy)
            if retrospective is not None and retrospective.difficulty == "base":
                self._difficulty.record_base(task_id, accuracy)
            self._pool.refresh(task_id)
        done = set(task_ids)
        self._to_measure = tuple(task_id for task_id in self._to_measure if task_id not in done)

    def open_leases(self) -> tuple[int, ...]:
        """Return the ids of the leases that are not closed, oldest first."""
        return self._book.open_ids

    def withdraw(self, lease_ids: Sequence[int]) -> int:
        """Close leases whose groups are no longer wanted, without an outcome; return how many were open."""
        num_open = self._book.withdraw(lease_ids)
        self._free_taken()
        return num_open

    def lease_counts(self) -> LeaseCounts:
        """Return the totals of the lease book over the run, resumes included."""
        return self._book.counts

    # ---- called by the holders of leases

    def lease(self, holder: str) -> TaskLease | None:
        """Hand the next open lease to `holder`; None while the quota of the step is used up.

        Leases that expired or were released go out first, unchanged.
        """
        return self._book.hand_out(holder)

    def lease_up_to(self, holder: str, count: int) -> tuple[TaskLease, ...]:
        """Hand out at most `count` leases; fewer where fewer are open."""
        return tuple(itertools.islice(iter(lambda: self.lease(holder), None), count))

    def release(self, holder: str) -> tuple[TaskLease, ...]:
        """Take back every lease of a holder that died; return the one that has killed it again, if one has.

        That one is not handed out any more; report it as quarantined.
        """
        return self._book.release(holder)

    def requeue(self, lease_id: int, holder: str) -> bool:
        """Take back a lease that its holder could not answer; it goes out again before newer ones."""
        return self._book.requeue(lease_id, holder)

    def keep_all(self, answered: Sequence[tuple[int, str]]) -> tuple[bool, ...]:
        """Keep (lease id, task id) pairs open, without a deadline, until their outcome is reported.

        Returns, for each pair, whether it is kept; a group whose lease is not is a duplicate (or was never leased) and
        must not be trained on.
        """
        return tuple(self._book.keep(lease_id, task_id) for lease_id, task_id in answered)

    def report(self, outcomes: Sequence[TaskOutcome]) -> tuple[int, ...]:
        """Record the outcomes of sampled groups; return the ids of the leases they closed.

        A group whose lease is not among the returned ids is a duplicate (or was never leased) and must not be
        trained on. The order of the outcomes does not matter.
        """
        return tuple(outcome.lease_id for outcome in outcomes if self._record(outcome))

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values; after `load_state_dict` the sequence of leases goes on unchanged.

        Taken between `finish_step` and `open_batch` it is complete. Taken within a step, the groups reported so far
        are the caller's to keep: their leases are closed and will not be handed out again.
        """
        return {
            "format": STATE_FORMAT,
            "fingerprint": self._fingerprint,
            "phase": self._phase,
            "finished": self._finished,
            "clock": self._clock.state_dict(),
            "sampler": self._fresh.state_dict(),
            "replay": self._replay,
            "pool": self._pool.state_dict(),
            "to_measure": list(self._to_measure),
            "difficulty": self._difficulty.state_dict(),
            "leases": self._book.state_dict(),
            "tally": self._counts.state_dict(),
            "quarantined": sorted(self._quarantined),
            "taken": sorted(self._taken),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state of the same tasks, phases and seed; leases that were held wait again, in order.

        Raises:
            UserError: The state belongs to other tasks, phases or seed, or to another format, or is none.
        """
        check_state(state, expected_format=STATE_FORMAT, expected_fingerprint=self._fingerprint)
        try:
            check_measured(state["replay"], self._replay)
            self._restore(state)
        except (LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise UserError(
                f"curriculum state: not what a coordinator writes ({one_line(error)}); resume from another checkpoint"
            ) from error

    # ---- inside

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._difficulty.load_state_dict(state["difficulty"])
        self._book.load_state_dict(state["leases"])
        self._quarantined, self._taken = set(state["quarantined"]), set(state["taken"])
        self._enter(state["phase"])
        self._finished = state["finished"]
        self._clock.load_state_dict(state["clock"])
        self._fresh.load_state_dict(state["sampler"])
        before, now = state["replay"], self._replay
        if before.get("selection") == now.get("selection"):  # another one begins in the middle of the phase
            self._pool.load_state_dict(state["pool"])
        same = before.get("difficulty") == now.get("difficulty")
        self._to_measure = tuple(state["to_measure"]) if same else ()
        self._counts.load_state_dict(state["tally"])

    def _num_replay_slots(self, num_tasks: int) -> int:
        retrospective = self._config.retrospective
        if retrospective is None or self._counts.num_groups > 0:
            return 0
        return int(retrospective.max_share * num_tasks + 1e-9)  # 0.29 * 100 is 28.999999999999996

    def _open_next(self) -> int:
        retrospective = self._config.retrospective
        share = retrospective.max_share if retrospective else 0.0
        due = int(share * (self._counts.num_groups + 1) + 1e-9) > self._counts.num_replayed
        replayed = self._pool.draw(1) if due else []
        return self._open(replayed[0] if replayed else self._draw_fresh(), replayed=bool(replayed))

    def _draw_fresh(self) -> str:
        """Draw a fresh task that is not taken, while there is one; those in quarantine count as drawn."""
        task_id = self._fresh.draw(taken=self._taken, gone=self._quarantined)
        if task_id is None:  # the batch is larger than the phase, and begins a second round
            self._taken.difference_update(self._phase_task_ids[self._phase])
            task_id = self._fresh.draw(taken=self._taken, gone=self._quarantined)
        if task_id is None:
            raise RunFailed(
                f"every task of {self._config.phases[self._phase].name} is in quarantine; quarantine.jsonl says why"
            )
        return task_id

    def _free_taken(self) -> None:
        """Free the tasks without an open lease, for the next batch."""
        before, self._taken = self._taken, self._book.open_tasks
        for task_id in before - self._taken:
            self._pool.refresh(task_id)

    def _open(self, task_id: str, replayed: bool) -> int:
        lease = self._book.open(task_id, phase=self._phase, replayed=replayed)
        self._taken.add(task_id)
        self._counts.add_group(replayed=replayed, prompt_tokens=self._tasks[task_id].prompt_tokens)
        return lease.lease_id

    def _record(self, outcome: TaskOutcome) -> bool:
        lease = self._book.close(outcome.lease_id, outcome.task_id)
        if lease is None:
            return False
        accuracy = outcome.mean_accuracy
        self._difficulty.record(outcome.task_id, lease_id=lease.lease_id, accuracy=accuracy)
        self._pool.refresh(outcome.task_id)
        if outcome.quarantined:
            self._quarantined.add(outcome.task_id)
            self._pool.remove(outcome.task_id)
        self._counts.add_outcome(replayed=lease.replayed, accuracy=accuracy)
        return True

    def _transit(self, step: int, reason: EndReason, accuracy: float | None) -> Transition:
        ended, num_steps, epochs = self._phase, self._clock.num_steps, self._epochs
        following = ended + 1 if ended + 1 < len(self._config.phases) else None
        if following is not None:
            self._enter(following)
        members = self._pool.live() if following is not None else []
        self._finished = following is None
        return Transition(
            step=step,
            from_phase=ended,
            to_phase=following,
            reason=reason,
            num_steps=num_steps,
            epochs=epochs,
            accuracy=accuracy,
            num_candidates=self._num_candidates if members else 0,
            pool_size=len(members),
            pool_accuracy=mean([self._difficulty.mean_accuracy(task_id) or 0.0 for task_id in members]),
            pool_prompt_tokens=mean([float(self._tasks[task_id].prompt_tokens) for task_id in members]),
        )

    def _enter(self, phase: int) -> None:
        self._phase = phase
        task_ids = self._phase_task_ids[phase]
        self._clock = PhaseClock(
            end=self._config.phases[phase].end,
            max_fruitless_steps=self._config.max_fruitless_steps,
            num_tasks=len(task_ids),
        )
        sources = by_source([self._tasks[task_id] for task_id in task_ids], self._config.balance)
        self._fresh = FreshTasks(sources, seed=self._seed, phase=phase)
        self._num_candidates, self._pool = open_pool(
            self._config.retrospective,
            self._healthy(self._phase_task_ids[:phase]),
            self._difficulty,
            is_taken=lambda task_id: task_id in self._taken,
            seed=self._seed,
            phase=phase,
        )
        measured = self._phase_task_ids[:phase] if phase else self._phase_task_ids[:-1]
        self._to_measure = tasks_to_measure(
            self._config.retrospective, self._healthy(measured), self._difficulty, is_first=phase == 0
        )
        self._counts = StepCounts()

    def _healthy(self, phases: Sequence[Sequence[str]]) -> list[str]:
        return [task_id for task_ids in phases for task_id in task_ids if task_id not in self._quarantined]

    @property
    def _epochs(self) -> float:
        """Passes over the tasks of the phase; tasks whose leases are still open do not count."""
        num_open = self._book.num_open(phase=self._phase, replayed=False)
        return (self._fresh.num_drawn - num_open) / len(self._phase_task_ids[self._phase])
