"""The lease book: which groups are wanted, who works on which, and how each lease ended.

A lease is fixed when it is opened: id, task and attempt do not depend on who pulls it or when, so a lease that is
handed out a second time asks for exactly the same samples.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curriculum.task import TaskLease

MAX_DEATHS = 2
"""Deaths of a holder after which a lease that it held each time is suspected of having caused them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseCounts:
    """Totals over the run. At any time opened = reported + returned + open leases."""

    opened: int = 0
    leased: int = 0
    """Hand-outs; a lease that comes back is counted again when it goes out again."""
    reported: int = 0
    """Leases closed by an outcome."""
    returned: int = 0
    """Leases closed without one, because their phase was over."""
    late: int = 0
    """Those of `reported` whose holder had lost the lease before: the first result wins, whoever brings it."""
    released: int = 0
    """Hand-outs that ended with the death of the holder, or with a resume."""
    expired: int = 0
    """Hand-outs that ended by timeout."""
    requeued: int = 0
    """Hand-outs that the holder gave back unanswered."""
    duplicate: int = 0
    """Ignored reports of a lease that was closed already."""
    unknown: int = 0
    """Ignored reports of a lease that was never handed out, or that names another task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hold:
    holder: str
    deadline_s: float


class LeaseBook:
    """Open leases in order of their ids.

    No call looks at every lease, except `release`, `open_ids`, `open_tasks` and the state.

    A lease whose holders die is suspected: its task may be what kills them. From its second death on it is handed out
    only to a holder that holds nothing else, and that holder gets no other. A holder that dies with a single suspect
    has shown which one it is; the lease is condemned and not handed out again.

    Args:
        timeout_s: Time after which a held lease is handed out again.
        now: Monotonic clock in seconds.
    """

    def __init__(self, *, timeout_s: float, now: Callable[[], float]) -> None:
        self._timeout_s = timeout_s
        self._now = now
        self._open: dict[int, TaskLease] = {}
        self._num_open: Counter[tuple[int, bool]] = Counter()
        """Open leases by (phase, replayed)."""
        self._waiting: list[int] = []  # heap; ids that were answered meanwhile are skipped
        self._holds: OrderedDict[int, _Hold] = OrderedDict()
        """By lease id. In the order of the hand-outs, which is that of the deadlines: every hold lasts equally long."""
        self._kept: set[int] = set()
        """Leases whose group is answered and waits to be trained on; neither a timeout nor a death ends that."""
        self._handed_out: set[int] = set()
        self._deaths: Counter[int] = Counter()
        """Deaths of holders by the leases that they held."""
        self._condemned: set[int] = set()
        self._attempts: dict[str, int] = {}
        self._next_id = 0
        self._counts = dict.fromkeys(LeaseCounts.__slots__, 0)

    @property
    def counts(self) -> LeaseCounts:
        """Totals so far."""
        return LeaseCounts(**self._counts)

    @property
    def open_ids(self) -> tuple[int, ...]:
        """Ids of the open leases, oldest first."""
        return tuple(self._open)

    @property
    def open_tasks(self) -> set[str]:
        """Ids of the tasks with an open lease."""
        return {lease.task_id for lease in self._open.values()}

    @property
    def last_id(self) -> int:
        """Id of the newest lease of the run; -1 before the first."""
        return self._next_id - 1

    def num_open(self, *, phase: int, replayed: bool) -> int:
        """Open leases of one phase, fresh or replayed."""
        return self._num_open[phase, replayed]

    @property
    def num_held(self) -> int:
        """Open leases that a holder works on, or whose group waits to be trained on."""
        return len(self._holds) + len(self._kept)

    def open(self, task_id: str, *, phase: int, replayed: bool) -> TaskLease:
        """Append a lease for one more group of a task."""
        attempt = self._attempts.get(task_id, 0)
        lease = TaskLease(lease_id=self._next_id, task_id=task_id, attempt=attempt, replayed=replayed, phase=phase)
        self._attempts[task_id] = attempt + 1
        self._next_id += 1
        self._open[lease.lease_id] = lease
        self._num_open[phase, replayed] += 1
        heapq.heappush(self._waiting, lease.lease_id)
        self._counts["opened"] += 1
        return lease

    def hand_out(self, holder: str) -> TaskLease | None:
        """Give `holder` the waiting lease with the lowest id (so the ones that came back go first), or None."""
        now_s = self._now()
        self._expire(now_s)
        while self._waiting:
            lease_id = self._waiting[0]
            if self._is_waiting(lease_id) and not self._may_take(holder, lease_id):
                return None
            heapq.heappop(self._waiting)
            if self._is_waiting(lease_id):
                self._holds[lease_id] = _Hold(holder=holder, deadline_s=now_s + self._timeout_s)
                self._handed_out.add(lease_id)
                self._counts["leased"] += 1
                return self._open[lease_id]
        return None

    def release(self, holder: str) -> tuple[TaskLease, ...]:
        """Take all leases of a holder that died back; return the one that is condemned, if one is.

        It stays open until its outcome is reported.
        """
        lost = [lease_id for lease_id, hold in self._holds.items() if hold.holder == holder]
        for lease_id in lost:
            self._deaths[lease_id] += 1
            self._take_back(lease_id)
        self._counts["released"] += len(lost)
        suspects = [lease_id for lease_id in lost if self._is_suspect(lease_id)]
        if len(suspects) != 1:
            return ()
        self._condemned.add(suspects[0])
        return (self._open[suspects[0]],)

    def requeue(self, lease_id: int, holder: str) -> bool:
        """Take one lease back that `holder` could not answer; False if `holder` no longer has it.

        It is handed out again before newer ones and asks for the same samples.
        """
        hold = self._holds.get(lease_id)
        if hold is None or hold.holder != holder:
            return False
        lease = self._open[lease_id]
        self._open[lease_id] = replace(lease, num_requeues=lease.num_requeues + 1)
        self._take_back(lease_id)
        self._counts["requeued"] += 1
        return True

    def keep(self, lease_id: int, task_id: str) -> bool:
        """Keep an answered lease open, without a deadline, until `close`; return whether it is kept.

        It is not, and is counted, where there is no such lease or another answer to it is kept already. A kept lease
        is saved as an open one: after a resume it is answered again.
        """
        if lease_id in self._kept:
            self._counts["duplicate"] += 1
            return False
        if self._answered(lease_id, task_id) is None:
            return False
        self._counts["late"] += self._holds.pop(lease_id, None) is None
        self._kept.add(lease_id)
        return True

    def close(self, lease_id: int, task_id: str) -> TaskLease | None:
        """Close a lease by its outcome; None (and a count) if there is no such lease to close.

        A holder that lost its lease may still report it while it is open: lease, task and attempt are the same for
        every holder, so the first result counts and the second one is the duplicate.
        """
        lease = self._answered(lease_id, task_id)
        if lease is not None:
            self._counts["reported"] += 1
            self._counts["late"] += not self._is_taken(lease_id)
            self._forget(lease_id)
        return lease

    def withdraw(self, lease_ids: Sequence[int]) -> int:
        """Close leases without an outcome, held or not; return how many of them were open."""
        found = [lease_id for lease_id in lease_ids if lease_id in self._open]
        for lease_id in found:
            self._forget(lease_id)
        self._counts["returned"] += len(found)
        return len(found)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values; held leases are saved as open ones."""
        return {
            "next_id": self._next_id,
            "attempts": dict(self._attempts),
            "open": [
                {"lease_id": x.lease_id, "task_id": x.task_id, "attempt": x.attempt, "replayed": x.replayed,
                 "phase": x.phase}
                for x in self._open.values()
            ],
            "num_held": self.num_held,
            "counts": dict(self._counts),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state`; every open lease waits again, in the order of the ids."""
        leases = [TaskLease(**fields) for fields in state["open"]]
        self._open = {lease.lease_id: lease for lease in leases}
        self._num_open = Counter((lease.phase, lease.replayed) for lease in leases)
        self._waiting = sorted(self._open)
        self._holds, self._kept, self._handed_out = OrderedDict(), set(), set()
        self._deaths, self._condemned = Counter(), set()
        self._attempts = dict(state["attempts"])
        self._next_id = state["next_id"]
        self._counts = dict(state["counts"])
        self._counts["released"] += state["num_held"]

    def _is_waiting(self, lease_id: int) -> bool:
        return lease_id in self._open and not self._is_taken(lease_id) and lease_id not in self._condemned

    def _is_suspect(self, lease_id: int) -> bool:
        return self._deaths.get(lease_id, 0) >= MAX_DEATHS

    def _may_take(self, holder: str, lease_id: int) -> bool:
        """Return whether the lease, or one that `holder` holds already, need not be alone with it."""
        if not self._deaths:
            return True
        held = [other for other, hold in self._holds.items() if hold.holder == holder]
        return not held or not any(map(self._is_suspect, [lease_id, *held]))

    def _is_taken(self, lease_id: int) -> bool:
        return lease_id in self._holds or lease_id in self._kept

    def _answered(self, lease_id: int, task_id: str) -> TaskLease | None:
        """Return the open lease that an answer belongs to; None (and a count) without one."""
        if lease_id not in self._open:
            known = 0 <= lease_id < self._next_id
            self._counts["duplicate" if known else "unknown"] += 1
            return None
        if lease_id not in self._handed_out or self._open[lease_id].task_id != task_id:
            self._counts["unknown"] += 1
            return None
        return self._open[lease_id]

    def _forget(self, lease_id: int) -> None:
        lease = self._open.pop(lease_id)
        self._num_open[lease.phase, lease.replayed] -= 1
        self._holds.pop(lease_id, None)
        self._kept.discard(lease_id)
        self._handed_out.discard(lease_id)
        self._condemned.discard(lease_id)
        self._deaths.pop(lease_id, None)

    def _expire(self, now_s: float) -> None:
        while self._holds:
            lease_id, hold = next(iter(self._holds.items()))
            if hold.deadline_s > now_s:
                break
            self._take_back(lease_id)
            self._counts["expired"] += 1

    def _take_back(self, lease_id: int) -> None:
        del self._holds[lease_id]
        heapq.heappush(self._waiting, lease_id)
