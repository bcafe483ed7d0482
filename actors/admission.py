"""How many groups an engine works on: as many as its KV cache is expected to hold.

A group takes its prompt once and the expected length of each of its answers. Prompts are known when the lease is there;
of answers only the recent past is known, so the expectation is a running mean. It begins with half of the limit: with
the whole limit most of the cache would stay empty, since few answers reach it; with the lengths of the first answers
alone it would be far too small, since the shortest ones end first. An answer that still runs has outlived all siblings
that ended (they decode in step), so it counts at least as much as the longest of them. If the expectation is exceeded
all the same, vLLM preempts a request and computes it again: slower, never wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from curriculum.errors import UserError

PRIOR_PROMPTS, PRIOR_RESPONSES = 1, 8
"""Weight of the first expectation, in observations."""
WINDOW = 256
"""Observations that the running means remember."""


class RunningMean:
    """Mean of recent observations with exponential forgetting.

    Args:
        prior: value before the first observation.
        weight: observations that the prior counts for.
    """

    def __init__(self, prior: float, weight: int) -> None:
        self.value = prior
        self._weight = weight

    def observe(self, value: float) -> None:
        """Takes one observation in."""
        self._weight = min(self._weight + 1, WINDOW)
        self.value += (value - self.value) / self._weight


class Reservation:
    """The share of the cache that one running group takes."""

    def __init__(self, admission: KVAdmission, prompt_tokens: int, num_answers: int, max_response_tokens: int) -> None:
        self._admission = admission
        self._prompt_tokens = prompt_tokens
        self._max_response_tokens = max_response_tokens
        self._longest_tokens = 0
        self.num_unfinished = num_answers

    @property
    def num_tokens(self) -> int:
        """Expected tokens in the cache, in whole blocks, until the next answer ends."""
        if not self.num_unfinished:
            return 0
        expected = max(self._admission.expected_response_tokens(self._max_response_tokens), self._longest_tokens)
        return self._admission.group_tokens(self._prompt_tokens, self.num_unfinished, expected)

    def finish_answer(self, num_tokens: int) -> None:
        """One answer ended by itself; its share is free."""
        self._longest_tokens = max(self._longest_tokens, num_tokens)
        self.num_unfinished -= 1
        self._admission.observe_response(num_tokens)


class KVAdmission:
    """Lets groups into one engine.

    Consumes: nothing.  Waits for: room in the KV cache, one group after another in the order of their turns.
    Unblocked by: every answer that ends.
    """

    def __init__(
        self,
        *,
        capacity_tokens: int,
        block_tokens: int,
        max_sequences: int,
        max_prompt_tokens: int,
        max_response_tokens: int,
    ) -> None:
        """Takes what the engine holds.

        Args:
            capacity_tokens: tokens of the KV cache.
            block_tokens: tokens of one block; a sequence takes whole blocks.
            max_sequences: answers in one engine step; more would queue inside the engine.
            max_prompt_tokens: longest prompt of the run.
            max_response_tokens: longest answer of the run.
        """
        self._capacity_tokens = capacity_tokens
        self._block_tokens = block_tokens
        self._max_sequences = max_sequences
        self._prompt = RunningMean(max_prompt_tokens / 2, PRIOR_PROMPTS)
        self._response = RunningMean(max_response_tokens / 2, PRIOR_RESPONSES)
        self._max_response_tokens = max_response_tokens
        self._running: set[Reservation] = set()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def num_running(self) -> int:
        """Groups that hold a reservation."""
        return len(self._running)

    @property
    def reserved_tokens(self) -> int:
        """Expected tokens of the running groups."""
        return sum(reservation.num_tokens for reservation in self._running)

    def num_slots(self, group_size: int) -> int:
        """Groups of `group_size` answers that the engine is expected to hold at a time; at least one."""
        response = self.expected_response_tokens(self._max_response_tokens)
        by_cache = self._capacity_tokens // self.group_tokens(round(self._prompt.value), group_size, response)
        return max(1, min(by_cache, self._max_sequences // group_size))

    @asynccontextmanager
    async def turn(self, group_size: int, max_response_tokens: int) -> AsyncIterator[None]:
        """First come, first served: entered when a group of the usual length has room and none waits before it.

        Take a lease inside, and `reserve` for its prompt before the turn ends.
        """
        async with self._turn:
            await self._room(round(self._prompt.value), group_size, max_response_tokens)
            yield

    async def reserve(self, prompt_tokens: int, group_size: int, max_response_tokens: int) -> Reservation:
        """Waits until this very group has room, or the engine is idle, and takes its share; `release` ends it.

        Raises:
            UserError: not even one answer of the limit fits into the cache beside the prompt.
        """
        if prompt_tokens + max_response_tokens > self._capacity_tokens:
            raise UserError(
                f"{prompt_tokens} prompt + {max_response_tokens} response tokens exceed the {self._capacity_tokens} "
                "tokens of the KV cache; raise rollout.engine.gpu_memory_utilization (on a CPU "
                "rollout.engine.cpu_kv_cache_bytes) or lower rollout.max_response_tokens"
            )
        await self._room(prompt_tokens, group_size, max_response_tokens)
        self._prompt.observe(prompt_tokens)
        reservation = Reservation(self, prompt_tokens, group_size, max_response_tokens)
        self._running.add(reservation)
        return reservation

    def release(self, reservation: Reservation) -> None:
        """The group is over, however it ended."""
        self._running.discard(reservation)
        self._changed.set()

    def observe_response(self, num_tokens: int) -> None:
        """An answer of so many tokens ended by itself."""
        self._response.observe(num_tokens)
        self._changed.set()

    def expected_response_tokens(self, max_response_tokens: int) -> int:
        """Expected length of an answer under this limit."""
        return min(max(1, round(self._response.value)), max_response_tokens)

    def group_tokens(self, prompt_tokens: int, num_answers: int, response_tokens: int) -> int:
        """Tokens, in whole blocks, of a prompt and its answers; each answer has its own copy of the prompt's last
        block."""
        block = self._block_tokens
        shared = prompt_tokens // block * block
        own = -(-(prompt_tokens - shared + response_tokens) // block) * block
        return shared + num_answers * own

    async def _room(self, prompt_tokens: int, group_size: int, max_response_tokens: int) -> None:
        def is_free() -> bool:
            response = self.expected_response_tokens(max_response_tokens)
            tokens = self.reserved_tokens + self.group_tokens(prompt_tokens, group_size, response)
            sequences = sum(reservation.num_unfinished for reservation in self._running) + group_size
            return not self._running or (tokens <= self._capacity_tokens and sequences <= self._max_sequences)

        while not is_free():
            self._changed.clear()
            await self._changed.wait()
