"""The buffer between rollouts and learner: which groups are in flight, which wait, and which may leave.

The bound on the policy lag is kept by arithmetic, not by discarding groups. Let B be the groups of a batch, k the
largest lag and v the number of weight updates that the learner has made; a step trains one batch and makes v + 1. The
batch of a step leaves in slices, one after the other. A group that is admitted while the engines sample under e may be
trained on at e + k at the latest. The engines are at e = v, or at e = v - 1 while the last update is being sent.

* Admission: let T be the groups of the running batch that have left (B from its end until the next one begins, however
  many it had). Groups in flight, groups that wait and T never exceed (k + 1 - (v - e)) B after an admission.
* Departure: a slice is the oldest groups that wait. With R = B - T groups still to leave behind it, it leaves only if
  those that stay can still leave in time: for every j = 0 ... k at most R + j B of them may be as old as v - k + j.

Both together suffice. Claim: while T groups of the batch of v have left, at most (j + 1) B - T of the others are as old
as v - k + j, for every j. Departures keep that, by their condition. So does admission under e, which adds groups as old
as v - k + j for j >= k - (v - e) only, and leaves at most (k + 1 - (v - e)) B - T of any age. When v grows, T = B turns
into 0 and j into j - 1: the claim holds again; for j = k by admission. For j = 0: no group that is due now stays behind
the last slice. And waiting always ends: once all groups in flight have arrived, the oldest may leave, since either all
groups of an age leave with the slice, or their number falls by its size. Groups without a signal only make room; a
batch ends short only when nothing is in flight.

With k = 0 this is: admit B, wait for all, train. That case needs no overlap and has a shorter program, `on_policy.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from math import ceil

from cluster.batches.ledger import GroupOutcome
from cluster.group import ScoredGroup
from curriculum.errors import RunFailed

BATCHES_AHEAD = 2
"""Batches' worth of good groups to have in flight or waiting: the one that leaves next and the one behind it. A larger
bound than that serves slow answers and oversampling; it does not make every group older."""
WINDOW_BATCHES = 4
"""The acceptance rate is that of so many batches' worth of the latest groups."""


class LagBoundError(RunFailed):
    """A group would be trained on although its weights are older, or newer, than the bound allows."""


def policy_lag(group: ScoredGroup, version: int) -> int:
    """Weight updates between the oldest weights that sampled a group and version `version`."""
    return version - group.meta.policy_version


def without_signal(group: ScoredGroup) -> GroupOutcome:
    """Return the outcome of a group whose rewards give nothing to train on."""
    return GroupOutcome.UNKNOWN if len(group.known_accuracies) < 2 else GroupOutcome.NO_VARIANCE


class AcceptanceRate:
    """Share of the latest groups that had a signal; optimistic while few are known."""

    def __init__(self, window: int) -> None:
        self._latest: deque[bool] = deque(maxlen=window)

    def observe(self, accepted: bool) -> None:
        """Count one scored group."""
        self._latest.append(accepted)

    @property
    def value(self) -> float:
        """In (0, 1]: one accepted group is added, which also keeps it above zero."""
        return (sum(self._latest) + 1) / (len(self._latest) + 1)


class LagBuffer:
    """Groups in flight and groups that wait, at one policy version.

    Args:
        batch_size: B, groups of a batch.
        max_policy_lag: k, at least 1.
    """

    def __init__(self, *, batch_size: int, max_policy_lag: int) -> None:
        self._batch_size = batch_size
        self._max_policy_lag = max_policy_lag
        self._version = 0
        self._engine_version = 0
        self._admitted: dict[int, int] = {}
        """Lease id -> version of the engines at admission, of the groups in flight."""
        self._waiting: dict[int, ScoredGroup] = {}
        self._num_taken = 0
        """T: groups of the running batch that have left."""
        self.acceptance = AcceptanceRate(WINDOW_BATCHES * batch_size)

    @property
    def num_in_flight(self) -> int:
        """Admitted groups that have not arrived."""
        return len(self._admitted)

    @property
    def num_waiting(self) -> int:
        """Groups with a signal that wait for a batch."""
        return len(self._waiting)

    @property
    def waiting_bytes(self) -> int:
        """What they take in the object store."""
        return sum(group.meta.num_bytes for group in self._waiting.values())

    def room(self, *, num_slots: int, remaining_steps: int | None) -> int:
        """Return how many groups may be admitted now.

        Args:
            num_slots: groups that the engines work on at a time; one that queued would only grow older.
            remaining_steps: steps of the phase that are left, the running one included; None if unknown.
        """
        batches = self._max_policy_lag + 1 - (self._version - self._engine_version)
        if remaining_steps is not None:
            batches = min(batches, remaining_steps)
        free = batches * self._batch_size - self._num_taken - self.num_waiting - self.num_in_flight
        missing = min(BATCHES_AHEAD, batches) * self._batch_size - self._num_taken - self.num_waiting
        useful = ceil(missing / self.acceptance.value) - self.num_in_flight
        return max(0, min(free, useful, num_slots - self.num_in_flight))

    def admit(self, lease_ids: Iterable[int]) -> None:
        """Record groups that are sampled from now on."""
        self._admitted.update(dict.fromkeys(lease_ids, self._engine_version))

    def arrive(self, group: ScoredGroup, *, trainable: bool) -> GroupOutcome | None:
        """Take a scored group; return its outcome if it is not to be trained on, else None.

        A group of weights that were replaced before it was admitted comes from an engine that missed an update (it
        restarted, say); it counts as too old, because the schedule did not count on its age.
        """
        admitted = self._admitted.pop(group.lease_id)
        self.acceptance.observe(trainable)
        if not trainable:
            return without_signal(group)
        if group.meta.policy_version < admitted:
            return GroupOutcome.TOO_OLD
        self._waiting[group.lease_id] = group
        return None

    def lose(self, lease_id: int) -> None:
        """Forget a group that will never arrive."""
        del self._admitted[lease_id]

    @property
    def num_missing(self) -> int:
        """Groups that the running batch still lacks."""
        return self._batch_size - self._num_taken

    def is_ready(self, num_groups: int) -> bool:
        """Return whether a slice of that size may leave."""
        return len(self._waiting) >= num_groups and self._may_leave(self._oldest(num_groups))

    def take(self, num_groups: int) -> list[ScoredGroup]:
        """Remove and return the oldest groups, at most `num_groups`, in the order of their leases, for the learner.

        Raises:
            LagBoundError: the slice would break the bound now, or make a group that stays behind break it later.
        """
        taken = self._oldest(num_groups)
        for group in taken:
            lag = policy_lag(group, self._version)
            if not 0 <= lag <= self._max_policy_lag:
                raise LagBoundError(
                    f"group of task {group.task_id}: policy_version={group.meta.policy_version}, but the learner "
                    f"is at {self._version} and rollout.max_policy_lag={self._max_policy_lag}; resume from the last "
                    "checkpoint"
                )
        if not self._may_leave(taken):
            raise LagBoundError(
                f"{len(taken)} groups may not leave at version {self._version}: {self.num_in_flight} in flight and "
                f"{self.num_waiting - len(taken)} waiting would grow too old; ask is_ready() first"
            )
        self._num_taken += len(taken)
        for group in taken:
            del self._waiting[group.lease_id]
        return sorted(taken, key=lambda group: group.lease_id)

    def close_batch(self) -> None:
        """End the running batch, whole or not: no more groups leave for it."""
        self._num_taken = self._batch_size

    def advance(self, version: int) -> None:
        """Note that the learner is at `version`, and begin the next batch."""
        self._version = version
        self._num_taken = 0

    def engines_at(self, version: int) -> None:
        """Note that groups admitted from now on are sampled under `version` or a later one."""
        self._engine_version = version

    def clear(self) -> list[int]:
        """Forget everything; return the leases whose groups were in flight or waiting."""
        left = [*self._admitted, *self._waiting]
        self._admitted, self._waiting = {}, {}
        return sorted(left)

    def _oldest(self, num_groups: int) -> list[ScoredGroup]:
        def age(group: ScoredGroup) -> tuple[int, int]:
            return group.meta.policy_version, group.lease_id

        return sorted(self._waiting.values(), key=age)[:num_groups]

    def _may_leave(self, leaving: list[ScoredGroup]) -> bool:
        """Return the condition of departure: of those that stay, at most R + j B are as old as v - k + j."""
        leases = {group.lease_id for group in leaving}
        waiting = [group.meta.policy_version for lease, group in self._waiting.items() if lease not in leases]
        staying = [*self._admitted.values(), *waiting]
        left_to_leave = self.num_missing - len(leaving)
        return all(
            sum(version <= self._version - self._max_policy_lag + j for version in staying)
            <= left_to_leave + j * self._batch_size
            for j in range(self._max_policy_lag + 1)
        )
