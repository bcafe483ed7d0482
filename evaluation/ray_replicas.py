"""Ray shell around the engine: replicas on all machines of the cluster share the prompts."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import zlib
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from actors.local_ray import local_ray
from curriculum.errors import first_line, one_line
from curriculum.secrets import blanked_secrets, hub_secrets
from evaluation.config import RayGenerator, SamplingConfig
from evaluation.generator import Completion, GeneratorDown
from evaluation.local_engine import LocalEngine, check_length
from evaluation.prompts import Prompt

CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
MAX_RESTARTS = 3
"""Restarts of a replica that dies."""


class ReplicaActor:
    """One engine.  Consumes: prompts.  Waits for: the engine.  Unblocked by: its answers."""

    def __init__(
        self, *, name: str, config: RayGenerator, sampling: SamplingConfig, secrets: Mapping[str, str]
    ) -> None:
        self._name = name
        os.environ.update(secrets)
        self._engine = LocalEngine(config, sampling)

    def __repr__(self) -> str:
        return getattr(self, "_name", "evaluation")

    async def ready(self) -> int:
        """Return the process id, once the engine can answer."""
        return os.getpid()

    async def generate(self, prompt: Prompt, seed: int) -> Completion:
        """Sample one answer; a dead engine ends this process, so that Ray restarts both."""
        try:
            return await self._engine.generate(prompt, seed=seed)
        except GeneratorDown:
            os._exit(1)

    async def close(self) -> None:
        """End the engine process."""
        await self._engine.close()


class RayReplicas:
    """A generator over several replicas; all samples of one prompt go to the one that has its prefix cached."""

    def __init__(self, config: RayGenerator, sampling: SamplingConfig) -> None:
        """Join the Ray cluster of RAY_ADDRESS or start one, and wait until every replica can answer.

        Raises:
            UserError: the model cannot hold prompt and response.
            GeneratorDown: Ray or a replica does not start.
        """
        check_length(config, sampling.max_prompt_tokens + sampling.max_response_tokens)
        self._ray = ExitStack() if ray.is_initialized() else _join()
        options: dict[str, Any] = {
            "num_cpus": 1 if config.on_gpu else 0,
            "num_gpus": config.engine.tensor_parallel_size if config.on_gpu else 0,
            "max_restarts": MAX_RESTARTS,
            "max_task_retries": MAX_RESTARTS,
            "runtime_env": {
                "env_vars": blanked_secrets(os.environ)
                | ({"OMP_NUM_THREADS": "4"} if config.on_gpu else CPU_ENVIRONMENT)
            },
        }
        secrets = hub_secrets(config.model)
        self._replicas: list[Any] = [
            ray.remote(ReplicaActor)
            .options(**options)
            .remote(name=name, config=config, sampling=sampling, secrets=secrets)
            for name in (f"evaluation-{index}" for index in range(config.num_replicas))
        ]
        with self._ray, _as_down("the replicas did not start"):
            ray.get([replica.ready.remote() for replica in self._replicas])
            self._ray = self._ray.pop_all()

    async def generate(self, prompt: Prompt, *, seed: int) -> Completion:
        """Sample one answer; a replica that dies meanwhile is restarted by Ray and asked again."""
        replica = self._replicas[zlib.crc32(prompt.token_ids.tobytes()) % len(self._replicas)]
        with _as_down("no replica answers"):
            return await replica.generate.remote(prompt, seed)

    async def close(self) -> None:
        """End the replicas, and Ray if this object started it."""
        await asyncio.gather(*[replica.close.remote() for replica in self._replicas], return_exceptions=True)
        for replica in self._replicas:
            ray.kill(replica)
        self._ray.close()


def _join() -> ExitStack:
    """Join the Ray of RAY_ADDRESS, or start one for this process; return what ends that again."""
    with ExitStack() as stack:
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            address = stack.enter_context(local_ray(_say, include_dashboard=False)).address
        stack.callback(ray.shutdown)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise GeneratorDown(
                f"Ray at {address}: {first_line(error)}; start it, or unset RAY_ADDRESS to start one here"
            ) from error
        return stack.pop_all()


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


@contextmanager
def _as_down(what: str) -> Generator[None]:
    try:
        yield
    except (RayActorError, RayTaskError) as error:
        again = "run the same command again, it continues where it stopped"
        raise GeneratorDown(f"{what}: {one_line(error)}; {again}") from error
