"""The generator of a configuration: the one place that knows every kind."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from evaluation.config import EndpointGenerator, GeneratorConfig, RayGenerator, SamplingConfig
from evaluation.generator import Generator


@asynccontextmanager
async def generator_session(config: GeneratorConfig, sampling: SamplingConfig) -> AsyncGenerator[Generator]:
    """Open the generator of a configuration for the length of a block."""
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
