"""The interface of everything that answers prompts: the engine in this process, Ray replicas, and endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from evaluation.prompts import Prompt


class GenerationError(Exception):
    """One prompt got no answer; others may."""


class GeneratorDown(RuntimeError):
    """No prompt gets an answer any more; what is stored stays, and the same command goes on later."""


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
            GenerationError: this prompt gets no answer.
            GeneratorDown: no prompt gets an answer any more.
        """
        ...

    async def close(self) -> None:
        """Release processes and connections."""
        ...
