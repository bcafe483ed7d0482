"""Who answers prompts: one interface for the engine in this process, for Ray replicas and for endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from curriculum.errors import RunFailed
from evaluation.config import EndpointGenerator, GeneratorConfig, RayGenerator, SamplingConfig
from evaluation.prompts import Prompt


class GeneratorDown(RunFailed):
    """Nobody answers any more; what is stored stays, and the same command goes on later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a generator returns."""

    text: str
    """The response, thinking included."""
    num_tokens: int
    is_truncated: bool
    """Whether it ran into the limit of output tokens."""


class Generator(Protocol):
    """Answers prompts."""

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        """One sampled answer.

        Raises:
            NoReplyError: this prompt gets no answer.
            GeneratorDown: no prompt gets one any more.
        """
        ...

    async def close(self) -> None:
        """Gives back processes and connections."""
        ...


@asynccontextmanager
async def generator_session(config: GeneratorConfig, sampling: SamplingConfig) -> AsyncIterator[Generator]:
    """The generator of a configuration for the length of a block."""
    generator = _open(config, sampling)
    try:
        yield generator
    finally:
        await generator.close()


def _open(config: GeneratorConfig, sampling: SamplingConfig) -> Generator:
    if isinstance(config, EndpointGenerator):
        from evaluation.endpoint import OpenAIGenerator

        return OpenAIGenerator(config, sampling)
    if isinstance(config, RayGenerator):
        from evaluation.ray_replicas import RayReplicas

        return RayReplicas(config, sampling)
    from evaluation.local_engine import LocalEngine

    return LocalEngine(config, sampling)
