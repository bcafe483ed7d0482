"""Simulated engines and a simulated learner; nothing sleeps.

The engines are one pool of sequence slots, first come, first served: every answer takes the next free slot for as many
token times as it has tokens, after its group's prompt has been prefilled once. Decoding takes equally long whatever the
load, as it does while it is bound by memory. The learner takes a time per token, a prompt counting once per group.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from benchmarks.length_trace import Trace, TracedGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What the devices can do."""

    num_sequences: int
    """Answers that all engines together decode at a time."""
    decode_s: float
    """Time of one token of one answer."""
    prefill_s: float
    """Time per prompt token, before the answers of the group begin."""
    train_s: float
    """Time of the whole learner per token."""
    sync_s: float
    """Time that the engines stand still for new weights."""

    def train_seconds(self, groups: Iterable[TracedGroup]) -> float:
        """One step on these groups."""
        return self.train_s * sum(group.prompt_tokens + sum(group.response_tokens) for group in groups)

    def engine_seconds(self, groups: Iterable[TracedGroup]) -> float:
        """Time that the engines need for these groups if no slot is ever idle."""
        slots_s = sum(g.prompt_tokens * self.prefill_s + sum(g.response_tokens) * self.decode_s for g in groups)
        return slots_s / self.num_sequences

    def balanced(self, trace: Trace) -> Self:
        """A learner as fast as the engines, which also sample what has no signal and is not trained on."""
        trained = [group for group in trace if group.has_signal]
        return replace(self, train_s=self.engine_seconds(trace) / replace(self, train_s=1.0).train_seconds(trained))

    def collocated(self) -> Self:
        """The same devices, half of them engines before, now all engines and all learner in turn."""
        return replace(self, num_sequences=2 * self.num_sequences, train_s=self.train_s / 2)

    def ceiling(self, trace: Trace) -> float:
        """Trained groups per second if neither side ever waited for the other or for a sync."""
        trained = [group for group in trace if group.has_signal]
        return len(trained) / max(self.engine_seconds(trace), self.train_seconds(trained))


class EnginePool:
    """The sequence slots of all engines and the groups under way in them."""

    def __init__(self, speeds: Speeds) -> None:
        self._speeds = speeds
        self._free_s = [0.0] * speeds.num_sequences  # heap
        self._under_way: list[tuple[float, int]] = []
        """Heap of (end, key) of the groups."""

    def submit(self, key: int, group: TracedGroup, now_s: float) -> None:
        """Queues the answers of a group; `now_s` never goes back."""
        prefilled_s, end_s = 0.0, 0.0
        for index, tokens in enumerate(group.response_tokens):
            start_s = max(now_s, prefilled_s, heapq.heappop(self._free_s))
            if index == 0:
                start_s = prefilled_s = start_s + group.prompt_tokens * self._speeds.prefill_s
            answered_s = start_s + tokens * self._speeds.decode_s
            heapq.heappush(self._free_s, answered_s)
            end_s = max(end_s, answered_s)
        heapq.heappush(self._under_way, (end_s, key))

    @property
    def next_end_s(self) -> float:
        """When the next group is complete; infinite without one."""
        return self._under_way[0][0] if self._under_way else math.inf

    def pop(self) -> int:
        """Key of the group that is complete next."""
        return heapq.heappop(self._under_way)[1]

    def pause(self, now_s: float, seconds: float) -> None:
        """All slots stand still from `now_s` on; every group that is complete by then has been popped."""
        self._free_s = [max(free_s, now_s) + seconds for free_s in self._free_s]  # order, and so the heap, is kept
        self._under_way = [(end_s + seconds, key) for end_s, key in self._under_way]

    def drain(self, groups: Sequence[TracedGroup], now_s: float) -> float:
        """Samples these groups and nothing else; returns when the last one is complete."""
        for key, group in enumerate(groups):
            self.submit(key, group, now_s)
        while self._under_way:
            now_s = self.next_end_s
            self.pop()
        return now_s
