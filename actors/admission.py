"""How many groups an engine works on: as many as its KV cache is expected to hold.

A group takes its prompt once and the expected length of each of its answers. The length of a prompt is known with its
lease; the length of answers is estimated by a running mean of recent ones. The mean starts at half of the limit: with
the whole limit most of the cache would stay empty, since few answers reach it; with the lengths of the first answers
alone it would be far too small, since the shortest ones end first. The answers of a group decode in step, so an answer
that still runs is longer than those of its group that ended, and counts at least as much as the longest of them. If
answers turn out longer than expected, vLLM preempts a request and computes it again: slower, never wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from curriculum.errors import UserError

PRIOR_PROMPTS, PRIOR_RESPONSES = 1, 8
"""Weight of the initial value of a running mean, in observations."""
WINDOW = 256
"""Observations over which a running mean is taken."""


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
        """Update the mean with one observation."""
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
        """Free the share of one answer, which ended by itself after so many tokens."""
        self._longest_tokens = max(self._longest_tokens, num_tokens)
        self.num_unfinished -= 1
        self._admission.observe_response(num_tokens)


class KVAdmission:
    """Admission control of one engine.

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
        """Take the limits of the engine and the run.

        Args:
            capacity_tokens: tokens of the KV cache.
            block_tokens: tokens of one block; a sequence takes whole blocks.
            max_sequences: answers in one engine step; more would wait inside the engine.
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
        """Return how many groups of `group_size` answers the engine is expected to hold at a time; at least one."""
        response = self.expected_response_tokens(self._max_response_tokens)
        by_cache = self._capacity_tokens // self.group_tokens(round(self._prompt.value), group_size, response)
        return max(1, min(by_cache, self._max_sequences // group_size))

    @asynccontextmanager
    async def turn(self, group_size: int, max_response_tokens: int) -> AsyncGenerator[None]:
        """Wait until a group of the expected length has room; callers enter one after another, in order of arrival.

        Take a lease inside, and `reserve` for its prompt before the turn ends.
        """
        async with self._turn:
            await self._room(round(self._prompt.value), group_size, max_response_tokens)
            yield

    async def reserve(self, prompt_tokens: int, group_size: int, max_response_tokens: int) -> Reservation:
        """Wait until this group has room, or the engine is idle, and take its share; `release` ends it.

        Args:
            prompt_tokens: tokens of the prompt.
            group_size: answers of the group.
            max_response_tokens: longest answer.

        Raises:
            UserError: the prompt and one answer of the longest length do not fit into the cache.
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
        """Free the share of a group that has ended, with or without an error."""
        self._running.discard(reservation)
        self._changed.set()

    def observe_response(self, num_tokens: int) -> None:
        """Update the expected length with that of an answer that ended by itself."""
        self._response.observe(num_tokens)
        self._changed.set()

    def expected_response_tokens(self, max_response_tokens: int) -> int:
        """Return the expected tokens of an answer under this limit."""
        return min(max(1, round(self._response.value)), max_response_tokens)

    def group_tokens(self, prompt_tokens: int, num_answers: int, response_tokens: int) -> int:
        """Return the tokens, in whole blocks, of a prompt and its answers.

        Each answer has its own copy of the last, incomplete block of the prompt.
        """
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
