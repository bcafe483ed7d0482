"""The interface of everything that answers prompts: the engine in this process, Ray replicas, and endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from curriculum.errors import RunFailed
from evaluation.prompts import Prompt


class GeneratorDown(RunFailed):
    """No prompt gets an answer any more; what is stored stays, and the same command continues later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled response."""

    text: str
    """The response, thinking included."""
    num_tokens: int
    is_truncated: bool
    """Whether it ran into the limit of output tokens."""


class Generator(Protocol):
    """Anything that answers prompts."""

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        """Sample one answer.

        Raises:
            NoReplyError: this prompt gets no answer.
            GeneratorDown: no prompt gets an answer any more.
        """
        ...

    async def close(self) -> None:
        """Release processes and connections."""
        ...
